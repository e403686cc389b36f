"""The cuda runtime on an emulation of a GPU: what the emulation finds, and what the runtime refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handwritten import Tiny, chain, everything, raster, run

import pixelfast as pf
from pixelfast import _emulated, models
from pixelfast.runtime import no_cuda


def test_a_kernel_without_faults_runs():
    _emulated.provoke("none")
    with pytest.raises(ValueError, match="there is no fault 'some'"):
        _emulated.provoke("some")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unwritten", "a read of shared memory that was not written, by thread 0 of block 0"),
        ("past the end", "an access past the end of shared memory, by thread 63"),
        ("past the end of the block's", "an access past the end of shared memory, by thread 5"),
        ("barrier", "thread 0 of block 0 waits at a barrier of its block that not all threads reach"),
        ("cluster barrier", "waits at a barrier of its cluster that not all threads reach"),
        ("two arrivals", "a second arrival at a barrier of a cluster without a wait, by thread 0 "),
        ("no arrival", "a wait at a barrier of a cluster without an arrival, by thread 0 "),
        (
            "no wait for the cluster",
            "an end between arriving at a barrier of a cluster and waiting, by thread 0 ",
        ),
        ("mixed barriers", "waits at a barrier of its block that not all threads reach"),
        (
            "two writers",
            "a write of shared memory that another thread wrote since the last barrier, by thread 1 ",
        ),
        ("no wait", "a read of shared memory to which a copy was not waited for, by thread 0 "),
        ("unaligned copy", "a copy that is not aligned to its size, by thread 1 "),
        (
            "write, then read",
            "a read of shared memory that another thread wrote since the last barrier, by thread 33 ",
        ),
        (
            "write, shuffle, then read",
            "a read of shared memory that another thread wrote since the last barrier, by thread 0 ",
        ),
        (
            "read, then write",
            "a write of shared memory that another thread read since the last barrier, by thread 33 ",
        ),
    ],
)
def test_faults_are_found(fault, message):
    with pytest.raises(RuntimeError, match=message):
        _emulated.provoke(fault)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_of_halves_as_a_warp_multiplies_them(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 16, 16).to(dtype)
    a[0, :4] = torch.tensor([6e-8, -3e-5, 6e-5, 65504.0]).to(dtype)  # of float16: subnormals, and the largest
    product = np.empty((16, 16), np.float32)
    bits = [t.view(torch.uint16).numpy() for t in (a, b)]
    _emulated.multiply_by_a_warp(dtype == torch.bfloat16, *bits, product)
    want = a.double() @ b.double()
    assert torch.allclose(torch.from_numpy(product).double(), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.4}]
)
@pytest.mark.parametrize("levels", [2, 8, 70])
def test_same_bits_as_the_cpu_for_every_team_and_chunk(levels, options):
    t = chain((1, 3, 4), levels, 9)
    want = run(t.load(), t, 5, seed=1, **options)
    for team, chunk in ((1, 1), (1, 5), (2, 2), (2, 5), (3, 2), (9, 3)):
        got = run(t.load("emulated"), t, 5, seed=1, team=team, chunk=chunk, **options)
        assert (got[0] == want[0]).all(), (team, chunk)
        assert (got[1] == want[1]).all(), (team, chunk)


def test_every_op_in_teams():
    t = everything()
    conditions = np.random.default_rng(3).normal(size=(3, t.condition)).astype(np.float32)
    want = run(t.load(), t, 3, conditions=conditions, seed=8)
    program = t.load("emulated")
    for team in (1, 2):
        got = run(program, t, 3, conditions=conditions, seed=8, team=team, chunk=2)
        assert (got[0] == want[0]).all()
        assert (got[1] == want[1]).all()


def test_given_pixels_stay_and_are_scored():
    t = chain((1, 4, 3), 6, 5)
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2, (3, *t.shape), dtype=np.uint8)
    images = rng.integers(0, 6, (3, *t.shape), dtype=np.int32)
    want = run(t.load(), t, images=images, given=given, seed=2)
    got = run(t.load("emulated"), t, images=images, given=given, seed=2)
    assert (got[0] == want[0]).all()
    assert (got[1] == want[1]).all()
    images[2, 0, 1, 1] = 6
    with pytest.raises(ValueError, match=r"given levels must be in \[0, 6\), got 6 in image 2"):
        run(t.load("emulated"), t, images=images, given=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0, np.nan], "NaN logits at image 0, pixel "),
        ([np.inf, 0], "infinite logits at image 0, pixel "),
        ([-np.inf, -np.inf], r"no level a chance \(every logit is -inf\) at image 0, pixel "),
    ],
)
def test_flawed_logits_are_refused(bad, message):
    t = Tiny((1, 2, 3), 2)
    x, h = t.buffer(2), t.buffer(2)
    t.input_op = t.input(0, x, 0, 2)
    raster(t, [t.conv(h, [(x, 0, 2, -1, 0)], code=[("vector", t.add_data(bad))], products=2)], logits=h)
    for isa in (None, "emulated"):
        with pytest.raises(ValueError, match=message):
            run(t.load(isa), t, 2)


def test_progress_and_what_it_throws():
    t = chain((1, 3, 3), 4, 5)
    seen = []
    run(t.load("emulated"), t, 4, progress=seen.append, chunk=2)
    assert seen[-1] == 1

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(t.load("emulated"), t, 4, progress=interrupt)


@pytest.mark.parametrize("team", [1, 2, 3])
def test_a_run_stops_early(team):
    t = chain((1, 9, 9), 4, 5)
    program = t.load("emulated")
    want = run(program, t, 2, team=team, chunk=2)
    assert _emulated.steps_done() == t.steps

    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(program, t, 2, progress=interrupt, team=team, chunk=2)
    assert 0 < _emulated.steps_done() < t.steps / 2
    got = run(program, t, 2, team=team, chunk=2)
    assert (got[0] == want[0]).all()


def test_bad_arguments_are_refused():
    t = chain((1, 3, 3), 4, 5)
    with pytest.raises(ValueError, match=r"device must be in \[0, 2\), got 3"):
        _emulated.Program(t.words(), t.data, 3)
    program = t.load("emulated")
    with pytest.raises(ValueError, match="chunk must not be negative, got -1"):
        run(program, t, chunk=-1)
    with pytest.raises(ValueError, match="team must not be negative, got -2"):
        run(program, t, team=-2)
    with pytest.raises(ValueError, match=r"log_prob must have shape"):
        program.run(images=np.zeros((1, *t.shape), np.int32), log_prob=np.zeros((2, *t.shape), np.float32))
    with pytest.raises(ValueError, match=r"\[explain\] team must not be negative, got -2"):
        program.estimates(n=1, team=-2)
    damaged = t.words()
    damaged[2] += 1
    with pytest.raises(ValueError, match="words"):
        _emulated.Program(damaged, t.data)
    assert _emulated.backend() == "emulated"
    assert run(program, t, 0)[0].shape == (0, *t.shape)


def test_programs_with_too_many_rows_are_refused():
    t = chain((1, 3, 3), 4, 5)
    for _ in range(1024):
        t.buffer(1, grid=(1 << 20, 1 << 20), broadcast=True)
    with pytest.raises(
        ValueError, match=r"\[program\] too large for a device: 21474836\d\d rows and columns"
    ):
        t.load("emulated")


def test_cuda_says_why_it_cannot_be_had():
    if no_cuda() is None:
        pytest.skip("this machine has a GPU")
    model = models.PixelCNN(levels=2, hidden=4, layers=1)
    with pytest.raises(ValueError, match=r"backend cuda cannot be had: .*; use backend"):
        pf.compile(model, shape=(1, 4, 4), backend="cuda")


@pytest.mark.parametrize("head", ["categorical", "bernoulli"])
def test_samplers_take_the_backend(head):
    torch.manual_seed(0)
    model = models.GatedPixelCNN(levels=2, hidden=4, layers=2, kernel=3, head=head).eval()
    want = pf.compile(model, shape=(1, 5, 4)).sample(3, seed=1)
    sampler = pf.compile(model, shape=(1, 5, 4), backend="emulated")
    got = sampler.sample(3, seed=1, team=2)
    assert torch.equal(got.images, want.images)
    assert torch.equal(got.log_prob, want.log_prob)
    assert torch.equal(sampler.log_prob(got.images), got.log_prob)


# --- memory, devices, how a batch is shared ---------------------------------------------------------------


@pytest.fixture
def free_nbytes():
    """Sets what the device has free, for a test."""
    yield _emulated.set_free_nbytes
    _emulated.set_free_nbytes(1 << 32)


def test_batches_fit_into_the_memory_that_is_free(free_nbytes):
    torch.manual_seed(0)
    model = models.PixelCNN(levels=4, hidden=20, layers=2).eval()
    sampler = pf.compile(model, shape=(1, 6, 7), backend="emulated")
    want = sampler.sample(9, seed=1, first_index=4)
    whole = sampler.explain(9).crew
    assert whole is not None
    for room in (whole.nbytes * 10 // 9 + 100, whole.nbytes * 2 // 3, whole.nbytes // 2):
        free_nbytes(room)
        got = sampler.sample(9, seed=1, first_index=4)
        assert torch.equal(got.images, want.images)
        assert torch.equal(got.log_prob, want.log_prob)
    free_nbytes(1000)
    with pytest.raises(
        ValueError, match=r"an image needs \d+ bytes of an emulation .*, which has \d+ to spare"
    ):
        sampler.sample(9)


def test_batches_of_the_host_are_copied_in_parts(free_nbytes):
    t = chain((1, 3, 4), 5, 9)
    program = t.load("emulated")
    want = run(program, t, 40, seed=1)
    seen = []
    free_nbytes(7000)
    got = run(program, t, 40, seed=1, progress=seen.append, chunk=1, team=1)
    assert (got[0] == want[0]).all()
    assert (got[1] == want[1]).all()
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert seen[-1] == pytest.approx(1)


def test_devices_by_number():
    model = models.PixelCNN(levels=2, hidden=8, layers=1).eval()
    first, second = (pf.compile(model, shape=(1, 3, 3), backend=f"emulated:{i}") for i in range(2))
    assert torch.equal(first.sample(3).images, second.sample(3).images)
    with pytest.raises(ValueError, match="backend emulated:2: there are 2 devices, from emulated:0 on"):
        pf.compile(model, shape=(1, 3, 3), backend="emulated:2")
    for wrong in ("cpu:1", "emulated:", "emulated:x", "gpu"):
        with pytest.raises(
            ValueError, match="backend must be one of cpu, cuda, emulated, reference, or such as cuda:1"
        ):
            pf.compile(model, shape=(1, 3, 3), backend=wrong)


def test_explains_how_a_batch_is_shared():
    sampler = pf.compile(
        models.PixelCNN(levels=2, hidden=8, layers=1).eval(), shape=(1, 3, 3), backend="emulated"
    )
    found = sampler.explain(5)
    assert [(c.teams, c.blocks, c.barrier) for c in found.crews] == [
        *[(3, 1, "block")] * 2,
        *[(1, 2, "cluster")] * 2,
        *[(1, 3, "memory")] * 2,
    ]
    for with_weights, without in (found.crews[:2], found.crews[2:4], found.crews[4:]):
        assert 0 == without.resident_nbytes < with_weights.resident_nbytes <= without.weights_nbytes
        assert with_weights.cycles < without.cycles
    assert found.crew == min(found.crews, key=lambda c: c.cycles)
    assert str(found).count("<- chosen") == 1
    assert "5 images shared" in str(found)
    with pytest.raises(ValueError, match=r"\[explain\] n must be at least 1, got 0"):
        sampler.explain(0)
    plain = pf.compile(models.PixelCNN(levels=2, hidden=8, layers=1).eval(), shape=(1, 3, 3)).explain()
    assert plain.crews == ()
    assert plain.crew is None
    assert "chosen" not in str(plain)


def test_long_expressions_keep_their_registers_elsewhere():
    """More instructions than a thread keeps by itself."""
    t = Tiny((1, 2, 3), 3)
    x, h = t.buffer(4), t.buffer(3)
    code = [("product", 0), *[("tanh" if i % 2 else "neg", i) for i in range(19)], ("add", 0, 19)]
    ops = [t.input(0, x, 0, 4), t.conv(h, [(x, 0, 4, -1, 0)], code=code), t.head("categorical", 0, h)]
    for op in ops:
        t.everywhere(op)
        t.step()
    images = np.random.default_rng(0).integers(0, 3, (4, 1, 2, 3)).astype(np.int32)
    got, want = (run(t.load(backend), t, 4, images, given=True)[1] for backend in ("emulated", None))
    assert (got == want).all()
