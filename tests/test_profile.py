"""Sampler.profile: what it counts is what the schedule says, and it changes nothing."""

import pytest
import torch

import pixelfast as pf


@pytest.fixture(scope="module")
def sampler():
    torch.manual_seed(0)
    return pf.compile(pf.models.GatedPixelCNN(hidden=8, layers=2, levels=4).eval(), shape=(1, 6, 5))


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"threads": 2, "team": 2}, {"threads": 2, "team": 1, "chunk": 1}]
)
def test_counts_are_those_of_the_schedule(sampler, options):
    n = 3
    found = sampler.profile(n, quiet=True, **options)
    explained = {row.name: row for row in sampler.explain().rows}
    assert (found.images, found.threads) == (n, options["threads"])
    assert sum(r.multiply_adds for r in found.rows) == n * sampler.multiply_adds
    for row in found.rows:
        want = explained[row.name]
        assert row.multiply_adds == n * want.multiply_adds
        assert row.calls >= want.launches
        assert row.rows == n * want.elements


def test_times_add_up(sampler):
    found = sampler.profile(4, quiet=True, threads=1)
    for row in found.rows:
        assert 0 <= row.product_seconds + row.gather_seconds <= row.seconds
        assert (row.product_seconds > 0) == (row.multiply_adds > 0)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in found.shares.values())
    assert found.shares["waiting"] == 0
    assert sum(row.seconds for row in found.rows) <= found.thread_seconds <= found.seconds


def test_the_table_names_every_op(sampler, capsys):
    found = sampler.profile(2)
    text = capsys.readouterr().out
    assert text.strip() == str(found)
    assert all(row.name in text for row in sampler.explain().rows)
    assert "2 images" in text
    assert "of peak" in text


def test_profiling_changes_nothing(sampler):
    want = sampler.sample(2, seed=3)
    sampler.profile(2, quiet=True, seed=3)
    again = sampler.sample(2, seed=3)
    assert torch.equal(want.images, again.images)
    assert torch.equal(want.log_prob, again.log_prob)


def test_what_cannot_be_profiled():
    model = pf.models.PixelCNN(hidden=4, layers=1, levels=2).eval()
    with pytest.raises(ValueError, match="only the cpu backend can be profiled, this is reference"):
        pf.compile(model, shape=(1, 2, 2), backend="reference").profile(1)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        pf.compile(model, shape=(1, 2, 2)).profile(0)
    with pytest.raises(ValueError, match="temperature"):
        pf.compile(model, shape=(1, 2, 2)).profile(1, temperature=-1)
