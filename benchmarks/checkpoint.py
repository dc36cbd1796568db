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
from lab.data.loader import held_out
from lab.experiment import load
from lab.population import Population

ROOT = Path(__file__).resolve().parent.parent


KINDS = {"without": None, "file": stores.File, "orbax": stores.Orbax}  # one process saves a file; Orbax is for several


def rounds(pop: Population, steps: int, count: int, folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of `steps` steps, without a checkpoint and with one that is saved as they begin and durable when they have ended; of each round another comes first.

    And seconds of the cores: of the steps, and of each save with no steps beside it, which other load on the machine hardly changes.
    """
    carry, wall, cores, saved = pop.init(), {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}, 0
    opened = {kind: Checkpoints(folder / kind, store=store) for kind, store in KINDS.items() if store}
    pop.compile(carry)
    batch = pop.put(pop.example_batch())
    for n in range(count + 1):
        for kind in np.roll(list(KINDS), n):
            for alone in (False, True)[: 1 + (kind in opened)]:
                jax.block_until_ready(carry)
                begun, used = time.perf_counter(), time.process_time()
                if store := opened.get(kind):
                    saved += 1
                    store.save(saved, **(pop.kept(carry) if kind == "file" else {"tree": pop.state(carry)}))
                for _ in range(0 if alone else steps):
                    carry, values = pop.step(carry, pop.hyper, batch)
                    jax.block_until_ready(values["loss"])
                if store:
                    store.wait()
                if n and not alone:  # the first round warms up
                    wall[kind].append(time.perf_counter() - begun)
                if n and (alone or not store):
                    cores[kind].append(time.process_time() - used)
    for store in opened.values():
        store.close()
    return wall, cores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="lab bench checkpoint", description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 256], help="of the quickstart's models (default: 32 256)")
    parser.add_argument("--steps", type=int, default=50, help="between checkpoints (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="with and without (default %(default)s)")
    args = parser.parse_args()
    s = study.Study(load(str(ROOT / "experiments" / "quickstart.py"), [f"--config.run.data_dir={ROOT / 'data'}"]))
    rows = []
    for width in args.widths:
        group = next(g for g in s.packs.values() if g[0].config["model"]["width"] == width)
        pop = Population(group, s.train, held_out(group[0].config, s.held))
        folder = Path(tempfile.mkdtemp(prefix="lab-checkpoint-"))
        try:
            wall, cores = rounds(pop, args.steps, args.rounds, folder)
        finally:
            shutil.rmtree(folder)
        mb = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pop.shapes())) / 1e6
        row = {"width": width, "trials": len(group), "state_mb": round(mb, 1), "steps": args.steps}
        row |= {"step_ms": round(1e3 * float(np.median(wall["without"])) / args.steps, 2)}
        steps = float(np.median(cores["without"]))
        for kind in list(KINDS)[1:]:
            cost = np.array(wall[kind]) / np.array(wall["without"]) - 1
            of_cores, save_ms = float(np.median(cores[kind])) / steps, 1e3 * float(np.median(cores[kind]))
            row[kind] = {"cost": [round(x, 4) for x in _common.spread(cost)], "of_cores": round(of_cores, 4), "cores_ms": round(save_ms, 1)}
            print(
                f"width {width}, {mb:.0f} MB of {len(group)} trials, {kind}: {100 * row[kind]['cost'][0]:.1f}% of the time of {args.steps} steps; "
                f"a save takes {save_ms:.0f} ms of a core, {100 * of_cores:.1f}% of theirs",
                flush=True,
            )
        rows.append(row | {"seconds": wall, "cores": cores})
    print(_common.write("checkpoint", rows))


if __name__ == "__main__":
    main()
