"""AF-SfMLearner's registration and appearance flow, before and in training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recon.training.methods.af_sfm import AfSfmConfig, AfSfmMethod
from recon.training.selfsup import TrainingState, open_clips

CONFIG = AfSfmConfig(
    sources=("phantom:tube?seed=3&frames=24&width=96&height=64",), width_px=96, height_px=64, batch_size=2, learning_rate=5e-4,
    motion_factor=0.03,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_clips(CONFIG, tmp_path_factory.mktemp("clips")).training


@pytest.fixture
def method():
    torch.manual_seed(0)
    return AfSfmMethod(CONFIG)


def test_appearance_flow_makes_the_target_as_bright_as_the_sources(method, clips):
    """Light that falls by a fifth from the target to its neighbours, with the published weights of the losses."""
    state = TrainingState(method, ())
    raw, refined = distance_to_registered(method, dimmed(clips.batch(0, len(clips))))
    assert refined == pytest.approx(raw, rel=0.01)
    for step in range(16):
        state.train_step(dimmed(clips.batch(step, 2)), epoch=0)
    raw, refined = distance_to_registered(method, dimmed(clips.batch(0, len(clips))))
    assert refined < 0.8 * raw


def dimmed(batch):
    """The same clips with darker sources."""
    light = torch.tensor([1.0, 0.8, 0.8])[:, None, None, None]
    return dataclasses.replace(batch, color=batch.color * light, color_aug=batch.color * light)


@torch.no_grad()
def distance_to_registered(method, batch):
    """Mean absolute difference of target and of refined target from the registered first source."""
    method.networks.eval()
    target = batch.color[:, 0]
    registration = method.register(batch, 1, batch.mask[:, 0])
    refined = method.refine(registration, target)[1][0]
    return [float((image - registration.image).abs().mean(dim=1)[registration.visible].mean()) for image in (target, refined)]


def test_what_the_sources_mask_hides_is_not_registered(method, clips):
    """A flow of zero: the target is compared only where the source's own mask holds."""
    clip = clips.clip(0, 0)
    for parameter in method.networks["flow"].parameters():
        torch.nn.init.zeros_(parameter)
    mask = torch.ones_like(clip.mask)
    mask[:, 1, 20:40, 30:60] = False
    registration = method.register(dataclasses.replace(clip, mask=mask), 1, mask[:, 0])
    assert not registration.flows[0].any() and torch.equal(registration.visible, mask[:, 1])
    assert method.register(dataclasses.replace(clip, mask=mask), 2, mask[:, 0]).visible.all()
