"""The wheel: what it contains, and that it works by itself in a folder that is not a checkout."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {path.name for path in (ROOT / "recipes").glob("*.yaml")} - {"own_docs.yaml"}
OWN_QUESTIONS = {f"own_questions/{path.name}" for path in (ROOT / "recipes" / "own_questions").iterdir()}


def build(source: Path, kind: str, folder: Path) -> Path:
    folder.mkdir()
    with contextlib.chdir(source):
        name = {"wheel": build_wheel, "sdist": build_sdist}[kind](str(folder))
    return folder / name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("dist") / "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder with the unpacked wheel, which is what `pip install` makes of a wheel of Python files."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    return folder


def run_installed(installed: Path, folder: Path, *commands: list[str]) -> str:
    """Call commands of the installed package in one process, in a folder and with an empty home. Return the output."""
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NANOCHAT_")}
    environment = {**kept, "PYTHONPATH": str(installed), "HOME": str(home)}
    code = f"from nanochat.cli.run import main\nfor command in {commands!r}: assert main(command) == 0, command"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_the_package_the_recipes_and_the_schema_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith("nanochat_run-")}
    assert {Path(name).name for name in metadata} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
    code = {
        str(path.relative_to(ROOT)) for path in (ROOT / "nanochat").rglob("*.py*") if path.suffix in (".py", ".pyi")
    }
    read_at_run_time = {
        "export/files/chat_template.jinja",
        *(f"serve/page/{name}" for name in ("index.html", "page.css", "page.js")),
    }
    data = {f"nanochat/{name}" for name in (*read_at_run_time, "py.typed", "schemas/recipe.schema.json")}
    assert names - metadata == code | data | {f"nanochat/recipes/{name}" for name in SHIPPED | OWN_QUESTIONS}


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("nanochat_run-*")
    assert build(unpacked, "wheel", tmp_path / "wheel").read_bytes() == wheel.read_bytes()


def test_an_installed_recipe_is_found_by_its_name_and_copied_with_a_schema_that_exists(installed, tmp_path):
    lines = run_installed(
        installed,
        tmp_path,
        ["recipes"],
        ["plan", "quickstart"],
        ["new", "current", "mine.yaml"],
        ["check", "mine.yaml", "d4"],
        ["--version"],
    )
    assert "quickstart\n  purpose    train a chat model" in lines and "own_docs" not in lines
    assert "1,835,144 parameters" in lines
    assert lines.endswith("mine.yaml: ok\nd4: ok\nnanochat 0.1.0, commit unknown\n")
    first, *_ = (tmp_path / "mine.yaml").read_text().splitlines()
    _, _, address = first.partition("$schema=file://")
    assert Path(address) == installed / "nanochat" / "schemas" / "recipe.schema.json" and Path(address).is_file()


def test_python_m_nanochat_is_the_command(installed, tmp_path):
    command = [sys.executable, "-m", "nanochat", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True)
    assert done.stdout.startswith(b"usage: nanochat-run RECIPE")


@pytest.mark.slow
def test_every_stage_runs_by_the_name_of_an_installed_recipe(installed, tmp_path):
    run_installed(installed, tmp_path, ["dry_run"])
    assert (tmp_path / "home" / ".cache" / "nanochat" / "runs" / "dry_run").is_dir()
    assert not list((installed / "nanochat" / "recipes").glob("*.lock"))
