"""Compile ahead of time and ask the program what it costs."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """A compiled program, its compile time in seconds and the bytes one device needs while it runs."""

    call: Any
    seconds: float
    bytes: int


def compile(f: Callable, *args: Any, donate: tuple[int, ...] = ()) -> Compiled:
    """Compile f for args (arrays or ShapeDtypeStructs) on this machine's devices, donating the arguments in `donate`."""
    start = time.perf_counter()
    program = jax.jit(f, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    m = program.memory_analysis()
    alive = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return Compiled(program, seconds, alive)
