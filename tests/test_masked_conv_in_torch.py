"""The masked convolution in the rest of PyTorch: layouts, compile, export, autocast, data parallel; and in samplers."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from convolved import (
    EPILOGUES,
    MASKS,
    OP,
    OUTPUTS,
    arguments,
    fused,
    gradients,
    raster,
)
from torch import Tensor, nn
from zoo import labels_of

import pixelfast as pf
from pixelfast import masked_conv


def laid_out(t: Tensor | None, how: str) -> Tensor | None:
    """The same values in another layout; a leaf."""
    if t is None or t.ndim != 4:
        return t
    t = t.detach()
    if how == "channels_last":
        t = t.contiguous(memory_format=torch.channels_last)
    elif how == "strided":
        t = t.repeat_interleave(2, -1)[..., ::2]
    elif how == "transposed":
        t = t.mT.contiguous().mT
    return t.requires_grad_()


LAYOUTS = ["channels_last", "strided", "transposed"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", [False, True])
def test_layouts(layout, gate):
    mask, kernel, padding, _ = MASKS["B 3x3"]
    given = arguments(kernel, (4, 5), padding, condition="position", residual=True, gate=gate)
    options = {"mask": mask, "padding": padding, "gate": gate}
    moved = [laid_out(t, layout) for t in given]
    want, got = fused(*given, **options), fused(*moved, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, moved), gradients(want, given))
    last = layout == "channels_last"
    assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize(
    ("name", "epilogue"), [*itertools.product(["cropped", "colours 3x3"], EPILOGUES[::2])]
)
def test_opcheck(name, epilogue, layout):
    mask, kernel, padding, _ = MASKS[name]
    taps = pf.live_taps(mask if mask is not None else torch.tensor(True), kernel)
    given = arguments(kernel, (3, 4), padding, dtype=torch.float32, **epilogue)
    x, weight, bias, condition, residual = (laid_out(t, layout) for t in given)
    gate = epilogue.get("gate", False)
    torch.library.opcheck(OP, (x, weight, bias, mask, list(padding), list(taps), condition, gate, residual))


def test_opcheck_of_the_gradients():
    mask, kernel, padding, _ = MASKS["colours 3x3"]
    taps = list(pf.live_taps(mask, kernel))
    x, weight, *_ = (t.detach() for t in arguments(kernel, (3, 4), padding, residual=True, condition="image"))
    for layout in ("contiguous", *LAYOUTS):
        grad = laid_out(torch.randn(2, OUTPUTS, 3, 4).double(), layout).detach()
        options = list(padding), taps
        ops = torch.ops.pixelfast
        torch.library.opcheck(ops.masked_conv2d_input_grad.default, (grad, weight, mask, [3, 4], *options))
        torch.library.opcheck(
            ops.masked_conv2d_weight_grad.default, (grad, x, mask, [3, 3], *options, True)
        )  # fmt: skip


class Network(nn.Module):
    """Two layers, with all that they can have; sees what comes before a pixel."""

    channels, classes = 1, 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = pf.heads.Categorical(4)
        self.register_buffer("before", raster(5, 5, False))
        self.register_buffer("up_to", raster(3, 3, True))
        self.taps = pf.live_taps(self.before, (5, 5)), pf.live_taps(self.up_to, (3, 3))
        self.first = nn.Parameter(torch.randn(6, 1, 5, 5) / 4)
        self.second = nn.Parameter(torch.randn(12, 6, 3, 3) / 4)
        self.bias, self.places = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(1, 6, 4, 5))
        self.embed, self.last = nn.Embedding(3, 12), nn.Conv2d(6, 4, 1)

    def forward(self, images, labels):
        x = images.to(self.first.dtype) / 2 - 1
        places = self.places.expand(x.shape[0], -1, -1, -1)
        h = pf.masked_conv2d(
            x, self.first, mask=self.before, taps=self.taps[0], padding=(2, 2, 2, 2), condition=places
        )
        h = pf.masked_conv2d(
            h, self.second, self.bias, mask=self.up_to, taps=self.taps[1], padding=(1, 1, 1, 1),
            condition=self.embed(labels), gate=True, residual=h,
        )  # fmt: skip
        return self.last(h)[:, :, None]


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 4, (n, 1, 4, 5), generator=generator), torch.arange(n) % 3


def trained(function, module: nn.Module, n: int = 2) -> list[Tensor]:
    """The result, and the gradients of all weights."""
    y = function(*batch(n))
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), list(module.parameters()))]


@pytest.mark.parametrize(
    ("backend", "amp"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compile(backend, amp, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # old graphs know nothing of new schemas
    torch._dynamo.reset()
    network = Network()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        for n in (2, 3, 5):  # from the second on, of any size
            close = {"rtol": 0.05, "atol": 0.05} if amp else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(trained(compiled, network, n), trained(network, network, n), **close)
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export(strict):
    network = Network()
    any_batch = {0: torch.export.Dim("n", min=2, max=64)}
    exported = torch.export.export(
        network, batch(3), dynamic_shapes={"images": any_batch, "labels": any_batch}, strict=strict
    )
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(OP) == 2
    module = exported.module()
    for n in (2, 5):
        torch.testing.assert_close(module(*batch(n)), network(*batch(n)))
    plain_ops = exported.run_decompositions({OP: masked_conv.decomposed})
    assert not any("pixelfast" in str(node.target) for node in plain_ops.graph.nodes)
    torch.testing.assert_close(plain_ops.module()(*batch(4)), network(*batch(4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    mask, kernel, padding, _ = MASKS["B 3x3"]
    options = {"mask": mask, "padding": padding, "gate": True}
    given = arguments(
        kernel, (4, 5), padding, dtype=torch.float32, gate=True, condition="image", residual=True
    )
    want = fused(*given, **options)
    with torch.autocast("cpu", dtype=dtype):
        got = fused(*given, **options)
        double = arguments(kernel, (4, 5), padding, gate=True)
        assert fused(*double, **options).dtype == torch.float64
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)
    found = gradients(got.float(), given)
    assert {g.dtype for g in found} == {torch.float32}
    torch.testing.assert_close(found, gradients(want, given), rtol=0.05, atol=0.1)


def test_data_parallel(tmp_path):
    network = Network()
    want = trained(network, network)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        y = nn.parallel.DistributedDataParallel(network)(*batch(2))
        y.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close([y.detach(), *(p.grad for p in network.parameters())], want)


def test_checkpointing():
    network = Network()

    def again(images, labels):
        return torch.utils.checkpoint.checkpoint(network, images, labels, use_reentrant=False)

    for got, want in zip(trained(again, network), trained(network, network), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("order", ["raster", "wavefront"])
def test_samplers_of_models_that_use_it(order):
    network = Network().eval()
    sampler = pf.compile(network, shape=(1, 4, 5), order=order)
    assert sampler.verify() < 1e-4
    labels = labels_of(network, 6)["labels"]
    out = sampler.sample(6, labels=labels, seed=0)
    with torch.no_grad():
        want = network.head.log_prob(network(out.images, labels), out.images)
    torch.testing.assert_close(out.log_prob, want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sampler.log_prob(out.images, labels=labels), want, rtol=1e-5, atol=1e-4)


def test_the_layer_of_the_page_on_training():
    page = Path(__file__).parents[1] / "docs/training.md"
    (code,) = (
        b
        for b in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        if "class Layer" in b
    )
    names = {}
    exec(code, names)
    torch.manual_seed(0)
    layer = names["Layer"](3, classes=4)
    h = torch.randn(2, 3, 5, 6, requires_grad=True)
    y = layer(h, torch.tensor([0, 3]))
    assert y.shape == h.shape
    reads = torch.autograd.grad(y[0, :, 2, 2].sum(), h)[0][0].any(0)
    assert reads.int().tolist() == [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0], [0] * 6, [0] * 6]
