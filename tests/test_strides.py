"""Strided and transposed convolutions: each element once per block, on any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ORDERS, TOLERANCE, Case

import pixelfast as pf


class Hourglass(nn.Module):
    """A strided convolution, a transposed one, and a shift that makes whatever they see causal."""

    def __init__(self, stride: int, kernel: int, output_padding: int):
        super().__init__()
        self.channels, self.head = 1, pf.heads.Categorical(4)
        self.down = nn.Conv2d(1, 8, (2, 3), stride=stride)
        self.up = nn.ConvTranspose2d(8, 8, kernel, stride=stride, padding=1, output_padding=output_padding)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = images.to(self.last.weight.dtype) / 3
        h = self.up(F.relu(self.down(F.pad(x, (1, 1, 1, 0)))))
        h = F.pad(h, (0, 8, 6, 8))[:, :, :height, :width]
        return self.last(F.relu(h)).unsqueeze(2)


@pytest.mark.parametrize(("stride", "kernel", "output_padding"), [(2, 3, 1), (2, 2, 0), (3, 4, 1), (1, 3, 0)])
@pytest.mark.parametrize("size", [(9, 7), (12, 5)], ids=str)
def test_every_order_and_backend_agree(stride, kernel, output_padding, size):
    torch.manual_seed(0)
    case = Case(Hourglass(stride, kernel, output_padding).eval(), (1, *size))
    want = case.sampler("raster", "reference").sample(2)
    near = TOLERANCE["reference", "float32"]
    torch.testing.assert_close(want.log_prob.double(), case.exact_log_prob(want.images), **near)
    for order in ORDERS:
        sampler = case.sampler(order)
        got = sampler.sample(2)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
        assert sampler._runtime.last_multiply_adds == 2 * sampler.multiply_adds
        assert torch.equal(sampler.log_prob(got.images), got.log_prob)


def test_a_transposed_convolution_leaks_by_name():
    class Leaky(Hourglass):
        def forward(self, images: Tensor) -> Tensor:
            x = images.to(self.last.weight.dtype) / 3
            return self.last(self.up(self.down(F.pad(x, (1, 1, 1, 0))))).unsqueeze(2)

    with pytest.raises(pf.CausalityError, match=r"leak is in module '(down|up)'"):
        pf.compile(Leaky(2, 4, 0), shape=(1, 8, 8))
