"""One line a tensor: what its arrow says and what the table makes of it; and whether the arrow tells the truth."""

from typing import Any

import jax
import jax.numpy as jnp

from lab import branches, parametrization, probe
from lab.axes import scales, weights
from lab.population import build, described


def rows(config: dict, source_dims: dict[str, int]) -> list[dict[str, Any]]:
    """For every weight: name, arrow, shape, role, fan-in, init std, step, expected gradient, decay, epsilon, parameters."""
    program, p = build(config, source_dims), config["parametrization"]
    table, out = parametrization.table(**p), []
    for (name, w), s in zip(weights(program.model).items(), scales(program.model, table), strict=True):
        a, shape = w.arrow, w.get_value().shape
        row = {"weight": name, "arrow": str(a), "shape": "x".join(map(str, shape)) or "1"}
        row |= {"role": "fixed" if a.fixed else "state" if a.state else a.role}
        row |= {"fan-in": round(a.fan_in), "init std": a.std * s.init, "step": s.step, "gradient": s.grad, "decay": s.decay, "eps": s.eps}
        out.append(row | {"parameters": 0 if not a.trained else int(jnp.prod(jnp.array(shape or (1,))))})
    return out


def truth(config: dict, source_dims: dict[str, int], example: dict[str, Any]) -> dict[str, list[str]]:
    """Complaints per weight where the traced loss does not use it as its arrow says; `example` is one batch [B, ...].

    Told are wrong axes (`probe.audit`), and wrong ends of residual branches and scales of products (`branches.audit`).
    """
    program = build(config, source_dims)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, given = lambda p, k, b: jnp.mean(program.loss(p, k, b)), (described(program), key, shapes)
    found = probe.audit(loss, *given)
    for name, said in branches.audit(loss, *given).items():
        found[name] = [*found.get(name, []), *said]
    return found


def text(small: list[dict[str, Any]], large: list[dict[str, Any]] | None = None, factor: str = "") -> str:
    """The audit as a table; `large` adds the columns of the model that is `factor` as wide."""
    moving = ("shape", "init std", "step", "gradient", "decay", "eps", "parameters")
    head = list(small[0]) + [f"{k} {factor}" for k in moving] * (large is not None)
    lines = [head]
    for i, row in enumerate(small):
        cells = list(row.values()) + ([large[i][k] for k in moving] if large is not None else [])
        lines.append([f"{c:.4g}" if isinstance(c, float) else f"{c:,}" if isinstance(c, int) else c for c in cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = ("weight", "arrow", "role")
    pad = [str.ljust if h in left else str.rjust for h in head]
    body = "\n".join("  ".join(f(c, w) for f, c, w in zip(pad, line, widths, strict=True)).rstrip() for line in lines)
    total = f"{sum(r['parameters'] for r in small):,} parameters"
    return f"{body}\n\n{total}" + (f"; {sum(r['parameters'] for r in large):,} at {factor}" if large is not None else "")
