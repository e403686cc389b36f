"""How a model's output is read: parameters of each colour, as the channels that a head op takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import plan as P
from ..capture import where
from ..heads import Bernoulli, Categorical, Head, LogisticMixture
from ..lower import Lowering
from ..values import Table, View
from .reshape import alike


def add_heads(ctx: Lowering, value: Any, head: Head) -> None:
    """Add a HeadOp for each colour. Raises `LoweringError` where the output's shape is not the head's."""
    rule = _HEADS.get(type(head))
    if rule is None:
        raise ctx.fail(f"the head {head!r} cannot be planned")
    _, height, width = ctx.captured.shape
    for colour, view in enumerate(rule(ctx, ctx.view(value), head)):
        view = ctx.clean(view, (0, height, 0, width))
        moved = view.shift != (0, 0) or (view.refs == P.ZERO).any()
        if moved or ctx.build.grid_of(view.refs.reshape(-1)) != (height, width):
            view = ctx.settle(view)
        kind = "bernoulli" if view.refs.size == 1 else "categorical"
        ctx.build.add(P.HeadOp(kind, colour, view.refs.reshape(-1), where(ctx.node)))


def _expect(ctx: Lowering, view: View, head: Head, dims: tuple[int, ...]) -> View:
    """The view with axes n, those of `dims`, y and x."""
    _, height, width = ctx.captured.shape
    axes = "n" + "c" * len(dims) + "yx"
    view = alike(ctx, view, axes) if len(view.axes) == len(axes) else view
    if view.axes != axes or view.refs.shape != dims or (view.height, view.width) != (height, width):
        found = ", ".join("N" if s is None else str(s) for s in view.shape)
        if view.shape == (None, *dims, height, width):
            found += f"), which are axes ({view.axes}"
        raise ctx.fail(
            f"the model's output has shape ({found}); the head {head!r} expects "
            f"(N, {', '.join(map(str, (*dims, height, width)))})"
        )
    return view


def _categorical(ctx: Lowering, view: View, head: Head) -> list[View]:
    colours = ctx.captured.shape[0]
    assert isinstance(head, Categorical)
    view = _expect(ctx, view, head, (head.levels, colours))
    if head.probabilities:
        view = ctx.pointwise([view], ("log", 0))
    return [replace(view, axes="ncyx", refs=view.refs[:, c]) for c in range(colours)]


def _bernoulli(ctx: Lowering, view: View, head: Head) -> list[View]:
    colours = ctx.captured.shape[0]
    assert isinstance(head, Bernoulli)
    view = _expect(ctx, view, head, (colours,))
    each = [_one(view, c) for c in range(colours)]
    if not head.probabilities:
        return each
    first = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)  # |1 - p| and |0 - p|: exact, also where p is 0 or 1
    return [ctx.pointwise([p, first], ("sub", 1, 0), ("abs", -1), ("log", -1)) for p in each]


def _logistic_mixture(ctx: Lowering, view: View, head: Head) -> list[View]:
    """Logits of all levels, by elementwise expressions: over mixtures first, then over levels.

    The equations are those of `heads.LogisticMixture`; weights are scaled so that the largest is 1.
    """
    assert isinstance(head, LogisticMixture)
    colours = ctx.captured.shape[0]
    m = head.mixtures
    if not head.coupled:
        view = _expect(ctx, view, head, (3 * m, colours))
        return [_mixture(ctx, head, replace(view, axes="ncyx", refs=view.refs[:, c])) for c in range(colours)]
    view = _expect(ctx, view, head, (head.outputs(colours),))
    rest = view.refs[m:].reshape(colours, -1, m)
    drawn = _drawn(ctx, head.levels)
    weights = _relative(ctx, _part(view, view.refs[:m]), m, logs=True)
    result = []
    for c in range(colours):
        mean = _part(view, rest[c, 0])
        for before in range(c):  # coefficient 0 takes R to G, 1 takes R to B, 2 takes G to B
            coefficient = _part(view, rest[c * (c - 1) // 2 + before, 2])
            mean = ctx.pointwise(
                [mean, coefficient, drawn[before][0]], ("tanh", 1), ("mul", -1, 2), ("add", 0, -1)
            )
        scale, inside = _scale(ctx, head, _part(view, rest[c, 1]))
        result.append(_levels(ctx, head, weights, mean, scale, inside))
        if c + 1 < colours:
            weights = _reweigh(ctx, weights, mean, scale, inside, drawn[c], m)
    return result


def _mixture(ctx: Lowering, head: LogisticMixture, view: View) -> View:
    """Logits of one colour's own mixture."""
    logits, mean, log_scale = (_part(view, refs) for refs in view.refs.reshape(3, -1))
    weights = _relative(ctx, logits, head.mixtures, logs=True)
    return _levels(ctx, head, weights, mean, *_scale(ctx, head, log_scale))


def _scale(ctx: Lowering, head: Head, log_scale: View) -> tuple[View, View]:
    """One over the scale, and 1 - exp(-d), d the width of a level in scales."""
    scale = ctx.pointwise([log_scale], ("max", 0, -7.0), ("neg", -1), ("exp", -1))
    return scale, ctx.pointwise([scale], ("mul", 0, -2.0 / (head.levels - 1)), ("exp", -1), ("sub", 1.0, -1))


def _part(view: View, refs: np.ndarray) -> View:
    return replace(view, refs=refs)


def _one(view: View, i: int) -> View:
    """Channel i, to be broadcast."""
    return replace(view, refs=view.refs[i : i + 1])


def _drawn(ctx: Lowering, levels: int) -> list[tuple[View, View, View, View]]:
    """Of each colour as drawn: its value, its upper and lower edge, and 1 at the ends of the range."""
    colours, height, width = ctx.captured.shape
    tables = [t.reshape(-1, 1, 1, 1).expand(-1, colours, 1, 1) for t in _edges(levels)]
    views = [ctx.view(Table(t, height, width)) for t in tables]
    return [tuple(_one(v, c) for v in views) for c in range(colours)]  # type: ignore[misc]


def _edges(levels: int) -> list[torch.Tensor]:
    x = torch.arange(levels, dtype=torch.float64) * (2 / (levels - 1)) - 1
    half = 1 / (levels - 1)
    upper, lower, end = x + half, x - half, torch.zeros_like(x)
    upper[-1], lower[0] = torch.inf, -torch.inf
    end[0] = end[-1] = 1
    return [t.float() for t in (x, upper, lower, end)]


def _mass(upper: int, lower: int, end: int, mean: int, scale: int, inside: int) -> list[tuple]:
    """Lines that yield the probability between two edges; the arguments are registers."""
    return [
        ("sub", upper, mean), ("mul", -1, scale), ("sigmoid", -1),
        ("sub", mean, lower), ("mul", -1, scale), ("sigmoid", -1), ("mul", -4, -1),
        ("max", inside, end), ("mul", -2, -1),
    ]  # fmt: skip


def _levels(ctx: Lowering, head: Head, weights: View, mean: View, scale: View, inside: View) -> View:
    """Logits of all levels: log of the sum over mixtures of weight times mass."""
    _, upper, lower, end = (t.reshape(1, -1, 1, 1) for t in _edges(head.levels))
    m = weights.refs.size
    values: list[Any] = [upper, lower, end]
    values += [_one(v, i) for i in range(m) for v in (weights, mean, scale, inside)]
    steps: list[tuple] = []
    for i in range(m):
        w = 3 + 4 * i
        steps += [*_mass(0, 1, 2, w + 1, w + 2, w + 3), ("mul", w, -1)]
        if i:
            steps.append(("add", -11, -1))  # the sum so far stands before the ten lines of this mixture
    steps += [("max", -1, 1e-30), ("log", -1)]
    return ctx.pointwise(values, *steps)


def _reweigh(
    ctx: Lowering, weights: View, mean: View, scale: View, inside: View, drawn: tuple[View, ...], m: int
) -> View:
    """The weights given the drawn value of one more colour."""
    _, upper, lower, end = drawn
    lines = _mass(0, 1, 2, 3, 4, 5)
    product = ctx.pointwise(
        [upper, lower, end, mean, scale, inside, weights], *lines, ("max", -1, 1e-18), ("mul", 6, -1)
    )
    return _relative(ctx, product, m, logs=False)


def _relative(ctx: Lowering, weights: View, m: int, *, logs: bool) -> View:
    """Weights over their largest; of logs, exponentials."""
    values = [weights, *(_one(weights, i) for i in range(m))]
    largest: list[tuple] = [("max", 1, 2)] if m > 1 else [("max", 1, 1)]
    largest += [("max", i, -1) for i in range(3, m + 1)]
    last = [("sub", 0, -1), ("exp", -1)] if logs else [("div", 0, -1)]
    return ctx.pointwise(values, *largest, *last)


_HEADS: dict[type, Callable[[Lowering, View, Head], list[View]]] = {
    Categorical: _categorical,
    Bernoulli: _bernoulli,
    LogisticMixture: _logistic_mixture,
}
