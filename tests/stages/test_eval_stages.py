"""The evaluation stages: scores, records and samples, and resuming after the last finished suite."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.suites import (
    BpbSuiteSpec,
    ChatQuestionsSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.recipe.check.result_names import unknown_result
from nanochat.stages import base_eval, chat_eval
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tools.sandbox import run as sandbox

LETTERS = "ABCD"


@pytest.fixture
def model_out(model_folder):
    """The output folder of a training stage."""
    return model_folder.parent


def write_lines(path, rows) -> SourceSpec:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSpec(name=path.stem, path=(str(path),))


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question": f"is it {i}?", "choices": [f"{i + j}" for j in range(4)], "answer": i * 3 % 4, "subject": "sums"}
        for i in range(12)
    ]
    return write_lines(tmp_path / "mmlu" / "test.jsonl", rows)


@pytest.fixture
def continuations(tmp_path):
    rows = [
        {"ctx": f"the cat {i} sat", "endings": [f"on mat {i + j}." for j in range(4)], "label": str(i % 4)}
        for i in range(10)
    ]
    return write_lines(tmp_path / "hellaswag" / "validation.jsonl", rows)


@pytest.fixture
def bundle(tmp_path):
    """A CORE bundle of two tasks."""
    folder = tmp_path / "bundle"
    (folder / "eval_data").mkdir(parents=True)
    (folder / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: pick, dataset_uri: pick.jsonl, num_fewshot: [1], icl_task_type: multiple_choice}\n"
        "- {label: go_on, dataset_uri: go_on.jsonl, num_fewshot: [0], icl_task_type: language_modeling}\n"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\npick,25\ngo_on,0\n")
    picks = [{"query": f"{i} is", "choices": ["1", "2", "3", "4"], "gold": i % 4} for i in range(6)]
    write_lines(folder / "eval_data" / "pick.jsonl", picks)
    write_lines(
        folder / "eval_data" / "go_on.jsonl", [{"context": f"the cat {i}", "continuation": "sat"} for i in range(4)]
    )
    return SourceSpec(name="bundle", path=(str(folder),))


def base_spec(documents, continuations, questions, bundle, *, num_fewshot: int = 2) -> BaseEvalSpec:
    return BaseEvalSpec(
        suites={
            "bpb": BpbSuiteSpec(source=documents, split="validation", tokens=500),
            "core": CoreSuiteSpec(source=bundle, max_problems=None),
            "swag": ChoiceSuiteSpec(task="hellaswag", source=continuations, split=None, max_problems=8, num_fewshot=0),
            "mmlu": ChoiceSuiteSpec(
                task="mmlu", source=questions, split=None, max_problems=None, num_fewshot=num_fewshot
            ),
        },
        samples=("the cat", ""),
        sample_tokens=5,
        init_from=None,
        seed=1,
    )


@pytest.fixture
def base_context(make_context, model_out, documents, continuations, questions, bundle):
    spec = base_spec(documents, continuations, questions, bundle)

    def build(name="base_eval", *, spec=spec, **options):
        return make_context(spec, name=name, upstream={"pretrain": str(model_out)}, **options)

    return build


def test_base_eval_scores_every_suite(base_context):
    """Metrics follow from each other by arithmetic, every problem has a record, and samples begin with prompts."""
    context = base_context()
    metrics = base_eval.run(context.job, context).metrics
    assert 4 < metrics["bpb"] < 40
    assert (metrics["swag.n"], metrics["mmlu.n"]) == (8, 12)
    p = metrics["swag"]
    assert metrics["swag.stderr"] == pytest.approx((p * (1 - p) / 8) ** 0.5)
    assert metrics["swag.centred"] == pytest.approx((p - 0.25) / 0.75)
    assert metrics["base_core"] == pytest.approx((p + metrics["mmlu"]) / 2)
    assert metrics["base_core_centred"] == pytest.approx((metrics["base_core"] - 0.25) / 0.75)
    assert metrics["core"] == pytest.approx((metrics["core.pick.centred"] + metrics["core.go_on"]) / 2)
    assert metrics["core.pick.centred"] == pytest.approx((metrics["core.pick"] - 0.25) / 0.75)
    tables = {path.stem: path.read_text().splitlines() for path in (context.out / "tables").iterdir()}
    assert {name: len(lines) for name, lines in tables.items()} == {"swag": 8, "mmlu": 12, "core": 10}
    records = [json.loads(line) for line in tables["swag"]]
    assert np.mean([record["correct"] for record in records]) == p
    assert all(record["output"] in record["options"] for record in records)
    assert "\n    the cat" in (context.out / "samples.md").read_text()


def test_base_eval_counts_prompts_and_solved_examples_that_did_not_fit(
    base_context, capsys, documents, continuations, questions, bundle
):
    """The context has 96 tokens. The counts are those of the records, and the user is told."""
    context = base_context(spec=base_spec(documents, continuations, questions, bundle, num_fewshot=9))
    metrics = base_eval.run(context.job, context).metrics
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    records = {
        name: [json.loads(line) for line in (context.out / "tables" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("swag", "mmlu", "core")
    }
    cut = {name: sum(record["is_truncated"] for record in of_suite) for name, of_suite in records.items()}
    assert {name: metrics[f"{name}.prompts_cut"] for name in records} == cut
    assert (cut["swag"], cut["core"]) == (0, 0) and 0 < cut["mmlu"] <= 12
    assert metrics["mmlu.examples_cut"] == sum(record["missing_examples"] > 0 for record in records["mmlu"]) > 0
    assert "swag.examples_cut" not in metrics, "the suite asks for none"
    assert metrics["core.examples_cut"] == 0
    assert not [name for name in metrics if name.endswith("answers_cut")], "nothing is generated"
    assert notes[0].startswith(f"note: mmlu: {cut['mmlu']} of 12 prompts did not fit into the context")
    assert notes[1].startswith(
        f"note: mmlu: {metrics['mmlu.examples_cut']:.0f} of 12 problems had fewer solved examples"
    )
    assert len(notes) == 2


def test_base_eval_samples_continue_the_end_of_a_prompt_longer_than_the_context(model_out):
    """Of 96 tokens 5 are for the continuation. The model reads BOS and the last 90 letters, none of which is a `7`."""
    model, tokenizer = load_model(model_out / "model", mx.float32), load_tokenizer(model_out / "model")
    prompt = "7" * 300 + "Q" * 90
    text = base_eval.sample_text(model, tokenizer, [prompt, "Q" * 90], max_tokens=5)
    cut, whole = [block.removeprefix("    ") for block in text.split("\n\n")[2:]]
    assert cut == prompt + whole.removeprefix("Q" * 90) + (
        "\n    [prompt of 391 tokens: the model read only the last 91]"
    )


def test_base_eval_samples_say_that_the_context_is_full(model_out):
    model, tokenizer = load_model(model_out / "model", mx.float32), load_tokenizer(model_out / "model")
    text = base_eval.sample_text(model, tokenizer, ["the cat"], max_tokens=96)
    assert text.endswith("\n    [stopped: the context of 96 tokens is full]")


def test_interrupted_base_eval_resumes_with_the_same_results(base_context):
    """The stage stops in its third suite. Finished suites are not computed again, and all numbers are identical."""
    undisturbed = base_context("undisturbed")
    expected = base_eval.run(undisturbed.job, undisturbed)
    folder = base_context("stopped").folder.path
    stopped = base_context("stopped", should_stop=lambda: (folder / "suites" / "core.json").exists())
    with pytest.raises(InterruptedRun, match="swag"):
        base_eval.run(stopped.job, stopped)
    assert sorted(path.name for path in (folder / "suites").iterdir()) == ["bpb.json", "core.json"]
    kept = (folder / "suites" / "core.json").read_bytes()
    resumed = base_context("stopped")
    assert base_eval.run(resumed.job, resumed).metrics == expected.metrics
    assert (folder / "suites" / "core.json").read_bytes() == kept
    for name in ("swag", "mmlu", "core"):
        table = f"out/tables/{name}.jsonl"
        assert (folder / table).read_bytes() == (undisturbed.folder.path / table).read_bytes()


def chat_spec(questions, **bee) -> ChatEvalSpec:
    options = {"max_tokens": 6, "temperature": 0.0, "top_k": None, "num_samples": 1}
    words = SourceSpec(name="words", builtin="spelling")
    return ChatEvalSpec(
        suites={
            "letters": ChatSuiteSpec(task="mmlu", source=questions, split="test", max_problems=10, **options),
            "spell": ChatSuiteSpec(
                task="simple_spelling", source=words, split="test", max_problems=5, **{**options, **bee}
            ),
        },
        init_from=None,
        seed=1,
    )


def test_chat_eval_scores_letters_and_written_answers(make_context, model_out, questions, capsys):
    """ChatCORE is the mean over suites, centred on 1/4 for letters and on 0 for written answers."""
    spec = chat_spec(questions, num_samples=3, temperature=1.0)
    context = make_context(spec, upstream={"sft": str(model_out)})
    metrics = chat_eval.run(context.job, context).metrics
    assert (metrics["letters.n"], metrics["spell.n"]) == (10, 5)
    assert metrics["chat_core"] == pytest.approx((metrics["letters"] + metrics["spell"]) / 2)
    assert metrics["chat_core_centred"] == pytest.approx((metrics["letters.centred"] + metrics["spell"]) / 2)
    assert {"spell.pass_at_1", "spell.pass_at_2", "spell.pass_at_3"} <= set(metrics)
    suites = {name: {"task": "spelling_bee", "num_samples": 3, "temperature": 1.0} for name in ("letters", "spell")}
    for metric in metrics:
        assert unknown_result({"chat_eval": {"suites": suites}}, ("expect", f"chat_eval.{metric}")) is None
    lines = (context.out / "tables" / "spell.jsonl").read_text().splitlines()
    assert len(lines) == 15
    stopped = sum(json.loads(line)["hit_limit"] for line in lines)
    assert (metrics["spell.answers_cut"], metrics["spell.prompts_cut"]) == (stopped, 0)
    assert f"note: spell: {stopped} of 15 answers had to stop at the limit of their length" in capsys.readouterr().out
    assert "letters.answers_cut" not in metrics
    assert len({json.loads(line)["output"] for line in lines}) > 5
    letters = [json.loads(line) for line in (context.out / "tables" / "letters.jsonl").read_text().splitlines()]
    assert {record["output"] for record in letters} <= set(LETTERS)
    assert {"## letters", "## spell"} <= set((context.out / "samples.md").read_text().splitlines())


def test_chat_eval_is_reproducible_and_depends_on_its_seed(make_context, model_out, questions):
    def outputs(name: str, seed: int) -> str:
        spec = chat_spec(questions, temperature=1.0).model_copy(update={"seed": seed})
        context = make_context(spec, name=name, upstream={"pretrain": str(model_out)})
        chat_eval.run(context.job, context)
        return (context.out / "tables" / "spell.jsonl").read_text()

    assert outputs("a", 1) == outputs("b", 1)
    assert outputs("a", 1) != outputs("c", 2)


def test_chat_eval_uses_a_given_model_instead_of_the_upstream_one(make_context, model_out, questions):
    spec = chat_spec(questions).model_copy(update={"init_from": str(model_out / "model")})
    context = make_context(spec)
    assert "chat_core" in chat_eval.run(context.job, context).metrics


def test_chat_eval_runs_programs_without_isolation_only_if_that_is_accepted(
    make_context, model_out, tmp_path, monkeypatch, capsys
):
    """The stage says that it does."""
    monkeypatch.setattr(sandbox, "_try_isolations", lambda: (None, "none is known"))
    row = {"task_id": "x", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "entry_point": "f"}
    source = write_lines(tmp_path / "programs.jsonl", [row | {"test": "def check(f): assert f() == 1\n"}])
    suite = chat_spec(source).suites["spell"].model_copy(update={"task": "humaneval", "source": source})
    spec = ChatEvalSpec(suites={"code": suite}, init_from=None, seed=1)
    refused = make_context(spec, name="refused", upstream={"sft": str(model_out)})
    with pytest.raises(PreflightError, match="cannot isolate programs that a model writes"):
        chat_eval.run(refused.job, refused)
    accepted = make_context(spec, name="accepted", upstream={"sft": str(model_out)}, accept_unisolated_programs=True)
    assert chat_eval.run(accepted.job, accepted).metrics["code"] == 0
    assert "note: code: this machine cannot isolate the model's programs" in capsys.readouterr().out


def own_questions(tmp_path) -> SourceSpec:
    rows = [
        {"question": f"is it {i}?", "answer": f"option {i % 2}", "choices": ["option 0", "option 1"]} for i in range(6)
    ]
    return write_lines(tmp_path / "own" / "test.jsonl", rows)


def question_fields(source) -> dict:
    plain = {"split": "test", "max_problems": None, "num_fewshot": 1, "fewshot_split": "test", "system": "Quiz."}
    return {"source": source, **plain}


def test_base_eval_compares_the_choices_of_own_questions(make_context, model_out, tmp_path):
    """The chance level follows from the choices, and records are those of the other multiple-choice tasks."""
    suite = QuestionsSuiteSpec(**question_fields(own_questions(tmp_path)))
    spec = BaseEvalSpec(suites={"own": suite}, samples=(), sample_tokens=1, init_from=None, seed=1)
    context = make_context(spec, upstream={"pretrain": str(model_out)})
    metrics = base_eval.run(context.job, context).metrics
    assert metrics["own.n"] == 6 and metrics["own.centred"] == pytest.approx((metrics["own"] - 0.5) / 0.5)
    records = [json.loads(line) for line in (context.out / "tables" / "own.jsonl").read_text().splitlines()]
    assert all(record["prompt"].startswith("Quiz.\n\nQuestion: is it ") for record in records)
    assert {record["expected"] for record in records} == {" option 0", " option 1"}


def test_chat_eval_reports_what_a_grading_program_returns_and_where_it_fails(make_context, model_out, tmp_path, capsys):
    """Two of six questions get 1/2, one fails the program, and the rest get 0: the score is 1/6."""
    program = """
def grade(example, completion):
    number = int(example["question"][6])
    return {0: 0.5, 1: 0.5, 2: 7}.get(number, False)
"""
    file = PythonFile("/x/grade.py", "grade", program)
    generation = {"num_samples": 1, "max_tokens": 4, "temperature": 0.0, "top_k": None}
    suite = ChatQuestionsSpec(**question_fields(own_questions(tmp_path)), grade="program", program=file, **generation)
    context = make_context(
        ChatEvalSpec(suites={"own": suite}, init_from=None, seed=1), upstream={"sft": str(model_out)}
    )
    assert ChatEvalSpec.model_validate_json(context.job.spec.model_dump_json()) == context.job.spec
    metrics = chat_eval.run(context.job, context).metrics
    assert metrics["own"] == pytest.approx(1 / 6) and metrics["own.ungraded"] == 1
    records = [json.loads(line) for line in (context.out / "tables" / "own.jsonl").read_text().splitlines()]
    assert [record["score"] for record in records] == [0.5, 0.5, None, None, None, None]
    assert records[2]["problem"].startswith("grade.py:grade: returned 7;") and not records[2]["correct"]
    note = "note: own: 1 of 6 answers could not be graded and score 0; grade.py:grade: returned 7;"
    assert note in capsys.readouterr().out
