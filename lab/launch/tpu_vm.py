"""Cloud TPU VMs by gcloud: a queued resource, the project's files copied to every host, and one `lab run` on each host of the slice.

The Cloud TPU API is in maintenance and knows no TPU7x; for those, and for many slices at a time, there is `gke`.
"""

import shlex
import subprocess
from pathlib import Path

from lab.errors import UserError
from lab.launch.job import ROOT, Job, Step, check_tools, mounted

MOUNT = "/tmp/study"  # where the hosts have the bucket, by Cloud Storage FUSE
STATES = {"ACTIVE": "running", "FAILED": "ended", "SUSPENDED": "ended", "SUSPENDING": "ended", "DELETING": "ended"}


class Backend:
    """`type` is an accelerator type such as v5litepod-16, `runtime` a TPU software version such as v2-alpha-tpuv5-lite."""

    needs = ("gcloud", "tar")
    tasks = "workers"
    here = False
    count = 1

    def __init__(self, type: str, zone: str, runtime: str, project: str = "", spot: bool = False, valid: str = ""):
        self.type, self.runtime, self.spot, self.valid = type, runtime, spot, valid
        self.place = [f"--zone={zone}", *([f"--project={project}"] if project else [])]

    def steps(self, job: Job) -> list[Step]:
        """Ask for the slice; once it is there, copy the project and begin."""
        values = job.values("tpu-vm", "let the slice's service account read it from Secret Manager")
        bucket, inside = mounted(job, MOUNT)
        file = Path(job.experiment).absolute()
        if not file.is_relative_to(ROOT):
            raise UserError(
                f"experiment file {job.experiment!r} lies outside {str(ROOT)!r}, which is what is copied; put it in experiments/"
            )
        there = inside._replace(experiment=str(file.relative_to(ROOT)))
        wait = "until [ \"$(gcloud compute tpus queued-resources describe {} --format='value(state.state)')\" = ACTIVE ]; do sleep 30; done"
        bundle, here = job.folder / f"{job.name}.tgz", shlex.join([job.name, *self.place])
        pack = f"cd {shlex.quote(str(ROOT))} && git ls-files -z | tar --null --files-from=- -czf {shlex.quote(str(bundle.absolute()))}"
        extra = ["--spot"] * self.spot + [f"--valid-until-duration={self.valid}"] * bool(self.valid)
        exports = "".join(f"export {k}={shlex.quote(v)} && " for k, v in {"LAB_EXTRAS": "icons,tpu", **values}.items())
        # a session of its own, so that it outlives the connection
        run = (
            f"mkdir -p {job.name} && tar -xzf {job.name}.tgz -C {job.name} && cd {job.name} && {exports}"
            f"mkdir -p {MOUNT} && {{ mountpoint -q {MOUNT} || gcsfuse --implicit-dirs {bucket} {MOUNT}; }} && ./launch.sh env && "
            f"setsid nohup {shlex.join(there.command(['./launch.sh']))} >> ../{job.name}.log 2>&1 < /dev/null &"
        )
        tpu = ("gcloud", "compute", "tpus")
        ask = (*tpu, "queued-resources", "create", job.name, f"--node-id={job.name}", *self.place)
        return [
            Step((*ask, f"--accelerator-type={self.type}", f"--runtime-version={self.runtime}", *extra)),
            Step(("bash", "-c", pack)),
            Step(("bash", "-c", wait.format(here))),
            Step((*tpu, "tpu-vm", "scp", str(bundle), f"{job.name}:", "--worker=all", *self.place)),
            Step((*tpu, "tpu-vm", "ssh", job.name, "--worker=all", *self.place, f"--command={run}")),
        ]

    def handles(self, job: Job, said: list[str]) -> list[str]:
        """The queued resource."""
        return [job.name]

    def states(self, job: Job, handles: list[str]) -> list[str]:
        """pending, running or ended: of the slice, whose hosts go on after a run has ended until it is cancelled."""
        check_tools(("gcloud",), "tpu-vm")
        ask = ["gcloud", "compute", "tpus", "queued-resources", "describe", handles[0], *self.place, "--format=value(state.state)"]
        done = subprocess.run(ask, capture_output=True, text=True)
        return [STATES.get(done.stdout.strip(), "pending") if done.returncode == 0 else "ended"]

    def logs(self, job: Job, handles: list[str], task: int) -> Step:
        """What prints the log of every host."""
        return Step(("gcloud", "compute", "tpus", "tpu-vm", "ssh", job.name, "--worker=all", *self.place, f"--command=cat {job.name}.log"))

    def cancel(self, job: Job, handles: list[str]) -> list[Step]:
        """Gives the slice back; hosts get SIGTERM first, on which a run saves its state."""
        return [Step(("gcloud", "compute", "tpus", "queued-resources", "delete", job.name, *self.place, "--force", "--quiet"))]
