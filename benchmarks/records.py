"""How long do records take to read and to report on? `lab bench records`: a planted study of 1,000 trials by 1,000 rows, and its rows ten times over."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _common
import planted

from lab import record, report


def lengthen(folder: Path, rows: int) -> int:
    """Give every trial of a planted study so many rows, the last of them its own; returns how many there are of all trials."""
    total = 0
    for path in sorted(folder.glob("*/rows.parquet")):
        ends = pq.read_table(path)
        ends = ends.filter(pa.compute.equal(ends["step"], 40))
        many = ends.take(np.repeat(np.arange(ends.num_rows), rows))
        step = np.tile(np.arange(rows), ends.num_rows)
        last, rng = step == rows - 1, np.random.default_rng(0)
        for key, value in {
            "step": np.where(last, 40, step - rows),  # the last is where the study says that its trials end
            "wall": 0.1 * step,
            "loss": np.where(last, np.nan, 2.0 - step / rows + 0.01 * rng.standard_normal(len(step))),
            "eval_loss": np.where(last, np.array(many["eval_loss"]), np.nan),
        }.items():
            at = many.column_names.index(key) if key in many.column_names else many.num_columns
            many = (
                many.set_column(at, key, pa.array(value, from_pandas=True))
                if at < many.num_columns
                else many.append_column(key, pa.array(value, from_pandas=True))
            )
        pq.write_table(many, path)
        total += many.num_rows
    return total


def timed(what: str, do) -> dict:
    """Seconds of one call."""
    began = time.perf_counter()
    do()
    row = {"measure": what, "seconds": time.perf_counter() - began}
    print(f"{what:40} {row['seconds']:7.2f} s", flush=True)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="lab bench records", description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=1000, help="of a trial, in the first part; ten times as many in the second (default: 1000)"
    )
    args, out = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as place:
        folder = planted.study(Path(place) / "planted", exponents=np.arange(-11, -3, 0.32).tolist(), seeds=range(5), noise=0.1)
        n = lengthen(folder, args.rows)
        trials = len(record.read_study(folder)["trials"])
        out += [
            {**timed(f"{what}, {n:,} rows", do), "trials": trials, "rows": n}
            for what, do in (
                ("read", lambda: record.table(folder)),
                ("lab report", lambda: report.report(folder)),
            )
        ]
        n = lengthen(folder, 10 * args.rows)
        out.append({**timed(f"read, {n:,} rows", lambda: record.table(folder)), "trials": trials, "rows": n})
    print(_common.write("records", out))


if __name__ == "__main__":
    main()
