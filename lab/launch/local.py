"""Workers on this machine: each is a `lab run` in the background, and they share the study's populations."""

from lab import claims
from lab.errors import UserError
from lab.launch.job import Job, Step, lab


class Backend:
    """`workers` processes, which begin with the largest populations."""

    needs = ()
    tasks = "workers"
    here = True
    ahead = False

    def __init__(self, workers: int = 2):
        if workers < 1:
            raise UserError(f"--option workers={workers} must be at least 1")
        self.count = workers

    def steps(self, job: Job) -> list[Step]:
        """A background process for each task."""
        job.here("local")
        logs = job.folder / "logs"
        begun = len(list(logs.glob(f"{job.name}-*.log")))
        command = tuple(job.command(lab(), "--largest-first"))
        return [Step(command, log=logs / f"{job.name}-{begun + i}.log") for i, _ in enumerate(job.tasks)]

    def handles(self, job: Job, said: list[str]) -> list[str]:
        """Of each task `host pid@born log`; `born` tells its process from a later one of that number."""
        host = claims.owner().rpartition(":")[0]
        return [f"{host} {pid}@{claims.born(int(pid))} {log}" for pid, log in (line.split(" ", 1) for line in said)]

    def states(self, job: Job, handles: list[str]) -> list[str]:
        """running or ended, of each task; UserError on another machine, where that cannot be told."""
        return ["running" if _pid(h) else "ended" for h in handles]

    def logs(self, job: Job, handles: list[str], task: int) -> Step:
        """What prints the log of a task."""
        return Step(("cat", handles[task].split(" ", 2)[2]))

    def cancel(self, job: Job, handles: list[str]) -> list[Step]:
        """Asks each process to save its state and end."""
        return [Step(("kill", "-TERM", str(pid))) for h in handles if (pid := _pid(h))]


def _pid(handle: str) -> int | None:
    """The process number of a task that runs; None of one that has ended."""
    host, process, _ = handle.split(" ", 2)
    if host != claims.owner().rpartition(":")[0]:
        raise UserError(f"the workers of this study run on {host!r}; ask there")
    pid, _, born = process.partition("@")
    return int(pid) if born and born == claims.born(int(pid)) and claims.running(int(pid)) else None
