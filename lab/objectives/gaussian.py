"""Gaussian diffusion in numbers: noise schedules, sampling nodes, one table for every sampler, and the terms of the bound.

x_t = alpha x_0 + sigma noise with alpha^2 + sigma^2 = 1, so level = log(alpha / sigma) says all. Tables are float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

from lab.errors import UserError, unknown

SCHEDULES = ("linear", "cosine")
SPACINGS = ("trailing", "logsnr")
METHODS = ("ancestral", "ddim", "dpm++2m")


def schedule(name: str, timesteps: int) -> np.ndarray:
    """The level of every step, [timesteps], least noise first.

    'linear' has beta from 1e-4 to 0.02 at 1000 steps and the same total at others (DDPM, arXiv 2006.11239); 'cosine' has alpha =
    cos(pi/2 (t + 0.008) / 1.008), divided by its first value, and beta at most 0.999 (improved DDPM, arXiv 2102.09672).
    """
    if name not in SCHEDULES:
        raise unknown("objective.schedule", name, SCHEDULES)
    if timesteps <= 20:
        raise UserError(f"config key objective.timesteps={timesteps!r} must be above 20, where every beta is below 1")
    if name == "linear":
        beta = np.linspace(0.1, 20, timesteps) / timesteps
    else:
        bar = np.cos(np.pi / 2 * (np.arange(timesteps + 1) / timesteps + 0.008) / 1.008) ** 2
        beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    log_bar = np.cumsum(np.log1p(-beta))
    return 0.5 * (log_bar - np.log(-np.expm1(log_bar)))


def levels(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) of levels; an infinite level is data."""
    return np.exp(-0.5 * np.logaddexp(0, -2 * level)), np.exp(-0.5 * np.logaddexp(0, 2 * level))


def between(level: np.ndarray, level_next: np.ndarray) -> dict[str, np.ndarray]:
    """q(x_next | x, x_0) for a step to less noise: mean a x + b x_0, `small` its standard deviation, `large` that of q(x | x_next)."""
    (alpha, sigma), (alpha_next, sigma_next) = levels(level), levels(level_next)
    large = np.sqrt(-np.expm1(2 * (np.log(alpha) - np.log(alpha_next))))
    small = large * sigma_next / sigma
    a = (alpha / alpha_next) * (sigma_next / sigma) ** 2
    return {"a": a, "b": alpha_next - a * alpha, "small": small, "large": large}


def nodes(level: np.ndarray, steps: int, spacing: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, levels), `steps` of each, at which a sampler asks the model, most noise first; they need not be whole.

    'trailing' is every so many steps from the last one on (arXiv 2305.08891), 'logsnr' is even in level (DPM-Solver, arXiv 2206.00927).
    """
    if spacing not in SPACINGS:
        raise unknown("sample.options.spacing", spacing, SPACINGS)
    total = len(level)
    if not 1 <= steps <= total:
        raise UserError(f"sampling steps={steps!r} must be from 1 to objective.timesteps={total}")
    if spacing == "trailing":
        at = np.round(np.arange(steps, 0, -1) * (total / steps)) - 1
        return at, level[at.astype(int)]
    even = np.linspace(level[-1], level[0], steps)
    return np.interp(even, level[::-1], np.arange(total)[::-1]), even


def table(method: str, level: np.ndarray, eta: float) -> dict[str, np.ndarray]:
    """Numbers of every step between nodes, and from the last one to data: x' = a x + b (x_0 + c (x_0 - x_0 before)) + s noise.

    x_0 is what the model says it is. `ratio` is how far s may grow where the variance is learned. DDPM's chain is DDIM with eta 1 (arXiv 2010.02502).
    """
    if method not in METHODS:
        raise unknown("sampler", method, METHODS)
    if not 0 <= eta <= (method == "ddim"):
        raise UserError(f"config key sample.options.eta={eta!r} must be from 0 to 1 for sampler 'ddim', and 0 for others")
    level_next = np.append(level[1:], np.inf)
    (alpha, sigma), (alpha_next, sigma_next), q = levels(level), levels(level_next), between(level, level_next)
    noise = {"ancestral": 1.0, "ddim": eta, "dpm++2m": 0.0}[method] * q["small"]
    a = np.sqrt(np.maximum(sigma_next**2 - noise**2, 0)) / sigma
    c = np.zeros(len(level))
    if method == "dpm++2m":
        c[1:-1] = np.diff(level)[1:] / (2 * np.diff(level)[:-1])  # the first step and the one to data are of order 1
    ratio = np.where(q["small"] > 0, q["large"] / np.where(q["small"] > 0, q["small"], 1), 1)
    return {"a": a, "b": alpha_next - a * alpha, "c": c, "s": noise, "ratio": ratio}


def kl(mean: jax.Array, log_std: jax.Array, mean_other: jax.Array, log_std_other: jax.Array) -> jax.Array:
    """KL(N(mean, std^2) || N(mean_other, std_other^2)) of every element, in nats."""
    gap = log_std - log_std_other
    return 0.5 * (jnp.exp(2 * gap) + jnp.square(mean - mean_other) * jnp.exp(-2 * log_std_other) - 1) - gap


def surprise(x: jax.Array, mean: jax.Array, log_std: jax.Array, binned: bool) -> jax.Array:
    """-log N(mean, std^2) of every element in nats: its density, or its mass in bins of 1/127.5 that are open at -1 and 1."""
    z = (x - mean) * jnp.exp(-log_std)
    if not binned:
        return -norm.logpdf(z) + log_std
    half = jnp.exp(-log_std) / 255
    # by symmetry both ends of a bin lie in the lower tail, where logarithms are exact
    far = jnp.abs(z)
    high, low = log_ndtr(half - far), log_ndtr(-half - far)
    mass = high + jnp.log1p(-jnp.exp(jnp.minimum(low - high, -1e-6)))
    mass = jnp.where(x < -0.999, log_ndtr(z + half), jnp.where(x > 0.999, log_ndtr(half - z), mass))
    return -mass
