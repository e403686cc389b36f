"""Outputs: which tensor of what forward returns holds the parameters of the head, and what they are.

`Read` stands around a module and yields the head's parameters in the head's own layout; it is captured with the module,
so that lowering knows one layout of each head. `settle` and `identities` look at the end of the captured graph: whether
it yields probabilities, and which of its nodes only normalise, and change no distribution.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .capture import Captured
from .heads import Bernoulli, Categorical, Custom, Head, LogisticMixture

aten = torch.ops.aten

Pick = int | str | Callable[[Any], Any]


class Read(nn.Module):
    """A module of which the head's parameters are read, from the one tensor that holds them."""

    def __init__(self, module: nn.Module, head: Head, output: Pick | None, name: str):
        super().__init__()
        self.module, self.head, self.output, self.name = module, head, output, name

    def forward(self, images: Tensor, **conditions: Any) -> Tensor:
        return self.read(self.module(images, **conditions), images)

    def read(self, output: Any, images: Tensor) -> Tensor:
        """The head's parameters, of what forward returned."""
        n, channels, height, width = images.shape
        size = None if isinstance(self.head, Custom) else n * height * width * self.head.outputs(channels)
        return self.head.read(pick_tensor(output, self.output, size, self.name), images)


def pick_tensor(output: Any, pick: Pick | None, size: int | None, name: str) -> Tensor:
    """The tensor asked for, or the only one, or the only one of as many floats as the head has parameters."""
    whole = output
    if callable(pick):
        output = pick(output)
    elif pick is not None:
        try:
            named = isinstance(pick, str) and not isinstance(output, Mapping)
            output = getattr(output, str(pick)) if named else output[pick]
        except (AttributeError, LookupError, TypeError):
            raise ValueError(f"[compile] {name}.forward returned no {pick!r}, got {listed(whole)}") from None
    tensors = list(tensors_of(output))
    if len(tensors) > 1:
        tensors = [(path, t) for path, t in tensors if t.is_floating_point() and size in (t.numel(), None)]
    if len(tensors) != 1:
        raise ValueError(
            f"[compile] {name}.forward must return one tensor of parameters, got {listed(whole)}; pass output=, an "
            "index, a key, or a function of what forward returns"
        )
    return tensors[0][1]


def listed(output: Any) -> str:
    found = ", ".join(f"{path[1:]} {str(t.dtype)[6:]} {tuple(t.shape)}" for path, t in tensors_of(output))
    return f"a {type(output).__name__} of {found or 'no tensors'}"


def tensors_of(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in containers and distributions, with their paths."""
    pairs: Any = ()
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, torch.distributions.Independent):
        pairs = [("base_dist", output.base_dist)]
    elif isinstance(output, torch.distributions.Distribution):
        pairs = [(k, vars(output)[k]) for k in ("logits", "probs") if k in vars(output)][:1]
    elif isinstance(output, Mapping):
        pairs = output.items()
    elif isinstance(output, Sequence) and not isinstance(output, str):
        pairs = enumerate(output)
    elif dataclasses.is_dataclass(output):
        pairs = [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    for key, value in pairs:
        yield from tensors_of(value, f"{path}.{key}")


# --- probabilities ----------------------------------------------------------------------------------------------

_MOVES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten._to_copy.default,
}
_BROADCAST = {operator.getitem, aten.broadcast_tensors.default}  # of torch.distributions.Bernoulli
_AFFINE = {
    aten.clamp.default,
    aten.mul.Tensor,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.div.Tensor,
    aten.rsub.Scalar,
}
_SOFTMAX = {aten.softmax.int, aten._softmax.default}
_LOG_SOFTMAX = {aten.log_softmax.int, aten._log_softmax.default}


def settle(captured: Captured, head: Head) -> Head:
    """The head of a captured `Read`: of its own layout, and sure whether its parameters are probabilities.

    Raises `ValueError` where weights that may not be negative are.
    """
    if isinstance(head, LogisticMixture):
        return replace(head, layout=None)
    if isinstance(head, Custom):
        head = head.weights()
    if not isinstance(head, Categorical | Bernoulli):
        return head
    sure, seen = head.probabilities, captured.seen
    assert seen is not None
    if sure is None and isinstance(head, Bernoulli):
        sure = _bounded(captured)
    elif sure is not False:
        if sure and seen.least < 0:
            raise ValueError(
                f"[compile] {captured.module_name} yields probabilities below 0 (the least is {seen.least:g}); "
                "pass probabilities=False if they are logits"
            )
        if sure is None:
            sure = seen.least >= 0 and seen.sums_to_one
    return replace(head, probabilities=sure, layout=None)


def _bounded(captured: Captured) -> bool:
    """Whether the graph ends in a sigmoid, which may be cut or masked to other values in [0, 1]."""
    node = captured.output
    while node.target in _MOVES | _BROADCAST | _AFFINE:
        onwards = [a for a in node.all_input_nodes if a not in captured.folded]
        if len(onwards) != 1:
            return False
        node = onwards[0]
    if node.target is not aten.sigmoid.default:
        return False
    assert captured.seen is not None
    return captured.seen.least >= 0 and captured.seen.most <= 1


def identities(captured: Captured, head: Head) -> tuple[frozenset[fx.Node], Head]:
    """Nodes at the end of the graph that may give on their first argument, and the head of what is then left.

    Logits need no log_softmax over the axis of levels, weights no softmax if they are then read as logits, and so on;
    nor has a Bernoulli head to undo a sigmoid.
    """
    if not isinstance(head, Categorical | Bernoulli):
        return frozenset(), head
    weights, bernoulli = bool(head.probabilities), isinstance(head, Bernoulli)
    node, moves = captured.output, list[fx.Node]()
    dropped, seen = set[fx.Node](), set(node.users)
    while set(node.users) <= seen:
        if node.target in (_MOVES | _BROADCAST if bernoulli else _MOVES):
            moves.append(node)
        else:
            step = _step(node, weights, bernoulli)
            if step is None or not (step[0] is None or _over_levels(moves, node, step[0], head.levels)):
                break
            _, total, weights = step
            dropped |= {node, *total}
            seen |= {*total}
        seen.add(node)
        node = node.all_input_nodes[0]
    return frozenset(dropped), replace(head, probabilities=weights) if dropped else head


def _step(node: fx.Node, weights: bool, bernoulli: bool) -> tuple[Any, tuple[fx.Node, ...], bool] | None:
    """If `node` may give on its first argument: the axis that must be the levels', if any; nodes that then have no use;
    and whether what it gives on are weights."""
    if bernoulli:
        return (None, (), False) if weights and node.target is aten.sigmoid.default else None
    if node.target in (_SOFTMAX if weights else _LOG_SOFTMAX):
        return node.args[1], (), False
    if node.target is (aten.exp.default if weights else aten.log.default):
        return None, (), not weights
    if node.target is not (aten.div.Tensor if weights else aten.sub.Tensor):
        return None
    by, total = (
        node.args[1],
        aten.sum.dim_IntList if weights else aten.logsumexp.default,
    )  # as torch.distributions does
    if not isinstance(by, fx.Node) or by.target is not total or by.args[0] is not node.args[0]:
        return None
    return (by.args[1], (by,), weights) if by.args[2:] == (True,) and len(by.users) == 1 else None


def _over_levels(moves: list[fx.Node], node: fx.Node, dim: Any, levels: int) -> bool:
    """Whether axis `dim` of a node is what the moves after it make the axis of levels: found out by moving indices of
    the other axes, which then are the same for all levels."""
    shape = list(node.meta["val"].shape)
    (dim,) = dim if isinstance(dim, list | tuple) else (dim,)
    others = [1 if i == dim % len(shape) else size for i, size in enumerate(shape)]
    moved = torch.arange(math.prod(others)).reshape(others).expand(shape).contiguous()
    for move in reversed(moves):
        if move.target is not aten._to_copy.default:
            moved = move.target(moved, *move.args[1:])  # type: ignore[operator]
    return shape[dim] == levels and bool((moved == moved[:, :1]).all())
