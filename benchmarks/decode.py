"""Does a token cost the same wherever it is decoded? `lab bench decode`: milliseconds a token of the cached decoder, by position.

One compiled program decodes --steps tokens greedily, the last of them at the position, from a cache that has room for all tokens; keys and
values are donated, so they are written in place. What is before the position is noise: what a token costs does not depend on what is said.
Beside it the cost of a token without a cache, which is that of all tokens up to it, by the model of that many. All take turns in one
process; ratios are formed within a round. The target for the last position is at most 1.2 times the first.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import _common
import _turns

from lab.errors import UserError

TARGET = 1.2


def program(args: argparse.Namespace, tokens: int) -> tuple[Any, list]:
    """The structure and the flat weights of a decoder of `tokens` tokens; weights do not depend on `tokens`."""
    import jax
    import numpy as np

    from lab import axes, parametrization, population

    changes = {"model.width": args.width, "model.depth": args.depth, "model.rope": "line"}
    config = _turns.config("decoder_transfer", **changes)
    described = population.build(config, dict(vocabulary=args.vocabulary, tokens=tokens, classes=4)).model
    drawn = axes.draw(jax.random.key(0), described, axes.scales(described, parametrization.mup))
    rng = np.random.default_rng(0)  # a readout that starts at zero would say the same token always
    drawn = axes.map_weights(lambda a, x: x if a.fixed else x + 0.1 * rng.normal(size=x.shape).astype(np.float32), drawn)
    leaves, structure = jax.tree.flatten(drawn)  # flat: containers would be flattened in Python at every call
    return structure, leaves


def cached(structure: Any, steps: int) -> Callable:
    """decode(weights, kept, position, token [B]) -> kept, tokens [B, steps]: greedy, from keys and values `kept`, which are donated."""
    import jax
    import jax.numpy as jnp

    def decode(weights, kept, position, token):
        model = jax.tree.unflatten(structure, weights)

        def step(carry, _):
            cache, token = carry
            logits, cache = model({"tokens": token[:, None]}, cache)
            token = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
            return (cache, token), token

        (cache, _), tokens = jax.lax.scan(step, ({**kept, "position": position}, token), length=steps)
        return {k: cache[k] for k in kept}, tokens.T

    return jax.jit(decode, donate_argnums=(1,))


def uncached(structure: Any) -> Callable:
    """decode(weights, tokens [B, T], label [B]) -> the likeliest last token [B], from all before it."""
    import jax
    import jax.numpy as jnp

    def decode(weights, tokens, label):
        logits = jax.tree.unflatten(structure, weights)({"tokens": tokens, "label": label})
        return jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)

    return jax.jit(decode)


def contestants(args: argparse.Namespace) -> dict[tuple[str, int], Callable[[int], float]]:
    """(kind, position) -> run(calls), which gives the milliseconds a token; compiled and warm."""
    import jax
    import jax.numpy as jnp

    structure, weights = program(args, args.tokens)
    cache = jax.tree.unflatten(structure, weights).init_cache(args.batch)
    at = {"kept": {k: jax.random.normal(jax.random.key(1), cache[k].shape) for k in ("keys", "values")}}
    label, decode = jnp.zeros(args.batch, jnp.int32), cached(structure, args.steps)

    def with_cache(start):
        def run(calls):
            began = time.perf_counter()
            for _ in range(calls):
                at["kept"], tokens = decode(weights, at["kept"], start, label)
            jax.block_until_ready((at["kept"], tokens))
            return 1e3 * (time.perf_counter() - began) / calls / args.steps

        return run

    def without(position):
        alone, tokens = uncached(program(args, position)[0]), jnp.zeros((args.batch, position), jnp.int32)

        def run(calls):
            began = time.perf_counter()
            for _ in range(calls):
                out = alone(weights, tokens, label)
            jax.block_until_ready(out)
            return 1e3 * (time.perf_counter() - began) / calls

        return run

    made = {("cached", p): with_cache(jnp.int32(p - args.steps)) for p in args.positions}
    made |= {("uncached", p): without(p) for p in args.positions}
    for run in made.values():
        run(2)
    return made


def measure(runs: dict[tuple[str, int], Callable[[int], float]], args: argparse.Namespace) -> list[dict]:
    """A row a position: milliseconds a token with a cache and without, each round's, and its ratio to the first position."""
    calls = {}
    for (kind, p), run in runs.items():
        one = run(2) * (args.steps if kind == "cached" else 1)
        calls[kind, p] = max(2, round(1e3 * args.seconds / one))
    ms: dict[tuple[str, int], list[float]] = {k: [] for k in runs}
    for i in range(args.rounds):
        for key in list(runs)[:: 1 if i % 2 else -1]:  # nobody is always first after a pause
            ms[key].append(runs[key](calls[key]))
    rows, first = [], args.positions[0]
    for p in args.positions:
        row = {"position": p}
        for kind in ("cached", "uncached"):
            row[f"{kind}_ms"] = median(ms[kind, p])
            row[f"{kind}_ratio"] = _common.spread([x / y for x, y in zip(ms[kind, p], ms[kind, first], strict=True)])
        row["gain"] = _common.spread([x / y for x, y in zip(ms["uncached", p], ms["cached", p], strict=True)])
        rows.append(row | {"rounds_ms": {kind: [round(x, 5) for x in ms[kind, p]] for kind in ("cached", "uncached")}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench decode", description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--tokens", type=int, default=256, help="tokens that the model has room for (default: 256)")
    parser.add_argument("--steps", type=int, default=8, help="tokens decoded in one call (default: 8)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn (default: 0.5)")
    parser.add_argument("--out", help="folder for the JSON (default: benchmarks/results)")
    args = parser.parse_args()
    if args.positions != sorted(set(args.positions)) or not 0 < args.steps <= args.positions[0] or args.positions[-1] > args.tokens:
        raise UserError(f"--positions={args.positions} must rise from --steps={args.steps} or more to --tokens={args.tokens} at most")
    _turns.warn_if_busy()
    _common.say(f"compiling, then {args.rounds} rounds of {2 * len(args.positions)} turns of {args.seconds:g} s")
    rows = measure(contestants(args), args)
    shown = [("position", "ms/token", "to the first [quartiles]", "uncached ms/token", "to the first", "uncached/cached [quartiles]")]
    for r in rows:
        ratios = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in (r["cached_ratio"], r["gain"])]
        cells = f"{r['cached_ms']:.3f}", ratios[0], f"{r['uncached_ms']:.3f}", f"{r['uncached_ratio'][0]:.2f}", ratios[1]
        shown.append((r["position"], *cells))
    print(_turns.table(shown))
    last = rows[-1]["cached_ratio"][0]
    verdict = "met" if last <= TARGET else "missed"
    where = f"a token at {args.positions[-1]} takes {last:.2f}x the time of one at {args.positions[0]}"
    print(f"\n{where}; target at most {TARGET}x: {verdict}; {_turns.cores()} cores, {_turns.processor()}")
    settings = {k: v for k, v in vars(args).items() if k != "out"} | {"target": TARGET}
    print(_turns.write("decode", rows, settings, args.out))


if __name__ == "__main__":
    main()
