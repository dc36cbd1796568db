"""What benchmarks say can be checked where it needs no PyTorch and no quiet machine: what they run, what they write, what they refuse."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli
from lab.objectives.next_token import Objective

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import _turns
import decode
import step

SMALL = Namespace(tokens=12, width=32, depth=1, vocabulary=16, batch=3)


def test_the_timed_program_decodes_what_the_sampler_does():
    structure, weights = decode.program(SMALL, SMALL.tokens)
    model, label = jax.tree.unflatten(structure, weights), jnp.array([0, 2, -1])
    want = np.asarray(jax.jit(lambda m: Objective(0.1).sample(m, jax.random.key(0), {"label": label}, (12,), top_k=1))(model))
    assert len(np.unique(want)) > 3
    begin = jax.jit(lambda m, label: m({"label": label}, m.init_cache(3))[1])
    cache = begin(model, label)
    program, kept = decode.cached(structure, 4), {k: cache[k] for k in ("keys", "values")}
    found = [want[:, :1]]
    for start in (1, 5):
        kept, tokens = program(weights, kept, jnp.int32(start), jnp.asarray(found[-1][:, -1]))
        found.append(np.asarray(tokens))
    np.testing.assert_array_equal(np.concatenate(found, 1), want[:, :9])
    alone, weights_alone = decode.uncached(decode.program(SMALL, 9)[0]), decode.program(SMALL, 9)[1]
    np.testing.assert_array_equal(alone(weights_alone, want[:, :9], label), want[:, 8])
    # the control: with the keys and values of another label the tokens are others
    other = begin(model, jnp.array([1, 1, 1]))
    _, tokens = program(weights, {k: other[k] for k in kept}, jnp.int32(1), jnp.asarray(want[:, 0]))
    assert (np.asarray(tokens) != want[:, 1:5]).any()


def test_decode_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    sizes = "--positions 4 16 --tokens 16 --steps 4 --batch 2 --width 32 --depth 1 --vocabulary 16 --rounds 3 --seconds 0.01"
    assert cli.main(["bench", "decode", *sizes.split(), "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())["rows"]
    assert [r["position"] for r in rows] == [4, 16]
    assert all(len(v) == 3 and min(v) > 0 for r in rows for v in r["rounds_ms"].values())
    ratio = np.median(np.divide(*(r["rounds_ms"]["cached"] for r in rows[::-1])))
    assert rows[1]["cached_ratio"][0] == pytest.approx(ratio, rel=0.02)
    assert f"{rows[1]['cached_ratio'][0]:.2f}x the time" in capsys.readouterr().out


def test_ratios_are_within_a_round_so_a_machine_that_slows_down_changes_none():
    args = Namespace(positions=[16, 64, 256], steps=8, seconds=1.0, rounds=9)
    cost = {("cached", p): 2.0 + 0.5 * (p == 256) for p in args.positions} | {("uncached", p): p / 4 for p in args.positions}
    asked = []

    def planted(key):
        def run(calls):
            asked.append(calls)
            return cost[key] * (1 + 0.3 * ((len(asked) - 1) // len(cost)))  # all six slow down with every round

        return run

    rows = decode.measure({k: planted(k) for k in cost}, args)
    assert [r["cached_ratio"] for r in rows] == [pytest.approx([x] * 3) for x in (1, 1, 1.25)]
    assert [r["uncached_ratio"] for r in rows] == [pytest.approx([x] * 3) for x in (1, 4, 16)]
    assert rows[2]["gain"] == pytest.approx([25.6] * 3)
    assert rows[0]["cached_ms"] == pytest.approx(2 * 2.5)  # the fifth of nine rounds, each 0.3 slower than the one before
    assert asked[len(cost) : 2 * len(cost)] == [16, 62, 250, 50, 62, 62]  # turns of a second, the last contestant first


@pytest.mark.parametrize(
    "command, said",
    [
        ("step --family mmdt", "--family 'mmdt' is unknown (nearest: 'mmdit'); expected one of: mmdit"),
        ("decode --positions 64 16", "--positions=[64, 16] must rise from --steps=8"),
        ("decode --positions 16 512", "to --tokens=256 at most"),
        ("deocde", "benchmark 'deocde' is unknown (nearest: 'decode')"),
    ],
)
def test_what_cannot_be_measured_is_named(command, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    assert cli.main(["bench", *command.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_noise_has_what_its_sizes_tell_of():
    batch = _turns.Noise(image=16, channels=3, classes=4, vocabulary=9, side=2, tokens=4, words=7, length=5).batch(50)
    assert {k: v.shape for k, v in batch.items()} == {"image": (50, 16, 16, 3), "label": (50,), "tokens": (50, 2, 2), "text": (50, 5)}
    assert (batch["text"][:, :3] > 0).all()
    assert not batch["text"][:, 3:].any()
    assert [batch[k].max() for k in ("label", "tokens", "text")] == [3, 8, 6]
    assert step.families() == ["decoder", "dit", "mmdit", "pixart"]


@pytest.mark.parametrize("family, file", [("mmdit", "step-mmdit"), ("dit", "step-dit"), ("all", "step-families")])
def test_a_familys_steps_are_written_under_its_name(family, file, tmp_path, monkeypatch):
    """One family's result overwrites no other's; times are planted, so that PyTorch is not needed."""
    row = {"tokens": 64, "parameters": 1, "lab_ms": 1.0, "torch_ms": 2.0, "population_ms_a_trial": 1.0}
    row |= {"ratio": (0.5, 0.5, 0.5), "ratio_a_trial": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(step, "chosen", lambda args: [("mmdit", 64, 64)])
    monkeypatch.setattr(step, "duel", lambda family, width, tokens, args: row | {"family": family, "width": width})
    monkeypatch.setattr(sys, "argv", ["step.py", "--family", family, "--rounds", "1", "--out", str(tmp_path)])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    step.main()
    assert [p.name.rsplit("-", 1)[0] for p in tmp_path.iterdir()] == [file]
