"""Pairs of frames far apart in time that may show the same place, from the features that were detected already.

Each frame is summed up by the residuals of its local features to a small vocabulary learnt on this very recording (VLAD:
Jegou, Douze, Schmid and Perez, "Aggregating local descriptors into a compact image representation", 2010), with RootSIFT
(Arandjelovic and Zisserman 2012) and power normalisation. Matching and epipolar geometry decide whether a pair is a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float
from scipy.cluster.vq import kmeans2, vq

from recon.tracking.sift import DESCRIPTOR_UNITS

NUM_WORDS = 32
WORDS_SAMPLE = 20_000
"""Descriptors that the vocabulary is learnt on."""
NUM_PAIRS = 3
"""Of each frame with frames far away, at most."""


def loop_pairs(database: Path, names: Sequence[str], overlap: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of images further apart than `overlap` that look as alike as frames `overlap` apart do; no pair twice."""
    if len(names) <= overlap + 1:
        return []
    per_frame = max(1, WORDS_SAMPLE // len(names))
    sample = np.concatenate([d[:: max(1, len(d) // per_frame)] for d in _descriptors(database, names)])
    if len(sample) < 4 * NUM_WORDS:
        return []
    words, _ = kmeans2(sample, NUM_WORDS, iter=10, minit="++", seed=seed)
    summary = np.stack([vlad(d, words) for d in _descriptors(database, names)])
    likeness = summary @ summary.T
    ordinary = float(np.median(np.diagonal(likeness, overlap)))
    return [(names[a], names[b]) for a, b in alike(likeness, overlap, ordinary)]


def alike(likeness: Float[np.ndarray, "n n"], overlap: int, threshold: float) -> list[tuple[int, int]]:
    """Pairs (a < b) further apart than `overlap` whose likeness reaches the threshold, for each frame the best few."""
    num = len(likeness)
    apart = np.abs(np.arange(num)[:, None] - np.arange(num)) > overlap
    candidates = np.where(apart & (likeness >= threshold), likeness, -np.inf)
    pairs = set()
    for a in range(num):
        for b in np.argsort(-candidates[a], kind="stable")[:NUM_PAIRS].tolist():
            if np.isfinite(candidates[a, b]):
                pairs.add((min(a, b), max(a, b)))
    return sorted(pairs)


def vlad(descriptors: Float[np.ndarray, "n d"], words: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " kd"]:
    """Summary of a frame with norm 1; zeros for a frame without features."""
    total = np.zeros_like(words)
    if len(descriptors):
        word, _ = vq(descriptors, words)
        np.add.at(total, word, descriptors - words[word])
    flat = total.reshape(-1)
    powered = np.sign(flat) * np.sqrt(np.abs(flat))
    return powered / max(float(np.linalg.norm(powered)), 1e-12)


def _descriptors(database: Path, names: Sequence[str]) -> Iterator[Float[np.ndarray, "n 128"]]:
    """RootSIFT of one image after another; no rows where nothing was detected."""
    with pycolmap.Database.open(database) as opened:
        ids = {image.name: image.image_id for image in opened.read_all_images()}
        for name in names:
            stored = opened.read_descriptors(ids[name]).data if opened.exists_descriptors(ids[name]) else np.zeros((0, 128))
            yield np.asarray(stored, np.float32).reshape(-1, 128) / DESCRIPTOR_UNITS
