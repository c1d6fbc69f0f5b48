"""Chooses the values that a training step keeps for its backward pass, and the order of that pass.

MLX evaluates a graph in an order of its own: it may recompute all modules of a checkpointed model at once, and it
postpones weight gradients together with the activations that they need. The functions here order the backward pass, so
that a module's arrays are released before the next module needs memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten


def recomputed(module: Module, *inputs: mx.array) -> mx.array:
    """Return module(*inputs), one array, without keeping activations: activation checkpointing.

    Gradients reach the inputs and the weights. The module is recomputed when the gradient of its output is known, and
    the gradient of its inputs waits for those of its weights. `mx.checkpoint` does neither and saves little memory.
    Source: Chen et al. 2016 (1604.06174).
    """
    names, weights = _named_weights(module)

    def run(*arrays: mx.array) -> mx.array:
        return _call_with(module, names, arrays[len(inputs) :], arrays[: len(inputs)])

    function = mx.custom_function(run)

    @function.vjp
    def _run_again(primals: tuple[mx.array, ...], cotangent: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        waiting = mx.depends(list(primals), [cotangent])
        return _weights_first(mx.vjp(run, waiting, [cotangent])[1], len(inputs))

    return cast("mx.array", function(*inputs, *weights))


def ordered(module: Module, *inputs: mx.array) -> mx.array:
    """Return module(*inputs), one array. The gradient of its inputs waits for those of its weights.

    So the weight gradients of one module, and the activations that they need, are done before the backward pass of the
    module in front of it begins.
    """
    names, weights = _named_weights(module)
    same = mx.custom_function(lambda *arrays: arrays)
    same.vjp(lambda _, cotangents, __: _weights_first(cotangents, len(inputs)))
    arrays = cast("tuple[mx.array, ...]", same(*inputs, *weights))
    return _call_with(module, names, arrays[len(inputs) :], arrays[: len(inputs)])


def squared_relu(x: mx.array) -> mx.array:
    """Return relu(x)^2. Its backward pass needs only this result, which the next matrix product keeps anyway."""
    return cast("mx.array", _squared_relu(x))


@mx.custom_function
def _squared_relu(x: mx.array) -> mx.array:
    return mx.square(mx.maximum(x, 0))


@_squared_relu.vjp
def _twice_the_root(_: mx.array, cotangent: mx.array, squares: mx.array) -> mx.array:
    return 2 * mx.sqrt(squares) * cotangent


def _weights_first(gradients: Sequence[mx.array], inputs: int) -> tuple[mx.array, ...]:
    """Return the same gradients; the first `inputs` of them are computed after all others."""
    of_inputs, of_weights = list(gradients[:inputs]), list(gradients[inputs:])
    return (*mx.depends(of_inputs, of_weights), *of_weights)


def _named_weights(module: Module) -> tuple[list[str], list[mx.array]]:
    named = cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))
    return [name for name, _ in named], [weight for _, weight in named]


def _call_with(
    module: Module, names: Sequence[str], weights: Sequence[mx.array], inputs: Sequence[mx.array]
) -> mx.array:
    """Return module(*inputs), computed with other weights, which the module forgets afterwards."""
    before = tree_flatten(module.parameters())
    module.update(tree_unflatten(list(zip(names, weights, strict=True))))
    try:
        return cast("Callable[..., mx.array]", module)(*inputs)
    finally:
        module.update(tree_unflatten(before))
