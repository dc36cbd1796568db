"""Stationary Gaussian random fields on a periodic grid, power spectrum |k|^-exponent: every truth of the flow is one gain a mode.

Fourier modes are independent, so with unitary transforms a mode of power s (lambda below) has, under x_t = (1 - t) x0 + t noise,
variance (1 - t)^2 s + t^2, and the posterior mean is Wiener's filter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax.typing import ArrayLike

from lab.data.world import World, check


def spectrum(size: int, exponent: float) -> np.ndarray:
    """Power of every mode, [size, size] in the order of fft2: |k|^-exponent with mean 1, so that a pixel has variance 1.

    |k| counts waves across the image; the constant mode has the power of |k| = 1.
    """
    k = np.fft.fftfreq(size, 1 / size)
    power = np.maximum(np.hypot(k[:, None], k), 1.0) ** -float(exponent)
    return power / power.mean()


def _filter(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Images [B, H, W, C] with every mode multiplied by a symmetric gain [H, W] or [B, H, W]."""
    half = gain[..., : x.shape[2] // 2 + 1, None]
    return jnp.fft.irfft2(half * jnp.fft.rfft2(x, axes=(1, 2)), s=x.shape[1:3], axes=(1, 2))


def _time(t: ArrayLike) -> jax.Array:
    return jnp.asarray(t, jnp.float32).reshape(-1, 1, 1)


def variance(power: ArrayLike, t: ArrayLike) -> jax.Array:
    """Variance (1 - t)^2 s + t^2 of every mode of x_t, [B, H, W] for times [B] (1 for a number)."""
    t = _time(t)
    return (1 - t) ** 2 * jnp.asarray(power, jnp.float32) + t**2


def denoise(power: ArrayLike, x: jax.Array, t: ArrayLike) -> jax.Array:
    """E[x0 | x_t] for x [B, H, W, C] at times [B] or one: Wiener's gain (1 - t) s / ((1 - t)^2 s + t^2)."""
    return _filter(x, (1 - _time(t)) * power / variance(power, t))


def velocity(power: ArrayLike, x: jax.Array, t: ArrayLike) -> jax.Array:
    """E[noise - x0 | x_t] for x [B, H, W, C] at times [B] or one: gain (t - (1 - t) s) / ((1 - t)^2 s + t^2)."""
    return _filter(x, (_time(t) - (1 - _time(t)) * power) / variance(power, t))


def score(power: ArrayLike, x: jax.Array, t: ArrayLike) -> jax.Array:
    """Gradient of log p_t at x [B, H, W, C] for times [B] or one."""
    return -_filter(x, 1 / variance(power, t))


def transport(power: ArrayLike, x: jax.Array, start: ArrayLike, end: ArrayLike) -> jax.Array:
    """Where the flow's ODE dx/dt = velocity takes x [B, H, W, C] from time `start` to `end`; 1 to 0 makes data of noise.

    A mode follows its standard deviation: d log x / dt = d log std / dt.
    """
    return _filter(x, jnp.sqrt(variance(power, end) / variance(power, start)))


def wasserstein(a: ArrayLike, b: ArrayLike, channels: int = 1) -> float:
    """W2 between two fields of mean 0 by their powers [H, W], in units of a pixel times the root of the number of elements.

    Their covariances commute, so Bures' distance is that of the square roots: channels sum (sqrt a - sqrt b)^2.
    """
    return float(np.sqrt(channels * np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)))


def periodogram(x: ArrayLike) -> np.ndarray:
    """Power [H, W] of every mode, estimated from images [N, H, W, C]; its relative standard error is about (2 / (N C))^1/2."""
    return np.mean(np.abs(np.fft.fft2(x, axes=(1, 2), norm="ortho")) ** 2, axis=(0, 3))


def best_loss(power: ArrayLike, t: ArrayLike) -> np.ndarray:
    """Least mean squared velocity error per element at times [T]: the mean over modes of s / ((1 - t)^2 s + t^2).

    Over uniform times it integrates to pi / 2 times the mean of sqrt(s).
    """
    t = np.asarray(t, float).reshape(-1, 1, 1)
    return np.mean(power / ((1 - t) ** 2 * power + t**2), axis=(1, 2))


class Source(World):
    """Fields with power |k|^-exponent (0 is white noise), channels independent and alike; one class.

    `power` [size, size] is what the functions above take.
    """

    def __init__(
        self, split: str, data_dir: str, size: int = 16, channels: int = 1, exponent: float = 2.0, seed: int = 0, examples: int = 2**31
    ):
        check("exponent", exponent, 0.0, 8.0)
        super().__init__(split, 1, {"size": size, "channels": channels, "exponent": float(exponent), "seed": seed, "examples": examples})
        self.power = spectrum(size, exponent)
        self._gain = np.sqrt(self.power)[:, : size // 2 + 1, None]

    def _item(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        white = scipy.fft.rfft2(rng.standard_normal(self.shape), axes=(0, 1))
        return scipy.fft.irfft2(self._gain * white, s=self.shape[:2], axes=(0, 1)), 0

    def loss_at(self, times: np.ndarray, conditional: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The exact `best_loss` and zero error, [T]; there is one class, so a label tells nothing."""
        return best_loss(self.power, times), np.zeros(len(times))

    def velocity(self, x: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """The model that no model beats under objective flow; arguments as a model's inputs."""
        return velocity(self.power, x, t)

    def generate(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
        """`n` new items on the device: image [n, size, size, channels] and label [n]."""
        white = jax.random.normal(key, (n, *self.shape))
        return {"image": _filter(white, jnp.sqrt(self.power)), "label": jnp.zeros(n, jnp.int32)}
