"""`--set KEY=VALUE` and `${vars.NAME}`."""

from __future__ import annotations

import pytest

from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe


def test_values_are_strict_yaml(write, body):
    """Numbers, words, lists, maps, quoted text."""
    path = write(a=body)
    recipe = load_recipe(
        path,
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
    """Over the file and over earlier flags."""
    path = write(a=body + "  horizon: {ratio: 20}\n")
    recipe = load_recipe(path, ["pretrain.horizon.tokens=1M", "seed=1", "pretrain.horizon.steps=5", "seed=2"]).recipe
    assert recipe.pretrain.horizon.model_dump(exclude_none=True) == {"steps": 5}
    assert recipe.seed == 2


def test_null_or_nothing_drops_what_the_file_set(write, body):
    """A section, a field, an entry of a map; later flags may start it again."""
    path = write(a=body + "seed: 7\nbase_eval:\n  suites: {x: {task: bpb}, y: {task: bpb}}\n")
    recipe = load_recipe(path, ["base_eval.suites.x=null", "seed="]).recipe
    assert list(recipe.base_eval.suites) == ["y"]
    assert recipe.seed == 42
    again = load_recipe(path, ["base_eval=null", "base_eval.suites.z.task=bpb"]).recipe
    assert list(again.base_eval.suites) == ["z"]


def test_keys_of_plain_maps_may_hold_dots(write, body):
    """`expect` and `tracking.tags` are maps from text to text."""
    recipe = load_recipe(write(a=body), ["expect.pretrain.bpb=<= 3", "tracking.tags.a.b=c"]).recipe
    assert recipe.expect == {"pretrain.bpb": "<= 3"}
    assert recipe.tracking.tags == {"a.b": "c"}


def test_a_whole_variable_keeps_its_type_and_text_takes_any(write, body):
    """Also from `--set vars.x`, which comes before substitution."""
    text = "vars: {n: 3, r: 0.5, t: true, w: word}\nseed: ${vars.n}\n"
    text += "description: a ${vars.n} ${vars.r} ${vars.t} ${vars.w}\n"
    loaded = load_recipe(write(a=body + text), ["run.offline=${vars.t}", "vars.n=4"])
    assert (loaded.recipe.seed, loaded.recipe.run.offline) == (4, True)
    assert loaded.recipe.description == "a 4 0.5 true word"
    assert loaded.recipe.vars == {}


def test_substituted_text_is_not_substituted_again(write, body, codes):
    """No recursion: a variable that holds `${` is refused where it stands."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(a=body + "vars: {a: '${vars.b}', b: '${vars.a}'}\ndescription: ${vars.a}\n"))
    assert codes(caught) == ["bad-variable", "bad-variable"]


def test_variables_cannot_blow_a_recipe_up(write, body, codes):
    """200 KB of variable used 400 times would be 80 MB."""
    text = f"vars: {{a: {'x' * 200_000}}}\nrun:\n  monitor:\n    prompts:\n"
    uses = "".join('      - "y ${vars.a}"\n' for _ in range(400))
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(a=body + text + uses))
    assert codes(caught) == ["too-large"]


def test_a_doubled_dollar_writes_the_characters_themselves(write, body):
    """For prompts about shells."""
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
def test_a_path_that_begins_with_a_variable_starts_where_the_variable_was_written(
    write, body, tmp_path, monkeypatch, flags, expected
):
    """A flag's value is relative to the working directory, like that of a path itself."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "recipes" / "a.yaml"
    path.write_text(write(a=body).read_text() + "vars: {data: data}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = "sources.x={path: '${vars.data}/text/*.parquet'}"
    flags = [source, *flags]
    found = load_recipe(path, flags).recipe.sources["x"].path
    assert found == str(tmp_path / expected)


def test_only_the_beginning_of_a_path_decides_and_names_stay_names(write, body, tmp_path, monkeypatch):
    """A variable inside a path, and one that holds the name of a run."""
    monkeypatch.chdir(tmp_path)
    text = body + "vars: {part: a, run: quickstart, at: ./runs}\n"
    flags = ["sources.x={path: 'in/${vars.part}.txt'}", "pretrain.init_from='${vars.run}'"]
    recipe = load_recipe(write(a=text), flags).recipe
    assert recipe.sources["x"].path == str(tmp_path / "in/a.txt")
    assert recipe.pretrain.init_from == "quickstart"
    there = load_recipe(write(a=text), ["pretrain.init_from='${vars.at}/one'"]).recipe.pretrain.init_from
    assert there == str(write(a=text).parent / "runs/one")
