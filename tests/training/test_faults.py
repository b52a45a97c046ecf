"""Faults of runs of two processes: how soon each ends, with which code, and what the last line says."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import faulty_runs
import pytest
from faulty_runs import DIGITS, LAST, RESUME, SHORT_WAIT, two_ranks

from lit_ft.training.history import read_history

SECONDS = 10  # to the end of all processes, on a machine with other work
GONE = rf"another process is gone or does not answer \(Connection (closed|reset) by peer\){RESUME}"


def check(end, code, line, seconds=SECONDS):
    """Compares the end of a process with what is expected: one line on stderr, and no traceback."""
    assert len(end.lines) == 1, end.lines
    assert re.fullmatch(f"lit-ft: {line}", end.lines[0]), end.lines[0]
    assert end.code == code
    assert end.seconds <= seconds


@pytest.mark.long
@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_killed_process_ends_the_other_one(tmp_path, killed):
    with two_ranks(tmp_path, "fit", *DIGITS) as ranks:
        ranks.wait_for_epochs()
        ranks.signal(killed, signal.SIGKILL)
        (other,) = ranks.ends([1 - killed])
    check(other, 2, f"rank {1 - killed}: {GONE}")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_stopped_process_ends_the_other_one_after_the_timeout(tmp_path, stopped):
    with two_ranks(tmp_path, "fit", *DIGITS, *SHORT_WAIT) as ranks:
        ranks.wait_for_epochs()
        ranks.signal(stopped, signal.SIGSTOP)
        (other,) = ranks.ends([1 - stopped])
    waited = r"another process is gone or does not answer \(Timed out waiting 5000ms\)"
    check(other, 2, f"rank {1 - stopped}: {waited}{RESUME}", 5 + SECONDS)


@pytest.mark.slow
def test_killed_loader_worker_is_named(tmp_path):
    with two_ranks(tmp_path, *faulty_runs.photos(tmp_path), "--data.num_workers", 1) as ranks:
        ranks.wait_for_epochs()
        workers = faulty_runs.children(ranks.ranks[1].pid)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        first, second = ranks.ends()
    # A worker is missed when what it has read ahead is used up, and torch then looks every five seconds.
    check(first, 2, f"rank 0: {GONE}", 3 * SECONDS)
    how = r"(was killed by signal: Killed|exited unexpectedly), as when memory, or that in /dev/shm, runs out"
    advice = "fewer --data.num_workers take less"
    check(second, 2, f"rank 1: a worker process that reads images {how}; {advice}{RESUME}", 3 * SECONDS)


@contextmanager
def small_disk(folder):
    """A file system of 64 MB."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None or not hasattr(os, "geteuid"), reason="needs mount")
def test_disk_that_is_full_while_saving_is_told_with_the_intact_checkpoints(tmp_path):
    (tmp_path / "logs").mkdir()
    with small_disk(tmp_path / "logs"), two_ranks(tmp_path, "fit", *DIGITS) as ranks:
        ranks.wait_for_epochs()
        with (tmp_path / "logs" / "filler").open("wb", buffering=0) as filler, suppress(OSError):  # at its end
            while True:
                filler.write(bytes(1 << 16))
        first, second = ranks.ends()
        left = sorted(os.listdir((tmp_path / LAST).parent))
    intact = r"intact: (best.ckpt, last.ckpt|last.ckpt, best.ckpt); make room, and resume from \S+/(best|last).ckpt"
    where = re.escape(str(Path(LAST).parent))
    check(first, 2, rf"rank 0: {where}: (last|best).ckpt cannot be written \(No space left on device\); {intact}")
    check(second, 2, f"rank 1: {GONE}")
    assert left == ["best.ckpt", "last.ckpt"]


@pytest.mark.slow
def test_permission_that_is_lost_while_saving_is_told(tmp_path):
    with two_ranks(tmp_path, "fit", *DIGITS, spoil=faulty_runs.lose_rights) as ranks:
        ranks.wait_for_epochs()
        (tmp_path / LAST).parent.chmod(0o555)
        try:
            first, second = ranks.ends()
        finally:
            (tmp_path / LAST).parent.chmod(0o755)
    reason = r"(last|best).ckpt cannot be written \(Permission denied\)"
    advice = r"intact: (best.ckpt, last.ckpt|last.ckpt, best.ckpt); let the folder be written, and resume from \S+.ckpt"
    check(first, 2, f"rank 0: {re.escape(str(Path(LAST).parent))}: {reason}; {advice}")
    check(second, 2, f"rank 1: {GONE}")


@pytest.mark.slow
def test_folder_that_cannot_be_written_ends_the_run_before_it_begins(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o555)
    with two_ranks(tmp_path, "fit", *DIGITS, spoil=faulty_runs.lose_rights) as ranks:
        (first,) = ranks.ends([0])
        ranks.signal(1, signal.SIGTERM)  # of the launcher
        (second,) = ranks.ends([1])
    assert os.listdir(logs) == []
    place = rf"cannot make a folder for the run in {re.escape(str(logs))}/run \(Permission denied\)"
    check(first, 2, f"--trainer.default_root_dir: {place}; name one that can be written", 6 * SECONDS)
    assert second.code == 143
    assert [line for line in second.lines if "lit-ft" in line or "Error" in line] == []  # the first has said it


@pytest.mark.slow
def test_loss_that_is_not_finite_on_one_process_ends_both(tmp_path):
    with two_ranks(tmp_path, "fit", *DIGITS, spoil=faulty_runs.lose_a_number) as ranks:
        ranks.wait_for_epochs()
        (tmp_path / "now").touch()
        ends = ranks.ends()
    for rank, end in enumerate(ends):
        advice = r"lower --model.lr, or give --trainer.gradient_clip_val 1; best model before that: \S+/best.ckpt"
        check(end, 2, rf"rank {rank}: train/loss is not finite in step \d+ \(learning rate .*\): {advice}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_clock_that_goes_back_by_a_day_changes_nothing(tmp_path, rank):
    args = ["fit", *DIGITS, "--trainer.max_epochs", 6]
    with two_ranks(tmp_path, *args, spoil=faulty_runs.set_clock) as ranks:
        ranks.wait_for_epochs()
        (tmp_path / f"now{rank}").touch()
        ends = ranks.ends()
    assert [(end.code, end.lines) for end in ends] == [(0, []), (0, [])]
    rows = read_history(tmp_path / "logs" / "run" / "version_0" / "history.csv")
    assert [row["epoch"] for row in rows] == list(range(6))


@pytest.mark.slow
def test_photo_that_is_deleted_in_mid_run_is_named_with_how_to_resume(tmp_path):
    with two_ranks(tmp_path, *faulty_runs.photos(tmp_path), "--data.num_workers", 1) as ranks:
        ranks.wait_for_epochs()
        (tmp_path / "photos").rename(tmp_path / "moved")
        ends = ranks.ends()
    # Both find that a photo is missing, or one does before the other gets to it.
    photo = r"/\S+/photos/\d/\d+.png: cannot be read as an image \(it is not there any more\); put it back"
    for rank, end in enumerate(ends):
        check(end, 2, rf"rank {rank}: ({photo}{RESUME}|{GONE})", 3 * SECONDS)  # which a worker reads ahead
    assert any("put it back" in end.lines[0] for end in ends)


@pytest.mark.slow
def test_two_nodes_write_the_same_cache(tmp_path):
    args = (*faulty_runs.photos(tmp_path), "--data.cache", tmp_path / "cache", "--trainer.max_epochs", 2)
    with two_ranks(tmp_path, *args, num_nodes=2, LIT_FT_CACHE=str(tmp_path / "derived")) as ranks:
        ends = ranks.ends()
    assert [(end.code, end.lines) for end in ends] == [(0, []), (0, [])]
    files = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len([name for name in files if name.endswith(".safetensors")]) == len(set(files) - {*_locks(files)})
    assert len(read_history(tmp_path / "logs" / "run" / "version_0" / "history.csv")) == 2


def _locks(names):
    return [name for name in names if name.endswith(".lock")]


@contextmanager
def two_networks():
    """Two network namespaces with a link between them: their names, and the device of the first end."""
    names = [f"lit-ft-{os.getpid()}-{i}" for i in range(2)]
    links = [f"lf{os.getpid() % 10**6}{i}" for i in range(2)]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add {links[0]} netns {names[0]} type veth peer name {links[1]} netns {names[1]}"]
    for i in range(2):
        commands += [f"-n {names[i]} addr add 10.77.0.{i + 1}/24 dev {links[i]}"]
        commands += [f"-n {names[i]} link set {links[i]} up", f"-n {names[i]} link set lo up"]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces: {done.stderr.strip()}")
        yield names, links
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, of iproute2")
def test_link_that_is_cut_ends_both_nodes_with_the_reason(tmp_path):
    history = tmp_path / "logs" / "run" / "version_0" / "history.csv"
    with two_networks() as (names, links):
        agents = []
        for node, (name, link) in enumerate(zip(names, links, strict=True)):
            torchrun = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(node), "--master_port", "29400"]
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *torchrun]
            command += ["--master_addr", "10.77.0.1", "-m", "lit_ft", "fit", *DIGITS, *SHORT_WAIT]
            variables = {**os.environ, "GLOO_SOCKET_IFNAME": link, "OMP_NUM_THREADS": "1"}
            with (tmp_path / f"node{node}.txt").open("w") as out:
                agents.append(subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=out, stderr=out))
        try:
            said = [tmp_path / f"node{node}.txt" for node in range(2)]
            until = time.monotonic() + faulty_runs.SECONDS
            while not (history.is_file() and history.read_bytes().count(b"\n") > 2):
                assert time.monotonic() < until, [path.read_text()[-2000:] for path in said]
                time.sleep(0.1)
            subprocess.run(["ip", "-n", names[0], "link", "set", links[0], "down"], check=True)
            cut = time.monotonic()
            pattern = re.compile(rf"^lit-ft: (.*){RESUME}$", re.MULTILINE)
            while not all(pattern.search(path.read_text()) for path in said):
                assert time.monotonic() < cut + 5 + SECONDS, [path.read_text()[-2000:] for path in said]
                time.sleep(0.1)
        finally:
            for agent in agents:
                agent.terminate()
                agent.wait()
    lines = [pattern.search(path.read_text())[1] for path in said]
    reason = r"another process is gone or does not answer \((Timed out waiting 5000ms|Connection .* by peer)\)"
    for rank, line in enumerate(lines):
        assert re.fullmatch(f"rank {rank}: {reason}", line), line
    assert not any("Traceback" in path.read_text().partition("lit-ft: rank")[0] for path in said)
