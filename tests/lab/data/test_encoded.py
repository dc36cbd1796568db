"""Encoded sets hold what the function gave, in the same bytes however often the writer dies, and no damage goes unnamed."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import encoders
import ml_dtypes
import numpy as np
import pytest

from lab.cli import main
from lab.data import encode, encoded, shards
from lab.data import loader as loading
from lab.data.loader import Loader, decode, open_source
from lab.data.moments import Moments
from lab.errors import UserError

FILE = encoders.__file__
OPTIONS = dict(batch=4, shard_examples=16)  # four shards, the last with a part of a batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An encoded set of both splits, never to be changed."""
    at = tmp_path_factory.mktemp("whole")
    encode.encode({"name": FILE}, str(at), f"{FILE}:half", "set", **OPTIONS)
    return at


@pytest.fixture
def copy(whole, tmp_path):
    """A set to damage, in its own data_dir."""
    shutil.copytree(whole / "set", tmp_path / "set")
    return tmp_path


def files(folder):
    """Bytes of every file that shows."""
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if not p.name.startswith(".")}


def shard(at, k=1):
    return at / "set" / "train" / shards.file_name(k, 4)


def test_items_are_what_the_function_gave_rounded_once(whole):
    source, given = encoded.Source("train", str(whole), "set"), encoders.Source()
    assert len(source) == 50
    for i in (0, 15, 16, 47, 48, 49):
        batch = {k: np.asarray(v)[None] for k, v in given[i].items() if k != "caption"}
        want = {k: np.asarray(v)[0].astype(ml_dtypes.bfloat16).astype(np.float32) for k, v in encoders.half(batch).items()}
        item = source[i]
        assert item["image"].dtype == item["text"].dtype == np.float32
        np.testing.assert_array_equal(item["image"], (want["image"] - 0.25) * 2)
        np.testing.assert_array_equal(item["text"], want["text"])
        assert (item["label"], item["label"].dtype, item["caption"]) == (i % 3, np.int32, "é" * (i % 5))
    assert source.dims == {"image": 2, "channels": 2, "classes": 3, "length": 1, "features": 2}
    assert source.info["class_names"] == list("abc")
    assert source.info["origin"] == "half of numbers"
    assert (source.info["image"], source.info["skipped"], source.info["best_loss"]) == ([2, 2, 2], 0, None)
    held = encoded.Source("eval", str(whole), "set")
    np.testing.assert_array_equal(source.__getitems__([40, 3, 3])[1]["image"], source[3]["image"])
    assert (held[0]["image"] != source[0]["image"]).any()


def test_moments_of_the_card_are_those_of_what_is_stored(whole):
    card = json.loads((whole / "set" / "train" / encode.CARD).read_text())
    source = encoded.Source("train", str(whole), "set")
    for key, channels in (("image", 2), ("text", 2)):
        x = np.stack([source[i][key] for i in range(50)]).astype(np.float64).reshape(-1, channels)
        x = x / 2 + 0.25 if key == "image" else x
        np.testing.assert_allclose(card["moments"][key]["mean"], x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(card["moments"][key]["std"], x.std(0), rtol=1e-12)
    assert card["moments"].keys() == {"image", "text"}
    assert source.info["moments"] == card["moments"]["image"]


def test_moments_are_exact_and_know_no_order():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 3)) * 10.0 ** rng.integers(-40, 30, (300, 3))).astype(ml_dtypes.bfloat16)
    x[0] = [0.0, -0.0, 2.0**-133]  # the least number there is
    one, other = Moments(3), Moments(3)
    one.add(x)
    for part in np.array_split(x[rng.permutation(300)], 7):
        other.add(part)
    assert one.result() == other.result()
    for c in range(3):
        exact = [Fraction(float(v)) for v in x[:, c]]
        mean = sum(exact) / 300
        assert one.result()["mean"][c] == float(mean)
        assert one.result()["std"][c] == float(sum((v - mean) ** 2 for v in exact) / 300) ** 0.5
    least = Moments(1)
    least.add(np.array([[2.0**-133], [2.0**-131]], ml_dtypes.bfloat16))  # without a leading one
    assert least.result()["mean"] == [5 * 2.0**-134]
    naive = np.float64(x[:, 0]).mean()
    assert abs(Fraction(naive) - sum(Fraction(float(v)) for v in x[:, 0]) / 300) > 0  # what float64 alone gives is not exact


@pytest.mark.parametrize("devices", [1, 2])
def test_the_same_job_gives_the_same_bytes_on_any_number_of_devices(whole, tmp_path, devices):
    encode.encode({"name": FILE}, str(tmp_path), f"{FILE}:half", "set", devices=devices, **OPTIONS)
    mine, theirs = files(tmp_path / "set" / "train"), files(whole / "set" / "train")
    assert json.loads(mine.pop(encode.CARD))["devices"] == devices
    assert json.loads(theirs.pop(encode.CARD))["devices"] == 2
    assert mine == theirs


def test_tokens_and_what_reads_captions_run_as_they_are(tmp_path):
    encode.write(encoders.Source(), encoders.tokens, tmp_path / "set" / "train", vocabulary=4, **OPTIONS)
    source = encoded.Source("train", str(tmp_path), "set")
    assert source.dims == {"side": 4, "tokens": 16, "vocabulary": 4, "classes": 3}
    item = source[9]
    assert item["tokens"].dtype == np.uint16
    np.testing.assert_array_equal(item["tokens"], encoders.Source()[9]["image"][..., 0] // 64)
    assert item["length"] == 4
    assert json.loads((tmp_path / "set" / "train" / encode.CARD).read_text())["devices"] == 0


def test_killed_at_any_batch_and_run_again_the_bytes_are_the_same(tmp_path):
    source, calls = encoders.Source(), 0

    def dying(batch):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return encoders.tokens(batch)

    for stop in (0, 1, 2, 5, 6, 9, 14):
        calls, folder = 0, tmp_path / str(stop) / "train"
        if stop:
            with pytest.raises(KeyboardInterrupt):
                encode.write(source, dying, folder, vocabulary=4, **OPTIONS)
            before = {p: p.stat().st_ino for p in folder.glob("data-*")}
            with pytest.raises(UserError, match=r"not finished|no encoded set"):
                encoded.Source("train", str(tmp_path), str(stop))
            stop = 0
            encode.write(source, dying, folder, vocabulary=4, **OPTIONS)
            assert all(p.stat().st_ino == ino for p, ino in before.items())  # what was done is kept
        else:
            encode.write(source, dying, folder, vocabulary=4, **OPTIONS)
        assert files(folder) == files(tmp_path / "0" / "train")


def test_a_process_killed_midway_leaves_nothing_torn(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, FILE, str(folder)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / f".{shards.file_name(2, 4)}.tmp").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {p.name: p.stat().st_ino for p in folder.glob("data-*")}
    assert len(done) == 2
    for at in (folder, tmp_path / "straight"):
        encode.write(encoders.Source(), encoders.slow, at, **OPTIONS)
    assert files(folder) == files(tmp_path / "straight")
    assert {p.name: p.stat().st_ino for p in folder.glob("data-*")}.items() >= done.items()


def test_a_shard_that_was_damaged_is_made_again_and_only_that_one(copy):
    before = files(copy / "set" / "train")
    flip(shard(copy), 3000)
    stat = shard(copy, 0).stat()
    encode.encode({"name": FILE}, str(copy), f"{FILE}:half", "set", **OPTIONS)
    assert files(copy / "set" / "train") == before
    assert shard(copy, 0).stat() == stat


def test_two_writers_take_turns(tmp_path, capsys):
    calls = []

    def counted(batch):
        calls.append(len(batch["label"]))
        return encoders.slow(batch)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(encode.write, encoders.Source(), counted, tmp_path / "train", **OPTIONS) for _ in range(2)]
        assert [j.result() for j in jobs] == [tmp_path / "train"] * 2
    assert len(calls) <= 13 + 2 * 2  # one set, and what each learns the shapes from
    assert "waiting for another process" in capsys.readouterr().err


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_no_flipped_bit_changes_an_example(copy):
    source = encoded.Source("train", str(copy), "set")
    want = source.__getitems__(range(16, 32))
    rng, sound, data = np.random.default_rng(0), 0, shard(copy).read_bytes()
    used = len(data.rstrip(b"\0"))
    for at in [*rng.integers(0, 4096, 60), *rng.integers(0, used, 60)]:
        shard(copy).write_bytes(data)
        flip(shard(copy), int(at), int(rng.integers(8)))
        got, said = None, ""
        try:
            got = encoded.Source("train", str(copy), "set").__getitems__(range(16, 32))
        except UserError as e:
            said = str(e)
        if got is None:
            assert str(shard(copy)) in said
            assert "\n" not in said
            continue
        sound += 1  # a bit that no reader looks at
        for a, b in zip(got, want, strict=True):
            assert all(np.array_equal(a[k], b[k]) for k in b)
        with pytest.raises(UserError, match=r"does not have its checksum|is damaged"):
            encoded.verify(str(copy), "set")
    assert 0 < sound < 110


def test_the_records_own_checksum_finds_what_the_file_format_does_not(copy):
    layout = shards.Layout(json.loads((copy / "set" / "train" / encode.CARD).read_text())["made"]["fields"])
    example = {"image": np.ones((2, 2, 2), ml_dtypes.bfloat16), "text": np.ones(2, ml_dtypes.bfloat16), "label": np.int32(1)}
    record = layout.pack(5, example, "ab")
    assert layout.unpack(5, record)[1] == "ab"
    assert layout.unpack(6, record) is None  # whole, but another example's
    for at in range(len(record)):
        assert layout.unpack(5, record[:at] + bytes([record[at] ^ 4]) + record[at + 1 :]) is None
        assert layout.unpack(5, record[:at]) is None


def rewrite(path, records):
    """Valid files with other records, as a careless copy makes them."""
    path.unlink()
    writer = shards.ArrayRecordWriter(str(path), shards.WRITE)
    for r in records:
        writer.write(r)
    writer.close()


def swap(path):
    records = shards.ArrayRecordReader(str(path), shards.READ).read_all()
    rewrite(path, [*records[:3], records[4], records[3], *records[5:]])


DAMAGE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-70000]), "is damaged", 16),
    "emptied": (lambda p: p.write_bytes(b""), "is damaged", 16),
    "missing": (lambda p: p.unlink(), "is missing", 16),
    "foreign": (lambda p: p.write_text("hello" * 20000), "is damaged", 16),
    "a neighbour": (lambda p: shutil.copy(p.with_name(shards.file_name(0, 4)), p), "is foreign", 16),
    "swapped": (swap, "record 2 is damaged: its checksum does not hold", 2),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_one_line_or_left_out_and_counted(copy, capsys, kind):
    damage, said, lost = DAMAGE[kind]
    fingerprint = encoded.Source("train", str(copy), "set", skip_damaged=True).info["fingerprint"]
    assert fingerprint == encoded.Source("train", str(copy), "set").info["fingerprint"]
    damage(shard(copy))
    with pytest.raises(UserError, match=f"{re.escape(str(shard(copy)))}.*{said}"):
        encoded.Source("train", str(copy), "set").__getitems__(range(50))
    assert main(["data", "verify", "encoded", "path=set", "--data-dir", str(copy)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line
    assert f"{lost} of 50 examples are lost" in line
    source = encoded.Source("train", str(copy), "set", skip_damaged=True)
    assert (len(source), source.info["skipped"], source.info["examples"]) == (50 - lost, lost, 50 - lost)
    assert source.info["fingerprint"] != fingerprint
    left = [i for i in range(50) if i not in (range(16, 32) if lost == 16 else (18, 19))]
    for mine, true in zip(range(len(source)), left, strict=True):
        assert source[mine]["label"] == true % 3
    assert main(["data", "verify", "encoded", "path=set", "skip_damaged=True", "--data-dir", str(copy)]) == 0
    told = capsys.readouterr().out
    assert f"{lost} left out" in told
    assert "eval: 4 shards, 50 examples, sound" in told


def test_a_flipped_record_is_told_and_its_neighbours_are_kept(copy):
    data = shard(copy).read_bytes()
    record = shards.ArrayRecordReader(str(shard(copy)), shards.READ).read([8])[0]
    flip(shard(copy), data.index(record) + 10)
    with pytest.raises(UserError, match=rf"{re.escape(str(shard(copy)))}' record 7 is damaged"):
        encoded.Source("train", str(copy), "set").__getitems__(range(16, 32))
    source = encoded.Source("train", str(copy), "set", skip_damaged=True)
    assert (len(source), source.info["skipped"]) == (49, 1)


def test_a_set_that_is_not_there_not_whole_or_not_ours_is_named(copy):
    train = copy / "set" / "train"
    for path, said in (("sett", r"nearest: 'set'"), (".", "is no encoded set")):
        with pytest.raises(UserError, match=said):
            encoded.Source("train", str(copy), path)
    card = train / encode.CARD
    good = card.read_text()
    for text, said in (("{", "is damaged"), ("{}", "is damaged"), (good.replace('"complete": true', '"complete": false'), "not finished")):
        card.write_text(text)
        with pytest.raises(UserError, match=said):
            encoded.Source("train", str(copy), "set")
    card.write_text(good)
    (train / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt' is foreign"):
        encoded.verify(str(copy), "set")
    shutil.rmtree(copy / "set" / "eval")
    with pytest.raises(UserError, match="has no split 'eval'"):
        encoded.Source("eval", str(copy), "set")


def nan(batch):
    return {"image": np.full((len(batch["label"]), 2, 2, 1), np.nan)}


@pytest.mark.parametrize(
    "function, said",
    [
        (nan, "'image' has numbers that are not finite"),
        (lambda b: {"images": b["image"]}, "gives images; expected 'image' or 'tokens'"),
        (lambda b: {"image": b["image"][:2]}, "one row an example of 4"),
        (lambda b: {"image": b["image"][:, :2]}, "expected .batch, side, side, channels."),
        (lambda b: {"tokens": b["label"]}, r"lie in 0\.\.2; expected below vocabulary=0"),
        (lambda b: {"image": b["imag"]}, "fails: KeyError: 'imag'"),
        (lambda b: b["image"], "expected a dict"),
        (lambda b: {"image": b["image"], "text": b["label"]}, r"'text' has shape \(4,\) and type int32; expected floats .batch, length, f"),
        (lambda b: {"image": b["image"], "text": b["image"][:, 0]}, "'text' .* type uint8; expected floats"),
        (lambda b: {"image": b["image"], "pooled": b["image"] / 255.0}, "'pooled' .* expected floats .batch, features."),
    ],
)
def test_what_a_function_may_not_give_is_said_before_anything_is_written(tmp_path, function, said):
    with pytest.raises(UserError, match=said):
        encode.write(encoders.Source(), function, tmp_path / "train", **OPTIONS)
    assert not (tmp_path / "train").exists()


def test_endless_sources_other_sets_and_other_files_are_refused(whole, tmp_path):
    endless = open_source({"name": "field"}, "train", "")
    with pytest.raises(UserError, match=r"endless .* give examples=N"):
        encode.write(endless, encoders.half, tmp_path / "train")
    with pytest.raises(UserError, match=r"holds another set: its scale is 2\.0, this one's is 3\.0; choose another --to"):
        encode.write(encoders.Source(), encoders.half, whole / "set" / "train", name="half", scale=3.0, shift=0.25, **OPTIONS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="holds files that are no encoded set"):
        encode.write(encoders.Source(), encoders.half, tmp_path / "photos", **OPTIONS)
    with pytest.raises(UserError, match="batch=3 must be a multiple of the number of devices, 2"):
        encode.write(encoders.Source(), encoders.half, tmp_path / "train", batch=3, devices=2)


def test_the_command_makes_a_set_that_the_loader_reads_streamed_or_held(tmp_path, capsys, monkeypatch):
    at = ["--data-dir", str(tmp_path), "--batch", "4", "--shard-examples", "16"]
    assert main(["data", "encode", FILE, "examples=20", "--with", f"{FILE}:half", "--to", "latents", "--eval-examples", "8", *at]) == 0
    said = capsys.readouterr().out
    assert "train: 2 shards, 20 examples, sound" in said
    assert "eval: 1 shards, 8 examples, sound" in said
    assert 'c.data = dict(name="encoded", path="latents")' in said
    source = pickle.loads(pickle.dumps(open_source({"name": "encoded", "path": "latents"}, "train", str(tmp_path))))
    assert decode(source).keys() == {"image", "text", "label"}
    both = [Loader(source, 6, [0, 1])]
    monkeypatch.setattr(loading, "decode", lambda source: None)
    both.append(Loader(source, 6, [0, 1]))
    for _ in range(4):
        a, b = (next(loader) for loader in both)
        assert all(np.array_equal(a[k], b[k]) for k in a.keys() | b.keys())
    for loader in both:
        loader.close()


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "wants --with"),
        (["--with", "x.py"], "wants --to"),
        (["--with", "x.py", "--to", "a"], "expected FILE.py:FUNCTION"),
        (["--with", f"{FILE}:hal", "--to", "a"], "nearest: 'half'"),
        (["--with", "nowhere.py:half", "--to", "a"], "does not exist"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(tmp_path, capsys, more, said):
    assert main(["data", "encode", FILE, "--data-dir", str(tmp_path), *more]) == 2
    assert said in capsys.readouterr().err


def test_arrays_that_change_from_batch_to_batch_are_refused(tmp_path):
    """Two examples a batch: captions of up to 1 letter, then 3, then 4."""
    with pytest.raises(UserError, match="change from batch to batch") as e:
        encode.write(encoders.Source(), encoders.ragged, tmp_path / "set", batch=2)
    assert "'shape': [1, 1]" in str(e.value)
    assert "\n" not in str(e.value)


def test_tokens_are_checked_beside_a_picture(tmp_path):
    encode.write(encoders.Source(), encoders.both, tmp_path / "set" / "train", batch=8, vocabulary=4)
    with pytest.raises(UserError, match=r"'tokens' lie in 0\.\.3; expected below vocabulary=3"):
        encode.write(encoders.Source(), encoders.both, tmp_path / "other", batch=8, vocabulary=3)


@pytest.mark.parametrize("key, value", [("devices", -1), ("examples", -5), ("batch", 0)])
def test_numbers_that_cannot_be_are_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=f"{key}={value} must be a whole number"):
        encode.write(encoders.Source(), encoders.half, tmp_path / "set", **{key: value})


def test_damage_comes_whole_out_of_a_worker_process():
    damage = pickle.loads(pickle.dumps(shards.Damage(Path("a"), "is cut off", 3)))
    assert (str(damage), damage.path, damage.record) == ("shard 'a' record 3 is cut off", Path("a"), 3)


def test_tokens_pictures_and_features_of_one_set_all_have_sizes(tmp_path):
    def all_of_it(batch):
        return {**encoders.half(batch), **encoders.tokens(batch), "pooled": np.ones((len(batch["label"]), 7), np.float32)}

    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    encode.write(encoders.Source(), all_of_it, tmp_path / "set" / "train", vocabulary=4, palette=colours, **OPTIONS)
    source = encoded.Source("train", str(tmp_path), "set")
    sizes = {"image": 2, "channels": 2, "side": 4, "tokens": 16, "vocabulary": 4, "length": 1, "features": 2, "pooled_features": 7}
    assert source.dims == sizes | {"classes": 3}
    assert (source.info["image"], source.info["tokens"]) == ([2, 2, 2], [4, 4])
    assert source.info["palette"] == [list(c) for c in colours]
    wrapped = open_source({"name": "text", "source": {"name": "encoded", "path": "set"}, "length": 9}, "train", str(tmp_path))
    assert (wrapped[3]["text"].shape, wrapped.dims["length"], "features" in wrapped.dims) == ((9,), 9, False)  # tokens in place of features


@pytest.mark.parametrize(
    "palette", [[(0,)] * 3, [(0, 0)] * 4, [(256,)] * 4, [(-1,)] * 4, [(0.5,)] * 4, [0, 1, 2, 3], [(0,), (1,), (2,), (1, 2, 3)]]
)
def test_a_palette_that_colours_no_pictures_is_refused(tmp_path, palette):
    with pytest.raises(UserError, match=r"PALETTE of shape .* for every token, of which there are VOCABULARY=4") as e:
        encode.write(encoders.Source(), encoders.tokens, tmp_path / "train", vocabulary=4, palette=palette, **OPTIONS)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"PALETTE colours tokens \[batch, height, width\], of which the function gives none"):
        encode.write(encoders.Source(), encoders.half, tmp_path / "train", palette=[(0,)] * 4, **OPTIONS)
