"""Check that no instruction set leaks into shared code.

A function with weak linkage in an object that is compiled for AVX may be the copy that the linker keeps for
all, and then crashes older machines (numpy issue 25274). So the objects of the isa_*.cpp units may define
none, and may export nothing but their table of kernels; and the extension module may export nothing but its
PyInit function.

    python tools/check_symbols.py build/dev
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type, name) of the symbols that `nm` lists."""
    command = ["nm", *options, str(path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in out.splitlines() if line.strip()]
    return [(row[-2], row[-1]) for row in rows]


def complaints(build: Path) -> list[str]:
    objects = sorted(build.rglob("isa_*.cpp.o*"))
    modules = sorted(build.glob("_*.so"))
    if not objects or not modules:
        return [f"{build}: no object files or no module found; build first"]
    found = []
    for path in objects:
        for kind, name in symbols(path, "--defined-only"):
            if kind in "WwVvu":
                found.append(f"{path.name}: weak symbol {name}")
            elif kind.isupper() and not name.endswith("KernelsE"):
                found.append(f"{path.name}: exports {name}")
    for path in modules:
        for _, name in symbols(path, "--dynamic", "--defined-only"):
            if not name.startswith("PyInit_"):
                found.append(f"{path.name}: exports {name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the symbols of a build.")
    parser.add_argument("build", type=Path, help="a CMake build folder")
    found = complaints(parser.parse_args().build)
    print("\n".join(found) or "symbols: good")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
