"""Models that the tests of the compiler and of the runtimes share, captured once each."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelfast as pf
from pixelfast import _cpu, passes, reference
from pixelfast import causality as C
from pixelfast import readiness as R
from pixelfast import schedule as S
from pixelfast.capture import capture
from pixelfast.lower import lower
from pixelfast.orders import schedule_in
from pixelfast.runtime import Target, no_cuda
from pixelfast.sharing import share

# How far an image's log-probability may lie from the model's own, evaluated in float64.
TOLERANCE = {
    ("reference", "float32"): {"rtol": 1e-5, "atol": 1e-4},
    ("cpu", "float32"): {"rtol": 1e-5, "atol": 1e-4},
}

ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(isa not in _cpu.isas(), reason=f"this machine has no {isa}"))
    for isa in ("scalar", "avx2", "avx512")
]
ON_A_GPU = [pytest.mark.cuda, pytest.mark.skipif(no_cuda() is not None, reason=f"{no_cuda()}")]
ORDERS = ("raster", "wavefront")


def loud(
    module: nn.Module, last: nn.Module, shape: tuple[int, int, int], *, spread: float = 2.0
) -> nn.Module:
    """Draw all biases anew, and scale the last layer so that the logits' standard deviation is `spread`."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
        images = torch.randint(0, module.head.levels, (8, *shape), generator=generator)
        logits = module(images, **labels_of(module, 8))
        last.weight.mul_(spread / max(logits.std().item(), 0.1))
    return module.eval()


def labels_of(module: nn.Module, n: int, first: int = 0) -> dict[str, Tensor]:
    """What `module` and its sampler take besides images: labels for images first .. first+n-1."""
    classes = getattr(module, "classes", None)
    return {"labels": torch.arange(first, first + n) % classes} if classes else {}


class Case:
    """A module, captured once, and its samplers for every order, backend and instruction set."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int]):
        self.module, self.shape = module, shape
        self._samplers: dict[tuple, pf.Sampler] = {}
        self._schedules: dict[tuple[str, bool], S.Schedule] = {}

    def __repr__(self) -> str:
        return f"Case({self.module!r}, {self.shape})"

    @functools.cached_property
    def _captured(self) -> pf.Sampler:
        return pf.compile(self.module, shape=self.shape, order="raster", backend="reference")

    @property
    def plan(self) -> Any:
        """Split and pruned, not yet fused."""
        return self._captured._plan

    def sampler(self, order: str = "raster", backend: str = "cpu", isa: str | None = None) -> pf.Sampler:
        key = order, backend, isa
        if key not in self._samplers:
            early = backend in ("emulated", "cuda")
            self._samplers[key] = recompile(
                self._captured, self._schedule(order, early), backend=backend, isa=isa
            )
        return self._samplers[key]

    def order(self, name: str) -> R.Order:
        if name == "raster":
            return R.raster(self.shape)
        return R.wavefront(self.shape, C.find_skew(self.plan))

    def _schedule(self, order: str, early: bool = False) -> S.Schedule:
        """early: as for devices, but of small networks, too."""
        key = order, early
        if key not in self._schedules and early:
            fused = passes.fuse(self.plan, R.lateness(self.plan, self.order(order)))
            cut = share(fused, alone=True, least=1)
            self._schedules[key] = S.schedule(cut, self.order(order), early=True)
        elif key not in self._schedules:
            self._schedules[key] = schedule_in(self.plan, self.order(order))
        return self._schedules[key]

    def labels(self, n: int, first: int = 0) -> dict[str, Tensor]:
        return labels_of(self.module, n, first)

    def exact_log_prob(self, images: Tensor, first: int = 0) -> Tensor:
        """float64 (N,): the module's own, teacher-forced."""
        double = copy.deepcopy(self.module).double()
        labels = self.labels(len(images), first)
        with torch.no_grad():
            return self.module.head.log_prob(double(images.long(), **labels), images)


def recompile(
    sampler: pf.Sampler, schedule: S.Schedule, *, backend: str = "cpu", isa: str | None = None
) -> pf.Sampler:
    """A sampler of the same captured model, without capturing it again."""
    return sampler.rescheduled(schedule, Target(backend, isa))


def assert_same_on(reference: pf.Sampler, isa: str, *, seed: int, **labels: Any) -> None:
    """The cpu's images and log-probabilities are the reference's, to the bit, for every chunk and crew.

    labels: of 3 images, where the model takes some.
    """
    want = reference.sample(3, seed=seed, **labels)
    sampler = recompile(reference, reference.schedule, backend="cpu", isa=isa)
    for chunk, threads, team in ((1, 1, 1), (3, 2, 1), (2, 3, 3)):
        got = sampler.sample(3, seed=seed, chunk=chunk, threads=threads, team=team, **labels)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
    for team in (1, 2):
        assert torch.equal(sampler.log_prob(want.images, threads=2, team=team, **labels), want.log_prob)
    if isa != "scalar":  # once
        return
    first = {name: value[:2] for name, value in labels.items()}
    for backend in ("emulated", "cuda") if no_cuda() is None else ("emulated",):
        device = recompile(reference, reference.schedule, backend=backend)
        got = device.sample(2, seed=seed, chunk=2, team=2, **first).cpu()
        assert torch.equal(got.images, want.images[:2])
        assert torch.equal(got.log_prob, want.log_prob[:2])


def scorer(module: nn.Module, shape: tuple[int, int, int]) -> pf.Sampler:
    """A sampler that can only score, so that the module need not be causal."""
    classes = {"labels": module.classes} if getattr(module, "classes", None) else {}
    examples = {name: torch.zeros(2, dtype=torch.int64) for name in classes}
    captured = capture(module, shape=shape, levels=module.head.levels, conditions=examples)
    lowered = lower(captured, module.head)
    plan = passes.inline(passes.prune(passes.split(lowered.plan)))
    return pf.Sampler(
        plan,
        schedule_in(plan, R.known(shape)),
        captured=captured,
        head=module.head,
        conditions=lowered.conditions,
        classes=classes,
        target=Target("reference"),
    )


def logits_of(sampler: pf.Sampler, images: Tensor, **labels: Any) -> np.ndarray:
    """float32 (N, C, H, W, parameters): what the heads read while the reference runtime scores the images."""
    runtime = recompile(sampler, sampler.schedule, backend="reference")
    seen: dict[tuple, np.ndarray] = {}
    plain = reference._Image.head

    def head(self: Any, op: Any, y: int, x: int) -> None:
        count = 1 if op.name == "bernoulli" else self.owner.decoded.levels
        read = self.read(op.fields["buffer"], op.fields["channel"], count, y, x)
        seen[self.index, op.fields["colour"], y, x] = read.copy()
        plain(self, op, y, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference._Image, "head", head)
        runtime.log_prob(images, **labels)
    return np.stack([seen[i] for i in np.ndindex(len(images), *sampler.shape)]).reshape(*images.shape, -1)


# --- models of the package ------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A model of `pixelfast.models` by the arguments that matter."""

    kind: str
    shape: tuple[int, int, int]
    levels: int
    head: str = "categorical"
    classes: int | None = None
    kernel: int = 3
    layers: int = 2

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.kind}-{size}-{self.head[:3]}{self.levels}" + ("-labels" if self.classes else "")


SPECS = [
    Spec("PixelCNN", (1, 5, 7), 2),
    Spec("PixelCNN", (1, 6, 1), 2, "bernoulli", kernel=5),
    Spec("PixelCNN", (1, 1, 6), 256),
    Spec("PixelCNN", (3, 5, 7), 4, classes=3),
    Spec("PixelCNN", (3, 1, 1), 256, classes=3),
    Spec("PixelCNN", (1, 1, 1), 2, "bernoulli"),
    Spec("GatedPixelCNN", (1, 5, 7), 2, "bernoulli", kernel=5, layers=3),
    Spec("GatedPixelCNN", (1, 6, 1), 256, classes=3),
    Spec("GatedPixelCNN", (1, 1, 1), 4),
    Spec("GatedPixelCNN", (3, 5, 7), 4, classes=3),
    Spec("GatedPixelCNN", (3, 1, 6), 2, "bernoulli"),
    Spec("GatedPixelCNN", (3, 6, 1), 2, kernel=5),
]


@functools.cache
def case_of(spec: Spec) -> Case:
    torch.manual_seed(0)
    model = getattr(pf.models, spec.kind)(
        channels=spec.shape[0],
        levels=spec.levels,
        hidden=6,
        layers=spec.layers,
        kernel=spec.kernel,
        classes=spec.classes,
        head=spec.head,
    )
    return Case(loud(model, model.last, spec.shape), spec.shape)


class Pyramid(nn.Module):
    """Strided down, and up again, seen one row of blocks later."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.levels, self.channels = pf.heads.Bernoulli(), 2, 1
        self.down = nn.Conv2d(1, 3, 2, stride=2)
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.left = nn.Conv2d(1, 2, (1, 2))
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, images):
        x = images.to(self.last.weight.dtype)
        above = F.pad(self.up(torch.tanh(self.down(x))), (0, 0, 2, -2))
        left = self.left(F.pad(x, (2, -1)))
        return self.last(torch.cat([above, left], 1))


@functools.cache
def pyramid() -> Case:
    torch.manual_seed(0)
    module = Pyramid()
    return Case(loud(module, module.last, (1, 6, 8)), (1, 6, 8))


def dependence(case: Case) -> np.ndarray:
    """bool (D, D), sub-pixels as (c, y, x) flattened: whether the first's distribution depends on the second.

    Found by changing one sub-pixel of several random images at a time, in float64, without dead rectifiers.
    """
    double = copy.deepcopy(case.module).double()
    count = math.prod(case.shape)
    found = np.zeros((count, count), bool)
    generator = torch.Generator().manual_seed(2)
    for _ in range(8):
        image = torch.randint(0, case.module.levels, case.shape, generator=generator)
        batch = image.repeat(count + 1, 1, 1, 1)
        flat = batch.view(count + 1, -1)
        index = torch.arange(count)
        flat[index, index] = (flat[index, index] + 1) % case.module.levels
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "relu", F.softplus)
            labels = {k: v[:1].expand(count + 1) for k, v in case.labels(1).items()}
            logits = case.module.head.logits(double(batch, **labels))
        logits = logits - logits[:, :1]  # what the distribution depends on
        change = (logits[:-1] - logits[-1:]).abs()
        found |= (change > 1e-11).any(1).flatten(1).T.numpy()  # PyTorch rounds images of a batch differently
    return found
