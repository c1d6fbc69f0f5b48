"""A recipe on a small text file, a child process that only pretends to train, and a display that records."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.recipe.load import LoadedRecipe, load_recipe
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.prepare import Prepared, prepare
from nanochat.runner.preflight.run_context import RunRequest
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

FAKE_CHILD = '''\
"""Pretends to be a stage. `control.json` in the base folder says how each stage behaves, by stage name."""
import hashlib, json, os, pathlib, signal, sys, time

job = json.loads(pathlib.Path(sys.argv[1]).read_text())
folder, stage = pathlib.Path(job["stage_dir"]), job["spec"]["stage"]
control = folder.parents[2] / "control.json"
settings = json.loads(control.read_text()) if control.exists() else {}
how = settings.get(stage, "well") if settings.get("only", "") in json.dumps(job["spec"]) else "well"
with open(folder.parents[2] / "calls.txt", "a") as calls:
    calls.write(stage + "\\n")
print("device: pretend")
(folder / "sources.json").write_text("[]")

def exit_with(text, code):
    (folder / "error.txt").write_text(text + "\\n")
    os._exit(code)

if how == "fail":
    exit_with("the loss was not finite three times in a row", 4)
if how == "differs":
    exit_with("the exported model answers otherwise", 5)
if how == "bug":
    exit_with("Traceback\\nZeroDivisionError: division by zero", 1)
if how == "out of memory":
    (folder / "progress.json").write_text(json.dumps({"fraction": 0.5, "text": "", "peak_memory_bytes": 3 * 2**30}))
    exit_with("pretrain ran out of memory ([malloc] Unable to allocate 9 bytes.)", 40)
if how.startswith("holds"):  # for example "holds 2, then SIGKILL": more rows than that end it so
    execution, (_, held, _, ending, *then) = job["execution"], how.replace(",", "").split()
    batch = (execution["micro_batch_size"] or 8) >> execution["batch_halvings"]
    rows = {"micro_batch_size": batch} if stage in ("pretrain", "sft") else {}
    (folder / "progress.json").write_text(json.dumps({"fraction": 0.5, "text": "", **rows}))
    if batch > int(held):
        if ending in ("SIGKILL", "SIGABRT"):
            os.kill(os.getpid(), getattr(signal, ending))
        if ending == "Metal":
            print("[METAL] Command buffer execution failed: Insufficient Memory (00000008:...)", flush=True)
            os.abort()
        exit_with(stage + " ran out of memory ([malloc] Unable to allocate 9 bytes.)", 40)
    how = then[-1] if then else "well"
if how == "notes":
    print("note: step_00000008 is damaged\\nnot a note\\nnote: half", end="", flush=True)
if how == "edits the data":
    with open(job["spec"]["source"]["path"][0], "a") as text:
        text.write("one more line\\n")
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "is worse":  # than the stages that train well, until it is asked to stop
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write("".join(json.dumps({"step": n, "metrics": {"train/loss": 99.0}}) + "\\n" for n in (1, 2)))
if how in ("wait", "is worse"):
    def stop(number, frame):
        (folder / "checkpoints" / "step_00000002").mkdir(parents=True, exist_ok=True)
        exit_with("stopped at step 2; suite a is kept; the same command continues", 75)
    signal.signal(signal.SIGTERM, stop)
    (folder / "progress.json").write_text(json.dumps({"fraction": 0.5, "text": "step 2/4"}))
    time.sleep(60)
if how in ("fails on signal", "ignores signals"):
    fail = lambda number, frame: exit_with("pretrain: no space left", 4)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "ignores signals" else fail)
    (folder / "progress.json").write_text(json.dumps({"fraction": 0.5, "text": "step 2/4"}))
    time.sleep(60)
with open(folder / "metrics.jsonl", "a") as metrics:
    for step in range(1, 5):
        metrics.write(json.dumps({"step": step, "metrics": {"train/loss": 8.0 / step, "train/lr": 0.1}}) + "\\n")
out = folder / "out"
out.mkdir(exist_ok=True)
if stage in ("pretrain", "sft"):
    (folder / "checkpoints" / "step_00000004").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "step_00000004" / "weights.bin").write_bytes(bytes(1000))
    (out / "samples.md").write_text(str(job["execution"]["prompts"]))
inputs = json.dumps([job["spec"], sorted(job["upstream"])], sort_keys=True)
(out / "weights.bin").write_bytes(hashlib.sha256(inputs.encode()).digest())
if stage in ("pretrain", "sft"):
    (out / "model").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (out / "model" / name).write_text(inputs)
(out / "timings.json").write_text(json.dumps({"seconds": time.time()}))
metrics = {"tokenizer": {}, "base_eval": {"bpb": 1.5}, "pretrain": {"val/bpb": 1.5}, "sft": {"train/loss": 2.0},
           "chat_eval": {"spelling": 0.75, "spelling.stderr": 0.125, "spelling.centred": 0.5, "spelling.n": 12.0},
           "export": {}}
if job["execution"]["validate_tokens"] == 64:
    metrics["pretrain"]["val/bpb"] = 1.25
if "varies" in settings and stage == "base_eval":
    weights = pathlib.Path(job["upstream"]["pretrain"], "weights.bin").read_bytes()
    metrics["base_eval"]["bpb"] = 1 + int.from_bytes(weights[:6], 'big') / 2**48
(out / "result.json").write_text(json.dumps({"metrics": metrics[stage]}))
'''


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
        self.child = folder / "fake_child.py"
        self.child.write_text(FAKE_CHILD)
        self.display = self.make_display()

    def control(self, **how: str) -> None:
        """Set how stages behave: "well" unless given here, see FAKE_CHILD.

        With `only`, it holds for stages whose specification contains that text. With `varies`, results depend on the
        model.
        """
        self.base.mkdir(exist_ok=True)
        (self.base / "control.json").write_text(json.dumps(how))

    def request(self, *overrides: str, **changes: Any) -> RunRequest:
        return RunRequest(
            recipe=self.recipe,
            base=self.base,
            folder=self.folder,
            command="nanochat-run tiny.yaml",
            overrides=overrides,
            child_command=(sys.executable, "-S", str(self.child)),
            **changes,
        )

    def run(self, *overrides: str, **changes: Any) -> Run:
        self.display = self.make_display()
        return run_recipe(self.request(*overrides, **changes), self.display)

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


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory, make_display: Callable[[], Any]) -> Iterator[Bench]:
    """A bench for tests that only read what one set of runs left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanochat.runner.report.report.draw_curves", lambda streams, folder: [])
        patch.setattr("nanochat.runner.report.report.draw_scores", lambda suites, folder: [])
        yield Bench(tmp_path_factory.mktemp("shared"), make_display)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_display: Callable[[], Any]) -> Bench:
    """A bench that draws no plots, since matplotlib would take most of the time."""
    monkeypatch.setattr("nanochat.runner.report.report.draw_curves", lambda streams, folder: [])
    monkeypatch.setattr("nanochat.runner.report.report.draw_scores", lambda suites, folder: [])
    return Bench(tmp_path, make_display)


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
