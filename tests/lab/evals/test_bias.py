"""Planted bias is recovered exactly, floors are those of simulation, and the interval covers."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from lab.data import shapes
from lab.data._shapes_scene import COLOURS, PALETTE, SHAPES, SIZES
from lab.data.loader import open_source
from lab.errors import UserError
from lab.evals.bias import Judge, floor, mad, most, variance


@functools.cache
def source(split="eval", name="shapes", **options):
    """A source, as a study opens one."""
    return open_source({"name": name, **options}, split, "")


def paint(things):
    """Pictures [N, 16, 16, 3] of one object each: (shape, colour, size, cell)."""
    on = source().canvas
    scenes = [shapes.Scene((on.place(cell, s, c, size, 0, 0),), 0, 1, (0, 0)) for s, c, size, cell in things]
    return np.stack([PALETTE[on.indices(x)] for x in scenes])


def subject(images, labels=None):
    """What a judge is called with, pictures uint8."""
    labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels, np.int32)
    return SimpleNamespace(samples={"image": (images / 127.5 - 1).astype(np.float32), "label": labels})


def planted(**counts):
    """Things whose traits occur as often as said, the other traits spread evenly."""
    things = [[k % 6, k // 6 % 6, k // 36 % 2, k // 72 % 4] for k in range(288)]
    for trait, times in counts.items():
        at = ("shape", "colour", "size", "cell").index(trait)
        things = [[*t[:at], v, *t[at + 1 :]] for t in things if t[at] == 0 for v, n in enumerate(times) for _ in range(n)]
    return things


def test_traits_are_what_was_painted():
    things = np.array(planted())
    got = source().traits(paint(things))
    for k, (trait, values) in enumerate(got.items()):
        np.testing.assert_array_equal(values, things[:, k])
        assert len(source().trait_names[trait]) == things[:, k].max() + 1
    assert source().trait_names["colour"] == COLOURS
    assert (source().trait_names["shape"], source().trait_names["size"]) == (SHAPES, SIZES)
    empty = np.broadcast_to(PALETTE[0], (3, 16, 16, 3))
    assert all((v == -1).all() for v in source().traits(empty).values())
    many = source(skill="scene", grid=3)
    assert len(many.trait_names["cell"]) == 9
    for i in range(40):
        got = many.traits(many[i]["image"][None])
        shown = [(o.shape, o.colour, o.size, many.canvas.cell_of(o)) for o in many.scene(i).objects]
        assert tuple(int(v[0]) for v in got.values()) in shown


@pytest.mark.parametrize(
    "counts, trait, truth",
    [
        ({}, "colour", 0.0),
        ({"size": (4, 1)}, "size", 0.3),  # |0.8 - 1/2|
        ({"size": (0, 1)}, "size", 0.5),  # 2 (K - 1) / K^2
        ({"cell": (1, 0, 0, 0)}, "cell", 0.375),
        ({"colour": (1, 0, 0, 0, 0, 0)}, "colour", 10 / 36),
        ({"cell": (3, 1, 0, 0)}, "cell", (0.5 + 0 + 0.25 + 0.25) / 4),
    ],
)
def test_planted_bias_is_recovered_exactly(counts, trait, truth):
    things = planted(**counts)
    got = Judge(source(), source("train"), reference="uniform")(subject(paint(things)))
    assert got[f"bias_{trait}"] == pytest.approx(truth, abs=1e-12)
    for other in {"shape", "colour", "size", "cell"} - {trait}:
        assert got[f"bias_{other}"] == pytest.approx(0, abs=1e-12)
        assert got[f"bias_{other}_unread"] == 0
    k = len(source().trait_names[trait])
    assert got[f"bias_{trait}_max"] == pytest.approx(2 * (k - 1) / k**2)
    assert got[f"bias_{trait}_floor"] == pytest.approx(floor(np.full(k, 1 / k), len(things)))
    assert all(name.startswith("bias_") and isinstance(v, float) for name, v in got.items())


def test_bias_from_real_pictures_is_from_their_own_traits():
    real = source()
    judge = Judge(real, source("train"), n=500)
    rows = np.random.default_rng(0).permutation(len(real))[:500]
    q = np.bincount([real.scene(int(i)).objects[0].size for i in rows], minlength=2) / 500
    got = judge(subject(paint(planted(size=(4, 1)))))
    assert got["bias_size"] == pytest.approx(abs(0.8 - q[0]), abs=1e-12)
    same = judge(subject(np.stack([real[int(i)]["image"] for i in rows])))
    assert all(same[f"bias_{t}"] == 0 for t in real.trait_names)
    fresh = judge(subject(np.stack([source("train")[i]["image"] for i in range(400)])))
    for t in real.trait_names:
        assert 0 < fresh[f"bias_{t}"] < 3 * fresh[f"bias_{t}_floor"] < 0.5 * fresh[f"bias_{t}_max"]
    assert got["bias_size_low"] > 3 * got["bias_size_floor"]


def test_bias_that_goes_with_the_label_is_seen_by_label_alone():
    # label 0 asks for circles and gets red ones, label 1 squares and gets yellow ones; both colours are as frequent
    things = [[label, label, k % 2, k % 4] for label in (0, 1) for k in range(48)]
    labels = [t[0] for t in things]
    pooled, by = (Judge(source(), source("train"), "uniform", by_label=b)(subject(paint(things), labels)) for b in (False, True))
    assert pooled["bias_colour"] == pytest.approx((2 * (1 / 2 - 1 / 6) + 4 / 6) / 6)
    assert by["bias_colour"] == pytest.approx(10 / 36) == by["bias_colour_max"]
    assert by["bias_size"] == by["bias_cell"] == 0
    assert by["bias_size_floor"] == pytest.approx(floor(np.full(2, 0.5), 48))
    assert pooled["bias_size_floor"] == pytest.approx(floor(np.full(2, 0.5), 96))


def test_by_label_compares_with_held_out_pictures_of_that_label():
    real = source()
    judge = Judge(real, source("train"), by_label=True, n=2000)
    items = [source("train")[i] for i in range(1500)]
    got = judge(subject(np.stack([x["image"] for x in items]), [x["label"] for x in items]))
    # a label fixes shape and colour, so within it held-out pictures have one of each
    assert got["bias_shape"] == got["bias_colour"] == got["bias_shape_floor"] == 0
    assert got["bias_shape_max"] == pytest.approx(2 / 6)
    assert got["bias_size"] == pytest.approx(got["bias_size_floor"], rel=0.3)
    shuffled = judge(subject(np.stack([x["image"] for x in items]), np.roll([x["label"] for x in items], 1)))
    assert shuffled["bias_shape"] > 0.2


def test_what_is_not_read_is_left_out():
    images = np.concatenate([paint(planted(size=(4, 1))), np.broadcast_to(PALETTE[0], (180, 16, 16, 3))])
    got = Judge(source(), source("train"), "uniform")(subject(images))
    assert got["bias_size"] == pytest.approx(0.3)
    half = 1.959964 * np.sqrt(0.8 * 0.2 / (len(images) - 180))  # that of a share of 0.8
    assert (got["bias_size_low"], got["bias_size_high"]) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-6)
    assert got["bias_size_unread"] == pytest.approx(180 / len(images))
    nothing = Judge(source(), source("train"))(subject(images[-5:]))
    assert nothing == {f"bias_{t}_unread": 1.0 for t in source().trait_names}


def test_the_maximum_is_that_of_the_rarest_value():
    for k in (2, 5, 10):
        assert most(np.full(k, 1 / k)) == pytest.approx(2 * (k - 1) / k**2) == mad(np.eye(k)[0], np.full(k, 1 / k))
    q = np.array([0.5, 0.3, 0.2])
    assert most(q) == pytest.approx(max(mad(p, q) for p in np.eye(3)))


@pytest.mark.parametrize("q", [(0.5, 0.5), (0.7, 0.2, 0.1), (1.0, 0.0), (0.99, 0.005, 0.005)])
@pytest.mark.parametrize("n, m", [(1, 0), (40, 0), (300, 0), (40, 25), (300, 1000)])
def test_the_floor_is_what_draws_of_the_reference_show(q, n, m):
    rng, q = np.random.default_rng(0), np.array(q)
    p = rng.multinomial(n, q, 20000) / n
    seen = np.abs(p - (rng.multinomial(m, q, 20000) / m if m else q)).mean(1)
    assert abs(floor(q, n, m) - seen.mean()) <= 4 * seen.std() / np.sqrt(20000)
    if m and q.max() < 1:
        assert floor(q, n, m) > floor(q, n)


def test_the_floor_of_a_coin_is_de_moivres():
    # E|X / n - 1/2| for n = 2: half of the draws are 1/2 off; large n: (2 / pi)^1/2 of the standard deviation
    assert floor(np.array([0.5, 0.5]), 2) == pytest.approx(0.25, rel=1e-12)
    assert floor(np.array([0.5, 0.5]), 10**6) == pytest.approx(np.sqrt(2 / np.pi) * 0.5e-3, rel=1e-5)


@pytest.mark.parametrize("m", [0, 500])
def test_the_interval_covers_planted_bias(m):
    p, q = np.array([0.85, 0.05, 0.06, 0.04]), np.full(4, 0.25)
    rng, inside = np.random.default_rng(0), []
    for _ in range(1000):
        a, b = rng.multinomial(300, p) / 300, rng.multinomial(m, q) / m if m else q
        inside.append(abs(mad(a, b) - mad(p, q)) < 1.96 * np.sqrt(variance(a, b, 300, m)))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_sources_and_options_that_cannot_be_are_named():
    with pytest.raises(UserError, match=r"cannot judge source 'field', which has no method traits; sources that have: shapes$"):
        Judge(source(name="field"), source("train", "field"))
    for options, said in (
        ({"reference": "unifrom"}, r"bias.reference 'unifrom' is unknown \(nearest: 'uniform'\)"),
        ({"by_label": 1}, "bias.by_label=1 must be True or False"),
        ({"n": 0}, "bias.n=0 must be a whole number from 1"),
    ):
        with pytest.raises(UserError, match=said):
            Judge(source(), source("train"), **options)
