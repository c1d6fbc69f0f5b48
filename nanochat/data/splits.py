"""Assigns items to splits: by a hash of their content or name, or by the name of their file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SPLIT_NAMES = ("auxiliary_train", "train", "validation", "valid", "val", "dev", "test")
HELD_OUT_SPLITS = ("validation", "dev", "test")
"""Splits that are never trained on."""
SPLIT_KEYS = ("split", "subset", "fold")
"""Keys that may name the split of a row."""
SPLIT_PATTERN = r"^([^\[\]]+)(?:\[(-?[0-9]+)?:(-?[0-9]+)?\])?$"
"""The form of a split in a recipe: a name, and optionally a slice of its rows."""

_SYNONYMS = {"valid": "validation", "val": "validation"}
# Not `tests`: in source code that is a folder of programs, not data that a model is tested on.
_HELD_OUT_WORDS = dict.fromkeys(
    ("eval", "evaluation", "validate", "heldout", "held_out", "held-out", "holdout"), "validation"
)
_COPY_NUMBER = re.compile(r"( copy)?( ?\([0-9]+\)| [0-9]+)?$")
_VERSION_AT_END = re.compile(r"(?<=test)[._-](v[0-9]+|data|final)$")
_VERSION = re.compile(r"[._-](v[0-9]+|final)$")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NUMBER = re.compile(r"[0-9]+")
_DOUBTFUL_WORDS = {"test", "tests", "eval", "evaluation", "validation", "heldout", "holdout"}
_NAME = f"(?P<name>{'|'.join(SPLIT_NAMES)})"
_SHARD_NUMBER = re.compile(r"[._-][0-9]+([._-]of[._-][0-9]+([._-][0-9a-z]+)?)?$")
_AT_END = re.compile(rf"((?P<prefix>.*?)[._-])??{_NAME}[0-9]*")
_HELD_OUT_AT_END = re.compile(r"(?P<prefix>.*)[._-](heldout|held[_-]out|holdout)[0-9]*")
_DATA_AT_END = re.compile(
    r"((?P<prefix>.*)[._ -])?"
    r"((?P<name>test|dev|val|valid|validation|eval|evaluation)[._ -]?(set|data|split)|(?P<eval>eval|evaluation))[0-9]*"
)
_WORD_OF_SPLIT = re.compile(
    r"(?<![^/._ -])(train|test|dev|val|valid|validation|eval|evaluation|heldout|holdout)(?![^/._ -])"
)
_AT_START = re.compile(rf"{_NAME}(-[^ ]+|[._][0-9a-z]+)")
_AT_START_OF_SHARD = re.compile(rf"{_NAME}[._-].+")


def hash_share(key: str) -> float:
    """Return a number from 0 to 1 that the sha256 of `key` decides, evenly distributed over different keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


def is_held_out(key: str, held_out_frac: float) -> bool:
    """Return whether `key` belongs to the fraction held out for validation, which its sha256 alone decides."""
    return hash_share(key) < held_out_frac


def parse_split(split: str) -> tuple[str, slice | None]:
    """Return a split's name and the slice of its rows, None for all: `train`, `train[:500]`, `train[-50:]`."""
    match = re.match(SPLIT_PATTERN, split)
    if match is None or not split.endswith("]"):
        return split, None
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def canonical_split(name: str) -> str:
    """Return the usual name of a split. `valid` and `val` mean `validation`; MMLU has both `validation` and `dev`."""
    return _SYNONYMS.get(name.lower(), name.lower())


def held_out_by(row: Mapping[str, object]) -> str | None:
    """Return the field by which a row belongs to a held-out split, such as `split: test`; None if there is none."""
    for key in SPLIT_KEYS:
        value = row.get(key)
        if isinstance(value, str) and canonical_split(value.strip()) in HELD_OUT_SPLITS:
            return f"{key}: {value.strip()}"
    return None


@dataclass(frozen=True)
class SplitLabel:
    """The split in a name: `train_sft-00000-of-00001` has the label `train_sft` of the split `train`.

    Attributes:
        label: the name in lower case without shard numbers, from the split on.
        split: the usual name of the split.
        prefix: what precedes the split: `sgd` in `sgd_validation`.
    """

    label: str
    split: str
    prefix: str = ""

    @property
    def part(self) -> tuple[str, str]:
        """What the label says besides the split: the prefix, and what follows. `train_sft` and `test_sft` share it."""
        return self.prefix, re.sub(f"^{_NAME}", "", self.label)


def split_of_names(names: Iterable[str], *, is_data: bool = False) -> SplitLabel | None:
    """Return the split in the first of `names` that contains one, or None.

    Recognised, in lower and upper case: `train-00000-of-00001`, `train_0`, `sgd_validation`, `x.train`,
    `train_sft-00000-of-00001`, `train_sft`, `test (1)`, `test copy`, `my_test_data`, `eval`, `x_heldout`. In names of
    files that hold data, not prose or programs (`is_data`), also `x_eval`, `TestData`, `my-devset`.
    """
    labels = [label for label in (_split_of_name(name, is_data) for name in names) if label is not None]
    if labels and labels[0].split == "train" != labels[0].label:  # `train_timetable` below a folder `test`
        return next((label for label in labels if label.split != "train"), labels[0])
    return labels[0] if labels else None


def splits_of_twins(names: Iterable[str]) -> dict[str, SplitLabel]:
    """Return the splits of names that differ only in them and in numbers: `train_en_de.txt` and `test_en_de.txt`.

    One of such names must say `train`. Without it, `test_drive_in_rome` may be about driving.
    """
    twins: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        if (match := _WORD_OF_SPLIT.search(name.lower())) is not None:
            rest = _NUMBER.sub("0", name.lower()[: match.start()]), _NUMBER.sub("0", name.lower()[match.end() :])
            twins.setdefault(rest, {})[name] = _HELD_OUT_WORDS.get(match[0]) or canonical_split(match[0])
    return {
        name: SplitLabel(split, split)
        for group in twins.values()
        if "train" in group.values() and len({*group.values()}) > 1
        for name, split in group.items()
    }


def may_be_held_out(name: str) -> bool:
    """Return whether a word of a name suggests held-out data, as in `test_a_b`. Names of prose have such words, too."""
    return not _DOUBTFUL_WORDS.isdisjoint(re.split(r"[^a-z]+", _with_words(name)))


def _split_of_name(name: str, is_data: bool) -> SplitLabel | None:
    name = name.removeprefix("._").removeprefix(".")  # a visible link may lead to a hidden file
    words, name = _with_words(name), name.lower()
    name = _VERSION_AT_END.sub("", _COPY_NUMBER.sub("", name))
    stem = _SHARD_NUMBER.sub("", name)
    if stem in _HELD_OUT_WORDS:
        return SplitLabel(_HELD_OUT_WORDS[stem], _HELD_OUT_WORDS[stem])
    if match := _AT_END.fullmatch(stem):
        split = canonical_split(match["name"])
        return SplitLabel(split, split, match["prefix"] or "")
    if match := _HELD_OUT_AT_END.fullmatch(stem):
        return SplitLabel("validation", "validation", match["prefix"])
    if is_data and (match := _DATA_AT_END.fullmatch(_VERSION.sub("", _SHARD_NUMBER.sub("", words)))):
        word = match["name"] or match["eval"]
        split = _HELD_OUT_WORDS.get(word) or canonical_split(word)
        return SplitLabel(split, split, match["prefix"] or "")
    if match := (_AT_START if stem == name else _AT_START_OF_SHARD).fullmatch(stem):
        return SplitLabel(stem, canonical_split(match["name"]))
    return None


def _with_words(name: str) -> str:
    """Return a name in lower case with its words separated: `my_test_data` for `MyTestData`."""
    return _HUMP.sub("_", name).lower()
