"""What a back end is given to run, and the steps that it makes of it; everything here is text until a step is done."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lab.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAME_LIMIT = 28  # of Cluster Toolkit's gcluster; Kubernetes adds to it and stops at 63
# what a task finds in its environment of the submitter's own; everything else is left behind unless --env names it
ALLOWED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "SLURM_CONF"),
    *("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR"),
)
HERE = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")  # and on this machine, whose devices they are of
WORKER = ""  # the population of a task that trains whatever is left


class Job(NamedTuple):
    """A study to be run: `tasks` are the populations that get a task of their own, or WORKERs; `env` are variables by name, or NAME=VALUE.

    `home` is the folder of this machine in whose folder of the study's name a submission is told: `workdir` itself, where tasks see this machine's.
    """

    name: str
    study: str
    experiment: str
    overrides: tuple[str, ...]
    workdir: str
    home: str
    tasks: tuple[str, ...]
    env: tuple[str, ...]
    retries: int

    @property
    def folder(self) -> Path:
        """Where what is known of the submission lies."""
        return Path(self.home) / self.study

    def here(self, backend: str) -> None:
        """UserError where the work dir is no folder."""
        if "://" in self.workdir:
            raise UserError(
                f"--workdir {self.workdir!r}: back end {backend!r} needs a folder that its tasks see, such as a bucket's mounted one"
            )

    def command(self, lab: Iterable[str], *more: str) -> list[str]:
        """`lab run` of the study as one or more words `lab` call it."""
        retries = ["--retries", str(self.retries)] if self.retries else []
        return [*lab, "run", self.experiment, "--workdir", self.workdir, *more, *retries, *self.overrides]

    def names(self) -> list[str]:
        """Variables that a task is to find, which the submitter has."""
        return [n for n in dict.fromkeys([*ALLOWED, *self.env]) if "=" not in n and n in os.environ]

    def values(self, backend: str, instead: str) -> dict[str, str]:
        """{name: value} of --env NAME=VALUE; UserError for a variable by name alone, whose value would have to be written where others read it."""
        if hidden := [e for e in self.env if "=" not in e]:
            raise UserError(
                f"--env {hidden[0]}: {backend} would have to write its value down; {instead}, or give --env NAME=VALUE if all may read it"
            )
        return dict(e.split("=", 1) for e in self.env)


def mounted(job: Job, at: str) -> tuple[str, Job]:
    """(bucket, job): of a job whose work dir is gs://BUCKET/PATH, that which finds the bucket mounted as a folder."""
    bucket, _, path = job.workdir.removeprefix("gs://").partition("/")
    if not job.workdir.startswith("gs://") or not bucket:
        raise UserError(f"--workdir {job.workdir!r}: hosts share no folder of this machine; expected gs://BUCKET/PATH")
    return bucket, job._replace(workdir=f"{at}/{path}".rstrip("/"))


class Step(NamedTuple):
    """A command to run, in the background with its output in `log` if that is given, or a file to write."""

    argv: tuple[str, ...] = ()
    file: Path | None = None
    text: str = ""
    log: Path | None = None

    def shown(self) -> str:
        """The step as --dry-run prints it."""
        if self.file is not None:
            return f"# file {self.file}\n{self.text.rstrip()}\n"
        return f"$ {shlex.join(self.argv)}" + (f" >> {self.log} 2>&1 &" if self.log else "")

    def do(self, env: dict[str, str] | None = None) -> str:
        """Do it; returns what the command wrote, or its process number and log where it stays in the background."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(self.text)
            return ""
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as out:
                options = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
                return f"{subprocess.Popen(self.argv, env=env, **options).pid} {self.log}"
        done = subprocess.run(self.argv, env=env, capture_output=True, text=True)
        if done.returncode:
            said = next(iter((done.stderr or done.stdout).strip().splitlines()[::-1]), "it says nothing")
            raise UserError(f"{shlex.join(self.argv[:4])} ... fails with exit code {done.returncode}: {said}")
        return done.stdout


def name(study: str, content: object) -> str:
    """`<study>-<hash>`: fit for DNS, and the same for the same study; with `-NN` behind it, of at most 28 characters."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"s{slug}"
    return f"{slug[: NAME_LIMIT - 12].rstrip('-')}-{digest}"


def lab() -> list[str]:
    """The `lab` command of this environment."""
    return [sys.executable, "-m", "lab.cli"]


def environment(job: Job) -> dict[str, str]:
    """The variables that a task on this machine finds."""
    return {n: os.environ[n] for n in (*job.names(), *HERE) if n in os.environ} | dict(e.split("=", 1) for e in job.env if "=" in e)


def check_tools(needs: Iterable[str], backend: str) -> None:
    """UserError naming the first program of `needs` that is not on PATH."""
    if missing := [t for t in needs if shutil.which(t) is None]:
        raise UserError(f"back end {backend!r} needs the program {missing[0]!r}, which is not on PATH; --dry-run works without it")
