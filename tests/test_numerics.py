"""numerics.py against exact arithmetic, and every instruction set against numerics.py, to the bit.

test_accuracy.py has the transcendental functions.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelfast import _cpu, numerics

ISAS = _cpu.isas()
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38,
     -3.4028235e38, 88.72283, 88.72284, -87.33654, -103.97208, -103.97209, 0.625, -0.625, 0.5, 1.4142135],
    np.float32,
)  # fmt: skip


def sample_floats(n: int = 200_000, seed: int = 0) -> np.ndarray:
    """float32 of every sign and exponent, more in the ranges that matter, and all special ones."""
    rng = np.random.default_rng(seed)
    every = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    near = [rng.uniform(-b, b, n // 4).astype(np.float32) for b in (0.01, 1, 10, 104)]
    return np.concatenate([SPECIAL, every, *near])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, where all NaN count as one."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return bool(((a.view(np.int32) == b.view(np.int32)) | (np.isnan(a) & np.isnan(b))).all())


def test_signed_zeros_pass():
    for name in ("tanh", "relu"):
        assert np.signbit(getattr(numerics, name)(np.float32(-0.0))), name
    assert numerics.exp(np.float32([0.0, -0.0])).tolist() == [1.0, 1.0]


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(floats, floats, floats)
def test_fma_is_rounded_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = float(numerics.fma(a, b, c))
    if np.isinf(got):
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103
        return
    error = abs(Fraction(got) - exact)
    for towards in (np.inf, -np.inf):
        neighbour = np.nextafter(np.float32(got), np.float32(towards))
        if np.isfinite(neighbour):
            other = abs(Fraction(float(neighbour)) - exact)
            assert error < other or (error == other and np.float32(got).view(np.int32) % 2 == 0)


@pytest.mark.parametrize("isa", ISAS)
def test_fma_half_way_cases(isa):
    # Sums that lie next to the middle of two float32, where rounding twice goes wrong; and denormals.
    a = np.float32([1 + 2**-12, 1 + 2**-23, 2.0**-75, 2.0**-75, 2.0**-100, 1.0])
    b = np.float32([1 + 2**-12, 1 - 2**-23, 2.0**-75, 2.0**-75, 2.0**-40, 2.0**-24])
    c = np.float32([2.0**-40, 2.0**25, 2.0**-149, -(2.0**-149), 2.0**-126, 1.0])
    assert same_bits(_cpu.math("fma", [a, b, c], isa), numerics.fma(a, b, c))
    x = [sample_floats(seed=s) for s in range(3)]
    assert same_bits(_cpu.math("fma", x, isa), numerics.fma(*x))


@pytest.mark.parametrize("isa", ISAS)
def test_ieee_operations_have_the_same_bits(isa):
    a, b = sample_floats(seed=1), sample_floats(seed=2)
    with np.errstate(all="ignore"):
        expected = {
            "add": a + b, "sub": a - b, "mul": a * b, "div": a / b,
            "min": numerics.minimum(a, b), "max": numerics.maximum(a, b),
        }  # fmt: skip
        for name, want in expected.items():
            assert same_bits(_cpu.math(name, [a, b], isa), want), name
        for name, want in {"neg": -a, "abs": np.abs(a), "sqrt": np.sqrt(a)}.items():
            assert same_bits(_cpu.math(name, [a], isa), want), name


def test_math_refuses_unknown_functions():
    with pytest.raises(ValueError, match=r"\[math\] there is no function 'sinh' of 1 arrays"):
        _cpu.math("sinh", [np.zeros(3, np.float32)])


def test_philox_known_answers():
    # From the Random123 distribution (kat_vectors): counter, key, result.
    ones = 2**64 - 1
    assert numerics.philox(0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert numerics.philox(ones, ones, ones) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = numerics.philox(0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88)
    assert pi == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@given(*[st.integers(0, 2**64 - 1)] * 3)
def test_philox_is_the_same_in_both(seed, image, counter):
    assert _cpu.philox(seed, image, counter) == numerics.philox(seed, image, counter)


OPTIONS = [{}, {"temperature": 0.3}, {"temperature": 7.0}, {"top_k": 1}, {"top_k": 5}, {"top_p": 0.5},
           {"top_p": 1e-9}, {"top_k": 9, "top_p": 0.8, "temperature": 2.0}]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("levels", [1, 2, 3, 16, 17, 64, 65, 256, 1000, 2**16])
def test_frequencies_have_the_same_bits(isa, levels, options):
    rng = np.random.default_rng(levels)
    for scale in (0.0, 1.0, 30.0):
        logits = (rng.normal(size=levels) * scale).astype(np.float32)
        if levels > 3:
            logits[rng.integers(levels)] = -np.inf
        want = numerics.frequencies(logits, **options)
        assert want.sum() == 2**31
        assert (want[np.isneginf(logits)] == 0).all()
        assert (_cpu.table(logits, isa=isa, **options) == want).all()


def test_frequencies_are_close_to_softmax():
    logits = np.random.default_rng(0).normal(size=256).astype(np.float32) * 4
    exact = np.exp(logits.astype(np.float64))
    exact /= exact.sum()
    assert np.abs(numerics.frequencies(logits) / 2**31 - exact).max() < 1e-6
    assert numerics.frequencies(logits).min() >= 1


def test_top_k_and_top_p_keep_the_largest():
    logits = np.log(np.float32([0.1, 0.3, 0.3, 0.05, 0.25]))
    assert np.flatnonzero(numerics.frequencies(logits, top_k=1)).tolist() == [1]  # ties: the lower index
    assert np.flatnonzero(numerics.frequencies(logits, top_k=3)).tolist() == [1, 2, 4]
    assert np.flatnonzero(numerics.frequencies(logits, top_p=0.55)).tolist() == [1, 2]
    assert np.flatnonzero(numerics.frequencies(logits, top_p=0.7)).tolist() == [1, 2, 4]
    assert numerics.frequencies(logits, top_k=1).tolist() == [0, 2**31, 0, 0, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", [1, 2, 70, 256])
def test_draw(isa, levels):
    rng = np.random.default_rng(levels)
    logits = rng.normal(size=levels).astype(np.float32) * 3
    freqs = numerics.frequencies(logits)
    edges = np.cumsum(freqs)
    u = np.concatenate([[0, 2**31 - 1], edges[:-1], edges - 1, rng.integers(0, 2**31, 500)])
    want = [numerics.draw(freqs, int(v)) for v in u]
    assert _cpu.draw(logits, u.astype(np.uint32), isa).tolist() == want
    assert want[:2] == [int(np.flatnonzero(freqs)[0]), int(np.flatnonzero(freqs)[-1])]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"top_k": 2}])
@pytest.mark.parametrize("levels", [1, 2, 3, 7, 16, 64, 256, 1025])
@pytest.mark.parametrize("excluding", [False, True])
def test_rows_are_drawn_as_one_at_a_time(isa, excluding, levels, options):
    rng = np.random.default_rng(levels)
    for n in (1, 5, 16, 17, 48):
        logits = (rng.normal(size=(n, levels)) * rng.choice([0.0, 1.0, 30.0, 1e37], (n, 1))).astype(
            np.float32
        )
        if levels > 3:
            if excluding:
                logits[rng.random((n, levels)) < 0.1] = -np.inf
            logits[:, rng.integers(levels)] = logits[:, 0] = 1.0
        given_levels = np.where(rng.random(n) < 0.3, rng.integers(levels, size=n), -1).astype(np.int32)
        tables = [numerics.frequencies(row, **options) for row in logits]
        # The first and the last number of an interval, and any.
        u = rng.integers(0, 2**31, n)
        for r, table in enumerate(tables):
            edge = int(np.cumsum(table)[rng.integers(levels)])
            u[r] = (u[r], edge - 1, edge)[r % 3] if 0 < edge < 2**31 else u[r]
        drawn, frequencies = _cpu.draw_rows(logits, u.astype(np.uint32), given_levels, isa=isa, **options)
        want = [
            numerics.draw(table, int(v)) if k < 0 else k
            for table, v, k in zip(tables, u, given_levels, strict=True)
        ]
        assert drawn.tolist() == want
        assert frequencies.tolist() == [table[k] for table, k in zip(tables, want, strict=True)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_flawed_row_is_named(isa, bad):
    logits = np.zeros((20, 2), np.float32)
    logits[7, 1] = logits[9, 0] = bad
    for _ in range(2):
        with pytest.raises(ValueError, match="in row 7"):
            _cpu.draw_rows(logits, np.zeros(20, np.uint32), np.full(20, -1, np.int32), isa=isa)
        logits[:, 0] = -np.inf


def test_log_prob():
    freqs = np.array([2**30, 2**30 - 1, 1, 0])
    got = [float(numerics.log_prob(freqs, k)) for k in range(4)]
    assert got[0] == pytest.approx(np.log(0.5), rel=1e-6)
    assert got[2] == pytest.approx(-31 * np.log(2), rel=1e-6)
    assert got[3] == -np.inf


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0, np.nan, 1.0], r"\[sample\] the model gave NaN logits"),
        ([np.nan] * 40, r"\[sample\] the model gave NaN logits"),
        ([0.0, np.inf], r"\[sample\] the model gave infinite logits"),
        ([-np.inf, -np.inf], r"\[sample\] the model gave no level a chance"),
    ],
)
def test_flawed_logits_are_refused(isa, bad, message):
    logits = np.float32(bad)
    with pytest.raises(ValueError, match=message):
        numerics.frequencies(logits)
    with pytest.raises(ValueError, match=message):
        _cpu.table(logits, isa=isa)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e-40])
def test_temperature_must_be_positive(temperature):
    for call in (numerics.frequencies, _cpu.table):
        with pytest.raises(ValueError, match=r"\[sample\] temperature must be positive and finite, got"):
            call(np.zeros(3, np.float32), temperature=temperature)
