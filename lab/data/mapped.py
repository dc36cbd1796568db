"""A function of batches, run on every device that jax can run it on, and checks of what it gives."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from lab.data.loader import fetch, numeric
from lab.errors import UserError
from lab.files import sha256


class Function:
    """A function of a batch, on all devices where jax can trace it, else as it is; floats come out as bfloat16."""

    def __init__(self, call: Callable, example: dict, devices: int):
        self._call, self._where = call, None
        arrays = _arrays(example)
        try:
            jax.eval_shape(call, arrays)
        except Exception:  # numpy code or one that reads captions; what is wrong for good shows when it is called
            return
        have, size = jax.local_devices(), len(next(iter(arrays.values())))
        used = have[: devices or max(k for k in range(1, len(have) + 1) if size % k == 0)]
        if size % len(used):
            raise UserError(f"batch={size} must be a multiple of the number of devices, {len(used)}")
        mesh = jax.sharding.Mesh(np.array(used), ("batch",))
        self._where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        self._jitted = jax.jit(lambda b: jax.tree.map(_half, call(b)), out_shardings=self._where)

    @property
    def devices(self) -> int:
        """On how many devices it runs; 0 where it is not traced."""
        return self._where.num_devices if self._where else 0

    def __call__(self, batch: dict) -> dict:
        if self._where:
            return self._jitted(jax.device_put(_arrays(batch), self._where))
        try:
            return self._call(batch)
        except Exception as e:
            raise UserError(f"function {function_name(self._call)!r} fails: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}") from e


def _half(x: Any) -> Any:
    return x.astype(ml_dtypes.bfloat16) if x.dtype.kind == "f" or x.dtype == ml_dtypes.bfloat16 else x


def _arrays(batch: dict) -> dict:
    return {k: v for k, v in batch.items() if k != "caption"}


def function_name(function: Callable) -> str:
    """The name of a function, or of the class of what is called."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def function_digest(function: Callable) -> str | None:
    """Digest of the file that a function is from; None where it is from no file."""
    try:
        return sha256(Path(inspect.getsourcefile(inspect.unwrap(function))))[:32]
    except (TypeError, OSError):
        return None


def read_batch(source: Any, start: int, stop: int, size: int) -> dict[str, Any]:
    """Examples start..stop as arrays [size, ...] and captions, the last repeated where there are fewer: one shape is one compile."""
    items = fetch(source, range(start, stop))
    items += items[-1:] * (size - len(items))
    out: dict[str, Any] = {k: np.stack([x[k] for x in items]) for k in numeric(items[0])}
    return out | {"caption": [x["caption"] for x in items]} if "caption" in items[0] else out


def outputs(given: dict, batch: dict, vocabulary: int) -> dict[str, np.ndarray]:
    """What records keep of a batch: what the function gave, checked, and the source's label where it gave none."""
    if not isinstance(given, dict) or not given:
        raise UserError(f"the function gives {type(given).__name__}; expected a dict of arrays with 'image' or 'tokens'")
    given = {k: _half(np.asarray(v)) for k, v in given.items()}
    size = len(next(iter(_arrays(batch).values())))
    for k, v in given.items():
        if v.ndim == 0 or len(v) != size or (v.dtype.kind not in "iub" and v.dtype != ml_dtypes.bfloat16):
            raise UserError(f"the function's {k!r} has shape {v.shape} and type {v.dtype}; expected numbers, one row an example of {size}")
        if v.dtype == ml_dtypes.bfloat16 and not np.isfinite(v).all():
            raise UserError(f"the function's {k!r} has numbers that are not finite")
    seen = given.get("image", given.get("tokens"))
    if seen is None:
        raise UserError(f"the function gives {', '.join(given) or 'nothing'}; expected 'image' or 'tokens', which the model sees")
    if "image" in given and (seen.ndim != 4 or seen.shape[1] != seen.shape[2]):
        raise UserError(f"the function's 'image' has shape {seen.shape}; expected [batch, side, side, channels]")
    tokens = given.get("tokens")
    if tokens is not None and (tokens.min() < 0 or tokens.max() >= vocabulary):
        raise UserError(
            f"the function's 'tokens' lie in {tokens.min()}..{tokens.max()}; expected below vocabulary={vocabulary} (VOCABULARY)"
        )
    for k, shape in {"text": "[batch, length, features]", "pooled": "[batch, features]"}.items():
        if k in given and (given[k].ndim != len(shape.split()) or given[k].dtype != ml_dtypes.bfloat16):
            raise UserError(
                f"the function's {k!r} has shape {given[k].shape} and type {given[k].dtype}; expected floats {shape} (captions become tokens "
                "by data.name='text' around the encoded set)"
            )
    return {**{k: batch[k] for k in ("label",) if k in batch}, **given}


def checked_palette(palette: Any, vocabulary: int, fields: dict[str, dict]) -> list[list[int]]:
    """A palette as lists of whole numbers; UserError unless it has a colour of 1 or 3 channels from 0 to 255 for every token of a picture."""
    if len(fields.get("tokens", {"shape": ()})["shape"]) != 2:
        raise UserError(f"PALETTE colours tokens [batch, height, width], of which the function gives none; it gives {', '.join(fields)}")
    try:
        colours = np.array(palette)
    except ValueError:
        colours = np.zeros(0)  # rows of several lengths
    fits = colours.ndim == 2 and len(colours) == vocabulary and colours.shape[1] in (1, 3) and colours.dtype.kind in "iu"
    if not fits or colours.min() < 0 or colours.max() > 255:
        raise UserError(
            f"PALETTE of shape {list(colours.shape)} must hold a colour of 1 or 3 whole numbers from 0 to 255 for every token, of which there "
            f"are VOCABULARY={vocabulary}"
        )
    return colours.tolist()
