"""Gaussian-mixture latents: several components a class, covariances low rank plus isotropic, and the exact posterior of the flow.

Component k has weight w, mean m and covariance S = U diag(v) U' + noise I with orthonormal columns U. Under rectified flow,
x_t = (1 - t) x0 + t noise (arXiv 2209.03003), it stays Gaussian with covariance C = (1 - t)^2 S + t^2 I, and given k

    E[x0 | x_t] = m + (1 - t) S C^-1 (x_t - (1 - t) m),   E[noise | x_t] = t C^-1 (x_t - (1 - t) m),   Cov[noise - x0 | x_t] = S C^-1,

so no truth below divides by t. The marginal is the mean over the posterior of k.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lab.data.world import DENSITIES, TIMES, World, check, numbers
from lab.errors import UserError

Array = np.ndarray | jax.Array


class Mixture(NamedTuple):
    """K Gaussians in d dimensions: log_weight [K], label [K], mean [K, d], basis U' [K, r, d], value v [K, r], noise (a variance)."""

    log_weight: ArrayLike
    label: ArrayLike
    mean: ArrayLike
    basis: ArrayLike
    value: ArrayLike
    noise: ArrayLike


class Posterior(NamedTuple):
    """What x_t [B, d] tells, with a = 1 - t, c = a^2 noise + t^2 [B, 1] and along = a^2 v + c, the variance along U [B, K, r]."""

    log_joint: Array  # log p(x_t, k | label) [B, K]
    weight: Array  # p(k | x_t, label) [B, K]
    z: Array  # U' (x_t - a m) [B, K, r]
    a: Array
    t: Array
    c: Array
    along: Array


def posterior(m: Mixture, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Posterior:
    """Posterior of the component for x [B, ...] at times [B] or one; label [B], negative where unknown (None: everywhere).

    Numpy arrays give numpy in their own precision, jax arrays jax.
    """
    xp = np if isinstance(x, np.ndarray) else jnp
    n, (k, r, d) = x.shape[0], m.basis.shape
    t = xp.broadcast_to(xp.asarray(t, x.dtype), (n,))[:, None]
    a, c = 1 - t, (1 - t) ** 2 * m.noise + t**2
    prior = xp.broadcast_to(xp.asarray(m.log_weight), (n, k))
    if label is not None:
        label = xp.asarray(label)[:, None]
        prior = xp.where((label < 0) | (label == xp.asarray(m.label)), prior, -xp.inf)
        prior = prior - _log_sum(xp, prior)
    with jax.default_matmul_precision("highest"):  # accelerators would round to TF32 or bf16
        x, mean, basis = x.reshape(n, d), xp.asarray(m.mean), xp.asarray(m.basis)
        z = (x @ basis.reshape(k * r, d).T).reshape(n, k, r) - a[..., None] * xp.einsum("krd,kd->kr", basis, mean)
        square = xp.sum(x * x, -1, keepdims=True) - 2 * a * (x @ mean.T) + a**2 * xp.sum(mean**2, -1)  # |x_t - a m|^2
    along = (a**2)[..., None] * xp.asarray(m.value) + c[..., None]
    distance = (square - xp.sum(z**2, -1)) / c + xp.sum(z**2 / along, -1)
    log_det = (d - r) * xp.log(c) + xp.sum(xp.log(along), -1)
    log_joint = prior - 0.5 * (distance + log_det + d * np.log(2 * np.pi))
    return Posterior(log_joint, xp.exp(log_joint - _log_sum(xp, log_joint)), z, a, t, c, along)


def _log_sum(xp: Any, x: Array) -> Array:
    most = xp.max(x, -1, keepdims=True)
    return most + xp.log(xp.sum(xp.exp(x - most), -1, keepdims=True))


def _data(m: Mixture, p: Posterior) -> tuple[Array, Array, Array]:
    """(A, B, D) of E[x0 | x_t, k] = A m + B x_t + U (D z)."""
    b = p.a * m.noise / p.c
    return 1 - p.a * b, b, p.a[..., None] * (m.value + m.noise) / p.along - b[..., None]


def _white(m: Mixture, p: Posterior) -> tuple[Array, Array, Array]:
    """(A, B, D) of C^-1 (x_t - a m), which is minus the score and E[noise | x_t, k] / t."""
    return -p.a / p.c, 1 / p.c, 1 / p.along - 1 / p.c[..., None]


def _velocity(m: Mixture, p: Posterior) -> tuple[Array, Array, Array]:
    """(A, B, D) of E[noise - x0 | x_t, k]."""
    a, b, d = (s * w - x for s, w, x in zip((p.t, p.t, p.t[..., None]), _white(m, p), _data(m, p), strict=True))
    return a, b, d


def _mean(m: Mixture, p: Posterior, x: Array, terms: tuple[Array, Array, Array]) -> Array:
    """Mean over the posterior of A m + B x_t + U (D z), of the shape of x."""
    n, (k, r, d) = x.shape[0], m.basis.shape
    alpha, beta, delta = terms
    with jax.default_matmul_precision("highest"):
        along = (p.weight[..., None] * delta * p.z).reshape(n, k * r) @ m.basis.reshape(k * r, d)
        return (alpha * (p.weight @ m.mean) + beta * x.reshape(n, d) + along).reshape(x.shape)


def denoise(m: Mixture, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Array:
    """E[x0 | x_t, label], of the shape of x; arguments as of `posterior`."""
    p = posterior(m, x, t, label)
    return _mean(m, p, x, _data(m, p))


def velocity(m: Mixture, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Array:
    """E[noise - x0 | x_t, label], of the shape of x: what a flow model would learn; arguments as of `posterior`."""
    p = posterior(m, x, t, label)
    return _mean(m, p, x, _velocity(m, p))


def score(m: Mixture, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Array:
    """Gradient of `log_density` in x, of its shape: -E[noise | x_t, label] / t (Tweedie); arguments as of `posterior`."""
    p = posterior(m, x, t, label)
    return -_mean(m, p, x, _white(m, p))


def log_density(m: Mixture, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Array:
    """log p_t(x | label), [B], in nats; arguments as of `posterior`."""
    return _log_sum(np if isinstance(x, np.ndarray) else jnp, posterior(m, x, t, label).log_joint)[..., 0]


def spread(m: Mixture, x: np.ndarray, t: ArrayLike, label: ArrayLike | None = None) -> np.ndarray:
    """Posterior variance of the velocity noise - x0 given x_t, a mean over elements, [B]; arguments as of `posterior`, in float64."""
    _, r, d = m.basis.shape
    p, x = posterior(m, x, t, label), x.reshape(len(x), d)
    alpha, beta, delta = _velocity(m, p)
    inner = np.einsum("krd,kd->kr", m.basis, m.mean)
    # |A m + B x + U (D z)|^2, where U' x = z + a U' m
    square = alpha**2 * np.sum(m.mean**2, -1) + 2 * alpha * beta * (x @ m.mean.T) + beta**2 * np.sum(x**2, -1, keepdims=True)
    bent = delta * p.z
    ahead = (alpha + beta * p.a)[..., None] * inner + beta[..., None] * p.z
    square += np.sum(bent * (bent + 2 * ahead), -1)
    within = np.sum((m.value + m.noise) / p.along, -1) + (d - r) * m.noise / p.c  # tr S C^-1
    mean = _mean(m, p, x, (alpha, beta, delta))
    return (np.sum(p.weight * (within + square), -1) - np.sum(mean**2, -1)) / d


def sample(m: Mixture, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` examples x0 [n, d] and their labels [n], on the host."""
    k = np.minimum(np.searchsorted(np.cumsum(np.exp(m.log_weight)), rng.random(n), side="right"), len(m.log_weight) - 1)
    z = np.sqrt(m.value[k]) * rng.standard_normal((n, m.value.shape[-1]))
    noise = np.sqrt(m.noise) * rng.standard_normal((n, m.mean.shape[-1]))
    return m.mean[k] + (z[:, None] @ m.basis[k])[:, 0] + noise, m.label[k]


def best_loss(
    m: Mixture, rng: np.random.Generator, times: np.ndarray, draws: ArrayLike, conditional: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Least mean squared velocity error per element at times [T], with the label or without: estimate and standard error, [T].

    It is the mean of `spread` over `draws` (a number or [T]) of x_t: exact variances are less noisy than squared errors.
    """
    mean, error = np.empty((2, len(times)))
    for i, (t, n) in enumerate(zip(times, np.broadcast_to(draws, len(times)), strict=True)):
        x0, label = sample(m, rng, n)
        losses = spread(m, (1 - t) * x0 + t * rng.standard_normal(x0.shape), t, label if conditional else None)
        mean[i], error[i] = losses.mean(), losses.std(ddof=1) / np.sqrt(n)
    return mean, error


def plant(rng: np.random.Generator, classes: int, components: int, d: int, rank: int, means: float, noise: float) -> Mixture:
    """A random mixture of mean 0 and mean variance 1 per dimension, of which `means` lies between components and `noise` is isotropic.

    The rest lies along `rank` directions of each component, with variances like 1, 1/2, 1/3, ... Classes have equal weight.
    """
    k = classes * components
    weight = rng.dirichlet(np.full(components, 4.0), classes).reshape(k) / classes
    mean = rng.standard_normal((k, d))
    mean -= weight @ mean
    mean *= np.sqrt(means / (weight @ np.mean(mean**2, -1)))
    basis = np.linalg.qr(rng.standard_normal((k, d, rank)))[0].swapaxes(1, 2).copy()
    value = 1 / np.arange(1, rank + 1)
    value *= (1 - means - noise) * d / value.sum()
    label = np.repeat(np.arange(classes, dtype=np.int32), components)
    return Mixture(np.log(weight), label, mean, basis, np.broadcast_to(value, (k, rank)), np.float64(noise))


class Mixed(World):
    """A world whose images are the vectors of `self.mixture`."""

    mixture: Mixture
    draws = 4096  # of x_t over all times, for the best loss

    def _item(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        x, label = sample(self.mixture, rng, 1)
        return x[0], label[0]

    def loss_at(self, times: np.ndarray, conditional: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """`best_loss` with fixed draws, [T], and its standard error, [T]."""
        # most where some density has most mass
        draws = 16 + np.int64(self.draws * np.interp(times, TIMES, np.max([*DENSITIES.values()], 0)))
        return best_loss(self.mixture, numbers(0, "parameters", 1), times, draws, conditional)

    def velocity(self, x: Array, t: ArrayLike, label: ArrayLike | None = None) -> Array:
        """The model that no model beats under objective flow; arguments as a model's inputs."""
        return velocity(self.mixture, x, t, label)

    def generate(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
        """`n` new items on the device: image [n, size, size, channels] and label [n]."""
        m = jax.tree.map(jnp.asarray, self.mixture)
        k_pick, k_along, k_noise = jax.random.split(key, 3)
        k = jax.random.categorical(k_pick, m.log_weight, shape=(n,))
        z = jnp.sqrt(m.value[k]) * jax.random.normal(k_along, (n, m.value.shape[-1]))
        noise = jnp.sqrt(m.noise) * jax.random.normal(k_noise, (n, m.mean.shape[-1]))
        x = m.mean[k] + jnp.einsum("nr,nrd->nd", z, m.basis[k], precision="highest") + noise
        return {"image": x.reshape(n, *self.shape), "label": m.label[k]}


class Source(Mixed):
    """`components` Gaussians a class in size x size x channels dimensions; other options as of `plant`."""

    def __init__(
        self,
        split: str,
        data_dir: str,
        size: int = 8,
        channels: int = 4,
        classes: int = 8,
        components: int = 4,
        rank: int = 8,
        means: float = 0.5,
        noise: float = 0.1,
        seed: int = 0,
        examples: int = 2**31,
    ):
        options: dict[str, Any] = {"size": size, "channels": channels, "classes": classes, "components": components, "rank": rank}
        options |= {"means": means, "noise": noise, "seed": seed, "examples": examples}
        for key, high in (("classes", 4096), ("components", 4096)):
            check(key, options[key], 1, high)
        super().__init__(split, classes, options)
        d = size * size * channels
        check("rank", rank, 1, d)
        for key in ("means", "noise"):
            check(key, options[key], 1e-4, 0.9999)
        if means + noise >= 1:
            raise UserError(f"config keys data.means={means} and data.noise={noise} are shares of the variance; expected a sum below 1")
        if classes * components < 2:
            raise UserError(f"config key data.components={components} must be at least 2 where data.classes is 1")
        self.mixture = plant(numbers(seed, "parameters"), classes, components, d, rank, means, noise)
