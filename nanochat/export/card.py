"""The model card of an exported folder: how to load it, what was measured, and where the model comes from.

Not here: the sections about the model's origin, which the runner writes from the records of the run.
"""

from __future__ import annotations

from nanochat.export.model_config import Format
from nanochat.export.weights import Quantization

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


def card_text(form: Format, origin: str, *, quantization: Quantization | None, has_code: bool) -> str:
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
