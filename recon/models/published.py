"""The published depth networks that can be run with their authors' weights: what they are, and where those are to be had.

Licences are those of the weights as their authors state them. `trained_on` holds for the published weights.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from recon.models import ModelInfo, endosynth, inference, video_inference

KITTI = ("kitti",)
SCARED = ("scared/scared-af",)
NATURAL = ("natural pictures",)
NON_COMMERCIAL = "CC-BY-NC-4.0"
MAX_DEPTH_M = 20.0
"""Of the metric networks for rooms, the nearer of the two kinds."""
PARAMETERS = {"small": 24_785_089, "base": 97_470_785, "large": 335_315_649}
"""Of Depth Anything, either version."""


def _own(method: str) -> str:
    return f"; `recon train configs/train/{method}.toml` makes such weights from any recording"


def _depth_anything(version: Literal[1, 2], size: str, is_metric: bool) -> ModelInfo:
    letter = size[0]
    if version == 1:
        where = f"https://huggingface.co/LiheYoung/depth-anything-{size}-hf or depth_anything_vit{letter}14.pth"
    elif is_metric:
        where = f"https://huggingface.co/depth-anything/Depth-Anything-V2-Metric-Hypersim-{size.title()}"
    else:
        where = f"https://huggingface.co/depth-anything/Depth-Anything-V2-{size.title()}"
    name = "depth_anything" + ("_v2" if version == 2 else "") + ("_metric" if is_metric else "") + f"_{letter}"
    return ModelInfo(
        name=name,
        parameters=PARAMETERS[size],
        trainable=PARAMETERS[size],
        licence=NON_COMMERCIAL if version == 2 and size != "small" else "Apache-2.0",
        output="metric" if is_metric else "disparity",
        trained_on=NATURAL,
        load=partial(inference.load_depth_anything, version, size, MAX_DEPTH_M if is_metric else None),
        published=f"its authors publish it at {where}",
    )


def _endosynth(variant: str, parameters: int, trainable: int, seen_before: tuple[str, ...]) -> ModelInfo:
    return ModelInfo(
        name=endosynth.PREFIX + variant,
        parameters=parameters,
        trainable=trainable,
        licence="Medtronic, non-commercial research",
        output="metric",
        trained_on=("endosynth", *seen_before),
        load=partial(endosynth.load_endosynth, variant),
        published=f"{variant}-f.pth, which its authors publish at https://github.com/TouchSurgery/EndoSynth" + _own("endosynth"),
    )


MODELS = (
    ModelInfo(
        name="monodepth2",
        parameters=14_329_236,
        trainable=14_329_236,
        licence="Niantic, non-commercial",
        output="disparity",
        trained_on=KITTI,
        load=partial(inference.load_monodepth2, True),
        published="a folder with encoder.pth and depth.pth; its authors publish it at https://github.com/nianticlabs/monodepth2"
        + _own("monodepth2"),
    ),
    ModelInfo(
        name="af_sfm",
        parameters=14_329_236,
        trainable=14_329_236,
        licence="MIT",
        output="disparity",
        trained_on=SCARED,
        load=partial(inference.load_monodepth2, False),
        published="a folder with encoder.pth and depth.pth; its authors publish it at https://github.com/ShuweiShao/AF-SfMLearner"
        + _own("af_sfm"),
    ),
    ModelInfo(
        name="endodac",
        parameters=99_091_748,
        trainable=1_667_076,
        licence="MIT",
        output="disparity",
        trained_on=(*SCARED, *NATURAL),
        load=inference.load_endodac,
        published="depth_model.pth, which its authors publish at https://github.com/BeileiCui/EndoDAC" + _own("endodac"),
    ),
    ModelInfo(
        name="litemono",
        parameters=3_074_747,
        trainable=3_074_747,
        licence="as its authors state with the weights",
        output="disparity",
        trained_on=SCARED,
        load=inference.load_litemono,
        published="a folder with encoder.pth and depth.pth; ask its authors at https://github.com/ShuweiShao/LiteNet",
    ),
    ModelInfo(
        name="litenet",
        parameters=3_074_747,
        trainable=3_074_747,
        licence="as its authors state with the weights",
        output="disparity",
        trained_on=SCARED,
        load=inference.load_litemono,
        published="a folder with encoder.pth and depth.pth; ask its authors at https://github.com/ShuweiShao/LiteNet" + _own("litenet"),
    ),
    ModelInfo(
        name="mdass",
        parameters=14_329_236,
        trainable=14_329_236,
        licence="none: its authors publish no weights",
        output="disparity",
        trained_on=SCARED,
        load=partial(inference.load_monodepth2, False),
        published="depth.safetensors, which its authors (https://arxiv.org/abs/2504.17582) do not publish" + _own("mdass"),
    ),
    ModelInfo(
        name="endodav",
        parameters=29_084_737,
        trainable=49_600,
        licence="as its authors state with the weights",
        output="disparity",
        trained_on=("scared/scared-video", *NATURAL),
        load=video_inference.load_endodav,
        published="depth_model.pth, which its authors publish at https://github.com/Zanue/EndoDAV (ckpts/models.zip)" + _own("endodav"),
    ),
    *(_depth_anything(1, size, False) for size in PARAMETERS),
    *(_depth_anything(2, size, is_metric) for is_metric in (False, True) for size in PARAMETERS),
    ModelInfo(
        name="endoufm",
        parameters=99_096_368,
        trainable=1_671_696,
        licence="not stated by its authors",
        output="disparity",
        trained_on=(*SCARED, *NATURAL),
        load=inference.load_endoufm,
        published="depth_model.pth, which its authors publish at https://github.com/RealMindyY/EndoUFM" + _own("endoufm"),
    ),
    _endosynth("dav1", PARAMETERS["base"], PARAMETERS["base"], NATURAL),
    _endosynth("dav2", PARAMETERS["base"], PARAMETERS["base"], NATURAL),
    _endosynth("endodac", 99_091_748, 1_667_076, (*SCARED, *NATURAL)),
    _endosynth("midas", 343_987_393, 343_987_393, NATURAL),
)
