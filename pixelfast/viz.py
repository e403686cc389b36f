"""Pictures of samples: grids of images, with Pillow alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ._files import replacing

if TYPE_CHECKING:
    import torch

_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)
_GAP = 2  # pixels of the picture between two images
_FONT_SIZE = 14
_FIELD = {  # of a receptive field's picture: a character of its text, its colour, what it is
    "#": ((66, 122, 196), "seen"),
    "o": ((250, 196, 178), "blind spot"),
    ".": ((226, 228, 232), "before, out of reach"),
    " ": (_BACKGROUND, "not drawn yet"),
    "!": ((202, 32, 32), "seen too early: a leak"),
    "?": ((252, 240, 190), "not measured"),
    "@": (_INK, "the pixel"),
}


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

    font = ImageFont.load_default(_FONT_SIZE)
    margin = 0
    if titles is not None:
        margin = max(math.ceil(font.getlength(title)) for title in titles) + 4 * _GAP
    step_y, step_x = height * scale + _GAP, width * scale + _GAP
    picture = Image.new("RGB", (margin + columns * step_x + _GAP, rows * step_y + _GAP), _BACKGROUND)
    for i in range(n):
        y, x = divmod(i, columns)
        tile = Image.fromarray(np.ascontiguousarray(pixels[i]))
        picture.paste(tile, (margin + _GAP + x * step_x, _GAP + y * step_y))
    if titles is not None:
        draw = ImageDraw.Draw(picture)
        for y, title in enumerate(titles):
            centre = _GAP + y * step_y + height * scale // 2
            draw.text((margin - 2 * _GAP, centre), title, fill=_INK, font=font, anchor="rm")
    return picture


def field(rows: Sequence[str], *, scale: int | None = None) -> Image.Image:
    """Draw a receptive field as an RGB picture with a legend.

    rows: strings, one per row of pixels, of "@" (the pixel), "#" (what it sees), "o" (its blind spot, hatched), "."
        (what is before it and out of reach), " " (what is not drawn yet), "!" (what it sees too early) and
        "?" (what nobody looked at).
    scale: the side of a pixel in the picture; if None, such that the picture is about 400 pixels wide.

    Raises ValueError for rows that are not such strings of one length.
    """
    if (
        not rows
        or len({len(row) for row in rows}) != 1
        or not rows[0]
        or not set("".join(rows)) <= set(_FIELD)
    ):
        raise ValueError(f"[field] rows must be strings of one length, of {''.join(_FIELD)!r}, got {rows!r}")
    scale = max(4, round(400 / len(rows[0]))) if scale is None else scale
    if scale < 1:
        raise ValueError(f"[field] scale must be at least 1, got {scale}")
    font = ImageFont.load_default(_FONT_SIZE)
    named = [(c, name) for c, (_, name) in _FIELD.items() if any(c in row for row in rows)]
    line = _FONT_SIZE + 2 * _GAP
    legend = max(math.ceil(font.getlength(name)) for _, name in named) + line + 4 * _GAP
    width, height = len(rows[0]) * scale, len(rows) * scale
    picture = Image.new(
        "RGB", (max(width, legend) + 2 * _GAP, height + 4 * _GAP + len(named) * line), _BACKGROUND
    )
    draw = ImageDraw.Draw(picture)
    for y, row in enumerate(rows):
        for x, c in enumerate(row):
            _cell(draw, c, _GAP + x * scale, _GAP + y * scale, scale)
    draw.rectangle((_GAP - 1, _GAP - 1, _GAP + width, _GAP + height), outline=_INK)
    for i, (c, name) in enumerate(named):
        top = height + 3 * _GAP + i * line
        _cell(draw, c, _GAP, top, _FONT_SIZE)
        draw.rectangle((_GAP, top, _GAP + _FONT_SIZE - 1, top + _FONT_SIZE - 1), outline=_INK)
        draw.text((_GAP + line, top + _FONT_SIZE // 2), name, fill=_INK, font=font, anchor="lm")
    return picture


def _cell(draw: ImageDraw.ImageDraw, c: str, left: int, top: int, side: int) -> None:
    gap = 1 if side > 4 else 0
    right, bottom = left + side - 1 - gap, top + side - 1 - gap
    draw.rectangle((left, top, right, bottom), fill=_FIELD[c][0])
    if c == "o" and side > 4:
        draw.line((left, bottom, right, top), fill=_FIELD["!"][0])


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
