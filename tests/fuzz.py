"""`make fuzz`: the tests that draw numbers, again and again with new seeds, for so many minutes."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
import time
from pathlib import Path

import pytest

DRAWING = "(hypothesis or drawn) and not slow and not gpu and not network"
SEED, UNTIL = "MRT5_TEST_SEED", "MRT5_TEST_UNTIL"
COLLECTING = 30.0
"""Seconds a round takes before its first test; with less time left it is not begun."""


class Tally:
    """Counts over all rounds; a pytest plugin of the process that gathers the reports."""

    def __init__(self) -> None:
        self.tests = self.examples = 0
        self.failures: list[tuple[int, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped:
            self.tests += 1
            self.examples += dict(report.user_properties).get("examples", 0)
        failure = int(os.environ[SEED]), report.nodeid
        if report.failed and failure not in self.failures:
            self.failures.append(failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", help="test files; all of them if none is named")
    parser.add_argument("--seed", type=int, help="of the first round; later rounds count up from it")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", default="auto")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    began = time.time()
    end = began + 60 * options.minutes
    os.environ[UNTIL] = str(end)
    words = ["-m", DRAWING, "-n", options.processes, "--maxprocesses", "8", "--dist", "loadfile"]
    words += ["--no-loadscope-reorder", "-q", "-rfE", *options.paths]
    tally, seed, code = Tally(), first, pytest.ExitCode.OK
    while seed == first or time.time() + COLLECTING < end:
        os.environ[SEED] = str(seed)
        print(f"fuzz: round {seed - first + 1}, seed {seed}", flush=True)
        code = pytest.ExitCode(pytest.main(words, plugins=[tally]))
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            break
        seed += 1
    seeds = f"seed {first}" if seed <= first + 1 else f"seeds {first} to {seed - 1}"
    print(
        f"fuzz: {seeds}, {(time.time() - began) / 60:.1f} minutes: {tally.tests:,} tests, "
        f"{tally.examples:,} examples drawn, {len(tally.failures)} failure{'s' * (len(tally.failures) != 1)}"
    )
    for failed_seed, test in tally.failures:
        python = Path(sys.executable)
        shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        print(f"to repeat: {SEED}={failed_seed} {shown} -m pytest {shlex.quote(test)}")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    if not tally.tests:
        print("no test was run: collecting them took all the time; give more minutes")
        return 1
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
