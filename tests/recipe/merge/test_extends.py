"""`extends` merges recipes, and only reads files inside the recipe folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe

VALID = Path(__file__).parents[1] / "valid"


def test_a_child_merges_maps_replaces_lists_and_drops_with_null():
    base, child = load_recipe(VALID / "all_stages.yaml").recipe, load_recipe(VALID / "child.yaml").recipe
    assert child.name == "child"
    assert child.model.depth == 1 and base.model.depth == 2  # by the variable
    assert child.model.n_head == base.model.n_head == 4
    assert child.base_eval.samples == ("Only this",)
    assert set(child.base_eval.suites) == {"bits", "easy"}
    assert list(child.pretrain.data) == ["local"]
    assert child.pretrain.schedule.kind is None
    assert child.sft is None


def test_a_later_choice_of_exactly_one_replaces_the_earlier():
    """The sections are `horizon`, a source with its dependent field, and `validation`."""
    child = load_recipe(VALID / "child.yaml").recipe
    assert (child.pretrain.horizon.tokens, child.pretrain.horizon.flops) == (1_000_000, None)
    web = child.sources["web"]
    assert (web.uri, web.revision) == (None, None)
    assert web.path == str(VALID / "other/*.txt")
    assert child.sources["stdlib"].validation.hash_frac is None


def test_null_is_a_value_where_the_default_is_not_null():
    """For example, `top_k: null` means all tokens, while the default is 50."""
    recipe = load_recipe(VALID / "all_stages.yaml").recipe
    assert recipe.chat_eval.suites["spelling"].top_k is None
    assert recipe.run.checkpoint.every_minutes is None
    assert recipe.run.monitor.validate_every_steps is None


def test_later_bases_win_over_earlier_ones_and_the_file_wins_over_all(write, body):
    path = write(
        a=body + "seed: 1\nrun: {threads: 1, offline: true}\n",
        b="seed: 2\nrun: {threads: 2}\n",
        c="extends: [a.yaml, b.yaml]\nseed: 3\n",
    )
    loaded = load_recipe(path)
    assert (loaded.recipe.seed, loaded.recipe.run.threads, loaded.recipe.run.offline) == (3, 2, True)
    assert [file.name for file in loaded.files] == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_base_reached_twice_is_read_once(write, body):
    """Reading every one of the 3^9 paths would take minutes."""
    files = {"f0": body}
    for i in range(1, 10):
        files[f"f{i}"] = f"extends: [f{i - 1}.yaml, f{i - 1}.yaml, f{i - 1}.yaml]\n"
    assert len(load_recipe(write(**files)).files) == 10


def test_extends_may_not_go_deeper_than_its_limit(write, body, codes):
    files = {"f0": body} | {f"f{i}": f"extends: f{i - 1}.yaml\n" for i in range(1, 20)}
    assert codes(write(**files)) == ["too-deep"]


def test_a_list_of_thousands_of_files_is_a_single_error(write, body, codes):
    """An error for each file would take seconds."""
    assert codes(write(child="extends: [" + "gone.yaml, " * 3_000 + "]\n" + body)) == ["too-deep"]


def test_paths_are_relative_to_the_file_that_contains_them(write, body, tmp_path):
    """This holds for sources and `init_from`, also through `extends`. Names of runs are not paths."""
    path = write(
        recipes__parts__base=body
        + "  init_from: ./weights\nbase_eval:\n  init_from: quickstart/latest\n  suites: {b: {task: bpb}}\n",
        recipes__mine="extends: parts/base.yaml\nsources: {more: {path: ['../data/*.txt', /abs/x.txt]}}\n",
    )
    recipe = load_recipe(path).recipe
    assert recipe.sources["text"].path == str(tmp_path / "recipes/parts/a.txt")
    assert recipe.sources["more"].path == (str(tmp_path / "data/*.txt"), "/abs/x.txt")
    assert recipe.pretrain.init_from == str(tmp_path / "recipes/parts/weights")
    assert recipe.base_eval.init_from == "quickstart/latest"


def test_paths_of_flags_are_relative_to_the_working_directory(write, body, tmp_path, monkeypatch):
    path = write(recipes__mine=body)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(path, ["sources.text.path=b.txt", "pretrain.init_from=../weights"]).recipe
    assert recipe.sources["text"].path == str(tmp_path / "here/b.txt")
    assert recipe.pretrain.init_from == str(tmp_path / "weights")


def test_a_recipe_may_extend_any_file_inside_the_folder_recipes(write, body):
    path = write(recipes__base=body, recipes__mine__deep__child="extends: ../../base.yaml\nname: child\n")
    assert load_recipe(path).recipe.name == "child"


@pytest.mark.parametrize(
    "files",
    [
        {"base": "BODY", "mine__child": "extends: ../base.yaml\nname: child\n"},
        {"outside": "BODY", "recipes__base": "extends: ../outside.yaml\n", "recipes__child": "extends: base.yaml\n"},
        {"secret": "BODY", "recipes__child": "extends: link.yaml\nname: child\n"},
    ],
    ids=["directly", "through another recipe", "through a link"],
)
def test_a_recipe_may_not_extend_a_file_outside_its_folder(write, body, tmp_path, codes, files):
    path = write(**{name: text.replace("BODY", body) for name, text in files.items()})
    (path.parent / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    assert codes(path) == ["extends-outside"]


@pytest.mark.parametrize("name", ["nothing.yaml", "", "a\0b.yaml", "x" * 5000 + ".yaml"])
def test_a_missing_recipe_is_an_error_without_a_place(tmp_path, name, codes):
    """The empty name is the folder itself."""
    assert codes(tmp_path / name)[0] in ("file-missing", "file-unreadable")


@pytest.mark.parametrize("name", ["chats.jsonl", "rows.parquet", "notes"])
def test_data_in_place_of_a_recipe_gets_the_way_to_name_it(tmp_path, name):
    (tmp_path / "notes").mkdir()
    (tmp_path / "chats.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\xff")
    with pytest.raises(RecipeError, match=r"not a recipe\n  = a recipe is a YAML file, which names .* under `sources`"):
        load_recipe(tmp_path / name)


def test_a_mistyped_file_name_gets_a_suggestion(write, body, tmp_path):
    write(quickstart=body)
    with pytest.raises(RecipeError, match=r"did you mean `.*quickstart\.yaml`"):
        load_recipe(tmp_path / "quikstart.yaml")


def test_a_file_above_the_size_limit_is_refused(write, body, codes):
    assert codes(write(big=body + "#" * 2**18)) == ["too-large"]
