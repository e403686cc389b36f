"""Convolutions that are masked, in every way that there is to mask one; channels first and last."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedByProduct(nn.Conv2d):
    """The mask is a factor in forward."""

    def __init__(self, kind: str, c_in: int, c_out: int, size: int, rows: int = 0) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)
        mask = torch.ones_like(self.weight.data)
        mask[:, :, size // 2, size // 2 + (kind == "B") :] = 0
        mask[:, :, size // 2 + 1 + rows :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Residual(nn.Module):
    """The block of van den Oord et al. 2016, figure 5."""

    def __init__(self, width: int, broken: str | None) -> None:
        super().__init__()
        masked = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        if broken != "forgotten mask":
            masked = MaskedByProduct("B", width // 2, width // 2, 3, rows=int(broken == "a row too many"))
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width // 2, 1),
            nn.ReLU(),
            masked,
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Binary(nn.Module):
    """Residual blocks, up to a sigmoid."""

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.first = MaskedByProduct("B" if broken == "centre in the first layer" else "A", 1, 8, 5)
        self.blocks = nn.ModuleList([Residual(8, broken), Residual(8, None)])
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return torch.sigmoid(self.last(F.relu(x)))


class MaskedInPlace(nn.Conv2d):
    """Forward masks the weights themselves."""

    def __init__(self, kind: str, *args: Any, broken: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", self.weight.data.clone())
        _, _, h, w = self.weight.size()
        self.mask.fill_(1)
        self.mask[:, :, h // 2, w // 2 + (kind == "B") + (broken == "a column too many") :] = 0
        self.mask[:, :, h // 2 + 1 + (broken == "wrong rows") :] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def sequential(broken: str | None) -> nn.Module:
    """Masked convolutions, batch norms and rectifiers in a row."""
    kind = "B" if broken == "B in place of A" else "A"
    return nn.Sequential(
        MaskedInPlace(kind, 1, 6, 5, 1, 2, bias=False, broken=broken), nn.BatchNorm2d(6), nn.ReLU(True),
        MaskedInPlace("B", 6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.Conv2d(6, 6, 1),
    )  # fmt: skip


class ColourMasked(nn.Conv2d):
    """Channel i belongs to colour i % 3; at the centre, a colour sees the colours before it, and its own in type B."""

    def __init__(self, kind: str, c_in: int, c_out: int, size: int, broken: str | None = None) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)
        mask = np.ones((c_out, c_in, size, size), dtype=np.float32)
        centre = size // 2
        mask[:, :, centre + 1 :] = 0
        mask[:, :, centre, centre + 1 :] = 0
        for o in range(3):
            for i in range(3):
                sees = i < o or (i == o and (kind == "B" or broken == "own colour"))
                sees = i > o if broken == "colours reversed" else sees
                if not sees and broken != "open centre":
                    mask[o::3, i::3, centre, centre] = 0
        self.register_buffer("mask", torch.from_numpy(mask))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.mul(self.mask), self.bias)


class Colours(nn.Module):
    """Three colours, one after another within a pixel."""

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.first = ColourMasked("A", 3, 6, 3, broken)
        self.second = ColourMasked("B", 6, 6, 3)
        self.last = ColourMasked(
            "B", 6, 15, 1, "open centre" if broken == "last layer without mask" else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(self.second(x)) + x)


class ThirdsMasked(nn.Conv2d):
    """A third of the channels for each colour; the mask is a parameter without gradient."""

    def __init__(self, kind: str, c_in: int, c_out: int, size: int, broken: str | None = None) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)
        rows = torch.arange(size * size).view(size, size)
        mask = (rows < size * size // 2).float().repeat(c_out, c_in, 1, 1)
        of = torch.arange(3)
        out, into = of.repeat_interleave(c_out // 3), of.repeat_interleave(c_in // 3)
        if broken == "interleaved":
            into = torch.arange(c_in) % 3
        strict = kind == "A" and broken != "A sees its colour"
        mask[:, :, size // 2, size // 2] = (
            out[:, None] > into[None] if strict else out[:, None] >= into[None]
        ).float()
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(self.mask)
        return super().forward(x)


class EmbeddedColours(nn.Module):
    """An embedding for each level of each colour, and a mixture of logistics for each colour alone."""

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.register_buffer("offset", torch.arange(3).view(1, 3, 1, 1) * 8)
        self.embed = nn.Embedding(3 * 8, 2)
        self.first = ThirdsMasked("A", 6, 6, 3, broken)
        self.second = ThirdsMasked("B", 6, 9, 3, broken if broken == "interleaved" else None)
        self.last = ThirdsMasked("B", 9, 18, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images + self.offset)  # (N, 3, H, W, 2)
        x = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return self.last(F.silu(self.second(F.silu(self.first(x)))))


class Dilated(nn.Module):
    """One-hot levels, a mask that is a submodule's, dilations and a rectifier that is learned."""

    class Masked(nn.Module):
        def __init__(self, c_in: int, c_out: int, dilation: int, centre: int, masked: bool = True) -> None:
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation)
            mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
            mask[1, 1 : 1 + centre] = 1
            self.register_buffer("mask", mask if masked else torch.ones(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.conv.weight.data.mul_(self.mask)
            return self.conv(x)

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.first = self.Masked(4, 6, 1, int(broken == "centre in the first layer"))
        self.layers = nn.ModuleList(
            [
                self.Masked(6, 6, 1, 2 if broken == "a column too many" else 1),
                self.Masked(6, 6, 2, 1, masked=broken != "forgotten mask"),
            ]
        )
        self.act = nn.PReLU(6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + self.act(layer(x))
        return self.last(x).unsqueeze(2)


class Coordinates(nn.Module):
    """Channels of ones and of coordinates beside the image; the mask is the image's only."""

    def __init__(self, broken: str | None, height: int = 4, width: int = 5) -> None:
        super().__init__()
        self.swapped = broken == "mask of the wrong channel"
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([torch.ones_like(x), x, y])[None])
        self.first, self.second = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        order = torch.arange(9).view(3, 3)
        masks = torch.ones(6, 4, 3, 3), (order <= 4 + (broken == "a column too many")).float()
        masks[0][:, :1] = (order < 4 + (broken == "centre in the first layer")).float()
        self.register_buffer("a", masks[0])
        self.register_buffer("b", masks[1].expand(6, 6, 3, 3).clone())
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        x = torch.cat([grid, x] if self.swapped else [x, grid], dim=1)
        x = F.elu(F.conv2d(x, self.first.weight * self.a, self.first.bias, padding=1))
        x = F.elu(F.conv2d(x, self.second.weight * self.b, self.second.bias, padding=1))
        return self.last(x)


class Depthwise(nn.Module):
    """A convolution for each channel, then one of each pixel."""

    class Block(nn.Module):
        def __init__(self, width: int, taps: int) -> None:
            super().__init__()
            self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.point = nn.Conv2d(width, width, 1)
            self.register_buffer("mask", (torch.arange(9) < taps).view(1, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.where(self.mask, self.depth.weight, torch.zeros_like(self.depth.weight))
            y = F.conv2d(x, weight, padding=1, groups=self.depth.groups)
            return x + F.leaky_relu(self.point(y), 0.2)

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, (2, 3))
        self.above = broken != "the row is not cut"
        self.left = nn.Conv2d(1, 6, (1, 2))
        taps = {"a column too many": 6, "forgotten mask": 9}.get(broken or "", 5)
        self.blocks = nn.Sequential(self.Block(6, 5), self.Block(6, taps))
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        above = self.first(F.pad(x, (1, 1, 2, 0)))  # of the two rows above, one row more than the image has
        above = above[:, :, :h] if self.above else above[:, :, 1:]
        left = self.left(F.pad(x, (2, 0, 0, 0)))[..., :w]
        return self.last(self.blocks(F.leaky_relu(above + left, 0.2)))


class ChannelsLast(nn.Module):
    """Linear layers of shifted copies, channels last throughout; the second of two colours sees the first."""

    def __init__(self, broken: str | None, levels: int = 5) -> None:
        super().__init__()
        self.broken = broken
        self.first, self.second = nn.Linear(3 * 2, 6), nn.Linear(3 * 6, 6)
        self.one, self.last = nn.Linear(6, levels), nn.Linear(6 + 1, levels)

    def shift(self, x: Tensor, down: int, right: int) -> Tensor:
        _, h, w, _ = x.shape
        return F.pad(x, (0, 0, max(right, 0), max(-right, 0), down, 0))[
            :, :h, max(-right, 0) : w + max(-right, 0)
        ]

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        left = {"no shift": 0, "shift to the left": -1}.get(self.broken or "", 1)
        h = torch.cat([self.shift(x, 0, left), self.shift(x, 1, 0), self.shift(x, 1, -1)], dim=-1)
        h = torch.relu(self.first(h))
        h = torch.relu(self.second(torch.cat([h, self.shift(h, 0, 1), self.shift(h, 1, 0)], dim=-1)))
        known = x[..., 1:] if self.broken == "a colour sees itself" else x[..., :1]
        return torch.stack([self.one(h), self.last(torch.cat([h, known], dim=-1))], dim=3)


class Normed(nn.Module):
    """Depthwise convolution, norm over channels last, an inverted bottleneck, and a scale for each channel."""

    class Block(nn.Module):
        def __init__(self, width: int, taps: int) -> None:
            super().__init__()
            self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.register_buffer("mask", (torch.arange(9) < taps).float().view(1, 1, 3, 3))
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(torch.full((width,), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.depth.weight * self.mask, self.depth.bias, padding=1, groups=x.shape[1])
            y = self.norm(y.permute(0, 2, 3, 1))
            y = self.gamma * self.down(self.act(self.up(y)))
            return x + y.permute(0, 3, 1, 2)

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.first = MaskedByProduct("B" if broken == "centre in the first layer" else "A", 1, 6, 3)
        taps = {"a column too many": 6, "forgotten mask": 9}.get(broken or "", 5)
        self.blocks = nn.Sequential(self.Block(6, 5), self.Block(6, taps))
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.blocks(self.first(x)).permute(0, 2, 3, 1)))
