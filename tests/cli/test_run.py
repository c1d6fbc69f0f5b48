"""The command: verbs, exit codes, and what it must not import."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import errors
from nanochat.cli.arguments import VERBS, parse
from nanochat.cli.recipes import _command
from nanochat.cli.run import main
from nanochat.recipe.schema_docs import BEGIN, END

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ZeroDivisionError("surprise"), 1),
        (errors.RecipeError("x"), 2),
        (errors.PreflightError("x"), 3),
        (errors.StageError("x"), 4),
        (errors.ExpectationError("x"), 5),
        (errors.LockError("x"), 6),
        (errors.InterruptedRun("x"), 75),
        (KeyboardInterrupt(), 75),
        (OSError(28, "No space left on device"), 4),
        (OSError(5, "Input/output error"), 1),
    ],
)
def test_each_end_has_its_exit_code(monkeypatch, error, code, tmp_path):
    """The table of the design."""

    def run(options, given):
        if error is not None:
            raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("nanochat.cli.recipes.run", run)
    assert main(["some.yaml"]) == code


def test_a_bug_names_a_traceback_file(monkeypatch, capsys, tmp_path):
    """And the user sees one sentence instead of the traceback."""

    def broken(options, given):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("nanochat.cli.recipes.run", broken)
    main(["some.yaml"])
    said = capsys.readouterr().err
    (file,) = tmp_path.glob("nanochat-traceback-*.txt")
    assert str(file) in said and "Traceback" not in said
    assert "ZeroDivisionError: surprise" in file.read_text()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--frobnicate"], ["plan"], ["a.yaml", "--only", "dessert"], ["plan", "a.yaml", "--why", "x"], ["report"]],
)
def test_wrong_usage_exits_2(arguments, capsys):
    """Without a traceback, with the usage."""
    assert main(arguments) == 2
    assert "usage: nanochat-run" in capsys.readouterr().err


def test_a_missing_recipe_exits_2_and_names_the_file(capsys):
    """A verb that is none of ours is taken for a recipe."""
    assert main(["no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


def test_a_recipe_named_like_a_verb_is_a_recipe():
    """Where the word ends like a recipe file."""
    assert parse(["plan.yaml"]).verb == "run"
    assert parse(["./plan"]).verb == "run"
    assert parse(["plan", "plan.yaml"]).verb == "plan"


def test_the_public_flags_are_these():
    """Changing them is a decision: this table is changed with them."""
    assert VERBS == (
        "plan", "check", "show", "diff", "schema", "ls", "report", "compare", "gc", "ui", "import", "export", "verify",
    )  # fmt: skip
    assert set(vars(parse(["r.yaml"]))) == {
        "recipe", "overrides", "offline", "only", "first", "last", "force", "verb",
    }  # fmt: skip
    assert set(vars(parse(["plan", "r.yaml"]))) == {"recipe", "overrides", "offline", "why", "json", "verb"}
    words = ["--only", "--from", "--until", "--force", "--set", "--offline"]
    assert parse(["r.yaml", "--from", "sft", "--until", "chat_eval", "--force", "all", "--set", "a=b"]).force == ["all"]
    text = subprocess.run([sys.executable, "-m", "nanochat.cli.run", "--help"], capture_output=True, text=True).stdout
    assert all(word in text for word in words)


def test_the_command_to_continue_does_not_force_again():
    """To continue is not to begin anew."""
    assert _command(["r.yaml", "--force", "all", "--set", "a=b c"]) == "nanochat-run r.yaml --set 'a=b c'"
    assert _command(["--force=sft", "r.yaml"]) == "nanochat-run r.yaml"


@pytest.mark.parametrize("verb", [["check"], ["plan"], ["show", "--origin"], ["plan", "--json"]])
def test_looking_at_a_recipe_imports_neither_mlx_nor_mlflow(verb, tmp_path):
    """Nor anything else that takes longer than the looking."""
    code = (
        "import sys\nfrom nanochat.cli.run import main\n"
        f"assert main([{verb[0]!r}, {str(RECIPES / 'speedrun.yaml')!r}, *{verb[1:]!r}]) == 0\n"
        "heavy = {'mlx', 'mlflow', 'numpy', 'pyarrow', 'datasets', 'huggingface_hub', 'sentencepiece', 'matplotlib'}\n"
        "sys.exit(', '.join(heavy & {name.split('.')[0] for name in sys.modules}) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_shows_parameters_and_status(capsys):
    """The full run, by hand: 4,578 steps of 131,072 tokens."""
    assert main(["plan", str(RECIPES / "speedrun.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "286,262,424 parameters" in shown
    assert "600,047,616 tokens" in shown


def test_plan_as_json(capsys):
    """For programs."""
    assert main(["plan", str(RECIPES / "quickstart.yaml"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in content["stages"]] == [
        "tokenizer", "pretrain", "base_eval", "sft", "chat_eval",
    ]  # fmt: skip
    assert content["fingerprints"]["tokenizer"] is not None and content["fingerprints"]["sft"] is None


def test_check_looks_at_every_recipe(tmp_path, capsys):
    """One broken recipe does not hide another."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"nanochat: 1\nname: {name}\nwrong{name}: 1\n")
    assert main(["check", str(tmp_path / "a.yaml"), str(RECIPES / "quickstart.yaml"), str(tmp_path / "b.yaml")]) == 2
    out, err = capsys.readouterr()
    assert "quickstart.yaml: ok" in out
    assert "wronga" in err and "wrongb" in err


def test_diff_prints_what_differs(capsys):
    """Resolved, defaults included."""
    first, second = str(RECIPES / "quickstart.yaml"), str(RECIPES / "dry_run.yaml")
    assert main(["diff", first, second]) == 0
    assert 'name: "quickstart" -> "dry_run"' in capsys.readouterr().out
    assert main(["diff", first, first]) == 0
    assert capsys.readouterr().out == ""


def test_a_stale_schema_file_is_found_and_written(tmp_path, capsys):
    """`schema --check` fails until `schema --write`."""
    file = str(tmp_path / "s.json")
    assert main(["schema", "--check", "--file", file]) == 2
    assert main(["schema", "--write", "--file", file]) == 0
    assert main(["schema", "--check", "--file", file]) == 0
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    both = ["--file", file, "--readme", str(readme)]
    assert main(["schema", "--check", *both]) == 2
    assert main(["schema", "--write", *both]) == 0
    assert main(["schema", "--check", *both]) == 0


def test_ls_report_and_gc_without_runs_say_so(capsys):
    """Nothing here yet is no error, a run that is not there is."""
    assert main(["ls"]) == 0
    assert "no runs under" in capsys.readouterr().out
    assert main(["gc", "--dry-run"]) == 0
    assert "0 stage outputs" in capsys.readouterr().out
    assert main(["report", "nothing"]) == 2


def test_secrets_in_a_recipe_are_refused_where_they_stand(tmp_path, capsys):
    """Credentials belong in the environment."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text((RECIPES / "dry_run.yaml").read_text() + "\ntracking: {uri: 'http://me:pw@host'}\n")
    assert main([str(recipe)]) == 2
    assert "error[secret-in-recipe]" in capsys.readouterr().err


def test_a_taken_port_is_named_before_a_link_to_another_page_is_printed(tmp_path, monkeypatch, capsys):
    """`ui` never sends anyone to whatever else listens there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["ui", "--port", port]) == 3
    shown = capsys.readouterr()
    assert f"port {port} is taken" in shown.err
    assert "http://" not in shown.out
