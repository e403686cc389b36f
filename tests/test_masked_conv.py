"""The masked convolution: what it computes, its gradients, and that every part of PyTorch takes it."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import labels_of

import pixelfast as pf
from pixelfast import masked_conv
from pixelfast.models.base import colour_mask

OP = torch.ops.pixelfast.masked_conv2d.default
INPUTS, OUTPUTS = 3, 6


def raster(rows: int, columns: int, centre: bool | Tensor) -> Tensor:
    """A mask of the taps before the centre, and of the centre as it says: bool, of the kernel or of the weight."""
    mask = torch.ones(OUTPUTS, INPUTS, rows, columns, dtype=torch.bool)
    mask[..., rows // 2, columns // 2 :] = False
    mask[..., rows // 2 + 1 :, :] = False
    mask[..., rows // 2, columns // 2] = centre
    return mask if isinstance(centre, Tensor) else mask[0, 0]


# name: (mask, kernel, padding, what is left of the kernel)
MASKS = {
    "none": (None, (2, 3), (1, 1, 1, 0), (2, 3)),
    "A 7x7": (raster(7, 7, False), (7, 7), (3, 3, 3, 3), (4, 7)),
    "B 3x3": (raster(3, 3, True), (3, 3), (1, 1, 1, 1), (2, 3)),
    "colours 3x3": (
        raster(3, 3, colour_mask(6, 3, 3, strict=False)[..., 0, 0]),
        (3, 3),
        (1, 1, 1, 1),
        (2, 3),
    ),
    "colours 1x1": (colour_mask(6, 3, 3, strict=True), (1, 1), (0, 0, 0, 0), (1, 1)),
    "a pixel's colours over 3x3": (colour_mask(6, 3, 3, strict=False), (3, 3), (1, 1, 1, 1), (3, 3)),
    "rows above": (torch.tensor([1, 1, 0, 0, 0]).bool()[:, None], (5, 3), (1, 1, 2, 2), (2, 3)),
    "row above, far": (torch.tensor([1, 0, 0, 0, 0, 0, 0]).bool()[:, None], (7, 1), (0, 0, 3, 3), (1, 1)),
    "columns to the left": (torch.tensor([1, 1, 0, 0, 0]).bool(), (1, 5), (2, 2, 0, 0), (1, 2)),
    "columns to the right": (torch.tensor([0, 0, 0, 0, 1]).bool(), (1, 5), (2, 2, 0, 0), (1, 1)),
    "cropped": (None, (1, 3), (3, -1, 1, -1), (1, 3)),
    "nothing": (torch.zeros(3, 3, dtype=torch.bool), (3, 3), (1, 1, 1, 1), (1, 1)),
}
SIZES = [(1, 1), (1, 5), (4, 1), (5, 7)]


def arguments(
    kernel: tuple[int, int],
    size: tuple[int, int],
    padding: tuple[int, ...],
    *,
    gate: bool = False,
    condition: str = "",
    residual: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> list[Tensor | None]:
    """x, weight, bias, condition and residual that fit, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)
    height, width = masked_conv._output_size(size, kernel, padding)
    shapes = (
        (batch, INPUTS, *size),
        (OUTPUTS, INPUTS, *kernel),
        (OUTPUTS,) if bias else None,
        {"": None, "image": (batch, OUTPUTS), "position": (batch, OUTPUTS, height, width)}[condition],
        (batch, OUTPUTS // 2 if gate else OUTPUTS, height, width) if residual else None,
    )
    return [
        None if s is None else torch.randn(s, generator=generator, dtype=dtype).requires_grad_()
        for s in shapes
    ]


def plain(x, weight, bias, condition, residual, *, mask, padding, gate):
    """The definition, word for word."""
    live = weight if mask is None else torch.where(mask, weight, 0.0)
    height, width = x.shape[2:]
    around = F.pad(x, (9, 9, 9, 9))
    left, right, top, bottom = padding
    y = F.conv2d(around[:, :, 9 - top : 9 + height + bottom, 9 - left : 9 + width + right], live, bias)
    if condition is not None:
        y = y + (condition if condition.ndim == 4 else condition[:, :, None, None])
    if gate:
        a, b = y.chunk(2, 1)
        y = torch.tanh(a) * torch.sigmoid(b)
    return y if residual is None else y + residual


def fused(x, weight, bias, condition, residual, *, mask, **options):
    options.setdefault("taps", None if mask is None else pf.live_taps(mask, tuple(weight.shape[2:])))
    return pf.masked_conv2d(x, weight, bias, mask=mask, condition=condition, residual=residual, **options)


def gradients(y: Tensor, given: list[Tensor | None]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), [t for t in given if t is not None]))


EPILOGUES = [
    {},
    {"gate": True},
    {"condition": "image"},
    {"condition": "position", "residual": True},
    {"condition": "image", "gate": True, "residual": True},
    {"condition": "position", "gate": True, "bias": False},
]


def titled(epilogue: dict) -> str:
    return " ".join(f"{k}={v}" for k, v in epilogue.items()) or "bare"


# --- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_gradients_are_those_of_the_definition(name, size):
    mask, kernel, padding, _ = MASKS[name]
    for epilogue in EPILOGUES:
        given = arguments(kernel, size, padding, **epilogue)
        options = {"mask": mask, "padding": padding, "gate": epilogue.get("gate", False)}
        want, got = plain(*given, **options), fused(*given, **options)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, given), gradients(want, given))


@pytest.mark.parametrize("name", [n for n, (mask, *_) in MASKS.items() if mask is not None])
def test_taps_change_nothing_but_the_work(name):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (4, 5), padding, gate=True)
    options = {"mask": mask, "padding": padding, "gate": True}
    want, got = fused(*given, taps=None, **options), fused(*given, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got, given), gradients(want, given))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("taps", [True, False])
def test_dead_weights_have_no_gradient_and_no_say(name, taps):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (4, 5), padding)
    options = {"mask": mask, "padding": padding} | ({} if taps else {"taps": None})
    found = fused(*given, **options)
    dead = torch.zeros(given[1].shape, dtype=torch.bool) if mask is None else ~mask.expand(given[1].shape)
    grad = gradients(found, given)[1]
    assert (grad[dead] == 0).all()
    assert dead.all() or (grad[~dead] != 0).any()
    with torch.no_grad():
        given[1][dead] = math.nan
    assert torch.equal(fused(*given, **options), found)


TWINS = {
    OP: masked_conv._forward,
    torch.ops.pixelfast.masked_conv2d_input_grad.default: masked_conv._input_grad,
    torch.ops.pixelfast.masked_conv2d_weight_grad.default: masked_conv._weight_grad,
}


class Kernels(TorchDispatchMode):
    """Notes the kernels that are convolved with, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        at = {torch.ops.aten.conv2d.default: 1, torch.ops.aten.convolution_backward.default: 2}
        if func in at:
            self.found.append(tuple(args[at[func]].shape[2:]))
        if func in TWINS:
            with self:
                return TWINS[func](*args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MASKS)
def test_dead_rows_and_columns_are_skipped(name):
    mask, kernel, padding, left = MASKS[name]
    given = arguments(kernel, (4, 5), padding)
    with Kernels() as kernels:
        fused(*given, mask=mask, padding=padding).sum().backward()
    assert kernels.found == [left] * 3


def test_live_taps():
    assert pf.live_taps(MASKS["B 3x3"][0], (3, 3)) == (0, 1, 2, 3, 4)
    assert len(pf.live_taps(MASKS["A 7x7"][0], (7, 7))) == 24
    assert pf.live_taps(MASKS["rows above"][0], (5, 3)) == (0, 1, 2, 3, 4, 5)
    assert pf.live_taps(MASKS["nothing"][0], (3, 3)) == ()
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[1, 0, 0, 1] = mask[0, 1, 1, 0] = True  # of one output and one input each
    assert pf.live_taps(mask, (2, 2)) == (1, 2)
    assert pf.live_taps(torch.tensor(True), (1, 2)) == (0, 1)


@pytest.mark.parametrize("gate", [False, True])
def test_no_images(gate):
    given = arguments((3, 3), (4, 5), (1, 1, 1, 1), gate=gate, condition="image", residual=True, batch=0)
    y = fused(*given, mask=MASKS["B 3x3"][0], padding=(1, 1, 1, 1), gate=gate)
    assert y.shape == (0, 3 if gate else 6, 4, 5)
    assert not any(g.any() for g in gradients(y, given))


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=titled)
@pytest.mark.parametrize("name", ["colours 3x3", "columns to the left"])
def test_gradients_are_those_of_differences(name, epilogue):
    mask, kernel, padding, _ = MASKS[name]
    given = arguments(kernel, (2, 3), padding, batch=1, **epilogue)
    at = [i for i, t in enumerate(given) if t is not None]

    def function(*tensors):
        full = [None] * 5
        for i, t in zip(at, tensors, strict=True):
            full[i] = t
        return fused(*full, mask=mask, padding=padding, gate=epilogue.get("gate", False))

    tensors = [given[i] for i in at]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_only_gradients_that_are_wanted_are_computed():
    mask, kernel, padding, _ = MASKS["B 3x3"]
    names = ("x", "weight", "bias", "condition", "residual")
    for wanted in itertools.product([False, True], repeat=5):
        given = arguments(kernel, (4, 5), padding, gate=True, condition="image", residual=True)
        for t, want in zip(given, wanted, strict=True):
            t.requires_grad_(want)
        with Kernels() as kernels:
            y = fused(*given, mask=mask, padding=padding, gate=True)
            assert y.requires_grad == any(wanted)
            if any(wanted):
                y.sum().backward()
        assert len(kernels.found) == 1 + wanted[0] + wanted[1]
        got = {name for name, t in zip(names, given, strict=True) if t.grad is not None}
        assert got == {name for name, want in zip(names, wanted, strict=True) if want}


def test_gradients_are_the_same_bits_every_time():
    mask, kernel, padding, _ = MASKS["A 7x7"]
    given = arguments(kernel, (9, 8), padding, dtype=torch.float32, batch=7, gate=True, condition="image")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            gradients(fused(*given, mask=mask, padding=padding, gate=True), given)
            for _ in range(3)
        ]  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))


# --- the rest of PyTorch ------------------------------------------------------------------------------------------


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
        b for b in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL) if "class" in b
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


# --- errors -------------------------------------------------------------------------------------------------------

X, W = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 3, 3)
MASK = torch.ones(3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.int()}, r"x must be float \(N, C_in, H, W\), got torch\.int32 \(2, 3, 4, 5\)"),
        ({"x": X[0]}, r"x must be float \(N, C_in, H, W\), got torch\.float32 \(3, 4, 5\)"),
        ({"weight": W[:, :2]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(6, 2, 3, 3\)"),
        ({"weight": W[0]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(3, 3, 3\)"),
        ({"weight": W[:0]}, r"weight must be \(C_out, 3, kh, kw\), got torch\.float32 \(0, 3, 3, 3\)"),
        ({"weight": W.double()}, r"weight must be torch\.float32 on cpu as x is, got torch\.float64 on cpu"),
        ({"bias": torch.zeros(5)}, r"bias must be \(6,\), got torch\.float32 \(5,\)"),
        ({"padding": (1, 1)}, r"padding must be left, right, top, bottom, got 2 numbers"),
        ({"padding": (-3, 0, 0, 0)}, r"x of 4x5, padded by \(-3, 0, 0, 0\), is less than a kernel of 3x3"),
        ({"weight": W[:5], "gate": True}, r"a gate needs an even number of output channels, got 5"),
        (
            {"condition": torch.zeros(2, 5)},
            r"condition must be \(2, 6\) or \(2, 6, 2, 3\), got torch\.float32 \(2, 5\)",
        ),
        (
            {"residual": torch.zeros(2, 6, 2, 3), "gate": True},
            r"residual must be \(2, 3, 2, 3\), got torch\.float32 \(2, 6, 2, 3\)",
        ),
        ({"residual": torch.zeros(2, 6, 2, 3, device="meta")}, r"residual must be .* on cpu .* on meta"),
        (
            {"mask": MASK.float()},
            r"mask must be bool and broadcastable to \(6, 3, 3, 3\), got torch\.float32 \(3, 3\)",
        ),
        (
            {"mask": MASK[:2]},
            r"mask must be bool and broadcastable to \(6, 3, 3, 3\), got torch\.bool \(2, 3\)",
        ),
        ({"mask": MASK.to("meta")}, r"mask must be on cpu as x is, got meta"),
        ({"taps": (0, 1)}, r"taps are of a mask, and there is none"),
        ({"mask": MASK, "taps": (0, 9)}, r"taps must be in \[0, 9\), got \(0, 9\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"x": X, "weight": W} | change
    with pytest.raises(ValueError, match=r"^\[masked_conv2d\] " + message):
        pf.masked_conv2d(**given)


@pytest.mark.parametrize("mask", [MASK.int(), MASK[:, :2], MASK.expand(1, 1, 1, 3, 3)])
def test_live_taps_of_what_is_no_mask(mask):
    with pytest.raises(
        ValueError,
        match=r"^\[live_taps\] mask must be bool and broadcastable to \(any, any, 3, 3\), got torch\.",
    ):
        pf.live_taps(mask, (3, 3))
