import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_ft.errors import UserError
from lit_ft.training import launch
from lit_ft.training.launch import (
    end_slurm_job,
    explain_lost_process,
    find_job,
    is_other_process,
    is_restarted,
    refuse_idle_processes,
    refuse_missing_srun,
    take_processes,
    wait_for_first_process,
)
from lit_ft.training.signals import Interrupted

SCRIPT = Path(__file__).parents[2] / "configs" / "cluster" / "torchrun.sh"
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3"}


@pytest.fixture
def started(monkeypatch):
    """Sets the variables of a launcher."""

    def start(variables):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    start({})
    return start


def test_job_without_a_name_is_that_of_its_agent():
    first, again = find_job(TORCHRUN), find_job({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert first == again
    assert first.endswith(f":{os.getppid()}")
    assert find_job({**TORCHRUN, "SLURM_JOB_ID": "7"}) == "SLURM 7"


def test_job_was_restarted_if_either_launcher_says_so():
    assert not is_restarted({**SRUN, **TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "0"})
    assert is_restarted({**SRUN, **TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert is_restarted({**SRUN, "SLURM_RESTART_COUNT": "2"})


@pytest.mark.parametrize(
    ("variables", "given", "taken"),
    [
        ({}, {}, {}),
        (TORCHRUN, {}, {"devices": 2, "num_nodes": 2}),
        (TORCHRUN, {"devices": "auto", "num_nodes": 1}, {"devices": 2, "num_nodes": 2}),
        (TORCHRUN, {"devices": 1}, {"devices": 1, "num_nodes": 2}),
        (SRUN, {}, {"devices": 2, "num_nodes": 3}),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}, {}, {"devices": 2, "num_nodes": 1}),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6"}, {}, {}),  # begun without srun
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "bash"}, {}, {}),  # all GPUs of a shell
    ],
)
def test_trainer_takes_the_processes_that_were_started(variables, given, taken, started):
    started(variables)
    take_processes(given)
    assert given == taken


def test_processes_that_would_train_alone_are_refused(started):
    refuse_idle_processes(SimpleNamespace(world_size=1))
    started(TORCHRUN)
    refuse_idle_processes(SimpleNamespace(world_size=4))
    with pytest.raises(UserError, match=r"^trainer.devices: 4 processes were started, and the trainer uses 1; give "):
        refuse_idle_processes(SimpleNamespace(world_size=1))


def test_slurm_job_of_several_tasks_needs_srun():
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    refuse_missing_srun("auto", {**batch, "SLURM_NTASKS": "1"})
    refuse_missing_srun("auto", SRUN)
    refuse_missing_srun("auto", {**TORCHRUN, **batch})
    refuse_missing_srun(1, batch)  # as of a plan
    for devices in ("auto", None, 2):
        with pytest.raises(UserError, match="has 2 tasks, of which one was started; begin the command with srun, or "):
            refuse_missing_srun(devices, batch)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_tasks_of_a_job_that_lightning_takes_for_a_shell_are_refused(name):
    alone = {**SRUN, "SLURM_JOB_NAME": name, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
    refuse_missing_srun("auto", alone)
    refuse_missing_srun("auto", {**SRUN, "SLURM_JOB_NAME": "train"})
    refuse_missing_srun("auto", {**SRUN, **TORCHRUN, "SLURM_JOB_NAME": name})
    for devices in ("auto", 1):
        with pytest.raises(
            UserError, match=f"^6 tasks were started in a SLURM job of the name {name}, which Lightning"
        ):
            refuse_missing_srun(devices, {**SRUN, "SLURM_JOB_NAME": name})


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, []),
        ({"RANK": "0", "LOCAL_RANK": "0"}, []),
        ({"RANK": "1", "LOCAL_RANK": "1"}, [10.0]),
        ({"RANK": "8", "LOCAL_RANK": "0"}, [5.0]),  # of another machine, whose others it speaks for
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, [10.0]),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "RANK": "0", "LOCAL_RANK": "0"}, []),  # torchrun within srun
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, [10.0]),  # as Lightning starts it
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, [5.0]),
    ],
)
def test_first_process_of_all_and_then_of_each_machine_speaks_first(variables, seconds, monkeypatch):
    waited = []
    monkeypatch.setattr(launch.time, "sleep", waited.append)
    assert is_other_process(variables) == bool(seconds)
    wait_for_first_process(variables)
    assert waited == seconds


def ranks(launcher=None, world_size=2):
    return SimpleNamespace(world_size=world_size, strategy=SimpleNamespace(launcher=launcher))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[pair.cc:534] Connection closed by peer [127.0.0.1]:21736", "Connection closed by peer"),
        ("Timed out waiting 1800000ms for recv operation to complete", "Timed out waiting 1800000ms"),
        ("NCCL error: unhandled system error", "NCCL error"),
    ],
)
def test_process_that_is_gone_is_told(text, reason):
    error = ValueError("in a step")
    error.__cause__ = RuntimeError(text)
    assert explain_lost_process(error, ranks()) == f"another process is gone or does not answer ({reason})"
    assert explain_lost_process(error, ranks(world_size=1)) is None
    assert explain_lost_process(RuntimeError("shapes differ"), ranks()) is None


@pytest.mark.parametrize(
    ("code", "how"), [(-9, "rank 2 was killed by SIGKILL"), (3, "rank 2 ended with code 3"), (None, None)]
)
def test_process_that_lightning_has_started_is_named(code, how):
    procs = [SimpleNamespace(poll=lambda: None), SimpleNamespace(poll=lambda: code)]
    found = explain_lost_process(RuntimeError("Connection reset by peer"), ranks(SimpleNamespace(procs=procs), 3))
    assert found == (how or "another process is gone or does not answer (Connection reset by peer)")


@pytest.fixture
def scontrol(tmp_path, monkeypatch, started):
    """A job of SLURM whose ``scontrol`` notes what it is asked."""
    started({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0"})
    program = tmp_path / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nif [ -e {tmp_path}/fails ]; then echo no >&2; exit 1; fi\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_job_is_requeued_by_its_first_process(scontrol, monkeypatch):
    end = end_slurm_job(Interrupted(signal.SIGUSR1, "rank 0: interrupted"))
    assert (end.message, end.code) == (
        "rank 0: interrupted; job 9_3 is in the queue again, to resume there by itself", 0,
    )  # fmt: skip
    assert (scontrol / "asked").read_text() == "requeue 9_3\n"

    waited = []
    monkeypatch.setattr(
        launch.time, "sleep", lambda seconds: waited.append((seconds, (scontrol / "asked").read_text()))
    )
    monkeypatch.setenv("SLURM_PROCID", "1")
    end = end_slurm_job(
        Interrupted(signal.SIGUSR1, "")
    )  # which SLURM does not let come this far, unless it is the last
    assert waited[0] == (2.5, "requeue 9_3\n")  # others sleep, too
    assert "job 9_3 is in the queue again" in end.message


def test_job_that_cannot_be_requeued_is_told(scontrol, monkeypatch):
    (scontrol / "fails").touch()
    end = end_slurm_job(Interrupted(signal.SIGUSR1))
    assert end.message == "interrupted by SIGUSR1; job 9_3 cannot be requeued (no); submit it again"
    assert end.code == 138

    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("scontrol")))
    assert "cannot be requeued (scontrol)" in end_slurm_job(Interrupted(signal.SIGUSR1)).message


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("given", "place"),
    [({}, "--standalone"), ({"NODES": "2", "FIRST": "a:1", "RUN": "r"}, "--nnodes 2 --rdzv_backend c10d")],
)
def test_restarted_processes_have_a_store_of_their_own(given, place, tmp_path):
    # In that of the agent they would find the addresses of those that are gone (torch 2.14).
    program = tmp_path / "torchrun"
    program.write_text('#!/bin/sh\necho "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **given}
    done = subprocess.run(["bash", SCRIPT, "--name", "a b"], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("1 --nproc_per_node gpu --max_restarts 3 " + place)
    assert done.stdout.endswith("-m lit_ft finetune --name a b\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_script_asks_for_what_several_machines_need():
    done = subprocess.run(["bash", SCRIPT], env={"PATH": os.environ["PATH"], "NODES": "2"}, capture_output=True)
    assert done.returncode != 0
    assert b"FIRST: is the address of the first machine" in done.stderr
