"""Densities of training times and grids of sampling times on [0, 1], noise at 1 (Stable Diffusion 3, arXiv 2403.03206).

A density is made as its quantile function, uniform numbers -> times; a grid as a function that bends evenly spaced times.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from lab.errors import UserError

Map = Callable[[jax.Array], jax.Array]
MODE = 2 / (math.pi - 2)  # above this scale the map of 'mode' turns back


def uniform() -> Map:
    """Every time as it is: equal density, or equal steps."""
    return lambda u: u


def logit_normal(location: float = 0.0, scale: float = 1.0) -> Map:
    """logit(t) ~ N(location, scale^2); a positive location favours noise. UserError unless `scale` is above 0."""
    if scale <= 0:
        raise UserError(f"config key objective.scale={scale!r} must be above 0 for times 'logit_normal'")
    return lambda u: jax.nn.sigmoid(location + scale * ndtri(u))


def mode(scale: float = 1.29) -> Map:
    """u - scale (sin^2(pi u / 2) - u): a positive scale favours the middle, a negative one both ends. UserError beyond -1 .. 1.75."""
    if not -1 <= scale <= MODE:
        raise UserError(f"config key objective.scale={scale!r} must be from -1 to {MODE:.4f} for times 'mode'")
    return lambda u: u - scale * (jnp.sin(jnp.pi * u / 2) ** 2 - u)


def cosmap() -> Map:
    """The log-SNRs of a cosine schedule: 1 - 1 / (tan(pi u / 2) + 1), of density 2 / (pi (1 - 2 t + 2 t^2))."""
    return lambda u: jnp.sin(jnp.pi * u / 2) / (jnp.sin(jnp.pi * u / 2) + jnp.cos(jnp.pi * u / 2))


def sigmoid(steepness: float = 6.0) -> Map:
    """The sigmoid from -steepness/2 to steepness/2, stretched to [0, 1]: smaller steps at both ends. UserError unless above 0."""
    if steepness <= 0:
        raise UserError(f"config key sample.options.steepness={steepness!r} must be above 0")
    low, high = (1 / (1 + math.exp(-x * steepness / 2)) for x in (-1, 1))
    return lambda u: (jax.nn.sigmoid(steepness * (u - 0.5)) - low) / (high - low)


def shifted(shift: float) -> Map:
    """shift t / (1 + (shift - 1) t): as noisy as t at 1/shift^2 of the pixels (equation 23). UserError unless above 0."""
    if shift <= 0:
        raise UserError(f"shift={shift!r} of times must be above 0; 1 leaves them as they are")
    return lambda u: shift * u / (1 + (shift - 1) * u)


DENSITIES = {"uniform": uniform, "logit_normal": logit_normal, "mode": mode, "cosmap": cosmap}
GRIDS = {"uniform": uniform, "sigmoid": sigmoid, "shifted": shifted}
