"""Two interpreters of the jaxpr: `probe` reads what flows out of every weight, `audit` checks that arrows tell the truth.

No model carries a hook for them: a weight is followed from the function's input, through reshapes, transposes and slices, into
the operation that uses it, also under jit, vmap, grad and scan.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from lab.axes import Arrow, weights
from lab.cost import inner

SAME = {"convert_element_type", "copy", "stop_gradient", "reduce_precision", "neg", "optimization_barrier"}
MOVES = SAME | {"reshape", "transpose", "squeeze", "broadcast_in_dim", "expand_dims", "slice", "dynamic_slice", "rev"}
USES = {"dot_general", "conv_general_dilated", "gather", "ragged_dot", "ragged_dot_general", "mul", "add", "sub", "div"}


def rms(x: jax.Array) -> jax.Array:
    """Root mean square in float32."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def calls(eqn: jex.JaxprEqn) -> tuple[jex.Jaxpr, list] | None:
    """The body of a plain call (jit, remat, custom rule); None for anything else."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    return next(inner(eqn), None)


Measure = Callable[[jax.Array, jax.Array], Any]


def sizes(y: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """rms of W x and of (W - W_start) x."""
    return rms(y), rms(own)


def probe(f: Callable, tree: Any, start: Any, *args: Any, measure: Measure = sizes, pairs: bool = False) -> tuple[Any, dict[str, Any]]:
    """f(tree, *args), and for each weight W what `measure` says of W x and of (W - W_start) x where W is used.

    Args:
      f: a function whose first argument is the tree of weights.
      tree, start: the weights now, and at the start of training.
      measure: (W x, (W - W_start) x) -> small arrays; by default the rms of both.
      pairs: whether to measure products of two activations too, such as attention's logits, under the names of the weights that
        they last came out of, 'qkv x qkv\''; nothing of them is a weight's own, so `measure` gets zeros there.

    Returns:
      f's output, and {name: measure}; a scanned weight gives one row a layer; a weight used more than once gives further
      entries name', name''. The second figure is the weight's own change: the total change of an activation hides
      under-learning behind the change of the layers before it.
    """
    names = [None if w.arrow.state else n for n, w in weights(tree).items()]  # a state is what a model sees, as an activation is
    closed, shape = jax.make_jaxpr(f, return_shape=True)(tree, *args)
    flat, moved = jax.tree.leaves((tree, *args)), jax.tree.leaves(jax.tree.map(jnp.subtract, tree, start))
    n = len(names)
    tracked = [(names[i], moved[i]) if i < n and names[i] is not None else None for i in range(len(flat))]
    out, stats, _ = _Walk(measure, pairs).run(closed.jaxpr, closed.consts, flat, tracked, [None] * len(flat))
    return jax.tree.unflatten(jax.tree.structure(shape), out), stats


def _note(stats: dict, name: str, value: Any) -> str:
    while name in stats:
        name += "'"
    stats[name] = value
    return name


def _pair(a: str, b: str) -> str:
    """'blocks.attention.qkv' and "blocks.attention.qkv'" -> "blocks.attention.qkv x qkv'"."""
    return f"{a} x {b.removeprefix(a.rpartition('.')[0] + '.')}"


class _Walk:
    """Evaluates a jaxpr; `tracked` holds (name, change) for arguments that are weights, `origin` of others the entry they came out of.

    A change follows its weight through MOVES, an origin follows an activation until the next weight is contracted with it.
    """

    def __init__(self, measure: Measure, pairs: bool):
        self.measure, self.pairs = measure, pairs

    def run(self, jaxpr: jex.Jaxpr, consts: list, args: list, tracked: list, origin: list) -> tuple[list, dict, list]:
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
        track = {v: t for v, t in zip(jaxpr.invars, tracked, strict=True) if t is not None}
        came, stats = dict(zip(jaxpr.invars, origin, strict=True)), {}
        for e in jaxpr.eqns:
            xs = [v.val if isinstance(v, jex.Literal) else env[v] for v in e.invars]
            ts, cs = ([None if isinstance(v, jex.Literal) else d.get(v) for v in e.invars] for d in (track, came))
            call, found = calls(e), {}
            if call is not None:
                ys, found, out = self.run(*call, xs, ts, cs)
            elif e.primitive.name == "scan":
                ys, found, out = self._scan(e, xs, ts, cs)
            else:
                ys = e.primitive.bind(*xs, **e.params)
                ys = ys if e.primitive.multiple_results else [ys]
                followed, name = self._use(e, xs, ts, cs, ys, stats)
                if followed is not None:
                    track[e.outvars[0]] = followed
                out = [name or next(filter(None, cs), None)] * len(ys)
            for name, value in found.items():
                _note(stats, name, value)
            env.update(zip(e.outvars, ys, strict=True))
            came.update(zip(e.outvars, out, strict=True))
        get = [(v.val, None) if isinstance(v, jex.Literal) else (env[v], came.get(v)) for v in jaxpr.outvars]
        return [x for x, _ in get], stats, [c for _, c in get]

    def _scan(self, e: jex.JaxprEqn, xs: list, ts: list, cs: list) -> tuple[list, dict, list]:
        nc, nk = e.params["num_consts"], e.params["num_carry"]
        sub, out = e.params["jaxpr"], []
        scanned = {i: t[1] for i, t in enumerate(ts) if t is not None and i >= nc + nk}

        def body(carry, rows):
            x, changes = rows
            inside = [*ts[:nc], *[None] * nk, *[(ts[i][0], changes[i]) if i in changes else None for i in range(nc + nk, len(ts))]]
            ys, stats, came = self.run(sub.jaxpr, sub.consts, [*xs[:nc], *carry, *x], inside, cs)
            out[:] = came
            return ys[:nk], (ys[nk:], stats)

        keep = {k: e.params[k] for k in ("length", "reverse", "unroll")}
        carry, (ys, stats) = jax.lax.scan(body, xs[nc : nc + nk], (xs[nc + nk :], scanned), **keep)
        return [*carry, *ys], stats, out

    def _use(self, e: jex.JaxprEqn, xs: list, ts: list, cs: list, ys: list, stats: dict) -> tuple[tuple | None, str | None]:
        """A weight after a move, or the name under which what comes out of it is noted."""
        at, kind = [i for i, t in enumerate(ts) if t is not None], e.primitive.name
        if self.pairs and kind == "dot_general" and not at and None not in cs:
            return None, _note(stats, _pair(*cs), self.measure(ys[0], jnp.zeros_like(ys[0])))
        if len(at) != 1:
            return None, None
        i = at[0]
        name, change = ts[i]
        with_change = lambda: e.primitive.bind(*xs[:i], change, *xs[i + 1 :], **e.params)  # noqa: E731
        other = xs[1 - i] if len(xs) == 2 else None
        if kind in MOVES or (kind in ("mul", "div") and jnp.ndim(other) == 0):
            return (name, with_change()), None
        if kind in ("add", "sub"):
            name = _note(stats, name, self.measure(xs[i], change))
        elif kind in USES:
            name = _note(stats, name, self.measure(ys[0], with_change()))
            return None, name if kind not in ("mul", "div") else None
        elif kind == "tanh":  # a gate is no other function of its weight here, and a change of it is no function of the change
            _note(stats, name, self.measure(ys[0], ys[0] - e.primitive.bind(xs[0] - change, **e.params)))
        return None, None


# ---- audit: the same walk over shapes alone, with the name of every dim

Labels = tuple[tuple[tuple[int, str], ...], ...]  # for each dim of an array, the weight's dims it is made of: (place, axis)


def _part(arrow: Arrow, part: str) -> set[tuple[int, str]]:
    """The dims that an arrow indexes ('index') or contracts ('ins'); places tell the two of 'embed -> embed' apart."""
    start = len(arrow.stack) + (len(arrow.index) if part == "ins" else 0)
    return set(enumerate(getattr(arrow, part), start))


def audit(f: Callable, tree: Any, *args: Any) -> dict[str, list[str]]:
    """{weight name: complaints} for every weight whose arrow does not say how f(tree, *args) uses it; empty when all are true.

    Checked: the contracted dims of each dot are the arrow's contracted axes and no others, looked-up and batched dims are
    indexed axes, a weight with contracted axes is never used elementwise, and every weight is used.
    """
    flat = list(weights(tree).items())
    closed = jax.make_jaxpr(f)(tree, *args)
    n = len(jax.tree.leaves((tree, *args)))
    labels = [tuple(((i, a),) for i, a in enumerate(w.arrow.names)) for _, w in flat]
    given = [None if w.arrow.state else (name, w.arrow, x) for (name, w), x in zip(flat, labels, strict=True)] + [None] * (n - len(flat))
    seen: dict[str, list[str]] = {name: [] for name, w in flat if not w.arrow.state}
    used: set[str] = set()
    _audit(closed.jaxpr, given, seen, used)
    for name in seen:
        if name not in used:
            seen[name].append("is never used by the model")
    return {name: sorted(set(said)) for name, said in seen.items() if said}


def _audit(jaxpr: jex.Jaxpr, given: list, seen: dict, used: set) -> None:
    track = {v: t for v, t in zip(jaxpr.invars, given, strict=True) if t is not None}
    for e in jaxpr.eqns:
        ts = [None if isinstance(v, jex.Literal) else track.get(v) for v in e.invars]
        at = [i for i, t in enumerate(ts) if t is not None]
        if not at:
            continue
        call = calls(e)
        if call is not None:
            _audit(call[0], ts, seen, used)
        elif e.primitive.name == "scan":
            fixed = e.params["num_consts"] + e.params["num_carry"]
            rows = [(t[0], t[1], t[2][1:]) if t is not None and i >= fixed else t for i, t in enumerate(ts)]
            _audit(e.params["jaxpr"].jaxpr, rows, seen, used)
        elif len(at) == 1:
            name, arrow, labels = ts[at[0]]
            followed = _audit_use(e, at[0], arrow, labels, seen[name])
            if followed is None:
                used.add(name)
            else:
                track[e.outvars[0]] = (name, arrow, followed)
        else:
            for i in at:
                used.add(ts[i][0])
                seen[ts[i][0]].append(f"meets another weight in {e.primitive.name} before any activation")


def _audit_use(e: jex.JaxprEqn, i: int, arrow: Arrow, labels: Labels, said: list[str]) -> Labels | None:
    """The labels after a move; None where the weight is used, with complaints added to `said`."""
    kind, shape = e.primitive.name, e.invars[i].aval.shape
    scalar = len(e.invars) == 2 and math.prod(e.invars[1 - i].aval.shape) == 1 and kind in ("mul", "div") and len(shape)
    if kind in SAME or scalar:
        return labels
    if kind in MOVES:
        return _move(e, arrow, labels, shape, said)
    if kind == "dot_general":
        contracted, batched = e.params["dimension_numbers"]
        ins = {a for d in contracted[i] for a in labels[d]}
        both = {a for d in batched[i] for a in labels[d]}
        _compare(ins, _part(arrow, "ins"), "contracts", said)
        if stray := both - _part(arrow, "index"):
            said.append(f"batches over {_list(stray)}, which the arrow does not index")
    elif kind == "gather":
        looked = {a for d in e.params["dimension_numbers"].start_index_map for a in labels[d]}
        if stray := looked - _part(arrow, "index"):
            said.append(f"looks up {_list(stray)}, which the arrow does not index")
        _compare(set(), _part(arrow, "ins"), "contracts", said)
    elif kind == "conv_general_dilated":
        spec = e.params["dimension_numbers"].rhs_spec
        ins = {a for d in spec[1:] for a in labels[d]}
        _compare(ins, _part(arrow, "ins"), "contracts", said)
    elif arrow.ins and not arrow.fixed:
        said.append(f"contracts nothing (used by {kind}), but the arrow contracts {_list(_part(arrow, 'ins'))}")
    return None


def _move(e: jex.JaxprEqn, arrow: Arrow, labels: Labels, shape: tuple, said: list[str]) -> Labels:
    kind, p = e.primitive.name, e.params
    if kind == "transpose":
        return tuple(labels[d] for d in p["permutation"])
    if kind == "squeeze":
        lost = {a for d in p["dimensions"] for a in labels[d]}
        lost = {(i, a) for i, a in lost if i >= len(arrow.stack + arrow.index) and a != "1"}
        if lost:
            said.append(f"takes one slice of {_list(lost)}, which the arrow does not index")
        return tuple(x for d, x in enumerate(labels) if d not in p["dimensions"])
    if kind == "broadcast_in_dim":
        new = [()] * len(p["shape"])
        for d, to in enumerate(p["broadcast_dimensions"]):
            new[to] = labels[d]
        return tuple(new)
    if kind == "expand_dims":
        new = list(labels)
        for d in sorted(p["dimensions"]):
            new.insert(d, ())
        return tuple(new)
    if kind == "reshape":
        return _regroup(shape, labels, p["new_sizes"], said)
    return labels


def _regroup(old: tuple, labels: Labels, new: tuple, said: list[str]) -> Labels:
    """Labels after a reshape that merges or splits neighbouring dims."""
    out, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        group, made, left, right = list(labels[i]) if i < len(old) else [], 1, old[i] if i < len(old) else 1, new[j] if j < len(new) else 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(old):
                left, group, i = left * old[i], group + list(labels[i]), i + 1
            elif j < len(new):
                right, made, j = right * new[j], made + 1, j + 1
            else:
                said.append(f"is reshaped from {old} to {new} in a way its axes cannot be followed")
                return ((),) * len(new)
        out += [tuple(group)] * made
    return tuple(out[: len(new)])


def _compare(found: set, said_by_arrow: set, verb: str, said: list[str]) -> None:
    if found == said_by_arrow:
        return
    if _list(found) == _list(said_by_arrow):
        said.append(f"{verb} {_list(found)} where the arrow produces it (it is used transposed)")
    else:
        said.append(f"{verb} {_list(found)}, but the arrow {verb} {_list(said_by_arrow)}")


def _list(axes: Any) -> str:
    return ", ".join(sorted(a for _, a in axes)) or "nothing"
