"""The shipped recipes compile, and the speedrun's plan is the hand-computed one."""

import subprocess
from pathlib import Path

import pytest

from nanochat.plan.compile import compile_plan
from nanochat.plan.plan import Plan
from nanochat.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def plan_of(name: str, *overrides: str) -> Plan:
    return compile_plan(load_recipe(RECIPES / f"{name}.yaml", overrides))


_TRACKED = subprocess.run(["git", "ls-files", "*.yaml"], cwd=RECIPES, capture_output=True, text=True, check=False)
# A user's own recipe may lie beside the shipped ones.
SHIPPED = sorted(RECIPES / name for name in _TRACKED.stdout.split()) or sorted(RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_compiles_and_has_a_header(path: Path) -> None:
    """The header says purpose, cost and expected result, and points editors at the schema."""
    plan = plan_of(path.stem)
    assert plan.recipe_name == path.stem
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../schemas/recipe.schema.json"
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert all(word in header for word in ("Purpose:", "Cost:", "Expect:"))


def test_speedrun_has_the_hand_computed_size() -> None:
    """Every number from the shape: 12 layers of width 768, 6 heads, 32,768 pieces, T = 2048, windows SSSL."""
    blocks = 12 * (4 * 768**2 + 8 * 768**2)  # attention: four squares; MLP: two of 768 x 3072
    gates = 6 * (6 * 32)  # every second layer: 6 heads read 32 channels
    table = 32_768 * 768
    multipliers = 12 + 12
    parameters = blocks + gates + 2 * table + 6 * table + multipliers  # wte, lm_head, 6 value embeddings
    assert parameters == 286_262_424

    matmuls = blocks + gates + table  # lm_head multiplies, lookups do not
    windows = 9 * 1024 + 3 * 2048  # S S S L three times
    flops_per_token = 6 * matmuls + 12 * 768 * windows
    assert flops_per_token == 6 * 110_101_632 + 9_216 * 15_360 == 802_167_552

    tokens = 4_578 * 131_072
    assert tokens == 600_047_616

    stage = plan_of("speedrun").stage("pretrain")
    assert (stage.spec.steps, stage.spec.tokens_per_step) == (4_578, 131_072)
    assert stage.estimate.parameters == parameters
    assert stage.estimate.tokens == tokens
    assert stage.estimate.flops == tokens * flops_per_token == pytest.approx(4.8134e17, rel=1e-4)


def test_speedrun_has_every_chat_evaluation() -> None:
    chat = plan_of("speedrun").stage("chat_eval").spec
    tasks = {"gsm8k", "mmlu", "arc_easy", "arc_challenge", "humaneval", "spelling_bee", "simple_spelling"}
    assert {suite.task for suite in chat.suites.values()} == tasks


def test_current_recipes_select_architecture_and_optimizer() -> None:
    specs = [plan_of(name).stage("pretrain").spec for name in ("current", "quickstart_current")]
    assert {(spec.model.architecture, spec.optimizer.variant) for spec in specs} == {("current", "current")}


def test_depth_recipes_derive_width_and_horizon() -> None:
    for depth in (4, 6, 8, 12):
        spec = plan_of(f"d{depth}").stage("pretrain").spec
        assert spec.model.n_layer == depth
        assert 12 <= spec.steps * spec.tokens_per_step / spec.model.num_scaling_parameters() < 12.1


def test_dry_run_is_small_enough_for_a_slow_core() -> None:
    """Under 20 GFLOP and 400 MiB in all, so that start-up is most of its time."""
    totals = plan_of("dry_run").totals
    assert totals.flops < 2e10
    assert totals.peak_memory_bytes < 400 * 2**20
