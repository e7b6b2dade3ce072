"""`ns-train` where torch has no CUDA: `python -m recon.fields.nerf.ns_train endo-nerf --data SCENE`.

The command of that name imports torchvision before it looks for methods, and beside a CPU build of torch the import fails. Where
torchvision loads by itself both are the same.
"""

from recon.fields.nerf.torchvision_operators import import_torchvision

import_torchvision()

if __name__ == "__main__":
    from nerfstudio.scripts.train import entrypoint

    entrypoint()
