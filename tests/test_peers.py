"""The benchmarks against other packages compare like with like. No speeds here."""

import json
import sys
from pathlib import Path

import pytest
import torch

import pixelfast as pf

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.peers import netket_arnn

TINY = netket_arnn.Case(5, 3, 6)


@pytest.fixture
def netket():
    pytest.importorskip("netket", reason="netket is not installed: pip install -e '.[peers]'")
    return netket_arnn.NetKet(TINY)


def test_the_twin_is_autoregressive():
    torch.manual_seed(0)
    twin = netket_arnn.Spins(TINY).eval()
    pf.testing.assert_causal(twin, shape=TINY.shape, head=pf.heads.Categorical(2))
    sampler = pf.compile(twin, shape=TINY.shape, head=pf.heads.Categorical(2))
    assert sampler.verify() < 1e-4
    assert sampler.steps == 5 + 2 * 4  # each layer sees one further to the right in the row above


@pytest.mark.filterwarnings("ignore")
def test_one_distribution_in_both(netket):
    sampler = pf.compile(netket.twin(), shape=TINY.shape, head=pf.heads.Categorical(2))
    netket_arnn.verify(netket, sampler)
    spoiled = netket.twin()
    spoiled.convs[-1].bias.data[0] += 1
    sampler = pf.compile(spoiled, shape=TINY.shape, head=pf.heads.Categorical(2))
    with pytest.raises(ValueError, match=r"\[verify\] the engine's log probabilities differ from NetKet's"):
        netket_arnn.verify(netket, sampler)


@pytest.mark.filterwarnings("ignore")
def test_a_run(netket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(netket_arnn, "CASES", (TINY,))
    monkeypatch.setattr(netket_arnn.os, "sched_setaffinity", lambda *_: None, raising=False)
    out = tmp_path / "record.json"
    argv = ["netket_arnn", "--batches", "1", "3", "--repeats", "1", "--seconds", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    netket_arnn.main()
    record = json.loads(out.read_text())
    assert [row["batch"] for row in record["rows"]] == [1, 3]
    assert all(min(row["seconds"].values()) > 0 for row in record["rows"])
    assert {"netket", "jax", "jaxlib"} < set(record["versions"])
    assert "5x5, 3 layers of 6" in capsys.readouterr().out
