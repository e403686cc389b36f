"""Draw cuda_*.png: what sits where on a GPU, a step of a team, a tile of a convolution, and what is waited for.

Launches and barriers are those of programs compiled here.

    python docs/figures/cuda.py [--out FOLDER] [FIGURE ...]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

import pixelfast as pf
from pixelfast import _pictures as look

WIDTH = 960
SIZE = 8  # of images
LAYERS = 3  # of the gated network whose step is drawn
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # whose launches are counted
    "PixelCNN": ("PixelCNN", {"hidden": 64, "layers": 6}),
    "GatedPixelCNN": ("GatedPixelCNN", {"hidden": 64, "layers": 6}),
    "PixelCNN++": ("PixelCNNPlusPlus", {"hidden": 64, "blocks": 1, "mixtures": 2}),
    "PixelSNAIL": (
        "PixelSNAIL",
        {"hidden": 64, "blocks": 1, "layers": 2, "key": 16, "value": 64, "mixtures": 2},
    ),
    "LSTM2d": ("LSTM2d", {"hidden": 64, "layers": 2}),
}
GREY, WHITE, EARLY, CHAIN = look.kField["."][0], look.kBackground, look.kStrength[0], look.kField["#"][0]
WAIT, NEAR = look.kTogether, look.kField["?"][0]


class Sheet:
    """A white picture to draw on."""

    def __init__(self, height: int):
        self.picture = Image.new("RGB", (WIDTH, height), WHITE)
        self.draw = ImageDraw.Draw(self.picture)

    def text(self, x: float, y: float, text: str, *, soft: bool = False, at: str = "la", size: int = 15,
             ink: look.Colour | None = None) -> None:  # fmt: skip
        ink = ink or (look.kSoft if soft else look.kInk)
        font, align = ImageFont.load_default(size), "center" if at == "mm" else "left"
        self.draw.multiline_text((x, y), text, fill=ink, font=font, anchor=at, align=align)

    def box(self, x: float, y: float, width: float, height: float, colour: look.Colour = WHITE, text: str = "",
            *, ink: look.Colour | None = None, title: str = "", outline: look.Colour = look.kInk) -> None:  # fmt: skip
        """`text` in the middle, or under a title."""
        self.draw.rectangle((x, y, x + width, y + height), fill=colour, outline=outline)
        if title:
            self.text(x + 10, y + 8, title)
            self.text(x + 10, y + 30, text, soft=True, size=14)
        elif text:
            self.text(x + width / 2, y + height / 2, text, at="mm", size=14, ink=ink)

    def arrow(self, x: float, y: float, to_x: float, to_y: float, *, both: bool = False) -> None:
        """Along an axis."""
        self.draw.line((x, y, to_x, to_y), fill=look.kInk, width=2)
        ends = [(to_x, to_y, x, y), (x, y, to_x, to_y)][: 2 if both else 1]
        for end_x, end_y, other_x, other_y in ends:
            dx, dy = 8 * ((end_x > other_x) - (end_x < other_x)), 8 * ((end_y > other_y) - (end_y < other_y))
            sides = [(end_x - dx + s * dy / 2, end_y - dy + s * dx / 2) for s in (1, -1)]
            self.draw.polygon([(end_x, end_y), *sides], fill=look.kInk)

    def legend(self, y: int, entries: Sequence[tuple[look.Colour, str]], x: float = 20) -> None:
        for colour, name in entries:
            self.box(x, y, 15, 15, colour)
            self.text(x + 23, y, name, size=14)
            x += 53 + ImageFont.load_default(14).getlength(name)


# --- what sits where --------------------------------------------------------------------------------------------


def places() -> Image.Image:
    """The host, multiprocessors with a block each, and memory."""
    s = Sheet(548)
    s.box(16, 20, 148, 312, title="host", text="memory that the\nGPU can reach")
    s.box(28, 96, 124, 62, GREY, "steps done")
    s.box(28, 168, 124, 62, GREY, "whether to stop")
    s.arrow(164, 163, 204, 163, both=True)
    s.text(28, 246, "every 32 steps or\n65,536 rows, one\nthread of a team", soft=True, size=14)
    s.box(204, 20, 740, 508)
    s.text(216, 28, "GPU")
    for team in range(2):
        left = 220 + 362 * team
        s.box(left, 56, 346, 276, (246, 247, 249))
        s.text(left + 10, 62, f"team {team}: images {3 * team} to {3 * team + 2}")
        for block in range(2):
            x = left + 10 + 166 * block
            s.box(x, 90, 160, 232, WHITE, title=f"block {block}", text="one multiprocessor")
            s.box(x + 8, 146, 144, 46, EARLY, "registers: sums of\nfour rows a thread")
            s.box(x + 8, 200, 144, 114, NEAR)
            s.text(x + 80, 214, "shared memory", at="mm", size=14)
            s.box(x + 16, 228, 128, 26, WHITE, "tables")
            s.box(
                x + 16,
                260,
                128,
                46,
                CHAIN,
                f"weights of chan-\nnels {32 * block} to {32 * block + 31}",
                ink=WHITE,
            )
    s.arrow(393, 332, 393, 368, both=True)
    s.arrow(755, 332, 755, 368, both=True)
    s.text(574, 350, "inputs and outputs of every launch", at="mm", soft=True, size=14)
    s.box(220, 368, 708, 148, NEAR)
    s.text(232, 376, "memory, through the second cache, for all blocks")
    for x, width, colour, text in (
        (232, 104, GREY, "launches,\nread one\nahead"),
        (344, 108, CHAIN, "weights that\ndo not fit"),
        (690, 106, GREY, "counters of\nlarge teams'\nbarriers"),
        (804, 112, GREY, "images, log-\nprobabilities,\nconditions"),
    ):
        s.box(x, 404, width, 100, colour, text, ink=WHITE if colour == CHAIN else None)
    s.box(460, 404, 222, 100, EARLY)
    s.text(571, 418, "arenas: rings of all maps", at="mm", size=14)
    for i in range(6):
        s.box(470 + i % 3 * 68, 432 + i // 3 * 34, 64, 28, WHITE, f"image {i}")
    return s.picture


# --- launches of programs ---------------------------------------------------------------------------------------


class Launched(NamedTuple):
    name: str
    kind: str
    positions: int
    multiply_adds: int
    early: bool  # the half of a convolution that reads other positions
    waits: bool = False
    arrives: bool = False


def steps(sampler: pf.Sampler) -> Iterator[list[Launched]]:
    """The launches of each step, in the order in which they run on a GPU."""
    program, order, found = (
        sampler.program,
        iter(sampler._runtime.launches(False)),
        dict[int, list[Launched]](),
    )
    begun = {op.fields.get("start_buffer", -1) for op in program.decoded.ops}
    for launch in program.decoded.launches:
        if launch is None:
            flags = itertools.islice(order, sum(map(len, found.values())))
            yield [found[op].pop(0)._replace(waits=waits, arrives=arrives) for op, waits, arrives in flags]
            found = {}
            continue
        op, f = program.decoded.ops[launch[0]], program.decoded.ops[launch[0]].fields
        at = [x + i * dx for _, x, n, _, dx in launch[1] for i in range(n)]
        work = len(at) * sum(tap[2] for tap in op.taps) * f.get("product_channels", 0)
        if op.keys:
            each = f["heads"] * (f["key_channels"] + f["value_channels"])
            work = sum(end - start for x in at for start, end in op.keys[x]) * each
        early = op.name == "conv" and f["out_buffer"] in begun
        launched = Launched(program.names[launch[0]], op.name, len(at), work, early)
        found.setdefault(launch[0], []).append(launched)


def compiled(kind: str, options: dict[str, Any]) -> pf.Sampler:
    torch.manual_seed(0)
    model = getattr(pf.models, kind)(channels=1, levels=4, **options)
    model.initialise(torch.randint(0, 4, (16, 1, SIZE, SIZE)))
    return pf.compile(model.eval(), shape=(1, SIZE, SIZE), backend="emulated")


def step() -> Image.Image:
    """The launches of one step of a gated network, one under the other, from left to right."""
    sampler = compiled("GatedPixelCNN", {"hidden": 64, "layers": LAYERS})
    found = list(steps(sampler))
    number = len(found) // 2
    launches, line, left, gap = found[number], 24, 206, 7
    s = Sheet(len(launches) * line + 108)
    s.text(20, 16, f"step {number} of a gated network of {LAYERS} layers: {len(launches)} launches, "
           f"{sum(x.waits for x in launches)} barriers")  # fmt: skip
    room = WIDTH - left - 124 - gap * sum(x.waits for x in launches) - 4 * len(launches)
    scale, x, top = room / sum(x.multiply_adds for x in launches), float(left), 48
    for y in range(top, top + len(launches) * line, 2 * line):
        s.draw.rectangle((12, y, WIDTH - 12, y + line - 1), fill=(246, 247, 249))
    arrival = x, float(top + 3)
    for i, launch in enumerate(launches):
        y = top + i * line
        if launch.waits:
            s.draw.rectangle((arrival[0] + 1, arrival[1], x + gap - 3, arrival[1] + 3), fill=WAIT)
            s.draw.rectangle((x + 1, arrival[1], x + gap - 3, y + line - 5), fill=WAIT)
            x += gap
        s.text(20, y + line / 2, launch.name, at="lm", size=14)
        width = 4 + scale * launch.multiply_adds
        s.box(
            x, y + 4, width - 1, line - 9, EARLY if launch.early else CHAIN if launch.multiply_adds else GREY
        )
        many = f"{launch.positions} position{'s' if launch.positions > 1 else ''}"
        s.text(WIDTH - 20, y + line / 2, many, at="rm", size=13, soft=True)
        x += width
        if launch.arrives:
            arrival = x, y + line - 6.0
    entries = ((EARLY, "early half"), (CHAIN, "other products"), (GREY, "no product"),
               (WAIT, "from arrival to wait"))  # fmt: skip
    y = top + len(launches) * line + 14
    s.legend(y, entries)
    s.text(WIDTH - 20, y, "width: multiply-adds", at="ra", soft=True, size=14)
    return s.picture


def waits() -> Image.Image:
    """For some models, how many launches and how many multiply-adds a step has, and which of them wait."""
    s = Sheet(len(MODELS) * 48 + 82)
    s.text(150, 14, "launches of a step, mean")
    s.text(590, 14, "multiply-adds of a step, mean")
    kinds = (
        (WAIT, "waits at a barrier", lambda x: x.waits and not x.early),
        (CHAIN, "does not wait", lambda x: not x.waits and not x.early),
        (EARLY, "early half", lambda x: x.early),
    )
    bars: list[
        tuple[str, list[list[float]], str]
    ] = []  # of each model: its two, and what is written beside them
    for name, model in MODELS.items():
        found = list(steps(compiled(*model)))
        launches = [x for each in found for x in each]
        both = [
            [sum(map(of, filter(kind, launches))) / len(found) for _, _, kind in kinds]
            for of in (lambda x: 1, lambda x: x.multiply_adds)
        ]
        barriers = sum(x.waits for x in launches) / len(found)
        bars.append((name, both, f"{sum(both[0]):.0f}, {barriers:.0f} barriers"))
    for i, (name, both, beside) in enumerate(bars):
        s.text(20, 59 + 48 * i, name, at="lm")
        for k, (x, room, text) in enumerate(((150, 290, beside), (590, 270, f"{sum(both[1]):,.0f}"))):
            scale, left = room / max(sum(other[k]) for _, other, _ in bars), float(x)
            for part, (colour, _, _) in zip(both[k], kinds, strict=True):
                if part:
                    s.box(left, 44 + 48 * i, scale * part, 30, colour)
                left += scale * part
            s.text(left + 8, 59 + 48 * i, text, at="lm", size=14, soft=True)
    s.legend(50 + 48 * len(MODELS), [kind[:2] for kind in kinds])
    return s.picture


# --- the tile of a convolution ----------------------------------------------------------------------------------


def tile() -> Image.Image:
    """A strip and the taps that read it, a step's weights, sums; and what is in flight when."""
    s = Sheet(594)
    cell, left, top = 26, 20, 52
    s.text(left, 14, "a strip: 256 positions and their neighbours, 32 channels in four units of eight")
    lines = ["-1", "0", "1", "2", "3", "4", "5", "6", "…", "252", "253", "254", "255", "256"]
    width = 2 * cell - 14
    for i, name in enumerate(lines):
        s.text(left + i * width + width / 2, top + 8, name, at="mm", size=13, soft=True)
        for unit in range(4):
            s.box(left + i * width, top + 20 + unit * cell, width, cell, EARLY if 0 < i < 13 else GREY)
    s.text(
        left,
        top + 134,
        "every tap of a row of the kernel multiplies the same strip, from a line further:",
        size=14,
    )
    for tap in range(3):
        y = top + 162 + 26 * tap
        s.box(
            left + tap * width,
            y,
            12 * width,
            20,
            CHAIN,
            f"tap {('left', 'middle', 'right')[tap]}: 256 lines",
            ink=WHITE,
        )
    s.text(596, 14, "weights of a step")
    s.box(596, top + 20, 150, 4 * cell, NEAR, "32 terms: four\nunits, each of a tap\n\n64 output channels")
    s.text(790, 14, "sums, in registers")
    for warp in range(4):
        s.box(790, top + 20 + 42 * warp, 150, 42, EARLY, f"warp {warp}: 64 x 64")
    s.text(570, top + 20 + 2 * cell, "x", at="mm", size=18)
    s.text(768, top + 20 + 2 * cell, "=", at="mm", size=18)
    s.text(790, top + 200, "256 positions,\n64 channels", soft=True, size=14)

    top, first, width, height = 326, 150, 66, 28
    s.text(20, top - 16, "stages in flight, for a kernel of two rows of three taps: three steps for each row")
    for k in range(12):
        s.text(first + k * width + width / 2, top + 20, f"step {k}", at="mm", size=13, soft=True)
    for stage in range(3):
        y = top + 34 + stage * height
        for kind, ahead, each in (("weights", 0, 1), ("strip", 1, 3)):
            at = y + ahead * (3 * height + 14)
            s.text(20, at + height / 2, f"{kind} {stage}", at="lm", size=14)
            for k in range(12):
                now = k // each  # the tile that is multiplied, of weights or of strips
                held = now + (stage - now) % 3  # and what this stage has or is given
                colour = CHAIN if held == now else NEAR if held == now + 2 and k % each == 0 else GREY
                text = f"{held}" if kind == "weights" else f"row {held}"
                s.box(first + k * width, at, width, height, colour, text, ink=WHITE if held == now else None)
    y = top + 34 + 6 * height + 32
    s.legend(y, ((CHAIN, "multiplied"), (NEAR, "copies are started"), (GREY, "on its way, or there")))
    s.text(WIDTH - 18, y, "row 2: the kernel's first, of the next 32 channels", at="ra", soft=True, size=14)
    return s.picture


FIGURES: dict[str, Callable[[], Image.Image]] = {"places": places, "step": step, "waits": waits, "tile": tile}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw how kernels run on a GPU.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)} (all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="a folder (docs/figures)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.figures or FIGURES:
        FIGURES[name]().quantize(64).save(options.out / f"cuda_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
