from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.errors import PreflightError, StageError
from nanochat.tokenizer import bpe

valid_text = st.text(st.characters(exclude_categories=["Cs"]))
mixed_text = st.lists(valid_text | st.sampled_from([*bpe.SPECIAL_TOKENS, "\u2581", "\u2585", "the ", "\n    "])).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(mixed_text)
@example("\u2581 \u2585\u2047\u2581\u2581\t\0\ufeff\r\n \u200b")
def test_encode_is_lossless_and_gives_no_special_id(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(i < 10 for i in ids)


@settings(max_examples=50, deadline=None)
@given(st.lists(mixed_text))
def test_encode_batch_gives_the_ids_of_encode(tokenizer, texts):
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in batch)


@settings(max_examples=60, deadline=None)
@given(mixed_text)
def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.id_to_bytes(i) for i in ids) == text.encode()
    assert int(tokenizer.token_bytes[ids].sum()) == len(text.encode())


def test_ids_have_the_order_that_checkpoints_expect(tokenizer):
    """0 unknown, 1-9 specials in their order, 10-265 the bytes."""
    assert [tokenizer.special(name) for name in bpe.SPECIAL_TOKENS] == list(range(1, 10))
    assert tokenizer.bos_id == 1
    assert [tokenizer.id_to_bytes(10 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token_bytes[:10].tolist() == [0] * 10
    assert tokenizer.token_bytes[10:266].tolist() == [1] * 256
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) <= 600


def test_decode_writes_special_tokens_by_name(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.special("<|user_end|>")]
    assert tokenizer.decode(ids) == "<|bos|>hi<|user_end|>"


def test_decode_replaces_invalid_utf8(tokenizer):
    assert tokenizer.decode([10 + 0xE2, 10 + 0x41]) == "\ufffdA"


def test_encode_gives_one_id_per_digit(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == list("12345")


@pytest.mark.parametrize("text", ["\ud83d", "abc\udc00", "\u2581\ud800"])
def test_encode_refuses_half_a_surrogate_pair(tokenizer, text):
    with pytest.raises(bpe.TextError, match="lone surrogate U\\+D"):
        tokenizer.encode(text)
    with pytest.raises(bpe.TextError, match="lone surrogate U\\+D"):
        tokenizer.encode_batch(["fine", text])


def test_load_returns_the_saved_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "out")
    again = bpe.Tokenizer.load(tmp_path / "out")
    assert again.model == tokenizer.model
    assert again.encode("the lazy naïve fox") == tokenizer.encode("the lazy naïve fox")


def test_load_names_a_missing_or_damaged_file(tmp_path):
    with pytest.raises(PreflightError, match=r"no tokenizer at .*tokenizer\.model"):
        bpe.Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"broken")
    with pytest.raises(PreflightError, match=r"tokenizer\.model: not a SentencePiece model"):
        bpe.Tokenizer.load(tmp_path)


def train_small(texts, **changes):
    return bpe.train(texts, **{"vocab_size": 500, "max_chars": 10**6, "max_document_chars": 10_000, **changes})


ALPHABETS = {
    "Chinese": "春江潮水连海平。\u3000\n",
    "Japanese": "きょうはいい天気です、ネコ。",
    "Thai": "สวัสดีครับผม",
    "code": "def f(x):\n\treturn x_1 #",
    "emoji": "😀👍🏽👩\u200d👧",
    "words": "ab \r\n",
    "separators": "\0\t\u2581\u2585\u2028 ",
    "special": "<|bos|><unk><0x41>",
}
text_of_one_script = st.sampled_from(list(ALPHABETS.values())).flatmap(st.text)
text_of_scripts = st.lists(text_of_one_script | valid_text | st.sampled_from(bpe.SPECIAL_TOKENS)).map("".join)


@settings(max_examples=50, deadline=None)
@given(trained_on=text_of_scripts, text=text_of_scripts)
def test_train_gives_a_lossless_tokenizer_for_any_text(trained_on, text):
    """The tokenizer is trained on text of a few scripts, each piece repeated, and encodes text of other scripts."""
    trained = train_small(["x" + trained_on * 5])
    for tested in (text, trained_on, f" {text} {text[::-1]}"):
        ids = trained.encode(tested)
        assert trained.decode(ids) == tested
        assert [part.tolist() for part in trained.encode_batch([tested])] == [ids]
        assert int(trained.token_bytes[ids].sum()) == len(tested.encode())
        assert not any(i < 10 for i in ids)


@pytest.mark.parametrize("spaces", [0, 1, 3])
def test_train_makes_a_rare_space_a_piece_of_one_byte(spaces):
    """3 spaces in 12,000 characters are 0.025 %, less than the 0.05 % of rare characters that have no piece."""
    trained = train_small(["春江潮水连海平。\n" * 1333 + " 春" * spaces], max_document_chars=20_000)
    (space,) = trained.encode(" ")
    assert trained.id_to_bytes(space) == b" "
    assert trained.token_bytes[space] == 1
    assert trained.decode(trained.encode("Hello 你好 world")) == "Hello 你好 world"


def test_train_is_deterministic():
    texts = ["a rose is a rose is a rose\n" * 20, "violets are blue and bluer\n" * 20]
    assert train_small(texts).model == train_small(iter(texts)).model


def test_train_gives_fewer_pieces_for_a_tiny_text():
    assert train_small(["ab ab"]).vocab_size < 300


def test_train_refuses_a_vocab_size_that_is_too_small():
    """9 special tokens, the unknown token and 256 bytes are 266 pieces; a, b and the space make 269."""
    with pytest.raises(StageError, match=r"vocab_size: 260.*269 pieces"):
        train_small(["ab ab"], vocab_size=260)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n", "\u2581"]])
def test_train_refuses_empty_text(texts):
    with pytest.raises(StageError, match="no text to train on"):
        train_small(texts)


def test_train_reads_no_more_than_its_limits():
    """The limits are 3 letters per document and 7 in total, so 1 letter of the third document is used."""
    documents = []

    def texts():
        for text in ["abcX", "defX", "ghiX", "jklX"]:
            documents.append(text)
            yield text

    pieces = train_small(texts(), max_document_chars=3, max_chars=7)
    learned = {pieces.id_to_bytes(i) for i in range(266, pieces.vocab_size)}
    assert {bytes([byte]) for byte in b"abcdefg"} <= learned
    assert not any(set(piece) & set(b"hiX") for piece in learned)
    assert documents == ["abcX", "defX", "ghiX"]


def test_train_raises_the_error_of_its_source():
    def texts():
        yield "some text"
        raise StageError("shard 7 is truncated")

    with pytest.raises(StageError, match=r"^shard 7 is truncated$"):
        train_small(texts())


def test_train_learns_from_text_with_the_separators_of_sentencepiece():
    learned = train_small(["wombat \u2585 wombat wombat \u2581"] * 50)
    assert len(learned.encode("wombat")) <= 2


@pytest.mark.parametrize("examples", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_stream_decoder_returns_complete_characters(tokenizer, examples):
    draw = random.Random(5)
    for _ in range(examples):
        text = "".join(chr(draw.choice([0x41, 0xE9, 0x4E2D, 0x1F600, 0x2581]) + draw.randrange(16)) for _ in range(6))
        stream = bpe.StreamDecoder(tokenizer)
        shown = [stream.feed(i) for i in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(shown)
        assert "".join(shown) + stream.flush() == text


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(1, 290)))
def test_stream_decoder_agrees_with_decode(tokenizer, ids):
    ids = [i for i in ids if i < tokenizer.vocab_size]
    stream = bpe.StreamDecoder(tokenizer)
    assert "".join([stream.feed(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)


def test_stream_decoder_replaces_an_incomplete_character_at_the_end(tokenizer):
    stream = bpe.StreamDecoder(tokenizer)
    assert [stream.feed(10 + byte) for byte in "€".encode()[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
