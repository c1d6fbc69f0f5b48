"""Tests of the report as HTML and of its descriptions of scores."""

from __future__ import annotations

import base64
import json
import re
from types import SimpleNamespace

import pytest

from nanochat.runner.preflight.plan_report import plan_report_json
from nanochat.runner.preflight.prepare import select_stages
from nanochat.runner.report.html import render_html
from nanochat.runner.report.plots import draw_scores
from nanochat.runner.report.results import Result, chance_level, result_line
from nanochat.runner.report.run_report import suite_shares, write_report
from nanochat.runner.report.scores import SuiteScore, describe_stages, list_scores
from nanochat.runner.store.record import Cost, describe_files, read_record
from nanochat.runner.upload.build_view import run_view


def suite(stage, name, task, *, passes=None, **score):
    return SuiteScore(Result(stage=stage, metric=name, **score), task, passes or {})


def test_html_page_embeds_images_and_attached_files(tmp_path):
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\npicture")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: a <b> c\n")
    markdown = "# tiny\n\n## A & B\n\n![loss](plots/loss.png) [r](recipe.yaml)\n"
    page = render_html(markdown, {"plots/loss.png": picture}, attached=[recipe])
    assert re.findall(r'(?:src|href)="([^"]+)"', page) == [
        "#a-b",
        "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode(),
        "#recipe.yaml",
    ]
    assert '<h2 id="a-b">' in page and '<details id="recipe.yaml">' in page and "name: a &lt;b&gt; c" in page
    assert "<title>tiny</title>" in page


@pytest.mark.parametrize(
    "markdown", ["<script>alert(1)</script>", "    <img src=x onerror=alert(1)>", "[a](javascript:x)"]
)
def test_html_page_escapes_text_written_by_a_model(markdown):
    body = render_html(f"# tiny\n\n{markdown}\n", {}).split("<main>")[1]
    assert "<script" not in body and "<img" not in body and 'href="javascript' not in body


@pytest.mark.parametrize(
    ("value", "chance", "passes", "verdict"),
    [
        (0.31, 0.25, {}, "no better than guessing"),
        (0.33, 0.25, {}, "better than guessing"),
        (0.17, 0.25, {}, "worse than guessing"),
        (0.0, 0.0, {}, "none solved"),
        (0.5, 0.0, {}, "50% solved"),
        (0.1, 0.0, {1: 0.1, 2: 0.17, 4: 0.3}, "10% solved, 30% in 4 tries"),
    ],
)
def test_reading_of_a_score_compares_it_with_chance_and_counts_tries(value, chance, passes, verdict):
    """Two standard errors are 0.06 here. With pass@4 of 0.3, one of four answers solves three of ten problems."""
    scored = suite("base_eval", "mmlu", "mmlu", value=value, stderr=0.03, count=200, chance=chance, passes=passes)
    assert scored.reading == verdict


def test_scores_say_what_was_cut():
    """Zeros are not mentioned. Evaluations of earlier versions counted nothing."""
    fields = {f"chat_eval.suites.{name}.task": "gsm8k" for name in ("a", "b", "old")} | {
        "chat_eval.suites.c.task": "arc_easy"
    }
    metrics = {"a": 0.5, "a.n": 8.0, "a.prompts_cut": 1.0, "a.answers_cut": 1200.0, "b": 0.0, "b.answers_cut": 0.0}
    metrics |= {"c": 0.25, "c.prompts_cut": 2.0, "c.examples_cut": 3.0, "old": 0.125}
    record = SimpleNamespace(stage="chat_eval", metrics=metrics, recipe_fields=fields)
    suites = {suite.score.metric: suite.cut for suite in list_scores({"chat_eval": record})}
    assert suites == {
        "a": "1 prompt cut, 1,200 answers cut",
        "b": "",
        "c": "2 prompts cut, 3 with fewer examples",
        "old": "not counted",
    }
    assert result_line(record) == (
        ": a 0.5 (n 8; 1 prompt cut, 1,200 answers cut), b 0, c 0.25 (2 prompts cut, 3 with fewer examples), old 0.125"
    )
    assert suite("base_eval", "bpb", "bpb", value=1.5).cut == "", "there is nothing to count"


def test_chance_level_is_solved_from_the_centred_score():
    """(0.4 - 0.25) / (1 - 0.25) = 0.2. From a perfect score, chance cannot be computed."""
    assert chance_level(0.4, 0.2) == 0.25
    assert chance_level(1.0, 1.0) is None


def test_scores_are_drawn_only_for_shares_of_problems(tmp_path):
    """Bits per byte are not a share of problems."""
    bpb = suite("base_eval", "bpb", "bpb", value=1.5)
    assert draw_scores([bpb], tmp_path) == []
    arc = suite("chat_eval", "arc", "arc_easy", value=0.3, stderr=0.02, count=9, chance=0.25)
    (picture,) = draw_scores([bpb, arc], tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_html_report_describes_stages_scores_costs_and_commit(bench, monkeypatch):
    monkeypatch.setattr("nanochat.runner.report.run_report.render_html", render_html)
    page = bench.run().folder.report_page.read_text()
    assert "<strong>pretrain</strong> taught a new model" in page
    assert re.search(r"chat_eval spelling</td>.*0\.75<.*0\.125<.*spell a word letter by letter</td>", page, re.DOTALL)
    assert "Time and memory" in page and "commit:" in page and "validation: {hash_frac: 0.5}" in page


def test_report_says_which_files_the_stages_read(bench):
    run = bench.run()
    for folder in map(bench.stage_folder, ("tokenizer", "pretrain")):
        folder.sources.write_text('["docs: 1 of 2 files, 9 B; left out: c.md (not .txt)"]')
        read_record(folder).model_copy(update={"files": describe_files(folder)}).write(folder.record)
    report = write_report(run, bench.base).read_text()
    line = "docs: 1 of 2 files, 9 B; left out: c.md (not .txt) (read by tokenizer, pretrain)"
    assert f"## Data\n\n    {line}\n" in report


def test_result_line_and_report_count_conversations_that_were_not_used():
    metrics = {"loss": 1.5, "conversations": 40.0, "tokens": 900.0, "steps": 7.0, "refused_conversations": 3.0}
    record = SimpleNamespace(
        stage="sft", metrics={**metrics, "dropped_conversations": 0.0, "skipped_steps": 0.0}, minutes=None
    )
    assert result_line(record) == ": loss 1.5, conversations 40, tokens 900, steps 7, refused_conversations 3"
    assert describe_stages({"sft": record}) == [
        "**sft** taught the model to answer, on 40 example conversations (900 tokens of their answers, 7 steps); "
        "refused because they hold no conversation: 3 rows."
    ]


@pytest.mark.parametrize(
    ("cropped_frac", "sentence"),
    [
        (0.0, ""),
        (0.12, " `pretrain.long_documents: crop` throws away 12% of the text that is read, the ends of long documents"),
        (0.92, " **Warning:** `pretrain.long_documents: crop` throws away 92% of the text that is read, the ends of"),
    ],
)
def test_report_states_the_share_of_text_that_cropping_threw_away(cropped_frac, sentence):
    metrics = {"parameters": 900.0, "tokens": 80.0, "steps": 7.0, "cropped_frac": cropped_frac}
    (text,) = describe_stages({"pretrain": SimpleNamespace(stage="pretrain", metrics=metrics, minutes=None)})
    assert text.startswith(
        "**pretrain** taught a new model of 900 parameters to predict the next token: it read 80 tokens in 7 steps."
        + sentence
    )
    assert ("crop" in text) == (cropped_frac > 0)


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (300, "its validation loss of 2.3125 is the lowest; that of the last step, 480, is 2.4000."),
        (480, "its validation loss of 2.3125 is the lowest, and this is the last step."),
    ],
)
def test_report_says_which_model_was_passed_on_and_why(best, sentence):
    metrics = {"steps": 480.0, "handed_on_step": float(best), "val_loss": 2.3125, "last_val_loss": 2.4, "bpb": 0.875}
    for stage in ("pretrain", "sft"):
        (text,) = describe_stages({stage: SimpleNamespace(stage=stage, metrics=metrics, minutes=None)})
        assert text.endswith(
            f" 0.88 bits per byte{' of text it has not seen' * (stage == 'pretrain')}. "
            f"It passed on the model of step {best}, because {sentence}"
        )


def test_report_compares_the_share_of_time_of_suites_with_the_plan():
    def record(suite_seconds, planned):
        measured = Cost(seconds=200.0, suite_seconds=suite_seconds)
        return SimpleNamespace(measured=measured, planned=Cost(seconds=100.0, suite_seconds=planned))

    records = {"pretrain": record(50.0, 30.0), "sft": record(10.0, None), "tokenizer": record(None, None)}
    assert suite_shares(records) == [
        "pretrain: suites during training took 25% of the time, planned 30%.",
        "sft: suites during training took 5% of the time; the plan could not know.",
    ]


def test_mlflow_description_starts_with_scores_and_explains_them(finished):
    """The score of a guess is 0.5 here."""
    view = run_view(finished.first.folder, finished.base)
    (evaluation,) = [stage for stage in view.stages if stage.name.endswith("chat_eval")]
    first = view.description.splitlines()[0]
    assert re.fullmatch(r"\*\*base_eval: bpb .*; chat_eval: spelling 0\.75 .*\*\*", first), "whose score it is"
    for description in (view.description, evaluation.description):
        assert "spelling 0.75 ± 0.12 (n 12)" in description.splitlines()[0]
        reading = "no better than guessing (task: spell a word letter by letter)"
        assert f"- chat_eval spelling 0.75 ± 0.12: {reading}" in description
        assert "under Artifacts" in description


def test_run_with_a_horizon_in_minutes_is_marked_as_not_reproducible_wherever_it_is_shown(bench):
    """In the output, the record, the report, MLflow and the plan; a finished stage is still taken from the cache."""
    mark = "trained for 5 minutes of wall time: not reproducible"
    timed = "pretrain.horizon={minutes: 5}"
    run = bench.run(timed)
    assert f"2-pretrain: done ({mark})" in bench.display.text
    records = {stage: json.loads(folder.record.read_text()) for stage, folder in run.folders(bench.base).items()}
    marked = [stage for stage, record in records.items() if not record["is_reproducible"]]
    assert marked == ["pretrain"]
    assert "**Trained for 5 minutes of wall time: not reproducible**" in run.folder.report.read_text()
    view = run_view(run.folder, bench.base)
    assert [stage.name for stage in view.stages if "not_reproducible" in stage.tags] == ["2-pretrain"]
    assert view.tags["not_reproducible"] == f"pretrain {mark}"
    assert mark in view.description
    bench.calls()
    bench.run(timed)
    assert bench.calls() == []
    assert f"pretrain: from cache ({records['pretrain']['fingerprint'][:12]}; {mark}, and --force pretrain" in (
        bench.display.text
    )
    prepared = bench.prepare(timed)
    lookups, selected = prepared.look_up_cache(), select_stages(prepared.plan)
    why = {stage["stage"]: stage["why"] for stage in plan_report_json(prepared, lookups, selected)["stages"]}
    assert why["pretrain"].endswith(mark)


def test_run_with_a_horizon_in_steps_is_not_marked(finished):
    run = finished.first
    assert "reproducible" not in run.folder.report.read_text()
    assert "not_reproducible" not in run_view(run.folder, finished.base).tags


def test_report_lists_a_note_of_several_stages_once(bench):
    """Not at all if it is among the data: a stage notes which files it read, and leaves the same line there."""
    bench.control(tokenizer="notes on data", pretrain="notes on data")
    run = bench.run(last="pretrain")
    text = write_report(run, bench.base).read_text()
    assert "\n    tokenizer, pretrain: text: 1 file; left out: a.pdf\n" in text
    for folder in map(bench.stage_folder, ("tokenizer", "pretrain")):
        folder.sources.write_text('["text: 1 file; left out: a.pdf"]')
        read_record(folder).model_copy(update={"files": describe_files(folder)}).write(folder.record)
    text = write_report(run, bench.base).read_text()
    assert text.count("left out: a.pdf") == 1 and "tokenizer, pretrain: step_00000008 is damaged" in text


def test_report_lists_the_notes_of_the_stages(bench):
    bench.control(pretrain="notes")
    bench.run("sft=null", "chat_eval=null")
    (report,) = bench.base.glob("runs/tiny/*/report.md")
    assert (
        "## Notes of the stages\n\n    pretrain: step_00000008 is damaged\n    pretrain: half\n\n" in report.read_text()
    )
