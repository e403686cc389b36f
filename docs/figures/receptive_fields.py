"""Draw receptive_fields.png: for each family of models, what a pixel sees and when pixels are drawn.

The families are those of `pixelfast.models`: small networks with random weights, of one colour. A family that has no
options here is an error.

    python docs/figures/receptive_fields.py [--out PICTURE] [FAMILY ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import pixelfast as pf
from pixelfast._files import check_writable, replacing

SIZE = 20
LEVELS = 4
MOST_NBYTES = 200_000
OUT = Path(__file__).with_suffix(".png")

# The constructor's options of each family, beside one channel and LEVELS, in the order of the picture.
OPTIONS: dict[str, dict[str, Any]] = {
    "PixelCNN": {"hidden": 16, "layers": 4, "kernel": 5},
    "GatedPixelCNN": {"hidden": 16, "layers": 4, "kernel": 5},
    "PixelCNNPlusPlus": {"hidden": 8, "blocks": 1, "mixtures": 2},
    "PixelSNAIL": {"hidden": 8, "blocks": 1, "layers": 2, "key": 4, "value": 8, "mixtures": 2},
    "PixelTransformer": {"height": SIZE, "width": SIZE, "hidden": 16, "layers": 2, "heads": 2},
    "RowLSTM": {"hidden": 8, "layers": 2, "kernel": 5},
    "DiagonalBiLSTM": {"hidden": 8, "layers": 2, "kernel": 5},
    "LSTM2d": {"hidden": 8, "layers": 2},
    "MultiScale": {"model": "PixelCNN", "hidden": 16, "layers": 4, "kernel": 5, "context": 4},
}


def complaint(families: list[str]) -> str:
    """What is wrong with the families to draw, or with the table, or nothing."""
    registry = pf.models.AutoregressiveModel.registry
    missing = [name for name in registry if name not in OPTIONS]
    unknown = [name for name in families if name not in registry]
    if missing:
        return f"OPTIONS lack {', '.join(missing)}: say how to make a small one"
    if unknown:
        return f"there is no {', '.join(unknown)}; known are {', '.join(registry)}"
    return ""


def small(family: str) -> pf.models.AutoregressiveModel:
    """Make one, with weights that are the same each time."""
    torch.manual_seed(0)
    model = pf.models.AutoregressiveModel.registry[family](channels=1, levels=LEVELS, **OPTIONS[family])
    model.initialise(torch.randint(0, LEVELS, (64, 1, SIZE, SIZE)))
    return model.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw what pixels see, and when they are drawn.")
    parser.add_argument("families", nargs="*", help="names of models (all)")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the picture (docs/figures/receptive_fields.png)"
    )
    options = parser.parse_args()
    families = options.families or list(OPTIONS)
    wrong = complaint(families)
    if wrong:
        print(f"receptive_fields: {wrong}", file=sys.stderr)
        return 1
    out = check_writable(options.out)
    torch.set_num_threads(1)
    models = {family: small(family) for family in families}
    picture = pf.viz.receptive_fields(models, shape=(1, SIZE, SIZE), progress=sys.stderr.isatty())
    with replacing(out) as temporary:
        picture.save(temporary, optimize=True)
        nbytes = temporary.stat().st_size
        if nbytes > MOST_NBYTES:
            raise ValueError(
                f"the picture has {nbytes:,} bytes, more than {MOST_NBYTES:,}: draw fewer families"
            )
    print(f"{out}: {picture.width} x {picture.height}, {nbytes:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
