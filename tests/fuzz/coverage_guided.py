"""One target under atheris, in a process of its own: `python -m tests.fuzz.coverage_guided NAME ARGUMENT…`.

The arguments are libFuzzer's. atheris stands in requirements-fuzz.txt and is installed by `make fuzz`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["xencolo", "xencolod"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    # libFuzzer starts itself again to merge, by a shell.
    sys.argv[0] = f"{sys.executable} -m tests.fuzz.coverage_guided {name}"
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
