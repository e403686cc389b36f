"""The cpu runtime on programs written by hand, against a brute-force evaluation of the same list of ops."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pixelfast import _cpu, numerics

ISAS = _cpu.isas()
OPS = _cpu.opcodes()
FUNCTIONS = _cpu.functions()
C = _cpu.constants()
SPACES = {name: i for i, name in enumerate(C["spaces"])}


class Tiny:
    """A program under construction: methods append ops, `launch` and `step` say when they run."""

    def __init__(self, shape, levels, seed=0):
        self.shape, self.levels = shape, levels
        self.rng = np.random.default_rng(seed)
        self.buffers, self.ops, self.launches = [], [], []
        self.data = np.zeros(0, np.float32)
        self.arena = self.condition = self.steps = 0

    def add_data(self, values):
        offset = self.data.size
        self.data = np.concatenate([self.data, np.asarray(values, np.float32).ravel()])
        return offset

    def buffer(self, channels, *, grid=None, rows=None, space="arena", broadcast=False, values=None):
        height, width = grid or self.shape[1:]
        rows = height if rows is None else rows
        size = channels if broadcast else rows * width * channels
        if space == "arena":
            offset, self.arena = self.arena + 3, self.arena + 3 + size  # odd offsets: nothing may rely on alignment
        elif space == "condition":
            offset, self.condition = self.condition, self.condition + size
        else:
            offset = self.add_data(values)
        strides = (0, 0) if broadcast else (width * channels, channels)
        self.buffers.append((SPACES[space], offset, height, width, channels, rows, *strides))
        return len(self.buffers) - 1

    def op(self, name, *body):
        self.ops.append([OPS[name], len(body) + 2, *body])
        return len(self.ops) - 1

    def input(self, colour, out, channel, channels):
        table = self.rng.normal(size=(self.levels, channels))
        return self.op("input", colour, out, channel, channels, self.add_data(table))

    def conv(self, out, taps, *, channel=0, channels=None, products=None, code=(), stride=(1, 1), bias=True):
        channels = self.buffers[out][4] if channels is None else channels
        products = channels if products is None else products
        depth = sum(t[2] for t in taps)
        weight = self.add_data(self.rng.normal(size=(depth, products)) / np.sqrt(max(depth, 1)))
        offset = self.add_data(self.rng.normal(size=products)) if bias else -1
        return self.op("conv", out, channel, channels, *stride, products, weight, offset, len(taps), len(code),
                       *itertools.chain(*taps), *itertools.chain(*map(instruction, code)))  # fmt: skip

    def map(self, out, code, *, channel=0, channels=None):
        channels = self.buffers[out][4] if channels is None else channels
        return self.op("map", out, channel, channels, 1, 1, 0, 0, -1, 0, len(code),
                       *itertools.chain(*map(instruction, code)))  # fmt: skip

    def head(self, name, colour, buffer, channel=0):
        return self.op(name, colour, buffer, channel)

    def launch(self, op, *runs):
        self.launches += [op, len(runs), *itertools.chain(*runs)]

    def step(self):
        self.launches += [C["kStepMark"], 0]
        self.steps += 1

    def everywhere(self, op):
        buffer = self.ops[op][3] if self.ops[op][0] in (OPS["categorical"], OPS["bernoulli"], OPS["input"]) else None
        height, width = self.buffers[self.ops[op][2] if buffer is None else buffer][2:4]
        self.launch(op, *[(y, 0, width, 0, 1) for y in range(height)])

    def words(self):
        buffers, ops = list(itertools.chain(*self.buffers)), list(itertools.chain(*self.ops))
        n = C["kHeaderWords"] + len(buffers) + len(ops) + len(self.launches)
        header = [C["kMagic"], C["kVersion"], n, *self.shape, self.levels, self.arena, self.condition,
                  len(self.buffers), len(self.ops), self.steps, len(self.launches)]  # fmt: skip
        return np.array(header + buffers + ops + self.launches, np.int32)

    def load(self, isa=None):
        return _cpu.Program(self.words(), self.data, isa)


def instruction(i):
    name, *rest = i
    if name == "scalar":
        rest = [int(np.float32(rest[0]).view(np.int32))]
    return [FUNCTIONS[name][0], *rest, *[0] * (4 - len(rest))]


class BruteForce:
    """One image, one position, one element at a time."""

    def __init__(self, tiny, image, given, condition, seed, index):
        self.t, self.image, self.given = tiny, image.copy(), given
        self.seed, self.index = seed, index
        self.log_prob = np.zeros(tiny.shape, np.float32)
        self.spaces = [np.full(tiny.arena, np.nan, np.float32), tiny.data, condition]
        self.names = {v: k for k, v in OPS.items()}
        self.functions = {code: name for name, (code, _) in FUNCTIONS.items()}

    def at(self, buffer, channel, y, x):
        space, offset, _, _, _, rows, row_stride, col_stride = self.t.buffers[buffer]
        return space, offset + (y % rows) * row_stride + x * col_stride + channel

    def read(self, buffer, channel, channels, y, x):
        _, _, height, width = self.t.buffers[buffer][:4]
        if not (0 <= y < height and 0 <= x < width):
            return np.zeros(channels, np.float32)
        space, i = self.at(buffer, channel, y, x)
        return self.spaces[space][i : i + channels].copy()

    def expression(self, code, product, channels, y, x):
        registers = []
        for code_word, a, b, c, d in code:
            name = self.functions[code_word]
            if name == "product":
                r = product[a : a + channels]
            elif name in ("load", "splat"):
                r = self.read(a, b, channels if name == "load" else 1, y + c, x + d)
            elif name == "vector":
                r = self.t.data[a : a + channels]
            elif name == "scalar":
                r = np.array(a, np.int32).view(np.float32)
            else:
                p, q = registers[a], registers[b if FUNCTIONS[name][1] == 2 else 0]
                r = {
                    "add": lambda p, q: p + q, "sub": lambda p, q: p - q, "mul": lambda p, q: p * q,
                    "div": lambda p, q: p / q, "min": numerics.minimum, "max": numerics.maximum,
                    "neg": lambda p, _: -p, "abs": lambda p, _: np.abs(p), "sqrt": lambda p, _: np.sqrt(p),
                    **{f: lambda p, _, f=f: getattr(numerics, f)(p)
                       for f in ("exp", "log", "tanh", "sigmoid", "relu", "elu")},
                }[name](p, q)  # fmt: skip
            registers.append(np.broadcast_to(r, channels).astype(np.float32))
        return registers[-1]

    def product(self, w, y, x):
        out, channel, channels, sy, sx, products, weight, bias, n_taps, n_code = w[:10]
        taps = np.reshape(w[10 : 10 + 5 * n_taps], (-1, 5))
        code = np.reshape(w[10 + 5 * n_taps :], (-1, 5)).tolist()
        assert len(code) == n_code
        acc = self.t.data[bias : bias + products].copy() if bias >= 0 else np.zeros(products, np.float32)
        for buffer, c, n, dy, dx in taps.tolist():
            for value in self.read(buffer, c, n, y * sy + dy, x * sx + dx):
                acc = numerics.fma(value, self.t.data[weight : weight + products], acc)
                weight += products
        with np.errstate(all="ignore"):
            result = self.expression(code, acc, channels, y, x) if n_code else acc
        space, i = self.at(out, channel, y, x)
        self.spaces[space][i : i + channels] = result

    def position(self, op, y, x):
        name, w = self.names[op[0]], op[2:]
        if name in ("conv", "map"):
            self.product(w, y, x)
        elif name == "input":
            colour, out, channel, channels, table = w
            space, i = self.at(out, channel, y, x)
            start = table + self.image[colour, y, x] * channels
            self.spaces[space][i : i + channels] = self.t.data[start : start + channels]
        else:
            colour, buffer, channel = w
            logits = self.read(buffer, channel, self.t.levels if name == "categorical" else 1, y, x)
            if name == "bernoulli":
                logits = np.float32([0, logits[0]])
            freqs = numerics.frequencies(logits)
            if not self.given[colour, y, x]:
                counter = (y * self.t.shape[2] + x) * self.t.shape[0] + colour
                self.image[colour, y, x] = numerics.draw(freqs, numerics.uniform(self.seed, self.index, counter))
            self.log_prob[colour, y, x] = numerics.log_prob(freqs, self.image[colour, y, x])

    def run(self):
        w = self.t.launches
        at = 0
        while at < len(w):
            op, n = w[at : at + 2]
            at += 2
            for _ in range(n):
                y, x, length, dy, dx = w[at : at + 5]
                at += 5
                for i in range(length):
                    self.position(self.t.ops[op], y + i * dy, x + i * dx)
        return self.image, self.log_prob


def run(program, tiny, n=1, images=None, **options):
    """(images, log_prob) of a run."""
    images = np.zeros((n, *tiny.shape), np.int32) if images is None else images.copy()
    log_prob = np.full(images.shape, np.nan, np.float32)
    program.run(images=images, log_prob=log_prob, **options)
    return images, log_prob


def raster(tiny, hidden, *, logits, colours_of_head="categorical"):
    """Launches that draw pixel by pixel: the ops `hidden`, then the heads, then the input."""
    _, height, width = tiny.shape
    source = tiny.input_op
    head = tiny.head(colours_of_head, 0, logits)
    for y, x in itertools.product(range(height), range(width)):
        for op in (*hidden, head, source):
            tiny.launch(op, (y, x, 1, 0, 0))
        tiny.step()


def chain(shape, levels, width, *, seed=0, rows=None):
    """A masked two-layer network with a residual block, drawn in raster order."""
    t = Tiny(shape, levels, seed)
    x = t.buffer(3, rows=rows)
    h = t.buffer(width, rows=rows)
    logits = t.buffer(levels, rows=1)
    t.input_op = t.input(0, x, 0, 3)
    before = [(x, 0, 3, -1, -1), (x, 0, 3, -1, 0), (x, 0, 3, -1, 1), (x, 0, 3, 0, -1)]
    first = t.conv(h, before, code=[("product", 0), ("relu", 0)])
    second = t.conv(
        h, [(h, 0, width, -1, 0), (h, 0, width, 0, -1)], bias=False,
        code=[("product", 0), ("tanh", 0), ("load", h, 0, 0, 0), ("add", 1, 2)],
    )  # fmt: skip
    last = t.conv(logits, [(h, 0, width, 0, 0)])
    raster(t, [first, second, last], logits=logits)
    return t


def everything(seed=0):
    """All ops and functions once, shared buffers, a strided conv, a ring, conditions and constants; scored at once."""
    t = Tiny((2, 4, 6), 5, seed)
    x = t.buffer(20)
    label = t.buffer(17, space="condition", broadcast=True)
    place = t.buffer(2, space="condition")
    constant = t.buffer(17, space="data", values=t.rng.normal(size=(4, 6, 17)))
    h = t.buffer(53)  # two maps side by side, the first of which must not spill into the second
    coarse = t.buffer(9, grid=(2, 3))
    logits = t.buffer(10)
    ops = [t.input(0, x, 0, 13), t.input(1, x, 13, 7)]
    ops.append(t.conv(h, [(x, 0, 20, 0, 0)], channel=17, channels=36))
    vector = t.add_data(t.rng.normal(size=17))
    code = [
        ("product", 0), ("product", 17), ("tanh", 0), ("sigmoid", 1), ("mul", 2, 3), ("load", label, 0, 0, 0),
        ("add", 4, 5), ("vector", vector), ("max", 6, 7), ("splat", place, 1, -1, 1), ("min", 8, 9), ("abs", 10),
        ("scalar", 0.75), ("add", 11, 12), ("log", 13), ("elu", 14), ("load", constant, 0, 0, 0), ("sub", 15, 16),
        ("exp", 17), ("sqrt", 18), ("neg", 19), ("div", 20, 13), ("load", x, 1, -1, 0), ("relu", 22), ("add", 21, 23),
    ]  # fmt: skip
    ops.append(t.conv(h, [(x, 3, 11, -1, -1), (x, 0, 20, 0, 1)], channels=17, products=34, code=code))
    ops.append(t.conv(coarse, [(h, 0, 53, 1, 0), (h, 5, 40, 0, 2)], stride=(2, 2)))
    ops.append(t.map(h, [("load", h, 17, 0, 0), ("scalar", 0.5), ("mul", 0, 1)], channel=17, channels=36))
    ops.append(t.conv(logits, [(h, 0, 53, 0, 0), (coarse, 0, 9, -1, -2)]))
    ops += [t.head("categorical", 0, logits, 0), t.head("categorical", 1, logits, 5)]
    for op in ops:
        t.everywhere(op)
        t.step()
    return t


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("shape", "levels", "width", "rows"),
    [((1, 1, 1), 2, 1, 1), ((1, 1, 6), 3, 16, 1), ((1, 6, 1), 4, 17, 2), ((1, 4, 5), 5, 70, 2), ((1, 3, 4), 130, 5, 3)],
)
def test_drawn_and_scored_as_by_brute_force(isa, shape, levels, width, rows):
    t = chain(shape, levels, width, rows=rows)
    program = t.load(isa)
    rng = np.random.default_rng(1)
    given = rng.integers(0, 2, (3, *shape), dtype=np.uint8)
    images = rng.integers(0, levels, (3, *shape), dtype=np.int32)
    got = run(program, t, images=images, given=given, seed=2**63 + 5, first_index=2**40)
    for n in range(3):
        want = BruteForce(t, images[n], given[n], None, 2**63 + 5, 2**40 + n).run()
        assert (got[0][n] == want[0]).all()
        assert (got[1][n] == want[1]).all()
    assert (got[0][given == 1] == images[given == 1]).all()
    depth = 4 * 3 * width + 2 * width * width + width * levels
    assert program.last_multiply_adds == 3 * shape[1] * shape[2] * depth


@pytest.mark.parametrize("isa", ISAS)
def test_every_op_as_by_brute_force(isa):
    t = everything()
    rng = np.random.default_rng(3)
    images = rng.integers(0, 5, (3, *t.shape), dtype=np.int32)
    conditions = rng.normal(size=(3, t.condition)).astype(np.float32)
    got = run(t.load(isa), t, images=images, given=True, conditions=conditions)
    for n in range(3):
        want = BruteForce(t, images[n], np.ones(t.shape), conditions[n], 0, n).run()
        assert (got[1][n] == want[1]).all()
    assert (got[0] == images).all()


@pytest.mark.parametrize("isa", ISAS)
def test_bernoulli_as_by_brute_force(isa):
    t = Tiny((1, 3, 3), 2)
    x, h = t.buffer(2), t.buffer(1)
    t.input_op = t.input(0, x, 0, 2)
    raster(t, [t.conv(h, [(x, 0, 2, -1, 0), (x, 0, 2, 0, -1)])], logits=h, colours_of_head="bernoulli")
    got = run(t.load(isa), t, 2, seed=9)
    for n in range(2):
        want = BruteForce(t, np.zeros(t.shape, np.int32), np.zeros(t.shape), None, 9, n).run()
        assert (got[0][n] == want[0]).all()
        assert (got[1][n] == want[1]).all()


def test_same_bits_for_every_batch_chunk_thread_and_isa():
    t = chain((1, 5, 4), 8, 33)
    want = run(t.load("scalar"), t, 13, seed=1, chunk=1, threads=1)
    for isa, chunk, threads in itertools.product(ISAS, (0, 1, 3, 13, 100), (0, 1, 2, 3)):
        got = run(t.load(isa), t, 13, seed=1, chunk=chunk, threads=threads)
        assert (got[0] == want[0]).all(), (isa, chunk, threads)
        assert (got[1] == want[1]).all(), (isa, chunk, threads)
    alone = run(t.load(), t, 2, seed=1, first_index=11)
    assert (alone[0] == want[0][11:]).all()
    assert (want[0] != run(t.load(), t, 13, seed=2)[0]).any()


def test_scoring_gives_the_bits_of_sampling():
    t = chain((1, 5, 4), 8, 33)
    program = t.load()
    images, log_prob = run(program, t, 20, seed=4, temperature=0.7, top_k=5, top_p=0.9)
    again = run(program, t, images=images, given=True, seed=99, temperature=0.7, top_k=5, top_p=0.9)
    assert (again[1] == log_prob).all()
    other = run(program, t, images=(images + 1) % 8, given=True, top_k=1)
    assert np.isneginf(other[1]).any()


def test_denormals_are_honoured_whatever_the_host_does():
    torch = pytest.importorskip("torch")
    t = Tiny((1, 1, 1), 2)
    h = t.buffer(2)
    code = [
        ("vector", t.add_data([0, 2.0**-130])), ("scalar", 2.0**-10), ("mul", 0, 1), ("scalar", 2.0**100),
        ("mul", 2, 3), ("scalar", 2.0**38), ("mul", 4, 5),
    ]  # fmt: skip
    head = t.head("categorical", 0, h)
    t.everywhere(t.map(h, code))
    t.everywhere(head)
    t.step()
    want = run(t.load(), t, 1, given=True)[1]
    assert abs(want.item() + np.log(1 + np.exp(0.25))) < 1e-6
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:  # a fresh pool inherits the flags of the thread that makes it
        assert (run(t.load(), t, 8, given=True, threads=8, chunk=1)[1] == want).all()
        assert _cpu.math("add", [np.float32([1e-40]), np.float32([0])])[0] == np.float32(1e-40)
    finally:
        torch.set_flush_denormal(False)


def test_no_images():
    t = chain((1, 2, 2), 2, 3)
    program = t.load()
    run(program, t, 0)
    assert program.last_multiply_adds == 0


# ---- being stopped, being watched, being shared -------------------------------------------------------------


def long_program(steps=20_000):
    t = Tiny((1, 64, 64), 2)
    h = t.buffer(64)
    op = t.conv(h, [(h, 0, 64, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    for _ in range(steps):
        t.everywhere(op)
        t.step()
    return t


def test_interrupt_stops_a_run_within_a_second():
    t = long_program()
    program = t.load()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C does, on another signal
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(program, t, 4, threads=2, chunk=1)
        assert time.monotonic() - start < 1.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    run(program, t, 0)  # still usable


def test_progress_grows_to_one():
    t = long_program(150)
    seen = []
    run(t.load("scalar" if len(ISAS) == 1 else "avx2"), t, 2, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 2
    assert 0 < seen[1] < 1


def test_an_exception_of_progress_stops_the_run():
    t = long_program()

    def progress(fraction):
        raise RuntimeError(f"enough at {fraction < 0.5}")

    with pytest.raises(RuntimeError, match="enough at True"):
        run(t.load(), t, 1, progress=progress)


def test_two_python_threads_share_a_program():
    t = chain((1, 6, 6), 8, 33)
    program = t.load()
    want = [run(program, t, 9, seed=s) for s in range(6)]
    got = [None] * 6

    def work(s):
        for _ in range(5):
            got[s] = run(program, t, 9, seed=s, threads=2, chunk=2)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in range(6):
        assert (got[s][0] == want[s][0]).all()
        assert (got[s][1] == want[s][1]).all()


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {path!r})
from test_cpu import chain, run
t = chain((1, 3, 3), 4, 5)
program = t.load()
want = run(program, t, 4, threads=2, chunk=1)
child = os.fork()
got = run(program, t, 4, threads=2, chunk=1)
good = (got[0] == want[0]).all()
if child == 0:
    os._exit(0 if good else 1)
assert good and os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_can_run():
    path = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", FORK.format(path=path)], check=True, timeout=60)


# ---- bad input ----------------------------------------------------------------------------------------------


def test_nan_logits_are_reported_with_their_place():
    t = chain((1, 3, 4), 4, 5)
    t.data[:] = np.nan
    with pytest.raises(ValueError, match=r"\[sample\] the model gave NaN logits at image 0, pixel \(0, 0\), colour 0"):
        run(t.load(), t, 1)
    t = chain((1, 3, 4), 4, 5)
    t.data[6] = np.nan  # of the table: level 2 is poison, and reaches the logits one pixel later
    images = np.zeros((3, 1, 3, 4), np.int32)
    images[1, 0, 1, 2] = 2
    with pytest.raises(ValueError, match=r"the model gave NaN logits at image 1, pixel \(1, 3\), colour 0"):
        run(t.load(), t, images=images, given=True)


ARGUMENTS = [
    ({"images": np.zeros((2, 1, 2, 3), np.int64)}, r"\[sample\] images must be of int32, got int64"),
    ({"images": [[1]]}, r"\[sample\] images must be a numpy array of int32"),
    ({"images": np.zeros((2, 1, 3, 2), np.int32)}, r"images must have shape \(2, 1, 2, 3\), got \(2, 1, 3, 2\)"),
    ({"images": np.zeros((2, 1, 3, 2), np.int32).transpose(0, 1, 3, 2)}, "images must be C-contiguous"),
    ({"images": np.broadcast_to(np.int32(0), (1, 1, 2, 3))}, "images must be (C-contiguous|writable)"),
    ({"log_prob": np.zeros((1, 1, 2, 3), np.float32)}, r"log_prob must have shape \(2, 1, 2, 3\), got \(1, 1, 2, 3\)"),
    ({"log_prob": np.zeros((2, 1, 2, 3))}, "log_prob must be of float32, got float64"),
    ({"given": np.zeros((2, 1, 2, 3), bool)}, "given must be of uint8, got bool"),
    ({"given": True, "images": np.full((2, 1, 2, 3), 4, np.int32)}, r"given levels must be in \[0, 4\), got 4 in image 0"),
    ({"conditions": None}, "conditions must be a numpy array of float32"),
    ({"conditions": np.zeros((2, 4), np.float32)}, r"conditions must have shape \(2, 5\), got \(2, 4\)"),
    ({"temperature": 0.0}, r"temperature must be positive and finite, got 0\.0"),
    ({"top_k": -1}, r"top_k must be in \[0, 65536\], got -1"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0\.0"),
    ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
    ({"threads": -1}, r"threads must be in \[0, 1024\], got -1"),
    ({"chunk": -1}, "chunk must not be negative, got -1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ARGUMENTS)
def test_arguments_are_checked(change, message):
    t = chain((1, 2, 3), 4, 5)
    t.buffer(5, space="condition", broadcast=True)
    arguments = {
        "images": np.zeros((2, 1, 2, 3), np.int32), "log_prob": np.zeros((2, 1, 2, 3), np.float32),
        "conditions": np.zeros((2, 5), np.float32), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        t.load().run(**arguments)


DAMAGE = [
    (lambda w, a: w.__setitem__(0, 7), r"\[program\] header: magic \(=7, word 0\) must be in \[826693712, 826693712\]"),
    (lambda w, a: w.__setitem__(2, 5), r"\[program\] header: words \(=5, word 2\)"),
    (lambda w, a: w.__setitem__(6, 0), r"header: levels \(=0, word 6\) must be in \[1, 65536\]"),
    (lambda w, a: w.__setitem__(7, 10), r"buffer 0: elements \[3, 21\) must lie in the space's 10 floats"),
    (lambda w, a: w.__setitem__(11, 3), "launches: the header says 3 steps, there are 6"),
    (lambda w, a: w.__setitem__(12, 3), r"header: launch_words \(=3\) must be"),
    (lambda w, a: w.__setitem__(13, 9), r"buffer 0: space \(=9, word 13\) must be in \[0, 2\]"),
    (lambda w, a: w.__setitem__(a["ops"], 99), r"op 0: opcode \(=99, word 37\) must be in \[0, 4\]"),
    (lambda w, a: w.__setitem__(a["conv"] + 2, 3), r"op 1: out_buffer \(=3, word 46\) must be in \[0, 2\]"),
    (lambda w, a: w.__setitem__(a["conv"] + 8, 10**8), r"op 1: weight \(=100000000\) and its 60 floats must lie in"),
    (lambda w, a: w.__setitem__(a["conv"] + 12, 17), r"op 1: tap 0: buffer \(=17, word 56\) must be in \[0, 2\]"),
    (lambda w, a: w.__setitem__(a["conv"] + 19, 4), r"op 1: tap 1: channels \(=4, word 63\) must be in \[1, 3\]"),
    (lambda w, a: w.__setitem__(a["conv"] + 38, 1), r"op 1: instruction 1: register \(=1\) must be of an earlier"),
    (lambda w, a: w.__setitem__(a["launch"], 9), r"launch 0: op \(=9, word \d+\) must be in \[-1, 4\]"),
    (lambda w, a: w.__setitem__(a["launch"] + 2, 2), r"launch 0: y \(=2, word \d+\) must be in \[0, 1\]"),
    (lambda w, a: w.__setitem__(a["launch"] + 4, 2), r"launch 0: run 0 stands still"),
    (lambda w, a: w.__setitem__(slice(a["launch"] + 4, a["launch"] + 6), [3, 1]), r"run 0 ends at \(2, 0\), outside"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(damage, message):
    t = chain((1, 2, 3), 4, 5)
    words = t.words()
    ops = C["kHeaderWords"] + 3 * C["kBufferWords"]
    damage(words, {"ops": ops, "conv": ops + 7, "launch": len(words) - len(t.launches)})
    with pytest.raises(ValueError, match=message):
        _cpu.Program(words, t.data)


def test_truncated_programs_are_refused():
    t = everything()
    words = t.words()
    for n in range(len(words)):
        cut = words[:n].copy()
        if n > 2:
            cut[2] = n
        with pytest.raises(ValueError, match=r"\[program\]"):
            _cpu.Program(cut, t.data)


def test_every_changed_word_is_refused_or_runs_within_its_buffers():
    t = everything()
    words = t.words()
    conditions = np.ones((2, t.condition), np.float32)
    refused = 0
    for at in range(len(words)):
        for value in (-(2**31), -1, 0, 1, words[at] - 1, words[at] + 1, 2 * words[at] + 1, 2**31 - 1):
            damaged = words.copy()
            damaged[at] = np.clip(value, -(2**31), 2**31 - 1)
            try:
                program = _cpu.Program(damaged, t.data)
                given = np.ones((2, *t.shape), np.uint8)
                run(program, t, 2, given=given, conditions=conditions, threads=1)
            except (ValueError, MemoryError):
                refused += 1
    assert refused > 2 * len(words)


def test_isa_by_name(monkeypatch):
    t = chain((1, 2, 3), 4, 5)
    assert t.load().isa == _cpu.default_isa()
    monkeypatch.setenv("PIXELFAST_ISA", "scalar")
    assert t.load().isa == "scalar"
    assert t.load(ISAS[-1]).isa == ISAS[-1]
    monkeypatch.setenv("PIXELFAST_ISA", "sse9")
    with pytest.raises(ValueError, match=r"\[isa\] PIXELFAST_ISA is 'sse9', but this machine runs: scalar"):
        t.load()
    with pytest.raises(ValueError, match=r"\[isa\] isa is 'neon7', but this machine runs: scalar"):
        t.load("neon7")


def test_number_of_threads(monkeypatch):
    monkeypatch.delenv("PIXELFAST_THREADS", raising=False)
    assert _cpu.default_threads() >= 1
    monkeypatch.setenv("PIXELFAST_THREADS", "3")
    assert _cpu.default_threads() == 3
    for bad in ("0", "two", "99999"):
        monkeypatch.setenv("PIXELFAST_THREADS", bad)
        with pytest.raises(ValueError, match=r"\[threads\] PIXELFAST_THREADS must be a number from 1 to 1024"):
            _cpu.default_threads()


@pytest.mark.parametrize("isa", ISAS)
def test_peak_is_measured(isa):
    assert _cpu.peak(isa, 1, 0.02) > 1e6
