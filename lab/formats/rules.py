"""Rules between weights of the lab and tensors of a published format; one declaration serves reading and writing.

A rule says which of their tensors hold one of our weights, and how the dims lie. Everything else (shapes, layers, what is missing)
follows from the weight's arrow.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from lab.axes import Arrow, Dims, Weight, weights
from lab.errors import UserError


@dataclass(frozen=True)
class Rule:
    """One of our weights and the tensors that hold it.

    ours: name in `lab.axes.weights`, such as 'blocks.attention.qkv'.
    theirs: name of a tensor, or a tuple of them, stacked along our leading indexed dim ('3 | ...'); () where they have none, and ours
      is `fill` throughout. '{i}' is a layer of a stacked weight, one tensor each; without it one tensor holds all layers.
    pattern: einops pattern from one of their tensors to ours without the dim of layers, and without the indexed dim for a tuple;
      '' where both lie alike. Axes have the names of the model's Dims, or of `sizes`.
    factor: ours = factor * theirs.
    order: ours[j] = theirs[order[j]] along our leading indexed dim.
    copies: axis whose size tells how many equal tensors '{i}' stands for, of a weight that has no layers.
    """

    ours: str
    theirs: str | tuple[str, ...] = ()
    pattern: str = ""
    factor: float = 1.0
    sizes: dict[str, int] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    copies: str = ""
    fill: float = 0.0


@dataclass(frozen=True)
class Constant:
    """A tensor of theirs that is no weight: it must hold `value` (within 1e-5 of its largest entry) and is written as such.

    With `free` it changes no output, and may hold anything.
    """

    theirs: str
    value: np.ndarray
    free: bool = False


@dataclass(frozen=True)
class Rest:
    """Every weight that no rule names lies as it is, under `prefix` and its own name."""

    prefix: str = ""


Rules = Iterable[Rule | Constant | Rest]


class Part(NamedTuple):
    """One tensor of a rule: its name and shape, and where in our array it belongs."""

    name: str
    shape: tuple[int, ...]
    at: tuple[int, ...]


def parts(rule: Rule, w: Weight, dims: Dims) -> Iterator[Part]:
    """The tensors of a rule in order of our array; copies come one after the other with the same place."""
    arrow = w.arrow
    many = not isinstance(rule.theirs, str)
    names = [rule.theirs[k] for k in rule.order or range(len(rule.theirs))] if many else [rule.theirs]
    layered = bool(arrow.stack) and all("{i}" in n for n in names)
    if arrow.stack and not layered and (many or rule.order):
        raise ValueError(f"rule of {rule.ours!r}: without {{i}}, a tensor holds all layers and its indexed dim as they are")
    own = arrow.names[layered + many :]
    sizes = {**dims, **rule.sizes}
    sides = [s.strip() for s in rule.pattern.split("->")] if rule.pattern else [" ".join(own)] * 2
    shape = _shape(sides[0], sizes)
    if _shape(sides[1], sizes) != _shape(" ".join(own), sizes):
        raise ValueError(f"rule of {rule.ours!r}: {sides[1]!r} is not {' '.join(own)!r}")
    # layers of a residual stream may be of several kinds, each with a stack of its own
    for i in range(w.get_value().shape[0] if layered else dims[rule.copies] if rule.copies else 1):
        for k, name in enumerate(names):
            yield Part(name.format(i=i), shape, (i,) * layered + (k,) * many)


def _shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of one side of a pattern: (6,) of '(two three)'."""
    groups = re.findall(r"\([^)]*\)|\S+", side)
    return tuple(math.prod(int(a) if a.isdigit() else sizes[a] for a in g.strip("()").split()) for g in groups)


def _turn(x: np.ndarray, pattern: str, rule: Rule, dims: Dims) -> np.ndarray:
    if not pattern:
        return x
    known = {**dims, **rule.sizes}
    return rearrange(x, pattern, **{a: known[a] for a in set(re.findall(r"[a-z_]\w*", pattern))})


def _ours(x: np.ndarray, rule: Rule, dims: Dims) -> np.ndarray:
    """One of their tensors as we keep it, float32."""
    y = _turn(np.asarray(x, np.float32), rule.pattern, rule, dims)
    y = y[list(rule.order)] if rule.order and isinstance(rule.theirs, str) else y
    return y if rule.factor == 1.0 else np.float32(rule.factor) * y


def _theirs(y: np.ndarray, rule: Rule, dims: Dims) -> np.ndarray:
    """The inverse of `_ours`."""
    x = y if rule.factor == 1.0 else y / np.float32(rule.factor)
    x = x[np.argsort(rule.order)] if rule.order and isinstance(rule.theirs, str) else x
    return np.ascontiguousarray(_turn(x, " -> ".join(reversed(rule.pattern.split("->"))) if rule.pattern else "", rule, dims))


def implied(arrow: Arrow) -> float:
    """What an untrained scale is in a published model: its arrow's size, with no rule of a parametrization."""
    return arrow.init * (arrow.fan * arrow.r_in) ** -0.5


def _covered(rules: Rules, described: Mapping[str, Weight]) -> tuple[list[Rule], list[Constant]]:
    """Rules of our weights, untrained scales among them, and constants; UserError for a weight that has no place."""
    rules = list(rules)
    constants = [r for r in rules if isinstance(r, Constant)]
    mine = {r.ours: r for r in rules if isinstance(r, Rule)}
    if odd := [n for n in mine if n not in described]:
        raise ValueError(f"rules of weights that the model has not: {', '.join(odd)}")
    rest = next((r for r in rules if isinstance(r, Rest)), None)
    for name, w in described.items():
        if rest is not None and name not in mine:
            mine[name] = Rule(name, rest.prefix + name)
        elif w.arrow.fixed and name not in mine:
            mine[name] = Rule(name, fill=implied(w.arrow))
    if homeless := [n for n in described if n not in mine]:
        raise UserError(f"the format has no place for these weights of the model: {', '.join(homeless)}")
    return list(mine.values()), constants


def apply(
    rules: Rules, tensors: Mapping[str, np.ndarray], model: Any, dims: Dims, allow_extra: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our weights {name: float32 array} from their tensors, and the names of tensors that no rule reads.

    Raises:
      UserError: a tensor is missing, of another shape, no copy of what it must be a copy of, or left over (unless `allow_extra`);
        one line names every one.
    """
    described = weights(model)
    mine, constants = _covered(rules, described)
    out, wrong, known = {}, [], set()

    def fetch(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        known.add(name)
        if name not in tensors:
            wrong.append(f"missing {name} {list(shape)}")
        elif (x := tensors[name]).shape != shape:
            wrong.append(f"{name} has shape {list(x.shape)}, expected {list(shape)}")
        else:
            return x
        return None

    for rule in mine:
        w, first = described[rule.ours], {}
        out[rule.ours] = np.full(w.get_value().shape, rule.fill, np.float32)
        for part in parts(rule, w, dims) if rule.theirs else ():
            if (x := fetch(part.name, part.shape)) is None:
                continue
            x = _ours(x, rule, dims)
            if part.at in first and not np.array_equal(x, out[rule.ours][part.at]):
                wrong.append(f"{part.name} differs from {first[part.at]}, of which it must be a copy")
            elif part.at not in first:
                first[part.at] = part.name
                out[rule.ours][part.at] = x
    for c in constants:
        x = fetch(c.theirs, c.value.shape)
        if x is not None and not c.free and np.max(np.abs(np.asarray(x, np.float32) - c.value)) > 1e-5 * np.max(np.abs(c.value)):
            wrong.append(f"{c.theirs} is not what the model computes in its place")
    extra = sorted(set(tensors) - known)
    if extra and not allow_extra:
        wrong.append(f"extra {', '.join(extra)} (--allow-extra leaves them)")
    if wrong:
        raise UserError(f"the weights do not fit the model: {'; '.join(wrong)}")
    return out, extra


def invert(rules: Rules, arrays: Mapping[str, np.ndarray], model: Any, dims: Dims) -> dict[str, np.ndarray]:
    """Their tensors {name: float32 array} from our weights {name: array}: the inverse of `apply`.

    Raises:
      UserError: one of our weights has no place in the format and is not what the format takes for granted.
    """
    described, out = weights(model), {}
    mine, constants = _covered(rules, described)
    for rule in mine:
        x = np.asarray(arrays[rule.ours], np.float32)
        if not rule.theirs:
            if not np.allclose(x, rule.fill, rtol=1e-6, atol=0):
                raise UserError(f"weight {rule.ours!r} has no place in the format, which takes it to be {rule.fill:.6g}, and it is not")
            continue
        for part in parts(rule, described[rule.ours], dims):
            out[part.name] = _theirs(x[part.at], rule, dims)
    return out | {c.theirs: np.asarray(c.value, np.float32) for c in constants}


def expect(section: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """UserError for a key of `section` whose value is none that a map knows; an absent key has the expected value."""
    for key, value in values.items():
        if section.get(key, value) != value:
            raise UserError(f"{where} key {key}={section[key]!r} has no counterpart; expected {value!r}")
