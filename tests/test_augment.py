"""Changes of pictures in training: they repeat with their seed and leave pictures."""

from __future__ import annotations

import torch

from recon.training.augment import estrange, jitter


def test_jitter_repeats_with_its_seed_and_stays_a_picture():
    image = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again = (jitter(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, jitter(image, torch.Generator().manual_seed(4)))


def test_strange_pictures_keep_their_edges_and_repeat_with_their_seed():
    """Tones bend smoothly, so a step of brightness stays where it was, and nothing flat gets one."""
    image = torch.full((8, 3, 48, 64), 0.3)
    image[..., 40:] = 0.5
    first, again = (estrange(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.min() >= 0 and first.max() <= 1
    across = first.diff(dim=-1).abs().mean(dim=(1, 2))
    assert (across.argmax(dim=-1) == 39).all()
    assert (across[:, :32].max(dim=-1).values < 0.2 * across[:, 39]).all()
    tones = first[:, 0, :, :32].mean(dim=(1, 2))
    assert tones.min() < 0.25 and tones.max() > 0.35
