"""What does a Gated PixelCNN made for the wavefront lose in likelihood, and gain in time?

The ordinary network and its variants of skew 2, 4 and 8 have the same live weights, and see the same batches of the
same data. `--train` trains and scores them, in folders that `--time` reads. Times are of the trained models, and of
larger ones with random weights, one image at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelfast import data, models
from pixelfast._files import check_writable, replacing
from pixelfast.sampler import Sampler
from pixelfast.sampler import compile as compile_model
from pixelfast.train import evaluate, train

from . import harness

SKEWS = (None, 2, 4, 8)
# The seeds of each network's runs; the second ones show what a difference of one seed means.
SEEDS: dict[int | None, tuple[int, ...]] = {None: (0, 1), 2: (0,), 4: (0,), 8: (0,)}
MODEL: dict[str, Any] = {"hidden": 32, "layers": 12}
TRAINING: dict[str, Any] = {"epochs": 1, "batch": 16, "lr": 1e-3}
LARGE: dict[str, Any] = {"hidden": 128, "layers": 15, "size": 32}
ORDERS = ("raster", "wavefront", "auto")
BATCHES = (1, 64)
SCORE = "score.json"


def name(skew: int | None) -> str:
    """What a network is called in the tables."""
    return "ordinary" if skew is None else f"skew {skew}"


def folder(runs: Path, skew: int | None, seed: int) -> Path:
    """Where a network's run is."""
    return runs / f"{name(skew).replace(' ', '-')}-seed-{seed}"


def order_of_runs() -> Iterator[tuple[int | None, int]]:
    """Every network, then again those with a second seed."""
    for seed in (0, 1):
        yield from ((skew, seed) for skew in SKEWS if seed in SEEDS[skew])


def live(model: torch.nn.Module) -> int:
    """Count the weights that no mask holds at zero."""
    dead = sum(int((mask == 0).sum()) for mask in model.buffers())
    return sum(parameter.numel() for parameter in model.parameters()) - dead


def train_and_score(runs: Path, source: Path, limit: int) -> None:
    """Train what is not trained yet, or not to the end, and write its score on all test images into its folder."""
    images, test = data.load(source, split="train"), data.load(source, split="test")
    if limit < len(images):
        images = images.take(np.arange(limit), f"the first {limit}")
    for skew, seed in order_of_runs():
        out = folder(runs, skew, seed)
        if (out / SCORE).exists():
            continue
        torch.manual_seed(seed)
        channels = images.shape[0]
        model = models.GatedPixelCNN(channels=channels, levels=images.levels, skew=skew, **MODEL)
        trained = train(model, images, out=out, seed=seed, resume=True, **TRAINING)
        score = {
            "bits_per_dim": evaluate(trained, test).bits_per_dim,
            "test_images": len(test),
            "train_images": len(images),
            "data": images.name,
        }
        with replacing(out / SCORE) as temporary:
            temporary.write_text(json.dumps(score) + "\n", encoding="utf-8")
        print(f"{out.name}: {score['bits_per_dim']:.4f} bits/dim", flush=True)


def verify(model: models.AutoregressiveModel, samplers: Mapping[str, Sampler]) -> None:
    """Check on two images that all orders draw the same ones, of the model's probability. Raises ValueError if not."""
    raster, *others = (sampler.sample(2, seed=1) for sampler in samplers.values())
    if not all(torch.equal(raster.images, other.images) for other in others):
        raise ValueError("[verify] the orders draw different images")
    with torch.inference_mode():
        if not torch.allclose(raster.log_prob, model.log_prob(raster.images), rtol=1e-4, atol=1e-1):
            raise ValueError("[verify] the engine's log probabilities differ from the model's")


def measure(
    networks: Mapping[int | None, models.AutoregressiveModel],
    shape: tuple[int, int, int],
    batches: Sequence[int],
    *,
    threads: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Time networks in all orders, in turn. Returns a row for each: seconds of a whole batch."""
    samplers: dict[int | None, dict[str, Sampler]] = {}
    for skew, model in networks.items():
        samplers[skew] = {order: compile_model(model, shape=shape, order=order) for order in ORDERS}
        verify(model, samplers[skew])
    contestants = {
        f"{skew} {order} {n}": lambda skew=skew, order=order, n=n: harness.timed(
            lambda: samplers[skew][order].sample(n, seed=0, threads=threads)
        )
        for n in batches
        for skew in networks
        for order in ORDERS
    }
    seconds = harness.interleaved(contestants, repeats)
    return [
        {
            "model": name(skew),
            "config": model.config,
            "shape": shape,
            "live_parameters": live(model),
            "skew": {order: samplers[skew][order].schedule.order.skew for order in ORDERS},
            "steps": {order: samplers[skew][order].steps for order in ORDERS},
            "multiply_adds_per_image": samplers[skew]["raster"].multiply_adds,
            "seconds": {str(n): {order: seconds[f"{skew} {order} {n}"] for order in ORDERS} for n in batches},
            "repeats": repeats,
        }
        for skew, model in networks.items()
    ]


def measure_trained(runs: Path, *, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time the trained networks. The rows have their scores, too."""
    scores: dict[int | None, dict[int, Any]] = {}
    for skew in SKEWS:
        paths = {seed: folder(runs, skew, seed) / SCORE for seed in SEEDS[skew]}
        scores[skew] = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
        if 0 not in scores[skew]:
            raise ValueError(f"[measure] {paths[0].parent} holds no {SCORE}: --train first")
    networks = {skew: models.load(folder(runs, skew, 0)) for skew in SKEWS}
    shape = networks[None].shape
    assert shape is not None  # train sets it
    rows = measure(networks, shape, BATCHES, threads=threads, repeats=repeats)
    return [
        {**row, "training": TRAINING, "scores_by_seed": scores[skew]}
        for row, skew in zip(rows, SKEWS, strict=True)
    ]


def measure_large(*, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time networks as deep as people train, with random weights: times do not depend on the values."""
    sizes = dict(LARGE)
    size = sizes.pop("size")
    torch.manual_seed(0)
    networks = {skew: models.GatedPixelCNN(skew=skew, **sizes).eval() for skew in SKEWS}
    return measure(networks, (1, size, size), (1,), threads=threads, repeats=repeats)


def markdown(result: Mapping[str, Any]) -> str:
    """Return a record as two tables, with the data, the machine and the versions below."""
    trained = [row for row in result["rows"] if "scores_by_seed" in row]
    large = [row for row in result["rows"] if "scores_by_seed" not in row]
    score = next(iter(trained[0]["scores_by_seed"].values()))
    host = result["machine"]
    return (
        f"{_table(trained)}\n\n{_table(large)}\n\n"
        "Time of a whole batch; auto is what `compile` takes by itself. "
        f"{score['data']}, trained on {score['train_images']:,} images, scored on {score['test_images']:,}; one figure "
        "for each seed. The second table is of random weights.\n"
        f"Timed {result['date'][:10]} at commit {result['commit']} on {host['cpu']}, {host['threads']} thread(s), "
        f"{host['isa']}, whose fp32 peak was measured at {host['peak_multiply_adds_per_second'] / 1e9:.0f} G "
        f"multiply-adds/s, load {result['load_before']}; torch {result['versions']['torch']}.\n"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    config, shape = rows[0]["config"], rows[0]["shape"]
    batches = list(rows[0]["seconds"])
    title = f"{shape[1]}x{shape[2]}, C{config['hidden']} L{config['layers']}"
    head = [title, "live weights", "test bits/dim", "steps", "of auto"]
    head += [f"batch {n}, {order}" for n in batches for order in ORDERS]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        scores = row.get("scores_by_seed", {}).values()
        bits = " / ".join(f"{score['bits_per_dim']:.4f}" for score in scores)
        steps = (str(row["steps"][order]) for order in ("wavefront", "auto"))
        times = (f"{row['seconds'][n][order] * 1e3:.1f} ms" for n in batches for order in ORDERS)
        lines.append([row["model"], f"{row['live_parameters']:,}", bits, *steps, *times])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks.skew`."""
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--train", action="store_true", help="train and score what is not yet there")
    parser.add_argument("--time", action="store_true", help="time the trained models, and print the table")
    parser.add_argument("--data", type=Path, help="the data set, to train on and to score")
    parser.add_argument("--limit", type=int, default=30000, help="training images: the first so many (30000)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch and of pixelfast (1)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one to warm up (5)")
    parser.add_argument("--out", help="where the JSON record goes")


def run(options: argparse.Namespace) -> None:
    """Train, or time and write the record, or both."""
    if options.out is not None:
        check_writable(options.out)
    torch.set_num_threads(options.threads)
    if options.train:
        if options.data is None:
            raise ValueError("[skew] --train needs --data: the folder or file of a data set")
        train_and_score(options.runs, options.data, options.limit)
    if options.time:
        busy = harness.load()
        rows = measure_trained(options.runs, threads=options.threads, repeats=options.repeats)
        rows += measure_large(threads=options.threads, repeats=options.repeats)
        result = harness.record("skew", options.threads, busy, rows)
        print(markdown(result))
        if options.out is not None:
            harness.save(result, options.out)


def main() -> None:
    """Run `python -m benchmarks.skew`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skew", description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
