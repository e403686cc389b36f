"""What an audit finds, as plain values. `print` it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..causality import Leak

if TYPE_CHECKING:
    from PIL import Image

    from .report import Finding


@dataclass(frozen=True)
class Stopped:
    """Where compiling the model stopped, and why.

    stage: "capture" or "lower", for what pixelfast cannot do; "plan" where the output is not what the head reads;
        "load".
    """

    stage: str
    message: str


@dataclass(frozen=True)
class Measured:
    """What changing one sub-pixel at a time showed, on a copy of the module.

    changed: how many sub-pixels were changed; of how many, there being `complete` if all were.
    dtype: "float64", or "float32" where the module cannot run in that.
    missed: (of, on) pairs of sub-pixels (colour, y, x) of which the plan does not know: a bug of pixelfast.
    unseen: how many of the changed sub-pixels' planned effects did not show.
    """

    changed: int
    complete: bool
    dtype: str
    missed: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = ()
    unseen: int = 0


@dataclass(frozen=True)
class Field:
    """The receptive field of `pixel` (y, x), all of its colours together.

    rows: one string per row of the image; "@" is the pixel, "#" what it sees, "o" its blind spot, "." what is before it
        and out of reach, " " what is not drawn yet, "!" what it sees too early, "?" what was not measured.
    up, left, right: how far it sees. A pixel is within reach if it is before this one, at most `up` rows above, and
        between the columns `left` and `right` of it.
    reach, seen: how many pixels are within reach, and how many of these are seen.
    """

    pixel: tuple[int, int]
    rows: tuple[str, ...]
    up: int
    left: int
    right: int
    reach: int
    seen: int

    @property
    def blind(self) -> float:
        """The blind spot: the fraction of the pixels within reach that are not seen."""
        return 1 - self.seen / self.reach if self.reach else 0.0


@dataclass(frozen=True)
class Steps:
    """Sequential steps of one image; `skew` is that of the wavefront, the image's width if there is no smaller."""

    skew: int
    wavefront: int
    raster: int


@dataclass(frozen=True)
class Batch:
    """Whether an image's distribution depends on the other images of its batch; None where that could not be measured.

    layers: those of batch norm, by name. unfrozen: those among them without running statistics, which mix in eval mode.
    """

    layers: tuple[str, ...]
    unfrozen: tuple[str, ...]
    training: bool | None
    evaluation: bool | None


@dataclass(frozen=True)
class Chance:
    """What is left to chance in eval mode.

    random: whether two runs on the same images differ. sources: "op in module" of what draws random numbers.
    training: whether the module came in training mode. dropout: the names of its layers of dropout, p > 0, that were.
    """

    random: bool
    sources: tuple[str, ...]
    training: bool
    dropout: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How forward takes `images` of `height` x `width`: "ok", "breaks" or "wrong shape", and what it said."""

    images: int
    height: int
    width: int
    outcome: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + (f", batch {self.images}" if self.images != 2 else "")


@dataclass(frozen=True)
class Scores:
    """worst: largest difference of a log-probability, engine against module, in nats; None where `message` says why.
    same_bits: whether scoring drawn images gives the log-probabilities that they were drawn with."""

    worst: float | None
    same_bits: bool
    message: str = ""


@dataclass(frozen=True)
class Cost:
    """Of one image at batch 1; seconds on this machine. What was not compiled has no cost of cached sampling.

    passes: forward passes of the plain loop, each of `dense` multiply-adds and `pass_seconds`, as timed.
    live: multiply-adds of cached sampling, in `launches` of ops and `cached_seconds`, as timed.
    """

    passes: int
    dense: int | None
    pass_seconds: float
    live: int | None = None
    launches: int | None = None
    cached_seconds: float | None = None

    @property
    def plain_seconds(self) -> float:
        """Of the plain loop: an estimate, from one pass."""
        return self.passes * self.pass_seconds


@dataclass(frozen=True)
class Audit:
    """What `pixelfast.audit` found. `print` it; `problems` are what makes images or likelihoods wrong.

    name: of the module's class. shape: (C, H, W). read_as: how its output is read.
    causal: whether every distribution depends on earlier sub-pixels alone; `exact` if that is read off the weights,
        otherwise as far as measured.
    leak: the first one; `spatial_leak`: the first one to another pixel, or to the pixel itself where it has one colour;
        `colour_leak`: the first one to the same or a later colour of the same pixel.
    colours: for each colour, the earlier colours of its pixel that it depends on.
    """

    name: str
    shape: tuple[int, int, int]
    read_as: str
    stopped: Stopped | None
    exact: bool
    leak: Leak | None
    spatial_leak: Leak | None
    colour_leak: Leak | None
    colours: tuple[tuple[int, ...], ...]
    measured: Measured
    field: Field
    steps: Steps | None
    batch: Batch
    chance: Chance
    sizes: tuple[Size, ...]
    scores: Scores | None
    cost: Cost

    @property
    def causal(self) -> bool:
        return self.leak is None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The lines of the report."""
        from .report import findings

        return findings(self)

    @property
    def problems(self) -> tuple[str, ...]:
        """What makes images or likelihoods wrong, a sentence each."""
        return tuple(f.text for f in self.findings if f.mark == "FAIL")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting the model, a sentence each."""
        return tuple(f.text for f in self.findings if f.mark == "warn")

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        from .report import text

        return text(self)

    def picture(self, *, scale: int | None = None) -> Image.Image:
        """Draw the receptive field, its blind spot hatched: an RGB picture, `scale` the side of a pixel."""
        from .. import viz

        return viz.field(self.field.rows, scale=scale)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        derived: dict[str, Any] = {
            "ok": self.ok,
            "causal": self.causal,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "blind_spot": self.field.blind,
            "plain_seconds": self.cost.plain_seconds,
        }
        return derived | _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
