"""Tests of what the plan says about text that cropping will throw away."""

from __future__ import annotations

import json

import pytest


def crop_notes(bench, lines, *flags):
    """The notes on cropping of a plan whose source has one document per line. Rows have 33 tokens."""
    (bench.folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    source = (
        f"sources.text={{path: {bench.folder}/text.jsonl, validation: {{hash_frac: 0.5}}, max_document_chars: null}}"
    )
    return [note for note in bench.prepare(source, *flags).plan.notes if "crop" in note]


@pytest.fixture
def long_lines():
    """Documents of 3,600 to 3,700 bytes, of which a row of 33 tokens of 1.7 bytes holds about 56: 1.5 %."""
    return [f"{i} " + "words " * (600 + i % 10) for i in range(60)]


def test_plan_warns_that_cropping_throws_away_most_of_long_documents(bench, long_lines):
    (note,) = crop_notes(bench, long_lines, "pretrain.long_documents=crop")
    assert note.startswith("warning: `pretrain.long_documents: crop` throws away 98% of the text")


def test_plan_states_a_small_share_without_a_warning(bench):
    """Thirty-three documents of one token and BOS fit in a row, and nearly nothing is cut."""
    (note,) = crop_notes(bench, [f"{i % 10}" for i in range(60)], "pretrain.long_documents=crop")
    assert note.startswith("`pretrain.long_documents: crop` throws away")


def test_plan_says_nothing_about_cropping_when_all_text_is_kept(bench, long_lines):
    assert crop_notes(bench, long_lines) == []
