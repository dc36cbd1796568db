"""Cloud TPU VMs by gcloud: a queued resource, the project's files copied to every host, and one `lab run` on each host of the slice.

The Cloud TPU API is in maintenance and knows no TPU7x; for those, and for many slices at a time, there is `gke`.
"""

import shlex
import subprocess
from pathlib import Path

from lab.errors import UserError
from lab.launch.job import ROOT, Job, Step, check_tools, mounted

# no caches: each host has a mount of its own and is to see at once what the others write
FUSE = "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
MOUNT = "/tmp/study"  # where the hosts have the bucket, by Cloud Storage FUSE
PACK = """set -o pipefail; cd {root} || exit 1
git ls-files --error-unmatch -- {file} > /dev/null 2>&1 || {{ echo {file}" is not tracked by git, so it is not copied: git add it" >&2; exit 1; }}
git ls-files -z | tar --null --files-from=- -czf {bundle}"""
WAIT = """failed=0
until state=$({ask}) && failed=0 || [ $((failed += 1)) -lt 20 ] || exit 1; [ "$state" = ACTIVE ]; do
  case "$state" in FAILED | SUSPENDED | SUSPENDING | DELETING) echo "the slice is $state; give it back by "{end} >&2; exit 1 ;; esac
  sleep 30
done"""
STATES = {"ACTIVE": "running", "FAILED": "ended", "SUSPENDED": "ended", "SUSPENDING": "ended", "DELETING": "ended"}


class Backend:
    """`type` is an accelerator type such as v5litepod-16, `runtime` a TPU software version such as v2-alpha-tpuv5-lite."""

    needs = ("gcloud", "git", "tar")
    tasks = "workers"
    here = False
    ahead = True
    count = 1

    def __init__(self, type: str, zone: str, runtime: str, project: str = "", spot: bool = False, valid: str = ""):
        self.type, self.runtime, self.spot, self.valid = type, runtime, spot, valid
        self.place = [f"--zone={zone}", *([f"--project={project}"] if project else [])]

    def steps(self, job: Job) -> list[Step]:
        """Pack the project and ask for the slice; once it is there, copy the project and begin."""
        values = job.values("tpu-vm", "let the slice's service account read it from Secret Manager")
        bucket, inside = mounted(job, MOUNT)
        file = Path(job.experiment).absolute()
        if not file.is_relative_to(ROOT):
            raise UserError(
                f"experiment file {job.experiment!r} lies outside {str(ROOT)!r}, which is what is copied; put it in experiments/"
            )
        there = inside._replace(experiment=str(file.relative_to(ROOT)))
        bundle = job.folder / f"{job.name}.tgz"
        at = {"root": ROOT, "file": there.experiment, "bundle": bundle.absolute()}
        pack = PACK.format(**{k: shlex.quote(str(v)) for k, v in at.items()})
        extra = ["--spot"] * self.spot + [f"--valid-until-duration={self.valid}"] * bool(self.valid)
        told = {"LAB_EXTRAS": "icons,tpu", "LAB_HOSTS": "auto", **values}  # nothing else tells a host of a slice that there are others
        exports = "".join(f"export {shlex.quote(k)}={shlex.quote(v)} && " for k, v in told.items())
        # a session of its own outlives the connection; it alone is in the background, so that a failure before it is told
        run = (
            f"mkdir -p {job.name} && tar -xzf {job.name}.tgz -C {job.name} && cd {job.name} && {exports}"
            f"mkdir -p {MOUNT} && {{ mountpoint -q {MOUNT} || {FUSE} {shlex.quote(bucket)} {MOUNT}; }} && ./launch.sh env && "
            f"{{ setsid nohup {shlex.join(there.command(['./launch.sh']))} >> ../{job.name}.log 2>&1 < /dev/null & }}"
        )
        wait = WAIT.format(ask=shlex.join(self._describe(job.name)), end=shlex.quote(shlex.join(self.cancel(job, [job.name])[0].argv)))
        tpu = ("gcloud", "compute", "tpus")
        ask = (*tpu, "queued-resources", "create", job.name, f"--node-id={job.name}", *self.place)
        return [
            Step(("bash", "-c", pack)),
            Step((*ask, f"--accelerator-type={self.type}", f"--runtime-version={self.runtime}", *extra)),
            Step(("bash", "-c", wait)),
            Step((*tpu, "tpu-vm", "scp", str(bundle), f"{job.name}:", "--worker=all", *self.place)),
            Step((*tpu, "tpu-vm", "ssh", job.name, "--worker=all", *self.place, f"--command={run}")),
        ]

    def handles(self, job: Job, said: list[str]) -> list[str]:
        """The queued resource."""
        return [job.name]

    def states(self, job: Job, handles: list[str]) -> list[str]:
        """pending, running or ended: of the slice, whose hosts go on after a run has ended until it is cancelled."""
        check_tools(("gcloud",), "tpu-vm")
        done = subprocess.run(self._describe(handles[0]), capture_output=True, text=True)
        if done.returncode and "NOT_FOUND" not in done.stderr:
            raise UserError(f"gcloud cannot tell of {handles[0]!r}: {next(iter(done.stderr.strip().splitlines()[-1:]), '')}")
        return ["ended" if done.returncode else STATES.get(done.stdout.strip(), "pending")]

    def logs(self, job: Job, handles: list[str], task: int) -> Step:
        """What prints the log of every host."""
        return Step(("gcloud", "compute", "tpus", "tpu-vm", "ssh", job.name, "--worker=all", *self.place, f"--command=cat {job.name}.log"))

    def cancel(self, job: Job, handles: list[str]) -> list[Step]:
        """Gives the slice back; hosts get SIGTERM first, on which a run saves its state."""
        return [Step(("gcloud", "compute", "tpus", "queued-resources", "delete", job.name, *self.place, "--force", "--quiet"))]

    def _describe(self, name: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", "describe", name, *self.place, "--format=value(state.state)"]
