"""Try the wheel on every supported version of Python that this machine has, and say which ones these are.

For each of them: install the wheel with the tested versions of its requirements into a fresh environment, import every
module, check every shipped recipe, and run a tiny model through every stage. The version that runs this script is left
out, since the tests run on it. Run from the root of a checkout: `python tests/package/other_versions.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINOR_VERSIONS = (11, 12, 13)
SMOKE = """
import importlib, pkgutil, sys
import nanochat
from nanochat.cli.run import main
from nanochat.recipe.shipped import shipped_recipes
names = [m.name for m in pkgutil.walk_packages(nanochat.__path__, "nanochat.")]
needs_more = ("nanochat.export.files.", "nanochat.export.programs.")  # the extra `export`
names = [n for n in names if not n.endswith("__main__") and not n.startswith(needs_more)]
for name in names:
    importlib.import_module(name)
assert main(["check", *shipped_recipes()]) == 0
assert main(["dry_run", "--set", "tracking.kind=none"]) == 0
print(f"imported {len(names)} modules, checked {len(shipped_recipes())} recipes, ran dry_run")
"""


def find_python(version: str) -> str | None:
    """Return a Python of this version that works: from the PATH, or else one that `uv` has or can download."""
    candidates = [found] if (found := shutil.which(f"python{version}")) else []
    for program in candidates:  # a shim of pyenv exists even if its version is not installed
        if subprocess.run([program, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return program
    if uv := shutil.which("uv"):
        subprocess.run([uv, "python", "install", version], capture_output=True, check=False)
        answer = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None
    return None


def try_version(version: str, wheel: Path, folder: Path) -> tuple[bool, str]:
    """Return whether all works on a version, and a line about it."""
    python = find_python(version)
    if python is None:
        return True, f"Python {version}: not here"
    environment = folder / version
    here = environment / "bin" / "python"
    home = {**os.environ, "HOME": str(folder), "NANOCHAT_BASE_DIR": str(environment / "base")}
    home.pop("PYTHONPATH", None)
    for command in (
        [python, "-m", "venv", str(environment)],
        [str(here), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        [str(here), "-W", "error::SyntaxWarning", "-c", SMOKE],
    ):
        done = subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return (
                False,
                f"Python {version}: FAILED ({' '.join(command[:4])})\n{done.stdout[-2000:]}{done.stderr[-4000:]}",
            )
    return True, f"Python {version}: {done.stdout.splitlines()[-1]}"


def main() -> int:
    """Try all versions, print a line about each, and return 1 if one of them fails."""
    own = f"3.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(prefix="nanochat-versions-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        others = [f"3.{minor}" for minor in MINOR_VERSIONS if f"3.{minor}" != own]
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(lambda version: try_version(version, wheel, folder), others))
    print(f"Python {own}: runs all tests")
    for _, line in results:
        print(line)
    return 0 if all(works for works, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
