"""Initial values of every parameter, drawn from a random key.

Output projections start at zero, so that a new model's blocks leave the residual stream unchanged. Tests that compare
two paths through the model must therefore randomise every weight first.
"""

from __future__ import annotations

import mlx.core as mx

from nanochat.model.config import GPTConfig


def initial_parameters(config: GPTConfig, key: mx.array) -> dict[str, mx.array]:
    """Return name -> float32 initial value of every parameter; each has its own key."""
    shapes = config.parameter_shapes()
    keys = mx.random.split(key, len(shapes))
    draw = _draw_current if config.architecture == "current" else _draw_seed
    # Slices, because CUDA would take seconds to compile a kernel for `keys[i]`.
    each = (keys[i : i + 1].reshape(-1) for i in range(len(shapes)))
    return {name: draw(config, name, shape, own) for (name, shape), own in zip(shapes.items(), each, strict=True)}


def _draw_seed(config: GPTConfig, name: str, shape: tuple[int, ...], key: mx.array) -> mx.array:
    bound = (3 / config.n_embd) ** 0.5  # a uniform distribution of standard deviation n_embd^-0.5
    match _kind(name):
        case "wte":
            return mx.random.normal(shape, key=key)
        case "lm_head":
            return mx.random.normal(shape, scale=0.001, key=key)
        case "value_embeds" | "c_q" | "c_k" | "c_v" | "c_fc":
            return mx.random.uniform(-bound, bound, shape, key=key)
        case "c_proj" | "ve_gate":
            return mx.zeros(shape)
        case "resid_lambdas":
            return mx.ones(shape)
        case "x0_lambdas":
            return mx.full(shape, 0.1)
        case other:
            raise AssertionError(f"no initial value is defined for {other}")


def _draw_current(config: GPTConfig, name: str, shape: tuple[int, ...], key: mx.array) -> mx.array:
    bound = (3 / config.n_embd) ** 0.5
    depth = mx.arange(config.n_layer) / max(config.n_layer - 1, 1)
    match _kind(name):
        case "wte":
            return mx.random.normal(shape, scale=0.8, key=key)
        case "c_fc":
            return mx.random.uniform(-0.4 * bound, 0.4 * bound, shape, key=key)
        case "ve_gate" | "smear_gate":
            return mx.random.uniform(0.0, 0.02, shape, key=key)
        case "resid_lambdas":
            return 1.15 - 0.10 * depth
        case "x0_lambdas":
            return 0.20 - 0.15 * depth
        case "smear_lambda":
            return mx.zeros(shape)
        case "backout_lambda":
            return mx.full(shape, 0.2)
        case _:
            return _draw_seed(config, name, shape, key)


def _kind(name: str) -> str:
    """Return `value_embeds` of `value_embeds.1.weight`, `c_q` of `transformer.h.0.attn.c_q.weight`, and so on."""
    parts = name.removesuffix(".weight").split(".")
    return parts[0] if parts[0] == "value_embeds" else parts[-1]
