"""A real, tiny tensorflow-datasets set, built and read back without tensorflow."""

import functools
import json
import pickle
import shutil
import sys

import mistakes
import numpy as np
import pytest
from PIL import Image

from lab.data.icons.builder import Icons
from lab.data.loader import decode
from lab.data.stored import quiet_tfds
from lab.data.tfds import Source
from lab.errors import UserError

with quiet_tfds() as tfds:
    base = tfds.core.GeneratorBasedBuilder


class Tiles(base):
    """Flat tiles of one grey each, as PNG files (an Image feature) or as arrays."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, *, sizes, files=None, label=True, shape=(12, 10, 3), version="1.0.0", **kwargs):
        self.sizes, self.files, self.label, self.shape, self.VERSION = sizes, files, label, shape, tfds.core.Version(version)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3)) if self.files else tfds.features.Tensor(shape=self.shape, dtype=np.uint8)
        features = {"image": image, "caption": tfds.features.Text()}
        if self.label:
            features["label"] = tfds.features.ClassLabel(names=["even", "odd"])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), description="tiles")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in self.sizes.items()}

    def _generate_examples(self, split, n):
        for i in range(n):
            image = np.full(self.shape, 2 * i, np.uint8)
            if self.files:
                path = self.files / f"{split}{i}.png"
                Image.fromarray(image).save(path)
                image = str(path)
            row = {"image": image, "caption": f"{split} {i}"}
            yield i, {**row, "label": i % 2} if self.label else row


def build(data_dir, **options):
    """Build tiles in data_dir."""
    with quiet_tfds():
        Tiles(data_dir=str(data_dir), **options).download_and_prepare()


def both(data_dir, dataset="tiles", size=8, channels=3):
    """Train and eval source."""
    return [Source(s, str(data_dir), dataset, size, channels) for s in ("train", "eval")]


said = functools.partial(mistakes.said, both)


@pytest.mark.parametrize("encoded", [False, True])
def test_reads_back_what_was_built(tmp_path, encoded, recwarn, capfd):
    (tmp_path / "png").mkdir()
    build(tmp_path, sizes={"train": 20, "test": 6, "validation": 4}, files=tmp_path / "png" if encoded else None)
    capfd.readouterr()
    train, held = both(tmp_path)
    assert [len(train), len(held)] == [20, 4]
    assert train.dims == {"image": 8, "channels": 3, "classes": 2}
    assert train.info["class_names"] == ["even", "odd"]
    assert train.info["origin"] == "tfds tiles/1.0.0"
    for source, name in ((train, "train"), (held, "validation")):
        numbers = set()
        for item in (source[i] for i in range(len(source))):
            split, i = item["caption"].split()
            numbers.add(int(i))
            assert split == name
            assert item["label"] == int(i) % 2
            assert item["image"].shape == (8, 8, 3)
            assert (item["image"] == 2 * int(i)).all()
        assert numbers == set(range(len(source)))
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(decode(copy)["image"], decode(train)["image"])
    json.dumps(train.info)
    assert "tensorflow" not in sys.modules
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_holds_out_the_end_of_train_where_there_is_nothing_else(tmp_path):
    build(tmp_path, sizes={"train": 40}, label=False, shape=(5, 5, 1))
    train, held = both(tmp_path, channels=1)
    assert [len(train), len(held)] == [38, 2]
    assert not {train[i]["caption"] for i in range(38)} & {held[i]["caption"] for i in range(2)}
    assert train.info["class_names"] == ["all"]
    assert train[0]["label"] == 0
    assert train[0]["image"].shape == (8, 8, 1)


def test_reads_the_icons_builder(tmp_path):
    with quiet_tfds():
        Icons(size=8, sets=("octicons",), data_dir=str(tmp_path)).download_and_prepare()
    train, held = both(tmp_path, "icons", channels=1)
    assert len(train) > 10 * len(held) > 0
    assert train.info["class_names"] == ["octicons"]


def test_newest_version_unless_one_is_named(tmp_path):
    for version, n in (("1.9.0", 4), ("1.10.0", 6)):
        build(tmp_path, sizes={"train": n, "test": 2}, version=version)
    assert len(both(tmp_path)[0]) == 6
    assert len(both(tmp_path, "tiles:1.9.0")[0]) == 4
    line = said(tmp_path, "tiles:1.8.0")
    assert "version '1.8.0' is unknown" in line
    assert "expected one of: 1.10.0, 1.9.0" in line


def test_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path):
    build(tmp_path / "a", sizes={"train": 8, "test": 2})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    build(tmp_path / "c", sizes={"train": 9, "test": 2})
    a, b, c = (both(tmp_path / n)[0].info["fingerprint"] for n in "abc")
    assert a == b != c


def test_mistakes_are_one_line(tmp_path):
    build(tmp_path, sizes={"train": 4, "test": 2})
    line = said(tmp_path, "tile")
    assert "nearest: 'tiles'" in line
    assert f"tfds.builder('tile', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()" in line
    assert "data.channels=4" in said(tmp_path, channels=4)
    assert "split 'trian' is unknown (nearest: 'train')" in _split_said(tmp_path)
    info = tmp_path / "tiles" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    line = said(tmp_path)
    assert "as tfrecord" in line
    assert "file_format='array_record'" in line


def _flip(b):
    return b[:1000] + bytes([b[1000] ^ 1]) + b[1001:]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[: len(b) // 3], lambda b: b"", _flip])
def test_a_damaged_shard_is_named(tmp_path, damage):
    build(tmp_path, sizes={"train": 40, "test": 2})
    shard = next((tmp_path / "tiles" / "1.0.0").glob("*train*"))
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=r"'tiles\[\d+\]' cannot be read") as e:
        decode(both(tmp_path)[0])
    assert "\n" not in str(e.value)


def test_a_set_with_configs_lists_them(tmp_path):
    build(tmp_path, sizes={"train": 4, "test": 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "tiles").rename(tmp_path / "set" / "small")
    assert "expected one of: set/small" in said(tmp_path, "set")
    assert len(both(tmp_path, "set/small")[0]) == 4


def _split_said(data_dir):
    with pytest.raises(UserError) as e:
        Source("trian", str(data_dir), "tiles", 8, 3)
    return str(e.value)


def test_a_set_without_images_or_train_is_refused(tmp_path):
    build(tmp_path, sizes={"test": 2})
    assert "has no split 'train'; it has: test" in said(tmp_path)
    features = tmp_path / "tiles" / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace('"image"', '"picture"'))
    assert "no feature 'image'" in said(tmp_path)
    features.write_text("{")
    assert "tiles/1.0.0' cannot be read" in said(tmp_path)
