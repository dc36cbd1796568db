"""The `lab` command. It imports lazily: `lab status` and `lab report` need no jax."""

import argparse
import ast
import errno
import inspect
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lab.errors import UserError, unknown
from sharding.exits import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
RUNS = "folder of a study, or of runs that `lab records add` brought in"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are the one line that all of the lab's are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` tells what is")

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown("command", value, action.choices)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lab", description="A scaling laboratory for image generators.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, call: Callable, about: str, target: str | None = None, help_target: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(call=call)
        if target:
            sub.add_argument(target, help=help_target)
        return sub

    override = "; any config key is overridden by --config.KEY=VALUE"
    run = command("run", _run, "train a study, or go on with it, and write its report" + override, "experiment", "experiment file")
    run.add_argument("--workdir", default="runs", help="folder in which the study's folder is made (default: runs)")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", default="", metavar="POPULATION", help="train one population, as `lab status` names it")
    which.add_argument(
        "--task", type=int, metavar="I", help="train the I-th population, the longest being 0; past the last there is nothing to do"
    )
    run.add_argument("--largest-first", action="store_true", help="begin with the largest population, so that several workers end together")
    run.add_argument(
        "--retries", type=int, default=0, metavar="N", help="begin again after a crash, up to N times, and after 75 at no charge"
    )
    plan = command("plan", _plan, "what a study will cost on this device, or on a TPU pod, before it is paid" + override)
    plan.add_argument("experiment", nargs="?", help="experiment file")
    plan.add_argument("--workdir", help="leave out what is done in the study's folder there (default: plan all, as if nothing were)")
    plan.add_argument("--topology", metavar="NAME", help="compile for a pod that is not here, such as v5p:8x8x8")
    plan.add_argument("--slices", type=int, default=1, help="--topology: how many of it (default: 1)")
    plan.add_argument(
        "--mesh", metavar="AXIS=N,...", help="--topology: such as fsdp=128,tensor=4 (default: the experiment's, or the best found)"
    )
    plan.add_argument("--price", type=float, help="--topology: of a chip-hour")
    plan.add_argument(
        "--out", metavar="FILE", help="--topology, --all: write what is told as JSON (--all: default benchmarks/results/plans.json)"
    )
    plan.add_argument("--all", action="store_true", help="every experiments/pods/*.py on the topologies that it names")
    audit = command(
        "audit", _audit, "one line a tensor: arrow, role, scales, and whether the arrow is true" + override, "experiment", "file"
    )
    audit.add_argument("--width", help="add the columns of a model so many times as wide, such as 4x")
    check = command("check", _check, "the coordinate check: does any weight's own change drift with width or depth" + override)
    check.add_argument("experiment", nargs="?", help="experiment file")
    check.add_argument("--all", action="store_true", help="every experiments/*_transfer.py, with and without zero gates, over width")
    check.add_argument("--widths", default="32,64,128,256", help="model.width, the base first (default: 32,64,128,256)")
    check.add_argument(
        "--depths", help="model.depth, the base first; one alone: width alone (default: the config's, 2x and 4x; --all: width alone)"
    )
    check.add_argument("--seeds", type=int, default=4)
    check.add_argument("--steps", type=int, default=12)
    check.add_argument("--lr", type=float, default=2.0**-9)
    check.add_argument(
        "--out", help="file for slopes and verdicts; the figure lies beside it (default: check-NAME.json, --all: in benchmarks/results)"
    )
    command("status", _status, "what is done, running, diverged, interrupted, missing; tasks of a submission", "study", "folder of a study")
    away = command("submit", _submit, "train a study elsewhere, as tasks of a back end" + override, "experiment", "experiment file")
    away.add_argument("--to", required=True, metavar="BACKEND", help="local, slurm, tpu-vm or gke, or a file of one's own")
    away.add_argument(
        "--workdir", default="runs", help="folder in which the study's folder is made, seen by every task, or gs:// (default: runs)"
    )
    away.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the back end, such as partition=gpu")
    away.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable that tasks are to find; by name its value is never written",
    )
    away.add_argument("--retries", type=int, default=3, metavar="N", help="new attempts of a task that crashes (default: 3)")
    seen = command("logs", _logs, "the log of a submission's task", "study", "folder of a study")
    seen.add_argument("--task", type=int, default=0, metavar="I", help="which (default: 0)")
    end = command("cancel", _cancel, "end a submission's tasks; each saves its state", "study", "folder of a study")
    back = command("collect", _collect, "gather what a submission has trained, and write the report", "study", "folder of a study")
    for sub in (away, end, back):
        sub.add_argument("--dry-run", action="store_true", help="print what would run, and touch nothing")
    well = command("doctor", _doctor, "what this machine lacks for studies, and how to mend it")
    well.add_argument("--workdir", default="runs", help="folder to look at (default: runs)")
    report = command("report", _report, "write report.html, figures and tables of a study", "study", "folder of a study")
    report.add_argument("--over", help="the swept key whose values are the sizes, such as model.depth (default: found)")
    report.add_argument("--out", help="folder for the report (default: the study's)")
    carry = command(
        "transfer",
        _transfer,
        "does a hyperparameter transfer over a study's ladder; the experiment of the big run",
        "study",
        "folder of a study",
    )
    carry.add_argument("--over", help="swept key whose values are the rungs (default: the model's size, or else training's)")
    carry.add_argument("--of", default="", metavar="KEY[,KEY]", help="swept hyperparameters, one or two (default: optim.lr)")
    carry.add_argument("--arm", default="", help="--to: the arm to go on with (default: mup, or the only one)")
    carry.add_argument("--to", action="append", default=[], metavar="KEY=VALUE", help="size of the big run, such as model.width=1024")
    carry.add_argument("--out", default="big.py", help="--to: experiment file to write (default: big.py)")
    batch = command("batch", _batch, "steps and examples to a loss over batch sizes; the critical batch size", "study", "folder of a study")
    batch.add_argument("--target", type=float, metavar="LOSS", help="of averaged weights (default: the least that every batch comes to)")
    batch.add_argument("--out", help="figure to write (default: batch.png in the study's folder)")
    law = command("fit", _fit, "laws of loss by size, data and FLOPs, with intervals, of each arm", "study", RUNS)
    law.add_argument("--out", default="law.png", help="figure to write (default: law.png)")
    law.add_argument("--points", metavar="FILE", help="write the points used and what was left out, as .csv or .json")
    law.add_argument("--profile", action="store_true", help="print intervals by profile likelihood beside the bootstrap's")
    law.add_argument(
        "--rate", action="store_true", help="fit all trials with the learning rate as a variable, too: its drift, and the law at its best"
    )
    law.add_argument("--methods", action="store_true", help="print a paragraph for a paper's section of methods")
    ahead = command("forecast", _forecast, "loss, best size and data of a budget or the loss of a given run, with intervals", "study", RUNS)
    ahead.add_argument("--flops", type=float, help="training FLOPs of the run, such as 1e20")
    about = "experiment file, or keys in place of the arm's own, such as model.width=1024,train.steps=100000, or params=1e9,examples=2e10"
    ahead.add_argument("--to", action="append", default=[], metavar="CONFIG", help=f"the run itself: {about}")
    about = "distinct examples that the run has, where repeats count less than new ones (default: as many as the runs of the records had)"
    ahead.add_argument("--unique", type=float, metavar="EXAMPLES", help=about)
    ahead.add_argument("--on", metavar="DEVICE[:COUNT]", help="tell hours on so many devices, such as v5p:64; wants --mfu")
    ahead.add_argument("--mfu", type=float, help="--on: share of the published peak that is assumed to be reached, such as 0.4")
    ahead.add_argument("--price", type=float, help="--on: of a device-hour")
    about = "a judge's column of the final rows, such as oracle; =CHANCE where the records do not tell it"
    for sub in (law, ahead):
        sub.add_argument("--arm", default="", help="the arm alone (default: every arm)")
        sub.add_argument("--skill", action="append", default=[], metavar="COLUMN[=CHANCE]", help=f"laws of a score too: {about}")
    rival = command(
        "compare", _compare, "how many times fewer FLOPs, and device-seconds, an arm needs for a baseline's loss", "study", RUNS
    )
    rival.add_argument("other", nargs="?", help="a second folder, whose arms are held against the first's")
    rival.add_argument("--base", default="", metavar="ARM", help="the baseline (default: of two folders, the first's only arm)")
    rival.add_argument("--arm", default="", help="the arm held against it (default: the second folder's only arm, or the other one of two)")
    rival.add_argument("--across", default="", metavar="KEY[,KEY]", help="device, precision or metric: what may differ between the two")
    rival.add_argument("--out", help="figure to write (default: compare.png in the first folder)")
    brought = command(
        "records",
        _records,
        "bring in runs of others (CSV, parquet, JSON lines, TensorBoard) for fit, forecast and compare",
        "action",
        "add",
    )
    brought.add_argument("files", nargs="+", metavar="FILE", help=".csv, .parquet or .jsonl, or a folder of TensorBoard's runs")
    brought.add_argument("--to", required=True, metavar="DIR", help="folder of the runs, made where there is none, else added to")
    about = "loss, flops, params, examples, run, arm, seed, seconds, unique, lr, convention, device, precision or data, and the files' column of it"
    brought.add_argument("--map", action="append", default=[], metavar="KEY=COLUMN", help=about)
    brought.add_argument("--at", default="last", help="a run's end: its last row, its best, or each row a run's (default: last)")
    brought.add_argument("--flops", default="", metavar="6ND", help="make FLOPs of params and examples where no column has them")
    brought.add_argument("--convention", default="", metavar="TEXT", help="how FLOPs are counted")
    brought.add_argument("--arm", default="", metavar="NAME", help="arm of all runs of these files")
    brought.add_argument(
        "--join", default="", metavar="FILE", help="file with a row a run, such as sizes, to stand beside the runs' own rows"
    )
    design = command(
        "ladder",
        _ladder,
        "write an experiment from which a law can be fitted, and tell its intervals before it is paid" + override,
        "experiment",
        "file that gives model, data, objective and optimizer",
    )
    design.add_argument("--budget", type=float, required=True, metavar="FLOPS", help="training FLOPs of all its runs, such as 1e14")
    design.add_argument("--points", type=int, default=12, help="sizes and horizons (default: 12)")
    design.add_argument("--seeds", type=int, default=1, help="runs of each (default: 1)")
    design.add_argument("--design", default="isoflop", help="isoflop: sizes at each of several budgets (default); grid: sizes by horizons")
    design.add_argument("--over", default="model.width", help="key that makes sizes (default: model.width, in whole heads)")
    design.add_argument("--lr", type=float, help="learning rate at the base (default: the experiment's)")
    design.add_argument("--epochs", type=float, default=4.0, help="most of a run (default: 4)")
    design.add_argument("--steps", type=int, default=100, help="fewest of a run, or twice the warm-up if more (default: 100)")
    design.add_argument("--prior", metavar="STUDY", help="folder of a study whose law to expect (default: published exponents)")
    design.add_argument("--noise", type=float, default=0.005, help="of one run's loss, relative (default: 0.005)")
    design.add_argument("--out", default="ladder.py", help="experiment file to write (default: ladder.py)")
    sample = command("sample", _sample, "a grid of samples of a study's best model", "study", "folder of a study")
    sample.add_argument("-n", type=int, default=32, help="how many")
    sample.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a caption to sample by, in turn; needs the data")
    sample.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the objective's sampler, such as guidance=3; else the study's own",
    )
    sample.add_argument("--trial", default="", help="id of a trial that kept its weights")
    sample.add_argument("--out", default="samples.png", help="picture to write (default: samples.png)")
    sample.add_argument("--judge", action="append", default=[], metavar="NAME", help="judge the samples instead, by a judge of lab/evals")
    sample.add_argument("--data-dir", default="", help="where the study's data lies (default: where it lay)")
    actions = "list, build, verify, show or encode"
    data = command("data", _data, "list the sources; build, verify, show or encode one", "action", actions)
    data.add_argument("name", nargs="?", help="source, such as icons")
    data.add_argument("options", nargs="*", help="the source's options as in a config's data section, such as size=16")
    data.add_argument("--data-dir", default="data")
    data.add_argument("-n", type=int, default=32, help="show: how many examples")
    data.add_argument("--out", default="data.png", help="show: picture to write (default: data.png)")
    data.add_argument(
        "--with", dest="function", metavar="WHAT", help="encode: folder of a tokenizer's study or weights, or FILE.py:FUNCTION"
    )
    data.add_argument("--to", help="encode: folder of the encoded set, absolute or within --data-dir")
    data.add_argument("--batch", type=int, default=64, help="encode: examples the function gets at once (default: 64)")
    data.add_argument("--shard-examples", type=int, default=8192, help="encode: examples a file (default: 8192)")
    data.add_argument("--devices", type=int, default=0, help="encode: how many devices (default: all)")
    data.add_argument("--eval-examples", type=int, default=0, help="encode: first so many of eval (default: all)")
    take = command("import", _import, "make a folder that reads like a study from weights in a published format", "what", "weights")
    take.add_argument("folder", help="folder with config.json and *.safetensors")
    take.add_argument("--to", required=True, help="folder to make")
    take.add_argument("--allow-extra", action="store_true", help="leave tensors that the model has no place for")
    about = "of the objective's section, such as name=flow, in place of the format's own"
    take.add_argument("--objective", action="append", default=[], metavar="KEY=VALUE", help=about)
    about = "of the section of the data that they were trained on, such as name=shapes, for prompts, palette and judges"
    take.add_argument("--data", action="append", default=[], metavar="KEY=VALUE", help=about)
    take.add_argument("--data-dir", default="data", help="--data: where it lies (default: data)")
    give = command("export", _export, "write a study's weights in a published format, with their parametrization", "what", "weights")
    give.add_argument("study", help="folder of a study")
    give.add_argument("--to", required=True, help="folder to make")
    give.add_argument("--trial", default="", help="id of a trial that kept its weights (default: the best)")
    for sub in (take, give):
        sub.add_argument("--format", default="", metavar="NAME", help="of lab/formats (default: what config.json, or the model, tells)")
    bench = command("bench", _bench, "measure against a peer: step, decode, sweep, compile or data", "what", "step, decode, ...")
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 done, 2 bad config or input, 3 every trial diverged, 75 interrupted with the state saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    overrides = []
    if "bench" not in argv[:1]:
        for i, a in enumerate(list(argv)):
            if a.startswith("--config.") and "=" not in a and i + 1 < len(argv):
                argv[i], argv[i + 1] = f"{a}={argv[i + 1]}", ""
        overrides = [a for a in argv if a.startswith("--config.")]
        argv = [a for a in argv if a and not a.startswith("--config.")]
    # every core is a device on which trials take their turn; jax reads this as it is imported, and on a CPU alone
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores))
    try:
        args, odd = _parser().parse_known_args(argv)
        if args.command == "data":  # options may stand behind flags
            args.options += [x for x in odd if "=" in x and x[0] != "-"]
            odd = [x for x in odd if x not in args.options]
        if odd:
            raise unknown(f"argument of lab {args.command}", odd[0], _options(args.command))
        args.overrides, args.argv = overrides, [*argv, *overrides]
        if overrides and args.command not in ("run", "submit", "plan", "audit", "check", "ladder"):
            raise UserError(f"{overrides[0]} has no meaning for `lab {args.command}`")
        return args.call(args) or 0
    except UserError as e:
        print(f"lab: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # an OSError too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(
            f"lab: {e.strerror}: {e.filename or 'a file of the study'}; the same command goes on from the last saved step", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("lab: interrupted; the same command goes on from the last saved step", file=sys.stderr)
        return INTERRUPTED


def _options(command: str) -> list[str]:
    """The options that a command takes."""
    sub = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices[command]
    return [o for a in sub._actions for o in a.option_strings if o.startswith("--")] + ["--config.KEY=VALUE"]


def _cache() -> str:
    """Where compiled programs are kept: a local folder, as XLA keeps part of it nowhere else."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "lab" / "xla"))


def _jax() -> None:
    """Settings that hold for every command that computes: the compile cache is on."""
    import jax

    from sharding import aot

    aot.quiet()
    jax.config.update("jax_compilation_cache_dir", _cache())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _study(args: argparse.Namespace, folder: bool = False):
    from lab import study
    from lab.experiment import load

    _jax()
    experiment = load(args.experiment, args.overrides)
    return study.Study(experiment, Path(args.workdir) / experiment.name if folder else None, here=args.command == "plan")


def _run(args: argparse.Namespace) -> int:
    from lab.log import console

    began = time.time()
    if "://" in args.workdir:
        raise UserError(f"--workdir {args.workdir!r}: a study is written to a folder; mount the bucket and give its path (docs/pods.md)")
    if args.task is not None and args.task < 0:
        raise UserError(f"--task {args.task} must be 0 or more")
    if args.retries:
        from lab.launch import retry
        from lab.launch.job import lab

        return retry.supervise([*lab(), *args.argv, "--retries", "0"], args.retries)  # of an option given twice the last counts
    _jax()  # before hosts are asked for: that asks for devices
    from lab.population import Interrupt, Preempted
    from sharding import hosts

    try:
        hosts.start()
    except ValueError as e:
        raise UserError(f"processes of this run: {e}") from e
    except RuntimeError as e:  # others are late or gone, which another attempt may mend
        print(f"lab: processes of this run did not all start ({str(e).splitlines()[0]}); start all of them again", file=sys.stderr)
        return INTERRUPTED
    console.quiet = not hosts.first()
    from lab import study as studies
    from lab.experiment import load

    experiment = load(args.experiment, args.overrides)
    folder, nothing = (
        Path(args.workdir) / experiment.name,
        f"task {args.task}: the study has no more populations, so there is nothing to do",
    )
    if args.task is not None and args.task >= studies.most(experiment, folder):
        print(nothing)
        return 0
    study, only = studies.Study(experiment, folder, here=True), args.only
    if args.task is not None:
        if args.task >= len(order := study.longest()):
            print(nothing)
            return 0
        only = order[args.task]
    try:
        with Interrupt() as interrupt:
            folder = study.run(interrupt, only, args.largest_first, began)
    except Preempted as e:
        print(f"lab: {e}" if str(e) else "lab: stopped, state saved; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if study.others:
        if not hosts.first():
            return 0
        print("\n".join(f"{n}: not done, held by {who}" for n, who in study.others.items()))
        print("nothing is left to do here; whoever ends the last population writes the report")
        return 0
    from lab import record, report

    states = record.status(folder)
    wanted = [states[i] for i in study.trials]
    if hosts.first():
        console.print("drawing the report", markup=False)
        with study.alone():
            found = report.find(folder)
            page = report.report(folder, found=found)
        print(report.headline(found))
        print(f"report: {page}")
    hosts.barrier("report")
    return 3 if wanted and all(s == "diverged" for s in wanted) else 0


def _plan(args: argparse.Namespace) -> int:
    if args.all == bool(args.experiment):
        raise UserError("lab plan wants an experiment file, or --all")
    if args.all or args.topology:
        if args.workdir is not None:
            raise UserError(f"--workdir={args.workdir} is of a plan for this device, which leaves out what is done; a pod's is of one step")
        return _plan_pod(args)
    for key in ("mesh", "price", "out"):
        if getattr(args, key) is not None:
            raise UserError(f"--{key}={getattr(args, key)} is of a pod; name it by --topology, such as v5p:8x8x8")
    study = _study(args, folder=args.workdir is not None)
    from lab import plan

    for stage in (stages := study.stages()):
        if len(stages) > 1:
            print(f"stage {stage.experiment.stage}, of {len(stages)}")
        _plan_here(stage, plan)
    return 0


def _plan_here(study, plan) -> None:
    if done := len(study.packs) - len(plan.left(study)):
        print(f"{done} of {len(study.packs)} populations are done in {study.folder} and left out")
    if done == len(study.packs):
        return
    print(plan.table(plan.plan(study)))
    if study.halving and not done:
        print(f"run.halving leaves {study.left():.0%} of that, with a compile more a mark, where no trial diverges before")
    if study.experiment.ask:
        print("the first round alone: the sweep takes a history, and what it asks for next is not known before")


def _plan_pod(args: argparse.Namespace) -> int:
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise UserError(f"--price={args.price} must be that of a chip-hour, 0 or more")
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: the devices of this machine are left to others
    _jax()
    from lab import pods, pods_text
    from lab.experiment import load

    if args.all:
        if args.topology or args.mesh or args.overrides:
            raise UserError("--all plans every experiments/pods/*.py on its own topologies; give an experiment file to plan it otherwise")
        out = Path(args.out or ROOT / "benchmarks" / "results" / "plans.json")
        rows = pods.every(sorted((ROOT / "experiments" / "pods").glob("*.py")), out, args.price)
        print(f"{pods_text.table(rows)}\n\nplans: {out}")
        return 0
    experiment = load(args.experiment, args.overrides)
    on = pods.pod(args.topology, args.slices)
    told = pods.plan(experiment, on, args.mesh and pods.sizes(args.mesh, len(on.devices)), args.price)
    print(pods_text.text(told))
    if args.out:
        from lab.files import write_json

        write_json(Path(args.out), told)
        print(f"plan: {args.out}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    factor = _factor(args.width) if args.width else None
    study = _study(args)
    from lab import audit
    from lab.study import kinds

    dims, wrong, several = study.train.dims, 0, kinds(study)
    for arm, config in several.items():
        if len(several) == 1:
            config = study.config | {k: config[k] for k in study.experiment.sections if k in config}
        else:
            print(f"{arm}:")
        small = audit.rows(config, dims)
        large = None
        if factor:
            if "width" not in config["model"]:
                raise UserError("--width: the config's model has no key 'width' to multiply")
            wide = {**config["model"], "width": factor * config["model"]["width"]}
            large = audit.rows({**config, "model": wide}, dims)
        print(audit.text(small, large, args.width or ""))
        lies = audit.truth(config, dims, study.example())
        for name, said in lies.items():
            print(f"arrow of {name} does not hold: {'; '.join(said)}", file=sys.stderr)
        print("every arrow is true to the traced program" if not lies else f"{len(lies)} arrows are wrong")
        wrong += len(lies)
    return 2 if wrong else 0


def _check(args: argparse.Namespace) -> int:
    if bool(args.experiment) == args.all:
        raise UserError("lab check wants an experiment file, or --all")
    widths = _rising("--widths", args.widths, 2)
    depths = _rising("--depths", args.depths, 1) if args.depths else () if args.all else None
    if args.seeds < 2 or args.steps < 6 or not args.lr > 0:
        raise UserError(
            f"lab check needs --seeds of 2 or more, --steps of 6 or more and --lr above 0; got {args.seeds}, {args.steps}, {args.lr}"
        )
    study = None if args.all else _study(args)
    _jax()
    import jax

    from lab import check
    from lab.coordinates import Setting

    setting = Setting(args.seeds, args.steps, args.lr)
    if study is None:
        device = jax.devices()[0].device_kind.lower().replace(" ", "-")
        out = args.out or ROOT / "benchmarks" / "results" / f"check-{device}.json"
        todo = list(check.every(sorted((ROOT / "experiments").glob("*_transfer.py")), args.overrides, setting.steps))
    else:
        out, todo = args.out or f"check-{study.experiment.name}.json", list(check.jobs(study, setting.steps))
    failed = check.check(todo, check.Sizes(widths, depths), setting, Path(out))
    print(f"{len(todo) - len(failed)} of {len(todo)} hold; slopes: {out}, figures beside it")
    return 2 if failed else 0


def _rising(option: str, text: str, least: int) -> tuple[int, ...]:
    """Rising whole numbers of '32,64,128'."""
    found = [int(n) if n.isdigit() else 0 for n in text.split(",")]
    if len(found) < least or min(found) < 1 or sorted(set(found)) != found:
        raise UserError(f"{option}={text!r} must be {'two or more' if least > 1 else 'some'} rising whole numbers such as 32,64,128")
    return tuple(found)


def _factor(text: str) -> int:
    number = text.removesuffix("x")
    if not number.isdigit() or int(number) < 1:
        raise UserError(f"--width={text!r} must be a whole factor such as 4x")
    return int(number)


def _status(args: argparse.Namespace) -> None:
    from lab import goodput, record
    from lab.launch import submit

    folder = Path(args.study)
    if (told := submit.told(folder)) and not (folder / "study.json").exists():  # at a URI, and not collected yet
        print(told)
        return
    states, study = record.status(folder), record.read_study(folder)
    for stage, where in record.stages(folder):
        each = list(record.status(where).values()) if where else []
        said = ", ".join(f"{each.count(k)} {k}" for k in record.STATES if k in each)
        print(f"stage {stage}: {said or 'not begun'}")
    counts: dict[str, dict[str, int]] = {}
    for trial, state in states.items():
        row = counts.setdefault(study["trials"][trial]["population"], {})
        row[state] = row.get(state, 0) + 1
    from rich.console import Console
    from rich.table import Table

    kinds = [k for k in record.STATES if any(k in row for row in counts.values())]
    table = Table("population", *kinds, "step", title=f"{study['name']}: {len(states)} trials", title_justify="left")
    for name, row in counts.items():
        table.add_row(name, *(str(row.get(k, "")) for k in kinds), record.progress(folder / name))
    table.add_section()
    table.add_row("all", *(str(sum(r.get(k, 0) for r in counts.values())) for k in kinds), "")
    Console().print(table)
    if told:
        print(told)
    if spent := goodput.said(goodput.study(folder, list(study["populations"]))):
        print(spent)


def _submit(args: argparse.Namespace) -> None:
    from lab.launch import submit

    options = submit.parsed(args.to, args.option)
    end = submit.backend(args.to, options)
    study = _study(args, folder=end.here)
    job = submit.plan(study, args.experiment, args.overrides, args.workdir, end, args.env, args.retries)
    submit.submit(job, args.to, options, end, study.plan if study.folder else lambda: None, args.dry_run, print)


def _logs(args: argparse.Namespace) -> int:
    from lab.launch import submit

    return submit.logs(Path(args.study), args.task)


def _cancel(args: argparse.Namespace) -> None:
    from lab.launch import submit

    submit.cancel(Path(args.study), args.dry_run, print)


def _collect(args: argparse.Namespace) -> None:
    from lab import report
    from lab.launch import submit

    folder = Path(args.study)
    submit.gather(folder, args.dry_run, print)
    if args.dry_run:
        return
    if left := submit.unfinished(folder):
        print(f"not done yet: {', '.join(left)}")
    found = report.find(folder)
    print(report.headline(found))
    print(f"report: {report.report(folder, found=found)}")


def _doctor(args: argparse.Namespace) -> int:
    from lab.launch import doctor

    wrong = False
    for finding in doctor.look(Path(args.workdir), Path(_cache())):
        print(finding, flush=True)
        wrong |= finding.needed and not finding.ok
    return 2 if wrong else 0


def _report(args: argparse.Namespace) -> None:
    from lab import report

    if said := report.imported(Path(args.study)):
        print(said)
        return
    found = report.find(Path(args.study), args.over)
    page = report.report(Path(args.study), Path(args.out) if args.out else None, found)
    print(report.headline(found))
    print(f"report: {page}")


def _transfer(args: argparse.Namespace) -> None:
    from lab import ladder, points, record, target, transfer

    folder = Path(args.study)
    if args.to and args.over is None and ladder.ladder(record.read_study(folder)) is None:
        if args.of:
            raise UserError(f"--of={args.of!r} has no meaning for a study of one size, whose best point is carried whole")
        return print(target.carry(points.read(folder), dict(map(_option, args.to)), args.arm, Path(args.out), lambda c: _size(folder, c)))
    told = transfer.read(folder, args.over, tuple(filter(None, args.of.split(","))))
    print(transfer.text(folder, told))
    if args.to:
        print(target.write(told, dict(map(_option, args.to)), args.arm, Path(args.out)))


def _size(folder: Path, config: dict) -> tuple[float, int]:
    """FLOPs of a training example of a config on a study's data, and its parameters."""
    _jax()
    from lab.sampling import counted

    return counted(folder, config)


def _batch(args: argparse.Namespace) -> None:
    from lab import batch

    folder = Path(args.study)
    told, out = batch.read(folder, args.target), Path(args.out) if args.out else folder / "batch.png"
    print(batch.text(told))
    batch.draw(told, out)
    print(f"figure: {out}")


def _fit(args: argparse.Namespace) -> None:
    from lab import fit, skills

    told, scores = fit.read(Path(args.study), args.arm), [skills.read(Path(args.study), name, args.arm) for name in args.skill]
    print(fit.text(Path(args.study), told, args.profile))
    if any(t.laws for t in told.arms.values()):
        print(f"figure: {fit.figure(told, Path(args.out))}")
    if args.rate:
        print(f"\n{fit.rates_text(Path(args.study), args.arm)}")
    for s in scores:
        print(f"\n{skills.text(s)}")
        if s.laws:
            out = Path(args.out)
            print(f"figure: {skills.figure(s, out.with_name(f'{out.stem}-{s.column}{out.suffix}'))}")
    if args.points:
        print(f"points: {fit.write_points(told, Path(args.points))}")
    if not any(t.laws for t in told.arms.values()):
        raise fit.lawless(told)
    if args.methods:
        print(f"\n{fit.methods(told)}")


def _records(args: argparse.Namespace) -> None:
    if args.action != "add":
        raise unknown("lab records", args.action, ["add"])
    from lab import bring

    columns, wrong = {}, []
    for text in args.map:
        key, _, column = text.partition("=")
        if not column or key in columns:
            wrong.append(
                f"--map {text!r} {'names a key twice' if key in columns else 'is malformed'}; expected KEY=COLUMN such as loss=val/loss"
            )
        columns.setdefault(key, column)
    how = bring.How({k: v for k, v in columns.items() if v}, args.at, args.flops, args.convention, args.arm, args.join)
    print("\n".join(bring.add(args.files, Path(args.to), how, wrong)))


def _forecast(args: argparse.Namespace) -> None:
    if (args.flops is None) == (not args.to):
        raise UserError(f"lab forecast wants either --flops or --to, {'both were' if args.to else 'neither was'} given")
    if args.flops is not None and not 0 < args.flops < float("inf"):
        raise UserError(f"--flops={args.flops} must be above 0")
    if args.unique is not None and not 1 <= args.unique < float("inf"):
        raise UserError(f"--unique={args.unique} must be at least 1 example")
    for key, value in (("--mfu", args.mfu), ("--price", args.price)):
        if value is not None and args.on is None:
            raise UserError(f"{key}={value} is of devices; name them by --on, such as --on v5p:64")
    from lab import ahead, devices, fit, skills

    folder, on = Path(args.study), args.on and devices.machine(args.on, args.mfu, args.price)
    told, given = fit.read(folder, args.arm), [part for text in args.to for part in text.split(",")]
    scores = tuple(skills.read(folder, name, args.arm) for name in args.skill)
    to = None
    if given:
        to = ahead.targets(folder, told, Path(given[0]) if len(given) == 1 and "=" not in given[0] else dict(map(_option, given)))
    print(ahead.text(told, args.flops, to, on or None, scores, args.unique))


def _compare(args: argparse.Namespace) -> None:
    from lab import compare

    folders = [Path(f) for f in (args.study, args.other) if f]
    found = compare.compare(folders, args.base, args.arm, [k for k in args.across.split(",") if k])
    print(compare.text(found))
    print(f"figure: {compare.figure(found, Path(args.out) if args.out else folders[0] / 'compare.png')}")


def _ladder(args: argparse.Namespace) -> None:
    for key in ("budget", "points", "seeds", "epochs", "steps", "noise", *(("lr",) if args.lr is not None else ())):
        if not 0 < getattr(args, key) < float("inf"):
            raise UserError(f"--{key}={getattr(args, key)} must be above 0")
    from lab import written

    written.check(Path(args.out))  # before data is opened
    _jax()
    from lab import designs
    from lab.experiment import load

    asked = designs.Asked(args.budget, args.points, args.seeds, args.epochs, args.steps)
    experiment, prior = load(args.experiment, args.overrides), Path(args.prior) if args.prior else None
    print(designs.ladder(experiment, asked, args.design, args.over, prior, args.noise, args.lr, Path(args.out)))


def _sample(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UserError(f"-n={args.n} must be at least 1")
    if args.prompt and args.judge:
        raise UserError("--prompt asks for pictures and --judge for a verdict on the data's own prompts; give one of them")
    import numpy as np

    from lab import record

    folder = Path(args.study)
    info = record.read_study(folder)["data"]
    from lab import report, sampling
    from lab.experiment import sampler_options
    from lab.log import console

    _jax()
    found = sampling.restored(folder, args.trial)
    options = {**found.config["sample"]["options"], **dict(map(_option, args.option))}
    sampler_options(found.program.objective, options, "sample.options")
    looks = sampling.looks(found, options)
    train, held = sampling.sources(folder, args.data_dir) if args.judge or args.prompt or looks else (None, None)
    about, n = found.about, min(args.n, len(held)) if looks and not args.judge else args.n
    told = f"{n} samples of trial {about['trial']} ({about['arm']}, {about['population']}"
    said = f"compiling the sampler of trial {about['trial']} and drawing {n} samples"
    if args.judge:
        scores = sampling.judged(found, train, held, args.judge, args.n, options, args.data_dir, lambda: console.print(said, markup=False))
        print(f"{told}{''.join(f'; {k} {v}' for k, v in options.items())})")
        for column, value in scores.items():
            print(f"{column:24} {value:.6g}")
        return
    if args.prompt:
        cond, names = sampling.prompted(found, folder, held, args.prompt, args.n)
    elif looks:
        cond, names = sampling.originals(found, [held[i] for i in range(n)], info)
    else:
        cond, names = sampling.asked(found, folder, info, args.n)
    console.print(said, markup=False)
    drawn = sampling.sample(found, info, cond, options, args.data_dir)
    if "words" in drawn:
        names = sampling.spelled(drawn["words"], held or sampling.sources(folder, args.data_dir)[1])
    if "image" not in drawn and not looks:
        print("\n".join([f"{told}):", *names]))
        return
    if looks:
        shows = sampling.shown(found, held, args.data_dir)
        given = [sampling.picture(shows[i], shows.info) for i in range(n)]
        drawn["image"], names = report.beside(given, drawn["image"], names) if "image" in drawn else (np.stack(given), names)
    report.grid(drawn["image"], names, Path(args.out))
    print(f"{told}): {args.out}")


def _data(args: argparse.Namespace) -> None:
    from lab import find

    if args.action not in (actions := ("list", "build", "verify", "show", "encode")):
        raise unknown("lab data", args.action, actions)
    if args.action == "list":
        for name in find.names("lab.data"):
            print(f"{name:10} {find.module('lab.data', name).__doc__.splitlines()[0]}")
        return
    if args.name is None:
        raise UserError(f"lab data {args.action} wants the name of a source: {', '.join(find.names('lab.data'))}")
    options = dict(_option(text) for text in args.options)
    if args.action == "show":
        return _show(args, options)
    if args.action == "encode":
        return _encode(args, options)
    source = find.module("lab.data", args.name)
    if not hasattr(source, args.action):
        raise UserError(f"source {args.name!r} keeps no files of its own; it has nothing to {args.action}")
    call = getattr(source, args.action)
    known = {n: p for n, p in inspect.signature(call).parameters.items() if n != "data_dir"}
    options = {**({"size": 16} if "size" in known else {}), **options}
    wanted = [n for n, p in known.items() if p.default is p.empty]
    for key in options:
        if key not in known:
            raise unknown(f"option of lab data {args.action} {args.name}", key, known)
    if missing := [k for k in wanted if k not in options]:
        raise UserError(f"lab data {args.action} {args.name} wants {missing[0]}=...")
    print(call(args.data_dir, **options))


def _encode(args: argparse.Namespace, options: dict) -> None:
    for key, value in (("--with", args.function), ("--to", args.to)):
        if not value:
            raise UserError(f"lab data encode {args.name} wants {key}; such as --with runs/vq --to tokens, or --with vae.py:encode")
    from lab.data import encode, encoded

    _jax()
    config, more = {"name": args.name, **options}, {"batch": args.batch, "shard_examples": args.shard_examples, "devices": args.devices}
    if Path(args.function).is_dir():
        from lab import encoding

        encoding.encode(config, args.data_dir, Path(args.function), args.to, args.eval_examples, **more)
    else:
        encode.encode(config, args.data_dir, args.function, args.to, args.eval_examples, **more)
    print(encoded.verify(args.data_dir, args.to))
    print(f'c.data = dict(name="encoded", path="{args.to}")')


def _import(args: argparse.Namespace) -> None:
    _weights(args.what)
    from lab import weights

    objective, data = (dict(map(_option, given)) for given in (args.objective, args.data))
    told = weights.import_weights(Path(args.folder), Path(args.to), args.allow_extra, args.format, objective, data, args.data_dir)
    print("\n".join(told))


def _export(args: argparse.Namespace) -> None:
    _weights(args.what)
    from lab import weights

    print("\n".join(weights.export_weights(Path(args.study), Path(args.to), args.trial, args.format)))


def _weights(what: str) -> None:
    if what != "weights":
        raise unknown("what to import or export", what, ["weights"])
    _jax()


def _option(text: str) -> tuple[str, object]:
    """('size', 16) of 'size=16'; what is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"option {text!r} is malformed; expected KEY=VALUE such as size=16")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _show(args: argparse.Namespace, options: dict) -> None:
    from lab import report
    from lab.data.loader import open_source

    if args.n < 1:
        raise UserError(f"-n={args.n} must be at least 1")
    source = open_source({"name": args.name, **options}, "train", args.data_dir)
    images, names = report.examples(source, args.n)
    report.grid(images, names, Path(args.out))
    for key, value in source.info.items():
        text = str(value)
        print(f"{key}: {text if len(text) < 2000 else text[:1997] + '...'}")
    print(f"{len(images)} of {len(source)} examples: {args.out}")


def _bench(args: argparse.Namespace) -> None:
    file = ROOT / "benchmarks" / f"{args.what}.py"
    if not file.is_file():
        have = sorted(p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py"))
        raise unknown("benchmark", args.what, have)
    from sharding import aot

    aot.quiet()  # and no more of _jax: what compiles is measured, without a cache
    sys.argv = [str(file), *args.rest]
    runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
