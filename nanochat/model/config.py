"""GPTConfig: the numbers that define a model, and the parameter shapes, windows and FLOPs that follow. No MLX.

Not here: what differs between architectures (`architectures`), initial values (`init`), the forward pass (`gpt`).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import get_args

from nanochat.model.architectures import VARIANTS, Architecture, Variant
from nanochat.plurals import several

VOCAB_MULTIPLE = 64
"""The rows of the embedding and lm_head are padded to a multiple of this; token ids stay below vocab_size."""
SOFTCAP = 15.0
"""Logits are SOFTCAP * tanh(x / SOFTCAP), so they stay within +-SOFTCAP."""
SMEAR_CHANNELS = 24
"""The smear's gate reads this many leading channels of the embedding."""
MAX_SIZE = 2**31 - 1
"""MLX counts rows and positions in 32 bits."""
MIN_NORM_EPS, MAX_NORM_EPS = 1e-30, 1.0
"""A smaller epsilon is 0 in float32 arithmetic, so that the norm of zeros is not a number."""
DEPTH_WIDTH, DEPTH_HEAD_DIM = 64, 128
"""`from_depth` uses this width per layer and this head size. It rounds the width up to a multiple of the head size."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The model's shape and architecture. The defaults are those of NanoChat MLX."""

    sequence_len: int = 2048
    """Context length in tokens, from which the windows are derived."""
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"
    """`S` (short) and `L` (whole context), repeated over the layers; the last layer is always L."""
    architecture: Architecture = "seed"
    norm_eps: float | None = None
    """The epsilon of every norm of an imported model, if it is not that of the architecture."""

    @classmethod
    def from_dict(cls, values: Mapping[str, int | float | str | None]) -> GPTConfig:
        """Return the config that `to_dict` wrote. An unknown field or a value of a wrong type raises a TypeError."""
        for name, value in values.items():
            if not _has_type(name, value):
                raise TypeError(
                    f"`{name}` is {reprlib.repr(value)}, which is not {_EXPECTED.get(name, 'a whole number')}"
                )
        return cls(**values)  # type: ignore[arg-type]  # mypy does not follow the check

    @classmethod
    def from_depth(cls, depth: int, *, architecture: Architecture = "seed") -> GPTConfig:
        """Return the config of `depth` layers, whose width follows: see `DEPTH_WIDTH`."""
        n_head = -(-DEPTH_WIDTH * depth // DEPTH_HEAD_DIM)
        return cls(
            n_layer=depth,
            n_head=n_head,
            n_kv_head=n_head,
            n_embd=n_head * DEPTH_HEAD_DIM,
            window_pattern=VARIANTS[architecture].default_window_pattern,
            architecture=architecture,
        )

    @property
    def variant(self) -> Variant:
        """The architecture's constants, with this model's own `norm_eps` if it has one."""
        variant = VARIANTS[self.architecture]
        return variant if self.norm_eps is None else replace(variant, norm_eps=self.norm_eps)

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def short_window(self) -> int:
        """Window of an S layer: half the context (seed), or a quarter rounded up to a multiple of 128 (current)."""
        if self.architecture == "seed":
            return self.sequence_len // 2
        return min(-(-self.sequence_len // 512) * 128, self.sequence_len)

    @property
    def windows(self) -> tuple[int, ...]:
        """Each layer's window: how many positions before its own a query sees."""
        pattern, last = self.window_pattern, self.n_layer - 1
        return tuple(
            self.short_window if pattern[i % len(pattern)] == "S" and i != last else self.sequence_len
            for i in range(self.n_layer)
        )

    @property
    def backout_layer(self) -> int:
        return self.n_layer // 2

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether `layer` has value embeddings: every second layer, the last one included, or none at all."""
        return self.variant.has_value_embeddings and layer % 2 == (self.n_layer - 1) % 2

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every parameter, with nanochat's names and order; matrices are (out, in)."""
        variant, width, vocab = self.variant, self.n_embd, self.padded_vocab_size
        shapes: dict[str, tuple[int, ...]] = {}
        if variant.has_residual_lambdas:
            shapes |= {"resid_lambdas": (self.n_layer,), "x0_lambdas": (self.n_layer,)}
        if variant.has_smear:
            shapes["smear_lambda"] = (1,)
        if variant.has_backout:
            shapes["backout_lambda"] = (1,)
        shapes["transformer.wte.weight"] = (vocab, width)
        for layer in range(self.n_layer):
            shapes |= self._block_shapes(layer)
        shapes["lm_head.weight"] = (vocab, width)
        if variant.has_smear:
            shapes["smear_gate.weight"] = (1, SMEAR_CHANNELS)
        kv_width = self.n_kv_head * self.head_dim
        for layer in filter(self.has_value_embedding, range(self.n_layer)):
            shapes[f"value_embeds.{layer}.weight"] = (vocab, kv_width)
        return shapes

    def _block_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        width, kv_width = self.n_embd, self.n_kv_head * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attn.c_q": (width, width),
            "attn.c_k": (kv_width, width),
            "attn.c_v": (kv_width, width),
            "attn.c_proj": (width, width),
        }
        if self.has_value_embedding(layer):
            shapes["attn.ve_gate"] = (self.n_kv_head, self.variant.gate_channels)
        shapes |= {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        return {f"transformer.h.{layer}.{name}.weight": shape for name, shape in shapes.items()}

    def find_misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Return why weights of these names and shapes are not those of this model, or None if they are."""
        if self.n_layer > len(shapes):  # listing the names of that many layers could take all memory
            return f"the model has {self.n_layer:,} layers, but only {several(len(shapes), 'weight')}"
        expected = self.parameter_shapes()
        missing = [name for name in expected if name not in shapes]
        unknown = [name for name in shapes if name not in expected]
        if missing or unknown:
            shown = [reprlib.repr(names) if names else "none" for names in (missing, unknown)]
            return f"the weights are not those of this model: missing {shown[0]}, unknown {shown[1]}"
        for name, shape in expected.items():
            if shapes[name] != shape:
                return f"weight `{name}` has shape {shapes[name]}, but the model needs {shape}"
        return None

    def num_parameters(self) -> int:
        """Return the number of parameters, including the padding rows."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def num_scaling_parameters(self) -> int:
        """Return the number of parameters that data-to-parameter ratios count: block matrices and lm_head."""
        return self._count_matrices(("transformer.h.", "lm_head."))

    def flops_per_token(self) -> int:
        """Return training FLOPs per token: 6 per matmul weight, and 12 * n_embd * window per layer for attention.

        Embeddings (wte, value embeddings) and elementwise operations do not count. Source: Kaplan et al. 2020
        (2001.08361), section 2.1; PaLM (2204.02311), appendix B.
        """
        matmul_weights = self._count_matrices(("transformer.h.", "lm_head.", "smear_gate."))
        attention = sum(12 * self.n_embd * min(window, self.sequence_len) for window in self.windows)
        return 6 * matmul_weights + attention

    def _count_matrices(self, prefixes: tuple[str, ...]) -> int:
        shapes = self.parameter_shapes().items()
        return sum(math.prod(shape) for name, shape in shapes if name.startswith(prefixes))

    def problems(self) -> list[str]:
        """Return one sentence for each reason why the shape is impossible; an empty list if it is valid."""
        sizes = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
        values = {name: getattr(self, name) for name in sizes}
        wrong = [
            f"`{name}` is {reprlib.repr(value)}, but must be at least 1 and at most {MAX_SIZE:,}"
            for name, value in values.items()
            if not 1 <= value <= MAX_SIZE
        ]
        if wrong:
            return wrong
        problems = []
        if self.norm_eps is not None and not MIN_NORM_EPS <= self.norm_eps <= MAX_NORM_EPS:
            problems.append(f"`norm_eps` is {self.norm_eps}, but must be from {MIN_NORM_EPS} to {MAX_NORM_EPS}")
        if self.n_embd % self.n_head:
            problems.append(f"`n_embd` {self.n_embd} is not a multiple of `n_head` {self.n_head}")
        elif self.head_dim % 2:
            problems.append(
                f"heads of {self.head_dim} (`n_embd` / `n_head`) cannot be rotated: their size must be even"
            )
        if self.n_head % self.n_kv_head:
            problems.append(f"`n_head` {self.n_head} is not a multiple of `n_kv_head` {self.n_kv_head}")
        gates = max(self.variant.gate_channels, SMEAR_CHANNELS if self.variant.has_smear else 0)
        if self.n_embd < gates:
            problems.append(f"`n_embd` {self.n_embd} is less than the {gates} channels that the gates read")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            problems.append(f"`window_pattern` {reprlib.repr(self.window_pattern)} must be made of the letters S and L")
        elif "S" in self.window_pattern and not self.variant.has_short_windows:
            problems.append(
                f"`window_pattern` {reprlib.repr(self.window_pattern)} has short windows, which `{self.architecture}` "
                "lacks: use L"
            )
        return problems

    def to_dict(self) -> dict[str, int | float | str | None]:
        """Return the fields as JSON values. `norm_eps` is left out if it is the architecture's."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_EXPECTED = {
    "architecture": f"one of {', '.join(get_args(Architecture))}",
    "window_pattern": "a text",
    "norm_eps": "a number",
}
"""The kind of value that each setting must have, for those that are not whole numbers."""


def _has_type(name: str, value: object) -> bool:
    """Return whether a value from JSON has the type of the field, as far as the field is known."""
    match name:
        case "architecture":
            return value in get_args(Architecture)
        case "window_pattern":
            return isinstance(value, str)
        case "norm_eps":
            return value is None or type(value) in (int, float)
        case _:
            return type(value) is int or name not in GPTConfig.__dataclass_fields__
