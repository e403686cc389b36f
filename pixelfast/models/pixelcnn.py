"""PixelCNN: a stack of masked convolutions (van den Oord et al. 2016a, https://arxiv.org/abs/1601.06759)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import AutoregressiveModel, MaskedConv2d, check_hidden, check_kernel, colour_mask


class PixelCNN(AutoregressiveModel):
    """PixelCNN: a kernel x kernel mask A convolution, then 3x3 mask B layers with residual connections.

    Its receptive field has a blind spot to the upper right; `GatedPixelCNN` has none.

    Args:
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden: width of every layer; at least `channels`.
        layers: number of 3x3 layers.
        kernel: size of the first layer; odd, at least 3.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.
        context: channels of a map that `network` is given besides the image, or None.

    Raises:
        ValueError: for an argument out of range.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu 2016a, "Pixel recurrent neural networks", table 1.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        levels: int = 256,
        hidden: int = 64,
        layers: int = 12,
        kernel: int = 7,
        classes: int | None = None,
        head: str = "categorical",
        context: int | None = None,
    ) -> None:
        given = {} if context is None else {"context": context}
        super().__init__(
            channels=channels,
            levels=levels,
            hidden=hidden,
            layers=layers,
            kernel=kernel,
            classes=classes,
            head=head,
            **given,
        )
        check_kernel("PixelCNN", kernel)
        check_hidden("PixelCNN", hidden, channels)
        same = colour_mask(hidden, hidden, channels, strict=False)
        strict = colour_mask(hidden, channels, channels, strict=True)
        self.first = raster_conv(channels, hidden, kernel, strict)
        self.layers = nn.ModuleList(
            raster_conv(hidden, hidden, 3, same, gain=(2 / layers) ** 0.5) for _ in range(layers)
        )
        embeddings = [nn.Embedding(classes, hidden) for _ in range(layers + 1)] if classes else []
        self.embeddings = nn.ModuleList(embeddings)
        biases = [nn.Conv2d(context, hidden, 1, bias=False) for _ in range(layers + 1)] if context else []
        self.contexts = nn.ModuleList(biases)
        self.mix = MaskedConv2d(hidden, hidden, mask=same, gain=2**0.5)
        outputs = self.head.outputs(channels)
        self.last = MaskedConv2d(
            hidden, outputs, mask=colour_mask(outputs, hidden, channels, strict=False), gain=0.1
        )
        for embedding in embeddings:
            nn.init.normal_(embedding.weight, std=0.1)

    def network(self, x: Tensor, labels: Tensor | None, context: Tensor | None = None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images; `context`: float (N, context, H, W)."""
        h = self._conditioned(self.first(x), 0, labels, context)
        for i, layer in enumerate(self.layers, start=1):
            h = h + self._conditioned(layer(torch.relu(h)), i, labels, context)
        return self.last(torch.relu(self.mix(torch.relu(h))))

    def _conditioned(self, x: Tensor, i: int, labels: Tensor | None, context: Tensor | None) -> Tensor:
        if labels is not None:
            x = x + self.embeddings[i](labels)[:, :, None, None]
        return x if context is None else x + self.contexts[i](context)


def raster_conv(inputs: int, outputs: int, kernel: int, centre: Tensor, gain: float = 1.0) -> MaskedConv2d:
    """A kernel x kernel masked convolution, without the rows below the centre, which are dead."""
    half = kernel // 2
    mask = torch.ones(outputs, inputs, half + 1, kernel, dtype=torch.bool)
    mask[:, :, half, half + 1 :] = False
    mask[:, :, half, half] = centre[:, :, 0, 0]
    return MaskedConv2d(inputs, outputs, (half + 1, kernel), pad=(half, half, half, 0), mask=mask, gain=gain)
