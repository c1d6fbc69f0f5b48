"""Activation checkpointing: a module keeps only its inputs and recomputes its activations in the backward pass.

`mx.checkpoint` saves little memory, because MLX may recompute all modules at once and postpones weight gradients
together with the activations that they need. Here a module is recomputed only when the gradient of its output is known,
and the gradient of its inputs waits for those of its weights. Source: Chen et al. 2016 (1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten


def recomputed(module: Module, *inputs: mx.array) -> mx.array:
    """Return module(*inputs), one array, without keeping activations; gradients reach the inputs and the weights."""
    named = cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))
    names, weights = [name for name, _ in named], [weight for _, weight in named]

    def run(*arrays: mx.array) -> mx.array:
        module_inputs, module_weights = arrays[: len(inputs)], arrays[len(inputs) :]
        module.update(tree_unflatten(list(zip(names, module_weights, strict=True))))
        try:
            return cast("Callable[..., mx.array]", module)(*module_inputs)
        finally:
            module.update(tree_unflatten(named))

    function = mx.custom_function(run)

    @function.vjp
    def _run_again(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        waiting = mx.depends(list(primals), [cotangent])
        gradients = mx.vjp(run, waiting, [cotangent])[1]
        input_gradients, weight_gradients = gradients[: len(inputs)], gradients[len(inputs) :]
        return (*mx.depends(input_gradients, weight_gradients), *weight_gradients)

    return cast("mx.array", function(*inputs, *weights))
