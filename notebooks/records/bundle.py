"""Makes the records beside it of studies that experiments/ trained: some of their trials, no weights, no samples, no wall time.

    python notebooks/records/bundle.py runs/parametrizations --arm standard --arm mup --where model.depth=2 --seeds 4 --csv runs.csv

Losses, FLOPs and counts are as they were recorded; study.json says under `pruned` what was left out. With `--csv runs.csv` the runs at the best learning rate
of every arm and size also become a table with the names that W&B gives to columns: what `lab records add` reads.
"""

import argparse
import csv
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lab import ladder, record

HERE = Path(__file__).resolve().parent
LEFT_OUT = ("wall", "grad_norm")  # columns that no law and no figure asks for


def bundle(source: Path, to: Path, arms: list[str], where: dict[str, str], seeds: int) -> None:
    """Write the records of a study's trials of `arms`, of the first `seeds` and with `where` (key -> value)."""
    study = record.read_study(source)
    kept = {
        i: t
        for i, t in study["trials"].items()
        if t["arm"] in (arms or [t["arm"]]) and t["seed"] < seeds and all(str(ladder.value(study, i, k)) == v for k, v in where.items())
    }
    pops = {n: p | {"trials": [i for i in p["trials"] if i in kept]} for n, p in study["populations"].items()}
    pops = {n: p for n, p in pops.items() if p["trials"]}
    for name in pops:
        rows = record.read_rows(source / name)
        rows = rows.filter([i in kept for i in rows["trial"].to_pylist()]).drop_columns([c for c in LEFT_OUT if c in rows.column_names])
        rows = rows.select([c for c in rows.column_names if pc.count(rows[c]).as_py()])
        folder = to / name
        folder.mkdir(parents=True)
        pq.write_table(rows, folder / "rows.parquet", compression="zstd")
        card, done = record.read_json(source / name / "card.json"), record.read_json(source / name / "done.json")
        record.write_json(folder / "card.json", {k: v for k, v in card.items() if k not in ("weights", "by_role")})
        record.write_json(folder / "done.json", {k: [i for i in done[k] if i in kept] for k in ("trials", "diverged")} | {"weights": False})
    said = f"{len(kept)} of {len(study['trials'])} trials; without weights, samples and {', '.join(LEFT_OUT)}"
    record.write_json(to / "study.json", study | {"trials": kept, "populations": pops, "pruned": said})


def table(study: Path, out: Path) -> None:
    """Write a row a run of those at the learning rate of least mean loss, for every arm and width of a study."""
    cells: dict[tuple, dict[float, list[dict]]] = {}
    for r in record.finals(study).to_pylist():
        cells.setdefault((r["arm"], r["model.width"]), {}).setdefault(r["optim.lr"], []).append(r)
    rows = []
    for (arm, width), rates in sorted(cells.items()):
        stable = [runs for runs in rates.values() if not any(r["diverged"] for r in runs)]
        for r in min(stable, key=lambda runs: sum(x["eval_loss"] for x in runs) / len(runs)):
            row = {"Name": f"{arm}-{width}-seed{r['seed']}", "State": "finished", "config.parametrization": arm, "config.seed": r["seed"]}
            row |= {"config.n_params": r["parameters"], "summary.val/loss": r["eval_loss"], "summary.images": r["examples"]}
            rows.append(row | {"summary.train_flops": r["flops"]})
    with out.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0], quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--csv", default="")
    args = parser.parse_args()
    bundle(args.study, HERE / args.study.name, args.arm, dict(text.split("=", 1) for text in args.where), args.seeds)
    if args.csv:
        table(HERE / args.study.name, HERE / args.csv)
