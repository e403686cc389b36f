"""How long does a training step of a recurrent model take? The recurrent op against loops in PyTorch.

    op         `pixelfast.lstm_scan`: front by front, with a backward pass of its own
    fronts     the same fronts, spelled by ops that autograd follows: what a careful user would write
    positions  the twin that defines the op, position by position: the plain loop

A step is a forward and a backward pass of the whole model, so the convolutions around the op are in it. What is
compared is verified first, gradients included.
"""

from __future__ import annotations

import argparse
import os
import unittest.mock
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixelfast import models, scan
from pixelfast._files import check_writable
from pixelfast.models import pixelrnn

from . import harness
from .sampling import duration

BATCH, SIZE = 16, 28
MODELS: dict[str, Callable[[], models.AutoregressiveModel]] = {
    "RowLSTM h64 L4": partial(models.RowLSTM, levels=2, head="bernoulli", hidden=64, layers=4),
    "DiagonalBiLSTM h16 L7": partial(models.DiagonalBiLSTM, levels=2, head="bernoulli", hidden=16, layers=7),
    "LSTM2d h64 L2": partial(models.LSTM2d, levels=2, head="bernoulli", hidden=64, layers=2),
}


def by_position(
    gates: Tensor, weight: Tensor, *, hidden: scan.Offsets, cells: scan.Offsets, edge: Tensor | None = None
) -> Tensor:
    """`pixelfast.lstm_scan`, by its twin."""
    return scan.decomposed(gates, weight, edge, scan.flat(hidden), scan.flat(cells))


def by_front(
    gates: Tensor, weight: Tensor, *, hidden: scan.Offsets, cells: scan.Offsets, edge: Tensor | None = None
) -> Tensor:
    """`pixelfast.lstm_scan`, a row or a diagonal at a time, by ops that autograd follows."""
    fronts = scan.fronts_of(*gates.shape[2:], tuple(scan.flat(hidden)), tuple(scan.flat(cells)))
    n, size = gates.shape[0], weight.shape[2]
    outside = gates.new_zeros(2, size) if edge is None else edge
    gates_there = fronts.turned(gates).permute(2, 3, 0, 1)
    stacked = torch.cat([*weight], 1).T
    places = torch.arange(fronts.places) - fronts.before
    h, c = (outside[i].expand(fronts.places, n, size) for i in (0, 1))
    found: list[Tensor] = []
    for s, (start, end) in enumerate(fronts.spans()):
        inside = places[start:end]
        own = gates_there[inside, s - inside] if fronts.diagonal else gates_there[s]
        z = own + torch.cat([h[start + k : end + k] for k in fronts.hidden], -1) @ stacked
        o, *forget, i, g = z.split(size, -1)
        cell = torch.sigmoid(i) * torch.tanh(g)
        for f, k in zip(forget, fronts.cells, strict=True):
            cell = cell + torch.sigmoid(f) * c[start + k : end + k]
        state = torch.sigmoid(o) * torch.tanh(cell)
        h, c = (
            torch.cat([e.expand(start, n, size), now, e.expand(fronts.places - end, n, size)])
            for e, now in zip(outside, (state, cell), strict=True)
        )
        found.append(h[fronts.before : fronts.before + (fronts.rows if fronts.diagonal else fronts.columns)])
    if not fronts.diagonal:
        return fronts.back(torch.stack(found).permute(2, 3, 0, 1))
    y, x = torch.meshgrid(torch.arange(fronts.rows), torch.arange(fronts.columns), indexing="ij")
    return fronts.back(torch.stack(found)[y + x, y].permute(2, 3, 0, 1))


WAYS = {"op": scan.lstm_scan, "fronts": by_front, "positions": by_position}


def step(model: models.AutoregressiveModel, images: Tensor, way: str) -> list[Tensor]:
    """A forward and a backward pass. Returns the loss and the gradients."""
    model.zero_grad()
    with unittest.mock.patch.object(pixelrnn, "lstm_scan", WAYS[way]):
        loss = -model.log_prob(images).mean()
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def verify(model: models.AutoregressiveModel, images: Tensor) -> None:
    """Check that all ways compute the same. Raises ValueError if not."""
    want = [t.clone() for t in step(model, images, "op")]
    for way in WAYS:
        for a, b in zip(step(model, images, way), want, strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1)):
                raise ValueError(f"[verify] {way} and the op differ")


def measure(name: str, *, repeats: int) -> dict[str, Any]:
    """Time the steps of one model."""
    torch.manual_seed(0)
    model = MODELS[name]()
    verify(model, torch.randint(0, 2, (2, 1, 6, 7)))
    images = torch.randint(0, 2, (BATCH, 1, SIZE, SIZE))
    ways = {way: partial(harness.timed, partial(step, model, images, way)) for way in WAYS}
    return {
        "model": name,
        "batch": BATCH,
        "size": SIZE,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_step": harness.interleaved(ways, repeats),
        "repeats": repeats,
    }


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "parameters", "batch", *WAYS, "vs fronts", "vs positions"]]
    for row in result["rows"]:
        seconds = row["seconds_per_step"]
        times: Sequence[str] = [duration(seconds[way]) for way in WAYS]
        ratios = [f"{seconds[way] / seconds['op']:.1f}x" for way in ("fronts", "positions")]
        lines.append([row["model"], f"{row['parameters']:,}", str(row["batch"]), *times, *ratios])
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks training`."""
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch (all cores)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one to warm up (5)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: what `gpu` has of it (cpu)"
    )
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.device == "cuda":
        from . import gpu

        return gpu.run_part(options, networks=False, convolutions=True)
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(options.threads)
    rows = [measure(name, repeats=options.repeats) for name in MODELS if options.only in name]
    result = harness.record("training", options.threads, busy, rows)
    print(harness.table(table(result)))
    if options.out is not None:
        harness.save(result, options.out)
    return result
