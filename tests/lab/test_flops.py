"""The table of docs/flops.md is what the traced programs count."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from test_house import ROOT, build, corners, described, load

from lab import cost

ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$", re.MULTILINE)
POSITIONS = {
    "dit": 16,
    "pixart": 16,
    "decoder": 16,
    "masked": 17,
    "uvit": 18,
    "mmdit": 19,
    "nextdit": 16,
    "encoder_decoder": 64,
    "unidiffuser": 21,
}
TABLE = {(r[0], int(r[1])): [float(v.replace(",", "")) for v in r[2:]] for r in ROW.findall((ROOT / "docs" / "flops.md").read_text())}


def counted(name, width):
    """N, those of vector role, forward and training FLOPs of one example, and 6 N T over the last."""
    config = next(c for c in corners(load(str(ROOT / "experiments" / f"{name}_transfer.py"))) if c["model"]["width"] == width)
    program, shapes = build(config)
    one = {k: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype) for k, v in shapes.items()}
    args = described(program), jax.eval_shape(lambda: jax.random.key(0)), one

    def loss(p, k, b):
        return jnp.mean(program.loss(p, k, b))

    by = cost.parameters(program.model)
    n, training = sum(by.values()), cost.flops(jax.grad(loss), *args)
    return [n, by["vector"], cost.flops(loss, *args), training, 6 * n * POSITIONS[name] / training]


def held(name, width):
    *wanted, ratio = TABLE[name, width]
    *found, own = counted(name, width)
    assert found == wanted
    assert math.isclose(own, ratio, abs_tol=0.006)


@pytest.mark.parametrize("name", ["dit", "decoder"])
def test_the_table_is_what_programs_count(name):
    held(name, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name, width", sorted(TABLE))
def test_every_row_of_the_table_is_what_programs_count(name, width):
    held(name, width)


def test_the_table_has_all_families_at_two_widths():
    assert set(TABLE) == {(n, w) for n in POSITIONS for w in (32, 256)}
