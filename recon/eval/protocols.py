"""What each published depth protocol counts, fits, cuts and reports.

A protocol is data; `recon.eval.depth` carries it out. The values are those of the authors' released scripts. Two things hold
for all: a prediction that is 0, negative, NaN, infinite or absurd at a pixel is unknown there and left out of the errors (no author
handles holes, most would score an infinite or clamped depth), and coverage is therefore always reported beside the errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from recon.types import Alignment

EIGEN = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta_1.25", "delta_1.25^2", "delta_1.25^3")
"""The seven figures of Eigen et al. (2014), in the order of the tables."""
IN_MM = ("acc_2cm", "bad_1mm", "bad_2mm", "bad_5mm")

FitName = Literal[
    "none",
    "median_of_ratios",
    "sequence_median_of_ratios",
    "ratio_of_medians",
    "least_squares",
    "least_median_squares",
    "sequence_deviation",
]
"""How the numbers of an alignment are found; `recon.eval.depth_fit` says each in words."""


@dataclass(frozen=True)
class Crop:
    """The part of the truth that counts: rows `top` to `bottom`, columns `left` to `right`, ends excluded, None is the border."""

    top: int | None
    bottom: int | None
    left: int | None
    right: int | None
    first_sequence: int | None = None
    """Only sequences of at least this number (the last digits of their name) are cropped; None: all are."""

    def applies_to(self, sequence: str) -> bool:
        """Whether a sequence of this name is cropped."""
        if self.first_sequence is None:
            return True
        number = sequence_number(sequence)
        return number is not None and number >= self.first_sequence


@dataclass(frozen=True)
class Protocol:
    """One way to score depth maps."""

    name: str
    title: str
    source: str
    """Where the arithmetic was read, and what had to be decided because it is silent."""
    fits: tuple[tuple[Alignment, FitName], ...]
    measures: tuple[str, ...]
    dataset: str | None = None
    """Key of the data set that it belongs to; None where it belongs to none."""
    min_truth: float = 0.0
    """True depth counts above this, mm."""
    max_truth: float | None = None
    """True depth counts below this, mm."""
    clamps: bool = False
    """Whether aligned predictions are moved into the range of truth before they are compared."""
    crop: Crop | None = None
    resize: Literal["nearest", "disparity", "square"] = "nearest"
    """How a prediction of another size comes to the truth's grid: depth by nearest pixel, or disparity bilinearly, or both maps to
    PPSNet's square."""
    averaging: Literal["frames", "sequences"] = "frames"
    """Over several sequences: the mean of all their frames, or the mean of the sequences' means."""
    min_pixels: int = 1
    """A frame with fewer compared pixels is left out of the errors: scale and shift fit a handful whatever was predicted."""
    min_share: float = 0.0
    """A frame with a smaller predicted share of its true pixels is left out of the errors; coverage counts it."""

    @property
    def metric_name(self) -> str | None:
        """What `Metric.protocol` says: None for the project's own definition."""
        return None if self.name == OWN else self.name

    @property
    def is_in_mm(self) -> bool:
        """Whether a length in millimetres takes part, so that a truth of unknown unit cannot be scored."""
        return self.name != OWN and (self.max_truth is not None or bool({*IN_MM} & {*self.measures}))


def sequence_number(sequence: str) -> int | None:
    """Return the last number in the name of a sequence, e.g. 14 of "rectified14"."""
    digits = re.findall(r"\d+", sequence)
    return int(digits[-1]) if digits else None


OWN = "endorecon"
_MEDIAN_SCALED: tuple[tuple[Alignment, FitName], ...] = (("scale_frame", "ratio_of_medians"),)

_ALL = (
    Protocol(
        name=OWN,
        title="every true pixel under four alignments",
        source=(
            "own: no cap, no clamp, no crop. Scale of a frame: median of true over predicted depth; of a sequence: median of its frames' "
            "scales; scale and shift: least squares per frame, in disparity when the prediction is one. The penalised errors count a "
            "missing pixel as a relative error of 1 (an error of its own true depth) and cap the others there."
        ),
        fits=(
            ("none", "none"),
            ("scale_sequence", "sequence_median_of_ratios"),
            ("scale_frame", "median_of_ratios"),
            ("scale_shift", "least_squares"),
        ),
        measures=(*EIGEN, "mae", "median_ae", *IN_MM, "abs_rel_penalised", "mae_penalised", "scale_spread", "scale_drift"),
        min_pixels=10,
        min_share=0.05,
    ),
    Protocol(
        name="scared-af",
        title="SCARED, AF-SfMLearner's split (551 frames) and arithmetic",
        source="ShuweiShao/AF-SfMLearner evaluate_depth.py; BeileiCui/EndoDAC evaluate_depth.py is the same and skips frames without truth",
        fits=_MEDIAN_SCALED,
        measures=EIGEN,
        dataset="scared",
        min_truth=1e-3,
        max_truth=150.0,
        clamps=True,
        resize="disparity",
    ),
    Protocol(
        name="scared-video",
        title="SCARED, EndoDAV's video split, one scale and shift per sequence",
        source=(
            "Zanue/EndoDAV evaluate_depth_video_pose.py and utils/eval_utils.py: depth minus its median over its mean absolute deviation, "
            "over all true pixels of the sequence at once; TAE and TAS are in recon.eval.temporal"
        ),
        fits=(("scale_shift", "sequence_deviation"),),
        measures=EIGEN,
        dataset="scared",
        min_truth=1e-3,
        max_truth=150.0,
        clamps=True,
        resize="disparity",
    ),
    Protocol(
        name="hamlyn",
        title="Hamlyn (Recasens' packs), as EndoDAC scores it without training on it",
        source=(
            "BeileiCui/EndoDAC evaluate_depth.py and datasets/hamlyn_dataset.py: SCARED's range is kept, sequences above 13 are cut to "
            "columns 180..589. A prediction of the whole image is cut too, one of the crop's aspect is taken as made of it."
        ),
        fits=_MEDIAN_SCALED,
        measures=EIGEN,
        dataset="hamlyn",
        min_truth=1e-3,
        max_truth=150.0,
        clamps=True,
        crop=Crop(None, None, 180, 590, first_sequence=14),
        resize="disparity",
    ),
    Protocol(
        name="servct-official",
        title="SERV-CT, the toolkit of its authors: millimetres, nothing scaled",
        source=(
            "surgical-vision/servcttk scripts/evaluate_depthmap.py and servcttk/analytics.py. The toolkit takes maps of the truth's size "
            "alone; others are resized by nearest pixel here."
        ),
        fits=(("none", "none"),),
        measures=("rmse", "mae", "median_ae"),
        dataset="servct",
    ),
    Protocol(
        name="servct-mono",
        title="SERV-CT as monocular papers score it",
        source="BaymaxShao/Endo-GeDE evaluate_depth.py (cap 200 mm); other papers cap at 180 mm",
        fits=_MEDIAN_SCALED,
        measures=EIGEN,
        dataset="servct",
        min_truth=1e-3,
        max_truth=200.0,
        clamps=True,
        resize="disparity",
    ),
    Protocol(
        name="c3vd-endodac",
        title="C3VD, all frames, the middle of the image",
        source=(
            "BeileiCui/EndoDAC evaluate_depth.py and datasets/c3vd_dataset.py (cap 100 mm, rows 180..899, columns 200..1149). A "
            "prediction of the whole image is cut too, one of the crop's aspect is taken as made of it."
        ),
        fits=_MEDIAN_SCALED,
        measures=EIGEN,
        dataset="c3vd",
        min_truth=1e-3,
        max_truth=100.0,
        clamps=True,
        crop=Crop(180, 900, 200, 1150),
        resize="disparity",
    ),
    Protocol(
        name="c3vd-ppsnet",
        title="C3VD, undistorted central square at 384 pixels, least-median-of-squares scale",
        source=(
            "Roni-Lab/PPSNet test_ppsnet.py: no mask, so unknown truth and unknown prediction count as depth 0; its a1 is a relative error "
            "below 0.1 (acc_rel_0.1 here). A disparity is inverted and clamped to 0..1 as the script does to its network's output; a depth "
            "map is taken as past that step. Means of sequences are averaged."
        ),
        fits=(("scale_frame", "least_median_squares"),),
        measures=("abs_rel", "sq_rel", "rmse", "rmse_log", "acc_rel_0.1"),
        dataset="c3vd",
        max_truth=100.0,
        resize="square",
        averaging="sequences",
    ),
    Protocol(
        name="endosynth-relative",
        title="EndoSynth benchmark, relative depth",
        source=(
            "Toussaint et al., arXiv 2509.18642: names Abs Rel and delta 1.25, and TouchSurgery/EndoSynth gives no code for them: the "
            "alignment is decided here as one scale per frame by the ratio of medians, no cap; the table may follow another."
        ),
        fits=_MEDIAN_SCALED,
        measures=("abs_rel", "delta_1.25"),
    ),
    Protocol(
        name="endosynth-metric",
        title="EndoSynth benchmark, metric depth, nothing scaled",
        source=(
            "Toussaint et al., arXiv 2509.18642: MAE (in cm there, mm here) and acc@2cm; there is no code for it: decided here as the "
            "share of true pixels that are less than 20 mm wrong, without cap"
        ),
        fits=(("none", "none"),),
        measures=("mae", "acc_2cm"),
    ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
