"""Inputs: what becomes of levels before forward, or at its beginning, is found out by evaluating it on all levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import inputs

HEIGHT, WIDTH, LEVELS = 3, 4, 5


class Net(nn.Module):
    """Looks above and left, at any number of planes, after `first`; logits (N, levels, C, H, W)."""

    def __init__(self, planes: int, colours: int, first) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(LEVELS, 3)
        self.above, self.left = nn.Conv2d(planes, 8, (2, 3)), nn.Conv2d(planes, 8, (1, 2))
        self.last, self.first, self.colours = nn.Conv2d(8, LEVELS * colours, 1), first, colours

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self, x)
        h = self.above(F.pad(x, (1, 1, 2, -1))) + self.left(F.pad(x, (2, -1, 0, 0)))
        return 3 * self.last(h.tanh()).view(-1, LEVELS, self.colours, HEIGHT, WIDTH)


def same(net: Net, x: Tensor) -> Tensor:
    return x


def planes(images: Tensor) -> Tensor:
    """One-hot codes, level by level."""
    return F.one_hot(images, LEVELS).permute(0, 4, 1, 2, 3).flatten(1, 2).float()


def codebook(images: Tensor) -> Tensor:
    """Embeddings made outside the module."""
    table = torch.arange(2.0 * LEVELS).sin().view(LEVELS, 2)
    return F.embedding(images.squeeze(1), table).permute(0, 3, 1, 2)


def levels_of(net: Net, x: Tensor) -> Tensor:
    """Embeddings of each colour's levels: (N, C, H, W) to (N, 3 C, H, W)."""
    return net.embed(x).permute(0, 1, 4, 2, 3).flatten(1, 2)


# colours, planes, to_input, what forward does first
CASES = {
    "scaled": (3, 3, inputs.scaled(-1, 1), same),
    "scaled by hand": (1, 1, lambda x: (x.float() / (LEVELS - 1) - 0.5) / 0.5, same),
    "normalized": (1, 1, inputs.normalized(0.1307, 0.3081), same),
    "normalized by colour": (3, 3, inputs.normalized((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), same),
    "floats": (3, 3, inputs.floats(), same),
    "levels": (3, 3, None, lambda net, x: x.float()),
    "levels, scaled in forward": (3, 3, None, lambda net, x: 2 * x.float() / (LEVELS - 1) - 1),
    "one-hot, one colour": (1, LEVELS, inputs.one_hot(), same),
    "one-hot, colour by colour": (3, 3 * LEVELS, inputs.one_hot(), same),
    "one-hot, level by level": (3, 3 * LEVELS, planes, same),
    "one-hot in forward": (
        1,
        LEVELS,
        None,
        lambda net, x: F.one_hot(x.squeeze(1), LEVELS).permute(0, 3, 1, 2).float(),
    ),
    "embedded outside": (1, 2, codebook, same),
    "looked up": (3, 3, lambda x: torch.linspace(-1, 1, LEVELS).exp()[x], same),
    "looked up, vectors": (1, 2, lambda x: torch.eye(LEVELS, 2)[x[:, 0]].permute(0, 3, 1, 2), same),
    "embedded inside": (3, 9, None, levels_of),
    "embedded inside, N H W": (
        1,
        3,
        lambda x: x.squeeze(1),
        lambda net, x: net.embed(x).permute(0, 3, 1, 2),
    ),
    "channels last": (
        3,
        3,
        lambda x: x.permute(0, 2, 3, 1).float() / 4,
        lambda net, x: x.permute(0, 3, 1, 2),
    ),
    "channels last, levels": (
        3,
        3,
        lambda x: x.permute(0, 2, 3, 1),
        lambda net, x: x.permute(0, 3, 1, 2).float(),
    ),
    "several channels per pixel": (3, 6, lambda x: torch.cat([x.float(), (x.float() - 2).abs()], 1), same),
    "bits": (1, 3, lambda x: torch.cat([(x // 2**i % 2) for i in range(3)], 1).float(), same),
    "doubles": (1, 1, lambda x: x.double() / 4, lambda net, x: x.float()),
    "bytes": (1, 1, lambda x: x.byte(), lambda net, x: x.float() / 255),
    "a threshold": (1, 1, lambda x: (x > 2).float(), same),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs(name):
    colours, count, to_input, first = CASES[name]
    module = Net(count, colours, first).eval()
    head = pf.heads.Categorical(LEVELS)
    sampler = pf.compile(module, shape=(colours, HEIGHT, WIDTH), head=head, to_input=to_input, order="raster")
    out = sampler.sample(3, seed=1)
    images = out.images.long()
    fed = module if to_input is None else inputs.Fed(module, to_input, LEVELS)
    with torch.no_grad():
        torch.testing.assert_close(out.log_prob, head.log_prob(fed(images), images), rtol=1e-5, atol=1e-4)
    assert sampler.verify() < 1e-4


def test_normalized_is_what_torchvision_does():
    images = torch.randint(0, 256, (2, 3, 4, 5))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    got = inputs.Fed(nn.Identity(), inputs.normalized(mean, std), 256)(images)
    columns = [(images[:, c].float() / 255 - mean[c]) / std[c] for c in range(3)]
    torch.testing.assert_close(got, torch.stack(columns, 1))
    with pytest.raises(
        ValueError, match=r"\[normalized\] mean and std must be as many, and std positive, got"
    ):
        inputs.normalized((0.1, 0.2), 0.3)
    with pytest.raises(ValueError, match=r"std positive, got \(0.1,\) and \(0,\)"):
        inputs.normalized(0.1, 0)
    with pytest.raises(ValueError, match=r"\[normalized\] 2 means for 3 colours"):
        inputs.Fed(nn.Identity(), inputs.normalized((0.1, 0.2), (1, 1)), 256)(images)
