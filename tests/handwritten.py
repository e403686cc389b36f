"""Programs written by hand, word for word, and a brute-force evaluation of the same list of ops."""

from __future__ import annotations

import itertools

import numpy as np

from pixelfast import _cpu, _emulated, numerics

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

    def buffer(
        self, channels, *, grid=None, rows=None, columns=None, space="arena", broadcast=False, values=None
    ):
        height, width = grid or self.shape[1:]
        rows = height if rows is None else rows
        columns = width if columns is None else columns
        size = channels if broadcast else rows * columns * channels
        if space == "arena":
            offset = self.arena + 3  # odd offsets: nothing may rely on alignment
            self.arena = offset + size
        elif space == "condition":
            offset, self.condition = self.condition, self.condition + size
        else:
            offset = self.add_data(values)
        strides = (0, 0) if broadcast else (columns * channels, channels)
        self.buffers.append((SPACES[space], offset, height, width, channels, rows, columns, *strides))
        return len(self.buffers) - 1

    def turned(self, buffer):
        """The same floats, from right to left."""
        *_, width, row_stride, col_stride = self.buffers[buffer]
        space, offset, *grid = self.buffers[buffer][:-2]
        self.buffers.append((space, offset + (width - 1) * col_stride, *grid, row_stride, -col_stride))
        return len(self.buffers) - 1

    def op(self, name, *body):
        self.ops.append([OPS[name], len(body) + 2, *body])
        return len(self.ops) - 1

    def input(self, colour, out, channel, channels):
        table = self.rng.normal(size=(self.levels, channels))
        return self.op("input", colour, out, channel, channels, self.add_data(table))

    def conv(
        self,
        out,
        taps,
        *,
        channel=0,
        channels=None,
        products=None,
        code=(),
        stride=(1, 1),
        bias=True,
        start=(-1, 0),
    ):
        channels = self.buffers[out][4] if channels is None else channels
        products = channels if products is None else products
        depth = sum(t[2] for t in taps)
        weight = self.add_data(self.rng.normal(size=(depth, products)) / np.sqrt(max(depth, 1)))
        offset = self.add_data(self.rng.normal(size=products)) if bias else -1
        head = [out, channel, channels, *stride, products, weight, offset, *start, len(taps), len(code)]
        return self.op("conv", *head, *itertools.chain(*taps), *itertools.chain(*map(instruction, code)))

    def map(self, out, code, *, channel=0, channels=None):
        channels = self.buffers[out][4] if channels is None else channels
        head = [out, channel, channels, 1, 1, 0, 0, -1, -1, 0, 0, len(code)]
        return self.op("map", *head, *itertools.chain(*map(instruction, code)))

    def attend(self, out, query, key, value, *, heads, runs, bias_heads=0):
        """Of sequences as wide as their buffers have channels. `runs`: of each query, pairs from, up to."""
        width, channels, depth = self.buffers[key][3], self.buffers[out][4], self.buffers[query][4]
        bias = self.add_data(self.rng.normal(size=(bias_heads, len(runs), width)))
        first = list(itertools.accumulate(map(len, runs), initial=0))
        head = [
            out,
            0,
            heads,
            depth // heads,
            channels // heads,
            query,
            0,
            key,
            0,
            value,
            0,
            bias,
            bias_heads,
        ]
        return self.op("attend", *head, first[-1], *first, *itertools.chain(*itertools.chain(*runs)))

    def head(self, name, colour, buffer, channel=0):
        return self.op(name, colour, buffer, channel)

    def launch(self, op, *runs):
        self.launches += [op, len(runs), *itertools.chain(*runs)]

    def step(self):
        self.launches += [C["kStepMark"], 0]
        self.steps += 1

    def everywhere(self, op):
        name, _, first, second = self.ops[op][:4]
        colour_first = name in (OPS["input"], OPS["categorical"], OPS["bernoulli"])
        height, width = self.buffers[second if colour_first else first][2:4]
        self.launch(op, *[(y, 0, width, 0, 1) for y in range(height)])

    def words(self):
        buffers, ops = list(itertools.chain(*self.buffers)), list(itertools.chain(*self.ops))
        n = C["kHeaderWords"] + len(buffers) + len(ops) + len(self.launches)
        header = [C["kMagic"], C["kVersion"], n, *self.shape, self.levels, self.arena, self.condition,
                  len(self.buffers), len(self.ops), self.steps, len(self.launches)]  # fmt: skip
        return np.array(header + buffers + ops + self.launches, np.int32)

    def load(self, isa=None, precision="fp32"):
        """For an instruction set of the cpu, or "emulated"."""
        if isa == "emulated":
            return _emulated.Program(self.words(), self.data, precision=precision)
        return _cpu.Program(self.words(), self.data, isa, precision)


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
        space, offset, _, _, _, rows, columns, row_stride, col_stride = self.t.buffers[buffer]
        return space, offset + (y % rows) * row_stride + (x % columns) * col_stride + channel

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
            elif name == "store":
                r = registers[a]
                space, i = self.at(b, c, y, x)
                self.spaces[space][i : i + channels] = r
            elif name == "scalar":
                r = np.array(a, np.int32).view(np.float32)
            else:
                p, q = registers[a], registers[b if FUNCTIONS[name][1] == 2 else 0]
                r = {
                    "add": lambda p, q: p + q, "sub": lambda p, q: p - q, "mul": lambda p, q: p * q,
                    "div": lambda p, q: p / q, "gate": numerics.gate, "min": numerics.minimum, "max": numerics.maximum,
                    "neg": lambda p, _: -p, "abs": lambda p, _: np.abs(p), "sqrt": lambda p, _: np.sqrt(p),
                    **{f: lambda p, _, f=f: getattr(numerics, f)(p)
                       for f in ("exp", "log", "tanh", "sigmoid", "relu", "elu")},
                }[name](p, q)  # fmt: skip
            registers.append(np.broadcast_to(r, channels).astype(np.float32))
        return registers[-1]

    def product(self, w, y, x):
        out, channel, channels, sy, sx, products, weight, bias, start, begin, n_taps, n_code = w[:12]
        taps = np.reshape(w[12 : 12 + 5 * n_taps], (-1, 5))
        code = np.reshape(w[12 + 5 * n_taps :], (-1, 5)).tolist()
        assert len(code) == n_code
        acc = self.t.data[bias : bias + products].copy() if bias >= 0 else np.zeros(products, np.float32)
        if start >= 0:
            acc = self.read(start, begin, products, y, x).copy()
        for buffer, c, n, dy, dx in taps.tolist():
            for value in self.read(buffer, c, n, y * sy + dy, x * sx + dx):
                acc = numerics.fma(value, self.t.data[weight : weight + products], acc)
                weight += products
        with np.errstate(all="ignore"):
            result = self.expression(code, acc, channels, y, x) if n_code else acc
        space, i = self.at(out, channel, y, x)
        self.spaces[space][i : i + channels] = result

    def attend(self, w, x):
        out, channel, heads, depth, wide, *places, bias, bias_heads, n_runs = w[:14]
        first, runs = w[14 : len(w) - 2 * n_runs], np.reshape(w[len(w) - 2 * n_runs :], (-1, 2))
        attended = np.concatenate([[], *(np.arange(a, b) for a, b in runs[first[x] : first[x + 1]])]).astype(
            int
        )
        width, queries = self.t.buffers[places[2]][3], self.t.buffers[out][3]

        def rows(place, head, channels, positions):
            at = places[place + 1] + head * channels
            return np.array([self.read(places[place], at, channels, 0, p) for p in positions])

        for h in range(heads):
            result = np.zeros(wide, np.float32)
            if len(attended):
                scores = numerics.dot(rows(0, h, depth, [x]), rows(2, h, depth, attended))
                if bias_heads:
                    start = bias + ((h % bias_heads) * queries + x) * width
                    scores = scores + self.t.data[start : start + width][attended]
                weights = numerics.exp(scores - scores.max())
                for weight, value in zip(weights, rows(4, h, wide, attended), strict=True):
                    result = numerics.fma(weight, value, result)
                result = result / numerics.total(weights)
            space, i = self.at(out, channel + h * wide, 0, x)
            self.spaces[space][i : i + wide] = result

    def position(self, op, y, x):
        name, w = self.names[op[0]], op[2:]
        if name in ("conv", "map"):
            self.product(w, y, x)
        elif name == "attend":
            self.attend(w, x)
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
                u = numerics.uniform(self.seed, self.index, counter)
                self.image[colour, y, x] = numerics.draw(freqs, u)
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
    """Nearly all ops and functions, shared buffers, a strided conv, conditions, constants; scored at once."""
    t = Tiny((2, 4, 6), 5, seed)
    x = t.buffer(20)
    label = t.buffer(17, space="condition", broadcast=True)
    place = t.buffer(2, space="condition")
    constant = t.buffer(17, space="data", values=t.rng.normal(size=(4, 6, 17)))
    h = t.buffer(53)  # two maps side by side, the first of which must not spill into the second
    kept = t.buffer(40)
    coarse = t.buffer(9, grid=(2, 3))
    logits = t.buffer(10)
    ops = [t.input(0, x, 0, 13), t.input(1, x, 13, 7)]
    ops.append(t.conv(h, [(x, 0, 20, 0, 0)], channel=17, channels=36))
    vector = t.add_data(t.rng.normal(size=17))
    code = [
        ("product", 0), ("product", 17), ("tanh", 0), ("gate", 2, 1), ("sigmoid", 3), ("load", label, 0, 0, 0),
        ("add", 4, 5), ("vector", vector), ("max", 6, 7), ("splat", place, 1, -1, 1), ("min", 8, 9),
        ("abs", 10), ("scalar", 0.75), ("add", 11, 12), ("log", 13), ("elu", 14), ("load", constant, 0, 0, 0),
        ("sub", 15, 16), ("exp", 17), ("sqrt", 18), ("neg", 19), ("div", 20, 13), ("load", x, 1, -1, 0),
        ("relu", 22), ("add", 21, 23), ("store", 24, kept, 20), ("store", 3, kept, 1), ("add", 25, 26),
    ]  # fmt: skip
    begun = t.buffer(39)
    ops.append(t.conv(begun, [(x, 2, 15, -1, 0)]))
    taps = [(x, 3, 11, -1, -1), (x, 0, 20, 0, 1)]
    ops.append(t.conv(h, taps, channels=17, products=34, code=code, bias=False, start=(begun, 3)))
    ops.append(t.conv(coarse, [(h, 0, 53, 1, 0), (h, 5, 40, 0, 2)], stride=(2, 2)))
    ops.append(t.map(h, [("load", h, 17, 0, 0), ("scalar", 0.5), ("mul", 0, 1)], channel=17, channels=36))
    ops.append(
        t.conv(logits, [(h, 0, 53, 0, 0), (coarse, 0, 9, -1, -2), (kept, 1, 17, 1, 0), (kept, 20, 17, 0, 0)])
    )
    ops += [t.head("categorical", 0, logits, 0), t.head("categorical", 1, logits, 5)]
    for op in ops:
        t.everywhere(op)
        t.step()
    return t


def attending(seed=0):
    """Attention of a row of pixels to those before, in two runs where there are as many, read backwards; a bernoulli
    head."""
    t = Tiny((1, 1, 9), 2, seed)
    x, q, k, v, h = (t.buffer(n) for n in (3, 10, 10, 34, 34))
    mean, logit = t.buffer(17), t.buffer(1)
    turned = t.turned(h)
    runs = [[(0, i // 2), (i // 2 + 1, i)] if i > 3 else [(0, i)] * (i > 0) for i in range(9)]
    ops = [t.input(0, x, 0, 3), *(t.conv(to, [(x, 0, 3, 0, 0)]) for to in (q, k, v))]
    ops.append(t.attend(mean, q, k, v, heads=1, runs=[[(0, 9)]] * 9, bias_heads=1))
    ops.append(t.conv(q, [(mean, 0, 17, 0, 0)]))
    ops.append(t.attend(h, q, k, v, heads=2, runs=runs, bias_heads=2))
    ops.append(t.conv(logit, [(turned, 0, 34, 0, 0)]))
    ops.append(t.head("bernoulli", 0, logit))
    for op in ops:
        t.everywhere(op)
        t.step()
    return t
