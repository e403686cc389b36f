"""Multi-scale PixelRNN and PixelCNN: a small image, enlarged again and again (van den Oord et al. 2016a, section 3.6,
https://arxiv.org/abs/1601.06759)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .base import AutoregressiveModel
from .pixelcnn import PixelCNN
from .pixelrnn import DiagonalBiLSTM, RowLSTM

_STAGES: dict[str, type[PixelCNN | RowLSTM | DiagonalBiLSTM]] = {
    kind.__name__: kind for kind in (DiagonalBiLSTM, PixelCNN, RowLSTM)
}


class MultiScale(AutoregressiveModel):
    """Multi-scale model: an unconditional model of small images, then conditional ones of twice the size each.

    A small image is every other pixel of every other row of the next larger one, whose model draws the others in raster
    order, given all of the small one: deconvolutions make a map of it, from which 1x1 convolutions make biases of each
    layer. So the distribution of an image is that of all of its pixels, each at the scale at which it is drawn.

    Args:
        model: "DiagonalBiLSTM", "RowLSTM" or "PixelCNN", at every scale.
        scales: how often the size is doubled, at least 1.
        channels: colours of a pixel.
        levels: values that a sub-pixel can take.
        hidden, layers, kernel: of each model.
        context: channels of the maps that are made of small images.
        classes: number of classes to condition on, or None.
        head: "categorical", or "bernoulli" for two levels.

    Attributes:
        first: the model of the smallest images. stages: those of larger ones, `Stage`.

    Raises:
        TypeError: for a number that is no integer.
        ValueError: for an argument out of range.

    `pixelfast.compile` makes a `Cascade` of it: a sampler of all scales. The paper draws the known pixels again, too;
    here they are kept, so that probabilities sum to one.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu 2016a, section 3.6.
    """

    def __init__(
        self,
        *,
        model: str = "DiagonalBiLSTM",
        scales: int = 1,
        channels: int = 1,
        levels: int = 256,
        hidden: int = 16,
        layers: int = 4,
        kernel: int = 7,
        context: int = 32,
        classes: int | None = None,
        head: str = "categorical",
    ) -> None:
        if model not in _STAGES:
            raise ValueError(f"[MultiScale] model must be one of {', '.join(_STAGES)}, got {model!r}")
        super().__init__(
            channels=channels,
            levels=levels,
            scales=scales,
            hidden=hidden,
            layers=layers,
            kernel=kernel,
            context=context,
            classes=classes,
            head=head,
        )
        self.config["model"] = model
        options: dict[str, Any] = {
            "channels": channels,
            "levels": levels,
            "hidden": hidden,
            "layers": layers,
            "kernel": kernel,
            "classes": classes,
            "head": head,
        }
        self.first = _STAGES[model](**options)
        self.stages = nn.ModuleList(Stage(_STAGES[model], context, options) for _ in range(scales))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the head's parameters for every sub-pixel, each of the scale at which it is drawn.

        images, labels, returns, raises: as for other models.
        """
        self._check(images, labels, type(self).__name__)
        small, *larger = self.pyramid(images)
        params = self.first(small, labels)
        for stage, image in zip(self.stages, larger, strict=True):
            found = stage(image, small, labels).clone()
            found[..., ::2, ::2] = params
            small, params = image, found
        return params

    def pyramid(self, images: Tensor) -> Iterator[Tensor]:
        """Yield images (N, C, H, W) at every scale, the smallest first."""
        for i in reversed(range(len(self.stages) + 1)):
            yield images[:, :, :: 2**i, :: 2**i]


class Stage(nn.Module):
    """A model of images, given every other pixel of every other row."""

    def __init__(
        self, kind: type[PixelCNN | RowLSTM | DiagonalBiLSTM], context: int, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model = kind(**options, context=context)
        self.head, self.channels, self.classes = self.model.head, self.model.channels, self.model.classes
        self.grow = nn.Sequential(
            nn.Conv2d(self.channels, context, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(context, context, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(context, context, 4, stride=2, padding=1),
            nn.ReLU(),
        )

    def forward(self, images: Tensor, small: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the head's parameters for every sub-pixel of `images`, whose known pixels are `small`.

        Args:
            images: uint8 or int64 (N, C, H, W).
            small: of the same dtype, (N, C, ceil(H / 2), ceil(W / 2)).
            labels: int64 (N,), iff the model has classes.
        """
        height, width = images.shape[2:]
        context = self.grow(self.model.scale(small))[:, :, :height, :width]
        params = self.model.network(self.model.scale(images), labels, context)
        return self.head.shape(params, self.channels)
