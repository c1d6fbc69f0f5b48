"""Loss and gradients of the GPT in NumPy: the forward pass of `gpt.py`, and the backward pass written out.

NumPy multiplies matrices as fast as MLX does on a CPU. But it works in place, reads strided heads without copies, and
takes a third of the time for exponentials. Parameters, shapes and formulas are those of `gpt`; tests compare every
gradient with the one that MLX derives from it. Arrays are (N, C) with N = B * T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nanochat.model.config import SMEAR_CHANNELS, GPTConfig
from nanochat.model.cpu.training.attention import attend, attend_gradient
from nanochat.model.cpu.training.layers import (
    KeptLayer,
    Tokens,
    dot,
    norm,
    norm_gradient,
    rotate_and_norm,
    rotate_and_norm_gradient,
    row_gradient,
    sigmoid,
)
from nanochat.model.cpu.training.loss import loss_and_gradients
from nanochat.model.rope_tables import Floats

Arrays = Mapping[str, Floats]


class TrainingPass:
    """One forward and backward pass on tokens and targets (B, T).

    With `recomputes` the forward pass keeps only the input of each block, and the backward pass computes the rest.
    """

    def __init__(
        self, config: GPTConfig, weights: Arrays, tokens: Tokens, targets: Tokens, *, recomputes: bool = False
    ) -> None:
        self.config, self.weights, self.variant, self.recomputes = config, weights, config.variant, recomputes
        self.batch, self.length = tokens.shape
        self.tokens, self.targets = tokens.reshape(-1), targets.reshape(-1)
        self.gradients: dict[str, Floats] = {}

    @np.errstate(all="ignore")
    def run(self, scale: float | Floats) -> float:
        """Return `scale` times the summed loss, and leave its gradients in `gradients`. It may be one number per token.

        Infinities are no error here: the training step skips an update that is not finite.
        """
        config, eps = self.config, self.variant.norm_eps
        embedded, embedding_factor = norm(self.weights["transformer.wte.weight"][self.tokens], eps)
        x0, smear_gate = self._smear(embedded)
        x, after_middle = x0, None
        layers: list[KeptLayer | Floats] = []
        for number in range(config.n_layer):
            layer, after = self._block(x, x0, number)
            layers.append(x if self.recomputes else layer)
            x = after
            if self.variant.has_backout and number == config.backout_layer:
                after_middle = x
        if after_middle is not None:
            x = x - self.weights["backout_lambda"] * after_middle
        normed, factor = norm(x, eps)
        loss, gradient = self._loss(normed, scale)
        gradient = norm_gradient(gradient, normed, factor)
        self._backward(gradient, layers, x0, after_middle)
        gradient = self._smear_gradient(self._x0_gradient, embedded, smear_gate)
        gradient = norm_gradient(gradient, embedded, embedding_factor)
        rows = len(self.weights["transformer.wte.weight"])
        self.gradients["transformer.wte.weight"] = row_gradient(self.tokens, gradient, rows)
        return loss

    def _loss(self, normed: Floats, scale: float | Floats) -> tuple[float, Floats]:
        weight = self.weights["lm_head.weight"]
        loss, gradient, of_weight = loss_and_gradients(normed, weight[: self.config.vocab_size], self.targets, scale)
        padding = len(weight) - len(of_weight)
        self.gradients["lm_head.weight"] = np.pad(of_weight, ((0, padding), (0, 0))) if padding else of_weight
        return loss, gradient

    def _backward(
        self, gradient: Floats, layers: list[KeptLayer | Floats], x0: Floats, after_middle: Floats | None
    ) -> None:
        """Go back through the blocks, which `layers` is emptied of; leave the gradient for x0 in `_x0_gradient`."""
        of_middle = None
        if after_middle is not None:
            self.gradients["backout_lambda"] = -dot(gradient, after_middle).reshape(1)
            of_middle = -self.weights["backout_lambda"] * gradient
        self._x0_gradient = np.zeros_like(x0)
        self._of_resid, self._of_x0 = np.zeros((2, len(layers)), dtype=np.float32)
        for number in reversed(range(len(layers))):
            if of_middle is not None and number == self.config.backout_layer:
                gradient += of_middle
            kept = layers.pop()
            layer = kept if isinstance(kept, KeptLayer) else self._block(kept, x0, number)[0]
            gradient = self._block_gradient(gradient, layer, x0, number)
        self._x0_gradient += gradient
        if self.variant.has_residual_lambdas:
            self.gradients |= {"resid_lambdas": self._of_resid, "x0_lambdas": self._of_x0}

    def _smear(self, embedded: Floats) -> tuple[Floats, Floats | None]:
        """Return x0 and the gate (N, 1) of each token, None without smear."""
        if not self.variant.has_smear:
            return embedded, None
        gate = sigmoid(embedded[:, :SMEAR_CHANNELS] @ self.weights["smear_gate.weight"].T)
        return embedded + (self.weights["smear_lambda"] * gate) * self._previous(embedded), gate

    def _previous(self, embedded: Floats) -> Floats:
        """Return the previous token's embedding at each position, 0 at the start of a row."""
        rows = embedded.reshape(self.batch, self.length, -1)
        previous = np.zeros_like(rows)
        previous[:, 1:] = rows[:, :-1]
        return previous.reshape(embedded.shape)

    def _smear_gradient(self, gradient: Floats, embedded: Floats, gate: Floats | None) -> Floats:
        if gate is None:
            return gradient
        factor, weight = self.weights["smear_lambda"], self.weights["smear_gate.weight"]
        share = np.vecdot(gradient, self._previous(embedded))[:, None]
        of_gate = factor * share * gate * (1 - gate)
        self.gradients["smear_lambda"] = dot(share, gate).reshape(1)
        self.gradients["smear_gate.weight"] = of_gate.T @ embedded[:, :SMEAR_CHANNELS]
        of_previous = ((factor * gate) * gradient).reshape(self.batch, self.length, -1)
        gradient = gradient.copy()
        gradient.reshape(self.batch, self.length, -1)[:, :-1] += of_previous[:, 1:]
        gradient[:, :SMEAR_CHANNELS] += of_gate @ weight
        return gradient

    def _block(self, before: Floats, x0: Floats, number: int) -> tuple[KeptLayer, Floats]:
        """Return the values of a block that the backward pass needs, and the residual stream after it."""
        weights, variant, prefix = self.weights, self.variant, f"transformer.h.{number}"
        x = before
        if variant.has_residual_lambdas:
            x = weights["resid_lambdas"][number] * before
            x += weights["x0_lambdas"][number] * x0
        normed, factor = norm(x, variant.norm_eps)
        qkv_weight = np.concatenate([weights[f"{prefix}.attn.{name}.weight"] for name in ("c_q", "c_k", "c_v")])
        q, k, values = self._split(normed @ qkv_weight.T)
        prepare = {"base": variant.rope_base, "eps": variant.norm_eps, "scale": variant.qk_scale}
        queries, query_factor = rotate_and_norm(q, **prepare)
        keys, key_factor = rotate_and_norm(k, **prepare)
        gate, value_rows = self._gate(normed, number)
        if gate is not None and value_rows is not None:
            values += gate * value_rows
        mixed, inverses = attend(self._grouped(queries), keys, values, window=self.config.windows[number])
        output = mixed.reshape(normed.shape) @ weights[f"{prefix}.attn.c_proj.weight"].T
        output += x
        mlp_input, mlp_factor = norm(output, variant.norm_eps)
        hidden = mlp_input @ weights[f"{prefix}.mlp.c_fc.weight"].T
        np.maximum(hidden, 0, out=hidden)
        after = np.square(hidden) @ weights[f"{prefix}.mlp.c_proj.weight"].T
        after += output
        layer = KeptLayer(
            *(before, normed, factor, qkv_weight, queries, keys, query_factor, key_factor, values, gate, value_rows),
            *(mixed, inverses, mlp_input, mlp_factor, hidden),
        )
        return layer, after

    def _block_gradient(self, gradient: Floats, layer: KeptLayer, x0: Floats, number: int) -> Floats:
        """Return the gradient for the residual stream before a block from that for the stream after it."""
        prefix = f"transformer.h.{number}"
        of_hidden = self._product(f"{prefix}.mlp.c_proj.weight", gradient, np.square(layer.hidden))
        of_hidden *= layer.hidden
        of_hidden *= 2
        of_input = self._product(f"{prefix}.mlp.c_fc.weight", of_hidden, layer.mlp_input)
        gradient = gradient + norm_gradient(of_input, layer.mlp_input, layer.mlp_factor)
        of_input = self._attention_gradient(gradient, layer, number)
        gradient += norm_gradient(of_input, layer.attention_input, layer.attention_factor)
        if not self.variant.has_residual_lambdas:
            return gradient
        self._of_resid[number] = dot(gradient, layer.before)
        self._of_x0[number] = dot(gradient, x0)
        self._x0_gradient += self.weights["x0_lambdas"][number] * gradient
        gradient *= self.weights["resid_lambdas"][number]
        return gradient

    def _attention_gradient(self, gradient: Floats, layer: KeptLayer, number: int) -> Floats:
        """Return the gradient for the attention's normed input from that for its output."""
        name = f"transformer.h.{number}.attn"
        of_mixed = self._product(f"{name}.c_proj.weight", gradient, layer.mixed.reshape(gradient.shape))
        of_queries, of_keys, of_values = attend_gradient(
            of_mixed.reshape(layer.mixed.shape),
            *(self._grouped(layer.queries), layer.keys, layer.values, layer.mixed, layer.inverses),
            window=self.config.windows[number],
        )
        prepare = {"base": self.variant.rope_base, "scale": self.variant.qk_scale}
        of_queries = of_queries.reshape(layer.queries.shape)
        parts = (
            rotate_and_norm_gradient(of_queries, layer.queries, layer.query_factor, **prepare),
            rotate_and_norm_gradient(of_keys, layer.keys, layer.key_factor, **prepare),
            of_values,
        )
        of_qkv = np.concatenate([part.reshape(len(gradient), -1) for part in parts], axis=1)
        of_weight = of_qkv.T @ layer.attention_input
        borders = np.cumsum([part[0, 0].size for part in parts])[:-1]
        for part, value in zip(("c_q", "c_k", "c_v"), np.split(of_weight, borders), strict=True):
            self.gradients[f"{name}.{part}.weight"] = value
        of_input = of_qkv @ layer.qkv_weight
        if layer.gate is not None and layer.value_rows is not None:
            self._gate_gradient(of_values, of_input, layer, layer.gate, layer.value_rows, number)
        return of_input

    def _gate(self, normed: Floats, number: int) -> tuple[Floats | None, Floats | None]:
        """Return the gates (B, T, G, 1) and the tokens' value embeddings (B, T, G, D) of a layer that has them."""
        if not self.config.has_value_embedding(number):
            return None, None
        weight = self.weights[f"transformer.h.{number}.attn.ve_gate.weight"]
        gate = sigmoid(normed[:, : self.variant.gate_channels] @ weight.T) * np.float32(self.variant.gate_scale)
        rows = self.weights[f"value_embeds.{number}.weight"][self.tokens]
        shape = (self.batch, self.length, self.config.n_kv_head)
        return gate.reshape(*shape, 1), rows.reshape(*shape, -1)

    def _gate_gradient(
        self, of_values: Floats, of_input: Floats, layer: KeptLayer, gate: Floats, value_rows: Floats, number: int
    ) -> None:
        """Add the gate's part to the gradient for the normed input, and leave those of its weight and its table."""
        name, channels = f"transformer.h.{number}.attn.ve_gate.weight", self.variant.gate_channels
        of_gate = np.vecdot(of_values, value_rows)[..., None] * gate * (1 - gate / np.float32(self.variant.gate_scale))
        of_logits = of_gate.reshape(len(of_input), -1)
        self.gradients[name] = of_logits.T @ layer.attention_input[:, :channels]
        of_input[:, :channels] += of_logits @ self.weights[name]
        table = f"value_embeds.{number}.weight"
        of_rows = (of_values * gate).reshape(len(of_input), -1)
        self.gradients[table] = row_gradient(self.tokens, of_rows, len(self.weights[table]))

    def _product(self, name: str, gradient: Floats, x: Floats) -> Floats:
        """Leave the gradient of W of y = x W^T, and return that for x from that for y."""
        self.gradients[name] = gradient.T @ x
        return gradient @ self.weights[name]

    def _split(self, qkv: Floats) -> tuple[Floats, Floats, Floats]:
        """Return queries, keys and values (B, T, heads, D) as views of (N, C + 2 G * D)."""
        config = self.config
        rows = qkv.reshape(self.batch, self.length, -1, config.head_dim)
        first, second = config.n_head, config.n_head + config.n_kv_head
        return rows[:, :, :first], rows[:, :, first:second], rows[:, :, second:]

    def _grouped(self, queries: Floats) -> Floats:
        """Return queries (B, T, G, R, D): query head j reads key/value head j // R."""
        return queries.reshape(self.batch, self.length, self.config.n_kv_head, -1, self.config.head_dim)
