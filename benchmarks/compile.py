"""Does a deeper model compile as fast as a shallow one? `lab bench compile`: a DiT train step of 28 layers against one of 4.

Both are programs that scan over their layers. On CPU the lab unrolls up to shared.UNROLL layers (faster steps, slower compile), so this
sets shared.UNROLL = 0 for the comparison and reports the unrolled 4 layers beside it. Nothing is cached; seconds are trace + lower +
compile, the median of interleaved rounds in one process. The target for 28 layers is at most 1.3 times 4 layers.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import _common
import _turns

TARGET = 1.3


def compile_step(layers: int, unroll: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds to trace, lower and compile the step of a population, with nothing left over from before."""
    import jax
    import numpy as np

    from lab.models import shared
    from lab.population import turns
    from lab.train import over_trials

    jax.clear_caches()
    usual, shared.UNROLL = shared.UNROLL, unroll
    try:
        pop = _turns.population(_turns.config(**{"model.width": args.width, "model.depth": layers}), args.trials)
        state = jax.eval_shape(over_trials(pop.program.init, (0,), turns(args.trials)), pop.hyper)
        batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), pop.batch_shape)

        def step(state, hyper, batch):
            return pop.program.step(state, hyper, jax.tree.map(lambda x: x[hyper.slot], batch))

        jax.clear_caches()
        times = [time.perf_counter()]
        traced = jax.jit(over_trials(step, (0, 0, None), turns(args.trials)), donate_argnums=(0,)).trace(state, pop.hyper, batch)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
    finally:
        shared.UNROLL = usual
    parts = [b - a for a, b in itertools.pairwise(times)]
    return {**dict(zip(("trace_s", "lower_s", "compile_s"), parts, strict=True)), "total_s": sum(parts)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench compile", description=__doc__.splitlines()[0])
    parser.add_argument("--deep", type=int, default=28)
    parser.add_argument("--shallow", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1, help="trials in the program (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="folder for the JSON (default: benchmarks/results)")
    args = parser.parse_args()
    _turns.warn_if_busy()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    everything = 10**6
    kinds = {
        f"{args.shallow} scanned": (args.shallow, 0),
        f"{args.deep} scanned": (args.deep, 0),
        f"{args.shallow} unrolled": (args.shallow, everything),
    }
    _common.say("warming up")
    compile_step(1, 0, args)
    found: dict[str, list[dict[str, float]]] = {k: [] for k in kinds}
    for i in range(args.rounds):
        for kind, (layers, unroll) in kinds.items():
            found[kind].append(compile_step(layers, unroll, args))
        _common.say(f"round {i + 1} of {args.rounds}: " + ", ".join(f"{k} {v[-1]['total_s']:.2f} s" for k, v in found.items()))
    shallow = found[f"{args.shallow} scanned"]
    rows, shown = [], [("layers", "trace s", "lower s", "compile s", "total s", "ratio [quartiles]")]
    for kind, times in found.items():
        ratio = _common.spread([x["total_s"] / y["total_s"] for x, y in zip(times, shallow, strict=True)])
        row = {"layers": kind, **{k: median(t[k] for t in times) for k in times[0]}, "ratio": ratio, "rounds": times}
        rows.append(row)
        cells = [f"{row[k]:.2f}" for k in ("trace_s", "lower_s", "compile_s", "total_s")]
        shown.append((kind, *cells, f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"))
    print(_turns.table(shown))
    deep = rows[1]["ratio"][0]
    verdict = "met" if deep <= TARGET else "missed"
    print(f"\n{args.deep} scanned layers take {deep:.2f}x the time of {args.shallow}; target at most {TARGET}x: {verdict}")
    settings = {"width": args.width, "trials": args.trials, "rounds": args.rounds, "target": TARGET}
    print(_turns.write("compile", rows, settings, args.out))


if __name__ == "__main__":
    main()
