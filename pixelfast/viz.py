"""Pictures, with Pillow alone: grids of samples, and what pixels see."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ._files import replacing
from ._pictures import field, kBackground, kFontSize, kGap, kInk, receptive_field, receptive_fields

if TYPE_CHECKING:
    import torch

__all__ = ["field", "grid", "receptive_field", "receptive_fields", "save_grid"]


def grid(
    images: torch.Tensor | np.ndarray,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    levels: int = 256,
    scale: int | None = None,
) -> Image.Image:
    """Draw a batch of images as one RGB picture, row by row.

    images: integers (N, C, H, W) in [0, levels), C = 1 (grey) or 3 (RGB).
    columns: images per row; as square as possible if None.
    titles: one per row of the grid, written at its left.
    levels: number of levels; they are spread over black to white, so 1 of 2 levels is white.
    scale: the side of a pixel in the picture; if None, such that an image is about 64 pixels wide.

    Raises ValueError for images of another shape, dtype or range.
    """
    array = _as_array(images)
    n, colours, height, width = array.shape
    if n == 0:
        raise ValueError("[grid] there must be at least 1 image, got 0")
    if colours not in (1, 3):
        raise ValueError(f"[grid] images must have 1 or 3 colours, got {colours}")
    if levels < 2:
        raise ValueError(f"[grid] levels must be at least 2, got {levels}")
    if array.min() < 0 or array.max() >= levels:
        raise ValueError(
            f"[grid] images must lie in [0, {levels}), got values from {array.min()} to {array.max()}"
        )
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"[grid] columns must be at least 1, got {columns}")
    scale = max(1, round(64 / width)) if scale is None else scale
    if scale < 1:
        raise ValueError(f"[grid] scale must be at least 1, got {scale}")
    rows = math.ceil(n / columns)
    if titles is not None and len(titles) != rows:
        raise ValueError(f"[grid] there must be one title per row (={rows}), got {len(titles)}")

    shades = (array.astype(np.int64) * 255 * 2 + levels - 1) // (2 * (levels - 1))  # rounded to nearest
    pixels = np.broadcast_to(shades.astype(np.uint8), (n, 3, height, width)).transpose(0, 2, 3, 1)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)

    font = ImageFont.load_default(kFontSize)
    margin = 0
    if titles is not None:
        margin = max(math.ceil(font.getlength(title)) for title in titles) + 4 * kGap
    step_y, step_x = height * scale + kGap, width * scale + kGap
    picture = Image.new("RGB", (margin + columns * step_x + kGap, rows * step_y + kGap), kBackground)
    for i in range(n):
        y, x = divmod(i, columns)
        tile = Image.fromarray(np.ascontiguousarray(pixels[i]))
        picture.paste(tile, (margin + kGap + x * step_x, kGap + y * step_y))
    if titles is not None:
        draw = ImageDraw.Draw(picture)
        for y, title in enumerate(titles):
            centre = kGap + y * step_y + height * scale // 2
            draw.text((margin - 2 * kGap, centre), title, fill=kInk, font=font, anchor="rm")
    return picture


def save_grid(images: torch.Tensor | np.ndarray, path: str | os.PathLike[str], **options: Any) -> None:
    """Write `grid(images, **options)` to `path`, whole or not at all; the suffix names the format."""
    picture = grid(images, **options)
    with replacing(path) as temporary:
        picture.save(temporary)


def _as_array(images: torch.Tensor | np.ndarray) -> np.ndarray:
    array = images if isinstance(images, np.ndarray) else images.detach().cpu().numpy()
    if array.ndim != 4:
        raise ValueError(f"[grid] images must be (N, C, H, W), got shape {tuple(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"[grid] images must be integers, got {array.dtype}")
    return array
