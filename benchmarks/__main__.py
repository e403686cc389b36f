"""`python -m benchmarks QUESTION`."""

import argparse

from . import compiling, report, sampling


def main() -> None:
    """Run one benchmark, or write the tables from a record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    questions = parser.add_subparsers(dest="question", required=True)
    for module in (sampling, compiling, report):
        name = module.__name__.rpartition(".")[2]
        module.add_arguments(questions.add_parser(name, help=(module.__doc__ or "").partition("\n")[0]))
    options = parser.parse_args()
    {"sampling": sampling.run, "compiling": compiling.run, "report": report.run}[options.question](options)


if __name__ == "__main__":
    main()
