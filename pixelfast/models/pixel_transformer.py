"""Pixel transformer: Image GPT, over pixels or over tokens that stand for clusters of colours (Chen et al. 2020,
"Generative pretraining from pixels", https://proceedings.mlr.press/v119/chen20s.html)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import AutoregressiveModel

_IMAGE_GPT: dict[str, Any] = {"channels": 1, "levels": 512, "height": 32, "width": 32}


class PixelTransformer(AutoregressiveModel):
    """Pixel transformer: each sub-pixel attends to all before it. A decoder of the kind of GPT-2.

    Its sequence is the sub-pixels in raster order, colours in order inside a pixel: height * width * channels tokens.
    It is moved on by one and begins with a learned token, of its class if there are classes. Positions are learned,
    so the size of the images is fixed.

    Args:
        channels: colours of a pixel; 1 where levels number clusters of colours.
        levels: values that a sub-pixel can take.
        height, width: of the images.
        hidden: width of the residual stream; a multiple of `heads`.
        layers: number of blocks, each of attention and of two linear layers of width 4 * hidden.
        heads: of attention.
        classes: number of classes to condition on, or None.
        dropout: probability of dropping a feature, or a weight of attention, in training.
        head: "categorical", or "bernoulli" for two levels.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    Reference: Chen et al. 2020, section 2.2, as its public code (github.com/openai/image-gpt) has it: norms have a gain
    and take no mean off, linear layers have no bias, the activation is x * sigmoid(1.702 x), input and output
    embeddings are not tied. `preset("igpt-s")`, "igpt-m" and "igpt-l" are the models of section 3.3 for 32x32 pixels,
    each of which is one of 512 clusters of colours: 76.57, 455.16 and 1362.25 million parameters.
    """

    presets: ClassVar = {
        "igpt-s": _IMAGE_GPT | {"hidden": 512, "layers": 24, "heads": 8},
        "igpt-m": _IMAGE_GPT | {"hidden": 1024, "layers": 36, "heads": 8},
        "igpt-l": _IMAGE_GPT | {"hidden": 1536, "layers": 48, "heads": 16},
    }

    def __init__(
        self,
        *,
        channels: int = 1,
        levels: int = 256,
        height: int,
        width: int,
        hidden: int = 256,
        layers: int = 12,
        heads: int = 8,
        classes: int | None = None,
        dropout: float = 0.0,
        head: str = "categorical",
    ) -> None:
        super().__init__(
            channels=channels,
            levels=levels,
            height=height,
            width=width,
            hidden=hidden,
            layers=layers,
            heads=heads,
            classes=classes,
            head=head,
        )
        if hidden % heads:
            raise ValueError(f"[PixelTransformer] hidden must be divisible by heads (={heads}), got {hidden}")
        if not 0 <= dropout < 1:
            raise ValueError(f"[PixelTransformer] dropout must be in [0, 1), got {dropout}")
        self.config["dropout"] = dropout
        self.size = (height, width)
        self.tokens = _embedding(levels, hidden)
        self.start = _embedding(classes or 1, hidden)
        self.positions = nn.Parameter(0.01 * torch.randn(height * width * channels, hidden))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Block(hidden, heads, layers, dropout) for _ in range(layers))
        self.norm = _norm(hidden)
        # Section 3.3 starts from zeros here: a network that does not look at the image, of which no plan is left.
        self.last = _linear(hidden, self.head.outputs(1), std=0.1 * hidden**-0.5)

    def scale(self, images: Tensor) -> Tensor:
        """Return levels as they are, int64: they are embedded."""
        return images.long()

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for levels x, int64 (N, C, H, W)."""
        n, channels, height, width = x.shape
        sequence = x.permute(0, 2, 3, 1).flatten(1)
        start = self.start.weight if labels is None else self.start(labels)
        h = torch.cat([start[:, None].expand(n, 1, -1), self.tokens(sequence[:, :-1])], dim=1)
        h = self.dropout(h + self.positions)
        for layer in self.layers:
            h = layer(h)
        h = self.last(self.norm(h)).view(n, height, width, channels, self.last.out_features)
        return h.flatten(3).permute(0, 3, 1, 2)

    def _check(self, images: Tensor, labels: Tensor | None, where: str) -> None:
        super()._check(images, labels, where)
        if images.shape[2:] != self.size:
            size, got = ("x".join(map(str, s)) for s in (self.size, images.shape[2:]))
            raise ValueError(f"[{where}] the model has positions for images of {size}, got {got}")


class _Block(nn.Module):
    """Causal attention, then two linear layers; each adds to the residual stream what it makes of its norm."""

    def __init__(self, hidden: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_wide = _norm(hidden), _norm(hidden)
        self.project = _linear(hidden, 3 * hidden, std=hidden**-0.5)
        self.join = _linear(hidden, hidden, std=(hidden * layers) ** -0.5)
        self.widen, self.narrow = _linear(hidden, 4 * hidden, std=0.02), _linear(4 * hidden, hidden, std=0.02)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.dropout(self.attend(self.before_attention(h)))
        return h + self.dropout(self.narrow(_quick_gelu(self.widen(self.before_wide(h)))))

    def attend(self, x: Tensor) -> Tensor:
        n, length, hidden = x.shape
        each = self.project(x).view(n, length, 3, self.heads, hidden // self.heads)
        q, k, v = each.permute(2, 0, 3, 1, 4).unbind(0)
        dropped = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropped)
        return self.join(y.transpose(1, 2).reshape(n, length, hidden))


def _quick_gelu(x: Tensor) -> Tensor:
    """Hendrycks & Gimpel 2016, section 2: the sigmoid approximation."""
    return x * torch.sigmoid(1.702 * x)


def _norm(hidden: int) -> nn.RMSNorm:
    return nn.RMSNorm(hidden, eps=1e-5)


def _embedding(count: int, hidden: int) -> nn.Embedding:
    layer = nn.Embedding(count, hidden)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def _linear(inputs: int, outputs: int, *, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer
