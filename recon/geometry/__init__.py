"""Cameras, rigid motions, alignments and surfaces of depth maps: mathematics without files or networks."""

from recon.geometry.alignment import umeyama
from recon.geometry.cameras import angle_limit, covers, crop, mirror, pixel_grid, project, ray_grid, resize, unproject, usable_mask
from recon.geometry.fit import default_camera, fit_fisheye
from recon.geometry.similarity import Similarity
from recon.geometry.surface import backproject, edge_mask, normals_from_depth
from recon.geometry.undistort import pinhole_for, remap, remap_grid

__all__ = [
    "Similarity",
    "angle_limit",
    "backproject",
    "covers",
    "crop",
    "default_camera",
    "edge_mask",
    "fit_fisheye",
    "mirror",
    "normals_from_depth",
    "pinhole_for",
    "pixel_grid",
    "project",
    "ray_grid",
    "remap",
    "remap_grid",
    "resize",
    "umeyama",
    "unproject",
    "usable_mask",
]
