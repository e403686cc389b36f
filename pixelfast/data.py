"""Data sets of integer images, read from the files in which people have them. Nothing is downloaded."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

SPLITS = ("train", "test", "valid")
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
# Name and classes of well-known sets, by the SHA-256 of their image bytes, as IDX files carry neither.
_KNOWN = {
    "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012": ("fashion_mnist", _FASHION),
    "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a": ("fashion_mnist", _FASHION),
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757": ("mnist", "0,1,2,3,4,5,6,7,8,9"),
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161": ("mnist", "0,1,2,3,4,5,6,7,8,9"),
}
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY_MODES = ("1", "L", "LA")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with integer levels, and their labels if they have any.

    Attributes:
        name: a short name, such as "fashion_mnist".
        images: uint8 (N, C, H, W) in [0, levels).
        labels: int64 (N,) in [0, classes), or None.
        levels: values that a sub-pixel can take, at most 256.
        class_names: one name per class, or empty where they are not known.
        description: which files and which split.
        sha256: of the bytes of `images`, hexadecimal; computed if not given.

    Raises:
        ValueError: for arrays of another shape or dtype, or with values out of range.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    levels: int = 256
    class_names: tuple[str, ...] = ()
    description: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            got = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"[Dataset] images must be uint8 (N, C, H, W), got {got}")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"[Dataset] levels must be in [2, 256], got {self.levels}")
        if self.levels < 256 and self.images.size and self.images.max() >= self.levels:
            highest = self.images.max()
            raise ValueError(f"[Dataset] images must lie in [0, {self.levels}), got values to {highest}")
        if self.labels is not None:
            if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
                want, got = f"int64 ({len(self.images)},)", f"{self.labels.dtype} {self.labels.shape}"
                raise ValueError(f"[Dataset] labels must be {want}, one for each image, got {got}")
            if self.labels.size and self.labels.min() < 0:
                raise ValueError(f"[Dataset] labels must not be negative, got {self.labels.min()}")
        if not self.sha256:
            object.__setattr__(self, "sha256", _sha256(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        _, c, h, w = self.images.shape
        return c, h, w

    @property
    def classes(self) -> int | None:
        """Return the number of classes, or None where there are no labels."""
        if self.labels is None:
            return None
        return max(len(self.class_names), int(self.labels.max(initial=0)) + 1)

    def quantize(self, levels: int) -> Dataset:
        """Return the same images with fewer levels: images * levels // self.levels.

        Raises:
            ValueError: unless 2 <= levels <= self.levels.
        """
        if not 2 <= levels <= self.levels:
            raise ValueError(f"[Dataset.quantize] levels must be in [2, {self.levels}], got {levels}")
        if levels == self.levels:
            return self
        images = (self.images.astype(np.uint16) * levels // self.levels).astype(np.uint8)
        text = f"{self.description}, quantized from {self.levels} to {levels} levels"
        return replace(self, images=images, levels=levels, description=text, sha256="")

    def take(self, indices: np.ndarray, description: str) -> Dataset:
        """Return the images at `indices`, int (n,), described as that part of this set."""
        labels = None if self.labels is None else self.labels[indices]
        text = f"{self.description}, {description}"
        return replace(self, images=self.images[indices], labels=labels, description=text, sha256="")


def load(path: str | os.PathLike[str], *, split: str = "train") -> Dataset:
    """Load one split of a data set that is on the disk.

    What it is, is found out from the names of the files; all but .npz and pictures may be gzipped:

    - IDX (MNIST and its kin): train-images-idx3-ubyte, t10k-images-idx3-ubyte and their labels.
    - CIFAR-10, binary version: data_batch_*.bin, test_batch*.bin. Whichever batches are there are used, and
      `description` says which.
    - Binarized MNIST: *train.amat, *valid.amat, *test.amat, two levels.
    - A NumPy .npz file: `images`, optionally `labels` and `levels`; or train_images, test_images, ...
    - A folder of PNG or JPEG pictures of one size; a folder with one folder per class; or one with folders
      train, test and valid of these. A single picture.
    - "torchvision:NAME" or "torchvision:NAME:ROOT", a data set of torchvision that was downloaded before.

    Args:
        path: a folder, one of its files, or a torchvision name.
        split: "train", "test" or "valid". A set without splits is all "train".

    Returns:
        The images in uint8 (N, C, H, W), labels in int64 (N,) if it has any, and what is known of them.

    Raises:
        ValueError: if there is no such set or split, or a file is truncated or not what its name says.
        ModuleNotFoundError: for a torchvision name without torchvision.
    """
    if split not in SPLITS:
        raise ValueError(f'[data.load] split must be "train", "test" or "valid", got {split!r}')
    if str(path).startswith("torchvision:"):
        return _load_torchvision(str(path), split)
    path = Path(path)
    if path.is_file():
        return _load_file(path, split)
    if not path.is_dir():
        raise ValueError(f"[data.load] {path} does not exist")
    files = sorted(p for p in path.iterdir() if p.is_file())
    stems = {p.name.removesuffix(".gz"): p for p in reversed(files) if p.suffix == ".gz"}
    stems |= {p.name: p for p in files if p.suffix != ".gz"}  # an unpacked file is preferred to a packed one
    for find in (_find_idx, _find_cifar, _find_amat):
        found = find(stems)
        if found:
            chosen = _chosen(found, split, path)
            return _identified(_read(chosen, path.name, split))
    arrays = [p for p in files if p.suffix == ".npz"]
    if arrays:
        of_splits = {s: [p for p in arrays if p.stem == s] for s in SPLITS}
        if len(arrays) > 1 or any(of_splits.values()):
            return _load_npz(
                _chosen({s: p for s, p in of_splits.items() if p}, split, path)[0], "train", path.name
            )
        return _load_npz(arrays[0], split, path.name)
    folders = {s: [path / s] for s in SPLITS if (path / s).is_dir()}
    if folders:
        return _load_pictures(_chosen(folders, split, path)[0], path.name, split)
    _only_train(split, path)
    return _load_pictures(path, path.name, None)


def _load_file(path: Path, split: str) -> Dataset:
    stem = path.name.removesuffix(".gz")
    name = path.parent.resolve().name
    if stem.endswith("ubyte") or stem.endswith((".idx", ".bin", ".amat")):
        return _identified(_read([path], name, None))
    if path.suffix == ".npz":
        return _load_npz(path, split, path.stem)
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        images, _ = _read_pictures([path])
        return Dataset(path.stem, images, None, 256, (), path.name)
    raise ValueError(f"[data.load] {path} is none of IDX (ubyte), .bin, .amat, .npz, .png, .jpg")


def _chosen(found: dict[str, list[Path]], split: str, path: Path) -> list[Path]:
    if split not in found:
        have = ", ".join(f'"{s}"' for s in found)
        raise ValueError(f'[data.load] {path} has no split "{split}"; it has {have or "none"}')
    return found[split]


def _only_train(split: str, path: Path) -> None:
    if split != "train":
        raise ValueError(f'[data.load] {path} has no splits: all of it is "train", there is no "{split}"')


def _find_idx(stems: dict[str, Path]) -> dict[str, list[Path]]:
    prefixes = {"train": "train", "test": "t10k", "valid": "valid"}
    names = {s: f"{prefix}-images-idx3-ubyte" for s, prefix in prefixes.items()}
    return {s: [stems[name]] for s, name in names.items() if name in stems}


def _find_cifar(stems: dict[str, Path]) -> dict[str, list[Path]]:
    binary = {s: p for s, p in stems.items() if s.endswith(".bin")}
    prefixes = {"train": "data_batch_", "test": "test_batch"}
    found = {split: [binary[s] for s in sorted(binary) if s.startswith(p)] for split, p in prefixes.items()}
    return {split: paths for split, paths in found.items() if paths}


def _find_amat(stems: dict[str, Path]) -> dict[str, list[Path]]:
    found = {s: [p for stem, p in stems.items() if stem.endswith(f"{s}.amat")] for s in SPLITS}
    return {s: paths for s, paths in found.items() if paths}


def _read(paths: list[Path], name: str, split: str | None) -> Dataset:
    """Read IDX, CIFAR or .amat files, which the caller knows to be of one kind."""
    text = ", ".join(p.name for p in paths) + (f" ({split})" if split else "")
    stem = paths[0].name.removesuffix(".gz")
    if stem.endswith(".amat"):
        return Dataset(name, _read_amat(paths[0]), None, 2, (), text)
    if stem.endswith(".bin"):
        parts = [_read_cifar(p) for p in paths]
        rows, classes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Dataset(name, rows, classes, 256, tuple(_CIFAR10.split(",")), text)
    images = _read_idx(paths[0])
    if images.ndim not in (3, 4):
        raise ValueError(f"[data.load] {paths[0]} must hold images, got an array of shape {images.shape}")
    beside = paths[0].with_name(paths[0].name.replace("images-idx3", "labels-idx1"))
    labels_path = next((p for p in _packed_or_not(beside) if p.is_file() and p != paths[0]), None)
    labels = None if labels_path is None else _read_idx(labels_path).astype(np.int64)
    if labels is not None and labels.shape != images.shape[:1]:
        counts = f"{len(images)} images, but {labels_path} {len(labels)} labels"
        raise ValueError(f"[data.load] {paths[0]} holds {counts}")
    return Dataset(name, images[:, None] if images.ndim == 3 else images, labels, 256, (), text)


def _packed_or_not(path: Path) -> tuple[Path, Path]:
    stem = path.with_name(path.name.removesuffix(".gz"))
    return stem, stem.with_name(stem.name + ".gz")


def _identified(dataset: Dataset) -> Dataset:
    """Fill in the name and the classes of a well-known set."""
    if dataset.sha256 not in _KNOWN:
        return dataset
    name, classes = _KNOWN[dataset.sha256]
    return replace(dataset, name=name, class_names=tuple(classes.split(",")) if classes else ())


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"[data.load] {path} is truncated or not gzip ({error})") from error


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist: magic, sizes, values)."""
    data = _read_bytes(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise ValueError(f"[data.load] {path} is no IDX file of bytes: its magic number is {data[:4].hex()}")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else (1,) * 5
    if len(data) != start + math.prod(shape):
        what = "truncated" if len(data) < start + math.prod(shape) else "too long"
        need = start + math.prod(shape)
        raise ValueError(f"[data.load] {path} is {what}: {len(data)} bytes, its header asks for {need}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of a label byte and 3 x 32 x 32 bytes (https://www.cs.toronto.edu/~kriz/cifar.html)."""
    data = _read_bytes(path)
    if not data or len(data) % 3073:
        raise ValueError(
            f"[data.load] {path} is truncated: {len(data)} bytes are not rows of 3073 (CIFAR-10)"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    if rows[:, 0].max() > 9:
        raise ValueError(f"[data.load] {path} is not of CIFAR-10: it has a label {rows[:, 0].max()}")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _read_amat(path: Path) -> np.ndarray:
    """Read a text file with one square image of 0s and 1s per line (Larochelle and Murray 2011)."""
    raw = np.frombuffer(_read_bytes(path), np.uint8)
    digit = (raw == ord("0")) | (raw == ord("1"))
    blank = (raw == ord(" ")) | (raw == ord("\n")) | (raw == ord("\r"))
    if not (digit | blank).all() or (digit[1:] & digit[:-1]).any():
        raise ValueError(f"[data.load] {path} must hold only 0s and 1s with spaces between")
    starts = np.concatenate([[0], np.flatnonzero(raw == ord("\n")) + 1])
    counts = (
        np.add.reduceat(digit, starts[starts < len(raw)], dtype=np.int64) if len(raw) else np.zeros(0, int)
    )
    counts = counts[counts > 0]
    if not len(counts):
        raise ValueError(f"[data.load] {path} is empty")
    side = math.isqrt(int(counts[0]))
    if (counts != counts[0]).any() or side * side != counts[0]:
        line = int(np.argmax(counts != counts[0]))
        sizes = f"line 1 has {counts[0]} values, line {line + 1} has {counts[line]}"
        raise ValueError(f"[data.load] {path} is truncated or its images are not square: {sizes}")
    return (raw[digit] - ord("0")).reshape(-1, 1, side, side)


def _load_npz(path: Path, split: str, name: str) -> Dataset:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"[data.load] {path} is truncated or no .npz of plain arrays ({error})") from error
    prefix = ""
    if "images" not in arrays:
        prefix = f"{split}_"
        if f"{prefix}images" not in arrays:
            have = ", ".join(sorted(arrays)) or "nothing"
            raise ValueError(f'[data.load] {path} holds no "images" or "{prefix}images"; it holds {have}')
    else:
        _only_train(split, path)
    images = _as_images(arrays[f"{prefix}images"], path)
    labels: np.ndarray | None = arrays.get(f"{prefix}labels")
    if labels is not None:
        if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(images):
            got = f"{labels.dtype} {labels.shape}"
            raise ValueError(f"[data.load] {path}: labels must be integers, {len(images)} of them, got {got}")
        labels = labels.reshape(-1).astype(np.int64)
    levels = int(arrays["levels"]) if "levels" in arrays else 256
    return Dataset(name, images, labels, levels, (), path.name + (f" ({split})" if prefix else ""))


def _as_images(array: Any, source: object) -> np.ndarray:
    """Return uint8 (N, C, H, W) from integers (N, H, W), (N, C, H, W) or (N, H, W, C)."""
    array = np.asarray(array)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim not in (3, 4) or not array.size:
        got = f"{array.dtype} {array.shape}"
        raise ValueError(
            f"[data.load] {source}: images must be integers (N, C, H, W) or (N, H, W), got {got}"
        )
    if array.min() < 0 or array.max() > 255:
        low, high = array.min(), array.max()
        raise ValueError(f"[data.load] {source}: images must lie in [0, 256), got {low} to {high}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array, dtype=np.uint8)


def _load_pictures(folder: Path, name: str, split: str | None) -> Dataset:
    """Read a folder of pictures, or of one folder of pictures per class."""
    paths = _pictures_in(folder)
    classes = [] if paths else [p for p in sorted(folder.iterdir()) if p.is_dir() and _pictures_in(p)]
    groups = [_pictures_in(p) for p in classes]
    paths = paths or [p for group in groups for p in group]
    if not paths:
        formats = "IDX, CIFAR-10 .bin, .amat or .npz files, PNG or JPEG pictures, or folders of pictures"
        raise ValueError(f"[data.load] {folder} holds no images: looked for {formats}")
    images, grey = _read_pictures(paths)
    labels = np.repeat(np.arange(len(groups)), [len(g) for g in groups]) if groups else None
    text = f"{len(paths)} pictures{'' if not grey else ' in grey'}{f' ({split})' if split else ''}"
    return Dataset(name, images, labels, 256, tuple(p.name for p in classes), text)


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES and p.is_file())


def _read_pictures(paths: Sequence[Path]) -> tuple[np.ndarray, bool]:
    """Return uint8 (N, C, H, W), C = 1 if all are grey, and whether they are. Transparency is dropped."""
    pictures: list[Image.Image] = []
    for path in paths:
        try:
            with Image.open(path) as file:
                file.load()
                pictures.append(file.copy())
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"[data.load] {path} is truncated or no picture ({error})") from error
        if pictures[-1].mode.startswith(("I", "F")):
            raise ValueError(
                f"[data.load] {path} has more than 8 bits per sub-pixel (mode {pictures[-1].mode})"
            )
    size = pictures[0].size
    others = [p.name for p, picture in zip(paths, pictures, strict=True) if picture.size != size]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        want = f"{size[0]}x{size[1]} like {paths[0].name}"
        raise ValueError(f"[data.load] pictures must have one size: {len(others)} are not {want}: {shown}")
    grey = all(picture.mode in _GREY_MODES for picture in pictures)
    arrays = [np.asarray(picture.convert("L" if grey else "RGB")) for picture in pictures]
    images = np.stack(arrays)
    return np.ascontiguousarray(images[:, None] if grey else images.transpose(0, 3, 1, 2)), grey


def _load_torchvision(spec: str, split: str) -> Dataset:
    """Read "torchvision:NAME[:ROOT]" through torchvision, without a download."""
    try:
        from torchvision import datasets
    except ImportError as error:
        text = '[data.load] "torchvision:..." needs torchvision: pip install "pixelfast[data]"'
        raise ModuleNotFoundError(text) from error
    name, _, root = spec.removeprefix("torchvision:").partition(":")
    factory = getattr(datasets, name, None)
    if not name or factory is None:
        raise ValueError(f"[data.load] torchvision has no data set {name!r}")
    parameters = inspect.signature(factory).parameters
    if split == "valid" and "split" not in parameters:
        raise ValueError(f'[data.load] {spec} has no split "valid"; it has "train" and "test"')
    which: dict[str, Any] = {"split": split} if "split" in parameters else {"train": split == "train"}
    root = root or "data"
    try:
        source = factory(root, download=False, **which)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"[data.load] {spec} cannot be read from {root!r}: {error}") from error
    labels = getattr(source, "targets", getattr(source, "labels", None))
    images = _as_images(source.data, spec)
    labels = None if labels is None else np.asarray(labels).astype(np.int64)
    return Dataset(name, images, labels, 256, tuple(getattr(source, "classes", ())), f"{spec} ({split})")


def _sha256(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
