"""Pictures of what a pixel sees, and of the order in which pixels are drawn, with Pillow alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._sight import Sight
    from .conditions import Conditions
    from .heads import Head
    from .outputs import Pick

Colour = tuple[int, int, int]

kBackground = (255, 255, 255)
kInk = (40, 40, 40)
kSoft = (96, 96, 96)
kGap = 2  # pixels of the picture around a field
kFontSize = 14
kField: dict[str, tuple[Colour, str]] = {  # a character of a field's text: its colour, what it is
    "#": ((66, 122, 196), "seen"),
    "o": ((250, 196, 178), "blind spot"),
    ".": ((226, 228, 232), "before, out of reach"),
    " ": (kBackground, "not drawn yet"),
    "!": ((202, 32, 32), "seen too early: a leak"),
    "?": ((252, 240, 190), "not measured"),
    "@": (kInk, "the pixel"),
}
kStrength = ((190, 214, 237), kField["#"][0], (12, 44, 104))  # from the weakest to the strongest
kDecades = 4  # of strength that shades tell apart
kSteps = (  # from the first step to the last: viridis, which colour-blind people can read, too
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
kTogether = (240, 112, 32)  # what is drawn in the same step as the pixel
kPanel, kPanels = 336, 224  # about how wide a panel is where there is one model, or several
kLargest = 24  # side of a pixel, where nobody says it
kNarrowest = 236  # room for a panel's caption
kMargin = 20  # between panels, and around all
kTitle, kCaption, kTick = 16, 13, 10  # sizes of fonts
kLine = 18  # height of a line of text
kBar = 288  # width of a bar of colours, at most
kTicks = kLine + kFontSize + 4 * kGap  # where what is written under a bar starts


# --- one field --------------------------------------------------------------------------------------------------


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
        or not set("".join(rows)) <= set(kField)
    ):
        raise ValueError(f"[field] rows must be strings of one length, of {''.join(kField)!r}, got {rows!r}")
    _check_scale("field", scale)
    scale = max(4, round(400 / len(rows[0]))) if scale is None else scale
    font = ImageFont.load_default(kFontSize)
    named = [(c, name) for c, (_, name) in kField.items() if any(c in row for row in rows)]
    line = kFontSize + 2 * kGap
    legend = max(math.ceil(font.getlength(name)) for _, name in named) + line + 4 * kGap
    width, height = len(rows[0]) * scale, len(rows) * scale
    picture = Image.new(
        "RGB", (max(width, legend) + 2 * kGap, height + 4 * kGap + len(named) * line), kBackground
    )
    draw = ImageDraw.Draw(picture)
    for y, row in enumerate(rows):
        for x, c in enumerate(row):
            _cell(draw, c, kGap + x * scale, kGap + y * scale, scale)
    draw.rectangle((kGap - 1, kGap - 1, kGap + width, kGap + height), outline=kInk)
    for i, (c, name) in enumerate(named):
        top = height + 3 * kGap + i * line
        _cell(draw, c, kGap, top, kFontSize)
        draw.rectangle((kGap, top, kGap + kFontSize - 1, top + kFontSize - 1), outline=kInk)
        draw.text((kGap + line, top + kFontSize // 2), name, fill=kInk, font=font, anchor="lm")
    return picture


def _cell(draw: ImageDraw.ImageDraw, c: str, left: int, top: int, side: int) -> None:
    box = _fill(draw, kField[c][0], left, top, side)
    if c == "o" and side > 4:
        draw.line((box[0], box[3], box[2], box[1]), fill=kField["!"][0])


def _fill(
    draw: ImageDraw.ImageDraw, colour: Colour, left: int, top: int, side: int
) -> tuple[int, int, int, int]:
    """A cell, with a gap to the next; returns its corners."""
    last = side - (2 if side > 4 else 1)
    box = left, top, left + last, top + last
    draw.rectangle(box, fill=colour)
    return box


# --- a model, or several ----------------------------------------------------------------------------------------


def receptive_field(
    model: nn.Module,
    *,
    shape: tuple[int, int, int] | None = None,
    order: str = "auto",
    pixel: tuple[int, int] | None = None,
    images: int = 4,
    scale: int | None = None,
    head: Head | None = None,
    to_input: Callable[[Tensor], Tensor] | None = None,
    conditions: Conditions | None = None,
    output: Pick | None = None,
    progress: bool = False,
) -> Image.Image:
    """Draw what one pixel of a model sees, and beside it when pixels are drawn, as one RGB picture.

    Left: the earlier pixels that reach the pixel through weights which are not zero, exactly; the darker, the more its
    distribution depends on them, on a logarithmic scale relative to the strongest. The blind spot is hatched. Right:
    each pixel in the colour of the step at which it is drawn; those that are drawn together with the pixel are marked.

    How much a distribution depends on another pixel is measured: all colours of that pixel are changed to random other
    levels, and the distribution changes by so much total variation distance, in [0, 1], the mean over colours and
    images. That takes a forward pass in float64 for each seen pixel and image.

    **Arguments:**

    - `model`: what `pixelfast.compile` takes. It is left untouched. Of a `MultiScale` model, the largest scale is seen,
        given the image below it.
    - `shape`: (C, H, W) of an image; `model.shape` if None.
    - `order`, `head`, `to_input`, `conditions`, `output`: as for `pixelfast.compile`.
    - `pixel`: (y, x); the one in the middle, (H // 2, W // 2), if None.
    - `images`: how many images, which the model draws itself, are changed. With 0, nothing is measured, and all that is
        seen has one colour: for large models.
    - `scale`: the side of a pixel in the picture; if None, such that a panel is about 336 pixels wide.
    - `progress`: show a bar.

    Raises `ValueError` for bad arguments, and what `pixelfast.compile` raises.
    """
    _check_scale("receptive_field", scale)
    from ._sight import look

    sight = look(
        model,
        shape=shape,
        order=order,
        pixel=pixel,
        images=images,
        head=head,
        to_input=to_input,
        conditions=conditions,
        output=output,
        progress=progress,
    )
    return _sheet({"": sight}, 1, scale, kPanel)


def receptive_fields(
    models: Mapping[str, nn.Module],
    *,
    columns: int | None = None,
    scale: int | None = None,
    **options: Any,
) -> Image.Image:
    """Draw several models as `receptive_field` does, under their names and with one legend, as one RGB picture.

    **Arguments:**

    - `models`: by name, in the order in which they are drawn, row by row.
    - `columns`: models per row; 1 for one model, 2 for more if None.
    - `scale`: the side of a pixel in the picture; if None, such that a panel is about 224 pixels wide.
    - `options`: as for `receptive_field`, the same for all models.

    Raises `ValueError` for bad arguments, and what `receptive_field` raises.
    """
    if not models:
        raise ValueError("[receptive_fields] there must be at least 1 model, got 0")
    columns = min(2, len(models)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"[receptive_fields] columns must be at least 1, got {columns}")
    _check_scale("receptive_fields", scale)
    from ._sight import look

    sights = {name: look(model, **options) for name, model in models.items()}
    return _sheet(sights, columns, scale, kPanels)


def _check_scale(where: str, scale: int | None) -> None:
    if scale is not None and not (isinstance(scale, Integral) and scale >= 1):
        raise ValueError(f"[{where}] scale must be an integer of at least 1, got {scale!r}")


# --- the sheet: a card for each model, and one legend -----------------------------------------------------------


def _sheet(sights: Mapping[str, Sight], columns: int, scale: int | None, wide: int) -> Image.Image:
    """`wide`: about how wide a panel is, if nobody says how large a pixel is."""
    longest = {name: max(sight.steps.shape) for name, sight in sights.items()}
    sides = {name: scale or min(kLargest, max(4, round(wide / n))) for name, n in longest.items()}
    panel = max(kNarrowest, *(sides[name] * sight.steps.shape[1] + 1 for name, sight in sights.items()))
    cards = [_card(name, sight, sides[name], panel) for name, sight in sights.items()]
    columns = min(columns, len(cards))
    step = cards[0].width + 2 * kMargin
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + kMargin for row in rows]
    second = step * (columns // 2) if columns > 1 else panel + kMargin
    legend = _legend(list(sights.values()), second, columns * step - 2 * kMargin - second)
    size = columns * step, kMargin + sum(heights) + legend.height + kMargin
    whole = Image.new("RGB", size, kBackground)
    top = kMargin
    for row, height in zip(rows, heights, strict=True):
        for i, card in enumerate(row):
            whole.paste(card, (kMargin + i * step, top))
        top += height
    whole.paste(legend, (kMargin, top))
    return whole


def _card(title: str, sight: Sight, side: int, panel: int) -> Image.Image:
    """Two panels, what the pixel sees and when pixels are drawn, with their captions."""
    height, width = sight.steps.shape
    captions = [_wrapped(lines, panel) for lines in (_seen(sight), _drawn(sight))]
    top = kTitle + 3 * kGap if title else 0
    under = top + height * side + 4 * kGap
    picture = Image.new("RGB", (2 * panel + kMargin, under + max(map(len, captions)) * kLine), kBackground)
    draw = ImageDraw.Draw(picture)
    draw.text((0, 0), title, fill=kInk, font=ImageFont.load_default(kTitle))
    last, now = sight.steps.max(), sight.steps[sight.field.pixel]
    shades = _shades(sight)
    for i, (cell, step) in enumerate(zip(_cells(sight).flat, sight.steps.flat, strict=True)):
        left, above = 1 + i % width * side, 1 + top + i // width * side
        _cell(draw, cell, left, above, side)
        if cell == "#" and shades:
            _fill(draw, shades[i], left, above, side)
        left += panel + kMargin
        _fill(draw, kTogether if step == now else _ramp(kSteps, step / last), left, above, side)
        if cell == "@":
            _cell(draw, "@", left, above, side)
    for left, lines in zip((0, panel + kMargin), captions, strict=True):
        draw.rectangle((left, top, left + width * side, top + height * side), outline=kInk)
        for i, (line, first) in enumerate(lines):
            _text(draw, line, left, under + i * kLine, kInk if first else kSoft)
    return picture


def _cells(sight: Sight) -> np.ndarray:
    """(H, W) characters of `kField`."""
    field = sight.field
    before = np.arange(field.mask.size).reshape(field.mask.shape) < field.before
    cells = np.where(before, ".", " ")
    cells[field.reach] = "o"
    cells[field.mask] = "#"
    cells[field.pixel] = "@"
    return cells


def _seen(sight: Sight) -> list[str]:
    field = sight.field
    lines = [f"sees {field.seen:,} of the {field.before:,} pixels before it"]
    if field.seen:
        blind = f"blind spot {field.blind:.1%}" if field.blind else "no blind spot"
        lines.append(f"{field.up} up, {field.left} left, {field.right} right; {blind}")
    if field.seen and sight.strength is not None:
        lines.append(f"strongest: total variation {sight.strength.max():.2g}")
    return lines


def _drawn(sight: Sight) -> list[str]:
    found = sight.explanation
    order = f"wavefront of skew {found.skew}" if found.order == "wavefront" else "raster order"
    steps = f"{found.steps:,} step{'s' if found.steps > 1 else ''}"
    return [f"{order}: {steps}", *([found.why] if found.why else [])]


def _wrapped(lines: Sequence[str], width: int) -> list[tuple[str, bool]]:
    """Lines of at most so many pixels, unbroken inside of parentheses, and whether each is of the first."""
    font, found = ImageFont.load_default(kCaption), list[tuple[str, bool]]()
    for i, line in enumerate(lines):
        words = re.split(r" (?![^(]*\))", line)
        row = words[0]
        for word in words[1:]:
            if font.getlength(f"{row} {word}") > width:
                found.append((row, i == 0))
                row = word
            else:
                row = f"{row} {word}"
        found.append((row, i == 0))
    return found


# --- colours and the legend -------------------------------------------------------------------------------------


def _ramp(stops: Sequence[Colour], t: float) -> Colour:
    """The colour at `t`, cut to 0 to 1, between stops at equal distances."""
    at = min(max(t, 0.0), 1.0) * (len(stops) - 1)
    i = min(int(at), len(stops) - 2)
    low, high = np.array(stops[i]), np.array(stops[i + 1])
    red, green, blue = np.rint(low + (at - i) * (high - low)).astype(int).tolist()
    return red, green, blue


def _shades(sight: Sight) -> list[Colour]:
    """Of the strength of each pixel, on a logarithmic scale; none where it was not measured."""
    if sight.strength is None:
        return []
    relative = sight.strength / (sight.strength.max() or 1)
    logs = np.log10(relative, out=np.full(relative.shape, -np.inf), where=relative > 0)
    return [_ramp(kStrength, t) for t in (1 + logs / kDecades).ravel().tolist()]


def _legend(sights: Sequence[Sight], second: int, width: int) -> Image.Image:
    """What the colours of each panel mean, in two blocks; the second starts at `second` and is `width` wide."""
    measured = all(sight.strength is not None for sight in sights)
    cells = {c for sight in sights for c in _cells(sight).flat}
    together = any((s.steps == s.steps[s.field.pixel]).sum() > 1 for s in sights)
    swatches = "".join(c for c in ("@o. " if measured else "@#o. ") if c in cells)
    under = kTicks + kLine + 2 * kGap  # a bar
    blocks = (0, swatches, under if measured else 0), (second, "@*" if together else "@", under)
    height = max(top + len(block) * kLine for _, block, top in blocks)
    picture = Image.new("RGB", (second + width, height), kBackground)
    draw = ImageDraw.Draw(picture)
    bar = min(kBar, second - kMargin, width - 1)
    if measured:
        _bar(draw, kStrength, 0, bar, "strength, relative to the strongest")
        for k in range(kDecades + 1):
            _power(draw, -k, bar - k * bar // kDecades, last=k == kDecades)
    _bar(draw, kSteps, second, bar, "when a pixel is drawn")
    _text(draw, "first step", second, kTicks, kSoft)
    _text(draw, "last step", second + bar, kTicks, kSoft, "ra")
    for left, block, top in blocks:
        for i, c in enumerate(block):
            _swatch(draw, c, left, top + i * kLine)
    return picture


def _bar(draw: ImageDraw.ImageDraw, stops: Sequence[Colour], left: int, width: int, title: str) -> None:
    _text(draw, title, left, 0)
    top, bottom = kLine + kGap, kLine + kGap + kFontSize
    for x in range(width):
        draw.line((left + x, top, left + x, bottom), fill=_ramp(stops, x / width))
    draw.rectangle((left, top, left + width, bottom), outline=kInk)


def _power(draw: ImageDraw.ImageDraw, exponent: int, x: int, *, last: bool) -> None:
    """A tick at `x` with a power of ten, whose exponent the font has no characters for."""
    base, above = "1" if exponent == 0 else "<10" if last else "10", str(exponent) if exponent else ""
    small = ImageFont.load_default(kTick)
    wide = ImageFont.load_default(kCaption).getlength(base)
    whole = wide + small.getlength(above)
    left = round(x if last else x - whole if exponent == 0 else x - whole / 2)
    draw.line((x, kTicks - 2 * kGap, x, kTicks - 1), fill=kInk)
    _text(draw, base, left, kTicks, kSoft)
    draw.text((left + wide + 1, kTicks - 2), above, fill=kSoft, font=small)


def _swatch(draw: ImageDraw.ImageDraw, c: str, left: int, top: int) -> None:
    if c == "*":
        _fill(draw, kTogether, left, top, kFontSize)
    else:
        _cell(draw, c, left, top, kFontSize)
    draw.rectangle((left, top, left + kFontSize - 1, top + kFontSize - 1), outline=kInk)
    name = "drawn in the same step" if c == "*" else kField[c][1]
    _text(draw, name, left + kLine + kGap, top + kFontSize // 2, anchor="lm")


def _text(
    draw: ImageDraw.ImageDraw, text: str, x: int, y: int, fill: Colour = kInk, anchor: str = "la"
) -> None:
    draw.text((x, y), text, fill=fill, font=ImageFont.load_default(kCaption), anchor=anchor)
