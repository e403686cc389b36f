"""Maximum-likelihood training, resumable to the bit, and evaluation."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import __version__, data, models
from .data import Dataset
from .models import AutoregressiveModel
from .models.base import write_atomically

STATE, RECORD = "state.safetensors", "train.json"
_LOG_EVERY = 100  # steps between two entries of the history


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

    Adam with a warm-up over the first 2% of the steps (at most 500) and a cosine to zero, gradients clipped to
    norm 1. The batches of an epoch depend on (seed, epoch) alone, so a resumed run goes on to the same weights,
    to the bit on the CPU, as one that was never stopped. The folder `out` holds config.json and
    model.safetensors (averaged weights: what `models.load` reads), state.safetensors (all that resuming needs)
    and train.json (arguments, data, versions, history), each replaced atomically every `save_minutes`, at the
    end of each epoch, and when the run is stopped by Ctrl-C, SIGTERM or `max_minutes`.

    Args:
        model: the model, trained in place on its device.
        dataset: images and, iff the model has classes, labels.
        out: folder to write to; made if missing.
        epochs: passes over the data; they set the learning rate's schedule.
        batch: images per step.
        lr: the highest learning rate.
        ema: decay of the average of the weights, per step.
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
        ValueError: for bad arguments, data that do not fit the model, an output folder that cannot be written or
            already holds another run, all before any work.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is written.
        SystemExit: on SIGTERM, after the checkpoint is written.
    """
    _check(model, dataset, valid, epochs=epochs, batch=batch, lr=lr, ema=ema, amp=amp)
    device = next(model.parameters()).device
    per_epoch = math.ceil(len(dataset) / batch)
    arguments = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "ema": ema,
        "amp": _resolve_amp(amp, device),
        "seed": seed,
    }
    record = {
        "model": type(model).__name__,
        "config": model.config,
        "arguments": arguments,
        "data": _describe(dataset),
        "valid": None if valid is None else _describe(valid),
        "command": shlex.join(sys.orig_argv),
        "versions": {"pixelfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "step": 0,
        "seconds": 0.0,
        "finished": False,
        "history": [],
    }
    folder = _prepare(out)
    run = _Run(model, record, folder, steps=epochs * per_epoch)
    if (folder / STATE).exists():
        if not resume:
            raise ValueError(f"[train] {folder} already holds a run: resume it, or choose another folder")
        run.restore()
    model.train()
    writer = _tensorboard(folder)
    start = last_save = last_log = time.monotonic()
    before = run.record["seconds"]
    with _signals() as received, _bar(run, len(dataset), batch, progress) as bar:
        while run.step < run.steps:
            epoch, within = divmod(run.step, per_epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(dataset))
            for i in range(within, per_epoch):
                images, labels = _batch(dataset, order[i * batch : (i + 1) * batch], device, model)
                run.update(images, labels)
                bar.update(len(images))
                now = time.monotonic()
                run.record["seconds"] = before + now - start
                if run.step % _LOG_EVERY == 0 or i + 1 == per_epoch:
                    entry = run.log()
                    bar.set_postfix_str(f"{entry['bits_per_dim']:.3f} bits/dim")
                    if writer is not None:
                        writer.add_scalar("bits_per_dim/train", entry["bits_per_dim"], run.step)
                        writer.add_scalar("images_per_second", _LOG_EVERY * batch / (now - last_log), run.step)
                    last_log = now
                late = max_minutes is not None and now - start > 60 * max_minutes
                if received or late or now - last_save > 60 * save_minutes:
                    run.save()
                    last_save = now
                if received == [signal.SIGTERM]:
                    raise SystemExit(128 + signal.SIGTERM)
                if received:
                    raise KeyboardInterrupt
                if late:
                    return run.averaged()
            run.save()
            if valid is not None:
                score = evaluate(run.averaged(), valid, batch=batch, amp=arguments["amp"], progress=False)
                run.record["history"][-1]["valid_bits_per_dim"] = round(score.bits_per_dim, 5)
                bar.write(f"epoch {epoch + 1}: valid {score.bits_per_dim:.4f} bits/dim")
                if writer is not None:
                    writer.add_scalar("bits_per_dim/valid", score.bits_per_dim, run.step)
            if sample_every and (epoch + 1) % sample_every == 0:
                _write_samples(run.averaged(), dataset, folder / "samples" / f"epoch-{epoch + 1:04}.png")
            run.record["finished"] = run.step == run.steps
            run.save()
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
    _check(model, dataset, None, batch=batch, amp=amp)
    device = next(model.parameters()).device
    total = 0.0
    starts = range(0, len(dataset), batch)
    for i in tqdm(starts, desc="evaluate", unit="batch", disable=not progress):
        images, labels = _batch(dataset, np.arange(i, min(i + batch, len(dataset))), device, model)
        with _autocast(_resolve_amp(amp, device), device):
            total -= model.log_prob(images, labels).double().sum().item()
    nats = total / len(dataset)
    return Evaluation(nats, nats / (math.prod(dataset.shape) * math.log(2)))


@dataclass
class _Run:
    """The state of a training run: what a checkpoint holds."""

    model: AutoregressiveModel
    record: dict[str, Any]
    folder: Path
    steps: int
    step: int = 0
    losses: list[float] = field(default_factory=list)  # bits/dim of the steps since the last log entry

    def __post_init__(self) -> None:
        arguments = self.record["arguments"]
        self.lr, self.amp, self.seed = arguments["lr"], arguments["amp"], arguments["seed"]
        self.device = next(self.model.parameters()).device
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(arguments["ema"]))
        self._schedule()

    def _schedule(self) -> None:
        warmup = min(500, max(1, self.steps // 50))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))

        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.lr
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor, last_epoch=self.step - 1)

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Take one step."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        with _autocast(self.amp, self.device):
            loss = -self.model.log_prob(images, labels).mean() / images[0].numel()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.losses.append(loss.item() / math.log(2))
        if not math.isfinite(self.losses[-1]):
            raise ValueError(f"[train] the loss is {self.losses[-1]} at step {self.step}: try a lower lr")

    def log(self) -> dict[str, Any]:
        """Add an entry to the history: the mean of the steps since the last."""
        entry = {
            "step": self.step,
            "bits_per_dim": round(sum(self.losses) / len(self.losses), 5),
            "seconds": round(self.record["seconds"], 1),
        }
        self.record["history"].append(entry)
        self.losses.clear()
        return entry

    def averaged(self) -> AutoregressiveModel:
        """Return the model of averaged weights, in eval mode."""
        model: AutoregressiveModel = self.average.module.eval()
        return model

    def save(self) -> None:
        """Write a checkpoint. The state is one file, so it is never half new."""
        self.record["step"] = self.step
        tensors = {"averaged": self.average.n_averaged.cpu()}
        for name, value in self.model.state_dict().items():
            tensors[f"weights/{name}"] = value
        for name, value in self.average.module.state_dict().items():
            tensors[f"ema/{name}"] = value
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value
        metadata = {"record": json.dumps(self.record), "losses": json.dumps(self.losses)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_atomically(self.folder / STATE, safetensors_bytes(tensors, metadata))
        self.average.module.save(self.folder)
        write_atomically(self.folder / RECORD, (json.dumps(self.record, indent=1) + "\n").encode())

    def restore(self) -> None:
        """Go back to the checkpoint in the folder."""
        path = self.folder / STATE
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key).to(self.device) for key in file.keys()}  # noqa: SIM118
            record, losses = json.loads(metadata["record"]), json.loads(metadata["losses"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"[train] {path} is truncated or no training state ({error})") from error
        for key in ("model", "config", "arguments", "data"):
            if record[key] != self.record[key]:
                raise ValueError(f"[train] cannot resume {path}: its {_difference(key, record[key], self.record[key])}")
        self.record["history"], self.record["seconds"] = record["history"], record["seconds"]
        self.step, self.losses = record["step"], losses
        self.model.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("weights/")})
        self.average.module.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema/")})
        self.average.n_averaged.copy_(tensors["averaged"])
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: tensors[f"adam/{name}/{key}"].to("cpu" if key == "step" else self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self._schedule()


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                return f"{key} has {name}={old.get(name)!r}, not {new.get(name)!r}"
    return f"{key} is {old!r}, not {new!r}"


def _check(model: AutoregressiveModel, dataset: Dataset, valid: Dataset | None, **options: Any) -> None:
    for name in ("epochs", "batch"):
        if options.get(name, 1) < 1:
            raise ValueError(f"[train] {name} must be at least 1, got {options[name]}")
    if not options.get("lr", 1) > 0:
        raise ValueError(f"[train] lr must be positive, got {options['lr']}")
    if not 0 <= options.get("ema", 0) < 1:
        raise ValueError(f"[train] ema must be in [0, 1), got {options['ema']}")
    if options["amp"] not in ("auto", "off", "bf16"):
        raise ValueError(f'[train] amp must be "auto", "off" or "bf16", got {options["amp"]!r}')
    for part in (dataset, valid):
        if part is None:
            continue
        if len(part) < 1:
            raise ValueError(f"[train] {part.name} holds no images")
        if part.shape[0] != model.channels:
            raise ValueError(f"[train] {part.name} has {part.shape[0]} channels, the model {model.channels}")
        if part.levels != model.levels:
            raise ValueError(f"[train] {part.name} has {part.levels} levels, the model {model.levels}")
        if model.classes is not None and (part.classes is None or part.classes > model.classes):
            have = "no labels" if part.classes is None else f"{part.classes} classes"
            raise ValueError(f"[train] {part.name} has {have}, the model {model.classes} classes")


def _prepare(out: str | os.PathLike[str]) -> Path:
    """Make the output folder, and find now whether it can be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"[train] cannot write to {folder}: {error.strerror}") from error
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


def _resolve_amp(amp: str, device: torch.device) -> str:
    if amp != "auto":
        return amp
    if device.type == "cpu":
        return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "off"
    return "bf16"


def _autocast(amp: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


def _bar(run: _Run, images: int, batch: int, progress: bool) -> tqdm:
    per_epoch = math.ceil(images / batch)
    epochs, within = divmod(run.step, per_epoch)
    total = run.steps // per_epoch * images
    done = epochs * images + within * batch
    return tqdm(total=total, initial=done, desc="train", unit="img", disable=not progress, smoothing=0.05)


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


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _write_samples(model: AutoregressiveModel, dataset: Dataset, path: Path) -> None:
    """Write a grid of 64 samples, one class per row, if the sampler is there."""
    try:
        from .sampler import compile
        from .viz import sample_grid
    except ImportError:
        return
    labels = None if model.classes is None else torch.arange(64) // 8 % model.classes
    images = compile(model, shape=dataset.shape).sample(64, labels=labels, seed=0).images
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(images, path, levels=model.levels)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pixelfast train` to a parser."""
    parser.add_argument("--data", required=True, help="folder or file of the data set; see pixelfast.data.load")
    parser.add_argument("--out", required=True, help="folder to write the run to")
    parser.add_argument("--model", choices=["pixelcnn", "gated-pixelcnn"], default="gated-pixelcnn")
    parser.add_argument("--hidden", type=int, default=64, help="width of the layers (default 64)")
    parser.add_argument("--layers", type=int, default=12, help="number of layers (default 12)")
    parser.add_argument("--kernel", type=int, default=7, help="size of the first layer (default 7)")
    parser.add_argument(
        "--classes", action=argparse.BooleanOptionalAction, default=False, help="condition on the labels"
    )
    parser.add_argument("--levels", type=int, help="quantize the images to so many levels")
    parser.add_argument("--head", choices=["categorical", "bernoulli"], default="categorical")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--amp", choices=["auto", "off", "bf16"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--valid", type=int, default=0, help="training images to hold out for validation (default 0)")
    parser.add_argument("--limit", type=int, help="use only so many training images")
    parser.add_argument("--max-minutes", type=float, help="stop, with a checkpoint, after so many minutes")
    parser.add_argument("--sample-every", type=int, default=1, help="epochs between sample grids; 0 for none")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")


def run(args: argparse.Namespace) -> AutoregressiveModel:
    """Run `pixelfast train` with parsed arguments.

    Raises:
        ValueError: as `data.load` and `train`.
    """
    _prepare(args.out)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dataset = data.load(args.data)
    if args.levels is not None:
        dataset = dataset.quantize(args.levels)
    if args.classes and dataset.classes is None:
        raise ValueError(f"[train] {dataset.name} has no labels, so --classes cannot be used")
    dataset, valid = _split(dataset, args.limit, args.valid)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = {"pixelcnn": models.PixelCNN, "gated-pixelcnn": models.GatedPixelCNN}[args.model](
        channels=dataset.shape[0],
        levels=dataset.levels,
        hidden=args.hidden,
        layers=args.layers,
        kernel=args.kernel,
        classes=dataset.classes if args.classes else None,
        head=args.head,
    ).to(device)
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
        max_minutes=args.max_minutes,
    )


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
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
