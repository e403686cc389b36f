"""Maximum-likelihood training, resumable to the bit, and evaluation."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import __version__, data, models
from ._files import check_writable
from ._run import STATE, Run, autocast, resolve_amp
from .data import Dataset
from .models import AutoregressiveModel

_LOG_EVERY = 100  # steps between two entries of the history
_MODELS: dict[str, Callable[..., AutoregressiveModel]] = {
    "pixelcnn": models.PixelCNN,
    "gated-pixelcnn": models.GatedPixelCNN,
    "pixelcnn-pp": models.PixelCNNPlusPlus,
    "lstm2d": models.LSTM2d,
    "row-lstm": models.RowLSTM,
    "diagonal-bilstm": models.DiagonalBiLSTM,
    "multi-scale": models.MultiScale,
    "pixelsnail": models.PixelSNAIL,
    "pixel-transformer": models.PixelTransformer,
}
# Options of models, as on the command line.
_OPTIONS: dict[str, tuple[type, str]] = {
    "hidden": (int, "width of the layers"),
    "layers": (int, "number of layers; of pixelsnail, before each attention"),
    "kernel": (int, "size of the first layer"),
    "skew": (int, "skew of the wavefront to stay in (gated-pixelcnn)"),
    "blocks": (int, "residual blocks of a stage (pixelcnn-pp), or how often it attends (pixelsnail)"),
    "heads": (int, "heads of attention (pixel-transformer)"),
    "key": (int, "width of queries and keys (pixelsnail)"),
    "value": (int, "width of values (pixelsnail)"),
    "stride": (int, "windows that are attended to, of stride x stride (pixelsnail)"),
    "scales": (int, "how often the size of images is doubled (multi-scale)"),
    "context": (int, "channels of the maps that are made of smaller images (multi-scale)"),
    "mixtures": (int, "logistics of the mixture (pixelcnn-pp, pixelsnail)"),
    "dropout": (float, "probability of dropping a feature (pixelcnn-pp, pixelsnail, pixel-transformer)"),
}


class Evaluation(NamedTuple):
    """What `evaluate` found: mean negative log likelihood per image in nats, and bits per sub-pixel."""

    nats: float
    bits_per_dim: float


def train(
    model: AutoregressiveModel,
    dataset: Dataset,
    *,
    out: str | os.PathLike[str],
    epochs: int = 20,
    batch: int = 32,
    lr: float = 1e-3,
    ema: float = 0.999,
    amp: str = "auto",
    seed: int = 0,
    resume: bool = False,
    valid: Dataset | None = None,
    sample_every: int = 0,
    save_minutes: float = 5.0,
    max_minutes: float | None = None,
    progress: bool = True,
) -> AutoregressiveModel:
    """Train a model by maximum likelihood and return its averaged weights, in eval mode.

    Adam with a warm-up over the first 2% of the steps (at most 500) and a cosine to zero, gradients clipped
    to norm 1. The batches of an epoch depend on (seed, epoch) alone, so a resumed run goes on to the same
    weights, to the bit on the CPU, as one that was never stopped. The folder `out` holds config.json and
    model.safetensors (averaged weights: what `models.load` reads), state.safetensors (all that resuming
    needs) and train.json (arguments, data, versions, history), each replaced atomically every
    `save_minutes`, at the end of each epoch, and when Ctrl-C, SIGTERM or `max_minutes` stops the run.

    Args:
        model: the model, trained in place on its device.
        dataset: images and, iff the model has classes, labels.
        out: folder to write to; made if missing.
        epochs: passes over the data; they set the learning rate's schedule.
        batch: images per step.
        lr: the highest learning rate.
        ema: decay of the average of the weights, per step; at step n at most (1 + n) / (10 + n).
        amp: "bf16" for autocast, "off" for float32, "auto" for bf16 on CUDA and on CPUs with AVX512-BF16
            (there it measured 1.5 times as fast).
        seed: for the order of the images and any randomness of the model.
        resume: go on from the state in `out`, if it holds one.
        valid: images to evaluate the averaged weights on at the end of each epoch, or None.
        sample_every: epochs between two grids of samples, written to out/samples; 0 for none.
        save_minutes: minutes between two checkpoints.
        max_minutes: stop after so many minutes of this call, or None.
        progress: show a progress bar.

    Returns:
        A copy of the model with the averaged weights.

    Raises:
        ValueError: for bad arguments, data that do not fit the model, or an output folder that holds another
            run, all before any work; and if the loss is not finite.
        OSError: if the output folder cannot be written, before any work.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is written.
        SystemExit: on SIGTERM, after the checkpoint is written.
    """
    _check("train", model, dataset, valid, epochs=epochs, batch=batch, lr=lr, ema=ema, amp=amp, seed=seed)
    device = next(model.parameters()).device
    amp = resolve_amp(amp, device)
    folder = _prepare(out)
    model.shape, model.class_names = dataset.shape, dataset.class_names
    record = {
        "model": type(model).__name__,
        "config": model.config,
        "arguments": {"epochs": epochs, "batch": batch, "lr": lr, "ema": ema, "amp": amp, "seed": seed},
        "data": _describe(dataset),
        "valid": None if valid is None else _describe(valid),
        "commands": [shlex.join(sys.orig_argv)],
        "versions": {
            "pixelfast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "step": 0,
        "seconds": 0.0,
        "finished": False,
        "history": [],
    }
    begun = (folder / STATE).exists()
    if begun and not resume:
        raise ValueError(f"[train] {folder} already holds a run: resume it, or choose another folder")
    if not begun:
        first = np.random.default_rng(seed).permutation(len(dataset))[:128]
        model.initialise(*_batch(dataset, first, device, model))
    run = Run(model, record, folder, images=len(dataset))
    if begun:
        run.restore()

    model.train()
    start = last_save = time.monotonic()
    before = run.record["seconds"]
    with _signals() as received, _bar(run, progress) as bar, _tensorboard(folder) as log:
        for indices in run.batches():
            run.update(*_batch(dataset, indices, device, model))
            bar.update(len(indices))
            now = time.monotonic()
            run.record["seconds"] = before + now - start
            epoch, within = divmod(run.step, run.per_epoch)
            if run.step % _LOG_EVERY == 0 or within == 0:
                bits = run.note()
                bar.set_postfix_str(f"{bits:.3f} bits/dim")
                log("bits_per_dim/train", bits, run.step)
            stop = bool(received) or (max_minutes is not None and now - start > 60 * max_minutes)
            if within == 0 or stop or now - last_save > 60 * save_minutes:
                run.save()
                last_save = now
            if within == 0 and not received:
                if valid is not None:
                    score = evaluate(run.averaged(), valid, batch=batch, amp=amp, progress=False).bits_per_dim
                    run.record["history"][-1]["valid_bits_per_dim"] = round(score, 5)
                    bar.write(f"epoch {epoch}: valid {score:.4f} bits/dim")
                    log("bits_per_dim/valid", score, run.step)
                if sample_every and epoch % sample_every == 0:
                    _write_samples(run.averaged(), dataset, folder / "samples" / f"epoch-{epoch:04}.png", bar)
                run.save()
            if stop:
                break
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
    if received:
        raise KeyboardInterrupt
    return run.averaged()


@torch.no_grad()
def evaluate(
    model: AutoregressiveModel,
    dataset: Dataset,
    *,
    batch: int = 100,
    amp: str = "off",
    progress: bool = True,
) -> Evaluation:
    """Measure a model's mean negative log likelihood on a data set.

    Args:
        model: the model; evaluated as it is, on its device.
        dataset: images and, iff the model has classes, labels.
        batch: images at a time; changes nothing but speed, up to rounding.
        amp: as in `train`; "off" is float32.
        progress: show a progress bar.

    Returns:
        nats per image, and bits per sub-pixel.

    Raises:
        ValueError: if the data do not fit the model.
    """
    _check("evaluate", model, dataset, None, batch=batch, amp=amp)
    device = next(model.parameters()).device
    amp = resolve_amp(amp, device)
    total = 0.0
    starts = range(0, len(dataset), batch)
    for i in tqdm(starts, desc="evaluate", unit="batch", disable=not progress):
        images, labels = _batch(dataset, np.arange(i, min(i + batch, len(dataset))), device, model)
        with autocast(amp, device):
            total -= model.log_prob(images, labels).double().sum().item()
    nats = total / len(dataset)
    return Evaluation(nats, nats / (math.prod(dataset.shape) * math.log(2)))


def _check(
    where: str, model: AutoregressiveModel, dataset: Dataset, valid: Dataset | None, **options: Any
) -> None:
    for name, least in (("epochs", 1), ("batch", 1), ("seed", 0)):
        if options.get(name, least) < least:
            raise ValueError(f"[{where}] {name} must be at least {least}, got {options[name]}")
    if not 0 < options.get("lr", 1) < math.inf:
        raise ValueError(f"[{where}] lr must be positive, got {options['lr']}")
    if not 0 <= options.get("ema", 0) < 1:
        raise ValueError(f"[{where}] ema must be in [0, 1), got {options['ema']}")
    if options["amp"] not in ("auto", "off", "bf16"):
        raise ValueError(f'[{where}] amp must be "auto", "off" or "bf16", got {options["amp"]!r}')
    for part in (dataset, valid):
        if part is None:
            continue
        if len(part) < 1:
            raise ValueError(f"[{where}] {part.name} holds no images")
        if part.shape[0] != model.channels:
            raise ValueError(
                f"[{where}] {part.name} has {part.shape[0]} channels, the model {model.channels}"
            )
        if part.levels != model.levels:
            raise ValueError(f"[{where}] {part.name} has {part.levels} levels, the model {model.levels}")
        if model.classes is not None and (part.classes is None or part.classes > model.classes):
            have = "no labels" if part.classes is None else f"{part.classes} classes"
            raise ValueError(f"[{where}] {part.name} has {have}, the model {model.classes} classes")


def _prepare(out: str | os.PathLike[str]) -> Path:
    """Make the output folder, and find now whether it can be written."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / STATE)
    return folder


def _describe(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "description": dataset.description,
        "images": len(dataset),
        "levels": dataset.levels,
        "sha256": dataset.sha256,
    }


def _batch(
    dataset: Dataset, indices: np.ndarray, device: torch.device, model: AutoregressiveModel
) -> tuple[Tensor, Tensor | None]:
    images = torch.from_numpy(dataset.images[indices]).to(device)
    if model.classes is None or dataset.labels is None:
        return images, None
    return images, torch.from_numpy(dataset.labels[indices]).to(device)


def _bar(run: Run, progress: bool) -> tqdm:
    epochs, within = divmod(run.step, run.per_epoch)
    return tqdm(
        total=run.steps // run.per_epoch * run.images,
        initial=epochs * run.images + within * run.batch,
        desc="train",
        unit="img",
        disable=not progress,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM, so that a step is never cut in two; a second one acts at once."""
    received: list[int] = []
    old: dict[int, Any] = {}

    def restore() -> None:
        while old:
            signal.signal(*old.popitem())

    def handler(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        restore()


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a function that logs (name, value, step); it does nothing where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda name, value, step: None
        return
    with SummaryWriter(str(folder)) as writer:
        yield writer.add_scalar


def _write_samples(model: AutoregressiveModel, dataset: Dataset, path: Path, bar: tqdm) -> None:
    """Write a grid of 64 samples, one class per row. A picture that fails does not end the training."""
    try:
        from .sampler import compile
        from .viz import save_grid

        labels = None if model.classes is None else torch.arange(64) // 8 % model.classes
        images = compile(model, shape=dataset.shape).sample(64, labels=labels, seed=0).images
        path.parent.mkdir(exist_ok=True)
        save_grid(images, path, columns=8, levels=model.levels)
    except Exception as error:
        bar.write(f"no samples written: {error}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pixelfast train` to a parser."""
    parser.add_argument(
        "--data", required=True, help="folder or file of the data set; see pixelfast.data.load"
    )
    parser.add_argument("--out", required=True, help="folder to write the run to")
    parser.add_argument("--model", choices=list(_MODELS), default="gated-pixelcnn")
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument(
        "--classes", action=argparse.BooleanOptionalAction, default=False, help="condition on the labels"
    )
    parser.add_argument("--levels", type=int, help="quantize the images to so many levels")
    parser.add_argument("--head", choices=["categorical", "bernoulli", "logistic_mixture"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument(
        "--valid", type=int, default=0, help="training images to hold out for validation (default 0)"
    )
    parser.add_argument("--limit", type=int, help="use only so many training images")
    parser.add_argument("--max-minutes", type=float, help="stop, with a checkpoint, after so many minutes")
    parser.add_argument(
        "--save-minutes", type=float, default=5.0, help="minutes between checkpoints (default 5)"
    )
    parser.add_argument("--sample-every", type=int, default=1, help="epochs between sample grids; 0 for none")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")


def run(args: argparse.Namespace) -> AutoregressiveModel:
    """Run `pixelfast train` with parsed arguments.

    Raises:
        ValueError, OSError: as `data.load` and `train`.
    """
    _prepare(args.out)
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"[train] threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    dataset = data.load(args.data)
    if args.levels is not None:
        dataset = dataset.quantize(args.levels)
    if args.classes and dataset.classes is None:
        raise ValueError(f"[train] {dataset.name} has no labels, so --classes cannot be used")
    classes = dataset.classes if args.classes else None
    dataset, valid = _split(dataset, args.limit, args.valid)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(args, dataset, classes).to(device)
    return train(
        model,
        dataset,
        out=args.out,
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        ema=args.ema,
        amp=args.amp,
        seed=args.seed,
        resume=args.resume,
        valid=valid,
        sample_every=args.sample_every,
        save_minutes=args.save_minutes,
        max_minutes=args.max_minutes,
    )


def _model(args: argparse.Namespace, dataset: Dataset, classes: int | None) -> AutoregressiveModel:
    """The model that the options describe; what they leave open has the model's own defaults."""
    model = _MODELS[args.model]
    given = {name: getattr(args, name) for name in (*_OPTIONS, "head") if getattr(args, name) is not None}
    taken = inspect.signature(model).parameters
    for name in given:
        if name not in taken:
            raise ValueError(f"[train] {args.model} has no {name}; leave out --{name}")
    channels, height, width = dataset.shape
    of_data = {"channels": channels, "levels": dataset.levels, "classes": classes}
    size = {"height": height, "width": width}
    return model(**given, **of_data, **{name: value for name, value in size.items() if name in taken})


def _split(dataset: Dataset, limit: int | None, held_out: int) -> tuple[Dataset, Dataset | None]:
    """Limit the images, and hold some out to validate on: a fixed random choice of them."""
    if limit is not None and limit < 1:
        raise ValueError(f"[train] limit must be at least 1, got {limit}")
    if limit is not None and limit < len(dataset):
        dataset = dataset.take(np.arange(limit), f"the first {limit}")
    if not held_out:
        return dataset, None
    if not 0 < held_out < len(dataset):
        raise ValueError(f"[train] valid must be in [0, {len(dataset)}), got {held_out}")
    order = np.random.default_rng(0).permutation(len(dataset))
    kept = dataset.take(np.sort(order[held_out:]), f"without {held_out} held out")
    return kept, dataset.take(np.sort(order[:held_out]), f"{held_out} held out")


def main() -> None:
    """Run `python -m pixelfast.train`."""
    parser = argparse.ArgumentParser(prog="python -m pixelfast.train", description="Train a model.")
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
