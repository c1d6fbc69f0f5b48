"""The configuration of a nanochat model for transformers, written by `nanochat-run export`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "final_logit_softcapping": 15.0,
    "qk_scale": 1.0,
    "sliding_window": None,
    "layer_types": None,
    "value_embedding_layers": [],
    "gate_channels": 0,
    "gate_scale": 0.0,
    "has_residual_lambdas": False,
    "smear_channels": 0,
    "backout_layer": -1,
}


class NanochatGPTConfig(PreTrainedConfig):
    """Sizes and constants of the model; `modeling_nanochat.py` says how they are used."""

    model_type = "nanochat_gpt"

    def __init__(self, **settings: Any) -> None:
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        self.layer_types = self.layer_types or ["full_attention"] * self.num_hidden_layers
        super().__init__(**settings)
