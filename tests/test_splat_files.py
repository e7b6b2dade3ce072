"""Splats on disk: round trips, the bytes that viewers read, and files that are not what they claim."""

import struct

import numpy as np
import pytest
import trimesh

from recon.io.splats import SplatCloud, read_splat_ply, write_splat, write_splat_ply
from recon.types import ReconError


@pytest.fixture
def cloud():
    rng = np.random.default_rng(5)
    n = 7
    return SplatCloud(
        means=rng.normal(scale=50, size=(n, 3)),
        log_scales=rng.normal(size=(n, 3)),
        quaternions_wxyz=rng.normal(size=(n, 4)),
        opacity_logits=rng.normal(size=n),
        colors=rng.random((n, 3)),
        normals=rng.normal(size=(n, 3)),
        unit="mm",
    )


def test_splats_come_back_from_ply(tmp_path, cloud):
    write_splat_ply(tmp_path / "a.ply", cloud)
    back = read_splat_ply(tmp_path / "a.ply")
    for name in ("means", "log_scales", "quaternions_wxyz", "opacity_logits", "colors", "normals"):
        np.testing.assert_allclose(getattr(back, name), getattr(cloud, name), rtol=1e-6, atol=1e-6)
    assert back.unit == "mm" and len(back) == 7


def test_the_ply_is_the_layout_that_viewers_expect(tmp_path, cloud):
    write_splat_ply(tmp_path / "a.ply", cloud)
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1] for line in head.decode().splitlines() if line.startswith("property float")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{k}" for k in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert len(body) == 7 * 62 * 4
    first = struct.unpack("<62f", body[: 62 * 4])
    assert first[6] == pytest.approx((cloud.colors[0, 0] - 0.5) / 0.28209479177387814, rel=1e-6)
    raw = trimesh.load(tmp_path / "a.ply").metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_allclose(raw["rot_0"].ravel(), cloud.quaternions_wxyz[:, 0], rtol=1e-6)


def test_without_normals_none_come_back_and_foreign_columns_do_not_matter(tmp_path, cloud):
    bare = SplatCloud(cloud.means, cloud.log_scales, cloud.quaternions_wxyz, cloud.opacity_logits, cloud.colors)
    write_splat_ply(tmp_path / "a.ply", bare)
    back = read_splat_ply(tmp_path / "a.ply")
    assert back.normals is None and back.unit == "unitless"
    columns = ["opacity", "x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"scale_{k}" for k in range(3)), *(f"rot_{k}" for k in range(4))]
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty uchar flag\n"
    header += "".join(f"property double {name}\n" for name in columns) + "end_header\n"
    (tmp_path / "b.ply").write_bytes(header.encode() + struct.pack("<B14d", 9, 0.25, 1, 2, 3, 0, 0, 9, -1, -2, -3, 1, 0, 0, 0))
    foreign = read_splat_ply(tmp_path / "b.ply")
    np.testing.assert_array_equal(foreign.means, [[1, 2, 3]])
    np.testing.assert_array_equal(foreign.colors, [[0.5, 0.5, 1.0]])
    assert foreign.opacity_logits[0] == 0.25


def test_a_splat_is_32_bytes_the_most_visible_first(tmp_path):
    cloud = SplatCloud(
        means=np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),
        log_scales=np.log(np.array([[0.1, 0.1, 0.1], [2.0, 1.0, 1.0], [2.0, 1.0, 1.0]])),
        quaternions_wxyz=np.array([[2.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]),
        opacity_logits=np.array([800.0, -800.0, 0.0]),
        colors=np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    )
    write_splat(tmp_path / "a.splat", cloud)
    records = list(struct.iter_unpack("<3f3f4B4B", (tmp_path / "a.splat").read_bytes()))
    assert [record[:3] for record in records] == [(7, 8, 9), (1, 2, 3), (4, 5, 6)]
    assert records[0][3:6] == pytest.approx((2, 1, 1)) and records[0][6:] == (255, 255, 255, 128, 192, 192, 192, 192)
    assert records[1][6:] == (255, 0, 128, 255, 255, 128, 128, 128)
    assert records[2][6:] == (0, 0, 0, 0, 128, 0, 128, 128)


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


DAMAGE = {
    "cut short": (lambda b: b[:-5], "cut short or damaged"),
    "too long": (lambda b: b + b"more", "cut short or damaged"),
    "a huge claim": (lambda b: b.replace(b"vertex 7", b"vertex 700000000"), "claims 700000000 Gaussians"),
    "no header": (lambda b: b"\x00" + b, "no PLY file"),
    "ascii": (lambda b: b.replace(b"binary_little_endian", b"ascii"), "binary little-endian"),
    "no rotation": (lambda b: b.replace(b"rot_3", b"rat_3"), "lacks rot_3"),
    "a name twice": (lambda b: b.replace(b"float nx", b"float ny"), "a name twice"),
    "faces": (lambda b: b.replace(b"end_header", b"element face 2\nend_header"), "found vertex, face"),
    "a list": (lambda b: b.replace(b"property float nx", b"property list uchar int nx"), "not read"),
    "not a number": (lambda b: b[:-4] + struct.pack("<f", np.nan), "quaternions_wxyz should be finite"),
    "no length": (lambda b: b[:-16] + bytes(16), "a rotation has no length"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_with_the_reason(tmp_path, cloud, case):
    change, expected = DAMAGE[case]
    write_splat_ply(tmp_path / "a.ply", cloud)
    with pytest.raises(ReconError, match=expected) as caught:
        read_splat_ply(damaged(tmp_path / "a.ply", change))
    assert "a.ply" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ReconError, match="No such file"):
        read_splat_ply(tmp_path / "none.ply")
