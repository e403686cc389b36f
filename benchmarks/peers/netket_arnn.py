"""How long does it take to sample a lattice of spins? `Sampler.sample` against NetKet's fast autoregressive sampler.

    pip install -e '.[peers]'
    python -m benchmarks.peers.netket_arnn --out benchmarks/results/netket.json

The network is NetKet's FastARNNConv2D: masked convolutions, kernel (2, 3), SELU between them, two outputs per spin.
NetKet runs as its ARDirectSampler does, compiled by JAX for the processor, in float32. The same network in PyTorch,
with the same weights, is what pixelfast compiles; that both are one distribution is verified on the samples of each.
Both have one core and one thread.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pixelfast as pf
from pixelfast._files import check_writable

from .. import harness
from ..sampling import duration

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
KERNEL = (2, 3)


@dataclass(frozen=True)
class Case:
    """A lattice of size x size spins and a network of `layers`, all but the last with so many features."""

    size: int
    layers: int
    features: int

    @property
    def name(self) -> str:
        return f"{self.size}x{self.size}, {self.layers} layers of {self.features}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.size, self.size


CASES = (Case(16, 4, 32), Case(32, 8, 64))
BATCHES = (1, 16, 256)


class Spins(nn.Module):
    """FastARNNConv2D in PyTorch. `states`: the spin that each of the two levels stands for."""

    def __init__(self, case: Case, states: Sequence[float] = (1.0, -1.0)) -> None:
        super().__init__()
        widths = [1, *[case.features] * (case.layers - 1), 2]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, KERNEL) for a, b in itertools.pairwise(widths))
        self.states = torch.tensor(states)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float (N, 2, 1, H, W), for integer (N, 1, H, W) levels."""
        x = self.states[0] + images * (self.states[1] - self.states[0])
        for i, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            mask = torch.ones(KERNEL)
            mask[-1, KERNEL[1] // 2 + (i > 0) :] = 0  # the first layer does not see the spin itself
            padding = KERNEL[1] // 2, (KERNEL[1] - 1) // 2, KERNEL[0] - 1, 0
            x = F.conv2d(F.pad(F.selu(x) if i else x, padding), conv.weight * mask, conv.bias)
        return 2 * x[:, :, None]  # of log psi, whose square is the probability


class NetKet:
    """FastARNNConv2D with weights drawn from a seed, and its sampler."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        os.environ.setdefault("XLA_FLAGS", ONE_THREAD)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import netket

        self.case, self.block = case, jax.block_until_ready
        hilbert = netket.hilbert.Spin(0.5, case.size**2)
        self.states = [float(state) for state in hilbert.local_states]
        self.model = netket.models.FastARNNConv2D(
            hilbert=hilbert,
            layers=case.layers,
            features=case.features,
            kernel_size=KERNEL,
            param_dtype=np.float32,
        )
        key = jax.random.PRNGKey(seed)
        self.variables = self.model.init(key, np.ones((1, hilbert.size), np.float32))
        self.sampler = netket.sampler.ARDirectSampler(hilbert, dtype=np.float32)
        self.state = self.sampler.init_state(self.model, self.variables, seed=seed)
        self.evaluate = jax.jit(self.model.apply)

    def sample(self, n: int) -> Any:
        """Draw n lattices: float32 (1, n, size**2) of spins."""
        found, self.state = self.sampler.sample(self.model, self.variables, state=self.state, chain_length=n)
        return self.block(found)

    def levels(self, n: int) -> Tensor:
        """Draw n lattices: int64 (n, 1, size, size) of levels."""
        spins = torch.from_numpy(np.array(self.sample(n)))
        return (spins != self.states[0]).long().view(n, *self.case.shape)

    def log_prob(self, levels: Tensor) -> Tensor:
        """Score lattices: float (N,)."""
        spins = np.array(self.states, np.float32)[levels.flatten(1).numpy()]
        return torch.from_numpy(np.array(2 * self.evaluate(self.variables, spins)))

    def twin(self) -> Spins:
        """Return the same network in PyTorch."""
        twin = Spins(self.case, self.states).eval()
        for i, conv in enumerate(twin.convs):
            weights = self.variables["params"][f"_layers_{i}"]
            kernel = np.array(weights["kernel"])  # height, width, inputs, outputs
            conv.weight.data = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
            conv.bias.data = torch.from_numpy(np.array(weights["bias"]))
        return twin


def verify(netket: NetKet, sampler: pf.Sampler, n: int = 4) -> None:
    """Check that both score each other's samples alike. Raises ValueError if not."""
    for levels in (sampler.sample(n, seed=1).images, netket.levels(n)):
        if not torch.allclose(sampler.log_prob(levels), netket.log_prob(levels), rtol=1e-4, atol=1e-2):
            raise ValueError("[verify] the engine's log probabilities differ from NetKet's")


def repeated(work: Callable[[], object], seconds: float) -> float:
    """Return the seconds that one call takes, on average over at least so many seconds."""
    total, calls = harness.timed(work), 1
    while total < seconds:
        total += harness.timed(work)
        calls += 1
    return total / calls


def measure(case: Case, batches: Sequence[int], *, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Time one network at some batch sizes. Returns a row of figures for each."""
    netket = NetKet(case)
    sampler = pf.compile(netket.twin(), shape=case.shape, head=pf.heads.Categorical(2))
    verify(netket, sampler)
    rows = []
    for n in batches:
        found = harness.interleaved(
            {
                "pixelfast": lambda n=n: repeated(lambda: sampler.sample(n, seed=0, threads=1), seconds),
                "netket": lambda n=n: repeated(lambda: netket.sample(n), seconds),
            },
            repeats,
        )
        rows.append(
            {
                "model": case.name,
                "batch": n,
                "order": str(sampler.order),
                "steps": sampler.steps,
                "multiply_adds_per_image": sampler.multiply_adds,
                "seconds": found,
                "repeats": repeats,
            }
        )
    return rows


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table, the head first."""
    lines = [["model", "batch", "pixelfast", "NetKet", "ratio", "GMAC/s", "of peak"]]
    for row in result["rows"]:
        ours, theirs = row["seconds"]["pixelfast"], row["seconds"]["netket"]
        rate = row["multiply_adds_per_image"] * row["batch"] / ours
        share = rate / result["machine"]["peak_multiply_adds_per_second"]
        figures = duration(ours), duration(theirs), f"{theirs / ours:.1f}x"
        lines.append([row["model"], str(row["batch"]), *figures, f"{rate / 1e9:.1f}", f"{share:.0%}"])
    return lines


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, and write the record."""
    if options.out is not None:
        check_writable(options.out)
    busy = harness.load()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for case in CASES:
        rows += measure(case, options.batches, repeats=options.repeats, seconds=options.seconds)
    result = harness.record("netket", 1, busy, rows)
    result["versions"] |= {name: version(name) for name in ("netket", "jax", "jaxlib")}
    host = result["machine"]
    peak = f"fp32 peak {host['peak_multiply_adds_per_second'] / 1e9:.0f} GMAC/s"
    print(f"{host['cpu']}, {host['isa']}, 1 thread, {peak}; per batch")
    print(harness.table(table(result)))
    if options.out is not None:
        harness.save(result, options.out)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.netket_arnn", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="N", help="(1 16 256)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one to warm up (5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="at least, per contestant and round (0.2)")
    parser.add_argument("--out", help="where the JSON record goes")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
