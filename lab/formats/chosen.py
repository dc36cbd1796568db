"""Which published layout a folder of weights has."""

from pathlib import Path
from typing import Any

from lab import find
from lab.errors import UserError, unknown


def named(name: str) -> Any:
    """The Format of a part of lab/formats, or of one's own by dotted path or file."""
    found = find.module("lab.formats", name)
    if not hasattr(found, "Format"):
        raise unknown("format", name, find.names("lab.formats"))
    return found.Format


def by_class(theirs: dict, source: Path) -> str:
    """The format that reads what config.json, which is `theirs`, says the folder is."""
    given = [theirs["_class_name"]] if "_class_name" in theirs else theirs.get("architectures") or []
    names = find.names("lab.formats")
    if not given:
        raise UserError(
            f"file {str(source / 'config.json')!r} names no class (_class_name or architectures); --format tells: {', '.join(names)}"
        )
    known = {c for n in names for c in named(n).classes}
    found = [n for n in names if known.intersection(given, named(n).classes)]
    if not found:
        raise unknown(f"class of {str(source / 'config.json')!r}", given[0], known)
    # where none fits, the first one tells what it expected
    return next((n for n in found if all(theirs.get(k) == v for k, v in getattr(named(n), "only", {}).items())), found[0])


def sections(name: str, theirs: dict, source: Path) -> dict:
    """Sections of a config that a format makes of config.json; UserError for a key that is missing or of the wrong type."""
    try:
        return named(name).config(theirs)
    except KeyError as e:
        raise UserError(f"file {str(source / 'config.json')!r} has no key {e.args[0]!r}, which the format {name!r} needs") from None
    except TypeError as e:
        raise UserError(f"file {str(source / 'config.json')!r} has a value of the wrong type ({e})") from None
