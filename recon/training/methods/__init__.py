"""Self-supervised methods by the name that a training's config gives them."""

from __future__ import annotations

from recon.training.methods.af_sfm import AfSfmMethod
from recon.training.methods.endodac import EndoDacMethod
from recon.training.methods.endodav import EndoDavMethod
from recon.training.methods.endoufm import EndoUfmMethod
from recon.training.methods.litenet import LiteNetMethod
from recon.training.methods.mdass import MDassMethod
from recon.training.methods.method import Method
from recon.training.methods.monodepth2 import Monodepth2Method

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Monodepth2Method,
        AfSfmMethod,
        EndoDacMethod,
        LiteNetMethod,
        MDassMethod,
        EndoDavMethod,
        EndoUfmMethod,
    )
}
