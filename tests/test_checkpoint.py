"""A public checkpoint, in a module written after its author's architecture: compiled unchanged, scored, sampled.

Gated PixelCNN on MNIST by Phillip Lippe, tutorial 12 of the UvA deep learning course (MIT licence); 0.808 bits per
dimension on the test set as published.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import data

DATA = Path(__file__).parents[2] / "shared" / "data"
CHECKPOINT = DATA / "checkpoints" / "phlippe-gated-pixelcnn-mnist" / "PixelCNN.ckpt"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the public checkpoint is not there"),
]


class MaskedConvolution(nn.Module):
    def __init__(self, c_in: int, c_out: int, mask: Tensor, dilation: int = 1):
        super().__init__()
        padding = tuple(dilation * (size - 1) // 2 for size in mask.shape)
        self.conv = nn.Conv2d(c_in, c_out, tuple(mask.shape), padding=padding, dilation=dilation)
        self.register_buffer("mask", mask[None, None])

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data *= self.mask  # as its author does it: the mask lives in the code
        return self.conv(x)


def vertical(c_in: int, c_out: int, *, first: bool = False, dilation: int = 1) -> MaskedConvolution:
    mask = torch.ones(3, 3)
    mask[2:] = 0
    if first:
        mask[1] = 0
    return MaskedConvolution(c_in, c_out, mask, dilation)


def horizontal(c_in: int, c_out: int, *, first: bool = False, dilation: int = 1) -> MaskedConvolution:
    mask = torch.ones(1, 3)
    mask[0, 2:] = 0
    if first:
        mask[0, 1] = 0
    return MaskedConvolution(c_in, c_out, mask, dilation)


class GatedMaskedConv(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.conv_vert = vertical(width, 2 * width, dilation=dilation)
        self.conv_horiz = horizontal(width, 2 * width, dilation=dilation)
        self.conv_vert_to_horiz = nn.Conv2d(2 * width, 2 * width, 1)
        self.conv_horiz_1x1 = nn.Conv2d(width, width, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        v_features = self.conv_vert(v)
        value, gate = v_features.chunk(2, dim=1)
        v_out = torch.tanh(value) * torch.sigmoid(gate)
        h_features = self.conv_horiz(h) + self.conv_vert_to_horiz(v_features)
        value, gate = h_features.chunk(2, dim=1)
        return v_out, self.conv_horiz_1x1(torch.tanh(value) * torch.sigmoid(gate)) + h


class PixelCNN(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.conv_vstack = vertical(1, width, first=True)
        self.conv_hstack = horizontal(1, width, first=True)
        self.conv_layers = nn.ModuleList(GatedMaskedConv(width, d) for d in (1, 2, 1, 4, 1, 2, 1))
        self.conv_out = nn.Conv2d(width, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255 * 2 - 1
        v, h = self.conv_vstack(x), self.conv_hstack(x)
        for layer in self.conv_layers:
            v, h = layer(v, h)
        out = self.conv_out(F.elu(h))
        return out.reshape(out.shape[0], 256, out.shape[1] // 256, out.shape[2], out.shape[3])


@functools.cache
def sampler() -> pf.Sampler:
    model = PixelCNN()
    model.load_state_dict(torch.load(CHECKPOINT, weights_only=True, map_location="cpu")["state_dict"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compiled = pf.compile(model, shape=(1, 28, 28), head=pf.heads.Categorical(256))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return compiled


def test_it_scores_as_published():
    images = torch.from_numpy(data.load(DATA / "mnist", split="test").images[:500].copy())
    found = pf.bits_per_dim(sampler().log_prob(images), (1, 28, 28)).mean().item()
    assert 0.75 < found < 0.87  # 500 images of 10,000; the whole set gives 0.8089


def test_what_it_samples_it_scores_the_same():
    out = sampler().sample(4, seed=1)
    assert torch.equal(sampler().log_prob(out.images), out.log_prob)
    assert 0.03 < (out.images > 127).float().mean() < 0.3  # digits: mostly background
