"""Outputs: which tensor of what forward returns holds the parameters of the head, and what they are.

`Read` stands around a module and yields the head's parameters in the head's own layout; it is captured with the module,
so that lowering knows one layout of each head. `settle` and `identities` look at the end of the captured graph: whether
it yields probabilities, and which of its nodes only normalise, and change no distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .capture import Captured, run
from .heads import Bernoulli, Categorical, Custom, Head, LogisticMixture

aten = torch.ops.aten

Pick = int | str | Callable[[Any], Any]


class Read(nn.Module):
    """A module of which the head's parameters are read, from the one tensor that holds them."""

    def __init__(self, module: nn.Module, head: Head, output: Pick | None, name: str):
        super().__init__()
        self.module, self.head, self.output, self.name = module, head, output, name

    def forward(self, images: Tensor, **conditions: Any) -> Tensor:
        output = _pick(self.module(images, **conditions), self.output, images.numel(), self.name)
        return self.head.read(output, images)


def _pick(output: Any, pick: Pick | None, least: int, name: str) -> Tensor:
    """The tensor asked for, or the only one that can hold a parameter for each of `least` sub-pixels."""
    whole = output
    if callable(pick):
        output = pick(output)
    elif pick is not None:
        try:
            named = isinstance(pick, str) and not isinstance(output, Mapping)
            output = getattr(output, str(pick)) if named else output[pick]
        except (AttributeError, LookupError, TypeError):
            raise ValueError(f"[compile] {name}.forward returned no {pick!r}, got {_list(whole)}") from None
    tensors = list(_tensors(output))
    if len(tensors) > 1:
        tensors = [(path, t) for path, t in tensors if t.is_floating_point() and t.numel() >= least]
    if len(tensors) != 1:
        raise ValueError(
            f"[compile] {name}.forward must return one tensor of parameters, got {_list(whole)}; pass output=, an "
            "index, a key, or a function of what forward returns"
        )
    return tensors[0][1]


def _list(output: Any) -> str:
    found = ", ".join(f"{path[1:]} {str(t.dtype)[6:]} {tuple(t.shape)}" for path, t in _tensors(output))
    return f"a {type(output).__name__} of {found or 'no tensors'}"


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
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
        yield from _tensors(value, f"{path}.{key}")


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
    sure = head.probabilities
    if sure is None and isinstance(head, Bernoulli):
        nodes = _tail(captured.output, _MOVES | {aten.clamp.default, aten.clamp_min.default})
        sure = nodes[-1].target is aten.sigmoid.default
    elif sure is not False:
        params = _example(captured)
        if sure and params.min() < 0:
            raise ValueError(
                f"[compile] {captured.module_name} yields probabilities below 0 (the least is {params.min():g}); "
                "pass probabilities=False if they are logits"
            )
        if sure is None:
            sure = bool(params.min() >= 0 and ((params.sum(1) - 1).abs() < 1e-3).all())
    return replace(head, probabilities=sure, layout=None)


def _example(captured: Captured) -> Tensor:
    conditioner = captured.conditioner
    size = captured.image.meta["val"].shape
    images = torch.randint(0, captured.levels, tuple(size), generator=torch.Generator().manual_seed(2))
    return run(captured, images, dict(zip(conditioner.names, conditioner.examples, strict=True)))


def _tail(node: fx.Node, targets: set[Any]) -> list[fx.Node]:
    """The last nodes of a graph while they are of `targets`, backwards, and the one before them."""
    nodes = [node]
    while nodes[-1].target in targets:
        nodes.append(nodes[-1].args[0])  # type: ignore[arg-type]
    return nodes


def identities(captured: Captured, head: Head) -> tuple[frozenset[fx.Node], Head]:
    """Nodes at the end of the graph that may give on their first argument, and the head of what is then left.

    Logits may lack their normalisation: log_softmax, and the logarithm of softmax, over the axis of levels. So may
    probabilities, which leaves logits: softmax, or for a Bernoulli head sigmoid.
    """
    *tail, last = _tail(captured.output, _MOVES | {aten.log.default})
    logs = {node for node in tail if node.target is aten.log.default}
    nothing = frozenset[fx.Node](), head
    if not isinstance(head, Categorical | Bernoulli) or len(logs) + bool(head.probabilities) > 1:
        return nothing
    if any(len(node.users) > 1 for node in (*tail[1:], last)):
        return nothing
    is_log = not logs and not head.probabilities
    dropped = {last, *logs}
    if isinstance(head, Bernoulli):
        known = last.target is aten.sigmoid.default and head.probabilities and not logs
    elif last.target in (_LOG_SOFTMAX if is_log else _SOFTMAX):
        known = _over_levels(captured, tail, last, last.args[1], head.levels)
    elif is_log and (total := _minus_logsumexp(last)) is not None:
        dropped.add(total)
        known = _over_levels(captured, tail, last, total.args[1], head.levels)
    else:
        known = False
    return (frozenset(dropped), replace(head, probabilities=False)) if known else nothing


def _minus_logsumexp(node: fx.Node) -> fx.Node | None:
    """The second argument of x - logsumexp(x), as torch.distributions writes log_softmax."""
    if node.target is not aten.sub.Tensor or node.kwargs or not isinstance(node.args[1], fx.Node):
        return None
    total = node.args[1]
    known = total.target is aten.logsumexp.default and total.args[0] is node.args[0] and len(total.users) == 1
    return total if known else None


def _over_levels(captured: Captured, tail: list[fx.Node], last: fx.Node, dim: Any, levels: int) -> bool:
    """Whether axis `dim` of node `last` is what the tail makes the axis of levels: found out by moving indices of all
    but that axis, which then are the same for all levels."""
    shape = list(last.meta["val"].shape)
    (dim,) = dim if isinstance(dim, list | tuple) else (dim,)
    others = [1 if i == dim % len(shape) else size for i, size in enumerate(shape)]
    moved = torch.arange(torch.Size(others).numel()).reshape(others).expand(shape).contiguous()
    for node in reversed(tail):
        if node.target in _MOVES - {aten._to_copy.default}:
            moved = node.target(moved, *node.args[1:])
    return shape[dim] == levels and bool((moved == moved[:, :1]).all())
