"""docs/extending.md does what it says: its files, in a folder of their own, are trained, audited and checked."""

import re
from pathlib import Path

import pytest

from lab import cli, record

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
OWN = """
from mine import get_config as other

def get_config():
    c = other()
    c.model = dict(name="./pixels.py", width=32)
    return c
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with the page's files in it."""
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).write_text(text)
    (tmp_path / "own.py").write_text('"""Does an MLP over pixels learn them too?"""\nimport sys\nsys.path.insert(0, "")\n' + OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parts_of_ones_own_train_and_their_arrows_are_true(here, capsys):
    assert cli.main(["run", "mine.py", "--config.sample.n=0"]) == 0
    rows = record.table("runs/mine").to_pylist()
    assert {r["arm"] for r in rows} == {"attention", "./linear.py"}
    for arm in ("attention", "./linear.py"):
        losses = [r["eval_loss"] for r in rows if r["arm"] == arm and r["eval_loss"] is not None]
        assert losses[-1] < 0.8 * losses[0], losses
    for file, changed in (("mine.py", "--config.model.mixer=./linear.py"), ("own.py", "--config.seed=1")):
        assert cli.main(["audit", file, changed]) == 0
        assert "every arrow is true" in capsys.readouterr().out


def test_a_transform_of_ones_own_begins_from_what_was_trained(here, capsys):
    alone = ["--config.model.mixer=./linear.py", "--config.sample.n=0", "--config.train.steps=6"]
    assert cli.main(["run", "mine.py", *alone]) == 0
    warm = ["--config.init.study=runs/mine", "--config.init.transform=./shrink.py"]
    assert cli.main(["run", "mine.py", "--workdir", "again", *alone, *warm]) == 0
    trials = [t for w in ("runs", "again") for t in record.read_study(f"{w}/mine")["trials"].items()]
    assert trials[0][0] != trials[1][0]
    assert trials[1][1]["begun"]["after"] == 1
    (here / "shrink.py").write_text((here / "shrink.py").read_text() + "\n# another\n")  # its text is part of the trial
    assert cli.main(["run", "mine.py", "--workdir", "again", *alone, *warm]) == 0
    assert len(record.read_study("again/mine")["trials"]) == 2


def test_an_optimizer_of_ones_own_trains_and_its_numbers_are_traced(here):
    path = here / "mine.py"
    changed = path.read_text().replace('yield {"model.mixer": mixer, "arm": mixer}', 'yield {"optim.alpha": 2.0 if "/" in mixer else 0.5}')
    path.write_text(changed.replace("c.optim = dict(", 'c.optim = dict(name="./ademamix.py", '))
    assert cli.main(["run", "mine.py", "--config.sample.n=0"]) == 0
    assert len(record.read_study("runs/mine")["populations"]) == 1
    rows = record.table("runs/mine").to_pylist()
    last = [r["eval_loss"] for r in rows if r["step"] == 40]
    first = [r["eval_loss"] for r in rows if r["step"] == 0]
    assert last[0] != last[1]
    assert max(last) < 0.8 * min(first)


@pytest.mark.parametrize("file, changed", [("linear.py", ()), ("ademamix.py", ("--config.optim.name=./ademamix.py",))])
def test_the_text_of_a_part_is_part_of_a_trials_identity(here, file, changed):
    from lab.experiment import load
    from lab.trials import expand

    before = expand(load("mine.py", changed), "data")[1].id
    assert expand(load("mine.py", changed), "data")[1].id == before
    (here / file).write_text((here / file).read_text() + "\n# another\n")
    assert expand(load("mine.py", changed), "data")[1].id != before


@pytest.mark.parametrize(
    "key, value, said", [("mixer", "atention", "'attention'"), ("mixer", "swiglu", "Mixer(dims, qk_norm)"), ("mixer", "rope", "rope")]
)
def test_a_wrong_mixer_is_one_line(here, capsys, key, value, said):
    (here / "mine.py").write_text((here / "mine.py").read_text().replace('"./linear.py"', f'"{value}"'))
    assert cli.main(["run", "mine.py"]) == 2
    *stages, error = capsys.readouterr().err.splitlines()
    assert said in error
    assert stages == ["mine: opening data"]


TOKENIZER = '''"""Does a tokenizer of one's own learn stripes?"""
import sys
sys.path.insert(0, "")
from mine import get_config as other

def get_config():
    c = other()
    c.model = dict(name="./binary.py", width=32, patch=2, code=6)
    c.objective = dict(name="reconstruct", weight=0.1)
    c.sample = dict(n=4)
    c.judge = dict(names=("rate",), n=16)
    return c
'''


def test_a_tokenizer_of_ones_own_trains_encodes_and_its_state_moves(here, capsys):
    from lab import coded
    from lab.data.loader import open_source
    from lab.sampling import restored

    (here / "tok.py").write_text(TOKENIZER)
    assert cli.main(["run", "tok.py"]) == 0
    rows = [r for r in record.table("runs/tok").to_pylist() if r["eval_ema"] is not None]
    assert rows[-1]["eval_loss"] < 0.6 * rows[0]["eval_loss"]
    assert rows[-1]["rate_bits"] == 16 * 6
    assert cli.main(["audit", "tok.py"]) == 0
    assert "every arrow is true" in capsys.readouterr().out
    means = restored(Path("runs/tok")).weights.means.get_value()
    assert float(abs(means).max()) > 1e-3
    given = ["./stripes.py", "examples=64", "--with", "runs/tok", "--to", "set", "--eval-examples", "32"]
    assert cli.main(["data", "encode", *given]) == 0
    section = dict(name="encoded", path="set")
    source, real = open_source(section, "train", "data"), open_source(dict(name="./stripes.py", examples=64), "train", "data")
    tokenizer = coded.of(section, source.info, "data")
    error = [((tokenizer.pictures({"tokens": source[i]["tokens"]}) - real[i]["image"] / 127.5 + 1) ** 2).mean() for i in range(8)]
    assert sum(error) / 8 < 0.4  # stripes vary by 0.5
