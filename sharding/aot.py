"""Compile ahead of time, for this machine's devices or for a TPU topology that is nowhere near, and ask the program what it costs."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from sharding.hlo import Collective, collectives

# where there is no TPU its library looks for one, complains, and takes a lock that no compiler needs: so it is silent, and several run side by side
QUIET = {
    **{"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def quiet() -> None:
    """Keep an installed libtpu silent on a machine without TPUs; to be called before devices are asked for."""
    if not any(p.read_text().strip() == "0x1ae0" for p in Path("/sys/bus/pci/devices").glob("*/vendor")):  # Google's, as jax looks for it
        os.environ.update(QUIET)


class Compiled(NamedTuple):
    """A compiled program and the bytes one device needs while it runs."""

    call: Any
    bytes: int


class Cost(NamedTuple):
    """What a program takes of each device. Where it does not fit, `needed` of `has` bytes, and nothing else is known."""

    seconds: float  # of compiling
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    needed: int = 0
    has: int = 0
    collectives: tuple[Collective, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return not self.needed


def compile(f: Callable, *args: Any, donate: tuple[int, ...] = (), options: dict[str, Any] | None = None) -> Compiled:
    """Compile f for args (arrays or ShapeDtypeStructs) on this machine's devices, donating the arguments in `donate`.

    `options` are XLA's own, by the names of its flags.
    """
    program = jax.jit(f, donate_argnums=donate).lower(*args).compile(compiler_options=options)
    return Compiled(program, _alive(program))


def _alive(program: Any) -> int:
    m = program.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def topology(name: str, slices: int = 1) -> list:
    """The devices of a topology such as 'v5p:8x8x8', or of several such slices; none of them needs to be there.

    Raises:
      ModuleNotFoundError: libtpu, which holds the compiler, is not installed.
      ValueError: the compiler knows no such topology.
    """
    import libtpu  # noqa: F401  jax's own message does not say what is missing

    quiet()
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=name, **({"num_slices": slices} if slices > 1 else {})).devices
        )
    except jax.errors.JaxRuntimeError as e:
        raise ValueError(str(e).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")) from e


def cost(lowered: jax.stages.Lowered, mesh: Mesh) -> Cost:
    """Compile what was lowered for the devices of a mesh, and what it takes of each of them."""
    with tempfile.TemporaryDirectory() as dump, _uncached():
        return _cost(lowered, mesh, Path(dump))


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Without the compile cache, which cannot read a pod's program back where there is no pod; jax asks once, unless it is reset."""
    before = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _cost(lowered: jax.stages.Lowered, mesh: Mesh, dump: Path) -> Cost:
    start, flags = time.monotonic(), os.environ.pop("XLA_FLAGS", None)  # of this machine's compiler: the TPU's dies of one it does not know
    try:
        program = lowered.compile(compiler_options={"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as e:
        needed, has = out_of_memory(str(e))
        return Cost(time.monotonic() - start, needed=needed, has=has)
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
    m = program.memory_analysis()
    # as the compiler itself has written it: jaxlib cannot read some collectives of a v6e
    written = max(dump.glob("*after_optimizations.txt"), key=lambda p: p.stat().st_size)
    found = tuple(collectives(written.read_text(), mesh))
    seconds = time.monotonic() - start
    return Cost(seconds, m.argument_size_in_bytes, m.temp_size_in_bytes, _alive(program), collectives=found)


def out_of_memory(message: str) -> tuple[int, int]:
    """Bytes needed and there, of the compiler's message that a program does not fit.

    Raises:
      RuntimeError: it is another message.
    """
    sizes = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
    if "RESOURCE_EXHAUSTED" not in message or sizes is None:
        raise RuntimeError(message)
    used, unit, has, has_unit = sizes.groups()
    return _number(used, unit), _number(has, has_unit)


def _number(text: str, unit: str) -> int:
    return int(float(text) * 1024 ** " KMGT".index(unit or " "))
