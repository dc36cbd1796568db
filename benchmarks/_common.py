"""What the benchmarks share: device and versions, JSON results, medians with spread."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def machine() -> dict:
    """Device, cores, versions, date and command of a measurement."""
    import jax

    packages = [p for p in ("jax", "jaxlib", "flax", "optax", "torch") if _installed(p)]
    return {
        **{"device": jax.devices()[0].device_kind, "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        **{"python": platform.python_version(), "versions": {p: importlib.metadata.version(p) for p in packages}},
        **{"date": datetime.date.today().isoformat(), "command": "lab bench " + " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])},
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def write(name: str, rows: list[dict]) -> Path:
    """Write benchmarks/results/<name>-<device>.json."""
    about = machine()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{about['device'].lower().replace(' ', '-')}.json"
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return path


def spread(x: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    q = np.quantile(x, [0.5, 0.25, 0.75])
    return float(q[0]), float(q[1]), float(q[2])


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
