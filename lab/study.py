"""Trials -> populations, round by round and rung by rung; what is done is skipped, what is not is resumed."""

import contextlib
import errno
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab import axes, claims, coded, cost, halving, record, trunk, warm
from lab import population as populations
from lab.checkpoint import saved
from lab.data.loader import Decoded, few, held_out, open_source
from lab.errors import UserError, unknown
from lab.evals.subject import open_judges
from lab.experiment import SINCE, Experiment, at_point, configs, flatten, sampler_options
from lab.log import Progress, console
from lab.population import Begun, Population, Trial
from lab.restore import NUMBERS, largest, same_numbers
from lab.sampling import about_data, asked, looks, originals, picture, restored, sample, shown
from lab.trials import at_points, check_ladder, expand, identity, pack, shape_key, traced_keys, transferred
from sharding import hosts, place

STAGES = "stages"  # folder of a study's earlier stages, each a study
TRAIN, ASKED = 1, 2  # what the first process of a run tells the others of a plan: train, or ask the sweep for its next round first
NOTHING, WAIT = -1, -2  # and of what to train next, beside a population's place
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def most(experiment: Experiment, folder: Path) -> int:
    """The most populations that a study can have before it is packed: each has a point of its own, or is in the folder."""
    return len(experiment.points) + (len(record.read_study(folder)["populations"]) if (folder / "study.json").exists() else 0)


def kinds(study: "Study") -> dict[str, dict]:
    """{arm: config} of the trials of a study whose models, objectives or optimizers differ in more than sizes: the first of each."""
    found: dict[str, tuple[str, dict]] = {}
    for t in study.trials.values():
        rest = {k: v for k, v in t.config["model"].items() if type(v) is not int}
        found.setdefault(
            json.dumps([rest, sorted(t.config["model"]), t.config["objective"], t.config["optim"]["name"]], default=list), (t.arm, t.config)
        )
    return {
        f"{arm}, kind {i + 1}" if [a for a, _ in found.values()].count(arm) > 1 else arm: c for i, (arm, c) in enumerate(found.values())
    }


def _tag(trials: list[Trial]) -> str:
    return hashlib.sha256("".join(sorted(t.id for t in trials)).encode()).hexdigest()[:8]


def versions() -> dict[str, str]:
    """Versions of what computes, and the project's git revision where there is one."""
    found = {p: importlib.metadata.version(p) for p in PACKAGES}
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found | {"git": git.stdout.strip() or "unknown"}


def _unwritable(folder: Path, why: str) -> UserError:
    return UserError(f"--workdir: folder {str(folder)!r} cannot be written ({why}); choose another --workdir")


def _can_be_written(folder: Path) -> None:
    """UserError for a folder that can be neither written nor made, as far as that is told without making it."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise _unwritable(folder, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, os.strerror(errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES))


class Study:
    """An experiment, its data, its trials and their packing; `folder` is where it lives once it runs.

    What can be told wrong without the data is told before that is opened; with `here` also what does not fit the devices of this machine, and
    a folder that cannot be written.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None, here: bool = False, home: Path | None = None):
        self.experiment, self.folder, self.followed = experiment, folder, False
        self.config = experiment.config.to_dict()
        complete = configs(experiment, here)
        if here and folder is not None and hosts.first():
            _can_be_written(folder)
        home = home or (None if folder is None else folder / STAGES)
        self.before = experiment.before and Study(experiment.before, home and home / experiment.before.stage, here, home)
        if self.before:
            self.before.followed = True
        console.print(f"{experiment.name}: opening data", markup=False)
        data = {**self.config["data"]}
        self.train = open_source(data, "train", self.config["run"]["data_dir"])
        self.held = open_source(data, "eval", self.config["run"]["data_dir"])
        self.print = self.train.info["fingerprint"]
        points = at_points(experiment, self.print, complete, self.before and self.before.ends())
        self.at, self.trials = [t.id for t in points], {t.id: t for t in points}
        self.known: dict = {}
        self._startup = 0.0  # seconds of this process before its first population, until that is told
        self._each: dict[str, float] = {}  # FLOPs of an example of each shape
        self._twins: dict[str, str] = {}  # of each trial, what it shares with its like of other horizons
        if folder is not None and (folder / "study.json").exists():
            self.known = record.read_study(folder)
            self._check_same()
        self._pack()

    def _pack(self) -> None:
        """Packs of all trials, and what study.json says of halving, of which bracket and rung a pack is and which trials are stopped, and of trunks."""
        pops, known = self.known.get("populations", {}), self.known.get("trials", {})
        self.halving = {n: p["halving"] for n, p in pops.items() if "halving" in p}
        self.stopped = {i: t["stopped"] for i, t in known.items() if "stopped" in t}
        self.packs = self._packs()
        self.trunks = self._trunks()
        programs = [populations.build(p[0].config, self.train.dims) for p in self.packs.values()]
        several = len({type(p.objective) for p in programs}) > 1
        named = {n for p in programs for w in axes.weights(p.model).values() for n in w.arrow.names}.union(*place.DIVIDES.values())
        for dim in {d: None for first, *_ in self.packs.values() for d in first.config["run"]["rules"]}:
            if dim not in named:
                raise unknown("config key run.rules: axis", dim, named)
        for p, (first, *_) in zip(programs, self.packs.values(), strict=True):
            what = "sample.options" + f" (arm {first.arm})" * several
            sampler_options(p.objective, first.config["sample"]["options"], what)
        check_ladder([(p.model, p.dims) for p in programs])

    def _check_same(self) -> None:
        """UserError where the folder holds another study: another name, data, or a setting that no sweep moves."""
        mine, theirs = (flatten(json.loads(json.dumps(c, default=list))) for c in (self.config, self.known["config"]))
        mine |= {"name": self.experiment.name, "data": self.print}
        theirs = SINCE | theirs | {"name": self.known["name"], "data": self.known["data"]["fingerprint"]}
        free = {*self.experiment.swept, *self.known["swept"]}
        same_numbers(self.folder, self.known)
        for key in sorted(mine.keys() | theirs.keys(), key=lambda k: (k != "name", k)):
            if key not in free and not key.startswith(("run.", "sample.", "judge.")) and mine.get(key) != theirs.get(key):
                raise UserError(
                    f"folder {str(self.folder)!r} holds another study: its {key} is {theirs.get(key)!r}, this one's is {mine.get(key)!r}; "
                    "choose another --workdir"
                )

    def _packs(self) -> dict[str, list[Trial]]:
        """Populations of the folder that hold a wanted trial, as they were packed, and new ones for the rest."""
        packs, left, pops = {}, dict(self.trials), self.known.get("populations", {})
        held = {n for n, pop in pops.items() if any(i in self.trials for i in pop["trials"])}
        brackets = {self.halving[n]["bracket"] for n in held if n in self.halving}  # a bracket is judged whole
        for name, pop in pops.items():
            if name in held or (name in self.halving and self.halving[name]["bracket"] in brackets):
                packs[name] = [self.trials.get(i) or self._old(i) for i in pop["trials"]]
                for i in pop["trials"]:
                    left.pop(i, None)
        entered, whole = self._entered(list(left.values()))
        for group in pack(whole, self.train.dims):
            packs[self._name(group)] = group
        for group in pack(entered, self.train.dims):
            name, c, shape = self._name(group), group[0].config, shape_key(group[0])
            packs[name] = group
            bracket = _tag([t for t in entered if shape_key(t) == shape])
            self.halving[name] = {"bracket": bracket, "marks": halving.marks(c), "keep": c["run"]["halving"]["keep"], "rung": 0}
        return packs

    def _entered(self, left: list[Trial]) -> tuple[list[Trial], list[Trial]]:
        """New trials that halving looks at, and those that train whole: where there is none, or their point has come through on other seeds."""
        if not any(halving.marks(t.config) for t in left):
            return [], left
        states = record.status(self.folder) if self.known else {}
        through = {self._point(self.trials.get(i) or self._old(i)) for i, s in states.items() if s == "done"}
        sides: tuple[list[Trial], list[Trial]] = ([], [])
        for t in left:
            sides[not halving.marks(t.config) or self._point(t) in through].append(t)
        return sides

    def _point(self, trial: Trial) -> str:
        """Equal for trials that differ in their seed alone."""
        return identity({**trial.config, "seed": 0}, self.print, trial.begun)

    def _trunks(self) -> dict[str, dict]:
        """Of each population that begins from states of shorter horizons, or has begun so, at which step and from which populations.

        States are those in the folder, and of populations yet to be trained those that they will leave.
        """
        pops = self.known.get("populations", {})
        if not self.config["run"]["trunk"] and not any("trunk" in p for p in pops.values()):
            return {}
        groups = {n: self._group(n) for n in pops} | self.packs
        found, left = {}, {}
        for name in sorted(groups, key=lambda n: groups[n][0].config["train"]["steps"]):
            at, mine = trunk.leaves(groups[name][0].config), [self._twin(t) for t in groups[name]]
            here = None if self.folder is None else self.folder / name
            done = here is not None and record.finished(here)
            if done or (here is not None and saved(here / "checkpoints")):
                told = pops.get(name, {}).get("trunk", {})
            else:
                told = trunk.start(mine, at, left)
            found |= {name: told} if told else {}
            if at and ((here is not None and saved(here / populations.TRUNK)) or (name in self.packs and not done)):
                left[name] = at, mine
        return found

    def _group(self, name: str) -> list[Trial]:
        """The trials of a population, wanted or not."""
        return self.packs.get(name) or [self.trials.get(i) or self._old(i) for i in self.known["populations"][name]["trials"]]

    def _twin(self, trial: Trial) -> str:
        """Equal for trials that differ in their horizon alone."""
        if trial.id not in self._twins:
            train = {**trial.config["train"], "steps": 0}
            self._twins[trial.id] = identity({**trial.config, "train": train}, self.print, trial.begun)
        return self._twins[trial.id]

    def _name(self, group: list[Trial]) -> str:
        """The name of a new population: what its shape has of its own, and a hash of its trials; a value may be a path."""
        return re.sub(r"[^\w.+-]+", "_", "-".join([*(f"{k}{v}" for k, v in self._moved(group)), _tag(group)]))

    def _moved(self, group: list[Trial]) -> list[tuple[str, Any]]:
        """What the sweep set for a population and what is not traced; where it sets whole sections, the arm and what varies within it."""
        point = {k: v for k, v in group[0].point.items() if k not in traced_keys(group[0].config["optim"])}
        if self.experiment.sections:
            arm = [t.point for t in self.trials.values() if t.arm == group[0].arm]
            point = {"": group[0].arm} | {k: v for k, v in point.items() if len({p.get(k) for p in arm}) > 1}
        return [(k.rsplit(".", 1)[-1], v) for k, v in point.items()]

    def _label(self, name: str, group: list[Trial]) -> str:
        moved = ", ".join(f"{k} {v}".strip() for k, v in self._moved(group))
        return f"{moved or name} ({len(group)} trial{'s' * (len(group) > 1)})"

    def _old(self, trial_id: str) -> Trial:
        t = self.known["trials"][trial_id]
        config = at_point(json.loads(json.dumps(self.config, default=list)), t["point"], self.known.get("sections", []))
        return Trial(trial_id, t["arm"], config, t["point"], Begun(**t["begun"]) if "begun" in t else None)

    def describe(self) -> dict:
        """study.json: everything a reader needs, and no absolute path; features of prompts are written beside it."""
        trials, pops = self.known.get("trials", {}), self.known.get("populations", {})
        for name, group in self.packs.items():
            pops[name] = {"trials": [t.id for t in group], "chunk": len(group)}
            pops[name] |= {"halving": self.halving[name]} if name in self.halving else {}
            pops[name] |= {"trunk": self.trunks[name]} if name in self.trunks else {}
            for t in group:
                about = {"arm": t.arm, "seed": t.config["seed"], "steps": t.config["train"]["steps"]}
                trials[t.id] = {**about, "point": t.point, "population": name}
                trials[t.id] |= {"stopped": self.stopped[t.id]} if t.id in self.stopped else {}
                trials[t.id] |= {"begun": t.begun._asdict()} if t.begun else {}
        e = self.experiment
        return {
            **{"schema": record.SCHEMA, "name": e.name, "question": e.question, "experiment": e.text},
            **{
                "config": self.config,
                "swept": sorted({*e.swept, *self.known.get("swept", ())}),
                "sections": sorted({*e.sections, *self.known.get("sections", ())}),
                "numbers": NUMBERS,
                "trials": trials,
                "populations": pops,
                "versions": versions(),
            },
            **({"stages": [s.experiment.stage for s in self.stages()]} if e.stage else {}),
            "data": about_data(self.folder, self.train, self.held, self.config["sample"]["n"], self.known.get("data", {})),
        }

    def example(self) -> dict[str, np.ndarray]:
        """One small batch [2, ...], for tracing."""
        return jax.tree.map(lambda x: x[0], held_out(few(self.config, 2), self.held))

    def work(self) -> dict[str, float]:
        """FLOPs of each population, with all of its trials trained to their last step."""
        out = {}
        for name, group in self.packs.items():
            c, shape = group[0].config, shape_key(group[0])
            if shape not in self._each:
                program = populations.build(c, self.train.dims)
                self._each[shape] = populations.flops_per_example(program, held_out(few(c, 1), self.held))
            out[name] = self._each[shape] * c["train"]["batch"] * c["train"]["steps"] * len(group)
        return out

    def stages(self) -> list["Study"]:
        """The stages up to this one, in order; a study that has none is one."""
        return [*(self.before.stages() if self.before else ()), self]

    def ends(self) -> list[Begun]:
        """What trials of the stage after this one begin from, point by point; the FLOPs are those of all stages so far."""
        work, where = self.work(), {t.id: n for n, group in self.packs.items() for t in group}
        found = [self.trials[i] for i in self.at]
        after, spent = zip(*((t.begun.after, t.begun.flops) if t.begun else (0, 0.0) for t in found), strict=True)
        each = [work[where[t.id]] / len(self.packs[where[t.id]]) for t in found]
        return [Begun(t.id, a + 1, s + e) for t, a, s, e in zip(found, after, spent, each, strict=True)]

    def run(self, interrupt: populations.Interrupt, only: str = "", largest_first: bool = False, began: float | None = None) -> Path:
        """Train what is not done yet and nobody else trains, rung by rung and round by round; returns the folder.

        Several processes may run one study: each population is trained by one of them. A process ends where all that is left is held by others
        and decides nothing of what comes next, and with `only`, a population, where that and those that it begins from are trained; what is
        then left, and who holds it, is in `others`. `began` is when the process did, in Unix time: its start-up is told beside its first population.

        Raises:
          Preempted: asked to stop.
        """
        folder = self.folder
        if hosts.first():
            self._writable()
        opened, order, self.others = None, None, {}
        if self.before:
            self._planned(True)
            self.before.run(interrupt, largest_first=largest_first, began=began)
            began = None
        while self._planned(order is None):
            wanted = self._wanted(only) if only else set(self.packs)
            order = [n for n in self._ordered(self.work(), largest_first) if n in wanted]
            if opened is None and not all(record.finished(folder / n) for n in order):
                opened = self._judges(), Decoded(self.train)
            if began is not None:
                self._startup, began = time.time() - began, None
            with self._progress() as progress:
                self._train(opened, progress, interrupt, order, wait=not only and self._goes_on())
            left = [n for n in self.packs if not record.finished(folder / n)]
            if hosts.told(len(left)):  # as the first process sees it: whoever shares the study may have ended one since
                self.others = {n: claims.holders(folder).get(n, "nobody") for n in left or self.packs}
                return folder
        with self.alone(), self._progress() as progress:
            self._samples(folder, progress)
        return folder

    def plan(self) -> None:
        """Write study.json, so that whoever trains the study has its populations as they are packed here."""
        self._writable()
        self._planned(True)

    def _writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f".writable-{claims.owner()}").write_text("")
            (self.folder / f".writable-{claims.owner()}").unlink()
        except OSError as e:
            raise _unwritable(self.folder, e.strerror) from e

    def alone(self) -> contextlib.AbstractContextManager:
        """What no two runs that share the folder do at a time; of a run of several processes the first takes part."""
        if not hosts.first():
            return contextlib.nullcontext()
        return claims.alone(self.folder, told=lambda line: console.print(line, markup=False))

    def _planned(self, begins: bool) -> bool:
        """Agree on study.json with whoever shares the folder, and pack the next rung or round where the last is done; whether there is one."""
        choice = 0
        with self.alone():
            if hosts.first():
                self._agree()
                if begins or not all(record.finished(self.folder / n) for n in self.packs) or self._promote():
                    choice = TRAIN
                elif self._more():
                    choice = ASKED
                self._write()
        choice = hosts.told(choice)
        if not hosts.first():
            self._follow()
            if choice == ASKED:
                self._more()
        return choice != 0

    def _agree(self) -> None:
        """Take up what others have written to study.json, and have this study's trials in it; for one process at a time."""
        if (self.folder / "study.json").exists() and (known := record.read_study(self.folder)) != self.known:
            self.known = known
            self._check_same()
            self._pack()
        self.trunks = self._trunks()  # an earlier run may have left states that are gone
        self._write()

    def _follow(self) -> None:
        """Pack as the first process of this run has written it."""
        self.known = record.read_study(self.folder)
        self._pack()

    def _write(self) -> None:
        """study.json as the study now stands, and what it says."""
        path, told = self.folder / "study.json", json.loads(json.dumps(self.describe(), default=list))
        if not path.exists() or told != record.read_json(path):
            record.write_json(path, told)
        self.known = record.read_study(self.folder)

    def longest(self) -> list[str]:
        """Populations in order of falling cost: task i of a study is the i-th."""
        work = self.work()
        return sorted(self.packs, key=lambda n: (-work[n], n))

    def _wanted(self, only: str) -> set[str]:
        """A population and all that it begins from."""
        if only not in self.packs:
            raise unknown("--only: population", only, self.packs)
        return {only}.union(*(self._wanted(n) for n in self.trunks.get(only, {"from": ()})["from"] if n in self.packs))

    def left(self) -> float:
        """The share of its FLOPs that halving leaves of a study that has not begun, where no trial diverges."""
        work, points, kept = self.work(), {}, 0.0
        for name, h in self.halving.items():
            for t in self.packs[name]:
                points.setdefault((h["bracket"], t.arm), set()).add(self._point(t))
        for name, group in self.packs.items():
            for t in group:
                team = points.get((self.halving[name]["bracket"], t.arm)) if name in self.halving else None
                kept += work[name] / len(group) * (halving.halved(len(team), t.config) if team else 1.0)
        return kept / sum(work.values())

    def _progress(self) -> Progress:
        """Progress of all populations so far, each to the step it is to reach."""
        steps = {n: self._ends(n)[-1] for n in self.packs}
        # small models reach a lower FLOP rate, about as FLOPs^1/3 on a CPU, so time grows as FLOPs^2/3
        effort = {n: w ** (2 / 3) * steps[n] / self.packs[n][0].config["train"]["steps"] for n, w in self.work().items()}
        progress = Progress(self.experiment.name, effort, steps, {n: self._label(n, g) for n, g in self.packs.items()})
        for name in (n for n in self.packs if record.finished(self.folder / n)):
            progress.skip(name, "done before", steps[name])
        return progress

    def _train(self, opened: Any, progress: Progress, interrupt: populations.Interrupt, order: list[str], wait: bool) -> None:
        """Train the populations of `order` that nobody else trains; `opened` are judges and the source in memory.

        It ends when all are done, or all that are left are held by others; with `wait` it waits for these, and goes on where one is given up.
        """
        while True:
            claim, choice = self._next(order, progress, wait) if hosts.first() else (contextlib.nullcontext(), 0)
            if (choice := hosts.told(choice)) == NOTHING:
                return
            if choice == WAIT:
                if hosts.agreed(interrupt.asked)[0]:
                    raise populations.Preempted
                time.sleep(min(1.0, claims.BEAT))
                continue
            if not hosts.first():
                self._follow()
            with claim:
                self._one(order[choice], opened, progress, interrupt)

    def _next(self, order: list[str], progress: Progress, wait: bool) -> tuple[Any, int]:
        """The claim of the next population to train and its place in `order`; None and NOTHING or WAIT where there is none now."""
        left = [n for n in order if not self._done(n, progress)]
        for name in [n for n in left if self._ready(n)]:
            if claim := claims.take(self.folder, name):
                if not record.finished(self.folder / name):
                    if self._trunks() != self.trunks:
                        with self.alone():
                            self._agree()
                    return claim, order.index(name)
                claim.__exit__()  # it was done a moment ago
        held = {n: who for n, who in claims.holders(self.folder).items() if n in left}
        if not left or (not wait and all(n in held for n in left)):
            return None, NOTHING
        for name, who in held.items():
            if progress.note[name] != (note := f"at {who}, waited for"):
                progress.stage(name, note)
        return None, WAIT

    def _done(self, name: str, progress: Progress) -> bool:
        """Whether a population is done; where another has ended it, progress hears of it."""
        done = record.finished(self.folder / name)
        if done and progress.at[name] < progress.steps[name]:
            progress.skip(name, "done by another", progress.steps[name])
        return done

    def _judges(self) -> tuple[dict[str, Any], Callable | None]:
        """Judges of pictures, and where a tokenizer made the data what makes pictures of samples."""
        c, data_dir = self.config, self.config["run"]["data_dir"]
        if not c["judge"]["names"]:
            return {}, None
        held, train = (coded.pictured(x, c["data"], s, data_dir) for x, s in ((self.held, "eval"), (self.train, "train")))
        tokenizer = coded.of(c["data"], self.held.info, data_dir)
        return open_judges(c["judge"], held, train), tokenizer and tokenizer.pictures

    def _one(self, name: str, opened: Any, progress: Progress, interrupt: populations.Interrupt) -> None:
        """Train one population to its end."""
        (judges, decode), source = opened
        startup, self._startup = self._startup, 0.0
        pop = Population(self.packs[name], source, held_out(self.packs[name][0].config, self.held))
        if hosts.first():
            self._card(self.folder / name, pop)
        judging, span = pop.judging(judges, self.held, decode), self._span(name, pop)
        populations.run(self.folder / name, name, pop, source, judging, progress, interrupt, span, startup)

    def _ready(self, name: str) -> bool:
        """Whether what a population begins from is there."""
        return all(n not in self.packs or record.finished(self.folder / n) for n in self.trunks.get(name, {"from": ()})["from"])

    def adaptive(self) -> bool:
        """Whether some populations are made of others' results, or begin from their states."""
        return self._goes_on() or bool(self.trunks) or self.before is not None

    def _goes_on(self) -> bool:
        """Whether what is trained now decides what is trained next."""
        return (
            self.followed
            or self.experiment.ask is not None
            or any(self.halving[n]["rung"] < len(self.halving[n]["marks"]) for n in self._last_rungs())
        )

    def _last_rungs(self) -> list[str]:
        """Of each bracket, the populations of the rung that it has come to."""
        brackets = {self.halving[n]["bracket"] for n in self.packs if n in self.halving}
        rung = {b: max(h["rung"] for n, h in self.halving.items() if n in self.packs and h["bracket"] == b) for b in brackets}
        return [n for b, r in rung.items() for n in self._rung(b, r)]

    def _ordered(self, work: dict[str, float], largest_first: bool = False) -> list[str]:
        """Populations in order of cost, each after those that it begins from."""
        order: dict[str, None] = {}

        def add(name: str) -> None:
            for before in self.trunks.get(name, {"from": ()})["from"]:
                add(before)
            if name in self.packs:
                order[name] = None

        for name in self.longest() if largest_first else sorted(self.packs, key=work.get):
            add(name)
        return list(order)

    def _ends(self, name: str) -> list[int]:
        """The step that a population begins at and the one it trains to."""
        steps, about = self.packs[name][0].config["train"]["steps"], self.halving.get(name, {"marks": [], "rung": 0})
        return [0, *about["marks"], steps][about["rung"] :][:2]

    def _rung(self, bracket: str, rung: int) -> list[str]:
        """The populations of one rung of a bracket."""
        return [n for n in self.packs if n in self.halving and (self.halving[n]["bracket"], self.halving[n]["rung"]) == (bracket, rung)]

    def _span(self, name: str, pop: Population) -> populations.Span:
        """The steps of a population, and where the states of its trials are when it begins."""
        start, until = self._ends(name)
        leaves = trunk.leaves(self.packs[name][0].config)
        if name in self.trunks:
            return self._branch(name, pop, until, leaves)
        if not start:
            begins = self.packs[name][0].begun and (lambda: warm.states(pop, self._found(name)))
            return populations.Span(start, until, begins, leaves=leaves, hands=self.followed)
        mine, parts = {t.id for t in self.packs[name]}, []
        for before in self._rung(self.halving[name]["bracket"], self.halving[name]["rung"] - 1):
            rows = [i for i, t in enumerate(self.packs[before]) if t.id in mine]
            parts += [(self.folder / before / "checkpoints", len(self.packs[before]), rows)] * bool(rows)
        return populations.Span(start, until, lambda: populations.gathered(pop.shapes(), start, parts))

    def _found(self, name: str) -> list[warm.Found]:
        """What each trial of a population begins from: weights of another study, or of the trials of the stage before."""
        group = self.packs[name]
        if not self.before:
            init = group[0].config["init"]
            found = restored(Path(init["study"]), init["trial"])
            jax.config.update("jax_default_matmul_precision", group[0].config["train"]["precision"])
            return [warm.Found(found.program, found.weights, found.weights)] * len(group)
        parts = {}
        for i in dict.fromkeys(t.begun.origin for t in group):
            parts.setdefault(self.before.known["trials"][i]["population"], []).append(i)
        found = {i: x for n, ids in parts.items() for i, x in zip(ids, self.before.handed(n, ids), strict=True)}
        return [found[t.begun.origin] for t in group]

    def handed(self, name: str, ids: list[str]) -> list[warm.Found]:
        """What a population's trials have left for the stage after this one."""
        group, c = self._group(name), self._group(name)[0].config
        program, where = populations.build(c, self.train.dims), {t.id: i for i, t in enumerate(group)}
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(group), *x.shape), x.dtype), populations.described(program))
        like = {"params": weights, "ema": weights, "alive": jax.ShapeDtypeStruct((len(group),), bool)}
        lost = "delete the folder of that population and run the same command again"
        parts = [(self.folder / name / populations.END, len(group), [where[i] for i in ids])]
        kept = populations.gathered(like, c["train"]["steps"], parts, lost)
        one = [jax.tree.map(lambda x, i=i: x[i], kept) for i in range(len(ids))]
        return [warm.Found(program, x["params"], x["ema"], bool(x["alive"])) for x in one]

    def _branch(self, name: str, pop: Population, until: int, leaves: int) -> populations.Span:
        """The steps of a population that begins from states of shorter horizons: their rows, so far, are its own."""
        start, groups = self.trunks[name]["start"], {n: self._group(n) for n in self.trunks[name]["from"]}
        mine, where = {self._twin(t): t for t in pop.trials}, {}
        for before, group in groups.items():
            where |= {self._twin(t): (before, i) for i, t in enumerate(group)}
        runs = itertools.groupby((where[twin] for twin in mine), key=lambda w: w[0])
        parts = [(self.folder / n / populations.TRUNK, len(groups[n]), [i for _, i in run]) for n, run in runs]

        def rows() -> list[dict]:
            of = {t.id: mine[twin] for n, g in groups.items() for t in g if (twin := self._twin(t)) in mine and where[twin][0] == n}
            table = [r for n in groups for r in record.read_rows(self.folder / n).to_pylist() if r["step"] < start and r["trial"] in of]
            return [r | {"trial": of[r["trial"]].id, "arm": of[r["trial"]].arm} for r in table]

        lost = "run the same command again, which begins without them"
        return populations.Span(start, until, lambda: populations.gathered(pop.shapes(), start, parts, lost), rows, leaves)

    def _promote(self) -> bool:
        """Stop what is not among the best of each bracket's last rung, and pack the rest anew; whether there is any."""
        more = False
        for bracket in dict.fromkeys(self.halving[n]["bracket"] for n in self.packs if n in self.halving):
            rung = max(h["rung"] for n, h in self.halving.items() if n in self.packs and h["bracket"] == bracket)
            for name in [n for r in range(rung) for n in self._rung(bracket, r)]:
                populations.remove_checkpoints(self.folder / name)
            names = self._rung(bracket, rung)
            about = self.halving[names[0]]
            if rung == len(about["marks"]):
                continue
            best, stopped = self._best(names)
            self.stopped |= stopped
            if not best:  # every point has a seed that diverged
                self._write()
                for name in names:
                    populations.remove_checkpoints(self.folder / name)
            for group in pack(best, self.train.dims):
                name = f"{self._name(group)}-rung{rung + 1}"
                self.packs[name], self.halving[name], more = group, about | {"rung": rung + 1}, True
        return more

    def _best(self, names: list[str]) -> tuple[list[Trial], dict[str, int]]:
        """Of the trials of one rung, those whose points are among the best of their arm, and {trial: step} of those that are neither they nor diverged."""
        until, keep, metric = self._ends(names[0])[1], self.halving[names[0]]["keep"], self.config["eval"]["metric"]
        rows = {r["trial"]: r for n in names for r in record.read_rows(self.folder / n).to_pylist() if r["step"] == until}
        trials = [t for n in names for t in self.packs[n]]
        on = halving.best(trials, rows, metric, keep, self._point)
        return [t for t in trials if t.id in on], {t.id: until for t in trials if t.id not in on and not rows[t.id]["diverged"]}

    def history(self) -> list[dict]:
        """What has become of the trials so far, in the order of the sweep, as a `sweep(history)` is told it (lab/search.py)."""
        states, metric, out = record.status(self.folder), self.config["eval"]["metric"], []
        ends = {r["trial"]: r for r in record.ends(self.folder).to_pylist()}
        for t in self.trials.values():
            loss = ends[t.id][metric]
            about = {"point": dict(t.point), "seed": t.config["seed"], "arm": t.arm, "loss": loss, "step": ends[t.id]["step"]}
            out.append(about | {"state": "diverged" if loss is None else states[t.id]})
        return out

    def _more(self) -> bool:
        """Ask the sweep for the trials of another round, and pack them; whether there are any."""
        if self.experiment.ask is None:
            return False
        wider = self.experiment.ask(self.history())
        new = {t.id: t for t in expand(wider, self.print) if t.id not in self.trials}
        whole = {k: sorted({*getattr(self.experiment, k), *getattr(wider, k)}) for k in ("swept", "sections")}
        self.experiment = wider._replace(**whole)
        self.trials |= new
        if new:
            self._pack()
        return bool(new)

    def _card(self, folder: Path, pop: Population) -> None:
        folder.mkdir(exist_ok=True)
        record.write_json(folder / "config.json", pop.config)
        by_role = cost.parameters(pop.program.model)
        device = jax.devices()[0]
        card = {
            **{"parameters": sum(by_role.values()), "by_role": by_role, "weights": cost.card(pop.program.model)},
            **{"flops_per_example": pop.flops(), "convention": cost.CONVENTION, "base": pop.config["base"]},
            "transfer": {t.id: told for t in pop.trials if (told := transferred(t.config))},
            **{"versions": versions(), "device": device.device_kind, "devices": jax.device_count(), "owner": claims.owner()},
            "precision": {k: pop.config["train"][k] for k in ("dtype", "precision")},
        }
        record.write_json(folder / "card.json", card)

    def _samples(self, folder: Path, progress: Progress) -> None:
        """Samples of the best trial of the largest population, beside real examples."""
        told = record.read_study(folder)
        _, name = largest(folder, told)
        (there,) = hosts.agreed(name is not None and (folder / name / "samples.npz").exists())
        if name is None or there or not self.config["sample"]["n"]:
            return  # every trial diverged, or it is done
        progress.stage(name, "sampling")
        n = self.config["sample"]["n"]
        try:
            found = restored(folder)
            options = self.trials.get(found.about["trial"], found).config["sample"]["options"]
            rows = np.random.default_rng(1).permutation(len(self.held))[:n]
            shows = shown(found, self.held, self.config["run"]["data_dir"])
            real = [shows[int(i)] for i in rows]
            if looks(found, options):
                cond, names = originals(found, [self.held[int(i)] for i in rows], told["data"])
            else:
                cond, names = asked(found, folder, told["data"], n)
            drawn, about = sample(found, told["data"], cond, options), {**found.about, "names": names, **options}
            if "image" not in drawn:
                raise UserError("what is drawn is no picture; `lab sample` shows it")
        except UserError as e:  # what is trained is told all the same
            progress.finish(name, f"no samples: {e}")
            return
        if not hosts.first():  # all restore and draw, as reading a checkpoint is a thing that processes do together
            return
        real = np.stack([picture(item, shows.info) for item in real])
        target = folder / about["population"] / "samples.npz"
        with target.with_suffix(".tmp").open("wb") as f:
            np.savez_compressed(f, samples=drawn["image"], real=real, about=json.dumps(about))
        target.with_suffix(".tmp").rename(target)
        progress.finish(name)
