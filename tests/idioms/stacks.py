"""Stacks of two streams, and streams that are shifted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .idiom import CLASSES


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
