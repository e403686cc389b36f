"""What only shows on a device: batches in flight, streams, several GPUs, and the checkers of CUDA's own tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pytest
import torch
from zoo import ON_A_GPU

import pixelfast as pf

on_devices = pytest.mark.parametrize("backend", ["emulated", pytest.param("cuda", marks=ON_A_GPU)])


def small(backend: str, precision: str = "fp32") -> pf.Sampler:
    torch.manual_seed(0)
    model = pf.models.GatedPixelCNN(hidden=12, layers=2, levels=5, classes=3).eval()
    return pf.compile(model, shape=(1, 5, 6), backend=backend, precision=precision)


@on_devices
def test_batches_in_flight(backend):
    """Several threads share a sampler."""
    cpu, device = small("cpu"), small(backend)
    want = [cpu.sample(3, seed=s, labels=1) for s in range(4)]
    got: list[pf.Sample | None] = [None] * 4

    def work(s: int) -> None:
        got[s] = device.sample(3, seed=s, labels=1).cpu()

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(want, got, strict=True):
        assert b is not None
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.log_prob, b.log_prob)


@on_devices
def test_tensors_stay_on_the_device(backend):
    sampler = small(backend)
    given = sampler.sample(2, labels=0)
    assert given.images.device == given.log_prob.device == sampler.target.device
    known = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    known[..., :2, :] = True
    labels = torch.tensor([0, 2], device=sampler.target.device)
    again = sampler.sample(2, seed=1, labels=labels, given=given.images, known=known)
    assert torch.equal(again.images[..., :2, :], given.images[..., :2, :])
    scores = sampler.log_prob(again.images, labels=labels)
    assert scores.device == sampler.target.device
    assert torch.equal(scores, again.log_prob)
    assert again.cpu().images.device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or PyTorch cannot use it")
def test_the_current_stream_is_waited_for_and_waits():
    sampler, cpu = small("cuda"), small("cpu")
    first = cpu.sample(2, labels=0).images
    known = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    known[..., :3, :] = True
    want = cpu.sample(2, seed=1, labels=0, given=first, known=known)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is given is not there yet
        given = first.cuda(non_blocking=True) + 0
        got = sampler.sample(2, seed=1, labels=0, given=given, known=known)
        doubled = got.images * 2
    stream.synchronize()
    assert torch.equal(got.images.cpu(), want.images)
    assert torch.equal(doubled.cpu(), want.images * 2)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_devices():
    a, b = (small(f"cuda:{i}").sample(3, labels=1) for i in range(2))
    assert (a.images.device.index, b.images.device.index) == (0, 1)
    assert torch.equal(a.images.cpu(), b.images.cpu())


@pytest.mark.cuda
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="there is no compute-sanitizer")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, or PyTorch cannot use it")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    program = (
        "import torch, pixelfast as pf\n"
        "model = pf.models.PixelCNN(hidden=8, layers=1, levels=4).eval()\n"
        "for precision in ('fp32', 'bf16'):\n"
        "    sampler = pf.compile(model, shape=(1, 3, 4), backend='cuda', precision=precision)\n"
        "    for team in (1, 2, 9):\n"
        "        sampler.sample(3, team=team)\n"
    )
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
