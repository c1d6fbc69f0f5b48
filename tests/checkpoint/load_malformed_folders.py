"""Makes malformed model folders from a good one by seeded mutations, loads each, and prints what became of it.

Usage: python load_malformed_folders.py GOOD_FOLDER SCRATCH_FOLDER FIRST_SEED LAST_SEED

It is a program of its own so that a crash of the process is noticed, and so that its memory can be limited: what a file
only claims to hold must not be allocated. It prints one JSON object for each seed: the mutation, what it may lead to,
and what it led to.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.checkpoint.config_file import FORMAT
from nanochat.checkpoint.model_folder import load_model_and_tokenizer
from nanochat.errors import PreflightError
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.model.dispatch import FastGPT
from nanochat.runner.store.verification import check_model
from nanochat.storage.integrity import MANIFEST_FILE, write_manifest
from nanochat.tokenizer.bpe import Tokenizer

MEMORY_BYTES = 8 << 30
SECONDS_PER_FOLDER = 60
TEXT = "the cat sät on 🙂 <|bos|> ▁ mat"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.model"
REFUSED, EQUAL, OTHER = "refused", "equal", "other"
"""What the content of a folder leads to: an error of ours, the same results, or another model that is as well formed.

Only a digest can tell that other model from the right one.
"""


def main() -> None:
    good, scratch, first, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    expected = results(*load_model_and_tokenizer(good))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for seed in range(first, last):
        folder = scratch / str(seed)
        shutil.copytree(good, folder)
        write_manifest(folder, file_format=FORMAT)
        mutate, allowed = MUTATIONS[seed % len(MUTATIONS)]
        print(f"{seed} {mutate.__name__}", file=sys.stderr, flush=True)  # the last line names the folder that crashes
        signal.alarm(SECONDS_PER_FOLDER)
        mutate(random.Random(seed), folder)
        is_recognised = is_refused(partial(check_model, folder))
        is_same = not has_changed(folder, good)
        (folder / MANIFEST_FILE).unlink()
        outcome, message = load(folder, expected)
        signal.alarm(0)
        report = {"seed": seed, "mutation": mutate.__name__, "allowed": allowed, "outcome": outcome}
        print(json.dumps({**report, "message": message, "is_recognised": is_recognised, "is_same": is_same}))
        shutil.rmtree(folder)


def results(model: FastGPT, tokenizer: Tokenizer) -> tuple[object, list[int], str]:
    """Return logits of a text, its ids, and the continuation of it."""
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    logits = model(mx.array([ids])).flatten().tolist()
    [tokens] = Engine(model, tokenizer).complete([ids], max_tokens=6, sampling=Sampling(temperature=0.0))
    assert all(0 <= token < tokenizer.vocab_size for token in [*ids, *tokens])
    return logits, ids, tokenizer.decode(ids + tokens)


def load(folder: Path, expected: object) -> tuple[str, str]:
    try:
        found = results(*load_model_and_tokenizer(folder))
    except PreflightError as error:
        return REFUSED, str(error)
    return (EQUAL if found == expected else OTHER), ""


def is_refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except PreflightError:
        return True
    return False


def has_changed(folder: Path, good: Path) -> bool:
    pairs = [(folder / name, good / name) for name in (CONFIG, WEIGHTS, TOKENIZER)]
    return any(not changed.is_file() or changed.read_bytes() != original.read_bytes() for changed, original in pairs)


# Mutations of config.json

SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
NO_SIZES: tuple[object, ...] = (
    True,
    2.0,
    0,
    -1,
    None,
    "64",
    [64],
    {},
    10**30,
    2**40,
    math.nan,
    math.inf,
    1e300,
    "NaN",
    False,
    2**31,
)


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CONFIG).read_text())
    change(content)
    (folder / CONFIG).write_text(json.dumps(content))


def give_a_size_that_is_none(rng: random.Random, folder: Path) -> None:
    rewrite_config(folder, lambda content: content["model"].update({rng.choice(SIZES): rng.choice(NO_SIZES)}))


def claim_a_huge_model(rng: random.Random, folder: Path) -> None:
    name, size = rng.choice(SIZES[1:]), 2 ** rng.randint(17, 30)
    rewrite_config(folder, lambda content: content["model"].update({name: size}))


def claim_another_shape(rng: random.Random, folder: Path) -> None:
    name = rng.choice(("n_layer", "n_embd", "n_kv_head"))
    rewrite_config(folder, lambda content: content["model"].update({name: content["model"][name] + rng.randint(1, 9)}))


def claim_fewer_tokens(rng: random.Random, folder: Path) -> None:
    """The tables have the same rows, because they are padded, but the tokenizer has more pieces."""
    vocab_size = json.loads((folder / CONFIG).read_text())["model"]["vocab_size"]
    smallest = (vocab_size - 1) // 64 * 64 + 1
    fewer = rng.randint(smallest, vocab_size - 1)
    rewrite_config(folder, lambda content: content["model"].update(vocab_size=fewer))


def give_a_text_that_is_none(rng: random.Random, folder: Path) -> None:
    field = rng.choice(("window_pattern", "architecture", "norm_eps"))
    wrong: object = rng.choice((7, [], {}, "", "SLX", "s", True, "x" * 100_000, "\ud800"))
    rewrite_config(folder, lambda content: content["model"].update({field: wrong if wrong != 7 else -7}))


def give_a_wrong_epsilon(rng: random.Random, folder: Path) -> None:
    eps = rng.choice((0, 0.0, -1e-5, math.nan, math.inf, 1e300, 1e-320, 5, True, "1e-5"))
    rewrite_config(folder, lambda content: content["model"].update(norm_eps=eps))


def change_the_fields(rng: random.Random, folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        match rng.randrange(4):
            case 0:
                del content["model"][rng.choice((*SIZES, "window_pattern"))]
            case 1:
                content["model"][rng.choice(("n_layers", "", "__class__", "\x1b[31m"))] = 1
            case 2:
                content["model"] = rng.choice(([], None, "model", 3, {}))
            case _:
                content["format"] = rng.choice((None, "1", 2, [1], 1.5, {}))

    rewrite_config(folder, change)


def repeat_a_key(rng: random.Random, folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    name = rng.choice(SIZES)
    (folder / CONFIG).write_text(text.replace(f'"{name}":', f'"{name}": {rng.randint(1, 999)}, "{name}":', 1))


def write_no_json(rng: random.Random, folder: Path) -> None:
    contents = (
        b"",
        b"\0" * 99,
        b"[" * 10_000,
        b'{"a":' * 50_000,
        b"\xff\xfe{}",
        b"null",
        b'{"format": 1}',
        b" " * (2 << 20),
    )
    (folder / CONFIG).write_bytes(rng.choice((*contents, b'{"format": 1, "model": {"n_layer": ' + b"9" * 9000 + b"}}")))


def cut_a_file(rng: random.Random, folder: Path) -> None:
    """Whitespace at the end of the configuration may be cut."""
    path = folder / rng.choice((CONFIG, WEIGHTS, TOKENIZER))
    os.truncate(path, rng.randrange(path.stat().st_size - 2))


def change_config_bytes(rng: random.Random, folder: Path) -> None:
    change_bytes(rng, folder / CONFIG)


def reorder_config(rng: random.Random, folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    keys = list(content["model"])
    rng.shuffle(keys)
    content["model"] = {key: content["model"][key] for key in keys}
    (folder / CONFIG).write_text(json.dumps({"made by": "x" * rng.randrange(99), **content}, indent=rng.randrange(5)))


# Mutations of the weights


def read_weights_file(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_weights_file(folder: Path, header: bytes, data: bytes, *, length: int | None = None) -> None:
    size = struct.pack("<Q", len(header) if length is None else length)
    (folder / WEIGHTS).write_bytes(size + header + data)


def rewrite_entry(rng: random.Random, folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = read_weights_file(folder)
    change(header[rng.choice([name for name in header if name != "__metadata__"])])
    write_weights_file(folder, json.dumps(header).encode(), data)


def claim_a_wrong_header_length(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    raw = json.dumps(header).encode()
    length = rng.choice((0, 1, len(raw) - 1, len(raw) + 1, len(raw) + len(data), 2**31, 2**40, 2**63, 2**64 - 1))
    write_weights_file(folder, raw, data, length=length)


def claim_other_offsets(rng: random.Random, folder: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        start, end = entry["data_offsets"]
        wrong: tuple[object, ...] = (
            [start, end + 4],
            [start + 4, end + 4],
            [end, start],
            [0, 2**62],
            [2**62, 2**62 + end - start],
        )
        entry["data_offsets"] = rng.choice((*wrong, [start], [-4, end], [str(start), end], None, [True, end], [[], {}]))

    rewrite_entry(rng, folder, change)


def overlap_tensors(rng: random.Random, folder: Path) -> None:
    """Two layers share the bytes of one."""
    header, data = read_weights_file(folder)
    name = rng.choice(("attn.c_q", "mlp.c_fc", "attn.c_proj"))
    header[f"transformer.h.1.{name}.weight"] = header[f"transformer.h.0.{name}.weight"]
    write_weights_file(folder, json.dumps(header).encode(), data)


def claim_another_tensor_shape(rng: random.Random, folder: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        shape = entry["shape"]
        wrong: tuple[object, ...] = (
            [2**40, *shape],
            [],
            [2**62, 2**62],
            [*shape, 2],
            [-1 * size for size in shape],
            [float(shape[0])],
        )
        entry["shape"] = rng.choice((*wrong, None, "64", [str(shape[0])], [0] * 9, [10**3000] * 5))

    rewrite_entry(rng, folder, change)


def claim_another_dtype(rng: random.Random, folder: Path) -> None:
    wrong: tuple[object, ...] = (
        "I32",
        "U32",
        "BOOL",
        "F64",
        "I64",
        "F16",
        "BF16",
        "F8_E4M3",
        "U8",
        "C64",
        "f32",
        "",
        None,
        4,
        [],
        "F32 ",
    )
    rewrite_entry(rng, folder, lambda entry: entry.update(dtype=rng.choice(wrong)))


def store_other_numbers(rng: random.Random, folder: Path) -> None:
    """All weights as integers or bools."""
    dtype = rng.choice((mx.int32, mx.bool_, mx.uint8, mx.int16, mx.complex64))
    weights = mx.load(str(folder / WEIGHTS))
    assert isinstance(weights, dict)
    mx.save_safetensors(str(folder / WEIGHTS), {name: x.astype(dtype) for name, x in weights.items()})


def store_half_precision(rng: random.Random, folder: Path) -> None:
    weights = mx.load(str(folder / WEIGHTS))
    assert isinstance(weights, dict)
    dtype = rng.choice((mx.float16, mx.bfloat16))
    mx.save_safetensors(str(folder / WEIGHTS), {name: x.astype(dtype) for name, x in weights.items()})


def change_the_names(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    name = rng.choice([name for name in header if name != "__metadata__"])
    match rng.randrange(4):
        case 0:
            del header[name]
        case 1:
            header[rng.choice(("", "x" * 100_000, "\x1b]0;title\x07", "\ud800"))] = header.pop(name)
        case 2:
            header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        case _:
            header |= {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(5_000)}
    write_weights_file(folder, json.dumps(header).encode(), data)


def write_no_header(rng: random.Random, folder: Path) -> None:
    _, data = read_weights_file(folder)
    deep, wide = b'{"a":' * 50_000, b"[" * 100_000
    header = rng.choice(
        (b"{}", b"[]", b"null", b"{", deep, wide, b"\xff" * 64, b'{"__metadata__": 3}', b'{"a": 1}', b"")
    )
    write_weights_file(folder, header, data)


def repeat_a_tensor(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    text, name = json.dumps(header), rng.choice([name for name in header if name != "__metadata__"])
    write_weights_file(folder, f'{{"{name}": {json.dumps(header[name])}, {text[1:]}'.encode(), data)


def append_bytes(rng: random.Random, folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 99)))


def store_a_number_that_is_not_finite(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    at = 4 * rng.randrange(len(data) // 4)
    wrong = struct.pack("<f", rng.choice((math.nan, math.inf, -math.inf)))
    write_weights_file(folder, json.dumps(header).encode(), data[:at] + wrong + data[at + 4 :])


def store_huge_numbers(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    start, end = header[rng.choice([name for name in header if name.endswith("weight")])]["data_offsets"]
    huge = struct.pack("<f", rng.choice((3.4e38, -3e38, 1e30))) * ((end - start) // 4)
    write_weights_file(folder, json.dumps(header).encode(), data[:start] + huge + data[end:])


def describe_the_file(rng: random.Random, folder: Path) -> None:
    header, data = read_weights_file(folder)
    header["__metadata__"] = {"made by": "x" * rng.randrange(999)}
    names = list(header)
    rng.shuffle(names)
    write_weights_file(folder, json.dumps({name: header[name] for name in names}).encode(), data)


def change_header_bytes(rng: random.Random, folder: Path) -> None:
    _, data = read_weights_file(folder)
    change_bytes(rng, folder / WEIGHTS, last=(folder / WEIGHTS).stat().st_size - len(data))


# Mutations of the tokenizer, and of any file


def add_pieces(rng: random.Random, folder: Path) -> None:
    """The tokenizer has more pieces than the model has tokens."""
    pieces = b"".join(
        b"\n\x08\n\x06" + f"new{i:03}".encode()  # field 1, a piece; its field 1, the text
        for i in range(rng.choice((1, 3, 20, 200)))
    )
    path = folder / TOKENIZER
    path.write_bytes(path.read_bytes() + pieces)


def change_a_piece(rng: random.Random, folder: Path) -> None:
    """A byte or special token gets a text that is no UTF-8, or that another piece should have."""
    raw = (folder / TOKENIZER).read_bytes()
    name = rng.choice((b"<0x41>", b"<0x00>", b"<|bos|>", b"<|python_end|>", b"<unk>"))
    other = rng.choice((b"\xff" * len(name), b"<0xZZ>"[: len(name)].ljust(len(name), b"z")))
    (folder / TOKENIZER).write_bytes(raw.replace(name, other, 1))


def add_a_setting(rng: random.Random, folder: Path) -> None:
    """Settings that lose text or make SentencePiece search a table of the file; repeated groups are merged."""
    table = struct.pack("<I", 64) + rng.randbytes(64 + 20)
    normalizer = rng.choice((b"\x12" + bytes([len(table)]) + table, b"\x18\x01", b"\x20\x01", b"\x28\x00"))
    trainer = rng.choice((b"\x18\x01", b"\x18\x03", b"\x18\x04", b"\x98\x02\x00", b"\xc0\x01\x01"))
    field, content = rng.choice(((3, normalizer), (2, trainer), (5, normalizer), (3, b"\x12\x02ab")))
    path = folder / TOKENIZER
    path.write_bytes(path.read_bytes() + bytes([field << 3 | 2, len(content)]) + content)


def change_tokenizer_bytes(rng: random.Random, folder: Path) -> None:
    change_bytes(rng, folder / TOKENIZER)


def write_no_tokenizer(rng: random.Random, folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(
        rng.choice((b"", b"{}", b"\n" * 999, rng.randbytes(5000), b"\x0a\xff\xff\xff\xff\x7f"))
    )


def replace_a_file(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((CONFIG, WEIGHTS, TOKENIZER))
    path.unlink()
    match rng.randrange(4):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            os.mkfifo(path)
        case _:
            pass


def link_a_file_to_itself(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((CONFIG, WEIGHTS, TOKENIZER))
    path.unlink()
    path.symlink_to(path)


def change_bytes(rng: random.Random, path: Path, *, last: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(last or len(raw))
        raw[at] ^= rng.randint(1, 255)
    path.write_bytes(raw)


MUTATIONS: list[tuple[Callable[[random.Random, Path], None], list[str]]] = [
    (give_a_size_that_is_none, [REFUSED]),
    (claim_a_huge_model, [REFUSED]),
    (claim_another_shape, [REFUSED]),
    (claim_fewer_tokens, [REFUSED]),
    (give_a_text_that_is_none, [REFUSED]),
    (give_a_wrong_epsilon, [REFUSED]),
    (change_the_fields, [REFUSED]),
    (repeat_a_key, [REFUSED]),
    (write_no_json, [REFUSED]),
    (cut_a_file, [REFUSED]),
    (change_config_bytes, [REFUSED, EQUAL, OTHER]),
    (reorder_config, [EQUAL]),
    (claim_a_wrong_header_length, [REFUSED]),
    (claim_other_offsets, [REFUSED]),
    (overlap_tensors, [REFUSED]),
    (claim_another_tensor_shape, [REFUSED]),
    (claim_another_dtype, [REFUSED]),
    (store_other_numbers, [REFUSED]),
    (store_half_precision, [OTHER]),
    (change_the_names, [REFUSED]),
    (write_no_header, [REFUSED]),
    (repeat_a_tensor, [REFUSED, EQUAL]),
    (append_bytes, [REFUSED]),
    (store_a_number_that_is_not_finite, [REFUSED]),
    (store_huge_numbers, [OTHER]),
    (describe_the_file, [EQUAL]),
    (change_header_bytes, [REFUSED, EQUAL]),
    (add_pieces, [REFUSED]),
    (add_a_setting, [REFUSED]),
    (change_a_piece, [REFUSED]),
    (link_a_file_to_itself, [REFUSED]),
    (change_tokenizer_bytes, [REFUSED, EQUAL, OTHER]),
    (write_no_tokenizer, [REFUSED]),
    (replace_a_file, [REFUSED]),
]

if __name__ == "__main__":
    main()
