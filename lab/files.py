"""Files written whole or not at all, and their digests."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds the old file or the whole new one, never a part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as f:
        json.dump(value, f, indent=1, default=list)
        f.flush()
        os.fsync(f.fileno())
    temporary.rename(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
