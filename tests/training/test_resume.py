import errno
import os
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from lit_ft.errors import UserError
from lit_ft.runs import Run
from lit_ft.training.resume import find_intact_checkpoint, find_run_of_job, find_run_to_resume, lock_run, write_job


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Makes a run of a command in a job, with checkpoints that are so many seconds old, and given content."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def make(name, command, job=None, age=0, **checkpoints):
        run = Run((tmp_path / "logs" / name).resolve())
        run.checkpoints.mkdir(parents=True)
        with monkeypatch.context() as variables:
            if job is not None:
                variables.setenv("SLURM_JOB_ID", job)
            write_job(run, command)
        for which, content in checkpoints.items():
            torch.save(content, run.checkpoint(which))
        for path in (run.job, *run.checkpoints.iterdir()):
            os.utime(path, (10**9 - age, 10**9 - age))
        return run

    return make


EPOCH = {"optimizer_states": [{"state": {}}], "state_dict": {"w": torch.ones(1000)}}


def test_restarted_job_finds_the_run_of_its_command(make_run, tmp_path, monkeypatch):
    mine = make_run("version_0", "fit --name a", job="12", age=9)
    make_run("version_1", "fit --name a", job="13")
    make_run("version_2", "fit --name a --seed_everything 1", job="12")
    assert find_run_of_job(tmp_path / "logs", "fit --name a") is None  # in no job
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert find_run_of_job(tmp_path / "logs", "fit --name a") == mine
    assert find_run_of_job(tmp_path / "logs", "finetune --name a") is None
    assert find_run_of_job(tmp_path / "none", "fit --name a") is None


def test_run_to_resume_is_the_newest_of_the_command_or_else_the_newest(make_run, tmp_path):
    folder = tmp_path / "logs"
    assert find_run_to_resume(folder, "fit") is None
    make_run("version_0", "fit")  # without a checkpoint
    assert find_run_to_resume(folder, "fit") is None
    own = make_run("version_1", "fit", age=20, last=EPOCH)
    other = make_run("version_2", "fit --model.lr 1", age=10, last=EPOCH)
    assert find_run_to_resume(folder, "fit") == own
    assert find_run_to_resume(folder, "fit --model.lr 2") == other  # whose options are then compared, and told
    newer = make_run("version_3", "fit", job="12", age=5, last=EPOCH)  # of whichever job
    assert find_run_to_resume(folder, "fit") == newer
    write_job(newer, "finetune")  # which trains it, too
    assert find_run_to_resume(folder, "fit") == find_run_to_resume(folder, "finetune") == newer


def test_folds_are_resumed_as_a_whole_and_others_are_not(make_run, tmp_path):
    folder = tmp_path / "logs"
    whole = make_run("version_0", "finetune --data.folds 5", age=9)
    whole.fold(1).folder.mkdir()
    assert find_run_to_resume(folder, "finetune --data.folds 5") is None
    assert find_run_to_resume(folder, "finetune --data.folds 5", has_folds=True) == whole
    make_run("version_1", "finetune", last=EPOCH)
    assert find_run_to_resume(folder, "finetune", has_folds=True) == whole  # whose options are then compared


def test_task_of_an_array_does_not_resume_the_run_of_another(make_run, tmp_path, monkeypatch):
    make_run("version_0", "fit --seed_everything 1", last=EPOCH)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert find_run_to_resume(tmp_path / "logs", "fit --seed_everything 2") is None
    assert find_run_to_resume(tmp_path / "logs", "fit --seed_everything 1") is not None


def test_intact_checkpoint_of_most_steps_is_taken(make_run, recwarn):
    steps = {name: {**EPOCH, "global_step": number} for name, number in (("last", 5), ("best", 4), ("probe", 9))}
    run = make_run("version_0", "fit", **steps)
    os.utime(run.last, (1, 1))  # as a copy has any time
    assert find_intact_checkpoint(run) == str(run.last)
    assert not recwarn

    content = bytearray(run.last.read_bytes())
    middle = content.index(torch.ones(1000).numpy().tobytes())
    content[middle : middle + 2000] = bytes(2000)  # as a power cut leaves a part of a file
    run.last.write_bytes(content)
    with pytest.warns(UserWarning, match=r"last.ckpt: damaged; passed over"):
        assert find_intact_checkpoint(run) == str(run.checkpoint("best"))
    run.last.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"last.ckpt: damaged; passed over"):
        assert find_intact_checkpoint(run) == str(run.checkpoint("best"))

    run.last.unlink()
    torch.save({"state_dict": EPOCH["state_dict"]}, run.checkpoint("best"))  # as it is handed back
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_intact_checkpoint(run) is None


def test_run_that_is_going_on_is_not_gone_on_with_by_another(make_run):
    run = make_run("version_0", "fit")
    lock = lock_run(run)
    with pytest.raises(UserError, match=r"version_0: this run is still going on; wait for it, or give name$"):
        lock_run(run)
    lock.release()
    lock_run(run).release()


@pytest.mark.long
def test_auto_starts_afresh_then_resumes_and_refuses_another_run(run, refused, tmp_path):
    args = ("fit", "--resume", "auto", "--unfreeze", "null", "--model.weights", "null", "--report", "null")
    args += ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1, "--trainer.max_epochs", 1)
    assert "Resume  from the start, as no run in logs/run has a checkpoint" in run(*args)
    first = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert "Resume  from logs/run/version_0/checkpoints/last.ckpt" in run(*args[:-1], 2)
    then = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (first["epoch"], then["epoch"]) == (0, 1)
    assert os.listdir("logs/run") == ["version_0"]
    job = Path("logs/run/version_0/job.txt").read_text()
    line = refused(*args, "--model.lr", 0.5, "--seed_everything", 3)
    assert Path("logs/run/version_0/job.txt").read_text() == job  # by which a job finds it that is in the queue
    assert "last.ckpt is of a run with --model.lr 0.001, but this one has 0.5; --seed_everything 0, but this" in line
    line = refused(*args, "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt")
    assert line == "lit-ft: --resume: finds the checkpoint itself; leave it or --ckpt_path out"


@pytest.mark.long
def test_other_job_takes_no_checkpoint_of_another_run(run, monkeypatch):
    args = ("fit", "--unfreeze", "null", "--model.weights", "null", "--report", "null", "--trainer.max_epochs", 1)
    args += ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1)
    run(*args)
    last = "logs/run/version_0/checkpoints/last.ckpt"
    # As Lightning saves it for a job that is requeued, and loads it in any later one.
    os.link(last, "logs/hpc_ckpt_1.ckpt")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    run(*args[:-4], "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 3)
    assert torch.load("logs/run/version_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "Resume  from logs/run/version_1/checkpoints/last.ckpt" in run(
        *args[:-4], "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 3
    )
    assert sorted(os.listdir("logs/run")) == ["version_0", "version_1"]


def test_checkpoint_of_more_steps_is_taken_though_the_clock_went_back(make_run):
    run = make_run("version_0", "fit", last={**EPOCH, "global_step": 20}, best={**EPOCH, "global_step": 10})
    os.utime(run.last, (1, 1))
    assert find_intact_checkpoint(run) == str(run.last)


def test_checkpoint_that_may_not_be_read_is_no_damaged_one_to_start_afresh_over(make_run, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    run = make_run("version_0", "fit", last=EPOCH)
    monkeypatch.setattr("lit_ft.training.resume.torch_files.load", refuse)
    with pytest.raises(UserError, match=r"version_0/checkpoints/last.ckpt: cannot be read \(Permission denied\)"):
        find_intact_checkpoint(run)


def test_folder_of_a_run_that_may_not_be_read_is_told(refused, monkeypatch):
    Path("logs/run").mkdir(parents=True)
    monkeypatch.setattr("os.scandir", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied", "logs/run")))
    assert "Permission denied: 'logs/run'" in refused("fit", "--resume", "auto")


def test_job_whose_name_was_damaged_is_of_no_command(make_run, tmp_path):
    run = make_run("version_0", "fit", last=EPOCH)
    run.job.write_bytes(b"by hand: f\xfft\n")
    assert find_run_to_resume(tmp_path / "logs", "fit") == run


@pytest.mark.long
def test_run_that_was_moved_keeps_its_best_checkpoint_on_resume(run, tmp_path):
    """Lightning forgets the score of another folder, and the next epoch replaced the best checkpoint by a worse one."""
    options = ("--config", "quickstart", "--unfreeze.strategy", "full", "--trainer.default_root_dir", tmp_path / "logs")
    run("fit", *options, "--name", "a", "--epochs", 3)
    moved = (tmp_path / "logs" / "a" / "version_0").rename(tmp_path / "moved")
    best, last = (moved / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    content = torch.load(last, weights_only=True)
    [state] = [one for one in content["callbacks"].values() if "best_k_models" in one and one["monitor"]]
    state["best_model_score"] = state["kth_value"] = torch.tensor(0.001)  # better than any epoch to come
    state["best_k_models"] = {state["best_model_path"]: torch.tensor(0.001)}
    torch.save(content, last)
    before = best.read_bytes()
    printed = run("fit", "--config", moved / "config.yaml", "--ckpt_path", last, "--epochs", 4)
    assert best.read_bytes() == before
    assert f"{best}  (val/loss 0.001)" in printed
