"""The receptive field of a model, read off its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .links import all_links, propagate
from .plan import HeadOp, InputOp, Plan

Places = Sequence[tuple[int, int, int]]  # (c, y, x) of sub-pixels


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
    def reach(self) -> np.ndarray:
        """bool (H, W): the pixels before this one within `up` rows, and `left` and `right` columns."""
        height, width = self.mask.shape
        y, x = np.mgrid[:height, :width]
        near = (y >= self.pixel[0] - self.up) & (x >= self.pixel[1] - self.left)
        before = np.arange(height * width).reshape(height, width) < self.before
        return near & (x <= self.pixel[1] + self.right) & before

    @property
    def blind(self) -> float:
        """The blind spot: the fraction of the pixels within reach that are not seen."""
        return float((self.reach & ~self.mask).sum() / max(self.reach.sum(), 1))

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
    seen = seen_by(plan, [(c, y, x) for c in range(plan.shape[0])])
    return ReceptiveField((y, x), np.logical_or.reduce(seen, axis=(0, 1)))


def seen_by(plan: Plan, targets: Places) -> np.ndarray:
    """bool (targets, C, H, W): the sub-pixels that the distribution of each of some sub-pixels (c, y, x) depends on."""

    def of(targets: Places, found: np.ndarray) -> None:
        needed = [np.zeros((m.height, m.width), np.uint64) for m in plan.maps]

        def visit(i: int) -> np.ndarray:
            op = plan.ops[i]
            if isinstance(op, HeadOp):
                at = _bits(plan, targets, op.colour)
            else:
                at = needed[op.out][plan.written(op)]
            if isinstance(op, InputOp):
                found[op.colour] |= at
            for link in all_links(plan)[i]:
                link.push(np.bitwise_or, at, needed[link.read.map])
            return at

        propagate(plan, visit, backward=True)

    return _in_words(plan, targets, of)


def seeing(plan: Plan, sources: Places) -> np.ndarray:
    """bool (sources, C, H, W): the sub-pixels whose distribution depends on each of some sub-pixels (c, y, x)."""

    def of(sources: Places, found: np.ndarray) -> None:
        reached = [np.zeros((m.height, m.width), np.uint64) for m in plan.maps]

        def visit(i: int) -> np.ndarray:
            op = plan.ops[i]
            at = np.zeros(plan.grid(op), np.uint64)
            if isinstance(op, InputOp):
                at |= _bits(plan, sources, op.colour)
            for link in all_links(plan)[i]:
                link.pull(np.bitwise_or, reached[link.read.map], at)
            if isinstance(op, HeadOp):
                found[op.colour] |= at
            else:
                reached[op.out][plan.written(op)] = at
            return at

        propagate(plan, visit)

    return _in_words(plan, sources, of)


def _in_words(plan: Plan, places: Places, of: Callable[[Places, np.ndarray], None]) -> np.ndarray:
    """As many places at a time as a word has bits."""
    result = np.zeros((len(places), *plan.shape), bool)
    for start in range(0, len(places), 64):
        part = places[start : start + 64]
        found = np.zeros(plan.shape, np.uint64)
        of(part, found)
        for i in range(len(part)):
            result[start + i] = (found >> np.uint64(i)) & np.uint64(1)
    return result


def _bits(plan: Plan, places: Places, colour: int) -> np.ndarray:
    """uint64 (H, W): bit i where the i-th of the places is, if it is of that colour."""
    found = np.zeros(plan.shape[1:], np.uint64)
    for i, (c, y, x) in enumerate(places):
        if c == colour:
            found[y, x] |= np.uint64(1) << np.uint64(i)
    return found
