"""Lowering rules in networks of their own: what they compute is what PyTorch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import inputs


class Network(nn.Module):
    """Above and left of a pixel, then whatever `between` does to 8 channels, then logits."""

    def __init__(self, between: nn.Module, channels: int = 1):
        super().__init__()
        self.above, self.left = nn.Conv2d(channels, 8, (2, 3)), nn.Conv2d(channels, 8, (1, 2))
        self.between = between
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.above(F.pad(x, (1, 1, 2, -1))) + self.left(F.pad(x, (2, -1, 0, 0)))
        return self.last(self.between(h)).unsqueeze(2)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def batch_norm() -> nn.Module:
    layer = nn.BatchNorm2d(8)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def prelu(n: int) -> nn.Module:
    layer = nn.PReLU(n)
    nn.init.normal_(layer.weight)
    return layer


BETWEEN = {
    "batch norm": batch_norm,
    "prelu": lambda: prelu(8),
    "prelu of one slope": lambda: prelu(1),
    "softplus": nn.Softplus,
    "glu of stack": lambda: Lambda(lambda h: F.glu(torch.stack([h, -h], 1).flatten(1, 2), 1)),
    "flip": lambda: Lambda(lambda h: h + h.flip(1)),
    "squeeze": lambda: Lambda(lambda h: h.unsqueeze(1).squeeze()),
}


def check(module: nn.Module, to_input) -> None:
    """Sample by both runtimes; score as PyTorch does."""
    head = pf.heads.Categorical(4)
    samples = []
    for backend in ("cpu", "reference"):
        sampler = pf.compile(module, shape=(1, 4, 5), head=head, to_input=to_input, backend=backend)
        samples.append(sampler.sample(2, seed=7))
    assert torch.equal(samples[0].images, samples[1].images)
    assert torch.equal(samples[0].log_prob, samples[1].log_prob)
    images = samples[0].images.long()
    fed = inputs.Fed(module, to_input, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            samples[0].log_prob, head.log_prob(fed(images), images), rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("name", BETWEEN)
def test_between(name):
    torch.manual_seed(0)
    check(Network(BETWEEN[name]()).eval(), pf.inputs.scaled(-1, 1))


@pytest.mark.parametrize(
    ("to_input", "channels"),
    [
        (pf.inputs.scaled(0, 1), 1),
        (pf.inputs.floats(), 1),
        (pf.inputs.one_hot(), 4),
        (lambda images: images.float().sub(1.5).tanh(), 1),
    ],
    ids=["scaled", "floats", "one hot", "function"],
)
def test_inputs(to_input, channels):
    torch.manual_seed(1)
    check(Network(nn.ReLU(), channels).eval(), to_input)


def test_an_embedding_of_levels():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.network = nn.Embedding(4, 3), Network(nn.ReLU(), 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(self.embed(images.squeeze(1)).permute(0, 3, 1, 2))

    torch.manual_seed(2)
    check(Embedded().eval(), lambda images: images)


class Doubly(nn.Conv2d):
    """Masks its weights when run, in one of the ways that are about."""

    def __init__(self, way: str):
        super().__init__(1, 8, 3, padding=1)
        self.way = way
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:] = 0
        mask[:, :, 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            self.weight.data *= self.mask
        elif self.way == "in place":
            with torch.no_grad():
                self.weight.mul_(self.mask)
        elif self.way == "copy":
            self.weight.data = self.weight.data * self.mask
        else:
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)
        return super().forward(x)


@pytest.mark.parametrize("way", ["data", "in place", "copy", "product"])
def test_masks_that_live_in_forward(way):
    torch.manual_seed(3)
    module = nn.Sequential(Doubly(way), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Unflatten(1, (4, 1)))
    before = module[0].weight.clone()
    pf.compile(module, shape=(1, 4, 5), head=pf.heads.Categorical(4), to_input=pf.inputs.scaled(-1, 1))
    assert torch.equal(module[0].weight, before)  # untouched, also where forward would mask it
    check(module.eval(), pf.inputs.scaled(-1, 1))
