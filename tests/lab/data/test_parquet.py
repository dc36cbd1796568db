"""Images within parquet files: rows come back as they were stored, whatever the row groups, and mistakes are one line."""

import io
import pickle

import mistakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lab.data.loader import Loader, decode
from lab.data.parquet import Source

N = 90


def encoded(i):
    """A picture that tells its number."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), i, np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture(params=["struct", "plain"])
def data(request, tmp_path):
    """Two files of 60 and 30 rows in row groups of 7, images as Hugging Face stores them or as plain bytes."""
    (tmp_path / "set").mkdir()
    for name, rows in (("a", range(60)), ("b", range(60, N))):
        images = [{"bytes": encoded(i), "path": None} if request.param == "struct" else encoded(i) for i in rows]
        table = pa.table({"image": images, "label": [i % 11 for i in rows], "text": [f"number {i}" for i in rows]})
        pq.write_table(table, tmp_path / "set" / f"{name}.parquet", row_group_size=7)
    return tmp_path


def both(data, **options):
    options = {"path": "set", "size": 4, "eval_share": 0.2, **options}
    return [Source(s, str(data), **options) for s in ("train", "eval")]


def test_every_row_is_in_one_split_and_comes_back_as_stored(data):
    seen = []
    for source in both(data):
        for i in range(len(source)):
            item = source[i]
            number = int(item["caption"].split()[1])
            assert (item["image"] == number).all()
            assert item["image"].shape == (4, 4, 3)
            assert source.info["class_names"][item["label"]] == str(number % 11)
            assert source.caption(i) == item["caption"]
            seen.append(number)
    assert sorted(seen) == list(range(N))
    train, held = both(data)
    assert 5 < len(held) < 35
    assert train.info["class_names"] == [str(k) for k in range(11)]  # by number, not by letter


def test_row_groups_and_folders_change_nothing_but_the_split(data, tmp_path):
    tables = [pq.read_table(data / "set" / f"{n}.parquet") for n in "ab"]
    (tmp_path / "one").mkdir()
    for n, t in zip("ab", tables, strict=True):
        pq.write_table(t, tmp_path / "one" / f"{n}.parquet", row_group_size=1000)
    first, second = both(data)[0], Source("train", str(tmp_path), path="one", size=4, eval_share=0.2)
    assert len(first) == len(second)
    assert all((first[i]["image"] == second[i]["image"]).all() for i in range(len(first)))


def test_it_is_read_by_many_and_travels(data):
    source = both(data)[0]
    arrays = decode(source)
    again = pickle.loads(pickle.dumps(source))
    assert all((again[i]["image"] == arrays["image"][i]).all() for i in range(len(source)))
    loader = Loader(source, 8, [0])
    assert next(loader)["image"].shape == (1, 8, 4, 4, 3)
    loader.close()


def test_a_single_file_without_labels_has_one_class(data):
    table = pq.read_table(data / "set" / "a.parquet").select(["image"])
    pq.write_table(table, data / "bare.parquet")
    source = Source("train", str(data), path="bare.parquet", size=4)
    assert source.info["class_names"] == ["all"]
    assert set(source[0]) == {"image", "label"}


def test_a_changed_file_is_another_fingerprint(data):
    before = both(data)[0].info["fingerprint"]
    assert both(data)[1].info["fingerprint"] == before
    assert both(data, label="text")[0].info["fingerprint"] != before
    table = pq.read_table(data / "set" / "b.parquet")
    pq.write_table(table.slice(1), data / "set" / "b.parquet")
    assert both(data)[0].info["fingerprint"] != before


def test_mistakes_are_one_line(data):
    def said(**options):
        return mistakes.said(lambda: both(data, **options)[0][0])

    assert "nearest: 'set'" in said(path="sett")
    assert "data.image='imge'" in said(image="imge")
    assert "nearest: 'image'" in said(image="imge")
    assert "data.label='lable'" in said(label="lable")
    assert "holds no encoded image" in said(image="text")
    assert "data.eval_share=2.0" in said(eval_share=2.0)
    file = data / "set" / "a.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert "a.parquet" in said()
    file.write_bytes(b"PAR1 of another kind")
    assert "a.parquet" in said()
