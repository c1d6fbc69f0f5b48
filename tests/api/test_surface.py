"""What `import nanochat` offers. Whoever changes it on purpose changes this page too."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import nanochat
from nanochat.api import recipes

FUNCTIONS = {
    "load_recipe": "(recipe, overrides=())",
    "plan": "(recipe, overrides=(), *, base_dir=None)",
    "run": "(recipe, overrides=(), *, only=None, first=None, last=None, force=(), on_progress=None, on_line=print,"
    " base_dir=None)",
    "find_run": "(run, *, base_dir=None)",
    "load": "(model, *, device='auto', base_dir=None)",
}
CLASSES = {
    "Plan": {"recipe", "stages", "problems", "text"},
    "PlannedStage": {
        "name", "action", "reason", "tokens", "flops", "seconds", "peak_memory_bytes", "disk_bytes",
    },
    "Progress": {"stage", "fraction", "text"},
    "Run": {"name", "reference", "folder", "status", "metrics", "series", "report_html"},
    "Series": {"steps", "values"},
    "Model": {"tokenizer", "context", "chat", "complete", "logits", "score"},
    "Score": {"logprob", "tokens", "is_greedy"},
}  # fmt: skip
_SAMPLING = "temperature=0.8, top_k=50, top_p=1.0, max_tokens=256, seed=42, on_text=None"
METHODS = {
    "chat": f"(self, message, *, system=None, {_SAMPLING})",
    "complete": f"(self, text, *, {_SAMPLING})",
    "logits": "(self, text)",
    "score": "(self, text, *, given='')",
}


def signature(function: object) -> str:
    """Return the parameters and defaults without types."""
    plain = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in plain.parameters.values()]
    text = str(plain.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text.replace("<built-in function print>", "print")


def members(of: type) -> set[str]:
    if dataclasses.is_dataclass(of):
        return {field.name for field in dataclasses.fields(of)}
    inherited = dir(tuple)
    return {name for name in vars(of) if not name.startswith("_") and name not in inherited}


def test_names_are_frozen():
    assert set(nanochat.__all__) == {"__version__", *FUNCTIONS, *CLASSES}
    assert set(nanochat.__all__) <= set(dir(nanochat))


def test_functions_are_frozen():
    found = {name: signature(recipes.plan if name == "plan" else getattr(nanochat, name)) for name in FUNCTIONS}
    assert found == FUNCTIONS
    assert {name: signature(getattr(nanochat.Model, name)) for name in METHODS} == METHODS


def test_classes_are_frozen():
    assert {name: members(getattr(nanochat, name)) for name in CLASSES} == CLASSES


def test_everything_public_is_documented():
    functions = [recipes.plan if name == "plan" else getattr(nanochat, name) for name in FUNCTIONS]
    classes = [getattr(nanochat, name) for name in CLASSES]
    assert all(inspect.getdoc(item) for item in (*functions, *classes, *map(nanochat.Model.__dict__.get, METHODS)))


def test_the_stub_declares_every_public_name():
    tree = ast.parse((Path(nanochat.__file__).parent / "__init__.pyi").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(nanochat.__all__)


def test_plan_is_a_function_before_and_after_its_package_is_imported():
    code = (
        "import nanochat\n"
        "assert nanochat.plan('quickstart').recipe == 'quickstart'\n"
        "import nanochat.plan.compile\n"
        "assert nanochat.plan('d4').recipe == 'd4'\n"
        "assert callable(nanochat.plan.compile.compile_plan)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_nanochat_imports_nothing_else():
    code = (
        "import sys, importlib\nbefore = set(sys.modules)\nimport nanochat\n"
        "sys.exit(', '.join(sorted(set(sys.modules) - before - {'nanochat'})) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
