"""Mixtures of logistics, and PixelCNN++: strides, transposed convolutions, shortcuts, from training to sampling."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ORDERS, TOLERANCE, Case, labels_of

import pixelfast as pf
from pixelfast.heads import LogisticMixture
from pixelfast.models import PixelCNNPlusPlus, PixelSNAIL
from pixelfast.plan import ConvOp


class Shallow(nn.Module):
    """Two convolutions, above and left, and a mixture."""

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.channels, self.head = channels, LogisticMixture(3, levels)
        self.above, self.left = nn.Conv2d(channels, 8, (2, 3)), nn.Conv2d(channels, 8, (1, 2))
        self.last = nn.Conv2d(8, self.head.outputs(channels), 1)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.last.weight.dtype) * (2 / (self.head.levels - 1)) - 1
        h = self.above(F.pad(x, (1, 1, 2, -1))) + self.left(F.pad(x, (2, -1, 0, 0)))
        return self.last(torch.tanh(h))


@functools.cache
def shallow(channels: int, levels: int) -> Case:
    torch.manual_seed(levels)
    module = Shallow(channels, levels)
    with torch.no_grad():
        module.last.weight.mul_(3)
    return Case(module.eval(), (channels, 3, 4))


@functools.cache
def plus_plus(channels: int, shape: tuple[int, int], classes: int | None) -> Case:
    torch.manual_seed(0)
    model = PixelCNNPlusPlus(channels=channels, levels=16, hidden=6, blocks=1, mixtures=2, classes=classes)
    images = torch.randint(0, 16, (32, channels, 7, 6))
    model.initialise(images, **labels_of(model, 32))
    return Case(model.eval(), (channels, *shape))


CASES = [
    pytest.param(shallow, (1, 2), id="1x2"),
    pytest.param(shallow, (3, 5), id="3x5"),
    pytest.param(shallow, (3, 256), id="3x256"),
    pytest.param(plus_plus, (3, (5, 7), None), id="plus-plus-5x7"),
    pytest.param(plus_plus, (1, (6, 4), 3), id="plus-plus-6x4-classes"),
    pytest.param(plus_plus, (3, (1, 1), None), id="plus-plus-1x1"),
]


@pytest.mark.parametrize(("make", "arguments"), CASES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_truth_ladder(make, arguments, order):
    case = make(*arguments)
    labels = case.labels(2)
    want = case.sampler("raster", "reference").sample(2, seed=3, **labels)
    torch.testing.assert_close(
        want.log_prob.double(), case.exact_log_prob(want.images), **TOLERANCE["reference", "float32"]
    )
    sampler = case.sampler(order)
    got = sampler.sample(2, seed=3, **labels)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)
    assert sampler._runtime.last_multiply_adds == 2 * sampler.multiply_adds
    assert torch.equal(sampler.log_prob(got.images, **labels), got.log_prob)


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 256), (3, 4)])
def test_probabilities_of_whole_pixels_sum_to_one(channels, levels):
    head = LogisticMixture(3, levels)
    params = 3 * torch.randn(1, head.outputs(channels), 1, 1, dtype=torch.float64)
    pixels = torch.cartesian_prod(*[torch.arange(levels)] * channels).reshape(-1, channels, 1, 1)
    total = head.log_prob(params.expand(len(pixels), -1, -1, -1), pixels).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_conditionals_multiply_to_the_joint():
    head = LogisticMixture(4, 7)
    params = 2 * torch.randn(5, head.outputs(3), 2, 3, dtype=torch.float64)
    images = torch.randint(0, 7, (5, 3, 2, 3))
    picked = head.logits(params, images).log_softmax(1).gather(1, images.unsqueeze(1))
    torch.testing.assert_close(picked.flatten(1).sum(1), head.log_prob(params, images))


def test_far_tails_are_exact():
    head = LogisticMixture(1, 256)
    params = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    params[:, 1], params[:, 2] = -1.0, -4.0  # mean at the dark end, narrow
    level = torch.tensor([[[[200]]]])
    x, half, scale = 200 * 2 / 255 - 1, 1 / 255, torch.tensor(-4.0, dtype=torch.float64).exp()
    a, b = -(x - half + 1) / scale, -(x + half + 1) / scale
    expected = torch.log(torch.sigmoid(a) - torch.sigmoid(b))  # mirrored: both are small, so no cancellation
    torch.testing.assert_close(head.log_prob(params, level)[0], expected)


def test_a_mixture_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"mixtures must be at least 1 and levels at least 2, got 0 and 256"):
        LogisticMixture(0)
    with pytest.raises(ValueError, match=r"channels must be 1 or 3, got 2"):
        LogisticMixture(2).outputs(2)
    with pytest.raises(ValueError, match=r"params must have shape \(1, 20, 2, 2\), got \(1, 6, 2, 2\)"):
        LogisticMixture(2).log_prob(torch.zeros(1, 6, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"params must have shape \(2, 12, 3, 4\), got \(2, 9, 3, 4\)"):
        pf.compile(shallow(1, 2).module, shape=(1, 3, 4), head=LogisticMixture(4, 2))


# --- the model --------------------------------------------------------------------------------------------


def test_the_published_configuration_has_its_parameters():
    with torch.device("meta"):
        model = PixelCNNPlusPlus.preset("cifar10")
    assert sum(p.numel() for p in model.parameters()) == 53_659_080  # "53.66 million"
    with pytest.raises(ValueError, match=r"preset must be one of cifar10, got 'mnist'"):
        PixelCNNPlusPlus.preset("mnist")


def test_each_strided_layer_runs_once_per_block():
    sampler = plus_plus(3, (8, 8), None).sampler()
    rows = {(row.name, row.elements) for row in sampler.explain().rows if row.kind == "conv"}
    assert {n for name, n in rows if name.startswith("down.1.")} == {16}
    assert {n for name, n in rows if name.startswith("down.2.")} == {4}
    assert {n for name, n in rows if name.startswith("shrink.0.")} == {16}
    assert all(n <= 64 for _, n in rows)


def test_multiply_adds_are_those_of_one_pass():
    case = plus_plus(1, (8, 8), None)
    counted = 0
    for op in case.plan.ops:
        if isinstance(op, ConvOp):
            height, width = case.plan.grid(op)
            counted += height * width * op.weight.size
    # All but what nothing reads: the last row and column of maps that are shifted on.
    assert 0.85 * counted < case.sampler().multiply_adds <= counted


def test_initialisation_normalises_every_layer():
    torch.manual_seed(1)
    model = PixelCNNPlusPlus(channels=1, levels=8, hidden=8, blocks=1, mixtures=2)
    images = torch.randint(0, 8, (64, 1, 8, 8))
    model.initialise(images)
    outputs = {}
    layer = model.down[0][0].left.inner.conv
    hook = layer.register_forward_hook(lambda _m, _i, out: outputs.update(y=out))
    model.eval()(images)
    hook.remove()
    torch.testing.assert_close(outputs["y"].mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs["y"].std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [PixelCNNPlusPlus, PixelSNAIL])
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (2, 2), (5, 1)])
def test_initialisation_leaves_what_is_constant(kind, size):
    torch.manual_seed(1)
    model = kind(channels=1, levels=8, hidden=8, blocks=1, mixtures=2)
    images = torch.randint(0, 8, (64, 1, *size))
    model.initialise(images)
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in model.parameters())
    assert model.eval().log_prob(images).mean() / images[0].numel() > -10


def test_a_step_of_training_lowers_the_loss():
    torch.manual_seed(2)
    model = PixelCNNPlusPlus(channels=3, levels=16, hidden=6, blocks=1, mixtures=2, dropout=0.0)
    images = torch.randint(6, 10, (16, 3, 6, 6))
    model.initialise(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = -model.log_prob(images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_empty_batch(channels):
    model = PixelCNNPlusPlus(channels=channels, levels=8, hidden=4, blocks=1, mixtures=2).eval()
    images = torch.zeros(0, channels, 4, 4, dtype=torch.uint8)
    assert model.log_prob(images).shape == (0,)
    assert model.head.logits(model(images), images).shape == (0, 8, channels, 4, 4)


def test_saved_and_loaded(tmp_path):
    model = plus_plus(1, (6, 4), 3).module
    model.save(tmp_path)
    again = pf.load(tmp_path)
    images = torch.randint(0, 16, (2, 1, 6, 4))
    labels = torch.tensor([0, 2])
    assert torch.equal(again.log_prob(images, labels), model.log_prob(images, labels))
    assert again.config == model.config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, r"\[PixelCNNPlusPlus\] channels must be 1 or 3, got 2"),
        ({"dropout": 1.0}, r"\[PixelCNNPlusPlus\] dropout must be in \[0, 1\), got 1.0"),
        ({"hidden": 0}, r"\[PixelCNNPlusPlus\] hidden must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNPlusPlus(**arguments)
