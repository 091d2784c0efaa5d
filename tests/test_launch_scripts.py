"""Scripts for machines that are not here: their text, what they would run, and a Slurm cluster of two processes."""

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import metrics, options

LAUNCH = Path(__file__).parents[1] / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
YAMLLINT = "{extends: default, rules: {line-length: {max: 120}}}"


def tool(name):
    """A linter: beside the interpreter, or on the path."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is not installed")


def run(*command, **variables):
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, text=True, capture_output=True, timeout=180)


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    assert run("bash", "-n", script).returncode == 0
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
    linted = run(tool("shellcheck"), script)
    assert linted.returncode == 0, linted.stdout


# --- TPU slices -------------------------------------------------------------------------------------------------


def tpu(*argv, **variables):
    return run("bash", LAUNCH / "tpu_vm.sh", *argv, **variables)


def test_a_dry_run_prints_every_command_and_runs_none():
    create = tpu("--dry-run", "create", ZONE="z", PROJECT="p", NAME="n", ACCELERATOR="v5litepod-256")
    assert create.stdout.splitlines() == [
        "gcloud compute tpus queued-resources create n --node-id n --accelerator-type v5litepod-256 "
        "--runtime-version v2-alpha-tpuv5-lite --spot --zone z --quiet --project p "
    ]
    assert "queued-resources describe n" in create.stderr
    setup = tpu("--dry-run", "setup").stdout
    assert [line.split()[0] for line in setup.splitlines()] == ["git", "gcloud", "gcloud"]
    assert "--worker all" in setup
    assert "jax\\[tpu\\]" in setup or "jax[tpu]" in setup
    delete = tpu("--dry-run", "delete", NAME="n")
    assert delete.stdout.startswith("gcloud compute tpus queued-resources delete n --force")
    assert "--spot" not in tpu("--dry-run", "create", SPOT=0).stdout


def test_options_reach_all_workers_and_the_work_directory_train_alone():
    done = tpu("--dry-run", "run", "--config", "a b", "--workdir", "runs/y", "--mesh.fsdp", 8, SHARED="10.0.0.2:/s")
    prepare, train = done.stdout.replace("\\\\\\", "\\").replace("\\ ", " ").splitlines()
    assert "--worker 0 " in prepare
    assert "prepare --all --config" in prepare
    assert "runs/y" not in prepare
    assert "--worker all " in train
    assert "train --distributed true --config" in train
    assert "--workdir runs/y --mesh.fsdp 8" in train
    alone = tpu("--dry-run", "run", "--workdir", "anywhere").stdout.splitlines()
    assert ["--worker all " in line for line in alone] == [True, True]


def test_a_shared_disk_is_mounted_on_all_workers():
    assert "mount" not in tpu("--dry-run", "setup").stdout
    *_, mounted = tpu("--dry-run", "setup", SHARED="10.0.0.2:/s").stdout.split("gcloud compute")
    assert "--worker all" in mounted
    assert "10.0.0.2:/s" in mounted


@pytest.fixture
def cloud(tmp_path):
    """A ``gcloud`` that notes its commands; the first training fails, and the slice is then suspended."""

    def make(after="SUSPENDED"):
        script = tmp_path / "gcloud"
        script.write_text(
            f"""#!/bin/bash
echo "$*" >> {tmp_path}/commands
case "$*" in
  *describe*) [[ -e {tmp_path}/preempted ]] && echo {after} || echo ACTIVE ;;
  *delete*) rm {tmp_path}/preempted ;;
  *"gems-jax train"*) if [[ ! -e {tmp_path}/once ]]; then touch {tmp_path}/once {tmp_path}/preempted; exit 1; fi ;;
esac
"""
        )
        script.chmod(0o755)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL": 0, "TMPDIR": tmp_path}
        return variables | {"SHARED": "10.0.0.2:/s"}

    return make


def steps(tmp_path):
    known = ("pip install", "mount", "prepare", "train", "describe", "delete", "create", "scp")
    lines = (tmp_path / "commands").read_text().split("compute tpus")[1:]
    return [next(name for name in known if name in line) for line in lines]


def test_a_preempted_slice_is_made_anew_and_training_goes_on(cloud, tmp_path):
    done = tpu("resume", "--config", "C", "--workdir", "runs/d", **cloud())
    assert done.returncode == 0, done.stderr
    anew = ["delete", "create", "describe", "scp", "pip install", "mount"]
    assert steps(tmp_path) == ["prepare", "train", "describe", *anew, "prepare", "train"]
    assert "the slice is SUSPENDED; asking for another" in done.stderr


def test_a_failure_that_is_no_preemption_ends_it(cloud, tmp_path):
    done = tpu("resume", "--config", "C", "--workdir", "runs/d", **cloud("ACTIVE"))
    assert done.returncode == 1
    assert "it was no preemption" in done.stderr
    assert steps(tmp_path) == ["prepare", "train", "describe"]


def test_a_work_directory_in_a_bucket_needs_no_shared_disk(cloud, tmp_path):
    done = tpu("resume", "--config", "C", "--workdir", "gs://b/d", **cloud() | {"SHARED": ""})
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == [
        "prepare", "train", "describe", "delete", "create", "describe", "scp", "pip install", "prepare", "train",
    ]  # fmt: skip
    commands = (tmp_path / "commands").read_text()
    assert "--workdir gs://b/d" in commands
    assert "mount" not in commands


@pytest.mark.parametrize(
    ("argv", "shared", "said"),
    [
        ([], "", "launch/tpu_vm.sh create"),
        (["start"], "", "launch/tpu_vm.sh create"),
        (["create", "--config"], "", "create takes no options: --config"),
        (["resume", "--workdir", "runs/d"], "", "resume needs --workdir gs://... or SHARED"),
        (["run"], "", "give --workdir"),
        (
            ["run", "--workdir", "s3://b/d"],
            "",
            "--workdir s3://b/d: workers save one checkpoint together",
        ),
        (["resume", "--workdir", "/tmp/d"], "a:/s", "--workdir /tmp/d must lie below runs/, where a:/s is mounted"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(argv, shared, said):
    done = tpu(*argv, SHARED=shared)
    assert done.returncode == 2
    assert said in done.stderr


# --- Kubernetes -------------------------------------------------------------------------------------------------


def jobset(variant, *argv, **variables):
    return run(sys.executable, LAUNCH / "render_jobset.py", variant, *argv, **variables)


def check_jobset(found):
    """The parts of the JobSet API (v1alpha2) and of the Job and Pod APIs in it that a run needs."""
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(found["spec"]) <= {
        "failurePolicy",
        "replicatedJobs",
        "successPolicy",
        "network",
        "ttlSecondsAfterFinished",
    }
    assert isinstance(found["spec"]["failurePolicy"]["maxRestarts"], int)
    names = [job["name"] for job in found["spec"]["replicatedJobs"]]
    for job in found["spec"]["replicatedJobs"]:
        assert set(job) <= {"name", "replicas", "template", "dependsOn"}
        assert all(entry["name"] in names and entry["status"] == "Complete" for entry in job.get("dependsOn", []))
        spec = job["template"]["spec"]
        assert set(spec) <= {"parallelism", "completions", "completionMode", "backoffLimit", "template"}
        assert all(isinstance(spec[n], int) for n in ("parallelism", "completions", "backoffLimit") if n in spec)
        pod = spec["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert all(isinstance(word, str) for word in container["command"] + container["args"])
            assert all(isinstance(entry["name"], str) for entry in container.get("env", []))
            assert all(isinstance(entry.get("value", ""), str) for entry in container.get("env", []))


@pytest.mark.parametrize("variant", ["tpu", "gpu"])
def test_a_jobset_prepares_once_and_trains_on_all_machines(variant):
    done = jobset(variant, "--config", "c.yaml", "--name", 'a "b"', IMAGE="registry/image:1", NODES="3", NAME="tune")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    check_jobset(found)
    assert found["metadata"]["name"] == "tune"
    prepare, workers = (job["template"]["spec"] for job in found["spec"]["replicatedJobs"])
    assert found["spec"]["replicatedJobs"][1]["dependsOn"] == [{"name": "prepare", "status": "Complete"}]
    assert (workers["parallelism"], workers["completions"]) == (3, 3)
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/image:1"
    assert container["args"] == prepare["template"]["spec"]["containers"][0]["args"]
    assert container["args"] == ["--config", "c.yaml", "--name", 'a "b"']
    assert container["resources"]["limits"] == ({"google.com/tpu": 4} if variant == "tpu" else {"nvidia.com/gpu": 8})
    environment = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    if variant == "tpu":
        assert container["command"][:4] == ["gems-jax", "train", "--distributed", "true"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    else:
        assert workers["completionMode"] == "Indexed"
        assert environment["JAX_COORDINATOR_ADDRESS"] == "tune-workers-0-0.tune:8476"
        assert environment["JAX_NUM_PROCESSES"] == "3"
        assert "JAX_PROCESS_ID" in environment


@pytest.mark.parametrize(
    ("variant", "variables", "said"),
    [
        ("tpu", {}, "IMAGE has no default"),
        ("cpu", {"IMAGE": "i"}, "the variant 'cpu' is unknown; choose gpu or tpu"),
        ("gpu", {"IMAGE": "i", "NAME": "a: b"}, "NAME='a: b' may hold"),
    ],
)
def test_a_jobset_that_cannot_be_made_is_refused_by_name(variant, variables, said):
    done = jobset(variant, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_jobsets_are_good_yaml(tmp_path):
    linter = tool("yamllint")
    for variant in ("tpu", "gpu"):
        (tmp_path / f"{variant}.yaml").write_text(jobset(variant, "--config", "c", IMAGE="i").stdout)
    linted = run(linter, "--strict", "--config-data", YAMLLINT, LAUNCH / "gke_jobset.yaml", *tmp_path.glob("*.yaml"))
    assert linted.returncode == 0, linted.stdout


# --- Slurm and GPU machines ---------------------------------------------------------------------------------------


@pytest.fixture
def pretended(tmp_path):
    """An interpreter that notes commands; for ``train`` it does what a test says. And Slurm's commands."""

    def make(train):
        scripts = {
            "python": f"""
cluster="${{JAX_COORDINATOR_ADDRESS:-}} ${{JAX_NUM_PROCESSES:-}} ${{JAX_PROCESS_ID:-}}"
echo "$3 ${{@:4}} | $cluster" >> {tmp_path}/commands
[[ $3 == train ]] || exit 0
shift 2
{train}
""",
            # Two tasks, unless the step asks for one.
            "srun": """
tasks=2; while [[ $1 == --* ]]; do [[ $1 == --ntasks=1 ]] && tasks=1; shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=$tasks SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=$tasks
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
code=0; for pid in "${pids[@]}"; do wait "$pid" || code=$?; done; exit $code
""",
            "scontrol": f'echo "scontrol $*" >> {tmp_path}/commands\n',
        }
        for name, text in scripts.items():
            (tmp_path / name).write_text("#!/bin/bash\n" + text)
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return {"PYTHON": tmp_path / "python", "PATH": path, "WORKDIR": "w", "SLURM_JOB_ID": random.randrange(1, 4000)}

    return make


def commands(tmp_path):
    return [" ".join(line.split()) for line in (tmp_path / "commands").read_text().splitlines()]


def test_processes_that_slurm_starts_form_a_cluster_and_tune(prepared, pretended, tmp_path):
    """Twenty seconds, for all that the script starts, two processes that find each other by Slurm's variables."""
    variables = pretended(f'exec {sys.executable} -m gems_jax.cli "$@"') | {"WORKDIR": tmp_path / "run"}
    variables |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": 1, "JAX_DISABLE_MOST_OPTIMIZATIONS": 1}
    words = options(prepared.root, train__method="adamw", train__steps=2)
    done = run("bash", LAUNCH / "slurm.sbatch", *words, **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    said = " ".join(words)
    train = f"train --distributed true --workdir {tmp_path}/run {said} |"
    expected = [f"prepare --all {said} |", train, train, f"evaluate --workdir {tmp_path}/run {said} |"]
    assert commands(tmp_path) == expected


def test_a_stopped_slurm_job_queues_again_and_a_failed_one_does_not(pretended, tmp_path):
    variables = pretended("exit 143")
    assert run("bash", LAUNCH / "slurm.sbatch", **variables).returncode == 143
    assert commands(tmp_path)[-1] == f"scontrol requeue {variables['SLURM_JOB_ID']}"
    (tmp_path / "commands").unlink()
    assert run("bash", LAUNCH / "slurm.sbatch", **pretended("exit 3")).returncode == 3
    assert [line.split()[0] for line in commands(tmp_path)] == ["prepare", "train", "train"]


def test_gpu_machines_get_their_numbers_and_one_prepares_and_evaluates(pretended, tmp_path):
    show = 'echo "$JAX_PLATFORMS $XLA_PYTHON_CLIENT_MEM_FRACTION $XLA_FLAGS"'
    alone = run("bash", LAUNCH / "gpu.sh", "--config", "C", **pretended(show), MEMORY=0.5, XLA_FLAGS="--x=1")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == "cuda 0.5 --xla_gpu_enable_latency_hiding_scheduler=true --x=1\n"
    assert commands(tmp_path) == [
        "prepare --all --config C |",
        "train --workdir w --config C |",
        "evaluate --workdir w --config C |",
    ]
    (tmp_path / "commands").unlink()
    second = run("bash", LAUNCH / "gpu.sh", **pretended(show), NODES=2, NODE=1, COORDINATOR="a:1")
    assert second.returncode == 0, second.stderr
    assert commands(tmp_path) == ["train --workdir w | a:1 2 1"]
    lost = run("bash", LAUNCH / "gpu.sh", **pretended(show), NODES=2)
    assert lost.returncode == 2
    assert "NODES=2 needs COORDINATOR=address:port" in lost.stderr


def test_a_port_in_use_is_said_before_any_work(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        workdir = tmp_path / "w"
        done = run("bash", LAUNCH / "local.sh", 2, "--workdir", workdir, PORT=port, PYTHON=sys.executable)
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch/local.sh: the port {port} (variable PORT) is in use")
    assert not list(tmp_path.iterdir())
