"""Icons as tokens: outlines are those of SVG's definitions and of resvg, the grammar decodes in one way, the store is checked."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import mistakes
import numpy as np
import pytest

from lab.data import _stroke_store, strokes
from lab.data._stroke_tokens import END, PAD, POINT, START, Grammar
from lab.data._svg_paths import ARGUMENTS, Path, Refused, draw, iou, parse
from lab.data.icons import raster
from lab.data.loader import Loader, open_source
from lab.errors import UserError

SETS = ("octicons",)  # the smallest
GRAMMAR = Grammar(10)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two data_dirs with the set, built apart."""
    dirs = [str(tmp_path_factory.mktemp(n)) for n in "ab"]
    for d in dirs:
        strokes.build(d, SETS)
    return dirs


@pytest.fixture
def few(monkeypatch):
    """Builds that take some icons of a set alone, and show no progress: of two progress lines at once rich refuses the second."""
    monkeypatch.setattr(_stroke_store, "track", lambda rows, *_, **__: rows[::20])


@pytest.fixture
def file(few, tmp_path):
    """A stored set, whole."""
    return strokes.build(str(tmp_path), SETS) / "octicons.outlines"


def svg(inside, box="0 0 1 1"):
    """A drawing of some elements."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{inside}</svg>'


def outline(d, box="0 0 1 1"):
    """The outline of path data."""
    return parse(svg(f'<path d="{d}"/>', box))


def same(a, b):
    """Whether path data `a` and `b` say the same outline."""
    a, b = outline(a), outline(b)
    return a.commands.tolist() == b.commands.tolist() and np.allclose(a.points, b.points, atol=1e-12)


def curve(path, t):
    """Points at times `t` of an outline that is M and then cubics, [cubics, T, 2]."""
    assert path.commands.tolist() == [0] + [2] * (len(path.commands) - 1)
    ends = path.points[::3]
    a, b, c, d = ends[:-1, None], path.points[1::3][:, None], path.points[2::3][:, None], ends[1:, None]
    t = t[:, None]
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


def sequences(n, grammar, seed=0):
    """Random grammatical sequences, padded to different lengths."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        out = [START]
        for _ in range(rng.integers(1, 4)):
            for command in [3, *rng.choice([4, 5], rng.integers(1, 5))]:
                out += [command, *(POINT + rng.integers(0, grammar.grid**2, ARGUMENTS[command - 3]))]
        yield np.array([*out, END, *[PAD] * rng.integers(0, 4)], np.int32)


# ---- from SVG to outlines


@pytest.mark.parametrize("seed", range(12))
def test_an_arc_lies_on_its_ellipse_from_angle_to_angle(seed):
    rng = np.random.default_rng(seed)
    centre, radii, turn = rng.uniform(0, 1, 2), rng.uniform(0.1, 2, 2), rng.uniform(-180, 180)
    begin, sweep = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 6.1) * (-1) ** seed
    axes = np.array([[np.cos(np.radians(turn)), -np.sin(np.radians(turn))], [np.sin(np.radians(turn)), np.cos(np.radians(turn))]])

    def at(angle):
        return centre + axes @ (radii * [np.cos(angle), np.sin(angle)])

    (x, y), (u, v) = at(begin), at(begin + sweep)
    flags = f"{int(abs(sweep) > np.pi)}{int(sweep > 0)}"
    path = outline(f"M{x} {y}A{radii[0]} {radii[1]} {turn} {flags}{u} {v}")
    on = (curve(path, np.linspace(0, 1, 50)).reshape(-1, 2) - centre) @ axes / radii
    assert np.abs(np.hypot(*on.T) - 1).max() < 3e-4
    angles = np.unwrap(np.arctan2(on[:, 1], on[:, 0]))
    assert angles[-1] - angles[0] == pytest.approx(sweep, abs=1e-6)
    assert (np.diff(angles) * np.sign(sweep) > -1e-9).all()


def test_an_arc_with_radii_too_small_is_half_an_ellipse():
    on = curve(outline("M0 0A.1 .1 0 0 1 1 0"), np.linspace(0, 1, 50)).reshape(-1, 2)
    assert np.abs(np.hypot(*(on - [0.5, 0]).T) - 0.5).max() < 3e-4
    assert on[:, 1].min() == pytest.approx(-0.5)


@pytest.mark.parametrize(
    "short, long",
    [
        ("M1 2l3 4 5 6m1 1c1 2 3 4 5 6q1 2 3 4a2 3 10 0 1 1 1z", "M1 2L4 6L9 12M10 13C11 15 13 17 15 19Q16 21 18 23A2 3 10 0 1 19 24Z"),
        ("M1 1h2v3H4V5", "M1 1L3 1L3 4L4 4L4 5"),
        ("M0 0C1 0 2 1 2 2S3 5 4 4s1-1 2-2", "M0 0C1 0 2 1 2 2C2 3 3 5 4 4C5 3 5 3 6 2"),
        ("M1 1S2 3 4 4", "M1 1C1 1 2 3 4 4"),
        ("M0 0Q1 0 2 2T4 2t2 2", "M0 0Q1 0 2 2Q3 4 4 2Q5 0 6 4"),
        ("M1 1T3 3", "M1 1Q1 1 3 3"),
        ("M.5.5-1-2e0L1e-1,+3 4 5", "M 0.5 0.5 L -1 -2 L 0.1 3 L 4 5"),
        ("m1 1 1 0 0 1zm2 2 1 1", "M1 1L2 1L2 2L1 1M3 3L4 4"),
        ("M1 1h1v1zh3", "M1 1L2 1L2 2L1 1M1 1L4 1"),
        ("M0 0a1 1 0 011 1 .5.5 0 10.5.5", "M0 0A1 1 0 0 1 1 1A.5 .5 0 1 0 1.5 1.5"),
        ("M0 0Q3 0 3 3", "M0 0C2 0 3 1 3 3"),
    ],
)
def test_short_forms_say_what_their_long_forms_say(short, long):
    assert same(short, long)
    assert not same(short, long[:-1] + "7")


def test_the_box_becomes_the_unit_square_with_the_shorter_side_centred():
    np.testing.assert_allclose(outline("M10 20L30 60", "10 20 20 40").points, [[0.25, 0], [0.75, 1]])
    np.testing.assert_allclose(parse('<svg width="4" height="2"><path d="M0 0L4 2"/></svg>').points, [[0, 0.25], [1, 0.75]])


@pytest.mark.parametrize(
    "inside",
    [
        '<g transform="translate(3,4)"><path d="M1 1h6v3H1z" transform="rotate(20)"/></g>',
        '<g transform="scale(2 .5)"><g transform="translate(2)"><circle cx="3" cy="9" r="2.5"/></g></g>',
        '<rect x="4" y="6" width="9" height="4" transform="rotate(-30 8 8)"/>',
        '<polygon points="2,2 9,4 5,11" transform="skewX(20) skewY(10)"/><path d="M14 14h2v2h-2z"/>',
        '<ellipse cx="8" cy="3" rx="4" ry="2" transform="matrix(.8 .3 -.3 .8 2 5)"/>',
        '<polyline points="2 2 14 2 2 14" transform="scale(.5) translate(10 5)"/>',
        '<rect x="3" y="4" width="12" height="8" rx="3" ry="2" transform="translate(-2 3),rotate(5)"/>',
    ],
)
def test_shapes_and_transforms_are_drawn_as_resvg_draws_them(inside, tmp_path):
    (tmp_path / "own.svg").write_text(svg(inside, "0 0 20 20"))
    own = raster.raster(tmp_path / "own.svg", 64)
    assert iou(draw(parse(svg(inside, "0 0 20 20")), 64), own) > 0.99
    assert iou(draw(parse(svg(re.sub(' transform="[^"]*"', "", inside), "0 0 20 20")), 64), own) < 0.9


@pytest.mark.parametrize("kind", raster.SETS)
def test_outlines_of_square_icons_fill_the_pixels_of_their_own_rasters(kind):
    texts = [(p, p.read_text()) for _, _, p in raster.files((kind,))[::60]]
    square = [(p, t) for p, t in texts if len(set(re.search('viewBox="([^"]+)"', t)[1].split()[2:])) == 1]
    assert len(square) >= 10
    assert min(iou(draw(parse(t), 64), raster.raster(p, 64)) for p, t in square) > 0.98


@pytest.mark.parametrize(
    "text, reason",
    [
        (svg('<path d="M0 0L1 1" stroke="red"/>'), "has stroke"),
        (svg('<path d="M0 0L1 1" fill="none"/>'), "has fill"),
        (svg('<g fill-rule="evenodd"><path d="M0 0L1 1"/></g>'), "has fill-rule"),
        (svg('<path d="M0 0L1 1" style="fill:red"/>'), "has style"),
        (svg("<text>a</text>"), "has an element text"),
        (svg('<path d="L1 1"/>'), "cannot be read"),
        (svg('<path d="M1 1A1 1 0 0 1 2"/>'), "cannot be read"),
        (svg('<path d="M1 1" transform="spin(3)"/>'), "cannot be read"),
        (svg("", "0 0 0 1"), "cannot be read"),
        (svg("", "0 0 1"), "cannot be read"),
        ('<svg><path d="M0 0"/></svg>', "cannot be read"),
        ("<svg", "cannot be read"),
    ],
)
def test_what_is_no_filled_outline_is_refused(text, reason):
    with pytest.raises(Refused, match=f"^{reason}$"):
        parse(text)


def test_black_fills_and_names_are_no_reason_to_refuse():
    inside = '<title>a</title><g id="b" aria-hidden="true"><path fill="#000" class="c" d="M0 0L1 1"/></g>'
    assert len(parse(svg(inside)).commands) == 2


# ---- pictures


def test_a_picture_has_the_ink_of_the_area_and_holes_go_the_other_way_round():
    def ink(d):
        picture = draw(outline(d), 64)
        assert picture.shape == (64, 64, 1)
        assert picture.dtype == np.uint8
        return 1 - picture.mean() / 255

    assert ink("M0 0L1 0L0 1") == pytest.approx(0.5, abs=0.005)
    assert ink("M0 .5A.5 .5 0 1 1 1 .5A.5 .5 0 1 1 0 .5") == pytest.approx(np.pi / 4, abs=0.005)
    assert ink("M0 0H1V1H0ZM.25 .25V.75H.75V.25Z") == pytest.approx(0.75, abs=0.005)
    assert ink("M0 0H1V1H0ZM.25 .25H.75V.75H.25Z") == 1


def test_iou_of_known_pictures():
    white, black = np.full((4, 4, 1), 255, np.uint8), np.zeros((4, 4, 1), np.uint8)
    half = white.copy()
    half[:2] = 0
    assert [iou(white, white), iou(black, black), iou(white, black), iou(half, black), iou(half, half[::-1])] == [1, 1, 0, 0.5, 0]


# ---- the grammar


def test_decode_and_encode_undo_each_other():
    for tokens in sequences(300, GRAMMAR):
        assert GRAMMAR.valid(tokens)
        np.testing.assert_array_equal(GRAMMAR.encode(GRAMMAR.decode(tokens)), tokens[tokens != PAD])


def test_a_point_is_one_token_x_plus_grid_y():
    tokens = GRAMMAR.encode(Path(np.array([0, 1]), np.array([[0, 1 / 3], [1, 1]])))
    assert tokens.tolist() == [START, 3, POINT + 30, 4, POINT + 99, END]
    assert GRAMMAR.vocabulary == 106
    assert Grammar(100).vocabulary == 10_006


def test_every_sequence_cut_short_is_at_fault_at_its_end():
    for tokens in sequences(30, GRAMMAR):
        end = int(np.argmax(tokens == END))
        for n in range(end + 1):
            assert GRAMMAR.fault(tokens[:n]).position == n
            with pytest.raises(ValueError, match=f"token {n}: .* was expected"):
                GRAMMAR.decode(tokens[:n])


def test_every_swap_and_change_of_kind_is_found_where_it_is():
    kind = np.minimum(np.arange(GRAMMAR.vocabulary), POINT)
    for tokens in sequences(30, GRAMMAR):
        for i in np.flatnonzero(np.diff(kind[tokens])):
            swapped = tokens.copy()
            swapped[[i, i + 1]] = tokens[[i + 1, i]]
            assert GRAMMAR.fault(swapped).position == i
        for i in range(len(tokens)):
            for other in (START, GRAMMAR.vocabulary, -1, *([POINT] if tokens[i] < POINT else range(POINT))):
                changed = np.concatenate([tokens[:i], [other], tokens[i + 1 :]])
                assert other == tokens[i] or GRAMMAR.fault(changed).position == i


@pytest.mark.parametrize(
    "tokens, position, expected",
    [
        ([], 0, "END"),
        ([START, END], 1, "M"),
        ([START, 3, 9, END], 3, "L or C"),
        ([START, 3, 9, 5, 9, 9, END], 6, "a point"),
        ([START, 3, 9, 4, 9, 3, 9, 3], 7, "L or C"),
        ([START, 3, 9, 4, 9, 9], 5, "M or L or C or END"),
        ([START, 3, 9, 4, 9, END, 4], 6, "PAD"),
        ([START, 3, 9, 4], 4, "a point"),
    ],
)
def test_a_fault_says_where_and_what_was_expected(tokens, position, expected):
    assert GRAMMAR.fault(np.array(tokens)) == (position, expected)
    assert not GRAMMAR.valid(tokens)


def test_snapping_drops_what_draws_nothing():
    path = outline("M0 0H0V.01H1L1 1C1 1 1 1 1.02 1H0L0 0Z M.5 .5L1 1 M.2 .2 M.1 .1C.1 .1 .1 .9 .9 .9")
    snapped, left = GRAMMAR.snap(path)
    assert snapped.commands.tolist() == [0, 1, 1, 1, 0, 2]
    assert left.tolist() == [0, 3, 4, 6, 11, 12]
    np.testing.assert_allclose(snapped.points * 9, [[0, 0], [9, 0], [9, 9], [0, 9], [1, 1], [1, 1], [1, 8], [8, 8]])
    assert iou(draw(snapped, 64), draw(path, 64)) > 0.9
    for d in ("M0 0H1V1L0 0", "M0 0H1V1L0 0L0 .01"):
        assert GRAMMAR.snap(outline(d))[0].commands.tolist() == [0, 1, 1]
    nothing, left = GRAMMAR.snap(outline("M0 0L.001 0L0 .001Z"))
    assert len(nothing.commands) == len(nothing.points) == len(left) == 0


def test_snapping_is_idempotent_and_the_same_for_one_icon_and_for_many():
    paths = [GRAMMAR.decode(t) for t in sequences(50, GRAMMAR)]
    apart = [GRAMMAR.snap(p)[0] for p in paths]
    together = GRAMMAR.snap(Path(*(np.concatenate(x) for x in zip(*paths, strict=True))))[0]
    np.testing.assert_array_equal(together.points, np.concatenate([p.points for p in apart]))
    np.testing.assert_array_equal(together.commands, np.concatenate([p.commands for p in apart]))
    np.testing.assert_array_equal(GRAMMAR.snap(together)[0].points, together.points)
    assert len(together.commands) < sum(len(p.commands) for p in paths)


def test_noise_in_the_last_digit_does_not_choose_the_side_of_a_tie():
    grammar, path = Grammar(100), outline("M12 0L24 12L0 12", "0 0 24 24")
    for noise in (-1e-9, 1e-9):
        np.testing.assert_array_equal(grammar.snap(Path(path.commands, path.points + noise))[0].points, grammar.snap(path)[0].points)


# ---- the source


def test_two_builds_are_the_same(built):
    first, second = ([strokes.Source(s, d, SETS) for s in ("train", "eval")] for d in built)
    assert [s.info for s in first] == [s.info for s in second]
    assert first[0].info["fingerprint"] != first[1].info["fingerprint"]
    assert strokes.Source("train", built[0], SETS, grid=99).info["fingerprint"] != first[0].info["fingerprint"]
    files = [strokes.build(d, SETS) / "octicons.outlines" for d in built]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_items_are_grammatical_and_padded(built):
    source = strokes.Source("train", built[0], SETS, length=200)
    assert source.dims == {"classes": 1, "tokens": 200, "vocabulary": 10_006}
    for i in range(len(source)):
        item = source[i]
        tokens, n = item["tokens"], item["length"]
        assert tokens.shape == (200,)
        assert tokens.dtype == n.dtype == item["label"].dtype == np.int32
        assert source.grammar.valid(tokens)
        assert tokens[n - 1] == END
        assert (tokens[n:] == PAD).all()
        assert item["caption"] == raster.caption(source.names[i].partition("/")[2])
    assert source.picture(3).shape == (64, 64, 1)
    np.testing.assert_array_equal(source.picture(3), source.grammar.render(source[3]["tokens"], 64))


def test_room_for_a_span_is_padding_and_two_tokens_and_changes_no_icon(built):
    plain, room = (strokes.Source("train", built[0], SETS, grid=16, length=60, infill=x) for x in (False, True))
    assert room.dims == {"classes": 1, "tokens": 63, "vocabulary": plain.dims["vocabulary"] + 2}
    np.testing.assert_array_equal(room.arrays["tokens"][:, :60], plain.arrays["tokens"])
    assert (room.arrays["tokens"][:, 60:] == PAD).all()
    assert room[0]["sentinels"].tolist() == list(room.grammar.sentinels) == [6 + 256, 7 + 256]
    assert "sentinels" not in plain[0]
    assert not room.grammar.valid(np.array([1, 3, 6, 4, 262, 2]))
    np.testing.assert_array_equal(strokes.drawn(room.arrays["tokens"][4:5], **{"grid": room.info["drawn"]["grid"]})[0], room.picture(4))


def test_every_icon_is_in_one_split_that_of_source_icons_or_left_out(built):
    splits = [strokes.Source(s, built[0], SETS, length=16384) for s in ("train", "eval")]
    names = {f"{kind}/{name}" for kind, name, _ in raster.files(SETS)}
    held = {n for n in names if raster.held_out(*n.split("/", 1))}
    assert [set(s.names) for s in splits] == [names - held, held]
    assert all(s.info["left_out"] == {} for s in splits)
    short = strokes.Source("train", built[0], SETS, length=100)
    longer = int((splits[0].arrays["length"] > 100).sum())
    assert short.info["left_out"] == {"longer than 100 tokens": longer}
    assert len(short) == short.info["examples"] == len(splits[0]) - longer
    assert short.arrays["length"].max() == 100


def test_icons_refused_or_clipped_or_that_draw_nothing_are_counted(built, monkeypatch):
    stored = _stroke_store.load(built[0], "octicons")
    refused = stored["refused"].astype("U20")
    train = [i for i, n in enumerate(stored["name"]) if not raster.held_out("octicons", str(n))]
    gone = train[0]
    first = np.append(0, np.cumsum(stored["count"]))
    points = np.append(0, np.cumsum(ARGUMENTS[stored["commands"]]))
    refused[gone] = "has stroke"
    moved = stored["points"].copy()
    moved[points[first[train[1]]] : points[first[train[1] + 1]]] = 0.5
    monkeypatch.setattr(strokes, "load", lambda *_: {**stored, "refused": refused, "points": moved})
    source = strokes.Source("train", built[0], SETS, length=16384)
    assert source.info["left_out"] == {"has stroke": 1, "draws nothing": 1}
    assert len(source) == len(train) - 2
    moved[points[first[train[1]]]] = 1.2
    moved[points[first[train[1]]] + 1] = 0.1
    assert strokes.Source("train", built[0], SETS, length=16384).info["clipped"] == source.info["clipped"] + 1


def test_the_lattice_keeps_the_picture_and_a_coarse_one_does_not(built):
    _, fine = strokes.round_trip(strokes.Source("train", built[0], SETS), 60)
    _, coarse = strokes.round_trip(strokes.Source("train", built[0], SETS, grid=8), 60)
    assert len(fine) == len(coarse) == 60
    assert np.median(fine) >= 0.9
    assert np.quantile(fine, 0.05) >= 0.85
    assert np.median(coarse) < 0.7


def test_opened_by_name_it_makes_batches_and_can_be_pickled(built):
    source = open_source({"name": "strokes", "sets": list(SETS)}, "eval", built[0])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[2]["tokens"], source[2]["tokens"])
    loader = Loader(source, batch=3, seeds=[0, 1])
    batch = next(loader)
    loader.close()
    assert {k: v.shape for k, v in batch.items()} == {"tokens": (2, 3, 512), "length": (2, 3), "label": (2, 3)}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(grid=1), r"data\.grid=1 must be a whole number from 2 to 256"),
        (dict(grid=100.0), r"data\.grid=100\.0 must be a whole number"),
        (dict(length=True), r"data\.length=True must be a whole number from 8 to 16384"),
        (dict(sets=("octicon",)), r"set 'octicon' is unknown \(nearest: 'octicons'\)"),
        (dict(sets="octicons"), r"data\.sets='octicons' must be a list of sets; there are: fontawesome, material"),
        (dict(sets=()), r"data\.sets=\(\) must be a list of sets"),
        (dict(split="test"), r"split 'test' is unknown; expected one of: eval, train"),
        (dict(length=8), r"no icon is left: longer than 8 tokens"),
    ],
)
def test_a_bad_option_is_named_in_one_line(built, options, message):
    assert re.search(message, mistakes.said(strokes.Source, **{"split": "train", "data_dir": built[0], "sets": SETS, **options}))


# ---- the store


@pytest.mark.parametrize("at", [0, 64, 65, 0.5, -1])
def test_a_flipped_byte_is_found_and_mended(tmp_path, file, at, capsys):
    assert strokes.verify(str(tmp_path), SETS).endswith(": sound")
    whole = file.read_bytes()
    i = int(at * len(whole)) if isinstance(at, float) else at % len(whole)
    file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    with pytest.raises(UserError, match=r"octicons\.outlines' does not have its checksum; mend with: lab data build strokes"):
        strokes.verify(str(tmp_path), SETS)
    strokes.build(str(tmp_path), SETS)
    told = [t for t in capsys.readouterr().err.splitlines() if "made again" in t]
    assert told == ["outlines of octicons are made again: octicons.outlines does not have its checksum"]
    assert strokes.verify(str(tmp_path), SETS).endswith(": sound")


def test_a_file_cut_short_or_gone_is_made_again_and_a_killed_build_leaves_nothing_behind(tmp_path, file):
    file.write_bytes(file.read_bytes()[:1000])
    stale = file.parent / f".{file.name}.tmp-killed"
    stale.write_text("half")
    strokes.build(str(tmp_path), SETS)
    assert strokes.verify(str(tmp_path), SETS).endswith(": sound")
    assert not stale.exists()
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        strokes.verify(str(tmp_path), SETS)
    strokes.build(str(tmp_path), SETS)
    assert file.exists()


def test_another_version_of_the_icons_or_of_the_parser_is_made_again(tmp_path, file, monkeypatch):
    monkeypatch.setattr(_stroke_store, "origin", lambda: "mkdocs-material 99")
    with pytest.raises(UserError, match=r"was made from mkdocs-material .*, installed is mkdocs-material 99"):
        strokes.verify(str(tmp_path), SETS)
    strokes.build(str(tmp_path), SETS)
    assert strokes.verify(str(tmp_path), SETS).endswith(": sound")


def test_of_two_builders_one_builds(few, tmp_path, monkeypatch):
    made, make = [], _stroke_store._make
    monkeypatch.setattr(_stroke_store, "_make", lambda kind: made.append(kind) or make(kind))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: _stroke_store.load(str(tmp_path), "octicons"), range(4)))
    assert made == ["octicons"]
    assert all(len(f["name"]) == len(found[0]["name"]) > 30 for f in found)


def test_a_data_dir_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        strokes.build(str(tmp_path / "file"), SETS)
