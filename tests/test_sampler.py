"""The public face: what is drawn, how it is distributed, what is refused."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import SPECS, Case, case_of, loud

import pixelfast as pf
from pixelfast import sampler as sampler_module

LABELLED = SPECS[3]  # 3 colours, 5 x 7, 4 levels, 3 classes


def made(shape: tuple[int, int, int], levels: int, **options) -> Case:
    torch.manual_seed(3)
    options = {"channels": shape[0], "levels": levels, "hidden": 6, "layers": 2, "kernel": 3} | options
    model = pf.models.GatedPixelCNN(**options)
    return Case(loud(model, model.last, shape, spread=1.2), shape)


# --- shapes and dtypes ------------------------------------------------------------------------------------


def test_images_are_bytes():
    out = case_of(LABELLED).sampler().sample(5, labels=torch.tensor([0, 1, 2, 0, 1]))
    assert isinstance(out, pf.Sample)
    assert out.images.dtype == torch.uint8
    assert out.images.shape == (5, 3, 5, 7)
    assert out.images.max() < 4
    assert out.log_prob.dtype == torch.float32
    assert out.log_prob.shape == (5,)
    assert (out.log_prob < 0).all()


def test_images_of_many_levels_are_integers():
    out = made((1, 1, 3), 300).sampler().sample(20, seed=1)
    assert out.images.dtype == torch.int64
    assert out.images.max() > 255


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_none_at_all(backend):
    sampler = case_of(LABELLED).sampler("raster", backend)
    out = sampler.sample(0, labels=1, progress=True)
    assert out.images.shape == (0, 3, 5, 7)
    assert out.images.dtype == torch.uint8
    assert out.log_prob.shape == (0,)
    assert sampler.log_prob(out.images, labels=torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_labels_in_every_form():
    sampler = case_of(LABELLED).sampler()
    want = sampler.sample(3, seed=5, labels=torch.tensor([2, 2, 2]))
    for labels in (2, np.int64(2), [2, 2, 2], np.array([2, 2, 2], np.int32), torch.tensor(2)):
        got = sampler.sample(3, seed=5, labels=labels)
        assert torch.equal(got.images, want.images)
    got = sampler.sample(3, seed=5, conditions={"labels": 2})
    assert torch.equal(got.log_prob, want.log_prob)
    other = sampler.sample(3, seed=5, labels=[2, 0, 2])
    assert torch.equal(other.images[[0, 2]], want.images[[0, 2]])
    assert not torch.equal(other.log_prob[1], want.log_prob[1])


def test_images_in_every_form():
    sampler = case_of(SPECS[0]).sampler()
    images = sampler.sample(3, seed=5).images
    want = sampler.log_prob(images)
    for same in (
        images.numpy(),
        images.long(),
        images.to(torch.int16),
        images.tolist(),
        images.numpy().astype("u8"),
    ):
        assert torch.equal(sampler.log_prob(same), want)
    wide = torch.zeros(3, 1, 5, 14, dtype=torch.uint8)
    wide[..., ::2] = images
    assert torch.equal(sampler.log_prob(wide[..., ::2]), want)
    by_pixel = sampler.log_prob(images, per_pixel=True)
    assert by_pixel.dtype == torch.float32
    assert by_pixel.shape == images.shape
    torch.testing.assert_close(by_pixel.double().sum((1, 2, 3)).float(), want)


def test_threads_and_progress_change_nothing(capsys):
    sampler = case_of(LABELLED).sampler()
    want = sampler.sample(9, seed=5, labels=1)
    assert capsys.readouterr() == ("", "")
    for options in ({"threads": 1}, {"threads": 2}, {"threads": 3, "chunk": 2}, {"progress": True}):
        got = sampler.sample(9, seed=5, labels=1, **options)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
    out, bar = capsys.readouterr()
    assert out == ""
    assert "sample: 100%" in bar
    assert "9/9" in bar
    sampler.log_prob(want.images, labels=1, progress=True)
    assert "log_prob: 100%" in capsys.readouterr().err


def test_compile_prints_nothing(capfd):
    sampler = pf.compile(case_of(SPECS[0]).module, shape=(1, 5, 7))
    assert (
        repr(sampler) == f"Sampler(shape=(1, 5, 7), levels=2, order={sampler.order!r}, steps={sampler.steps})"
    )
    assert capfd.readouterr() == ("", "")


def test_explain_adds_up():
    sampler = case_of(LABELLED).sampler("wavefront")
    e = sampler.explain()
    assert (e.shape, e.levels, e.order, e.steps) == ((3, 5, 7), 4, "wavefront", sampler.steps)
    assert e.multiply_adds == sampler.multiply_adds == sum(r.multiply_adds for r in e.rows)
    assert e.launches == sum(r.launches for r in e.rows)
    assert e.weights_nbytes == sum(r.weights_nbytes for r in e.rows)
    assert 0 < e.buffer_nbytes <= sum(r.buffer_nbytes for r in e.rows) + 64 * len(e.rows)
    heads = [r for r in e.rows if r.kind == "categorical"]
    assert [r.elements for r in heads] == [35, 35, 35]
    text = str(e)
    assert text.startswith(
        f"3 x 5 x 7, 4 levels; wavefront order, skew {e.skew}: {e.steps} steps in place of 105"
    )
    assert f"{e.multiply_adds:,}" in text.splitlines()[-1]


# --- distributions ----------------------------------------------------------------------------------------

COUNT = 20_000


def every_image(shape: tuple[int, int, int], levels: int) -> Tensor:
    images = itertools.product(range(levels), repeat=int(np.prod(shape)))
    return torch.tensor(list(images)).reshape(-1, *shape)


def exact(
    case: Case, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, **labels
):
    """Every image and its log-probability, float64, where each sub-pixel's distribution is changed so."""
    images = every_image(case.shape, case.module.head.levels)
    double = case.module.double()
    with torch.no_grad():
        logits = double.head.logits(
            double(images, **{k: torch.full((len(images),), v) for k, v in labels.items()})
        )
    case.module.float()
    logp = (logits / temperature).log_softmax(1)
    ranked, order = logp.sort(dim=1, descending=True, stable=True)
    p = ranked.exp()
    rank = torch.arange(p.shape[1]).reshape(1, -1, 1, 1, 1)
    if top_k is not None:
        p = torch.where(rank < top_k, p, 0)
    if top_p is not None:
        p = p / p.sum(1, keepdim=True)
        p = torch.where(p.cumsum(1) - p < top_p, p, 0)
    kept = torch.zeros_like(p).scatter(1, order, p / p.sum(1, keepdim=True)).log()
    return images, kept.gather(1, images[:, None]).sum((1, 2, 3, 4))


def check(case: Case, sampled: pf.Sample, images: Tensor, logp: Tensor) -> None:
    """Every image's frequency lies within 4 standard errors, chi-square is likely, log_prob is the image's own."""
    levels, n = case.module.head.levels, len(sampled.images)
    base = levels ** torch.arange(images[0].numel() - 1, -1, -1)
    index = (sampled.images.long().flatten(1) * base).sum(1)
    counts = torch.bincount(index, minlength=len(images)).double()
    p = logp.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert (counts[p == 0] == 0).all()
    seen = p > 0
    error = (counts - n * p)[seen].abs() / (n * p * (1 - p))[seen].sqrt().clamp(min=1)
    assert error.max() < 4
    often = n * p > 5
    chi2 = ((counts - n * p)[often] ** 2 / (n * p)[often]).sum().item()
    freedom = max(int(often.sum()) - 1, 1)
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 4
    torch.testing.assert_close(sampled.log_prob.double(), logp[index], rtol=1e-4, atol=1e-4)


BINARY = [
    ((1, 1, 2), {}),
    ((1, 2, 2), {}),
    ((1, 2, 2), {"head": "bernoulli"}),
    ((2, 1, 2), {"head": "bernoulli"}),
    ((3, 1, 1), {}),
    ((1, 3, 1), {"classes": 2}),
]


@functools.cache
def binary(i: int) -> Case:
    shape, options = BINARY[i]
    return made(shape, 2, **options)


@pytest.mark.parametrize("i", range(len(BINARY)))
@pytest.mark.parametrize("order", ["raster", "wavefront"])
def test_every_image_comes_as_often_as_it_should(i, order):
    case = binary(i)
    labels = {"labels": 1} if case.module.classes else {}
    check(case, case.sampler(order).sample(COUNT, seed=7, **labels), *exact(case, **labels))


@functools.cache
def four() -> Case:
    return made((1, 1, 2), 4)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 4.0},
        {"temperature": 1e-3},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 9},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 1.0},
        {"temperature": 2.0, "top_k": 3, "top_p": 0.75},
    ],
    ids=str,
)
def test_options_change_the_distribution_as_they_should(options):
    case = four()
    check(case, case.sampler().sample(COUNT, seed=8, **options), *exact(case, **options))


def test_log_prob_sums_to_one():
    images = every_image((1, 1, 2), 4)
    total = four().sampler().log_prob(images).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


# --- completion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPECS[0], LABELLED, SPECS[9]], ids=str)
@pytest.mark.parametrize("order", ["raster", "wavefront"])
def test_completion_of_a_sample_is_the_sample(spec, order):
    case = case_of(spec)
    sampler = case.sampler(order)
    plain = sampler.sample(4, seed=9, **case.labels(4))
    known = torch.rand(plain.images.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    got = sampler.sample(4, seed=9, given=plain.images, known=known, **case.labels(4))
    assert torch.equal(got.images, plain.images)
    assert torch.equal(got.log_prob, plain.log_prob)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_known_pixels_are_kept_and_scored(backend):
    case = case_of(LABELLED)
    sampler = case.sampler("wavefront", backend)
    given = torch.randint(0, 4, (3, 5, 7), generator=torch.Generator().manual_seed(1))
    known = torch.zeros(5, 7, dtype=torch.bool)
    known[1:3, 2:5] = True
    out = sampler.sample(2, seed=9, given=given, known=known, labels=0)
    assert (out.images.long() == given)[:, :, known].all()
    assert not (out.images.long() == given)[:, :, ~known].all()
    assert torch.equal(sampler.log_prob(out.images, labels=0), out.log_prob)
    free = sampler.sample(2, seed=9, labels=0)
    assert torch.equal(out.images[:, :, 0], free.images[:, :, 0])  # what comes before is not changed
    every = sampler.sample(2, seed=9, given=given, known=torch.tensor(True), labels=0)
    assert torch.equal(every.images.long(), given.expand(2, -1, -1, -1))
    none = sampler.sample(2, seed=9, given=given, known=np.zeros((3, 5, 7), bool), labels=0)
    assert torch.equal(none.images, free.images)


# --- what is refused --------------------------------------------------------------------------------------


def refuse(match: str, call, *args, error: type[Exception] = ValueError, **kwargs) -> None:
    with pytest.raises(error, match=match):
        call(*args, **kwargs)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": -1}, r"\[sample\] n must be at least 0, got -1"),
        ({"n": 1.5}, r"\[sample\] n must be an integer, got 1\.5"),
        ({"n": None}, r"\[sample\] n must be an integer, got None"),
        ({"seed": -1}, r"\[sample\] seed must be in \[0, 18446744073709551615\], got -1"),
        (
            {"seed": 2**64},
            r"\[sample\] seed must be in \[0, 18446744073709551615\], got 18446744073709551616",
        ),
        ({"seed": "a"}, r"\[sample\] seed must be an integer, got 'a'"),
        ({"first_index": -1}, r"\[sample\] first_index must be in \[0, \d+\], got -1"),
        ({"first_index": 2**64 - 1}, r"\[sample\] first_index must be in"),
        ({"temperature": 0}, r"\[sample\] temperature must be positive and finite, got 0"),
        ({"temperature": "warm"}, r"\[sample\] temperature must be positive and finite, got warm"),
        ({"top_p": "most"}, r"\[sample\] top_p must be in \(0, 1\], got most"),
        ({"temperature": -1.0}, r"\[sample\] temperature must be positive and finite, got -1\.0"),
        ({"temperature": float("nan")}, r"\[sample\] temperature must be positive and finite, got nan"),
        ({"temperature": float("inf")}, r"\[sample\] temperature must be positive and finite, got inf"),
        ({"temperature": 1e-60}, r"\[sample\] temperature must be positive and finite, got 1e-60"),
        ({"temperature": None}, r"\[sample\] temperature must be positive and finite, got None"),
        ({"top_k": 0}, r"\[sample\] top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, r"\[sample\] top_k must be an integer, got 2\.0"),
        ({"top_p": 0.0}, r"\[sample\] top_p must be in \(0, 1\], got 0\.0"),
        ({"top_p": 1.1}, r"\[sample\] top_p must be in \(0, 1\], got 1\.1"),
        ({"top_p": float("nan")}, r"\[sample\] top_p must be in \(0, 1\], got nan"),
        ({"threads": -1}, r"threads must be in \[0, 1024\], got -1"),
        ({"chunk": -1}, r"chunk must be in \[0, 2147483647\], got -1"),
        ({"chunk": 2**40}, r"chunk must be in \[0, 2147483647\], got 1099511627776"),
        (
            {"given": np.zeros((3, 5, 7), int)},
            r"\[sample\] given and known come together: the images, and where",
        ),
        ({"known": np.zeros((3, 5, 7), bool)}, r"\[sample\] given and known come together"),
        (
            {"given": np.zeros((3, 5, 7), int), "known": np.zeros((3, 5, 7))},
            r"\[sample\] known must be bool, got float64",
        ),
        (
            {"given": np.zeros((3, 5, 7), int), "known": np.zeros((5, 5), bool)},
            r"\[sample\] known must broadcast to \(2, 3, 5, 7\), got \(5, 5\)",
        ),
        (
            {"given": np.zeros((2, 5, 7), int), "known": True},
            r"\[sample\] given must broadcast to \(2, 3, 5, 7\), got \(2, 5, 7\)",
        ),
        (
            {"given": np.zeros((3, 5, 7)), "known": True},
            r"\[sample\] images must be integers in \[0, 4\), got dtype f",
        ),
        ({"given": np.full((3, 5, 7), 4), "known": True}, r"in \[0, 4\), got values from 4 to 4"),
        ({"labels": None}, r"\[sample\] the model is conditioned on labels: labels is missing"),
        ({"labels": 3}, r"\[sample\] labels must be in \[0, 3\), got values from 3 to 3"),
        ({"labels": [0, -1]}, r"\[sample\] labels must be in \[0, 3\), got values from -1 to 0"),
        ({"labels": [0, 1, 2]}, r"\[sample\] labels must be a number or have shape \(2,\), got \(3,\)"),
        ({"labels": 1.0}, r"\[sample\] labels must be integers, got torch\.float32"),
        ({"labels": [True, False]}, r"\[sample\] labels must be integers, got torch\.bool"),
        ({"conditions": {"colour": 1}}, r"\[sample\] the model is conditioned on labels; got colour too"),
    ],
)
def test_bad_arguments_of_sample_are_refused(options, match):
    options = {"n": 2, "labels": 1} | options
    refuse(match, case_of(LABELLED).sampler().sample, options.pop("n"), **options)


def test_labels_for_a_model_without_classes_are_refused():
    refuse(
        r"\[sample\] the model is conditioned on nothing; got labels too",
        case_of(SPECS[0]).sampler().sample,
        1,
        labels=0,
    )


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((3, 5, 7), int), r"\[log_prob\] images must have shape \(N, 3, 5, 7\), got \(3, 5, 7\)"),
        (
            np.zeros((1, 3, 7, 5), int),
            r"\[log_prob\] images must have shape \(N, 3, 5, 7\), got \(1, 3, 7, 5\)",
        ),
        (np.zeros((1, 3, 5, 7)), r"\[log_prob\] images must be integers in \[0, 4\), got dtype float64"),
        (np.zeros((1, 3, 5, 7), bool), r"\[log_prob\] images must be integers in \[0, 4\), got dtype bool"),
        (np.full((1, 3, 5, 7), 4), r"\[log_prob\] images must be in \[0, 4\), got values from 4 to 4"),
        (np.full((1, 3, 5, 7), -1), r"\[log_prob\] images must be in \[0, 4\), got values from -1 to -1"),
        (
            np.full((1, 3, 5, 7), 2**40),
            r"\[log_prob\] images must be in \[0, 4\), got values from 1099511627776",
        ),
    ],
)
def test_bad_images_are_refused(images, match):
    refuse(match, case_of(LABELLED).sampler().log_prob, images, labels=0)


def test_labels_of_log_prob_are_checked():
    log_prob = case_of(LABELLED).sampler().log_prob
    images = np.zeros((2, 3, 5, 7), int)
    refuse(r"\[log_prob\] the model is conditioned on labels: labels is missing", log_prob, images)
    refuse(r"\[log_prob\] labels must be in \[0, 3\), got values from 7 to 7", log_prob, images, labels=7)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"order": "zigzag"}, r"\[compile\] order must be one of auto, raster, wavefront, got 'zigzag'"),
        ({"shape": (5, 7)}, r"\[compile\] shape must be three positive integers \(C, H, W\), got \(5, 7\)"),
        ({"shape": (1, 0, 7)}, r"\[compile\] shape must be three positive integers"),
        ({"shape": 5}, r"\[compile\] shape must be three positive integers"),
        ({"shape": (1, 5.0, 7)}, r"\[compile\] shape must be three positive integers"),
        ({"shape": (3, 5, 7)}, r"\[compile\] the model has 1 channels, but shape is \(3, 5, 7\)"),
        (
            {"backend": "gpu"},
            r"\[compile\] backend must be one of cpu, cuda, emulated, reference, or such as cuda:1, got 'gpu'",
        ),
        ({"isa": "mmx"}, r"\[compile\] isa must be one of scalar.* on this machine, got 'mmx'"),
    ],
)
def test_bad_arguments_of_compile_are_refused(options, match):
    refuse(match, pf.compile, case_of(SPECS[0]).module, **({"shape": (1, 5, 7)} | options))


def test_a_module_without_a_head_needs_one():
    refuse(
        r"\[compile\] Conv2d does not say how its output is read; pass head=",
        pf.compile,
        nn.Conv2d(1, 1, 1),
        shape=(1, 2, 2),
    )


class Logarithm(nn.Module):
    """Its logits are NaN once a pixel of level 1 has been drawn."""

    head, channels = pf.heads.Categorical(2), 1

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 2, (1, 2), bias=False)
        nn.init.constant_(self.left.weight, -1.0)

    def forward(self, images):
        return torch.log(self.left(F.pad(images.float(), (2, -1))) + 0.5).unsqueeze(2)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_logits_that_are_nan_are_an_error(backend):
    sampler = pf.compile(Logarithm(), shape=(1, 1, 8), backend=backend)
    refuse(r"\[sample\] the model gave NaN logits", sampler.sample, 4, seed=0)
    assert (
        sampler.sample(1, given=np.zeros((1, 1, 8), int), known=True).images.sum() == 0
    )  # and it still works


def test_what_does_not_fit_in_memory_is_refused_before_it_is_allocated(monkeypatch):
    sampler = case_of(LABELLED).sampler()
    monkeypatch.setattr(sampler_module, "_LITTLE_NBYTES", 0)
    monkeypatch.setattr(sampler_module, "available_nbytes", lambda: 10**6)
    match = r"\[sample\] 100000 images need about 0\.\d GB, of which 0\.0 GB are free; take fewer at a time \(first"
    refuse(match, sampler.sample, 100_000, labels=0, error=MemoryError)
    assert sampler.sample(2, labels=0).images.shape[0] == 2
    monkeypatch.setattr(sampler_module, "available_nbytes", lambda: 100 * 4 * sampler.program.arena_floats)
    refuse(r"need about", sampler.sample, 200, labels=0, chunk=200, threads=1, error=MemoryError)
    refuse(r"need about", sampler.sample, 200, labels=0, chunk=50, threads=3, error=MemoryError)
    assert sampler.sample(10, labels=0, chunk=1, threads=1).images.shape[0] == 10
    many = np.broadcast_to(np.zeros((), np.uint8), (100_000, 3, 5, 7))
    refuse(r"\[log_prob\] 100000 images need about", sampler.log_prob, many, labels=0, error=MemoryError)
    monkeypatch.undo()
    refuse(r"\[sample\] \d+ images need about", sampler.sample, 10**15, labels=0, error=MemoryError)


# --- interruption -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_within_a_second(threads):
    sampler = large()
    want = sampler.sample(2, seed=3)
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(4000, seed=3, threads=threads)
    stopped = time.monotonic()
    timer.join()
    assert stopped - pressed[0] < 1
    again = sampler.sample(2, seed=3)
    assert torch.equal(again.images, want.images)
    assert torch.equal(again.log_prob, want.log_prob)


@functools.cache
def large() -> pf.Sampler:
    torch.manual_seed(0)
    return pf.compile(pf.models.PixelCNN(hidden=64, layers=8, levels=2), shape=(1, 28, 28))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["cpu", "emulated"])
def test_images_to_score_may_be_read_only(backend):
    model = pf.models.PixelCNN(hidden=4, layers=1, levels=4).eval()
    sampler = pf.compile(model, shape=(1, 3, 3), backend=backend)
    images = np.arange(18, dtype=np.int32).reshape(2, 1, 3, 3) % 4
    want = sampler.log_prob(images)
    images.setflags(write=False)
    assert torch.equal(sampler.log_prob(images), want)
