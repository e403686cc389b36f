"""Where the time of a sampling run goes, op by op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._table import aligned
from .program import Program


@dataclass(frozen=True)
class Row:
    """One op of the program. Seconds are summed over threads.

    - `calls`: blocks of rows (a row is a position of an image), `rows`: rows in all of them.
    - `product_seconds`: of multiply-adds; `gather_seconds`: of finding what is read; the rest of `seconds` is
        activations, norms, attention, tables of levels and drawing.
    - `weights_nbytes`: bytes of weights read by all calls.
    """

    name: str
    kind: str
    calls: int
    rows: int
    seconds: float
    product_seconds: float
    gather_seconds: float
    multiply_adds: int
    weights_nbytes: int


@dataclass(frozen=True)
class Profile:
    """`print` it. `peak` is what one thread reached from registers in fp32, in multiply-adds per second, also
    for bf16.

    `thread_seconds` are those of all threads together, of which they spent `waiting_seconds` for each other; what is
    left when the rows' seconds are taken off, too, is the walk through the program.
    """

    images: int
    threads: int
    seconds: float
    thread_seconds: float
    waiting_seconds: float
    peak: float
    rows: tuple[Row, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of `thread_seconds`: product, other (activations, ...), gather, walk, waiting."""
        product = sum(r.product_seconds for r in self.rows)
        gather = sum(r.gather_seconds for r in self.rows)
        inside = sum(r.seconds for r in self.rows)
        parts = {
            "product": product,
            "other": inside - product - gather,
            "gather": gather,
            "walk": self.thread_seconds - inside - self.waiting_seconds,
            "waiting": self.waiting_seconds,
        }
        return {name: seconds / self.thread_seconds for name, seconds in parts.items()}

    def __str__(self) -> str:
        header = [
            "op",
            "kind",
            "calls",
            "rows",
            "ms",
            "of time",
            "product",
            "GMAC/s",
            "of peak",
            "weights MB",
        ]
        lines = [header]
        for r in self.rows:
            rate = r.multiply_adds / r.product_seconds if r.product_seconds else 0
            lines.append(
                [
                    r.name,
                    r.kind,
                    f"{r.calls:,}",
                    f"{r.rows:,}",
                    f"{r.seconds * 1e3:.2f}",
                    f"{r.seconds / self.thread_seconds:.1%}",
                    f"{r.product_seconds / r.seconds:.0%}" if r.product_seconds else "",
                    f"{rate / 1e9:.1f}" if rate else "",
                    f"{rate / self.peak:.0%}" if rate else "",
                    f"{r.weights_nbytes / 1e6:.1f}" if r.weights_nbytes else "",
                ]
            )
        text = aligned(lines, left=2)
        rule = "-" * max(map(len, text))
        multiply_adds = sum(r.multiply_adds for r in self.rows)
        rate = multiply_adds / self.seconds
        threads = "thread" if self.threads == 1 else "threads"
        title = (
            f"{self.images} images in {self.seconds * 1e3:.1f} ms on {self.threads} {threads}: {rate / 1e9:.1f} G "
            f"multiply-adds/s, {rate / (self.peak * self.threads):.0%} of the peak of {self.peak / 1e9:.1f} a thread"
        )
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        return "\n".join(
            [title, "", text[0].rstrip(), rule, *(line.rstrip() for line in text[1:]), rule, shares]
        )


def profile_of(found: Mapping[str, Any], program: Program, *, images: int, peak: float) -> Profile:
    """What the runtime measured, with the names of the program's ops."""
    rows = tuple(
        Row(
            name=name,
            kind=op.name,
            calls=measured["calls"],
            rows=measured["rows"],
            seconds=measured["total"],
            product_seconds=measured["product"],
            gather_seconds=measured["gather"],
            multiply_adds=measured["multiply_adds"],
            weights_nbytes=measured["weights_nbytes"],
        )
        for measured, op, name in zip(found["ops"], program.decoded.ops, program.names, strict=True)
    )
    return Profile(
        images=images,
        threads=found["threads"],
        seconds=found["seconds"],
        thread_seconds=found["total"],
        waiting_seconds=found["waiting"],
        peak=peak,
        rows=rows,
    )
