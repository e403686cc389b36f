"""Operands for the kernels of masked convolutions, and what the twin makes of them."""

from __future__ import annotations

import torch

from pixelfast import _emulated, runtime
from pixelfast import masked_conv as twin
from pixelfast.device_conv import Kernels

# What rounding to a dtype leaves, relative to the largest result.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


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


def exactly(function, arguments):
    """What the twin finds in double precision, in the layout and dtype of the results that are wanted."""
    exact = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    return function(*exact)


def same(got, want):
    torch.testing.assert_close(
        got.double(),
        want,
        rtol=0,
        atol=ROUNDING[got.dtype] * max(1.0, float(want.abs().amax() if want.numel() else 0)),
    )
    strides = zip(got.stride(), want.stride(), want.shape, strict=True)
    assert all(a == b for a, b, size in strides if size > 1)


def check_gradients(s, bias, grad=None):
    if grad is None:
        grad = s.normal(*s.out).contiguous(memory_format=twin._layout(s.x, s.weight))
    arguments = (grad, s.weight, s.mask, s.size, s.padding, s.taps)
    same(s.kernels.input_grad(*arguments), exactly(twin._input_grad, arguments))
    arguments = (grad, s.x, s.mask, s.kernel, s.padding, s.taps, bias)
    found, again = s.kernels.weight_grad(*arguments), s.kernels.weight_grad(*arguments)
    for got, want, repeated in zip(found, exactly(twin._weight_grad, arguments), again, strict=True):
        same(got, want)
        assert torch.equal(got, repeated)
    if s.mask is not None:
        assert (found[0][~s.mask] == 0).all()


class Counting:
    """A module of kernels, which notes what is called."""

    def __init__(self, module, calls):
        self.module, self.calls, self.most_taps = module, calls, module.most_taps
        self.most_side = module.most_side

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.module, name)
