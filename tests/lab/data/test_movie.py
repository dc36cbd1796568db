"""Movies follow their dynamics, whose conditional laws are exact, and are read without error; what breaks them is judged wrong."""

import functools
import itertools
import json
import pickle
from functools import lru_cache

import jax
import mistakes
import numpy as np
import pytest
from scipy.stats import chisquare
from worlds import take

from lab.data import movie
from lab.data._movie_motion import Stage
from lab.data._movie_oracle import textures
from lab.data._shapes_scene import COLOURS, GROUNDS, PALETTE, SHAPES, SIZES
from lab.data.loader import Loader, decode, held_out, open_source
from lab.errors import UserError


def source(split="train", **options):
    """A source, as a study opens one."""
    return open_source({"name": "movie", **options}, split, "nowhere")


TURNS = {"turn": 0.35, "objects": 2, "size": 14, "speeds": 1, "directions": 8}
SMALL = {"turn": 0.4, "size": 8, "speeds": 1, "frames": 4}


@lru_cache  # compiled and read once
def drawn(n, **options):
    """A source, movies and labels that it makes on the device, and what they show."""
    s = source(**options)
    made = s.generate(jax.random.key(0), n)
    x = np.asarray(made["image"])
    return s, x, np.asarray(made["label"]), s.track(x)


said = functools.partial(mistakes.said, source)


def wave(start, step, room, k):
    """Where an object on [0, room] is after k frames: the triangular wave on the places that its steps can reach."""
    if step == 0:
        return start
    stride = abs(step)
    rest, last = start % stride, (room - start % stride) // stride
    at = (start // stride + np.sign(step) * k) % (2 * last)
    return rest + stride * min(at, 2 * last - at)


def turned(stage, thing, corner, last, rng):
    """The step that the rules of the world give an object, drawn without its tables."""
    at, room = np.array([thing.row, thing.col]) - corner, stage.zone - stage.canvas.sides[thing.size]
    ahead = np.where((at + last < 0) | (at + last > room), -last, last)
    alike = [s for s in stage.steps if abs(s).max() == abs(last).max() and (s != ahead).any()]
    fit = [s for s in alike if ((at + s >= 0) & (at + s <= room)).all()]
    return fit[rng.integers(len(fit))] if fit and rng.random() < stage.turn else ahead


@pytest.mark.parametrize("frames", [4, 8, 16])
@pytest.mark.parametrize("size", [8, 14, 16, 32, 64])
def test_a_clean_movie_is_read_without_error(size, frames):
    for objects, turn in ((1, 0.0), (2, 0.3), (4, 0.3)) if size > 8 else ((1, 0.0), (1, 0.3)):
        s = source(size=size, frames=frames, objects=objects, turn=turn, directions=8, extras=("states",))
        n = 6 if size == 64 else 16
        b = take(s, n)
        seen = s.track(b["image"])
        assert seen.found.present.all()
        got = np.stack([seen.found.shape, seen.found.colour, seen.found.size, seen.found.row, seen.found.col], -1)
        np.testing.assert_array_equal(got, b["states"])
        np.testing.assert_array_equal(seen.velocity, np.diff(b["states"][..., 3:], axis=1))
        for i in range(n):
            scene = s.scenes(i)[-1]._replace(objects=())
            assert (textures(s.stage.canvas)[seen.ground[i]] == s.stage.canvas.indices(scene)).all()
        assert s.correct(b["image"], b["label"]).all()
        assert (s.consistent(b["image"]) == 1).all()
        np.testing.assert_array_equal(s.correct(b["image"].astype(np.float32) / 127.5 - 1, b["label"]), True)


@pytest.mark.parametrize("size, objects", [(8, 1), (16, 4), (29, 2), (64, 4)])
def test_without_turns_a_place_is_a_triangular_wave(size, objects):
    s = source(size=size, frames=32, objects=objects, directions=8, extras=("states",))
    bounced = 0
    for i in range(30):
        item = s[i]
        step = s.stage.steps[item["label"]]
        for k, thing in enumerate(item["states"][0]):
            room, corner = s.stage.rooms[thing[2]], s.stage.zones[k]
            for t, (axis, at) in itertools.product(range(32), enumerate(thing[3:] - corner)):
                assert item["states"][t, k, 3 + axis] - corner[axis] == wave(at, step[axis], room[axis], t)
                bounced += not 0 <= at + step[axis] * t <= room[axis]
    assert bounced > 300


@pytest.mark.parametrize("turn", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("directions", [4, 8])
def test_chances_are_a_distribution_whose_motions_stay_inside_at_their_speed(directions, turn):
    stage = Stage(16, 2, directions, 2, turn)
    np.testing.assert_allclose(stage.chance.sum(-1), 1, atol=1e-12)
    for size, room in enumerate(stage.rooms):
        for m, row, col, to in zip(*np.nonzero(stage.chance[size, :, : room[0] + 1, : room[1] + 1] > 0), strict=True):
            came = np.array([row, col]) - stage.steps[m]
            if (came < 0).any() or (came > room).any():
                continue  # nothing moves so from there
            at = np.array([row, col]) + stage.steps[to]
            assert ((at >= 0) & (at <= room)).all()
            assert stage.speed[to] == stage.speed[m]
    middle = tuple(stage.rooms[0] // 2)
    straight = stage.chance[0, :, *middle].diagonal()
    np.testing.assert_allclose(straight, [1, *[1 - turn] * (2 * directions)])
    others = stage.chance[0, 1, *middle, 2 : 1 + directions]
    np.testing.assert_allclose(others, turn / (directions - 1))


def test_a_corner_leaves_one_way_out_and_an_edge_two():
    stage = Stage(16, 1, 4, 1, 0.3)
    still, up, down, left, right = range(5)
    assert stage.chance[0, up, 0, 0].tolist() == [0, 0, 0.7, 0, 0.3]
    assert stage.chance[0, left, 0, 5].tolist() == pytest.approx([0, 0, 0.15, 0.7, 0.15])
    assert stage.chance[0, down, 0, 5, still] == stage.chance[0, down, 0, 5, up] == 0
    assert stage.chance[0, still, 0, 5, still] == 1
    assert stage.chance[0, right, 3, 3, right] == pytest.approx(0.7)


@pytest.mark.parametrize("where", ["host", "device"])
def test_what_is_drawn_next_has_the_conditional_distribution(where):
    if where == "host":
        s = source(**TURNS, extras=("states",))
        states = take(s, 1000)["states"]
        last, size = s.stage.motion(np.diff(states[..., 3:], axis=1)), states[..., 2]
        row, col = states[..., 3] - s.stage.zones[:, 0], states[..., 4] - s.stage.zones[:, 1]
    else:
        s, _, _, seen = drawn(600, **TURNS)
        last, size = seen.motion, seen.found.size
        row, col = seen.found.row - s.stage.zones[:, 0], seen.found.col - s.stage.zones[:, 1]
    p = s.stage.chance[size[:, 1:-1], last[:, :-1], row[:, 1:-1], col[:, 1:-1]]
    step = np.eye(p.shape[-1])[last[:, 1:]]
    assert (p[step > 0] > 0).all()
    for m in range(p.shape[-1]):  # sums of martingale differences, by the motion before
        mine = last[:, :-1] == m
        gap, error = (step - p)[mine].sum(0), np.sqrt((p * (1 - p))[mine].sum(0))
        assert (abs(gap) <= 4.5 * error + 1e-9).all()
        assert (gap != 0).any() == (m > 0)


def test_the_mean_of_the_next_frame_is_that_of_many_drawn_by_the_rules():
    rng, n = np.random.default_rng(1), 1000
    s = source(turn=0.5, objects=2, extras=("states",))
    for i in range(4):
        item, scene = s[i], s.scenes(i)[2]
        last = np.diff(item["states"][1:3, :, 3:], axis=0)[0]
        pictures = []
        for _ in range(n):
            steps = [turned(s.stage, o, c, v, rng) for o, c, v in zip(scene.objects, s.stage.zones, last, strict=True)]
            objects = tuple(o._replace(row=o.row + d, col=o.col + r) for o, (d, r) in zip(scene.objects, steps, strict=True))
            pictures.append(PALETTE[s.stage.canvas.indices(scene._replace(objects=objects))])
        pictures = np.array(pictures, float)
        expected = s.expected_next(item["image"][:3])
        assert expected.shape == (16, 16, 3)
        error = pictures.std(0) / np.sqrt(n)
        assert (abs(pictures.mean(0) - expected) <= 4.5 * error + 1e-9).all()
        assert (pictures.std(0) > 0).any() == (item["label"] > 0)
        # what comes next is one of the motions said, and their entropy that of the pictures
        counts = np.unique(pictures.reshape(n, -1), axis=0, return_counts=True)[1] / n
        p = s.next_motions(item["image"][:3])
        assert len(counts) == np.prod((p > 0).sum(-1))
        surprise = -(counts * np.log(counts)).sum() + (len(counts) - 1) / (2 * n)  # with Miller's correction of its bias
        error = np.sqrt(max(0, (counts * np.log(counts) ** 2).sum() - surprise**2) / n)
        assert abs(s.entropy(item["image"][:3]) - surprise) <= 4.5 * error + 1e-3


@pytest.mark.parametrize("options", [{"size": 10, "frames": 2}, TURNS])
def test_after_one_frame_the_motion_has_its_posterior(options):
    s, x, label, seen = drawn(600, **options)
    p = s.next_motions(x[:, :1])[:, 0]
    np.testing.assert_allclose(p.sum(-1), 1)
    hit = np.eye(p.shape[-1])[label]
    assert (p[hit > 0] > 0).all()
    row = seen.found.row[:, 0, 0]
    for group in (row == 0, row == 1, row > 1, label >= 0):  # near a wall the motions that leave it are likelier
        gap, error = (hit - p)[group].sum(0), np.sqrt((p * (1 - p))[group].sum(0))
        assert (abs(gap) <= 4.5 * error + 1e-9).all()
    surprise = -np.log(p[hit > 0])
    entropy = s.entropy(x[:, :1])
    assert abs((surprise - entropy).mean()) < 4.5 * (surprise - entropy).std() / np.sqrt(len(x))
    assert 0 < entropy.mean() < np.log(p.shape[-1])
    residual = x[:, 1] - s.expected_next(x[:, :1])
    assert (abs(residual.mean(0)) <= 4.5 * residual.std(0) / np.sqrt(len(x)) + 1e-9).all()
    assert (s.entropy(x[:, :1], label) == 0).all()
    assert (s.expected_next(x[:100, :1], label[:100]) == x[:100, 1]).all()


def test_once_the_velocity_is_known_a_movie_without_turns_is_known():
    s = source(objects=4)
    b = take(s, 40)
    for t in range(2, 8):
        assert (s.expected_next(b["image"][:, :t]) == b["image"][:, t]).all()
        assert (s.entropy(b["image"][:, :t]) == 0).all()
    assert s.info["best_loss"] == 0


def test_best_loss_is_the_mean_surprise_of_the_frames():
    s, x, _, seen = drawn(600, **TURNS)
    exact = s.stage.entropies(8)
    assert s.info["best_loss"] == pytest.approx(exact.mean())
    for t in range(2, 8):
        p = s.next_motions(x[:, t - 2 : t])
        surprise = -np.log(np.take_along_axis(p, seen.motion[:, t - 1, :, None], -1)).sum((1, 2))
        assert abs(surprise.mean() - exact[t - 1]) < 4.5 * surprise.std() / np.sqrt(len(x))
    entropy = s.entropy(x[:, :5])
    assert abs(entropy.mean() - exact[4]) < 4.5 * entropy.std() / np.sqrt(len(x))


def test_in_the_open_the_entropy_is_the_textbook_one():
    turn = 0.2
    stage = Stage(64, 1, 4, 1, turn)
    open_ = -(turn * np.log(turn / 3) + (1 - turn) * np.log(1 - turn))
    assert stage.entropies(3)[1] < 0.8 * open_  # of five labels one is still, and walls take ways away
    middle = tuple(stage.rooms[0] // 2)
    p = stage.chance[0, 1, *middle]
    assert -(p[p > 0] * np.log(p[p > 0])).sum() == pytest.approx(open_)


def test_states_are_as_likely_as_they_occur():
    s, _, _, seen = drawn(1500, **SMALL)
    exact = s.stage.states(4)
    np.testing.assert_allclose(exact.sum((1, 2, 3, 4)), 1)
    for t in (1, 3):
        count = np.zeros(exact.shape[1:])
        np.add.at(count, (seen.found.size[:, t, 0], seen.motion[:, t - 1, 0], seen.found.row[:, t, 0], seen.found.col[:, t, 0]), 1)
        here = exact[t - 1] > 0
        assert count[~here].sum() == 0
        assert chisquare(count[here], 1500 * exact[t - 1][here] / exact[t - 1].sum()).pvalue > 1e-4


def test_device_and_host_draw_from_one_distribution():
    s, x, label, seen = drawn(1500, **SMALL)
    b, n = take(source(**SMALL, extras=("states", "tokens")), 1500), 1500
    assert x.shape == (n, 4, 8, 8, 3)
    assert x.dtype == np.uint8
    assert s.correct(x, label).all()
    assert (movie.from_tokens(movie.to_tokens(x)) == x).all()
    f = seen.found
    theirs = np.stack([label, *(v[:, 0, 0] for v in (f.shape, f.colour, f.size, f.row, f.col)), f.row[:, 3, 0], f.col[:, 3, 0]])
    ours = np.stack([b["label"], *b["states"][:, 0, 0].T, *b["states"][:, 3, 0, 3:].T])
    for p, q in zip(theirs, ours, strict=True):
        a, c = np.bincount(p, minlength=9), np.bincount(q, minlength=9)
        error = np.sqrt(np.maximum(a + c, 1))  # of the difference of two counts
        assert (abs(a - c) < 4.5 * error).all()
    for p, kinds in zip(theirs[:4], (s.class_names, SHAPES, COLOURS, SIZES), strict=True):
        assert chisquare(np.bincount(p, minlength=len(kinds))).pvalue > 1e-4
    ground = (movie.to_tokens(x)[:, 0] % GROUNDS).mean()
    assert ground == pytest.approx((b["tokens"][:, 0] % GROUNDS).mean(), abs=0.06)


def test_a_movie_is_right_for_one_label_and_so_by_chance_as_often_as_said():
    for objects in (1, 4):
        s = source(objects=objects)
        b = take(s, 60)
        right = np.stack([s.correct(b["image"], np.full(60, c)) for c in range(s.dims["classes"])])
        assert (right.sum(0) == 1).all()  # a movie is right for one class, so drawn apart labels are right for one in so many
        assert s.chance == s.info["chance"] == pytest.approx(1 / 9)
        apart = np.random.default_rng(0).integers(9, size=60)
        assert abs(right[apart, np.arange(60)].mean() - s.chance) < 4 * np.sqrt(s.chance * (1 - s.chance) / 60)


def test_movies_that_break_the_dynamics_are_judged_wrong():
    s = source(objects=2, size=24)
    b = take(s, 90)
    x, label, moves = b["image"], b["label"], b["label"] > 0
    swapped = x[:, [0, 1, 2, 4, 3, 5, 6, 7]]
    np.testing.assert_array_equal(s.correct(swapped, label), ~moves)
    assert (s.consistent(swapped)[moves] < 0.8).all()
    held = x[:, [0, 1, 2, 3, 3, 4, 5, 6]]
    np.testing.assert_array_equal(s.correct(held, label), ~moves)
    red, blue = (PALETTE[GROUNDS + COLOURS.index(c)] for c in ("red", "blue"))
    dyed = x.copy()
    dyed[:, 5] = np.where((dyed[:, 5] == red).all(-1, keepdims=True), blue, dyed[:, 5])
    has = (dyed != x).any((1, 2, 3, 4))
    np.testing.assert_array_equal(s.correct(dyed, label), ~has)
    assert s.consistent(dyed)[has] == pytest.approx(5 / 7)
    tones = movie.to_tokens(x)
    tones[:, 4] = np.where(tones[:, 4] < GROUNDS, (tones[:, 4] + 2) % GROUNDS, tones[:, 4])
    assert not s.correct(movie.from_tokens(tones), label).any()
    empty = x.copy()
    empty[:, 3, :12] = x[0, 0, 0, 0]
    assert not s.correct(empty, label).any()
    pairs = [list(zip(s.scenes(i - 1 if i else 89), s.scenes(i), strict=True)) for i in range(90)]
    mixed = [[b._replace(objects=(a.objects[0], b.objects[1])) for a, b in movie] for movie in pairs]
    images = PALETTE[np.array([[s.stage.canvas.indices(scene) for scene in movie] for movie in mixed])]
    np.testing.assert_array_equal(s.correct(images, label), label == np.roll(label, 1))
    np.testing.assert_allclose(s.consistent(images), np.where(label == np.roll(label, 1), 1, 6 / 7))  # all set off alike


def test_time_reversed_is_right_for_the_reverse_of_the_last_motion_alone():
    s = source(directions=8, frames=4)
    b = take(s, 300)
    back = b["image"][:, ::-1]
    seen = s.track(b["image"])
    reverse = s.stage.motion(-seen.velocity)[:, -1, 0]
    assert s.correct(back, reverse).all()
    np.testing.assert_array_equal(s.correct(back, b["label"]), reverse == b["label"])
    assert 0.05 < (reverse == b["label"]).mean() < 0.5  # still ones, and those with an odd number of bounces


def test_a_turn_is_allowed_where_turns_are_and_a_change_of_speed_nowhere():
    with_turns = source(turn=0.5, frames=8)
    b = take(with_turns, 200)
    straight = source(frames=8)
    assert with_turns.correct(b["image"], b["label"]).all()
    assert straight.correct(b["image"], b["label"]).mean() < 0.3
    plain = take(straight, 200)
    velocity = straight.track(plain["image"]).velocity
    free = (velocity == velocity[:, :1]).all((1, 2, 3)) & (plain["label"] > 0) & (plain["label"] < 5)
    assert free.sum() > 30
    skips = plain["image"][free][:, [0, 1, 2, 4, 6]]  # slow, then fast
    np.testing.assert_allclose(with_turns.consistent(skips), 3 / 4)


def test_what_noise_is_read_as_costs_least_of_all_objects():
    s = source(size=10, frames=2)
    x = take(s, 30)["image"] / 127.5 - 1 + np.random.default_rng(0).normal(0, 1.5, (30, 2, 10, 10, 3))
    f = s.track(x).found
    cost = ((x[..., None, :] + 1 - PALETTE / 127.5) ** 2).sum(-1) * 127.5**2
    gain = cost[..., GROUNDS:] - cost[..., :GROUNDS].min(-1, keepdims=True)
    every = {}
    for shape, (size, room) in itertools.product(range(len(SHAPES)), enumerate(s.stage.rooms)):
        stamp = s.stage.canvas.stamps[shape][size]
        for r, c in np.ndindex(*(room + 1)):
            every[shape, size, r, c] = gain[:, :, r : r + len(stamp), c : c + len(stamp)][:, :, stamp].sum(2)
    np.testing.assert_allclose(f.score[..., 0], np.min([v.min(-1) for v in every.values()], 0), rtol=1e-4)
    for n, t in np.ndindex(30, 2):
        mine = every[*(int(v[n, t, 0]) for v in (f.shape, f.size, f.row, f.col))]
        assert f.score[n, t, 0] == pytest.approx(mine[n, t, f.colour[n, t, 0]], rel=1e-4)


def test_accuracy_falls_with_noise_and_noise_alone_is_never_right():
    s = source(frames=4)
    curve = movie.noise_curve(s, [0, 0.25, 0.5, 0.75, 1, 2], n=200)
    assert curve[0] == 1
    assert curve[1] > 0.97
    assert (np.diff(curve) <= 0.01).all()
    assert curve[-1] < s.chance
    rng = np.random.default_rng(0)
    assert not s.correct(rng.normal(size=(400, 4, 16, 16, 3)), np.arange(400) % 9).any()


def test_extras_say_what_the_pixels_show():
    s = source(size=24, objects=4, turn=0.2, extras=("caption", "tokens", "mask", "states"))
    for i in range(20):
        item = s[i]
        np.testing.assert_array_equal(movie.from_tokens(item["tokens"]), item["image"])
        np.testing.assert_array_equal(movie.to_tokens(item["image"]), item["tokens"])
        colour = np.concatenate([np.full((8, 1), -1), item["states"][..., 1]], 1)
        shown = np.take_along_axis(colour[:, :, None], item["mask"].reshape(8, -1)[:, None].astype(int).reshape(8, -1, 1), 1)
        np.testing.assert_array_equal(shown.reshape(8, 24, 24), np.where(item["tokens"] < GROUNDS, -1, item["tokens"] - GROUNDS))
        name = s.class_names[item["label"]]
        assert (f"moving {name}" if name != "still" else ", still,") in item["caption"]
        assert f"a {SIZES[item['states'][0, 0, 2]]} {COLOURS[item['states'][0, 0, 1]]}" in item["caption"]
        assert s.scenes(i)[3].objects[2] == tuple(item["states"][3, 2])
    assert s.picture(0).shape == (24, 8 * 24 + 7, 3)
    assert (s.picture(0)[:, 25:49] == s[0]["image"][1]).all()
    assert (s.picture(0)[:, 24] == 255).all()


def test_first_frames_of_train_and_eval_are_apart_whatever_their_seeds():
    train = [s[i]["image"][0].tobytes() for s in (source(size=8, frames=2), source(size=8, frames=2, seed=1)) for i in range(3000)]
    held = [s[i]["image"][0].tobytes() for s in (source("eval", size=8), source("eval", size=8, seed=2, turn=0.3)) for i in range(400)]
    assert len(set(train)) < len(train)  # small pictures do repeat within a split
    assert not set(train) & set(held)


def test_an_example_depends_on_seed_split_and_number_alone():
    a, b = source(turn=0.2), source(turn=0.2, seed=1)
    copy = pickle.loads(pickle.dumps(a))
    for i in (7, 123456789 % len(a), 0, 7):
        np.testing.assert_array_equal(source(turn=0.2)[i]["image"], a[i]["image"])
        np.testing.assert_array_equal(copy[i]["image"], a[i]["image"])
    assert (a[7]["image"] != b[7]["image"]).any()
    assert a[0]["label"].dtype == np.int32
    # a longer movie starts as the shorter one
    np.testing.assert_array_equal(source(frames=16, turn=0.2)[5]["image"][:8], a[5]["image"])
    with pytest.raises(IndexError):
        a[len(a)]


def test_movies_are_as_they_were():
    """A change of them makes another world: raise VERSION, then correct this."""
    have = [source("eval", **o).info["fingerprint"][:8] for o in ({}, {"turn": 0.2}, {"objects": 4, "size": 32})]
    assert have == ["8a552e4e", "9cb13f44", "59f6016a"]


def test_info_and_fingerprint_tell_worlds_apart():
    s = source(extras=["tokens"])
    json.dumps(s.info)
    assert s.dims == {"frames": 8, "side": 16, "channels": 3, "classes": 9, "tokens": 2048, "vocabulary": 10}
    assert s.info["movie"] == [8, 16, 16, 3]
    assert "image" not in s.info  # nothing takes a movie for a picture
    assert s.info["class_names"][:6] == ["still", "up slow", "down slow", "left slow", "right slow", "up fast"]
    assert source(speeds=1).class_names == ["still", "up", "down", "left", "right"]
    assert source(examples=50).info["examples"] == 50
    worlds = [
        {},
        {"size": 24},
        {"frames": 4},
        {"objects": 2},
        {"directions": 8},
        {"speeds": 1},
        {"turn": 0.1},
        {"seed": 1},
        {"examples": 64},
    ]
    prints = [source(**w).info["fingerprint"] for w in worlds]
    assert len(set(prints)) == len(worlds)
    assert [source("eval", **w).info["fingerprint"] for w in worlds] == prints


def test_the_loader_and_the_evaluation_take_it_as_it_is():
    s = source(size=8, frames=4, extras=("caption", "mask"))
    assert decode(s) is None  # endless: never decoded as a whole
    loader = Loader(s, batch=4, seeds=[0, 1])
    b = next(loader)
    loader.close()
    assert {k: v.shape for k, v in b.items()} == {"image": (2, 4, 4, 8, 8, 3), "label": (2, 4), "mask": (2, 4, 4, 8, 8)}
    assert decode(source(examples=20))["image"].shape == (20, 8, 16, 16, 3)
    held = held_out({"eval": {"examples": 16, "batch": 8}}, source("eval"))
    assert held["image"].shape == (2, 8, 8, 16, 16, 3)


def test_mistakes_are_one_line():
    assert "data.size=7 must be a whole number from 8 to 64" in said(size=7)
    assert "data.size=16.0 must be" in said(size=16.0)
    assert "data.frames=1 must be a whole number from 2 to 32" in said(frames=1)
    assert "data.objects=3 must be 1, 2 or 4" in said(objects=3)
    assert "data.objects=True must be" in said(objects=True)
    assert "data.directions=6 must be 4 or 8" in said(directions=6)
    assert "data.speeds=3 must be a whole number from 1 to 2" in said(speeds=3)
    assert "data.turn=1.5 must be a number from 0.0 to 1.0" in said(turn=1.5)
    assert "data.objects=4 with data.speeds=2 has no room in pictures of data.size=13" in said(size=13, objects=4)
    assert "data.seed=-1" in said(seed=-1)
    assert "data.examples=0.5" in said(examples=0.5)
    assert "data.extras='mask' must be a tuple of some of: caption, tokens, mask, states" in said(extras="mask")
    assert "data.extras: 'state' is unknown (nearest: 'states')" in said(extras=("state",))
    assert "split 'trian' is unknown (nearest: 'train')" in said(split="trian")
    s = source()
    with pytest.raises(UserError, match=r"expected \[..., frames >= 2, 16, 16, 3\]"):
        s.correct(s[0]["image"][:1], 0)
    with pytest.raises(UserError, match="a hidden label is None"):
        s.entropy(s[0]["image"][:1], -1)
    jump = np.stack([s[0]["image"][0], s[1]["image"][0]])
    with pytest.raises(UserError, match="end with a step that is none of: still, up slow"):
        s.expected_next(jump)
