"""Writes the programs that csrc/tests/native.cpp runs: `python tests/native_programs.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from handwritten import attending, chain, everything

import pixelfast as pf


def write(path: Path, words: np.ndarray, data: np.ndarray) -> None:
    """Words, then data: each a count, then as many numbers of four bytes."""
    parts = (np.int32([len(words)]), words.astype(np.int32), np.int32([len(data)]), data.astype(np.float32))
    path.write_bytes(b"".join(part.tobytes() for part in parts))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = {"chain": chain((1, 3, 4), 3, 18, rows=2), "everything": everything(), "attending": attending()}
    for name, tiny in by_hand.items():
        write(folder / name, tiny.words(), tiny.data)
    models = {
        "pixelcnn": (pf.models.PixelCNN(channels=3, levels=5, hidden=24, layers=2), (3, 6, 7)),
        "gated": (pf.models.GatedPixelCNN(levels=2, hidden=20, layers=3, head="bernoulli"), (1, 9, 8)),
    }
    for name, (model, shape) in models.items():
        for order in ("raster", "wavefront"):
            program = pf.compile(model.eval(), shape=shape, order=order).program
            write(folder / f"{name}-{order}", program.words, program.data)
    early = {  # as for devices
        "deep": (pf.models.PixelCNN(levels=3, hidden=32, layers=4), (1, 5, 4)),
        "gates": (pf.models.GatedPixelCNN(levels=3, hidden=32, layers=3, kernel=5), (1, 5, 6)),
    }
    for name, (model, shape) in early.items():
        program = pf.compile(model.eval(), shape=shape, order="raster", backend="emulated").program
        write(folder / f"{name}-early", program.words, program.data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
