"""Parts found by name: a new model, objective, source or evaluation is one new file and no edit elsewhere."""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.errors import UserError, unknown
from lab.files import sha256

# packages of parts, in which helpers may lie beside them, and what a part exports
KINDS = {
    **{"lab.data": "Source", "lab.encoders": "Encoder", "lab.evals": "Judge", "lab.formats": "Format", "lab.launch": "Backend"},
    **{"lab.models": "Model", "lab.tokenizers": "Model", "lab.objectives": "Objective"},
    **{"lab.layers": "Mixer", "lab.optimizers": "Optimizer"},
    "lab.transforms": "Transform",
}
BESIDE = {"lab.models": ("lab.tokenizers",)}  # packages whose parts serve in the place of another's


def module(package: str, name: str) -> ModuleType:
    """The module called `name`: of `package` ('dit'), by dotted path ('mypkg.dit') or from a file ('./dit.py').

    Raises:
      UserError: there is no such module; the message lists what `package` has.
    """
    if name.endswith(".py") or "/" in name:
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"file {name!r} does not exist (a part of one's own is given as a path to a .py file)")
        # the name carries the path, so two files called attn.py do not overwrite each other
        tag = f"lab_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if tag not in sys.modules:
            spec = importlib.util.spec_from_file_location(tag, path)
            sys.modules[tag] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[tag])
        return sys.modules[tag]
    shelves = (package, *BESIDE.get(package, ()))
    found = next((p for p in shelves if "." not in name and importlib.util.find_spec(f"{p}.{name}")), package)
    dotted = name if "." in name else f"{found}.{name}"
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as e:
        if not dotted.startswith(e.name or ""):
            raise UserError(f"{dotted!r} needs the package {e.name!r}, which is not installed") from e
        raise unknown(f"{KINDS[package].lower()} name", name, [n for p in shelves for n in names(p)]) from None


def stem(name: str) -> str:
    """The last part of a part's name: 'oracle' of 'oracle', 'mypkg.oracle' and './oracle.py'."""
    return Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]


def names(package: str) -> list[str]:
    """The parts that `package` ships: its modules that define one."""
    found = importlib.import_module(package)
    shipped = sorted(m.name for m in pkgutil.iter_modules(found.__path__))
    files = {n: Path(importlib.util.find_spec(f"{package}.{n}").origin) for n in shipped}
    return [n for n, file in files.items() if f"\nclass {KINDS[package]}" in file.read_text()]


def arguments(call: Callable, given: tuple[str, ...] = ("self", "dims")) -> dict[str, bool]:
    """Names of a callable's arguments, other than those `given`, and whether each must be passed."""
    return {n: p.default is p.empty for n, p in inspect.signature(call).parameters.items() if n not in given}


def check(call: Callable, options: dict, what: str, given: tuple[str, ...] = ("self", "dims")) -> None:
    """UserError, naming config key `what`, for an option that `call` does not take or one that it needs and lacks."""
    known = arguments(call, given)
    for key in options:
        if key not in known:
            raise unknown(f"config key {what}", key, known)
    if missing := [k for k, required in known.items() if required and k not in options]:
        kinds = {n: p.annotation for n, p in inspect.signature(call).parameters.items()}
        told = [k if kinds[k] is inspect.Parameter.empty else f"{k} ({getattr(kinds[k], '__name__', kinds[k])})" for k in known]
        raise UserError(f"config key {what}.{missing[0]} is missing; expected: {', '.join(told)}")


def typed(call: Callable, options: dict, what: str) -> None:
    """UserError for an option whose value is not of the type (int, float, str, bool, or one of several) that `call` says it takes.

    `what` stands before its name, such as 'config key optim.'.
    """
    kinds = {n: p.annotation for n, p in inspect.signature(call).parameters.items()}
    for key, value in options.items():
        said = typing.get_args(kinds[key]) or (kinds[key],)
        allowed = {*said, int} if float in said else set(said)
        if allowed <= {int, float, str, bool, type(None)} and type(value) not in allowed:
            names = " or ".join(getattr(k, "__name__", str(k)) for k in said if k is not type(None))
            raise UserError(f"{what}{key}={value!r} must be of type {names}")


def make(call: Callable, options: dict, what: str, given: tuple = ()) -> Any:
    """call(*given, **options), the options checked."""
    check(call, options, what, tuple(list(inspect.signature(call).parameters)[: len(given)]))
    return call(*given, **options)


def is_own(value: Any) -> bool:
    """Whether an option names a part of the user's own: a file, or a dotted path that can be imported."""
    if not isinstance(value, str) or "." not in value:
        return False
    try:
        return value.endswith(".py") or importlib.util.find_spec(value) is not None
    except (ImportError, ValueError):
        return False


def source_digest(package: str, name: str) -> str | None:
    """Digest of a user's own module, which is part of a trial's identity; None for the lab's own."""
    found = module(package, name)
    if found.__name__.startswith("lab."):
        return None
    return sha256(Path(found.__file__))[:16]
