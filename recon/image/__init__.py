"""What a single image tells before any geometry: its field, its highlights, its instruments, its quality."""

from recon.image.highlights import highlight_mask
from recon.image.instruments import judge_polarity
from recon.image.quality import GateLimits, Quality, blur_score, measure_quality, rejections
from recon.image.scope import dark_rim, find_scope_mask

__all__ = [
    "GateLimits",
    "Quality",
    "blur_score",
    "dark_rim",
    "find_scope_mask",
    "highlight_mask",
    "judge_polarity",
    "measure_quality",
    "rejections",
]
