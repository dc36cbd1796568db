"""What models share: checked inputs, and a stack of blocks run in order."""

from collections.abc import Callable
from typing import Any

import jax

from lab.errors import UserError

UNROLL = 8  # on a CPU a scan over layers costs more than its unrolled form; up to 8 layers are unrolled


def need(name: str, takes: tuple[str, ...], inputs: dict[str, jax.Array], cache: Any = None) -> None:
    """UserError unless `inputs` has all that model `name` takes, and it is given no cache."""
    missing = [k for k in takes if k not in inputs]
    if missing or cache is not None:
        raise UserError(
            f"model {name!r} takes {', '.join(takes)} and no cache; missing: {', '.join(missing) or 'nothing'}, given: {sorted(inputs)}"
        )


def through(blocks: Any, x: Any, call: Callable, n: int) -> Any:
    """x after `n` stacked blocks, x = call(block, x) in turn; x may be a tree."""
    unroll = n if n <= UNROLL and jax.default_backend() == "cpu" else 1
    return jax.lax.scan(lambda x, block: (call(block, x), None), x, blocks, unroll=unroll)[0]
