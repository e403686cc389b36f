"""The report of an audit: a verdict, then a line for each finding."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from ..schedule import Leak
from .results import Audit, Size

kWidth = 110  # of a line
kField = (24, 80)  # rows and columns of a field that is printed


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
    return tuple(
        Finding(*line)
        for part in (
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
        for line in part(audit)
    )


Lines = Iterator[tuple[str, str, str]]


def _causality(audit: Audit) -> Lines:
    m = audit.measured
    changed = "all" if m.complete else f"{m.changed:,} of the"
    how = "read off the weights" if audit.exact else f"measured only, by changing {changed} sub-pixels"
    found = [(audit.spatial_leak, "causality"), (audit.colour_leak, "colours")]
    for where, topic in found:
        if where is not None:
            yield "FAIL", topic, leak(where, audit.shape[0])
    if audit.spatial_leak is None:
        yield "ok" if audit.exact else "warn", "causality", f"no pixel depends on later ones ({how})"


def leak(where: Leak, colours: int) -> str:
    """A sentence, or two."""
    text = f"the distribution of {place(where.of, colours)} depends on {place(where.on, colours)}, which is not drawn before it"
    return f"{text}. {where.place}" if where.modules else text


def place(at: tuple[int, int, int], colours: int) -> str:
    colour, y, x = at
    return f"pixel (y={y}, x={x})" + (f", {name_of(colour, colours)}" if colours > 1 else "")


def name_of(colour: int, colours: int) -> str:
    return "RGB"[colour] if colours == 3 else f"colour {colour}"


def _colours(audit: Audit) -> Lines:
    count = audit.shape[0]
    if count == 1 or audit.colour_leak is not None:
        return
    if not any(audit.colours):
        yield (
            "note",
            "colours",
            "the colours of a pixel are independent of each other, given the pixels before it",
        )
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
        yield (
            "FAIL",
            "measured",
            f"the module's distribution of {of} changes with {on}, of which pixelfast's plan does not know: this is a "
            "bug of pixelfast, please report it",
        )
        return
    number = f"all {m.changed:,}" if m.complete else f"{m.changed:,}"
    text = (
        f"changing {number} sub-pixels, one at a time in {m.dtype}, changes only what it may by the weights"
    )
    yield "ok", "measured", text
    if m.unseen:
        yield (
            "note",
            "measured",
            f"{m.unseen:,} effects that the weights allow did not show: they are too small, or behind rectifiers that "
            "were off",
        )


def _field(audit: Audit) -> Lines:
    f = audit.field
    known = "" if audit.exact or not any("?" in row for row in f.rows) else ", of what was measured"
    yield (
        "ok",
        "receptive field",
        f"{f.up} up, {f.left} left, {f.right} right of pixel (y={f.pixel[0]}, x={f.pixel[1]}){known}",
    )
    if f.seen == f.reach:
        yield "ok", "blind spot", f"none: all {f.reach:,} pixels within reach are seen{known}"
    else:
        yield (
            "warn",
            "blind spot",
            f"{f.blind:.1%} of the {f.reach:,} pixels within reach are not seen{known}",
        )


def _steps(audit: Audit) -> Lines:
    s = audit.steps
    if s is None:
        return
    if s.wavefront >= s.raster:
        yield "ok", "order", f"raster, {s.raster:,} steps: a wavefront gains nothing"
    else:
        yield (
            "ok",
            "order",
            f"a wavefront of skew {s.skew} needs {s.wavefront:,} steps, raster order {s.raster:,}",
        )


def _batch(audit: Audit) -> Lines:
    b = audit.batch
    names = _names(b.layers)
    if b.evaluation:
        why = f" ({_names(b.unfrozen)} keeps no running statistics)" if b.unfrozen else ""
        yield "FAIL", "batch", f"in eval mode an image's distribution depends on the rest of its batch{why}"
    elif b.evaluation is None:
        yield "warn", "batch", "whether images of a batch are independent could not be measured"
    else:
        yield "ok", "batch", "in eval mode an image's distribution does not depend on the rest of its batch"
    if b.layers:
        yield (
            "warn",
            "batch norm",
            f"while training, {names} mixes the images of a batch and looks at later pixels, so likelihoods in training "
            "mode are not those of the model: evaluate in eval mode",
        )
    elif b.training and not b.evaluation:
        yield "warn", "batch", "in training mode an image's distribution depends on the rest of its batch"


def _chance(audit: Audit) -> Lines:
    c = audit.chance
    if c.random:
        by = f": {', '.join(c.sources)}" if c.sources else ""
        yield (
            "FAIL",
            "dropout",
            f"in eval mode two runs on the same images differ; something random is left on{by}",
        )
    else:
        yield "ok", "dropout", "in eval mode two runs on the same images agree"
    if c.dropout:
        yield (
            "warn",
            "dropout",
            f"the module came in training mode, with dropout in {_names(c.dropout)}; call eval() first",
        )
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
        what = "breaks on" if outcome == "breaks" else "gives another shape on"
        yield "warn", "sizes", f"{what} {', '.join(map(str, bad))}: {message}"


def _scores(audit: Audit) -> Lines:
    s = audit.scores
    if s is None:
        return
    if not s.same_bits:
        yield (
            "FAIL",
            "scores",
            "scoring drawn images gives other log-probabilities than drawing them: please report it",
        )
    if s.worst is None:
        yield "FAIL", "scores", s.message
    elif s.same_bits:
        yield (
            "ok",
            "scores",
            f"teacher-forced scores are those of the drawn distribution, to the bit; the module's own differ by at most "
            f"{s.worst:.1g} nats a sub-pixel",
        )


def _cost(audit: Audit) -> Lines:
    c = audit.cost
    of = f" of {_count(c.dense)} multiply-adds" if c.dense else ""
    yield (
        "ok",
        "plain sampling",
        f"{c.passes:,} forward passes{of}: about {_seconds(c.plain_seconds)} an image, by one timed pass",
    )
    if c.live is not None and c.launches is not None and c.cached_seconds is not None:
        yield (
            "ok",
            "cached sampling",
            f"{_count(c.live)} multiply-adds, once, in {c.launches:,} launches: {_seconds(c.cached_seconds)} an image, "
            "as timed",
        )


def _compiles(audit: Audit) -> Lines:
    if audit.stopped is not None:
        yield "warn", "pixelfast", f"cannot compile it ({audit.stopped.stage}): {audit.stopped.message}"
    elif audit.leak is not None:
        yield "note", "pixelfast", "will compile it once it is causal"


def _picture(audit: Audit) -> list[str]:
    """The part of the field within reach, and a bit more."""
    f, (_, height, width) = audit.field, audit.shape
    y, x = f.pixel
    rows = slice(max(y - f.up - 1, 0), min(y + 2, height))
    columns = slice(max(x - f.left - 1, 0), min(x + f.right + 2, width))
    part = [row[columns].rstrip() for row in f.rows[rows]]
    if f.seen == f.reach or len(part) > kField[0] or columns.stop - columns.start > kField[1]:
        return []
    return ["", "  what pixel @ sees (#), its blind spot (o):", "", *(f"    {row}".rstrip() for row in part)]


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
