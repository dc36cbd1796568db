"""Kubernetes: a JobSet a worker, in it one job a slice and one pod a host; by kubectl, or by gcluster or xpk, which write manifests of their own.

All pods of a set run one program, so they restart together. A pod's exit code decides: 75 restarts the set at no charge, 2 and 3 fail it at once,
anything else is a restart that counts.
"""

import json
import shlex
import subprocess

from lab.errors import UserError, unknown
from lab.launch.job import Job, Step, check_tools, mounted
from sharding.exits import FINAL, INTERRUPTED

TOOLS = ("kubectl", "gcluster", "xpk")
MOUNT = "/mnt/study"


class Backend:
    """`image` has the project at its working directory and `lab` on PATH.

    `accelerator` and `topology` are node labels of GKE, such as tpu-v5p-slice and 2x2x2; `hosts` a slice has, each with `chips`. `claim` is a
    PersistentVolumeClaim to be found at /mnt/study, `secret` a Secret whose keys become variables. `workers` share the study's populations.
    `tool` submits; gcluster and xpk take `compute`, such as v6e-16, `cluster` and `zone` in place of labels.
    """

    tasks = "workers"
    here = False
    ahead = True

    def __init__(
        self,
        image: str,
        accelerator: str = "",
        topology: str = "",
        hosts: int = 1,
        chips: int = 4,
        slices: int = 1,
        workers: int = 1,
        restarts: int = 3,
        grace: int = 120,
        namespace: str = "default",
        queue: str = "",
        claim: str = "",
        secret: str = "",
        tool: str = "kubectl",
        compute: str = "",
        cluster: str = "",
        zone: str = "",
    ):
        if tool not in TOOLS:
            raise unknown("--option tool", tool, TOOLS)
        wanted = (
            {"compute": compute, "cluster": cluster, "zone": zone}
            if tool != "kubectl"
            else {"accelerator": accelerator, "topology": topology}
        )
        if missing := [k for k, v in wanted.items() if not v]:
            raise UserError(f"--option {missing[0]} is missing; tool={tool} needs {', '.join(wanted)}")
        self.image, self.accelerator, self.topology, self.hosts, self.chips = image, accelerator, topology, hosts, chips
        if not 1 <= workers <= 99:
            raise UserError(f"--option workers={workers} must be from 1 to 99")
        self.slices, self.count, self.restarts, self.grace, self.namespace, self.queue = slices, workers, restarts, grace, namespace, queue
        self.claim, self.secret, self.tool, self.compute, self.cluster, self.zone = claim, secret, tool, compute, cluster, zone
        self.needs = (tool, "kubectl")

    def steps(self, job: Job) -> list[Step]:
        """The manifest and its creation, or the tool's own command."""
        values = job.values("gke", "put it in a Secret and give --option secret=ITS-NAME")
        job, bucket = self._placed(job)
        names = self.handles(job, [])
        if self.tool != "kubectl":
            make = self._gcluster if self.tool == "gcluster" else self._xpk
            return [
                Step((*make(name), *[f"--env={k}={v}" for k, v in values.items()], f"--command={shlex.join(job.command(['lab']))}"))
                for name in names
            ]
        file, sets = job.folder / f"{job.name}.json", [self.manifest(job, name, values, bucket) for name in names]
        whole = sets[0] if len(sets) == 1 else {"apiVersion": "v1", "kind": "List", "items": sets}
        return [Step(file=file, text=json.dumps(whole, indent=2) + "\n"), Step((*self._kubectl(), "create", "-f", str(file)))]

    def _placed(self, job: Job) -> tuple[Job, str]:
        """The job with its work dir as pods see it, and the bucket that is mounted for that, if one is."""
        if job.workdir.startswith("/") and (self.claim or self.tool != "kubectl"):
            return job, ""
        if self.claim or self.tool != "kubectl":
            raise UserError(f"--workdir {job.workdir!r}: expected the path at which pods find their shared volume, such as {MOUNT}/runs")
        if self.count > 1:
            raise UserError(
                "--option workers: a bucket has no exclusive files, so workers cannot share it; give --option claim=NAME of a volume"
            )
        bucket, job = mounted(job, MOUNT)
        return job, bucket

    def _kubectl(self) -> tuple[str, ...]:
        return "kubectl", f"--namespace={self.namespace}"

    def _gcluster(self, name: str) -> list[str]:
        where = [f"--cluster={self.cluster}", f"--location={self.zone}", f"--name={name}", f"--image={self.image}"]
        what = [f"--compute-type={self.compute}", f"--num-slices={self.slices}", f"--restarts={self.restarts}"]
        return ["gcluster", "job", "submit", *where, *what, f"--restart-on-exit-codes={INTERRUPTED}", f"--grace-period={self.grace}s"]

    def _xpk(self, name: str) -> list[str]:
        where = [f"--cluster={self.cluster}", f"--zone={self.zone}", f"--workload={name}", f"--docker-image={self.image}"]
        what = [f"--tpu-type={self.compute}", f"--num-slices={self.slices}", f"--max-restarts={self.restarts}"]
        return [
            "xpk",
            "workload",
            "create",
            *where,
            *what,
            f"--restart-on-exit-codes={INTERRUPTED}",
            f"--termination-grace-period-seconds={self.grace}",
        ]

    def manifest(self, job: Job, name: str, values: dict[str, str], bucket: str) -> dict:
        """A worker's JobSet (jobset.x-k8s.io/v1alpha2)."""
        chips = {"google.com/tpu": str(self.chips)}
        container = {
            **{"name": "lab", "image": self.image, "command": job.command(["lab"]), "ports": [{"containerPort": 8471}]},
            **{"env": [{"name": k, "value": v} for k, v in values.items()], "resources": {"requests": chips, "limits": chips}},
        }
        container |= {"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}
        container |= {"volumeMounts": [{"name": "study", "mountPath": MOUNT}]} if self.claim or bucket else {}
        pod = {
            **{"restartPolicy": "Never", "terminationGracePeriodSeconds": self.grace, "containers": [container]},
            "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": self.accelerator, "cloud.google.com/gke-tpu-topology": self.topology},
        }
        # no caches: each host has a mount of its own and is to see at once what the others write
        options = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
        fuse = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": {"bucketName": bucket, "mountOptions": options}}
        volume = {"persistentVolumeClaim": {"claimName": self.claim}} if self.claim else {"csi": fuse}
        pod |= {"volumes": [{"name": "study", **volume}]} if self.claim or bucket else {}
        template = {"spec": pod} | ({"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}} if bucket else {})
        told = {"operator": "In", "values": [*FINAL[1:], INTERRUPTED]}
        slice_ = {
            **{"parallelism": self.hosts, "completions": self.hosts, "completionMode": "Indexed", "backoffLimit": 0},
            **{
                "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"containerName": "lab", **told}}]},
                "template": template,
            },
        }
        about = {"name": name, "namespace": self.namespace, "labels": {"lab/study": job.name}}
        about["labels"] |= {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        # one slice a job, on a node pool of its own
        about["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        reason = {"onJobFailureReasons": ["PodFailurePolicy"]}
        rules = [
            {"name": "final", "action": "FailJobSet", **reason, "onJobFailureMessagePatterns": ["exit code [23] "]},
            {
                "name": "interrupted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                **reason,
                "onJobFailureMessagePatterns": [f"exit code {INTERRUPTED} "],
            },
            {"name": "crashed", "action": "RestartJobSet"},
        ]
        spec = {
            "replicatedJobs": [{"name": "slice", "replicas": self.slices, "template": {"spec": slice_}}],
            "failurePolicy": {"maxRestarts": self.restarts, "rules": rules},
        }
        return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": about, "spec": spec}

    def handles(self, job: Job, said: list[str]) -> list[str]:
        """The name of each worker's set."""
        return [job.name] if len(job.tasks) == 1 else [f"{job.name}-{i}" for i, _ in enumerate(job.tasks)]

    def states(self, job: Job, handles: list[str]) -> list[str]:
        """pending, running or ended, of each worker."""
        check_tools(("kubectl",), "gke")
        ask = [*self._kubectl(), "get", "jobset", f"--selector=lab/study={job.name}", "--output=json"]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"kubectl cannot tell of {job.name!r}: {next(iter(done.stderr.strip().splitlines()[-1:]), '')}")
        found = {s["metadata"]["name"]: s.get("status", {}) for s in json.loads(done.stdout)["items"]}
        return [_state(found.get(h)) for h in handles]

    def logs(self, job: Job, handles: list[str], task: int) -> Step:
        """What prints the log of a worker's hosts."""
        return Step((*self._kubectl(), "logs", f"--selector=jobset.sigs.k8s.io/jobset-name={handles[task]}", "--prefix", "--tail=-1"))

    def cancel(self, job: Job, handles: list[str]) -> list[Step]:
        """Deletes the sets; pods get SIGTERM first, on which a run saves its state."""
        return [Step((*self._kubectl(), "delete", "jobset", "--ignore-not-found", *handles))]


def _state(status: dict | None) -> str:
    if status is None or status.get("terminalState"):
        return "ended"
    return "running" if any(s.get("active") for s in status.get("replicatedJobsStatus", [])) else "pending"
