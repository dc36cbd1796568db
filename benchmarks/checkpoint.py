"""`lab bench checkpoint`: what a checkpoint every so many steps costs the quickstart, by rounds with and without one, in turns."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _common
import jax
import numpy as np

from lab import stores, study
from lab.checkpoint import Checkpoints
from lab.population import Population

ROOT = Path(__file__).resolve().parent.parent


KINDS = {"without": None, "file": stores.File, "orbax": stores.Orbax}  # one process saves a file; Orbax is for several


def rounds(pop: Population, steps: int, count: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """(seconds, seconds of all cores) of `steps` steps, without a checkpoint and with one that is saved as they begin and durable when they have ended.

    Of each round another comes first.
    """
    carry, out, saved = pop.init(), {kind: [] for kind in KINDS}, 0
    opened = {kind: Checkpoints(folder / kind, store=store) for kind, store in KINDS.items() if store}
    pop.compile(carry)
    batch = pop.put(pop.example_batch())
    for n in range(count + 1):
        for kind in np.roll(list(KINDS), n):
            jax.block_until_ready(carry)
            begun, cores = time.perf_counter(), time.process_time()
            store = opened.get(kind)
            if store:
                saved += 1
                store.save(saved, **(pop.kept(carry) if kind == "file" else {"tree": pop.state(carry)}))
            for _ in range(steps):
                carry, values = pop.step(carry, pop.hyper, batch)
                jax.block_until_ready(values["loss"])
            if store:
                store.wait()
            if n:  # the first round warms up
                out[kind].append((time.perf_counter() - begun, time.process_time() - cores))
    for store in opened.values():
        store.close()
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="lab bench checkpoint", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 256], help="of the quickstart's models (default: 32 256)")
    parser.add_argument("--steps", type=int, default=50, help="between checkpoints (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="with and without (default %(default)s)")
    args = parser.parse_args()
    s = study.Study(study.load(str(ROOT / "experiments" / "quickstart.py"), [f"--config.run.data_dir={ROOT / 'data'}"]))
    rows = []
    for width in args.widths:
        group = next(g for g in s.packs.values() if g[0].config["model"]["width"] == width)
        pop = Population(group, s.train, study.held_out(group[0].config, s.held))
        folder = Path(tempfile.mkdtemp(prefix="lab-checkpoint-"))
        try:
            took = rounds(pop, args.steps, args.rounds, folder)
        finally:
            shutil.rmtree(folder)
        mb = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pop.shapes())) / 1e6
        row = {"width": width, "trials": len(group), "state_mb": round(mb, 1), "steps": args.steps}
        plain = np.array(took["without"])
        row |= {"step_ms": round(1e3 * float(np.median(plain[:, 0])) / args.steps, 2)}
        for kind in list(KINDS)[1:]:
            both = np.array(took[kind])
            cost = {"cost": both[:, 0] / plain[:, 0] - 1, "cost_of_cores": both[:, 1] / plain[:, 1] - 1}
            row[kind] = {k: [round(x, 4) for x in _common.spread(v)] for k, v in cost.items()}
            row[kind]["cores_ms"] = round(1e3 * float(np.median(both[:, 1] - plain[:, 1])), 1)
            print(
                f"width {width}, {mb:.0f} MB of {len(group)} trials, {kind}: {100 * row[kind]['cost'][0]:.1f}% of the time of {args.steps} steps, "
                f"{100 * row[kind]['cost_of_cores'][0]:.1f}% of that of the cores ({row[kind]['cores_ms']:.0f} ms)"
            )
        rows.append(row | {"seconds": took})
    print(_common.write("checkpoint", rows))


if __name__ == "__main__":
    main()
