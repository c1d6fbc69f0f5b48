"""Plants the faults of `faults.toml` one at a time in a copy of the package and prints which test notices each.

Run: python tests/mutants/plant.py [--only TEXT] [--list]. The copy lives in a temporary folder and is what the tests
import; the working tree is never touched. A fault's own tests run first and the rest of the fast suite only where they
pass. Exit code 1 if any fault survives, 2 if the suite fails without one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("faults.toml")
COPIED = ("nanochat", "tests", "recipes", "schemas", "pyproject.toml")
TIMEOUT_SECONDS = 900
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1  # pytest's exit codes; anything above says that tests could not run


@dataclass(frozen=True)
class Fault:
    """A wrong line of source: `old`, which occurs exactly once in nanochat/`file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Files or node ids under tests/ that should notice."""
    where: str = ""

    @property
    def title(self) -> str:
        """The name, and which of several places."""
        return f"{self.name}: {self.where}" if self.where else self.name

    def planted(self, source: str) -> str:
        """Return the source with the fault in it."""
        assert source.count(self.old) == 1, f"{self.title}: {source.count(self.old)} places in {self.file} read so"
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What the tests said: the first that failed, or None."""

    failed: str | None
    seconds: float


def read_faults(table: Path = TABLE) -> list[Fault]:
    """Return the faults of the table, in its order."""
    rows = tomllib.loads(table.read_text())["fault"]
    return [Fault(**{**row, "tests": tuple(row["tests"])}) for row in rows]


class Copy:
    """A copy of package and tests, sound but while a fault is planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        skipped = shutil.ignore_patterns("__pycache__", "mutants", "benchmarks")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=skipped)
            else:
                shutil.copy2(ROOT / name, folder / name)
        self._environment = {**os.environ, "PYTHONPATH": str(folder)}
        self._planted = 0
        command = [sys.executable, "-c", "import nanochat; print(nanochat.__file__)"]
        found = subprocess.run(
            command, cwd=folder, env=self._environment, capture_output=True, text=True, check=True
        ).stdout
        assert Path(found.strip()).is_relative_to(folder), f"tests would import {found}"

    def judge(self, fault: Fault, *, broken: Sequence[str] = ()) -> Outcome:
        """Return the first test but `broken` that fails with the fault planted; the copy is sound again afterwards."""
        path = self.folder / "nanochat" / fault.file
        source, times = path.read_text(), path.stat()
        path.write_text(fault.planted(source))
        # Bytecode is taken for current by whole seconds and size: no two versions may agree in both.
        self._planted += 1
        os.utime(path, (time.time(), int(times.st_mtime) + self._planted))
        began = time.monotonic()
        try:
            failed = self.first_failure(fault.tests) or self.first_failure((), without=(*fault.tests, *broken))
        finally:
            path.write_text(source)
            os.utime(path, (times.st_atime, times.st_mtime))
        return Outcome(failed, time.monotonic() - began)

    def first_failure(self, tests: Sequence[str], *, without: Sequence[str] = ()) -> str | None:
        """Run `tests` (all where empty) up to the first failure; return its id under tests/, None where all pass."""
        chosen = [f"tests/{test}" for test in tests] or ["tests"]
        chosen += [f"--deselect=tests/{test}" for test in without]
        command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", *chosen]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None  # a suite that hangs has noticed nothing
        found = _FAILED.search(done.stdout)
        assert done.returncode <= _TESTS_FAILED, f"pytest could not run:\n{done.stdout}{done.stderr}"
        assert (found is None) == (done.returncode == 0), done.stdout
        return found.group(1).removeprefix("tests/") if found else None


def main() -> int:
    """Plant every fault asked for, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", help="faults whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the faults and their tests, and plant none")
    options = parser.parse_args()
    faults = [fault for fault in read_faults() if options.only is None or options.only in fault.title]
    if options.list:
        for fault in faults:
            print(f"{fault.title:<64} {fault.file:<24} {' '.join(fault.tests)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return _plant_all(Copy(Path(folder)), faults)


def _plant_all(copy: Copy, faults: Sequence[Fault]) -> int:
    failed = copy.first_failure(sorted({test for fault in faults for test in fault.tests}))
    if failed is not None:
        print(f"{failed} fails without any fault")
        return 2
    began, survived, broken = time.monotonic(), 0, list[str]()
    for fault in faults:
        outcome = copy.judge(fault, broken=broken)
        while outcome.failed is not None and not _passes_without(copy, fault, outcome.failed):
            broken.append(outcome.failed)
            outcome = copy.judge(fault, broken=broken)
        survived += outcome.failed is None
        noticed = outcome.failed or "SURVIVED"
        print(f"{fault.title:<64} {fault.file:<24} {noticed} ({outcome.seconds:.0f} s)", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(faults) - survived} of {len(faults)} faults noticed, {survived} survived, {seconds / 60:.1f} min")
    for test in broken:
        print(f"{test} fails without any fault")
    return 1 if survived else 2 if broken else 0


def _passes_without(copy: Copy, fault: Fault, test: str) -> bool:
    """Return whether a test passes on the sound copy; a fault's own tests were seen to."""
    return test.startswith(fault.tests) or copy.first_failure([test]) is None


if __name__ == "__main__":
    sys.exit(main())
