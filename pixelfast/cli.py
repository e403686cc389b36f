"""The command `pixelfast`. Each subcommand imports what it needs when it is chosen."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .data import Dataset
    from .models import AutoregressiveModel
    from .sampler import Sampler


@dataclass(frozen=True)
class _Command:
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 if an audit finds problems, 2 for a user's error, 130 after
    Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    options = _parser(argv).parse_args(argv)
    try:
        status = _COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"pixelfast {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ModuleNotFoundError, MemoryError) as error:
        print(f"pixelfast {options.command}: error: {_message(error)}", file=sys.stderr)
        return 2
    return status or 0


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the subcommands, only the one that `argv` names gets its options."""
    parser = argparse.ArgumentParser(
        prog="pixelfast",
        description="Exact, fast sampling from autoregressive image models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pixelfast {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=command.help, allow_abbrev=False
        )
        if name == chosen:
            command.add_arguments(subparser)
    return parser


# --- train --------------------------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from . import train

    train.add_arguments(parser)


def _train(options: argparse.Namespace) -> None:
    from . import train

    train.run(options)


# --- sample -------------------------------------------------------------------------------------------------


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("-n", type=int, default=64, metavar="N", help="number of images (64)")
    parser.add_argument(
        "--labels",
        metavar="A,B,...",
        help="classes, by number or name, repeated in turn (all of them, if the model has classes)",
    )
    parser.add_argument("--seed", type=int, default=0, help="image k of a seed is always the same image (0)")
    parser.add_argument("--out", default="samples.png", help="a .png grid or an .npz of arrays (samples.png)")
    parser.add_argument("--columns", type=int, help="images per row of the grid")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (1.0)")
    parser.add_argument("--top-k", type=int, help="draw from the K likeliest levels")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest levels of total probability P")
    _add_order(parser)
    _add_precision(parser)
    _add_threads(parser)
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (on a terminal)"
    )


def _sample(options: argparse.Namespace) -> None:
    import numpy as np

    from ._files import check_writable

    if options.n < 1:
        raise ValueError(f"[sample] n must be at least 1, got {options.n}")
    out = check_writable(options.out)
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"[sample] --out must end in .png or .npz, got {options.out!r}")
    model = _load(options.model)
    labels = _labels(options.labels, model, options.n)
    if out.suffix == ".png" and model.channels not in (1, 3):
        raise ValueError(f"[sample] a .png needs 1 or 3 colours, the model has {model.channels}: use .npz")
    sampler = _compile(model, options, options.precision)
    progress = sys.stderr.isatty() if options.progress is None else options.progress
    start = time.perf_counter()
    samples = sampler.sample(
        options.n,
        labels=labels,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        progress=progress,
        threads=options.threads,
    )
    seconds = time.perf_counter() - start
    images, log_prob = samples.images.numpy(), samples.log_prob.numpy()
    if out.suffix == ".npz":
        arrays = {"images": images, "log_prob": log_prob, "levels": np.array(model.levels)}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        _save_npz(out, arrays)
    else:
        from . import viz

        viz.save_grid(images, out, columns=options.columns, levels=model.levels)
    dims = images[0].size
    print(
        f"{options.n} images of {_by(sampler.shape)} in {seconds:.2f} s "
        f"({options.n / seconds:.1f} images/s), {sampler.steps} steps in {sampler.order} order, "
        f"{_bits(-log_prob.mean(), dims):.3f} bits/dim -> {out}"
    )


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np

    from ._files import replacing

    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


# --- eval ---------------------------------------------------------------------------------------------------


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--data", required=True, help="a data set: its folder or file")
    parser.add_argument("--split", default="test", help="which part of it (test)")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--batch", type=int, default=100, help="images at a time (100)")
    parser.add_argument(
        "--engine",
        choices=("torch", "engine"),
        default="torch",
        help="score with the PyTorch model, or with the engine that samples (torch)",
    )
    _add_precision(parser)
    _add_threads(parser)


def _eval(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from . import data, train

    model = _load(options.model)
    if options.engine == "torch" and options.precision != "fp32":
        raise ValueError(f"[eval] --precision {options.precision} is of the engine: add --engine engine")
    for name in ("limit", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"[eval] {name} must be at least 1, got {value}")
    dataset = data.load(options.data, split=options.split)
    if dataset.levels > model.levels:
        dataset = dataset.quantize(model.levels)
    if options.limit is not None and options.limit < len(dataset):
        dataset = dataset.take(np.arange(options.limit), f"the first {options.limit}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    if options.engine == "torch":
        nats = train.evaluate(model, dataset, batch=options.batch, progress=sys.stderr.isatty()).nats
    else:
        nats = _engine_nats(model, dataset, options)
    seconds = time.perf_counter() - start
    print(f"data      {dataset.name}: {dataset.description}")
    print(f"images    {len(dataset)} of {_by(dataset.shape)}, {dataset.levels} levels")
    print(f"sha256    {dataset.sha256}")
    print(f"engine    {options.engine}, {seconds:.1f} s")
    print(f"nats      {nats:.4f} per image")
    print(f"bits/dim  {_bits(nats, math.prod(dataset.shape)):.4f}")


def _engine_nats(model: AutoregressiveModel, dataset: Dataset, options: argparse.Namespace) -> float:
    """Return the mean negative log probability by the engine, in nats per image."""
    import torch
    from tqdm import tqdm

    from .sampler import compile as compile_model

    if model.classes is not None and dataset.labels is None:
        raise ValueError(f"[eval] the model has {model.classes} classes, but {dataset.name} has no labels")
    sampler = compile_model(model, shape=dataset.shape, precision=options.precision)
    total = 0.0
    starts = range(0, len(dataset), options.batch)
    for i in tqdm(starts, desc="evaluate", unit="batch", disable=not sys.stderr.isatty()):
        part = slice(i, i + options.batch)
        labels = None
        if model.classes is not None and dataset.labels is not None:
            labels = torch.from_numpy(dataset.labels[part])
        log_prob = sampler.log_prob(
            torch.from_numpy(dataset.images[part]), labels=labels, threads=options.threads
        )
        total -= log_prob.double().sum().item()
    return total / len(dataset)


# --- info ---------------------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_order(parser)
    parser.add_argument(
        "--picture", metavar="FILE", help="draw what the middle pixel sees, and the order, into a .png"
    )


def _info(options: argparse.Namespace) -> None:
    from ._files import check_writable, replacing
    from .receptive import receptive_field

    out = None if options.picture is None else check_writable(options.picture)
    if out is not None and out.suffix != ".png":
        raise ValueError(f"[info] --picture must end in .png, got {options.picture!r}")
    model = _load(options.model)
    sampler = _compile(model, options)
    config = ", ".join(f"{key}={value!r}" for key, value in model.config.items() if value is not None)
    weights = sum(parameter.numel() for parameter in model.parameters())
    fields = [receptive_field(stage.schedule.plan) for stage in sampler.stages]
    print(f"model            {type(model).__name__}({config})")
    print(f"parameters       {weights:,}")
    print(f"image            {_by(sampler.shape)}, {model.levels} levels")
    for field in fields:
        print(f"receptive field  {field}")
    pixels = math.prod(sampler.shape)
    print(f"order            {sampler.order}, {sampler.steps} steps for {pixels} sub-pixels")
    print()
    print(sampler.explain())
    if out is not None:
        from . import viz

        picture = viz.receptive_field(
            model, shape=sampler.shape, order=options.order, progress=sys.stderr.isatty()
        )
        with replacing(out) as temporary:
            picture.save(temporary)


# --- audit --------------------------------------------------------------------------------------------------


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    from ._audit import command

    command.add_arguments(parser)


def _audit(options: argparse.Namespace) -> int:
    from ._audit import command

    return command.run(options)


# --- demo ---------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="pixelfast-demo.png", help="where the picture goes (pixelfast-demo.png)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another picture (0)")
    _add_threads(parser)


def _demo(options: argparse.Namespace) -> None:
    from .demo import run

    run(options.out, seed=options.seed, threads=options.threads)


# --- doctor -------------------------------------------------------------------------------------------------


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _doctor(options: argparse.Namespace) -> None:
    from .doctor import run

    run()


# --- what the commands share --------------------------------------------------------------------------------


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of config.json and model.safetensors")
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="size of an image, if the folder does not say it"
    )


def _add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--order",
        choices=("auto", "raster", "wavefront"),
        default="auto",
        help="the images are the same (auto)",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16: up to three times as fast where the processor can, and not the same on every machine (fp32)",
    )


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_count, help="threads to use (all cores)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _size(text: str) -> tuple[int, int]:
    try:
        height, _, width = text.partition("x")
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 28x28, got {text!r}") from None


def _load(folder: str) -> AutoregressiveModel:
    from . import models

    return models.load(folder)


def _compile(model: AutoregressiveModel, options: argparse.Namespace, precision: str = "fp32") -> Sampler:
    from .sampler import compile as compile_model

    size = options.size or (model.shape and model.shape[1:])
    if not size:
        raise ValueError(f"{options.model} does not say the size of its images: give --size, such as 28x28")
    return compile_model(model, shape=(model.channels, *size), order=options.order, precision=precision)


def _labels(text: str | None, model: AutoregressiveModel, n: int) -> Tensor | None:
    """Return labels, int64 (N,): the given ones, or all classes, in turn. None if there are no classes."""
    import torch

    if model.classes is None:
        if text is not None:
            raise ValueError("[sample] the model has no classes, so it takes no --labels")
        return None
    names = {name.lower(): i for i, name in enumerate(model.class_names)}
    chosen = list(range(model.classes))
    if text is not None:
        words = [word.strip() for word in text.split(",")]
        chosen = [int(word) if word.isdecimal() else names.get(word.lower(), -1) for word in words]
        for word, label in zip(words, chosen, strict=True):
            if not 0 <= label < model.classes:
                known = f" or of {', '.join(model.class_names)}" if names else ""
                raise ValueError(f"[sample] --labels must be in [0, {model.classes}){known}, got {word!r}")
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]


def _bits(nats: float, dims: int) -> float:
    return nats / (dims * math.log(2))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


_COMMANDS = {
    "train": _Command("train a model on a data set", _train_arguments, _train),
    "sample": _Command("draw images from a model", _sample_arguments, _sample),
    "eval": _Command("measure a model's bits per dimension on a data set", _eval_arguments, _eval),
    "info": _Command("show a model, its receptive field, its plan and its schedule", _info_arguments, _info),
    "audit": _Command(
        "find out whether a model is autoregressive, what it sees, and what is wrong with it",
        _audit_arguments,
        _audit,
    ),
    "demo": _Command(
        "draw a grid of pictures with the model that comes with pixelfast", _demo_arguments, _demo
    ),
    "doctor": _Command(
        "show versions and the machine, and check that the engine works", _doctor_arguments, _doctor
    ),
}
