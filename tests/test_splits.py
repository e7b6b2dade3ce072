"""Published splits: the authors' counts, frame numbers as indices, what one split leaks into another; recordings below a root."""

import os
from pathlib import Path

import numpy as np
import pytest
from layouts import write_c3vd, write_endonerf, write_folder, write_jhu, write_servct

from recon.data.collection import find_sequences
from recon.data.splits import Split, overlap, read_split
from recon.types import ReconError

FOLDER = Path(__file__).parents[1] / "configs" / "splits"
FILES = sorted(FOLDER.glob("*.toml"))
LONG = 10_000
"""More frames than any recording has, so that every stated frame exists."""

TINY = """
title = "t"
source = "s"
dataset = "d"
first_frame = 1
leakage = ["l"]
[group]
pattern = 'd\\d+'
means = "one animal"
[parts.train]
"d1/a" = "1-4, 8"
"d2/a" = "1-:2"
[parts.test]
"d1/a" = "4-9:2"
"d1/b" = "2-3"
"""


def split_of(name: str) -> Split:
    return read_split(FOLDER / f"{name}.toml")


def tiny(tmp_path: Path, text: str = TINY, name: str = "tiny") -> Split:
    (tmp_path / f"{name}.toml").write_text(text)
    return read_split(tmp_path / f"{name}.toml")


def count(split: Split, part: str) -> dict[str, int]:
    return {recording: len(split.frames(part, recording, LONG)) for recording in split.parts[part]}


# --- the published lists


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_split_states_its_source_and_leakage(path):
    split = read_split(path)
    assert split.title and split.source and split.leakage and split.parts["test"]
    for part, recordings in split.parts.items():
        for recording in recordings:
            assert split.recording(part, f"anywhere/below/{recording}") == recording


def test_the_endovis_lists_have_the_authors_counts():
    split = split_of("scared-af")
    assert {part: sum(count(split, part).values()) for part in ("train", "val", "test", "pose")} == {
        "train": 15_351,
        "val": 1_705,
        "test": 551,
        "pose": 410 + 833,
    }
    assert list(count(split, "test").items()) == [
        ("dataset_1/keyframe_3", 78),
        *((f"dataset_{k}/keyframe_4", n) for k, n in zip(range(2, 8), (71, 79, 76, 87, 83, 77), strict=True)),
    ]
    trained = {f"dataset_{k}/keyframe_{n}" for k in range(1, 8) for n in (1, 2)}
    assert set(split.parts["train"]) == trained | {f"dataset_{k}/keyframe_{n}" for k in (8, 9) for n in range(4)}


def test_endodavs_lists_have_the_authors_counts():
    split = split_of("scared-video")
    assert {part: len(recordings) for part, recordings in split.parts.items()} == {"train": 24, "val": 3, "test": 8}
    assert sum(count(split, "test").values()) == 5_907


def test_endovis_frames_exist_in_the_recordings_of_endodav():
    ours, lengths = split_of("scared-af"), split_of("scared-video")
    length = {recording: n for part in lengths.parts for recording, n in count(lengths, part).items()}
    for part, recordings in ours.parts.items():
        for recording in recordings:
            assert len(ours.frames(part, recording, length[recording])) > 0


def test_other_lists_have_the_authors_counts():
    assert [len(split_of("c3vd-ppsnet").parts[part]) for part in ("train", "test")] == [15, 8]
    assert [len(split_of("simcol3d").parts[part]) for part in ("train", "test")] == [24, 9]
    assert [len(split_of("stereomis").parts[part]) for part in ("train", "test")] == [1, 10]
    assert len(split_of("c3vd-endogslam").parts["test"]) == 10
    assert len(split_of("hamlyn-zero-shot").parts["test"]) == 21


def test_held_out_frames_follow_the_authors_rule():
    gslam, nerf = split_of("c3vd-endogslam"), split_of("endonerf")
    assert gslam.frames("test", "trans_t4_a", 24).tolist() == [7, 15, 23]
    assert nerf.frames("test", "pulling_soft_tissues", 63).tolist() == [i for i in range(63) if (i - 1) % 8 == 0]
    rendered, step = split_of("scared-3dgs"), {1: 2, 2: 1, 3: 4, 6: 8, 7: 8}
    for dataset, every in step.items():
        used = range(0, 330, every)
        held_out = [number for i, number in enumerate(used) if (i - 1) % 8 == 0]
        assert rendered.frames("test", f"dataset_{dataset}/keyframe_1", 330).tolist() == held_out


@pytest.mark.parametrize("name", ["c3vd-endogslam", "endonerf", "scared-3dgs"])
def test_held_out_frames_and_the_others_make_up_the_recording(name):
    split = split_of(name)
    for recording in split.parts["test"]:
        train, test = (split.frames(part, recording, 640) for part in ("train", "test"))
        every = np.diff(np.sort(np.concatenate((train, test))))
        assert not set(train) & set(test)
        assert np.all(every == every[0])


# --- frame numbers and indices


def test_frame_numbers_become_indices(tmp_path):
    split = tiny(tmp_path)
    assert split.frames("train", "d1/a", 8).tolist() == [0, 1, 2, 3, 7]
    assert split.frames("train", "d2/a", 6).tolist() == [0, 2, 4]
    assert split.frames("test", "d1/a", 8).tolist() == [3, 5, 7]


def test_a_list_of_recordings_means_all_their_frames(tmp_path):
    split = tiny(tmp_path, TINY.split("[parts.train]")[0] + "[parts]\ntest = ['d1/a']\n")
    assert split.frames("test", "d1/a", 3).tolist() == [0, 1, 2]


def test_a_recording_shorter_than_the_split_is_refused(tmp_path):
    with pytest.raises(ReconError, match="asks for frame 8 but the recording has frames 1 to 7"):
        tiny(tmp_path).frames("train", "d1/a", 7)


def test_renumbered_recordings_are_noticed():
    """AF-SfMLearner calls keyframe_0 of dataset 8 keyframe1; its length betrays it."""
    split = split_of("scared-video")
    assert split.recording("test", "dataset8/keyframe2") == "dataset_8/keyframe_2"
    with pytest.raises(ReconError, match="renumber"):
        split.frames("test", "dataset_8/keyframe_2", 637)


def test_unknown_parts_and_recordings_are_named(tmp_path):
    split = tiny(tmp_path)
    with pytest.raises(ReconError, match="no part 'val'; it has: train, test"):
        split.frames("val", "d1/a", 9)
    with pytest.raises(ReconError, match="'d3/a' is not in its test part; it has: d1/a, d1/b"):
        split.frames("test", "d3/a", 9)


def test_folders_are_found_however_they_are_spelled():
    scared, c3vd = split_of("scared-video"), split_of("c3vd-ppsnet")
    for folder in ("test/dataset8/keyframe0", "dataset_8_keyframe_0", "SCARED/Dataset_8/Keyframe_0"):
        assert scared.recording("test", folder) == "dataset_8/keyframe_0"
    for folder in ("dataset_18/keyframe_0", "dataset_8/keyframe_10", "dataset_8", "."):
        assert scared.recording("test", folder) is None
    assert c3vd.recording("test", "C3VD/cecum_t1_a_under_review") == "cecum_t1_a"
    assert split_of("hamlyn-zero-shot").recording("test", "rectified01/rectified01") == "rectified01"


# --- leakage


def test_the_af_training_part_has_seen_the_video_test_part():
    seen = overlap(split_of("scared-af"), split_of("scared-video"))
    assert "dataset_8/keyframe_0: 943 of its 945 test frames are in the train part of scared-af" in seen
    assert len(seen) == 8


def test_the_video_training_part_has_seen_the_af_test_part():
    seen = overlap(split_of("scared-video"), split_of("scared-af"))
    assert "dataset_1/keyframe_3: 78 of its 78 test frames are in the train part of scared-video" in seen
    assert any(sentence.startswith("dataset_3 (one animal") and "val part" in sentence for sentence in seen)


def test_a_split_may_share_animals_with_itself():
    scared = overlap(split_of("scared-af"), split_of("scared-af"))
    trained = [sentence.split(" ")[0] for sentence in scared if "the train part" in sentence]
    assert trained == [f"dataset_{k}" for k in range(1, 8)]
    assert {sentence.split(" ")[0] for sentence in overlap(split_of("c3vd-ppsnet"), split_of("c3vd-ppsnet"))} == {
        "cecum",
        "desc",
        "sigmoid",
        "trans",
    }
    simcol = overlap(split_of("simcol3d"), split_of("simcol3d"))
    assert [sentence.split(" ")[0] for sentence in simcol] == ["SyntheticColon_I", "SyntheticColon_II"]


def test_clean_and_foreign_splits_share_nothing():
    video = split_of("scared-video")
    assert overlap(video, video) == []
    assert overlap(split_of("stereomis"), split_of("stereomis")) == []
    assert overlap(split_of("c3vd-ppsnet"), video) == []


def test_stated_leakage_between_splits_of_one_data_set_is_found():
    nets, scenes = split_of("c3vd-ppsnet"), split_of("c3vd-endogslam")
    assert sum(": all of it is in the train part" in sentence or "same recording" in sentence for sentence in overlap(nets, scenes)) == 7
    assert len([s for s in overlap(split_of("scared-video"), split_of("scared-3dgs")) if "keyframe_1: the same recording" in s]) == 5


def test_shared_frames_are_counted_over_different_numberings(tmp_path):
    one = tiny(tmp_path)
    from_zero = TINY.replace("first_frame = 1\n", "").replace('"4-9:2"', '"0-7"')
    zero = tiny(tmp_path, from_zero, "zero")
    assert overlap(one, zero) == ["d1/a: 5 of its 8 test frames are in the train part of tiny"]
    apart = tiny(tmp_path, TINY.replace('"4-9:2"', '"5-7"'), "apart")
    assert overlap(one, apart) == ["d1/a: the same recording, with other frames, is in the train part of tiny"]
    other = tiny(tmp_path, TINY.replace('[parts.test]\n"d1/a" = "4-9:2"\n', "[parts.test]\n"), "other")
    assert overlap(one, other) == ["d1 (one animal): the train part of tiny has d1/a"]


# --- bad files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "t"', "", "lacks title"),
        ('title = "t"', 'title = "t"\ncolour = "red"', "unknown colour"),
        ('title = "t"', "title = 3", "title must be a string"),
        ("leakage = [", "leakage = [1, ", "leakage must be a list"),
        ("first_frame = 1", 'first_frame = "1"', "first_frame must be an integer"),
        ('means = "one animal"', "", "group must be a table"),
        ("'d\\d+'", "'['", "no regular expression"),
        ('"2-3"', '"3-2"', "'3-2' is empty"),
        ('"2-3"', '"2-3:0"', "'2-3:0' is empty"),
        ('"2-3"', '"2-3,"', "'' is no frame range"),
        ('"2-3"', '"-3"', "'-3' is no frame range"),
        ('"2-3"', '"0-3"', "before the first one, 1"),
        ('"2-3"', '"2-99999999999"', "no frame range"),
        ('"2-3"', "3", "must be a list of recordings or a table"),
        ('"d1/b"', '"x1/b"', "'x1/b' does not begin with its group"),
        ("[parts.train]", "[parts.train", "cannot be read as a split"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path, old, new, message):
    assert old in TINY
    with pytest.raises(ReconError, match=message) as caught:
        tiny(tmp_path, TINY.replace(old, new))
    assert caught.value.exit_code == 2
    assert "tiny" in str(caught.value)


def test_a_missing_split_and_doubled_names_are_refused(tmp_path):
    with pytest.raises(ReconError, match=r"absent\.toml cannot be read"):
        read_split(tmp_path / "absent.toml")
    with pytest.raises(ReconError, match="part test names a recording twice"):
        tiny(tmp_path, TINY.split("[parts.train]")[0] + "[parts]\ntest = ['d1/a', 'd1/a']\n")


# --- recordings below a root


def test_recordings_are_found_at_any_depth_in_natural_order(tmp_path):
    for name in ("v1/trans_t10_a", "v1/trans_t2_a", "v2/deep/er/c1_cecum_t1_v1"):
        write_c3vd(tmp_path / name)
    write_endonerf(tmp_path / "pulling")
    write_folder(tmp_path / "holiday")
    write_c3vd(tmp_path / ".trash" / "x")
    write_c3vd(tmp_path / "a/b/c/d/too_deep")
    assert find_sequences(tmp_path) == [
        (name, tmp_path / name) for name in ("pulling", "v1/trans_t2_a", "v1/trans_t10_a", "v2/deep/er/c1_cecum_t1_v1")
    ]
    assert [name for name, _ in find_sequences(tmp_path, "endonerf")] == ["pulling"]
    assert find_sequences(tmp_path / "holiday") == []


def test_a_recording_is_not_searched_further(tmp_path):
    root = write_jhu(tmp_path / "nasal")
    write_c3vd(root / "inside")
    assert find_sequences(root) == [("nasal", root)]
    assert find_sequences(tmp_path) == [("nasal", root)]
    write_servct(tmp_path / "servct" / "Experiment_1")
    assert find_sequences(tmp_path / "servct") == [("servct", tmp_path / "servct")]


def test_links_are_followed_once(tmp_path):
    root = write_c3vd(tmp_path / "elsewhere" / "cecum_t1_a").parent
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "a").symlink_to(root)
    (tmp_path / "root" / "b").symlink_to(root)
    (tmp_path / "root" / "sub" / "loop").symlink_to(tmp_path / "root")
    assert [name for name, _ in find_sequences(tmp_path / "root")] == ["a/cecum_t1_a"]


def test_a_root_that_is_no_folder_and_an_unknown_data_set_are_refused(tmp_path):
    with pytest.raises(ReconError, match="absent is not a folder"):
        find_sequences(tmp_path / "absent")
    with pytest.raises(ReconError, match="'colon' is not known"):
        find_sequences(tmp_path, "colon")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(ReconError, match="locked cannot be read"):
        find_sequences(tmp_path)
