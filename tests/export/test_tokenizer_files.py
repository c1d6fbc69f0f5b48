"""`tokenizer.json` gives the ids of our tokenizer, and the chat template those of our rendering."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from export_conversations import random_conversation, random_text

from nanochat.checkpoint.foreign.pickled_tokenizer import read_pickled_tokenizer
from nanochat.export.tokenizer_files import tokenizer_json, write_tokenizer_files
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import render

pytestmark = pytest.mark.export

TEXT = [
    "the quick brown fox jumps over lazy dogs\n    while naïve coöperation costs 12345 yen\n\n\n" * 3,
    "def return self" + " " * 40 + "x" + "\t" * 9,
]


PICKLED = Path(__file__).parents[1] / "golden" / "torch_2026-07" / "tokenizer" / "tokenizer.pkl"


@pytest.fixture(scope="module", params=["trained", "imported"])
def tokenizer(request: pytest.FixtureRequest) -> bpe.Tokenizer:
    """A SentencePiece model, or the byte-level BPE of an imported model."""
    if request.param == "imported":
        return bpe.Tokenizer(read_pickled_tokenizer(PICKLED))
    return bpe.train(TEXT, vocab_size=420, max_chars=10**4, max_document_chars=10**4)


def test_tokenizer_json_gives_our_ids(tokenizer):
    from tokenizers import Tokenizer

    theirs, draw = Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer))), random.Random(3)
    words = [
        "the",
        "quick ",
        " ",
        "  ",
        "   ",
        "\n",
        "naïve",
        "12",
        "漢",
        "🙂",
        "\0",
        "\u2581",
        "\u2585",
        "<0x41>",
        "fox",
        "\t",
    ]
    for _ in range(5000):
        text = "".join(draw.choice(words) for _ in range(draw.randrange(20)))
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert theirs.encode("fox").ids == [tokenizer.bos_id, *tokenizer.encode("fox")]


@pytest.mark.slow
def test_tokenizer_json_gives_our_ids_on_real_text():
    """All documents under NANOCHAT_TEST_DATA/text, with a tokenizer that was trained on them."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    shards = sorted(Path(os.environ["NANOCHAT_TEST_DATA"], "text").glob("*.parquet"))
    documents = [text for shard in shards for text in pq.read_table(shard, columns=["text"])["text"].to_pylist()]
    ours = bpe.train(documents, vocab_size=8192, max_chars=10**7, max_document_chars=10**4)
    theirs = Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    count = 0
    for text, ids in zip(documents, ours.encode_batch(documents), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids.tolist()
        count += len(ids)
    assert count > 10**6
    print(f"{count:,} ids of {len(documents):,} documents are the same")


def test_transformers_renders_conversations_as_we_do(tokenizer, tmp_path):
    """A thousand conversations, loaded through AutoTokenizer. Special tokens in their texts stay text."""
    from transformers import AutoTokenizer

    write_tokenizer_files(tmp_path, tokenizer, context=512)
    theirs, draw = AutoTokenizer.from_pretrained(tmp_path), random.Random(5)
    for _ in range(1000):
        conversation, messages = random_conversation(draw)
        ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert ids == render(tokenizer, conversation).ids
    text = random_text(draw)
    prompt = theirs.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|user_end|><|assistant_start|>")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.special("<|assistant_end|>"))
    assert theirs.pad_token_id == (tokenizer.bos_id if tokenizer.is_byte_level else 0)
