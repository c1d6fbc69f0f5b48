"""Idle values: a plan and `check` warn of them, with the place, and run the recipe all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.cli.run import main
from nanochat.plan.compile import compile_plan
from nanochat.recipe.load import load_recipe
from nanochat.recipe.show import resolved_yaml

RECIPE = """\
nanochat: 1
name: all
sources:
  text: {path: text.txt}
  rows: {path: rows.jsonl}
  words: {builtin: spelling}
tokenizer: {source: text}
model: {n_layer: 4, n_embd: 128, n_head: 2, sequence_len: 256}
pretrain: {data: {text: {}}}
base_eval:
  suites:
    asked: {task: questions, source: rows}
    solved: {task: questions, source: rows, num_fewshot: 2, fewshot_split: train}
sft: {data: {words: {task: simple_spelling, source: words}}}
chat_eval:
  suites:
    spelling: {task: simple_spelling, source: words}
    letters: {task: mmlu, source: rows}
export: {formats: {hf: {}}, check: {prompts: [Hello]}}
"""


SPELL = "{task: simple_spelling, source: words}"
RL = f"{{data: {{a: {SPELL}}}, held_out: {{b: {SPELL}}}, horizon: {{steps: 5}}, max_tokens: 9}}"
NO_SFT = ["sft=null", "chat_eval=null", "export.check=null"]


def warnings(tmp_path: Path, *overrides: str) -> list[str]:
    recipe = tmp_path / "all.yaml"
    recipe.write_text(RECIPE)
    return load_recipe(recipe, overrides).warnings()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.monitor.prompts=[Once]"], "`run.monitor.prompts` has no effect without `sample_every_steps`"),
        (["run.monitor.sample_every_steps=5"], "`run.monitor.sample_every_steps` has no effect without `prompts`"),
        (["run.distributed.backend=ring"], "`run.distributed.backend` has no effect with one process"),
        (["tracking={kind: none, register: speller}"], "`tracking.register` has no effect beside `kind: none`"),
        (["sources.words.column=word"], "`sources.words.column` has no effect beside `builtin: spelling`"),
        (["sources.words.max_files=2"], "`sources.words.max_files` has no effect beside `builtin: spelling`"),
        (["sources.rows.validation.hash_frac=0.1"], "because no stage reads this source as documents"),
        (["model.depth=4"], "`model.depth` has no effect beside `n_layer`, `n_embd` and `n_head`"),
        (["pretrain.schedule={kind: constant, final_frac: 0.1}"], "`pretrain.schedule.final_frac` has no effect"),
        (["model.architecture=portable", "pretrain.optimizer.x0_lr=0.1"], "`pretrain.optimizer.x0_lr` has no effect"),
        (["sft.schedule={constant_frac: 1.0, final_frac: 0.1}"], "`sft.schedule.final_frac` has no effect"),
        ([f"rl={RL}", "rl.clip=0.2"], "`rl.clip` has no effect with one update per step"),
        ([f"rl={RL}", "rl.schedule={constant_frac: 1.0, final_frac: 0.1}"], "`rl.schedule.final_frac` has no effect"),
        ([f"rl={RL}", "rl.reward.form_reward=0.2"], "`rl.reward.form_reward` has no effect without `form`"),
        ([f"rl={RL}", "rl.reward={form: '#', form_reward: 0}"], "`rl.reward.form` has no effect with `form_reward: 0`"),
        (["run.monitor.evaluate.every_steps=9"], "`run.monitor.evaluate.every_steps` has no effect without `suites`"),
        ([*NO_SFT, f"run.monitor.evaluate.chat_suites.a={SPELL}"], "has no effect without `sft`"),
        (
            [
                *NO_SFT,
                "pretrain=null",
                "base_eval.init_from=x",
                "export.init_from=x",
                "run.monitor.evaluate.suites.a={task: bpb}",
            ],
            "`run.monitor.evaluate.suites` has no effect without `pretrain` and `sft`",
        ),
        (["base_eval.sample_tokens=9"], "`base_eval.sample_tokens` has no effect without `samples`"),
        (["base_eval.suites.asked.fewshot_split=test"], "`base_eval.suites.asked.fewshot_split` has no effect"),
        (["run.monitor.evaluate.suites.q={task: questions, source: rows, fewshot_split: test}"], "suites.q.fewshot"),
        (
            ["chat_eval.suites.q={task: questions, source: rows, grade: exact, program: grade.py}"],
            "`chat_eval.suites.q.program` has no effect beside `grade: exact`",
        ),
        (["chat_eval.suites.letters.max_tokens=9"], "beside `task: mmlu`, whose answers are not generated"),
        (["chat_eval.suites.spelling.top_k=5"], "which always takes the likeliest token"),
        (["chat_eval.suites.spelling.num_samples=5"], "`chat_eval.suites.spelling.num_samples` has no effect"),
        (["export.check={prompts: []}"], "`export.check` has no effect without `prompts` or `suites`"),
        (["export.formats={hf: null, torch: {}}"], "`export.check` has no effect if `torch` is the only format"),
        (["export.check={prompts: [], suites: [spelling], max_tokens: 3}"], "`export.check.max_tokens` has no effect"),
    ],
)
def test_field_without_an_effect_is_named(overrides: list[str], message: str, tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, *overrides)
    assert message in warning


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["run.monitor={prompts: [Once], sample_every_steps: 5}"],
        ["run.monitor={prompts: [Once], sample_every_steps: null}"],
        ["run.distributed={processes: 2, backend: ring}", "tracking.register=speller"],
        ["sources.text={column: body, validation: {hash_frac: 0.1}, max_document_chars: 99}"],
        ["model={n_layer: null, depth: 4}", "pretrain.optimizer.x0_lr=0.1", "pretrain.schedule.final_frac=0.1"],
        [f"rl={RL}", "rl={clip: 0.2, updates_per_step: 2, reward: {form: '#', form_reward: 0.2}}"],
        [f"rl={RL}", "rl.schedule={constant_frac: 0.5, final_frac: 0.1}", "sft.schedule.final_frac=0.1"],
        [f"run.monitor.evaluate={{every_steps: 9, chat_suites: {{a: {SPELL}}}}}"],
        ["chat_eval.suites.spelling={temperature: 1, top_k: 5, num_samples: 5}", "base_eval.samples=[Once]"],
    ],
)
def test_fields_with_an_effect_are_not_named(overrides: list[str], tmp_path: Path) -> None:
    assert warnings(tmp_path, *overrides) == []


@pytest.mark.parametrize(
    ("beside", "idle"),
    [
        ([], ["sources.words.column=word", "sources.rows.validation.hash_frac=0.1", "model.depth=4"]),
        ([], ["base_eval.sample_tokens=9", "base_eval.suites.asked.fewshot_split=test"]),
        (["pretrain.schedule.kind=constant"], ["pretrain.schedule.final_frac=0.1"]),
        (["model.architecture=portable"], ["pretrain.optimizer.x0_lr=0.1"]),
        (["sft.schedule.constant_frac=1.0"], ["sft.schedule.final_frac=0.1"]),
        (
            [f"rl={RL}", "rl.schedule.constant_frac=1.0"],
            ["rl.clip=0.2", "rl.schedule.final_frac=0.1", "rl.reward={form: '#', form_reward: 0}"],
        ),
        ([], ["chat_eval.suites.letters.max_tokens=9", "chat_eval.suites.spelling={top_k: 5, num_samples: 5}"]),
        (["export.check={prompts: [], suites: [spelling]}"], ["export.check.max_tokens=3"]),
    ],
)
def test_idle_values_change_no_stage(beside: list[str], idle: list[str], tmp_path: Path) -> None:
    """A changed one repeats no finished stage. A clip, for example, would cost a forward pass that never clips."""
    (tmp_path / "all.yaml").write_text(RECIPE)
    plain, idling = (
        compile_plan(load_recipe(tmp_path / "all.yaml", [*beside, *changes])).stages for changes in ([], idle)
    )
    assert [(stage.spec, stage.identity) for stage in plain] == [(stage.spec, stage.identity) for stage in idling]


def test_values_with_an_effect_change_their_stage(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(RECIPE)
    plain, changed = (
        compile_plan(load_recipe(tmp_path / "all.yaml", [*beside, "sft.schedule.final_frac=0.1"])).stage("sft").identity
        for beside in (["sft.schedule.constant_frac=1.0"], ["sft.schedule.constant_frac=0.9"])
    )
    fields = "sft.schedule.final_frac"
    assert (plain["fields"][fields], changed["fields"][fields]) == (0.0, 0.1)


def test_check_prints_warnings_with_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "all.yaml"
    recipe.write_text(RECIPE.replace("sequence_len: 256}", "sequence_len: 256,\n        depth: 4}"))
    assert main(["check", str(recipe)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{recipe}: ok"
    assert second.startswith(f"  warning: {recipe}:9: `model.depth` has no effect")


def test_resolved_recipe_has_no_warnings(tmp_path: Path) -> None:
    """A run keeps its recipe with all defaults filled in, and that file can be run again."""
    recipe = tmp_path / "all.yaml"
    recipe.write_text(RECIPE)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(load_recipe(recipe)))
    assert load_recipe(resolved).warnings() == []
    assert [stage.name for stage in compile_plan(load_recipe(resolved)).stages][-1] == "export"


def test_shipped_recipes_have_no_field_without_an_effect() -> None:
    recipes = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
    assert recipes
    assert {path.name: found for path in recipes if (found := load_recipe(path).warnings())} == {}
