"""SLURM: one array, a task a population, longest first, as a rendered sbatch script.

No submitit: what it sends is a pickled call, which reports any exit code but 0 as a failure and is requeued on a time limit alone; here exit code 75
requeues the task, and what runs is a script that can be read.
"""

import re
import shlex
import subprocess
from pathlib import Path

from lab.errors import UserError
from lab.launch.job import ROOT, Job, Step, check_tools, lab
from sharding.exits import INTERRUPTED

SCRIPT = """#!/bin/bash
{head}
populations=(
{populations}
)
only=${{populations[$SLURM_ARRAY_TASK_ID]}}
cd {root} || exit 2
srun --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} {command} ${{only:+--only "$only"}}
code=$?
# interrupted with its state saved: it goes on when its turn comes, unless it was cancelled or SLURM has requeued it by itself
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" # the last task's SLURM_JOB_ID is that of the whole array
if [ "$code" = {interrupted} ] && scontrol show job "$task" | grep -q JobState=RUNNING; then
  scontrol requeue "$task"
fi
exit "$code"
"""

ODD = re.compile(r"[\s\"'\\#]")  # where sbatch would end a word or the line, or begin a comment


class Backend:
    """One array job, whose runs get SIGTERM `grace` seconds before the time is up, save their state and end with 75.

    `gpus` are those of a node, `parallel` is how many tasks run at a time (0: all), `time` is as sbatch takes it.
    """

    needs = ("sbatch", "squeue", "scancel", "scontrol")
    tasks = "populations"
    here = True
    ahead = False

    def __init__(
        self,
        partition: str = "",
        account: str = "",
        qos: str = "",
        time: str = "",
        nodes: int = 1,
        gpus: int = 0,
        cpus: int = 0,
        memory: str = "",
        parallel: int = 0,
        grace: int = 120,
    ):
        self.given = {"partition": partition, "account": account, "qos": qos, "time": time, "mem": memory}
        self.nodes, self.gpus, self.cpus, self.parallel, self.grace = nodes, gpus, cpus, parallel, grace

    def steps(self, job: Job) -> list[Step]:
        """The script and its submission."""
        job.here("slurm")
        script = job.folder / f"{job.name}.sbatch"
        return [Step(file=script, text=self.script(job)), Step(("sbatch", "--parsable", str(script)))]

    def script(self, job: Job) -> str:
        """The batch script of a job."""
        logs = (job.folder / "logs").absolute()
        limit = f"%{self.parallel}" * (self.parallel > 0)
        # one process a node, or where there are several nodes one a GPU, as jax.distributed expects
        each = self.gpus if self.nodes > 1 and self.gpus else 1
        values = [e for e in job.env if "=" in e]
        words = [
            (f"--workdir {job.workdir!r}", str(logs)),
            *((f"--option {k}={v!r}", v) for k, v in self.given.items()),
            *((f"--env {e.split('=')[0]}", e) for e in values),
        ]
        if odd := [what for what, word in words if ODD.search(word)]:
            raise UserError(f"{odd[0]}: an #SBATCH line cannot hold blanks, quotes, backslashes or #")
        if odd := [e for e in values if "," in e]:
            raise UserError(f"--env {odd[0].split('=')[0]}: sbatch cannot pass a value with a comma; export it and give its name alone")
        head = [
            f"--job-name={job.name}",
            f"--array=0-{len(job.tasks) - 1}{limit}",
            f"--output={logs}/{job.name}-%A_%a.log",
            "--open-mode=append",
        ]
        head += ["--requeue", f"--signal=TERM@{self.grace}", f"--nodes={self.nodes}", f"--ntasks-per-node={each}"]
        head += [f"--gpus-per-node={self.gpus}"] * (self.gpus > 0) + [f"--cpus-per-task={self.cpus}"] * (self.cpus > 0)
        head += [f"--{k}={v}" for k, v in self.given.items() if v] + [f"--export={','.join([*job.names(), *values]) or 'NIL'}"]
        return SCRIPT.format(
            head="\n".join(f"#SBATCH {h}" for h in head),
            populations="\n".join(f"  {shlex.quote(t)}" for t in job.tasks),
            root=shlex.quote(str(ROOT)),
            command=shlex.join(_absolute(job).command(lab())),
            interrupted=INTERRUPTED,
        )

    def handles(self, job: Job, said: list[str]) -> list[str]:
        """JOB_INDEX of each task."""
        array = said[-1].strip().split(";")[0]
        return [f"{array}_{i}" for i, _ in enumerate(job.tasks)]

    def states(self, job: Job, handles: list[str]) -> list[str]:
        """pending, running or ended, of each task."""
        check_tools(("squeue",), "slurm")
        arrays = sorted({h.split("_")[0] for h in handles})
        asked = ["squeue", "--noheader", "--array", f"--jobs={','.join(arrays)}", "--states=all", "--format=%A %F_%K %T"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode and "Invalid job id" not in done.stderr:  # which says that the array has left the queue
            raise UserError(f"squeue cannot tell of {job.name!r}: {next(iter(done.stderr.strip().splitlines()[-1:]), '')}")
        told = dict(line.split()[1:] for line in done.stdout.splitlines())
        return [_state(told.get(h, "")) for h in handles]

    def logs(self, job: Job, handles: list[str], task: int) -> Step:
        """What prints the log of a task."""
        return Step(("cat", str(job.folder / "logs" / f"{job.name}-{handles[task]}.log")))

    def cancel(self, job: Job, handles: list[str]) -> list[Step]:
        """Ends all that is pending or running; SLURM sends SIGTERM first, on which a run saves its state."""
        return [Step(("scancel", *handles))]


def _absolute(job: Job) -> Job:
    path = str(Path(job.experiment).absolute())
    return job._replace(experiment=path, workdir=str(Path(job.workdir).absolute()))


def _state(told: str) -> str:
    if re.match("PENDING|REQUEUE|SUSPENDED", told):
        return "pending"
    return "running" if re.match("RUNNING|CONFIGURING|COMPLETING", told) else "ended"
