"""What the user is told: one line that names the key, the value, what was expected and the nearest name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config or input; `lab` prints its one line and exits with code 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """` (nearest: 'x')` for the closest of `options`, or an empty string when none is close."""
    options = [str(o) for o in options]
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    tails = [o for o in options if o.rsplit(".", 1)[-1] == str(name).rsplit(".", 1)[-1]]
    best = tails[:1] or close
    return f" (nearest: {best[0]!r})" if best else ""


def unknown(what: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among `options`."""
    options = sorted(str(o) for o in options)
    listed = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return UserError(f"{what} {name!r} is unknown{nearest(name, options)}; expected one of: {listed}")
