"""What the user is told: the nearest name is the nearest, and every mistake at the command line is one line with exit code 2."""

import pytest

from lab import cli
from lab.errors import nearest, ranked, unknown

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
