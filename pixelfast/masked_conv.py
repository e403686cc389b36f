"""Masked convolution for training: taps, bias, condition, gate and residual as one op of PyTorch.

`pixelfast::masked_conv2d` and the two ops of its gradients are defined here, with a plain twin that serves every
device. It skips the rows and columns of the kernel in which no tap is live: under mask B, a 3x3 kernel runs as 2x3.
A kernel for a device is one more `impl` of the same three ops, and the twin defines what it computes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = tuple[int, int, int, int]  # left, right, top, bottom; negative values crop


def live_taps(mask: Tensor, kernel: tuple[int, int]) -> tuple[int, ...]:
    """Return the indices, row by row, of a kernel's taps that the mask leaves alive for any output and input.

    It looks at the mask's values: call it once, where the mask is made, not in forward.

    Args:
        mask: bool, broadcastable to (C_out, C_in, *kernel).
        kernel: rows and columns of the kernel.

    Returns:
        Indices row * columns + column, ascending.

    Raises:
        ValueError: for another dtype or shape.
    """
    _check_mask("live_taps", mask, (None, None, *kernel))
    flat = mask.expand(*([1] * (4 - mask.ndim)), *mask.shape).flatten(0, 1).any(0).expand(kernel).flatten()
    return tuple(i for i, live in enumerate(flat.tolist()) if live)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    padding: Sequence[int] = (0, 0, 0, 0),
    taps: Sequence[int] | None = None,
    condition: Tensor | None = None,
    gate: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve with the taps that a mask allows, add a condition, gate, and add a residual.

    With y = conv2d(pad(x), where(mask, weight, 0), bias) + condition, the result is y, or tanh(a) * sigmoid(b) for the
    halves a, b of y's channels (van den Oord et al. 2016b, equation 2), plus the residual. All tensors but the mask
    have one floating dtype; under autocast they are cast to its dtype, but for float64. The result is channels_last
    where x or the weight is. What a dead weight holds does not matter, and its gradient is exactly zero.

    Args:
        x: float (N, C_in, H, W).
        weight: float (C_out, C_in, kh, kw).
        bias: float (C_out,), or None.
        mask: bool, broadcastable to the weight, True where it is live; None if all of it is.
        padding: zeros to the left, right, top and bottom; negative values crop.
        taps: `live_taps` of the mask, ascending, so that dead taps can be skipped. Of no other mask: what a tap adds
            that is live and not among them is undefined. None looks at every tap, for the same result.
        condition: float (N, C_out), or (N, C_out, H_out, W_out), or None.
        gate: whether to gate, which leaves C_out / 2 channels.
        residual: float of the result's shape, or None.

    Returns:
        float (N, C_out or C_out / 2, H_out, W_out), H_out = H + top + bottom - kh + 1, and so on.

    Raises:
        ValueError: for a shape, dtype, device, padding or taps that do not fit.
    """
    floats = [x, weight, bias, condition, residual]
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        floats = [t if t is None or not _castable(t) else t.to(dtype) for t in floats]
    _check(floats, mask, padding, taps, gate)
    every = range(weight.shape[2] * weight.shape[3]) if taps is None else taps
    x, weight, bias, condition, residual = floats  # type: ignore[assignment]
    op = torch.ops.pixelfast.masked_conv2d.default
    return op(x, weight, bias, mask, list(padding), list(every), condition, gate, residual)[0]


def _castable(t: Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float64


# --- checks -----------------------------------------------------------------------------------------------------


def _check(
    floats: Sequence[Any], mask: Tensor | None, padding: Sequence[int], taps: Sequence[int] | None, gate: bool
) -> None:
    x, weight, bias, condition, residual = floats
    where = "[masked_conv2d]"
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"{where} x must be float (N, C_in, H, W), got {_described(x)}")
    if weight.ndim != 4 or weight.shape[1] != x.shape[1] or min(weight.shape) < 1:
        raise ValueError(f"{where} weight must be (C_out, {x.shape[1]}, kh, kw), got {_described(weight)}")
    outputs, _, rows, columns = weight.shape
    if len(padding) != 4:
        raise ValueError(f"{where} padding must be left, right, top, bottom, got {len(padding)} numbers")
    size = _output_size(x.shape[2:], weight.shape[2:], padding)
    if min(size) < 1:
        raise ValueError(
            f"{where} x of {x.shape[2]}x{x.shape[3]}, padded by {tuple(padding)}, is less than a kernel of "
            f"{rows}x{columns}"
        )
    if gate and outputs % 2:
        raise ValueError(f"{where} a gate needs an even number of output channels, got {outputs}")
    batch = x.shape[0]
    result = (batch, outputs // 2 if gate else outputs, *size)
    of_condition = [(batch, outputs), (batch, outputs, *size)]
    for name, value, shapes in (
        ("weight", weight, [tuple(weight.shape)]),
        ("bias", bias, [(outputs,)]),
        ("condition", condition, of_condition),
        ("residual", residual, [result]),
    ):
        if value is None:
            continue
        if tuple(value.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{where} {name} must be {wanted}, got {_described(value)}")
        if value.dtype != x.dtype or value.device != x.device:
            raise ValueError(
                f"{where} {name} must be {x.dtype} on {x.device} as x is, got {value.dtype} on {value.device}"
            )
    if mask is not None:
        _check_mask("masked_conv2d", mask, tuple(weight.shape))
        if mask.device != x.device:
            raise ValueError(f"{where} mask must be on {x.device} as x is, got {mask.device}")
    if taps is not None:
        if mask is None:
            raise ValueError(f"{where} taps are of a mask, and there is none")
        _check_taps(taps, rows * columns)


def _check_taps(taps: Sequence[int], count: int) -> None:
    """`count`: of the kernel's taps."""
    if any(a >= b for a, b in itertools.pairwise(taps)):
        raise ValueError(f"[masked_conv2d] taps must ascend, got {tuple(taps)}")
    if taps and not 0 <= taps[0] <= taps[-1] < count:
        raise ValueError(f"[masked_conv2d] taps must be in [0, {count}), got {tuple(taps)}")


def _check_mask(where: str, mask: Tensor, shape: Sequence[int | None]) -> None:
    """`shape`: of the weight; None is any size."""
    padded = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    fits = mask.ndim <= 4 and all(b is None or a in (1, b) for a, b in zip(padded, shape, strict=True))
    if mask.dtype != torch.bool or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"[{where}] mask must be bool and broadcastable to ({wanted}), got {_described(mask)}"
        )


def _described(t: Tensor) -> str:
    return f"{t.dtype} {tuple(t.shape)}"


# --- the twin ---------------------------------------------------------------------------------------------------


def _output_size(size: Sequence[int], kernel: Sequence[int], padding: Sequence[int]) -> tuple[int, int]:
    left, right, top, bottom = padding
    return size[0] + top + bottom - kernel[0] + 1, size[1] + left + right - kernel[1] + 1


@functools.lru_cache(maxsize=1024)
def _window(taps: tuple[int, ...], rows: int, columns: int) -> Padding:
    """How much of a kernel is dead to the left, right, top and bottom of its live taps; one tap always stays."""
    of_rows, of_columns = [t // columns for t in taps] or [0], [t % columns for t in taps] or [0]
    return min(of_columns), columns - 1 - max(of_columns), min(of_rows), rows - 1 - max(of_rows)


def _dead(weight_size: Sequence[int], taps: Sequence[int]) -> Padding:
    return _window(tuple(taps), int(weight_size[-2]), int(weight_size[-1]))


def _crop(kernel: Tensor, dead: Padding) -> Tensor:
    left, right, top, bottom = dead
    rows, columns = kernel.shape[2:]
    return kernel[:, :, top : rows - bottom, left : columns - right]


def _live_weight(weight: Tensor, mask: Tensor | None, dead: Padding) -> Tensor:
    if mask is None:
        return _crop(weight, dead)
    return torch.where(_crop(mask.expand_as(weight), dead), _crop(weight, dead), 0.0)


def _split_padding(size: Sequence[int], padding: Padding) -> tuple[Padding, tuple[int, int]]:
    """Split a padding into what is done beforehand, and rows and columns on both sides, which a convolution adds."""
    left, right = _within(size[1], padding[0], padding[1])
    top, bottom = _within(size[0], padding[2], padding[3])
    y, x = max(0, min(top, bottom)), max(0, min(left, right))
    return (left - x, right - x, top - y, bottom - y), (y, x)


def _within(size: int, before: int, after: int) -> tuple[int, int]:
    """The same padding, without cropping more than there is."""
    if after < -size:
        return before + after + size, -size
    if before < -size:
        return -size, before + after + size
    return before, after


def _pad(x: Tensor, padding: Padding) -> Tensor:
    return F.pad(x, padding) if any(padding) else x


def _less(padding: Sequence[int], dead: Padding) -> Padding:
    left, right, top, bottom = (p - d for p, d in zip(padding, dead, strict=True))
    return left, right, top, bottom


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    padding: Sequence[int],
    taps: Sequence[int],
) -> Tensor:
    dead = _dead(weight.shape, taps)
    before, both = _split_padding(x.shape[2:], _less(padding, dead))
    return F.conv2d(_pad(x, before), _live_weight(weight, mask, dead), bias, padding=both)


def _per_position(condition: Tensor) -> Tensor:
    return condition[:, :, None, None] if condition.ndim == 2 else condition


def decomposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    padding: Sequence[int],
    taps: Sequence[int],
    condition: Tensor | None,
    gate: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The op, spelled by ops of PyTorch: the result, and the two factors of the gate, or nothing.

    **Arguments:** as the schema says.
    """
    y = _convolved(x, weight, bias, mask, padding, taps)
    if condition is not None:
        y = y + _per_position(condition)
    factors = y.new_empty(0)
    if gate:
        a, b = y.chunk(2, 1)
        a, b = torch.tanh(a), torch.sigmoid(b)
        y, factors = a * b, torch.cat([a, b], 1)
    return y if residual is None else y + residual, factors


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    padding: Sequence[int],
    taps: Sequence[int],
    condition: Tensor | None,
    gate: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What `decomposed` computes, in the memory of two results."""
    layout = _layout(x, weight)
    y = _convolved(x, weight, bias, mask, padding, taps).contiguous(memory_format=layout)
    if condition is not None:
        y.add_(_per_position(condition))
    factors = y.new_empty(0)
    if gate:
        factors = y
        a, b = factors.chunk(2, 1)
        y = torch.mul(a.tanh_(), b.sigmoid_()).contiguous(memory_format=layout)
    return y if residual is None else y.add_(residual), factors


def _input_grad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    size: Sequence[int],
    padding: Sequence[int],
    taps: Sequence[int],
) -> Tensor:
    """`grad`: of the convolution's result. `size`: (H, W) of x."""
    dead = _dead(weight.shape, taps)
    before, both = _split_padding(size, _less(padding, dead))
    left, right, top, bottom = before
    padded = (grad.shape[0], weight.shape[1], size[0] + top + bottom, size[1] + left + right)
    kernel = _live_weight(weight, mask, dead)
    found = _convolution_backward(grad, grad.new_empty(padded), kernel, both, (True, False, False))[0]
    found = _pad(found, (-left, -right, -top, -bottom))
    return found.contiguous(memory_format=_layout(grad, weight))


def _weight_grad(
    grad: Tensor,
    x: Tensor,
    mask: Tensor | None,
    kernel: Sequence[int],
    padding: Sequence[int],
    taps: Sequence[int],
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Of the weight, and of the bias or nothing. `grad`: of the convolution's result. `kernel`: rows and columns."""
    dead = left, right, top, bottom = _dead(kernel, taps)
    before, both = _split_padding(x.shape[2:], _less(padding, dead))
    ends = grad.shape[1], x.shape[1]
    live = x.new_empty((*ends, kernel[0] - top - bottom, kernel[1] - left - right))
    wanted = (False, True, bias)
    _, found, of_bias = _convolution_backward(grad, _pad(x, before), live, both, wanted)
    if mask is not None:
        found = torch.where(_crop(mask.expand(*ends, *kernel), dead), found, 0.0)
    found = _pad(found, dead).contiguous(memory_format=_layout(grad, x))
    return found, of_bias if bias else grad.new_empty(0)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, both: tuple[int, int], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """`wanted`: gradients of x, weight, bias. Where x's or the weight's is not, the other one's values do not count."""
    once, never = (1, 1), (0, 0)
    return torch.ops.aten.convolution_backward.default(
        grad, x, weight, [weight.shape[0]], once, both, once, False, never, 1, wanted
    )


# --- the ops ----------------------------------------------------------------------------------------------------


def _layout(*operands: Tensor) -> torch.memory_format:
    """channels_last if one of them is, and not contiguous too, as 1x1 kernels are; what PyTorch does."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in operands)
    return torch.channels_last if last else torch.contiguous_format


def _empty(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    """As `like.new_empty(shape).contiguous(memory_format=layout)`, which would copy."""
    both = shape[1] == 1 or shape[2] == shape[3] == 1  # then a tensor is of both layouts, and stays as it is
    layout = torch.contiguous_format if both else layout
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    padding: Sequence[int],
    taps: Sequence[int],
    condition: Tensor | None,
    gate: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    size = _output_size(x.shape[2:], weight.shape[2:], padding)
    outputs, layout = weight.shape[0], _layout(x, weight)
    wide = _empty(x, (x.shape[0], outputs, *size), layout)
    if not gate:
        return wide, x.new_empty(0)
    return _empty(x, (x.shape[0], outputs // 2, *size), layout), wide


def _input_grad_fake(
    grad: Tensor, weight: Tensor, mask: Tensor | None, size: Sequence[int], padding: Any, taps: Any
) -> Tensor:
    return _empty(grad, (grad.shape[0], weight.shape[1], *size), _layout(grad, weight))


def _weight_grad_fake(
    grad: Tensor, x: Tensor, mask: Tensor | None, kernel: Sequence[int], padding: Any, taps: Any, bias: bool
) -> tuple[Tensor, Tensor]:
    found = _empty(grad, (grad.shape[1], x.shape[1], *kernel), _layout(grad, x))
    return found, grad.new_empty(grad.shape[1] if bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, mask, padding, taps, condition, gate, _ = inputs
    to_x, to_weight = ctx.needs_input_grad[:2]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        x if to_weight else None, weight if to_x else None, mask, output[1] if gate else None
    )
    ctx.padding, ctx.taps, ctx.size, ctx.kernel = padding, taps, x.shape[2:], weight.shape[2:]
    ctx.per_image = condition is not None and condition.ndim == 2


def _backward(ctx: Any, grad: Tensor | None, of_factors: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, mask, factors = ctx.saved_tensors
    inner = grad if factors is None else _gate_grad(grad, of_factors, factors)
    if inner is None:
        return (None,) * 9
    to_x, to_weight, to_bias, _, _, _, to_condition, _, to_residual = ctx.needs_input_grad
    # The ops of the gradients have none of their own: gradients of gradients are those of the twin.
    ops: Any = torch.ops.pixelfast
    twice = torch.is_grad_enabled()
    input_grad = _input_grad if twice else ops.masked_conv2d_input_grad.default
    weight_grad = _weight_grad if twice else ops.masked_conv2d_weight_grad.default
    found = dict.fromkeys(("x", "weight", "bias", "condition"))
    if to_x:
        found["x"] = input_grad(inner, weight, mask, ctx.size, ctx.padding, ctx.taps)
    if to_weight:
        found["weight"], of_bias = weight_grad(inner, x, mask, ctx.kernel, ctx.padding, ctx.taps, to_bias)
        found["bias"] = of_bias if to_bias else None
    if to_condition:
        found["condition"] = inner.sum((2, 3)) if ctx.per_image else inner
    if to_bias and not to_weight:
        found["bias"] = inner.sum((0, 2, 3))
    of_residual = grad if to_residual else None
    return (
        found["x"], found["weight"], found["bias"], None, None, None, found["condition"], None, of_residual
    )  # fmt: skip


def _gate_grad(grad: Tensor | None, of_factors: Tensor | None, factors: Tensor) -> Tensor | None:
    """The gradient of what was gated, from those of the result and of its factors, tanh(a) and sigmoid(b)."""
    a, b = factors.chunk(2, 1)
    to_a, to_b = (None, None) if grad is None else (grad * b, grad * a)
    if of_factors is not None:
        of_a, of_b = of_factors.chunk(2, 1)
        to_a, to_b = (of_a, of_b) if to_a is None or to_b is None else (to_a + of_a, to_b + of_b)
    if to_a is None or to_b is None:
        return None
    ops = torch.ops.aten
    return torch.cat([ops.tanh_backward.default(to_a, a), ops.sigmoid_backward.default(to_b, b)], 1)


_LIBRARY = torch.library.Library("pixelfast", "FRAGMENT")
_SHARED = "int[] padding, int[] taps"
for _name, _schema, _twin, _fake in (
    (
        "masked_conv2d",
        f"(Tensor x, Tensor weight, Tensor? bias, Tensor? mask, {_SHARED}, Tensor? condition, bool gate, "
        "Tensor? residual) -> (Tensor, Tensor)",
        _forward,
        _forward_fake,
    ),
    (
        "masked_conv2d_input_grad",
        f"(Tensor grad, Tensor weight, Tensor? mask, SymInt[] size, {_SHARED}) -> Tensor",
        _input_grad,
        _input_grad_fake,
    ),
    (
        "masked_conv2d_weight_grad",
        f"(Tensor grad, Tensor x, Tensor? mask, int[] kernel, {_SHARED}, bool bias) -> (Tensor, Tensor)",
        _weight_grad,
        _weight_grad_fake,
    ),
):
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag))
    _LIBRARY.impl(_name, _twin, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pixelfast::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "pixelfast::masked_conv2d", _backward, setup_context=_setup_context, lib=_LIBRARY
)
