"""A source with captions and functions of its batches, in a file that a killed process can import."""

import sys
import time

import jax.numpy as jnp
import numpy as np

NAME, SCALE, SHIFT = "half", 2.0, 0.25


class Source:
    """Numbered pictures with captions of different lengths."""

    def __init__(self, split="train", data_dir="", n=50, examples=0):
        rng = np.random.default_rng(split == "eval")
        self.images = rng.integers(0, 256, (examples or n, 4, 4, 2), np.uint8)
        self.dims = {"image": 4, "channels": 2, "classes": 3}
        self.info = {"class_names": list("abc"), "fingerprint": f"numbered-{split}", "origin": "numbers"}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": np.int32(i % 3), "caption": "é" * (i % 5)}


def half(batch):
    """Means of 2 x 2 pixels, and a text of one word with two features, by jax."""
    x = batch["image"].astype(jnp.float32) / 128 - 1
    means = x.reshape(-1, 2, 2, 2, 2, 2).mean((2, 4))
    return {"image": means, "text": jnp.stack([x[:, 0, 0, 0], batch["label"]], 1)[:, None]}


def tokens(batch):
    """Whole numbers from captions and pixels, by numpy."""
    lengths = np.array([len(c) for c in batch["caption"]], np.int16)
    return {"tokens": np.uint16(batch["image"][:, :, :, 0] // 64), "length": lengths}


def ragged(batch):
    """As many words as the longest caption of the batch has letters, by numpy."""
    longest = max(map(len, batch["caption"]))
    return {"image": np.zeros((len(batch["image"]), 2, 2, 1), np.float32), "text": np.zeros((len(batch["image"]), longest, 1), np.float32)}


def both(batch):
    """A picture below zero and tokens, by numpy."""
    return {"image": -np.ones((len(batch["image"]), 2, 2, 1), np.float32), **tokens(batch)}


def slow(batch):
    """`half`, in its time."""
    time.sleep(0.05)
    return {k: np.asarray(v) for k, v in half({k: np.asarray(v) for k, v in batch.items() if k != "caption"}).items()}


if __name__ == "__main__":
    from lab.data import encode

    encode.write(Source(), slow, sys.argv[1], batch=4, shard_examples=16)
