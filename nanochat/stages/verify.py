"""Seven checks that MLX computes the model correctly on this machine: `nanochat-run verify`.

They need a small random model, no data, and a few seconds. Not covered: speed, real data, long contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from nanochat.checkpoint import model_folder
from nanochat.errors import StageError
from nanochat.inference.kv_cache import DecodingCache, PromptCache, PromptCopy, empty_buffers, from_prompts
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT, summed_loss
from nanochat.model.gpt import GPT
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.storage.temporary_folders import temporary_folder

_ROWS, _TOKENS, _PROMPT = 2, 48, 10
_SMALL_MODEL = GPTConfig(
    sequence_len=64, vocab_size=300, n_layer=3, n_head=4, n_kv_head=2, n_embd=64, window_pattern="SL"
)


class CheckResult(NamedTuple):
    """The outcome of one check. `detail` says what was measured, or what is wrong."""

    name: str
    passed: bool
    detail: str


def run_checks(config: GPTConfig = _SMALL_MODEL) -> list[CheckResult]:
    """Return the results of all seven checks on a model of this shape. A failed check raises nothing."""
    checks: tuple[tuple[str, Callable[[GPTConfig], str]], ...] = (
        ("initial weights", check_initial_weights),
        ("logits", check_logits),
        ("loss of an untrained model", check_untrained_loss),
        ("gradients reach every parameter", check_gradients),
        ("optimizer steps lower the loss", check_optimizer),
        ("a saved model loads bit for bit", check_round_trip),
        ("cached generation equals uncached", check_kv_cache),
    )
    return [_run_check(name, check, config) for name, check in checks]


def _run_check(name: str, check: Callable[[GPTConfig], str], config: GPTConfig) -> CheckResult:
    try:
        return CheckResult(name, True, check(config))
    except StageError as error:
        return CheckResult(name, False, str(error))


def check_initial_weights(config: GPTConfig) -> str:
    """Require the expected parameter count and shapes, and that exactly the output projections are zero."""
    parameters = _new_model(config).named_parameters()
    count = sum(array.size for array in parameters.values())
    _require(count == config.num_parameters(), f"{count} parameters, the formula says {config.num_parameters()}")
    for name, array in parameters.items():
        _require(tuple(array.shape) == config.parameter_shapes()[name], f"`{name}` has shape {array.shape}")
        if name.endswith(("c_proj.weight", "c_q.weight", "wte.weight")):
            should_be_zero = name.endswith("c_proj.weight")
            _require(bool(array.any()) != should_be_zero, f"`{name}` should{'' if should_be_zero else ' not'} be zero")
    return f"{count:,} parameters"


def check_logits(config: GPTConfig) -> str:
    """Require float32 logits of shape (B, T, vocab_size) that are finite and within the softcap."""
    logits = _random_model(config)(_random_tokens(config, _TOKENS))
    _require(logits.shape == (_ROWS, _TOKENS, config.vocab_size), f"logits have shape {logits.shape}")
    _require(logits.dtype == mx.float32, f"logits have dtype {logits.dtype}")
    largest = _to_float(mx.abs(logits).max())
    _require(0 < largest <= 15, f"the largest logit is {largest}")
    return f"shape {logits.shape}, largest {largest:.2f}"


def check_untrained_loss(config: GPTConfig) -> str:
    """Require that a new model predicts about as well as a uniform guess: ln(vocab_size) nats per token."""
    loss = _to_float(_mean_loss(_new_model(config), _random_tokens(config, _TOKENS + 1)))
    expected = math.log(config.vocab_size)
    _require(abs(loss - expected) < 0.05, f"loss {loss:.4f}, a uniform guess has {expected:.4f}")
    return f"{loss:.4f} nats, uniform {expected:.4f}"


def check_gradients(config: GPTConfig) -> str:
    """Require a finite, nonzero gradient for every parameter of a model with random weights."""
    gradients = _gradients(_random_model(config), _random_tokens(config, _TOKENS + 1))
    for name, gradient in gradients.items():
        size = _to_float(mx.abs(gradient).sum())
        _require(math.isfinite(size) and size > 0, f"the gradient of `{name}` sums to {size}")
    return f"{len(gradients)} tensors"


def check_optimizer(config: GPTConfig) -> str:
    """Require that five optimizer steps on one batch lower its loss by more than 0.5 nats."""
    model, tokens = _new_model(config), _random_tokens(config, _TOKENS + 1)
    parameters = model.named_parameters()
    groups = build_groups(config, OptimizerConfig(), tokens_per_step=_ROWS * _TOKENS)
    optimizer = Optimizer(groups, parameters)
    before = _to_float(_mean_loss(model, tokens))
    for _ in range(5):
        gradients = _gradients(model, tokens)
        parameters = optimizer.update(parameters, gradients, lr_multiplier=1.0, momentum=0.95, weight_decay=0.0)
        model.set_parameters(parameters)
    after = _to_float(_mean_loss(model, tokens))
    _require(after < before - 0.5, f"loss {before:.3f} before, {after:.3f} after five steps")
    return f"{before:.3f} -> {after:.3f} nats"


def check_round_trip(config: GPTConfig) -> str:
    """Require that a model has the same bits in every parameter after it was saved and loaded."""
    model = _random_model(config)
    with temporary_folder("verify") as folder:
        model_folder.save_model(folder / "model", model, None)
        loaded = model_folder.load_model(folder / "model").named_parameters()
    for name, array in model.named_parameters().items():
        _require(bool((array == loaded[name]).all()), f"`{name}` changed when it was saved and loaded")
    return f"{len(loaded)} tensors"


def check_kv_cache(config: GPTConfig) -> str:
    """Require that prefill and token-by-token decoding give the logits of one pass, beyond the short window too."""
    model, tokens = _random_model(config), _random_tokens(config, _TOKENS)
    uncached = model(tokens)
    prompts = PromptCache(config)
    pieces = [model(tokens[:, :_PROMPT], cache=prompts)]
    lengths, buffers = mx.full((_ROWS,), _PROMPT), empty_buffers(config, _ROWS, _TOKENS, model.compute_dtype)
    buffers = from_prompts(prompts, buffers, [PromptCopy(row, row, _PROMPT) for row in range(_ROWS)])
    cache = DecodingCache(buffers, lengths, newest=tokens[:, _PROMPT - 1])
    for position in range(_PROMPT, _TOKENS):
        pieces.append(model(tokens[:, position : position + 1], cache=cache))
        mx.eval(pieces[-1])
    difference = _to_float(mx.abs(mx.concatenate(pieces, axis=1) - uncached).max())
    tolerance = 1e-4 if model.compute_dtype == mx.float32 else 0.5  # bfloat16 keeps 8 bits
    _require(difference < tolerance, f"logits differ by {difference:.2e}")
    return f"largest difference {difference:.1e}"


def _to_float(array: mx.array) -> float:
    value = array.item()
    assert not isinstance(value, complex), "the model computes real numbers"
    return float(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StageError(message)


def _new_model(config: GPTConfig) -> GPT:
    model = FastGPT(config)
    model.initialise(mx.random.key(0))
    return model


def _random_model(config: GPTConfig) -> GPT:
    """Return a model without zero weights: new output projections are zero and would hide every earlier layer."""
    model = _new_model(config)
    parameters = model.named_parameters()
    keys = mx.random.split(mx.random.key(1), len(parameters))
    model.set_parameters(
        {
            name: mx.random.normal(array.shape, key=key) * (0.5 if array.ndim == 1 else array.shape[-1] ** -0.5)
            for key, (name, array) in zip(keys, parameters.items(), strict=True)
        }
    )
    return model


def _random_tokens(config: GPTConfig, length: int) -> mx.array:
    return mx.random.randint(0, config.vocab_size, (_ROWS, length), key=mx.random.key(2))


def _mean_loss(model: GPT, tokens: mx.array) -> mx.array:
    return summed_loss(model, tokens[:, :-1], tokens[:, 1:]) / (tokens.shape[0] * (tokens.shape[1] - 1))


def _gradients(model: GPT, tokens: mx.array) -> dict[str, mx.array]:
    def loss(parameters: dict[str, mx.array]) -> mx.array:
        model.set_parameters(parameters)
        return _mean_loss(model, tokens)

    parameters = model.named_parameters()
    gradients: dict[str, mx.array] = mx.grad(loss)(parameters)
    model.set_parameters(parameters)
    return gradients
