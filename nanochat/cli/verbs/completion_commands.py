"""The verb `completion` of `nanochat-run`: print a shell's script, or answer what the script asks."""

from __future__ import annotations

import argparse
import textwrap

from nanochat.cli.completion.candidates import complete
from nanochat.cli.completion.scripts import SCRIPTS

_MAX_MEANING_CHARS = 80


def completion(options: argparse.Namespace) -> None:
    """Print the script for a shell; with the words of a command line, what its last word may be, one per line."""
    if not options.words:
        print(SCRIPTS[options.shell], end="")
        return
    program, *words = _join_settings(options.words) if options.shell == "bash" else options.words
    for candidate in complete(program, words):
        if isinstance(candidate, str):
            print(candidate)
        elif options.shell == "bash":  # it replaces only what follows `=`
            print(candidate.value.partition("=")[2] if "=" in words[-1] else candidate.value)
        else:
            meaning, _, _ = candidate.meaning.partition("\n")
            print(f"{candidate.value}\t{textwrap.shorten(meaning, _MAX_MEANING_CHARS, placeholder='...')}".rstrip())


def _join_settings(words: list[str]) -> list[str]:
    """Return the words of a command line that bash has cut at `=`."""
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined
