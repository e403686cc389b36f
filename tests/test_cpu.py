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
from handwritten import BruteForce, C, Tiny, attending, chain, everything, raster, run

from pixelfast import _cpu

ISAS = _cpu.isas()


@pytest.mark.parametrize("isa", [*ISAS, "emulated"])
@pytest.mark.parametrize(
    ("shape", "levels", "width", "rows"),
    [
        ((1, 1, 1), 2, 1, 1),
        ((1, 1, 6), 3, 16, 1),
        ((1, 6, 1), 4, 17, 2),
        ((1, 4, 5), 5, 70, 2),
        ((1, 3, 4), 130, 5, 3),
    ],
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


@pytest.mark.parametrize("isa", [*ISAS, "emulated"])
@pytest.mark.parametrize("make", [everything, attending])
def test_every_op_as_by_brute_force(isa, make):
    t = make()
    rng = np.random.default_rng(3)
    images = rng.integers(0, t.levels, (3, *t.shape), dtype=np.int32)
    conditions = rng.normal(size=(3, t.condition)).astype(np.float32)
    got = run(t.load(isa), t, images=images, given=True, conditions=conditions)
    for n in range(3):
        want = BruteForce(t, images[n], np.ones(t.shape), conditions[n], 0, n).run()
        assert (got[1][n] == want[1]).all()
    assert (got[0] == images).all()


@pytest.mark.parametrize("isa", ISAS)
def test_every_op_in_teams(isa):
    t = everything()
    program = t.load(isa)
    conditions = np.random.default_rng(3).normal(size=(3, t.condition)).astype(np.float32)
    want = run(program, t, 3, conditions=conditions, threads=1, seed=8)
    done = program.last_multiply_adds
    for team in (2, 3, 4, 9):
        for n in (1, 3):
            got = run(program, t, n, conditions=conditions[:n], threads=team, team=team, seed=8)
            assert (got[0] == want[0][:n]).all()
            assert (got[1] == want[1][:n]).all()
            assert program.last_multiply_adds * 3 == done * n


@pytest.mark.parametrize("isa", [*ISAS, "emulated"])
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
    crews = [(0, 0), (1, 0), (2, 0), (3, 0), (2, 2), (3, 3), (5, 2), (7, 7)]
    for isa, chunk, (threads, team) in itertools.product(ISAS, (0, 1, 3, 13, 100), crews):
        got = run(t.load(isa), t, 13, seed=1, chunk=chunk, threads=threads, team=team)
        assert (got[0] == want[0]).all(), (isa, chunk, threads, team)
        assert (got[1] == want[1]).all(), (isa, chunk, threads, team)
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


@pytest.mark.parametrize("isa", [*_cpu.isas(), "emulated"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 16, 17, 70])
def test_sums_that_go_on(width, isa):
    """A product in two ops has the bits of one: of few outputs, for which rows are lanes, and of many."""

    t = Tiny((1, 5, 7), 3)
    x, begun, h, logits = t.buffer(5), t.buffer(width + 2), t.buffer(width), t.buffer(3)
    taps = [(x, 0, 5, -1, 0), (x, 1, 3, 0, -1), (x, 0, 4, 1, 1)]
    code = [("product", 0), ("tanh", 0)]
    whole = t.conv(h, taps, code=code)
    first = t.conv(begun, taps[:1], channel=2, channels=width)
    rest = t.conv(h, taps[1:], code=code, bias=False, start=(begun, 2))
    weight, bias = t.ops[whole][8:10]
    t.ops[first][8:10] = weight, bias
    t.ops[rest][8] = weight + 5 * width
    around = [t.input(0, x, 0, 5), t.conv(logits, [(h, 0, width, 0, 0)]), t.head("categorical", 0, logits)]
    images = np.random.default_rng(0).integers(0, 3, (7, 1, 5, 7)).astype(np.int32)
    found = []
    for middle in ([whole], [first, rest]):
        t.launches, t.steps = [], 0
        for op in (around[0], *middle, *around[1:]):
            t.everywhere(op)
            t.step()
        found.append(run(t.load(isa), t, 7, images, given=True)[1])
    assert len(np.unique(found[0])) > 50
    assert (found[0] == found[1]).all()


def test_no_images():
    t = chain((1, 2, 2), 2, 3)
    program = t.load()
    run(program, t, 0)
    assert program.last_multiply_adds == 0


# ---- being stopped, being watched, being shared ------------------------------------------------------------


def long_program(steps=20_000):
    """About 50 us a step for 4 images."""
    t = Tiny((1, 16, 16), 2)
    h = t.buffer(16)
    op = t.conv(h, [(h, 0, 16, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
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
            run(program, t, 400, threads=2, chunk=4)
        assert time.monotonic() - start < 1.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    run(program, t, 0)  # still usable


def test_progress_grows_to_one():
    t = long_program(6000)
    seen = []
    run(t.load(), t, 8, threads=1, chunk=4, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 2
    assert 0 < seen[1] < 1


def test_an_exception_of_progress_stops_the_run():
    t = long_program()

    def progress(fraction):
        raise RuntimeError(f"enough at {fraction < 0.5}")

    with pytest.raises(RuntimeError, match="enough at True"):
        run(t.load(), t, 400, progress=progress)


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
from handwritten import chain, run
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


# ---- bad input ---------------------------------------------------------------------------------------------


def test_nan_logits_are_reported_with_their_place():
    t = chain((1, 3, 4), 4, 5)
    t.data[:] = np.nan
    place = r"image 0, pixel \(0, 0\), colour 0"
    with pytest.raises(ValueError, match=r"\[sample\] the model gave NaN logits at " + place):
        run(t.load(), t, 1)
    t = chain((1, 3, 4), 4, 5)
    t.data[6] = np.nan  # of the table: level 2 is poison, and reaches the logits one pixel later
    images = np.zeros((3, 1, 3, 4), np.int32)
    images[1, 0, 1, 2] = 2
    with pytest.raises(ValueError, match=r"the model gave NaN logits at image 1, pixel \(1, 3\), colour 0"):
        run(t.load(), t, images=images, given=True)


def read_only(shape):
    a = np.zeros(shape, np.int32)
    a.flags.writeable = False
    return a


ARGUMENTS = [
    ("images", np.zeros((2, 1, 2, 3), np.int64), r"\[sample\] images must be of int32, got int64"),
    ("images", [[1]], r"\[sample\] images must be a numpy array of int32"),
    ("images", np.zeros((2, 1, 3, 2), np.int32), r"must have shape \(2, 1, 2, 3\), got \(2, 1, 3, 2\)"),
    ("images", np.zeros((2, 1, 3, 2), np.int32).transpose(0, 1, 3, 2), "images must be C-contiguous"),
    ("images", read_only((2, 1, 2, 3)), "images must be writable"),
    ("log_prob", np.zeros((1, 1, 2, 3), np.float32), r"must have shape \(2, 1, 2, 3\), got \(1, 1, 2, 3\)"),
    ("log_prob", np.zeros((2, 1, 2, 3)), "log_prob must be of float32, got float64"),
    ("given", np.zeros((2, 1, 2, 3), bool), "given must be of uint8, got bool"),
    ("conditions", None, "conditions must be a numpy array of float32"),
    ("conditions", np.zeros((2, 4), np.float32), r"conditions must have shape \(2, 5\), got \(2, 4\)"),
    ("temperature", 0.0, r"temperature must be positive and finite, got 0\.0"),
    ("top_k", -1, r"top_k must be in \[0, 65536\], got -1"),
    ("top_p", 0.0, r"top_p must be in \(0, 1\], got 0\.0"),
    ("top_p", float("nan"), r"top_p must be in \(0, 1\], got nan"),
    ("threads", -1, r"threads must be in \[0, 1024\], got -1"),
    ("chunk", -1, "chunk must not be negative, got -1"),
    ("team", -1, "team must not be negative, got -1"),
]


@pytest.mark.parametrize(("name", "value", "message"), ARGUMENTS)
def test_arguments_are_checked(name, value, message):
    t = chain((1, 2, 3), 4, 5)
    t.buffer(5, space="condition", broadcast=True)
    arguments = {
        "images": np.zeros((2, 1, 2, 3), np.int32), "log_prob": np.zeros((2, 1, 2, 3), np.float32),
        "conditions": np.zeros((2, 5), np.float32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        t.load().run(**arguments | {name: value})


def test_given_levels_are_checked():
    t = chain((1, 2, 3), 4, 5)
    images = np.zeros((2, 1, 2, 3), np.int32)
    images[1, 0, 1, 1] = 4
    message = r"\[sample\] given levels must be in \[0, 4\), got 4 in image 1"
    with pytest.raises(ValueError, match=message):
        run(t.load(), t, images=images, given=True)
    with pytest.raises(ValueError, match=message):
        run(t.load(), t, images=images, given=np.ones(images.shape, np.uint8))
    run(t.load(), t, images=images)  # not given: what is there does not matter


# What word to change (counted from a part of the program), to what, and the message.
DAMAGE = [
    ("header", 0, 7, r"\[program\] header: magic \(=7, word 0\) must be in \[826693712, 826693712\]"),
    ("header", 2, 5, r"\[program\] header: words \(=5, word 2\)"),
    ("header", 6, 0, r"header: levels \(=0, word 6\) must be in \[1, 65536\]"),
    ("header", 7, 10, r"buffer 0: elements \[3, 21\) must lie in the space's 10 floats"),
    ("header", 11, 3, "launches: the header says 3 steps, there are 6"),
    ("header", 12, 3, r"header: launch_words \(=3\) must be"),
    ("buffers", 0, 9, r"buffer 0: space \(=9, word 13\) must be in \[0, 2\]"),
    ("ops", 0, 99, r"op 0: opcode \(=99, word 40\) must be in \[0, 5\]"),
    ("conv", 2, 3, r"op 1: out_buffer \(=3, word 49\) must be in \[0, 2\]"),
    ("conv", 8, 10**8, r"op 1: weight \(=100000000\) and its 60 floats must lie in"),
    ("conv", 14, 17, r"op 1: tap 0: buffer \(=17, word 61\) must be in \[0, 2\]"),
    ("conv", 21, 4, r"op 1: tap 1: channels \(=4, word 68\) must be in \[1, 3\]"),
    ("conv", 40, 1, r"op 1: instruction 1: register \(=1\) must be of an earlier"),
    ("launches", 0, 9, r"launch 0: op \(=9, word \d+\) must be in \[-1, 4\]"),
    ("launches", 2, 2, r"launch 0: y \(=2, word \d+\) must be in \[0, 1\]"),
    ("launches", 4, 2, "launch 0: run 0 stands still"),
    ("launches", 4, [3, 1], r"launch 0: run 0 ends at \(2, 0\), outside the op's grid"),
]


@pytest.mark.parametrize(("part", "word", "value", "message"), DAMAGE)
def test_damage_is_named(part, word, value, message):
    t = chain((1, 2, 3), 4, 5)
    words = t.words()
    ops = C["kHeaderWords"] + 3 * C["kBufferWords"]
    starts = {"header": 0, "buffers": C["kHeaderWords"], "ops": ops, "conv": ops + 7}
    at = starts.get(part, len(words) - len(t.launches)) + word
    words[at : at + np.size(value)] = value
    with pytest.raises(ValueError, match=message):
        _cpu.Program(words, t.data)


@pytest.mark.parametrize("runs", [[(0, 5), (4, 9)], [(0, 9)] * 40, [(3, 9), (0, 3)]])
def test_attention_to_a_position_twice_is_refused(runs):
    """There is room for as many scores as there are positions."""
    t = Tiny((1, 1, 9), 2)
    h = t.buffer(4)
    t.everywhere(t.attend(h, h, h, h, heads=1, runs=[*[[]] * 8, runs]))
    t.step()
    with pytest.raises(ValueError, match=r"\[program\] op 0: start \(=\d, word \d+\) must be in \[\d, 8\]"):
        t.load()


@pytest.mark.parametrize("make", [everything, attending])
def test_truncated_programs_are_refused(make):
    t = make()
    words = t.words()
    for n in range(len(words)):
        cut = words[:n].copy()
        if n > 2:
            cut[2] = n
        with pytest.raises(ValueError, match=r"\[program\]"):
            _cpu.Program(cut, t.data)


@pytest.mark.parametrize("make", [everything, attending])
def test_every_changed_word_is_refused_or_runs_within_its_buffers(make):
    """csrc/tests/native.cpp does more of this, where a sanitizer watches."""
    t = make()
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
        with pytest.raises(ValueError, match=r"\[threads\] PIXELFAST_THREADS must be a number from 1 to"):
            _cpu.default_threads()


@pytest.mark.parametrize("isa", ISAS)
def test_peak_is_measured(isa):
    assert _cpu.peak(isa, 1, 0.02) > 1e6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((0, 17, 0), r"buffer \(=17\) must be in \[0, 3\]"),
        ((0, 2, 2), "channels from 2 on must lie in the buffer's 6"),
        ((0, 3, 0), "a store is to the arena, on the grid of the op's output"),
        ((1, 2, 0), "register"),
    ],
)
def test_damaged_stores_are_named(words, message):
    t = Tiny((1, 2, 3), 4)
    x, h, _, _ = t.buffer(2), t.buffer(5), t.buffer(6), t.buffer(5, grid=(1, 3))
    t.everywhere(t.input(0, x, 0, 2))
    t.everywhere(t.conv(h, [(x, 0, 2, 0, 0)], code=[("product", 0), ("store", *words), ("relu", 0)]))
    t.step()
    with pytest.raises(ValueError, match=message):
        t.load()
    t = Tiny((1, 2, 3), 4)
    x, h, k = t.buffer(2), t.buffer(5), t.buffer(6)
    t.everywhere(t.conv(h, [(x, 0, 2, 0, 0)], code=[("product", 0), ("store", 0, k, 0)]))
    t.step()
    with pytest.raises(ValueError, match="its last instruction is a store"):
        t.load()
