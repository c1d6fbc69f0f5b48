"""Writes the folder of an exported model for mlx-lm, transformers, or PyTorch nanochat.

mlx-lm and transformers get config.json, model.safetensors, the tokenizer with its chat template, and a file with the
model's code if the library has no such model. PyTorch nanochat gets our names, its configuration and our tokenizer.
Every folder has a model card (README.md), which says how to load the folder, where the model comes from, and what was
measured. Not here: the text about the origin, which the caller gives, running the model, and what that measured, which
the export stage adds to the card.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from nanochat.checkpoint.arrays import write_arrays
from nanochat.export.model_config import Format, library_config, needs_code
from nanochat.export.tokenizer_files import PAD_ID, ending_ids, write_json, write_tokenizer_files
from nanochat.export.weights import Quantization, library_weights, quantized
from nanochat.inference.chat_settings import ChatSettings
from nanochat.model.gpt import GPT
from nanochat.storage.files import write_text
from nanochat.storage.layout import CONFIG_FILE, WEIGHTS_FILE
from nanochat.tokenizer.bpe import Tokenizer

CARD_FILE = "README.md"
_CODE_FILES: dict[Format, tuple[str, ...]] = {
    "mlx": ("nanochat_mlx.py",),
    "hf": ("configuration_nanochat.py", "modeling_nanochat.py"),
}
_SAMPLING = {"do_sample": True, "temperature": ChatSettings.temperature, "top_k": ChatSettings.top_k}
_LIBRARY = {"mlx": "mlx", "hf": "transformers", "torch": "pytorch"}
_MLX = """\
    mlx_lm.generate --model FOLDER{trust} --prompt "Hello" --max-tokens 64
    mlx_lm.server --model FOLDER{trust}"""
_HF = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")
    model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})
    messages = [{{"role": "user", "content": "Hello"}}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=64)[0]))"""
_TORCH = """\
The weights have the names of PyTorch nanochat, whose `load_state_dict` accepts them. `model.json` has the
configuration, and `tokenizer.model` is a SentencePiece model. `nanochat-run import FOLDER/model.safetensors NEW
--tokenizer FOLDER` makes a model folder of nanochat again."""


def write_export(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer,
    form: Format,
    *,
    quantization: Quantization | None = None,
    origin: str = "",
) -> None:
    """Write a model in a format into an empty folder that is part of a larger atomic write.

    Args:
        folder: exists and is empty.
        model: its weights are float32.
        tokenizer: may have fewer tokens than the model.
        form: the library that the folder is for.
        quantization: for mlx only.
        origin: Markdown about where the model comes from, for its card.

    Raises:
        PreflightError: the matrices cannot be quantized as asked.
    """
    assert quantization is None or form == "mlx", "the other formats cannot be quantized"
    if form == "torch":
        _write_torch(folder, model, tokenizer)
    else:
        _write_library_files(folder, model, tokenizer, form, quantization)
    code = bool(_code_files(model, form))
    write_text(folder / CARD_FILE, _card_text(form, origin, quantization=quantization, has_code=code), durable=False)


def _write_torch(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    write_arrays(folder / WEIGHTS_FILE, model.named_parameters(), metadata={"format": "pt"}, durable=False)
    write_json(folder / "model.json", {"model_config": model.config.to_dict()})
    tokenizer.save(folder)


def _write_library_files(
    folder: Path, model: GPT, tokenizer: Tokenizer, form: Format, quantization: Quantization | None
) -> None:
    config = library_config(model.config, form) | {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ending_ids(tokenizer),
        "pad_token_id": tokenizer.bos_id if tokenizer.is_byte_level else PAD_ID,
    }
    named = library_weights(model, form)
    if quantization is not None:
        named = quantized(named, quantization)
        described = {"group_size": quantization.group_size, "bits": quantization.bits, "mode": "affine"}
        config |= {"quantization": described, "quantization_config": described}
    write_json(folder / CONFIG_FILE, config)
    write_arrays(folder / WEIGHTS_FILE, named, metadata={"format": "mlx" if form == "mlx" else "pt"}, durable=False)
    tokenizer.save(folder)  # for `nanochat-run import`; the libraries read tokenizer.json
    write_tokenizer_files(folder, tokenizer, context=model.config.sequence_len)
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", special | _SAMPLING)
    for name in _code_files(model, form):
        content = resources.files("nanochat.export.files").joinpath(name).read_text(encoding="utf-8")
        write_text(folder / name, content, durable=False)


def _code_files(model: GPT, form: Format) -> tuple[str, ...]:
    return _CODE_FILES[form] if form != "torch" and needs_code(model.config, form) else ()


def _card_text(form: Format, origin: str, *, quantization: Quantization | None, has_code: bool) -> str:
    """Return the card as Markdown. `origin` is Markdown too."""
    parts = [
        f"---\nlibrary_name: {_LIBRARY[form]}\npipeline_tag: text-generation\ntags: [nanochat]\n---",
        "# A nanochat model",
        _usage(form, has_code=has_code),
    ]
    if quantization is not None:
        parts.append(
            f"The matrices are rounded to {quantization.bits} bits in groups of {quantization.group_size}, so its "
            "answers differ from those of the original model."
        )
    return "\n\n".join(part for part in (*parts, origin.strip()) if part) + "\n"


def _usage(form: Format, *, has_code: bool) -> str:
    if form == "torch":
        return _TORCH
    if form == "mlx":
        usage = _MLX.format(trust=" --trust-remote-code" if has_code else "")
    else:
        usage = _HF.format(trust=", trust_remote_code=True" if has_code else "")
    note = "\n\nThe folder contains the code of the model, which the library runs." if has_code else ""
    return f"{usage}{note}"
