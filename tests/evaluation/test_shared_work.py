"""Work that launched processes share."""

import pytest
import torch.distributed as dist

from lit_ft.errors import UserError
from lit_ft.evaluation.shared_work import SharedWork, join_launched

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SLURM = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1234567", "SLURM_STEP_NODELIST": "node[17-18]"}


@pytest.mark.parametrize(
    ("variables", "expected", "place"),
    [
        (TORCHRUN, SharedWork(3, 4, 1), "env://"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "3"}, SharedWork(2, 3, 0), "tcp://node17:19567"),
        ({**SLURM, "SLURM_NTASKS": "3"}, SharedWork(), None),  # a batch script
        ({**TORCHRUN, "WORLD_SIZE": "1"}, SharedWork(), None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, SharedWork(), None),  # of which nothing says how to join
        ({}, SharedWork(), None),
    ],
)
def test_processes_are_those_of_the_launcher(monkeypatch, variables, expected, place):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(dist, "init_process_group", lambda *given: joined.append(given))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: joined.append("left"))
    with join_launched() as work:
        assert work == expected
    if place is None:
        assert joined == []
    else:
        (kind, address, _, size, rank), left = joined
        assert (kind, address, size, rank, left) == ("gloo", place, expected.size, expected.rank, "left")


def test_shares_have_each_thing_once():
    shares = [SharedWork(rank, 3).share("abcdefg") for rank in range(3)]
    assert shares == ["adg", "be", "cf"]
    assert SharedWork().collect(list("ab")) == ["a", "b"]


def test_one_process_alone_asks_no_other():
    assert SharedWork().on_first(lambda: 5) == 5
    with pytest.raises(UserError, match="mine"):
        SharedWork().on_first(lambda: (_ for _ in ()).throw(UserError("mine")))


def test_process_that_is_gone_is_named_in_a_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:5\nmore")

    for name in ("broadcast_object_list", "gather_object"):
        monkeypatch.setattr(dist, name, fail)
    work = SharedWork(1, 2)
    for call in (lambda: work.on_first(int), lambda: work.collect([])):
        with pytest.raises(UserError, match=r"is gone or does not answer \(Connection closed .*:5\); start again$"):
            call()
