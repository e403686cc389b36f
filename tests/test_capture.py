"""What is captured computes what the module computes, and leaves the module alone."""

from __future__ import annotations

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import SPECS, case_of

import pixelfast as pf
from pixelfast.capture import capture, run, where


def captured_of(module, shape=(1, 2, 3), **conditions):
    return capture(module, shape=shape, levels=module.head.levels, conditions=conditions)


class Base(nn.Module):
    """Sees the pixel on the left."""

    head, channels = pf.heads.Bernoulli(), 1

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 1, (1, 2))

    def net(self, images):
        return self.left(F.pad(images.to(self.left.weight.dtype), (2, -1)))


@pytest.mark.parametrize("spec", [SPECS[3], SPECS[9]], ids=str)
def test_the_graph_computes_what_the_module_computes(spec):
    module = case_of(spec).module
    captured = captured_of(module, spec.shape, labels=torch.zeros(2, dtype=torch.int64))
    captured.verify()
    assert captured.module_name == spec.kind
    images = torch.randint(0, spec.levels, (2, *spec.shape), generator=torch.Generator().manual_seed(9))
    labels = torch.tensor([2, 1])
    with torch.no_grad():
        torch.testing.assert_close(run(captured, images, {"labels": labels}), module(images, labels))
    lines = str(captured).splitlines()
    assert len(lines) == len(captured.image_nodes)
    assert any(line.startswith("layers.1") and "aten.conv2d" in line for line in lines)


def test_nodes_are_sorted_by_what_they_depend_on():
    spec = SPECS[3]
    captured = captured_of(case_of(spec).module, spec.shape, labels=torch.zeros(2, dtype=torch.int64))
    targets = [str(node.target) for node in captured.conditioner.nodes]
    assert targets.count("aten.embedding.default") == spec.layers + 1
    assert not any("conv2d" in t for t in targets)
    assert not any("embedding" in str(node.target) for node in captured.image_nodes)
    for node in captured.image_nodes:
        if "conv2d" in str(node.target):  # weight times mask is folded
            assert isinstance(captured.folded[node.args[1]], torch.Tensor)
    assert {where(node) for node in captured.image_nodes} >= {"first", "layers.0", "layers.1", "mix", "last"}


def test_conditions_are_evaluated_one_image_at_a_time():
    module = case_of(SPECS[3]).module
    conditioner = captured_of(module, SPECS[3].shape, labels=torch.zeros(2, dtype=torch.int64)).conditioner
    weights = {tuple(e.weight[1].tolist()) for e in module.embeddings}
    found = set()
    for node, value in conditioner.run({"labels": torch.tensor(1)}).items():
        if str(node.target) == "aten.embedding.default":
            assert torch.equal(value[0], value[1])
            found.add(tuple(value[0].flatten().tolist()))
    assert found == weights


# --- the module is left alone -----------------------------------------------------------------------------


class Layers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm2d(1)
        self.register_buffer("calls", torch.zeros(()))
        self.last = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return self.last(self.drop(self.net(images)))


def test_the_module_is_left_as_it_was():
    module = Layers()
    module.train()
    module.norm.eval()
    module.left.weight.grad = torch.ones_like(module.left.weight)
    module.left.bias.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    sampler = pf.compile(module, shape=(1, 2, 3), backend="reference")
    assert torch.equal(torch.get_rng_state(), state)
    assert (module.training, module.drop.training, module.norm.training) == (True, True, False)
    assert module.left.weight.requires_grad
    assert not module.left.bias.requires_grad
    assert torch.equal(module.left.weight.grad, torch.ones_like(module.left.weight))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    out = sampler.sample(2, seed=0)  # dropout is off
    with torch.no_grad():
        want = module.head.log_prob(module.eval()(out.images), out.images)
    torch.testing.assert_close(out.log_prob, want, rtol=1e-5, atol=1e-5)


def test_later_changes_of_the_module_do_not_reach_the_sampler():
    torch.manual_seed(0)
    module = Layers().eval()
    sampler = pf.compile(module, shape=(1, 2, 3))
    before = sampler.sample(4, seed=1)
    scored = sampler.log_prob(before.images)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(-3)
    after = sampler.sample(4, seed=1)
    assert torch.equal(after.images, before.images)
    assert torch.equal(sampler.log_prob(before.images), scored)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_modules_of_other_precision_are_captured_in_float32(dtype):
    torch.manual_seed(0)
    module = Layers().eval().to(dtype)
    out = pf.compile(module, shape=(1, 2, 3)).sample(4, seed=1)
    single = copy.deepcopy(module).float()
    with torch.no_grad():
        want = module.head.log_prob(single(out.images), out.images)
    torch.testing.assert_close(out.log_prob, want, rtol=1e-5, atol=1e-5)
    assert module.left.weight.dtype == dtype


class Normed(Base):
    """As much public code: weights and caches that are results of computations."""

    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning, match="weight_norm"):
            self.left = nn.utils.weight_norm(self.left)
        self.cache, self.caches = None, []
        self.register_buffer("lowest", torch.tensor(float("-inf")))

    def forward(self, images):
        self.cache = self.left(F.pad(images.float(), (2, -1)))
        self.caches = [self.cache]
        return torch.maximum(self.cache, self.lowest)


def test_modules_that_keep_results_of_computations_are_copied():
    torch.manual_seed(0)
    module = Normed()
    for _ in range(2):
        sampler = pf.compile(module, shape=(1, 2, 3))
        out = sampler.sample(4, seed=1)
        want = module.head.log_prob(module(out.images), out.images)  # leaves results behind
        torch.testing.assert_close(out.log_prob, want.detach(), rtol=1e-5, atol=1e-5)
        assert want.requires_grad
        assert module.cache.requires_grad


# --- errors -----------------------------------------------------------------------------------------------


class Control(Base):
    def forward(self, images):
        return self.net(images) if images.sum() > 3 else -self.net(images)


class Pair(Base):
    def forward(self, images):
        return self.net(images), -self.net(images)


class Blind(Base):
    def forward(self, images):
        return self.left.bias.expand(images.shape)


class Named(Base):
    def forward(self, images):
        return {"logits": self.net(images)}


class Drift(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return self.net(images) * self.calls


class Counter(Base):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return self.net(images) + self.calls


class Noise(Base):
    def forward(self, images):
        return self.net(images) + torch.rand(())


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Control, r"could not capture Control: (?s:.*)forward must be traceable: no control flow on tensor"),
        (Pair, r"\[compile\] Pair\.forward must return one tensor, got a tuple"),
        (Named, r"\[compile\] Named\.forward must return one tensor, got a dict"),
        (
            Drift,
            r"\[compile\] Drift gives for an image, run again beside another, results that differ by up to",
        ),
        (Blind, r"\[compile\] the output of Blind\.forward does not depend on the images"),
        (
            Counter,
            r"Counter gives for an image, run again beside .*differ by up to [0-9.e+-]+: forward mixes",
        ),
        (Noise, r"Noise gives for an image, run again beside another, results that differ by up to"),
    ],
)
def test_what_cannot_be_captured_is_refused(kind, match):
    with pytest.raises(pf.CaptureError, match=match):
        captured_of(kind())


def test_weights_that_are_not_finite_are_refused():
    module = Layers()
    with torch.no_grad():
        module.left.bias.fill_(float("inf"))
    with pytest.raises(
        pf.CaptureError, match=r"\[compile\] Layers: left\.bias holds NaN or infinite values$"
    ):
        pf.compile(module, shape=(1, 2, 3))
    with torch.no_grad():
        module.left.weight[0, 0, 0, 1] = float("nan")
    with pytest.raises(pf.CaptureError, match=r"left\.weight holds NaN or infinite values \(and 1 more\)$"):
        pf.compile(module, shape=(1, 2, 3))


def gate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * torch.sigmoid(y)


class Gated(Base):
    """Uses a scripted function, and a distribution, which checks its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.jit.script(gate)

    def forward(self, images):
        h = self.net(images)
        return torch.distributions.Bernoulli(logits=self.gate(h, h + 1)).logits


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_functions_and_distributions():
    torch.manual_seed(0)
    assert pf.compile(Gated(), shape=(1, 2, 3)).verify() < 1e-4
    with pytest.raises(ValueError, match="to satisfy the constraint"):  # they are checked again
        torch.distributions.Bernoulli(probs=torch.tensor([2.0]))


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(2, 1, 2, 3))])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused(make):
    module = nn.Sequential(make(nn.Conv2d(1, 1, 1)))
    with pytest.raises(
        pf.CaptureError, match=r"\[compile\] Sequential: 0 is a TorchScript module; .*PYTORCH_JIT=0"
    ):
        pf.compile(module, shape=(1, 2, 3), head=pf.heads.Bernoulli())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"conditions": {"labels": torch.int64}},
            r"Layers\.forward failed, given images int64 \(2, 1, 2, 3\), labels int64 \(2,\): TypeError: .*labels",
        ),
        (
            {"to_input": lambda x: x},
            r"given images int64 \(2, 1, 2, 3\): RuntimeError: .*(?s:.*)to_input= says what forward takes",
        ),
    ],
)
def test_a_forward_that_fails_is_told_what_it_was_given(options, match):
    module = Layers()
    if "to_input" in options:
        module.net = lambda images: F.conv2d(images, module.left.weight)
    with pytest.raises(pf.CaptureError, match=match):
        pf.compile(module, shape=(1, 2, 3), **options)


class Padded(Base):
    """Keeps ones of the size of its first batch."""

    ones = None

    def forward(self, images):
        if self.ones is None:
            self.ones = torch.ones_like(images[:, :1], dtype=torch.float32)
        return self.net(images) * torch.cat([self.ones, self.ones], 1).mean(1, keepdim=True)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_what_forward_kept_for_a_batch_of_another_size(batch):
    torch.manual_seed(0)
    module = Padded()
    module(torch.zeros(batch, 1, 2, 3, dtype=torch.int64))
    assert pf.compile(module, shape=(1, 2, 3)).verify() < 1e-4
    assert len(module.ones) == batch


class Likened(Base):
    """Constants that take their dtype and shape from the image's features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([[0, 1, 1]]))

    def forward(self, images):
        h = self.net(images)
        mask = self.mask.type_as(h)
        h = h.masked_fill(mask.expand_as(h) == 0, 0.5)
        return h.reshape(-1, 6).view_as(images)


def test_what_only_looks_at_a_dtype_or_a_shape_does_not_depend_on_it():
    torch.manual_seed(0)
    assert pf.compile(Likened(), shape=(1, 2, 3)).verify() < 1e-4


def test_what_a_head_has_to_say_is_said_as_it_is():
    with pytest.raises(ValueError, match=r"^\[Categorical\(levels=3\)\] params must have shape"):
        pf.compile(Layers(), shape=(1, 2, 3), head=pf.heads.Categorical(3))


class Inverted(Base):
    """Fills by the complement of a mask that is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([[True, False, True]]))

    def forward(self, images):
        return self.net(images).masked_fill(~self.mask, 0.5)


def test_a_complement_is_no_write():
    torch.manual_seed(0)
    assert pf.compile(Inverted(), shape=(1, 2, 3)).verify() < 1e-4


def test_what_cannot_be_copied_is_said():
    module = Layers()
    module.lock = threading.Lock()
    with pytest.raises(
        pf.CaptureError, match=r"\[compile\] Layers cannot be copied: TypeError: cannot pickle"
    ):
        pf.compile(module, shape=(1, 2, 3))


class Chancy(Base):
    def forward(self, images):
        torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002
        return self.net(images)


def test_random_generators_are_left_alone():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    module = Chancy()
    before = states()
    pf.compile(module, shape=(1, 2, 3))
    assert states() == before


class Labelled(Base):
    """Uses its label by a function that is right for label 0 alone, while it is exported."""

    classes = 3

    def forward(self, images, labels):
        known = labels if torch.compiler.is_exporting() else 2 * labels
        return self.net(images) + known[:, None, None, None]


def test_the_graph_is_checked_with_other_conditions():
    with pytest.raises(pf.CaptureError, match="graph of Labelled differs from the module on fresh images"):
        pf.compile(Labelled(), shape=(1, 2, 3))


def test_threads_compile_at_the_same_time():
    modules = [Layers() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        samplers = list(pool.map(lambda m: pf.compile(m, shape=(1, 2, 3)), modules))
    assert all(sampler.verify() < 1e-4 for sampler in samplers)
    assert torch.backends.mha.get_fastpath_enabled()
