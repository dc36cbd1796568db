"""Skills of joint draws: planted shares are found exactly, draws that ignore what is given are at chance, garbage says nothing."""

import numpy as np
import pytest

from lab.data.field import Source as Field
from lab.data.shapes import Source as Shapes
from lab.errors import UserError
from lab.evals.joint import Judge, apart
from lab.evals.subject import Subject

OPTIONS = dict(grid=1, density="medium", extras=("text",))
TRAIN, REAL = (Shapes(split, "", **OPTIONS) for split in ("train", "eval"))
N = 120


def subject(images, words, pair=None):
    """A model that draws the given functions of (held-out pictures, captions, classes), and pairs of both unless told."""

    def draw(cond, task):
        rows = np.random.default_rng(4).permutation(len(REAL))[:N]
        items = [REAL[int(i)] for i in rows]
        told = [np.stack([x[k] for x in items]) for k in ("image", "text", "label")]
        if task != "image":  # the caption is not given where one is asked for
            assert not cond["text"].any()
        if task == "pair":
            return (pair or (lambda *given: {"image": images(*given), "words": words(*given)}))(*told)
        return {"image": images(*told)} if task == "image" else {"words": words(*told)}

    return Subject(dict, dict, draw)


def judged(*given, **more):
    return Judge(REAL, TRAIN, n=N)(subject(*given, **more))


def swapped(share, of):
    """Draws of which a share are those of another example."""

    def f(*told):
        x = told[of].copy()
        k = round(share * N)
        x[:k] = told[of][np.roll(np.arange(N), 7)][:k]
        return x

    return f


def test_real_pictures_and_captions_are_at_the_ceiling():
    got = judged(lambda image, *_: image, lambda _, text, __: text)
    for task in ("image", "text", "pair"):
        assert got[f"joint_{task}"] == got[f"joint_{task}_ceiling"] == got[f"joint_{task}_high"] == 1
        assert got[f"joint_{task}_chance"] < 0.1
    assert got["joint_text_valid"] == got["joint_pair_valid"] == 1
    assert all(k.startswith("joint_") and isinstance(v, float) for k, v in got.items())


def test_draws_that_do_not_read_what_is_given_are_at_chance():
    got = judged(swapped(1, 0), swapped(1, 1), pair=lambda image, text, _: {"image": image, "words": np.roll(text, 5, axis=0)})
    for task in ("image", "text", "pair"):
        low, high = got[f"joint_{task}_low"], got[f"joint_{task}_high"]
        assert low <= got[f"joint_{task}_chance"] <= high < 0.2, (task, got)


def test_a_planted_share_is_found_and_each_task_has_its_own():
    got = judged(swapped(0.5, 0), swapped(0.25, 1), pair=lambda image, text, _: {"image": image, "words": text})
    label = np.array([REAL[int(i)]["label"] for i in np.random.default_rng(4).permutation(len(REAL))[:N]])
    by_luck = label == np.roll(label, 7)  # another example of the same class
    assert got["joint_image"] == 0.5 + by_luck[: N // 2].sum() / N
    assert got["joint_text"] == 0.75 + by_luck[: N // 4].sum() / N
    assert got["joint_pair"] == 1


def test_what_is_no_caption_says_nothing():
    def broken(_, text, __):
        text = text.copy()
        text[::4, 1] = 0  # a hole
        text[1::4] = 0  # nothing
        text[2::4, :2] = text[2::4, 1::-1]  # out of order
        return text

    got = judged(lambda image, *_: image, broken)
    assert got["joint_text_valid"] == got["joint_pair_valid"] == got["joint_text"] == got["joint_pair"] == 0.25


@pytest.mark.parametrize("density", ["short", "medium", "dense"])
@pytest.mark.parametrize("grid", [1, 2])
def test_captions_of_every_density_say_their_class(density, grid):
    source = Shapes("eval", "", grid=grid, density=density, extras=("text",))
    items = [source[i] for i in range(40)]
    assert (source.said(np.stack([x["text"] for x in items])) == [x["label"] for x in items]).all()


def test_a_hole_in_a_caption_says_nothing_and_padding_behind_it_does():
    text, label = REAL[0]["text"], REAL[0]["label"]
    assert REAL.said(np.stack([np.insert(text, k, 0) for k in range(len(text) + 1)])).tolist() == [-1] * len(text) + [label]


def test_a_caption_of_several_objects_says_no_class_of_one():
    source = Shapes("eval", "", skill="scene", density="medium", extras=("text",))
    assert (source.said(np.stack([source[i]["text"] for i in range(8)])) == -1).all()


def test_chance_over_all_pairs_by_hand():
    assert apart(np.array([0, 0, 1]), np.array([0, 1, 1])) == 2 / 6  # the second of the first, and the third of the second
    assert apart(np.array([-1, -1]), np.array([0, 1])) == 0


@pytest.mark.parametrize("skill", ["count", "relation"])
def test_captions_that_say_no_class_are_refused_and_short_ones_say_it(skill):
    options = dict(skill=skill, extras=("text",))
    source = Shapes("eval", "", density="short", **options)
    judge = Judge(source, source, n=20)
    assert judge._ceilings == {"image": 1.0, "text": 1.0, "pair": 1.0}
    with pytest.raises(UserError, match="those of 'shapes' here do not; expected skill 'object', or density='short'"):
        Judge(Shapes("eval", "", density="medium", **options), source, n=20)


def test_a_source_without_captions_is_refused():
    with pytest.raises(UserError, match="judge 'joint' needs pictures and captions"):
        Judge(Shapes("eval", ""), TRAIN)
    with pytest.raises(UserError, match="judge 'joint' needs pictures and captions"):
        Judge(*(Field(s, "") for s in ("eval", "train")))
