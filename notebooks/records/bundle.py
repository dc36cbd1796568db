"""Makes the records beside it of studies that experiments/ trained: some of their trials, no weights, no samples, no wall time.

    python notebooks/records/bundle.py runs/parametrizations --arm standard --arm mup --where model.depth=2 --seeds 4 --csv runs.csv
    python notebooks/records/bundle.py runs/compute --ends

Losses, FLOPs and counts are as they were recorded; study.json says under `pruned` what was left out. With `--ends` only the first and last row of each trial is kept, and populations
that differ in their trials alone become one. With `--csv runs.csv` the runs at the best learning rate
of every arm and size also become a table with the names that W&B gives to columns: what `lab records add` reads.
"""

import argparse
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lab import ladder, record

HERE = Path(__file__).resolve().parent
UNTOLD = ("weights", "by_role", "transfer")  # of a card
LEFT_OUT = ("wall", "grad_norm")  # columns that no law and no figure asks for


def bundle(source: Path, to: Path, arms: list[str], where: dict[str, str], seeds: int, ends: bool) -> None:
    """Write the records of a study's trials of `arms`, of the first `seeds` and with `where` (key -> value)."""
    study = record.read_study(source)
    kept = {
        i: t
        for i, t in study["trials"].items()
        if t["arm"] in (arms or [t["arm"]]) and t["seed"] < seeds and all(str(ladder.value(study, i, k)) == v for k, v in where.items())
    }
    whole: dict[str, list[str]] = {}  # card -> populations
    for name, pop in study["populations"].items():
        if any(i in kept for i in pop["trials"]):
            card = {k: v for k, v in record.read_json(source / name / "card.json").items() if k not in UNTOLD}
            whole.setdefault(json.dumps(card) if ends else name, []).append(name)
    pops = {}
    for names in whole.values():
        trials = [i for n in names for i in study["populations"][n]["trials"] if i in kept]
        rows = pa.concat_tables([record.read_rows(source / n) for n in names], promote_options="permissive")
        steps = {i: (0, t["steps"]) if ends else range(t["steps"] + 1) for i, t in kept.items()}
        rows = rows.filter([step in steps.get(i, ()) for i, step in zip(rows["trial"].to_pylist(), rows["step"].to_pylist(), strict=True)])
        rows = rows.drop_columns([c for c in LEFT_OUT if c in rows.column_names])
        rows = rows.select([c for c in rows.column_names if pc.count(rows[c]).as_py()])
        folder = to / names[0]
        folder.mkdir(parents=True)
        pq.write_table(rows, folder / "rows.parquet", compression="zstd")
        card, done = record.read_json(source / names[0] / "card.json"), [record.read_json(source / n / "done.json") for n in names]
        record.write_json(folder / "card.json", {k: v for k, v in card.items() if k not in UNTOLD})
        record.write_json(
            folder / "done.json", {"trials": trials, "diverged": [i for d in done for i in d["diverged"] if i in kept], "weights": False}
        )
        pops[names[0]] = {"trials": trials, "chunk": len(trials)}
        kept |= {i: kept[i] | {"population": names[0]} for i in trials}
    said = f"{len(kept)} of {len(study['trials'])} trials; without weights, samples{', all rows but the first and last' * ends} and {', '.join(LEFT_OUT)}"
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
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--csv", default="")
    args = parser.parse_args()
    bundle(args.study, HERE / args.study.name, args.arm, dict(text.split("=", 1) for text in args.where), args.seeds, args.ends)
    if args.csv:
        table(HERE / args.study.name, HERE / args.csv)
