"""A linear encoder and decoder around the Gaussian code of lab/tokenizers/kl.py, whose best rate and distortion are known."""

import math

from flax import nnx

from lab.axes import weight
from lab.tokenizers import kl


class Model(nnx.Module):
    """Pictures [B, 1, image, channels] -> the same."""

    takes = ("image", "keys")

    @staticmethod
    def axes(width, image, channels):
        return {"pixels": image * channels, "code": width, "moments": 2 * width}

    def __init__(self, dims):
        self.read, self.read_bias = weight("pixels -> moments", dims, init=0.3), weight("-> moments", dims, fill=0.0)
        self.write = weight("code -> pixels", dims)

    def __call__(self, inputs, cache=None):
        x = inputs["image"]
        flat = x.reshape(len(x), -1)
        z, nats = kl.drawn(flat @ self.read.get_value() + self.read_bias.get_value(), inputs["keys"])
        made = (z @ self.write.get_value()).reshape(x.shape)
        return {"image": made, "cost": nats / flat.shape[1], "bits": nats / math.log(2)}
