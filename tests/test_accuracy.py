"""How close exp, log, tanh, sigmoid and elu come to what is true, over all float32 exponents, and on every instruction
set with the bits of numerics.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from pixelfast import _cpu, numerics

ISAS = _cpu.isas()
BRANCHES = [
    0.625,
    1.0,
    0.5,
    2.0**-126,
    89.0,
    -104.0,
    88.72284,
    -87.33654,
    -103.97208,
    9.01,
    17.33,
    2**0.5,
    0.5**0.5,
]


@dataclass(frozen=True)
class Function:
    exact: Callable[[np.ndarray], np.ndarray]  # in long double
    bound: float  # of the error, in units in the last place of the exact result


def exact_sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.exp(-np.abs(x))
    return np.where(x < 0, t, 1) / (1 + t)


FUNCTIONS = {
    "exp": Function(np.exp, 1.02),
    "log": Function(np.log, 0.83),
    "tanh": Function(np.tanh, 1.35),
    "sigmoid": Function(exact_sigmoid, 1.97),
    "elu": Function(lambda x: np.where(x > 0, x, np.expm1(x)), 1.0),
}

in_extended_precision = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63,
    reason="long double is no wider than double here: nothing to compare with",
)


def neighbours(x: np.ndarray, steps: int = 8) -> np.ndarray:
    """The float32 up to so many steps away from each x, of both signs."""
    bits = np.asarray(x, np.float32).view(np.int32)[:, None] + np.arange(-steps, steps + 1, dtype=np.int32)
    found = bits.view(np.float32).ravel()
    return np.concatenate([found, -found])


@functools.cache
def points() -> np.ndarray:
    """float32 of every exponent and sign: denormals, infinities and NaN too; more where results are neither 0 nor 1."""
    rng = np.random.default_rng(0)
    ends = [0, 1, 2, 2**22 - 1, 2**22, 2**22 + 1, 2**23 - 2, 2**23 - 1]
    mantissas = np.concatenate([np.tile(ends, (512, 1)), rng.integers(0, 2**23, (512, 400))], axis=1)
    every = ((np.arange(512)[:, None] << 23) | mantissas).astype(np.uint32).view(np.float32).ravel()
    near = [rng.uniform(-b, b, 100_000).astype(np.float32) for b in (1, 10, 104)]
    turns = (np.arange(-152, 130) + 0.5) * np.log(2)  # where exp takes the next power of two
    return np.concatenate([every, *near, neighbours(np.abs(turns)), neighbours(np.abs(BRANCHES))])


def test_every_exponent_is_there():
    exponents, counts = np.unique(points().view(np.uint32) >> 23, return_counts=True)
    assert exponents.tolist() == list(range(512))
    assert counts.min() >= 400
    assert np.isnan(points()).any()
    assert np.isinf(points()).any()


@in_extended_precision
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_ulps(name, record_property):
    function, x = FUNCTIONS[name], points()
    y = getattr(numerics, name)(x)
    with np.errstate(all="ignore"):
        want = function.exact(x.astype(np.longdouble))
        rounded = want.astype(np.float32)
        error = np.abs(y.astype(np.longdouble) - want) / np.spacing(np.abs(rounded))
    assert (np.isnan(y) == np.isnan(want)).all()
    infinite = np.isinf(rounded)
    assert (y[infinite] == rounded[infinite]).all()
    worst = np.nanargmax(np.where(infinite, np.nan, error))
    record_property("ulp", float(error[worst]))
    print(f"{name}: {error[worst]:.3f} ulp at {x[worst]!r}")
    assert error[worst] <= function.bound


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Every point with another, and with numbers of all sizes where neither function is flat."""
    rng = np.random.default_rng(1)
    some = [
        (rng.choice([-1, 1], 300_000) * 2 ** rng.uniform(-30, 5, 300_000)).astype(np.float32)
        for _ in range(2)
    ]
    return np.concatenate([points(), points(), some[0]]), np.concatenate(
        [rng.permutation(points()), np.resize(some[1], len(points())), some[1]]
    )


@in_extended_precision
def test_error_of_gates_in_ulps(record_property):
    a, b = pairs()
    y = numerics.gate(a, b)
    with np.errstate(all="ignore"):
        want = np.tanh(a.astype(np.longdouble)) * exact_sigmoid(b.astype(np.longdouble))
        rounded = want.astype(np.float32)
        error = np.abs(y.astype(np.longdouble) - want) / np.spacing(np.abs(rounded))
    assert (np.isnan(y) == np.isnan(want)).all()
    assert (np.signbit(y) == np.signbit(a))[~np.isnan(y)].all()
    worst = np.nanargmax(error)
    record_property("ulp", float(error[worst]))
    print(f"gate: {error[worst]:.3f} ulp at {a[worst]!r}, {b[worst]!r}")
    assert error[worst] <= 4


@pytest.mark.parametrize("isa", ISAS)
def test_gates_have_the_same_bits(isa):
    a, b = pairs()
    got, want = _cpu.math("gate", [a, b], isa), numerics.gate(a, b)
    nan = np.isnan(want)
    assert (np.isnan(got) == nan).all()
    assert (got.view(np.int32) == want.view(np.int32))[~nan].all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*FUNCTIONS, "relu"])
def test_functions_have_the_same_bits(isa, name):
    got, want = _cpu.math(name, [points()], isa), getattr(numerics, name)(points())
    nan = np.isnan(want)
    assert (np.isnan(got) == nan).all()
    assert (got.view(np.int32) == want.view(np.int32))[~nan].all()
