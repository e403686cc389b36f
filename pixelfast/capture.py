"""Capture: a PyTorch module as a flat graph of ATen ops, checked against the module itself.

The module is copied, and the copy run once for real, so that masks are applied and whatever is set up lazily is set
up. Then it is exported with `torch.export` at the level of composites (conv2d, embedding, ...), while what its forward
writes to its own weights and buffers is dropped: the first run has written it already. The caller's module is left as
it was.

What the graph computes is sorted by what it depends on:

    nothing but weights      folded to a tensor, here
    the conditions           kept as a `Conditioner`, run by PyTorch once per distinct condition
    the image                left to `lower`
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.distributions import Distribution
from torch.export.graph_signature import InputKind
from torch.nn.modules import transformer

from . import masked_conv
from ._recent import Recent
from .fingerprint import fingerprint
from .frozen import Settled, inference_copy, resize_caches

aten = torch.ops.aten
# Ops that look only at the shape of their arguments.
_SHAPE_ONLY = {
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
}
# Ops that are spelled by others: sums of products, changes of layout, statistics in one of their signatures.
_SPELLINGS = (
    aten.einsum.default, aten.tensordot.default, aten.outer.default, aten.concat.default,
    aten.channel_shuffle.default, aten.tile.default, aten.diff.default,
    aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default,
    aten.var.dim, aten.std.dim, aten.var_mean.dim, aten.std_mean.dim,
)  # fmt: skip
BATCH = 2  # of the exported graph


class CaptureError(ValueError):
    """The module could not be captured as a graph that computes what the module computes."""


@dataclass(frozen=True, eq=False)
class Conditioner:
    """Evaluates, for one value of the conditions, every tensor that the image's path takes from them.

    Each value is computed alone, so an image's conditions do not depend on what else is in the batch.
    """

    names: tuple[str, ...]
    examples: tuple[Tensor, ...]  # (batch, ...) each
    placeholders: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    folded: Mapping[fx.Node, Any]

    def run(self, values: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
        """`values`: one entry per name, without batch axis. Returns every conditional node's value, batch 2."""
        env: dict[fx.Node, Any] = dict(self.folded)
        for name, example, node in zip(self.names, self.examples, self.placeholders, strict=True):
            env[node] = values[name].to(example.dtype).expand_as(example).contiguous()
        with torch.no_grad():
            for node in self.nodes:
                env[node] = _evaluate(node, env)
        return env


@dataclass(frozen=True)
class Seen:
    """The graph's output for some images: its range, and whether it sums to 1 over axis 1, as probabilities do."""

    least: float
    most: float
    sums_to_one: bool

    @classmethod
    def of(cls, output: Tensor) -> Seen:
        one = output.ndim > 1 and bool(((output.sum(1) - 1).abs() < 1e-3).all())
        return cls(output.min().item(), output.max().item(), one)


@dataclass(frozen=True, eq=False)
class Captured:
    """`image_nodes` in order; every argument of theirs is an image node, a condition, or folded."""

    shape: tuple[int, int, int]
    levels: int
    image: fx.Node
    image_nodes: tuple[fx.Node, ...]
    folded: Mapping[fx.Node, Any]
    conditioner: Conditioner
    output: fx.Node
    module_name: str
    seen: Seen | None = None

    def __str__(self) -> str:
        return "\n".join(f"{where(n):40} {n.name:32} {n.target}" for n in self.image_nodes)

    def verify(self) -> None:
        known = (
            set(self.folded) | set(self.conditioner.placeholders) | set(self.conditioner.nodes) | {self.image}
        )
        for node in self.image_nodes:
            assert all(a in known for a in node.all_input_nodes), node
            known.add(node)
        assert self.output in known


@dataclass(frozen=True, eq=False)
class Exported:
    """What torch.export yields, without the weights: it serves every module of the same fingerprint."""

    graph: fx.Graph
    specs: Mapping[str, Any]  # of placeholders, by name
    constants: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Inputs:
    shape: tuple[int, int, int]
    levels: int
    images: Tensor
    conditions: Mapping[str, Tensor]
    name: str


_EXPORTS: Recent[tuple[Exported, list[Any]]] = Recent(8)


def where(node: fx.Node) -> str:
    """The path of the module that a node came from, e.g. `layers.3.conv`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return inner_path(paths[-1] if paths else "") or node.name


def inner_path(path: str) -> str:
    """A path without the wrappers around the caller's module."""
    parts = path.split(".")
    while parts and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _evaluate(node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    args = fx.map_arg(node.args, lambda n: env[n])
    kwargs = fx.map_arg(node.kwargs, lambda n: env[n])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _example_images(shape: tuple[int, int, int], levels: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, levels, (BATCH, *shape), generator=generator)


def capture(
    module: nn.Module,
    *,
    shape: tuple[int, int, int],
    levels: int,
    conditions: Mapping[str, Tensor] | None = None,
    others: Mapping[str, Tensor] | None = None,
    name: str | None = None,
) -> Captured:
    """Export `module(images, **conditions)` and sort its nodes.

    **Arguments:**

    - `shape`: (C, H, W) of an image; `levels`: the images' values are int64 in [0, levels).
    - `conditions`: for each further argument of forward, an example (2, ...) of its dtype. `others`: likewise, of which
        the first entry is the same, to check the graph with.
    - `name`: what messages call the module; its class by default.

    Raises `CaptureError` where export fails, or where the exported graph differs from the module on fresh inputs.
    """
    conditions = dict(conditions or {})
    generator = torch.Generator().manual_seed(0)
    images = _example_images(shape, levels, generator)
    fresh = torch.cat([images[:1], _example_images(shape, levels, generator)[1:]])
    name = name or type(module).__name__
    with _LOCK, forked():
        return _capture(
            module,
            _Inputs(shape, levels, images, conditions, name),
            _Inputs(shape, levels, fresh, conditions if others is None else dict(others), name),
        )


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Leaves the global random generators as they were, PyTorch's, numpy's and Python's."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002, forward may draw from it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


_LOCK = threading.RLock()  # while exporting, switches of the process are set


def _capture(module: nn.Module, inputs: _Inputs, fresh: _Inputs) -> Captured:
    """`fresh`: whose first image and condition are those of `inputs`."""
    _refuse_scripts(module, inputs.name)
    try:
        frozen = inference_copy(module)
    except Exception as error:
        raise CaptureError(
            f"[compile] {inputs.name} cannot be copied: {type(error).__name__}: {error}"
        ) from error
    with torch.no_grad(), unvalidated():
        output = _first_run(frozen, inputs)
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise CaptureError(f"[compile] {inputs.name}.forward must return one tensor, got a {kind}")
        _refuse_infinities(frozen, inputs.name)
        again = frozen(fresh.images, **fresh.conditions)
    settled = Settled(frozen)
    printed, kept = fingerprint(settled)
    of_conditions = ((k, t.dtype, t.shape) for k, t in inputs.conditions.items())
    key = printed, inputs.shape, inputs.levels, *of_conditions
    known = _EXPORTS.get(key) if printed else None
    if known:
        captured = _sort(known[0], settled, inputs)
        got = run(captured, fresh.images, fresh.conditions)
        if torch.allclose(again, got, rtol=1e-5, atol=1e-5, equal_nan=True):
            return replace(captured, seen=Seen.of(got))
    _check(
        output[:1],
        again[:1],
        f"{inputs.name} gives for an image, run again beside another, results that differ",
    )
    exported = _export(settled, inputs)
    captured = _sort(exported, settled, inputs)
    got = run(captured, fresh.images, fresh.conditions)
    _check(again, got, f"the captured graph of {inputs.name} differs from the module on fresh images")
    captured.verify()
    if printed:
        _EXPORTS.put(key, (exported, kept))
    return replace(captured, seen=Seen.of(got))


def _first_run(frozen: nn.Module, inputs: _Inputs) -> Any:
    try:
        return frozen(inputs.images, **inputs.conditions)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("["):  # what a head has to say
            raise
        if resize_caches(frozen, BATCH):
            with contextlib.suppress(Exception):
                return frozen(inputs.images, **inputs.conditions)
        given = {"images": inputs.images, **inputs.conditions}
        tensors = ", ".join(f"{k} {str(t.dtype)[6:]} {tuple(t.shape)}" for k, t in given.items())
        raise CaptureError(
            f"[compile] {inputs.name}.forward failed, given {tensors}: {type(error).__name__}: {error}\n"
            "to_input= says what forward takes in place of integer levels, conditions= what it takes besides"
        ) from error


def _refuse_scripts(module: nn.Module, name: str) -> None:
    scripted = [path for path, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:  # scripted functions are fine
        raise CaptureError(
            f"[compile] {name}: {inner_path(scripted[0]) or 'it'} is a TorchScript module; pass the module that it was "
            "made of, or set PYTORCH_JIT=0 in the environment, so that torch.jit.script does nothing"
        )


def _refuse_infinities(module: nn.Module, name: str) -> None:
    weights = dict(module.named_parameters())  # buffers may hold infinities: masks of attention do
    bad = [
        key
        for key, t in module.state_dict().items()
        if t.is_floating_point() and (t.isnan().any() or (key in weights and t.isinf().any()))
    ]
    if bad:
        raise CaptureError(
            f"[compile] {name}: {inner_path(bad[0])} holds NaN or infinite values"
            + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
        )


def _export(settled: Settled, inputs: _Inputs) -> Exported:
    try:
        with torch.no_grad(), unvalidated(), _spelled_out(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(settled, (inputs.images,), dict(inputs.conditions), strict=False)
            exported = exported.run_decompositions(_decompositions())
    except Exception as error:
        raise CaptureError(
            f"[compile] torch.export could not capture {inputs.name}: {error}\n"
            "forward must be traceable: no control flow on tensor values, no item() calls"
        ) from error
    for node in exported.graph.nodes:
        _forget_likeness(node)
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    own = {name for name in exported.constants if _of_module(settled, name) is not None}
    constants = {name: value for name, value in exported.constants.items() if name not in own}
    return Exported(exported.graph, specs, constants)


def _forget_likeness(node: fx.Node) -> None:
    """Say a dtype or a shape itself where it is said by another tensor, on which nothing then depends."""
    if node.target is aten.type_as.default:
        node.target, node.kwargs = aten._to_copy.default, {"dtype": node.meta["val"].dtype}
        node.args = node.args[:1]
    elif node.target in _OF_SHAPE:
        node.target, node.args = _OF_SHAPE[node.target], (node.args[0], list(node.meta["val"].shape))


_OF_SHAPE = {
    aten.expand_as.default: aten.expand.default,
    aten.view_as.default: aten.reshape.default,
    aten.reshape_as.default: aten.reshape.default,
}


@contextlib.contextmanager
def _spelled_out() -> Iterator[None]:
    """While it lasts, PyTorch's layers of attention run op by op, not as one, and do not look at the values of masks,
    which would be control flow on them."""
    before = torch.backends.mha.get_fastpath_enabled()
    looks = transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        transformer._detect_is_causal_mask = looks


@functools.cache
def _decompositions() -> dict[Any, Any]:
    """Composites stay, but for those that are only another way to write others."""
    table = torch.export.default_decompositions()
    spelled = {op: table[op] for op in _SPELLINGS}
    return {**spelled, torch.ops.pixelfast.masked_conv2d.default: masked_conv.decomposed}


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Without torch.distributions' checks of arguments, which are control flow on tensor values."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _sort(exported: Exported, settled: Settled, inputs: _Inputs) -> Captured:
    folded: dict[fx.Node, Any] = {}
    user: list[fx.Node] = []
    image_nodes: list[fx.Node] = []
    conditional: list[fx.Node] = []
    on_image: set[fx.Node] = set()
    on_condition: set[fx.Node] = set()
    name = inputs.name
    output: fx.Node | None = None
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = exported.specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                user.append(node)
                (on_condition if len(user) > 1 else on_image).add(node)
            else:
                folded[node] = _value(exported, settled, spec.target)
        elif node.op == "output":
            results = [a for a in node.args[0] if isinstance(a, fx.Node)]
            if len(results) != 1:
                raise CaptureError(
                    f"[compile] {name}.forward must return one tensor, got {len(results)} outputs "
                    "(a module that writes to its buffers in forward counts them as outputs)"
                )
            output = results[0]
        elif node.target in _SHAPE_ONLY:
            like = {
                a: torch.zeros(a.meta["val"].shape, dtype=a.meta["val"].dtype) for a in node.all_input_nodes
            }
            folded[node] = _evaluate(node, like)
        elif any(a in on_image for a in node.all_input_nodes):
            on_image.add(node)
            image_nodes.append(node)
        elif any(a in on_condition for a in node.all_input_nodes):
            on_condition.add(node)
            conditional.append(node)
        else:
            with torch.no_grad():
                folded[node] = _evaluate(node, folded)
    assert output is not None
    if output not in on_image:
        raise CaptureError(f"[compile] the output of {name}.forward does not depend on the images")
    names, examples = tuple(inputs.conditions), tuple(inputs.conditions.values())
    conditioner = Conditioner(names, examples, tuple(user[1:]), tuple(conditional), folded)
    return Captured(
        inputs.shape, inputs.levels, user[0], tuple(image_nodes), folded, conditioner, output, name
    )


def _value(exported: Exported, settled: Settled, target: str) -> Any:
    """What a placeholder stands for: a tensor of the module, as it is now, or a constant of the graph."""
    value = _of_module(settled, target)
    return exported.constants[target] if value is None else value.detach().clone()


def _of_module(settled: Settled, target: str) -> Tensor | None:
    owner, _, name = target.rpartition(".")
    try:
        value = getattr(settled.get_submodule(owner), name)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def run(captured: Captured, images: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """The graph, run by PyTorch: what the module would give for these images. For checks."""
    env: dict[fx.Node, Any] = dict(captured.folded)
    env[captured.image] = images
    c = captured.conditioner
    env.update(zip(c.placeholders, (conditions[n] for n in c.names), strict=True))
    with torch.no_grad():
        nodes = (*c.nodes, *captured.image_nodes)
        last = {used: node for node in nodes for used in node.all_input_nodes}
        for node in nodes:
            env[node] = _evaluate(node, env)
            for used in node.all_input_nodes:
                if last[used] is node and used is not captured.output and used not in captured.folded:
                    env.pop(used, None)
    return env[captured.output]


def _difference(expected: Tensor, got: Tensor) -> float:
    """The largest difference, if it is more than rounding; NaN for other shapes."""
    if expected.shape != got.shape:
        return float("nan")
    same = torch.allclose(expected, got, rtol=1e-4, atol=1e-4, equal_nan=True)
    return 0.0 if same else (expected - got).abs().max().item()


def _check(expected: Tensor, got: Tensor, what: str) -> None:
    if (worst := _difference(expected, got)) != 0:
        raise CaptureError(
            f"[compile] {what} by up to {worst:g}: forward mixes the images of a batch, or depends on "
            "something besides its arguments and weights"
        )
