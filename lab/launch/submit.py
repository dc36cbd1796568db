"""Submitting a study to a back end, and asking, reading, ending and gathering it; what was submitted is told by submission.json in its folder."""

import ast
import inspect
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lab import claims, find, record
from lab.errors import UserError, unknown
from lab.files import write_json
from lab.launch.job import WORKER, Job, Step, check_tools, environment, name

FILE = "submission.json"
PACKAGE = "lab.launch"


def parsed(called: str, given: list[str]) -> dict[str, Any]:
    """The options KEY=VALUE of a back end, by the types that it says they have."""
    kinds = {n: p.annotation for n, p in inspect.signature(_class(called)).parameters.items()}
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--option {text!r} is malformed; expected KEY=VALUE")
        try:
            options[key] = value if kinds.get(key, str) is str else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def _class(called: str) -> Any:
    """The Backend of a name as it is said, such as tpu-vm, or of one's own by dotted path or file."""
    if any(mark in called for mark in "./"):
        return find.module(PACKAGE, called).Backend
    files = {n.replace("_", "-"): n for n in find.names(PACKAGE)}
    if (said := called.replace("_", "-")) not in files:
        raise unknown("--to: back end", called, files)
    return find.module(PACKAGE, files[said]).Backend


def backend(called: str, options: dict[str, Any]) -> Any:
    """The back end of a name with its options; UserError for one that it does not know, or lacks."""
    make = _class(called)
    known = find.arguments(make)
    for key in options:
        if key not in known:
            raise unknown(f"--option of back end {called!r}:", key, known)
    if missing := [k for k, required in known.items() if required and k not in options]:
        raise UserError(f"--option {missing[0]} is missing; back end {called!r} takes: {', '.join(known)}")
    find.typed(make, options, f"--option of back end {called!r}: ")
    return make(**options)


class Submission(NamedTuple):
    """What submission.json tells: the back end's name and options, the job, and the handle of each of its tasks."""

    to: str
    options: dict[str, Any]
    job: Job
    handles: list[str]

    def states(self) -> list[str]:
        """pending, running, done or lost, of each task.

        Lost is one that ended while its population, or of a worker the study, is not done. A worker that ended while others go on is done: it
        found nothing left to take.
        """
        found = backend(self.to, self.options).states(self.job, self.handles)
        left, over = unfinished(self.job.folder), all(s == "ended" for s in found)
        return [
            s if s != "ended" else "lost" if (left and over if t == WORKER else t in left) else "done"
            for s, t in zip(found, self.job.tasks, strict=True)
        ]

    def alive(self) -> list[tuple[str, str]]:
        """(task, handle) of those that are pending or running."""
        return [(t, h) for t, h, s in zip(self.job.tasks, self.handles, self.states(), strict=True) if s in ("pending", "running")]


def read(folder: Path) -> Submission | None:
    """The last submission of a study; None where there is none."""
    if not (Path(folder) / FILE).exists():
        return None
    told = record.read_json(Path(folder) / FILE)
    job = Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in told["job"].items()})
    return Submission(told["to"], told["options"], job, told["handles"])


def unfinished(folder: Path) -> list[str]:
    """Populations that are not done, as far as a folder tells: of a study that has no study.json there, one called 'all'."""
    if not (Path(folder) / "study.json").exists():
        return ["all"]
    return [n for n in record.read_study(folder)["populations"] if not record.finished(Path(folder) / n)]


def plan(study: Any, path: str, overrides: list[str], workdir: str, end: Any, env: list[str], retries: int) -> Job:
    """The job of an opened study for a back end: a task a population that is not done, longest first, or workers.

    Populations of which later ones are made (rounds, halving, trunks) depend on each other: their tasks are workers, which wait for one another.
    """
    e = study.experiment
    called = name(e.name, [study.config, e.points, study.print])
    left = [n for n in study.longest() if study.folder is None or not record.finished(study.folder / n)]
    workers = end.count * bool(left) if end.tasks == "workers" else len(left) * study.adaptive()
    tasks = [WORKER] * workers or left
    return Job(called, e.name, path, tuple(overrides), workdir, workdir if end.here else "runs", tuple(tasks), tuple(env), retries)


def submit(
    job: Job, to: str, options: dict[str, Any], end: Any, prepare: Callable[[], None], dry: bool, say: Callable[[str], None]
) -> None:
    """Submit what is neither done nor pending nor running; `dry` tells what would run and touches nothing. `prepare` writes study.json."""
    if dry:
        alive = _alive(job, to) if all(map(shutil.which, end.needs)) else []
        tasks = _without(job.tasks, [t for t, _ in alive])
        return say("\n".join(s.shown() for s in end.steps(job._replace(tasks=tasks))) if tasks else _nothing(job, alive))
    check_tools(end.needs, to)
    end.steps(job)  # what a back end refuses, it refuses before anything is written
    (job.folder / "logs").mkdir(parents=True, exist_ok=True)
    with claims.alone(job.folder, "submission", say):
        alive = _alive(job, to)  # within the claim: of two submissions at a time the second sees the tasks of the first
        tasks = _without(job.tasks, [t for t, _ in alive])
        if not tasks:
            return say(_nothing(job, alive))
        prepare()
        job = job._replace(tasks=tasks)
        steps, said = end.steps(job), []
        if end.ahead:  # what a step asks for is paid, also where a later one fails
            _write(job, to, options, alive, end.handles(job, said))
        said = [s.do(environment(job) if s.log else None) for s in steps]
        _write(job, to, options, alive, end.handles(job, said))
    say(f"{job.name}: {len(tasks)} tasks on {to}; lab status {job.folder}")


def _alive(job: Job, to: str) -> list[tuple[str, str]]:
    """(task, handle) of those of the study that are pending or running; UserError where they are another submission's."""
    before = read(job.folder)
    alive = before.alive() if before is not None else []
    if alive and (before.to != to or before.job.name != job.name):
        were = f"{len(alive)} tasks pending or running as {before.job.name!r} on {before.to!r}"
        raise UserError(f"{job.study!r} has {were}; end them by `lab cancel {job.folder}`")
    return alive


def _nothing(job: Job, alive: list[tuple[str, str]]) -> str:
    return f"{job.name}: " + (f"nothing to submit; {len(alive)} tasks are pending or running" if alive else "nothing is left to train")


def _write(job: Job, to: str, options: dict[str, Any], alive: list[tuple[str, str]], handles: list[str]) -> None:
    whole = job._replace(tasks=tuple([*(t for t, _ in alive), *job.tasks]))
    told = {"to": to, "options": options, "job": whole._asdict(), "handles": [*(h for _, h in alive), *handles]}
    write_json(job.folder / FILE, told)


def _without(tasks: tuple[str, ...], taken: list[str]) -> tuple[str, ...]:
    left, taken = [], list(taken)
    for t in tasks:
        if t in taken:
            taken.remove(t)
        else:
            left.append(t)
    return tuple(left)


def needed(folder: Path) -> Submission:
    """The submission of a folder; UserError where there is none."""
    found = read(folder)
    if found is None:
        raise UserError(f"folder {str(folder)!r} has no submission; one is made by `lab submit EXPERIMENT --to BACKEND`")
    return found


def told(folder: Path) -> str:
    """One line on the tasks of a submission; '' where there is none."""
    if (found := read(folder)) is None:
        return ""
    try:
        check_tools(backend(found.to, found.options).needs, found.to)
        states = found.states()
    except UserError as e:
        return f"tasks on {found.to} ({found.job.name}): {e}"
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("running", "pending", "done", "lost") if s in states)
    lost = "; the same `lab submit` submits the lost again, cancelled ones too" if "lost" in states else ""
    return f"tasks on {found.to} ({found.job.name}): {counts}{lost}"


def logs(folder: Path, task: int) -> int:
    """Print the log of one task of a submission."""
    found = needed(folder)
    if not 0 <= task < len(found.handles):
        raise UserError(f"--task {task}: the submission has tasks 0 to {len(found.handles) - 1}")
    end = backend(found.to, found.options)
    check_tools([end.logs(found.job, found.handles, task).argv[0]], found.to)
    return subprocess.run(end.logs(found.job, found.handles, task).argv).returncode


def cancel(folder: Path, dry: bool, say: Callable[[str], None]) -> None:
    """End the tasks of a submission that are pending or running; a run saves its state."""
    found = needed(folder)
    end = backend(found.to, found.options)
    alive = found.handles if dry else [h for _, h in found.alive()]
    steps: list[Step] = end.cancel(found.job, alive) if alive else []
    for step in steps:
        say(step.shown())
        if not dry:
            check_tools([step.argv[0]], found.to)
            step.do()
    if not steps:
        say(f"{found.job.name}: no task is pending or running")
    elif not dry:
        say(f"{found.job.name}: tasks end once their state is saved; `lab status` tells when")


def gather(folder: Path, dry: bool, say: Callable[[str], None]) -> None:
    """Copy a study that lies at gs:// to its folder here; nothing to do for one that is written here, and none that can be for a volume of pods."""
    found = read(folder)
    if found is None or backend(found.to, found.options).here:
        return
    if "://" not in found.job.workdir:
        raise UserError(
            f"the study lies in {found.job.workdir!r}, on a volume of its tasks; copy it to {str(folder)!r}, then `lab report` tells of it"
        )
    step = Step(("gcloud", "storage", "rsync", "--recursive", f"{found.job.workdir.rstrip('/')}/{found.job.study}", str(folder)))
    say(shlex.join(step.argv))
    if not dry:
        check_tools(("gcloud",), found.to)
        step.do()
