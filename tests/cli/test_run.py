"""`nanochat-run`: its verbs and flags, and the packages that light verbs must not import."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.cli.arguments.commands import VERBS, parse
from nanochat.cli.run import main
from nanochat.cli.verbs.recipe_commands import command_to_continue
from nanochat.recipe.shipped import find_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize(
    "arguments",
    [[], ["--frobnicate"], ["plan"], ["a.yaml", "--only", "dessert"], ["plan", "a.yaml", "--why", "x"], ["report"]],
)
def test_wrong_usage_exits_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: nanochat-run" in capsys.readouterr().err


def test_a_first_word_that_is_no_verb_is_read_as_a_recipe(capsys):
    assert main(["no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["pln", "x"], ["pln"]])
def test_a_misspelt_verb_gets_a_suggestion(arguments, capsys):
    assert main(arguments) == 2
    assert "did you mean `plan`?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["mine", "mime"])
def test_a_recipe_without_its_suffix_gets_a_suggestion(word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert main([word]) == 2
    assert "did you mean `mine.yaml`?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--epochs", "3"], ["model.depth=4"]])
def test_an_option_of_another_tool_gets_the_way_to_change_a_recipe(arguments, capsys):
    assert main(["quickstart", *arguments]) == 2
    assert "change the recipe with `--set KEY=VALUE`" in capsys.readouterr().err
    assert main(["ls", "--epochs"]) == 2
    assert "--set" not in capsys.readouterr().err


def test_a_recipe_whose_name_resembles_a_verb_is_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pln").touch()
    assert parse(["pln"]).verb == "run"


def test_a_recipe_named_like_a_verb_is_a_recipe():
    assert parse(["plan.yaml"]).verb == "run"
    assert parse(["./plan"]).verb == "run"
    assert parse(["plan", "plan.yaml"]).verb == "plan"


def test_public_flags_are_frozen():
    """Whoever changes a flag on purpose changes this table too."""
    assert list(VERBS) == [
        "run", "plan", "sweep", "recipes", "new", "check", "show", "diff", "data", "fetch", "ls", "report", "best",
        "compare", "watch", "gc", "serve", "import", "export", "completion", "doctor", "ui", "verify", "schema",
    ]  # fmt: skip
    assert set(vars(parse(["export", "r", "f", "--format", "mlx"]))) == {
        "model", "folder", "format", "quantize_bits", "group_size", "verb",
    }  # fmt: skip
    assert set(vars(parse(["serve", "r"]))) == {"model", "host", "port", "rows", "device", "verb"}
    assert set(vars(parse(["r.yaml"]))) == {
        "recipe", "overrides", "offline", "only", "first", "last", "force", "fail_fast", "yes", "verb",
    }  # fmt: skip
    assert set(vars(parse(["sweep", "r.yaml"]))) == {
        "recipe", "overrides", "offline", "cell", "emit", "fail_fast", "yes", "verb",
    }  # fmt: skip
    assert set(vars(parse(["plan", "r.yaml"]))) == {
        "recipe", "overrides", "offline", "why", "json", "mac", "yes", "verb",
    }  # fmt: skip
    assert set(vars(parse(["data", "r.yaml"]))) == {
        "recipe", "source", "limit", "overrides", "offline", "json", "verb",
    }  # fmt: skip
    assert set(vars(parse(["ls"]))) == {"json", "verb"}
    assert set(vars(parse(["report", "r"]))) == {"run", "json", "verb"}
    assert set(vars(parse(["compare", "r", "s"]))) == {"runs", "json", "html", "verb"}
    assert set(vars(parse(["fetch", "r.yaml"]))) == {"recipe", "overrides", "offline", "verb"}
    words = ["--only", "--from", "--until", "--force", "--set", "--offline"]
    assert parse(["r.yaml", "--from", "sft", "--until", "chat_eval", "--force", "all", "--set", "a=b"]).force == ["all"]
    text = VERBS["run"].parser().format_help()
    assert all(word in text for word in words)


def test_the_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb.name} " in shown and verb.summary in shown for verb in VERBS.values())


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_command_has_an_example_that_is_valid(name, capsys, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    assert main([name, "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("example")
    lines = [line.partition(" >")[0] for line in examples.splitlines()[1:] if line]
    assert lines
    for program, verb, *arguments in map(shlex.split, lines):
        assert (program, verb) == ("nanochat-run", name)
        options = parse([verb, *arguments])
        assert options.verb == name
        recipes = [
            find_recipe(path) for path in (*getattr(options, "recipes", []), getattr(options, "recipe", None)) if path
        ]
        assert all(path.is_file() for path in recipes)


@pytest.mark.parametrize("name", VERBS)
def test_every_command_has_its_function(name):
    module, _, function = VERBS[name].function.partition(".")
    assert callable(getattr(importlib.import_module(f"nanochat.cli.verbs.{module}"), function))


def test_command_to_continue_does_not_force_again():
    assert command_to_continue(["r.yaml", "--force", "all", "--set", "a=b c"]) == "nanochat-run r.yaml --set 'a=b c'"
    assert command_to_continue(["--force=sft", "r.yaml"]) == "nanochat-run r.yaml"


READING = (["check"], ["plan"], ["show", "--origin"], ["plan", "--json"])
FORBIDDEN = {
    "datasets", "huggingface_hub", "matplotlib", "mlflow", "mlx", "numpy", "psutil", "pyarrow", "requests",
    "sentencepiece", "nanochat.checkpoint", "nanochat.data.documents", "nanochat.data.loaders",
    "nanochat.data.packing", "nanochat.data.token_cache", "nanochat.evals", "nanochat.stages",
    "nanochat.tasks.task", "nanochat.tasks.mixture", "nanochat.tokenizer", "nanochat.tracking", "nanochat.train",
}  # fmt: skip


def test_verbs_that_only_read_a_recipe_import_nothing_that_they_do_not_need():
    """One process runs all of them, and ends after the first that has loaded too much."""
    commands = [[verb, str(RECIPES / "speedrun.yaml"), *options] for verb, *options in READING]
    code = (
        "import sys\nfrom nanochat.cli.run import main\n"
        f"for command in {commands!r}:\n"
        "    assert main(command) == 0\n"
        f"    if loaded := {FORBIDDEN} & set(sys.modules): sys.exit(f'{{command}}: {{sorted(loaded)}}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_shows_parameters_and_status(capsys):
    """Computed by hand: 4,578 steps of 131,072 tokens."""
    assert main(["plan", str(RECIPES / "speedrun.yaml")]) == 0
    shown = capsys.readouterr().out
    shapes = ("286,262,424 parameters", "600,047,616 tokens", "802,167,552 training FLOPs per token")
    assert all(text in shown for text in (*shapes, "600M", "4.81e17"))


def test_plan_json_lists_stages_and_known_fingerprints(capsys):
    assert main(["plan", str(RECIPES / "quickstart.yaml"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in content["stages"]] == [
        "tokenizer", "pretrain", "base_eval", "sft", "chat_eval",
    ]  # fmt: skip
    assert content["fingerprints"]["tokenizer"] is not None and content["fingerprints"]["sft"] is None


def test_check_reports_every_broken_recipe(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"nanochat: 1\nname: {name}\nwrong{name}: 1\n")
    assert main(["check", str(tmp_path / "a.yaml"), str(RECIPES / "quickstart.yaml"), str(tmp_path / "b.yaml")]) == 2
    out, err = capsys.readouterr()
    assert "quickstart.yaml: ok" in out
    assert "wronga" in err and "wrongb" in err


def test_diff_prints_the_values_that_differ(capsys):
    first, second = str(RECIPES / "quickstart.yaml"), str(RECIPES / "dry_run.yaml")
    assert main(["diff", first, second]) == 0
    assert 'name: "quickstart" -> "dry_run"' in capsys.readouterr().out
    assert main(["diff", first, first]) == 0
    assert capsys.readouterr().out == ""


def test_schema_check_fails_until_both_files_are_written(tmp_path, capsys):
    folder = ["--folder", str(tmp_path / "schemas")]
    assert main(["schema", "--check", *folder]) == 2
    assert "recipe.schema.json and " in capsys.readouterr().err
    assert main(["schema", "--write", *folder]) == 0
    assert main(["schema", "--check", *folder]) == 0
    for path in (tmp_path / "schemas").iterdir():
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("tokens", "token"), encoding="utf-8")
        assert main(["schema", "--check", *folder]) == 2
        assert path.name in capsys.readouterr().err
        path.write_text(text, encoding="utf-8")


def test_ls_and_gc_without_runs_succeed_and_report_of_a_missing_run_fails(capsys):
    assert main(["ls"]) == 0
    assert "no runs under" in capsys.readouterr().out
    assert main(["gc", "--dry-run"]) == 0
    assert "would delete 0 stage outputs" in capsys.readouterr().out
    assert main(["report", "nothing"]) == 2


def test_a_recipe_with_credentials_is_refused(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text((RECIPES / "dry_run.yaml").read_text() + "\ntracking: {uri: 'http://me:pw@host'}\n")
    assert main([str(recipe)]) == 2
    assert "error[secret-in-recipe]" in capsys.readouterr().err
