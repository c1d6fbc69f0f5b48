"""A recipe on a small text file, a child process that only pretends to train, and a display that records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nanochat
from nanochat.recipe.load import LoadedRecipe, load_recipe
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.prepare import Prepared, prepare
from nanochat.runner.preflight.run_context import RunRequest
from nanochat.runner.process import child
from nanochat.runner.store import provenance
from nanochat.runner.store.run_catalog import Run
from nanochat.storage.layout import StageFolder

RECIPE = """\
nanochat: 1
name: tiny
sources:
  text: {path: text.txt, max_document_chars: 40, validation: {hash_frac: 0.5}}
  chats: {path: chats.jsonl}
  words: {builtin: spelling}
tokenizer: {source: text, vocab_size: 300}
model: {n_layer: 1, n_embd: 32, n_head: 1, sequence_len: 32, window_pattern: L}
pretrain:
  data: {text: {}}
  horizon: {steps: 4}
  tokens_per_step: 64
base_eval:
  suites:
    bpb: {task: bpb, tokens: 64}
sft:
  data:
    chat: {task: conversations, source: chats}
  horizon: {steps: 4}
chat_eval:
  suites:
    spelling: {task: simple_spelling, source: words, max_problems: 4}
tracking: {kind: none}
"""

# The process that pretends to be a stage: imported, so that Python keeps it compiled, and without `site`.
_CHILD = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_child"
CHILD_COMMAND = (sys.executable, "-S", "-c", _CHILD)


class Bench:
    """A folder with a recipe, a base folder and the fake child."""

    def __init__(self, folder: Path, make_display: Callable[[], Any]) -> None:
        self.folder, self.make_display = folder, make_display
        self.base = folder / "base"
        self.recipe = folder / "tiny.yaml"
        folder.mkdir(exist_ok=True)
        self.recipe.write_text(RECIPE)
        (folder / "text.txt").write_text("".join(f"hello world {i}\n" for i in range(50)))
        (folder / "chats.jsonl").write_text('{"prompt": "hello", "completion": "world"}\n')
        self.child_command = CHILD_COMMAND
        self.display = self.make_display()

    def control(self, **how: str) -> None:
        """Set how stages behave: "well" unless given here, see `fake_child.py`.

        With `only`, it holds for stages whose specification contains that text. With `varies`, results depend on the
        model.
        """
        self.base.mkdir(exist_ok=True)
        (self.base / "control.json").write_text(json.dumps(how))

    def request(self, **changes: Any) -> RunRequest:
        return RunRequest(
            base=self.base,
            folder=self.folder,
            command="nanochat-run tiny.yaml",
            child_command=self.child_command,
            **changes,
        )

    def run(self, *overrides: str, **changes: Any) -> Run:
        self.display = self.make_display()
        return run_recipe(self.load(*overrides), self.request(**changes), self.display)

    def load(self, *overrides: str) -> LoadedRecipe:
        return load_recipe(self.recipe, overrides)

    def prepare(self, *overrides: str) -> Prepared:
        return prepare(self.load(*overrides), self.base)

    def stage_folder(self, stage: str) -> StageFolder:
        """Return the only folder of a stage."""
        (path,) = (self.base / "stages" / stage).iterdir()
        return StageFolder(path)

    def interrupt(self, times: int = 1) -> None:
        """Send SIGINT to this process at the next progress of a stage, `times` times in all."""
        remaining = iter(range(times))

        def send(title: str) -> None:
            if next(remaining, None) is not None:
                os.kill(os.getpid(), signal.SIGINT)

        self.display.on_progress = send

    def calls(self) -> list[str]:
        """Return the stages that ran since the last call."""
        path = self.base / "calls.txt"
        calls = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls


@pytest.fixture(scope="session", autouse=True)
def _quick_questions() -> Iterator[None]:
    """Every run records the commit and the versions of this code, which no test changes, so they are read once.

    It also looks through all processes of the machine for those that a stage started. A pretended stage starts none.
    """
    git, version = cache(provenance._git), cache(importlib.metadata.version)
    package = Path(nanochat.__file__).parent

    def git_once(folder: Path, *arguments: str) -> str | None:
        return (git if folder == package else git.__wrapped__)(folder, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_git", git_once)
        patch.setattr(importlib.metadata, "version", version)
        patch.setattr(child, "_peak_memory", child._own_peak)
        patch.setattr(child, "_POLL_SECONDS", 0.005)  # it ends long before the usual time
        yield


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory, make_display: Callable[[], Any]) -> Iterator[Bench]:
    """A bench for tests that only read what one set of runs left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanochat.runner.report.run_report.draw_curves", lambda streams, folder: [])
        patch.setattr("nanochat.runner.report.run_report.draw_scores", lambda suites, folder: [])
        yield Bench(tmp_path_factory.mktemp("shared"), make_display)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_display: Callable[[], Any]) -> Bench:
    """A bench that draws no plots and writes no HTML: matplotlib alone would take most of the time."""
    _draw_nothing(monkeypatch)
    return Bench(tmp_path, make_display)


def _draw_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("nanochat.runner.report.run_report.draw_curves", lambda streams, folder: [])
    patch.setattr("nanochat.runner.report.run_report.draw_scores", lambda suites, folder: [])
    patch.setattr("nanochat.runner.report.run_report.render_html", lambda text, pictures, attached: "")


class FinishedBench(Bench):
    """A bench in which the recipe has run once: `first` is that run, and `display` what it showed.

    The run is computed once for all tests of a process. Each gets a copy in the same folder, because paths are part of
    what a run keeps.
    """

    first: Run

    def keep(self, copy: Path) -> None:
        """Run the recipe and copy all that it left."""
        self.first = self.run()
        self._copy, self._lines, self._progress = copy, self.display.lines, self.display.progress
        shutil.copytree(self.folder, copy)

    def restore(self) -> None:
        """Make the folder and the display what they were after the first run."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._copy, self.folder)
        self.display = self.make_display()
        self.display.lines, self.display.progress = list(self._lines), list(self._progress)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, make_display: Callable[[], Any]) -> FinishedBench:
    bench = FinishedBench(tmp_path_factory.mktemp("finished"), make_display)
    with pytest.MonkeyPatch.context() as patch:
        _draw_nothing(patch)
        bench.keep(tmp_path_factory.mktemp("copy") / "finished")
    return bench


@pytest.fixture
def finished(_finished: FinishedBench, monkeypatch: pytest.MonkeyPatch) -> FinishedBench:
    """A bench in which the recipe has run once. It draws nothing either."""
    _draw_nothing(monkeypatch)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(_finished.base))
    _finished.restore()
    return _finished


DOCUMENT = Path(__file__).resolve().parents[2] / "schemas" / "json_output.md"


def _documented(command: str) -> set[str]:
    """Return the paths that the document lists for a command."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {command}\n")[1].split("\n## ")[0]
    own = set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))
    if command == "report":
        return own | {path.removeprefix("runs[].") for path in _documented("ls") if path.startswith("runs[].")}
    return own


def _paths(value: object, known: set[str], path: str = "") -> set[str]:
    """Return the paths in a document.

    Keys are names where `known` has a `.*`. What is marked `{}` there is described elsewhere, and so are the cells of a
    comparison.
    """
    if f"{path}{{}}" in known:
        return {f"{path}{{}}"}
    found = {path} if path and (not path.endswith("[]") or path in known) else set()
    match value:
        case dict():
            for key, inner in value.items():
                name = "*" if f"{path}.*" in known else key
                found |= _paths(inner, known, f"{path}.{name}".lstrip("."))
        case list() if path != "results[].cells":
            for inner in value:
                found |= _paths(inner, known, f"{path}[]")
    return found


@pytest.fixture
def check_keys() -> Callable[[str, object], set[str]]:
    """A function that requires all keys of a command's JSON to be documented, and returns those that it lacks."""

    def check(command: str, shown: object) -> set[str]:
        known = _documented(command)
        paths = _paths(shown, known)
        assert paths <= known, f"not in {DOCUMENT.name}: {sorted(paths - known)}"
        return known - paths

    return check
