"""`nanochat-run fetch`: brings all data onto the machine, checks them, and runs no stage."""

from __future__ import annotations

import shlex

import pytest

from nanochat.cli.arguments.commands import parse
from nanochat.cli.verbs.recipe_commands import overrides_of
from nanochat.data.ingest.pending import is_ready
from nanochat.errors import PreflightError
from nanochat.recipe.load import load_recipe
from nanochat.runner.inspection.inspect_sources import inspect_sources
from nanochat.runner.preflight.fetch import fetch_recipe


def test_fetch_converts_and_checks_and_runs_no_stage(bench):
    (bench.folder / "text.csv").write_text("text\n" + "".join(f"hello {i}\n" for i in range(30)))
    flags = [f"sources.text.path={bench.folder}/text.csv"]
    fetch_recipe(bench.recipe, flags, base=bench.base, display=bench.display)
    assert all(is_ready(source, base=bench.base) for source in bench.prepare(*flags).plan.stages[0].sources)
    assert "all data of tiny are here and can be read: text, chats, words" in bench.display.text
    assert bench.calls() == [] and not (bench.base / "runs").exists()


def test_fetch_refuses_data_that_a_stage_could_not_read(bench):
    (bench.folder / "chats.jsonl").write_text('{"prompt": "no answer"}\n')
    with pytest.raises(PreflightError, match=r"chats\.jsonl:1"):
        fetch_recipe(bench.recipe, [], base=bench.base, display=bench.display)


def test_printed_commands_repeat_the_recipe_and_its_settings(bench):
    """`data` names the command that fetches, and that one names the command that trains, in a folder with a space."""
    recipe = bench.recipe.rename(bench.folder / "my tiny.yaml")
    (bench.folder / "text.csv").write_text("text\n" + "".join(f"hello {i}\n" for i in range(30)))
    flags = (f"sources.text.path={bench.folder}/text.csv", "expect={pretrain.bpb: '< 9'}")
    bench.recipe = recipe
    (report,) = inspect_sources(bench.prepare(*flags), "text", limit=9)
    (hint,) = (fact.partition("`")[2].partition("` does that")[0] for fact in report.facts if "does that" in fact)
    fetching = parse(shlex.split(hint)[1:])
    assert (fetching.verb, fetching.recipe, overrides_of(fetching)) == ("fetch", recipe, flags)
    fetch_recipe(fetching.recipe, overrides_of(fetching), base=bench.base, display=bench.display)
    training = parse(shlex.split(bench.display.text.rpartition("to train without network: ")[2])[1:])
    assert (training.verb, training.recipe) == ("run", recipe)
    expected = load_recipe(recipe, [*flags, "run.offline=true"]).recipe
    assert load_recipe(training.recipe, overrides_of(training)).recipe == expected
