"""`load_recipe` knows where values come from and survives any input."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from nanochat.data.sources import SourceSpec, resolve_files
from nanochat.errors import RecipeError
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.load import load_recipe
from nanochat.recipe.parsing.diagnostics import LocatedRecipeError

VALID = Path(__file__).parent / "valid"


def test_origins_name_the_file_or_flag_of_each_value():
    """The files are a base recipe and a child recipe, with lines and columns counted by hand."""
    loaded = load_recipe(VALID / "child.yaml", ["seed=3"])
    places = {
        path: (Path(origin.text.name).name, origin.line, origin.column) for path, origin in loaded.origins.items()
    }
    assert places["name",] == ("child.yaml", 2, 7)
    assert places["pretrain", "horizon", "tokens"] == ("child.yaml", 8, 21)
    assert places["model", "n_head"] == ("all_stages.yaml", 24, 11)
    assert str(loaded.origins["seed",]) == "--set seed=3"
    assert ("pretrain", "buffer_documents") in loaded.origins
    assert ("run", "threads") not in loaded.origins  # a default


def test_callers_can_add_errors_at_places_of_the_recipe(monkeypatch):
    """The plan does this for shapes that do not divide."""
    monkeypatch.chdir(VALID)
    loaded = load_recipe(Path("child.yaml"), ["run.threads=2"])
    problems = [
        FieldProblem(("run", "threads"), "too-many", "two threads are one too many"),
        FieldProblem(("model", "n_head"), "bad-shape", "4 does not divide 130", "try 2"),
        FieldProblem(("pretrain", "horizon", "steps"), "why-not", "not given", at_key=True),
    ]
    assert str(LocatedRecipeError(map(loaded.locate, problems))) == (
        "error[bad-shape]: 4 does not divide 130\n"
        "  --> all_stages.yaml:24:11\n"
        "    |\n"
        " 24 |   n_head: 4\n"
        "    |           ^\n"
        "  = try 2\n"
        "\n"
        "error[why-not]: not given\n"
        "  --> child.yaml:8:3\n"
        "    |\n"
        "  8 |   horizon: {tokens: 1M}\n"
        "    |   ^^^^^^^\n"
        "\n"
        "error[too-many]: two threads are one too many\n"
        "  --> --set\n"
        "    |\n"
        "    | --set run.threads=2\n"
        "    |                   ^\n"
        "\n"
        "3 errors in the recipe"
    )


def test_error_shows_the_first_fifty_problems_and_counts_all(write, body):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(a=body + "run:\n" + "".join(f"  wrong{i}: 1\n" for i in range(70))))
    assert str(caught.value).count("error[") == 50
    assert str(caught.value).endswith("70 errors (the first 50 are shown) in the recipe")


SPICE = [
    *("\t", "\u2028", "é", "{", "}", "[", "]", ":", "- ", "&a ", "*a"),
    *("!!str ", "<<: *a", "${vars.x}", "${", "\x00", "#", "|", ">", "'", '"'),
]
WORDS = [
    *("null", "-1", "1e400", ".nan", "0x" + "f" * 30, "9" * 50, "[]", "{}", "~", "no"),
    *("[1, [2]]", "{a: {b: 1}}", "x" * 500, "\ud7ff"),
]


@pytest.mark.parametrize("seed", range(300))
def test_a_mutated_recipe_is_valid_or_a_located_error_within_a_second(seed, tmp_path):
    """Mutations change types, keys, nesting, characters and lines."""
    path = tmp_path / "mutated.yaml"
    path.write_bytes(_mutate(random.Random(seed)))
    started = time.process_time()
    try:
        load_recipe(path)
    except RecipeError as error:
        assert all(diagnostic.origin is not None for diagnostic in error.diagnostics)
        str(error).encode()
    assert time.process_time() - started < 1


def _mutate(rng):
    lines = (VALID / "all_stages.yaml").read_text(encoding="utf-8").splitlines()
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        line = lines[at]
        match rng.randrange(9):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines[at] = " " * rng.randint(1, 4) + line
            case 3:
                lines[at] = line.partition(":")[0] + ": " + rng.choice(WORDS)
            case 4:
                cut = rng.randrange(len(line) + 1)
                lines[at] = line[:cut] + rng.choice(SPICE) + line[cut:]
            case 5:
                lines[at] = line[: rng.randrange(len(line) + 1)]
            case 6:
                lines[at] = line.partition(":")[0] + ": " + "[" * (depth := rng.choice([3, 63, 70, 5000])) + "]" * depth
            case 7:
                lines[at] = line.replace(rng.choice("aeiou"), rng.choice("aeiouxyz"))
            case _:
                lines[at] = line + rng.choice([" ", "a", ":"]) * rng.choice([10, 1000, 100_000])
    content = bytearray("\n".join(lines).encode())
    if rng.random() < 0.1:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


@pytest.mark.parametrize(
    ("written", "name"),
    [("books/a.txt", "books/a.txt"), ("My Book [2020].txt", "My Book [2020].txt"), ("books/*.txt", "books/a.txt")],
)
def test_source_paths_are_patterns_but_the_folder_of_the_recipe_is_none(tmp_path, written, name):
    folder = tmp_path / "proj [v2]"
    for file in (folder / name, tmp_path / "proj v" / name):
        file.parent.mkdir(parents=True)
        file.write_text("text")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"nanochat: 1\nname: x\nsources:\n  docs: {{path: '{written}'}}\ntokenizer: {{source: docs, vocab_size: 320}}\n"
    )
    path = load_recipe(recipe).recipe.sources["docs"].path
    assert resolve_files(SourceSpec(name="docs", path=(path,)), base=tmp_path) == (folder / name,)
