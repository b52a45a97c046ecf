"""What started the processes of a run: SLURM, torchrun or Lightning; how many they are, and which job they are of."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lit_ft.errors import UserError, iterate_causes
from lit_ft.training.signals import Interrupted

_REQUEUED_SECONDS = 2.5  # in which the first process has done so; with the grace of one that waits for this, 10 s
_REFUSED_SECONDS = 5.0

# Names of jobs of SLURM whose tasks Lightning takes for shells, by its documentation.
_SHELLS = ("bash", "interactive")

# As gloo, NCCL and torch's store report it.
_LOST = re.compile(
    r"Connection (?:closed|reset) by peer|Gloo connectFullMesh failed|"
    r"Timed out waiting \d+\w+|Broken pipe|Socket Timeout|wait timeout|"
    r"Watchdog caught collective operation timeout|NCCL (?:communicator was aborted|error)",
    re.IGNORECASE,
)


def find_job(variables: Mapping[str, str] = os.environ) -> str | None:
    """The job of a scheduler or launcher that this process is of, the same after it was requeued or restarted.

    >>> find_job({"SLURM_JOB_ID": "12"}), find_job({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12",
    ...     "SLURM_ARRAY_TASK_ID": "1"}), find_job({"TORCHELASTIC_RUN_ID": "mine"}), find_job({})
    ('SLURM 12', 'SLURM 12_1', 'torchrun mine', None)
    """
    if array := variables.get("SLURM_ARRAY_JOB_ID"):
        return f"SLURM {array}_{variables['SLURM_ARRAY_TASK_ID']}"
    if job := variables.get("SLURM_JOB_ID"):
        return f"SLURM {job}"
    name = variables.get("TORCHELASTIC_RUN_ID")
    if name == "none":  # without `--rdzv_id`; its agent is the parent of these processes as long as it restarts them
        name = f"{socket.gethostname()}:{os.getppid()}"
    return name and f"torchrun {name}"


def is_array(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a task of an array of SLURM, beside which others run by the same script."""
    return "SLURM_ARRAY_JOB_ID" in variables


def is_restarted(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether the job was started before: requeued by SLURM, or restarted by torchrun.

    >>> is_restarted({"SLURM_RESTART_COUNT": "1"}), is_restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    (True, False)
    """
    return any(int(variables.get(f"{name}_RESTART_COUNT", 0)) > 0 for name in ("SLURM", "TORCHELASTIC"))


def is_other_process(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this is not the first of all processes of a run, as their launcher says."""
    own = next((variables[name] for name in ("RANK", "SLURM_PROCID") if name in variables), None)
    if own is None:  # Lightning has started it, or nothing has
        return any(variables.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK"))
    return own != "0"


def wait_for_first_process(variables: Mapping[str, str] = os.environ) -> None:
    """Lets the first process say first what all refuse, after which the launcher ends the others, which wait here.

    Those of other machines are ended late or not at all. There, too, the first is first.
    """
    if is_other_process(variables):
        local = variables.get("LOCAL_RANK", variables.get("SLURM_LOCALID", "0"))
        with suppress(KeyboardInterrupt):
            time.sleep(_REFUSED_SECONDS * (1 if local == "0" else 2))


def end_slurm_job(end: Interrupted) -> Interrupted:
    """Puts this SLURM job in the queue again at the end of its time, of an array this task.

    The first process does so. SLURM then ends the others, which wait for that: if they ended first, srun could end the
    first one before; and they do it themselves if they are left, as where that one had no signal.
    """
    if is_other_process():
        time.sleep(_REQUEUED_SECONDS)
    line = end.message or f"interrupted by {end.number.name}"
    job = (find_job() or "").removeprefix("SLURM ")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
        failure = done.stderr if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure is not None:
        reason = " ".join(failure.split())
        return Interrupted(end.number, f"{line}; job {job} cannot be requeued ({reason}); submit it again", end.code)
    return Interrupted(end.number, f"{line}; job {job} is in the queue again, to resume there by itself", 0)


def take_processes(options: dict[str, Any]) -> None:
    """Lets a trainer use all processes that torchrun or srun has started, in place, where the user names no number.

    Lightning takes one on a CPU, and each of them would train alone, into the same folder.
    """
    if (started := _count_started()) is None:
        return
    of_node, of_nodes = started
    if options.get("devices", "auto") == "auto":
        options["devices"] = of_node
    if options.get("num_nodes", 1) == 1:
        options["num_nodes"] = of_nodes


def refuse_idle_processes(trainer: Any) -> None:
    """Raises `UserError` if more processes were started than a trainer uses, each of which would train alone."""
    if (started := _count_started()) is None or started[0] * started[1] <= trainer.world_size:
        return
    of_node, of_nodes = started
    number, nodes = of_node * of_nodes, f" `trainer.num_nodes` {of_nodes}" if of_nodes > 1 else ""
    raise UserError(
        f"`trainer.devices`: {number} processes were started, and the trainer uses {trainer.world_size}; give "
        f"`trainer.devices` {of_node}{nodes}, or start fewer"
    )


def refuse_missing_srun(devices: Any, variables: Mapping[str, str] = os.environ) -> None:
    """Raises `UserError` in a SLURM job whose several tasks would not train together.

    Those are jobs of which only the first task was started, unless one was asked, and those that Lightning takes for
    shells: ``srun -n 2 bash train.sh`` names its job bash.
    """
    name = variables.get("SLURM_JOB_NAME")
    if (step := _count_tasks(variables)) and math.prod(step) > 1 and name in _SHELLS and not _is_torchrun(variables):
        raise UserError(
            f"{math.prod(step)} tasks were started in a SLURM job of the name {name}, which Lightning takes for "
            "shells, and each would train alone; give the job another name, as with srun -J, or start one task"
        )
    tasks = int(variables.get("SLURM_NTASKS", 1))
    is_in_batch = "SLURM_JOB_ID" in variables and variables.get("SLURM_STEP_ID", "batch") in ("batch", "4294967291")
    if tasks > 1 and is_in_batch and not _is_torchrun(variables) and devices not in (1, "1"):
        raise UserError(
            f"the SLURM job has {tasks} tasks, of which one was started; begin the command with srun, or give "
            "`trainer.devices` 1 for this one alone"
        )


def explain_lost_process(error: BaseException, trainer: Any) -> str | None:
    """What became of another process of a run, if that is why a collective failed on this one."""
    texts = [str(cause) for cause in iterate_causes(error) if isinstance(cause, RuntimeError)]
    found = next((match for text in texts if (match := _LOST.search(text))), None)
    if trainer.world_size == 1 or found is None:
        return None
    processes = getattr(trainer.strategy.launcher, "procs", ())  # that Lightning has started, the first of rank 1
    ended = [(rank, code) for rank, process in enumerate(processes, 1) if (code := process.poll())]
    for rank, code in ended:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"rank {rank} {how}"
    return f"another process is gone or does not answer ({found[0]})"


def _count_started() -> tuple[int, int] | None:
    """The processes on this machine, and the number of machines, as the launcher says; None without one."""
    variables = os.environ
    if _is_torchrun(variables) and "LOCAL_WORLD_SIZE" in variables:
        of_node = int(variables["LOCAL_WORLD_SIZE"])
        return of_node, int(variables["WORLD_SIZE"]) // of_node
    return None if variables.get("SLURM_JOB_NAME") in _SHELLS else _count_tasks(variables)


def _is_torchrun(variables: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in variables


def _count_tasks(variables: Mapping[str, str]) -> tuple[int, int] | None:
    """The tasks on this machine that srun has started, and the number of machines; None where it has not."""
    if "SLURM_STEP_ID" in variables and "SLURM_NTASKS" in variables:
        nodes = int(variables.get("SLURM_STEP_NUM_NODES", variables.get("SLURM_NNODES", 1)))
        tasks = int(variables.get("SLURM_STEP_NUM_TASKS", variables["SLURM_NTASKS"]))
        return max(1, tasks // nodes), nodes
    return None
