"""Mutate the shipped recipes: each must be valid, or be refused with located errors; never a traceback, never a hang.

`python tests/torture/mutate.py --count 1000 --seed 1`. The default suite runs two hundred of them.
"""

# ruff: noqa: E501 -- the tables of junk
from __future__ import annotations

import argparse
import contextlib
import copy
import io
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat.cli.run import main as command

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SECONDS = 10
"""CPU seconds after which a check counts as hanging. Speed is not tested: processors differ."""

JUNK: tuple[object, ...] = (
    None, True, -1, 0, 1, 3.5, 1e308, float("nan"), float("inf"), 10**30, -(10**30), "", " ", "null", "20M", "-5", "1e-4",
    "1_000", "0x10", "12:30", "NO", "${vars.x}", "${vars.${vars.x}}", "${", "${env.HOME}", "../../etc/passwd", "~", "/",
    "file:///etc/passwd", "hf://datasets/", "hf://datasets/a/b@", "http://[::1", "☃" * 50, "\u202eevil", "a\u0300", "\x7f",
    "x" * 20_000, "\n\n\n", "{}", "[]", "*", "&", "!", "%s", "{0}", "$(id)", "`id`", "'; drop table", [], {}, [[]], [None],
    [{}], {"": ""}, {"a": {"b": {"c": {}}}}, ["x"] * 3_000, list(range(50)), {str(i): i for i in range(500)},
)  # fmt: skip

LINES: tuple[str, ...] = (
    "\t", "\tx: 1", "<<: *nobody", "<<: {a: 1}", "a: &a [*a]", "x: !!python/object/apply:os.system ['true']", "x: !!binary aGk=",
    "x: !unknown 1", "%YAML 1.1", "---", "...", "? [a, b]\n: c", "? ", ": ", "-", "- x", "x: 'unclosed", 'x: "\\q"', "x: [1, 2",
    "x: {a: 1", "x: |\n  text", "x: >+\n", "x: @here", "x: `y`", "\ufeff", "\x00", "\x07", "\x85", "\u2028", "x: 2026-01-01",
    "x: 0o17", "x: .inf", "x: .nan", "? 1\n: 2", "1: 2", "null: 1", "true: 1", "{a: b}: c", "x: y: z", "#", "x: #y", "x:y",
    "extends: mutated.yaml", "extends: /etc/passwd", "extends: ../../../etc/passwd", "extends: [dry_run.yaml, dry_run.yaml]",
    "extends: 3", "extends: dry_run.yml", "extends: .", "extends: \"\\0\"", "name: ../escape", "name: ''", "nanochat: 2", "seed: -1",
    "vars: {x: '${vars.x}'}", "vars: {x: '${vars.y}', y: '${vars.x}'}",
    "l0: &l0 [x]\nl1: &l1 [*l0, *l0, *l0, *l0, *l0, *l0, *l0, *l0]\nl2: &l2 [*l1, *l1, *l1, *l1, *l1, *l1, *l1, *l1]\n"
    "l3: &l3 [*l2, *l2, *l2, *l2, *l2, *l2, *l2, *l2]\nl4: &l4 [*l3, *l3, *l3, *l3, *l3, *l3, *l3, *l3]\n"
    "l5: &l5 [*l4, *l4, *l4, *l4, *l4, *l4, *l4, *l4]\nl6: &l6 [*l5, *l5, *l5, *l5, *l5, *l5, *l5, *l5]",
    "deep: " + "[" * 200 + "]" * 200, "deep: " + "{a: " * 90 + "1" + "}" * 90, "x: " + "9" * 5_000, "x: " + "y" * 200_000,
    "big: [" + "1, " * 40_000 + "1]",
)  # fmt: skip

FLAGS: tuple[str, ...] = (
    "a", "=", "a=", "=a", "model.n_layer", "model.n_layer=", "model.n_layer=-1", "model..n_layer=1", ".=1", "model=3", "seed=[",
    "seed={", "seed=x: y", "name=\x00", "vars.x=${vars.x}", "pretrain.horizon={steps: 1, tokens: 2}", "extends=dry_run.yaml",
    "sft=null", "model=null", "tokenizer=null", "sources.a.path=/etc", "run.limits.memory=1e400", "a.b.c.d.e.f=1", "☃=1",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A recipe file's bytes, flags, and how it came about."""

    content: bytes
    flags: tuple[str, ...]
    history: tuple[str, ...]


def mutate(rng: random.Random, recipes: list[Path]) -> Mutant:
    """Return a recipe changed in one to four places: in its tree, then in its text, then in its bytes."""
    source = rng.choice(recipes)
    tree, history = yaml.safe_load(source.read_text(encoding="utf-8")), [source.name]
    text = source.read_text(encoding="utf-8")
    kinds = ["tree", "text", "bytes", "flag"]
    changes = Counter(rng.choices(kinds, weights=[5, 4, 1, 1], k=rng.choice([1, 1, 1, 2, 3, 4])))
    if changes["tree"]:
        history += [_change_tree(rng, tree) for _ in range(changes["tree"])]
        text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    for _ in range(changes["text"]):
        text, did = _change_text(rng, text)
        history.append(did)
    content = text.encode("utf-8", errors="surrogatepass")
    for _ in range(changes["bytes"]):
        content, did = _change_bytes(rng, content)
        history.append(did)
    flags = tuple(rng.choice(FLAGS) for _ in range(changes["flag"]))
    return Mutant(content, flags, tuple(history))


def _places(node: object, above: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Return the path of every value under a tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, value in items:
        found += [(*above, key), *_places(value, (*above, key))]
    return found


def _change_tree(rng: random.Random, tree: Any) -> str:
    places = _places(tree)
    if not places:
        return "empty"
    path = rng.choice(places)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key, shown = path[-1], ".".join(map(str, path))
    what = rng.choice(["junk", "junk", "junk", "delete", "rename", "graft", "nest", "scale"])
    value = holder[key]
    if what == "delete":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        new = rng.choice(
            [f"{key}s", str(key)[:-1], str(key).upper(), "☃", "", " ", 1, None, True, "x" * 300, "a.b", "${vars.x}"]
        )
        holder[new] = holder.pop(key)
    elif what == "graft":
        other = tree
        for step in rng.choice(places):
            with contextlib.suppress(KeyError, IndexError, TypeError):
                other = other[step]
        holder[key] = copy.deepcopy(other)
    elif what == "nest":
        for _ in range(rng.choice([1, 3, 70])):
            value = rng.choice([[value], {"x": value}])
        holder[key] = value
    elif what == "scale" and isinstance(value, (int, float)) and not isinstance(value, bool):
        holder[key] = value * rng.choice([-1, 0, 0.5, 3, 1e6, 1e18])
    else:
        holder[key] = rng.choice(JUNK)
    return f"{what} {shown[:60]}"


def _change_text(rng: random.Random, text: str) -> tuple[str, str]:
    lines = text.splitlines(keepends=True) or ["\n"]
    at = rng.randrange(len(lines))
    match rng.choice(["insert", "insert", "insert", "drop", "double", "indent", "swap", "breaks", "comment", "cut"]):
        case "insert":
            line = rng.choice(LINES)
            indent = rng.choice(["", "", "  "])
            lines.insert(at, indent + line + "\n")
            return "".join(lines), f"insert {line[:40]!r}"
        case "drop":
            del lines[at]
            return "".join(lines), f"drop line {at + 1}"
        case "double":
            lines.insert(at, lines[at])
            return "".join(lines), f"double line {at + 1}"
        case "indent":
            lines[at] = rng.choice([" ", "   ", "\t"]) + lines[at]
            return "".join(lines), f"indent line {at + 1}"
        case "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            return "".join(lines), f"swap lines {at + 1} and {other + 1}"
        case "breaks":
            ending = rng.choice(["\r\n", "\r", "\u2028", "\n\n"])
            return text.replace("\n", ending), f"line breaks {ending!r}"
        case "comment":
            return text.replace(":", rng.choice([" :", ":  ", "::", "#:"]), at), "colons"
        case _:
            cut = rng.randrange(len(text) + 1)
            return text[:cut], f"cut at {cut}"


def _change_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    at = rng.randrange(len(content) + 1)
    match rng.choice(["flip", "insert", "utf-16", "empty", "nul", "huge"]):
        case "flip" if at < len(content):
            changed = bytearray(content)
            changed[at] ^= 1 << rng.randrange(8)
            return bytes(changed), f"flip a bit of byte {at}"
        case "insert":
            junk = rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc3", b"\x1b[31m", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80"])
            return content[:at] + junk + content[at:], f"insert {junk!r} at {at}"
        case "utf-16":
            return content.decode("utf-8", errors="replace").encode("utf-16"), "utf-16"
        case "empty":
            return b"", "empty"
        case "huge":
            return content + b"# padding\n" * 300_000, "3 MB"
        case _:
            return content[:at] + b"\0" + content[at:], f"NUL at {at}"


def judge(mutant: Mutant, path: Path) -> tuple[str, str]:
    """Write the mutant to `path` and check it; return `valid`, `refused` or what is wrong, and what was printed."""
    path.write_bytes(mutant.content)
    flags = [word for flag in mutant.flags for word in ("--set", flag)]
    said = io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = command(["check", str(path), *flags])
        except SystemExit as stop:  # argparse, of a flag that is none
            code = int(stop.code or 0)
    seconds, text = time.process_time() - began, said.getvalue()
    if seconds > SECONDS:
        return f"took {seconds:.1f} s", text
    if code == 0:
        return "valid", text
    if code != 2:
        return f"exit {code}", text
    found = re.split(r"^(?=error\[)", text, flags=re.MULTILINE)[1:]
    unplaced = [error for error in found if not re.search(r"^ *-->", error, re.MULTILINE) and str(path) not in error]
    if not found or unplaced:
        return f"{len(found)} errors, {len(unplaced)} of them without a place", text
    return "refused", text


def sweep(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[tuple[Mutant, str, str]]]:
    """Judge `count` mutants in a copy of the recipe folder; return how many ended how, and those that are wrong."""
    recipes = folder / "recipes"
    shutil.copytree(RECIPES, recipes)
    rng, shipped = random.Random(seed), sorted(recipes.glob("*.yaml"))
    counts: Counter[str] = Counter()
    wrong = []
    for _ in range(count):
        mutant = mutate(rng, shipped)
        verdict, text = judge(mutant, recipes / "mutated.yaml")
        counts[verdict] += 1
        if verdict not in ("valid", "refused"):
            wrong.append((mutant, verdict, text))
    return counts, wrong


def main() -> int:
    """Sweep and print the counts; return 1 where a mutant was neither valid nor refused with a place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nanochat-mutants-") as folder:
        counts, wrong = sweep(options.count, options.seed, Path(folder))
    for mutant, verdict, text in wrong:
        print(f"{verdict}: {'; '.join(mutant.history)} {mutant.flags}\n{text[:2000]}\n")
    print(
        f"{options.count} mutated recipes, seed {options.seed}: {', '.join(f'{n} {v}' for v, n in counts.most_common())}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
