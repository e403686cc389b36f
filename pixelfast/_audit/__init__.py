"""Audit: what a model depends on, whether it may be sampled, and what that costs; also of models that do not compile.

the plan, where there is one        exact: leaks, receptive field, steps
a copy of the module, run           independent of it: dependence, the batch, chance, sizes, scores, cost
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from .. import causality as C
from .. import readiness as R
from .. import receptive
from ..capture import CaptureError, forked
from ..conditions import Conditions
from ..heads import Head, LogisticMixture
from ..lower import LoweringError
from ..models.multi_scale import MultiScale
from ..outputs import Pick
from ..plan import Plan
from ..prepare import Planned, Prepared, check_module, check_shape, make_plan, own_head, prepare
from ..sampler import Sampler, sampler_of
from . import checks
from .effects import Effects, Manner, manner, measure, said, suspect, target
from .guess import guess_head
from .results import Audit, Field, Measured, Steps, Stopped

__all__ = ["Audit", "audit", "first_leak"]


def audit(
    module: nn.Module,
    shape: tuple[int, int, int],
    *,
    head: Head | None = None,
    to_input: Callable[[Tensor], Tensor] | None = None,
    conditions: Conditions | None = None,
    output: Pick | None = None,
    seconds: float = 20.0,
    progress: bool = False,
) -> Audit:
    """Find out whether a model is autoregressive, what it sees, and what is wrong with it. `print` the result.

    The module is left untouched: copies of it are examined, in eval mode, on the CPU. A model that is not causal, or
    cannot be compiled, is audited all the same; what cannot be read off its weights is then measured.

    Compiling takes as long as it does for `pixelfast.compile`. Besides, forward runs some 50 times on one image in
    float64, and a few times in float32 on images up to twice as large.

    **Arguments:**

    - `shape`: (C, H, W) of an image.
    - `head`, `to_input`, `conditions`, `output`: as for `pixelfast.compile`. A head that is neither given nor the
        module's own is guessed from how much forward returns, and so is whether it takes levels or floats in [-1, 1].
    - `seconds`: how long to measure a model that cannot be planned; what is measured is then the nearest pixels.
    - `progress`: show a bar.

    Raises `ValueError` for bad arguments: also where forward does not take images of that shape, and for a multi-scale
    model, which is several.
    """
    if isinstance(module, MultiScale):
        raise ValueError(
            "[audit] a MultiScale model is several: audit model.first, and each of model.stages, with "
            'conditions={"small": torch.zeros(C, h, w, dtype=torch.int64)}'
        )
    with (
        forked(),
        tqdm(total=7, desc="audit", disable=not progress, leave=False) as bar,
    ):

        def stage(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update(1)

        stage("read")
        prepared, note = _prepared(module, shape, head, to_input, conditions, output)
        return _audit(module, prepared, note, seconds, stage)


def _audit(
    module: nn.Module, prepared: Prepared, note: str, seconds: float, stage: Callable[[str], None]
) -> Audit:
    how = manner(prepared)
    stage("plan")
    planned, stopped = _planned(prepared)
    stage("measure")
    found = _dependence(prepared, how, planned, seconds)
    sampler, steps = None, None
    if planned is not None and found.leak is None:
        stage("compile")
        sampler, stopped = _compiled(prepared, planned)
        steps = _steps(planned.plan)
    stage("sizes")
    sizes = checks.sizes(prepared, how)
    batch, chance = checks.batch(module, prepared, how), checks.chance(module, how)
    stage("scores")
    scores = None if sampler is None else checks.scores(sampler, prepared)
    if scores is not None and scores.worst is None:
        sampler = None  # it does not draw what it should: no matter how fast
    stage("cost")
    return Audit(
        name=prepared.name,
        shape=prepared.shape,
        read_as=_described(prepared.head if planned is None else planned.head) + note,
        stopped=stopped,
        exact=planned is not None,
        **vars(found),
        steps=steps,
        batch=batch,
        chance=chance,
        sizes=sizes,
        scores=scores,
        cost=checks.cost(prepared, how, sampler),
    )


def first_leak(
    module: nn.Module,
    shape: tuple[int, int, int],
    *,
    head: Head | None = None,
    to_input: Callable[[Tensor], Tensor] | None = None,
    conditions: Conditions | None = None,
    output: Pick | None = None,
    seconds: float = 20.0,
) -> C.Leak | None:
    """Only the first leak: None where the model is causal. Arguments as for `audit`."""
    with forked():
        prepared, _ = _prepared(module, shape, head, to_input, conditions, output)
        planned, _ = _planned(prepared)
        leak = None if planned is None else C.find_leak(planned.plan, R.raster(prepared.shape))
        if leak is not None:
            return leak
        how = manner(prepared)  # what is planned is measured too: a plan may have a bug
        time = None if planned is not None else seconds
        effects = measure(prepared, how, pixel=target(prepared.shape), seconds=time)
        return _located(prepared, how, effects.leak())


# --- stages -----------------------------------------------------------------------------------------------------


def _prepared(
    module: nn.Module, shape: Any, head: Head | None, to_input: Any, conditions: Any, output: Any
) -> tuple[Prepared, str]:
    check_module(module, "audit")
    shape = check_shape(shape, "audit")
    note = ""
    if head is None and own_head(module) is None:
        head, fed = guess_head(module, shape, to_input, conditions, output)
        layout = f', layout "{head.layout}"' if getattr(head, "layout", None) else ""  # type: ignore[attr-defined]
        how = "as to_input says" if to_input else "as floats in [-1, 1]" if fed else "as they are"
        note = f"{layout}, as a guess from its size; levels go in {how}"
        to_input = fed
    prepared = prepare(
        module, shape=shape, head=head, to_input=to_input, conditions=conditions, output=output
    )
    return prepared, note


def _described(head: Head) -> str:
    if isinstance(head, LogisticMixture):
        return f"LogisticMixture({head.mixtures}, levels={head.levels})"
    return f"{'probabilities' if getattr(head, 'probabilities', False) else 'logits'} of {head.levels} levels"


def _planned(prepared: Prepared) -> tuple[Planned | None, Stopped | None]:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.export prints the graph that it gives up
            return make_plan(prepared), None
    except CaptureError as error:
        return None, Stopped("capture", _short(error))
    except LoweringError as error:
        return None, Stopped("lower", _short(error))
    except Exception as error:  # a bug, or an output that is not what the head reads
        return None, Stopped("plan", _short(error))


def _compiled(prepared: Prepared, planned: Planned) -> tuple[Sampler | None, Stopped | None]:
    try:
        return sampler_of(prepared, planned), None
    except Exception as error:
        return None, Stopped("load", _short(error))


def _short(error: Exception) -> str:
    return said(error).removeprefix("[compile] ").partition("\nsupported are")[0]


@dataclass(frozen=True, eq=False)
class _Dependence:
    """The part of an `Audit` that tells what depends on what."""

    leak: C.Leak | None
    spatial_leak: C.Leak | None
    colour_leak: C.Leak | None
    colours: tuple[tuple[int, ...], ...]
    field: Field
    measured: Measured


_Leaks = tuple[C.Leak | None, C.Leak | None, C.Leak | None]


def _dependence(prepared: Prepared, how: Manner, planned: Planned | None, seconds: float) -> _Dependence:
    shape, pixel = prepared.shape, target(prepared.shape)
    effects = measure(prepared, how, pixel=pixel, seconds=seconds if planned is None else None)
    leak = None if planned is None else C.find_leak(planned.plan, R.raster(shape))
    if planned is not None and leak is not None:
        spatial = _spatial(planned.plan, R.raster(shape))
        inside = leak.of[1:] == leak.on[1:] and shape[0] > 1
        leaks: _Leaks = leak, spatial, leak if inside else _colour(planned.plan, pixel)
    else:  # a plan that has none is measured too: it may have a bug

        def measured(kind: str | None) -> C.Leak | None:
            return _located(prepared, how, effects.leak(kind))

        leaks = measured(None), measured("spatial"), measured("colour")
    if planned is None:
        mask, known = effects.field(pixel)
        field = receptive.ReceptiveField(pixel, mask)
        return _Dependence(*leaks, effects.colours(pixel), _field(field, known), _measured(effects))
    field = receptive.receptive_field(planned.plan, pixel)
    return _Dependence(
        *leaks,
        _colours(planned.plan, pixel),
        _field(field, np.ones_like(field.mask)),
        _measured(effects, planned.plan),
    )


def _located(prepared: Prepared, how: Manner, leak: C.Leak | None) -> C.Leak | None:
    try:
        return leak and suspect(prepared, how, leak)
    except Exception:  # only a hint is lost
        return leak


def _spatial(plan: Plan, order: R.Order) -> C.Leak | None:
    """The first leak to another pixel, or to the pixel itself where it has one colour."""
    colours = plan.shape[0]
    return C.find_leak(plan, order, (order.steps // colours + 1) * colours if colours > 1 else order.steps)


def _colour(plan: Plan, pixel: tuple[int, int]) -> C.Leak | None:
    """A leak inside a pixel, of a model that leaks from later pixels too: of what pixel's, no module is known."""
    colours = range(plan.shape[0])
    if len(colours) == 1:
        return None
    for c, seen in enumerate(receptive.seen_by(plan, [(c, *pixel) for c in colours])):
        late = [on for on in colours if on >= c and seen[on, *pixel]]
        if late:
            return C.Leak((c, *pixel), (late[0], *pixel), ())
    return None


def _colours(plan: Plan, pixel: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    colours = range(plan.shape[0])
    seen = receptive.seen_by(plan, [(c, *pixel) for c in colours])
    return tuple(tuple(e for e in range(c) if seen[c, e, *pixel]) for c in colours)


def _field(field: receptive.ReceptiveField, known: np.ndarray) -> Field:
    height, width = field.mask.shape
    reach = field.reach & known
    before = np.arange(height * width).reshape(height, width) < field.before
    cells = np.where(before, ".", " ")
    cells[field.reach] = "o"
    cells[~known & (field.reach | before)] = "?"
    cells[field.mask] = "#"
    cells[field.mask & ~before] = "!"
    cells[field.pixel] = "@"
    rows = tuple("".join(row) for row in cells.tolist())
    seen = int((reach & field.mask).sum())
    return Field(field.pixel, rows, field.up, field.left, field.right, int(reach.sum()), seen)


def _measured(effects: Effects, plan: Plan | None = None) -> Measured:
    places, seen = effects.singles()
    number = len(effects.changes)
    complete = len({(c, y, x) for colours, y, x in effects.changes for c in colours}) == seen[0].size
    if plan is None:
        return Measured(number, complete, effects.dtype)
    planned = receptive.seeing(plan, places)
    missed = [((c, y, x), places[i]) for i, c, y, x in np.argwhere(seen & ~planned).tolist()]
    return Measured(number, complete, effects.dtype, tuple(missed), int((planned & ~seen).sum()))


def _steps(plan: Plan) -> Steps:
    skew = C.find_skew(plan)
    return Steps(skew, R.wavefront(plan.shape, skew).count, R.raster(plan.shape).count)
