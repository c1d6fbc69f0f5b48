"""The verbs of `nanochat-run` about the recipes that come with it: recipes and new."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import textwrap
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.recipe.load import load_recipe
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.recipe.shipped import is_installed, schema_path, shipped_recipes, summarize
from nanochat.storage.files import write_text

_WIDTH, _INDENT = 110, " " * 13
_SCHEMA_LINE = re.compile(r"^# yaml-language-server:.*\n")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_-]+")


def recipes(_options: argparse.Namespace) -> None:
    """Print the name, the purpose and the cost of each recipe that comes with nanochat."""
    for name, path in shipped_recipes().items():
        summary = summarize(path)
        print(name)
        for title, text in (("purpose", summary.purpose), ("cost", summary.cost)):
            print(textwrap.fill(text, _WIDTH, initial_indent=f"  {title:9}  ", subsequent_indent=_INDENT))
    print("\n`nanochat-run NAME` runs one, `nanochat-run new NAME FILE.yaml` copies it to a file that you can edit")


def new(options: argparse.Namespace) -> None:
    """Copy a recipe that comes with nanochat to a file that the user can edit.

    Raises RecipeError if there is no such recipe, or the file exists or is no place for a recipe.
    """
    source, target = shipped_recipes().get(options.name), options.file
    if source is None:
        raise RecipeError(f"there is no recipe `{options.name}`; {did_you_mean(options.name, shipped_recipes())}")
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target}: name a file that ends in .yaml")
    if os.path.lexists(target):
        raise RecipeError(f"{target} already exists; name a new file")
    if not target.absolute().parent.is_dir():
        raise RecipeError(f"{target}: there is no folder {target.parent}; create it first")
    write_text(target, _copied_text(source, target))
    print(f"wrote {target}; `{shlex.join(['nanochat-run', str(target)])}` runs it")
    original, copy = load_recipe(source).recipe, load_recipe(target).recipe
    moved = [f"the source `{name}`" for name, x in original.sources.items() if x.path != copy.sources[name].path]
    moved += [f"`{path}`" for path in sorted(dict(_list_programs(original).items() - _list_programs(copy).items()))]
    if moved:
        print(f"relative paths start at the folder of the recipe: name your files in {', '.join(moved)}")


def _list_programs(recipe: Recipe) -> dict[str, str]:
    """Return the grading programs of the chat evaluation, by the field that names them."""
    suites = {} if recipe.chat_eval is None else recipe.chat_eval.suites
    programs = {name: getattr(suite, "program", None) for name, suite in suites.items()}
    return {f"chat_eval.suites.{name}.program": program for name, program in programs.items() if program is not None}


def _copied_text(source: Path, target: Path) -> str:
    """Return a recipe's text with a name of its own, and with references that are right for its new place."""
    text = _SCHEMA_LINE.sub("", source.read_text("utf-8"))
    text = re.sub(r"^extends: (\w+)\.yaml$", r"extends: \1", text, flags=re.MULTILINE)
    if name := _NOT_IN_NAME.sub("_", target.stem).strip("_-")[:64]:
        text = re.sub(r"^name: .*$", f"name: {name}", text, flags=re.MULTILINE)
    return f"# yaml-language-server: $schema={_schema_reference(target)}\n{text}"


def _schema_reference(target: Path) -> str:
    """Return where editors find the schema: by a relative path in a checkout, which may move, else by an address."""
    schema = schema_path()
    folder = target.resolve().parent
    if folder.is_relative_to(schema.parents[1]) and not is_installed(schema):
        return Path(os.path.relpath(schema, folder)).as_posix()
    return schema.as_uri()
