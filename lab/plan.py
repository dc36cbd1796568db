"""What a study will cost, before it is paid: builds each population's step, asks the compiler for memory, times a few steps."""

import hashlib
import time
from pathlib import Path
from typing import Any

import jax

from lab import cost, record
from lab.data.loader import Decoded, held_out
from lab.log import clock, console
from lab.population import Population
from lab.study import Study

STEPS = 3  # timed steps of each population, after one that warms up


def plan(study: Study) -> list[dict[str, Any]]:
    """One row a population that is not done, cheapest first: trials, parameters, FLOPs, compile seconds, bytes on the device, seconds.

    `flops` are those of the steps that it trains, from `start`; `program` is equal for populations of which the second finds its step compiled.
    """
    rows, source, work, began = [], Decoded(study.train), study.work(), time.monotonic()
    order = sorted(left(study), key=work.get)
    for i, name in enumerate(order):
        group = study.packs[name]
        config = group[0].config
        eta = f"; about {clock((time.monotonic() - began) / i * (len(order) - i))} left" if i else ""
        console.print(f"compiling and timing {name} ({len(group)} trials), {i + 1} of {len(order)}{eta}", markup=False)
        pop = Population(group, source, held_out(config, study.held))
        carry = pop.init()
        pop.compile(carry)
        batch = pop.put(pop.example_batch())
        carry, values = pop.step(carry, pop.hyper, batch)
        jax.block_until_ready(values)
        start = time.perf_counter()
        for _ in range(STEPS):
            carry, values = pop.step(carry, pop.hyper, batch)
        jax.block_until_ready(values)
        per_step = (time.perf_counter() - start) / STEPS
        start = time.perf_counter()
        jax.block_until_ready(pop.evaluate(carry))
        per_eval = time.perf_counter() - start
        steps, every, start = config["train"]["steps"], config["eval"]["every"], study.trunks.get(name, {"start": 0})["start"]
        seconds = per_step * (steps - start) + per_eval * (steps // every - -(-start // every) + 1)
        rows.append(
            {
                **{"population": name, "trials": len(group), "parameters": sum(cost.parameters(pop.program.model).values())},
                **{"steps": steps, "start": start, "flops": work[name] * (1 - start / steps), "whole": work[name]},
                **{"program": hashlib.sha256(pop.step.as_text().encode()).hexdigest(), "compile_s": pop.compile_s, "bytes": pop.bytes},
                **{"step_s": per_step, "seconds": seconds, "flops_per_s": work[name] / steps / per_step},
            }
        )
    return rows


def left(study: Study) -> list[str]:
    """Populations that are not done; of a study without a folder all."""
    return [n for n in study.packs if study.folder is None or not record.finished(Path(study.folder) / n)]


def table(rows: list[dict[str, Any]]) -> str:
    """The plan as text, with its sum."""
    head = ("population", "trials", "parameters", "steps", "FLOPs", "compile", "memory", "ms/step", "time", "GFLOP/s")
    lines = [head]
    for r in rows:
        memory, speed = f"{r['bytes'] / 2**20:,.0f} MiB", f"{r['flops_per_s'] / 1e9:.1f}"
        lines.append(
            (
                *(
                    r["population"],
                    str(r["trials"]),
                    f"{r['parameters']:,}",
                    f"{r['start']}-{r['steps']}" if r["start"] else str(r["steps"]),
                    f"{r['flops']:.2e}",
                ),
                *(f"{r['compile_s']:.1f} s", memory, f"{r['step_s'] * 1e3:.1f}", clock(r["seconds"]), speed),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )
    total = sum(r["seconds"] + r["compile_s"] for r in rows)
    trials, flops = sum(r["trials"] for r in rows), sum(r["flops"] for r in rows)
    whole, programs = sum(r["whole"] for r in rows), len({r["program"] for r in rows})
    shared = ""
    if flops < whole:
        shared = f";\nrun.trunk leaves these of {whole:.2e} ({flops / whole:.0%}), as longer horizons go on from shorter ones"
    device = jax.devices()[0].device_kind
    return (
        f"{text}\n\n{trials} trials in {len(rows)} populations, {programs} compile{'s' * (programs > 1)}, {flops:.2e} FLOPs ({cost.CONVENTION.split(';')[0]}), "
        f"largest {max(r['bytes'] for r in rows) / 2**20:,.0f} MiB on a device{shared};\nabout {clock(total)} ({total / 3600:.2f} hours) on this device ({device})"
    )
