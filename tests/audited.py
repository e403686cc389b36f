"""Models that are broken in one way each, for the tests of audits. All but a few take floats in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf


class Masked(nn.Conv2d):
    """A masked convolution; `kind` is "A", "B" or None for no mask. Its colours, if several, see earlier ones."""

    def __init__(self, inputs: int, outputs: int, kernel: int, kind: str | None, colours: int = 1):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.weight.data.uniform_(0.1, 0.5)
        mask = torch.ones_like(self.weight)
        if kind is not None:
            half = kernel // 2
            mask[:, :, half + 1 :] = 0
            mask[:, :, half, half + 1 :] = 0
            of = torch.arange(outputs)[:, None] * colours // outputs
            on = torch.arange(inputs)[None] * colours // inputs
            mask[:, :, half, half] = (on < of if kind == "A" else on <= of).float()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class Net(nn.Module):
    """Causal, of two levels. Subclasses break it."""

    head = pf.heads.Bernoulli()

    def __init__(self, first: str | None = "A", second: str | None = "B", colours: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = Masked(colours, 6, 3, first, colours)
        self.second = Masked(6, 6, 3, second, colours)
        self.last = Masked(6, colours, 1, "B", colours)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(images.to(self.last.weight.dtype)))))

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(x))


class Shifted(Net):
    """Shifts by a pixel to the left where it should to the right."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 6, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.last.weight.dtype)
        return self.last(torch.tanh(self.first(x) + self.left(F.pad(x, (-1, 1)))))


class Attention(Net):
    """The first position has nothing to look at, so that it looks everywhere: a row of equal scores is uniform."""

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        flat = x.flatten(2)
        scores = flat.transpose(1, 2) @ flat
        allowed = torch.ones(h * w, h * w).tril(-1).bool()
        weights = torch.where(allowed, scores, torch.full_like(scores, -1e9)).softmax(-1)
        return (weights @ flat.transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)


class Norm(Net):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6, **options)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(super().middle(x))


class Grouped(Net):
    """Normalises over the whole image, as group norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 6)

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(self.norm(x))


class Dropped(Net):
    """Has a layer of dropout, and one that is always on."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.drop, self.always = nn.Dropout(0.5), always

    def middle(self, x: Tensor) -> Tensor:
        x = self.drop(super().middle(x))
        return F.dropout(x, 0.3, training=True) if self.always else x


class Square(Net):
    """Adds positions of a fixed size, transposed: only square images of that size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(6, side, side))

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x) + self.places


class Squeezes(Net):
    """Loses the axis of a batch of one."""

    def forward(self, images: Tensor) -> Tensor:
        out = super().forward(images).squeeze()
        assert out.ndim >= 3, "where is the batch?"
        return out


class Keeps(Net):
    """Keeps a tensor for the batch that it saw first."""

    ones: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        if self.ones is None:
            self.ones = torch.ones(len(x), 6, 1, 1)
        assert len(x) == len(self.ones), "another batch"
        return super().middle(x) * self.ones.to(x.dtype)


class Noisy(Net):
    """Adds noise, in eval mode too."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    def __init__(self) -> None:
        super().__init__()
        self.noise = self.Noise()

    def middle(self, x: Tensor) -> Tensor:
        return self.noise(x)


class Sorted(Net):
    """An op that is not planned, of each position by itself."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x).sort(1).values


class Branching(Net):
    """Control flow on values: cannot be exported."""

    def middle(self, x: Tensor) -> Tensor:
        x = super().middle(x)
        return x * 2 if x.double().sum() > 1e9 else x


class Embeds(nn.Module):
    """Says nothing about its output; takes levels, sees the pixel above."""

    def __init__(self, colours: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.levels = nn.Embedding(256, 4)
        self.mix = nn.Conv2d(4 * colours, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.levels(images).permute(0, 1, 4, 2, 3).flatten(1, 2)
        return self.mix(F.pad(x, (0, 0, 1, -1)))


class Floats(nn.Module):
    """Says nothing about its output; takes floats, sees the pixel above."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(3, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.pad(x, (0, 0, 1, -1)))


def net() -> nn.Module:
    return Net()


def leaking() -> nn.Module:
    return Net(first=None)


def labelled() -> nn.Module:
    """With a class label, and two outputs."""

    class Labelled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.of_label = nn.Embedding(3, 6)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            assert x.is_floating_point()
            h = torch.tanh(self.first(x) + self.of_label(labels)[:, :, None, None])
            return {"loss": h.mean(), "logits": self.last(h)}

    return Labelled()
