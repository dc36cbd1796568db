"""Compile ahead of time and ask the program what it costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Compiled(NamedTuple):
    """A compiled program and the bytes one device needs while it runs."""

    call: Any
    bytes: int


def compile(f: Callable, *args: Any, donate: tuple[int, ...] = (), options: dict[str, Any] | None = None) -> Compiled:
    """Compile f for args (arrays or ShapeDtypeStructs) on this machine's devices, donating the arguments in `donate`.

    `options` are XLA's own, by the names of its flags.
    """
    program = jax.jit(f, donate_argnums=donate).lower(*args).compile(compiler_options=options)
    m = program.memory_analysis()
    alive = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return Compiled(program, alive)
