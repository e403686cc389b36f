"""`python -m benchmarks QUESTION`."""

import argparse

from . import compiling, families, gpu, likelihoods, limits, report, sampling, skew, training

MODULES = (sampling, families, limits, compiling, training, likelihoods, skew, gpu, report)


def main() -> None:
    """Run one benchmark, or write the tables from a record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    questions = parser.add_subparsers(dest="question", required=True)
    for module in MODULES:
        name = module.__name__.rpartition(".")[2]
        module.add_arguments(questions.add_parser(name, help=(module.__doc__ or "").partition("\n")[0]))
    options = parser.parse_args()
    next(m for m in MODULES if m.__name__.endswith("." + options.question)).run(options)


if __name__ == "__main__":
    main()
