"""Depth maps of other programs: what their files hold comes back, what is no depth is unknown, each frame gets its own map."""

import io
import struct
import warnings
import zipfile

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from recon.data.bare_truth import depth_truth
from recon.io.depth import write_depth
from recon.io.depth_formats import open_stack, read_predicted_depth
from recon.io.predicted_depth import DepthFolder
from recon.io.units import MM_PER_UNIT
from recon.types import ReconError

pytestmark = pytest.mark.filterwarnings("error")
MAP = np.array([[0, 1, 2], [300, 4000, 65535]])
NUM_MUTATIONS = 100


def one_line(error: ReconError, name: str) -> bool:
    return "\n" not in str(error) and name in str(error) and len(str(error)) < 600


def write_lzw(path, depth):
    assert cv2.imwrite(str(path), depth, [cv2.IMWRITE_TIFF_COMPRESSION, 5])


def write_predicted(path, depth):
    Image.fromarray(depth).save(path, compression="tiff_adobe_deflate", tiffinfo={317: 3})


# --- one file


@pytest.mark.parametrize(
    ("name", "dtype", "write"),
    [
        ("a.png", np.uint16, lambda path, depth: Image.fromarray(depth).save(path)),
        ("cv.png", np.uint16, lambda path, depth: cv2.imwrite(str(path), depth)),
        ("a.tiff", np.uint16, lambda path, depth: tifffile.imwrite(path, depth)),
        ("lzw.tiff", np.uint16, write_lzw),
        ("a.tif", np.float32, lambda path, depth: tifffile.imwrite(path, depth, compression="zlib")),
        ("p.tif", np.float32, write_predicted),
        ("lzw.tif", np.float32, lambda path, depth: Image.fromarray(depth).save(path, compression="tiff_lzw")),
        ("b.tif", np.float64, lambda path, depth: tifffile.imwrite(path, depth)),
        ("cv.tif", np.float32, lambda path, depth: cv2.imwrite(str(path), depth)),
        ("own.tiff", np.float32, write_depth),
        ("a.npy", np.float64, np.save),
        ("b.npy", np.float32, lambda path, depth: np.save(path, np.asfortranarray(depth))),
        ("c.npy", np.int64, lambda path, depth: np.save(path, depth[None])),
        ("d.npy", ">f4", lambda path, depth: np.save(path, depth[None, None])),
        ("e.npy", np.uint16, lambda path, depth: np.save(path, depth[..., None])),
        ("a.npz", np.float32, np.savez),
        ("b.npz", np.float64, lambda path, depth: np.savez_compressed(path, depth=depth, confidence=depth * 0)),
    ],
)
def test_every_format_gives_what_was_written(tmp_path, name, dtype, write):
    write(tmp_path / name, MAP.astype(dtype))
    depth = read_predicted_depth(tmp_path / name, 0.5)
    assert depth.dtype == np.float32
    assert np.array_equal(depth, MAP / 2)


def test_eight_bits_and_half_floats(tmp_path):
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.array([[0, 0.05, np.inf]], np.float16))
    assert read_predicted_depth(tmp_path / "a.png").tolist() == [[0, 7, 255]]
    depth = read_predicted_depth(tmp_path / "a.npy", MM_PER_UNIT["m"])
    assert np.allclose(depth, [[0, 50, np.inf]], atol=0.02)


@pytest.mark.parametrize("name", ["a.npy", "a.tiff"])
def test_what_is_no_depth_is_passed_on_for_whoever_scores_it_to_count(tmp_path, name):
    depth = np.array([[np.nan, np.inf, -np.inf], [-1, 1e300, 5]])
    np.save(tmp_path / name, depth) if name == "a.npy" else tifffile.imwrite(tmp_path / name, depth)
    read = read_predicted_depth(tmp_path / name, 2.0)
    assert np.array_equal(read, np.array([[np.nan, np.inf, -np.inf], [-2, np.inf, 10]], np.float32), equal_nan=True)


def picture(path):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.png", picture, "one channel of integers, found pixels of kind RGB"),
        ("a.tiff", picture, r"shape \(4, 5, 3\)"),
        ("a.exr", picture, "no depth format that is read"),
        ("b.tiff", lambda path: tifffile.imwrite(path, np.zeros((3, 4, 5), np.float32), photometric="minisblack"), "found 3 of float32"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 4, 5))), "holds 2 maps; expected one map a file"),
        ("b.npy", lambda path: np.save(path, np.zeros(7)), r"shape \(7,\); expected \(h, w\)"),
        ("c.npy", lambda path: np.save(path, np.zeros((0, 7))), r"shape \(0, 7\): no map"),
        ("d.npy", lambda path: np.save(path, np.zeros((4, 5), complex)), "type complex128"),
        ("e.npy", lambda path: np.save(path, np.array([["x"]])), "type <U1"),
        ("f.npy", lambda path: path.write_bytes(b""), "cannot be decoded as an array"),
        ("a.npz", lambda path: np.savez(path, a=MAP, b=MAP), "holds the arrays a, b; expected one array"),
        ("b.npz", lambda path: np.savez(path), "holds the arrays none"),
        ("missing.npz", lambda path: None, "does not exist"),
        ("missing.npy", lambda path: None, "does not exist"),
        ("missing.tiff", lambda path: None, "does not exist"),
        ("missing.png", lambda path: None, "does not exist|No such file"),
    ],
)
def test_what_is_no_map_is_named(tmp_path, name, write, words):
    if not name.endswith(".exr"):
        write(tmp_path / name)
    with pytest.raises(ReconError, match=words) as caught:
        read_predicted_depth(tmp_path / name)
    assert one_line(caught.value, name)
    assert caught.value.exit_code == 2


def test_nothing_in_an_array_file_is_executed(tmp_path):
    for name, write in (("a.npy", np.save), ("a.npz", np.savez)):
        write(tmp_path / name, np.array([[{"a": 1}, print]], dtype=object))
        with pytest.raises(ReconError, match="type object; expected depths"):
            read_predicted_depth(tmp_path / name)


def npy_header(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


@pytest.mark.parametrize("shape", [(10**9, 10**9), (1, 4, 10**12), (2, -3, 4)])
def test_a_header_that_claims_what_is_not_there(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy_header(shape) + bytes(96))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("depth.npy", npy_header(shape) + bytes(96))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ReconError, match=r"cut short or damaged|no map") as caught:
            open_stack(tmp_path / name)
        assert one_line(caught.value, name)


def test_more_than_64_megapixels_and_bombs_are_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:  # sparse: takes no disk
        file.write(npy_header((9000, 9000)))
        file.truncate(128 + 9000 * 9000 * 4)
    with pytest.raises(ReconError, match="claims 9000x9000 pixels; above 64 megapixels is refused"):
        open_stack(tmp_path / "a.npy")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("depth.npy", npy_header((4, 5)) + bytes(80))
    content = bytearray(packed.getvalue())
    at = content.index(b"PK\x01\x02") + 24  # what the directory says of the size after unpacking
    content[at : at + 4] = struct.pack("<I", 4_000_000_000)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ReconError, match="refused as a decompression bomb"):
        open_stack(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "float.tiff", "a.npy", "a.npz"])
def test_damaged_files_give_a_map_or_one_line(tmp_path, name):
    depth = (1000 + np.arange(30 * 40).reshape(30, 40)).astype(np.float32 if "float" in name or "np" in name else np.uint16)
    if name.endswith("png"):
        Image.fromarray(depth).save(tmp_path / name)
    elif name.endswith("tiff"):
        tifffile.imwrite(tmp_path / name, depth, compression="zlib")
    else:
        (np.save if name.endswith("npy") else np.savez_compressed)(tmp_path / name, depth)
    good = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for k in range(NUM_MUTATIONS):
        data = bytearray(good)
        if k % 3 == 0:
            data = data[: rng.integers(0, len(good))]
        else:
            start = rng.integers(0, min(len(good), 200) if k % 3 == 1 else len(good))
            data[start : start + 4] = rng.bytes(4)
        (tmp_path / name).write_bytes(bytes(data))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = read_predicted_depth(tmp_path / name)
        except ReconError as error:
            assert one_line(error, name), str(error)
            refused += 1
        else:
            assert read.dtype == np.float32 and read.ndim == 2
    assert refused > NUM_MUTATIONS / 3


# --- which map belongs to which frame


def folder_of(path, names, start=1):
    """Maps whose value tells their place in `names`."""
    path.mkdir()
    for k, name in enumerate(names, start):
        write = {"npy": np.save, "png": lambda p, d: Image.fromarray(d).save(p), "tiff": tifffile.imwrite}[name.rsplit(".", 1)[1]]
        write(path / name, np.full((2, 3), k, np.uint16))
    return path


def values(folder, matched):
    return {index: float(folder.read(position)[0, 0]) for index, position in matched.position_of.items()}


@pytest.mark.parametrize(
    ("frames", "files", "expected", "words"),
    [
        (["a.png", "c.png", "b.png"], ["a.npy", "b.npy", "c.npy"], {0: 1, 1: 3, 2: 2}, "by the frames' names"),
        (["5_color.png", "10_color.png"], ["5_depth.tiff", "10_depth.tiff"], {0: 1, 1: 2}, "by the last number"),
        (["x_left.png", "y_left.png", "z_left.png"], ["000001.tiff", "000002.tiff"], {1: 1, 2: 2}, "by the six digits"),
        (["p.png", "q.png", "r.png"], ["depth9.png", "depth10.png", "depth11.png"], {0: 1, 1: 2, 2: 3}, "by their order"),
        # frames counted from 1, an export of this program counted from 0: all ten fit by index, nine by name
        ([f"{k:06d}.png" for k in range(1, 4)], [f"{k:06d}.tiff" for k in range(3)], {0: 1, 1: 2, 2: 3}, "six digits"),
        # two numbers alike: the last number says nothing
        (["1/left.png", "2/right.png"], ["left_1.npy", "right_1.npy"], {0: 1, 1: 2}, "by their order"),
    ],
)
def test_each_frame_gets_its_own_map(tmp_path, frames, files, expected, words):
    folder = DepthFolder(folder_of(tmp_path / "pred", files))
    matched = folder.matched(frames)
    assert values(folder, matched) == expected
    assert words in " ".join(matched.notes)


def test_two_ways_that_differ_are_said_and_one_can_be_chosen(tmp_path):
    frames = [f"{k:06d}.png" for k in range(1, 9)]
    folder = DepthFolder(folder_of(tmp_path / "pred", ["000004.tiff", "000006.tiff"]))
    matched = folder.matched(frames)
    assert values(folder, matched) == {3: 1, 5: 2}
    assert any("by the six digits in their names, counted from frame 0, and differently" in note for note in matched.notes)
    assert values(folder, folder.matched(frames, "index")) == {4: 1, 6: 2}
    with pytest.raises(ReconError, match="2 maps for 8 frames"):
        folder.matched(frames, "order")


def test_maps_without_a_frame_are_said(tmp_path):
    folder = DepthFolder(folder_of(tmp_path / "pred", ["a.npy", "b.npy", "z.npy"]))
    notes = folder.matched(["a.png", "b.png", "c.png", "d.png"]).notes
    assert notes == (
        "pred: 2 of 4 frames have a depth map, matched by the frames' names",
        "pred: 1 depth maps fit no frame, the first is z.npy",
    )


def test_no_match_and_no_map_are_named(tmp_path):
    folder = DepthFolder(folder_of(tmp_path / "pred", ["x.npy", "y.npy"]))
    with pytest.raises(ReconError, match=r"none of its 2 depth maps \(such as x\.npy\) is named like a frame \(such as a\.png\)"):
        folder.matched(["a.png", "b.png", "c.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReconError, match="holds no depth map"):
        DepthFolder(tmp_path / "empty")
    with pytest.raises(ReconError, match="does not exist"):
        DepthFolder(tmp_path / "nothing")
    with pytest.raises(ReconError, match="positive number, found 0"):
        DepthFolder(tmp_path / "pred", 0.0)


def test_pictures_beside_arrays_are_left_out(tmp_path):
    pred = folder_of(tmp_path / "pred", ["a.npy", "b.npy"])
    for name in ("a.png", "b.png"):
        picture(pred / name)
    folder = DepthFolder(pred)
    assert len(folder) == 2
    assert "2 PNG files beside the arrays" in folder.matched(["a.jpg", "b.jpg"]).notes[0]


@pytest.mark.parametrize("name", ["all.npy", "all.npz"])
def test_a_stack_is_matched_by_order_and_scaled(tmp_path, name):
    stack = np.arange(4 * 2 * 3, dtype=np.float64).reshape(4, 2, 3)
    stack[2, 0, 0] = np.nan
    np.save(tmp_path / name, stack) if name.endswith("npy") else np.savez_compressed(tmp_path / name, stack)
    folder = DepthFolder(tmp_path / name, MM_PER_UNIT["cm"])
    assert len(folder) == 4
    matched = folder.matched(["d.png", "c.png", "b.png", "a.png"])
    assert matched.position_of == {0: 0, 1: 1, 2: 2, 3: 3}
    assert np.array_equal(folder.read(3), 10 * stack[3])
    assert np.array_equal(folder.read(2), 10 * stack[2], equal_nan=True)
    with pytest.raises(ReconError, match="the stack holds 4 maps for 3 frames"):
        folder.matched(["a", "b", "c"])


def test_one_file_for_one_frame(tmp_path):
    tifffile.imwrite(tmp_path / "x.tiff", np.full((2, 3), 7, np.float32))
    folder = DepthFolder(tmp_path / "x.tiff")
    matched = folder.matched(["a.png"])
    assert values(folder, matched) == {0: 7}
    assert matched.notes == ()


def test_truth_that_is_no_depth_is_unknown(tmp_path):
    np.save(tmp_path / "gt.npy", np.array([[np.nan, np.inf, -5, 0, 7]]))
    truth = depth_truth(tmp_path / "gt.npy", "cm").depth_gt(0)
    assert truth.depth.tolist() == [[0, 0, 0, 0, 70]] and truth.valid.tolist() == [[False, False, False, False, True]]
