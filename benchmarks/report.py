"""Write the tables of README and docs from JSON records, so that no figure is typed by hand."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixelfast._files import replacing

from . import sampling

_BLOCK = re.compile(r"(<!-- speeds: begin[^\n]*-->\n).*?(<!-- speeds: end -->)", re.DOTALL)


def markdown(result: Mapping[str, Any]) -> str:
    """Return a record of `sampling` as a table, with the machine and the versions below it."""
    head, *rows = sampling.table(result)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    host, versions = result["machine"], result["versions"]
    peak = f"{host['peak_multiply_adds_per_second'] / 1e9:.0f} G multiply-adds/s"
    busy = (
        f", while the machine was busy (load {result['load_before']})" if result["load_before"] > 0.5 else ""
    )
    return (
        f"{text}\n\n"
        "Time per image. \\* Extrapolated: the plain loop from timed forward passes, the cached loop from "
        "timed rows.\n"
        f"Measured {result['date'][:10]} at commit {result['commit']} on {host['cpu']}, "
        f"{host['threads']} threads, {host['isa']}, whose fp32 peak was measured at {peak}; "
        f"torch {versions['torch']}, Python {versions['python']}{busy}.\n"
    )


def insert(text: str, block: str) -> str:
    """Return `text` with what stands between the two speeds markers replaced.

    Raises ValueError if the markers are not there.
    """
    if not _BLOCK.search(text):
        raise ValueError("[report] there are no markers <!-- speeds: begin --> and <!-- speeds: end -->")
    return _BLOCK.sub(lambda found: found[1] + block + found[2], text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m benchmarks report`."""
    parser.add_argument("record", help="a JSON record of `python -m benchmarks sampling`")
    parser.add_argument(
        "--into", nargs="*", default=[], metavar="FILE", help="Markdown files to update in place"
    )


def run(options: argparse.Namespace) -> None:
    """Print the table, or write it into files."""
    block = markdown(json.loads(Path(options.record).read_text(encoding="utf-8")))
    if not options.into:
        print(block, end="")
    for path in map(Path, options.into):
        new = insert(path.read_text(encoding="utf-8"), block)
        with replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
