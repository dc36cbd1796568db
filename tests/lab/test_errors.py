"""What the user is told: the nearest name is the nearest, and every mistake at the command line is one line with exit code 2."""

import os
import subprocess
import sys

import families
import pytest

from lab import cli
from lab.data import loader
from lab.data.loader import decode
from lab.errors import UserError, nearest, ranked, unknown

KEYS = ["base.width", "model.width", "model.depth", "optim.lr", "optim.warmup", "train.steps"]


@pytest.mark.parametrize(
    "name, best",
    [
        ("modl.width", "model.width"),
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("model.lr", "optim.lr"),
        ("steps", "train.steps"),
        ("zzz", None),
    ],
)
def test_the_nearest_key(name, best):
    assert nearest(name, KEYS) == (f" (nearest: {best!r})" if best else "")


def test_files_are_not_near_for_their_suffix():
    assert nearest("experiments/quikstart.py", ["experiments/dit_width.py", "experiments/quickstart.py"]).endswith("quickstart.py')")


def test_the_nearest_of_many_are_listed_first():
    many = [f"zebra{i}" for i in range(40)] + ["optim.lr"]
    assert ranked("optim.lrr", many)[0] == "optim.lr"
    assert "expected one of: optim.lr" in str(unknown("config key", "optim.lrr", many))


@pytest.mark.parametrize(
    "argv, named",
    [
        (["statu", "x"], ["'statu'", "'status'"]),
        (["status"], ["study", "lab status --help"]),
        (["run", "x.py", "--workdirr=y"], ["'--workdirr=y'", "'--workdir'"]),
        (["sample", "x", "-n", "many"], ["-n", "'many'", "int"]),
        (["sample", "x", "-n", "0"], ["-n=0", "at least 1"]),
        (["sample", "x", "-n", "0"], ["-n=0"]),
        (["sample", "x", "--prompt", "a", "--judge", "oracle"], ["--prompt", "--judge"]),
        (["status", "x", "--config.optim.lr=1"], ["--config.optim.lr=1", "no meaning"]),
        (["data", "shw"], ["'shw'", "'show'"]),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(capsys, argv, named):
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("lab: ")
    assert all(n in line for n in named), line


def test_a_reader_that_is_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-u", "-m", "lab.cli", "data", "list"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


EXPERIMENT = '''"""Is it refused?"""
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(base=dict(width=32)))
    c.model, c.objective, c.data = dict({model}), dict({objective}), dict({data})
    c.train = dict(steps=1, batch=4)
    c.eval = dict(examples=4, batch=4, every=1)
    return c
'''
SOURCE = '''import numpy as np


class Source:
    """Tokens 0..3 and words 0..4, but for what is wrong in the example with the number `at`."""

    def __init__(self, split, data_dir, tokens=3, text=4, label=1, length=3, at=0, only=""):
        self.odd, self.length = (tokens, text, label), length
        self.at = at if only in ("", split) else -1
        self.dims = {"side": 2, "tokens": 4, "vocabulary": 4, "classes": 2, "words": 5, "length": 3}
        self.info = {"classes": 2, "class_names": ["a", "b"], "examples": 8, "origin": "odd", "fingerprint": "odd"}

    def __len__(self):
        return 8

    def __getitem__(self, i):
        tokens, text, label = self.odd if i == self.at else (0, 0, 0)
        filled = np.zeros(self.length, np.int32)
        filled[0] = text
        return {"tokens": np.full((2, 2), tokens, np.int32), "text": filled, "label": np.int32(label)}
'''


def refused(capsys, *argv):
    """The one line of a command that must exit with 2."""
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lab: ")]
    return line


def written(folder, family, data, **changes):
    """An experiment of a family on some data."""
    section, objective, _ = families.FAMILIES[family]
    told = {"model": {"name": family, **section, **changes}, "objective": objective, "data": data}
    (folder / "odd.py").write_text(EXPERIMENT.format(**{k: ", ".join(f"{a}={b!r}" for a, b in v.items()) for k, v in told.items()}))
    return folder / "odd.py"


@pytest.mark.parametrize(
    "family, changes, said",
    [
        ("dit", {"patch": 3}, "image size=8 is not a multiple of model.patch=3; nearest: 6 or 9"),
        ("uvit", {"patch": 5}, "image size=8 is not a multiple of model.patch=5; nearest: 5 or 10"),
        ("pixart", {"patch": 16}, "image size=8 is not a multiple of model.patch=16; nearest: 16"),
        ("pixart", {"patch": 4, "kv_compress": 3}, "image size / model.patch=2 is not a multiple of model.kv_compress=3"),
        ("mmdit", {"patch": 3}, "image size=8 is not a multiple of model.patch=3"),
        ("meissonic", {"compress": 3}, "side=8 is not a multiple of model.compress=3"),
    ],
)
def test_pictures_that_patches_do_not_divide_are_one_line(tmp_path, capsys, family, changes, said):
    data = dict(name="shapes", size=8, grid=1, density="short", extras=("text", "tokens"))
    assert said in refused(capsys, "run", written(tmp_path, family, data, **changes), "--workdir", tmp_path)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"tokens": 4}, "the data's 'tokens' lie in 4..4; expected 0 to 3, as the source says vocabulary=4"),
        ({"tokens": -1}, "the data's 'tokens' lie in -1..-1; expected 0 to 3"),
        ({"text": 5}, "the data's 'text' lie in 0..5; expected 0 to 4, as the source says words=5"),
        ({"label": 2}, "the data's 'label' lie in 2..2; expected -1 to 1, as the source says classes=2"),
        ({"tokens": 9, "only": "train"}, "the data's 'tokens' lie in 0..9"),
        ({"length": 4}, "text of 4 words is longer than the model was made for: length=3"),
    ],
)
def test_tokens_words_and_labels_that_no_table_has_are_one_line(tmp_path, capsys, options, said):
    """A device would read the nearest row without a word."""
    (tmp_path / "source.py").write_text(SOURCE)
    file = written(tmp_path, "decoder", {"name": str(tmp_path / "source.py"), **options}, text_depth=0)
    assert said in refused(capsys, "run", file, "--workdir", tmp_path)


def test_what_every_table_has_is_not_refused_and_a_streamed_set_is_looked_at_as_well(tmp_path, monkeypatch):
    (tmp_path / "source.py").write_text(SOURCE)
    config = {"name": str(tmp_path / "source.py")}
    for memory in (2 << 30, 0):
        monkeypatch.setattr(loader, "decode", lambda source, memory=memory: decode(source, memory))
        for options, fine in (({"label": -1}, True), ({}, True), ({"tokens": 4}, False)):
            source = loader.open_source(config | options, "train", "")
            if fine:
                feed = loader.Loader(source, 8, [0])
                assert next(feed)["tokens"].max() == 3
                feed.close()
            else:
                with pytest.raises(UserError, match=r"'tokens' lie in 0\.\.4"):
                    next(loader.Loader(source, 8, [0]))
