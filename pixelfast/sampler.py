"""compile and Sampler: from a module to images."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import plan as P
from . import readiness as R
from . import schedule as S
from ._cpu import peak
from .arguments import addresses, broadcast, integer, total
from .capture import BATCH, Captured, run
from .conditions import Conditions, evaluate, gather, of_two_images
from .explain import Explanation, explain
from .heads import Head
from .models.multi_scale import MultiScale
from .orders import ORDERS, choose, schedule_in
from .outputs import Pick
from .prepare import Planned, Prepared, check_shape, make_plan, prepare
from .profile import Profile, profile_of
from .program import C, Program, assemble
from .runtime import Target, available_nbytes
from .values import Condition

CPU = Target()
_LITTLE_NBYTES = 1 << 24  # which is taken to be there


@dataclass(frozen=True, eq=False)
class Sample:
    """`images`: uint8 (N, C, H, W), int64 where levels > 256. `log_prob`: float32 (N,), or (N, C, H, W) where
    `per_pixel` was asked for, in nats, of exactly the distribution that was sampled (temperature, top_k and top_p
    included)."""

    images: Tensor
    log_prob: Tensor

    def cpu(self) -> Sample:
        """The same on the CPU: samples of a GPU lie there."""
        return Sample(self.images.cpu(), self.log_prob.cpu())


def compile(
    module: nn.Module,
    *,
    shape: tuple[int, int, int],
    order: str = "auto",
    head: Head | None = None,
    to_input: Callable[[Tensor], Tensor] | None = None,
    conditions: Conditions | None = None,
    output: Pick | None = None,
    backend: str = "cpu",
    isa: str | None = None,
    precision: str = "fp32",
) -> Sampler:
    """Compile an autoregressive image model into a `Sampler`.

    The module is captured as it is now (in eval mode, on the CPU, in float32) and left untouched; later changes of
    its weights do not reach the sampler.

    **Arguments:**

    - `module`: `module(images, **conditions)` takes int64 (N, C, H, W) images and returns what `head` reads.
    - `shape`: (C, H, W) of an image.
    - `order`: "raster" draws pixel by pixel; "wavefront" draws together all that does not depend on each other, in
        the fewest steps; "auto" takes the cheapest of those, and of the wavefronts between. All give the same images,
        to the bit.
    - `head`: how forward's output is read; a model of `pixelfast.models` brings its own.
    - `to_input`: makes what forward takes from int64 levels: one of `pixelfast.inputs`, or a function. Without it,
        forward takes levels.
    - `conditions`: forward's further arguments by name. A dtype: one number per image, which forward takes as (N,). A
        Tensor: an example of one image's, without batch axis, of any shape and dtype; forward takes (N, *shape) of that
        dtype. E.g. `{"labels": torch.int64, "top": torch.zeros(8, 8, dtype=torch.int64)}`.
    - `output`: where forward returns more than one tensor of parameters: the index, key or attribute of the head's, or
        a function of what forward returns. The rest (losses, states, ...) is not computed.
    - `backend`: "cpu"; "cuda", or "cuda:1" for the second GPU, where samples then lie; or for checking "reference"
        (plain Python, very slow) and "emulated" (the code of a GPU, on the processor).
    - `isa`: the instruction set of the cpu backend; the best that there is by default.
    - `precision`: "fp32", or "bf16": products of numbers rounded to bfloat16, summed in float32, for half the bytes
        of weights to read and up to three times the speed; on processors with AVX-512 BF16, with AMX or without, and
        on GPUs. The distribution is then a slightly different one; its bits are the same for any batch, order and
        threads, but may differ between machines.

    Raises `ValueError`: `CaptureError` where torch.export fails, `LoweringError` where an op is not supported,
    `CausalityError` where the model is not autoregressive in raster order, or for bad arguments.
    """
    if order not in ORDERS:
        raise ValueError(f"[compile] order must be one of {', '.join(ORDERS)}, got {order!r}")
    shape = check_shape(shape)
    target = Target(backend, isa, precision)
    if isinstance(module, MultiScale):
        from .cascade import cascade_of

        if any(given is not None for given in (head, to_input, conditions, output)):
            raise ValueError(
                "[compile] a MultiScale model brings its own head, inputs and conditions: pass none of them"
            )
        with _uncollected():
            return cascade_of(module, shape, order=order, target=target)
    prepared = prepare(
        module, shape=shape, head=head, to_input=to_input, conditions=conditions, output=output
    )
    with _uncollected():
        return sampler_of(prepared, make_plan(prepared), order=order, target=target)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would look through all nodes and ops again and again, and find nothing."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def sampler_of(prepared: Prepared, planned: Planned, *, order: str = "auto", target: Target = CPU) -> Sampler:
    """Schedule a plan, and load it. Raises `CausalityError`."""
    return Sampler(
        planned.plan,
        choose(planned.plan, order, early=target.on_device),
        captured=planned.captured,
        head=planned.head,
        conditions=planned.conditions,
        classes=prepared.classes,
        target=target,
    )


class Sampler:
    """A compiled model: samples and scores images. Made by `pixelfast.compile`.

    Image k of seed s is the same image whatever the batch, the order, the threads and the machine: noise is keyed by
    seed and image index, and fp32 arithmetic has one defined order.
    """

    def __init__(
        self,
        plan: P.Plan,
        schedule: S.Schedule,
        *,
        captured: Captured,
        head: Head,
        conditions: tuple[Condition, ...],
        classes: Mapping[str, int],
        target: Target = CPU,
    ):
        self._plan = plan
        self._captured = captured
        self._conditioner = captured.conditioner
        self._head = head
        self._conditions = conditions
        self._classes = classes
        self.target = target
        self.shape = plan.shape
        self.levels = plan.levels
        self.order = schedule.order.name
        self.schedule = schedule
        self.program = assemble(schedule)
        self._runtime = target.load(self.program)

    @cached_property
    def _scorer(self) -> tuple[Program, Any]:
        program = assemble(schedule_in(self._plan, R.known(self.shape)))
        return program, self.target.load(program)

    def rescheduled(self, schedule: S.Schedule, target: Target | None = None) -> Sampler:
        """The same model by another schedule, on another target: for tests and benchmarks."""
        return Sampler(
            self._plan,
            schedule,
            captured=self._captured,
            head=self._head,
            conditions=self._conditions,
            classes=self._classes,
            target=target or self.target,
        )

    def __repr__(self) -> str:
        return f"Sampler(shape={self.shape}, levels={self.levels}, order={self.order!r}, steps={self.schedule.count})"

    @property
    def stages(self) -> tuple[Sampler, ...]:
        """The samplers of all scales of a model: of most, itself."""
        return (self,)

    @property
    def steps(self) -> int:
        """Sequential steps of one image; pixels of one step are drawn together."""
        return self.schedule.count

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image: those of one forward pass over live taps."""
        return self.schedule.multiply_adds

    def explain(self, n: int = 64) -> Explanation:
        """What a sampling run does, op by op: order, steps, multiply-adds, bytes; on a GPU also how a batch of n images
        may be shared, which weights are near, and what is chosen. `print` it."""
        n, runtime = integer("n", n, 1, where="explain"), cast(Any, self._runtime)
        there = (runtime.estimates(n=n), runtime.held_nbytes) if self.target.on_device else ([], 0)
        return explain(self.schedule, 4 * self.program.arena_floats, n, *there)

    def sample(
        self,
        n: int,
        *,
        labels: Any = None,
        conditions: Mapping[str, Any] | None = None,
        seed: int = 0,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        given: Any = None,
        known: Any = None,
        per_pixel: bool = False,
        progress: bool = False,
        threads: int | None = None,
        chunk: int | None = None,
        team: int | None = None,
        resident_nbytes: int | None = None,
        _profiles: list[Any] | None = None,
    ) -> Sample:
        """Draw images.

        **Arguments:**

        - `n`: how many; 0 gives empty tensors.
        - `labels`: int, or int64 (n,): the classes, for a model conditioned on them.
        - `conditions`: every condition by name. Of numbers: a number for all images, or (n,). Of tensors: (n, *shape),
            or *shape for all images. What forward makes of them is computed once for each distinct value, alone.
        - `seed`: in [0, 2**64). Image k of the result is image `first_index + k` of the seed.
        - `temperature`: logits are divided by it. `top_k`: draw among the k likeliest levels. `top_p`: draw among the
            fewest levels whose probability reaches top_p; after top_k.
        - `given`, `known`: complete images. Where `known` (bool, broadcast to (n, C, H, W)) is true, the level is that
            of `given` (broadcast likewise), and the rest is drawn in order, given all earlier pixels. log_prob then
            covers known pixels too.
        - `per_pixel`: return the log-probability of each sub-pixel.
        - `progress`: show a bar. `threads`: None or 0 takes PIXELFAST_THREADS, or else all cores. `chunk`: images that
            are worked on at once, and `team`: threads, or blocks of a GPU, that share them, at most; chosen if None.
            `resident_nbytes`: of the shared memory of a block of a GPU, at most, for tables and weights. None of these
            changes a bit.

        Raises `ValueError` for bad arguments, `MemoryError` where the batch would not fit, `KeyboardInterrupt` within a
        second of Ctrl-C.
        """
        n = integer("n", n, 0)
        if (given is None) != (known is None):
            raise ValueError(
                "[sample] given and known come together: the images, and where they are to be kept"
            )
        if not isinstance(temperature, Real) or not np.isfinite(temperature) or temperature <= 0:
            raise ValueError(f"[sample] temperature must be positive and finite, got {temperature}")
        if top_k is not None:
            top_k = integer("top_k", top_k, 1)
        if top_p is not None and not (isinstance(top_p, Real) and 0 < top_p <= 1):
            raise ValueError(f"[sample] top_p must be in (0, 1], got {top_p}")
        parallel = self._parallel("sample", threads, chunk, team, resident_nbytes)
        self._check_memory("sample", n, self.program, self._runtime, parallel)
        images = np.zeros((n, *self.shape), np.int32)
        mask = None
        if given is not None:
            levels = self._levels("sample", given)
            mask = np.ascontiguousarray(broadcast("known", known, images.shape), np.uint8)
            images[:] = np.where(mask, broadcast("given", levels, images.shape), 0)
        drawn, log_prob = self._run(
            "sample",
            self.program,
            self._runtime,
            images,
            self._condition_values("sample", self.program, n, labels, conditions),
            progress=progress,
            given=mask,
            seed=integer("seed", seed, 0, 2**64 - 1),
            first_index=integer("first_index", first_index, 0, 2**64 - 1 - n),
            temperature=float(temperature),
            top_k=min(top_k or 0, self.levels),
            top_p=1.0 if top_p is None else float(top_p),
            profiles=_profiles,
            **parallel,
        )
        kept = torch.uint8 if self.levels <= 256 else torch.int64
        return Sample(drawn.to(kept), log_prob if per_pixel else total(log_prob))

    def profile(self, n: int, *, quiet: bool = False, **options: Any) -> Profile:
        """Measure where the time of `sample(n, **options)` goes, print it as a table unless `quiet`, and return it.

        The images are drawn twice, the first time to warm up. Only calls of this function pay for measuring. Raises
        `ValueError` for a backend other than cpu, and what `sample` raises.
        """
        if self.target.backend != "cpu":
            raise ValueError(f"[profile] only the cpu backend can be profiled, this is {self.target.backend}")
        self.sample(integer("n", n, 1, where="profile"), **options)
        found: list[dict[str, Any]] = []
        self.sample(n, _profiles=found, **options)
        result = profile_of(found[0], self.program, images=n, peak=peak(self.target.isa or "", 1, 0.1))
        if not quiet:
            print(result)
        return result

    def log_prob(
        self,
        images: Any,
        *,
        labels: Any = None,
        conditions: Mapping[str, Any] | None = None,
        per_pixel: bool = False,
        progress: bool = False,
        threads: int | None = None,
        chunk: int | None = None,
        team: int | None = None,
        resident_nbytes: int | None = None,
    ) -> Tensor:
        """Score images, teacher-forced and in parallel: to the bit what sampling them would have computed.

        **Arguments:**

        - `images`: integers (N, C, H, W) in [0, levels).
        - `labels`, `conditions`, `progress`, `threads`, `chunk`, `team`, `resident_nbytes`: as for `sample`.
        - `per_pixel`: return the log-probability of each sub-pixel.

        **Returns:** float32 (N,), in nats; (N, C, H, W) if `per_pixel`. Raises `ValueError` for bad arguments.
        """
        levels = self._levels("log_prob", images)
        if levels.ndim != 4 or levels.shape[1:] != self.shape:
            raise ValueError(f"[log_prob] images must have shape (N, {', '.join(map(str, self.shape))}), got "
                             f"{tuple(levels.shape)}")  # fmt: skip
        program, runtime = self._scorer
        n = len(levels)
        parallel = self._parallel("log_prob", threads, chunk, team, resident_nbytes)
        self._check_memory("log_prob", n, program, runtime, parallel)
        values = self._condition_values("log_prob", program, n, labels, conditions)
        _, log_prob = self._run(
            "log_prob",
            program,
            runtime,
            np.array(levels, np.int32),  # what is given may be read-only
            values,
            progress=progress,
            given=True,
            **parallel,
        )
        return log_prob if per_pixel else total(log_prob)

    def verify(
        self, *, conditions: Mapping[str, Any] | None = None, seed: int = 0, tolerance: float = 1e-3
    ) -> float:
        """Compare the sampler with the module, as it was captured: draw two images and let PyTorch score them.

        **Arguments:** `conditions`: of the two images, as for `sample`; by default the examples that `compile` was
        given (zero for numbers), of which the second image has the rows of a map, or the entries of a one-hot vector,
        rolled by one. `seed`: of the images. `tolerance`: of the log-probability of a sub-pixel, in nats; those of
        improbable levels (below -12) are not compared, since probabilities are multiples of 2**-31.

        **Returns** the largest difference, in nats. Raises `ValueError`, naming the worst place, above `tolerance`.
        """
        if conditions is None:
            examples = dict(zip(self._conditioner.names, self._conditioner.examples, strict=True))
            conditions = of_two_images(examples, self._classes)
        n = BATCH
        given = gather("verify", n, conditions, self._conditioner, self._classes)
        images = self.sample(n, conditions=given, seed=seed).images.long().cpu()
        found = self.log_prob(images, conditions=given, per_pixel=True).double().cpu()
        params = run(self._captured, images, given)
        logits = self._head.logits(params, images).double()
        wanted = logits.log_softmax(1).gather(1, images.unsqueeze(1)).squeeze(1)
        off = torch.where(wanted > -12, (found - wanted).abs(), torch.zeros(()).double())
        worst = off.max().item()
        if not worst <= tolerance:
            i, c, y, x = np.unravel_index(int(off.argmax()), off.shape)
            raise ValueError(
                f"[verify] sampler and module differ by {worst:g} nats at image {i}, pixel (y={y}, x={x}), colour {c}: "
                f"{found[i, c, y, x]:g} and {wanted[i, c, y, x]:g}"
            )
        return worst

    # --- checks and conversions ---

    def _run(self, where: str, program: Program, runtime: Any, images: np.ndarray, values: np.ndarray | None, *,
             progress: bool, profiles: list[Any] | None = None, **arguments: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Levels (int32) and log-probabilities (float32), each (n, C, H, W), on the device of the target."""
        device = self.target.device
        levels = torch.from_numpy(images).to(device)
        log_prob = torch.zeros(images.shape, dtype=torch.float32, device=device)
        if not len(images):
            return levels, log_prob
        if profiles is not None:
            arguments["profiled"] = True
        start = runtime.run
        if self.target.on_device:
            start, arguments = runtime.run_there, addresses(levels, log_prob, values, arguments)
        else:
            arguments |= {"images": images, "log_prob": log_prob.numpy(), "conditions": values}
        if progress and self.target.backend != "reference":
            unit = {"total": float(len(images)), "unit": "image", "desc": where}
            bar_format = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"
            with tqdm(**unit, bar_format=bar_format) as bar:
                found = start(progress=lambda done: bar.update(done * len(images) - bar.n), **arguments)
                bar.update(len(images) - bar.n)
        else:
            found = start(**arguments)
        if profiles is not None:
            profiles.append(found)
        return levels, log_prob

    def _parallel(
        self,
        where: str,
        threads: int | None,
        chunk: int | None,
        team: int | None,
        resident_nbytes: int | None,
    ) -> dict[str, Any]:
        resident = (
            -1
            if resident_nbytes is None
            else integer("resident_nbytes", resident_nbytes, 0, 2**31 - 1, where=where)
        )
        found = {
            "resident_nbytes": resident,
            "threads": integer("threads", threads or 0, 0, C["kMaxThreads"], where=where),
            "chunk": integer("chunk", chunk or 0, 0, 2**31 - 1, where=where),
            "team": integer("team", team or 0, 0, C["kMaxThreads"], where=where),
        }
        return {key: value for key, value in found.items() if key in _PARALLEL[self.target.kind]}

    def _levels(self, where: str, images: Any) -> np.ndarray:
        """Images as an integer array, in range."""
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        if array.dtype == bool or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"[{where}] images must be integers in [0, {self.levels}), got dtype {array.dtype}"
            )
        if array.size and (array.min() < 0 or array.max() >= self.levels):
            raise ValueError(
                f"[{where}] images must be in [0, {self.levels}), got values from {array.min()} to {array.max()}"
            )
        return array

    def _condition_values(
        self, where: str, program: Program, n: int, labels: Any, conditions: Mapping[str, Any] | None
    ) -> np.ndarray | None:
        given = dict(conditions or {})
        if labels is not None:
            given["labels"] = labels
        values = gather(where, n, given, self._conditioner, self._classes)
        if not values:
            return None
        return evaluate(where, n, values, self._conditioner, self._conditions, program)

    def _check_memory(
        self, where: str, n: int, program: Program, runtime: Any, parallel: Mapping[str, int]
    ) -> None:
        per_image = 4 * program.condition_floats + 25 * int(np.prod(self.shape))
        at_once = 1  # but for the cpu, on a device, or one by one
        if n and self.target.backend == "cpu":
            at_once = runtime.images_at_once(n=n, **parallel)
        need = n * per_image + at_once * 4 * program.arena_floats
        if need < _LITTLE_NBYTES:  # to ask takes longer than a small batch
            return
        have = available_nbytes()
        if need > have:
            raise MemoryError(
                f"[{where}] {n} images need about {need / 1e9:.1f} GB, of which {have / 1e9:.1f} GB are free; "
                "take fewer at a time (first_index continues a series)"
            )


# What of a run's parallelism can be told to a backend.
_PARALLEL = {
    "cpu": ("threads", "chunk", "team"),
    "cuda": ("chunk", "team", "resident_nbytes"),
    "emulated": ("chunk", "team", "resident_nbytes"),
    "reference": (),
}
