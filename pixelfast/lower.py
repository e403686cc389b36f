"""Lower: a captured graph of ATen ops to a Plan. One small function per ATen op, in `pixelfast.rules`.

While lowering, a tensor of the image's path is one of the values of `pixelfast.values`.

To support another op, write a function from arguments to one of these and register it with `@lowers`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from . import plan as P
from .capture import BATCH, Captured, where
from .heads import Head
from .outputs import identities
from .values import Condition, Given, Scores, Table, View, one_image, visible

aten = torch.ops.aten


class LoweringError(ValueError):
    """The model uses an operation, or a form of one, that cannot be planned."""


@dataclass(frozen=True, eq=False)
class Lowered:
    plan: P.Plan
    conditions: tuple[Condition, ...]


_RULES: dict[Any, Callable[..., Any]] = {}
_RULES_OF_SCORES: dict[Any, Callable[..., Any]] = {}  # of ops that take the scores of attention


def lowers(*targets: Any, scores: bool = False) -> Callable:
    def register(rule: Callable) -> Callable:
        for target in targets:
            (_RULES_OF_SCORES if scores else _RULES)[target] = rule
        return rule

    return register


class Lowering:
    """The state of one lowering: the plan that grows, and the node at hand."""

    def __init__(self, captured: Captured):
        self.captured = captured
        self.build = P.Builder()
        self.conditions: list[Condition] = []
        self.node: fx.Node = captured.image
        self._given: dict[tuple[Condition, int, int], int] = {}
        self._views: dict[int, tuple[Table, View]] = {}

    # errors

    def fail(self, why: str, *, hint: str = "") -> LoweringError:
        node = self.node
        lines = (node.meta.get("stack_trace") or "").split("\n")
        frames = [text.strip() for text in lines if text.strip().startswith("File ")]
        own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f]  # of the model, not of a layer
        line = "".join(f"\n  at {frame}" for frame in (own or frames)[-1:])
        shapes = ", ".join(self._described(a) for a in node.all_input_nodes)
        return LoweringError(
            f"[compile] cannot plan {node.target} of {shapes} in module {where(node)!r} ({node.name}): {why}{line}"
            + (f"\n{hint}" if hint else "")
        )

    def _described(self, node: fx.Node) -> str:
        """The shape of an operand, in which the images of a batch are N."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return type(value).__name__
        shape = [str(size) for size in value.shape]
        if node not in self.captured.folded and value.shape[:1] == (BATCH,):
            shape[0] = "N"
        return f"({', '.join(shape)}{',' * (len(shape) == 1)})"

    def check(self, result: Any, expected: Any) -> None:
        """Fail unless a rule's result has the shape that PyTorch gave it."""
        if isinstance(result, list):
            for part, like in zip(result, expected, strict=True):
                self.check(part, like)
        elif isinstance(result, View):
            batch = self.shape_of(self.captured.image)[0]
            shape = tuple(batch if s is None else s for s in result.shape)
            if shape != tuple(expected.shape):
                raise self.fail(
                    f"it moves or repeats positions: planned {shape}, got {tuple(expected.shape)}"
                )

    # values

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["val"].shape)

    def new_map(self, channels: int, height: int, width: int, *, suffix: str = "") -> int:
        return self.build.map(where(self.node) + suffix, height, width, channels)

    def whole(self, index: int, axes: str, dims: Sequence[int]) -> View:
        """All of a map, as a tensor."""
        m = self.build.maps[index]
        refs = m.refs.reshape(tuple(dims))
        return View(axes, refs, m.height, m.width, (0, 0), (0, m.height, 0, m.width))

    def view(self, value: Any) -> View:
        """A value of the image's path as a View; tables become maps."""
        from . import rules

        if isinstance(value, View):
            return value
        if not isinstance(value, Table):
            raise self.fail(f"expected a feature map, got {type(value).__name__}")
        if id(value) not in self._views:
            colours, dims = value.values.shape[1], tuple(value.values.shape[4:])
            channels = math.prod(dims)
            name = "image" if not self._views else f"image.{len(self._views)}"
            home: int | None = None
            refs = []
            h, w = value.height, value.width
            for c, colour in enumerate(value.colours or range(colours)):
                of_colour = name if colours == 1 else f"{name}/{c}"
                index = self.build.map(of_colour, h, w, channels, home, c * channels)
                home = index if home is None else home
                table = value.values[: self.captured.levels, c].float().reshape(-1, channels).numpy()
                self.build.add(P.InputOp(index, colour, np.ascontiguousarray(table)))
                refs.append(self.build.refs(index).reshape(dims))
            view = View("ncyx" + "c" * len(dims), np.stack(refs), h, w, (0, 0), (0, h, 0, w))
            view = rules.layout.moved(self, view, value, dims)
            self._views[id(value)] = (value, view)  # the value is kept, so that its id stays its own
        return self._views[id(value)][1]

    def is_computed(self, view: View) -> bool:
        """Whether what a view shows is written position by position."""
        fixed = [op.out for op in self.build.ops if isinstance(op, P.ConstantOp | P.ConditionOp)]
        return not np.isin(view.refs, np.concatenate([[], *(self.build.refs(m) for m in fixed)])).any()

    def grid_of(self, view: View) -> tuple[int, int] | None:
        """The grid of the maps that a view shows, None if it shows none."""
        refs = view.refs[view.refs != P.ZERO]
        return self.build.grid_of(refs) if refs.size else None

    def is_whole(self, view: View, grid: tuple[int, int]) -> bool:
        """Whether a view shows all of computed maps of that grid, neither shifted, cut nor masked."""
        whole = view.shift == (0, 0) and visible(view) == (0, grid[0], 0, grid[1])
        return (
            bool(whole and (view.refs != P.ZERO).all())
            and self.grid_of(view) == grid
            and self.is_computed(view)
        )

    def clean(self, view: View, box: tuple[int, int, int, int]) -> View:
        """A view like this one of which every read in `box` (y0, y1, x0, x1, of the view) that falls on the map
        falls inside the window: what lies outside is zero by the map's own border."""
        grid = self.grid_of(view)
        if grid is None:
            return view
        rows, columns = grid
        y0, y1, x0, x1 = visible(view)
        sy, sx = view.shift
        reads_y = (max(box[0] + sy, 0), min(box[1] + sy, rows))
        reads_x = (max(box[2] + sx, 0), min(box[3] + sx, columns))
        inside = reads_y[0] >= y0 and reads_y[1] <= y1 and reads_x[0] >= x0 and reads_x[1] <= x1
        if inside or reads_y[0] >= reads_y[1] or reads_x[0] >= reads_x[1]:
            return view
        height, width = max(y1 - y0, 0), max(x1 - x0, 0)
        if not height or not width:
            return replace(view, refs=np.full_like(view.refs, P.ZERO))
        flat = view.refs.reshape(-1)
        out = self.new_map(flat.size, height, width, suffix=".crop")
        load = P.Instruction("load", refs=flat, offset=(y0, x0))
        self.build.add(P.MapOp(out, (load,), where(self.node)))
        refs = self.build.refs(out).reshape(view.refs.shape)
        return replace(view, refs=refs, shift=(sy - y0, sx - x0), window=(0, height, 0, width))

    def condition(self, value: Given, like: View) -> np.ndarray:
        """The channels of a map that holds a conditional tensor, in the order of the tensor's "c" axes.

        The tensor has the axes of `like`; along y or x, where its size is 1, it is the same at every position.
        """
        sizes, axes = one_image(np.zeros(value.shape, bool), like.axes)
        dims = [size for size, axis in zip(sizes.shape, axes, strict=True) if axis == "c"]
        height, width = (sizes.shape[axes.index(a)] if a in axes else 1 for a in "yx")
        condition = Condition(value.node, like.axes)
        key = condition, like.height, like.width
        if key not in self._given:
            out = self.build.map(f"given.{value.node.name}", like.height, like.width, math.prod(dims))
            self._given[key] = out
            self.build.add(P.ConditionOp(out, len(self.conditions), (height, width), where(value.node)))
            self.conditions.append(condition)
        return self.build.refs(self._given[key]).reshape(dims)

    def settle(self, view: View) -> View:
        """The same values as a map of their own, neither shifted nor cut."""
        return self.pointwise([view])

    # elementwise expressions

    def operand(self, value: Any, like: View, dims: tuple[int, ...]) -> list[P.Instruction]:
        """One instruction that yields `value`, broadcast to the axes of `like` and the "c" sizes `dims`."""
        from . import rules

        if isinstance(value, int | float | bool):
            return [P.Instruction("scalar", value=float(value))]
        if isinstance(value, Table | View):
            view = rules.reshape.alike(self, self.view(value), like.axes)
            if view.axes != like.axes or (view.height, view.width) != (like.height, like.width):
                raise self.fail(
                    f"operands of different layout: {view.axes} {view.shape}, {like.axes} {like.shape}"
                )
            view = self.clean(view, (0, view.height, 0, view.width))
            refs = np.broadcast_to(view.refs, dims).reshape(-1)
            return [P.Instruction("load", refs=refs, offset=view.shift)]
        rank = len(like.axes)
        if isinstance(value, Given):
            if len(value.shape) != rank:
                raise self.fail(f"a condition of shape {value.shape} meets a tensor of {rank} axes")
            refs = np.broadcast_to(self.condition(value, like), dims)
            return [P.Instruction("load", refs=refs.reshape(-1))]
        if isinstance(value, Tensor):
            return [self._constant(value, like, dims)]
        raise self.fail(f"operand of type {type(value).__name__}")

    def _channels(self, values: Sequence[Any], like: View) -> tuple[int, ...]:
        """The sizes of the "c" axes of what the values are broadcast to."""
        rank = len(like.axes)
        sizes = [like.refs.shape]
        for value in values:
            if isinstance(value, Table | View):
                sizes.append(self.view(value).refs.shape)
            elif isinstance(value, Given | Tensor):
                if len(value.shape) > rank:
                    raise self.fail(f"a tensor of shape {tuple(value.shape)} meets one of {rank} axes")
                shape = (1,) * (rank - len(value.shape)) + tuple(value.shape)
                of_refs = {"c": 1, "b": BATCH}
                by_axis = zip(shape, like.axes, strict=True)
                sizes.append(tuple(max(s // of_refs[a], 1) for s, a in by_axis if a in of_refs))
        try:
            return np.broadcast_shapes(*sizes)
        except ValueError as error:
            raise self.fail(f"operands of channels {sizes[1:]}, which do not broadcast") from error

    def _constant(self, value: Tensor, like: View, dims: tuple[int, ...]) -> P.Instruction:
        array = value.detach().to(torch.float32).numpy()
        rank = len(like.axes)
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        if array.size == 1:
            return P.Instruction("scalar", value=float(array.reshape(())))
        array, axes = self.of_one_image(array, like.axes)
        for position in "yx":
            if position not in axes:
                array, axes = array[None], position + axes
        channel_axes = [i for i, a in enumerate(axes) if a == "c"]
        array = array.transpose([axes.index("y"), axes.index("x"), *channel_axes])  # (h, w, c...)
        if array.shape[:2] == (1, 1):
            return P.Instruction("vector", value=np.broadcast_to(array[0, 0], dims).reshape(-1).copy())
        height, width = array.shape[:2]
        own = array.shape[2:]
        out = self.build.map(
            f"{where(self.node)}.constant", max(height, like.height), max(width, like.width), math.prod(own)
        )
        self.build.add(
            P.ConstantOp(out, np.ascontiguousarray(array.reshape(height, width, -1)), where(self.node))
        )
        refs = np.broadcast_to(self.build.refs(out).reshape(own), dims).reshape(-1)
        return P.Instruction("load", refs=refs)

    def of_one_image(self, array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
        """A constant without its batch: its values and axes, where "b" is "c", and "r" and "s" are "x"."""
        first, left = one_image(array, axes)
        if not np.allclose(first, one_image(array, axes, BATCH - 1)[0], 1e-5, 1e-6):  # but for rounding
            raise self.fail("a constant that differs between the images of a batch")
        return first, left

    def pointwise(self, values: Sequence[Any], *steps: tuple) -> View:
        """An elementwise expression of the values, as lines (fn, register, ...); the values are registers 0, 1, ...

        A negative register counts from the last line so far; scalars may stand in the lines as floats.
        """
        from . import rules

        views = [self.view(v) for v in values if isinstance(v, Table | View)]
        like = max(views, key=lambda v: (len(v.axes), "y" in v.axes, "x" in v.axes, v.refs.size))
        values = [
            rules.reshape.alike(self, self.view(v), like.axes) if isinstance(v, Table | View) else v
            for v in values
        ]
        dims = self._channels(values, like)
        code: list[P.Instruction] = []
        for value in values:
            code += self.operand(value, like, dims)
        for fn, *args in steps:
            before = len(code)
            registers = []
            for a in args:
                if isinstance(a, float):
                    code.append(P.Instruction("scalar", value=a))
                    a = len(code) - 1
                elif a < 0:  # counted from the end
                    a += before
                registers.append(a)
            code.append(P.Instruction(fn, tuple(registers)))
        out = self.new_map(math.prod(dims), like.height, like.width)
        self.build.add(P.MapOp(out, tuple(code), where(self.node)))
        return self.whole(out, like.axes, dims)


def _tabulate(ctx: Lowering, node: fx.Node, args: Sequence[Any]) -> Table | None:
    """Apply the op itself to a table, where all it meets are per-channel constants."""
    tables = [a for a in args if isinstance(a, Table)]
    if (
        not tables
        or any(isinstance(a, View | Given) for a in args)
        or len({(t.moves, t.colours) for t in tables}) > 1
    ):
        return None
    table = tables[0]
    by_channel = table.values.ndim == 4 and not table.moves
    for a in args:
        if not isinstance(a, Tensor) or a.numel() == 1:
            continue
        if not by_channel or any(size != 1 for i, size in enumerate(a.shape) if i - a.ndim != -3):
            return None
    plain = [a.values if isinstance(a, Table) else a for a in args]
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "layout")}
    values = node.target(*plain, **kwargs)  # type: ignore[operator]
    return replace(table, values=values) if values.shape == table.values.shape else None


# --- the whole --------------------------------------------------------------------------------------------------

_IGNORED = {aten._assert_tensor_metadata.default}
_UNTAGGED = {aten._to_copy.default, aten.floor_divide.default}  # elementwise, but PyTorch does not say so


def lower(captured: Captured, head: Head) -> Lowered:
    """Turn a captured graph into a Plan whose heads are read as `head` says.

    Raises `LoweringError` for the first node that cannot be planned.
    """
    from . import rules  # they import this module, and register themselves

    ctx = Lowering(captured)
    colours, height, width = captured.shape
    levels = torch.arange(captured.levels).reshape(-1, 1, 1, 1).expand(-1, colours, 1, 1)
    env: dict[fx.Node, Any] = dict(captured.folded)
    env[captured.image] = Table(levels, height, width)
    for node in (*captured.conditioner.placeholders, *captured.conditioner.nodes):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            env[node] = Given(node, tuple(value.shape))
    same, head = identities(captured, head)
    for node in captured.image_nodes:
        ctx.node = node
        if node in same:
            env[node] = env[node.args[0]]  # type: ignore[index]
            continue
        if node.target in _IGNORED:
            continue
        args = fx.map_arg(node.args, lambda n: env[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: env[n])
        result = _tabulate(ctx, node, args) if _elementwise(node) else None
        if result is None:
            result = rules.masks.typed(ctx, _applied(ctx, args, kwargs))
        ctx.check(result, node.meta["val"])
        env[node] = result
    ctx.node = captured.output
    rules.heads.add_heads(ctx, env[captured.output], head)
    plan = ctx.build.plan(captured.shape, captured.levels)
    plan.verify()
    return Lowered(plan, tuple(ctx.conditions))


def _applied(ctx: Lowering, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the rule of the node at hand makes of its arguments."""
    of_scores = any(isinstance(a, Scores) for a in (*args, *kwargs.values()))
    rule = (_RULES_OF_SCORES if of_scores else _RULES).get(ctx.node.target)
    if rule is None and of_scores:
        raise ctx.fail("it is done to the scores of attention; supported there are constants and masks")
    if rule is None:
        names = {str(t).split(".")[1] for t in _RULES if str(t).startswith("aten.")}
        known = ", ".join(sorted(name for name in names if not name.startswith("_")))
        raise ctx.fail("there is no rule for it", hint=f"supported are {known}")
    try:
        inspect.signature(rule).bind(ctx, *args, **kwargs)
    except TypeError as error:
        raise ctx.fail(f"called with arguments that its rule does not know ({error})") from error
    try:
        return rule(ctx, *args, **kwargs)
    except LoweringError:
        raise
    except Exception as error:  # of a form that the rule did not foresee
        raise ctx.fail(f"its rule failed ({type(error).__name__}: {error})") from error


def _elementwise(node: fx.Node) -> bool:
    target = node.target
    return target in _UNTAGGED or torch.Tag.pointwise in getattr(target, "tags", ())
