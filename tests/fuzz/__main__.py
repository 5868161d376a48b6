"""Fuzz all targets for a bounded time, and say what came of it: `make fuzz`, `FUZZ_SECONDS=600 make fuzz`.

What covers new code is kept in build/fuzz for the next run; `make fuzz FUZZ_KEEP=1` then takes the
smallest inputs that cover the same into tests/fuzz/corpus, for the tests.
"""

# ruff: noqa: T201 - it is a program for people

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import CORPUS, TARGETS

BUILD = Path(__file__).parent.parent.parent / "build" / "fuzz"
#: Bytes of the largest input; seconds after which one input counts as a hang; MiB of memory.
LIMITS = ("-max_len=8192", "-timeout=10", "-rss_limit_mb=1024")
KEPT_MAX = 48


class Run(NamedTuple):
    """What came of one target."""

    inputs: int
    coverage: int
    failed: bool
    output: str


def fuzz(name: str, seconds: int) -> Run:
    """Fuzz a target for so many seconds."""
    found = BUILD / name
    found.mkdir(parents=True, exist_ok=True)
    limits = (f"-max_total_time={seconds}", f"-artifact_prefix={BUILD}/{name}-", *LIMITS)
    done = _run(name, *limits, "-print_final_stats=1", str(found), str(CORPUS / name))
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return Run(
        int(executed[1]) if executed else 0,
        int(covered[-1]) if covered else 0,
        done.returncode != 0,
        done.stderr,
    )


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.fuzz.coverage_guided", name, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)


def keep(name: str) -> int:
    """Take into the corpus what covers more than it does; return how many inputs it has then."""
    merged = BUILD / f"{name}.merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    _run(name, "-merge=1", *LIMITS, str(merged), str(CORPUS / name), str(BUILD / name))
    kept = sorted(CORPUS.joinpath(name).glob("seed-*"))
    inputs = sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name))
    for path in (CORPUS / name).iterdir():
        if path not in kept:
            path.unlink()
    known = {path.read_bytes() for path in kept}
    for path in inputs[: KEPT_MAX - len(kept)]:
        if path.read_bytes() not in known:
            shutil.copyfile(path, CORPUS / name / path.name[:16])
    return len(list((CORPUS / name).iterdir()))


def main() -> int:
    """Return 1 if a target failed."""
    seconds = max(1, int(os.environ.get("FUZZ_SECONDS", "60")) // len(TARGETS))
    failed = 0
    print(f"{'target':<16}{'inputs':>10}{'coverage':>10}  result")
    for name in TARGETS:
        run = fuzz(name, seconds)
        failed += run.failed
        result = "FAILED" if run.failed else "ok"
        if not run.failed and os.environ.get("FUZZ_KEEP"):
            result += f", {keep(name)} inputs kept"
        print(f"{name:<16}{run.inputs:>10}{run.coverage:>10}  {result}", flush=True)
        if run.failed:
            print("\n".join(run.output.splitlines()[-40:]))
    print(f"{len(TARGETS)} targets, {seconds} s each, {failed} failed")
    if failed:
        print(
            f"the input is in {BUILD}: put it into tests/fuzz/corpus/<target>, and mend the reader"
        )
    return bool(failed)


sys.exit(main())
