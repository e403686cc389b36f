"""How long does a GPU take? The cuda backend against the cpu one, whose bits it must give, and the plain loop there."""

from __future__ import annotations

import argparse
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch

from pixelfast import Sampler, _emulated, masked_conv, models, plain
from pixelfast import runtime as runtimes
from pixelfast._files import check_writable
from pixelfast.device_conv import Kernels
from pixelfast.sampler import compile as compile_model

from . import harness
from .sampling import Case, duration

# A network, and batch sizes.
CASES = (
    (Case(models.PixelCNN, 1, 28, 64, 12), (1, 64)),
    (Case(models.GatedPixelCNN, 1, 28, 64, 12), (1, 64)),
    (Case(models.GatedPixelCNN, 1, 32, 128, 15), (16, 256)),
    (Case(models.GatedPixelCNN, 3, 32, 128, 15), (16,)),
)
CONVOLUTIONS = ((32, 64, 64), (32, 128, 128), (64, 64, 256))  # image, batch, hidden
TRAINING = ((32, 64, 128, 15), (32, 128, 128, 15))  # image, batch, hidden, layers
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"


def gpu() -> dict[str, str]:
    """The first GPU, its driver and clocks, as nvidia-smi tells; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(QUERY.split(","), out.splitlines()[0].split(", "), strict=True))


def verify(device: Sampler, cpu: Sampler, n: int = 3) -> None:
    """Check that two backends draw the same images, with the same log-probabilities. Raises ValueError if not."""
    want, got = cpu.sample(n, seed=1), device.sample(n, seed=1).cpu()
    if not (torch.equal(got.images, want.images) and torch.equal(got.log_prob, want.log_prob)):
        raise ValueError(f"[verify] {device.target.backend} and cpu draw different images")


def measure(
    case: Case, batches: Sequence[int], *, backend: str, teams: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Time one network at some batch sizes, for several numbers of blocks that share images: with weights resident and
    without, beside what is chosen, also in bf16, and the estimates by which it is."""
    model = case.model()
    cpu = compile_model(model, shape=case.shape)
    device = compile_model(model, shape=case.shape, backend=backend)
    half = compile_model(model, shape=case.shape, backend=backend, precision="bf16")
    verify(device, cpu)
    rows = []
    for n in batches:
        contestants = {
            f"{team} blocks{name}": lambda n=n, team=team, resident=resident: harness.timed(
                lambda: device.sample(n, seed=0, team=team, resident_nbytes=resident)
            )
            for team in teams
            for name, resident in (("", None), (", none resident", 0))
        }
        contestants["chosen"] = lambda n=n: harness.timed(lambda: device.sample(n, seed=0))
        contestants["bf16"] = lambda n=n: harness.timed(lambda: half.sample(n, seed=0))
        contestants["cpu"] = lambda n=n: harness.timed(lambda: cpu.sample(n, seed=0))
        seconds = harness.interleaved(contestants, repeats)
        row = {
            "model": case.name,
            "batch": n,
            "order": f"{device.order}, skew {device.schedule.order.skew}",
            "steps": device.steps,
            "launches": sum(1 for _ in device.schedule.launches()),
            "multiply_adds_per_image": device.multiply_adds,
            "seconds": seconds,
            "estimates": [asdict(crew) for crew in device.explain(n).crews],
        }
        if torch.cuda.is_available():
            loop = [plain.seconds(model.cuda(), (n, *case.shape), passes=3)[1] for _ in range(repeats)]
            row["plain_loop_extrapolated"] = statistics.median(loop)
            model.cpu()
        rows.append(row)
        print(harness.table(table({"rows": rows[-1:]})), flush=True)
    return rows


def launch_seconds(backend: str, teams: Sequence[int], repeats: int) -> dict[str, float]:
    """Seconds for each launch of a network in which next to nothing is computed: waiting, and finding rows and places.

    By the number of blocks that share an image. Times as many launches depend on each other, it is a floor.
    """
    model = models.PixelCNN(hidden=2, layers=32, levels=2, head="bernoulli").eval()
    device = compile_model(model, shape=(1, 12, 12), order="raster", backend=backend)
    count = sum(1 for _ in device.schedule.launches())
    contestants = {
        f"{team} blocks": lambda team=team: harness.timed(lambda: device.sample(1, team=team))
        for team in teams
    }
    return {name: found / count for name, found in harness.interleaved(contestants, repeats).items()}


def convolution(
    module: ModuleType, size: int, batch: int, hidden: int, device: str, repeats: int
) -> dict[str, Any]:
    """A gated horizontal and a gated vertical convolution, forward and backward: the kernels against their twin."""
    kernels, row = Kernels(module), {"size": size, "batch": batch, "hidden": hidden, "seconds": {}}
    for name, kernel, padding in (("1x2", (1, 2), (1, 0, 0, 0)), ("2x3", (2, 3), (1, 1, 1, 0))):
        half = torch.bfloat16 if device == "cuda" else torch.float32
        x = torch.randn(batch, hidden, size, size, device=device, dtype=half)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(2 * hidden, hidden, *kernel, device=device, dtype=half)
        grad = torch.randn(batch, 2 * hidden, size, size, device=device, dtype=half)
        grad = grad.contiguous(memory_format=torch.channels_last)
        taps = range(kernel[0] * kernel[1])

        def timer(work: Callable[[], object]) -> Callable[[], float]:
            def timed() -> float:
                wait = torch.cuda.synchronize if device == "cuda" else lambda: None
                wait()
                return harness.timed(lambda: (work(), wait()))

            return timed

        forward = (x, weight, None, None, padding, taps, None, True, None)
        to_input = (grad, weight, None, (size, size), padding, taps)
        to_weight = (grad, x, None, kernel, padding, taps, True)
        row["seconds"][name] = harness.interleaved(
            {
                "forward, kernels": timer(lambda a=forward: kernels.forward(*a)),
                "forward, twin": timer(lambda a=forward: masked_conv._forward(*a)),
                "to input, kernels": timer(lambda a=to_input: kernels.input_grad(*a)),
                "to input, twin": timer(lambda a=to_input: masked_conv._input_grad(*a)),
                "to weight, kernels": timer(lambda a=to_weight: kernels.weight_grad(*a)),
                "to weight, twin": timer(lambda a=to_weight: masked_conv._weight_grad(*a)),
            },
            repeats,
        )
    return row


def training_step(
    module: ModuleType, size: int, batch: int, hidden: int, layers: int, device: str, repeats: int
) -> dict[str, Any]:
    """A training step of a Gated PixelCNN, forward and backward in bf16: with the kernels, with their twin, and with
    that after `torch.compile`."""
    torch.manual_seed(0)
    model = models.GatedPixelCNN(channels=3, hidden=hidden, layers=layers)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.randint(0, 256, (batch, 3, size, size), device=device)
    kernels, key = Kernels(module), "CUDA" if device == "cuda" else "CPU"
    peaks: dict[str, int] = {}

    def loss(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return -model.log_prob(images).sum()

    def step(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        loss(images).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(name: str, loss: Callable[[torch.Tensor], torch.Tensor] = loss) -> float:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = harness.timed(lambda: step(loss))
        peaks[name] = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return found

    def with_kernels() -> float:
        with torch.library._scoped_library("pixelfast", "IMPL") as library:
            kernels.register(library, key)
            return timed("kernels")

    contestants = {"kernels": with_kernels, "twin": lambda: timed("twin")}
    if device == "cuda":
        compiled = torch.compile(loss)
        contestants["compiled twin"] = lambda: timed("compiled twin", compiled)
    seconds = harness.interleaved(contestants, repeats)
    return {
        "size": size,
        "batch": batch,
        "hidden": hidden,
        "layers": layers,
        "seconds": seconds,
        "nbytes": peaks,
    }


def training_table(result: Mapping[str, Any]) -> list[list[str]]:
    """How many times as fast a training step is with the kernels as with the best of the others, and the memory."""
    lines = [["image", "batch", "hidden", "layers", "kernels", "twin", "compiled twin", "faster", "memory"]]
    for row in result["training"]:
        seconds, nbytes = row["seconds"], row["nbytes"]
        lines.append(
            [
                f"{row['size']}x{row['size']}",
                *(str(row[name]) for name in lines[0][1:4]),
                *(duration(seconds[name]) if name in seconds else "" for name in lines[0][4:7]),
                f"{min(seconds[name] for name in seconds if name != 'kernels') / seconds['kernels']:.2f}x",
                f"{nbytes['kernels'] / nbytes['twin']:.2f}x" if nbytes["twin"] else "",
            ]
        )
    return lines


def convolution_table(result: Mapping[str, Any]) -> list[list[str]]:
    """How many times as fast as their twin the kernels are."""
    lines = [["image", "batch", "hidden", "kernel", "forward", "to input", "to weight"]]
    for row in result["convolutions"]:
        for name, seconds in row["seconds"].items():
            ratios = (seconds[f"{k}, twin"] / seconds[f"{k}, kernels"] for k in lines[0][4:])
            sizes = f"{row['size']}x{row['size']}", str(row["batch"]), str(row["hidden"])
            lines.append([*sizes, name, *(f"{ratio:.2f}x" for ratio in ratios)])
    return lines


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [
        [
            "model",
            "batch",
            "launches",
            "best",
            "of",
            "over launches",
            "chosen",
            "bf16",
            "cpu",
            "plain loop*",
            "vs plain",
        ]
    ]
    floor = result.get("launch_seconds", {})
    for row in result["rows"]:
        seconds = {name: value for name, value in row["seconds"].items() if "blocks" in name}
        best = min(seconds, key=lambda name: seconds[name])
        blocks = best.split(",")[0]
        loop = row.get("plain_loop_extrapolated")
        lines.append(
            [
                row["model"],
                str(row["batch"]),
                f"{row['launches']:,}",
                duration(seconds[best]),
                best,
                f"{seconds[best] / floor[blocks] / row['launches']:.2f}" if blocks in floor else "",
                *(duration(row["seconds"][name]) for name in ("chosen", "bf16", "cpu")),
                duration(loop) if loop else "",
                f"{loop / seconds[best]:,.0f}x" if loop else "",
            ]
        )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks gpu`."""
    parser.add_argument("--only", default="", metavar="TEXT", help="models whose name has this in it")
    parser.add_argument("--backend", default="cuda", help='"cuda", or "emulated", whose times mean nothing')
    parser.add_argument(
        "--teams", type=int, nargs="+", default=(1, 2, 4, 8), metavar="N", help="blocks that share images"
    )
    for name, what in (("networks", "sampling"), ("convolutions", "masked convolutions and training steps")):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=f"time {what} (yes)"
        )
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one to warm up (3)")
    parser.add_argument("--out", help="where the JSON record goes")


def run_part(options: argparse.Namespace, *, networks: bool, convolutions: bool) -> dict[str, Any]:
    """Answer a question of another benchmark for a GPU, with its options. Raises ValueError where there is none."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    own = parser.parse_args([])
    own.only, own.repeats, own.out = options.only, options.repeats, options.out
    own.networks, own.convolutions = networks, convolutions
    return run(own)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record. Raises ValueError where there is no GPU."""
    if options.out is not None:
        check_writable(options.out)
    if options.backend == "cuda" and (missing := runtimes.no_cuda()):
        raise ValueError(f"[gpu] not measured: {missing}")
    busy = harness.load()
    rows = []
    for case, batches in CASES:
        if options.networks and options.only in case.name:
            rows += measure(
                case, batches, backend=options.backend, teams=options.teams, repeats=options.repeats
            )
    module, device = (runtimes._cuda, "cuda") if options.backend == "cuda" else (_emulated, "cpu")
    result = harness.record("gpu", 1, busy, rows)
    result["convolutions"] = [
        convolution(module, *sizes, device, options.repeats) for sizes in CONVOLUTIONS if options.convolutions
    ]
    result["training"] = [
        training_step(module, *sizes, device, options.repeats) for sizes in TRAINING if options.convolutions
    ]
    result["launch_seconds"] = launch_seconds(options.backend, options.teams, options.repeats)
    result["gpu"] = gpu()
    result["backend"] = options.backend
    print(harness.table(table(result)))
    print("over launches: the time, over that of as many launches with next to nothing in them")
    print("* extrapolated from three forward passes")
    print(harness.table(convolution_table(result)))
    print(harness.table(training_table(result)))
    if options.out is not None:
        harness.save(result, options.out)
    return result
