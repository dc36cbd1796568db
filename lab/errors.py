"""What the user is told: one line that names the key, the value, what was expected and the nearest name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config or input; `lab` prints its one line and exits with code 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """` (nearest: 'x')` for the closest of `options`, or an empty string when none is close."""
    close = ranked(name, options)[:1]
    return f" (nearest: {close[0]!r})" if close and _likeness(str(name), close[0]) >= 0.5 else ""


def ranked(name: str, options: Iterable[str]) -> list[str]:
    """`options`, those most like `name` first."""
    return sorted(map(str, options), key=lambda o: (-_likeness(str(name), o), o))


def _likeness(name: str, option: str) -> float:
    """0 to 1; a dotted key whose last part was given alone, or under another section, is nearly as like as a misspelt one."""
    ratio = difflib.SequenceMatcher(None, name, option).ratio()
    same = "." in option and "/" not in option and option.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    return max(ratio, 0.85 if same else 0.0)


def unknown(what: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among `options`."""
    options = ranked(name, options)
    listed = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return UserError(f"{what} {name!r} is unknown{nearest(name, options)}; expected one of: {listed}")
