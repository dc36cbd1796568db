"""What a study's step takes of a TPU pod, told by compiling it for the pod's topology on a machine that has none: `lab plan --topology`."""

import hashlib
import importlib.metadata
import json
import math
import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lab import cost, find, layouts
from lab import population as populations
from lab.data.loader import numeric, open_source
from lab.devices import CHIPS, PEAK, Chip
from lab.errors import UserError, ranked, unknown
from lab.experiment import Experiment, load
from lab.files import sha256, write_json
from lab.layouts import SPARE, Guess, Layout, Seconds, Work
from lab.log import clock, console
from lab.models import shared
from lab.population import Placement, Trial
from lab.train import over_trials
from lab.trials import expand, shape_key
from sharding import aot, hlo, place
from sharding import mesh as meshes
from sharding.hlo import Collective

CACHE = Path.home() / ".cache" / "lab" / "plans"
TRIES = 3  # layouts that are compiled before a search gives up


class Pod(NamedTuple):
    """Slices of a topology: its name, how many, the chip, and their devices, none of which need be there."""

    name: str
    slices: int
    kind: str
    chip: Chip
    devices: list

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name


def pod(name: str, slices: int = 1) -> Pod:
    """The pod of '--topology v5p:8x8x8 --slices 2'; UserError for a chip or layout that there is not, and without the compiler."""
    kind, _, layout = name.partition(":")
    if kind not in CHIPS:
        raise unknown("--topology: chip", kind, CHIPS)
    if slices < 1:
        raise UserError(f"--slices={slices} must be 1 or more")
    try:
        return Pod(name, slices, kind, CHIPS[kind], aot.topology(name, slices))
    except ModuleNotFoundError as e:
        raise UserError(
            "lab plan --topology compiles by libtpu, which is not installed; install it by `pip install 'scaling-lab[plan]'`"
        ) from e
    except ValueError as e:
        near = ", ".join(f"{kind}:{x}" for x in ranked(layout, CHIPS[kind].layouts)[:4])
        raise UserError(f"--topology={name!r} is no slice that the compiler knows ({e}); expected such as {near}") from e


def sizes(text: str, chips: int) -> dict[str, int]:
    """The mesh of '--mesh data=2,fsdp=256', axes of size 1 left out; UserError where it does not cover the chips."""
    found = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in meshes.AXES:
            raise unknown("--mesh: axis", axis, meshes.AXES)
        if not size.isdecimal() or not int(size):
            raise UserError(f"--mesh={text!r}: {part!r} is no axis with its size; expected such as fsdp=64")
        found[axis] = int(size)
    if (n := math.prod(found.values())) != chips:
        raise UserError(f"--mesh={text!r} is of {n} chips, and the topology has {chips}; expected sizes that multiply to it")
    return {a: found[a] for a in meshes.AXES if found.get(a, 1) > 1} or {"data": 1}


def example(config: dict) -> tuple[dict[str, int], dict[str, tuple[tuple[int, ...], Any]], str]:
    """Dims and {name: (shape, dtype)} of an example of a config's data, and its fingerprint: as declared, else of the data itself."""
    data = config["data"]
    module = find.module("lab.data", data["name"])
    if data.get("shapes") and hasattr(module, "declared"):
        return *module.declared(data), "declared"
    source = open_source(data, "train", config["run"]["data_dir"])
    return source.dims, {k: (v.shape, v.dtype.type) for k, v in numeric(source[0]).items()}, source.info["fingerprint"]


def largest(experiment: Experiment) -> tuple[list[Trial], dict[str, int], dict, int]:
    """The trials of the population of most parameters, the dims and arrays of an example, and how many trials are of its shape."""
    dims, inputs, fingerprint = example(experiment.config.to_dict())
    shapes: dict[str, list[Trial]] = {}
    for t in expand(experiment, fingerprint):
        shapes.setdefault(shape_key(t), []).append(t)

    def size(group):
        program = populations.build(group[0].config, dims)
        return sum(cost.parameters(program.model).values()), group[0].config["train"]["batch"]

    found = max(shapes.values(), key=size)
    return found[: found[0].config["run"]["chunk"] or 1], dims, inputs, len(found)


def placement(job: Work, layout: Layout, devices: list, slices: int = 1) -> Placement:
    """Where `lab run` with the flags of a layout places a step; UserError for a mesh that cannot be laid."""
    try:
        mesh = meshes.mesh(layout.mesh, devices, slices if slices > 1 else 0)
        return Placement(mesh, job.placing(layout.mesh)[1])
    except ValueError as e:
        raise UserError(f"--mesh: {e}") from e


def lowered(job: Work, layout: Layout, on: Pod) -> tuple[jax.stages.Lowered, jax.sharding.Mesh]:
    """The step that `lab run` would compile for a pod, over shapes alone, and its mesh; UserError for a mesh that cannot be laid."""
    laid = placement(job, layout, on.devices, on.slices)
    leaves, structure = jax.tree.flatten(job.state)
    where = jax.tree.leaves(place.shardings(job.names, job.state, *laid[:2]))

    def placed(x, names):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=laid.sharding(names, x.shape))

    given = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(leaves, where, strict=True)]
    hyper = jax.tree.map(lambda x: placed(x, ("trials", *[""] * (x.ndim - 1))), job.hyper)
    batch = {k: placed(x, ("seeds", "batch", *[""] * (x.ndim - 2))) for k, x in job.inputs.items()}
    program = replace(job.program, parts=layout.accumulate)
    step = over_trials(populations.stepped(program, structure), (0, 0, None), laid.apart, laid.beside)
    with shared.rolled():
        return jax.jit(populations.laid_out(step, layout.remat, laid, where, []), donate_argnums=0).lower(given, hyper, batch), laid.mesh


def measured(job: Work, layout: Layout, on: Pod, cache: Path) -> aot.Cost:
    """What the step takes of a chip, by compiling it, or of the last time that the same program was compiled for the same pod."""
    program, mesh = lowered(job, layout, on)
    versions = [importlib.metadata.version(p) for p in ("jax", "jaxlib", "libtpu")] + [
        sha256(m.__file__) for m in (aot, hlo)
    ]  # what reads it
    key = hashlib.sha256("\n".join([program.as_text(), on.name, str(on.slices), str(layout.mesh), *versions]).encode()).hexdigest()[:24]
    file = cache / f"{key}.json"
    if file.is_file():
        told = json.loads(file.read_text())
        return aot.Cost(**{**told, "collectives": tuple(Collective(*[x[0], tuple(x[1]), *x[2:]]) for x in told["collectives"])})
    try:
        found = aot.cost(program, mesh)
    except ValueError as e:
        raise UserError(f"what {layout} sends between chips cannot be counted: {e}") from e
    cache.mkdir(parents=True, exist_ok=True)
    write_json(file, found._asdict())
    return found


def own(run: dict, on: Pod) -> dict[str, int]:
    """The mesh of a config's section `run` on a pod, axes of size 1 left out, {} where it names none; UserError for one that `lab run` refuses."""
    if run["slices"] not in (0, on.slices):
        raise UserError(f"config key run.slices={run['slices']}, but {on} is --slices={on.slices}; expected 0 or {on.slices}")
    try:
        if not (named := place.sizes(run["sharding"], run["mesh"])):
            return {}
        mesh = meshes.mesh(named, on.devices, on.slices if on.slices > 1 else 0)
        place.rules(run["sharding"], mesh, run["rules"])
    except ValueError as e:
        raise UserError(f"config key {e}") from e
    return {a: n for a, n in mesh.shape.items() if n > 1} or {"data": 1}


def plan(
    experiment: Experiment, on: Pod, mesh: dict[str, int] | None = None, price: float | None = None, cache: Path = CACHE
) -> dict[str, Any]:
    """What the largest population of an experiment takes of a pod, as JSON-able: the layout that `mesh` or the experiment names, else the best found.

    A layout that was named and does not fit is told, and then the best of the others is sought.
    """
    began = time.monotonic()
    trials, dims, inputs, alike = largest(experiment)
    config = trials[0].config
    jax.config.update("jax_default_matmul_precision", config["train"]["precision"])
    job = layouts.work(populations.build(config, dims), trials, inputs)
    run, chips = config["run"], len(on.devices)
    named = mesh or own(run, on)
    found = layouts.guesses(job, on.kind, on.chip, chips, on.slices)
    tried: list[dict] = []
    most = TRIES + bool(named)

    def attempt(guess: Guess) -> dict | None:
        each = max((t["compile_s"] for t in tried), default=0.0)
        eta = f"; about {clock(each * (most - len(tried)))} left at most" if each else ""
        console.print(f"compiling for {on}: {guess.layout}, {len(tried) + 1} of at most {most}{eta}", markup=False)
        took = measured(job, guess.layout, on, cache)
        row = {"layout": guess.layout._asdict(), "estimated_bytes": round(guess.bytes), "compile_s": round(took.seconds, 1)}
        tried.append({**row, "fits": took.fits, "needed": took.needed, "has": took.has})
        return told(job, guess, on, took) if took.fits else None

    result = None
    if named:
        first = Layout(named, run["remat"], run["accumulate"])
        same = [g for g in found if g.layout == first]
        if not same:
            raise UserError(
                f"--mesh: {first} cannot be laid over {on} with train.batch={job.batch}, which data x fsdp x accumulate must divide, as tensor "
                "must the heads, and sequence the tokens; run.rules name none but its axes, and no other axis is planned"
            )
        result = attempt(same[0])
    if result is None:
        result = search(found, on.chip.memory, attempt, tried)
    about = {
        **{
            "experiment": experiment.name,
            "arm": trials[0].arm,
            "trials": len(trials),
            "alike": alike,
            "topology": on.name,
            "slices": on.slices,
        },
        **{
            "chips": chips,
            "device": on.kind,
            "parameters": sum(cost.parameters(job.program.model).values()),
            "batch": job.batch,
            "steps": config["train"]["steps"],
        },
        **{"flops_example": job.flops["none"], "flops_step": job.trials * job.batch * job.flops["none"], "dtype": config["train"]["dtype"]},
        **{"layouts": len(found), "named": bool(named), "tried": tried, "memory": on.chip.memory, "fits": result is not None},
    }
    if result is None:
        about["least_estimated_bytes"] = round(min((g.bytes for g in found), default=0))
    return about | (result or {}) | costs(about, result, price) | {"seconds_here": round(time.monotonic() - began, 1)}


def search(found: list[Guess], memory: float, attempt: Callable[[Guess], dict | None], tried: list[dict]) -> dict | None:
    """The first of the fastest guesses that turns out to fit; each that does not makes the estimates of the others as much larger."""
    factor = 1.0
    for _ in range(TRIES):
        left = [g for g in found if g.bytes * factor <= SPARE * memory and g.layout._asdict() not in [t["layout"] for t in tried]]
        if not left:
            left = sorted((g for g in found if g.layout._asdict() not in [t["layout"] for t in tried]), key=lambda g: g.bytes)[:1]
        if not left:
            return None
        if (result := attempt(left[0])) is not None:
            return result
        factor = max(factor, tried[-1]["needed"] / left[0].bytes)
    return None


def told(job: Work, guess: Guess, on: Pod, took: aot.Cost) -> dict[str, Any]:
    """What a program that fits takes of a chip: bytes by kind, collectives, seconds."""
    state = layouts.state_bytes(job, guess.layout.mesh)
    time_of = layouts.seconds(job, guess.layout, on.kind, on.chip, on.slices, state, took.collectives)
    bytes_of = {**state, "temporaries": took.temporaries, "arguments": took.arguments, "peak": took.peak, "estimated": round(guess.bytes)}
    return {
        **{
            "layout": guess.layout._asdict(),
            "flags": guess.layout.flags(job.placing(guess.layout.mesh)[0]),
            "compile_s": round(took.seconds, 1),
            "bytes": bytes_of,
        },
        **{"collectives": [c._asdict() for c in took.collectives], "seconds": time_of._asdict()},
    }


def costs(about: dict, result: dict | None, price: float | None) -> dict[str, Any]:
    """Seconds of a step and of the run, share of the peak, and prices, from the least that a roofline allows to what no overlap makes of it."""
    if result is None:
        return {}
    s = Seconds(**result["seconds"])
    peak = about["chips"] * PEAK[about["device"]]
    out: dict[str, Any] = {"step_s": [s.least, s.most], "mfu": [about["flops_step"] / t / peak for t in (s.least, s.most)]}
    out["run_s"] = [t * about["steps"] for t in out["step_s"]]
    if price is not None:
        out |= {"price": price, "step_cost": [price * about["chips"] * t / 3600 for t in out["step_s"]]}
        out["run_cost"] = [c * about["steps"] for c in out["step_cost"]]
    return out


def every(files: list[Path], out: Path, price: float | None = None) -> list[dict[str, Any]]:
    """Plans of experiments on the topologies that each names in TOPOLOGIES, written to `out` as they come, in place of those of before.

    A topology is such as 'v5p:8x8x8', or '2 v5p:8x8x8' for two slices.
    """
    asked = {(file.stem, *split(name)): file for file in files for name in runpy.run_path(str(file))["TOPOLOGIES"]}
    began = time.monotonic()
    try:
        before = json.loads(out.read_text()) if out.exists() else []
        rows = {k: r for r in before if (k := (r["experiment"], r["topology"], r["slices"])) in asked}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"--out={str(out)!r} holds no plans of --all; expected such a file, which is made anew, or a new one") from None
    for i, (key, file) in enumerate(asked.items()):
        eta = f"; about {clock((time.monotonic() - began) / i * (len(asked) - i))} left" if i else ""
        console.print(f"plan {i + 1} of {len(asked)}{eta}", markup=False)
        rows[key] = plan(load(str(file)), pod(*key[1:]), price=price)
        write_json(out, [rows[k] for k in asked if k in rows])
    return [rows[k] for k in asked]


def split(named: str) -> tuple[str, int]:
    """'2 v5p:8x8x8' -> the topology and how many slices of it."""
    *count, name = named.split()
    return name, int(*count or [1])
