from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing.document_packer import BufferedDocument, DocumentPacker, DocumentStats

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "packing.json").read_text())
SCENARIOS = GOLDEN["scenarios"] if isinstance(GOLDEN, dict) else GOLDEN


BOS = 0


def document_of(ids, stream=0):
    return BufferedDocument(np.array(ids, dtype=np.int32), stream)


def golden_ids(i, length):
    """The ids of the golden document behind its BOS."""
    return range(64 * i + 1, 64 * i + length)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=range(len(SCENARIOS)))
def test_document_packer_makes_the_golden_rows(scenario):
    packer = DocumentPacker(scenario["T"] + 1, scenario["buffer_size"], bos_id=BOS, long_documents="crop")
    lengths = scenario["document_lengths"]
    taken = 0

    def refill():
        nonlocal taken
        for _ in range(scenario["documents_per_refill"]):
            packer.add(document_of(golden_ids(taken, lengths[taken])))
            taken += 1
        return True

    rows = [packer.next_row(refill).tolist() for _ in scenario["rows"]]
    assert rows == scenario["rows"]
    assert taken == scenario["documents_taken_from_stream"]
    left = [list(golden_ids(i, lengths[i])) for i in scenario["documents_left_in_buffer"]]
    assert [document.ids.tolist() for document in packer.buffered()] == left


@st.composite
def packings(draw):
    return (
        draw(st.integers(2, 12)),
        draw(st.integers(1, 8)),
        draw(st.integers(1, 4)),
        draw(st.lists(st.integers(1, 20), min_size=1, max_size=30)),
        draw(st.integers(1, 15)),
    )


def slow_rows(row_tokens, buffer_size, per_refill, documents, count, *, keep):
    """Packs documents with their BOS in front by the rules of the golden README, with linear searches."""
    stream, buffer, rows, cropped = iter(documents), [], [], []
    for _ in range(count):
        row = []
        while len(row) < row_tokens:
            while len(buffer) < buffer_size:
                buffer += [next(stream) for _ in range(per_refill)]
            left = row_tokens - len(row)
            fitting = [document for document in buffer if len(document) <= left]
            chosen = max(fitting, key=len) if fitting else buffer[0] if keep else min(buffer, key=len)
            buffer.pop(next(i for i, document in enumerate(buffer) if document is chosen))
            row += chosen[:left]
            if keep and not fitting:
                buffer.append([BOS, *chosen[left:]])
            else:
                cropped += chosen[left:]
        rows.append(row)
    return rows, cropped, buffer


@pytest.mark.parametrize("rule", ["keep", "crop"])
@settings(max_examples=50, deadline=None)
@given(packing=packings())
def test_document_packer_invents_no_token_and_loses_only_cropped_tails(rule, packing):
    row_tokens, buffer_size, per_refill, lengths, count = packing
    documents, next_id = [], 1
    for i in range(2000):
        documents.append([BOS, *range(next_id, next_id + lengths[i % len(lengths)])])
        next_id += lengths[i % len(lengths)]
    rows, cropped, buffer = slow_rows(row_tokens, buffer_size, per_refill, documents, count, keep=rule == "keep")

    packer = DocumentPacker(row_tokens, buffer_size, bos_id=BOS, long_documents=rule)
    stream = iter(documents)
    given_out = []

    def refill():
        for _ in range(per_refill):
            given_out.append(next(stream))
            packer.add(document_of(given_out[-1][1:]))
        return True

    assert [packer.next_row(refill).tolist() for _ in range(count)] == rows
    left = [[BOS, *document.ids.tolist()] for document in packer.buffered()]
    assert left == buffer
    everything = sorted([token for part in (*rows, cropped, *left) for token in part])
    assert [token for token in everything if token != BOS] == [
        i for document in given_out for i in document if i != BOS
    ]
    tails = everything.count(BOS) - len(given_out)
    assert packer.stats == DocumentStats(
        placed_tokens=count * row_tokens, cropped_tokens=len(cropped), tail_bos_tokens=tails
    )
    assert tails == 0 or rule == "keep"


def test_cropped_frac_is_of_all_tokens_taken():
    assert DocumentStats(placed_tokens=60, cropped_tokens=40).cropped_frac == 0.4
    assert DocumentStats().cropped_frac == 0.0
