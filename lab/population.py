"""Trials of one shape, trained in one compiled program: learning rates, seeds and parametrizations side by side."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lab import axes, cost, failure, find, parametrization, rates, record, restore
from lab.axes import is_weight
from lab.checkpoint import Checkpoints
from lab.data import loader
from lab.digests import digests
from lab.errors import UserError, unknown
from lab.goodput import Events
from lab.judging import Judging, Painter
from lab.layers import kernels
from lab.log import Progress, Scalars
from lab.models import shared
from lab.optim import Hyper, core, own, schedule
from lab.record import Writer, compact, write_json
from lab.train import Program, State, over_trials
from sharding import hosts, place
from sharding import mesh as meshes
from sharding.aot import compile as aot

EVAL_KEY = 20_240_229  # the evaluation's times and noise are the same in every study and for every seed
INFINITE = float("inf")
TRUNK = "trunk"  # where a population leaves its states for longer horizons
END = "end"  # where it leaves its last weights for the stage after it
STREAMS = 1 << 20  # seeds that lie between those of a training and of the one after it
# XLA's options for trials that take turns: one with a core of its own loses by splitting its matmuls, and less optimised code
# compiles in 0.7x of the time and runs as fast
IN_TURN = {"xla_cpu_multi_thread_eigen": False, "xla_backend_optimization_level": 1}
IN_TURN = {k: v for k, v in IN_TURN.items() if f"--{k}=" not in os.environ.get("XLA_FLAGS", "")}  # the user's own flags win


class Preempted(Exception):
    """The run has stopped and the same command goes on: it was asked to and has saved its state, or it says what else was the matter."""


class Begun(NamedTuple):
    """What a trial begins from that was trained before: a digest of it or its id, how many trainings are behind it, and their FLOPs."""

    origin: str
    after: int
    flops: float


@dataclass(frozen=True)
class Trial:
    """One set of hyperparameters and one seed; `config` is complete, `point` is what the sweep set."""

    id: str
    arm: str
    config: dict
    point: dict
    begun: Begun | None = None

    @property
    def stream(self) -> int:
        """The seed of its data's order, times and noise: its own, or after other trainings one that none of them had."""
        return self.config["seed"] + STREAMS * (self.begun.after if self.begun else 0)


def build(config: dict, source_dims: dict[str, int]) -> Program:
    """The program of a config: model described (no numbers), objective, schedule, optimizer. Bad keys and sizes raise UserError."""
    what = dict(config["objective"])
    objective = find.make(find.module("lab.objectives", what.pop("name")).Objective, what, "objective")
    model, dims = restore.described_model(config["model"], config["base"], {"data": source_dims, "objective": objective.dims})
    o, t = config["optim"], config["train"]
    rate = schedule(o["schedule"], t["steps"], o["warmup"], o["decay"])
    return Program(model, dims, objective, rate, _dtype(t["dtype"]), core(o), failure.policy(t))


def _dtype(name: str) -> Any:
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    if name not in dtypes:
        raise unknown("train.dtype", name, dtypes)
    return dtypes[name]


def peak(config: dict) -> tuple[float, float]:
    """The peak learning rate at the config's batch and horizon, and the weight decay that it multiplies."""
    o, rule = config["optim"], config["parametrization"]["decay"]
    lr = o["lr"] * rates.factor(config["transfer"], config["train"]["batch"], config["train"]["steps"])
    if rule not in parametrization.INDEPENDENT:
        return lr, o["weight_decay"]
    if lr <= 0:
        raise UserError(f"optim.lr={o['lr']} must be above 0 where parametrization.decay={rule!r}: weight decay is divided by it")
    return lr, o["weight_decay"] / lr


def hyper(program: Program, config: dict, table: parametrization.Table, slot: int = 0) -> Hyper:
    """The traced hyperparameters of one config as plain numbers; `slot` is which seed's batch it reads."""
    o = config["optim"]
    numbers = [*peak(config), *(o[k] for k in ("b1", "b2", "eps")), o["clip"] or INFINITE, o["ema"]]
    return Hyper(*map(float, numbers), config["seed"], slot, axes.scales(program.model, table), own(o)[0], program.rate.horizon)


def stacked(rows: list[Hyper]) -> Hyper:
    """Hyperparameters of several trials along a leading axis of trials, on the device."""
    return jax.tree.map(lambda *xs: jnp.asarray(np.array(xs, np.int32 if isinstance(xs[0], int) else np.float32)), *rows)


def hypers(program: Program, trials: list[Trial], seeds: list[int]) -> Hyper:
    """The traced hyperparameters of trials, stacked along a leading axis of trials."""
    tables = [parametrization.table(**t.config["parametrization"]) for t in trials]
    mine = [{**t.config, "seed": t.stream} for t in trials]
    return stacked([hyper(program, c, table, seeds.index(c["seed"])) for c, table in zip(mine, tables, strict=True)])


def state_names(state: State) -> Any:
    """Dim names of every leaf of a population's state, for placement."""

    def one(names, x):
        # an optimizer may keep less than a weight of a weight; such dims have no name
        return ("trials", *names) if np.ndim(x) == 1 + len(names) else ("trials", *[""] * (np.ndim(x) - 1))

    def named(x):
        return jax.tree.map(partial(one, x.arrow.names), x) if is_weight(x) else one((), x)

    return jax.tree.map(named, state, is_leaf=is_weight)


def turns(trials: int) -> Mesh | None:
    """The mesh on which trials take turns, one at a time on each core: None for one trial, and where the device is no CPU.

    A batched matmul of small matrices is slow on a CPU and a batch of states leaves its caches: in turn, trials train 1.3-2.6x
    faster than as one batch (docs/performance.md).
    """
    devices = jax.devices()
    if devices[0].platform != "cpu" or trials == 1:
        return None
    rounds = -(-trials // len(devices))
    used = -(-trials // rounds)
    return meshes.mesh({"trials": used}, devices[:used])


class Placement(NamedTuple):
    """Where arrays go: a mesh and its rules, or no mesh for one device; `turned` where the mesh is one of `turns`, which nobody asked for."""

    mesh: Mesh | None
    rules: place.Rules
    turned: bool = False

    @property
    def apart(self) -> Mesh | None:
        """The mesh where trials alone are divided over it, each computed on a device of its own."""
        return self.mesh if self.mesh is not None and self.mesh.axis_names == ("trials",) else None

    @property
    def divided(self) -> bool:
        """Whether arrays of one trial are divided over the mesh."""
        return self.mesh is not None and self.apart is None

    @property
    def beside(self) -> str | None:
        """The axis 'trials' of a mesh that has others beside it."""
        return "trials" if self.apart is None and self.width > 1 else None

    @property
    def width(self) -> int:
        """How many trials are computed side by side at least: a population is padded to a multiple of it."""
        return 1 if self.mesh is None else self.mesh.shape.get("trials", 1)

    def sharding(self, names: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of one array by the names of its dims."""
        return NamedSharding(self.mesh, place.spec(names, shape, self.mesh, self.rules))


def placement(run: dict, trials: int) -> Placement:
    """Where a config's section `run` places a population; UserError for a mesh or rules that do not fit the devices or each other."""
    if not (run["sharding"] or any(run["mesh"].values())):
        several = jax.process_count() > 1
        if run["rules"] or several:
            why = f"{jax.process_count()} processes share this run" if several else f"run.rules={dict(run['rules'])} divides over a mesh"
            raise UserError(f"config key run.sharding='' places nothing, but {why}; expected one of: {', '.join(place.SETS)}")
        return Placement(turns(trials), {"trials": ("trials",)}, turned=True)
    try:
        mesh = meshes.mesh(place.sizes(run["sharding"], run["mesh"]), slices=run["slices"])
        return Placement(mesh, place.rules(run["sharding"], mesh, run["rules"]))
    except ValueError as e:
        raise UserError(f"config key {e}") from e


def check(config: dict, here: bool) -> None:
    """UserError for a setting of how a population runs that is wrong whatever its model and data; `here`: or on the devices of this machine."""
    run, batch = config["run"], config["train"]["batch"]
    _dtype(config["train"]["dtype"])
    if run["remat"] not in shared.REMAT:
        raise unknown("config key run.remat", run["remat"], shared.REMAT)
    if (parts := run["accumulate"]) < 1 or batch % parts:
        raise UserError(f"config key run.accumulate={parts} must divide train.batch={batch}")
    if here:
        placement(run, 1)
    elif run["sharding"]:
        try:
            place.axes(run["sharding"])
        except ValueError as e:
            raise UserError(f"config key {e}") from e


def parted(program: Program, config: dict) -> Program:
    """A program whose steps are computed in `run.accumulate` parts; UserError where its objective cannot."""
    parts = config["run"]["accumulate"]
    if parts > 1 and not hasattr(program.objective, "losses"):
        name = config["objective"]["name"]
        raise UserError(f"config key run.accumulate={parts}: objective {name!r} has no function losses(model, given); expected 1")
    if parts > 1 and axes.states(program.model):
        name = config["model"]["name"]
        raise UserError(f"config key run.accumulate={parts}: model {name!r} has states, which are made of the whole batch; expected 1")
    return replace(program, parts=parts)


def stepped(program: Program, structure: Any) -> Callable:
    """step(leaves, hyper, batch) of one trial: its State as flat leaves, the batches of all seeds -> the next leaves, and values."""

    def step(leaves, hyper, batch):
        state, values = program.step(jax.tree.unflatten(structure, leaves), hyper, jax.tree.map(lambda x: x[hyper.slot], batch))
        return jax.tree.leaves(state), values

    return step


def laid_out(f: Callable, remat: str, placement: Placement, where: list[NamedSharding] | None, missed: list[place.Missed]) -> Callable:
    """f -> (leaves, values) as it is compiled: stacks with `remat`, the platform's kernels, leaves laid out by `where`, values everywhere.

    What of the residual stream cannot be divided as the rules ask is added to `missed` when it is traced.
    """
    mesh, rules, turned = placement
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    several = placement.divided and mesh.size > 1
    on = kernels.Where(platform, *((mesh, lambda names, shape: place.spec(names, shape, mesh, rules)) if several else ()))
    stream = ("batch", "tokens", "")

    def lay(x):
        if x.ndim != len(stream) or not placement.divided:
            return x
        missed.extend(place.missed({"residual stream": stream}, {"residual stream": x.shape}, mesh, rules))
        return jax.lax.with_sharding_constraint(x, placement.sharding(stream, x.shape))

    def laid(*args):
        with shared.stacks(remat, lambda x: jax.tree.map(lay, x)), kernels.on(on):
            leaves, values = f(*args)
        if mesh is None or turned:
            return leaves, values
        everywhere = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), values)
        return jax.lax.with_sharding_constraint((leaves, values), (where[: len(leaves)], everywhere))

    return laid


class Population:
    """The compiled programs of some trials: init, step, evaluate. `seeds` are the seeds whose batches a step reads.

    Between steps the states of all trials are a `carry`: the flat list of State's arrays, padded to whole rounds of turns.
    Flax's containers flatten in Python, at every call: 4 ms, more than half of a small model's step.
    """

    def __init__(self, trials: list[Trial], source: Any, held_out: dict[str, np.ndarray]):
        self.trials, self.config = trials, trials[0].config
        check(self.config, here=True)
        self.program = parted(build(self.config, source.dims), self.config)
        self.seeds = sorted({t.stream for t in trials})
        self.compile_s, self.bytes = 0.0, 0
        run, t = self.config["run"], self.config["train"]
        jax.config.update("jax_default_matmul_precision", t["precision"])
        self.placement = placement(run, len(trials))
        self.hyper = self.place(hypers(self.program, trials, self.seeds))
        # placed once, as the transfer guard of the loop wants
        self._held, key = held_out, jax.random.key(EVAL_KEY)
        self.held_out, self._key = self._put((held_out, key), lambda x: ("", "batch", *[""] * (np.ndim(x) - 2))[: np.ndim(x)])
        self.batch_shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seeds), t["batch"], *x.shape[2:]), x.dtype), self.held_out)
        # weights that are divided may be too large for one device
        self._init = over_trials(partial(self.program.init, apart=self.placement.divided), (0,), self.placement.apart)
        self._shapes = jax.eval_shape(self._init, self.hyper)
        self._where, self._missed = None, []
        if self.placement.mesh is not None:
            self._where = jax.tree.leaves(place.shardings(state_names(self._shapes), self._shapes, *self.placement[:2]))
            weights = axes.weights(self._shapes.params).items()
            names = {n: ("trials", *w.arrow.names) for n, w in weights}
            self._missed = place.missed(names, {n: w.get_value().shape for n, w in weights}, *self.placement[:2])

    @property
    def missed(self) -> list[place.Missed]:
        """Weights, and once it is compiled the residual stream, that could not be divided as the rules ask."""
        return list(dict.fromkeys(self._missed))

    def _put(self, tree: Any, names: Callable) -> Any:
        """A tree of arrays on the devices; names(array) are the names of its dims."""
        if self.placement.mesh is None:
            return jax.device_put(tree)
        return hosts.put(tree, place.shardings(jax.tree.map(names, tree), tree, *self.placement[:2]))

    def place(self, tree: Any) -> Any:
        """Arrays with a leading axis of trials on the devices, the last trial repeated where a round of turns is not full."""
        if missing := -len(self.trials) % self.placement.width:
            tree = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * missing]), tree)
        return self._put(tree, lambda x: ("trials",) + ("",) * (np.ndim(x) - 1))

    def init(self) -> list[jax.Array]:
        """The carry before the first step, created where it will live."""
        return jax.jit(lambda hyper: jax.tree.leaves(self._init(hyper)), out_shardings=self._where)(self.hyper)

    def begun(self, params: Any, ema: Any, alive: np.ndarray) -> State:
        """The states before the first step, on the host, of trials that begin from weights and averages [trials, ...]."""
        begin = jax.jit(over_trials(self.program.begin, (0, 0, 0)))
        state = jax.device_get(begin(hypers(self.program, self.trials, self.seeds), params, ema))
        return replace(state, alive=alive & state.alive)

    @property
    def held(self) -> dict[str, np.ndarray]:
        """The held-out batches [N, batch, ...], on the host."""
        return self._held

    def state(self, carry: list[jax.Array]) -> State:
        """The states of the trials in a carry, stacked; of trials in turn, on the host, and under a mesh as they lie on the devices."""
        n = len(self.trials)
        if self.placement.turned:  # cut on the devices they would be gathered, and XLA ends a process whose gathering waits for 40 s
            carry = [x[:n] for x in jax.device_get(carry)]
        elif len(carry[0]) != n:
            carry = jax.jit(lambda leaves: [x[:n] for x in leaves])(carry)
        return jax.tree.unflatten(jax.tree.structure(self._shapes), carry)

    def kept(self, carry: list[jax.Array]) -> dict[str, Any]:
        """What a checkpoint of `state(carry)` is saved of: the states as they lie on the devices, and how many of them count."""
        if self.placement.turned:
            return {"tree": jax.tree.unflatten(jax.tree.structure(self._shapes), carry), "rows": len(self.trials)}
        return {"tree": self.state(carry)}

    def shapes(self, carry: list[jax.Array] | None = None) -> State:
        """The shapes of what `state` gives; with a carry, on its devices, where these hold no more than that."""
        n, leaves = len(self.trials), jax.tree.leaves(self._shapes)
        cut = carry is None or self.placement.turned or len(carry[0]) != n
        where = [None if cut else x.sharding for x in carry or leaves]
        shapes = [jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype, sharding=s) for x, s in zip(leaves, where, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self._shapes), shapes)

    def judging(self, judges: dict[str, Any], real: Any, decode: Callable | None = None) -> Judging:
        """The judges of these trials; `real` is the held-out split, `decode` makes pictures where a tokenizer made that. With several processes each judges on a device of its own."""
        made = real[0].get(self.program.objective.makes, np.zeros(0)) if judges else np.zeros(0)
        several = jax.process_count() > 1
        apart, options = None if several else self.placement.apart, self.config["sample"]["options"]
        painter = Painter(self.program, made.shape, options, real.info, apart, clip=made.dtype == np.uint8, decode=decode)
        held = (jax.random.key(EVAL_KEY), self._held) if several else (self._key, self.held_out)
        return Judging(judges, self.config["judge"], painter, real, held, len(self.trials))

    def averages(self, carry: list[jax.Array]) -> tuple[Any, jax.Array]:
        """Averaged weights in a carry, padded to whole rounds of turns, and which trials are alive; of several processes on each host."""
        state = jax.tree.unflatten(jax.tree.structure(self._shapes), carry)
        return (state.ema, state.alive) if jax.process_count() == 1 else hosts.fetch((state.ema, state.alive))

    def alive(self, carry: list[jax.Array]) -> np.ndarray:
        """Which trials have not diverged, padded to whole rounds of turns."""
        return hosts.fetch(jax.tree.unflatten(jax.tree.structure(self._shapes), carry).alive)

    def carry(self, state: State, like: list[jax.Array]) -> list[jax.Array]:
        """The carry of stacked states, such as a checkpoint's, placed as `like` is."""
        leaves = jax.tree.leaves(state)
        return hosts.put(leaves if len(leaves[0]) == len(like[0]) else self.place(leaves), [x.sharding for x in like])

    def share(self) -> tuple[int, int]:
        """(i, n): this host's devices read the i-th of n slices of every batch."""
        if jax.process_count() == 1:
            return 0, 1
        shape = (len(self.seeds), self.config["train"]["batch"])
        return hosts.share(self.placement.sharding(("seeds", "batch"), shape), shape, 1)

    def put(self, batch: dict) -> dict:
        """A batch [seeds, batch, ...], or this host's share of it, on the devices, along the mesh axes that rules give to 'batch'."""
        if self.placement.mesh is None:
            return jax.device_put(batch)

        def one(x):
            shape = (len(self.seeds), self.config["train"]["batch"], *x.shape[2:])
            return jax.make_array_from_process_local_data(
                self.placement.sharding(("seeds", "batch", *[""] * (x.ndim - 2)), shape), x, shape
            )

        return jax.tree.map(one, batch)

    def compile(self, carry: list[jax.Array]) -> None:
        """Compile step(carry, hyper, batch) and evaluation for a carry's shapes: once a population, and cached between runs."""
        structure, apart, beside = jax.tree.structure(self._shapes), self.placement.apart, self.placement.beside

        def evaluate(leaves, key, batches):
            return [], self.program.evaluate(jax.tree.unflatten(structure, leaves), key, batches)

        parts = ((stepped(self.program, structure), (0, 0, None)), (evaluate, (0, None, None)))
        remat = self.config["run"]["remat"]
        step, evaluate = (laid_out(over_trials(f, a, apart, beside), remat, self.placement, self._where, self._missed) for f, a in parts)
        batch = self.put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.batch_shape))
        options = IN_TURN if apart is not None and jax.default_backend() == "cpu" else None
        start = time.monotonic()
        # XLA compiles outside Python's lock, so the two take the time of the longer; of several processes all must compile in one order. What
        # holds where this is called, as `shared.rolled`, holds in its threads
        with ThreadPoolExecutor(2 if jax.process_count() == 1 else 1) as pool:
            built = pool.submit(copy_context().run, aot, step, carry, self.hyper, batch, donate=(0,), options=options)
            judged = pool.submit(copy_context().run, aot, evaluate, carry, self._key, self.held_out, options=options)
        self.step, self._evaluate = built.result().call, judged.result().call
        self.compile_s, self.bytes = time.monotonic() - start, max(built.result().bytes, judged.result().bytes)

    def example_batch(self) -> dict[str, np.ndarray]:
        """A batch of the right shape made of held-out examples, for timing."""
        n = self.config["train"]["batch"]
        flat = {k: np.asarray(v).reshape(-1, *v.shape[2:]) for k, v in self._held.items()}
        return {k: np.stack([np.resize(v, (n, *v.shape[1:]))] * len(self.seeds)) for k, v in flat.items()}

    def evaluate(self, carry: list[jax.Array]) -> dict[str, jax.Array]:
        """eval_loss and eval_ema of every trial."""
        return self._evaluate(carry, self._key, self.held_out)[1]

    def flops(self) -> float:
        """FLOPs of one training example, forward and backward (cost.CONVENTION)."""
        return flops_per_example(self.program, self.batch_shape)


def flops_per_example(program: Program, batch_shape: dict) -> float:
    """FLOPs of one example's loss gradient; `batch_shape` [seeds, batch, ...] gives the example's shape."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch_shape)
    params = described(program)
    key = jax.eval_shape(lambda: jax.random.key(0))
    n = jax.tree.leaves(one)[0].shape[0]
    return cost.flops(jax.grad(lambda p, k, b: jnp.mean(program.loss(p, k, b))), params, key, one) / n


def described(program: Program) -> Any:
    """The model's weights as shapes, for tracing without numbers."""
    return restore.shapes(program.model)


class Records(Scalars):
    """A clu writer whose values are one number a trial: each call becomes a row a trial."""

    def __init__(self, writer: Writer, trials: list[Trial], batch: int, train: Any, flops: float):
        self.writer, self.trials, self.batch, self.examples, self.flops = writer, trials, batch, len(train), flops
        # an epoch is a permutation, so nothing is seen twice before everything was seen once; a mixture counts for itself
        self.unique = getattr(train, "unique", lambda seen: min(seen, self.examples))
        self.began = time.time()
        self.before = [t.begun.flops if t.begun else 0.0 for t in trials]  # what it begins from was paid for, too

    def write_scalars(self, step: int, scalars: dict) -> None:
        seen, wall = step * self.batch, round(time.time() - self.began, 3)
        rows = []
        for i, t in enumerate(self.trials):
            row = {"trial": t.id, "arm": t.arm, "seed": t.config["seed"], "step": step, "examples": seen}
            row |= {"epochs": seen / self.examples, "unique": self.unique(seen), "flops": self.before[i] + seen * self.flops}
            row |= {"wall": wall, "attempt": self.writer.attempt}
            values = {k: np.asarray(v)[i].item() for k, v in scalars.items()}
            gone = values["diverged"]
            rows.append(row | {k: (None if gone and k != "diverged" else v) for k, v in values.items()})
        self.writer.append(rows)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Unwritten(Scalars):
    """In the place of Records on the processes that do not write."""

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Nothing is written."""


class Interrupt:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps; another one, a second or more later, acts at once.

    Within a second it is the same request: schedulers and terminals signal a whole group, in which a parent hands it on.
    """

    def __enter__(self):
        self.asked, self._first = False, 0.0
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.asked and time.monotonic() - self._first >= 1:
            raise KeyboardInterrupt
        self.asked, self._first = True, self._first or time.monotonic()

    def __exit__(self, *exc):
        for s, handler in self._old.items():
            signal.signal(s, handler)


class Span(NamedTuple):
    """The steps that a population trains of its trials' own, from `start`, at which `state()` gives their states, to `until`."""

    start: int
    until: int
    state: Callable[[], State] | None = None  # None: their init
    rows: Callable[[], list[dict]] | None = None  # of their steps before `start`, where these are to be among its own
    leaves: int = 0  # the step at which its states are left for longer horizons; 0: none
    hands: bool = False  # whether its last weights are left for a stage after it


def gathered(like: State, step: int, parts: list[tuple[Path, int, list[int]]], lost: str = "choose another --workdir") -> State:
    """States [trials, ...] at a step, on the host, from checkpoints of populations: of each (folder, how many trials it has, which to take).

    `like` is the shape of any population's of that program. UserError where a checkpoint is gone or damaged, with what is then to be done.
    """
    found = []
    for folder, trials, rows in parts:
        store = Checkpoints(folder)
        saved = store.restore(jax.tree.map(lambda x, n=trials: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), like))
        store.close()
        if saved is None or saved[0] != step:
            raise UserError(f"checkpoints of population {folder.parent.name!r} are gone or damaged; restore {str(folder)!r}, or {lost}")
        found.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], saved[1]))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *found)


def run(
    folder: Path,
    name: str,
    pop: Population,
    train: Any,
    judging: Judging,
    progress: Progress,
    interrupt: Interrupt,
    span: Span | None = None,
    startup: float = 0.0,
) -> None:
    """Train a population to its last step from wherever it was, and leave records, weights of the best trials and done.json.

    `startup` are seconds that this process took before. One whose `span` ends before its trials' last step leaves its state in the place of weights.

    Raises:
      Preempted: `interrupt` was set; rows and state are saved. Or a step that was computed twice differed; nothing of it is saved.
    """
    t, every, how = pop.config["train"], pop.config["eval"]["every"], pop.config["run"]
    span = span or Span(0, t["steps"])
    last, began = span.until, time.time()
    keep = Checkpoints(folder / "checkpoints", how["keep"], how["keep_every"])
    progress.stage(name, "compiling")
    begun = time.monotonic()
    carry = pop.init()
    init_s, begun = time.monotonic() - begun, time.monotonic()
    found = _restored(folder, keep, pop.shapes(carry))
    start, state = found or (span.start, span.state and span.state())
    carry = carry if state is None else pop.carry(state, carry)
    restore_s = time.monotonic() - begun
    writer = Writer(folder) if hosts.first() else None
    events = Events(folder, writer.attempt if writer else 0, began, start, startup)
    events.tell("init", init_s)
    events.tell("restore", restore_s, step=start)
    if found is None and span.rows is not None and writer:
        writer.append([r | {"attempt": writer.attempt} for r in span.rows()])
    with events.timed("compile"):
        pop.compile(carry)
        per_example = pop.flops()
    log = Records(writer, pop.trials, t["batch"], train, per_example) if writer else Unwritten()
    feed = loader.Loader(train, t["batch"], pop.seeds, start, pop.share(), how["workers"])
    watchdog, several = hosts.Watchdog(folder / "hosts", how["watchdog_seconds"]), jax.process_count() > 1
    pending, saved, mark, spent = None, time.monotonic(), time.monotonic(), 0.0
    train_s = 0.0
    progress.skip(name, "training", start)

    def write(step, values):
        log.write_scalars(step, jax.device_get(values))

    def write_judged(wait=False):
        begun = time.monotonic()
        for step, values in judging.rows(wait):
            log.write_scalars(step, values)
        if wait and judging.judges:
            events.tell("judge", time.monotonic() - begun)

    def save(step):
        with events.timed("save", step=step):
            log.flush()  # rows must be on disk before the step that makes them unrepeatable
            keep.save(step, meta={"rows": writer.position()} if writer else {}, **pop.kept(carry))

    try:
        for step in range(start, last + 1):
            judged = {}
            if step % every == 0 or step == last:
                jax.block_until_ready(carry)
                mark, spent = time.monotonic(), time.monotonic() - mark
                train_s += spent
                events.step(step, spent)
                watchdog.rest()  # as long as these take, they are no step that hangs
                with events.timed("eval", step=step):
                    judged = jax.block_until_ready(pop.evaluate(carry))
                mark = time.monotonic()  # an evaluation is no part of a step
            if judging.due(step, t["steps"]) and (step < last or last == t["steps"]):  # at a mark, those that go on are judged as they do
                judging.judge(step, *pop.averages(carry))
            if pending is not None:
                # the host reads step k while the device is still busy with step k + 1
                write(*pending)
                pending = None
            if step == span.leaves and step:
                watchdog.rest()
                with events.timed("save", step=step):
                    _leave(folder, step, pop.kept(carry))
                mark = time.monotonic()  # as below
            if step == last:
                write(step, {**judged, "diverged": ~pop.alive(carry)})
                if judging.judges:
                    progress.stage(name, "judging")
                write_judged(wait=True)
                break
            batch = pop.put(next(feed))
            twice = how["replay_every"] and step % how["replay_every"] == 0 and jax.tree.map(jnp.copy, carry)
            with jax.transfer_guard("disallow"):
                carry, values = pop.step(carry, pop.hyper, batch)
            if twice:
                mark += _same(pop, step, carry, pop.step(twice, pop.hyper, batch)[0], events)
            if judged or step % t["log_every"] == 0:
                pending = (step, {**values, **judged})
            jax.block_until_ready(values["loss"]) if step == start else None
            watchdog.beat(name, step)
            now = time.monotonic()
            spent, mark = now - mark, now
            train_s += spent
            shown = None if pending is None else _best(pending[1])
            progress.step(name, step + 1, shown, spent)
            events.step(step + 1, spent)
            write_judged()
            asked, due = interrupt.asked, now - saved > how["checkpoint_seconds"]
            if several:  # clocks and signals differ, and to ask costs a round between hosts
                asked, due = hosts.agreed(asked, due) if step % t["log_every"] == 0 else (False, False)
            if asked or due or (how["checkpoint_steps"] and (step + 1) % how["checkpoint_steps"] == 0):
                watchdog.rest()
                if pending is not None:
                    write(*pending)
                    pending = None
                write_judged(wait=True)
                save(step + 1)
                if asked:
                    with events.timed("save", step=step + 1):
                        keep.wait()
                    raise Preempted
                saved = mark = time.monotonic()  # neither judging nor saving is part of a step
        state = pop.state(carry)
        if last < t["steps"] and start < last:  # what goes on begins from it
            save(last)
            keep.wait()
        events.tell("trained", step=last)
    finally:
        with contextlib.ExitStack() as ends:  # each is closed whatever becomes of those before it, as on a full disk
            for close in (keep.close, events.close, log.close, log.flush, judging.close, feed.close, watchdog.close):  # the last first
                ends.callback(close)
    kept = last == t["steps"] and keep_best(folder, pop, state, jax.device_get(judged))
    if span.hands:
        left = pop.kept(carry)
        _leave(folder, last, {**left, "tree": handed(left["tree"])}, END)
    gone = _diverged(pop, state)
    if hosts.first():
        _close(
            folder,
            pop,
            gone,
            kept,
            last == t["steps"] and not how["keep_every"],
            {"train_s": train_s, "eval_s": events.seconds.get("eval", 0.0), "steps_here": last - start},
        )
    hosts.barrier(f"{name} is done")
    progress.finish(name)


def _close(folder: Path, pop: Population, diverged: list[str], kept: bool, final: bool, seconds: dict[str, float]) -> None:
    """Pack the rows of a population whose training has ended, and say what became of it."""
    timing = {"compile_s": pop.compile_s, **seconds}
    write_json(folder / "timing.json", {**{k: round(v, 3) for k, v in timing.items()}, "device_bytes": pop.bytes})
    compact(folder)
    write_json(folder / "done.json", {"trials": [x.id for x in pop.trials], "diverged": diverged, "weights": kept})
    if final:
        remove_checkpoints(folder)


def _restored(folder: Path, keep: Checkpoints, like: State) -> tuple[int, State] | None:
    """The newest step that is whole, as are the rows up to it, and its state; rows after it, whose steps are trained again, are dropped."""
    found = keep.restore(like, holds=lambda meta: record.holds(folder, meta.get("rows", {})))
    if hosts.first() and (found is None or "rows" in found[2]):  # older checkpoints do not tell of rows
        record.cut(folder, found[2]["rows"] if found else {})
    hosts.barrier("rows are cut")
    return found and found[:2]


def _same(pop: Population, step: int, once: list[jax.Array], again: list[jax.Array], events: Events) -> float:
    """Seconds that it took to see that a step computed twice from the same carry is one.

    Raises:
      Preempted: it differs, or copies of it do: the hardware errs, and nothing that came of it is to be saved.
    """
    jax.block_until_ready(once)
    begun = time.monotonic()
    with events.timed("replay", step=step + 1):
        one, two = (digests(pop.state(carry)) for carry in (once, again))
    odd = [k for k in one if one[k] != two[k] or "/" in one[k]]
    if hosts.agreed(bool(odd))[0]:
        events.tell("corruption", step=step + 1, leaves=odd)
        what = f"{len(odd)} arrays, {odd[0]} among them" if odd else "arrays of another process"
        raise Preempted(
            f"step {step + 1} computed twice from the same state differs in {what}; nothing of it is saved; the same command goes on "
            "from the last checkpoint, better on another device"
        )
    return time.monotonic() - begun


def _best(values: dict) -> float | None:
    loss = np.asarray(values["loss"])
    return float(np.nanmin(loss)) if np.isfinite(loss).any() else None


def _diverged(pop: Population, state: State) -> list[str]:
    return [t.id for t, alive in zip(pop.trials, hosts.fetch(state.alive), strict=True) if not alive]


def handed(state: State) -> dict[str, Any]:
    """What of a trial's last state the stage after it begins from."""
    return {"params": state.params, "ema": state.ema, "alive": state.alive}


def _leave(folder: Path, step: int, kept: dict[str, Any], where: str = TRUNK) -> None:
    """Keep the states of a population's trials for longer horizons, or what of them a later stage begins from; durable when it returns."""
    store = _emptied(folder / where)  # of an attempt that began again from before
    store.save(step, **kept)
    store.wait()
    store.close()


def _emptied(folder: Path) -> Checkpoints:
    """A store of one step, without what an earlier attempt has left; only one of several processes removes that, and before any saves."""
    if hosts.first():
        shutil.rmtree(folder, ignore_errors=True)
    hosts.barrier(f"{folder.name} is empty")
    return Checkpoints(folder, keep=1)


def remove_checkpoints(folder: Path) -> None:
    """Free the space of the resume checkpoints of a finished population."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def keep_best(folder: Path, pop: Population, state: State, judged: dict) -> bool:
    """Keep the averaged weights of the best trial of each arm, named by trial, for samples and fine-tuning; whether there is one."""
    loss = np.where(hosts.fetch(state.alive), np.asarray(judged[pop.config["eval"]["metric"]])[: len(pop.trials)], np.inf)
    best = {}
    for i, t in enumerate(pop.trials):
        if np.isfinite(loss[i]) and (t.arm not in best or loss[i] < loss[best[t.arm]]):
            best[t.arm] = i
    if not best:
        return False
    store = _emptied(folder / "weights")  # of an attempt that was killed before it said so
    kept = {pop.trials[i].id: hosts.fetch(jax.tree.map(lambda x: x[i], state.ema)) for i in best.values()}  # noqa: B023
    meta = {pop.trials[i].id: {"arm": arm, "loss": float(loss[i])} for arm, i in best.items()}
    store.save(pop.config["train"]["steps"], kept, {"trials": meta, "weights": "average (EMA)"})
    store.wait()
    store.close()
    return True
