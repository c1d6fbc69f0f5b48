"""A nanochat model for transformers, written by `nanochat-run export`. It needs `trust_remote_code=True`.

    x0 = norm(wte[tokens])
    x0 = x0 + smear_lambda * sigmoid(smear_gate x0) * (x0 of the previous token)
    x  = x0
    for each layer:
        x = resid_lambda * x + x0_lambda * x0
        x = x + attention(norm(x)), whose values are c_v x + gate * value_embed[tokens] in some layers
        x = x + c_proj relu(c_fc norm(x))^2
    x  = x - backout_lambda * (x after layer backout_layer)
    logits = softcap * tanh(lm_head norm(x) / softcap)

`config.json` says which of these parts the model has. Shapes: B batch, T positions, H heads, G key/value heads, D head
size, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_nanochat import NanochatGPTConfig  # the two files lie beside each other in the exported folder

Rotation = tuple[torch.Tensor, torch.Tensor]
"""The cosine and the sine of each position's angles, (B or 1, 1, T, D / 2)."""


def norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x divided by its root mean square, computed in float32; the norm has no weights."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def scaled(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return x * factor in x's dtype, multiplied in float32."""
    return (x.float() * factor.float()).to(x.dtype)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Return queries or keys (B, H, T, D) with channels j and j + D/2 rotated by the negative angle."""
    cos, sin = rotation
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Attention with rotated and then normed queries and keys; some layers add a gated embedding to the values."""

    def __init__(self, config: NanochatGPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.head_dim = config.hidden_size // config.num_attention_heads
        kv_width = config.num_key_value_heads * self.head_dim
        self.c_q = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.c_k = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.c_v = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.has_value_embedding = layer in config.value_embedding_layers
        if self.has_value_embedding:
            self.value_embed = nn.Embedding(config.vocab_size, kv_width)
            self.ve_gate = nn.Linear(config.gate_channels, config.num_key_value_heads, bias=False)

    def forward(
        self, x: torch.Tensor, tokens: torch.Tensor, rotation: Rotation, mask: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Return (B, T, C) from the normed residual stream (B, T, C) of tokens (B, T)."""
        queries = self.rotate_and_norm(self.split_heads(self.c_q(x)), rotation)
        keys = self.rotate_and_norm(self.split_heads(self.c_k(x)), rotation)
        values = self.split_heads(self.gated_values(x, tokens))
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(x.shape))

    def gated_values(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the values (B, T, G * D)."""
        values = self.c_v(x)
        if not self.has_value_embedding:
            return values
        gate = self.config.gate_scale * torch.sigmoid(self.ve_gate(x[..., : self.config.gate_channels]))
        return values + gate.repeat_interleave(self.head_dim, dim=-1) * self.value_embed(tokens)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, heads, T, D) from (B, T, heads * D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def rotate_and_norm(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Return queries or keys with rotary embeddings and normed per head."""
        return norm(rotate(x, rotation), self.config.rms_norm_eps) * self.config.qk_scale


class MLP(nn.Module):
    """c_proj relu(c_fc x)^2."""

    def __init__(self, config: NanochatGPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, C) from (B, T, C)."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention, then MLP; each reads the normed residual stream and adds to it."""

    def __init__(self, config: NanochatGPTConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self, x: torch.Tensor, tokens: torch.Tensor, rotation: Rotation, mask: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Return the residual stream (B, T, C) after this block."""
        x = x + self.attn(norm(x, self.eps), tokens, rotation, mask, cache)
        return x + self.mlp(norm(x, self.eps))


class NanochatGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The whole model. A cache has an entry for each layer and, if there is a smear, one for the previous token."""

    config_class = NanochatGPTConfig
    _supports_sdpa = True
    _no_split_modules = ("Block",)

    def __init__(self, config: NanochatGPTConfig) -> None:
        super().__init__(config)
        blocks = [Block(config, layer) for layer in range(config.num_hidden_layers)]
        wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer = nn.ModuleDict({"wte": wte, "h": nn.ModuleList(blocks)})
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.has_residual_lambdas:
            self.resid_lambdas = nn.Parameter(torch.ones(config.num_hidden_layers))
            self.x0_lambdas = nn.Parameter(torch.zeros(config.num_hidden_layers))
        if config.smear_channels:
            self.smear_gate = nn.Linear(config.smear_channels, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout_layer >= 0:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        return self.transformer["wte"]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return float32 logits (B, T, vocabulary), and the loss if there are labels.

        Args:
            input_ids: tokens (B, T), which continue the cache if there is one.
            attention_mask: 0 for padding, which may be on the left, (B, cached positions + T).
            position_ids: the positions of the tokens, (B, T). Default: they follow those in the cache.
            cache: earlier keys and values; it receives the new ones.
            labels: the tokens themselves, or -100 where nothing is to be predicted, (B, T).
            use_cache: whether to make a cache if there is none.
        """
        config = self.config
        if cache is None and use_cache:
            cache = DynamicCache(config=config)
        earlier = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(earlier, earlier + input_ids.shape[1], device=input_ids.device)[None]
        x0 = norm(self.transformer["wte"](input_ids), config.rms_norm_eps)
        masks = self.masks(x0, attention_mask, cache, position_ids)  # before the cache grows
        if config.smear_channels:
            x0 = self.smear(x0, attention_mask, cache)
        x = self.residual_stream(x0, input_ids, position_ids, masks, cache)
        logits = self.lm_head(norm(x, config.rms_norm_eps)).float()
        logits = config.final_logit_softcapping * torch.tanh(logits / config.final_logit_softcapping)
        loss = None if labels is None else self.loss_function(logits, labels, config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)

    def residual_stream(
        self,
        x0: torch.Tensor,
        tokens: torch.Tensor,
        position_ids: torch.Tensor,
        masks: dict[str, torch.Tensor],
        cache: Cache | None,
    ) -> torch.Tensor:
        """Return the residual stream (B, T, C) after the last layer, less the backout."""
        config, rotation = self.config, self.rotation(position_ids)
        x, after_middle = x0, None
        for layer, block in enumerate(self.transformer["h"]):
            if config.has_residual_lambdas:
                x = scaled(x, self.resid_lambdas[layer]) + scaled(x0, self.x0_lambdas[layer])
            x = block(x, tokens, rotation, masks[config.layer_types[layer]], cache)
            if layer == config.backout_layer:
                after_middle = x
        return x if after_middle is None else x - scaled(after_middle, self.backout_lambda)

    def rotation(self, position_ids: torch.Tensor) -> Rotation:
        """Return the cosine and the sine of position * base^(-2j/D), in float32."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
        angles = position_ids[:, None, :, None].float() * self.config.rope_theta**-exponents
        return angles.cos(), angles.sin()

    def masks(
        self, x: torch.Tensor, padding: torch.Tensor | None, cache: Cache | None, position_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the attention mask of each type of layer."""
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {
            kind: makers[kind](
                config=self.config,
                inputs_embeds=x,
                attention_mask=padding,
                cache=cache,
                position_ids=position_ids,
                allow_is_causal_skip=False,
            )
            for kind in set(self.config.layer_types)
        }

    def smear(self, embedded: torch.Tensor, padding: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """Return embeddings (B, T, C), each plus a gated share of the previous token's, which is 0 at the start."""
        length = embedded.shape[1]
        is_real = torch.ones_like(embedded[:, :, :1]) if padding is None else padding[:, -length:, None]
        known = embedded * is_real  # so that nothing comes from the padding before the first token
        if cache is not None:
            layer = self.config.num_hidden_layers
            if len(cache.layers) == layer:
                cache.layers.append(DynamicSlidingWindowLayer(sliding_window=2))  # it keeps one position
            known = cache.update(known[:, None], known[:, None], layer)[0][:, 0]
        previous = F.pad(known, (0, 0, 1, 0))[:, -length - 1 : -1]
        gate = torch.sigmoid(self.smear_gate(embedded[..., : self.config.smear_channels]))
        return embedded + scaled(gate * previous, self.smear_lambda)
