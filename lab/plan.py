"""What a study will cost, before it is paid: builds each population's step, asks the compiler for memory, times a few steps."""

import time
from typing import Any

import jax

from lab import cost
from lab.log import clock, console
from lab.population import Population
from lab.study import Decoded, Study, held_out

STEPS = 3  # timed steps of each population, after one that warms up


def plan(study: Study) -> list[dict[str, Any]]:
    """One row a population, cheapest first: trials, parameters, FLOPs, compile seconds, bytes on the device, seconds."""
    rows, source, work = [], Decoded(study.train), study.work()
    for name in sorted(study.packs, key=work.get):
        group = study.packs[name]
        config = group[0].config
        console.print(f"compiling and timing {name} ({len(group)} trials)", markup=False)
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
                **{"steps": steps, "start": start, "flops": work[name], "compile_s": pop.compile_s, "bytes": pop.bytes},
                **{"step_s": per_step, "seconds": seconds, "flops_per_s": work[name] / steps / per_step},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The plan as text, with its sum."""
    head = ("population", "trials", "parameters", "steps", "FLOPs", "compile", "memory", "ms/step", "time", "GFLOP/s")
    lines = [head]
    for r in rows:
        memory, speed = f"{r['bytes'] / 2**20:,.0f} MiB", f"{r['flops_per_s'] / 1e9:.1f}"
        lines.append(
            (
                *(r["population"], str(r["trials"]), f"{r['parameters']:,}", str(r["steps"]), f"{r['flops']:.2e}"),
                *(f"{r['compile_s']:.1f} s", memory, f"{r['step_s'] * 1e3:.1f}", clock(r["seconds"]), speed),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )
    total = sum(r["seconds"] + r["compile_s"] for r in rows)
    trials, flops = sum(r["trials"] for r in rows), sum(r["flops"] for r in rows)
    spent = sum(r["flops"] * (1 - r["start"] / r["steps"]) for r in rows)
    shared = ""
    if spent < flops:
        shared = f";\nrun.trunk leaves {spent:.2e} of them to compute ({spent / flops:.0%}), as longer horizons go on from shorter ones"
    device = jax.devices()[0].device_kind
    return (
        f"{text}\n\n{trials} trials in {len(rows)} populations, {len(rows)} compiles, {flops:.2e} FLOPs ({cost.CONVENTION.split(';')[0]}), "
        f"largest {max(r['bytes'] for r in rows) / 2**20:,.0f} MiB on a device{shared};\nabout {clock(total)} ({total / 3600:.2f} hours) on this device ({device})"
    )
