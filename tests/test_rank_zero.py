"""Warnings of the first process alone."""

import os
import subprocess
import sys
import warnings

import lightning as L
import pytest
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from processes import launch

import lit_ft.rank_zero
from lit_ft.rank_zero import rank_zero_warn

CODE = (
    "import sys; from lit_ft.rank_zero import rank_zero_only, rank_zero_warn; rank_zero_warn('told'); "
    "print(rank_zero_only.rank, sorted({'torch', 'lightning'} & set(sys.modules)))"
)
LAUNCHERS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"SLURM_PROCID": "2"}, 2),
        ({"SLURM_PROCID": "2", "LOCAL_RANK": "0"}, 0),  # which Lightning's launcher sets in a shell of SLURM
        ({"LOCAL_RANK": "0", "RANK": "3"}, 3),
    ],
)
def test_rank_is_that_of_the_launcher_and_the_first_process_alone_warns(variables, rank):
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS} | variables
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split(maxsplit=1)[0] == str(rank), done.stderr
    assert "'lightning'" not in done.stdout
    assert done.stderr.count("told") == (rank == 0)


def test_rank_is_the_one_that_lightning_keeps(monkeypatch):
    assert lit_ft.rank_zero.rank_zero_only is rank_zero_only
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    rank_zero_warn("not told")  # else an error, as each warning is in tests


def warn(folder, rank):
    """Warnings of processes whose ranks only the strategy knows, as they were forked from one of rank 0."""
    with warnings.catch_warnings(record=True) as before:
        warnings.simplefilter("always")
        L.Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), logger=False)
        rank_zero_warn("told")
    return [str(one.message) for one in before if str(one.message) == "told"]


def test_processes_of_ddp_warn_once(tmp_path):
    assert launch(tmp_path, "warn", home=__name__) == [{"warn": ["told"]}, {"warn": []}]
