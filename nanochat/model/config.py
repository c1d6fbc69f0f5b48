"""GPTConfig: every number that fixes the model's computation, its sizes and its FLOPs; no MLX.

Not here: initial values (`init`), the forward pass (`gpt`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Architecture = Literal["seed", "current"]

VOCAB_MULTIPLE = 64
"""The embedding and lm_head have this many rows or a multiple of it; ids beyond vocab_size never occur."""
SOFTCAP = 15.0
"""Logits are SOFTCAP * tanh(x / SOFTCAP), so their size is bounded."""
SMEAR_CHANNELS = 24
"""Leading channels of the embedding that the smear's gate reads."""
DEPTH_WIDTH, DEPTH_HEAD_DIM = 64, 128
"""The depth dial: width per layer, and the head size to which the width is rounded up."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs between the architectures beyond their shape."""

    norm_eps: float
    rope_base: float
    qk_scale: float
    """Factor on q and on k after their norm."""
    gate_channels: int
    """Leading channels of a block's normed input that the value gate reads."""
    gate_scale: float
    """The value gate is gate_scale * sigmoid(...)."""
    has_smear: bool
    has_backout: bool


_SEED = Variant(
    norm_eps=1e-6,
    rope_base=10_000.0,
    qk_scale=1.0,
    gate_channels=32,
    gate_scale=2.0,
    has_smear=False,
    has_backout=False,
)
_CURRENT = Variant(
    norm_eps=2.0**-23,  # the machine epsilon of float32
    rope_base=100_000.0,
    qk_scale=1.2,
    gate_channels=12,
    gate_scale=3.0,
    has_smear=True,
    has_backout=True,
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Width and heads, as derived from a depth."""

    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The model's shape and architecture; the defaults are the seed architecture.

    Attributes:
        sequence_len: context length in tokens; also what windows derive from.
        vocab_size: tokens that exist; logits have this many columns.
        window_pattern: `S` (short) and `L` (whole context), repeated over the layers; the last layer is always L.
        architecture: `seed` (NanoChat MLX) or `current` (nanochat as of 2026-07).
    """

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"
    architecture: Architecture = "seed"

    @classmethod
    def from_dict(cls, values: dict[str, int | str]) -> GPTConfig:
        """Return the config that `to_dict` wrote.

        Raises:
            TypeError: an unknown field.
        """
        return cls(**values)  # type: ignore[arg-type]  # JSON: field by field in `problems`

    @staticmethod
    def shape_from_depth(depth: int) -> Shape:
        """Return width 64 * depth rounded up to a multiple of 128, and heads of 128."""
        n_head = -(-DEPTH_WIDTH * depth // DEPTH_HEAD_DIM)
        return Shape(n_layer=depth, n_head=n_head, n_kv_head=n_head, n_embd=n_head * DEPTH_HEAD_DIM)

    @property
    def variant(self) -> Variant:
        """What the architecture fixes."""
        return _CURRENT if self.architecture == "current" else _SEED

    @property
    def padded_vocab_size(self) -> int:
        """Rows of wte, value embeddings and lm_head."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.n_embd // self.n_head

    @property
    def short_window(self) -> int:
        """Previous positions that an S layer sees: half the context (seed), or a quarter in steps of 128."""
        if self.architecture == "seed":
            return self.sequence_len // 2
        return min(-(-self.sequence_len // 512) * 128, self.sequence_len)

    @property
    def windows(self) -> tuple[int, ...]:
        """Previous positions visible in each layer; a query sees itself besides."""
        pattern, last = self.window_pattern, self.n_layer - 1
        return tuple(
            self.short_window if pattern[i % len(pattern)] == "S" and i != last else self.sequence_len
            for i in range(self.n_layer)
        )

    @property
    def backout_layer(self) -> int:
        """The block after which the residual is kept, where there is a backout."""
        return self.n_layer // 2

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether `layer` adds a value embedding: every second one, the last included."""
        return layer % 2 == (self.n_layer - 1) % 2

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every parameter, names and order as in the original; matrices are (out, in)."""
        variant, width, vocab = self.variant, self.n_embd, self.padded_vocab_size
        shapes: dict[str, tuple[int, ...]] = {"resid_lambdas": (self.n_layer,), "x0_lambdas": (self.n_layer,)}
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

    def num_parameters(self) -> int:
        """Return the number of parameters, padding rows included."""
        return sum(_size(shape) for shape in self.parameter_shapes().values())

    def num_scaling_parameters(self) -> int:
        """Return the parameters that data-to-parameter ratios count: block matrices and lm_head."""
        return self._count_matrices(("transformer.h.", "lm_head."))

    def flops_per_token(self) -> int:
        """Return training FLOPs per token: 6 per matmul weight, and attention's 12 * n_embd * visible positions.

        Lookups (wte, value embeddings) and elementwise work are not counted. Source: Kaplan et al. 2020 (2001.08361),
        section 2.1; PaLM (2204.02311), appendix B.
        """
        matmul_weights = self._count_matrices(("transformer.h.", "lm_head.", "smear_gate."))
        attention = sum(12 * self.n_embd * min(window, self.sequence_len) for window in self.windows)
        return 6 * matmul_weights + attention

    def _count_matrices(self, prefixes: tuple[str, ...]) -> int:
        shapes = self.parameter_shapes().items()
        return sum(_size(shape) for name, shape in shapes if name.startswith(prefixes))

    def problems(self) -> list[str]:
        """Return what makes the shape impossible, one sentence each; empty where it is sound."""
        sizes = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
        small = [
            f"`{name}` is {getattr(self, name)}, but must be at least 1" for name in sizes if getattr(self, name) < 1
        ]
        if small:
            return small
        found = []
        if self.n_embd % self.n_head:
            found.append(f"`n_embd` {self.n_embd} is not a multiple of `n_head` {self.n_head}")
        elif self.head_dim % 2:
            found.append(f"heads of {self.head_dim} (`n_embd` / `n_head`) cannot be rotated: their size must be even")
        if self.n_head % self.n_kv_head:
            found.append(f"`n_head` {self.n_head} is not a multiple of `n_kv_head` {self.n_kv_head}")
        gates = max(self.variant.gate_channels, SMEAR_CHANNELS if self.variant.has_smear else 0)
        if self.n_embd < gates:
            found.append(f"`n_embd` {self.n_embd} is less than the {gates} channels that the gates read")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            found.append(f"`window_pattern` {self.window_pattern!r} must be made of the letters S and L")
        return found

    def to_dict(self) -> dict[str, int | str]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
