"""What the models share: checks, masks, log probability, saving and loading."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import heads
from .._files import replacing
from ..masked_conv import live_taps, masked_conv2d

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class AutoregressiveModel(nn.Module):
    """A model whose parameters at sub-pixel (y, x, c) depend only on the sub-pixels before it.

    The order is raster order, then colours R, G, B inside a pixel; of `MultiScale` it is that of its scales, one after
    another. A subclass passes every constructor
    argument on to this one, which keeps them in `config`, and defines `network`.

    Attributes:
        config: the constructor's arguments, which JSON can hold.
        channels, levels, classes, head: what the model is a distribution of.
        shape: (C, H, W) of the images that it was trained on, or None; saved with it.
        class_names: the names of the classes, or empty; saved with it.
        presets: the arguments of published configurations, by name.
    """

    registry: ClassVar[dict[str, type[AutoregressiveModel]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            AutoregressiveModel.registry[cls.__name__] = cls

    def __init__(
        self, *, channels: int, levels: int, classes: int | None, head: str | heads.Head, **config: Any
    ) -> None:
        super().__init__()
        name = type(self).__name__
        counts = {"channels": channels, "levels": levels, "classes": 1 if classes is None else classes}
        for key, value in (counts | config).items():
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"[{name}] {key} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"[{name}] {key} must be at least 1, got {value}")
        self.channels, self.levels, self.classes = channels, levels, classes
        given = {"channels": channels, "levels": levels, **config}
        self.config: dict[str, Any] = {key: int(value) for key, value in given.items()}
        self.config["classes"] = None if classes is None else int(classes)
        if isinstance(head, str):
            self.config["head"] = head
        self.head = heads.make_head(head, levels) if isinstance(head, str) else head
        self.shape: tuple[int, int, int] | None = None
        self.class_names: tuple[str, ...] = ()

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return a published configuration, one of `presets`, with some arguments changed.

        Raises:
            ValueError: for another name, or as the constructor.
        """
        if name not in cls.presets:
            known = (
                f"must be one of {', '.join(cls.presets)}" if cls.presets else "of this model is none known"
            )
            raise ValueError(f"[{cls.__name__}] preset {known}, got {name!r}")
        return cls(**{**cls.presets[name], **changes})

    def network(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return float (N, head.outputs(C), H, W) for scaled images x, float (N, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    def scale(self, images: Tensor) -> Tensor:
        """Map levels 0 .. levels-1 to -1 .. 1, in the dtype of the weights."""
        return images.to(next(self.parameters()).dtype) * (2 / (self.levels - 1)) - 1

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the head's parameters for every sub-pixel, teacher-forced.

        Args:
            images: uint8 or int64 (N, C, H, W) in [0, levels); values are not checked here.
            labels: int64 (N,) in [0, classes), iff the model has classes.

        Returns:
            float (N, levels, C, H, W) for a categorical head, float (N, C, H, W) for a Bernoulli head.

        Raises:
            ValueError: for a wrong shape or dtype, or labels missing or not wanted.
        """
        self._check(images, labels, type(self).__name__)
        return self.head.shape(self.network(self.scale(images), labels), self.channels)

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the log probability of each image.

        Args:
            images: uint8 or int64 (N, C, H, W) in [0, levels).
            labels: int64 (N,) in [0, classes), iff the model has classes.

        Returns:
            float (N,), in nats, differentiable with respect to the weights.

        Raises:
            ValueError: as `forward`, and for levels or labels out of range.
        """
        self._check(images, labels, "log_prob")
        if images.numel() and (images.dtype != torch.uint8 or self.levels < 256):
            _check_range("log_prob", "images", images, self.levels)
        if labels is not None and labels.numel() and self.classes is not None:
            _check_range("log_prob", "labels", labels, self.classes)
        return self.head.log_prob(self(images, labels), images)

    def initialise(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Set weights from data, before training. Does nothing where a model says nothing else.

        images, labels: as for `forward`, some hundred of them.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into the folder `path`, made if missing.

        Raises:
            OSError: if the folder cannot be written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        config: dict[str, Any] = {"model": type(self).__name__, "config": self.config}
        if self.shape is not None:
            config["shape"] = list(self.shape)
        if self.class_names:
            config["class_names"] = list(self.class_names)
        with replacing(folder / WEIGHTS) as temporary:
            save_file(weights, temporary)
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _check(self, images: Tensor, labels: Tensor | None, where: str) -> None:
        if images.dtype not in (torch.uint8, torch.int64):
            raise ValueError(f"[{where}] images must be uint8 or int64, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != self.channels:
            shape = tuple(images.shape)
            raise ValueError(f"[{where}] images must have shape (N, {self.channels}, H, W), got {shape}")
        if images.shape[2] < 1 or images.shape[3] < 1:
            raise ValueError(f"[{where}] images must have at least one pixel, got {tuple(images.shape)}")
        if self.classes is None:
            if labels is not None:
                raise ValueError(f"[{where}] the model has no classes, so it takes no labels")
            return
        if labels is None:
            raise ValueError(f"[{where}] the model has {self.classes} classes, so labels are needed")
        if labels.dtype != torch.int64:
            raise ValueError(f"[{where}] labels must be int64, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"[{where}] labels must have shape ({images.shape[0]},), got {tuple(labels.shape)}"
            )


class MaskedConv2d(nn.Module):
    """A convolution of which only the taps that the mask allows are live: `masked_conv2d` with weights of its own.

    The input is padded with zeros by `pad` (left, right, top, bottom; negative values crop), so a kernel
    holds only the rows and columns that are not wholly dead. `mask` is None where every tap is live.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        *,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        mask: Tensor | None = None,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.pad = pad
        live = float(inputs * math.prod(kernel))
        if mask is not None:
            mask = mask.expand(outputs, inputs, *kernel).contiguous()
            live = max(1.0, mask.sum().item() / outputs)
            mask = None if mask.all() else mask.bool()
        self.register_buffer("mask", mask, persistent=False)
        self.taps = None if mask is None else live_taps(mask, kernel)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel) * (gain / math.sqrt(live)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        gate: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        return masked_conv2d(
            x,
            self.weight,
            self.bias,
            mask=self.mask,
            padding=self.pad,
            taps=self.taps,
            condition=condition,
            gate=gate,
            residual=residual,
        )


def colour_mask(outputs: int, inputs: int, channels: int, *, strict: bool, halves: int = 1) -> Tensor:
    """Say which inputs of its own pixel each output may read: bool (outputs, inputs, 1, 1).

    Channel i of n belongs to colour (i * channels) // n, in each of the `halves` of the outputs. An output
    reads the inputs of earlier colours (mask A, `strict`) or of earlier colours and its own (mask B).
    Van den Oord et al. 2016a, section 3.3 and figure 2.
    """
    half = outputs // halves
    of_output = (torch.arange(half) * channels // half).repeat(halves)[:, None]
    of_input = (torch.arange(inputs) * channels // inputs)[None, :]
    return ((of_input < of_output) if strict else (of_input <= of_output))[:, :, None, None]


def check_kernel(where: str, kernel: int) -> None:
    """Raise a ValueError unless a first layer can have this kernel size."""
    if kernel < 3 or kernel % 2 == 0:
        raise ValueError(f"[{where}] kernel must be odd and at least 3, got {kernel}")


def check_hidden(where: str, hidden: int, channels: int) -> None:
    """Raise a ValueError unless every colour gets a hidden channel."""
    if hidden < channels:
        raise ValueError(f"[{where}] hidden must be at least channels (={channels}), got {hidden}")


def load(path: str | os.PathLike[str]) -> AutoregressiveModel:
    """Load the model that `AutoregressiveModel.save` wrote into the folder `path`, in eval mode, on the CPU.

    Raises:
        ValueError: if a file is missing, truncated, or not of such a model, or if a weight is not finite.
    """
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"[load] {folder} holds no {name}")
    model = _model_from(folder / CONFIG)
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of a safetensors file into a module of exactly those names and shapes.

    Raises:
        ValueError: if the file is truncated, its names or shapes differ, or a value is not finite.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"[load] {path} is truncated or no safetensors file ({error})") from error
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - weights.keys()),
        ("has unexpected", weights.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(f"[load] {path} {what} {shown}: it is not of this model")
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape:
            shapes = f"{tuple(wanted[name].shape)}, got {tuple(weight.shape)}"
            raise ValueError(f"[load] {path}: {name} must have shape {shapes}")
        if not weight.isfinite().all():
            raise ValueError(f"[load] {path}: {name} has NaN or infinite values")
    model.load_state_dict(weights)


def _model_from(path: Path) -> AutoregressiveModel:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name, config = content["model"], content["config"]
        shape, class_names = content.get("shape"), content.get("class_names", [])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"[load] {path} is not a model's config ({type(error).__name__}: {error})"
        ) from error
    if name not in AutoregressiveModel.registry:
        known = ", ".join(sorted(AutoregressiveModel.registry))
        raise ValueError(f"[load] {path}: unknown model {name!r}; known are {known}")
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
            model = AutoregressiveModel.registry[name](**config)
    except TypeError as error:
        raise ValueError(f"[load] {path}: {error}") from error
    if shape is not None:
        if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)):
            raise ValueError(f"[load] {path}: shape must be 3 numbers, got {shape!r}")
        model.shape = tuple(shape)
    model.class_names = tuple(map(str, class_names))
    return model


def _check_range(where: str, what: str, values: Tensor, limit: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise ValueError(f"[{where}] {what} must be in [0, {limit}), got values from {low} to {high}")
