"""Activation checkpointing of a module: keep its inputs, compute the rest again in the backward pass.

`mx.checkpoint` leaves the order to the evaluation, which may recompute all modules at once and puts weight gradients
off, with all that they need: that saves little. Here a module waits for the gradient that needs it, and the gradient of
its inputs waits for those of its weights. Source: Chen et al. 2016 (1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten


def recomputed(module: Module, *inputs: mx.array) -> mx.array:
    """Return module(*inputs), one array, whose activations are not kept; gradients reach the inputs and the weights."""
    named = cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))
    names, weights = [name for name, _ in named], [weight for _, weight in named]

    def run(*arrays: mx.array) -> mx.array:
        own, given = arrays[: len(inputs)], arrays[len(inputs) :]
        module.update(tree_unflatten(list(zip(names, given, strict=True))))
        try:
            return cast("Callable[..., mx.array]", module)(*own)
        finally:
            module.update(tree_unflatten(named))

    function = mx.custom_function(run)

    @function.vjp
    def _run_again(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        waiting = mx.depends(list(primals), [cotangent])
        gradients = mx.vjp(run, waiting, [cotangent])[1]
        of_inputs, of_weights = gradients[: len(inputs)], gradients[len(inputs) :]
        return (*mx.depends(of_inputs, of_weights), *of_weights)

    return cast("mx.array", function(*inputs, *weights))
