"""The masked convolution: what it computes, its gradients, and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from convolved import (
    EPILOGUES,
    MASKS,
    OP,
    SIZES,
    arguments,
    fused,
    gradients,
    plain,
    titled,
)
from torch.utils._python_dispatch import TorchDispatchMode

import pixelfast as pf
from pixelfast import masked_conv

# --- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_gradients_are_those_of_the_definition(name, size):
    mask, kernel, padding, _ = MASKS[name]
    for epilogue in EPILOGUES:
        given = arguments(kernel, size, padding, **epilogue)
        options = {"mask": mask, "padding": padding, "gate": epilogue.get("gate", False)}
        want, got = plain(*given, **options), fused(*given, **options)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, given), gradients(want, given))


@pytest.mark.parametrize("name", [n for n, (mask, *_) in MASKS.items() if mask is not None])
def test_taps_change_nothing_but_the_work(name):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (4, 5), padding, gate=True)
    options = {"mask": mask, "padding": padding, "gate": True}
    want, got = fused(*given, taps=None, **options), fused(*given, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, given), gradients(want, given))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("taps", [True, False])
def test_dead_weights_have_no_gradient_and_no_say(name, taps):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (4, 5), padding)
    options = {"mask": mask, "padding": padding} | ({} if taps else {"taps": None})
    found = fused(*given, **options)
    dead = torch.zeros(given[1].shape, dtype=torch.bool) if mask is None else ~mask.expand(given[1].shape)
    grad = gradients(found, given)[1]
    assert (grad[dead] == 0).all()
    assert dead.all() or (grad[~dead] != 0).any()
    with torch.no_grad():
        given[1][dead] = math.nan
    assert torch.equal(fused(*given, **options), found)


TWINS = {
    OP: masked_conv._forward,
    torch.ops.pixelfast.masked_conv2d_input_grad.default: masked_conv._input_grad,
    torch.ops.pixelfast.masked_conv2d_weight_grad.default: masked_conv._weight_grad,
}


class Kernels(TorchDispatchMode):
    """Notes the kernels that are convolved with, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        at = {torch.ops.aten.conv2d.default: 1, torch.ops.aten.convolution_backward.default: 2}
        if func in at:
            self.found.append(tuple(args[at[func]].shape[2:]))
        if func in TWINS:
            with self:
                return TWINS[func](*args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MASKS)
def test_dead_rows_and_columns_are_skipped(name):
    mask, kernel, padding, left = MASKS[name]
    given = arguments(kernel, (4, 5), padding)
    with Kernels() as kernels:
        fused(*given, mask=mask, padding=padding).sum().backward()
    assert kernels.found == [left] * 3


def test_live_taps():
    assert pf.live_taps(MASKS["B 3x3"][0], (3, 3)) == (0, 1, 2, 3, 4)
    assert len(pf.live_taps(MASKS["A 7x7"][0], (7, 7))) == 24
    assert pf.live_taps(MASKS["rows above"][0], (5, 3)) == (0, 1, 2, 3, 4, 5)
    assert pf.live_taps(MASKS["nothing"][0], (3, 3)) == ()
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[1, 0, 0, 1] = mask[0, 1, 1, 0] = True  # of one output and one input each
    assert pf.live_taps(mask, (2, 2)) == (1, 2)
    assert pf.live_taps(torch.tensor(True), (1, 2)) == (0, 1)


@pytest.mark.parametrize("gate", [False, True])
def test_no_images(gate):
    given = arguments((3, 3), (4, 5), (1, 1, 1, 1), gate=gate, condition="image", residual=True, batch=0)
    y = fused(*given, mask=MASKS["B 3x3"][0], padding=(1, 1, 1, 1), gate=gate)
    assert y.shape == (0, 3 if gate else 6, 4, 5)
    assert not any(g.any() for g in gradients(y, given))


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=titled)
@pytest.mark.parametrize("name", ["colours 3x3", "columns to the left"])
def test_gradients_are_those_of_differences(name, epilogue):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (2, 3), padding, batch=1, **epilogue)
    at = [i for i, t in enumerate(given) if t is not None]

    def function(*tensors):
        full = [None] * 5
        for i, t in zip(at, tensors, strict=True):
            full[i] = t
        return fused(*full, mask=mask, padding=padding, gate=epilogue.get("gate", False))

    tensors = [given[i] for i in at]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_only_gradients_that_are_wanted_are_computed():
    mask, kernel, padding, _ = MASKS["B 3x3"]
    names = ("x", "weight", "bias", "condition", "residual")
    for wanted in itertools.product([False, True], repeat=5):
        given = arguments(kernel, (4, 5), padding, gate=True, condition="image", residual=True)
        for t, want in zip(given, wanted, strict=True):
            t.requires_grad_(want)
        with Kernels() as kernels:
            y = fused(*given, mask=mask, padding=padding, gate=True)
            assert y.requires_grad == any(wanted)
            if any(wanted):
                y.sum().backward()
        assert len(kernels.found) == 1 + wanted[0] + wanted[1]
        got = {name for name, t in zip(names, given, strict=True) if t.grad is not None}
        assert got == {name for name, want in zip(names, wanted, strict=True) if want}


def test_gradients_are_the_same_bits_every_time():
    mask, kernel, padding, _ = MASKS["A 7x7"]
    given = arguments(kernel, (9, 8), padding, dtype=torch.float32, batch=7, gate=True, condition="image")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            gradients(fused(*given, mask=mask, padding=padding, gate=True), given)
            for _ in range(3)
        ]  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))


# --- errors -------------------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 3, 3)
MASK = torch.ones(3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.int()}, r"x must be float \(N, C_in, H, W\), got torch\.int32 \(2, 3, 4, 5\)"),
        ({"x": X[0]}, r"x must be float \(N, C_in, H, W\), got torch\.float32 \(3, 4, 5\)"),
        ({"weight": W[:, :2]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(6, 2, 3, 3\)"),
        ({"weight": W[0]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(3, 3, 3\)"),
        ({"weight": W[:0]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(0, 3, 3, 3\)"),
        ({"weight": W.double()}, r"weight must be torch\.float32 on cpu as x is, got torch\.float64 on cpu"),
        ({"bias": torch.zeros(5)}, r"bias must be \(6,\), got torch\.float32 \(5,\)"),
        ({"padding": (1, 1)}, r"padding must be left, right, top, bottom, got 2 numbers"),
        ({"padding": (-3, 0, 0, 0)}, r"x of 4x5, padded by \(-3, 0, 0, 0\), is less than a kernel of 3x3"),
        ({"weight": W[:5], "gate": True}, r"a gate needs an even number of output channels, got 5"),
        (
            {"condition": torch.zeros(2, 5)},
            r"condition must be \(2, 6\) or \(2, 6, 2, 3\), got torch\.float32 \(2, 5\)",
        ),
        (
            {"residual": torch.zeros(2, 6, 2, 3), "gate": True},
            r"residual must be \(2, 3, 2, 3\), got torch\.float32 \(2, 6, 2, 3\)",
        ),
        ({"residual": torch.zeros(2, 6, 2, 3, device="meta")}, r"residual must be .* on cpu .* on meta"),
        (
            {"mask": MASK.float()},
            r"mask must be bool and broadcastable to \(6, 3, 3, 3\), got torch\.float32 \(3, 3\)",
        ),
        (
            {"mask": MASK[:2]},
            r"mask must be bool and broadcastable to \(6, 3, 3, 3\), got torch\.bool \(2, 3\)",
        ),
        ({"mask": MASK.to("meta")}, r"mask must be on cpu as x is, got meta"),
        ({"taps": (0, 1)}, r"taps are of a mask, and there is none"),
        ({"mask": MASK, "taps": (0, 9)}, r"taps must be in \[0, 9\), got \(0, 9\)"),
        ({"mask": MASK, "taps": (-1, 2)}, r"taps must be in \[0, 9\), got \(-1, 2\)"),
        ({"mask": MASK, "taps": (0, 0, 1)}, r"taps must ascend, got \(0, 0, 1\)"),
        ({"mask": MASK, "taps": (1, 0)}, r"taps must ascend, got \(1, 0\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"x": X, "weight": W} | change
    with pytest.raises(ValueError, match=r"^\[masked_conv2d\] " + message):
        pf.masked_conv2d(**given)


@pytest.mark.parametrize("mask", [MASK.int(), MASK[:, :2], MASK.expand(1, 1, 1, 3, 3)])
def test_live_taps_of_what_is_no_mask(mask):
    with pytest.raises(
        ValueError,
        match=r"^\[live_taps\] mask must be bool and broadcastable to \(any, any, 3, 3\), got torch\.",
    ):
        pf.live_taps(mask, (3, 3))
