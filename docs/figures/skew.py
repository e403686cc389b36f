"""Draw skew.png: what the middle pixel of the last row sees in a Gated PixelCNN of 12 layers, for some skews."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import pixelfast as pf

SHAPE = (1, 14, 28)
SKEWS = (None, 8, 4, 2)
TITLE, GAP = 22, 12


def panel(skew: int | None) -> tuple[str, Image.Image]:
    """Return a title and a picture of the receptive field, read off the plan."""
    audit = pf.audit(pf.models.GatedPixelCNN(hidden=2, layers=12, levels=2, skew=skew), SHAPE)
    title = f"ordinary: skew {audit.steps.skew}" if skew is None else f"skew {audit.steps.skew}"
    return title, audit.picture(scale=11)


def main() -> None:
    """Put the panels side by side, two in a row."""
    panels = [panel(skew) for skew in SKEWS]
    width = max(picture.width for _, picture in panels) + GAP
    height = max(picture.height for _, picture in panels) + TITLE + GAP
    whole = Image.new("RGB", (2 * width - GAP, 2 * height - GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(14)
    for i, (title, picture) in enumerate(panels):
        y, x = divmod(i, 2)
        draw.text((x * width + 2, y * height + 2), title, fill="black", font=font)
        whole.paste(picture, (x * width, y * height + TITLE))
    whole.quantize(16).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
