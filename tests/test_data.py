"""Data sets: every format is read as it was written, and a bad file is named with what is wrong with it."""

from __future__ import annotations

import gzip
import re
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from pixelfast import data
from pixelfast.data import Dataset

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx(folder, suffix="", images=GREY, labels=LABELS, prefix="train"):
    write(folder / f"{prefix}-images-idx3-ubyte{suffix}", idx(images))
    write(folder / f"{prefix}-labels-idx1-ubyte{suffix}", idx(labels.astype(np.uint8)))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    write_idx(tmp_path, suffix)
    write_idx(tmp_path, suffix, GREY[:2], LABELS[:2], prefix="t10k")
    for path in (tmp_path, tmp_path / f"train-images-idx3-ubyte{suffix}"):
        got = data.load(path)
        np.testing.assert_array_equal(got.images[:, 0], GREY)
        np.testing.assert_array_equal(got.labels, LABELS)
        assert (got.images.dtype, got.labels.dtype) == (np.uint8, np.int64)
        assert (got.name, got.shape, got.levels, got.classes) == (tmp_path.name, (1, 5, 7), 256, 3)
        assert "train-images-idx3-ubyte" in got.description
    assert len(data.load(tmp_path, split="test")) == 2


def test_idx_without_labels_and_unpacked_first(tmp_path):
    write(tmp_path / "train-images-idx3-ubyte.gz", idx(GREY))
    write(tmp_path / "train-images-idx3-ubyte", idx(GREY[:3]))
    got = data.load(tmp_path)
    assert (len(got), got.labels, got.classes) == (3, None, None)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_cifar10(tmp_path, suffix):
    rows = RNG.integers(0, 256, (5, 3073), dtype=np.uint8)
    rows[:, 0] = [3, 0, 9, 1, 1]
    write(tmp_path / f"data_batch_1.bin{suffix}", rows[:2].tobytes())
    write(tmp_path / f"data_batch_2.bin{suffix}", rows[2:].tobytes())
    write(tmp_path / f"test_batch_first1.bin{suffix}", rows[:1].tobytes())
    got = data.load(tmp_path)
    np.testing.assert_array_equal(got.images.reshape(5, -1), rows[:, 1:])
    np.testing.assert_array_equal(got.labels, rows[:, 0])
    assert (got.shape, got.class_names[9], got.classes) == ((3, 32, 32), "truck", 10)
    assert got.description == f"data_batch_1.bin{suffix}, data_batch_2.bin{suffix} (train)"
    test = data.load(tmp_path, split="test")
    assert len(test) == 1
    assert "first1" in test.description
    assert len(data.load(tmp_path / f"data_batch_2.bin{suffix}")) == 3


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("end", [" \n", "\n", "\r\n"])
def test_amat(tmp_path, suffix, end):
    bits = RNG.integers(0, 2, (4, 9), dtype=np.uint8)
    text = "".join(" ".join(map(str, row)) + end for row in bits)
    write(tmp_path / f"toy_valid.amat{suffix}", text.encode())
    got = data.load(tmp_path, split="valid")
    np.testing.assert_array_equal(got.images, bits.reshape(4, 1, 3, 3))
    assert (got.levels, got.labels) == (2, None)
    with pytest.raises(ValueError, match='has no split "train"; it has "valid"'):
        data.load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_pictures(tmp_path, suffix):
    for i in range(3):
        Image.fromarray(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / f"{i}{suffix}")
    got = data.load(tmp_path)
    assert got.images.shape == (3, 3, 4, 6)
    np.testing.assert_array_equal(
        got.images[1].transpose(1, 2, 0), np.asarray(Image.open(tmp_path / f"1{suffix}"))
    )
    one = data.load(tmp_path / f"1{suffix}")
    np.testing.assert_array_equal(one.images, got.images[1:2])


def test_pictures_by_class_and_split(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(GREY[0]).save(tmp_path / split / name / "1.png")
    Image.fromarray(GREY[1]).save(tmp_path / "train" / "dog" / "2.png")
    got = data.load(tmp_path)
    assert (got.class_names, got.labels.tolist(), got.shape) == (("cat", "dog"), [0, 1, 1], (1, 5, 7))
    np.testing.assert_array_equal(got.images[2, 0], GREY[1])
    assert len(data.load(tmp_path, split="test")) == 2
    with pytest.raises(ValueError, match='has no split "valid"; it has "train", "test"'):
        data.load(tmp_path, split="valid")


def test_pictures_of_mixed_modes_become_rgb(tmp_path):
    Image.fromarray(GREY[0]).save(tmp_path / "a.png")
    Image.fromarray(GREY[0]).convert("RGBA").save(tmp_path / "b.png")
    got = data.load(tmp_path)
    assert got.shape == (3, 5, 7)
    np.testing.assert_array_equal(got.images[0], got.images[1])


@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC"])
def test_npz(tmp_path, layout):
    colour = RNG.integers(0, 16, (6, 3, 5, 7))
    images = {"NHW": colour[:, 0], "NCHW": colour, "NHWC": colour.transpose(0, 2, 3, 1)}[layout]
    np.savez(tmp_path / "toy.npz", images=images, labels=LABELS, levels=16)
    for path in (tmp_path, tmp_path / "toy.npz"):
        got = data.load(path)
        np.testing.assert_array_equal(got.images, colour[:, :1] if layout == "NHW" else colour)
        assert (got.images.dtype, got.levels, got.labels.tolist()) == (np.uint8, 16, LABELS.tolist())


def test_npz_with_splits(tmp_path):
    np.savez(tmp_path / "toy.npz", train_images=GREY, test_images=GREY[:2], test_labels=LABELS[:2, None])
    assert len(data.load(tmp_path)) == 6
    assert data.load(tmp_path, split="test").labels.tolist() == [0, 1]


def test_one_npz_per_split(tmp_path):
    np.savez(tmp_path / "train.npz", images=GREY)
    np.savez(tmp_path / "test.npz", images=GREY[:1])
    assert [len(data.load(tmp_path, split=s)) for s in ("train", "test")] == [6, 1]


class FakeMNIST:
    classes = ("zero", "one", "two")

    def __init__(self, root, train=True, download=True):
        assert not download
        if root == "nowhere":
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.data, self.targets = (GREY if train else GREY[:1]), (LABELS if train else LABELS[:1]).tolist()


@pytest.fixture
def torchvision(monkeypatch):
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(FakeMNIST=FakeMNIST)
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.mark.usefixtures("torchvision")
def test_torchvision():
    got = data.load("torchvision:FakeMNIST", split="test")
    assert (got.shape, got.labels.tolist(), got.class_names[0]) == ((1, 5, 7), [0], "zero")
    with pytest.raises(ValueError, match="cannot be read from 'nowhere': Dataset not found"):
        data.load("torchvision:FakeMNIST:nowhere")
    with pytest.raises(ValueError, match="torchvision has no data set 'Nothing'"):
        data.load("torchvision:Nothing")
    with pytest.raises(ValueError, match='has no split "valid"'):
        data.load("torchvision:FakeMNIST", split="valid")


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "pixelfast[data]"')):
        data.load("torchvision:MNIST")


def test_quantize_and_take():
    whole = Dataset("toy", GREY[:, None], LABELS, description="toy files")
    got = whole.quantize(16)
    np.testing.assert_array_equal(got.images, GREY[:, None].astype(int) * 16 // 256)
    assert (got.levels, got.description) == (16, "toy files, quantized from 256 to 16 levels")
    assert got.sha256 != whole.sha256
    assert whole.quantize(256) is whole
    part = whole.take(np.array([4, 2]), "two of them")
    assert (part.labels.tolist(), part.description) == ([1, 2], "toy files, two of them")
    np.testing.assert_array_equal(part.images[1], whole.images[2])
    for levels in (1, 257):
        with pytest.raises(ValueError, match=rf"levels must be in \[2, 256\], got {levels}"):
            whole.quantize(levels)


def test_hash_is_of_the_image_bytes():
    import hashlib

    assert Dataset("toy", GREY[:, None]).sha256 == hashlib.sha256(GREY.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": GREY}, r"images must be uint8 \(N, C, H, W\), got uint8 \(6, 5, 7\)"),
        ({"images": GREY[:, None].astype(int)}, "images must be uint8"),
        ({"levels": 1}, r"levels must be in \[2, 256\], got 1"),
        ({"levels": 3}, r"images must lie in \[0, 3\), got values to"),
        ({"labels": LABELS[:2]}, r"labels must be int64 \(6,\), one for each image, got int64 \(2,\)"),
        ({"labels": LABELS - 1}, "labels must not be negative, got -1"),
    ],
)
def test_bad_datasets(fields, message):
    with pytest.raises(ValueError, match=message):
        Dataset(**({"name": "toy", "images": GREY[:, None]} | fields))


def check(path, message, **options):
    with pytest.raises(ValueError, match=message):
        data.load(path, **options)


def test_bad_paths(tmp_path):
    check(tmp_path / "none", "none does not exist")
    check(tmp_path, "holds no images: looked for IDX")
    check(tmp_path, 'has no splits: all of it is "train", there is no "test"', split="test")
    check(tmp_path, 'split must be "train", "test" or "valid", got \'all\'', split="all")
    (tmp_path / "notes.txt").write_text("")
    check(tmp_path / "notes.txt", "is none of IDX")
    write_idx(tmp_path)
    check(tmp_path, 'has no split "test"; it has "train"', split="test")


def test_bad_idx(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    whole = idx(GREY)
    for content, message in [
        (b"", "is no IDX file of bytes: its magic number is $"),
        (b"\x89PNG" + whole, "its magic number is 89504e47"),
        (whole[:10], "is truncated"),
        (whole[:-1], f"is truncated: {len(whole) - 1} bytes, its header asks for {len(whole)}"),
        (whole + b"x", "is too long"),
        (idx(LABELS.astype(np.uint8)), r"must hold images, got an array of shape \(6,\)"),
    ]:
        path.write_bytes(content)
        check(tmp_path, message)
    write_idx(tmp_path, labels=LABELS[:4])
    check(tmp_path, "holds 6 images, but .*train-labels-idx1-ubyte 4 labels")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"x" + b, lambda b: b[:20] + b"x" * 20 + b[40:]]
)
def test_bad_gzip(tmp_path, damage):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damage(gzip.compress(idx(GREY))))
    check(tmp_path, "is truncated or not gzip")


def test_bad_cifar10(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"\0" * 3072)
    check(path, r"is truncated: 3072 bytes are not rows of 3073")
    path.write_bytes(b"\x0a" + b"\0" * 3072)
    check(path, "is not of CIFAR-10: it has a label 10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("0 1 2 1\n", "must hold only 0s and 1s"),
        ("0 1 01 1\n", "must hold only 0s and 1s"),
        ("0 1 0 1\n0 1\n", "line 1 has 4 values, line 2 has 2"),
        ("0 1 0\n", "images are not square"),
    ],
)
def test_bad_amat(tmp_path, text, message):
    (tmp_path / "x_train.amat").write_text(text)
    check(tmp_path, message)


def test_bad_pictures(tmp_path):
    for name, size in (("a", (4, 4)), ("b", (4, 4)), ("c", (4, 5)), ("d", (3, 4))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    check(tmp_path, r"must have one size: 2 are not 4x4 like a\.png: c\.png, d\.png")
    for name in "bcd":
        (tmp_path / f"{name}.png").unlink()
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    check(tmp_path, r"b\.png is truncated or no picture")
    (tmp_path / "b.png").write_bytes(b"text")
    check(tmp_path, r"b\.png is truncated or no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    check(tmp_path, r"b\.png has more than 8 bits per sub-pixel")


def test_bad_npz(tmp_path):
    path = tmp_path / "toy.npz"
    for arrays, message in [
        ({"x": GREY}, 'holds no "images" or "train_images"; it holds x'),
        ({"images": GREY / 255}, "images must be integers"),
        ({"images": GREY[0]}, "images must be integers"),
        ({"images": GREY.astype(int) + 256}, r"images must lie in \[0, 256\)"),
        ({"images": -GREY.astype(int)}, r"images must lie in \[0, 256\)"),
        ({"images": GREY, "labels": LABELS[:2]}, "labels must be integers, 6 of them"),
        ({"images": GREY, "labels": LABELS / 2}, "labels must be integers, 6 of them"),
        ({"images": np.array([None])}, "is truncated or no .npz of plain arrays"),
    ]:
        np.savez(path, **arrays)
        check(path, message)
    np.savez(path, images=GREY)
    check(path, 'has no splits: all of it is "train"', split="test")
    path.write_bytes(path.read_bytes()[:-30])
    check(path, "is truncated or no .npz")
    path.write_bytes(b"text")
    check(path, "is truncated or no .npz")
    with open(path, "wb") as file:
        np.save(file, GREY)
    check(path, "is truncated or no .npz")
