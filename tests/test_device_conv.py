"""The kernels of masked convolutions, on an emulation of a GPU and on a GPU if there is one, against their twin."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from convolutions import ROUNDING, Counting, Sample, check_gradients, exactly, same
from zoo import ON_A_GPU

import pixelfast as pf
from pixelfast import _emulated
from pixelfast import masked_conv as twin

BACKENDS = [pytest.param("emulated", id="emulated"), pytest.param("cuda", marks=ON_A_GPU, id="cuda")]
SHAPES = [  # batch, inputs, outputs, height, width, kernel rows and columns, padding
    (2, 3, 4, 5, 6, 3, 3, (1, 1, 1, 1)),
    (1, 5, 70, 7, 4, 2, 3, (1, 1, 1, 0)),
    (2, 1, 2, 3, 3, 1, 1, (0, 0, 0, 0)),
    (2, 4, 6, 5, 5, 3, 3, (-1, 2, 1, 0)),
    (1, 17, 2, 9, 9, 5, 5, (2, 2, 2, 2)),
    (3, 33, 6, 10, 9, 2, 3, (1, 1, 1, 0)),  # more than a tile of positions, and than a step of channels
]
# Of a step and more: channels that are read eight at once, several tiles of columns, rows that wrap.
WIDE = [
    (2, 64, 96, 9, 17, 3, 3, (1, 1, 1, 1)),
    (1, 40, 136, 5, 5, 2, 2, (1, 0, 1, 0)),
    (2, 8, 16, 12, 14, 7, 7, (3, 3, 3, 3)),
    (1, 96, 8, 3, 90, 1, 2, (1, 0, 0, 0)),
]

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@every_backend
@every_shape
@every_dtype
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("condition", [None, "image", "position"])
def test_forward(backend, shape, dtype, gate, condition):
    s = Sample(shape, dtype, backend, channels_last=condition == "image", masked=condition != "position")
    n, outputs = s.out[:2]
    values = None if condition is None else s.normal(*(s.out if condition == "position" else (n, outputs)))
    residual = s.normal(n, outputs // 2 if gate else outputs, *s.out[2:]) if condition else None
    bias = s.normal(outputs) if condition else None
    arguments = (s.x, s.weight, bias, s.mask, s.padding, s.taps, values, gate, residual)
    for got, want in zip(s.kernels.forward(*arguments), exactly(twin._forward, arguments), strict=True):
        same(got, want)


@every_backend
@every_shape
@every_dtype
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(backend, shape, dtype, masked):
    check_gradients(Sample(shape, dtype, backend, channels_last=masked, masked=masked), masked)


@every_backend
@halves
@pytest.mark.parametrize("shape", WIDE, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_wide_ones_on_tensor_cores(backend, shape, dtype, channels_last):
    """Units of eight channels are read at once where they can be, for the same bits."""
    s = Sample(shape, dtype, backend, channels_last=channels_last)
    n, outputs = s.out[:2]
    residual = s.normal(n, outputs // 2, *s.out[2:])
    arguments = (
        s.x,
        s.weight,
        s.normal(outputs),
        s.mask,
        s.padding,
        s.taps,
        s.normal(*s.out),
        True,
        residual,
    )
    found = s.kernels.forward(*arguments)
    for got, want in zip(found, exactly(twin._forward, arguments), strict=True):
        same(got, want)
    strange = s.x.new_full((n, 2 * shape[1] + 1, *s.size), float("nan"))[:, 1::2]
    strange.copy_(s.x)
    for got, want in zip(s.kernels.forward(strange, *arguments[1:]), found, strict=True):
        assert torch.equal(got, want)
    check_gradients(s, True)


def spread(t, of_image=0, of_row=0, of_column=0, start=0):
    """The same values in channels_last, with as many numbers more between each two, and before all: NaN."""
    n, channels, height, width = t.shape
    column = channels + of_column
    row = width * column + of_row
    image = height * row + of_image
    memory = t.new_full((start + n * image + 64 * channels,), float("nan"))
    return memory.as_strided(t.shape, (image, 1, row, column), start).copy_(t)


@every_backend
@pytest.mark.parametrize(
    "gaps",
    [
        {},
        {"of_column": 8, "start": 8},
        {"of_column": 1, "of_row": 3},  # of the strides one is no multiple of eight
        {"of_row": 1, "of_image": 4},
        {"of_image": 1},
        {"start": 8},
        {"start": 1},
        {"start": 4},
    ],
    ids=str,
)
def test_channels_last_among_other_numbers(backend, gaps):
    """Units are read at once only where all of them are aligned; what lies around a tensor does not count."""
    s = Sample((2, 16, 8, 20, 21, 2, 3, (1, 1, 1, 0)), torch.float16, backend)  # sums in two parts
    grad = spread(s.normal(*s.out), **gaps)
    s.x = spread(s.x, **gaps)
    arguments = (s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)
    want = exactly(twin._forward, arguments)[0]
    torch.testing.assert_close(s.kernels.forward(*arguments)[0].double(), want, rtol=0, atol=1e-2)
    for got, exact in (
        (
            s.kernels.input_grad(grad, s.weight, s.mask, s.size, s.padding, s.taps),
            exactly(twin._input_grad, (grad, s.weight, s.mask, s.size, s.padding, s.taps)),
        ),
        *zip(
            s.kernels.weight_grad(grad, s.x, s.mask, s.kernel, s.padding, s.taps, True),
            exactly(twin._weight_grad, (grad, s.x, s.mask, s.kernel, s.padding, s.taps, True)),
            strict=True,
        ),
    ):
        atol = ROUNDING[s.dtype] * float(exact.abs().amax())
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=atol)


@every_backend
@halves
@pytest.mark.parametrize("of", ["all", "channels"])
def test_expanded_gradients(backend, dtype, of):
    s = Sample((2, 16, 8, 6, 7, 2, 3, (1, 1, 1, 0)), dtype, backend, channels_last=True)
    check_gradients(s, True, s.normal(1, 1 if of == "all" else 8, 1, 1).expand(s.out))


@every_backend
@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_infinite_stays_in_its_weights(backend, dtype, channels_last):
    """A sum in parts, which do not end where steps do: an infinite input next to where they meet."""
    s = Sample(
        (1, 8, 8, 30, 30, 1, 1, (0, 0, 0, 0)), dtype, backend, channels_last=channels_last, masked=False
    )
    s.x[0, 3, 15, 5] = float("inf")
    grad = s.normal(*s.out).contiguous(memory_format=twin._layout(s.x, s.weight))
    arguments = (grad, s.x, None, s.kernel, s.padding, s.taps, True)
    got, want = s.kernels.weight_grad(*arguments)[0], exactly(twin._weight_grad, arguments)[0]
    assert torch.equal(got[:, 3].double(), want[:, 3])
    assert want[:, 3].isinf().all()
    assert got[:, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


@every_backend
@every_dtype
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_cropped_does_not_count(backend, dtype, channels_last):
    s = Sample(
        (2, 8, 8, 5, 9, 2, 2, (-1, -2, 0, -1)), dtype, backend, channels_last=channels_last, masked=False
    )
    s.x[..., :1], s.x[..., -2:], s.x[:, :, -1:] = float("nan"), float("nan"), float("nan")
    grad = s.normal(*s.out).contiguous(memory_format=twin._layout(s.x, s.weight))
    arguments = (s.x, s.weight, None, None, s.padding, s.taps, None, False, None)
    same(s.kernels.forward(*arguments)[0], exactly(twin._forward, arguments)[0])
    arguments = (grad, s.x, None, s.kernel, s.padding, s.taps, False)
    same(s.kernels.weight_grad(*arguments)[0], exactly(twin._weight_grad, arguments)[0])


@every_backend
@halves
def test_gates_of_all_sizes(backend, dtype):
    """Both factors and their product are off by no more than their rounding."""
    small = torch.logspace(-7, 0.5, 500, dtype=torch.float64)
    strange = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    values = torch.cat([torch.linspace(-100, 100, 1020), torch.linspace(-2, 2, 1000), small, -small, strange])
    values = values.to(dtype)
    s = Sample((1, 8, 2, 36, len(values) // 36, 1, 1, (0, 0, 0, 0)), dtype, backend, masked=False)
    values = values.to(s.device)[: s.size[0] * s.size[1]].view(s.size)
    given = torch.stack([values, values.flatten().roll(7).view(s.size)])[None]
    out, factors = s.kernels.forward(s.x.zero_(), s.weight, None, None, s.padding, s.taps, given, True, None)
    a, b = given[:, :1].double().tanh(), given[:, 1:].double().sigmoid()
    half = torch.finfo(dtype).eps / 2 * 1.01
    least = torch.finfo(dtype).smallest_normal * (half if dtype == torch.float16 else 1)
    for got, want in ((factors, torch.cat([a, b], 1)), (out, a * b)):
        torch.testing.assert_close(got.double(), want, rtol=half, atol=least, equal_nan=True)


@every_backend
@halves
def test_sums_do_not_depend_on_the_batch(backend, dtype):
    s = Sample(WIDE[0], dtype, backend, channels_last=True)
    together = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    alone = s.kernels.forward(s.x[1:], s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    assert torch.equal(together[1:], alone)


@every_backend
@every_dtype
@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("size", [3, 7])
def test_masks_of_models(backend, dtype, kind, size):
    """What comes before in raster order, and of the same pixel the colours before (B: and the same colour)."""
    colours, side = 3, size // 2
    s = Sample((1, 2 * colours, 4 * colours, 6, 5, size, size, (side,) * 4), dtype, backend)
    s.mask = torch.zeros(s.weight.shape, dtype=torch.bool, device=s.device)
    s.mask.flatten(2)[:, :, : size * size // 2] = True
    of_output, of_input = (torch.arange(n, device=s.device) % colours for n in s.weight.shape[:2])
    seen = torch.ge if kind == "B" else torch.gt
    s.mask[:, :, side, side] = seen(of_output[:, None], of_input)
    s.taps = twin.live_taps(s.mask.cpu(), s.kernel)
    assert len(s.taps) == size * size // 2 + 1
    arguments = (s.x, s.weight, None, s.mask, s.padding, s.taps, None, True, None)
    for got, want in zip(s.kernels.forward(*arguments), exactly(twin._forward, arguments), strict=True):
        same(got, want)
    check_gradients(s, False)


@pytest.fixture
def before_tensor_cores():
    """An emulated GPU of sm_75."""
    _emulated.set_capability(75)
    yield
    _emulated.set_capability(90)


@halves
def test_halves_without_tensor_cores(dtype, before_tensor_cores):
    s = Sample(SHAPES[1], dtype, "emulated")
    arguments = (s.x, s.weight, None, s.mask, s.padding, s.taps, None, True, None)
    for got, want in zip(s.kernels.forward(*arguments), exactly(twin._forward, arguments), strict=True):
        same(got, want)
    check_gradients(s, True)


@halves
def test_a_kernel_too_wide_for_tensor_cores(dtype):
    s = Sample((1, 3, 4, 2, 20, 1, 19, (9, 9, 0, 0)), dtype, "emulated", masked=False)
    arguments = (s.x, s.weight, None, None, s.padding, s.taps, None, False, None)
    same(s.kernels.forward(*arguments)[0], exactly(twin._forward, arguments)[0])
    check_gradients(s, True)


@every_dtype
def test_without_live_taps(dtype):
    s = Sample(SHAPES[0], dtype, "emulated")
    s.mask[:], s.taps = False, ()
    bias, grad = s.normal(s.out[1]), s.normal(*s.out)
    found = s.kernels.forward(s.x, s.weight, bias, s.mask, s.padding, s.taps, None, False, None)[0]
    assert torch.equal(found, bias[:, None, None].expand(s.out))
    assert not s.kernels.input_grad(grad, s.weight, s.mask, s.size, s.padding, s.taps).any()
    of_weight, of_bias = s.kernels.weight_grad(grad, s.x, s.mask, s.kernel, s.padding, s.taps, True)
    assert not of_weight.any()
    same(of_bias, grad.double().sum((0, 2, 3)))


@every_backend
def test_registered_they_serve_the_op(backend):
    s = Sample(SHAPES[0], torch.float64, backend)
    given = [t.requires_grad_() for t in (s.x, s.weight, s.normal(s.out[1]), s.normal(s.out[0], s.out[1]))]

    def results():
        x, weight, bias, condition = given
        y = pf.masked_conv2d(
            x, weight, bias, mask=s.mask, taps=s.taps, padding=s.padding, condition=condition, gate=True
        )
        return [y.detach(), *torch.autograd.grad(y.square().sum(), given)]

    want = results()
    calls = []
    s.kernels.module = Counting(s.kernels.module, calls)
    with torch.library._scoped_library("pixelfast", "IMPL") as library:
        s.kernels.register(library, "CUDA" if backend == "cuda" else "CPU")
        got = results()
    launches = [call for call in calls if not call.endswith("nbytes")]
    assert sorted(launches) == ["masked_conv", "masked_conv", "masked_conv_weight_grad"]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    calls.clear()
    results()
    assert not calls  # the twin again


@every_backend
@every_dtype
def test_dead_weights_do_not_count(backend, dtype):
    s = Sample(SHAPES[0], dtype, backend)
    want = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    s.weight[~s.mask] = float("nan")
    got = s.kernels.forward(s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)[0]
    assert torch.equal(got, want)


@every_dtype
@pytest.mark.parametrize(("inputs", "outputs", "channels_last"), [(3, 4, False), (8, 16, True)])
def test_sums_in_several_parts(dtype, inputs, outputs, channels_last):
    shape = (2, inputs, outputs, 20, 21, 3, 3, (1, 1, 1, 1))
    check_gradients(Sample(shape, dtype, "emulated", channels_last=channels_last), True)


def at_an_end(t):
    """The same values in memory behind which none may be read; channels_last."""
    page, nbytes = mmap.PAGESIZE, t.numel() * t.element_size()
    pages = -(-nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + pages * page), page, 0) == 0
    n, channels, height, width = t.shape
    flat = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages * page - nbytes)
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2).copy_(t)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("inputs", [3, 8])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 5, 0, 3), (-1, -1, 0, -1)], ids=str)
def test_nothing_behind_a_tensor_is_read(inputs, padding):
    s = Sample((2, inputs, 8, 12, 13, 2, 3, padding), torch.float16, "emulated")
    s.x, grad = at_an_end(s.x), at_an_end(s.normal(*s.out))
    arguments = (s.x, s.weight, None, s.mask, s.padding, s.taps, None, False, None)
    same(s.kernels.forward(*arguments)[0], exactly(twin._forward, arguments)[0])
    check_gradients(s, True, grad)
