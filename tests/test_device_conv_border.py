"""What the kernels of masked convolutions leave to their twin, and what is refused on the way to them."""

from __future__ import annotations

import pytest
import torch
from convolutions import Counting, Sample, check_gradients

from pixelfast import _emulated
from pixelfast import masked_conv as twin
from pixelfast.device_conv import Kernels


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 2, 14, 14, 13, 13, (6, 6, 6, 6)),  # taps
        (1, 1, 2, 1, 40000, 1, 1, (0, 0, 0, 0)),  # a side
        (1, 1, 2, 1, 3, 1, 2, (0, 40000, 0, 0)),  # a side of the result
        (1, 1, 2, 3, 40, 1, 2, (-33000, 33000, 0, 0)),  # what a tap reads
    ],
    ids=str,
)
def test_what_does_not_fit_goes_to_the_twin(shape):
    s = Sample(shape, torch.float32, "emulated", masked=False)
    calls = []
    s.kernels.module = Counting(s.kernels.module, calls)
    arguments = (s.x, s.weight, None, None, s.padding, s.taps, None, False, None)
    assert torch.equal(s.kernels.forward(*arguments)[0], twin._forward(*arguments)[0])
    grad = s.normal(*s.out)
    arguments = (grad, s.weight, None, s.size, s.padding, s.taps)
    assert torch.equal(s.kernels.input_grad(*arguments), twin._input_grad(*arguments))
    arguments = (grad, s.x, None, s.kernel, s.padding, s.taps, True)
    assert torch.equal(s.kernels.weight_grad(*arguments)[0], twin._weight_grad(*arguments)[0])
    assert not calls


def test_more_blocks_than_a_launch_has_do_not_fit():
    kernels = Kernels(_emulated)
    shape = {
        "type": 0,
        "sizes": [1 << 23, 1, 1, 128, 128, 128, 128],
        "kernel": [1, 1],
        "taps": [(0, 0, 0, 0)],
    }
    assert not kernels.fits(shape)
    shape["sizes"][0] -= 1
    assert kernels.fits(shape)


@pytest.mark.parametrize("gate", [False, True])
def test_empty_batches(gate):
    s = Sample((0, 3, 4, 5, 6, 3, 3, (1, 1, 1, 1)), torch.float16, "emulated")
    out = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, gate, None)[0]
    assert out.shape == (0, 2 if gate else 4, 5, 6)
    check_gradients(s, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(4, dtype=torch.float16)}, "bias must be torch.bfloat16 .* got torch.float16"),
        ({"bias": torch.zeros(1, dtype=torch.bfloat16)}, r"bias must be \(4,\), got"),
        ({"residual": torch.zeros(1, 4, 2, 2, dtype=torch.bfloat16)}, r"residual must be \(1, 4, 3, 3\), got"),
        ({"taps": [7]}, r"taps must be in \[0, 1\), got \(7,\)"),
        ({"taps": [0, 0]}, r"taps must ascend, got \(0, 0\)"),
        ({"mask": torch.ones(5, 2, 1, 1, dtype=torch.bool)}, "mask must be bool and broadcastable"),
    ],
)  # fmt: skip
def test_bad_operands_are_refused(change, message):
    s = Sample((1, 2, 4, 3, 3, 1, 1, (0, 0, 0, 0)), torch.bfloat16, "emulated", masked=False)
    given = {"bias": None, "mask": None, "taps": [0], "residual": None} | change
    with torch.library._scoped_library("pixelfast", "IMPL") as library:
        s.kernels.register(library, "CPU")
        ops = torch.ops.pixelfast
        with pytest.raises(ValueError, match=message):
            ops.masked_conv2d(
                s.x, s.weight, given["bias"], given["mask"], s.padding, given["taps"], None, False, given["residual"]
            )  # fmt: skip
        shared = s.padding, given["taps"]
        if "mask" in change or "taps" in change:
            grad = s.normal(*s.out)
            with pytest.raises(ValueError, match=message):
                ops.masked_conv2d_input_grad(grad, s.weight, given["mask"], s.size, *shared)
            with pytest.raises(ValueError, match=message):
                ops.masked_conv2d_weight_grad(grad, s.x, given["mask"], s.kernel, *shared, True)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(1, 4, 3, 3), "grad must be torch.bfloat16 on cpu, got torch.float32 on cpu"),
        (torch.zeros(1, 4, 3, 2, dtype=torch.bfloat16), r"grad must be \(1, 4, 3, 3\), got \(1, 4, 3, 2\)"),
    ],
)
def test_bad_gradients_are_refused(grad, message):
    s = Sample((1, 2, 4, 3, 3, 1, 1, (0, 0, 0, 0)), torch.bfloat16, "emulated", masked=False)
    with pytest.raises(ValueError, match=message):
        s.kernels.input_grad(grad, s.weight, None, s.size, s.padding, s.taps)
    with pytest.raises(ValueError, match=message):
        s.kernels.weight_grad(grad, s.x, None, s.kernel, s.padding, s.taps, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": 9}, "there is no type 9"),
        ({"sizes": [1, 2]}, "sizes are 7 numbers, got 2"),
        ({"sizes": [1, -1, 1, 1, 1, 1, 1]}, "sizes must not be negative"),
        ({"taps": [(0, 0, 0, 0)] * 129}, "at most 128 taps, got 129"),
        ({"taps": [(0, 0)]}, "a tap is 4 numbers"),
        ({"taps": [(0, 0, 0, 1)]}, "a tap must be in a kernel of 1x1"),
        ({"taps": [(0, 0, -1, 0)]}, "a tap must be in a kernel of 1x1"),
        ({"kernel": [1]}, "a kernel is 2 numbers, got 1"),
        ({"input": (0, (1, 1, 1, 1))}, "input is not empty, and has no address"),
        ({"weight": (0, (1, 1, 1, 1))}, "weight is not empty, and has no address"),
        ({"out": (0, (1, 1, 1, 1))}, "out is not empty, and has no address"),
        ({"gate": True, "sizes": [1, 1, 2, 1, 1, 1, 1]}, "factors is not empty, and has no address"),
        ({"type": 2, "packed": (0, 4096)}, "there is no memory"),
        ({"input": (0, (1, 2))}, "a tensor has 4 strides, got 2"),
        ({"gate": True}, "a gate has two factors"),
        ({"sizes": [1, 1, 1, 1, 1, 1, 32768]}, "sides must be at most 32767, got 32768"),
        ({"taps": [(0, -32768, 0, 0)]}, "a tap must read at most 32767 away, got -32768"),
        ({"packed": (0,)}, "memory is an address and a size"),
        ({"packed": (8, 0)}, "memory must start at a multiple of 16 bytes"),
        ({"type": 2, "packed": (0, 4095)}, "4096 bytes are needed, got 4095"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    t = torch.zeros(1, 1, 1, 1)
    nothing, full = (0, (0, 0, 0, 0)), (t.data_ptr(), (1, 1, 1, 1))
    arguments = {
        "type": 0, "sizes": [1] * 7, "kernel": [1, 1], "taps": [(0, 0, 0, 0)], "input": full,
        "weight": full, "mask": nothing, "bias": (0,), "condition": nothing, "residual": nothing,
        "factors": nothing, "out": full, "packed": (0, 0), "gate": False, "device": 0, "stream": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _emulated.masked_conv(**(arguments | changed))
    names = ("type", "sizes", "kernel", "taps", "input", "weight", "mask", "bias", "device", "stream")
    others = {name: arguments[name] for name in names}
    with pytest.raises(ValueError, match="8 bytes are needed, got 7"):
        _emulated.masked_conv_weight_grad(**others, grad=full, parts=(0, 7))
