"""The configuration of a nanochat model for transformers, written by `nanochat-run export`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class NanochatGPTConfig(PreTrainedConfig):
    """Sizes and constants of the model; `modeling_nanochat.py` says how they are used."""

    model_type = "nanochat_gpt"

    def __init__(
        self,
        *,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        num_key_value_heads: int = 6,
        max_position_embeddings: int = 2048,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10_000.0,
        final_logit_softcapping: float = 15.0,
        qk_scale: float = 1.0,
        sliding_window: int | None = None,
        layer_types: list[str] | None = None,
        value_embedding_layers: tuple[int, ...] = (),
        gate_channels: int = 0,
        gate_scale: float = 0.0,
        has_residual_lambdas: bool = False,
        smear_channels: int = 0,
        backout_layer: int = -1,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.final_logit_softcapping = final_logit_softcapping
        self.qk_scale = qk_scale
        self.sliding_window = sliding_window
        self.layer_types = layer_types or ["full_attention"] * num_hidden_layers
        self.value_embedding_layers = list(value_embedding_layers)
        self.gate_channels = gate_channels
        self.gate_scale = gate_scale
        self.has_residual_lambdas = has_residual_lambdas
        self.smear_channels = smear_channels
        self.backout_layer = backout_layer
        super().__init__(**others)
