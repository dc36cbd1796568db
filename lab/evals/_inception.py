"""Inception-v3 (arXiv 1512.00567) from a file of weights: the features on which Fréchet distances are published (FID, arXiv 1706.08500).

Two files are read, both with the names of torchvision's inception_v3. `pt_inception-2015-12-05` has 1008 classes: it is the network of
the FID's authors, which leaves what is padded out of averages and has a maximum in the place of the last block's average. With 1000
classes it is torchvision's own.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lab.errors import UserError
from lab.evals._pictures import in_chunks

SIDE, FEATURES, EPSILON = 299, 2048, 1e-3  # pixels a side that it sees; numbers that it gives; of its norms
CHUNK = 32  # pictures looked at at once
CLASSES = {1008: True, 1000: False}  # whether a file of so many classes is that of the FID's authors
Weights = Mapping[str, tuple[jax.Array, jax.Array]]


def pool(x: jax.Array, how: str, stride: int = 1) -> jax.Array:
    """3 x 3 windows of x [B, H, W, C]: 'max', with stride 1 of a padded picture; 'mean' of a padded one, 'inside' without its padding."""
    window, by = (1, 3, 3, 1), (1, stride, stride, 1)
    padding = "SAME" if stride == 1 else "VALID"
    if how == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, by, padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, by, padding)
    if how == "mean":
        return total / 9.0
    rows, columns = (np.convolve(np.ones(n), np.ones(3), "same").astype(np.float32) for n in x.shape[1:3])
    return total / np.outer(rows, columns)[None, :, :, None]


def forward(w: Weights, x: jax.Array, published: bool) -> jax.Array:
    """Features [B, 2048] of pictures [B, 299, 299, 3] in [-1, 1]; `published`: by the FID's authors' network."""

    def conv(x: jax.Array, name: str, stride: int = 1, padding: str = "SAME") -> jax.Array:
        kernel, shift = w[name]
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "OIHW", "NHWC"))
        return jax.nn.relu(y + shift)

    def chain(x: jax.Array, block: str, *names: str) -> jax.Array:
        for name in names:
            x = conv(x, f"{block}.{name}")
        return x

    def halved(x: jax.Array, block: str, *names: str) -> jax.Array:
        return conv(chain(x, block, *names[:-1]), f"{block}.{names[-1]}", 2, "VALID")

    def numbered(stem: str, n: int) -> list[str]:
        return [f"{stem}_{i}" for i in range(1, n + 1)]

    def pooled(x: jax.Array, block: str, how: str = "inside" if published else "mean") -> jax.Array:
        return chain(pool(x, how), block, "branch_pool")

    def joined(*parts: jax.Array) -> jax.Array:
        return jnp.concatenate(parts, axis=-1)

    x = conv(x, "Conv2d_1a_3x3", 2, "VALID")
    x = pool(conv(conv(x, "Conv2d_2a_3x3", 1, "VALID"), "Conv2d_2b_3x3"), "max", 2)
    x = pool(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", 1, "VALID"), "max", 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five, three = chain(x, b, *numbered("branch5x5", 2)), chain(x, b, *numbered("branch3x3dbl", 3))
        x = joined(chain(x, b, "branch1x1"), five, three, pooled(x, b))
    b = "Mixed_6a"
    x = joined(halved(x, b, "branch3x3"), halved(x, b, *numbered("branch3x3dbl", 3)), pool(x, "max", 2))
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven, twice = chain(x, b, *numbered("branch7x7", 3)), chain(x, b, *numbered("branch7x7dbl", 5))
        x = joined(chain(x, b, "branch1x1"), seven, twice, pooled(x, b))
    b = "Mixed_7a"
    x = joined(halved(x, b, *numbered("branch3x3", 2)), halved(x, b, *numbered("branch7x7x3", 4)), pool(x, "max", 2))
    for b in ("Mixed_7b", "Mixed_7c"):
        three, twice = chain(x, b, "branch3x3_1"), chain(x, b, *numbered("branch3x3dbl", 2))
        ends = [chain(three, b, f"branch3x3_2{i}") for i in "ab"] + [chain(twice, b, f"branch3x3dbl_3{i}") for i in "ab"]
        last = pooled(x, b, "max") if published and b == "Mixed_7c" else pooled(x, b)
        x = joined(chain(x, b, "branch1x1"), *ends, last)
    return jnp.mean(x, axis=(1, 2))


class _Folded(Mapping):
    """Kernels [out, in, h, w] and shifts [out] of convolutions by name, their norms folded in."""

    def __init__(self, file: str, tensors: Mapping[str, np.ndarray]):
        self._file, self._tensors = file, tensors

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        gain, shift, mean, var = (self._one(f"{name}.bn.{k}") for k in ("weight", "bias", "running_mean", "running_var"))
        factor = gain / np.sqrt(var + EPSILON)
        return self._one(f"{name}.conv.weight") * factor[:, None, None, None], shift - mean * factor

    def _one(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise UserError(f"file {self._file!r} has no tensor {name!r}; expected weights with the names of torchvision's inception_v3")
        return self._tensors[name].astype(np.float32)

    def __iter__(self):
        return iter(dict.fromkeys(n.removesuffix(".conv.weight") for n in self._tensors if n.endswith(".conv.weight") and "Aux" not in n))

    def __len__(self) -> int:
        return len(list(iter(self)))


class Inception:
    """Called with pictures float32 [N, h, w, 3 or 1] in [-1, 1], it gives features float64 [N, 2048], in float32 inside.

    Pictures are brought to 299 pixels a side by bilinear interpolation without a filter, as by the code of most published distances.

    Raises:
      UserError: no safetensors file, or one of another network.
    """

    def __init__(self, file: str):
        path = Path(file).expanduser()
        if path.suffix in (".pth", ".pt", ".pkl"):
            to = path.with_suffix(".safetensors").name
            raise UserError(
                f'file {file!r} is a pickle, which may run code and is not read; make it safetensors: python -c "import torch, '
                f"safetensors.torch as s; s.save_file(torch.load('{path.name}', weights_only=True), '{to}')\""
            )
        try:
            with safe_open(path, framework="np") as f:
                tensors = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118  (no dict)
        except (SafetensorError, OSError) as e:
            raise UserError(f"file {file!r} is damaged or no safetensors file ({str(e).splitlines()[0]})") from None
        folded = _Folded(file, tensors)
        classes = len(folded._one("fc.weight"))
        if classes not in CLASSES:
            raise UserError(f"file {file!r} has {classes} classes; expected 1008, of pt_inception-2015-12-05, or 1000, of torchvision")
        self._run = jax.jit(lambda w, x: forward(w, self._seen(x), CLASSES[classes]))
        try:
            self._weights = {n: folded[n] for n in folded}
            found = jax.eval_shape(self._run, self._weights, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        except KeyError as e:
            folded._one(f"{e.args[0]}.conv.weight")
            raise
        except (TypeError, ValueError) as e:
            raise UserError(f"file {file!r} has tensors of other shapes than inception_v3 ({str(e).splitlines()[0][:120]})") from None
        if found.shape[1] != FEATURES:
            raise UserError(f"file {file!r} gives {found.shape[1]} features; inception_v3 gives {FEATURES}")

    @staticmethod
    def _seen(x: jax.Array) -> jax.Array:
        x = jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
        return jax.image.resize(x, (len(x), SIDE, SIDE, 3), "bilinear", antialias=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape[-1] not in (1, 3):
            raise UserError(f"Inception looks at pictures of 3 channels, or 1; these have {images.shape[-1]}")
        with jax.default_matmul_precision("highest"):
            return in_chunks(lambda x: self._run(self._weights, x), images.astype(np.float32), min(CHUNK, len(images)))
