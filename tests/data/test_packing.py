from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing.documents import DocumentPacker, DocumentStats

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "packing.json").read_text())
SCENARIOS = GOLDEN["scenarios"] if isinstance(GOLDEN, dict) else GOLDEN


def golden_document(i, length):
    return np.array([0, *range(64 * i + 1, 64 * i + length)], dtype=np.int32)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=range(len(SCENARIOS)))
def test_document_packer_makes_the_golden_rows(scenario):
    packer = DocumentPacker(scenario["T"] + 1, scenario["buffer_size"])
    lengths = scenario["document_lengths"]
    taken = 0

    def refill():
        nonlocal taken
        for _ in range(scenario["documents_per_refill"]):
            packer.add(golden_document(taken, lengths[taken]))
            taken += 1

    rows = [packer.next_row(refill).tolist() for _ in scenario["rows"]]
    assert rows == scenario["rows"]
    assert taken == scenario["documents_taken_from_stream"]
    left = [golden_document(i, lengths[i]).tolist() for i in scenario["documents_left_in_buffer"]]
    assert [document.tolist() for document in packer.buffered()] == left


@st.composite
def packings(draw):
    return (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 8)),
        draw(st.integers(1, 4)),
        draw(st.lists(st.integers(1, 20), min_size=1, max_size=30)),
        draw(st.integers(1, 15)),
    )


def slow_rows(row_tokens, buffer_size, per_refill, documents, count):
    """Packs by the rules of the golden README, with linear searches."""
    stream, buffer, rows, cropped = iter(documents), [], [], []
    for _ in range(count):
        row = []
        while len(row) < row_tokens:
            while len(buffer) < buffer_size:
                buffer += [next(stream) for _ in range(per_refill)]
            left = row_tokens - len(row)
            fitting = [document for document in buffer if len(document) <= left]
            chosen = max(fitting, key=len) if fitting else min(buffer, key=len)
            buffer.pop(next(i for i, document in enumerate(buffer) if document is chosen))
            row += chosen[:left]
            cropped += chosen[left:]
        rows.append(row)
    return rows, cropped, buffer


@settings(max_examples=300, deadline=None)
@given(packings())
def test_document_packer_loses_only_cropped_tails_and_invents_no_token(packing):
    row_tokens, buffer_size, per_refill, lengths, count = packing
    documents = []
    for i in range(2000):
        start = sum(map(len, documents[-1:])) and documents[-1][-1] + 1
        documents.append(list(range(start, start + lengths[i % len(lengths)])))
    rows, cropped, buffer = slow_rows(row_tokens, buffer_size, per_refill, documents, count)

    packer = DocumentPacker(row_tokens, buffer_size)
    stream = iter(documents)
    given_out = []

    def refill():
        for _ in range(per_refill):
            given_out.append(next(stream))
            packer.add(np.array(given_out[-1], dtype=np.int32))

    assert [packer.next_row(refill).tolist() for _ in range(count)] == rows
    left = [document.tolist() for document in packer.buffered()]
    assert left == buffer
    everything = sorted([token for part in (*rows, cropped, *left) for token in part])
    assert everything == sorted(token for document in given_out for token in document)
    assert packer.stats == DocumentStats(placed_tokens=count * row_tokens, cropped_tokens=len(cropped))


def test_cropped_frac_is_of_all_tokens_taken():
    assert DocumentStats(placed_tokens=60, cropped_tokens=40).cropped_frac == 0.4
    assert DocumentStats().cropped_frac == 0.0
