"""How good does a model of each family become? Likelihoods of runs of `pixelfast train` on a data set.

Each folder of a run says how its model was trained, and how far; the test images are scored by PyTorch, and images are
timed as they are drawn from the averaged weights.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch

from pixelfast import data, models
from pixelfast._files import check_writable
from pixelfast.sampler import compile as compile_model
from pixelfast.train import evaluate

from . import harness
from .sampling import duration

BATCH = 16  # images that are drawn at once
# Negative log likelihood of binarized MNIST, in nats: van den Oord et al. 2016a, table 4. Of full models.
PUBLISHED = {"PixelCNN": 81.30, "RowLSTM": 80.54, "DiagonalBiLSTM": 79.20}


def measure(folder: Path, dataset: data.Dataset, *, threads: int, repeats: int) -> dict[str, Any]:
    """Score and time the model of one run."""
    run = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    model = models.load(folder)
    sampler = compile_model(model, shape=dataset.shape)
    work = {"pixelfast": partial(harness.timed, partial(sampler.sample, BATCH, threads=threads))}
    batch, each = run["arguments"]["batch"], run["data"]["images"]
    epochs, within = divmod(run["step"], math.ceil(each / batch))
    images = epochs * each + within * batch
    return {
        "model": run["model"],
        "config": run["config"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "command": _portable(run["commands"][0]),
        "training": {
            "data": run["data"],
            "arguments": run["arguments"],
            "images": images,
            "seconds": run["seconds"],
            "finished": run["finished"],
        },
        "test": {"images": len(dataset), "sha256": dataset.sha256},
        "nats": evaluate(model, dataset, progress=False).nats,
        "order": sampler.order,
        "steps": sampler.steps,
        "seconds_per_image": harness.interleaved(work, repeats)["pixelfast"] / BATCH,
        "published_nats": PUBLISHED.get(run["model"]),
    }


def _portable(command: str) -> str:
    """The command without the paths of one machine: `pixelfast train` and its options."""
    words = [part for word in shlex.split(command) for part in word.split("=", 1)]
    options = words[words.index("train") + 1 :] if "train" in words else words[1:]
    return shlex.join(["pixelfast", "train", *(PurePath(word).name or word for word in options)])


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "parameters", "images seen", "s/epoch", "test nats", "published", "steps", "an image"]]
    for row in result["rows"]:
        training, published = row["training"], row["published_nats"]
        an_epoch = training["seconds"] * result["epoch"] / training["images"]
        lines.append(
            [
                row["model"] + ("" if training["finished"] else ", stopped early"),
                f"{row['parameters']:,}",
                f"{training['images']:,}",
                f"{an_epoch:,.0f}",
                f"{row['nats']:.2f}",
                "" if published is None else f"{published:.2f}",
                f"{row['steps']:,}",
                duration(row["seconds_per_image"]),
            ]
        )
    return lines


def commands(result: Mapping[str, Any]) -> str:
    """Return the commands that trained the models, as a block of Markdown."""
    return "```\n" + "".join(f"{row['command']}\n" for row in result["rows"]) + "```\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks likelihoods`."""
    parser.add_argument("runs", nargs="+", help="folders that `pixelfast train` wrote")
    parser.add_argument("--data", required=True, help="the data set whose test images are scored")
    parser.add_argument("--threads", type=int, default=1, help="of sampling, and of PyTorch (1)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(options.threads)
    dataset = data.load(options.data, split="test")
    rows = []
    for folder in map(Path, options.runs):
        rows.append(measure(folder, dataset, threads=options.threads, repeats=options.repeats))
        print(f"{rows[-1]['model']}: {rows[-1]['nats']:.2f} nats", flush=True)
    result = harness.record("likelihoods", options.threads, busy, rows)
    result["epoch"] = len(data.load(options.data))
    print(harness.table(table(result)))
    if options.out is not None:
        harness.save(result, options.out)
    return result
