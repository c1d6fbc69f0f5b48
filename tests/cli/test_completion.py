"""Shell completion: what may come next, and the scripts in real shells."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat.cli.arguments.commands import VERBS
from nanochat.cli.run import main
from nanochat.recipe.shipped import shipped_recipes
from nanochat.storage.layout import RunFolder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a run in the base folder, and a recipe that has sources of its own."""
    run = RunFolder(tmp_path / "base" / "runs" / "my_run" / "20260101-120000")
    run.path.mkdir(parents=True)
    run.state.touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\nsources: {letters: {path: a.txt}}\n")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(capsys, line: str, *, shell: str = "zsh") -> list[str]:
    """Return what the last word of a line may be, without explanations."""
    words = line.split(" ")
    assert main(["completion", shell, *words]) == 0
    return [row.partition("\t")[0] for row in capsys.readouterr().out.splitlines()]


def test_the_first_word_may_be_a_command_a_recipe_or_a_file(folder, capsys):
    assert {*VERBS, *shipped_recipes(), "--version", ":recipe-files"} <= set(ask(capsys, "nanochat-run "))
    assert ask(capsys, "nanochat-run ver") == ["verify", ":recipe-files"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nanochat-run plan quickstart --w", ["--why"]),
        ("nanochat-run plan quickstart --why sf", ["sft"]),
        ("nanochat-run quickstart --only base", ["base_eval"]),
        ("nanochat-run new quickstart_c", ["quickstart_current"]),
        ("nanochat-run new quickstart ", [":files"]),
        ("nanochat-run diff d4 d6 ", []),
        ("nanochat-run check d4 d6 d1", ["d12", ":recipe-files"]),
        ("nanochat-run report my", ["my_run", ":folders"]),
        ("nanochat-run compare my_run my_run/", ["my_run/20260101-120000", ":folders"]),
        ("nanochat-run export my_run out --format h", ["hf"]),
        ("nanochat-run verify --device=g", ["--device=gpu"]),
        ("nanochat-chat my", ["my_run", ":folders"]),
        ("nanochat-chat my_run --temp", ["--temperature"]),
        ("nanochat-run completion f", ["fish"]),
    ],
)
def test_words_that_may_come_next(line, expected, folder, capsys):
    assert ask(capsys, line) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pretrain.horizon.to", ["pretrain.horizon.tokens="]),
        ("pretrain.hor", ["pretrain.horizon."]),
        ("run.device=", ["run.device=auto", "run.device=cpu", "run.device=gpu"]),
        ("run.offline=t", ["run.offline=true"]),
        ("sources.", ["sources.stdlib.", "sources.words.", "sources.letters."]),
        ("sources.letters.dedu", ["sources.letters.dedup="]),
        ("pretrain.data.stdlib.w", ["pretrain.data.stdlib.weight="]),
        ("nothing.here", []),
    ],
)
def test_keys_of_set_follow_the_schema_and_the_recipe(text, expected, folder, capsys):
    assert ask(capsys, f"nanochat-run mine.yaml --set {text}") == expected


def test_every_key_of_the_first_level_that_set_accepts_is_offered(folder, capsys):
    offered = {key.rstrip(".=") for key in ask(capsys, "nanochat-run plan d4 --set ")}
    assert {"pretrain", "sft", "model", "run", "seed", "name", "sources"} <= offered
    assert not offered & {"extends", "nanochat"}


def test_a_recipe_that_cannot_be_read_leaves_the_keys_of_the_schema(folder, capsys):
    Path("broken.yaml").write_text("a: [1\nextends: broken.yaml")
    Path("cycle.yaml").write_text("extends: cycle.yaml\nsources: {a: {}}")
    assert ask(capsys, "nanochat-run broken.yaml --set see") == ["seed="]
    assert ask(capsys, "nanochat-run cycle.yaml --set sources.") == ["sources.a."]


def test_completion_imports_nothing_slow(folder):
    code = (
        "import sys\nfrom nanochat.cli.run import main\n"
        "main(['completion', 'zsh', 'nanochat-run', 'quickstart', '--set', 'sources.'])\n"
        "sys.exit(', '.join({'pydantic', 'mlx', 'numpy', 'rich'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr, "sources.stdlib." in done.stdout) == (0, "", True)


@pytest.fixture
def programs(folder):
    """An environment in which `nanochat-run` and `nanochat-chat` are this code."""
    (folder / "bin").mkdir()
    for name, module in (("nanochat-run", "run"), ("nanochat-chat", "chat")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nanochat.cli.{module} "$@"\n')
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


SET_UP = {
    "bash": "source <(nanochat-run completion bash);"
    """ bind -x '"\\C-g": echo "$READLINE_LINE" >> shown; READLINE_LINE='""",
    "zsh": "autoload -Uz compinit; compinit -D -u; source <(nanochat-run completion zsh);"
    " show() { print -r -- $BUFFER >> shown; BUFFER= }; zle -N show; bindkey '^G' show",
}
START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}


def type_into(shell: str, keys: str, environment: dict[str, str], folder: Path) -> list[str]:
    """Type keys into an interactive shell in which Ctrl-G stores the line and clears it. Return the lines."""
    terminal, end = pty.openpty()
    command = [shell, *START[shell]]
    with subprocess.Popen(
        command,
        stdin=end,
        stdout=end,
        stderr=end,
        env={**environment, "TERM": "xterm"},
        cwd=folder,
        start_new_session=True,
    ) as process:
        os.close(end)
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        os.write(terminal, f"{SET_UP[shell]}; echo is'-'ready\n".encode())
        seen = b""
        with contextlib.suppress(OSError):  # the shell has ended
            while chunk := os.read(terminal, 4096):
                if b"is-ready" in (seen := seen + chunk):
                    os.write(terminal, f"{keys}exit\n".encode())
                    seen = b""
        process.wait()
        watchdog.cancel()
    os.close(terminal)
    return (folder / "shown").read_text().splitlines()


@pytest.mark.parametrize("shell", START)
def test_the_tab_key_completes_a_command_a_recipe_a_run_and_a_key(shell, folder, programs):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    typed = {
        "nanochat-run comple": "nanochat-run completion ",
        "nanochat-run plan quickstart_c": "nanochat-run plan quickstart_current ",
        "nanochat-run plan mi": "nanochat-run plan mine.yaml ",
        "nanochat-run report my": "nanochat-run report my_run ",
        "nanochat-chat mo": "nanochat-chat models/",
        "nanochat-run quickstart --set pretrain.horizon.to": "nanochat-run quickstart --set pretrain.horizon.tokens=",
        "nanochat-run d4 --set run.device=g": "nanochat-run d4 --set run.device=gpu ",
        "bin/nanochat-run report my": "bin/nanochat-run report my_run ",
    }
    keys = "".join(f"{line}\t\x07" for line in typed)
    assert type_into(shell, keys, programs, folder) == list(typed.values())


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_offers_a_command_a_recipe_a_run_and_a_key(folder, programs):
    lines = ["comple", "plan quickstart_c", "report my", "d4 --set pretrain.horizon.to", "d4 --set run.device=g"]
    script = "nanochat-run completion fish | source\n" + "".join(
        f"complete -C 'nanochat-run {line}'\n" for line in lines
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=programs, cwd=folder, capture_output=True, text=True
    )
    words = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert words == ["completion", "quickstart_current", "my_run", "pretrain.horizon.tokens=", "run.device=gpu"]
