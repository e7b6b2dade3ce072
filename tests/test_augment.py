"""Changes of pictures in training: they repeat with their seed and leave pictures."""

from __future__ import annotations

import torch

from recon.training.augment import jitter


def test_jitter_repeats_with_its_seed_and_stays_a_picture():
    image = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again = (jitter(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, jitter(image, torch.Generator().manual_seed(4)))
