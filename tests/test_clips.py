"""Clips for self-supervised training: where they come from, in which order, and what is done to them."""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_c3vd
from PIL import Image
from video_files import tile_number, write_video

from recon.data import open_sequence
from recon.data.splits import Run, read_split
from recon.geometry.cameras import mirror, ray_grid, resize
from recon.training import clip_store
from recon.training.clip_augment import CHANGES, FACTOR_RANGE, HUE_RANGE, ColorJitter, apply_jitter, draw_jitter
from recon.training.clip_store import MAX_REPEATS, Recording, picture_motion, store_recording
from recon.training.clips import ClipBatch, ClipPlan, ClipSource, clip_batches, split_recordings
from recon.types import Camera, Frame, FrameError, FrameSequence, ReconError

WIDTH, HEIGHT = 96, 80
PLAN = ClipPlan(width_px=64, height_px=32, val_share=0.0, seed=3)
CAMERA = Camera("PINHOLE", WIDTH, HEIGHT, (70.0, 75.0, 40.0, 44.0))
FISHEYE = Camera("OPENCV_FISHEYE", WIDTH, HEIGHT, (50.0, 50.0, 45.0, 38.0, -0.03, 0.0, 0.0, 0.0))


def texture(seed: int) -> np.ndarray:
    """A smooth picture, wide enough to slide a window over."""
    coarse = np.random.default_rng(seed).uniform(40, 230, (12, 60, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((8 * WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def recording(name="slide", count=30, seed=0, step=2, images=None, **facts) -> Recording:
    """A window that slides over a texture, `step` px a frame; `images` replaces frames, an exception is raised on decoding."""
    wide, changed = texture(seed), images or {}

    def load(index: int) -> np.ndarray:
        image = changed.get(index, wide[:, step * index : step * index + WIDTH])
        if isinstance(image, Exception):
            raise image
        return np.ascontiguousarray(image)

    frames = tuple(Frame(i, f"{i:06d}", i / 25, lambda i=i: load(i)) for i in range(count))
    return Recording(f"{name}-{seed}", FrameSequence(name, "folder", frames, **{"camera": CAMERA, **facts}))


def source(tmp_path: Path, *recordings: Recording, plan=PLAN, **options) -> ClipSource:
    return ClipSource(recordings, tmp_path / "store", plan, **options)


def same(first: ClipBatch, second: ClipBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(first, name), getattr(second, name)) for name in ClipBatch.__dataclass_fields__)
    )


def all_frames(clips: ClipSource, batch_size=4) -> list[tuple[str, list[int]]]:
    batches = [clips.batch(step, batch_size) for step in range(clips.steps_per_epoch(batch_size))]
    return [(name, frames) for batch in batches for name, frames in zip(batch.recordings, batch.frame_indices.tolist(), strict=True)]


def test_clips_hold_the_frames_that_their_offsets_name_and_never_cross_a_recording(tmp_path):
    clips = source(tmp_path, recording("a", 10), recording("b", 12, seed=1), plan=replace(PLAN, flip_share=0.0))
    assert len(clips) == 8 + 10
    found = all_frames(clips, batch_size=3)
    assert sorted(found) == [("a", [t, t - 1, t + 1]) for t in range(1, 9)] + [("b", [t, t - 1, t + 1]) for t in range(1, 11)]
    batch = clips.batch(0, 3)
    assert batch.color.shape == (3, 3, 3, 32, 64)
    seeds = {"a": 0, "b": 1}
    for sample in range(3):
        for frame in range(3):
            start = 2 * int(batch.frame_indices[sample, frame])
            window = texture(seeds[batch.recordings[sample]])[:, start : start + WIDTH]
            expected = np.asarray(Image.fromarray(window).resize((64, 32), Image.Resampling.LANCZOS)) / 255
            assert np.allclose(batch.color[sample, frame].permute(1, 2, 0), expected, atol=1e-6)


def test_clips_never_cross_a_cut(tmp_path):
    """An edited recording shows another place from frame 15 on."""
    other = texture(7)
    images = {index: other[:, 2 * index : 2 * index + WIDTH] for index in range(15, 30)}
    clips = source(tmp_path, recording("edited", 30, images=images), augment=False)
    assert [frames[0] for _, frames in all_frames(clips)] == [*range(1, 14), *range(16, 29)]
    assert clips.notes == ("edited: clips do not cross its cuts before frames 15",)


def test_consecutive_frames_make_longer_clips(tmp_path):
    clips = source(tmp_path, recording(count=9), plan=replace(PLAN, offsets=(0, 1, 2, 3, 4)), augment=False)
    assert [frames for _, frames in all_frames(clips)] == [[t, t + 1, t + 2, t + 3, t + 4] for t in range(5)]


def test_an_epoch_has_every_clip_once_and_each_epoch_another_order(tmp_path):
    clips = source(tmp_path, recording(count=14))
    epochs = [[int(clips.clip(epoch, place).frame_indices[0, 0]) for place in range(12)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(1, 13)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_any_step_is_the_same_in_another_process_and_after_a_restart(tmp_path, monkeypatch):
    recordings = (recording("a"), recording("b", seed=1))
    first = source(tmp_path, *recordings)
    unbroken = [first.batch(step, 4) for step in range(30)]
    monkeypatch.setattr(clip_store, "_write_frames", lambda *_: pytest.fail("a stored recording is decoded again"))
    resumed = source(tmp_path, *recordings)
    assert all(same(batch, again) for batch, again in zip(unbroken[17:], clip_batches(resumed, 4, 17, 30), strict=True))
    other_seed = source(tmp_path, *recordings, plan=replace(PLAN, seed=4))
    assert not same(unbroken[0], other_seed.batch(0, 4))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_change_neither_the_order_nor_the_random_state(tmp_path):
    clips = source(tmp_path, recording(count=20))
    state = torch.get_rng_state()
    alone = list(clip_batches(clips, 4, 2, 9))
    helped = list(clip_batches(clips, 4, 2, 9, num_workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert len(alone) == 7 and all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_bad_frames_are_counted_with_their_reasons_and_no_clip_holds_them(tmp_path):
    black, white = np.full((HEIGHT, WIDTH, 3), 6, np.uint8), np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    images = {5: FrameError("frame 5 is damaged"), 12: black, 19: white, 24: np.zeros((40, 40, 3), np.uint8)}
    clips = source(tmp_path, recording(images=images))
    used = {frame for _, frames in all_frames(clips, 1) for frame in frames}
    assert used == set(range(30)) - {5, 12, 19, 24}
    assert all(max(frames) - min(frames) == 2 for _, frames in all_frames(clips, 1))
    assert clips.notes == ("slide: 4 of 30 frames are skipped: 1 black, 2 cannot be decoded, 1 overexposed (first: frame 5 is damaged)",)


def test_repeated_frames_are_passed_over_but_a_frozen_picture_divides(tmp_path):
    wide = texture(0)
    twice = {i: wide[:, 2 * (i // 2 * 2) : 2 * (i // 2 * 2) + WIDTH] for i in range(20)}
    clips = source(tmp_path, recording("converted", 20, images=twice), augment=False)
    assert [frames for _, frames in all_frames(clips)] == [[t, t - 2, t + 2] for t in range(2, 18, 2)]
    assert clips.notes == ("converted: 10 of 20 frames are skipped: 10 repeated",)
    frozen = {i: wide[:, 20 : 20 + WIDTH] for i in range(10, 10 + MAX_REPEATS + 2)}
    clips = source(tmp_path, recording("frozen", 24, images=frozen), augment=False)
    assert [frames[0] for _, frames in all_frames(clips)] == [*range(1, 10), *range(17, 23)]


def test_pictures_that_stand_still_are_left_out_with_a_note(tmp_path):
    rng = np.random.default_rng(0)
    still = texture(0)[:, :WIDTH].astype(float)
    noisy = {i: np.clip(still * (1 + 0.05 * (i % 2)) + rng.normal(0, 6, still.shape), 0, 255).astype(np.uint8) for i in range(15)}
    moving = {i: texture(0)[:, 2 * (i - 14) : 2 * (i - 14) + WIDTH] for i in range(15, 30)}
    clips = source(tmp_path, recording(count=30, images=noisy | moving), augment=False)
    assert [frames[0] for _, frames in all_frames(clips)] == list(range(14, 29))
    assert "slide: 13 of 28 clips are left out: their picture moves less than 0.25 px, so the camera stands still" in clips.notes[0]
    with pytest.raises(ReconError, match=r"give no train clip with offsets .*stands still"):
        source(tmp_path, recording("still", 15, images=noisy))
    everything = source(tmp_path, recording(count=30, images=noisy), plan=replace(PLAN, min_motion_px=0.0))
    assert len(everything) == 28


@pytest.mark.parametrize("shift_px", [0.0, 0.1, 0.5, 1.0])
def test_motion_of_a_shifted_picture_under_changing_light(shift_px):
    v, u = np.mgrid[0:128, 0:160].astype(float)

    def picture(offset: float) -> np.ndarray:
        waves = np.sin((u - offset) / 4) + np.cos(v / 5) + np.sin((u - offset + v) / 7)
        return np.repeat((120 + 30 * waves)[..., None], 3, axis=2)

    noise = np.random.default_rng(1).normal(0, 2, (2, 128, 160, 3))
    first, second = picture(0.0) + noise[0], 1.1 * picture(shift_px) + 5 + noise[1]
    pictures = (np.clip(image, 0, 255).round().astype(np.uint8) for image in (first, second))
    assert picture_motion(*pictures, np.ones((128, 160), bool)) == pytest.approx(shift_px, abs=0.03 + 0.08 * shift_px)
    assert picture_motion(np.full((64, 64, 3), 90, np.uint8), np.full((64, 64, 3), 95, np.uint8), np.ones((64, 64), bool)) == 0.0


def test_validation_is_held_out_in_whole_stretches_with_a_margin(tmp_path):
    plan = replace(PLAN, val_share=0.2, val_gap=3)
    train = source(tmp_path, recording(count=200), plan=plan)
    validation = source(tmp_path, recording(count=200), plan=plan, part="val")
    trained = {frame for _, frames in all_frames(train, 1) for frame in frames}
    held_out = sorted({frame for _, frames in all_frames(validation, 1) for frame in frames})
    assert held_out == list(range(80, 120))
    assert trained == set(range(77)) | set(range(123, 200))
    several = ClipPlan(64, 32, val_share=0.2)
    stretches = source(tmp_path, recording("long", 600, step=1), plan=several, part="val")
    held_out = np.unique([frame for _, frames in all_frames(stretches, 1) for frame in frames])
    assert np.split(held_out, np.flatnonzero(np.diff(held_out) > 1) + 1)[0].tolist() == list(range(120, 180)) and len(held_out) == 120


def test_validation_clips_come_in_order_unchanged_and_to_the_last(tmp_path):
    plan = replace(PLAN, val_share=0.5, jitter_share=1.0, flip_share=1.0)
    validation = source(tmp_path, recording(count=21), plan=plan, part="val")
    assert len(validation) == 8 and validation.steps_per_epoch(3) == 3
    batches = [validation.batch(step, 3) for step in range(3)]
    assert torch.cat([batch.frame_indices[:, 0] for batch in batches]).tolist() == list(range(7, 15))
    assert not any(batch.flipped.any() or not torch.equal(batch.color, batch.color_aug) for batch in batches)


@pytest.mark.parametrize("camera", [CAMERA, FISHEYE])
def test_a_mirrored_clip_mirrors_its_pictures_rays_and_centre(tmp_path, camera):
    usable = np.ones((HEIGHT, WIDTH), bool)
    usable[:30, :20] = False
    facts = {"camera": camera, "instrument_mask": lambda index: usable}
    plain = source(tmp_path, recording(**facts), plan=replace(PLAN, flip_share=0.0)).batch(1, 2)
    flipped = source(tmp_path, recording(**facts), plan=replace(PLAN, flip_share=1.0)).batch(1, 2)
    assert flipped.flipped.all() and not plain.flipped.any()
    assert torch.equal(flipped.color, plain.color.flip(-1))
    assert torch.equal(flipped.mask, plain.mask.flip(-1)) and not plain.mask[:, :, :12, :13].any() and plain.mask[:, :, 13:].all()
    sign = np.array([-1.0, 1.0, 1.0])[:, None, None]
    ahead, turned = (np.moveaxis(ray_grid(batch.cameras[0]), -1, 0) for batch in (plain, flipped))
    assert np.allclose(turned, ahead[..., ::-1] * sign, atol=1e-6)
    small = resize(camera, 64, 32)
    assert plain.cameras == (small, small) and flipped.cameras == (mirror(small),) * 2
    if camera is CAMERA:
        assert plain.cameras[0].params == pytest.approx((70 * 64 / 96, 75 * 32 / 80, 40.5 * 64 / 96 - 0.5, 44.5 * 32 / 80 - 0.5))
        assert flipped.cameras[0].params[2] == pytest.approx(63 - plain.cameras[0].params[2])


def test_an_unknown_lens_stays_unknown(tmp_path):
    clips = source(tmp_path, recording("a", 8), recording("b", 8, seed=1, camera=None))
    batch = clips.batch(0, 12)
    assert {name for name, camera in zip(batch.recordings, batch.cameras, strict=True) if camera is None} == {"b"}


def test_a_clip_has_one_lens(tmp_path):
    clips = source(tmp_path, recording(count=12, frame_camera=lambda index: CAMERA if index < 6 else FISHEYE), augment=False)
    assert [frames[0] for _, frames in all_frames(clips)] == [1, 2, 3, 4, 7, 8, 9, 10]


def test_the_scope_mask_covers_the_black_border(tmp_path):
    wide = texture(0)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    round_field = np.hypot(u - 47.5, v - 39.5) < 38
    images = {i: wide[:, 2 * i : 2 * i + WIDTH] * round_field[..., None] for i in range(30)}
    mask = source(tmp_path, recording(images=images)).batch(0, 1).mask[0]
    far_outside = np.hypot(u - 47.5, v - 39.5) > 42  # a pixel at the working size is up to 2.5 px wide
    inside, outside = (np.array(Image.fromarray(field).resize((64, 32))) for field in (round_field, far_outside))
    assert not mask[:, torch.from_numpy(outside)].any()
    assert mask[:, torch.from_numpy(inside)].float().mean() > 0.85


def test_one_jitter_for_all_frames_of_a_clip(tmp_path):
    plan = replace(PLAN, jitter_share=1.0)
    clips = source(tmp_path, recording(count=40, step=3), plan=plan)
    changes = []
    for step in range(20):
        batch = clips.batch(step, 1)
        # 3 px of 96 are 2 px of 64: away from the border, a frame is its neighbour two pixels on, before and after the jitter.
        ahead = -2 if batch.flipped else 2
        for frames in (batch.color, batch.color_aug):
            target, before, after = frames[0, ..., 8:-8, :].unbind()
            assert torch.allclose(before.roll(-ahead, -1)[..., 8:-8], target[..., 8:-8], atol=1e-6)
            assert torch.allclose(after.roll(ahead, -1)[..., 8:-8], target[..., 8:-8], atol=1e-6)
        changes.append(float((batch.color_aug - batch.color).mean()))
    assert len(set(changes)) == 20
    repeated = torch.rand(1, 3, 8, 8).expand(3, 3, 8, 8)
    jittered = apply_jitter(repeated, draw_jitter(np.random.default_rng(0)))
    assert torch.equal(jittered[0], jittered[1]) and torch.equal(jittered[0], jittered[2])
    # A colour of the first frame becomes the same colour in another frame, however bright the rest of that frame is.
    clip = torch.rand(2, 3, 8, 8)
    clip[1] *= 0.5
    clip[1, :, 0, 0] = clip[0, :, 0, 0]
    jittered = apply_jitter(clip, ColorJitter(1.1, 0.8, 1.2, 0.05))
    assert torch.equal(jittered[0, :, 0, 0], jittered[1, :, 0, 0])


def test_half_of_the_clips_are_changed_and_half_are_mirrored(tmp_path):
    clips = source(tmp_path, recording(count=42))
    batches = [clips.clip(epoch, place) for epoch in range(10) for place in range(40)]
    flipped = np.array([bool(batch.flipped) for batch in batches])
    changed = np.array([not torch.equal(batch.color, batch.color_aug) for batch in batches])
    assert flipped.mean() == pytest.approx(0.5, abs=0.08) and changed.mean() == pytest.approx(0.5, abs=0.08)
    assert (flipped & changed).mean() == pytest.approx(0.25, abs=0.07)


def test_jitter_against_plain_arithmetic():
    color = np.array([0.7, 0.4, 0.3])
    clip = torch.from_numpy(color)[None, :, None, None].expand(1, 3, 2, 2).clone()
    clip[..., 1, :] = 0.2
    luma = color @ (0.299, 0.587, 0.114)
    for jitter, expected in (
        (ColorJitter(brightness=1.2, order=("brightness",)), color * 1.2),
        (ColorJitter(contrast=0.8, order=("contrast",)), 0.8 * color + 0.2 * (luma + 0.2) / 2),
        (ColorJitter(saturation=0.8, order=("saturation",)), 0.8 * color + 0.2 * luma),
    ):
        assert np.allclose(apply_jitter(clip, jitter)[0, :, 0, 0], expected, atol=1e-9)
    for turns in (-0.1, 0.03, 0.1):
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert np.allclose(apply_jitter(clip, ColorJitter(hue=turns, order=("hue",)))[0, :, 0, 0], expected, atol=1e-6)
    assert torch.allclose(apply_jitter(clip, ColorJitter()), clip, atol=1e-6)
    draws = [draw_jitter(np.random.default_rng(seed)) for seed in range(500)]
    for name, (low, high) in {**dict.fromkeys(CHANGES[:3], FACTOR_RANGE), "hue": HUE_RANGE}.items():
        values = np.array([getattr(draw, name) for draw in draws])
        width = high - low
        assert low <= values.min() < low + 0.02 * width and high - 0.02 * width < values.max() <= high
    assert len({draw.order for draw in draws}) == 24


def test_frames_are_decoded_once_forwards_and_none_is_held(tmp_path):
    decoded: list[int] = []
    alive: list[int] = []
    plain = recording(count=25)

    class Held(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def watched(frame: Frame) -> Frame:
        def load() -> np.ndarray:
            decoded.append(frame.index)
            alive.append(frame.index)
            assert len(alive) <= 2
            return frame.image().view(Held)

        return replace(frame, load=load)

    watching = replace(plain, sequence=replace(plain.sequence, frames=tuple(watched(f) for f in plain.sequence.frames)))
    stored = store_recording(watching, 64, 32, tmp_path)
    assert decoded == list(range(25))
    clips = ClipSource([watching], tmp_path, PLAN)
    for step in range(20):
        clips.batch(step, 2)
    assert decoded == list(range(25)) and not alive
    assert not any(isinstance(value, np.ndarray) and value.nbytes > 64 * 32 for value in vars(stored).values())
    assert not list(tmp_path.glob(".part*"))


def test_a_video_gives_each_frame_its_own_picture(tmp_path):
    write_video(tmp_path / "tiles.mp4", 40)
    video = Recording(str(tmp_path / "tiles.mp4"), open_sequence(tmp_path / "tiles.mp4"))
    plan = replace(PLAN, width_px=128, height_px=64, min_motion_px=0.0, flip_share=0.0)
    clips = source(tmp_path, video, plan=plan)
    assert clips.notes[0] == "tiles: 1 of 40 frames are skipped: 1 black"  # frame 0 has no white tile
    assert clips.notes[1:] == ("tiles: clips do not cross its cuts before frames 32",)
    batch = clips.batch(0, len(clips))
    seen = [[tile_number(frame.permute(1, 2, 0).numpy() * 255) for frame in clip] for clip in batch.color]
    assert seen == batch.frame_indices.tolist() and len(seen) == 35  # from 31 to 32 six tiles change at once: a cut


def test_phantoms_are_recordings(tmp_path):
    spec = "phantom:tube?seed=1&frames=4&width=96&height=80"
    clips = source(tmp_path, Recording(spec, open_sequence(spec)), plan=replace(PLAN, min_motion_px=0.0))
    batch = clips.batch(0, 2)
    assert batch.color.std() > 0.05 and batch.cameras[0].model == "OPENCV_FISHEYE" and not batch.mask.all()


def test_bad_plans_and_recordings_are_refused(tmp_path):
    with pytest.raises(ReconError, match="multiple of 32 or of 14 both ways, found 64x28"):
        ClipPlan(width_px=64, height_px=28)
    assert ClipPlan(width_px=280, height_px=224)
    for offsets in ((-1, 0, 1), (0,), (0, 1, 1)):
        with pytest.raises(ReconError, match="offsets must be 0"):
            ClipPlan(offsets=offsets)
    with pytest.raises(ReconError, match="single views that do not follow one another"):
        source(tmp_path, recording(is_unrelated=True))
    with pytest.raises(ReconError, match="they are too short"):
        source(tmp_path, recording(count=2))
    with pytest.raises(ReconError, match="4 clips do not fill a batch of 8"):
        source(tmp_path, recording(count=6)).batch(0, 8)
    with pytest.raises(ReconError, match="frame 0 is 96x80, but the camera or the frames before are 48x40"):
        source(tmp_path, recording("other size", camera=resize(CAMERA, 48, 40)))


def test_a_split_gives_its_training_recordings_and_never_its_test_frames(tmp_path):
    for name in ("alpha", "beta", "gamma"):
        write_c3vd(tmp_path / "data" / name, count=12)
    split_file = tmp_path / "toy.toml"
    split_file.write_text(
        'title = "toy"\nsource = "none"\ndataset = "c3vd"\nleakage = []\n'
        "[group]\npattern = '[a-z]+'\nmeans = 'one clip'\n"
        '[parts.train]\n"alpha" = "0-9"\n[parts.val]\n"beta" = "0-3"\n[parts.test]\n"alpha" = "8-11"\n"gamma" = "0-"\n'
    )
    split = read_split(split_file)
    (train,), (validation,) = (split_recordings(split, part, tmp_path / "data") for part in ("train", "val"))
    assert (train.sequence.name, train.frames.tolist()) == ("alpha", list(range(8)))
    assert (validation.sequence.name, validation.frames.tolist()) == ("beta", list(range(4)))
    clips = source(tmp_path, train, plan=replace(PLAN, min_motion_px=0.0))
    assert {frame for _, frames in all_frames(clips, 1) for frame in frames} == set(range(8))
    chosen_by = source(tmp_path, validation, plan=replace(PLAN, min_motion_px=0.0), part="all", augment=False)
    assert [frames for _, frames in all_frames(chosen_by)] == [[1, 0, 2], [2, 1, 3]]
    both = replace(split, parts=split.parts | {"val": {"alpha": (Run(5, 6, 1),)}})
    (train,) = split_recordings(both, "train", tmp_path / "data")
    assert train.frames.tolist() == [0, 1, 2, 3, 4, 7]
    with pytest.raises(ReconError, match="lacks 1 recordings of the train part of toy: alpha"):
        split_recordings(split, "train", tmp_path / "data" / "beta")
    with pytest.raises(ReconError, match="never by 'test'"):
        split_recordings(split, "test", tmp_path)
    without_val = replace(split, parts={part: split.parts[part] for part in ("train", "test")})
    assert split_recordings(without_val, "val", tmp_path / "data") == []
