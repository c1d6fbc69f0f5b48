"""Finds what may come next in a command line: a command, an option, a recipe, a run, a stage, a value.

A shell asks this whenever the Tab key is pressed, so nothing here may need a slow import.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.cli.arguments.commands import VERBS
from nanochat.cli.arguments.parser import Parser
from nanochat.cli.completion.recipe_keys import Candidate, complete_setting
from nanochat.errors import PreflightError
from nanochat.recipe.shipped import shipped_recipes, summarize
from nanochat.runtime import base_dir
from nanochat.storage.layout import run_folders

CHAT = "nanochat-chat"
RECIPE_FILES, FILES, FOLDERS = ":recipe-files", ":files", ":folders"
"""Lines that ask the shell to add names of files or folders."""
_PATHS = {"FOLDER": FOLDERS, "FILE": FILES, "MODEL": FILES}


@dataclass
class _Line:
    """The finished words of a command line after the command, read by the command's parser."""

    parser: Parser
    words: Sequence[str]
    positionals: list[str] = field(default_factory=list)
    pending: argparse.Action | None = None
    """The option whose value comes next."""

    def __post_init__(self) -> None:
        flags = self.parser.flags()
        for word in self.words:
            if self.pending is not None:
                self.pending = None
            elif not word.startswith("-"):
                self.positionals.append(word)
            elif word in flags and flags[word].nargs != 0:
                self.pending = flags[word]

    def next_positional(self) -> argparse.Action | None:
        """Return the argument that a word without an option would be, None if all are given."""
        place = 0
        for action in self.parser.positionals():
            place += action.nargs if isinstance(action.nargs, int) else 1
            if len(self.positionals) < place or action.nargs in ("+", "*"):
                return action
        return None

    @property
    def recipe(self) -> str | None:
        """The recipe that the line names, or None."""
        takes_recipe = any(action.metavar == "RECIPE" for action in self.parser.positionals())
        return self.positionals[0] if takes_recipe and self.positionals else None


def complete(program: str, words: Sequence[str]) -> Iterator[Candidate | str]:
    """Yield the words that the last one on a command line may become, and which files it may name.

    `words` are those after the program's name. The text after `=` in such a word belongs to it.
    """
    *before, current = words or [""]
    if Path(program).name == CHAT:
        from nanochat.cli.chat_loop import make_parser

        parser = make_parser()
    elif before and before[0] in VERBS:
        parser, before = VERBS[before[0]].parser(), before[1:]
    else:
        parser = VERBS["run"].parser()
        if not before:
            yield from _starting(current, (Candidate(verb.name, verb.summary) for verb in VERBS.values()))
            yield from _starting(current, (Candidate(flag) for flag in ("--version", "--help")))
    line = _Line(parser, before)
    if line.pending is not None:
        yield from _values(line.pending, current, line)
    elif current.startswith("-"):
        flag, has_value, value = current.partition("=")
        if has_value and flag in parser.flags():
            for candidate in _values(parser.flags()[flag], value, line):
                yield candidate if isinstance(candidate, str) else candidate.after(f"{flag}=")
        else:
            flags = {name: action for name, action in parser.flags().items() if name.startswith("--")}
            yield from _starting(current, (Candidate(name, action.help or "") for name, action in flags.items()))
    elif (action := line.next_positional()) is not None:
        yield from _values(action, current, line)


def _values(action: argparse.Action, current: str, line: _Line) -> Iterator[Candidate | str]:
    """Yield the possible values of an option or an argument."""
    if action.choices is not None:
        yield from _starting(current, (Candidate(str(choice)) for choice in action.choices))
    match action.metavar:
        case "KEY=VALUE":
            yield from complete_setting(current, None if line.recipe is None else Path(line.recipe))
        case "RECIPE" | "NAME":
            recipes = shipped_recipes().items()
            yield from _starting(current, (Candidate(name, summarize(path).purpose) for name, path in recipes))
            if action.metavar == "RECIPE":
                yield RECIPE_FILES
        case "RUN" | "RUN_OR_FOLDER" | "RUN_OR_CHECKPOINT":
            yield from _starting(current, _runs(current))
            yield FOLDERS
        case "STAGE":
            from nanochat.recipe.schema.recipe import STAGE_SECTIONS

            yield from _starting(current, (Candidate(name) for name in STAGE_SECTIONS))
        case str(name) if name in _PATHS:
            yield _PATHS[name]


def _runs(current: str) -> Iterator[Candidate]:
    """Yield the names of runs; after a name and a slash, the times of its runs."""
    try:
        folders = run_folders(base_dir())
    except (OSError, PreflightError):
        return
    if "/" in current:
        yield from (Candidate(folder.reference) for folder in folders)
    else:
        yield from (Candidate(name) for name in sorted({folder.path.parent.name for folder in folders}))


def _starting(prefix: str, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    return (candidate for candidate in candidates if candidate.value.startswith(prefix))
