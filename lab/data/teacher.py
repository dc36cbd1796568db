"""A teacher from labels to images with a planted spectrum: the loss of k modes is a power law whose three constants are known.

An image is its label's template plus noise, x0 = M[label] + sigma z. Over labels the templates M have independent directions i = 1..R
of variance u_i. Write f_t(s) = s / ((1 - t)^2 s + t^2), the least velocity error of a Gaussian direction of variance s at time t.
A model that is linear in x_t and whose dependence on the label has rank k sees u_i as noise where it does not know direction i, so
its loss per element is at least

    [(d - R + k) f_t(sigma^2) + sum over i > k of f_t(sigma^2 + u_i)] / d,

by the interlacing of eigenvalues, as f_t increases; `Source.student` attains it. Over uniform times f_t(s) integrates to
pi / 2 sqrt(s). So with sqrt(sigma^2 + u_i) - sigma = g (i^-e - (i + 1)^-e) the sum telescopes: the loss of the best such model is
exactly floor + scale (k + 1)^-e. Under other densities of times e is the exponent where u_i is small beside sigma^2. All R
directions known, the loss is the Bayes loss given the label; a model that is not linear may reach it with fewer.
"""

from functools import cached_property
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from lab.data.mixture import Mixed, Mixture
from lab.data.world import check, numbers


def shares(exponent: float, modes: int) -> np.ndarray:
    """i^-exponent - (i + 1)^-exponent for i = 1..modes; those after the first k sum to (k + 1)^-e - (modes + 1)^-e."""
    return -np.diff(np.arange(1.0, modes + 2) ** -exponent)


def variances(exponent: float, modes: int, d: int, noise: float) -> tuple[np.ndarray, float]:
    """Variance u [modes] of each template direction, and g: (sigma + g share)^2 = sigma^2 + u, where u sums to d (1 - sigma^2).

    `noise` is sigma^2; so images have mean variance 1 per element.
    """
    h, sigma = shares(exponent, modes), np.sqrt(noise)
    p, q = sigma * h.sum() / np.sum(h**2), d * (1 - noise) / np.sum(h**2)
    g = np.sqrt(p**2 + q) - p  # the root of g^2 + 2 p g = q
    return 2 * sigma * g * h + (g * h) ** 2, float(g)


def error(s: ArrayLike, t: ArrayLike) -> np.ndarray:
    """f_t(s), the least mean squared velocity error of a Gaussian of variance s at time t; broadcast."""
    t = np.asarray(t, float)
    return s / ((1 - t) ** 2 * s + t**2)


def plant(rng: np.random.Generator, classes: int, u: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Templates left @ right: left [classes, R] has mean 0 and covariance diag(u) over classes, right [R, d] orthonormal rows."""
    plain = rng.standard_normal((classes, len(u)))
    left = np.linalg.qr(plain - plain.mean(0))[0]
    return left * np.sqrt(classes * u), np.linalg.qr(rng.standard_normal((d, len(u))))[0].T


class Source(Mixed):
    """`classes` templates in size x size x channels dimensions, equally likely, with isotropic variance `noise` around them.

    `exponent` is the planted e and `modes` is R = min(classes - 1, d); `variances` [R] are u, `mixture` the exact distribution.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        size: int = 8,
        channels: int = 1,
        classes: int = 64,
        exponent: float = 0.5,
        noise: float = 0.1,
        seed: int = 0,
        examples: int = 2**31,
    ):
        check("classes", classes, 2, 65536)
        check("exponent", exponent, 0.01, 8.0)
        check("noise", noise, 1e-4, 0.9999)
        options: dict[str, Any] = {"size": size, "channels": channels, "classes": classes, "exponent": float(exponent)}
        super().__init__(split, classes, {**options, "noise": noise, "seed": seed, "examples": examples})
        d = size * size * channels
        self.modes, self.exponent, self.noise = min(classes - 1, d), float(exponent), noise
        self.variances, self._g = variances(self.exponent, self.modes, d, noise)
        self._left, self._right = plant(numbers(seed, "parameters"), classes, self.variances, d)
        weight, label = np.full(classes, -np.log(classes)), np.arange(classes, dtype=np.int32)
        flat = np.zeros((classes, 0, d)), np.zeros((classes, 0))
        self.mixture = Mixture(weight, label, self._left @ self._right, *flat, np.float64(noise))

    def loss_at(self, times: np.ndarray, conditional: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Least loss at times [T] and its standard error, [T]: exact with labels, by Monte Carlo without."""
        if conditional:
            return error(self.noise, times), np.zeros(len(times))
        return super().loss_at(times, conditional)

    def loss_of(self, k: int, t: ArrayLike) -> np.ndarray:
        """Exact loss per element at times t, of their shape, of the best model of k modes, linear in x_t; k in [0, modes]."""
        s = self.noise + self.variances[k:]
        d = self._right.shape[1]
        return ((d - len(s)) * error(self.noise, t) + error(s, np.asarray(t, float)[..., None]).sum(-1)) / d

    def student(self, k: int, x: np.ndarray, t: ArrayLike, label: np.ndarray) -> np.ndarray:
        """Velocity of the best model of k modes for x [B, ...] at times [B] or one, every label known."""
        t = np.broadcast_to(t, len(x))[:, None]
        template, unknown = self._left[label, :k] @ self._right[:k], self._right[k:]
        y = x.reshape(len(x), -1) - (1 - t) * template

        def gain(s):
            return (t - (1 - t) * s) / ((1 - t) ** 2 * s + t**2)

        along = y @ unknown.T * (gain(self.noise + self.variances[k:]) - gain(self.noise))
        return (gain(self.noise) * y + along @ unknown - template).reshape(x.shape)

    def law(self) -> dict[str, float]:
        """{floor, scale, exponent}: over uniform times the best model of k modes has loss floor + scale (k + 1)^-exponent.

        The floor lies below the Bayes loss, pi / 2 sigma, since finitely many modes stop short of the asymptote.
        """
        scale = np.pi / 2 * self._g / self._right.shape[1]
        floor = np.pi / 2 * np.sqrt(self.noise) - scale * (self.modes + 1.0) ** -self.exponent
        return {"floor": float(floor), "scale": scale, "exponent": self.exponent}

    @cached_property
    def info(self) -> dict[str, Any]:
        """What a study records; `law` is the planted one in modes, over uniform times."""
        return {**super().info, "law": self.law()}
