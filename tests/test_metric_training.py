"""EndoSynth's fine-tuning: what falls, what each loss is for, what resumes to the same losses, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts_depth import write_endosynth

from recon import cli
from recon.data import open_sequence
from recon.io.atomic import read_json
from recon.losses.metric import absolute_error, log_error, silog
from recon.models import depth_anything, midas
from recon.models.beit import BeitSize
from recon.models.depth_anything import DepthAnything, DepthAnythingSize
from recon.models.endosynth import VARIANTS, load_metric
from recon.models.published import NATURAL, SCARED
from recon.models.vit import VitSize
from recon.pipeline.config import build_config
from recon.training import trainings
from recon.training.clip_store import Recording
from recon.training.depth_samples import DepthSamples, Schedule, held_out
from recon.training.metric import MetricConfig, MetricTraining, open_samples, train_metric
from recon.types import ReconError

TUBE = "phantom:tube?seed=3&frames=24&width=96&height=64&lens=pinhole&fov_deg=80&round_mask=false&noise=0"
CONFIG = Path(__file__).parents[1] / "configs" / "train" / "endosynth.toml"
TINY = {
    "size": "tiny", "width_px": 112, "height_px": 70, "batch_size": 4, "num_epochs": 6, "learning_rate": 1e-3,
    "encoder_learning_rate": 1e-3, "num_threads": 1,
}  # fmt: skip
"""From random weights, so the encoder learns as fast as the rest."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(depth_anything.SIZES, "tiny", DepthAnythingSize(VitSize(48, 4, 3, 70), 32, (16, 24, 32, 48), (0, 1, 2, 3)))
    monkeypatch.setitem(midas.SIZES, "tiny", midas.MidasSize(BeitSize(48, 4, 3, 64, 0.1), 32, (16, 24, 32, 48), (0, 1, 2, 3)))


def config_of(variant, sources=(TUBE,), **changes):
    own = {"midas": {"height_px": 64}, "endodac": {"learning_rate": 2e-3}}.get(variant, {})
    return MetricConfig(variant=variant, sources=sources, **{**TINY, **own, **changes})


def rows(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_error_in_metres_falls(tmp_path, variant):
    """And what is kept says the same metres when it is loaded for use."""
    best = train_metric(config_of(variant), tmp_path)
    validation = rows(tmp_path, "validation")
    assert [row["step"] for row in validation] == [0, 4, 8, 12, 16, 20, 24]
    errors = [row["mae_m"] for row in validation]
    assert min(errors) < 0.6 * errors[0]
    assert max(row["acc_2cm"] for row in validation) > 0.6
    facts = read_json(best / "training.json")
    assert facts["validation_mae_m"] == pytest.approx(min(errors), rel=1e-4)
    sequence = open_sequence(TUBE)
    held = range(22, 24)
    model = load_metric(variant, best)
    found = [np.abs(model.infer(sequence.frames[k].image()) - sequence.depth_gt(k).depth / 1000)[sequence.depth_gt(k).valid] for k in held]
    assert np.mean([error.mean() for error in found]) == pytest.approx(min(errors), rel=0.25)  # at the picture's own size


def test_silog_by_hand_and_what_it_forgives():
    truth, pred = torch.tensor([[[0.1, 0.2, 0.05, 7.0]]]), torch.tensor([[[0.2, 0.2, 0.1, 0.0]]])
    known = torch.tensor([[[True, True, True, False]]])
    errors = log_error(pred, truth, known)
    g = np.log([0.5, 1.0, 0.5])
    torch.testing.assert_close(errors, torch.tensor([[[*g, 0.0]]], dtype=torch.float32))
    assert float(silog(errors, known, 0.5)) == pytest.approx(np.sqrt(np.mean(g**2) - 0.5 * np.mean(g) ** 2))
    assert float(silog(log_error(3 * truth, truth, known), known, 1.0)) == pytest.approx(0.0, abs=1e-3)
    assert float(silog(log_error(3 * truth, truth, known), known, 0.0)) == pytest.approx(np.log(3))
    torch.testing.assert_close(absolute_error(pred, truth, known), torch.tensor([[[0.1, 0.0, 0.05, 0.0]]]))


def test_silog_has_a_finite_gradient_at_the_truth():
    truth = torch.full((1, 2, 2), 0.1)
    pred = truth.clone().requires_grad_()
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    silog(log_error(pred, truth, mask), mask).backward()
    assert torch.isfinite(pred.grad).all()


def test_each_loss_can_be_left_out(tmp_path):
    """Without the difference in metres, and with SiLog forgiving any factor, twice the depth is no worse; with it, it is."""
    config = config_of("dav2", variance_focus=1.0)
    steps, _ = open_samples(config, tmp_path)
    batch = steps[0]

    def total(factor, **changes):
        training = MetricTraining(dataclasses.replace(config, **changes))
        training.metres = lambda color: factor * batch.metres * (1 + 0.2 * color[:, 0])
        return float(training.losses(batch)["total"])

    for factor in (1.0, 1.5):
        silog_alone, plain_alone = total(factor, l1_weight=0.0), total(factor, silog_weight=0.0)
        assert silog_alone > 0 and plain_alone > 0
        assert total(factor) == pytest.approx(silog_alone + plain_alone, rel=1e-5)
    assert total(1.5, l1_weight=0.0) == pytest.approx(total(1.0, l1_weight=0.0), rel=0.05)
    assert total(1.5, silog_weight=0.0) > 2 * total(1.0, silog_weight=0.0)


def test_truth_beyond_what_the_network_can_say_does_not_count(tmp_path):
    """Samples are 10, 20, 30 (a little more in float16) and 40 cm away, and each has a pixel at 65 m."""
    root = str(write_endosynth(tmp_path / "EndoSynth"))
    samples = DepthSamples([Recording(root, open_sequence(root))], tmp_path / "store", (28, 28))
    batch = samples.batch(np.arange(4), np.zeros(4, dtype=bool))
    assert batch.metres.amax(dim=(1, 2)).tolist() == pytest.approx([65.0] * 4)
    assert batch.known(0.001, 0.3).flatten(1).any(dim=1).tolist() == [True, True, False, False]


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(tmp_path):
    config = config_of("dav1", num_epochs=2)
    train_metric(config, tmp_path / "unbroken")
    train_metric(config, tmp_path / "broken", stop_after=4)
    train_metric(config, tmp_path / "broken")
    train_metric(dataclasses.replace(config, num_workers=0), tmp_path / "broken")  # nothing is left to do
    for name in ("losses.csv", "validation.csv", "best/depth.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_what_a_step_sees_is_decided_by_seed_and_step():
    schedule = Schedule(np.arange(10, 21), 4, 0.5, seed=3)
    assert schedule.steps_per_epoch == 2
    epoch = [schedule.draw(step)[0] for step in range(2)]
    assert len(set(np.concatenate(epoch).tolist())) == 8 and set(np.concatenate(epoch)) <= set(range(10, 21))
    again = [schedule.draw(step) for step in range(4)]
    assert all(np.array_equal(a, schedule.draw(step)[0]) for step, (a, _) in enumerate(again))
    assert not np.array_equal(again[0][0], again[2][0])


def test_samples_keep_depth_with_its_picture(tmp_path):
    recording = Recording(TUBE, open_sequence(TUBE))
    samples = DepthSamples([recording], tmp_path, (96, 64))
    plain, turned = (samples.batch(np.array([5]), np.array([flip])) for flip in (False, True))
    truth = recording.sequence.depth_gt(5)
    np.testing.assert_allclose(plain.metres[0].numpy(), np.where(truth.valid, truth.depth, 0) / 1000, rtol=1e-3)
    assert torch.equal(turned.color, plain.color.flip(-1)) and torch.equal(turned.metres, plain.metres.flip(-1))
    image = recording.sequence.frames[5].image()
    np.testing.assert_allclose(plain.color[0].permute(1, 2, 0).numpy() * 255, image, atol=0.51)
    chosen = held_out(samples, 0.1)
    assert np.flatnonzero(chosen).tolist() == [22, 23]
    assert np.flatnonzero(held_out(samples, 0.1, gap=5)).tolist() == list(range(17, 24)) and held_out(samples, 0.1, gap=99).sum() == 13


def test_unrelated_views_are_held_out_one_in_so_many(tmp_path):
    root = str(write_endosynth(tmp_path / "EndoSynth", count=6))
    samples = DepthSamples([Recording(root, open_sequence(root))], tmp_path / "store", (28, 28))
    assert np.flatnonzero(held_out(samples, 0.4)).tolist() == [0, 2, 4]
    assert not held_out(samples, 0.0).any()


def test_the_data_set_trains_from_its_folder_and_a_run_uses_what_came_out(capsys, tmp_path):
    root = write_endosynth(tmp_path / "EndoSynth", count=6)
    file = root / "samples" / "000003.npz"
    file.write_bytes(file.read_bytes()[:300])
    settings = (f"sources={json.dumps([str(root)])}", "variant=dav2", "size=tiny", "width_px=56", "height_px=42", "batch_size=2")
    settings += ("num_epochs=1", "num_threads=1", "validation_share=0.4")
    words = ["train", str(CONFIG), "--out", str(tmp_path / "net"), *(word for pair in settings for word in ("--set", pair))]
    assert cli.main(words) == 0
    best = tmp_path / "net" / "best"
    assert capsys.readouterr().out.split() == ["weights", str(best)]
    run = ["run", "phantom:tube?seed=1&frames=2&width=240&height=200", "--out", str(tmp_path / "run"), "--until", "depth"]
    assert cli.main([*run, "--set", "depth.model=endosynth-dav2", f"depth.weights={best}"]) == 0
    (found,) = (tmp_path / "run").rglob("depth.json")
    assert read_json(found)["trained_on"] == ["endosynth"]
    capsys.readouterr()
    assert cli.main([*run, "--set", "depth.model=endosynth-dav1", f"depth.weights={best}"]) == 2
    assert "were trained as 'endosynth-dav2', not as 'endosynth-dav1'" in capsys.readouterr().err


def test_the_shipped_config_builds_with_the_published_size():
    table = tomllib.loads(CONFIG.read_text())
    assert table.pop("method") == "endosynth"
    config = build_config(trainings()["endosynth"].config, table, "endosynth")
    assert (config.width_px, config.height_px, config.size) == (742, 420, "")


def test_it_starts_from_the_foundation_models_files(tmp_path):
    """EndoDAC's also from Depth Anything's, whose last convolutions it does not have; another network's are refused."""
    original = DepthAnything(1, depth_anything.SIZES["tiny"])
    torch.save(original.state_dict(), tmp_path / "depth_anything.pth")
    for variant in ("dav1", "endodac"):
        training = MetricTraining(config_of(variant, start_weights=tmp_path / "depth_anything.pth"))
        encoder = training.network.pretrained if variant == "dav1" else training.network.encoder
        assert torch.equal(encoder.blocks[2].attn.qkv.weight, original.pretrained.blocks[2].attn.qkv.weight)
        assert training.trained_before == ("natural pictures",)
    torch.save(training.network.state_dict(), tmp_path / "depth_model.pth")
    assert MetricTraining(config_of("endodac", start_weights=tmp_path / "depth_model.pth")).trained_before == (*SCARED, *NATURAL)
    with pytest.raises(ReconError, match=r"depth_anything\.pth: weights do not fit the network: missing"):
        MetricTraining(config_of("midas", start_weights=tmp_path / "depth_anything.pth"))


def test_the_encoder_learns_at_its_own_rate_and_endodac_keeps_it_frozen():
    config = config_of("dav2", encoder_learning_rate=1e-5)
    groups = MetricTraining(config).groups()
    encoder = MetricTraining(config).network.pretrained
    assert [group["base_rate"] for group in groups] == [1e-5, 1e-3]
    assert sum(p.numel() for p in groups[0]["params"]) == sum(p.numel() for p in encoder.parameters())
    (added,) = MetricTraining(config_of("endodac")).groups()
    assert added["base_rate"] == 2e-3


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in open_sequence(TUBE).frames[:3]:
        (folder / f"{frame.index}.png").write_bytes(_png(frame.image()))
    for changes, says in (
        ({"sources": ()}, "no sources"),
        ({"sources": (str(folder),)}, "has no true depth: metric depth is learned from"),
        ({"validation_sources": (TUBE.replace("frames=24", "frames=30"),)}, "is learned from as"),
        ({"validation_share": 0.0}, "nothing is held out"),
    ):
        with pytest.raises(ReconError, match=says):
            open_samples(config_of("dav1", **changes), tmp_path / "store")
    with pytest.raises(ReconError, match="do not fill a batch of 40"):
        train_metric(config_of("dav1", batch_size=40), tmp_path / "out")
    with pytest.raises(ReconError, match="size of midas must be one of large, tiny, found 'base'"):
        MetricTraining(config_of("midas", size="base"))
    with pytest.raises(ReconError, match="channels"):
        build_config(MetricConfig, {"channels": "rbg"}, "own.toml")


def _png(image):
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()
