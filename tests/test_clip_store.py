"""The store of decoded recordings: what is kept, and what makes it decode anew."""

from __future__ import annotations

import numpy as np
from PIL import Image

from recon.data.folder import open_folder
from recon.training.clip_store import Recording, store_recording

WIDTH, HEIGHT = 96, 80


def texture(seed):
    """A smooth picture."""
    coarse = np.random.default_rng(seed).uniform(40, 230, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def test_a_recording_that_changed_on_disk_is_stored_anew(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        texture(10 + i).save(folder / f"{i}.png")
    first = store_recording(Recording(str(folder), open_folder(folder)), 64, 32, tmp_path / "store")
    again = store_recording(Recording(str(folder), open_folder(folder)), 64, 32, tmp_path / "store")
    assert again.path == first.path
    texture(1).save(folder / "6.png")
    assert store_recording(Recording(str(folder), open_folder(folder)), 64, 32, tmp_path / "store").path != first.path
    before = folder.stat().st_mtime_ns
    with (folder / "3.png").open("r+b") as file:  # in place: the folder itself does not change
        file.write((folder / "6.png").read_bytes())
    assert folder.stat().st_mtime_ns == before
    rewritten = store_recording(Recording(str(folder), open_folder(folder), np.arange(6)), 64, 32, tmp_path / "store")
    assert rewritten.path != first.path
    assert np.array_equal(rewritten.images(np.array([3]))[0], np.array(texture(1).resize((64, 32), Image.Resampling.LANCZOS)))
    part = Recording(str(folder), open_folder(folder), np.arange(3))
    assert store_recording(part, 64, 32, tmp_path / "store").images(np.array([2])).shape == (1, 32, 64, 3)


def test_masks_and_what_lies_in_linked_folders_count_but_the_store_does_not(tmp_path):
    folder, elsewhere = tmp_path / "recording", tmp_path / "elsewhere"
    for path in (folder / "masks", elsewhere):
        path.mkdir(parents=True)
    for i in range(3):
        texture(10 + i).save(elsewhere / f"{i}.png")
    (folder / "images").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    opened = Recording(str(folder), open_folder(elsewhere))

    def stored():
        return store_recording(opened, 64, 32, folder / "net" / "clips").path

    first = stored()
    (folder / "net" / "losses.csv").write_text("step\n")
    assert stored() == first
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "masks" / "0.png")
    masked = stored()
    texture(1).save(elsewhere / "1.png")
    assert len({first, masked, stored()}) == 3
