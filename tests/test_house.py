"""The house stands: files import from lower floors only, analysis runs without jax, experiments are short and whole."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lab.experiment import load
from sharding import exits

ROOT = Path(__file__).resolve().parents[1]

# floor of every file or folder; the first prefix that fits counts. find.py and errors.py stand in the cellar: all may use them
FLOORS = {
    "lab.cli": 9,
    "lab.report": 8,
    "lab.plan": 8,
    "lab.pods": 8,  # a study's step, compiled for chips that are not here
    "lab.pods_text": 8.1,  # pods' plans in words
    "lab.layouts": 6.8,  # estimates of population's step, before pods compiles it
    "lab.audit": 8,
    "lab.check": 8.5,  # looks at arrows by audit
    "lab.launch": 8.6,  # plans studies and asks records what is left
    "lab.encoding": 8.1,  # exports a tokenizer's weights into the set that it makes
    "lab.coded": 6.1,  # describes tokenizers as population does models
    "lab.weights": 8,  # reads and writes studies
    "lab.target": 7.7,  # the big run's experiment, from what transfer tells
    "lab.batch": 7.6,  # words of the critical batch, as transfer's of verdicts
    "lab.transfer": 7.5,  # words of verdicts; the report prints them
    "lab.tables": 7.8,  # records -> what laws are fitted to
    "lab.fit": 7.9,  # laws in words; the report shows them
    "lab.compare": 8.25,  # compute multipliers in words, beside fit's
    "lab.skills": 8.3,  # laws of scores in words, beside those of loss
    "lab.ahead": 8.4,  # forecasts in words, of loss and scores
    "lab.opened": 8.5,  # asks fit, ahead, report, transfer and batch for what their commands print
    "lab.designs": 8.3,  # asks fit for a study's law, and target how a learning rate goes on
    "lab.study": 7,
    "lab.sampling": 6.95,  # what finished studies keep, for study's own samples too
    "lab.trials": 6.9,  # of experiments, packed for study
    "lab.experiment": 6.85,  # files and configs, before they are trials
    "lab.ladder": 7,
    "lab.bring": 7,  # runs of others, as ladder has a study's
    "lab.points": 7.2,  # a search's points, from ladder's rows
    "lab.figures": 7,  # drawn by report from records and laws
    "lab.verdict": 6.7,
    "lab.coordinates": 6.5,  # builds and places trials as population does
    "lab.trunk": 4.5,  # asks optim where a decay begins
    "lab.halving": 6.2,  # which of population's trials go on
    "lab.warm": 6.2,  # states of a population that begins from trained weights
    "lab.population": 6,
    "lab.judging": 5.5,  # trains nothing, and population runs it
    "lab.train": 5,
    "lab.optim": 4,
    "lab.evals": 4,
    "lab.restore": 3.7,  # models as configs describe them, for judges and for population
    "lab.models": 3,
    "lab.formats": 3,
    "lab.encoders": 3.5,  # reads published weights as formats do
    "lab.objectives": 3,
    "lab.optimizers": 3,
    "lab.transforms": 3,
    "lab.tokenizers": 3.5,  # made of blocks of models
    "lab.layers": 2,
    "lab.cost": 2,
    "lab.branches": 2.7,  # walks as probe does
    "lab.probe": 2.5,  # walks with cost.inner
    "lab.axes": 1,
    "lab.stores": 1,
    "lab.checkpoint": 2,
    "lab.failure": 1,  # what a train step does with an update that fails
    "lab.digests": 0,
    "lab.goodput": 0,  # events that attempts leave beside their rows
    "lab.log": 1,
    "lab.parametrization": 0,
    "lab.rates": 0,
    "lab.data": 0,
    "lab.claims": -1.5,  # record tells by them what is running
    "lab.record": 0,
    "lab.devices": 0,  # a table of peaks
    "lab.search": 0,  # what an experiment file asks for points; it knows no study
    "lab.laws": 0,
    "lab.written": 0,  # experiment files as text
    "sharding.exits": -2,  # launchers and schedulers go by these codes too
    "sharding": 0,
    "lab.find": -1,
    "lab.errors": -2,
    "lab.files": -2,
}
ALLOWED = {("lab.data", "lab.log")}  # one console for all progress, whoever draws it
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
FILES = sorted(p for folder in ("lab", "sharding") for p in (ROOT / folder).rglob("*.py"))


def module(path):
    """lab/axes.py -> lab.axes, lab/data/icons/__init__.py -> lab.data.icons."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name):
    """The entry of FLOORS that holds a module."""
    return next((f for f in FLOORS if name == f or name.startswith(f + ".")), None)


def imports(path):
    """Modules of the house that a file imports, anywhere in it."""
    known = {module(p) for p in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in ("lab", "sharding"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("lab", "sharding"):
            for a in node.names:
                full = f"{node.module}.{a.name}"
                yield full if full in known or node.module == "lab" else node.module
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides the floor"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_from_lower_floors_only(path):
    name = module(path)
    if name == "lab":
        assert list(imports(path)) == ["lab.opened"]  # of lab.open, when it is asked for: see test_opened.py
        return
    mine = room(name)
    assert mine, f"{name} stands on no floor; give it one here and in docs/design.md"
    for other in imports(path):
        theirs = room(other)
        below = theirs and (FLOORS[theirs] < FLOORS[mine] or theirs == mine)
        assert below or (mine, theirs) in ALLOWED, f"{name} (floor {FLOORS[mine]}) imports {other} (floor {FLOORS.get(theirs)})"


def test_sharding_knows_no_flax_and_no_lab():
    for path in (ROOT / "sharding").rglob("*.py"):
        text = path.read_text()
        assert not [m for m in imports(path) if m.startswith("lab")]
        assert "flax" not in {n.split(".")[0] for n in outside(text)}


def test_the_exit_code_of_an_interrupted_run_is_said_in_one_place():
    code = [p for p in FILES for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.Constant) and n.value == exits.INTERRUPTED]
    assert code == [ROOT / "sharding" / "exits.py"]


def outside(text):
    """Every imported module's full name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("folder", ["layers", "models", "objectives"])
def test_the_core_imports_its_five_packages_only(folder):
    core = {
        "jax",
        "flax",
        "optax",
        "einops",
        "numpy",
        "lab",
        "math",
        "collections",
        "contextlib",
        "contextvars",
        "dataclasses",
        "typing",
        "functools",
        "inspect",
    }
    for path in [*(ROOT / "lab" / folder).rglob("*.py"), *(ROOT / "lab" / f"{f}.py" for f in ("axes", "cost", "train", "optim"))]:
        assert {n.split(".")[0] for n in outside(path.read_text())} <= core, path


def test_layers_hold_no_parametrization_and_nothing_looks_at_ranks_or_paths_of_weights():
    for path in (ROOT / "lab" / "layers").rglob("*.py"):
        assert "parametrization" not in path.read_text()


def test_analysis_runs_where_jax_is_not_installed():
    names = [
        n
        for n in (
            "lab.laws.transfer",
            "lab.laws.collapse",
            "lab.laws.batch",
            "lab.batch",
            "lab.laws.forecast",
            "lab.laws.multiplier",
            "lab.laws.skill",
            "lab.laws.worth",
            "lab.fit",
            "lab.compare",
            "lab.skills",
            "lab.ahead",
            "lab.devices",
            "lab.bring",
            "lab.opened",
            "lab.record",
            "lab.goodput",
            "lab.search",
            "lab.target",
            "lab.figures",
            "lab.report",
            "lab.claims",
            "lab.launch.submit",
            "lab.launch.doctor",
            "lab.launch.retry",
            "lab.launch.slurm",
            "lab.cli",
        )
        if importlib.util.find_spec(n)
    ]
    code = f"""
import sys, importlib
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "grain"):
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
try:
    import jax
except ModuleNotFoundError:
    print("blocked")
for name in {names}:
    importlib.import_module(name)
assert not any(m.split(".")[0] in ("jax", "flax") for m in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "blocked"
    assert len(names) >= 4


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_short_data_with_a_question_that_builds(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert {n.split(".")[0] for n in outside(text)} <= {"ml_collections", "lab"}
    assert set(imports(path)) <= {"lab.search"}
    assert ast.get_docstring(ast.parse(text)).splitlines()[0].rstrip().endswith("?")
    experiment = load(str(path))
    assert experiment.points
    for config in [c for stage in stages(experiment) for c in corners(stage)]:
        program, batch = build(config)
        loss = jax.eval_shape(program.loss, described(program), jax.eval_shape(lambda: jax.random.key(0)), batch)
        assert loss.shape == (2,)


def test_families_train_on_the_flops_that_their_rung_has():
    """The experiment's table of FLOPs an example is the traced program's, so that its rungs cost what they say."""
    from lab.population import flops_per_example

    file = ROOT / "experiments" / "families.py"
    rungs = next(
        ast.literal_eval(n.value)
        for n in ast.parse(file.read_text()).body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "RUNGS"
    )
    smallest, seen = min(rungs), set()
    for config in corners(load(str(file))):
        if config["model"]["width"] == smallest:
            program, batch = build(config)
            shapes = {k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype) for k, v in batch.items()}
            each = flops_per_example(program, shapes)
            spent = each * config["train"]["batch"] * config["train"]["steps"]
            assert spent == pytest.approx(rungs[smallest], rel=0.01), config["model"]["name"]
            seen.add(config["model"]["name"])
    assert len(seen) == 6


def stages(experiment):
    """An experiment's stages, in order, or the one that it is."""
    return [*(stages(experiment.before) if experiment.before else ()), experiment]


def corners(experiment):
    """The config at one point of every size and part that the sweep visits; what is traced makes no other program."""
    from lab.trials import expand, shape_key

    return {shape_key(t): t.config for t in expand(experiment, "")}.values()


def described(program):
    from lab.population import described

    return described(program)


def build(config):
    """(program, shapes of two examples): of the source's own examples or as declared, or where it would have to be built, grey 16-pixel pictures."""
    import numpy as np

    from lab.data import strokes
    from lab.data.encoded import declared
    from lab.data.loader import open_source
    from lab.population import build

    around = config["data"].get("source", config["data"])
    if around["name"] == "icons":
        side, classes = around["size"], len(around["sets"])
        item, dims = (
            {"image": np.zeros((side, side, 1), np.uint8), "label": np.int32(0)},
            {"image": side, "channels": 1, "classes": classes},
        )
        if "tokens" in around.get("extras", ()):
            item["tokens"] = np.zeros(side * side, np.int32)
            dims |= {"side": side, "tokens": side * side, "vocabulary": around["levels"]}
    elif around["name"] == "strokes":
        inside, length = around, config["data"]["length"]
        dims = strokes.sizes(strokes.Grammar(inside["grid"]), inside["length"], inside["infill"])
        item = {"tokens": np.zeros(dims["tokens"], np.int32), "text": np.zeros(length, np.int32), "sentinels": np.zeros(2, np.int32)}
        item |= {"label": np.int32(0), "length": np.int32(3)}
        dims |= {"classes": len(inside["sets"]), "words": config["data"]["words"] + 4, "length": length}
    elif around.get("shapes"):
        dims, shapes = declared(around)
        item = {k: np.zeros(shape, dtype) for k, (shape, dtype) in shapes.items()}
    else:
        source = open_source(dict(config["data"]), "eval", "")
        item, dims = source[0], source.dims
    if config["data"]["name"] == "text" and "text" not in item:  # as many words as it may have
        dims |= {"words": config["data"]["words"], "length": config["data"]["length"]}
        item["text"] = np.zeros(dims["length"], np.int32)
    shapes = {k: jax.ShapeDtypeStruct((2, *np.shape(v)), np.asarray(v).dtype) for k, v in item.items()}
    return build(config, dims), shapes


def test_the_house_has_an_experiment():
    assert EXPERIMENTS


def test_test_files_have_names_of_their_own():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]  # pytest imports them by name alone, and refuses the second of two
    assert len(names) == len(set(names)), sorted(n for n in set(names) if names.count(n) > 1)
