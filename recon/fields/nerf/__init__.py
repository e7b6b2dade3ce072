"""The NeRF of a scene that moves, trained by nerfstudio in a process of its own.

`training` is what a stage calls and needs no nerfstudio; `normalisation`, `ray_choice`, `deformation` and `depth_terms` are the method
in plain numpy and torch; the other files know nerfstudio and are imported by the child process and by `ns-train` alone.
"""
