"""`lab data list` and `lab data show`: every source is listed, and a world's examples become a picture with its truth below."""

import numpy as np
import pytest

from lab import find, report
from lab.cli import main


def test_every_source_is_listed_with_what_it_is(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == find.names("lab.data")
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    "text, said",
    [
        (["shw", "icons"], "expected one of: show, list, build, encode, verify"),
        (["show"], "wants the name of a source"),
        (["show", "icns"], "nearest: 'icons'"),
        (["build", "icons", "sze=16"], "nearest: 'size'"),
        (["build", "folder"], "nothing to build"),
        (["verify", "encoded"], "wants path="),
        (["show", "icons", "16"], "expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, said, capsys):
    assert main(["data", *text]) == 2
    out = capsys.readouterr().err
    assert said in out
    assert out.count("\n") == 1


class Tokens:
    info = {"class_names": ["a", "b"]}  # noqa: RUF012

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"tokens": np.full((2, 2), i, np.int32), "label": np.int32(i % 2)}


def test_tokens_are_shown_on_a_grey_scale():
    images, names = report.examples(Tokens(), 8)
    assert images.shape == (3, 2, 2, 1)
    assert [int(x[0, 0, 0]) for x in images] == [0, 127, 255]
    assert names == ["a", "b", "a"]
