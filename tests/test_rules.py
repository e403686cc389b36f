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


def half_hidden(h: Tensor) -> Tensor:
    """Two groups of four channels, of which a mask leaves one."""
    mask = torch.tensor([True, False]).view(1, 2, 1, 1, 1)
    return h.unflatten(1, (2, 4)).masked_fill(mask, -torch.inf)


BETWEEN = {
    "batch norm": batch_norm,
    "prelu": lambda: prelu(8),
    "prelu of one slope": lambda: prelu(1),
    "softplus": nn.Softplus,
    "glu of stack": lambda: Lambda(lambda h: F.glu(torch.stack([h, -h], 1).flatten(1, 2), 1)),
    "flip": lambda: Lambda(lambda h: h + h.flip(1)),
    "log of a sum of nothing": lambda: Lambda(lambda h: half_hidden(h).logsumexp(2).exp().repeat(1, 4, 1, 1)),
    "squeeze": lambda: Lambda(lambda h: h.unsqueeze(1).squeeze()),
}


def check(module: nn.Module, to_input, *, shape: tuple[int, int, int] = (1, 4, 5), levels: int = 4) -> None:
    """Sample by both runtimes; score as PyTorch does."""
    head = pf.heads.Categorical(levels)
    samples = []
    for backend in ("cpu", "reference"):
        sampler = pf.compile(module, shape=shape, head=head, to_input=to_input, backend=backend)
        samples.append(sampler.sample(2, seed=7))
    assert torch.equal(samples[0].images, samples[1].images)
    assert torch.equal(samples[0].log_prob, samples[1].log_prob)
    images = samples[0].images.long()
    fed = inputs.Fed(module, to_input, levels)
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


def test_what_stands_before_the_first_pixel_may_be_infinite():
    class Started(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.last = nn.Embedding(5, 3), nn.Conv2d(3, 4, 1)
            nn.init.uniform_(self.embed.weight, 0.5, 2)
            self.embed.weight.data[4] = 0

        def forward(self, images: Tensor) -> Tensor:
            x = images.squeeze(1)
            left = self.embed(F.pad(x[:, :, :-1], (1, 0), value=4)).log()
            above = self.embed(F.pad(x[:, :-1], (0, 0, 1, 0), value=4)).log()
            return self.last(torch.maximum(left, above).exp().permute(0, 3, 1, 2)).unsqueeze(2)

    torch.manual_seed(5)
    check(Started().eval(), lambda images: images)


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


# --- grids that shrink ----------------------------------------------------------------------------------------


class Shrunk(nn.Module):
    """What `shrink` makes of 3 channels, enlarged again and seen so many rows later that nothing leaks."""

    def __init__(self, shrink, late: int):
        super().__init__()
        self.first, self.shrink, self.late = nn.Conv2d(1, 3, 1), shrink, late

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        y = self.shrink(self.first(x))
        y = F.interpolate(y, scale_factor=(-(-height // y.shape[2]), -(-width // y.shape[3])))
        return F.pad(y, (0, 0, self.late, 0))[:, :, :height, :width].unsqueeze(2)


def around(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Padded with what a maximum ignores."""
    return F.pad(x, (left, right, top, bottom), value=-torch.inf)


def unshuffled(x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return F.pixel_unshuffle(around(x, 0, height % 2, 0, width % 2), 2).unflatten(1, (3, 4)).amax(2)


SHRINKS = {  # and how many rows later
    "pool": (lambda h: F.max_pool2d(h, 2), 2),
    "pool that overlaps": (lambda h: F.max_pool2d(h, 3, 2, 1), 3),
    "pool of a wide stride": (lambda h: F.max_pool2d(h, 2, 3, 1), 3),
    "pool of rows": (lambda h: F.max_pool2d(h, (3, 1), (2, 1), (1, 0)), 3),
    "pool of columns": (lambda h: F.max_pool2d(h, (1, 3), (1, 2), (0, 1)), 1),
    "pool, dilated": (lambda h: F.max_pool2d(h, 2, 2, 1, dilation=2), 4),
    "mean": (lambda h: F.avg_pool2d(h, 3, 2, 1), 3),
    "mean of what is there": (lambda h: F.avg_pool2d(h, 3, 2, 1, count_include_pad=False), 3),
    "mean, half of it": (lambda h: F.avg_pool2d(h, 2, 2, divisor_override=8), 2),
    "mean, infinite": (lambda h: F.avg_pool2d(around(h, 1, 0, 1, 0), 2, 2, 1).exp(), 4),
    "rows": (lambda h: around(h, 1, 0, 1, 0)[:, :, ::2].exp(), 2),
    "columns": (lambda h: around(h, 1, 0, 1, 1)[:, :, :, ::3].exp(), 1),
    "both": (lambda h: around(h, 1, 1, 1, 0)[:, :, 1::3, ::2].exp(), 3),
    "windows": (lambda h: around(h, 1, 0, 1, 0).unfold(2, 2, 2).amax(-1).unfold(3, 3, 2).amax(-1), 3),
    "unshuffled": (unshuffled, 2),
    "cut, then pooled": (lambda h: F.max_pool2d(h[:, :, 1:, 1:], 2, 2, 1), 4),
    "pooled twice": (lambda h: F.max_pool2d(F.max_pool2d(h, 2, 2, 1), 2, 2, 1), 7),
}  # fmt: skip


@pytest.mark.parametrize("size", [(6, 6), (7, 5)], ids=str)
@pytest.mark.parametrize("name", SHRINKS)
def test_channels_of_a_grid_that_shrinks_are_kept_apart(name, size):
    """Also where some of them are infinite: 0 times that is not a number."""
    torch.manual_seed(4)
    shrink, late = SHRINKS[name]
    module = Shrunk(shrink, late).eval()
    check(module, pf.inputs.scaled(-1, 1), shape=(1, *size), levels=3)


def test_a_stride_is_no_product():
    sampler = pf.compile(
        Shrunk(*SHRINKS["pool that overlaps"]).eval(),
        shape=(1, 8, 8),
        head=pf.heads.Categorical(3),
        to_input=pf.inputs.scaled(-1, 1),
    )
    (product,) = [row for row in sampler.explain().rows if row.multiply_adds]
    assert product.multiply_adds <= 8 * 8 * 3
