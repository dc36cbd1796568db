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

from lab import study
from lab.checkpoint import Checkpoints
from lab.population import Population

ROOT = Path(__file__).resolve().parent.parent


def rounds(pop: Population, steps: int, count: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of `steps` steps, without a checkpoint and with one that is saved as they begin and durable when they have ended.

    Of a round the one comes first, of the next the other.
    """
    carry, store, out, saved = pop.init(), Checkpoints(folder), {"without": [], "with": []}, 0
    pop.compile(carry)
    batch = pop.put(pop.example_batch())
    for n in range(count + 1):
        for kind in ("without", "with") if n % 2 else ("with", "without"):
            jax.block_until_ready(carry)
            begun = time.perf_counter()
            if kind == "with":
                saved += 1
                store.save(saved, pop.state(carry))
            for _ in range(steps):
                carry, values = pop.step(carry, pop.hyper, batch)
                jax.block_until_ready(values["loss"])
            store.wait()
            if n:  # the first round warms up
                out[kind].append(time.perf_counter() - begun)
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
        cost = [w / o - 1 for w, o in zip(took["with"], took["without"], strict=True)]
        mb = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pop.shapes())) / 1e6
        row = {"width": width, "trials": len(group), "state_mb": round(mb, 1), "steps": args.steps}
        row |= {"step_ms": round(1e3 * float(np.median(took["without"])) / args.steps, 2)}
        rows.append(row | {"cost": [round(c, 4) for c in _common.spread(cost)], "seconds": took})
        print(f"width {width}, {mb:.0f} MB of {len(group)} trials: {cost and 100 * np.median(cost):.1f}% of the time of {args.steps} steps")
    print(_common.write("checkpoint", rows))


if __name__ == "__main__":
    main()
