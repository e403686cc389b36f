"""The reference runtime: a Program, run in plain Python, one position at a time. Slow, obvious, no options.

It defines what a runtime computes. It also asserts what a native runtime cannot afford to: everything that is read
was written before, and has not been overwritten by a later position of its ring. (That rings which share memory are
never in use at once, it takes on trust: the tests of `program` replay the memory in full.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import numerics
from .program import Program
from .words import Buffer, Record

_UNARY: dict[str, Callable[..., np.ndarray]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": numerics.exp,
    "log": numerics.log,
    "tanh": numerics.tanh,
    "sigmoid": numerics.sigmoid,
    "relu": numerics.relu,
    "elu": numerics.elu,
}
_BINARY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "gate": numerics.gate,
    "min": numerics.minimum,
    "max": numerics.maximum,
}


class Reference:
    """Runs a program. Same arguments as the native runtimes' `run`."""

    def __init__(self, program: Program):
        self.program = program
        self.decoded = program.decoded
        self.last_multiply_adds = 0

    def run(
        self,
        *,
        images: np.ndarray,
        log_prob: np.ndarray,
        given: np.ndarray | bool | None = None,
        conditions: np.ndarray | None = None,
        seed: int = 0,
        first_index: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        """Fill `images` (int32 (N, C, H, W)) where not `given`, and `log_prob` (float32 (N, C, H, W)) everywhere."""
        known = np.broadcast_to(np.asarray(False if given is None else given, bool), images.shape)
        self.last_multiply_adds = 0
        with np.errstate(all="ignore"):
            for n in range(len(images)):
                image = _Image(self, images[n], log_prob[n], known[n], first_index + n, seed)
                image.condition = None if conditions is None else conditions[n]
                image.options = {"temperature": temperature, "top_k": top_k or None, "top_p": top_p}
                for launch in self.decoded.launches:
                    if launch is None:
                        continue
                    op, runs = launch
                    for y, x, count, dy, dx in runs:
                        for i in range(count):
                            image.step(self.decoded.ops[op], y + i * dy, x + i * dx)


class _Image:
    """One image while it is drawn."""

    condition: np.ndarray | None
    options: dict

    def __init__(self, owner: Reference, pixels, log_prob, known, index: int, seed: int):
        self.owner, self.pixels, self.log_prob, self.known = owner, pixels, log_prob, known
        self.index, self.seed = index, seed
        self.arena = np.full(owner.program.arena_floats, np.nan, np.float32)
        # How often the ring of each float had gone round when it was written.
        self.turn = np.full(owner.program.arena_floats, -1, np.int64)
        self.data = owner.program.data

    def step(self, op: Record, y: int, x: int) -> None:
        f = op.fields
        if op.name == "input":
            level = int(self.pixels[f["colour"], y, x])
            n = f["out_channels"]
            self.write(f["out_buffer"], f["out_channel"], y, x, self.data[f["table"] + level * n :][:n])
        elif op.name in ("conv", "map"):
            product = self.product(op, y, x) if op.name == "conv" else None
            self.write(f["out_buffer"], f["out_channel"], y, x, self.expression(op, product, y, x))
        elif op.name == "attend":
            self.write(f["out_buffer"], f["out_channel"], y, x, self.attend(op, x))
        else:
            self.head(op, y, x)

    def place(self, b: Buffer, channel: int, y: int, x: int) -> int:
        return b.offset + (y % b.rows) * b.row_stride + (x % b.columns) * b.col_stride + channel

    def turn_of(self, b: Buffer, y: int, x: int) -> int:
        """Which of the positions that share a slot this is, as far as views of the buffer on other grids agree."""
        return y // b.rows + x // b.columns

    def read(self, buffer: int, channel: int, n: int, y: int, x: int) -> np.ndarray:
        b = self.owner.decoded.buffers[buffer]
        if not (0 <= y < b.height and 0 <= x < b.width):
            return np.zeros(n, np.float32)
        at = self.place(b, channel, y, x)
        if b.space == "arena":
            written = (self.turn[at : at + n] == self.turn_of(b, y, x)).all()
            assert written, f"buffer {buffer} is read at ({y}, {x}) before it is written"
            return self.arena[at : at + n]
        source = self.data if b.space == "data" else self.condition
        assert source is not None
        return source[at : at + n]

    def write(self, buffer: int, channel: int, y: int, x: int, values: np.ndarray) -> None:
        b = self.owner.decoded.buffers[buffer]
        at = self.place(b, channel, y, x)
        self.arena[at : at + len(values)] = values
        self.turn[at : at + len(values)] = self.turn_of(b, y, x)

    def product(self, op: Record, y: int, x: int) -> np.ndarray:
        f = op.fields
        n = f["product_channels"]
        if f["start_buffer"] >= 0:
            acc = self.read(f["start_buffer"], f["start_channel"], n, y, x)
        else:
            acc = self.data[f["bias"] :][:n] if f["bias"] >= 0 else np.zeros(n, np.float32)
        k = 0
        for buffer, channel, channels, dy, dx in op.taps:
            values = self.read(buffer, channel, channels, y * f["stride_y"] + dy, x * f["stride_x"] + dx)
            for v in values:
                acc = numerics.fma(v, self.data[f["weight"] + k * n :][:n], acc)
                k += 1
        self.owner.last_multiply_adds += k * n
        return acc

    def expression(self, op: Record, product: np.ndarray | None, y: int, x: int) -> np.ndarray:
        n = op.fields["out_channels"]
        registers: list[np.ndarray] = []
        for fn, (a, b, c, d) in op.code:
            if fn == "product":
                assert product is not None
                value = product[a : a + n]
            elif fn == "load":
                value = self.read(a, b, n, y + c, x + d)
            elif fn == "splat":
                value = np.repeat(self.read(a, b, 1, y + c, x + d), n)
            elif fn == "vector":
                value = self.data[a : a + n]
            elif fn == "scalar":
                value = np.full(n, np.int32(a).view(np.float32))
            elif fn == "store":
                value = registers[a]
                self.write(b, c, y, x, value)
            elif fn in _UNARY:
                value = _UNARY[fn](registers[a])
            else:
                value = _BINARY[fn](registers[a], registers[b])
            registers.append(value)
        if registers:
            return registers[-1]
        assert product is not None
        return product

    def attend(self, op: Record, x: int) -> np.ndarray:
        f = op.fields
        heads, n, m = f["heads"], f["key_channels"], f["value_channels"]
        out = np.zeros((heads, m), np.float32)
        positions = [k for start, end in op.keys[x] for k in range(start, end)]
        if not positions:
            return out.reshape(-1)
        query = self.read(f["query_buffer"], f["query_channel"], heads * n, 0, x).reshape(heads, n)
        keys = np.stack([self.read(f["key_buffer"], f["key_channel"], heads * n, 0, k) for k in positions])
        values = np.stack(
            [self.read(f["value_buffer"], f["value_channel"], heads * m, 0, k) for k in positions]
        )
        width = self.owner.decoded.buffers[f["key_buffer"]].width
        for h in range(heads):
            scores = numerics.dot(query[h], keys[:, h * n : (h + 1) * n])
            if f["bias"] >= 0:
                row = (h % f["bias_heads"]) * len(op.keys) + x
                scores = scores + self.data[f["bias"] + row * width :][:width][positions]
            weights = numerics.exp(scores - scores.max())
            for weight, value in zip(weights, values[:, h * m : (h + 1) * m], strict=True):
                out[h] = numerics.fma(weight, value, out[h])
            out[h] /= numerics.total(weights)
        self.owner.last_multiply_adds += len(positions) * heads * (n + m)
        return out.reshape(-1)

    def head(self, op: Record, y: int, x: int) -> None:
        d = self.owner.decoded
        c = op.fields["colour"]
        if op.name == "bernoulli":
            (logit,) = self.read(op.fields["buffer"], op.fields["channel"], 1, y, x)
            table = numerics.bernoulli_frequencies(logit, **self.options)
        else:
            logits = self.read(op.fields["buffer"], op.fields["channel"], d.levels, y, x)
            table = numerics.frequencies(logits, **self.options)
        if not self.known[c, y, x]:
            u = numerics.uniform(self.seed, self.index, (y * d.width + x) * d.colours + c)
            self.pixels[c, y, x] = numerics.draw(table, u)
        self.log_prob[c, y, x] = numerics.log_prob(table, int(self.pixels[c, y, x]))
