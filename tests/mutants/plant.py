"""Plant the faults of `faults.toml` one at a time in a copy of the package and print which test notices each.

Run: python tests/mutants/plant.py [--only TEXT] [--list]. The tests import the copy, which lies in a temporary folder;
the working tree is never touched. A fault's own tests run first, and the rest of the fast suite only if they pass. Exit
code 1 if a fault survives, 2 if the suite fails without one.
"""

from __future__ import annotations

import argparse
import ast
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
_TESTS_FAILED = 1  # pytest's exit codes; anything above means that tests could not run


@dataclass(frozen=True)
class Fault:
    """A change of one function: what `pattern` matches, exactly once, in its source becomes `new`."""

    name: str
    file: str
    """Path under nanochat/."""
    function: str
    """Qualified name in the file, such as `TrainStep.run`."""
    pattern: str
    new: str
    tests: tuple[str, ...]
    """Files or node ids under tests/ that should notice."""

    def planted(self, source: str) -> str:
        """Return the source with the fault in it."""
        lines = source.splitlines(keepends=True)
        node = _find_function(ast.parse(source), self.function.split("."))
        assert node is not None and node.end_lineno is not None, f"{self.name}: {self.file} has no {self.function}"
        first, last = node.lineno - 1, node.end_lineno
        changed, count = re.subn(self.pattern, self.new, "".join(lines[first:last]))
        assert count == 1, f"{self.name}: {self.pattern!r} matches {count} times in {self.file}:{self.function}"
        return "".join([*lines[:first], changed, *lines[last:]])


def _find_function(node: ast.AST, names: Sequence[str]) -> ast.FunctionDef | ast.ClassDef | None:
    """Return the definition with this qualified name below `node`."""
    for child in ast.walk(node):
        if child is not node and isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == names[0]:
            return child if len(names) == 1 else _find_function(child, names[1:])
    return None


@dataclass(frozen=True)
class Outcome:
    """The first test that failed, or None, and how long it took."""

    failed: str | None
    seconds: float


def read_faults(table: Path = TABLE) -> list[Fault]:
    """Return the faults of the table, in its order."""
    rows = tomllib.loads(table.read_text())["fault"]
    return [Fault(**{**row, "tests": tuple(row["tests"])}) for row in rows]


class Copy:
    """A copy of package and tests, with at most one fault planted in it at a time."""

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

    def run_with(self, fault: Fault, *, broken: Sequence[str] = ()) -> Outcome:
        """Return the first test, `broken` ones left out, that fails with the fault planted; then restore the copy."""
        path = self.folder / "nanochat" / fault.file
        source, times = path.read_text(), path.stat()
        path.write_text(fault.planted(source))
        # Python compares bytecode with its source by whole seconds and size: no two versions may agree in both.
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
            return None  # a suite that hangs noticed nothing
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
    faults = [fault for fault in read_faults() if options.only is None or options.only in fault.name]
    if options.list:
        for fault in faults:
            print(f"{fault.name:<64} {fault.file:<24} {' '.join(fault.tests)}")
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
        outcome = copy.run_with(fault, broken=broken)
        while outcome.failed is not None and not _passes_without(copy, fault, outcome.failed):
            broken.append(outcome.failed)
            outcome = copy.run_with(fault, broken=broken)
        survived += outcome.failed is None
        noticed = outcome.failed or "SURVIVED"
        print(f"{fault.name:<64} {fault.file:<24} {noticed} ({outcome.seconds:.0f} s)", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(faults) - survived} of {len(faults)} faults noticed, {survived} survived, {seconds / 60:.1f} min")
    for test in broken:
        print(f"{test} fails without any fault")
    return 1 if survived else 2 if broken else 0


def _passes_without(copy: Copy, fault: Fault, test: str) -> bool:
    """Return whether a test passes without a fault. A fault's own tests were run before."""
    return test.startswith(fault.tests) or copy.first_failure([test]) is None


if __name__ == "__main__":
    sys.exit(main())
