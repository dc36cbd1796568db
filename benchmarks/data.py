"""Examples a second from storage to a batch on the device: `lab bench data`.

The same 32-pixel icons as ArrayRecord and as a folder of PNG files, in batches shuffled anew every epoch: the lab with the set in memory,
the lab reading while it goes (threads of one process, or two worker processes), and PyTorch's DataLoader with two workers, where
PyTorch is installed. They take turns, each in its own process. Then worlds on the device: the time of a batch beside the
quickstart's smallest step; and the Frechet distance of 10,000 samples at 2,048 features.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import _common
import _feeds
import _turns

CONTESTANTS = {  # name: (which files, how)
    "lab, in memory": ("records", "memory"),
    "lab, ArrayRecord, threads": ("records", 0),
    "lab, ArrayRecord, 2 workers": ("records", 2),
    "torch, ArrayRecord, 2 workers": ("records", "torch"),
    "lab, PNG folder, threads": ("folder", 0),
    "lab, PNG folder, 2 workers": ("folder", 2),
    "torch, PNG folder, 2 workers": ("folder", "torch"),
}
GOALS = {"in memory, examples/s": 20000, "in memory / torch on the same files": 2.0, "world batch / step": 0.05, "frechet, s": 30}


def contest(place: str, args: argparse.Namespace) -> list[dict]:
    """Examples a second of every contestant over the rounds; all are open throughout and sleep while they wait."""
    me, rows = str(Path(__file__).resolve()), []
    have = importlib.util.find_spec("torch") is not None
    for files in ("records", "folder"):
        mine = {n: how for n, (f, how) in CONTESTANTS.items() if f == files and (how != "torch" or have)}
        rates: dict[str, list[float]] = {n: [] for n in mine}
        specs = [{"name": n, "files": files, "how": how, "place": place, "size": args.size} for n, how in mine.items()]
        children = []
        try:
            children += (_turns.Child(me, spec) for spec in specs)
            batches = {c.name: max(2, round(args.seconds / c.run(20))) for c in children}
            for i in range(args.rounds):
                for c in children[:: 1 if i % 2 else -1]:
                    c.run(8)  # what was read ahead while the others had their turn
                    rates[c.name].append(_feeds.BATCH / c.run(batches[c.name]))
            rows += [{"name": c.name, **c.about, "rate": _common.spread(rates[c.name]), "rates": rates[c.name]} for c in children]
        finally:
            for c in children:
                c.__exit__()
        _common.say(f"  {files}: " + ", ".join(f"{n} {median(r):,.0f}/s" for n, r in rates.items()))
    for row in rows:
        peer = next((r for r in rows if r["name"].startswith("torch") and CONTESTANTS[r["name"]][0] == CONTESTANTS[row["name"]][0]), None)
        if peer and peer is not row:
            row["ratio"] = _common.spread([a / b for a, b in zip(row["rates"], peer["rates"], strict=True)])
    return rows


def worlds(rounds: int) -> list[dict]:
    """Milliseconds of generate(key, 32) on the device, and of a step of the quickstart's smallest DiT: the least of 50 calls a round."""
    import jax

    from lab.data.loader import open_source

    config = _turns.config()
    pop, n = _turns.population(config, 1), config["train"]["batch"]
    at = {"carry": pop.init()}
    pop.compile(at["carry"])
    batch = pop.put(pop.example_batch())

    def step():
        at["carry"], values = pop.step(at["carry"], pop.hyper, batch)
        return values

    calls, key = {"step": step}, jax.random.key(0)
    for name, options in (("mixture", {"classes": 4}), ("field", {})):
        world = open_source({"name": name, "size": 16, "channels": 1, **options}, "train", "")
        draw = jax.jit(lambda key, world=world: world.generate(key, n))
        calls[name] = lambda draw=draw: draw(key)
    times: dict[str, list[float]] = {k: [] for k in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            taken = []
            for _ in range(50):
                start = time.perf_counter()
                jax.block_until_ready(call())
                taken.append(1e3 * (time.perf_counter() - start))
            times[name] += [min(taken)] if i else []  # the first round compiles
    return [
        {
            **{"name": f"world {k}", "batch": n, "ms": _common.spread(v), "step_ms": _common.spread(times["step"])},
            "share": _common.spread([a / b for a, b in zip(v, times["step"], strict=True)]),
        }
        for k, v in times.items()
        if k != "step"
    ]


def frechet(rounds: int, n: int = 10_000, d: int = 2048) -> dict:
    """Seconds of the Frechet distance between two sets of n features, covariances included."""
    import numpy as np

    from lab.evals.distances import frechet_of

    rng, scale = np.random.default_rng(0), np.arange(1, d + 1, dtype=np.float32) ** -0.5
    x, y = (rng.standard_normal((n, d), np.float32) * scale for _ in range(2))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        frechet_of(x, y)
        times.append(time.perf_counter() - start)
    return {"name": "frechet distance", "samples": n, "features": d, "seconds": _common.spread(times)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench data", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--size", type=int, default=32, help="pixels (default: 32)")
    parser.add_argument("--data-dir", default=str(_turns.ROOT / "data"), help="where the icons are or will be built")
    parser.add_argument("--out", help="folder for the JSON (default: benchmarks/results)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        spec = json.loads(args.serve)
        _turns.serve(*(_feeds.torch if spec["how"] == "torch" else _feeds.lab)(spec))
        return
    _turns.warn_if_busy()
    os.environ["JAX_PLATFORMS"] = "cpu"  # where both sides run; children inherit it
    before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as place:
        _common.say(f"icons at {args.size} pixels as ArrayRecord and as PNG files")
        _feeds.prepare(args.data_dir, Path(place), args.size)
        rows = contest(place, args)
    rows += worlds(args.rounds)
    _common.say("Frechet distance of 10,000 samples at 2,048 features")
    rows.append(frechet(min(3, args.rounds)))
    shown = [("", "examples/s [quartiles]", "/torch [quartiles]", "first batch, s")]
    for r in (r for r in rows if "rate" in r):
        (m, a, b), ratio = r["rate"], r.get("ratio")
        said = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else ""
        shown.append((r["name"], f"{m:,.0f} [{a:,.0f}, {b:,.0f}]", said, r["first_batch_s"]))
    print(_turns.table(shown))
    for r in (r for r in rows if "share" in r):
        m, a, b = r["share"]
        print(f"{r['name']}: {r['ms'][0]:.3f} ms a batch of {r['batch']}, {m:.1%} [{a:.1%}, {b:.1%}] of a step of {r['step_ms'][0]:.2f} ms")
    m, a, b = rows[-1]["seconds"]
    print(f"Frechet distance of {rows[-1]['samples']:,} samples at {rows[-1]['features']:,} features: {m:.1f} s [{a:.1f}, {b:.1f}]")
    settings = {
        "rounds": args.rounds,
        "turn_s": args.seconds,
        "size": args.size,
        "batch": _feeds.BATCH,
        "goals": GOALS,
        "load_before": before,
    }
    print(_turns.write("data", rows, settings, args.out))


if __name__ == "__main__":
    main()
