"""Right pictures that a user brings: matched by name, with a calibration that is checked before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, picture, save, write_folder

from recon.data.folder import open_folder
from recon.data.second_view import CALIBRATION, KEY, read_calibration, second_views
from recon.types import ReconError

LENS = {"model": "PINHOLE", "width_px": WIDTH, "height_px": HEIGHT, "params": [30.0, 30.0, 19.5, 15.5]}
BESIDE = [[1, 0, 0, -4.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def write_right(root: Path, names: list[str], **calibration) -> Path:
    for number, name in enumerate(names):
        save(root / name, picture(number + 50))
    (root / CALIBRATION).write_text(json.dumps(LENS | {KEY: BESIDE} | calibration))
    return root


def test_frames_find_their_right_views_by_name(tmp_path):
    frames = open_folder(write_folder(tmp_path / "left")).frames
    view_of = second_views(write_right(tmp_path / "right", [Path(frames[2].name).stem + ".png"]), frames)
    assert view_of(0) is None
    assert np.array_equal(view_of(2).image(), picture(50)) and view_of(2).T_second_first_mm[0, 3] == -4.2


@pytest.mark.parametrize(
    ("calibration", "says"),
    [
        ({KEY: [1, 2]}, "expected T_right_left_mm, four rows of four numbers"),
        ({KEY: (2 * np.eye(4)).tolist()}, "not a rigid motion"),
        ({"model": "WIDE"}, "camera model 'WIDE' is not known"),
    ],
)
def test_a_wrong_calibration_is_named(tmp_path, calibration, says):
    with pytest.raises(ReconError, match=says) as caught:
        read_calibration(write_right(tmp_path, ["000000.png"], **calibration))
    assert CALIBRATION in str(caught.value)


def test_a_missing_calibration_and_a_lens_for_other_images_are_named(tmp_path):
    with pytest.raises(ReconError, match=r"stereo.json does not exist: expected the lens"):
        read_calibration(tmp_path)
    frames = open_folder(write_folder(tmp_path / "left")).frames
    with pytest.raises(ReconError, match=r"stereo.json is for images of 80x"):
        second_views(write_right(tmp_path / "right", ["000000.png"], width_px=80), frames)
