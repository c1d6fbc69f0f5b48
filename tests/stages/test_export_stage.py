"""The export stage writes folders, and refuses to finish if another program answers otherwise."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import ExpectationError, InterruptedRun
from nanochat.export.trial import Answer
from nanochat.plan.specs.evaluation import ExportSpec
from nanochat.plan.specs.suites import ChatSuiteSpec
from nanochat.stages import export

FILES = {"mlx": "nanochat_mlx.py", "hf": "modeling_nanochat.py", "torch": "model.json"}


def make_spec(**changes: Any) -> ExportSpec:
    fields: dict[str, Any] = {
        "formats": ("mlx", "hf", "torch"),
        **dict.fromkeys(("bits", "group_size", "init_from")),
        "prompts": ("the cat", "<|user_end|> sat\n"),
        "max_tokens": 12,
        "suites": {},
        "is_chat": True,
        "seed": 1,
    }
    return ExportSpec(**{**fields, **changes})


@pytest.fixture
def run(make_context, model_folder) -> Callable[..., tuple[Path, dict[str, float]]]:
    """A function that runs the stage and returns the folder of its output and its metrics."""

    def run_stage(**changes: Any) -> tuple[Path, dict[str, float]]:
        context = make_context(make_spec(**changes), upstream={"sft": str(model_folder.parent)})
        job = context.job.model_copy(update={"origin": "made by *hand*"})
        return context.out, export.run(job, context).metrics

    return run_stage


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Answer], Answer]], None]:
    """A function that replaces other programs by our own answers, each changed by a function."""

    def install(change: Callable[[Answer], Answer]) -> None:
        own = export._own_answers
        engines: list[Any] = []

        def remember(engine: Any, questions: Any) -> list[Answer]:
            engines.append(engine)
            return own(engine, questions)

        monkeypatch.setattr(export, "_own_answers", remember)
        monkeypatch.setattr(
            export, "ask", lambda _folder, _form, questions, **_: [change(x) for x in own(engines[0], questions)]
        )

    return install


def test_export_writes_a_folder_for_each_format(run):
    out, metrics = run(prompts=())
    assert {name: (out / name / FILES[name]).is_file() for name in FILES} == dict.fromkeys(FILES, True)
    assert metrics.keys() == {"mlx.bytes", "hf.bytes", "torch.bytes"}
    assert all("made by *hand*" in (out / name / "README.md").read_text() for name in FILES)


def test_export_reports_answers_that_are_the_same(run, library):
    library(lambda answer: answer)
    out, metrics = run()
    assert metrics["mlx.same_answers"] == metrics["hf.same_answers"] == 1.0
    assert "100% of the recipe's prompts" in (out / "hf" / "README.md").read_text()
    assert "    <|user_end|> sat" in (out / "samples.md").read_text()


def test_export_ends_the_run_if_an_answer_differs(run, library):
    library(lambda answer: replace(answer, tokens=[9, *answer.tokens[1:]], text="other"))
    with pytest.raises(ExpectationError, match="the exported model of `mlx` answers the prompt 'the cat' with 'other'"):
        run()


def test_export_ends_the_run_if_the_tokenizer_differs(run, library):
    library(lambda answer: replace(answer, prompt=[*answer.prompt, 20]))
    with pytest.raises(ExpectationError, match="renders the prompt 'the cat' with other ids"):
        run()


def test_export_only_reports_the_answers_of_a_quantized_model(run, library):
    library(lambda answer: replace(answer, tokens=[9, *answer.tokens[1:]]))
    _, metrics = run(formats=("mlx",), bits=4, group_size=32)
    assert metrics["mlx.same_answers"] == 0.0


def test_export_measures_suites_beside_our_score(run, library, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"{a}at{b}" for a in "bcdfghlmn" for b in "st"))
    suite = ChatSuiteSpec(
        task="simple_spelling",
        source=SourceSpec(name="words", path=(str(words),)),
        split="test",
        max_problems=2,
        num_samples=1,
        max_tokens=4,
        temperature=0.0,
        top_k=None,
    )
    library(lambda answer: answer)
    out, metrics = run(prompts=(), formats=("mlx",), suites={"spelling": suite})
    assert metrics["mlx.spelling"] == metrics["spelling"] and metrics["spelling.n"] == 2
    assert "`spelling`: 0.000 here, 0.000 with the original model (2 problems)" in (out / "mlx/README.md").read_text()


@pytest.mark.export
@pytest.mark.parametrize("is_chat", [True, False])
def test_exported_models_answer_as_ours_in_their_libraries(run, is_chat):
    """Both libraries are processes of their own; a difference would raise."""
    assert importlib.util.find_spec("mlx_lm") is not None
    out, metrics = run(is_chat=is_chat)
    assert metrics["mlx.same_answers"] == metrics["hf.same_answers"] == 1.0
    assert json.loads((out / "mlx" / "config.json").read_text())["model_file"] == "nanochat_mlx.py"


@pytest.mark.export
def test_export_can_be_stopped_while_a_library_runs(make_context, model_folder):
    context = make_context(make_spec(), upstream={"sft": str(model_folder.parent)}, should_stop=lambda: True)
    with pytest.raises(InterruptedRun):
        export.run(context.job, context)
