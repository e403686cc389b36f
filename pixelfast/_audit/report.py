"""The report of an audit: a verdict, then a line for each finding."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from ..causality import Leak
from .results import Audit, Size

kWidth = 110  # of a line
kField = (24, 80)  # rows and columns of a field that is printed
Lines = Iterator[tuple[str, str, str]]


@dataclass(frozen=True)
class Finding:
    """`mark`: "ok", "note", "warn", or "FAIL" for what makes images or likelihoods wrong."""

    mark: str
    topic: str
    text: str


def text(audit: Audit) -> str:
    lines = textwrap.wrap(_verdict(audit), kWidth)
    size = " x ".join(map(str, audit.shape))
    lines += ["", f"{audit.name}, {size}, read as {audit.read_as}"]
    for f in audit.findings:
        first = f"  {f.mark:4}  {f.topic:15}  "
        lines += textwrap.wrap(f.text, kWidth, initial_indent=first, subsequent_indent=" " * len(first))
    return "\n".join([*lines, *_picture(audit)])


def _verdict(audit: Audit) -> str:
    if audit.leak is not None:
        return f"NOT causal: {leak(audit.leak, audit.shape[0])}"
    count = len(audit.problems)
    but = f", but there {'is 1 problem' if count == 1 else f'are {count} problems'}" if count else ""
    how = "" if audit.exact else ", as far as measured"
    return f"causal{how}: every distribution depends on earlier pixels and colours alone{but}"


def findings(audit: Audit) -> tuple[Finding, ...]:
    parts = (
        _causality,
        _colours,
        _agreement,
        _field,
        _steps,
        _batch,
        _chance,
        _sizes,
        _scores,
        _cost,
        _compiles,
    )
    return tuple(Finding(*line) for part in parts for line in part(audit))


# --- dependence -------------------------------------------------------------------------------------------------


def _causality(audit: Audit) -> Lines:
    m = audit.measured
    for topic, where in (("causality", audit.spatial_leak), ("colours", audit.colour_leak)):
        if where is not None:
            yield "FAIL", topic, leak(where, audit.shape[0])
    if audit.spatial_leak is None:
        changed = "all" if m.complete else f"{m.changed:,} of the"
        measured = f"measured only, by changing {changed} sub-pixels in {m.dtype}"
        how = "read off the weights" if audit.exact else measured
        yield "ok" if audit.exact else "warn", "causality", f"no pixel depends on later ones ({how})"


def leak(where: Leak, colours: int) -> str:
    """A sentence, or two."""
    of, on = place(where.of, colours), place(where.on, colours)
    text = f"the distribution of {of} depends on {on}, which is not drawn before it"
    if where.tap is None and not where.reads and len(where.modules) == 1:  # measured
        return f"{text}. It is first seen there in what module {where.modules[0]!r} returns"
    return f"{text}. {where.place}" if where.modules else text


def place(at: tuple[int, int, int], colours: int) -> str:
    colour, y, x = at
    pixel = f"pixel (y={y}, x={x})"
    return f"{name_of(colour, colours)} of {pixel}" if colours > 1 else pixel


def name_of(colour: int, colours: int) -> str:
    return "RGB"[colour] if colours == 3 else f"colour {colour}"


def _colours(audit: Audit) -> Lines:
    count = audit.shape[0]
    if count == 1 or audit.colour_leak is not None:
        return
    if not any(audit.colours):
        text = "the colours of a pixel are independent of each other, given the pixels before it"
        yield "note", "colours", text
        return
    sees = [
        f"{name_of(c, count)} sees {', '.join(name_of(e, count) for e in earlier) or 'no other'}"
        for c, earlier in enumerate(audit.colours)
        if c
    ]
    yield "ok", "colours", f"{'; '.join(sees)}, of their own pixel"


def _agreement(audit: Audit) -> Lines:
    m = audit.measured
    if not audit.exact:
        return
    if m.missed:
        of, on = (place(p, audit.shape[0]) for p in m.missed[0])
        text = (
            f"the module's distribution of {of} changes with {on}, of which pixelfast's plan does not know: this is a "
            "bug of pixelfast, please report it"
        )
        yield "FAIL", "measured", text
        return
    number = f"all {m.changed:,}" if m.complete else f"{m.changed:,}"
    text = f"changing {number} sub-pixels, one at a time in {m.dtype}, has no effect that the weights do not allow"
    yield "ok", "measured", text
    if m.unseen:
        text = f"{m.unseen:,} effects that they allow did not show: too small, or behind rectifiers that were off"
        yield "note", "measured", text


def _field(audit: Audit) -> Lines:
    f = audit.field
    y, x = f.pixel
    known = ", of what was measured" if any("?" in row for row in f.rows) else ""
    yield "ok", "receptive field", f"{f.up} up, {f.left} left, {f.right} right of pixel (y={y}, x={x}){known}"
    if not f.reach:
        yield "ok", "blind spot", f"none: no pixel is within reach{known}"
    elif f.seen == f.reach:
        yield "ok", "blind spot", f"none: every pixel within reach is seen, {f.reach:,} in all{known}"
    else:
        text = f"{f.blind:.1%} of the {f.reach:,} pixels within reach are not seen{known}"
        yield "warn", "blind spot", text


def _steps(audit: Audit) -> Lines:
    s = audit.steps
    if s is None:
        return
    if s.wavefront >= s.raster:
        yield "ok", "order", f"raster, {s.raster:,} steps: a wavefront gains nothing"
    else:
        text = f"a wavefront of skew {s.skew} needs {s.wavefront:,} steps, raster order {s.raster:,}"
        yield "ok", "order", text


# --- the module -------------------------------------------------------------------------------------------------


def _batch(audit: Audit) -> Lines:
    b = audit.batch
    if b.evaluation:
        why = f": there are no running statistics in {_names(b.unfrozen)}" if b.unfrozen else ""
        yield "FAIL", "batch", f"in eval mode an image's distribution depends on the rest of its batch{why}"
    elif b.evaluation is None:
        yield "warn", "batch", "whether images of a batch are independent could not be measured"
    else:
        yield "ok", "batch", "in eval mode an image's distribution does not depend on the rest of its batch"
    if b.layers and b.training is not False:
        text = (
            f"in training mode it mixes the images of a batch and looks at later pixels ({_names(b.layers)}): "
            "likelihoods are those of the model in eval mode only"
        )
        yield "warn", "batch norm", text
    elif b.training and not b.evaluation:
        yield "warn", "batch", "in training mode an image's distribution depends on the rest of its batch"


def _chance(audit: Audit) -> Lines:
    c = audit.chance
    if c.random:
        by = f" (drawn by {', '.join(c.sources)})" if c.sources else ""
        text = f"in eval mode two runs on the same images differ; something random is left on{by}"
        yield "FAIL", "dropout", text
    else:
        yield "ok", "dropout", "in eval mode two runs on the same images agree"
    if c.dropout:
        text = f"the module came in training mode, with dropout in {_names(c.dropout)}; call eval() first"
        yield "warn", "dropout", text
    elif c.training:
        yield "note", "mode", "the module came in training mode; this is about its eval mode"


def _sizes(audit: Audit) -> Lines:
    good = [str(s) for s in audit.sizes if s.outcome == "ok"]
    if good:
        yield "ok", "sizes", f"runs on {', '.join(good)}"
    by_message: dict[tuple[str, str], list[Size]] = {}
    for s in audit.sizes:
        if s.outcome != "ok":
            by_message.setdefault((s.outcome, s.message), []).append(s)
    for (outcome, message), bad in by_message.items():
        what = "breaks on" if outcome == "breaks" else "returns a wrong shape on"
        yield "warn", "sizes", f"{what} {', '.join(map(str, bad))}: {message}"


def _scores(audit: Audit) -> Lines:
    s = audit.scores
    if s is None:
        return
    if not s.same_bits:
        text = "scoring drawn images gives other log-probabilities than drawing them: please report it"
        yield "FAIL", "scores", text
    if s.worst is None:
        yield "FAIL", "scores", s.message
    elif s.same_bits:
        text = (
            "teacher-forced scores are those of the drawn distribution, to the bit; the module's own differ by at most "
            f"{s.worst:.1g} nats a sub-pixel"
        )
        yield "ok", "scores", text


def _cost(audit: Audit) -> Lines:
    c = audit.cost
    of = f" of {_count(c.dense)} multiply-adds" if c.dense else ""
    text = f"{c.passes:,} forward passes{of}: about {_seconds(c.plain_seconds)} an image, by one timed pass"
    yield "note", "plain sampling", text
    if c.live is not None and c.launches is not None and c.cached_seconds is not None:
        text = f"{_count(c.live)} multiply-adds, once, in {c.launches:,} launches"
        yield "note", "cached sampling", f"{text}: {_seconds(c.cached_seconds)} an image, as timed"


def _compiles(audit: Audit) -> Lines:
    if audit.stopped is not None:
        stage, message = audit.stopped.stage, audit.stopped.message
        yield "FAIL" if stage == "plan" else "warn", "pixelfast", f"cannot compile it ({stage}): {message}"
    elif audit.leak is not None:
        yield "note", "pixelfast", "cannot compile it before it is causal"


def _picture(audit: Audit) -> list[str]:
    """The part of the field within reach, and a bit more, if there is something to be seen."""
    f, (_, height, width) = audit.field, audit.shape
    y, x = f.pixel
    rows = slice(max(y - f.up - 1, 0), min(y + 2, height))
    columns = slice(max(x - f.left - 1, 0), min(x + f.right + 2, width))
    part = [row[columns].rstrip() for row in f.rows[rows]]
    if (
        not set("o!") & set("".join(part))
        or len(part) > kField[0]
        or columns.stop - columns.start > kField[1]
    ):
        return []
    early = ", what it sees too early (!)" if "!" in "".join(part) else ""
    title = f"  what pixel @ sees (#), its blind spot (o), out of reach (.){early}:"
    return ["", title, "", *(f"    {row}".rstrip() for row in part)]


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _count(n: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _seconds(s: float) -> str:
    if s >= 120:
        return f"{s / 60:.3g} min"
    return f"{s:.3g} s" if s >= 1 else f"{s * 1e3:.3g} ms"
