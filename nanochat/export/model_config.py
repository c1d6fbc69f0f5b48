"""The `config.json` of an exported model: our configuration in the words of mlx-lm and transformers. No MLX."""

from __future__ import annotations

from typing import Any, Literal

from nanochat.model.architectures import VARIANTS
from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig

Format = Literal["mlx", "hf", "torch"]
OWN_MODEL_TYPE = "nanochat_gpt"
"""The type of models that need a file with their code."""


def needs_code(config: GPTConfig, form: Format) -> bool:
    """Return whether the folder must contain the model's code, because the library has no such model.

    Both libraries have `portable`. The epsilon of mlx-lm's model is fixed.
    """
    is_known = config.architecture == "portable"
    has_other_epsilon = config.variant.norm_eps != VARIANTS["portable"].norm_eps
    return not is_known or (form == "mlx" and has_other_epsilon)


def library_config(config: GPTConfig, form: Format) -> dict[str, Any]:
    """Return the content of `config.json` for mlx-lm or transformers, without the special tokens."""
    content: dict[str, Any] = {
        "model_type": "nanochat",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.sequence_len,
        "rms_norm_eps": config.variant.norm_eps,
        "rope_theta": config.variant.rope_base,
        "final_logit_softcapping": SOFTCAP,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    if needs_code(config, form):
        content |= {"model_type": OWN_MODEL_TYPE} | _own_fields(config) | _code_fields(form)
    elif form == "hf":
        rope = {"rope_type": "default", "rope_theta": content.pop("rope_theta")}
        content |= {"architectures": ["NanoChatForCausalLM"], "rope_parameters": rope, "hidden_act": "relu2"}
    return content


def _own_fields(config: GPTConfig) -> dict[str, Any]:
    """Return the settings that only our own code reads."""
    variant = config.variant
    is_short = [variant.has_short_windows and window < config.sequence_len for window in config.windows]
    return {
        "qk_scale": variant.qk_scale,
        "sliding_window": config.short_window + 1 if any(is_short) else None,  # these libraries count the query itself
        "layer_types": ["sliding_attention" if short else "full_attention" for short in is_short],
        "value_embedding_layers": [i for i in range(config.n_layer) if config.has_value_embedding(i)],
        "gate_channels": variant.gate_channels,
        "gate_scale": variant.gate_scale,
        "has_residual_lambdas": variant.has_residual_lambdas,
        "smear_channels": SMEAR_CHANNELS if variant.has_smear else 0,
        "backout_layer": config.backout_layer if variant.has_backout else -1,
    }


def _code_fields(form: Format) -> dict[str, Any]:
    """Return where the library finds the code."""
    if form == "mlx":
        return {"model_file": "nanochat_mlx.py"}
    return {
        "architectures": ["NanochatGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_nanochat.NanochatGPTConfig",
            "AutoModelForCausalLM": "modeling_nanochat.NanochatGPTForCausalLM",
        },
    }
