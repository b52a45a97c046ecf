import re
import warnings

import pytest
from small_runs import FewDigits, small_module

from lit_ft.errors import UserError
from lit_ft.training.scale import Cluster
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture
def scale(capsys):
    """Prints the plan of 90 images on a cluster, and gives the lines from ``Scale`` on, by their first words."""

    def plan(strategy="gradual", accumulate_grad_batches=1, limit_train_batches=1.0, **cluster):
        options = {"max_epochs": 4, "accumulate_grad_batches": accumulate_grad_batches, **QUIET}
        unfreezing = GradualUnfreezing(strategy)
        trainer = Trainer(callbacks=[unfreezing], limit_train_batches=limit_train_batches, devices=1, **options)
        data = FewDigits(batch_size=4, numbers=[9] * 10)
        trainer.plan(small_module(lr=0.01, classes=10), data, **{"step_seconds": 0.5, **cluster})
        lines = capsys.readouterr().out.partition("Scale")[2].splitlines()
        return {line.split()[0]: re.split("  +", line.strip()) for line in lines if line.split()}

    return plan


def test_batch_steps_and_rate_of_a_cluster(scale):
    found = scale(nodes=2, devices=4, accumulate_grad_batches=2)
    assert found["batch"][1] == "64 images a step: 4 in each of 8 processes, 2 batches accumulated"
    assert "not scaled, model.lr 0.01 as given" in found["learning"][1]
    assert "0.08 by the linear rule (SGD), 0.028 by the root (Adam)" in found["learning"][1]
    # Eleven images for each process, in three batches, two of which make a step.
    assert found["epoch"][1] == "2 steps"
    assert scale(nodes=2, devices=4, limit_train_batches=1)["epoch"][1] == "1 steps"


def test_phases_have_their_traffic_and_time(scale):
    found = scale(nodes=1, devices=2, bandwidth=0.001)
    # A ring of two sends each byte once: 4 * 1,290 bytes of the head at 1 MB/s.
    assert found["1"][-3:-1] == ["0.00516 s", re.sub("$", " s", f"{float(found['1'][4][:-2]) + 0.00516:.3g}")]
    assert found["3"][4:7] == ["0.5 s", "2.78 s", "3.28 s"]
    assert found["3"][1] == "2-3"
    # 11 steps an epoch: 45 images of a process by 4, of which a last single one joins the batch before it.
    assert found["3"][-1] == "36.0s"


def test_one_device_reduces_nothing(scale):
    found = scale(devices=1)
    assert found["3"][4:7] == ["0.5 s", "0 s", "0.5 s"]
    assert found["batch"][1] == "4 images a step: 4 in a batch"


def test_rate_of_data_is_that_of_the_fastest_step(scale):
    found = scale(nodes=3, devices=2)
    step = float(found["1"][6][:-2])
    rate = float(re.match(r"([\d,]+) images/s in each node, in the phase", found["data"][1])[1].replace(",", ""))
    assert rate == pytest.approx(2 * 4 / step, abs=0.6, rel=1e-2)


def test_files_are_read_at_their_mean_size(run, photo_root):
    sizes = [path.stat().st_size for path in photo_root.rglob("*.png")]
    data = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.batch_size", 2)
    head = ("--unfreeze.strategy", "full", "--step_seconds", 0.01)
    printed = run("plan", *data, "--trainer.num_nodes", 2, "--trainer.devices", 3, *head, "--bandwidth", 1e6)
    rate, volume = re.search(r"([\d,]+) images/s in each node, ([\d.]+) MB/s of files", printed).groups()
    assert float(volume) == pytest.approx(float(rate) * sum(sizes) / len(sizes) / 1e6, abs=0.06)
    assert "Scale  2 x 3 devices, ddp, 32-true; an estimate" in printed
    assert "6 processes" in printed


def test_plan_of_one_device_says_nothing_of_a_cluster(run):
    assert "Scale" not in run("plan", "--trainer.accelerator", "cpu")


@pytest.mark.parametrize(
    ("args", "is_told"),
    [(["--nodes", 2], True), (["--trainer.num_nodes", 2, "--trainer.devices", "auto"], True),
     (["--nodes", 2, "--devices", 1], False), (["--nodes", 2, "--trainer.devices", 1], False)],
)  # fmt: skip
def test_number_of_devices_that_nobody_gave_is_told(run, args, is_told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "Scale  2 x 1 devices" in run("plan", "--trainer.accelerator", "cpu", "--step_seconds", 1, *args)
    told = [str(one.message) for one in caught if "`devices`" in str(one.message)]
    assert told == ["`devices`: 1 in each node is assumed; give their number, or `trainer.devices`"] * is_told


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--nodes", 0, "--devices", 1), "--nodes: must be at least 1, got 0"),
        (("--devices", -1), "--devices: must be at least 1, got -1"),
        (("--nodes", 2, "--devices", 1, "--bandwidth", 0), "--bandwidth: must be above 0, got 0"),
        (("--nodes", 2, "--step_seconds", "nan"), "--step_seconds: nan does not fit"),
        (("--nodes", 5000, "--devices", 1, "--step_seconds", 1), r"100 image\(s\) cannot be shared among 5000 process"),
    ],
)
def test_cluster_that_cannot_be_is_refused(refused, args, line):
    assert re.search(line, refused("plan", "--trainer.accelerator", "cpu", *args))


def test_ring_sends_twice_what_a_process_lacks():
    assert Cluster(nodes=4, devices=8, bandwidth=2.0).reduce_seconds(32_000_000_000) == pytest.approx(31.0)
    assert Cluster().reduce_seconds(32_000_000_000) == 0
    with pytest.raises(UserError, match=r"^nodes: must be at least 1"):
        Cluster(nodes=0)
