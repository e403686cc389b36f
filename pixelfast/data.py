"""Data sets of integer images, read from the files in which people have them. Nothing downloads."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """Images with integer levels, and their labels if they have any.

    Attributes:
        name: a short name, such as "fashion_mnist".
        images: uint8 (N, C, H, W) in [0, levels).
        labels: int64 (N,) in [0, classes), or None.
        levels: values that a sub-pixel can take.
        class_names: one name per class, or empty where there are none.
        description: which files, which split.
        sha256: of the bytes of `images`, hexadecimal.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    levels: int = 256
    class_names: tuple[str, ...] = ()
    description: str = ""
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.sha256:
            digest = hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()
            object.__setattr__(self, "sha256", digest)

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
        return max(len(self.class_names), int(self.labels.max()) + 1)

    def quantize(self, levels: int) -> Dataset:
        """Return the same images with fewer levels: images * levels // self.levels.

        Raises:
            ValueError: unless 2 <= levels <= self.levels.
        """
        if not 2 <= levels <= self.levels:
            raise ValueError(f"[Dataset.quantize] levels must be in [2, {self.levels}], got {levels}")
        if levels == self.levels:
            return self
        images = (self.images.astype(np.uint32) * levels // self.levels).astype(np.uint8)
        description = f"{self.description}, quantized to {levels} levels"
        return replace(self, images=images, levels=levels, description=description, sha256="")

    def take(self, indices: np.ndarray, description: str) -> Dataset:
        """Return the images at `indices`, described as a part of this set."""
        labels = None if self.labels is None else self.labels[indices]
        text = f"{self.description}, {description}"
        return replace(self, images=self.images[indices], labels=labels, description=text, sha256="")


def load(path: str | os.PathLike[str], *, split: str = "train") -> Dataset:
    """Load a split of a data set."""
    folder = Path(path)
    prefix = {"train": "train", "test": "t10k"}[split]
    files = [folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"]
    images, labels = _idx(files[0])[:, None], _idx(files[1]).astype(np.int64)
    return Dataset(folder.name, images, labels, 256, (), f"{files[0].name} ({split})")


def _idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
