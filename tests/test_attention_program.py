"""Attention below the plan: how sums are ordered, and damaged records of it."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from test_attention import compiled

import pixelfast as pf
from pixelfast import _cpu, numerics


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100])
def test_sums_have_sixteen_parts(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n)).astype(np.float32)
    assert numerics.total(a) == pytest.approx(math.fsum(a), abs=1e-5)
    assert numerics.dot(a, b) == pytest.approx(float(a.astype(float) @ b), abs=1e-5)
    parts = [functools.reduce(np.add, a[i::16], np.float32(0)) for i in range(16)]
    eight = [parts[i] + parts[i + 8] for i in range(8)]
    four = [eight[i] + eight[i + 4] for i in range(4)]
    assert numerics.total(a) == (four[0] + four[2]) + (four[1] + four[3])


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (2, 99, r"out_buffer \(=99"),
        (4, 0, r"heads \(=0"),
        (5, 10**6, "query_buffer must have at least 2000000 channels"),
        (13, 10**8, r"bias \(=100000000\)"),
        (14, 3, r"bias_heads \(=3"),
        (15, 5, "must be"),
        (17, -1, r"first \(=-1"),
        (-2, 12, r"start \(=12"),
        (-1, 13, r"end \(=13"),
    ],
)
def test_damaged_attention_is_named(word, value, message):
    program = compiled("biased", (1, 3, 4)).program
    words = program.words.copy()
    at = pf.program.C["kHeaderWords"] + pf.program.C["kBufferWords"] * len(program.decoded.buffers)
    for op in program.decoded.ops:
        if op.name == "attend":
            break
        at += words[at + 1]
    assert _cpu.Program(words, program.data, None)
    words[at + word if word >= 0 else at + words[at + 1] + word] = value
    with pytest.raises(ValueError, match=message):
        _cpu.Program(words, program.data, None)


def test_a_ring_of_keys_is_refused():
    program = compiled("sdpa", (1, 3, 4)).program
    words = program.words.copy()
    op = next(op for op in program.decoded.ops if op.name == "attend")
    at = pf.program.C["kHeaderWords"] + pf.program.C["kBufferWords"] * op.fields["key_buffer"]
    words[at + 6] -= 1
    with pytest.raises(ValueError, match="key_buffer must have all of its columns"):
        _cpu.Program(words, program.data, None)
