"""The bf16 mode: what it computes, and what it is refused for."""

from __future__ import annotations

import itertools
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import ON_A_GPU

import pixelfast as pf
from pixelfast import _cpu, data
from pixelfast.cli import main
from pixelfast.models.base import MaskedConv2d

needs_bf16 = pytest.mark.skipif(not _cpu.bf16_kernels(), reason="this machine has no AVX-512 with BF16")
KERNELS = sorted({_cpu.bf16_kernels(), "avx512bf16"}) if _cpu.bf16_kernels() else []
everywhere = pytest.mark.parametrize(  # that this machine has
    ("backend", "kernels"),
    [*(("cpu", name) for name in KERNELS), ("emulated", ""), pytest.param("cuda", "", marks=ON_A_GPU)],
)
DATA = Path(__file__).parents[2] / "shared" / "data"


def model(**options):
    torch.manual_seed(0)
    return pf.models.GatedPixelCNN(hidden=22, layers=2, levels=5, **options).eval()


def rounded(module):
    """A copy whose products round what they multiply, in PyTorch."""
    for layer in module.modules():
        if isinstance(layer, MaskedConv2d):
            layer.weight.data = layer.weight.data.bfloat16().float()
            layer.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(), *args[1:]))
    return module


@everywhere
@pytest.mark.parametrize("channels", [1, 3])  # of 3 colours, odd numbers of channels
def test_products_are_of_rounded_numbers(channels, backend, kernels, monkeypatch):
    monkeypatch.setenv("PIXELFAST_BF16", kernels)
    sampler = pf.compile(model(channels=channels), shape=(channels, 6, 7), precision="bf16", backend=backend)
    images = torch.randint(0, 5, (4, channels, 6, 7), generator=torch.Generator().manual_seed(1))
    module = rounded(model(channels=channels))
    with torch.no_grad():
        want = module.head.log_prob(module(images), images)
    exact = pf.compile(model(channels=channels), shape=(channels, 6, 7)).log_prob(images)
    got = sampler.log_prob(images).cpu()
    off, rounding = (got - want).abs().max(), (exact - want).abs().max()
    assert off < 2e-3
    assert off < rounding / 4  # it is the rounded model that is computed


@everywhere
def test_same_bits_for_every_batch_order_and_crew(backend, kernels, monkeypatch):
    monkeypatch.setenv("PIXELFAST_BF16", kernels)
    shape = (3, 5, 6)
    compiled = {
        o: pf.compile(model(channels=3), shape=shape, order=o, precision="bf16", backend=backend)
        for o in ("raster", "wavefront")
    }
    want = compiled["raster"].sample(5, seed=2, threads=1, chunk=1)
    for sampler, (threads, team) in itertools.product(compiled.values(), ((1, 1), (2, 1), (3, 3))):
        got = sampler.sample(5, seed=2, threads=threads, team=team)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
        assert torch.equal(sampler.log_prob(want.images), want.log_prob)


@everywhere
def test_convolutions_of_zeros(backend, kernels, monkeypatch):
    """They have no live taps: all at once, and the last alone, as models are often initialised."""
    monkeypatch.setenv("PIXELFAST_BF16", kernels)
    for only_last in (False, True):
        module = model(channels=3)
        convolutions = [layer for layer in module.modules() if isinstance(layer, MaskedConv2d)]
        for layer in convolutions[-1:] if only_last else convolutions:
            layer.weight.data.zero_()
        sampler = pf.compile(module, shape=(3, 3, 4), precision="bf16", backend=backend)
        drawn = sampler.sample(3).cpu()
        exact = pf.compile(module, shape=(3, 3, 4)).log_prob(drawn.images)
        torch.testing.assert_close(drawn.log_prob, exact)  # biases alone are not rounded


@needs_bf16
def test_weights_take_half_the_memory():
    big = pf.models.PixelCNN(hidden=64, layers=3).eval()
    exact, half = (pf.compile(big, shape=(1, 4, 4), precision=p)._runtime for p in ("fp32", "bf16"))
    assert 0.5 < half.weights_nbytes / exact.weights_nbytes < 0.53


@needs_bf16
def test_kernels_that_are_not_there(monkeypatch):
    monkeypatch.setenv("PIXELFAST_BF16", "sve")
    with pytest.raises(ValueError, match="PIXELFAST_BF16 is 'sve', but this machine runs: avx512bf16"):
        pf.compile(model(), shape=(1, 2, 2), precision="bf16")


@needs_bf16
@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="the real data sets are not here")
def test_bits_per_dim_on_real_images():
    with resources.as_file(resources.files(pf) / "assets" / "fashion_mnist") as folder:
        trained = pf.load(folder)
    test = data.load(DATA / "fashion_mnist", split="test")
    images, labels = (torch.from_numpy(a[:1000].copy()) for a in (test.images, test.labels))
    if test.levels > trained.levels:
        images = torch.from_numpy(test.quantize(trained.levels).images[:1000].copy())
    exact, half = (
        pf.compile(trained, shape=trained.shape, precision=p).log_prob(images, labels=labels).double().mean()
        for p in ("fp32", "bf16")
    )
    assert abs(exact - half) / math.log(2) / images[0].numel() < 0.002


def test_what_is_refused(capsys, tmp_path):
    small = model()
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp16'"):
        pf.compile(small, shape=(1, 2, 2), precision="fp16")
    with pytest.raises(ValueError, match="precision bf16 is not one of backend 'reference'"):
        pf.compile(small, shape=(1, 2, 2), backend="reference", precision="bf16")
    with pytest.raises(ValueError, match="needs AVX-512 with BF16, which scalar lacks"):
        pf.compile(small, shape=(1, 2, 2), isa="scalar", precision="bf16")
    program = pf.compile(small, shape=(1, 2, 2)).program
    with pytest.raises(
        ValueError, match="bf16 needs AVX-512 with BF16, which isa 'scalar' lacks; use precision"
    ):
        _cpu.Program(program.words, program.data, "scalar", "bf16")
    with pytest.raises(ValueError, match='must be "fp32" or "bf16", got \'int8\''):
        _cpu.Program(program.words, program.data, None, "int8")
    small.save(tmp_path)
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 1, 3, 3), np.uint8), levels=np.array(5))
    assert main(["eval", str(tmp_path), "--data", str(tmp_path / "d.npz"), "--precision", "bf16"]) == 2
    assert "add --engine engine" in capsys.readouterr().err


@needs_bf16
def test_on_the_command_line(capsys, tmp_path):
    model().save(tmp_path)
    out = tmp_path / "s.npz"
    arguments = [
        "sample",
        str(tmp_path),
        "--size",
        "4x5",
        "-n",
        "3",
        "--precision",
        "bf16",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    evaluated = ["eval", str(tmp_path), "--data", str(out), "--split", "train", "--engine", "engine"]
    assert main([*evaluated, "--precision", "bf16"]) == 0
    nats = -np.load(out)["log_prob"].mean()
    assert f"nats      {nats:.4f} per image" in capsys.readouterr().out
