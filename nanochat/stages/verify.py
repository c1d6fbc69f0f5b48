"""Seven checks that this machine computes the model rightly: `nanochat-run verify`.

They take a small random model and no data, and end in seconds. Not covered: speed, real data, long contexts.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nanochat import runtime
from nanochat.errors import OK, StageError
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig, build_groups

if TYPE_CHECKING:
    import mlx.core as mx

    from nanochat.model.gpt import GPT

_ROWS, _TOKENS = 2, 48


class Finding(NamedTuple):
    """One check: its name, and what was measured or what is wrong."""

    name: str
    ok: bool
    detail: str


def verify(config: GPTConfig | None = None) -> list[Finding]:
    """Return the seven findings for a small model; `config` sets another. Nothing is raised for a failed check."""
    config = config or GPTConfig(
        sequence_len=64, vocab_size=300, n_layer=3, n_head=4, n_kv_head=2, n_embd=64, window_pattern="SL"
    )
    checks: tuple[tuple[str, Callable[[GPTConfig], str]], ...] = (
        ("creation and initial values", check_creation),
        ("forward shapes and dtypes", check_forward),
        ("loss of an untrained model", check_loss),
        ("gradients reach every parameter", check_gradients),
        ("an optimizer step lowers the loss", check_step),
        ("checkpoint round trip, bit for bit", check_round_trip),
        ("cached generation equals uncached", check_cache),
    )
    return [_run(name, check, config) for name, check in checks]


def _run(name: str, check: Callable[[GPTConfig], str], config: GPTConfig) -> Finding:
    try:
        return Finding(name, True, check(config))
    except StageError as error:
        return Finding(name, False, str(error))


def check_creation(config: GPTConfig) -> str:
    """Every parameter has its prescribed shape, projections are zero, and the count is the formula's."""
    parameters = _new_model(config).named_parameters()
    counted = sum(array.size for array in parameters.values())
    _require(counted == config.num_parameters(), f"{counted} parameters, the formula says {config.num_parameters()}")
    for name, array in parameters.items():
        _require(tuple(array.shape) == config.parameter_shapes()[name], f"`{name}` has shape {array.shape}")
        if name.endswith(("c_proj.weight", "c_q.weight", "wte.weight")):
            should_be_zero = name.endswith("c_proj.weight")
            _require(bool(array.any()) != should_be_zero, f"`{name}` should{'' if should_be_zero else ' not'} be zero")
    return f"{counted:,} parameters"


def check_forward(config: GPTConfig) -> str:
    """Logits are float32 of shape (B, T, vocab_size), finite, and within the softcap."""
    import mlx.core as mx

    model = _random_model(config)
    logits = model(_tokens(config, _TOKENS))
    _require(logits.shape == (_ROWS, _TOKENS, config.vocab_size), f"logits have shape {logits.shape}")
    _require(logits.dtype == mx.float32, f"logits have dtype {logits.dtype}")
    largest = _number(mx.abs(logits).max())
    _require(0 < largest <= 15, f"the largest logit is {largest}")
    return f"logits {logits.shape}, largest {largest:.2f}"


def check_loss(config: GPTConfig) -> str:
    """A freshly initialised model is about as surprised as a uniform guess: ln(vocab_size) nats a token."""
    tokens = _tokens(config, _TOKENS + 1)
    loss = _number(_mean_loss(_new_model(config), tokens))
    expected = math.log(config.vocab_size)
    _require(abs(loss - expected) < 0.05, f"loss {loss:.4f}, a uniform guess has {expected:.4f}")
    return f"{loss:.4f} nats, uniform {expected:.4f}"


def check_gradients(config: GPTConfig) -> str:
    """With random weights, every parameter has a finite gradient that is not zero."""
    import mlx.core as mx

    gradients = _gradients(_random_model(config), _tokens(config, _TOKENS + 1))
    for name, gradient in gradients.items():
        size = _number(mx.abs(gradient).sum())
        _require(math.isfinite(size) and size > 0, f"the gradient of `{name}` sums to {size}")
    return f"{len(gradients)} tensors"


def check_step(config: GPTConfig) -> str:
    """Five optimizer steps on one batch lower its loss."""
    from nanochat.optim.optimizer import Optimizer

    model, tokens = _new_model(config), _tokens(config, _TOKENS + 1)
    parameters = model.named_parameters()
    groups = build_groups(config, OptimizerConfig(), tokens_per_step=_ROWS * _TOKENS)
    optimizer = Optimizer(groups, parameters)
    before = _number(_mean_loss(model, tokens))
    for _ in range(5):
        gradients = _gradients(model, tokens)
        parameters = optimizer.update(parameters, gradients, lr_multiplier=1.0, momentum=0.95, weight_decay=0.0)
        model.set_parameters(parameters)
    after = _number(_mean_loss(model, tokens))
    _require(after < before - 0.5, f"loss {before:.3f} before, {after:.3f} after five steps")
    return f"{before:.3f} -> {after:.3f} nats"


def check_round_trip(config: GPTConfig) -> str:
    """A model saved and loaded has the same bits in every parameter."""
    from nanochat.checkpoint.model_folder import load_model, save_model

    model = _random_model(config)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", model, None)
        loaded = load_model(Path(folder) / "model").named_parameters()
    for name, array in model.named_parameters().items():
        _require(bool((array == loaded[name]).all()), f"`{name}` changed on the way")
    return f"{len(loaded)} tensors"


def check_cache(config: GPTConfig) -> str:
    """Prefill and token-by-token decoding through the cache give the logits of one pass, past the window too."""
    import mlx.core as mx

    from nanochat.inference.kv_cache import KVCache

    model, tokens = _random_model(config), _tokens(config, _TOKENS)
    whole = model(tokens)
    cache = KVCache(config, capacity=_TOKENS)
    pieces = [model(tokens[:, :10], cache=cache)]
    for position in range(10, _TOKENS):
        pieces.append(model(tokens[:, position : position + 1], cache=cache))
        mx.eval(pieces[-1])
    difference = _number(mx.abs(mx.concatenate(pieces, axis=1) - whole).max())
    tolerance = 1e-4 if model.compute_dtype == mx.float32 else 0.5  # bfloat16 keeps 8 bits
    _require(difference < tolerance, f"logits differ by {difference:.2e}")
    return f"largest difference {difference:.1e}"


def _number(array: mx.array) -> float:
    value = array.item()
    assert not isinstance(value, complex), "the model computes real numbers"
    return float(value)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise StageError(otherwise)


def _new_model(config: GPTConfig) -> GPT:
    import mlx.core as mx

    from nanochat.model.gpt import GPT

    model = GPT(config)
    model.initialise(mx.random.key(0))
    return model


def _random_model(config: GPTConfig) -> GPT:
    """Return a model none of whose weights is zero: fresh output projections are, and hide everything before them."""
    import mlx.core as mx

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


def _tokens(config: GPTConfig, length: int) -> mx.array:
    import mlx.core as mx

    return mx.random.randint(0, config.vocab_size, (_ROWS, length), key=mx.random.key(2))


def _mean_loss(model: GPT, tokens: mx.array) -> mx.array:
    from nanochat.model.loss import summed_nats

    return summed_nats(model, tokens[:, :-1], tokens[:, 1:]) / (tokens.shape[0] * (tokens.shape[1] - 1))


def _gradients(model: GPT, tokens: mx.array) -> dict[str, mx.array]:
    import mlx.core as mx

    def loss(parameters: dict[str, mx.array]) -> mx.array:
        model.set_parameters(parameters)
        return _mean_loss(model, tokens)

    parameters = model.named_parameters()
    gradients: dict[str, mx.array] = mx.grad(loss)(parameters)
    model.set_parameters(parameters)
    return gradients


def main(arguments: list[str] | None = None) -> int:
    """Print the findings, one a line; return 4 where one failed."""
    parser = argparse.ArgumentParser(prog="nanochat-run verify", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    chosen = runtime.prepare(parser.parse_args(arguments).device, "float32")

    from nanochat.model.device import select_device

    select_device(chosen.backend)
    sys.stdout.write(f"{chosen.describe()}\n")
    findings = verify()
    for finding in findings:
        sys.stdout.write(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}\n")
    failed = sum(not finding.ok for finding in findings)
    sys.stdout.write(f"{len(findings) - failed} of {len(findings)} checks passed\n")
    return StageError.exit_code if failed else OK


if __name__ == "__main__":
    sys.exit(main())
