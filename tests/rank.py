"""A user's own model: linear in x_t, with a dependence on the label of rank `width`. The worlds' teacher knows its best loss."""

import jax.numpy as jnp
from flax import nnx

from lab.axes import weight

SPREADS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def gains(t):
    """Velocity gains [B, 7] at times t [B] of Gaussian directions of several variances: what a gain can be made of."""
    s, t = jnp.array(SPREADS), t[:, None]
    return (t - (1 - t) * s) / ((1 - t) ** 2 * s + t**2)


class Model(nnx.Module):
    """v = B (g(t) * A x) + D (h(t) * C label), with gains g and h learned of t."""

    takes = ("x", "t", "label")

    @staticmethod
    def axes(width, image, channels, classes):
        """The rank of what the label says is the width."""
        return {"rank": width, "labels": classes + 1, "pixel": image * image * channels, "mode": image * image * channels, "basis": 7}

    def __init__(self, dims):
        self.rows = weight("pixel -> mode", dims)
        self.columns = weight("mode -> pixel", dims)
        self.gain = weight("basis -> mode", dims)
        self.table = weight("labels | -> rank", dims)
        self.spread = weight("rank -> mode", dims)
        self.shift = weight("basis -> mode", dims)
        self.template = weight("mode -> pixel", dims)

    def __call__(self, inputs, cache=None):
        x, t = inputs["x"], inputs["t"]
        value = {k: getattr(self, k).get_value() for k in ("rows", "columns", "gain", "table", "spread", "shift", "template")}
        b = gains(t)
        along = (x.reshape(len(x), -1) @ value["rows"]) * (b @ value["gain"])
        shift = ((1 - t[:, None]) * b) @ value["shift"] + 1.0
        said = (value["table"][inputs["label"]] @ value["spread"]) * shift
        return (along @ value["columns"] + said @ value["template"]).reshape(x.shape)
