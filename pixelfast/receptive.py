"""The receptive field of a model, read off its plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .links import links
from .plan import HeadOp, InputOp, Plan


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Which pixels the distribution of one pixel depends on, through weights that are not exactly zero.

    pixel: (y, x) of that pixel, all of its colours together.
    mask: bool (H, W), the pixels that it depends on, itself only through an earlier colour.
    """

    pixel: tuple[int, int]
    mask: np.ndarray

    @property
    def up(self) -> int:
        """Rows above the pixel that are seen."""
        return int(self.pixel[0] - np.nonzero(self.mask)[0].min(initial=self.pixel[0]))

    @property
    def left(self) -> int:
        """Columns to the left that are seen."""
        return int(self.pixel[1] - np.nonzero(self.mask)[1].min(initial=self.pixel[1]))

    @property
    def right(self) -> int:
        """Columns to the right that are seen, in the rows above."""
        return int(np.nonzero(self.mask)[1].max(initial=self.pixel[1]) - self.pixel[1])

    @property
    def seen(self) -> int:
        """Pixels before this one, in raster order, that are seen."""
        return int(self.mask.ravel()[: self.before].sum())

    @property
    def before(self) -> int:
        """Pixels before this one, in raster order."""
        return self.pixel[0] * self.mask.shape[1] + self.pixel[1]

    def __str__(self) -> str:
        reach = f"{self.up} up, {self.left} left, {self.right} right"
        return f"{reach} of pixel {self.pixel}; it sees {self.seen} of the {self.before} pixels before it"


def receptive_field(plan: Plan, pixel: tuple[int, int] | None = None) -> ReceptiveField:
    """Follow what a pixel's distribution reads, back to the image.

    pixel: (y, x); the middle of the last row if None, which sees the most.

    Raises ValueError if the pixel lies outside the image.
    """
    _, height, width = plan.shape
    y, x = (height - 1, width // 2) if pixel is None else pixel
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"[receptive_field] pixel must lie in {height} x {width}, got ({y}, {x})")
    needed = [np.zeros((m.height, m.width), bool) for m in plan.maps]
    seen = np.zeros((height, width), bool)
    for op in reversed(plan.ops):
        if isinstance(op, HeadOp):
            at = np.zeros((height, width), bool)
            at[y, x] = True
        else:
            at = needed[op.out][plan.written(op)]
        if isinstance(op, InputOp):
            seen |= at
        for link in links(plan, op):
            link.push(np.logical_or, at, needed[link.read.map])
    return ReceptiveField((y, x), seen)
