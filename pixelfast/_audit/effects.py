"""What a module does, by running a copy of it: dependence, by changing one sub-pixel at a time; the batch; chance."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture import BATCH, forked, inner_path, unvalidated
from ..causality import Leak
from ..frozen import inference_copy, resize_caches
from ..heads import Bernoulli, Custom, Head, LogisticMixture
from ..inputs import Fed
from ..prepare import Prepared
from ..readiness import raster

kChanges = 24  # sub-pixels that are changed one at a time
kImages = 2  # random images in each of which they are
kTolerance = {torch.float64: 1e-9, torch.float32: 1e-4}  # fast convolutions round by what is in their tile
kFloats = 1 << 23  # parameters of distributions that are held at once
Change = tuple[tuple[int, ...], int, int]  # colours, y, x


class Runner:
    """A copy of the module in eval mode (or `training`), which yields what the distributions are functions of."""

    def __init__(self, prepared: Prepared, dtype: torch.dtype = torch.float32, *, training: bool = False):
        self.prepared, self.dtype = prepared, dtype
        self.module: Any = inference_copy(prepared.module).to(dtype).train(training)
        head = prepared.head
        self.head: Head = head.weights() if isinstance(head, Custom) else replace(head, layout=None)  # type: ignore[type-var]
        inner: Any = self.module.module
        if dtype != torch.float32 and isinstance(inner, Fed):
            inner.module.register_forward_pre_hook(_cast(dtype), with_kwargs=True)

    def images(self, n: int, seed: int) -> Tensor:
        """int64 (n, C, H, W), random."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.head.levels, (n, *self.prepared.shape), generator=generator)

    def conditions(self, n: int) -> dict[str, Tensor]:
        examples = {key: v[:1].expand(n, *v.shape[1:]) for key, v in self.prepared.examples.items()}
        return {key: v.to(self.dtype) if v.is_floating_point() else v for key, v in examples.items()}

    def run(self, images: Tensor, seed: int = 0) -> Tensor:
        """float64 (N, parameters, C, H, W): equal where the distributions are. `seed`: of what is left to chance."""
        with torch.no_grad(), unvalidated(), forked():
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002, forward may draw from it
            random.seed(seed)
            params = self.forward(images).double()
            return _canonical(self.head, params, images)

    def forward(self, images: Tensor) -> Tensor:
        """The head's parameters."""
        conditions = self.conditions(len(images))
        try:
            return self.module(images, **conditions)
        except Exception:
            if resize_caches(self.module, BATCH):
                return self.module(images, **conditions)
            raise


def _cast(dtype: torch.dtype) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}

    return hook


def _canonical(head: Head, params: Tensor, images: Tensor) -> Tensor:
    if isinstance(head, LogisticMixture):
        weights, means, log_scales = head._mixtures(params, images)
        weights = weights.expand(-1, means.shape[1], -1, -1, -1)
        if head.coupled:
            mass = head._log_mass(images.long().unsqueeze(2), means, log_scales)
            weights = (weights + mass.cumsum(1) - mass).log_softmax(2)
        return torch.cat([weights, means, log_scales], 2).transpose(1, 2)
    if isinstance(head, Bernoulli):
        return params.unsqueeze(1)
    return head.logits(params, images).log_softmax(1)


def differ(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """bool (N, C, H, W): where distributions differ."""
    near = (a - b).abs() <= tolerance * (1 + b.abs())
    return ~(near | (a == b) | (a.isnan() & b.isnan())).all(1)


@dataclass(frozen=True)
class Manner:
    """How a module has to be run: whether each image alone, since others change it, or chance does; and what was found.

    breaks: what forward says to a batch of 2, of 1, or of 3.
    """

    random: bool
    sources: tuple[str, ...]
    mixes: bool | None
    breaks: dict[int, str]

    @property
    def alone(self) -> bool:
        return self.random or bool(self.mixes) or 2 in self.breaks or 3 in self.breaks

    @property
    def least(self) -> int:
        return 2 if 1 in self.breaks else 1


def manner(prepared: Prepared) -> Manner:
    """Raises `ValueError` where forward takes images of this shape in no batch at all."""
    runner = Runner(prepared)
    breaks: dict[int, str] = {}
    for n in (2, 1, 3):
        try:
            runner.run(runner.images(n, 0))
        except Exception as error:
            breaks[n] = said(error)
    if {1, 2} <= {*breaks}:
        shape = (2, *prepared.shape)
        raise ValueError(f"[audit] {prepared.name} cannot be run on images of shape {shape}: {breaks[2]}")
    n = 1 if 2 in breaks else 2
    images = runner.images(n, 1)
    with watching(runner.module) as watch:
        first = runner.run(images)
    again, other = (runner.run(images, seed) for seed in (0, 1))
    if differ(first, again, kTolerance[runner.dtype]).any():
        raise ValueError(
            f"[audit] {prepared.name} gives other results in each run, whatever the random seeds"
        )
    drawn = bool(differ(first, other, kTolerance[runner.dtype]).any())
    mixes = None if 2 in breaks else mixing(runner)
    return Manner(drawn, tuple(watch.found) if drawn else (), mixes, breaks)


def mixing(runner: Runner) -> bool:
    """Whether an image's distributions change with the other image of a batch."""
    images = runner.images(3, 2)
    first, second = (runner.run(images[[0, other]])[:1] for other in (1, 2))
    return bool(differ(first, second, kTolerance[runner.dtype]).any())


def mixing_in_training(prepared: Prepared) -> bool | None:
    try:
        return mixing(Runner(prepared, training=True))
    except Exception:  # many modules return something else when they train
        return None


def said(error: Exception) -> str:
    """The first line of a message."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


class watching(TorchDispatchMode):
    """While it lasts, `found` collects which modules draw random numbers by which op."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.found: dict[str, None] = {}
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        for name, part in module.named_modules():
            if isinstance(part, torch.jit.ScriptModule):  # takes no hooks
                continue
            path = inner_path(name)
            self._hooks.append(part.register_forward_pre_hook(lambda *_, path=path: self._stack.append(path)))
            self._hooks.append(part.register_forward_hook(lambda *_: self._leave()))

    def _leave(self) -> None:
        self._stack.pop()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            path = next((p for p in reversed(self._stack) if p), "")
            name = func.overloadpacket.__name__.strip("_")
            self.found[f"{name} in {path!r}" if path else name] = None
        return func(*args, **(kwargs or {}))


# --- dependence -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Effects:
    """`seen[i]`: bool (C, H, W), the sub-pixels whose distribution changes with `changes[i]`."""

    shape: tuple[int, int, int]
    changes: list[Change]
    seen: np.ndarray
    dtype: str

    def singles(self) -> tuple[list[tuple[int, int, int]], np.ndarray]:
        """Where one colour was changed alone: (colour, y, x) of each, and what it changed."""
        index = [i for i, (colours, _, _) in enumerate(self.changes) if len(colours) == 1]
        places = [(self.changes[i][0][0], *self.changes[i][1:]) for i in index]
        return places, self.seen[index]

    def leak(self, kind: str | None = None) -> Leak | None:
        """The first one, to the last sub-pixel; `kind` "spatial" or "colour" for those alone. No module is known."""
        when = raster(self.shape).steps
        best: tuple[tuple[int, int], Leak] | None = None
        for (colours, y, x), seen in zip(self.changes, self.seen, strict=True):
            on = (colours[0], y, x)
            too_early = seen & (when <= when[on])
            if kind is not None and self.shape[0] > 1:
                inside = when // self.shape[0] == when[on] // self.shape[0]
                too_early &= inside if kind == "colour" else ~inside
            elif kind == "colour":
                continue
            for of in np.argwhere(too_early):
                at = tuple(of.tolist())
                rank = int(when[at]), -int(when[on])
                if best is None or rank < best[0]:
                    best = rank, Leak(at, on, ())
        return best and best[1]

    def colours(self, pixel: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """For each colour of a pixel, the earlier ones that it depends on."""
        places, seen = self.singles()
        found: list[list[int]] = [[] for _ in range(self.shape[0])]
        for (c, *at), effect in zip(places, seen, strict=True):
            for later in range(c + 1, self.shape[0]):
                if tuple(at) == pixel and effect[later, *pixel]:
                    found[later].append(c)
        return tuple(tuple(sorted({*cs})) for cs in found)

    def field(self, pixel: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """bool (H, W) each: the pixels that a pixel depends on, and those that were changed."""
        mask, known = np.zeros(self.shape[1:], bool), np.zeros(self.shape[1:], bool)
        for (colours, y, x), seen in zip(self.changes, self.seen, strict=True):
            known[y, x] |= len(colours) == self.shape[0]
            mask[y, x] |= bool(seen[:, *pixel].any())
        return mask, known | mask


def target(shape: tuple[int, int, int]) -> tuple[int, int]:
    """The pixel whose receptive field is shown: it sees the most."""
    return shape[1] - 1, shape[2] // 2


def colour_leaks(prepared: Prepared) -> bool:
    """Whether some colour of one pixel depends on itself, or on a later one."""
    y, x = target(prepared.shape)
    changes = [((c,), y, x) for c in range(prepared.shape[0])]
    effects = _measure(Runner(prepared), Manner(False, (), False, {}), changes, [], 0.0)
    return effects.leak("colour") is not None


def measure(prepared: Prepared, manner: Manner, *, pixel: tuple[int, int], seconds: float | None) -> Effects:
    """Change some sub-pixels; and, given `seconds`, whole pixels from `pixel` outwards, for so long."""
    singles = _sample(prepared.shape, pixel)
    rest = [] if seconds is None else _nearest(prepared.shape, pixel)
    rest = [change for change in rest if change not in singles]
    try:
        return _measure(Runner(prepared, torch.float64), manner, singles, rest, seconds or 0.0)
    except Exception:  # a forward that makes float32 of its own meets weights of float64
        return _measure(Runner(prepared), manner, singles, rest, seconds or 0.0)


def _sample(shape: tuple[int, int, int], pixel: tuple[int, int]) -> list[Change]:
    """Sub-pixels: all of a tiny image; or those of `pixel`, of corners, borders and the middle, and random ones."""
    colours, height, width = shape
    every = list(np.ndindex(height, width))
    if colours * len(every) <= 2 * kChanges:
        return [((c,), y, x) for y, x in every for c in range(colours)]
    y, x = pixel
    rows, columns = (0, height // 2, height - 1), (0, width // 2, width - 1)
    places = [pixel, (y, max(x - 1, 0)), (y // 2, x // 2), *((v, u) for v in rows for u in columns)]
    generator = np.random.default_rng(0)
    places += [every[i] for i in generator.permutation(len(every))[:kChanges]]
    found: dict[Change, None] = {}
    for i, (v, u) in enumerate(places):
        for c in range(colours) if i == 0 else [i % colours]:
            found[(c,), v, u] = None
    return list(found)[:kChanges]


def _nearest(shape: tuple[int, int, int], pixel: tuple[int, int]) -> list[Change]:
    """Whole pixels, the nearest first."""
    colours, height, width = shape
    every = np.ndindex(height, width)
    near = sorted(every, key=lambda at: (max(abs(at[0] - pixel[0]), abs(at[1] - pixel[1])), at))
    return [(tuple(range(colours)), y, x) for y, x in near]


def _measure(
    runner: Runner, manner: Manner, singles: Sequence[Change], rest: Sequence[Change], seconds: float
) -> Effects:
    start = time.perf_counter()
    bases = runner.images(kImages, 3)
    first = runner.run(bases[:1].repeat(manner.least, 1, 1, 1))[:1]
    size = 1 if manner.alone else max(1, min(16, kFloats // first.numel()))
    floor = kTolerance[runner.dtype]
    copies = bases[:1].repeat(size + 1, 1, 1, 1)
    noise = 0.0
    if not manner.alone:
        of_copies = runner.run(copies)
        apart = (of_copies - of_copies[:1]).abs().nan_to_num(0.0, posinf=0.0)
        noise = (apart / (1 + of_copies[:1].abs())).max().item()
    tolerance = max(floor, 64 * noise)
    generator = torch.Generator().manual_seed(4)
    changes = [*singles, *rest]
    seen, done = [], 0
    while done < len(changes) and (done < len(singles) or time.perf_counter() - start < seconds):
        part = changes[done : done + size]
        effect = np.zeros((len(part), *runner.prepared.shape), bool)
        for base in bases:
            images = _changed(base, part, runner.head.levels, generator)
            if manner.alone:
                alone = [runner.run(image[None].repeat(manner.least, 1, 1, 1))[:1] for image in images]
                found = torch.cat(alone)
            else:
                found = runner.run(images)
            effect |= differ(found[1:], found[:1], tolerance).numpy()
        seen.append(effect)
        done += len(part)
    return Effects(runner.prepared.shape, changes[:done], np.concatenate(seen), str(runner.dtype)[6:])


def _changed(base: Tensor, changes: Sequence[Change], levels: int, generator: torch.Generator) -> Tensor:
    """The image, then one copy of it for each change."""
    images = base.repeat(len(changes) + 1, 1, 1, 1)
    for i, (colours, y, x) in enumerate(changes):
        by = torch.randint(1, levels, (len(colours),), generator=generator)
        images[i + 1, list(colours), y, x] = (images[i + 1, list(colours), y, x] + by) % levels
    return images


def suspect(prepared: Prepared, manner: Manner, leak: Leak) -> Leak:
    """The leak with the module in whose output, at the pixel that must not depend on it, it is first seen."""
    (c, y, x), (_, v, u) = leak.on, leak.of
    runner = Runner(prepared)
    images = runner.images(1, 3).repeat(2, 1, 1, 1)
    images[1, c, y, x] = (images[1, c, y, x] + runner.head.levels // 2) % runner.head.levels
    before, after = (_outputs(runner, image.repeat(manner.least, 1, 1, 1)) for image in images)
    for path, first in before.items():
        second = after.get(path, first)
        inside = second.shape == first.shape and first.shape[2:] == prepared.shape[1:]
        if inside and not torch.allclose(first[0, :, v, u], second[0, :, v, u], rtol=1e-5, atol=1e-6):
            return replace(leak, modules=(path,))
    return leak


def _outputs(runner: Runner, images: Tensor) -> dict[str, Tensor]:
    """By name, what each module returns at its first call, if that is a feature map; in the order of returning."""
    kept: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if path and isinstance(output, Tensor) and output.ndim == 4:
                kept.setdefault(path, output.detach())

        return keep

    hooks = [p.register_forward_hook(hook(inner_path(name))) for name, p in runner.module.named_modules()]
    runner.run(images)
    for handle in hooks:
        handle.remove()
    return kept
