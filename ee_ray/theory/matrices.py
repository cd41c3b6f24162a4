"""The same network as full matrices, without the diagonalisation: an independent check of `flow`.

    dW1/dt = -(W1 W2 - A) C W2^T        dW2/dt = -W1^T (W1 W2 - A) C

with A C = U diag(m) V^T and C = V diag(c) V^T. Weights start at exp(-T) in the shared basis: W1 = exp(-T) U,
W2 = exp(-T) V^T, which is the paper's exp(-T) I when U = V. (Its literal start with U != V is not aligned with the
tasks; `literal_start` is there to see what that changes.)
"""

import numpy as np
from scipy.integrate import solve_ivp

from ee_ray.theory.flow import Floats, Task, World

Layers = tuple[Floats, Floats]


def random_basis(rng: np.random.Generator, size: int) -> Layers:
    """Orthogonal U and V: (size, size) each."""
    return tuple(np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))  # type: ignore[return-value]


def moments(task: Task, basis: Layers) -> Layers:
    """Correlation A C and covariance C of a task, as matrices."""
    u, v = basis
    return (u * task.correlation) @ v.T, (v * task.covariance) @ v.T


def aligned_start(world: World, basis: Layers) -> Layers:
    """Both layers at exp(-T) in the shared basis."""
    small = np.exp(-world.log_scale)
    return small * basis[0], small * basis[1].T


def literal_start(world: World, basis: Layers) -> Layers:
    """Both layers exp(-T) times the identity, whatever the basis."""
    small = np.exp(-world.log_scale) * np.eye(len(world.kinds))
    return small, small


def descend(layers: Layers, task: Layers, time: float, steps: int) -> Layers:
    """Plain gradient descent with `steps` steps of size time / steps; `task` is (A C, C)."""
    (w1, w2), (ac, c), rate = layers, task, time / steps
    for _ in range(steps):
        slope = w1 @ (w2 @ c) - ac
        w1, w2 = w1 - rate * slope @ w2.T, w2 - rate * w1.T @ slope
    return w1, w2


def integrate(layers: Layers, task: Layers, time: float) -> Layers:
    """Gradient flow by scipy, eighth order with error control: small weights must be followed to a relative 1e-9."""
    size, (ac, c) = len(layers[0]), task

    def velocity(_: float, flat: Floats) -> Floats:
        w1, w2 = flat.reshape(2, size, size)
        slope = w1 @ w2 @ c - ac
        return -np.concatenate([(slope @ w2.T).ravel(), (w1.T @ slope).ravel()])

    flat = np.concatenate([layers[0].ravel(), layers[1].ravel()])
    end = solve_ivp(velocity, (0, time), flat, method="DOP853", rtol=1e-9, atol=1e-13).y[:, -1]
    w1, w2 = end.reshape(2, size, size)
    return w1, w2


def singular_values(layers: Layers, basis: Layers) -> Floats:
    """The diagonal of U^T W1 W2 V: what theta does along each shared singular vector."""
    return np.diag(basis[0].T @ layers[0] @ layers[1] @ basis[1]).copy()


def off_diagonal(layers: Layers, basis: Layers) -> float:
    """The largest entry of U^T W1 W2 V off its diagonal: zero if features do not mix."""
    inside = basis[0].T @ layers[0] @ layers[1] @ basis[1]
    return float(np.abs(inside - np.diag(np.diag(inside))).max())
