"""Another stage, added through the table and run to its end. Run as a script, this file is the stage's child process.

The classes up to `ROW` are what a developer writes for a real stage; `nanochat/README.md` names the places.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from nanochat.checkpoint.model_folder import load_tokenizer
from nanochat.cli.progress import PlainDisplay
from nanochat.data.documents import single_pass
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import RecipeError
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.specs.inputs import WeightedSource
from nanochat.plan.specs.job import Job, StageSpec
from nanochat.plan.specs.spec import Spec
from nanochat.plan.stages import STAGES, Stage
from nanochat.recipe.load import load_recipe
from nanochat.recipe.schema.recipe import STAGE_SECTIONS, Recipe, StageSection
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.run_context import RunRequest
from nanochat.stages.process import run_job as child
from nanochat.stages.process.context import StageContext, StageResult


class CountWords(StageSection):
    """Count the words of a source that a tokenizer gives back."""

    upstream: ClassVar = ("tokenizer",)
    metrics: ClassVar = ("words",)

    source: str
    longest: int = 100


class CountWordsSpec(Spec):
    """Count the words of at most `longest` letters."""

    stage: Literal["count_words"] = "count_words"
    source: SourceSpec
    longest: int
    init_from: None = None

    @property
    def inputs(self) -> tuple[WeightedSource, ...]:
        return (WeightedSource(source=self.source, weight=1),)


def derive(section: CountWords, given: Derivation) -> CountWordsSpec:
    return CountWordsSpec(source=given.sources[section.source], longest=section.longest)


def run(job: CountWordsJob, context: StageContext) -> StageResult:
    """The stage function."""
    spec = job.spec
    assert spec.stage == "count_words"
    tokenizer = load_tokenizer(context.require_upstream("tokenizer"))
    texts = [tokenizer.decode(tokenizer.encode(text)) for text in single_pass(spec.source, "train", base=context.base)]
    words = [word for text in texts for word in text.split() if len(word) <= spec.longest]
    (context.out / "words.txt").write_text("\n".join(words))
    return StageResult({"words": float(len(words))})


ROW = Stage[CountWordsSpec](
    name="count_words",  # type: ignore[arg-type]  # a real stage is added to `StageName`
    module="test_new_stage",
    draws=False,
    code_version=1,
    derive=derive,
    estimate=lambda _spec, _setting: Estimate(seconds=1.0),
    describe=lambda spec: f"words of at most {spec.longest} letters in {spec.source.name}",
    params=lambda spec: {"longest": spec.longest},
    outcome=lambda metrics: f"counted {metrics['words']:.0f} words.",
)


class CountWordsRecipe(Recipe):
    count_words: CountWords | None = None


class CountWordsJob(Job):
    spec: Annotated[StageSpec | CountWordsSpec, Field(discriminator="stage")]  # type: ignore[assignment]


RECIPE = """\
nanochat: 1
name: count
sources:
  text: {path: [text.txt, held_out.txt], validation: {shard: held_out.txt}}
tokenizer: {source: text, vocab_size: 300}
count_words: {source: text, longest: 3}
expect: {count_words.words: "== 80"}
tracking: {kind: none}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe with the new stage, in a program that knows it."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "text.txt").write_text("one two four\n" * 40)
    (folder / "held_out.txt").write_text("five six\n")
    path = folder / "count.yaml"
    path.write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "count_words", ROW)
        patch.setitem(STAGE_SECTIONS, "count_words", CountWords)
        patch.setattr("nanochat.recipe.check.validation.Recipe", CountWordsRecipe)
        patch.setattr("nanochat.runner.process.execute_stage.Job", CountWordsJob)
        yield path


def run_once(recipe: Path, *overrides: str) -> tuple[str, str]:
    """Return what the run displays, and its report."""
    folder, child_command = recipe.parent, (sys.executable, __file__)
    request = RunRequest(base=folder / "base", folder=folder, command="nanochat-run", child_command=child_command)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run = run_recipe(load_recipe(recipe, overrides), request, PlainDisplay())
    return output.getvalue(), run.folder.report.read_text()


@pytest.fixture(scope="module")
def first(recipe: Path) -> tuple[str, str]:
    """What the first run displays, and its report."""
    return run_once(recipe)


def test_new_stage_runs_in_a_child_process_and_is_cached_afterwards(recipe: Path, first: tuple[str, str]) -> None:
    lines, report = first
    assert "words of at most 3 letters in text" in lines
    assert "count_words: done: words 80" in lines
    assert "**count_words** counted 80 words." in report
    assert "count_words: from cache" in run_once(recipe)[0]


@pytest.mark.usefixtures("first")
def test_new_stage_explains_a_changed_field(recipe: Path) -> None:
    lines, _ = run_once(recipe, "count_words.longest=2", "expect=null")
    assert "count_words.longest: 3 -> 2" in lines


def test_new_stage_has_its_metrics_checked_in_expectations(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="`letters` is not a metric of `count_words`"):
        run_once(recipe, 'expect={count_words.letters: "> 1"}')


if __name__ == "__main__":
    STAGES["count_words"] = ROW
    setattr(child, "Job", CountWordsJob)  # noqa: B010 -- mypy knows the name only as an import
    sys.exit(child.main(sys.argv[1:]))
