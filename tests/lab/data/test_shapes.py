"""Scenes are drawn as said, read back without error at every size, and judged at chance where there is nothing to see."""

import functools
import itertools
import json
import pickle

import mistakes
import numpy as np
import pytest
from worlds import take

from lab import find
from lab.data import _shapes_text as words
from lab.data import shapes
from lab.data._shapes_scene import COLOURS, PALETTE, SHAPES, SIZES, TONES, canvas
from lab.data.loader import Loader, decode, held_out, open_source
from lab.data.shapes import Source
from lab.errors import UserError

SKILLS = ("object", "count", "relation", "scene")


def source(split="train", **options):
    """A source, as a study opens one."""
    return open_source({"name": "shapes", **options}, split, "nowhere")


said = functools.partial(mistakes.said, source)


def trimmed(mask):
    """A mask without empty rows and columns, as something to compare."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].tolist()


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 12, 16, 24, 32, 48, 64])
def test_a_clean_picture_is_read_without_error(size, grid):
    if size < 4 * grid:
        return
    s = source(size=size, grid=grid, skill="scene" if grid > 1 else "object")
    images = take(s, 96)["image"]
    scenes = [s.scene(i) for i in range(96)]
    for scene, image in zip(scenes[:32], images, strict=False):
        assert shapes.parse(image, grid) == list(scene.objects)
    for got in shapes.attributes(images, [list(x.objects) for x in scenes], grid).values():
        assert (got == 1).all()
    grounds = [(x.tone, x.pattern) for x in scenes]
    right = (shapes.grounds(images, grid) == grounds).all(1)
    assert right.mean() == 1 if size > (8 if grid > 1 else 12) else right.mean() > 0.7


def test_at_every_size_every_object_has_pixels_of_its_own():
    for size, grid in itertools.product(range(8, 65), (1, 2, 3)):
        if size < 4 * grid:
            continue
        on = canvas(size, grid)
        assert on.sides[0] < on.sides[1]
        assert min(on.slack(0), on.slack(1)) >= 0
        stamps = [trimmed(on.stamps[k][b]) for k in range(len(SHAPES)) for b in range(len(SIZES))]
        assert all(a != b for a, b in itertools.combinations(stamps, 2)), (size, grid)


@pytest.mark.parametrize("size", [8, 13, 22, 39, 64])
def test_every_object_is_read_alone_in_every_place(size):
    on, ground = canvas(size, 2), shapes.Scene((), 0, 1, (0, 0))
    kinds = itertools.product(range(6), (0, 1), range(4))
    things = [on.place(cell, k, (k + cell) % 6, b, d, on.slack(b) - d) for k, b, cell in kinds for d in range(on.slack(b) + 1)]
    images = np.stack([PALETTE[on.indices(ground._replace(objects=(o,)))] for o in things])
    f = shapes.find(images)
    at = np.arange(len(things)), [on.cell_of(o) for o in things]
    assert (f.present.sum(1) == 1).all()
    assert f.present[at].all()
    got = np.stack([f.shape[at], f.colour[at], f.size[at], f.row[at], f.col[at]], 1)
    np.testing.assert_array_equal(got, things)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_is_judged_right_on_its_own_pictures_and_at_chance_on_others(skill):
    s = source(skill=skill, grid=3)
    b = take(s, 1000)
    assert s.correct(b["image"], b["label"]).all()
    found = shapes.find(b["image"], 3)
    rolled = np.mean([s.skill.correct(found, np.roll(b["label"], k)).mean() for k in range(1, 100)])
    assert rolled == pytest.approx(s.chance, rel=0.15)
    assert s.info["chance"] == s.chance


def test_accuracy_falls_smoothly_with_noise_to_chance():
    levels = [0, 0.25, *np.arange(0.5, 1.6, 0.125), 2, 3, 4]
    for skill in ("object", "scene"):
        s = source(skill=skill)
        curve = shapes.noise_curve(s, levels, n=400)
        assert curve[0] == curve[1] == 1
        assert (np.diff(curve) < 0.03).all()
        assert (np.diff(curve) > -0.25).all()
        assert curve[-1] < s.chance + 0.08


@pytest.mark.parametrize("skill", SKILLS)
def test_pure_noise_is_right_no_more_often_than_by_chance(skill):
    s, n = source(skill=skill), 4000
    rng = np.random.default_rng(0)
    labels = np.arange(n) % s.dims["classes"]
    for noise in (rng.integers(0, 256, (n, 16, 16, 3), np.uint8), rng.normal(size=(n, 16, 16, 3))):
        got = s.correct(noise, labels).mean()
        error = np.sqrt(s.chance * (1 - s.chance) / n)
        assert got < s.chance + 4 * error
        if skill == "object":  # its judge always names some class
            assert got > s.chance - 4 * error


def test_blur_and_a_models_floats_are_read_too():
    s = source(size=32, skill="scene")
    b = take(s, 200)
    x = b["image"].astype(np.float32) / 127.5 - 1
    assert s.correct(x, b["label"]).all()
    blurred = sum(np.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    asked = [list(s.scene(i).objects) for i in range(200)]
    assert shapes.attributes(blurred, asked)["exact"].mean() > 0.9


def test_attributes_tell_what_is_wrong():
    s = source(skill="scene", size=24)
    on, scene = s.canvas, shapes.Scene((), 1, 3, (0, 0))
    asked = [on.place(0, 0, 0, 0, 0, 0), on.place(3, 1, 1, 1, 0, 0)]
    shown = [on.place(0, 0, 2, 0, 1, 1), on.place(2, 1, 1, 1, 0, 0)]
    images = np.stack([PALETTE[on.indices(scene._replace(objects=tuple(o)))] for o in (asked, shown, [*asked, shown[1]])])
    got = shapes.attributes(images, [asked] * 3)
    assert got["present"].tolist() == [1, 0.5, 1]
    assert got["shape"].tolist() == [1, 0.5, 1]
    assert got["colour"].tolist() == [1, 0, 1]
    assert got["size"].tolist() == [1, 0.5, 1]
    assert got["exact"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_a_dense_caption_says_the_whole_scene(grid):
    s = source(skill="scene" if grid > 1 else "object", grid=grid)
    for i in range(200):
        scene, text = s.scene(i), s.describe(i)
        read = words.read(text, grid)
        assert read["objects"] == [(o.shape, o.colour, o.size, s.canvas.cell_of(o)) for o in scene.objects]
        assert read["ground"] == [scene.tone, scene.pattern]
        medium = words.read(s.describe(i, "medium"), grid)
        assert medium == {"objects": [(o.shape, o.colour, -1, -1) for o in scene.objects], "ground": []}
        assert words.decode(s.encode(text)) == text


def test_short_captions_are_the_classes_and_every_word_is_in_the_vocabulary():
    for skill in SKILLS:
        s = source(skill=skill)
        assert len(set(s.skill.prompts)) == len(set(s.info["class_names"])) == s.dims["classes"]
        for text in s.skill.prompts:
            assert words.decode(words.encode(text, 9)) == text
        assert s.describe(3, "short") == s.skill.prompts[s[3]["label"]]
    assert len(words.VOCABULARY) == len(set(words.VOCABULARY)) < 64


@pytest.mark.parametrize("skill, grid", [("object", 1), ("scene", 2), ("count", 3), ("relation", 2)])
@pytest.mark.parametrize("density", words.DENSITIES)
def test_text_is_as_long_as_the_longest_caption(skill, grid, density):
    s = source(skill=skill, grid=grid, density=density, extras=("text",))
    used = [np.count_nonzero(s[i]["text"]) for i in range(60)]
    assert max(used) == s.dims["length"] == len(s[0]["text"])


@pytest.mark.parametrize(
    "text", ["a red circel", "a red circle at the middle centre", "", "a red circle, on a dark background", "red circle"]
)
def test_what_the_grammar_does_not_make_it_does_not_read(text):
    with pytest.raises(UserError, match="not a phrase of the grammar, such as"):
        words.read(text)


def test_words_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match=r"word 'circel' is unknown \(nearest: 'circle'\)"):
        words.encode("a red circel", 9)
    with pytest.raises(UserError, match="at most 9"):
        words.encode("a " * 10, 9)


@pytest.mark.parametrize("skill", SKILLS)
def test_combinations_set_aside_are_never_in_train_and_alone_in_eval(skill):
    seen, both, unseen = (
        source(split, skill=skill, combinations=c) for split, c in (("train", "unseen"), ("eval", "seen"), ("eval", "unseen"))
    )
    if skill == "scene":
        kinds = [{(o.colour, o.shape) for i in range(400) for o in s.scene(i).objects} for s in (seen, both, unseen)]
        total = len(COLOURS) * len(SHAPES)
    else:
        kinds = [{int(s[i]["label"]) for i in range(1200)} for s in (seen, both, unseen)]
        total = seen.dims["classes"]
        assert kinds[2] == set(seen.skill.labels("unseen"))
    assert kinds[0] == kinds[1]
    assert not kinds[0] & kinds[2]
    assert len(kinds[0]) + len(kinds[2]) == total
    assert 0.15 < len(kinds[2]) / total < 0.21
    b = take(unseen, 200)
    assert unseen.correct(b["image"], b["label"]).all()
    assert not seen.correct(b["image"], np.full(200, seen.skill.labels("seen")[0])).all()


def test_a_relation_is_set_aside_under_both_its_names_and_in_the_picture():
    train = source(skill="relation", combinations="unseen", grid=3)
    aside = np.array(train.skill.labels("unseen"))
    images = take(train, 300)["image"]
    for label in aside:
        assert not train.correct(images, np.full(300, label)).any()
    shapes_seen = {c[j] for i, c in enumerate(train.skill.combos) if i not in aside for j in (0, 2)}
    assert shapes_seen == set(range(len(SHAPES)))


@pytest.mark.parametrize("size", [8, 16, 41, 64])
def test_masks_are_the_pixels_of_the_objects(size):
    s = source(size=size, skill="scene", extras=("mask", "tokens"))
    for i in range(60):
        item, scene = s[i], s.scene(i)
        np.testing.assert_array_equal(item["mask"], s.mask(i))
        assert set(np.unique(item["mask"])) - {0} == set(range(1, len(scene.objects) + 1))
        colour = np.array([-1, *[o.colour for o in scene.objects]])[item["mask"]]
        np.testing.assert_array_equal(np.where(item["tokens"] < 2 * len(TONES), -1, item["tokens"] - 2 * len(TONES)), colour)


def test_palette_tokens_are_the_picture():
    s = source(size=24, skill="scene", extras=("tokens",))
    b = take(s, 64)
    assert b["tokens"].dtype == np.int32
    np.testing.assert_array_equal(shapes.from_tokens(b["tokens"]), b["image"])
    np.testing.assert_array_equal(shapes.to_tokens(b["image"]), b["tokens"])
    np.testing.assert_array_equal(shapes.to_tokens(b["image"].astype(np.float32) / 127.5 - 1), b["tokens"])
    assert len(np.unique(PALETTE, axis=0)) == len(PALETTE) == s.dims["vocabulary"]
    with pytest.raises(UserError, match="expected 0 to 9"):
        shapes.from_tokens(np.array([[10]]))
    with pytest.raises(UserError, match=r"expected \[N, size, size, 3\]"):
        shapes.to_tokens(b["image"][0])


def test_an_example_depends_on_seed_split_and_number_alone():
    a, b = source(), source(seed=1)
    order = [7, 123456789 % len(a), 0, 7]
    got = [a[i] for i in order]
    copy = pickle.loads(pickle.dumps(a))
    for i, x in zip(order, got, strict=True):
        np.testing.assert_array_equal(source()[i]["image"], x["image"])
        np.testing.assert_array_equal(copy[i]["image"], x["image"])
    assert (got[0]["image"] != b[7]["image"]).any()
    assert got[0]["image"].shape == (16, 16, 3)
    assert got[0]["image"].dtype == np.uint8
    assert got[0]["label"].dtype == np.int32
    with pytest.raises(IndexError):
        a[len(a)]


def test_train_and_eval_share_no_picture_whatever_their_seeds():
    train = [s[i]["image"].tobytes() for s in (source(size=8, seed=0), source(size=8, seed=1)) for i in range(3000)]
    held = [s[i]["image"].tobytes() for s in (source("eval", size=8, seed=0), source("eval", size=8, seed=2)) for i in range(400)]
    assert len(set(train)) < len(train)  # small pictures do repeat within a split
    assert not set(train) & set(held)


def test_pictures_are_as_they_were():
    """A change of them makes another world: raise VERSION, then correct this."""
    have = [source("eval", skill=k).info["fingerprint"][:8] for k in SKILLS]
    assert have == ["2798837d", "1202e6d3", "ccfa3caa", "a901b86e"]


def test_info_and_fingerprint_tell_worlds_apart():
    s = source(extras=["text", "tokens"], density="short")
    json.dumps(s.info)
    assert s.dims == {
        **{"image": 16, "channels": 3, "classes": 36, "side": 16, "tokens": 256, "vocabulary": 10},
        **{"words": len(words.VOCABULARY), "length": 3},
    }
    assert s.info["class_names"][:2] == ["red circle", "red square"]
    assert s.info["examples"] == len(s) == 1 << 27
    assert source(examples=50).info["examples"] == 50
    worlds = [{}, {"size": 24}, {"grid": 3}, {"skill": "count"}, {"combinations": "unseen"}, {"seed": 1}, {"examples": 64}]
    prints = [source(**w).info["fingerprint"] for w in worlds]
    assert len(set(prints)) == len(worlds)
    assert [source("eval", **w).info["fingerprint"] for w in worlds] == prints


def test_the_loader_and_the_evaluation_take_it_as_it_is():
    s = source(size=8, extras=("caption", "text", "mask"))
    assert decode(s) is None  # endless: never decoded as a whole
    loader = Loader(s, batch=4, seeds=[0, 1])
    b = next(loader)
    loader.close()
    assert {k: v.shape for k, v in b.items()} == {"image": (2, 4, 8, 8, 3), "label": (2, 4), "text": (2, 4, 14), "mask": (2, 4, 8, 8)}
    few = source(examples=20)
    assert decode(few)["image"].shape == (20, 16, 16, 3)
    held = held_out({"eval": {"examples": 16, "batch": 8}}, source("eval"))
    assert held["image"].shape == (2, 8, 16, 16, 3)
    assert "shapes" in find.names("lab.data")
    assert not [n for n in find.names("lab.data") if n.startswith("_")]


def test_mistakes_are_one_line():
    assert "data.size=7 must be a whole number from 8 to 64" in said(size=7)
    assert "data.size=16.0 must be" in said(size=16.0)
    assert "data.grid=3 must be 1, 2, or 3 where data.size is at least 12 (it is 10)" in said(size=10, grid=3)
    assert "data.grid=4" in said(size=16, grid=4)
    assert "data.skill='count' needs 2 or 3" in said(grid=1, skill="count")
    assert "data.skill 'counts' is unknown (nearest: 'count')" in said(skill="counts")
    assert "data.combinations 'al' is unknown (nearest: 'all')" in said(combinations="al")
    assert "data.density 'long' is unknown" in said(density="long")
    assert "data.seed=-1 must be a whole number from 0" in said(seed=-1)
    assert "data.examples=0.5" in said(examples=0.5)
    assert "data.extras='text' must be a tuple of some of: caption, text, tokens, mask" in said(extras="text")
    assert "data.extras: 'masks' is unknown (nearest: 'mask')" in said(extras=("masks",))
    assert "split 'trian' is unknown (nearest: 'train')" in said(split="trian")
    with pytest.raises(UserError, match="density 'thick' is unknown"):
        source().describe(0, "thick")


def test_source_is_what_the_module_exports():
    assert isinstance(source(), Source)
