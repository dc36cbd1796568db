"""What models share: sizes of axes, checked inputs, and a stack of blocks run in order."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

from lab import find
from lab.axes import split
from lab.errors import UserError, unknown
from lab.layers import text

# what a gradient keeps of a block: all, nothing but the residual stream before it, or its products with weights too
REMAT = {"none": None, "block": jax.checkpoint_policies.nothing_saveable, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
_stacks: ContextVar[tuple[str, Callable]] = ContextVar("stacks", default=("none", lambda x: x))
_rolled: ContextVar[bool] = ContextVar("rolled", default=False)
UNROLL = 8  # on a CPU a scan over layers costs more than its unrolled form; up to 8 layers are unrolled


def trunk(width: int, depth: int, head_dim: int, mlp_ratio: int) -> dict[str, int]:
    """Sizes of the axes of a transformer; one width moves embed, heads and mlp together at a fixed head_dim."""
    heads = split("model.width", width, "model.head_dim", head_dim)
    return {"embed": width, "heads": heads, "head_dim": head_dim, "mlp": mlp_ratio * width, "layers": depth}


def patches(image: int, channels: int, patch: int, outputs: int) -> dict[str, int]:
    """Sizes of the axes of square images in patches; what comes out has `outputs` times the channels of what goes in."""
    split("image size", image, "model.patch", patch)
    size = patch * patch * channels
    return {"patch": size, "patch_out": size * outputs, "side": image, "patch_side": patch}


def condition(classes: int, words: int, length: int, features: int, text_depth: int) -> dict[str, int]:
    """Sizes of the axes of the condition: text where data or config know of one, else labels, with one more for none."""
    return text.axes(words, length, features, text_depth) if words or length or features or text_depth else {"labels": classes + 1}


def part(name: str, *args: Any) -> Any:
    """The Mixer of a part of lab/layers, or of one's own by dotted path or file, made for a model."""
    module = find.module("lab.layers", name)
    if not hasattr(module, "Mixer"):
        raise unknown("mixer name", name, find.names("lab.layers"))
    try:
        inspect.signature(module.Mixer.__init__).bind(None, *args)
    except TypeError as e:
        raise UserError(
            f"mixer {name!r} cannot be made here: {e}; a token mixer is Mixer(dims, qk_norm), a channel mixer Mixer(dims)"
        ) from e
    return module.Mixer(*args)


def need(name: str, takes: tuple[str, ...], inputs: dict[str, jax.Array], cache: Any = None) -> None:
    """UserError unless `inputs` has all that model `name` takes, and it is given no cache."""
    missing = [k for k in takes if k not in inputs]
    if missing or cache is not None:
        wanted = ", ".join(takes) + ("" if cache is None else " and no cache")
        raise UserError(f"model {name!r} takes {wanted}; missing: {', '.join(missing) or 'nothing'}, given: {sorted(inputs)}")


def through(blocks: Any, x: Any, call: Callable, n: int) -> Any:
    """x after `n` stacked blocks, x = call(block, x) in turn; x may be a tree."""
    return collect(blocks, x, lambda block, x: (call(block, x), None), n)[0]


def collect(blocks: Any, x: Any, call: Callable, n: int) -> tuple[Any, Any]:
    """As `through` with (x, kept) = call(block, x): the last x, and what each block kept, stacked [n, ...]."""
    unroll = n if n <= UNROLL and not _rolled.get() and jax.default_backend() == "cpu" else 1
    remat, lay = _stacks.get()

    def body(x, block):
        x, kept = call(block, x)
        return lay(x), kept

    if remat != "none":  # what is unrolled needs a barrier, or XLA would find both computations equal and keep the first
        body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=unroll > 1)
    return jax.lax.scan(body, lay(x), blocks, unroll=unroll)


@contextmanager
def stacks(remat: str = "none", lay: Callable = lambda x: x) -> Iterator[None]:
    """Within it stacks of blocks are traced with `remat` (a key of REMAT), and `lay(x)` stands for the residual stream between blocks.

    `lay` takes and gives the stream, an array [batch, tokens, embed] or a tree of them, such as constrained to devices.
    """
    before = _stacks.set((remat, lay))
    try:
        yield
    finally:
        _stacks.reset(before)


@contextmanager
def rolled() -> Iterator[None]:
    """Within it stacks are scanned however few their layers: slower to run on a CPU, and much faster to compile."""
    before = _rolled.set(True)
    try:
        yield
    finally:
        _rolled.reset(before)
