"""Buckets: shapes within their bounds, the nearest one crops least, and a folder gives the images of one."""

import itertools
import json
import math

import mistakes
import numpy as np
import pytest
import small
from PIL import Image, ImageOps

from lab import population
from lab.data import pixels
from lab.data.loader import decode, open_source
from lab.errors import UserError

CASES = [(256**2, 2.0, 64), (256**2, 4.0, 32), (32**2, 2.0, 8), (1000, 3.0, 7), (64, 1.0, 8), (100, 64.0, 1)]


@pytest.mark.parametrize("area, ratio, step", CASES)
def test_shapes_are_within_their_bounds_and_as_large_as_these_allow(area, ratio, step):
    shapes = pixels.buckets(area, ratio, step)
    assert shapes
    for h, w in shapes:
        assert h % step == w % step == 0
        assert h * w <= area
        assert max(h, w) <= ratio * min(h, w)
        assert h * (w + step) > area or (h + step) * w > area
        assert (w, h) in shapes
    ratios = [w / h for h, w in shapes]
    assert all(a < b for a, b in itertools.pairwise(ratios))
    side = math.isqrt(area)
    assert ((side, side) in shapes) == (side * side == area and side % step == 0)


def test_known_shapes():
    assert pixels.buckets(32**2, 2.0, 8) == [(40, 24), (32, 32), (24, 40)]
    assert pixels.buckets(63, 2.0, 8) == []
    assert len(pixels.buckets(1024**2, 4.0, 64)) > 20


def kept(width, height, shape):
    """Share of the area of the largest box of a shape that lies within an image."""
    scale = min(width / shape[1], height / shape[0])
    return scale**2 * shape[0] * shape[1] / (width * height)


@pytest.mark.parametrize("area, ratio, step", CASES)
def test_the_nearest_shape_cuts_the_least_off(area, ratio, step):
    shapes, rng = pixels.buckets(area, ratio, step), np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (300, 2)).tolist():
        near = pixels.nearest(shapes, width, height)
        shares = [1 - kept(width, height, s) for s in shapes]
        np.testing.assert_allclose([pixels.cropped(width, height, s) for s in shapes], shares, atol=1e-12)
        assert pixels.cropped(width, height, near) == pytest.approx(min(shares), abs=1e-12)
    for h, w in shapes:
        assert pixels.nearest(shapes, 7 * w, 7 * h) == (h, w)
        assert pixels.cropped(7 * w, 7 * h, (h, w)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(90, 50), (50, 90), (64, 64), (300, 40), (7, 5), (1, 40)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (8, 8)])
def test_fit_keeps_the_centred_part_that_the_formula_says(size, shape):
    """A ramp along either axis, read back at both ends, tells what was kept."""
    width, height = size
    across = np.tile(np.linspace(0, 255, width), (height, 1)).astype(np.uint8)
    down = np.tile(np.linspace(0, 255, height), (width, 1)).astype(np.uint8).T
    scale = min(width / shape[1], height / shape[0])
    box, h, w = (scale * shape[1], scale * shape[0]), *shape
    for ramp, part, whole, axis in ((across, box[0], width, 1), (down, box[1], height, 0)):
        out = pixels.fit(Image.fromarray(ramp), h, w, 1)[..., 0].astype(float).mean(1 - axis)
        assert out.shape == (shape[axis],)
        assert abs(out.mean() - (127.5 if whole > 1 else 0)) < 255 * 0.6 / whole + 2  # centred, to half a pixel
        n = shape[axis]
        if min(part, n) >= 8:
            slope = 255 * part / (whole - 1) / n  # between neighbours, away from the edges
            assert np.diff(out)[2:-2].mean() == pytest.approx(slope, rel=0.5 / part + 0.05)


def test_a_square_is_a_fit_and_nothing_is_stretched():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    np.testing.assert_array_equal(pixels.square(image, 16, 3), pixels.fit(image.crop((15, 0, 65, 50)), 16, 16, 3))
    disc = np.hypot(*np.mgrid[-60:60, -100:100]) < 40
    out = pixels.fit(Image.fromarray(np.uint8(255 * disc)), 48, 60, 1)[..., 0] > 127
    high, wide = out.any(1).sum(), out.any(0).sum()
    assert abs(high - wide) <= 1
    assert abs(high - 80 * 48 / 120) <= 1


@pytest.fixture
def photos(tmp_path):
    """Two class folders: 30 wide, 20 tall, 25 square pictures, each with noise of its own."""
    rng = np.random.default_rng(0)
    for i in range(75):
        w, h = (50, 30) if i < 30 else (30, 52) if i < 50 else (33, 32)
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.{('png', 'jpg')[i % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(path)
    return tmp_path


def opened(data_dir, split="train", **options):
    """A folder source."""
    return open_source({"name": "folder", "path": "photos", "size": 32, "eval_share": 0.3, **options}, split, str(data_dir))


def test_buckets_share_a_folder_out(photos):
    names, whole = [], opened(photos)
    for bucket, count in (((24, 40), 30), ((40, 24), 20), ((32, 32), 25)):
        both = [opened(photos, split, bucket=bucket) for split in ("train", "eval")]
        assert sum(map(len, both)) == count
        train = both[0]
        assert train.info["buckets"] == {"40x24": 20, "32x32": 25, "24x40": 30}
        assert train.info["image"] == [*bucket, 3]
        assert train.info["class_names"] == ["a", "b"]
        assert train[0]["image"].shape == (*bucket, 3)
        assert decode(train)["image"].shape == (len(train), *bucket, 3)
        names += [r.name for r in train.rows]
        json.dumps(train.info)
    assert sorted(names) == sorted(r.name for r in whole.rows)  # each image in one bucket, and in the split it was in
    assert opened(photos, bucket=(24, 40)).info["cropped"] == 0
    assert opened(photos, bucket=(40, 24)).info["cropped"] == pytest.approx(1 - kept(30, 52, (40, 24)))
    assert "buckets" not in whole.info
    assert opened(photos, bucket=[32, 32]).dims["image"] == 32  # as a config that was stored has it


def test_a_square_model_takes_the_square_bucket_and_refuses_others_in_one_line(photos):
    config = small.config(**{"data": {"name": "folder"}})
    square, wide = (opened(photos, bucket=b).dims for b in ((32, 32), (24, 40)))
    assert population.build(config, square).dims["side"] == 32
    with pytest.raises(UserError, match=r"model.image=\(24, 40\) must be a positive whole number"):
        population.build(config, wide)
    config["model"]["image"] = 32
    with pytest.raises(UserError, match=r"size 'image' is 32 in the config but \(24, 40\) in the data"):
        population.build(config, wide)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "avif"])
def test_shapes_are_read_from_headers_and_upright(tmp_path, kind, monkeypatch):
    image, exif = Image.new("RGB", (40, 24), "red"), Image.Exif()
    for turn in (1, 3, 6, 8):
        exif[0x0112] = turn
        path = tmp_path / f"{turn}.{kind}"
        image.save(path, exif=exif)
        image.save(tmp_path / f"plain.{kind}")
        with monkeypatch.context() as m:
            if kind in ("png", "jpg"):
                m.setattr("PIL.ImageFile.ImageFile.load", None)  # no pixel is decoded
            assert pixels.shape(path) == ((40, 24) if turn < 5 else (24, 40))
            assert pixels.shape(tmp_path / f"plain.{kind}") == (40, 24)
        with Image.open(path) as shown:
            assert pixels.shape(path) == ImageOps.exif_transpose(shown).size


def test_shapes_are_kept_by_content_and_may_be_lost(photos, monkeypatch):
    first = opened(photos, bucket=(24, 40)).info
    cache = next((photos / ".digests").glob("*-shapes.json"))
    with monkeypatch.context() as m:
        m.setattr(pixels, "shape", None)  # nothing is read again
        assert opened(photos, bucket=(24, 40)).info == first
    cache.write_text("{torn")
    assert opened(photos, bucket=(24, 40)).info == first
    Image.new("RGB", (30, 52)).save(photos / "photos" / "a" / "0.jpg")
    assert opened(photos, bucket=(24, 40)).info["buckets"] == {"40x24": 21, "32x32": 25, "24x40": 29}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"bucket": (30, 30)}, "data.bucket=(30, 30) is no shape (h, w) of at most 32 x 32 pixels in multiples of data.bucket_step=8"),
        ({"bucket": (32, 32)[:1]}, "expected one of: (40, 24), (32, 32), (24, 40)"),
        ({"bucket": 32}, "data.bucket=32 is no shape"),
        ({"bucket": (32, 32), "bucket_ratio": 0.5}, "data.bucket_ratio=0.5 must be a number from 1.0"),
        ({"bucket": (32, 32), "bucket_step": 64}, "data.bucket_step=64 must be a whole number from 1 to 32"),
        ({"bucket": (16, 64), "bucket_ratio": 4.0}, "data.bucket=(16, 64) is nearest to no image; images of each shape: {'64x16': 0,"),
    ],
)
def test_mistakes_are_one_line(photos, options, said):
    assert said in mistakes.said(opened, photos, **options)


def test_a_file_that_is_no_image_is_named(photos):
    (photos / "photos" / "a" / "0.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"a/0.jpg' cannot be decoded"):
        opened(photos, bucket=(32, 32))
