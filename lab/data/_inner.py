"""Sources within a source: opened from a section of their own, and what identifies them."""

from typing import Any

from lab import find
from lab.data.loader import open_source
from lab.errors import UserError


def inner(key: str, section: Any, split: str, data_dir: str) -> Any:
    """The source that config key data.`key` describes; whatever is wrong with it is said to be there."""
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise UserError(f"config key data.{key}={section!r} must be the section of a source, such as dict(name='icons', size=16)")
    try:
        return open_source(section, split, data_dir)
    except UserError as e:
        raise UserError(f"config key data.{key}: {e}") from e


def content(section: dict, source: Any) -> list[str | None]:
    """What identifies an inner source: its fingerprint, and its code where that is the user's own."""
    return [source.info["fingerprint"], find.source_digest("lab.data", section["name"])]
