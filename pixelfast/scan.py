"""Long short-term memory over a grid, as one op of PyTorch with a backward pass of its own.

Each position has a hidden state and a cell, made of its own gates and of the states of a few neighbours. Positions that
do not wait for each other form a *front*: a row, a column or a diagonal. `pixelfast::lstm_scan` and the op of its
gradients go from front to front, with a product for each neighbour, and leave one node in the graph of autograd.
`decomposed` is the plain twin, which goes from position to position.

In the arrays of fronts the positions of a front come before the images, so that what a front reads of the one before it
is one matrix of memory for each neighbour, however it is shifted. Around them lie places that are never written and
hold the states of what is outside of the grid.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Offsets = Sequence[tuple[int, int]]


def lstm_scan(
    gates: Tensor, weight: Tensor, *, hidden: Offsets, cells: Offsets, edge: Tensor | None = None
) -> Tensor:
    """Return the hidden states of a recurrent layer over a grid (Hochreiter and Schmidhuber 1997; Graves et al. 2007).

    With z = gates[y, x] + sum_k weight[k] @ hidden[(y, x) + offset k], cut into o, f_1 to f_M, i and g:

        cell[y, x]   = sigmoid(i) * tanh(g) + sum_m sigmoid(f_m) * cell[(y, x) + offset m]
        hidden[y, x] = sigmoid(o) * tanh(cell[y, x])

    Neighbours must lie one front back: all in the row before, in the column before, or on the diagonal before. So the
    Row LSTM has the hidden neighbours (-1, -1), (-1, 0), (-1, 1) and the cell (-1, 0); a two-dimensional LSTM has both
    (0, -1) and (-1, 0). The op has gradients, but no gradients of gradients. Under autocast it works in float32.

    Args:
        gates: float (N, (3 + M) * D, H, W), what the input and the bias contribute, D channels of each gate.
        weight: float (K, (3 + M) * D, D), a matrix for each hidden neighbour.
        hidden: K offsets (dy, dx) of the hidden states that are read.
        cells: M offsets (dy, dx) of the cells that are read; at least one.
        edge: float (2, D), the hidden state and the cell of what lies outside of the grid; zero if None.

    Returns:
        float (N, D, H, W), channels_last where the gates are.

    Raises:
        ValueError: for a shape, dtype or device that does not fit, or neighbours that are not one front back.
    """
    device = gates.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        gates, weight = _widened(gates), _widened(weight)
        edge = None if edge is None else _widened(edge)
    _check(gates, weight, hidden, cells, edge)
    op = torch.ops.pixelfast.lstm_scan.default
    return op(gates, weight, edge, flat(hidden), flat(cells))[0]


def _widened(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def flat(offsets: Offsets) -> list[int]:
    """Offsets as the schema takes them."""
    return [number for offset in offsets for number in offset]


def pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """The offsets of a flat list."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def _check(gates: Tensor, weight: Tensor, hidden: Offsets, cells: Offsets, edge: Tensor | None) -> None:
    where = "[lstm_scan]"
    if gates.ndim != 4 or not gates.is_floating_point():
        raise ValueError(f"{where} gates must be float (N, C, H, W), got {gates.dtype} {tuple(gates.shape)}")
    for name, offsets in (("hidden", hidden), ("cells", cells)):
        if any(len(pair) != 2 or not all(isinstance(number, int) for number in pair) for pair in offsets):
            raise ValueError(f"{where} {name} must be pairs of integers (dy, dx), got {list(offsets)}")
    if not cells or not hidden:
        raise ValueError(f"{where} there must be at least one hidden neighbour and one cell")
    count = 3 + len(cells)
    channels = gates.shape[1] // count
    if channels < 1 or gates.shape[1] % count:
        raise ValueError(
            f"{where} gates must have a multiple of {count} channels (3 + cells), got {gates.shape[1]}"
        )
    wanted = {"weight": (len(hidden), count * channels, channels), "edge": (2, channels)}
    for name, value in (("weight", weight), ("edge", edge)):
        if value is None:
            continue
        if tuple(value.shape) != wanted[name]:
            raise ValueError(f"{where} {name} must be {wanted[name]}, got {tuple(value.shape)}")
        if value.dtype != gates.dtype or value.device != gates.device:
            raise ValueError(
                f"{where} {name} must be {gates.dtype} on {gates.device} as the gates are, got {value.dtype} on "
                f"{value.device}"
            )
    if min(gates.shape[2:]) < 1:
        raise ValueError(f"{where} gates must have at least one position, got {tuple(gates.shape)}")
    _find_fronts(gates.shape[2], gates.shape[3], flat(hidden), flat(cells))


# --- fronts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fronts:
    """How the positions of a grid lie in an array (fronts, places, images, channels).

    flips: the axes of an image (..., H, W) that are turned round first. transposed: whether they change places then.
    diagonal: whether a front is a diagonal of what results, with rows for places; else it is one of its rows.
    rows, columns: of what results.
    hidden, cells: for each neighbour, how many places on it lies in the front before.
    """

    flips: tuple[int, ...]
    transposed: bool
    diagonal: bool
    rows: int
    columns: int
    hidden: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.rows + self.columns - 1 if self.diagonal else self.rows

    @property
    def before(self) -> int:
        """Places before the first position of a front, which are outside of the grid."""
        return max(0, -min(self.hidden + self.cells))

    @property
    def after(self) -> int:
        """Places after the last position of a front."""
        return max(0, *self.hidden, *self.cells)

    @property
    def places(self) -> int:
        return self.before + (self.rows if self.diagonal else self.columns) + self.after

    def spans(self) -> Iterator[tuple[int, int]]:
        """The places of each front, from and up to, that are positions of the grid."""
        for s in range(self.count):
            inside = (
                (max(0, s - self.columns + 1), min(self.rows, s + 1)) if self.diagonal else (0, self.columns)
            )
            yield self.before + inside[0], self.before + inside[1]

    def as_images(self, array: Tensor) -> Tensor:
        """A view (N, C, rows, columns) of an array of fronts."""
        _, places, n, channels = array.shape
        place, front = n * channels, places * n * channels
        strides = (channels, 1, front + place, front) if self.diagonal else (channels, 1, front, place)
        at = array.storage_offset() + self.before * place
        return array.as_strided((n, channels, self.rows, self.columns), strides, at)

    def turned(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as they lie in fronts: (N, C, rows, columns)."""
        images = images.flip(self.flips) if self.flips else images
        return images.transpose(2, 3) if self.transposed else images

    def back(self, images: Tensor) -> Tensor:
        images = images.transpose(2, 3) if self.transposed else images
        return images.flip(self.flips) if self.flips else images


def _find_fronts(height: int, width: int, hidden: Sequence[int], cells: Sequence[int]) -> Fronts:
    """Find the fronts of neighbours, each two numbers of their flat lists.

    Raises:
        ValueError: where there are none.
    """
    for transposed, flip_x, flip_y in itertools.product((False, True), repeat=3):
        flips = (2,) * flip_y + (3,) * flip_x
        rows, columns = (width, height) if transposed else (height, width)
        turn = functools.partial(_turned_offsets, flip_y=flip_y, flip_x=flip_x, transposed=transposed)
        of_hidden, of_cells = turn(hidden), turn(cells)
        both = of_hidden + of_cells
        if all(dy == -1 for dy, _ in both):
            shifts = (tuple(dx for _, dx in o) for o in (of_hidden, of_cells))
            return Fronts(flips, transposed, False, rows, columns, *shifts)
        if not transposed and all(dy + dx == -1 for dy, dx in both):
            shifts = (tuple(dy for dy, _ in o) for o in (of_hidden, of_cells))
            return Fronts(flips, False, True, rows, columns, *shifts)
    both = [*pairs(hidden), *pairs(cells)]
    raise ValueError(
        "[lstm_scan] the neighbours must all lie in the row, the column or the diagonal before, got "
        f"{', '.join(map(str, dict.fromkeys(both)))}"
    )


fronts_of = functools.lru_cache(maxsize=256)(_find_fronts)


def _turned_offsets(
    flat: Sequence[int], flip_y: bool, flip_x: bool, transposed: bool
) -> list[tuple[int, int]]:
    found = [(-dy if flip_y else dy, -dx if flip_x else dx) for dy, dx in pairs(flat)]
    return [(dx, dy) for dy, dx in found] if transposed else found


# --- the twin -----------------------------------------------------------------------------------------------------


def decomposed(
    gates: Tensor, weight: Tensor, edge: Tensor | None, hidden: Sequence[int], cells: Sequence[int]
) -> Tensor:
    """The op, spelled by ops of PyTorch, position by position: hidden states (N, D, H, W).

    hidden, cells: flat lists of offsets, as in the schema.
    """
    n, _, height, width = gates.shape
    size = weight.shape[2]
    outside = gates.new_zeros(2, size) if edge is None else edge

    @functools.cache
    def states(y: int, x: int) -> tuple[Tensor, Tensor]:
        if not (0 <= y < height and 0 <= x < width):
            return outside[0].expand(n, size), outside[1].expand(n, size)
        z = gates[:, :, y, x]
        for (dy, dx), matrix in zip(pairs(hidden), weight, strict=True):
            z = z + states(y + dy, x + dx)[0] @ matrix.T
        o, *forget, i, g = z.split(size, 1)
        cell = torch.sigmoid(i) * torch.tanh(g)
        for (dy, dx), f in zip(pairs(cells), forget, strict=True):
            cell = cell + torch.sigmoid(f) * states(y + dy, x + dx)[1]
        return torch.sigmoid(o) * torch.tanh(cell), cell

    rows = [torch.stack([states(y, x)[0] for x in range(width)], -1) for y in range(height)]
    return torch.stack(rows, -2)


# --- the ops ------------------------------------------------------------------------------------------------------


def _layout(gates: Tensor) -> torch.memory_format:
    last = gates.is_contiguous(memory_format=torch.channels_last) and not gates.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _forward(
    gates: Tensor, weight: Tensor, edge: Tensor | None, hidden: Sequence[int], cells: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states; and by front the activated gates, and (hidden, cell) after the states before the first."""
    fronts = fronts_of(*gates.shape[2:], tuple(hidden), tuple(cells))
    (n, channels), size = gates.shape[:2], weight.shape[2]
    active = gates.new_zeros(fronts.count, fronts.places, n, channels)
    fronts.as_images(active).copy_(fronts.turned(gates))
    states = gates.new_zeros(2, fronts.count + 1, fronts.places, n, size)
    if edge is not None:
        states.copy_(edge[:, None, None, None].expand_as(states))
    h, c = states.unbind()
    for s, (start, end) in enumerate(fronts.spans()):
        z = active[s, start:end].view(-1, channels)
        for k, matrix in zip(fronts.hidden, weight, strict=True):
            z.addmm_(h[s, start + k : end + k].view(-1, size), matrix.T)
        z[:, :-size].sigmoid_()
        z[:, -size:].tanh_()
        o, *forget, i, g = z.split(size, 1)
        cell = torch.mul(i, g, out=c[s + 1, start:end].view(-1, size))
        for f, k in zip(forget, fronts.cells, strict=True):
            cell.addcmul_(f, c[s, start + k : end + k].view(-1, size))
        state = torch.tanh(cell, out=h[s + 1, start:end].view(-1, size))
        state.mul_(o)
    found = fronts.back(fronts.as_images(h[1:]))
    return found.clone(memory_format=_layout(gates)), active, states


def _gradients(
    grad: Tensor,
    weight: Tensor,
    active: Tensor,
    states: Tensor,
    hidden: Sequence[int],
    cells: Sequence[int],
    edge: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the gates, the weight and the edge or nothing, from that of the hidden states and what `_forward` saved."""
    fronts = fronts_of(*grad.shape[2:], tuple(hidden), tuple(cells))
    channels, size = active.shape[-1], weight.shape[2]
    (h, c), of_states = states.unbind(), torch.zeros_like(states)
    of_h, of_c = of_states.unbind()
    fronts.as_images(of_h[1:]).copy_(fronts.turned(grad))
    of_gates = torch.zeros_like(active)
    for s, (start, end) in reversed(list(enumerate(fronts.spans()))):
        z, of_z = (t[s, start:end].view(-1, channels) for t in (active, of_gates))
        o, *forget, i, g = z.split(size, 1)
        of_o, *of_forget, of_i, of_g = of_z.split(size, 1)
        of_state, of_cell = (t[s + 1, start:end].view(-1, size) for t in (of_h, of_c))
        squashed = torch.tanh(c[s + 1, start:end].view(-1, size))
        torch.mul(of_state, squashed, out=of_o)
        of_cell.add_(torch.ops.aten.tanh_backward.default(of_state * o, squashed))
        for f, of_f, k in zip(forget, of_forget, fronts.cells, strict=True):
            torch.mul(of_cell, c[s, start + k : end + k].view(-1, size), out=of_f)
            of_c[s, start + k : end + k].view(-1, size).addcmul_(of_cell, f)
        torch.mul(of_cell, g, out=of_i)
        torch.mul(of_cell, i, out=of_g)
        bounded, of_bounded = z[:, :-size], of_z[:, :-size]
        torch.ops.aten.sigmoid_backward.grad_input(of_bounded, bounded, grad_input=of_bounded)
        torch.ops.aten.tanh_backward.grad_input(of_g, g, grad_input=of_g)
        for k, matrix in zip(fronts.hidden, weight, strict=True):
            of_h[s, start + k : end + k].view(-1, size).addmm_(of_z, matrix)
        if edge:
            of_states[:, s + 1, start:end].zero_()  # what is left is of the edge
    # What every place reads lies equally far on, so one product does for all fronts; gates outside of the grid are 0.
    n = active.shape[2]
    first, rows = fronts.before * n, (fronts.count * fronts.places - fronts.before - fronts.after) * n
    written, read = of_gates.view(-1, channels)[first : first + rows], h.reshape(-1, size)
    of_weight = torch.stack([written.T @ read[first + k * n : first + k * n + rows] for k in fronts.hidden])
    found = fronts.back(fronts.as_images(of_gates))
    return (
        found.clone(memory_format=_layout(grad)),
        of_weight,
        of_states.sum((1, 2, 3)) if edge else grad.new_empty(0),
    )


def _forward_fake(
    gates: Tensor, weight: Tensor, edge: Tensor | None, hidden: Sequence[int], cells: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    fronts = fronts_of(*map(int, gates.shape[2:]), tuple(hidden), tuple(cells))
    (n, channels), size = gates.shape[:2], weight.shape[2]
    out = gates.new_empty(n, size, *gates.shape[2:]).contiguous(memory_format=_layout(gates))
    active = gates.new_empty(fronts.count, fronts.places, n, channels)
    return out, active, gates.new_empty(2, fronts.count + 1, fronts.places, n, size)


def _gradients_fake(
    grad: Tensor, weight: Tensor, active: Tensor, states: Tensor, hidden: Any, cells: Any, edge: bool
) -> tuple[Tensor, Tensor, Tensor]:
    of_gates = grad.new_empty(grad.shape[0], active.shape[-1], *grad.shape[2:])
    of_gates = of_gates.contiguous(memory_format=_layout(grad))
    return of_gates, torch.empty_like(weight), grad.new_empty((2, weight.shape[2]) if edge else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weight, edge, hidden, cells = inputs
    _, active, states = output
    ctx.mark_non_differentiable(active, states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, active, states)
    ctx.hidden, ctx.cells, ctx.has_edge = hidden, cells, edge is not None


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    if torch.is_grad_enabled():
        raise NotImplementedError("[lstm_scan] has no gradients of gradients; `decomposed` has")
    op = torch.ops.pixelfast.lstm_scan_gradients.default
    of_gates, of_weight, of_edge = op(grad, *ctx.saved_tensors, ctx.hidden, ctx.cells, ctx.has_edge)
    return of_gates, of_weight, of_edge if ctx.has_edge else None, None, None


_LIBRARY = torch.library.Library("pixelfast", "FRAGMENT")
_SHARED = "int[] hidden, int[] cells"
for _name, _schema, _twin, _fake in (
    (
        "lstm_scan",
        f"(Tensor gates, Tensor weight, Tensor? edge, {_SHARED}) -> (Tensor, Tensor, Tensor)",
        _forward,
        _forward_fake,
    ),
    (
        "lstm_scan_gradients",
        f"(Tensor grad, Tensor weight, Tensor active, Tensor states, {_SHARED}, bool edge) -> (Tensor, Tensor, Tensor)",
        _gradients,
        _gradients_fake,
    ),
):
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _twin, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pixelfast::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("pixelfast::lstm_scan", _backward, setup_context=_setup_context, lib=_LIBRARY)
