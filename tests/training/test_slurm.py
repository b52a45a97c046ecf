"""Jobs of a real SLURM by the script that is shipped; `.ci/slurm` installs one, and removes it afterwards."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from preempted_runs import end_of, only_run
from small_runs import differences

from lit_ft.runs import Run
from lit_ft.training.history import read_history

SCRIPT = Path(__file__).parents[2] / "configs" / "cluster" / "slurm.sbatch"
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ARGS = ["--config", QUICKSTART, "--trainer.accelerator", "cpu", "--model.head.dropout", 0.5, "--trainer.max_epochs", 12]
ARGS += ["--unfreeze.head_epochs", 4, "--unfreeze.epochs_per_stage", 4]
SECONDS = 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("sinfo") is None, reason="needs SLURM; .ci/slurm installs one"),
]


def slurm(*command):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.strip()


class Job:
    """A job in a folder of its own or another's, by its number."""

    def __init__(self, folder, *args, tasks=2, options=()):
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        size = [f"--ntasks-per-node={tasks}", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10"]
        self.number = slurm("sbatch", "--parsable", *size, *options, SCRIPT, *ARGS, *args)
        self.folder = folder

    @property
    def log(self):
        files = sorted(self.folder.glob(f"slurm-{self.number}*.txt"))
        return "\n".join(file.read_text() for file in files)

    def state(self):
        return slurm("squeue", "-h", "-j", self.number, "-o", "%T") if self.is_known() else ""

    def is_known(self):
        return subprocess.run(["squeue", "-h", "-j", self.number], capture_output=True).returncode == 0

    def wait(self, done, what):
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, f"{what} is awaited\n{self.log[-3000:]}"
            time.sleep(0.1)

    def wait_for(self, text):
        self.wait(lambda: text in self.log, text)

    def wait_for_end(self):
        self.wait(lambda: self.state() == "", "the end")
        return slurm("scontrol", "show", "job", self.number)


@pytest.fixture(autouse=True)
def _lit_ft_of_this_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)


def test_job_that_is_preempted_twice_is_the_same_run_and_ends_as_the_uninterrupted_one(tmp_path):
    whole, job = Job(tmp_path / "whole"), Job(tmp_path / "preempted")
    job.wait_for("epoch 2/11")
    slurm("scancel", "-s", "USR1", job.number)
    job.wait_for(f"job {job.number} is in the queue again")
    job.wait_for("Resume  from logs/quickstart/version_0/checkpoints/last.ckpt")
    job.wait_for("epoch 7/11")
    slurm("scancel", "-s", "USR1", job.number)
    facts = job.wait_for_end()
    assert "JobState=COMPLETED" in facts
    assert "Restarts=2" in facts
    assert "Traceback" not in job.log
    assert "JobState=COMPLETED" in whole.wait_for_end()
    assert os.listdir(tmp_path / "preempted" / "logs" / "quickstart") == ["version_0"]
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    ends = [end_of(only_run(tmp_path / name)) for name in ("whole", "preempted")]
    assert differences(*ends) == []


def test_tasks_of_an_array_that_start_at_once_have_their_own_runs(tmp_path):
    job = Job(tmp_path, tasks=1, options=["--array=0-3", "--begin=now+5", "--output=slurm-%A_%a.txt"])
    job.wait_for_end()
    runs = [Run(folder) for folder in sorted((tmp_path / "logs" / "quickstart").iterdir())]
    assert [run.folder.name for run in runs] == [f"version_{number}" for number in range(4)]
    assert {run.job.read_text().partition(":")[0] for run in runs} == {
        f"SLURM {job.number}_{task}" for task in range(4)
    }
    assert {len(read_history(run.history)) for run in runs} == {12}


def test_job_after_a_preempted_one_starts_afresh(tmp_path):
    first = Job(tmp_path, "--seed_everything", 1)
    first.wait_for("epoch 2/11")
    slurm("scancel", "-s", "USR1", first.number)
    first.wait_for("is in the queue again")
    slurm("scancel", first.number)
    second = Job(tmp_path, "--seed_everything", 2, "--model.lr", 1e-3)
    assert "JobState=COMPLETED" in second.wait_for_end()
    assert "Resume" not in second.log
    runs = {name: Run(tmp_path / "logs" / "quickstart" / name) for name in ("version_0", "version_1")}
    assert [row["epoch"] for row in read_history(runs["version_1"].history)] == list(range(12))
    assert torch.load(runs["version_1"].last, weights_only=True)["run_seed"] == 2


def test_job_that_is_cancelled_saves_and_stays_out_of_the_queue(tmp_path):
    job = Job(tmp_path)
    job.wait_for("epoch 2/11")
    slurm("scancel", job.number)
    assert "JobState=CANCELLED" in job.wait_for_end()
    job.wait_for("interrupted by SIGTERM; to resume: the same command with --ckpt_path")
    assert torch.load(Run(tmp_path / "logs" / "quickstart" / "version_0").last, weights_only=True)["epoch"] >= 2
