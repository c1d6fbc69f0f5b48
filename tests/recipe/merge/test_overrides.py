"""`--set KEY=VALUE` and `${vars.NAME}` change the values of a recipe."""

from __future__ import annotations

import pytest

from nanochat.recipe.load import load_recipe


def test_set_reads_values_as_yaml_1_2(write, body):
    """The values are numbers, words, lists, maps and quoted text."""
    recipe = load_recipe(
        write(a=body),
        [
            "seed=1000",
            "pretrain.optimizer.matrix_lr=1e-4",
            "run.monitor.prompts=[no, '1', \"a, b\"]",
            "pretrain.schedule={kind: cosine, warmup_steps: 2K}",
            "description=it's = a [test]",
            "run.offline=true",
        ],
    ).recipe
    assert recipe.seed == 1000
    assert recipe.pretrain.optimizer.matrix_lr == 1e-4
    assert recipe.run.monitor.prompts == ("no", "1", "a, b")
    assert (recipe.pretrain.schedule.kind, recipe.pretrain.schedule.warmup_steps) == ("cosine", 2000)
    assert recipe.description == "it's = a [test]"
    assert recipe.run.offline is True


def test_the_last_flag_wins_and_replaces_an_exclusive_choice(write, body):
    path = write(a=body + "  horizon: {ratio: 20}\n")
    recipe = load_recipe(path, ["pretrain.horizon.tokens=1M", "seed=1", "pretrain.horizon.steps=5", "seed=2"]).recipe
    assert recipe.pretrain.horizon.model_dump(exclude_none=True) == {"steps": 5}
    assert recipe.seed == 2


def test_set_to_null_or_nothing_drops_a_value_of_the_file(write, body):
    """This holds for sections, fields and entries of maps. Later flags can set them again."""
    path = write(a=body + "seed: 7\nbase_eval:\n  suites: {x: {task: bpb}, y: {task: bpb}}\n")
    recipe = load_recipe(path, ["base_eval.suites.x=null", "seed="]).recipe
    assert list(recipe.base_eval.suites) == ["y"]
    assert recipe.seed == 42
    again = load_recipe(path, ["base_eval=null", "base_eval.suites.z.task=bpb"]).recipe
    assert list(again.base_eval.suites) == ["z"]


def test_keys_of_free_maps_may_contain_dots(write, body):
    recipe = load_recipe(write(a=body), ["expect.pretrain.bpb=<= 3", "tracking.tags.a.b=c"]).recipe
    assert recipe.expect == {"pretrain.bpb": "<= 3"}
    assert recipe.tracking.tags == {"a.b": "c"}


def test_a_variable_keeps_its_type_as_a_whole_value_and_becomes_text_inside_text(write, body):
    """Variables that `--set vars.NAME` sets behave alike."""
    text = "vars: {n: 3, r: 0.5, t: true, w: word}\nseed: ${vars.n}\n"
    text += "description: a ${vars.n} ${vars.r} ${vars.t} ${vars.w}\n"
    loaded = load_recipe(write(a=body + text), ["run.offline=${vars.t}", "vars.n=4"])
    assert (loaded.recipe.seed, loaded.recipe.run.offline) == (4, True)
    assert loaded.recipe.description == "a 4 0.5 true word"
    assert loaded.recipe.vars == {}


def test_a_variable_that_uses_a_variable_is_refused(write, body, codes):
    assert codes(write(a=body + "vars: {a: '${vars.b}', b: '${vars.a}'}\ndescription: ${vars.a}\n")) == [
        "bad-variable",
        "bad-variable",
    ]


def test_variables_that_expand_to_megabytes_are_refused(write, body, codes):
    """A variable of 200 KB that is used 400 times would expand to 80 MB."""
    text = f"vars: {{a: {'x' * 200_000}}}\nrun:\n  monitor:\n    prompts:\n"
    uses = "".join('      - "y ${vars.a}"\n' for _ in range(400))
    assert codes(write(a=body + text + uses)) == ["too-large"]


def test_a_doubled_dollar_is_a_literal_dollar(write, body):
    recipe = load_recipe(write(a=body + "description: echo $${HOME} $HOME $5 $$\n")).recipe
    assert recipe.description == "echo ${HOME} $HOME $5 $$"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "recipes/data/text/*.parquet"),
        (["vars.data=data"], "elsewhere/data/text/*.parquet"),
        (["vars.data=../x"], "x/text/*.parquet"),
        (["vars.data=/abs"], "/abs/text/*.parquet"),
    ],
)
def test_a_path_that_starts_with_a_variable_is_relative_to_the_file_that_sets_it(
    write, body, tmp_path, monkeypatch, flags, expected
):
    """A variable that a flag sets is relative to the working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "recipes" / "a.yaml"
    path.write_text(write(a=body).read_text() + "vars: {data: data}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = "sources.x={path: '${vars.data}/text/*.parquet'}"
    recipe = load_recipe(path, [source, *flags]).recipe
    assert recipe.sources["x"].path == str(tmp_path / expected)


def test_a_variable_inside_a_path_or_with_the_name_of_a_run_does_not_change_the_folder(
    write, body, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text = body + "vars: {part: a, run: quickstart, at: ./runs}\n"
    flags = ["sources.x={path: 'in/${vars.part}.txt'}", "pretrain.init_from='${vars.run}'"]
    recipe = load_recipe(write(a=text), flags).recipe
    assert recipe.sources["x"].path == str(tmp_path / "in/a.txt")
    assert recipe.pretrain.init_from == "quickstart"
    there = load_recipe(write(a=text), ["pretrain.init_from='${vars.at}/one'"]).recipe.pretrain.init_from
    assert there == str(write(a=text).parent / "runs/one")
