"""endorecon: from a recorded endoscopic procedure to a mesh, a trajectory and a report."""

__version__ = "0.1.0"
