"""Folders of images as people have them: split, labels, captions, pixels, identity, and what goes wrong."""

import csv
import functools
import json
import pickle
import warnings

import mistakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from lab import find
from lab.data import pixels
from lab.data.folder import Source
from lab.data.loader import Loader, decode, open_source
from lab.errors import UserError


def picture(path, rng, shape=(13, 9, 3)):
    """Write a random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path):
    """Two class folders of 40 pictures each, in three formats, at data_dir/photos."""
    rng = np.random.default_rng(0)
    for i in range(80):
        picture(tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i:02d}.{('png', 'jpg', 'webp')[i % 3]}", rng)
    return tmp_path


def both(data_dir, **options):
    """Train and eval source."""
    options = {"path": "photos", "size": 8, **options}
    return [Source(s, str(data_dir), **options) for s in ("train", "eval")]


def table(folder, kind, rows):
    """Write metadata of one of the three kinds."""
    if kind == "csv":
        with (folder / "metadata.csv").open("w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


said = functools.partial(mistakes.said, both)


def test_class_folders(classes):
    train, held = both(classes, eval_share=0.3)
    assert len(train) + len(held) == 80
    assert 8 < len(held) < 40
    assert not {r.name for r in train.rows} & {r.name for r in held.rows}
    assert train.info["class_names"] == ["cat", "dog"]
    assert train.dims == {"image": 8, "channels": 3, "classes": 2}
    assert train.info["fingerprint"] == held.info["fingerprint"]
    for i, row in enumerate(train.rows):
        item = train[i]
        assert item["image"].shape == (8, 8, 3)
        assert item["image"].dtype == np.uint8
        assert train.info["class_names"][item["label"]] == row.name.split("/")[0]
        assert "caption" not in item
    json.dumps(train.info)


def test_split_of_a_file_does_not_depend_on_other_files(classes):
    before = {r.name for r in both(classes, eval_share=0.3)[1].rows}
    gone = sorted(before)[0]
    (classes / "photos" / gone).unlink()
    assert {r.name for r in both(classes, eval_share=0.3)[1].rows} == before - {gone}


def test_is_decoded_once_by_the_loader_and_streams_the_same_when_larger(classes, monkeypatch):
    source = pickle.loads(pickle.dumps(both(classes)[0]))
    held = decode(source)
    assert held["image"].shape == (len(source), 8, 8, 3)
    assert decode(source, memory=1000) is None
    np.testing.assert_array_equal(held["image"][3], source[3]["image"])
    batches = []
    for memory in (2 << 30, 1000):
        monkeypatch.setattr("lab.data.loader.decode", lambda s, m=memory: decode(s, m))
        loader = Loader(source, batch=4, seeds=[0, 1])
        batches.append(next(loader))
        loader.close()
    assert batches[0].keys() == batches[1].keys() == {"image", "label"}
    for k in batches[0]:
        np.testing.assert_array_equal(batches[0][k], batches[1][k])


def test_opens_by_name_with_its_defaults(classes):
    assert {"folder", "icons", "tfds"} <= set(find.names("lab.data"))
    assert not {"loader", "pixels", "stored"} & set(find.names("lab.data"))
    assert len(open_source({"name": "folder", "path": "photos", "size": 8}, "train", str(classes))) > 60
    with pytest.raises(UserError, match="nearest: 'eval_share'"):
        open_source({"name": "folder", "path": "photos", "size": 8, "eval_shar": 0.1}, "train", str(classes))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", ["text", "caption"])
def test_metadata_gives_captions_and_labels(tmp_path, kind, text):
    rng = np.random.default_rng(1)
    names = [f"{i}.png" for i in range(40)]
    for n in names:
        picture(tmp_path / "photos" / n, rng)
    picture(tmp_path / "photos" / "not-listed.png", rng)
    rows = [{"file_name": n, text: f"picture, number {i}", "label": (2, 10)[i % 2]} for i, n in enumerate(names)]
    table(tmp_path / "photos", kind, rows)
    train, held = both(tmp_path, eval_share=0.5)
    assert train.info["class_names"] == ["2", "10"]
    assert len(train) + len(held) == 40
    for source in (train, held):
        for i, row in enumerate(source.rows):
            item = source[i]
            assert item["caption"] == f"picture, number {row.name[:-4]}"
            assert item["label"] == int(row.name[:-4]) % 2


def test_without_classes_there_is_one(tmp_path):
    rng = np.random.default_rng(2)
    for i in range(20):
        picture(tmp_path / "photos" / f"{i}.png", rng)
    source = both(tmp_path, eval_share=0.5)[0]
    assert source.info["class_names"] == ["all"]
    assert source[0]["label"] == 0
    table(tmp_path / "photos", "csv", [{"file_name": f"{i}.png", "text": "x"} for i in range(20)])
    assert both(tmp_path, eval_share=0.5)[0].info["class_names"] == ["all"]


def test_fingerprint_is_of_names_and_bytes_and_captions_alone(classes, tmp_path):
    first = both(classes)[0].info["fingerprint"]
    (classes / "photos").rename(tmp_path / "moved")
    assert both(tmp_path / "elsewhere", path=str(tmp_path / "moved"))[0].info["fingerprint"] == first
    (tmp_path / "moved").rename(classes / "photos")
    assert both(classes)[0].info["fingerprint"] == first
    file = next(classes.glob("photos/cat/*.png"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert both(classes)[0].info["fingerprint"] != first
    file.write_bytes(whole)
    assert both(classes)[0].info["fingerprint"] == first
    file.rename(file.with_name("renamed.png"))
    assert both(classes)[0].info["fingerprint"] != first


def test_what_is_known_of_the_files_is_kept_and_may_be_lost(classes, monkeypatch):
    first = both(classes)[0].info["fingerprint"]
    cache = next((classes / ".digests").glob("*.json"))
    with monkeypatch.context() as m:
        m.setattr("hashlib.file_digest", None)  # nothing is read again
        assert both(classes)[0].info["fingerprint"] == first
    cache.write_text("{torn")
    assert both(classes)[0].info["fingerprint"] == first


def test_crop_is_centred_antialiased_and_keeps_what_is_upright():
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    assert (pixels.square(wide, 5, 3) == (0, 0, 255)).all()
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pixels.square(Image.fromarray(stripes), 8, 1)[:, 1:-1].astype(int) - 127).max() < 16
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    grey = pixels.square(Image.fromarray(ramp), 8, 1)[4, :, 0]
    assert np.abs(np.diff(grey.astype(int)) - 32).max() < 12
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (pixels.square(clear, 4, 3) == 255).all()


def test_palette_transparency_and_orientation_do_not_warn(tmp_path):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png", transparency=b"\xff\x00")
    upright = Image.new("RGB", (8, 16), "red")
    upright.paste("blue", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.save(tmp_path / "o.jpg", exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels.decode(str(tmp_path / "p.png"), 4, 3, "p") == 255).all()
        turned = pixels.decode(str(tmp_path / "o.jpg"), 8, 3, "o")
    assert turned[0, 4, 0] > 200
    assert turned[-1, 4, 2] > 200


def test_mistakes_are_one_line(classes):
    line = said(classes, path="fotos")
    assert "data.path='fotos'" in line
    assert "nearest: 'photos'" in line
    (classes / "empty").mkdir()
    assert "holds no images" in said(classes, path="empty")
    assert "eval_share=1e-06 leaves no image of 80" in said(classes, eval_share=1e-6)
    assert "data.eval_share=1.5" in said(classes, eval_share=1.5)
    assert "data.size='8'" in said(classes, size="8")
    assert "data.channels=2" in said(classes, channels=2)
    picture(classes / "photos" / "loose.png", np.random.default_rng(3))
    assert "'loose.png'" in said(classes)
    (classes / "photos" / "loose.png").unlink()
    (classes / "photos").rename(classes / "train")
    (classes / "split").mkdir()
    (classes / "train").rename(classes / "split" / "train")
    assert "/train" in said(classes, path="split")


def test_mistakes_in_a_table_are_one_line(classes):
    photos = classes / "photos"
    table(photos, "csv", [{"file_name": "cat/00.png", "text": "a"}, {"file_name": "cat/0.png", "text": "b"}])
    line = said(classes)
    assert "row 2: file_name='cat/0.png'" in line
    assert "nearest: 'cat/0" in line
    table(photos, "csv", [{"filename": "cat/00.png", "text": "a"}])
    assert "no column 'file_name' (nearest: 'filename')" in said(classes)
    table(photos, "csv", [{"file_name": "cat/00.png", "label": ""}])
    assert "'cat/00.png' has no label" in said(classes)
    (photos / "metadata.jsonl").write_text("")
    assert "both metadata.csv and metadata.jsonl" in said(classes)
    (photos / "metadata.csv").unlink()
    assert "no rows" in said(classes)
    (photos / "metadata.jsonl").write_text('{"file_name": ')
    assert "metadata.jsonl' cannot be read" in said(classes)
    (photos / "metadata.jsonl").unlink()
    (photos / "metadata.parquet").write_bytes(b"not parquet")
    assert "metadata.parquet' cannot be read" in said(classes)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>not found</html>"])
def test_a_damaged_image_is_named(classes, damage):
    train = both(classes)[0]
    i = next(i for i, r in enumerate(train.rows) if r.name.endswith(".jpg"))
    file = train.folder / train.rows[i].name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=train.rows[i].name) as e:
        decode(both(classes)[0])
    assert "\n" not in str(e.value)
