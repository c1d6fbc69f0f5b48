"""Fits loss = E + K_1 / x_1^p_1 + K_2 / x_2^p_2 + ... to results, by a robust fit in logarithms.

The method is that of Hoffmann et al. 2022 (2203.15556), section 3.3 and appendix D: minimise the Huber loss of the
differences between predicted and measured log loss, from many starting points. The minimiser here is Gauss-Newton with
damping (Levenberg-Marquardt) and reweighted residuals instead of L-BFGS. It works on many problems at a time, because
starting points and resampled experiments are all fitted together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HUBER_DELTA = 1e-3
"""Log losses further than this from the fit pull on it by a constant force (Hoffmann et al. 2022, appendix D.3)."""
_FLOOR_SHARES = (0.15, 0.5, 0.85)
"""Starting points: E as a share of the lowest loss, and the exponents."""
_EXPONENTS = (0.1, 0.3, 0.6, 1.2)
MAX_EXPONENT = 5.0
"""No law of learning is so steep. Without a limit, noise can drive an exponent to where powers overflow."""
_ITERATIONS = 300
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PowerTerms:
    """The coefficients of many fits: `floor` (fits), `coefficients` and `exponents` (fits, terms)."""

    floor: np.ndarray
    coefficients: np.ndarray
    exponents: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the loss (fits, points) at `x` (points, terms)."""
        powers = x ** -self.exponents[:, None, :]
        return np.asarray(self.floor[:, None] + (self.coefficients[:, None, :] * powers).sum(axis=-1))


def fit_power_terms(x: np.ndarray, losses: np.ndarray) -> PowerTerms:
    """Return the best fit of each row of `losses` (fits, points) at `x` (points, terms).

    The first row is fitted from many starting points, and the others, which resemble it, from its result.
    """
    log_x, centre = _centred(x)
    log_losses = np.log(losses)
    starts = _starting_points(losses[0], terms=x.shape[1])
    solution, cost = _minimise(log_x, np.broadcast_to(log_losses[0], (len(starts), len(x))), starts)
    best = solution[[np.argmin(cost)]]
    others, _ = _minimise(log_x, log_losses[1:], np.repeat(best, len(losses) - 1, axis=0))
    theta = np.concatenate([best, others])
    exponents = np.exp(theta[:, 1 + len(centre) :])
    coefficients = np.exp(theta[:, 1 : 1 + len(centre)] + exponents * centre)
    return PowerTerms(np.exp(theta[:, 0]), coefficients, exponents)


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms less their means, which separates coefficients from exponents, and the means."""
    log_x = np.log(x)
    centre = log_x.mean(axis=0)
    return log_x - centre, centre


def _starting_points(loss: np.ndarray, *, terms: int) -> np.ndarray:
    """Return (starts, 1 + 2 * terms): log E, the log coefficients and the log exponents.

    At the centre of the measurements, each term has an equal part of what the floor leaves.
    """
    grid = np.array(np.meshgrid(_FLOOR_SHARES, *[_EXPONENTS] * terms)).reshape(terms + 1, -1)
    floor = grid[0] * loss.min()
    coefficient = np.log((np.median(loss) - floor) / terms)
    return np.stack([np.log(floor), *[coefficient] * terms, *np.log(grid[1:])], axis=1)


def _minimise(log_x: np.ndarray, log_loss: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum of each problem and its cost. `log_loss` is (problems, points), `theta` (problems, 5)."""
    theta, damping = theta.copy(), np.full(len(theta), 1e-2)
    predicted, jacobian = _predict(log_x, theta)
    residual = predicted - log_loss
    cost = _huber(residual)
    active = np.ones(len(theta), dtype=bool)
    for _ in range(_ITERATIONS):
        at = np.flatnonzero(active)
        if not len(at):
            break
        step = _step(residual[at], jacobian[at], damping[at])
        tried = theta[at] + step
        exponents = tried[:, 1 + log_x.shape[1] :]
        np.minimum(exponents, np.log(MAX_EXPONENT), out=exponents)
        predicted, tried_jacobian = _predict(log_x, tried)
        tried_residual = predicted - log_loss[at]
        tried_cost = _huber(tried_residual)
        is_better = tried_cost <= cost[at]
        damping[at] *= np.where(is_better, 0.3, 5.0)
        better = at[is_better]
        gain = cost[better] - tried_cost[is_better]
        theta[better], residual[better] = tried[is_better], tried_residual[is_better]
        jacobian[better], cost[better] = tried_jacobian[is_better], tried_cost[is_better]
        active[better[gain <= _TOLERANCE * cost[better]]] = False
        active[at[damping[at] > 1e12]] = False
    return theta, cost


def _step(residual: np.ndarray, jacobian: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Return a damped Gauss-Newton step of each problem, with the weights that make squares a Huber loss."""
    weight = np.minimum(1.0, HUBER_DELTA / np.maximum(np.abs(residual), 1e-300))
    weighted = jacobian * weight[..., None]
    hessian = np.einsum("bpi,bpj->bij", weighted, jacobian)
    gradient = np.einsum("bpi,bp->bi", weighted, residual)
    diagonal = np.einsum("bii->bi", hessian)
    diagonal += damping[:, None] * diagonal + 1e-14
    step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    return np.clip(step, -1.0, 1.0)


def _predict(log_x: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log loss (problems, points) and its derivatives by `theta` (problems, points, parameters)."""
    terms = log_x.shape[1]
    exponents = np.exp(theta[:, 1 + terms :])
    parts = theta[:, None, 1 : 1 + terms] - exponents[:, None, :] * log_x
    logits = np.concatenate([np.broadcast_to(theta[:, None, :1], (*parts.shape[:2], 1)), parts], axis=-1)
    highest = logits.max(axis=-1, keepdims=True)
    shares = np.exp(logits - highest)
    total = shares.sum(axis=-1, keepdims=True)
    shares /= total
    by_exponent = -shares[..., 1:] * exponents[:, None, :] * log_x
    return (highest + np.log(total))[..., 0], np.concatenate([shares, by_exponent], axis=-1)


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    inside = 0.5 * size**2
    outside = HUBER_DELTA * (size - 0.5 * HUBER_DELTA)
    return np.asarray(np.where(size <= HUBER_DELTA, inside, outside).sum(axis=-1))
