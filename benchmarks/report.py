"""Write the tables of README and docs from JSON records, so that no figure is typed by hand."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelfast._files import replacing

from . import compiling, families, floor, likelihoods, limits, sampling, skew, training

Record = Mapping[str, Any]
SHORT = "Loops in PyTorch are extrapolated: the plain one from forward passes, the cached one from rows."


def blocks(result: Record) -> dict[str, str]:
    """Return the tables of a record, by the names of the markers that they go between.

    Raises ValueError for a record of a question that has none.
    """
    question = result["question"]
    if question == "sampling":
        extrapolated = (
            "\\* Extrapolated: the plain and the compiled loop from forward passes, the cached one from rows."
        )
        return {
            "speeds": _block(result, short(sampling.table(result)), f"Time per image. {SHORT}"),
            "contestants": _block(result, sampling.table(result), f"Time per image. {extrapolated}"),
        }
    if question == "limits":
        peaks = f"Times of one thread. The machine reaches {floor.describe(result['rows'][-1]['peaks'])}."
        return {
            "limits": _block(result, limits.table(result), peaks),
            "parts": _block(result, limits.parts_table(result), "Times of one thread."),
            "sizes": _block(result, limits.sizes_table(result), "Times of one thread."),
        }
    if question == "families":
        note = (
            "\\* Extrapolated: the plain loop from forward passes, the cached one from steps in the middle."
        )
        return {"families": _block(result, families.table(result), f"Time per image. {note}")}
    if question == "training":
        return {"training": _block(result, training.table(result), "Time per step.")}
    if question == "likelihoods":
        note = "Test nats per image; times per image are of batches of 16."
        return {
            "likelihoods": _block(result, likelihoods.table(result), note),
            "commands": likelihoods.commands(result),
        }
    if question == "compiling":
        return {"compiling": _block(result, compiling.table(result))}
    if question == "netket":
        from .peers import netket_arnn

        versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("netket", "jax"))
        return {"netket": _block(result, netket_arnn.table(result), f"With {versions}.")}
    if question == "skew":
        return {"skew": skew.markdown(result)}
    raise ValueError(f"[report] there are no tables of {question!r}")


def short(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns of a table of speeds that a README has room for."""
    kept = ("model", "batch", "pixelfast", "over floor", "vs cached", "vs plain", "of peak")
    at = [lines[0].index(name) for name in kept]
    return [[line[i] for i in at] for line in lines]


def _block(result: Record, lines: Sequence[Sequence[str]], note: str = "") -> str:
    """A table, with the machine and the versions below it."""
    head, *rows = lines
    text = "\n".join(
        "| " + " | ".join(line) + " |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    )
    host, versions = result["machine"], result["versions"]
    peak = f"{host['peak_multiply_adds_per_second'] / 1e9:.0f} G multiply-adds/s"
    busy = (
        f", while the machine was busy (load {result['load_before']})" if result["load_before"] > 0.5 else ""
    )
    threads = "1 thread" if host["threads"] == 1 else f"{host['threads']} threads"
    return (
        f"{text}\n\n{note}{' ' if note else ''}"
        f"Measured {result['date'][:10]} at commit {result['commit']} on {host['cpu']}, {threads}, {host['isa']}, "
        f"whose fp32 peak was measured at {peak}; torch {versions['torch']}, Python {versions['python']}{busy}.\n"
    )


def insert(text: str, tables: Mapping[str, str]) -> str:
    """Return `text` with what stands between the markers of each of the tables that it has replaced.

    Raises ValueError if it has none of the markers.
    """
    found = 0
    for name, block in tables.items():
        marked = re.compile(rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text, n = marked.subn(lambda m, block=block: m[1] + block + m[2], text)  # type: ignore[misc]
        found += n
    if not found:
        names = " or ".join(f"<!-- {name}: begin --> and <!-- {name}: end -->" for name in tables)
        raise ValueError(f"[report] there are no markers {names}")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks report`."""
    parser.add_argument("record", help="a JSON record of another benchmark")
    parser.add_argument(
        "--into", nargs="*", default=[], metavar="FILE", help="Markdown files to update in place"
    )


def run(options: argparse.Namespace) -> None:
    """Print the tables, or write them into files."""
    tables = blocks(json.loads(Path(options.record).read_text(encoding="utf-8")))
    if not options.into:
        print("\n".join(tables.values()), end="")
    for path in map(Path, options.into):
        new = insert(path.read_text(encoding="utf-8"), tables)
        with replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
