"""Recurrent layers: loops of the plan, scheduled element by element, drawn to the bit on every rung."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ISAS, assert_same_on, recompile

import pixelfast as pf
from pixelfast import passes
from pixelfast import plan as P
from pixelfast import readiness as R
from pixelfast import schedule as S

LEVELS, WIDTH = 3, 5


class Raster(nn.Module):
    """A recurrent layer over the pixels in raster order, shifted by one."""

    def __init__(self, kind: type[nn.Module], shift: int = 1, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first = options.get("batch_first", True)
        self.shift = shift
        self.embed = nn.Embedding(LEVELS, 4)
        self.layer = kind(4, WIDTH, **({"batch_first": True} | options))
        self.last = nn.Linear(WIDTH * (1 + self.layer.bidirectional), LEVELS)
        for p in self.parameters():
            nn.init.normal_(p, std=0.7)

    def states(self, n: int):
        return None

    def forward(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        x = self.embed(images.flatten(1))
        x = F.pad(x, (0, 0, self.shift, -self.shift))
        x = x if self.first else x.transpose(0, 1)
        y, _ = self.layer(x, self.states(n))
        y = y if self.first else y.transpose(0, 1)
        return self.last(F.elu(y)).view(n, height, width, LEVELS).permute(0, 3, 1, 2)


class Started(Raster):
    """With first states that are learned."""

    def __init__(self, kind, **options):
        super().__init__(kind, **options)
        count = 2 if isinstance(self.layer, nn.LSTM) else 1
        self.start = nn.Parameter(torch.randn(count, self.layer.num_layers, 1, WIDTH))

    def states(self, n):
        start = self.start.expand(-1, -1, n, -1).contiguous()
        return (start[0], start[1]) if len(start) == 2 else start[0]


class Mixed(nn.Module):
    """Convolutions before and after, and the cell's state nowhere but in the loop."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.above = nn.Conv2d(1, 3, (1, 2)), nn.Conv2d(1, 3, (1, 3), padding=(0, 1))
        self.layer = nn.LSTM(3, WIDTH, batch_first=True)
        self.last = nn.Conv2d(WIDTH + 3, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        h = torch.tanh(self.left(F.pad(x, (2, -1))) + self.above(F.pad(x[:, :, :-1], (0, 0, 1, 0))))
        y, _ = self.layer(h.flatten(2).transpose(1, 2))
        y = y.transpose(1, 2).view(n, WIDTH, height, width)
        return self.last(torch.cat([h, y], 1))


MODELS = {
    "lstm": lambda: Raster(nn.LSTM),
    "lstm, two layers, no biases, batch second": lambda: Raster(
        nn.LSTM, num_layers=2, bias=False, batch_first=False
    ),
    "lstm, started": lambda: Started(nn.LSTM, num_layers=2),
    "gru": lambda: Raster(nn.GRU, num_layers=2),
    "gru, no biases": lambda: Raster(nn.GRU, bias=False),
    "rnn": lambda: Raster(nn.RNN),
    "rnn, relu, started": lambda: Started(nn.RNN, nonlinearity="relu"),
    "mixed": Mixed,
}
SHAPE = (1, 3, 4)


def options_of(model: nn.Module) -> dict:
    to_input = pf.inputs.scaled(-1, 1) if isinstance(model, Mixed) else None
    return {"shape": SHAPE, "head": pf.heads.Categorical(LEVELS), "to_input": to_input}


@functools.cache
def compiled(name: str) -> pf.Sampler:
    model = MODELS[name]().eval()
    return pf.compile(model, backend="reference", **options_of(model))


@pytest.mark.parametrize("name", MODELS)
def test_layers(name):
    reference = compiled(name)
    assert reference.verify() < 1e-4
    want = reference.sample(2, seed=5)
    got = recompile(reference, reference.schedule).sample(2, seed=5)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["lstm, started", "gru", "mixed"])
def test_every_rung(name, isa):
    assert_same_on(compiled(name), isa, seed=6)
    want = compiled(name).sample(3, seed=6)
    assert torch.equal(compiled(name).log_prob(want.images), want.log_prob)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_an_element_runs_after_the_one_before_it(name):
    """Also where all pixels are known, and everything belongs to one step."""
    plan = compiled(name)._plan
    for order in (R.raster(SHAPE), R.known(SHAPE)):
        fused = passes.fuse(plan, R.lateness(plan, order))
        fused.verify()
        schedule = S.schedule(fused, order)
        launched = {}
        for at, (_, i, positions) in enumerate(schedule.launches()):
            launched.update({(i, x): at for _, x in positions.tolist()})
        parts = [part for part in fused.parts if part[0] in fused.loops]
        assert [len(part) for part in parts] == {"lstm": [2], "gru": [1, 1], "rnn": [1]}[name]
        for i in itertools.chain(*parts):
            times = [launched[i, x] for x in range(12) if (i, x) in launched]
            assert times == sorted(set(times))
    assert schedule.multiply_adds == sum(
        schedule.weights[i] * len(schedule.steps[i].ravel()) for i in range(len(fused.ops))
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Raster(nn.LSTM, shift=0), r"\(y=0, x=0\) depends on pixel \(y=0, x=0\)"),
        (lambda: Raster(nn.GRU, bidirectional=True), r"\(y=0, x=0\) depends on pixel \(y=2, x=2\).*'layer'"),
        (lambda: Raster(nn.LSTM, bidirectional=True), r"\(y=0, x=0\) depends on pixel \(y=2, x=2\).*'layer'"),
    ],
    ids=["not shifted", "gru, both ways", "lstm, both ways"],
)
def test_leaks_through_recurrent_layers_are_found(model, message):
    model = model().eval()
    with pytest.raises(pf.CausalityError, match=message):
        pf.compile(model, **options_of(model))


class Final(Raster):
    def forward(self, images):
        _, (h, _) = self.layer(self.embed(images.flatten(1)))
        return self.last(h[0])[:, :, None, None].expand(-1, -1, 3, 4)


class Random(Raster):
    def states(self, n):
        start = torch.arange(n * WIDTH).float().view(1, n, WIDTH)
        return start, start


class Fed(Raster):
    """Starts from the image."""

    def states(self, n):
        start = self.images.float().flatten(1)[None, :, :WIDTH]
        return start, start

    def forward(self, images):
        self.images = images
        return super().forward(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Raster(nn.LSTM, proj_size=WIDTH - 1), r"projections \(proj_size\)"),
        (lambda: Started(nn.GRU), "GRU whose first state is not zero"),
        (lambda: Random(nn.LSTM), "first states that differ between the images of a batch"),
        (lambda: Fed(nn.LSTM), "first states that depend on the image or on a condition"),
        (lambda: Final(nn.LSTM), "NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_what_is_not_supported_is_said(model, message):
    model = model().eval()
    if getattr(model.layer, "proj_size", 0):
        model.last = nn.Linear(WIDTH - 1, LEVELS)
    with pytest.raises((pf.LoweringError, pf.CaptureError), match=message):
        pf.compile(model, **options_of(model))


# --- plans with loops -----------------------------------------------------------------------------------------


def loop(offset: tuple[int, int]) -> P.Plan:
    """A head that reads an op that reads itself at an offset, and the image."""
    build = P.Builder()
    image, state = build.map("image", 3, 4, 1), build.map("state", 3, 4, 2)
    build.add(P.InputOp(image, 0, np.ones((2, 1), np.float32)))
    own = build.refs(state)
    code = (
        P.Instruction("product", refs=np.arange(2)),
        P.Instruction("load", refs=np.repeat(build.refs(image), 2), offset=(0, -1)),
        P.Instruction("add", (0, 1)),
    )
    build.add(P.ConvOp(state, own, (offset,), np.ones((1, 2, 2), np.float32), None, code=code))
    build.add(P.HeadOp("categorical", 0, own))
    return build.plan((1, 3, 4), 2)


def test_loops_are_found():
    plan = loop((-1, 0))
    plan.verify()
    assert plan.parts == (range(1), range(1, 2), range(2, 3))
    assert plan.loops == {1}
    for f in (passes.split, passes.prune):
        again = f(plan)
        again.verify()
        assert again.loops == {1}


@pytest.mark.parametrize("offset", [(0, -1), (-1, 0), (-1, 1), (-2, -1)], ids=str)
def test_readiness_goes_round_a_loop(offset):
    plan = loop(offset)
    ready = R.Dependence(plan).readiness(R.raster((1, 3, 4)))[1]
    want = np.zeros((3, 4), int)
    for y, x in np.ndindex(3, 4):
        v, u = y + offset[0], x + offset[1]
        own = want[v, u] if v >= 0 and 0 <= u < 4 else 0
        want[y, x] = max(own, y * 4 + x if x else 0)
    assert np.array_equal(ready, want)
    S.schedule(plan, R.raster((1, 3, 4)))


@pytest.mark.parametrize("offset", [(0, 0)], ids=str)
def test_a_loop_that_never_starts_is_refused(offset):
    with pytest.raises(AssertionError, match="reads what it has yet to write"):
        S._times(R.Dependence(loop(offset)), [np.zeros((3, 4), int)] * 3)
