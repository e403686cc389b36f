"""Autoregressive models in the manner of public repositories, one for each way to write one, and broken variants.

Nothing here is the code of others; the ways are. Every module takes `broken`, None or a mistake that somebody makes
sooner or later, by name; a broken module looks at what is not drawn yet.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast.inputs import Fed

CLASSES = 3


@dataclass(frozen=True)
class Idiom:
    """A kind of module: how to make one, how it is compiled, and what is expected of it."""

    make: Callable[[str | None], nn.Module]  # of None, or of one of `broken`
    broken: tuple[str, ...]
    shape: tuple[int, int, int]
    head: pf.heads.Head
    to_input: Callable[[Tensor], Tensor] | None = None
    classes: int | None = None  # forward takes labels
    _: KW_ONLY
    skew: int  # of the smallest wavefront, as its author would say
    last: str = "last"  # the submodule that yields logits
    spread: float = 2.0  # the standard deviation of what it yields

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `pixelfast.compile`."""
        conditions = {"labels": torch.int64} if self.classes else {}
        return {"shape": self.shape, "head": self.head, "to_input": self.to_input, "conditions": conditions}

    def labels(self, n: int, first: int = 0) -> dict[str, Tensor]:
        """Forward's further arguments, for images first .. first+n-1."""
        return {"labels": torch.arange(first, first + n) % self.classes} if self.classes else {}

    def images(self, n: int, seed: int = 3) -> Tensor:
        """Random levels, int64 (N, C, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.head.levels, (n, *self.shape), generator=generator)

    def build(self, broken: str | None = None) -> nn.Module:
        """Make the module as if it were trained: loud, with weights under the masks, and with statistics.

        Its forward has not run, so masks that forward applies have not been applied.
        """
        module = self._perturbed(broken)
        with torch.no_grad():
            # a twin runs, since forward may write to the weights
            output = self._run(self._perturbed(broken).double().eval(), self.images(8), self.labels(8))
            if isinstance(self.head, pf.heads.Bernoulli) and output.min() >= 0 and output.max() <= 1:
                output = torch.logit(output)
            factor = self.spread / max(output.std().item(), 0.1)
            for name, p in module.get_submodule(self.last).named_parameters():
                if p.requires_grad and not name.endswith(
                    ("weight_v", "original1")
                ):  # directions have no length
                    p.mul_(factor)
        return module

    def exact(self, module: nn.Module, images: Tensor, labels: dict[str, Tensor], head: Any = None) -> Tensor:
        """float64 (N, levels, C, H, W): log probabilities, as the module itself computes them when in float64."""
        head = self.head if head is None else head
        with torch.no_grad():
            return head.logits(self._run(module, images, labels), images).log_softmax(1)

    def _perturbed(self, broken: str | None) -> nn.Module:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old weight norm is deprecated
            module = self.make(broken)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in (p for p in module.parameters() if p.requires_grad):
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
                if name.endswith("running_var"):
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        return module

    def _run(self, module: nn.Module, images: Tensor, labels: dict[str, Tensor]) -> Tensor:
        x = images
        if self.to_input is not None:
            x = Fed(module, self.to_input, self.head.levels).to_input(images).double()
        return module(x, **labels)


def double(idiom: Idiom, broken: str | None = None) -> nn.Module:
    """The module of `Idiom.build`, in float64, for inference."""
    return idiom.build(broken).double().eval()


# --- masks of convolutions --------------------------------------------------------------------------------


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


# --- stacks -----------------------------------------------------------------------------------------------


class CroppedGates(nn.Module):
    """Even kernels, padded on both sides and cropped; the first layer's last taps are set to zero in forward."""

    def __init__(self, kind: str, dim: int, size: int, residual: bool, broken: str | None) -> None:
        super().__init__()
        self.kind, self.residual, self.broken = kind, residual, broken
        self.class_embedding = nn.Embedding(CLASSES, 2 * dim)
        self.vert = nn.Conv2d(dim, 2 * dim, (size // 2 + 1, size), 1, (size // 2, size // 2))
        self.vert_to_horiz = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.horiz = nn.Conv2d(dim, 2 * dim, (1, size // 2 + 1), 1, (0, size // 2))
        self.horiz_resid = nn.Conv2d(dim, dim, 1)

    def gate(self, x: Tensor) -> Tensor:
        x, y = x.chunk(2, dim=1)
        return torch.tanh(x) * torch.sigmoid(y)

    def make_causal(self) -> None:
        if self.broken != "rows are not made causal":
            self.vert.weight.data[:, :, -1].zero_()
        if self.broken != "columns are not made causal":
            self.horiz.weight.data[:, :, :, -1].zero_()

    def forward(self, v: Tensor, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "A":
            self.make_causal()
        bias = self.class_embedding(labels)[:, :, None, None]
        h_vert = self.vert(v)
        cut = self.broken == "crop on the wrong side"
        h_vert = h_vert[:, :, -v.size(-1) :, :] if cut else h_vert[:, :, : v.size(-1), :]
        out_v = self.gate(h_vert + bias)
        h_horiz = self.horiz(h)[:, :, :, : h.size(-2)]
        out = self.gate(self.vert_to_horiz(h_vert) + h_horiz + bias)
        out = self.horiz_resid(out)
        return out_v, out + h if self.residual else out


class CroppedStacks(nn.Module):
    """Vertical and horizontal stacks of square images (of codes, say), embedded."""

    def __init__(self, broken: str | None, levels: int = 5, dim: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(levels, dim)
        self.layers = nn.ModuleList(
            [
                CroppedGates("A", dim, 5, False, broken),
                CroppedGates("B", dim, 3, True, broken),
            ]
        )
        self.last = nn.Sequential(nn.Conv2d(dim, 8, 1), nn.ReLU(True), nn.Conv2d(8, levels, 1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = x.squeeze(1)
        shape = (*x.size(), -1)
        x = self.embedding(x.view(-1)).view(shape)
        x = x.permute(0, 3, 1, 2)
        v, h = x, x
        for layer in self.layers:
            v, h = layer(v, h, labels)
        return self.last(h)


class MaskedStacks(nn.Module):
    """Gated stacks by masks, dilated, with class-conditional biases."""

    class Masked(nn.Module):
        def __init__(self, c_in: int, c_out: int, mask: Tensor, dilation: int = 1) -> None:
            super().__init__()
            padding = tuple(dilation * (size - 1) // 2 for size in mask.shape)
            self.conv = nn.Conv2d(c_in, c_out, tuple(mask.shape), padding=padding, dilation=dilation)
            self.register_buffer("mask", mask[None, None])

        def forward(self, x: Tensor) -> Tensor:
            self.conv.weight.data *= self.mask
            return self.conv(x)

    class Layer(nn.Module):
        def __init__(self, c: int, dilation: int, mixed: bool) -> None:
            super().__init__()
            vertical = torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 0, 0]])
            self.vert = MaskedStacks.Masked(c, 2 * c, vertical, dilation)
            self.horiz = MaskedStacks.Masked(c, 2 * c, torch.tensor([[1.0, 1, 0]]), dilation)
            self.vert_to_horiz = nn.Conv2d(2 * c, 2 * c, 1)
            self.horiz_1x1 = nn.Conv2d(c, c, 1)
            self.label = nn.Linear(CLASSES, 2 * c, bias=False)
            self.mixed = mixed

        def forward(self, v: Tensor, h: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            bias = self.label(label).unsqueeze(-1).unsqueeze(-1)
            features = self.vert(v + h if self.mixed else v)
            value, gate = (features + bias).chunk(2, dim=1)
            v_out = torch.tanh(value) * torch.sigmoid(gate)
            value, gate = (self.horiz(h) + self.vert_to_horiz(features) + bias).chunk(2, dim=1)
            return v_out, self.horiz_1x1(torch.tanh(value) * torch.sigmoid(gate)) + h

    def __init__(self, broken: str | None, c: int = 4) -> None:
        super().__init__()
        own = float(broken == "vertical stack sees its row")
        vertical = torch.tensor([[1.0, 1, 1], [own, own, own], [0, 0, 0]])
        horizontal = torch.tensor([[1.0, float(broken == "horizontal stack sees its pixel"), 0]])
        self.vert, self.horiz = self.Masked(1, c, vertical), self.Masked(1, c, horizontal)
        mixed = broken == "horizontal flows into vertical"
        self.layers = nn.ModuleList([self.Layer(c, d, mixed) for d in (1, 2)])
        self.last = nn.Conv2d(c, 4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        label = F.one_hot(labels, CLASSES).to(x.dtype)
        v, h = self.vert(x), self.horiz(x)
        for layer in self.layers:
            v, h = layer(v, h, label)
        out = self.last(F.elu(h))
        return out.reshape(out.shape[0], 4, out.shape[1] // 4, out.shape[2], out.shape[3])


def down_shift(x: Tensor) -> Tensor:
    x = x[:, :, : x.size(2) - 1, :]
    return nn.ZeroPad2d((0, 0, 1, 0))(x)


def right_shift(x: Tensor) -> Tensor:
    x = x[:, :, :, : x.size(3) - 1]
    return nn.ZeroPad2d((1, 0, 0, 0))(x)


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


class DownShifted(nn.Module):
    """A convolution of rows above, by padding."""

    def __init__(
        self, c_in: int, c_out: int, wn: Callable, size=(2, 3), stride=1, shift=None, below=False
    ) -> None:
        super().__init__()
        side = (size[1] - 1) // 2
        self.pad = nn.ZeroPad2d((side, side, 0, size[0] - 1) if below else (side, side, size[0] - 1, 0))
        self.conv, self.shift = wn(nn.Conv2d(c_in, c_out, size, stride)), shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        return x if self.shift is None else self.shift(x)


class DownRightShifted(nn.Module):
    """A convolution of rows above and columns to the left."""

    def __init__(self, c_in: int, c_out: int, wn: Callable, size=(2, 2), stride=1, shift=None) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((size[1] - 1, 0, size[0] - 1, 0))
        self.conv, self.shift = wn(nn.Conv2d(c_in, c_out, size, stride)), shift

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pad(x))
        return x if self.shift is None else self.shift(x)


class Deconvolution(nn.Module):
    """Twice as many rows and columns, cropped."""

    def __init__(self, width: int, wn: Callable, size: tuple[int, int], down: bool, wrong=False) -> None:
        super().__init__()
        self.size, self.down, self.wrong = size, down, wrong
        self.conv = wn(nn.ConvTranspose2d(width, width, size, 2, output_padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        height, width, (h, w) = x.size(2), x.size(3), self.size
        x = x[:, :, h - 1 :] if self.wrong else x[:, :, : height - h + 1]
        if self.down:
            return x[:, :, :, (w - 1) // 2 : width - (w - 1) // 2]
        return x[:, :, :, : width - w + 1]


class NetworkInNetwork(nn.Module):
    """A linear layer at every pixel."""

    def __init__(self, c_in: int, c_out: int, wn: Callable) -> None:
        super().__init__()
        self.lin, self.c_out = wn(nn.Linear(c_in, c_out)), c_out

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        shape = list(x.size())
        out = self.lin(x.contiguous().view(shape[0] * shape[1] * shape[2], shape[3]))
        shape[-1] = self.c_out
        return out.view(shape).permute(0, 3, 1, 2)


class GatedResnet(nn.Module):
    """Two convolutions of both signs, a gate, and a way in for another stream."""

    def __init__(self, width: int, conv: Callable, wn: Callable, skip: int = 0) -> None:
        super().__init__()
        self.conv_input, self.conv_out = conv(2 * width, width, wn), conv(2 * width, 2 * width, wn)
        self.dropout = nn.Dropout2d(0.5)
        self.skip = NetworkInNetwork(2 * skip * width, width, wn) if skip else None

    def forward(self, original: Tensor, a: Tensor | None = None) -> Tensor:
        x = self.conv_input(concat_elu(original))
        if a is not None:
            x += self.skip(concat_elu(a))
        x = self.conv_out(self.dropout(concat_elu(x)))
        a, b = torch.chunk(x, 2, dim=1)
        return original + a * torch.sigmoid(b)


class ShiftedStreams(nn.Module):
    """Two streams after Salimans et al. 2017, at full size, or down by a stride of two and up again with skips."""

    def __init__(self, broken: str | None, colours: int, outputs: int, wn: Callable, strided: bool) -> None:
        super().__init__()
        f, c = 4, colours + 1
        down = None if broken == "no shift down" else down_shift
        right = None if broken == "no shift right" else right_shift
        self.u_init = DownShifted(c, f, wn, (2, 3), shift=down, below=broken == "padded below")
        self.ul_init = nn.ModuleList([
            DownShifted(c, f, wn, (1, 3), shift=down_shift), DownRightShifted(c, f, wn, (2, 1), shift=right)
        ])  # fmt: skip
        self.u, self.ul = GatedResnet(f, DownShifted, wn), GatedResnet(f, DownRightShifted, wn, skip=1)
        self.strided = strided
        if strided:
            self.u_down = DownShifted(f, f, wn, stride=2, below=broken == "stride padded below")
            self.ul_down = DownRightShifted(f, f, wn, stride=2)
            self.u_low = GatedResnet(f, DownShifted, wn, skip=1)
            self.ul_low = GatedResnet(f, DownRightShifted, wn, skip=2)
            wrong = broken == "cropped on the wrong side"
            self.u_up = Deconvolution(f, wn, (2, 3), True, wrong)
            self.ul_up = Deconvolution(f, wn, (2, 2), False)
            self.u_high = GatedResnet(f, DownShifted, wn, skip=1)
            self.ul_high = GatedResnet(f, DownRightShifted, wn, skip=2)
        self.last = NetworkInNetwork(f, outputs, wn)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = torch.cat((x, torch.ones(n, 1, h, w, dtype=x.dtype)), 1)
        u, ul = self.u_init(x), self.ul_init[0](x) + self.ul_init[1](x)
        u = self.u(u)
        ul = self.ul(ul, a=u)
        if self.strided:
            low_u, low_ul = self.u_down(u), self.ul_down(ul)
            up_u = self.u_low(low_u, a=low_u)
            up_ul = self.ul_low(low_ul, a=torch.cat((up_u, low_ul), 1))
            up_u, up_ul = self.u_up(up_u), self.ul_up(up_ul)
            u_ = self.u_high(up_u, a=u)
            ul = self.ul_high(up_ul, a=torch.cat((u_, ul), 1))
        return self.last(F.elu(ul))


class ShiftByCat(nn.Module):
    """Shifts by a row, or a column, of zeros before the others."""

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.broken = broken
        self.above, self.left = nn.Conv2d(1, 6, (1, 3), padding=(0, 1)), nn.Conv2d(1, 6, 1)
        self.more, self.last = nn.Conv2d(6, 6, (2, 1)), nn.Conv2d(6, 5, 1)

    def down(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x[:, :, :1])
        if self.broken == "shift up":
            return torch.cat([x[:, :, 1:], zeros], 2)
        return torch.cat([zeros, x[:, :, :-1]], 2)

    def right(self, x: Tensor) -> Tensor:
        if self.broken == "no shift right":
            return x
        return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.down(self.above(x)) + self.right(self.left(x)))
        x = torch.cat([torch.zeros(x.shape[0], 6, 1, x.shape[3], dtype=x.dtype), x], 2)
        return self.last(F.elu(self.more(x)))


# --- channels last ----------------------------------------------------------------------------------------


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


# --- sequences --------------------------------------------------------------------------------------------


class Waves(nn.Module):
    """Causal convolutions over flattened pixels, padded on both sides and chomped, gated, with skips."""

    class Layer(nn.Module):
        def __init__(self, width: int, dilation: int, broken: str | None) -> None:
            super().__init__()
            self.broken, self.extra = broken, dilation
            same = broken == "same padding"
            self.conv = nn.Conv1d(width, 2 * width, 3 if same else 2, padding=dilation, dilation=dilation)
            self.same = same
            self.res, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            if self.broken == "chomped on the left":
                y = y[:, :, self.extra :]
            elif not self.same:
                y = y[:, :, : -self.extra]
            a, b = y.chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            return x + self.res(y), self.skip(y)

    def __init__(self, broken: str | None) -> None:
        super().__init__()
        self.shift = broken != "tokens are not shifted"
        self.first = nn.Conv1d(1, 6, 2)
        self.layers = nn.ModuleList([self.Layer(6, d, broken) for d in (1, 2, 4)])
        self.last = nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), 1, -1)
        if self.shift:
            x = F.pad(x, (1, 0))[:, :, :-1]
        x = self.first(F.pad(x, (1, 0)))
        total = 0.0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.last(F.relu(total))


class FilledAttention(nn.Module):
    """Scores are filled with minus infinity by a mask that is a buffer."""

    def __init__(self, width: int, heads: int, length: int, late: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(length, length), late).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        k = self.key(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        q = self.query(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = self.value(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Filled(nn.Module):
    """A transformer over tokens, of which the first is a start token that the vocabulary has one more for."""

    class Block(nn.Module):
        def __init__(self, width: int, length: int, late: int) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = FilledAttention(width, 2, length, late)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.ln1(x))
            return x + self.mlp(self.ln2(x))

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.start, self.broken = levels, broken
        self.tok_emb = nn.Embedding(levels + 1, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, length, width))
        late = {"mask off by one": 1, "forgotten mask": length}.get(broken or "", 0)
        self.blocks = nn.Sequential(self.Block(width, length, late), self.Block(width, length, 0))
        self.ln_f, self.last = nn.LayerNorm(width), nn.Linear(width, levels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        idx = images.flatten(1)
        b, t = idx.size()
        if self.broken != "tokens are not shifted":
            start = torch.full((b, 1), self.start, dtype=torch.long)
            idx = torch.cat([start, idx[:, :-1]], dim=1)
        x = self.tok_emb(idx) + self.pos_emb[:, :t]
        return self.last(self.ln_f(self.blocks(x)))


class Conv1D(nn.Module):
    """A linear layer with its weights the other way round."""

    def __init__(self, c_out: int, c_in: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.weight, self.bias = (
            nn.Parameter(0.4 * torch.randn(c_in, c_out)),
            nn.Parameter(torch.zeros(c_out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.c_out)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class Added(nn.Module):
    """A transformer whose mask is added to the scores, with norms and activations spelled out, and a learned start."""

    class Norm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.g, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

        def forward(self, x: Tensor) -> Tensor:
            u = x.mean(-1, keepdim=True)
            s = (x - u).pow(2).mean(-1, keepdim=True)
            return self.g * ((x - u) / torch.sqrt(s + 1e-5)) + self.b

    class Block(nn.Module):
        def __init__(self, width: int, late: int) -> None:
            super().__init__()
            self.late = late
            self.ln_1, self.ln_2 = Added.Norm(width), Added.Norm(width)
            self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
            self.c_fc, self.c_out = Conv1D(4 * width, width), Conv1D(width, 4 * width)

        def split(self, x: Tensor) -> Tensor:
            return x.view(*x.size()[:-1], 2, x.size(-1) // 2).permute(0, 2, 1, 3)

        def attend(self, x: Tensor) -> Tensor:
            q, k, v = (self.split(t) for t in self.c_attn(x).split(x.size(-1), dim=2))
            w = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(v.size(-1))
            n = w.size(-1)
            b = torch.tril(torch.ones(n, n, dtype=w.dtype), self.late).view(1, 1, n, n)
            w = w * b - 1e10 * (1 - b)
            a = torch.matmul(nn.Softmax(dim=-1)(w), v).permute(0, 2, 1, 3).contiguous()
            return self.c_proj(a.view(*a.size()[:-2], a.size(-2) * a.size(-1)))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(self.ln_1(x))
            y = self.c_fc(self.ln_2(x))
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * torch.pow(y, 3))))
            return x + self.c_out(y)

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.broken = broken
        self.wte, self.wpe = nn.Embedding(levels, width), nn.Embedding(length, width)
        self.sos = nn.Parameter(torch.zeros(width))
        late = {"mask off by one": 1, "forgotten mask": length}.get(broken or "", 0)
        self.blocks = nn.ModuleList([self.Block(width, 0), self.Block(width, late)])
        self.ln_f, self.last = self.Norm(width), nn.Linear(width, levels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.wte(images.reshape(images.size(0), -1))
        if self.broken != "tokens are not shifted":
            x = torch.cat([self.sos.expand(x.size(0), 1, -1), x[:, :-1]], dim=1)
        x = x + self.wpe(torch.arange(x.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.last(self.ln_f(x))


class Fused(nn.Module):
    """PyTorch's fused attention over the colours of the pixels, one after another, without norms."""

    class Attention(nn.Module):
        def __init__(self, width: int, causal: bool) -> None:
            super().__init__()
            self.causal = causal
            self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            b, t, c = x.size()
            q, k, v = self.c_attn(x).split(c, dim=2)
            q, k, v = (a.view(b, t, 2, c // 2).transpose(1, 2) for a in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=self.causal)
            return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

    def __init__(self, broken: str | None, levels: int = 5, length: int = 18, width: int = 6) -> None:
        super().__init__()
        self.broken = broken
        self.wte, self.wpe = nn.Embedding(levels, width), nn.Parameter(torch.zeros(length, width))
        self.attn = nn.ModuleList(
            [self.Attention(width, True), self.Attention(width, broken != "not causal")]
        )
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in "12"]
        )
        self.last = nn.Linear(width, levels)

    def forward(self, images: Tensor) -> Tensor:
        n, c, h, w = images.shape
        x = self.wte(images.permute(0, 2, 3, 1).reshape(n, -1))
        if self.broken != "tokens are not shifted":
            x = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x = x + self.wpe
        for attn, mlp in zip(self.attn, self.mlp, strict=True):
            x = x + attn(x)
            x = x + mlp(x)
        x = self.last(x).view(n, h, w, c, -1)
        return x.flip(3) if self.broken == "colours reversed" else x


class Encoder(nn.Module):
    """PyTorch's own encoder with a mask of minus infinities."""

    def __init__(self, broken: str | None, levels: int = 5, length: int = 12, width: int = 6) -> None:
        super().__init__()
        self.start, self.broken = levels, broken
        self.embed, self.pos = nn.Embedding(levels + 1, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 2, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), enable_nested_tensor=False)
        mask = torch.triu(
            torch.full((length, length), float("-inf")), 2 if broken == "mask off by one" else 1
        )
        self.register_buffer("mask", mask)
        self.last = nn.Linear(width, levels)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        if self.broken != "tokens are not shifted":
            x = F.pad(x[:, :-1], (1, 0), value=self.start)
        x = self.embed(x) + self.pos.weight
        x = self.encoder(x, mask=None if self.broken == "forgotten mask" else self.mask.to(x.dtype))
        return self.last(x).transpose(1, 2)


class Snail(nn.Module):
    """Convolutions with one look back at all earlier pixels; the first pixel's weights are NaN, filled with zeros."""

    def __init__(self, broken: str | None, height: int = 3, width: int = 4) -> None:
        super().__init__()
        self.broken = broken
        self.first = MaskedByProduct("A", 1, 4, 3)
        self.query, self.key, self.value = (nn.Conv2d(c, 4, 1) for c in (4, 5, 5))
        self.proj, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        late = {"mask with its diagonal": 0, "mask off by one": 1}.get(broken or "", -1)
        self.register_buffer("mask", torch.ones(height * width, height * width).tril(late))

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.first(x))
        n, _, height, width = x.shape
        q = self.query(h).flatten(2).transpose(1, 2)
        seen = torch.cat([h, x], 1)
        k, v = self.key(seen).flatten(2), self.value(seen).flatten(2).transpose(1, 2)
        scores = (q @ k / math.sqrt(4)).masked_fill(self.mask == 0, -np.inf)
        weights = F.softmax(scores, dim=-1).masked_fill(self.mask == 0, 0)
        y = (weights @ v).transpose(1, 2).view(n, -1, height, width)
        return self.last(F.elu(h + self.proj(y)))


class MaskedLinear(nn.Linear):
    """A linear layer with a mask that is set later."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        self.register_buffer("mask", torch.ones(c_out, c_in))

    def set_mask(self, mask: np.ndarray) -> None:
        self.mask.data.copy_(torch.from_numpy(mask.astype(np.uint8).T))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Made(nn.Module):
    """Masked linear layers over the flattened image (Germain et al. 2015)."""

    def __init__(self, broken: str | None, inputs: int = 12, hidden: tuple[int, ...] = (16, 16)) -> None:
        super().__init__()
        sizes = [inputs, *hidden, inputs]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [MaskedLinear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        rng = np.random.RandomState(0)
        m = [np.arange(inputs)]
        for size in hidden:
            m.append(rng.randint(m[-1].min(), inputs - 1, size=size))
        masks = [a[:, None] <= b[None, :] for a, b in itertools.pairwise(m)]
        masks.append(m[-1][:, None] < m[0][None, :])
        if broken == "outputs see their input":
            masks[-1] = m[-1][:, None] <= m[0][None, :]
        elif broken == "mask transposed":
            masks[1] = masks[1].T
        elif broken == "forgotten mask":
            masks[1][:] = True
        for layer, mask in zip(self.net[::2], masks, strict=True):
            layer.set_mask(mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.view(x.size(0), -1))


# --- all of them ------------------------------------------------------------------------------------------

Categorical, Mixture = pf.heads.Categorical, pf.heads.LogisticMixture
old_norm = torch.nn.utils.weight_norm
new_norm = torch.nn.utils.parametrizations.weight_norm
signed, unit = pf.inputs.scaled(-1, 1), pf.inputs.scaled(0, 1)

IDIOMS = {
    "mask as a factor, sigmoid": Idiom(
        Binary,
        ("centre in the first layer", "a row too many", "forgotten mask"),
        (1, 4, 5), pf.heads.Bernoulli(), pf.inputs.floats(), skew=3,
    ),
    "mask in place, sequential": Idiom(
        sequential,
        ("B in place of A", "a column too many", "wrong rows"),
        (1, 5, 4), Categorical(6), unit, skew=3, last="6",
    ),
    "colours interleaved": Idiom(
        Colours,
        ("colours reversed", "own colour", "open centre", "last layer without mask"),
        (3, 3, 4), Categorical(5, layout="n (k c) h w"), signed, skew=2,
    ),
    "colours in thirds, embedded": Idiom(
        EmbeddedColours,
        ("interleaved", "A sees its colour"),
        (3, 3, 4), Mixture(2, 8, coupled=False, layout="n (c k) h w"), skew=2, spread=0.7,
    ),
    "one-hot, dilated": Idiom(
        Dilated,
        ("centre in the first layer", "a column too many", "forgotten mask"),
        (1, 4, 5), Categorical(4), pf.inputs.one_hot(), skew=2,
    ),
    "coordinates": Idiom(
        Coordinates,
        ("centre in the first layer", "a column too many", "mask of the wrong channel"),
        (1, 4, 5), Categorical(6, layout="n k h w"), signed, skew=2,
    ),
    "depthwise": Idiom(
        Depthwise,
        ("a column too many", "forgotten mask", "the row is not cut"),
        (1, 5, 6), Categorical(4), pf.inputs.normalized(0.4, 0.3), skew=2, spread=1.2,
    ),
    "cropped stacks, embedded": Idiom(
        CroppedStacks,
        ("rows are not made causal", "columns are not made causal", "crop on the wrong side"),
        (1, 4, 4), Categorical(5), classes=CLASSES, skew=4, last="last.2",
    ),
    "masked stacks, class biases": Idiom(
        MaskedStacks,
        ("vertical stack sees its row", "horizontal stack sees its pixel", "horizontal flows into vertical"),
        (1, 4, 5), Categorical(4), signed, CLASSES, skew=5,
    ),
    "shifted streams, old weight norm": Idiom(
        functools.partial(ShiftedStreams, colours=3, outputs=20, wn=old_norm, strided=False),
        ("no shift down", "no shift right", "padded below"),
        (3, 3, 4), Mixture(2, 8), signed, skew=4, spread=0.7,
    ),
    "strided streams, new weight norm": Idiom(
        functools.partial(ShiftedStreams, colours=1, outputs=6, wn=new_norm, strided=True),
        ("no shift down", "no shift right", "stride padded below", "cropped on the wrong side"),
        (1, 4, 4), Mixture(2, 8), signed, skew=4, spread=0.7,
    ),
    "shift by cat": Idiom(
        ShiftByCat,
        ("shift up", "no shift right"),
        (1, 4, 4), Categorical(5), signed, skew=2,
    ),
    "channels last": Idiom(
        ChannelsLast,
        ("no shift", "shift to the left", "a colour sees itself"),
        (2, 3, 4), Categorical(5), unit, skew=2,
    ),
    "channels last, normed": Idiom(
        Normed,
        ("centre in the first layer", "a column too many", "forgotten mask"),
        (1, 3, 4), Categorical(5), signed, skew=2,
    ),
    "convolutions over a sequence": Idiom(
        Waves,
        ("tokens are not shifted", "same padding", "chomped on the left"),
        (1, 3, 4), Categorical(5), signed, skew=4,
    ),
    "transformer, filled scores": Idiom(
        Filled,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "transformer, added mask": Idiom(
        Added,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "transformer, fused attention": Idiom(
        Fused,
        ("tokens are not shifted", "not causal", "colours reversed"),
        (3, 2, 3), Categorical(5), skew=3,
    ),
    "transformer, PyTorch's encoder": Idiom(
        Encoder,
        ("tokens are not shifted", "mask off by one", "forgotten mask"),
        (1, 3, 4), Categorical(5), skew=4,
    ),
    "attention between convolutions": Idiom(
        Snail,
        ("mask with its diagonal", "mask off by one"),
        (1, 3, 4), Categorical(5), signed, skew=4,
    ),
    "masked linear layers": Idiom(
        Made,
        ("outputs see their input", "mask transposed", "forgotten mask"),
        (1, 3, 4), pf.heads.Bernoulli(), pf.inputs.floats(), skew=4, last="net.4",
    ),
}  # fmt: skip
