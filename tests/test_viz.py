"""Grids of images: layout, levels, titles, files."""

import numpy as np
import pytest
from PIL import Image

from pixelfast import viz


def test_grid_places_images_row_by_row():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * 40
    picture = np.asarray(viz.grid(images, columns=3, scale=4))
    assert picture.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    for i in range(6):
        y, x = divmod(i, 3)
        tile = picture[2 + 6 * y : 6 + 6 * y, 2 + 6 * x : 6 + 6 * x]
        assert (tile == 40 * i).all()


def test_grid_keeps_colours_and_orientation():
    image = np.zeros((1, 3, 2, 3), np.uint8)
    image[0, 0, 0, 2] = 255  # red at the right of the first row
    image[0, 2, 1, 0] = 255  # blue at the left of the second
    picture = np.asarray(viz.grid(image, scale=1))[2:4, 2:5]
    assert picture[0, 2].tolist() == [255, 0, 0]
    assert picture[1, 0].tolist() == [0, 0, 255]
    assert picture.sum() == 2 * 255


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(2, [0, 255]), (4, [0, 85, 170, 255]), (256, list(range(256))), (1024, None)],
)
def test_levels_are_spread_over_black_to_white(levels, expected):
    images = np.arange(levels).reshape(1, 1, 1, levels)
    row = np.asarray(viz.grid(images, levels=levels, scale=1))[2, 2:-2, 0]
    assert row[0] == 0
    assert row[-1] == 255
    assert (np.diff(row.astype(int)) >= 0).all()
    if expected is not None:
        assert row.tolist() == expected


def test_grid_is_square_by_default_and_takes_tensors():
    torch = pytest.importorskip("torch")
    images = torch.zeros(7, 1, 8, 8, dtype=torch.uint8)
    picture = viz.grid(images, scale=1)
    assert picture.size == (3 * 10 + 2, 3 * 10 + 2)


def test_titles_stand_at_the_left():
    images = np.full((4, 1, 28, 28), 255, np.uint8)
    plain = viz.grid(images, columns=2)
    titled = viz.grid(images, columns=2, titles=["Trouser", "Ankle boot"])
    assert titled.height == plain.height
    margin = titled.width - plain.width
    assert margin > 0
    ink = np.asarray(titled)[:, :margin].min(axis=(1, 2)) < 128
    half = titled.height // 2
    assert ink[:half].any()
    assert ink[half:].any()


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), {}, r"images must be \(N, C, H, W\), got shape \(2, 4, 4\)"),
        (np.zeros((1, 1, 4, 4), np.float32), {}, "images must be integers, got float32"),
        (np.zeros((1, 2, 4, 4), np.uint8), {}, "images must have 1 or 3 colours, got 2"),
        (np.zeros((0, 1, 4, 4), np.uint8), {}, "at least 1 image, got 0"),
        (np.full((1, 1, 4, 4), 7), {"levels": 4}, r"images must lie in \[0, 4\), got values from 7 to 7"),
        (np.zeros((1, 1, 4, 4), np.uint8), {"levels": 1}, "levels must be at least 2, got 1"),
        (np.zeros((1, 1, 4, 4), np.uint8), {"columns": 0}, "columns must be at least 1, got 0"),
        (np.zeros((1, 1, 4, 4), np.uint8), {"scale": 0}, "scale must be at least 1, got 0"),
        (np.zeros((2, 1, 4, 4), np.uint8), {"columns": 1, "titles": ["a"]}, "one title per row .*, got 1"),
    ],
)
def test_bad_images_are_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        viz.grid(images, **options)


def test_save_grid_replaces_the_file_whole(tmp_path):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")
    images = np.zeros((4, 1, 5, 7), np.uint8)
    viz.save_grid(images, path, columns=2, scale=3)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (2 * 23 + 2, 2 * 17 + 2)
    assert list(tmp_path.iterdir()) == [path]


def test_save_grid_leaves_nothing_behind_when_it_fails(tmp_path):
    path = tmp_path / "grid.nonsense"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="unknown file extension"):
        viz.save_grid(np.zeros((1, 1, 4, 4), np.uint8), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_paths_are_named(tmp_path):
    images = np.zeros((1, 1, 4, 4), np.uint8)
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*absent"):
        viz.save_grid(images, tmp_path / "absent" / "grid.png")
    with pytest.raises(IsADirectoryError, match="it is a directory"):
        viz.save_grid(images, tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file is not a directory"):
        viz.save_grid(images, tmp_path / "file" / "grid.png")


# --- receptive fields ---------------------------------------------------------------------------------------


def test_a_field_has_a_cell_per_pixel_and_a_legend():
    picture = np.asarray(viz.field([".#o", "#@ "], scale=8))
    cells = picture[2 + 1 : 2 + 16 : 8, 2 + 1 : 2 + 24 : 8]
    assert cells[0, 1].tolist() == cells[1, 0].tolist() == [66, 122, 196]
    assert cells[1, 1].max() < 64
    assert cells[1, 2].tolist() == [255, 255, 255]
    hatched = picture[2:9, 18:25]
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) == 2
    assert picture.shape[0] == 16 + 8 + 5 * 18  # no line for leaks
    assert (picture[26:, 20:] < 128).any()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, r"\[field\] rows must be strings of one length"),
        (["##", "#"], {}, r"\[field\] rows must be strings of one length"),
        (["#x"], {}, r"\[field\] rows must be strings of one length, of '#o. !\?@', got \['#x'\]"),
        (["#@"], {"scale": 0}, r"\[field\] scale must be an integer of at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        viz.field(rows, **options)
