"""The kernels of masked convolutions, on an emulation of a GPU and on a GPU if there is one, against their twin."""

from __future__ import annotations

import pytest
import torch
from zoo import ON_A_GPU

import pixelfast as pf
from pixelfast import _emulated, runtime
from pixelfast import masked_conv as twin
from pixelfast.device_conv import Kernels

BACKENDS = [pytest.param("emulated", id="emulated"), pytest.param("cuda", marks=ON_A_GPU, id="cuda")]
SHAPES = [  # batch, inputs, outputs, height, width, kernel rows and columns, padding
    (2, 3, 4, 5, 6, 3, 3, (1, 1, 1, 1)),
    (1, 5, 70, 7, 4, 2, 3, (1, 1, 1, 0)),
    (2, 1, 2, 3, 3, 1, 1, (0, 0, 0, 0)),
    (2, 4, 6, 5, 5, 3, 3, (-1, 2, 1, 0)),
    (1, 17, 2, 9, 9, 5, 5, (2, 2, 2, 2)),
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Sample:
    """Operands of one convolution."""

    def __init__(self, shape, dtype, backend, *, channels_last=False, masked=True):
        n, inputs, outputs, height, width, rows, columns, self.padding = shape
        self.device = "cuda" if backend == "cuda" else "cpu"
        self.kernels = Kernels(runtime._cuda if backend == "cuda" else _emulated)
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.kernel, self.size = dtype, (rows, columns), (height, width)
        self.out = n, outputs, *twin._output_size(self.size, self.kernel, self.padding)
        self.x = self.normal(n, inputs, height, width)
        if channels_last:
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.weight = self.normal(outputs, inputs, rows, columns)
        self.mask, self.taps = None, tuple(range(rows * columns))
        if masked:
            self.mask = (torch.rand(self.weight.shape, generator=self.generator) > 0.4).to(self.device)
            self.mask[:, :, -1, columns // 2 + 1 :] = False
            self.taps = twin.live_taps(self.mask.cpu(), self.kernel)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)


def same(got, want):
    rounding = {"rtol": 1e-4, "atol": 1e-4} if want.dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(got, want, **rounding)
    strides = zip(got.stride(), want.stride(), want.shape, strict=True)
    assert all(a == b for a, b, size in strides if size > 1)


@every_backend
@every_shape
@every_dtype
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("condition", [None, "image", "position"])
def test_forward(backend, shape, dtype, gate, condition):
    s = Sample(shape, dtype, backend, channels_last=condition == "image", masked=condition != "position")
    n, outputs = s.out[:2]
    values = None if condition is None else s.normal(*(s.out if condition == "position" else (n, outputs)))
    residual = s.normal(n, outputs // 2 if gate else outputs, *s.out[2:]) if condition else None
    bias = s.normal(outputs) if condition else None
    arguments = (s.x, s.weight, bias, s.mask, s.padding, s.taps, values, gate, residual)
    for got, want in zip(s.kernels.forward(*arguments), twin._forward(*arguments), strict=True):
        same(got, want)


@every_backend
@every_shape
@every_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(backend, shape, dtype, masked):
    s = Sample(shape, dtype, backend, channels_last=masked, masked=masked)
    grad = s.normal(*s.out)
    arguments = (grad, s.weight, s.mask, s.size, s.padding, s.taps)
    same(s.kernels.input_grad(*arguments), twin._input_grad(*arguments))
    for bias in (False, True):
        arguments = (grad, s.x, s.mask, s.kernel, s.padding, s.taps, bias)
        found = s.kernels.weight_grad(*arguments)
        for got, want in zip(found, twin._weight_grad(*arguments), strict=True):
            same(got, want)
        again = s.kernels.weight_grad(*arguments)
        assert torch.equal(again[0], found[0])
        if masked:
            assert (found[0][~s.mask] == 0).all()


@every_backend
def test_registered_they_serve_the_op(backend):
    s = Sample(SHAPES[0], torch.float64, backend)
    given = [t.requires_grad_() for t in (s.x, s.weight, s.normal(s.out[1]), s.normal(s.out[0], s.out[1]))]

    def results():
        x, weight, bias, condition = given
        y = pf.masked_conv2d(
            x, weight, bias, mask=s.mask, taps=s.taps, padding=s.padding, condition=condition, gate=True
        )
        return [y.detach(), *torch.autograd.grad(y.square().sum(), given)]

    want = results()
    calls = []
    s.kernels.module = Counting(s.kernels.module, calls)
    with torch.library._scoped_library("pixelfast", "IMPL") as library:
        s.kernels.register(library, "CUDA" if backend == "cuda" else "CPU")
        got = results()
    assert sorted(calls) == ["masked_conv", "masked_conv", "masked_conv_weight_grad"]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    results()
    assert len(calls) == 3  # the twin again


class Counting:
    """A module of kernels, which notes what is called."""

    def __init__(self, module, calls):
        self.module, self.calls, self.most_taps = module, calls, module.most_taps

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.module, name)


@every_backend
def test_dead_weights_do_not_count(backend):
    s = Sample(SHAPES[0], torch.float32, backend)
    want = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    s.weight[~s.mask] = float("nan")
    got = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    assert torch.equal(got, want)


def test_sums_in_several_parts(monkeypatch):
    monkeypatch.setattr("pixelfast.device_conv._SUMS", 7)
    s = Sample(SHAPES[0], torch.float64, "emulated")
    arguments = (s.normal(*s.out), s.x, s.mask, s.kernel, s.padding, s.taps, True)
    for got, want in zip(s.kernels.weight_grad(*arguments), twin._weight_grad(*arguments), strict=True):
        same(got, want)


def test_what_does_not_fit_goes_to_the_twin():
    s = Sample((1, 1, 2, 14, 14, 13, 13, (6, 6, 6, 6)), torch.float32, "emulated", masked=False)
    arguments = (s.x, s.weight, None, None, s.padding, s.taps, None, False, None)
    assert torch.equal(s.kernels.forward(*arguments)[0], twin._forward(*arguments)[0])
    assert not s.kernels.fits(s.x, s.taps)
    grad = s.normal(*s.out)
    arguments = (grad, s.weight, None, s.size, s.padding, s.taps)
    assert torch.equal(s.kernels.input_grad(*arguments), twin._input_grad(*arguments))
    arguments = (grad, s.x, None, s.kernel, s.padding, s.taps, True)
    assert torch.equal(s.kernels.weight_grad(*arguments)[0], twin._weight_grad(*arguments)[0])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.skipif(runtime.no_cuda() is not None, reason=f"{runtime.no_cuda()}")
def test_half_precision(dtype):
    s = Sample(SHAPES[1], dtype, "cuda")
    arguments = (s.x, s.weight, None, s.mask, s.padding, s.taps, None, True, None)
    for got, want in zip(s.kernels.forward(*arguments), twin._forward(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": 9}, "there is no type 9"),
        ({"sizes": [1, 2]}, "sizes are 7 numbers, got 2"),
        ({"sizes": [1, -1, 1, 1, 1, 1, 1]}, "sizes must not be negative"),
        ({"taps": [(0, 0, 0, 0)] * 129}, "at most 128 taps, got 129"),
        ({"taps": [(0, 0)]}, "a tap is 4 numbers"),
        ({"input": (0, (1, 2))}, "a tensor has 4 strides, got 2"),
        ({"gate": True}, "a gate has two factors"),
        ({"type": 2}, "the emulation has float32 and float64"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    t = torch.zeros(1, 1, 1, 1)
    nothing, full = (0, (0, 0, 0, 0)), (t.data_ptr(), (1, 1, 1, 1))
    arguments = {
        "type": 0, "sizes": [1] * 7, "taps": [(0, 0, 0, 0)], "input": full, "weight": full, "mask": nothing,
        "bias": (0,), "condition": nothing, "residual": nothing, "factors": nothing, "out": full, "gate": False,
        "device": 0, "stream": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _emulated.masked_conv(**(arguments | changed))
    splits = {
        k: arguments[k]
        for k in ("type", "sizes", "taps", "input", "weight", "mask", "bias", "device", "stream")
    }
    with pytest.raises(ValueError, match="splits must be at least 1, got 0"):
        _emulated.masked_conv_weight_grad(**splits, grad=full, parts=(0,), splits=0)
