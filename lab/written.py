"""Experiment files that commands write: a config as Python, with what is to be known of it as comments. No jax here."""

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

from lab.errors import UserError


def experiment(question: str, by: str, rules: list[str], config: dict, head: str = "", sweep: str = "") -> str:
    """The text of an experiment file.

    Args:
      question: what it asks. by: the command that writes it. rules: comments of get_config, one each.
      head, sweep: Python that stands before get_config and after it.
    """
    body = "\n".join(f"    c.{k} = {_written(v)}" for k, v in config.items() if v != {})
    return (
        f'"""{question}\n\nWritten by `{by}`; `lab plan` tells what it costs.\n"""\n\n'
        "from ml_collections import ConfigDict\n\n"
        + (f"{head}\n\n\n" if head else "\n")
        + "def get_config():\n"
        + "".join(map(_comment, rules))
        + f"    c = ConfigDict()\n{body}\n    return c\n"
        + (f"\n\n{sweep}\n" if sweep else "")
    )


STAMP = "# as `lab` wrote it, "  # before a digest of all that stands above, by which a later command sees whether it was edited


def check(out: Path) -> None:
    """UserError where `save` would write over a file that is not as it wrote it."""
    if out.is_file() and not _ours(out.read_text(errors="replace")):
        raise UserError(
            f"--out={str(out)!r} is there already, and was not written by the lab or was edited since; move it, or choose another --out"
        )


def save(out: Path, text: str) -> None:
    """Write an experiment file; UserError where that cannot be, or as `check` says."""
    check(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}{STAMP}{_digest(text)}\n")
    except OSError as e:
        raise UserError(f"--out={str(out)!r} cannot be written ({e.strerror}); expected a path such as {out.name}") from e


def _ours(text: str) -> bool:
    """Whether a file is as `save` has written it."""
    above, stamp, digest = text.rpartition(STAMP)
    return bool(stamp) and digest == f"{_digest(above)}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _comment(text: str) -> str:
    return textwrap.fill(f"- {text}", 120, initial_indent="    # ", subsequent_indent="    #   ") + "\n"


def _written(v: Any, indent: int = 4) -> str:
    """Python of a value, a section as dict(...) on lines of some 120; lists, which JSON makes of tuples, are tuples again."""
    if isinstance(v, list | tuple):
        return "(" + ", ".join(map(_written, v)) + ",)"[len(v) != 1 :]
    if isinstance(v, str):
        return json.dumps(v, ensure_ascii=False)
    if not isinstance(v, dict) or not all(k.isidentifier() for k in v):
        return repr(v)
    lines = [""]
    for k, x in v.items():
        item = f"{k}={_written(x)}, "
        lines = [*lines, item] if len(lines[-1] + item) > 100 else [*lines[:-1], lines[-1] + item]
    if len(lines) == 1:
        return f"dict({lines[0].removesuffix(', ')})"
    inner = "".join(f"\n{' ' * (indent + 4)}{line.rstrip()}" for line in lines)
    return f"dict({inner}\n{' ' * indent})"
