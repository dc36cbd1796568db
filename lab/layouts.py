"""Ways to lay a training step over a pod, each with an estimate of what a chip keeps and of how long a step takes: before any is compiled.

Bytes of weights, optimizer, average and batch are counted; what a step keeps besides is estimated from what the gradient keeps of an
example. Times are those of a roofline: FLOPs, bytes to memory and bytes to other chips, each at the rate its vendor publishes.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from lab import axes
from lab.devices import PEAK, Chip
from lab.layers import kernels
from lab.models import shared
from lab.population import described, flops_per_example, hypers, state_names
from lab.train import Program, over_trials
from sharding import mesh as meshes
from sharding import place
from sharding.hlo import Collective

SPARE = 0.9  # of a chip's memory that an estimate may fill: the rest is for what it does not know


class Layout(NamedTuple):
    """Sizes of mesh axes, what of a block is computed again, and parts in which a batch is computed."""

    mesh: dict[str, int]
    remat: str
    accumulate: int

    def __str__(self) -> str:
        mesh = ",".join(f"{a}={n}" for a, n in self.mesh.items())
        return f"{mesh} remat={self.remat} accumulate={self.accumulate}"

    def flags(self, sharding: str) -> str:
        """The overrides with which `lab run` trains so, by a set of rules, whatever the experiment itself says of them."""
        told = {"sharding": sharding} | {f"mesh.{a}": self.mesh.get(a, 0) for a in meshes.AXES}
        told |= {"remat": self.remat, "accumulate": self.accumulate}
        return " ".join(f"--config.run.{k}={v}" for k, v in told.items())


class Work(NamedTuple):
    """What a population's step is, however it is laid out. Bytes and FLOPs of `kept`, `flops` are of one example, by remat."""

    program: Program
    trials: int
    batch: int
    hyper: Any
    state: Any
    names: Any
    inputs: dict[str, jax.ShapeDtypeStruct]  # [seeds, batch, ...]
    kept: dict[str, float]
    flops: dict[str, float]
    weight_bytes: int
    layers: int
    sharding: str  # the experiment's set of rules, and its own
    rules: dict[str, Any]

    def placing(self, mesh: dict[str, int]) -> tuple[str, place.Rules]:
        """The set that places it on a mesh, the experiment's or, where that is of other axes, '', and its rules; ValueError where neither can."""
        try:
            return self.sharding, place.rules(self.sharding, _abstract(mesh), self.rules)
        except ValueError:
            return "", place.rules("", _abstract(mesh), self.rules)


def _abstract(mesh: dict[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(mesh.values()), tuple(mesh))


class Seconds(NamedTuple):
    """What a step takes by FLOPs, by bytes to memory, to chips of its slice and to other slices."""

    compute: float
    memory: float
    slice: float
    network: float

    @property
    def least(self) -> float:
        """Where each waits for no other."""
        return max(self)

    @property
    def most(self) -> float:
        """Where each waits for all others."""
        return sum(self)


def work(program: Program, trials: list, inputs: dict[str, tuple[tuple[int, ...], Any]]) -> Work:
    """The step of trials of one shape on examples of arrays {name: (shape, dtype)}; nothing is computed but shapes."""
    config, seeds = trials[0].config, sorted({t.stream for t in trials})
    batch = config["train"]["batch"]
    hyper = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), hypers(program, trials, seeds))
    state = jax.eval_shape(over_trials(program.init, (0,)), hyper)
    given = {k: jax.ShapeDtypeStruct((len(seeds), batch, *shape), dtype) for k, (shape, dtype) in inputs.items()}
    one, kept, flops = {k: jax.ShapeDtypeStruct((1, 1, *x.shape[2:]), x.dtype) for k, x in given.items()}, {}, {}
    with shared.rolled():
        for remat in shared.REMAT:
            with shared.stacks(remat):
                kept[remat] = _kept(program, given)
                # 'dots' keeps the products that are most of the work, and computes the rest again
                flops[remat] = flops["none"] if remat == "dots" else flops_per_example(program, one)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)) // len(trials)
    layers = max((w.get_value().shape[1] for w in axes.weights(state.params).values() if w.arrow.stack), default=1)
    run = config["run"]
    return Work(
        program, len(trials), batch, hyper, state, state_names(state), given, kept, flops, size, layers, run["sharding"], dict(run["rules"])
    )


def _kept(program: Program, given: dict[str, jax.ShapeDtypeStruct], n: int = 2**16) -> float:
    """Bytes that the gradient keeps of an example, of so many that the weights it keeps too are no part of it; with the kernels of a TPU."""
    some = {k: jax.ShapeDtypeStruct((n, *x.shape[2:]), x.dtype) for k, x in given.items()}

    def forward(params, key, batch):
        with kernels.on(kernels.Where("tpu")):
            return jax.vjp(lambda p: jnp.mean(program.loss(p, key, batch)), params)[1]

    found = jax.eval_shape(forward, described(program), jax.eval_shape(lambda: jax.random.key(0)), some)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found)) / n


def candidates(job: Work, chips: int, slices: int) -> Iterator[Layout]:
    """All layouts of so many chips: powers of two over each axis, of which those that its rules and batch, heads and tokens allow are any use."""
    dims, tokens = job.program.dims, _tokens(job.program.dims)
    fits = {"tensor": math.gcd(dims.get("heads", 1), dims.get("mlp", 1), 16), "sequence": math.gcd(tokens, 8)}
    several = [_powers(chips // slices, fits[a]) for a in fits]
    for tensor, sequence in itertools.product(*several):
        rest = chips // (tensor * sequence)
        for data in _powers(rest, rest):
            mesh = {
                a: n for a, n in zip(("data", "fsdp", "sequence", "tensor"), (data, rest // data, sequence, tensor), strict=True) if n > 1
            }
            mesh = mesh or {"data": 1}
            if tensor * sequence * rest != chips or _outer(mesh, slices) is None or not _allowed(job, mesh):
                continue
            for accumulate in _powers(job.batch // rest if job.batch % rest == 0 else 0, 64):
                for remat in shared.REMAT:
                    yield Layout(mesh, remat, accumulate)


def _allowed(job: Work, mesh: dict[str, int]) -> bool:
    """Whether the experiment's rules are of axes that a mesh has."""
    try:
        return bool(job.placing(mesh))
    except ValueError:
        return False


def _powers(n: int, most: int) -> list[int]:
    """The powers of two that divide n, up to `most`."""
    return [2**k for k in range(n.bit_length()) if n and n % 2**k == 0 and 2**k <= most and most % 2**k == 0]


def _tokens(dims: dict[str, int]) -> int:
    """Tokens of an image, by which the axis `sequence` divides."""
    return dims["tokens"] if "tokens" in dims else (dims["side"] // dims.get("patch_side", 1)) ** 2


def _outer(mesh: dict[str, int], slices: int) -> str | None:
    """The axis that goes over the network between slices; '' for one slice, None where none can."""
    return "" if slices == 1 else next((a for a in meshes.OUTER if mesh.get(a, 1) % slices == 0), None)


def state_bytes(job: Work, mesh: dict[str, int]) -> dict[str, int]:
    """Bytes of one chip for what a step is given: weights, optimizer, average, batch, and the few numbers beside them."""
    placed = _abstract(mesh), job.placing(mesh)[1]

    def total(names, tree):
        where = jax.tree.leaves(place.shardings(names, tree, *placed))
        return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for s, x in zip(where, jax.tree.leaves(tree), strict=True))

    found = {
        k: total(getattr(job.names, of), getattr(job.state, of))
        for k, of in (("weights", "params"), ("optimizer", "opt"), ("average", "ema"))
    }
    found["batch"] = total({k: ("seeds", "batch", *[""] * (x.ndim - 2)) for k, x in job.inputs.items()}, job.inputs)
    return found | {"hyperparameters": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.hyper))}


def temporary_bytes(job: Work, layout: Layout, weights: int) -> float:
    """An estimate of what a chip keeps during a step besides what it is given, of which `weights` bytes are its share of weights."""
    mesh, half = layout.mesh, jnp.dtype(job.program.dtype).itemsize / 4
    tensor = mesh.get("tensor", 1)
    stream, rest = job.kept["block"], job.kept[layout.remat] - job.kept["block"]
    again = job.kept["none"] / job.layers if layout.remat != "none" else 0.0
    examples = job.batch / _apart(mesh) / layout.accumulate / mesh.get("sequence", 1)
    gathered = 2 * half * job.weight_bytes / job.layers / tensor
    return job.trials * (examples * (stream + (rest + again) / tensor) + gathered) + weights * ((2 if layout.accumulate > 1 else 1) + half)


def _apart(mesh: dict[str, int]) -> int:
    return mesh.get("data", 1) * mesh.get("fsdp", 1)


def traffic(job: Work, layout: Layout, weights: int) -> list[Collective]:
    """An estimate of the collectives of a step, before it is compiled; `weights` are a chip's bytes of them."""
    mesh, half = layout.mesh, jnp.dtype(job.program.dtype).itemsize / 4
    n = {a: mesh.get(a, 1) for a in ("data", "fsdp", "sequence", "tensor")}
    passes = 2 if layout.remat == "none" else 3
    whole = job.trials * job.weight_bytes * half / n["tensor"]
    stream = job.trials * job.kept["block"] * job.batch / _apart(mesh) / n["sequence"]
    sent = {
        "fsdp": (passes + 1) * layout.accumulate * whole,
        "data": 2 * layout.accumulate * weights * half,
        "tensor": 2 * 2 * passes * stream,
        "sequence": 2 * passes * stream * (n["sequence"] - 1) / n["tensor"],
    }
    return [Collective("estimated", (a,), 0, round(sent[a]), round(sent[a] * (n[a] - 1) / n[a])) for a in n if n[a] > 1]


def seconds(job: Work, layout: Layout, kind: str, chip: Chip, slices: int, state: dict[str, int], moved: Iterable[Collective]) -> Seconds:
    """The roofline of a step: bytes that go over an axis between slices count at the network's rate, less what slices share out."""
    mesh, half = layout.mesh, jnp.dtype(job.program.dtype).itemsize / 4
    chips, tensor = math.prod(mesh.values()), mesh.get("tensor", 1)
    passes = 2 if layout.remat == "none" else 3
    held = sum(state[k] for k in ("weights", "optimizer", "average"))
    examples = job.trials * job.batch / _apart(mesh) / mesh.get("sequence", 1)
    seen = 2 * examples * job.kept["none"] / tensor * (1 if layout.remat == "none" else 2)
    weights = 2 * passes * layout.accumulate * job.trials * job.weight_bytes * half / tensor
    inside = outside = 0.0
    for c in moved:
        over = _outer(mesh, slices)
        size = math.prod(mesh[a] for a in c.axes)
        near = size // slices if over in c.axes else size
        inside += c.sent if near > 1 else 0
        outside += c.sent / near if over in c.axes else 0
    return Seconds(
        job.trials * job.flops[layout.remat] * job.batch / chips / PEAK[kind],
        (2 * held + 4 * state["weights"] + weights + seen) / chip.memory_rate,
        inside / chip.slice_rate,
        outside / chip.network_rate,
    )


class Guess(NamedTuple):
    """A layout with its estimates, in bytes and seconds."""

    layout: Layout
    bytes: float
    seconds: Seconds


def guesses(job: Work, kind: str, chip: Chip, chips: int, slices: int) -> list[Guess]:
    """All layouts with their estimates, the fastest first."""
    found, held = [], {}
    for layout in candidates(job, chips, slices):
        key = tuple(layout.mesh.items())
        state = held[key] = held.get(key) or state_bytes(job, layout.mesh)
        size = sum(state.values()) + temporary_bytes(job, layout, state["weights"])
        found.append(Guess(layout, size, seconds(job, layout, kind, chip, slices, state, traffic(job, layout, state["weights"]))))
    return sorted(found, key=lambda g: (g.seconds.most, g.bytes))
