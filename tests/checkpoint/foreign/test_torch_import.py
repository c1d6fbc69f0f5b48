"""Weights written by PyTorch nanochat are read exactly, and PyTorch nanochat can read ours."""

import json
import pickle
import struct
import sys
import types

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from nanochat.checkpoint.foreign.torch_import import import_weights, read_tensors
from nanochat.errors import PreflightError
from nanochat.model.dispatch import FastGPT

HEADER = b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'


@pytest.fixture(params=["seed", "current", "portable"])
def random_model(request, make_random_model):
    return make_random_model(request.param)


def state(model):
    return {name: np.array(p) for name, p in model.named_parameters().items()}


def write_by_hand(path, tensors):
    """Write a safetensors file with bfloat16 tensors: length of the header, header, bytes."""
    header, body = {}, b""
    for name, x in tensors.items():
        raw = (np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)


def assert_equal_logits(model, path):
    loaded = FastGPT(model.config)
    loaded.set_parameters(import_weights(read_tensors(path), model.config))
    idx = mx.random.randint(0, 100, (2, 32), key=mx.random.key(1))
    assert mx.array_equal(loaded(idx), model(idx))


def test_safetensors_with_compiled_names_and_buffers(random_model, tmp_path):
    """The prefix of torch.compile and the rotation tables are ignored, and the model computes the same."""
    tensors = {f"_orig_mod.{name}": x for name, x in state(random_model).items()}
    tensors |= {"_orig_mod.cos": np.ones((1, 4), np.float32), "_orig_mod.sin": np.ones((1, 4), np.float32)}
    save_file(tensors, str(tmp_path / "model.safetensors"))
    assert_equal_logits(random_model, tmp_path / "model.safetensors")


def test_bfloat16_tensors_become_float32(random_model, tmp_path):
    """Each value is the float32 value truncated to its upper 16 bits."""
    tensors = state(random_model)
    write_by_hand(tmp_path / "model.safetensors", tensors)
    loaded = import_weights(read_tensors(tmp_path / "model.safetensors"), random_model.config)
    for name, x in tensors.items():
        expected = (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        assert loaded[name].dtype == mx.float32
        assert np.array_equal(np.array(loaded[name]), expected)


@pytest.mark.parametrize("rows", [100, 160])
def test_vocabulary_with_other_padding(random_model, tmp_path, rows):
    """Without padding and with more padding than ours (128), the rows of real tokens and the logits are the same."""
    tensors = state(random_model)
    for name, x in tensors.items():
        if x.shape[0] == 128 and x.ndim == 2 and "transformer.h" not in name:
            tensors[name] = np.concatenate([x, np.full((32, x.shape[1]), 7, np.float32)])[:rows].copy()
    save_file(tensors, str(tmp_path / "model.safetensors"))
    assert_equal_logits(random_model, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.safetensors", None, "no such file"),
        ("model.bin", b"", r"`\.bin`"),
        ("model.pt", b"", "pip install torch"),
        ("model.safetensors", b"", r"model\.safetensors cannot be read"),
        ("model.safetensors", b"junk\n", r"model\.safetensors cannot be read"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", r"model\.safetensors cannot be read"),
        ("model.safetensors", len(HEADER).to_bytes(8, "little") + HEADER, r"model\.safetensors cannot be read"),
    ],
)
def test_missing_unknown_and_damaged_files_are_refused(random_model, tmp_path, monkeypatch, name, content, words):
    """PyTorch is not installed here. The last two files end in their header and after it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PreflightError, match=words):
        import_weights(read_tensors(tmp_path / name), random_model.config)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no central directory\nlong advice"),
        pickle.UnpicklingError("posix.system; to load it, set weights_only=False"),
        KeyError(1),
        EOFError(),
    ],
)
def test_a_file_that_torch_cannot_load_is_refused(random_model, tmp_path, monkeypatch, error):
    """Damaged, hostile and empty files give a message of one line; a stand-in replaces torch."""

    def load(path, **options):
        assert options == {"map_location": "cpu", "weights_only": True}
        raise error

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    (tmp_path / "model.pt").write_bytes(b"junk")
    with pytest.raises(PreflightError, match=r"model\.pt cannot be read.*") as caught:
        import_weights(read_tensors(tmp_path / "model.pt"), random_model.config)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice is to drop the protection"


def test_pt_with_torch(random_model, tmp_path):
    """A state dictionary saved by torch, with one matrix in bfloat16."""
    torch = pytest.importorskip("torch")
    tensors = {f"_orig_mod.{name}": torch.tensor(x) for name, x in state(random_model).items()}
    tensors["_orig_mod.lm_head.weight"] = tensors["_orig_mod.lm_head.weight"].bfloat16()
    torch.save(tensors, str(tmp_path / "model.pt"))
    loaded = import_weights(read_tensors(tmp_path / "model.pt"), random_model.config)
    assert np.array_equal(np.array(loaded["transformer.wte.weight"]), state(random_model)["transformer.wte.weight"])
    expected = tensors["_orig_mod.lm_head.weight"].float().numpy()
    assert np.array_equal(np.array(loaded["lm_head.weight"]), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pt_that_repeats_a_number_is_refused_before_it_is_allocated(tmp_path, dtype):
    """A file of a kilobyte can ask torch for a tensor of a terabyte."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1, dtype=getattr(torch, dtype)).expand(2**38)}, str(tmp_path / "model.pt"))
    with pytest.raises(PreflightError, match="larger than the file"):
        read_tensors(tmp_path / "model.pt")
