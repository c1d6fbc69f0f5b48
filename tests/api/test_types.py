"""A user's script that is checked with `mypy --strict` against the installed package."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '''\
"""Train a model with two seeds, and keep the better one."""

from pathlib import Path

import nanochat


def show(progress: nanochat.Progress) -> None:
    print(f"{progress.stage} {progress.fraction:.0%} {progress.text}")


def train(seed: int) -> nanochat.Run:
    recipe = nanochat.load_recipe("quickstart", {"seed": seed})
    plan = nanochat.plan(recipe)
    memory = max(stage.peak_memory_bytes or 0 for stage in plan.stages)
    print(plan.recipe, [stage.action for stage in plan.stages], memory)
    return nanochat.run(recipe, on_progress=show, on_line=None)


runs = [train(seed) for seed in (1, 2)]
best: nanochat.Run = min(runs, key=lambda run: run.metrics["base_eval.bpb"])
steps, losses = best.series["pretrain.train/loss"]
print(steps[-1] + 1, min(losses) * 2.0)
Path("best.html").write_text(best.report_html)
model = nanochat.load(best.reference, device="cpu")
answer: str = model.chat([{"role": "user", "content": "Spell the word: garden"}], temperature=0)
score: nanochat.Score = model.score("sys", given="import ")
print(answer.upper(), model.complete("import "), score.logprob / score.tokens, model.logits("a").shape[0] + 1)
print(nanochat.find_run("quickstart").folder / "report.md", nanochat.__version__.split("."))
'''
WRONG = "import nanochat\nnanochat.run(3)\nnanochat.plan('quickstart').stage\nnanochat.load('x').chat(on_text=1)\n"


@pytest.mark.slow
def test_mypy_finds_no_error_in_a_script_and_every_error_in_a_wrong_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wheel = build_wheel(str(tmp_path))
    venv.create(tmp_path / "env", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    with zipfile.ZipFile(tmp_path / wheel) as content:
        content.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        str(tmp_path / "env" / "bin" / "python"),
    ]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    good, bad = (
        subprocess.run([*command, file], cwd=tmp_path, capture_output=True, text=True)
        for file in ("script.py", "wrong.py")
    )
    assert (good.stdout, good.returncode) == ("Success: no issues found in 1 source file\n", 0)
    assert [line.split(":")[1] for line in bad.stdout.splitlines()[:-1]] == ["2", "3", "4", "4"]
