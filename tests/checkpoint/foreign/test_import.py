"""Models of PyTorch nanochat, mlx-lm and transformers are imported with their logits and their ids."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.checkpoint.foreign.model import _BLOCK_NAMES
from nanochat.checkpoint.model_folder import load_model, load_tokenizer
from nanochat.cli.run import main
from nanochat.errors import OK, PreflightError
from nanochat.tokenizer.byte_level_codec import from_tiktoken
from nanochat.tokenizer.chat_format import Conversation, Message, Part, render

GOLDEN = Path(__file__).parents[2] / "golden"
TORCH = ["torch_2026-07", "torch_2025-10"]
TOLERANCE = 1e-4  # of logits up to 10, float32


def expected(name: str) -> dict:
    return json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))


def import_model(*arguments: object) -> int:
    return main(["import", *map(str, arguments)])


@pytest.mark.export
@pytest.mark.parametrize(("name", "architecture"), [("torch_2026-07", "current"), ("torch_2025-10", "portable")])
def test_checkpoint_of_pytorch_nanochat_keeps_its_logits(name, architecture, tmp_path):
    """The checkpoint is named as a folder; its tokenizer lies in the base folder around it."""
    assert import_model(GOLDEN / name / "base_checkpoints" / "d3", tmp_path / "model") == OK
    model, values = load_model(tmp_path / "model"), expected(name)
    assert model.config.architecture == architecture
    found = np.array(model(mx.array(values["idx"])))
    logits = mx.load(str(GOLDEN / name / "logits.safetensors"))
    assert isinstance(logits, dict)
    assert np.abs(found - np.array(logits["logits"])).max() <= TOLERANCE
    assert load_tokenizer(tmp_path / "model").encode(values["texts"][1]) == values["ids"][1]


@pytest.fixture(params=["mlx-lm", "transformers"])
def library_folder(request, tmp_path) -> Path:
    """A folder as each library writes it, with the golden weights and a tokenizer of as many tokens."""
    tensors = mx.load(str(GOLDEN / "portable_p1.safetensors"))
    assert isinstance(tensors, dict)
    weights = {name: x.astype(mx.float32) for name, x in tensors.items() if name.endswith("weight") and "." in name}
    weights = {name: x for name, x in weights.items() if not name.startswith(("grad", "trace", "out", "in."))}
    config = {
        "model_type": "nanochat",
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 48,
    }
    if request.param == "transformers":
        theirs = {ours: name for name, ours in _BLOCK_NAMES.items()}
        weights = {transformers_name(name, theirs): x for name, x in weights.items()}
        config |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    folder = tmp_path / "theirs"
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer_json("torch_2026-07"))
    return folder


def transformers_name(name: str, theirs: dict[str, str]) -> str:
    if name == "transformer.wte.weight":
        return "model.embed_tokens.weight"
    if not name.startswith("transformer.h."):
        return name
    _, _, layer, rest = name.split(".", 3)
    return f"model.layers.{layer}.{theirs[rest.removesuffix('.weight')]}.weight"


def tokenizer_json(name: str) -> bytes:
    from nanochat.checkpoint.foreign.pickled_tokenizer import read_pickled_tokenizer

    return read_pickled_tokenizer(GOLDEN / name / "tokenizer" / "tokenizer.pkl")


def test_folder_of_a_library_keeps_its_logits(library_folder, tmp_path):
    """The expected logits are those of both libraries (`tests/golden/README.md`)."""
    assert import_model(library_folder, tmp_path / "model") == OK
    golden = mx.load(str(GOLDEN / "portable_p1.safetensors"))
    assert isinstance(golden, dict)
    model = load_model(tmp_path / "model")
    assert model.config.norm_eps is None
    found = np.array(model(golden["in.idx"]))
    assert np.abs(found - np.array(golden["out.logits"])).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 5e5}, "`rope_theta`"),
        ({"intermediate_size": 100}, "`intermediate_size`"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"vocab_size": 2**40}, "at most"),
        ({"num_hidden_layers": 2**30}, "1,073,741,824 layers"),
        ({"num_key_value_heads": True}, "not a whole number"),
        ({"max_position_embeddings": 1.5}, "not a whole number"),
        ({"rope_parameters": [1], "rope_theta": None}, "config.json"),
        ({"num_hidden_layers": 2}, "unknown"),
        ({"vocab_size": 300}, "400 tokens but the model has 300"),
    ],
)
def test_library_folder_that_does_not_fit_is_refused(library_folder, tmp_path, capsys, change, words):
    path = library_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert import_model(library_folder, tmp_path / "model") == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_quantized_and_infinite_weights_are_refused(library_folder, tmp_path, capsys):
    path = library_folder / "model.safetensors"
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    weights["lm_head.weight"] = mx.full((512, 96), mx.inf)
    mx.save_safetensors(str(path), weights)
    assert import_model(library_folder, tmp_path / "model") == 3
    assert "not finite" in capsys.readouterr().err
    mx.save_safetensors(str(path), weights | {"lm_head.scales": mx.zeros((512, 2))})
    assert import_model(library_folder, tmp_path / "model") == 3
    assert "is quantized" in capsys.readouterr().err


@pytest.mark.parametrize("name", TORCH)
def test_pickled_tokenizer_gives_the_ids_of_tiktoken(name):
    """Ids, special tokens and a rendered conversation with a calculator call are PyTorch nanochat's."""
    from nanochat.tokenizer.bpe import Tokenizer

    tokenizer, values = Tokenizer(tokenizer_json(name)), expected(name)
    assert [tokenizer.encode(text) for text in values["texts"]] == values["ids"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(values["texts"])] == values["ids"]
    assert {token: tokenizer.special(token) for token in values["special"]} == values["special"]
    messages = []
    for message in values["conversation"]["messages"]:
        content = message["content"]
        parts = content if isinstance(content, str) else tuple(Part(part["type"], part["text"]) for part in content)
        messages.append(Message(message["role"], parts))
    rendered = render(tokenizer, Conversation(tuple(messages)))
    assert list(rendered.ids) == values["conversation_ids"]
    assert list(rendered.mask) == values["conversation_mask"]


class Payload:
    """An object whose pickle would call a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickle_that_would_run_code_is_refused_by_name(tmp_path, library_folder, capsys):
    evil = tmp_path / "tokenizer.pkl"
    evil.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert import_model(library_folder, tmp_path / "model", "--tokenizer", evil) == 3
    message = capsys.readouterr().err
    assert str(evil) in message
    assert f"asks to run `{os.mkdir.__module__}.mkdir`, which is refused" in message
    assert not (tmp_path / "ran").exists()


def pickled_encoding(**state: object) -> bytes:
    """Return a pickle of tiktoken's encoding with this state, written by hand: a class, no arguments, the state."""
    return b"ctiktoken.core\nEncoding\n)\x81" + pickle.dumps(state, 4)[2:-1] + b"b."


BYTES = {bytes([byte]): byte for byte in range(256)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"a": 1}),
        b"\x80\x04" + b"(" * 1000,
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",  # asks for that much memory
        pickled_encoding(mergeable_ranks={10**13: 1}, special_tokens={}, pat_str="x"),
        pickled_encoding(mergeable_ranks=BYTES | {b"ab": 256.7}, special_tokens={}, pat_str="x"),
        pickled_encoding(mergeable_ranks=BYTES, special_tokens={"<|bos|>": "256"}, pat_str="x"),
        pickled_encoding(mergeable_ranks=BYTES, special_tokens={}, pat_str=None),
        pickled_encoding(mergeable_ranks=BYTES, special_tokens={}, pat_str="\ud800"),
    ],
)
def test_damaged_pickles_are_refused(tmp_path, content):
    from nanochat.checkpoint.foreign.pickled_tokenizer import read_pickled_tokenizer

    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(content)
    with pytest.raises(PreflightError, match=r"tokenizer\.pkl"):
        read_pickled_tokenizer(path)


def test_missing_parts_are_named(tmp_path, library_folder, capsys):
    (library_folder / "tokenizer.json").unlink()
    assert import_model(library_folder, tmp_path / "model") == 3
    assert "tokenizer.model, tokenizer.json, tokenizer.pkl" in capsys.readouterr().err
    shutil.rmtree(library_folder)
    library_folder.mkdir()
    assert import_model(library_folder, tmp_path / "model") == 3
    assert "neither model_*.pt nor model*.safetensors" in capsys.readouterr().err


def test_pieces_that_cannot_be_merged_are_refused():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(PreflightError, match="cannot be merged"):
        from_tiktoken(ranks, r"\w+", {})
