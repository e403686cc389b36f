"""The int32 words of a program, as what they say: the format that crosses into the runtimes.

It is written down in csrc/core/program.h, its opcodes in csrc/core/ops.def; both reach Python through the extension, so
nothing is typed twice. program.py encodes, `decode` is its inverse.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from . import _cpu

OPS: dict[str, int] = _cpu.opcodes()
FUNCTIONS: dict[str, tuple[int, int]] = _cpu.functions()  # name -> (code, arity)
C = _cpu.constants()

_SPACES = {"arena": 0, "data": 1, "condition": 2}


@dataclass(frozen=True, eq=False)
class Buffer:
    """Element (y, x, c) lies at offset + (y % rows)*row_stride + (x % columns)*col_stride + c of its space."""

    space: str
    offset: int
    height: int
    width: int
    channels: int
    rows: int
    columns: int
    row_stride: int
    col_stride: int

    @property
    def words(self) -> list[int]:
        return [
            _SPACES[self.space], self.offset, self.height, self.width,
            self.channels, self.rows, self.columns, self.row_stride, self.col_stride,
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Record:
    """An op as the runtime sees it: `fields` by the names of program.h."""

    name: str
    fields: dict[str, int]
    taps: tuple[tuple[int, ...], ...] = ()
    code: tuple[tuple[str, tuple[int, ...]], ...] = ()
    keys: tuple[tuple[tuple[int, int], ...], ...] = ()  # of each query: runs from, up to


@dataclass(frozen=True, eq=False)
class Decoded:
    colours: int
    height: int
    width: int
    levels: int
    arena_floats: int
    condition_floats: int
    buffers: tuple[Buffer, ...]
    ops: tuple[Record, ...]
    launches: tuple[tuple[int, list[list[int]]] | None, ...]  # (op, runs), None ends a step


_FIELDS = {
    "input": ("colour", "out_buffer", "out_channel", "out_channels", "table"),
    "conv": ("out_buffer", "out_channel", "out_channels", "stride_y", "stride_x", "product_channels", "weight",
             "bias", "start_buffer", "start_channel", "n_taps", "n_instructions"),
    "attend": ("out_buffer", "out_channel", "heads", "key_channels", "value_channels", "query_buffer", "query_channel",
               "key_buffer", "key_channel", "value_buffer", "value_channel", "bias", "bias_heads", "n_runs"),
    "categorical": ("colour", "buffer", "channel"),
    "bernoulli": ("colour", "buffer", "channel"),
}  # fmt: skip
_FIELDS["map"] = _FIELDS["conv"]


def decode(words: np.ndarray) -> Decoded:
    """The inverse of `assemble`, for the reference runtime and for people."""
    w = words.tolist()
    _, _, _, colours, height, width, levels, arena, condition, n_buffers, n_ops, _, n_launch = w[
        : C["kHeaderWords"]
    ]
    at = C["kHeaderWords"]
    space = {v: k for k, v in _SPACES.items()}
    names = {v: k for k, v in OPS.items()}
    functions = {code: name for name, (code, _) in FUNCTIONS.items()}
    buffers = []
    for _ in range(n_buffers):
        buffers.append(Buffer(space[w[at]], *w[at + 1 : at + C["kBufferWords"]]))
        at += C["kBufferWords"]
    ops = []
    for _ in range(n_ops):
        name, end = names[w[at]], at + w[at + 1]
        keys = _FIELDS[name]
        fields = dict(zip(keys, w[at + 2 :], strict=False))
        at += 2 + len(keys)
        taps = []
        for _ in range(fields.get("n_taps", 0)):
            taps.append(tuple(w[at : at + 5]))
            at += 5
        code = []
        for _ in range(fields.get("n_instructions", 0)):
            code.append((functions[w[at]], tuple(w[at + 1 : at + 5])))
            at += 5
        attended: tuple = ()
        if name == "attend":
            queries = buffers[fields["out_buffer"]].width
            first, at = w[at : at + queries + 1], at + queries + 1
            pairs = list(zip(w[at:end:2], w[at + 1 : end : 2], strict=True))
            attended = tuple(tuple(pairs[a:b]) for a, b in itertools.pairwise(first))
            at += 2 * fields["n_runs"]
        assert at == end
        ops.append(Record(name, fields, tuple(taps), tuple(code), attended))
    launches: list[tuple[int, list[list[int]]] | None] = []
    end = at + n_launch
    while at < end:
        op, n = w[at : at + 2]
        at += 2
        if op == C["kStepMark"]:
            launches.append(None)
            continue
        launches.append((op, [w[at + 5 * r : at + 5 * r + 5] for r in range(n)]))
        at += 5 * n
    return Decoded(
        colours, height, width, levels, arena, condition, tuple(buffers), tuple(ops), tuple(launches)
    )
