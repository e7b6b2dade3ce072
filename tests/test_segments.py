"""Smoothness inside segments: its arithmetic, and where labels come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from recon.image.superpixels import superpixels
from recon.io.images import read_integers, write_png
from recon.losses.segments import changes, segment_mean
from recon.training.clips import ClipBatch
from recon.training.segment_labels import SegmentLabels
from recon.types import ReconError

FLAT = torch.full((1, 3, 6, 8), 0.5)
ALL = torch.ones(1, 6, 8, dtype=torch.bool)


def halves() -> torch.Tensor:
    """Label 0 on the left two columns, 1 on the six others."""
    labels = torch.ones(1, 6, 8, dtype=torch.long)
    labels[..., :2] = 0
    return labels


def test_it_is_the_published_sum_segment_by_segment():
    """Sums over each label's left and upper pixels over its area, and the mean over all labels up to the largest."""
    generator = torch.Generator().manual_seed(0)
    values, guide = torch.rand(2, 6, 8, generator=generator), torch.rand(2, 3, 6, 8, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 8), generator=generator)
    labels[labels == 2] = 3  # label 2 is nobody's, and still counted
    expected = 0.0
    for label in range(4):
        mask = (labels == label).float()
        if mask.sum() < 10:
            continue
        across = (values[..., 1:] - values[..., :-1]).abs() * torch.exp(-(guide[..., 1:] - guide[..., :-1]).abs().mean(dim=1))
        down = (values[:, 1:] - values[:, :-1]).abs() * torch.exp(-(guide[:, :, 1:] - guide[:, :, :-1]).abs().mean(dim=1))
        expected += ((across * mask[..., :-1]).sum() + (down * mask[:, :-1]).sum()) / mask.sum() / 4
    every = torch.ones(2, 6, 8, dtype=torch.bool)
    torch.testing.assert_close(segment_mean(changes(values, guide, every), labels, every), expected)


def test_a_rough_small_segment_costs_as_much_as_a_rough_large_one():
    """That is what labels are for: one label for all would count pixels."""
    labels, stripes = halves(), torch.zeros(1, 6, 8)
    stripes[:, ::2] = 1.0
    small, large = (segment_mean(changes(stripes, FLAT, ALL) * (labels == k), labels, ALL) for k in (0, 1))
    torch.testing.assert_close(small, large)
    one = torch.zeros_like(labels)
    assert segment_mean(changes(stripes, FLAT, ALL) * (labels == 0), one, ALL) < 0.6 * small


def test_a_change_belongs_to_its_left_pixel_and_counts_less_at_an_edge_of_the_picture():
    step = torch.zeros(1, 6, 8)
    step[..., 2:] = 1.0
    values = changes(step, FLAT, ALL)
    assert values[..., 1].tolist() == [[1.0] * 6] and values.sum() == 6
    guide = FLAT.clone()
    guide[..., 2:] = 1.5
    torch.testing.assert_close(changes(step, guide, ALL).sum(), 6 * torch.exp(torch.tensor(-1.0)))


def test_outside_the_mask_nothing_counts():
    mask = ALL.clone()
    mask[..., 5:] = False
    values, labels = torch.rand(1, 6, 8), halves()
    other, relabelled = values.clone(), labels.clone()
    other[..., 5:], relabelled[..., 5:] = 7.0, 9
    assert torch.equal(segment_mean(changes(values, FLAT, mask), labels, mask), segment_mean(changes(other, FLAT, mask), relabelled, mask))
    assert segment_mean(changes(values, FLAT, ~ALL), labels, ~ALL) == 0


def test_tiny_segments_do_not_count():
    labels = halves()
    labels[0, :3, 0] = 2
    values = torch.zeros(1, 6, 8)
    values[0, :3, 0] = 1.0
    assert segment_mean(values, labels, ALL) == 0


def test_its_gradient_is_the_finite_difference():
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(1, 6, 8, generator=generator, dtype=torch.float64).requires_grad_()
    guide = torch.rand(1, 3, 6, 8, generator=generator, dtype=torch.float64)

    def loss(values):
        return segment_mean(changes(values, guide, ALL), halves(), ALL)

    assert torch.autograd.gradcheck(loss, (values,))


def clip(flipped: bool = False, frame: int = 4) -> ClipBatch:
    image = torch.rand(1, 2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    image = image.flip(-1) if flipped else image
    return ClipBatch(image, image, torch.ones(1, 2, 32, 48).bool(), (None,), ("tube",), torch.tensor([[frame, 3]]), torch.tensor([flipped]))


def test_without_files_labels_are_superpixels_mirrored_with_the_clip():
    labels = SegmentLabels(None)
    plain, turned = labels.of_targets(clip()), labels.of_targets(clip(flipped=True))
    assert torch.equal(turned, plain.flip(-1))
    image = (clip().color[0, 0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(plain[0].numpy(), superpixels(image))
    jittered = dataclasses.replace(clip(), color_aug=torch.zeros_like(clip().color))
    assert torch.equal(labels.of_targets(jittered), plain)


@pytest.mark.parametrize("place", ["tube/000004.png", "000004.png"])
def test_files_of_any_segmenter_are_read_by_recording_and_frame(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    stored = np.zeros((64, 96), np.uint8)
    stored[:, 48:] = 7
    write_png(file, stored)
    labels = SegmentLabels(tmp_path)
    found = labels.of_targets(clip())
    assert found.shape == (1, 32, 48) and (found[..., 24:] == 7).all() and (found[..., :24] == 0).all()
    assert (labels.of_targets(clip(flipped=True))[..., :24] == 7).all()


def test_labels_of_several_recordings_are_told_apart_by_their_names(tmp_path):
    write_png(tmp_path / "000004.png", np.zeros((64, 96), np.uint8))
    labels = SegmentLabels(tmp_path)
    labels.begin(("tube", "void"))
    with pytest.raises(ReconError, match=r"000004\.png could be of several recordings: move it into .*tube"):
        labels.of_targets(clip())
    labels.begin(("tube",))
    assert not labels.of_targets(clip()).any()
    with pytest.raises(ReconError, match="several recordings are called tube; rename them"):
        labels.begin(("tube", "void", "tube"))
    SegmentLabels(None).begin(("tube", "tube"))


def test_labels_that_are_missing_are_made_once_and_kept(tmp_path):
    made = []

    def segmenter(image):
        made.append(image.shape)
        return np.full(image.shape[:2], 3)

    for _ in range(2):
        assert (SegmentLabels(tmp_path / "labels", segmenter).of_targets(clip()) == 3).all()
    assert made == [(32, 48, 3)]
    assert (read_integers(tmp_path / "labels" / "tube" / "000004.png") == 3).all()


def test_what_is_wrong_with_labels_is_named(tmp_path):
    with pytest.raises(ReconError, match="is no folder: give the folder of label PNGs"):
        SegmentLabels(tmp_path / "nowhere")
    with pytest.raises(ReconError, match="set labels=FOLDER"):
        SegmentLabels(None, lambda image: image[..., 0].astype(int))
    labels = SegmentLabels(tmp_path)
    with pytest.raises(ReconError, match=r"tube/000004\.png does not exist: give a label PNG for every frame of tube"):
        labels.of_targets(clip())
    write_png(tmp_path / "000004.png", np.zeros((64, 96), np.uint8))
    write_png(tmp_path / "000005.png", np.zeros((32, 96), np.uint8))
    write_png(tmp_path / "000006.png", np.zeros((64, 96, 3), np.uint8))
    labels.of_targets(clip())
    with pytest.raises(ReconError, match=r"000005\.png are 96x32, others of tube are 96x64"):
        labels.of_targets(clip(frame=5))
    with pytest.raises(ReconError, match=r"000006\.png should hold one channel.*expected one channel of 8 or 16 bit"):
        labels.of_targets(clip(frame=6))
    (tmp_path / "000007.png").write_bytes(b"no picture")
    with pytest.raises(ReconError, match=r"labels cannot be used: .*000007\.png"):
        labels.of_targets(clip(frame=7))
