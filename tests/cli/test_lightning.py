"""The command line as a person uses it: real configs, real files, and the one line after a mistake."""

import csv
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import forked
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.process import warn_in_one_line
from lit_ft.training.history import read_history
from lit_ft.training.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"


pytestmark = pytest.mark.usefixtures("lit_ft")  # all run in an empty folder

DIGITS = ("--data", "DigitsDataModule")
QUICK = ("--config", CONFIGS / "quickstart.yaml", "--unfreeze.head_epochs", 1, "--unfreeze.epochs_per_stage", 1)


@pytest.mark.long
def test_finetune_leaves_a_whole_run(run):
    printed = run("finetune", *QUICK, "--trainer.max_epochs", 3)
    folder = Path("logs/quickstart/version_0")
    assert "10 classes" in printed
    assert "100 images, 10 a class" in printed
    assert re.search(r"1 +0 +head +1,290 \(0\.2%\) +0\.003", printed)
    assert re.search(r"3 +2 +conv, dense, head +693,962 \(100\.0%\) +0\.00075 to 0\.003", printed)
    assert f"lit-ft predict {folder}/checkpoints/best.ckpt PHOTOS" in printed
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "best_epoch.ckpt", "last.ckpt"}
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["backbone"] == "mnist_cnn"
    board = EventAccumulator(str(folder), size_guidance={"images": 0})
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "val/acc", "val/f1", "val/recall", "val/acc_top5", "test/acc", "val_best/acc"} <= set(
        tags["scalars"]
    )
    means = [row["train/loss"] for row in read_history(folder / "history.csv")]
    assert [event.value for event in board.Scalars("train/loss_epoch")] == pytest.approx(means)
    assert {"train/images", "val/confusion_matrix"} <= set(tags["images"])
    assert [board.Scalars("phase/number")[i].value for i in (0, -1)] == [1, 3]
    assert board.Scalars("lr/conv")[0].value == 0  # frozen in the first phase
    assert max(event.value for event in board.Scalars("lr/conv")) > 0
    assert [image.step for image in board.Images("val/confusion_matrix")] == [30]


class Loads(Callback):
    """Notes whether TensorBoard is loaded, before what the first step of a fit waits for."""

    loaded: list[bool] = []  # noqa: RUF012

    def on_train_batch_end(self, *_):
        self.loaded.append("torch.utils.tensorboard" in sys.modules)


def test_tensorboard_is_loaded_when_the_first_step_is_done(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    options = (
        "--trainer.limit_train_batches",
        2,
        "--feature_cache",
        "null",
        "--trainer.callbacks+",
        f"{__name__}.Loads",
    )
    run("fit", *QUICK, "--trainer.max_epochs", 3, *options)
    assert Loads.loaded[:2] == [False, True]
    board = EventAccumulator("logs/quickstart/version_0")
    board.Reload()
    first = {tag: board.Scalars(tag)[0].step for tag in ("phase/number", "lr/head")}
    assert first == {"phase/number": 0, "lr/head": 0}
    assert [image.step for tag in ("plan", "train/images") for image in board.Images(tag)] == [0, 0]


@pytest.mark.long
def test_run_whose_report_fails_is_whole(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("no page\ntoday")

    warned = []
    monkeypatch.setattr("lit_ft.cli.lightning.render_report", fail)
    monkeypatch.setattr("lit_ft.cli.lightning.rank_zero_warn", warned.append)
    printed = run("finetune", *QUICK, "--trainer.max_epochs", 3)
    assert "Best model   logs/quickstart/version_0/checkpoints/best.ckpt" in printed
    assert "Report " not in printed
    assert not Path("logs/quickstart/version_0/report.html").exists()
    assert warned == ["no report was written (no page today); lit-ft report logs/quickstart/version_0 writes it"]


@pytest.mark.long
def test_rerun_from_its_config_gives_the_same_numbers(run):
    first = run("fit", *QUICK, "--trainer.max_epochs", 3, "--seed_everything", 7)
    again = run("fit", "--config", "logs/quickstart/version_0/config.yaml")
    weights = [
        torch.load(f"logs/quickstart/version_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for i in (0, 1)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = run("fit", "--config", "logs/quickstart/version_0/config.yaml", "--seed_everything", 8)
    losses = [re.findall(r"train/loss (\S+)", printed) for printed in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.long
def test_evaluation_needs_only_the_checkpoint(run):
    trained = run("finetune", *QUICK, "--trainer.max_epochs", 3, "--model.head.hidden", "[16]")
    best = Path("logs/quickstart/version_0/checkpoints/best.ckpt")
    score = next(line for line in trained.splitlines() if "test/acc " in line)
    # Before or after the config, and without it: the checkpoint tells what model it is.
    for args in (
        ("--ckpt_path", best, *DIGITS),
        ("--ckpt_path", best, "--config", best.parent.parent / "config.yaml"),
    ):
        assert score in run("test", *args)
    assert "val/acc" in run("validate", "--ckpt_path", best, *DIGITS)


@pytest.mark.long
def test_no_data_is_taken_for_that_of_a_command_which_needs_some(run, refused):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null")
    folder = "logs/run/version_0"
    best = ("--ckpt_path", f"{folder}/checkpoints/best.ckpt")
    checkpoint = torch.load(best[1], weights_only=True)
    checkpoint["run_options"]["data"] = "mine.Data"  # which must be named
    torch.save(checkpoint, best[1])
    for command, images in (("predict", "predict"), ("test", "root"), ("validate", "root")):
        assert refused(command, *best) == (
            f"lit-ft: --data: lit-ft {command} needs images; give --data ImageFolderDataModule "
            f"--data.{images} FOLDER, or --config {folder}/config.yaml for those of the run"
        )
    for command in (["check"], ["convert", "--folder", "set"]):
        assert f"--data: lit-ft {command[0]} needs images; give --data ImageF" in refused(*command)
    assert not Path("predictions.csv").exists()
    assert not Path(folder, "predictions.csv").exists()


@pytest.mark.long
def test_checkpoint_beside_the_config_is_proposed(run, refused):
    for name in ("older", "newer"):
        run("fit", "--name", name, "--trainer.max_epochs", 1, "--unfreeze", "null")
    line = refused("predict", "--config", "logs/older/version_0/config.yaml")
    assert line.endswith("; that of this config is logs/older/version_0/checkpoints/best.ckpt")
    assert refused("predict", *DIGITS).endswith("; the newest is logs/newer/version_0/checkpoints/best.ckpt")
    assert refused("test", "--config", CONFIGS / "quickstart.yaml").endswith("needs the checkpoint of a run")


@pytest.mark.long
def test_predict_writes_one_row_an_image_in_order(run, refused):
    run("fit", *QUICK, "--trainer.max_epochs", 3)
    printed = run("predict", "--name", "quickstart", "--ckpt_path", "best", *DIGITS)
    path = printed.split("Predictions: ")[1].strip()
    assert Path(path) == Path("logs/quickstart/version_0/predictions.csv").resolve()
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert len(rows) == 1000
    assert [row["path"] for row in rows[:2]] == ["digits/test/0", "digits/test/1"]
    assert {row["class"] for row in rows} <= set("0123456789")
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)
    Path(path).write_text("of last week")
    told = f"lit-ft: --predictions.file: {path} exists; name another file, or to overwrite it: "
    again = ("predict", "--name", "quickstart", "--ckpt_path", "best", *DIGITS)
    assert refused(*again) == f"{told}--predictions.overwrite true"
    assert Path(path).read_text() == "of last week"
    assert refused(*again, "--predictions.file", "out.json").endswith("out.json must end in .csv or .tsv")
    run(*again, "--predictions.overwrite", "true")
    assert list(csv.DictReader(Path(path).read_text().splitlines())) == rows


@pytest.mark.long
def test_predict_photos_without_the_training_folder(run, photo_root, tmp_path):
    model = ("--model.backbone", "squeezenet1_1", "--model.weights", "null", "--model.input.size", 64)
    data = ("--data", "ImageFolderDataModule", "--data.num_workers", 0)
    run("fit", *model, *data, "--data.root", photo_root, "--unfreeze.strategy", "full", "--trainer.max_epochs", 1)
    photo_root.rename(tmp_path / "elsewhere")
    run(
        "predict", *data, "--data.predict", tmp_path / "elsewhere" / "bee",
        "--ckpt_path", "logs/run/version_0/checkpoints/best.ckpt", "--predictions.file", "out/bees.csv",
    )  # fmt: skip
    rows = list(csv.DictReader(Path("out/bees.csv").read_text().splitlines()))
    assert [Path(row["path"]).name for row in rows] == sorted(p.name for p in (tmp_path / "elsewhere/bee").iterdir())
    assert {row["class"] for row in rows} <= {"ant", "bee", "cat"}


@pytest.mark.long
def test_resume_goes_on_in_its_folder_also_for_longer(run):
    run("fit", *QUICK, "--trainer.max_epochs", 4)
    folder = Path("logs/quickstart/version_0")
    config = (folder / "config.yaml").read_text()
    changed = ("--model.gradient_checkpointing", "true", "--trainer.precision", "bf16-mixed")
    run("fit", *QUICK, "--trainer.max_epochs", 6, "--ckpt_path", "last", *changed)
    assert list(folder.parent.iterdir()) == [folder]
    assert (folder / "config.yaml").read_text() == config
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 5
    board = EventAccumulator(str(folder))
    board.Reload()
    assert max(event.value for event in board.Scalars("lr/head") if event.step > 40) > 1e-4  # and not 0


@pytest.mark.long
def test_finished_run_whose_checkpoint_was_moved_ends_as_it_is(run, tmp_path):
    run("fit", *QUICK, "--trainer.max_epochs", 3)
    last = Path("logs/quickstart/version_0/checkpoints/last.ckpt").rename(tmp_path / "moved.ckpt")
    printed = run("fit", *QUICK, "--trainer.max_epochs", 3, "--ckpt_path", last)
    assert "Best model   logs/quickstart/version_0/checkpoints/best.ckpt  (val/loss is not known)" in printed


@pytest.mark.long
def test_callbacks_of_a_config_add_to_the_named_ones(run):
    Path("more.yaml").write_text(
        "trainer:\n  max_epochs: 2\n  callbacks:\n    - class_path: LearningRateMonitor\n"
        "      init_args: {logging_interval: epoch}\n"
    )
    printed = run("fit", "--config", "more.yaml", "--early_stopping.patience", 3)
    assert "Plan  mnist_cnn" in printed
    assert Path("logs/more/version_0/checkpoints/best.ckpt").is_file()
    states = torch.load("logs/more/version_0/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert "GradualUnfreezing" in states
    assert any(key.startswith("EarlyStopping") and "val/loss" in key for key in states)
    board = EventAccumulator("logs/more/version_0")
    board.Reload()
    assert "lr-AdamW/conv" in board.Tags()["scalars"]


@pytest.mark.long
def test_callback_alone_is_a_list_of_one(run):
    one_epoch = ("--trainer.max_epochs", 1, "--unfreeze", "null")
    assert "epoch 0/0 best" in run("fit", *one_epoch)
    assert "epoch 0/0 best" not in run("fit", *one_epoch, "--trainer.callbacks", "TQDMProgressBar")


def test_named_callbacks_can_be_switched_off(run):
    printed = run("fit", "--unfreeze", "null", "--checkpoint", "null", "--report", "null", "--trainer.max_epochs", 1)
    assert "Plan" not in printed
    assert not Path("logs/run/version_0/checkpoints").exists()


@pytest.mark.long
def test_optimizer_and_schedule_by_short_name(run):
    run(
        "fit", "--trainer.max_epochs", 2, "--optimizer", "SGD", "--optimizer.momentum", 0.9,
        "--lr_scheduler", "OneCycleLR", "--lr_scheduler.pct_start", 0.5, "--model.lr", 0.1, "--model.lr_decay", 0.5,
    )  # fmt: skip
    groups = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0][
        "param_groups"
    ]
    assert [group["name"] for group in groups[:3]] == ["head", "head/no_decay", "dense"]
    assert groups[0]["max_lr"] == 0.1
    assert groups[2]["max_lr"] == 0.05
    assert "momentum" in groups[0]


@pytest.mark.long
def test_function_of_a_schedule_by_its_path_also_from_the_config_of_the_run(run):
    steps = ("--lr_scheduler", "LambdaLR", "--lr_scheduler.lr_lambda", "small_runs.harmonic")
    run("fit", "--trainer.max_epochs", 2, "--model.lr", 0.1, *steps)
    run("fit", "--config", "logs/run/version_0/config.yaml")
    for version in (0, 1):
        saved = torch.load(f"logs/run/version_{version}/checkpoints/last.ckpt", weights_only=True)
        assert saved["hyper_parameters"]["lr_scheduler"]["init_args"]["lr_lambda"] == "small_runs.harmonic"
        # It is saved after the step of the second epoch's end.
        assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.1 / 3)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # as no step of it validates
def test_cycle_rises_to_the_rates_of_the_groups(run):
    cycle = ("--lr_scheduler", "CyclicLR", "--lr_scheduler.step_size_up", 2)
    steps = ("--trainer.max_steps", 2, "--unfreeze.strategy", "full")
    run("fit", *steps, "--model.lr", 0.1, "--model.lr_decay", 0.5, *cycle)
    saved = torch.load("logs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    groups = {group["name"]: group["lr"] for group in saved["optimizer_states"][0]["param_groups"]}
    assert (groups["head"], groups["dense"]) == pytest.approx((0.1, 0.05))


RECIPE = str(CONFIGS / "image_folder.yaml")
MISTAKES = {
    ("fit", "--model.backbon", "resnet50"): "--model.backbon: there is no such option; nearest: --model.backbone",
    ("fit", "--modle.backbone", "x"): "--modle.backbone: there is no such option; nearest: --model.backbone",
    ("fit", "--model.head.hiden", "[5]"): "--model.head.hiden: there is no such option; nearest: --model.head.hidden",
    ("fit", "--model.backbone", "resnet5"): "--model.backbone: unknown backbone 'resnet5'; nearest: resnet50",
    ("fit", "--model.weights", "MNITS"): "unknown weights tag of mnist_cnn 'MNITS'; nearest: MNIST",
    ("fit", "--model.weights", "nix.pth"): "--model.weights: no such file: nix.pth",
    ("fit", "--model.lr", "fast"): "--model.lr: fast does not fit; give a number",
    ("fit", "--model.lr", "-1"): "--model.lr: must be above 0, got -1.0",
    ("fit", "--optimizer", "SDG"): "--optimizer: unknown class 'SDG'; nearest: SGD",
    ("fit", "--optimizer.lr", "1"): "--optimizer.lr: there is no such option; give --model.lr 1",
    ("fit", "--lr_scheduler", "OneCycle"): "--lr_scheduler: OneCycle does not fit; give --lr_scheduler OneCycleLR",
    ("fit", "--optimizer", "Adagrad", "--lr_scheduler", "OneCycleLR"): (
        "--lr_scheduler: OneCycleLR: optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
    ),
    ("fit", "--data", "DigitDataModule"): "--data: unknown class 'DigitDataModule'; nearest: DigitsDataModule",
    ("fit", "--data.batch_size", "4"): "--data.batch_size: of which data module? name it, as --data Image",
    ("fit", "--data", "DigitsDataModule", "--data.batch_size", "0"): "--data.batch_size: 0 is less than 1",
    ("fit", "--data", "ImageFolderDataModule", "--data.root", "nix"): "--data.root: nix does not exist; give another",
    ("finetune", "--config", RECIPE): "--data.root: data does not exist; no other folder was given; give that of",
    ("finetune", "--config", RECIPE, "--data.root", ""): "--data.root: its value is empty, as a variable",
    ("finetune", "--refit", "true", "--unfreeze.strategy", "plateau"): "--refit: without validation no phase ends by a",
    ("finetune", "--config", RECIPE, "--unfreeze.head_fit", "solvd"): (
        "--unfreeze.head_fit: unknown value 'solvd'; nearest: solved (choose from"
    ),
    ("finetune", "--config", RECIPE, "--unfreeze.norm", "evl"): "--unfreeze.norm: unknown value 'evl'; nearest: eval",
    ("fit", "--model.lr_backbone", "-1"): "--model.lr_backbone: must be above 0, got -1.0",
    ("fit", "--unfreeze.strategy", "gradul"): "--unfreeze.strategy: unknown value 'gradul'; nearest: gradual",
    ("fit", "--unfreeze.strategy", "phases", "--unfreeze.phases", "[{train: [conf, head]}]"): (
        "--unfreeze.phases[0].train: unknown stage 'conf'; nearest: conv"
    ),
    ("fit", "--unfreeze.strategy", "gradual", "--trainer.max_epochs", "1"): "needs at least 2 epochs",
    ("fit", "--config", "nix.yaml"): "--config: File does not exist: ",
    ("fit", "--trainer.accelerator", "tpu"): "torch_xla",
    ("fit", "--optimizer", "SGD", "--optimizer.momentum", "-1"): "--optimizer: SGD: Invalid momentum value: -1.0",
    (
        "fit",
        "--optimizer.weight_decay",
        "1",
    ): "--optimizer.weight_decay: of which optimizer? name it, as --optimizer A",
    ("fit", "--trainer.strategy", "dpp"): "--trainer.strategy: unknown strategy 'dpp'; nearest: ddp",
    ("fit", "--trainer.devices", "0"): "--trainer.devices: 0 leaves nothing to train",
    ("fit", "--trainer.limit_train_batches", "0"): "--trainer.limit_train_batches: 0 leaves nothing to train",
    ("fit", "--trainer.accumulate_grad_batches", "0"): "--trainer.accumulate_grad_batches: must be at least 1, got 0",
    ("fit", "--trainer.gradient_clip_val", "-1"): "--trainer.gradient_clip_val: must be at least 0, got -1",
    ("fit", "--trainer.max_epoch", "3"): "--trainer.max_epoch: there is no such option; give --epochs 3",
    ("fit", "--trainer.precision", "foo"): "--trainer.precision: ",
    ("fit", "--model.task", "regression"): "--model.task: regression, but the targets of DigitsDataModule are for",
    ("fit", "--checkpoint.monitor", "val/acd"): "--checkpoint.monitor: unknown metric 'val/acd'; nearest: val/acc",
    ("fit", "--early_stopping.monitor", "foo"): "--early_stopping.monitor: unknown metric 'foo'",
    ("fit", "--ckpt_path", "last"): "--ckpt_path: there is no logs/run/*/checkpoints/last.ckpt",
    (
        "fit",
        "--data",
        "DigitsDataModule",
        "--data.batchsize",
        "3",
    ): "--data.batchsize: there is no such option; give --batch_size 3",
    ("fit", "--ckpt_path", "nix.ckpt"): "--ckpt_path: no such file: nix.ckpt",
    ("test",): "--ckpt_path: lit-ft test needs the checkpoint of a run",
    ("test", "--ckpt_path", str(CONFIGS / "quickstart.yaml")): "is not a checkpoint, or it is damaged",
    ("fit", "--trainer.logger", "CSVLogger"): "--trainer.logger: CSVLogger needs save_dir; add --trainer.logger.save_d",
    ("fit", "--trainer.logger", "CSVLoger"): "--trainer.logger: unknown class 'CSVLoger'; nearest: CSVLogger",
    ("fit", "--trainer.callbacks", "Timr"): "--trainer.callbacks: unknown class 'Timr'; nearest: Timer",
    ("predict", "best.ckpt", "photos"): "CHECKPOINT: no such file: best.ckpt",
    ("test", "best.ckpt"): "--ckpt_path: no such file: best.ckpt",
    ("fit", "--model.backbone", "vit_tiny_patch16_224"): (
        "--model.backbone: vit_tiny_patch16_224 is a network of timm; give timm/vit_tiny_patch16_224"
    ),
    ("fit", "--model.backbone", "vit_tiny_patch16_224.augreg_in21k"): (
        "is a network of timm; give timm/vit_tiny_patch16_224 and --model.weights augreg_in21k"
    ),
    ("fot",): "unknown command 'fot'; nearest: fit",
    (): "which command? One of finetune, plan, check, probe, tune, download, convert, fit, validate, test, predict",
}


@pytest.mark.parametrize("args", MISTAKES, ids=" ".join)
def test_mistake_ends_in_one_line(refused, args):
    assert MISTAKES[args] in refused(*args)
    assert not list(Path().iterdir())


def test_logger_that_cannot_be_made_leaves_nothing(refused, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    Path("a").mkdir()
    assert "Neither `tensorboard` nor" in refused("fit", "--trainer.default_root_dir", "a/b/c")
    assert list(Path().rglob("*")) == [Path("a")]  # which was there before


def test_gpu_that_is_not_there_is_refused(refused, monkeypatch):
    for accelerator in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", lambda: False)
    assert "--trainer.accelerator: torch finds no GPU here; give cpu" in refused("fit", "--trainer.accelerator", "gpu")


def test_help_lists_the_commands_that_there_are(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands = re.findall(r"^    (\w+) +(\S.*)$", run("--help"), re.MULTILINE)
    assert dict(commands) == COMMANDS
    assert run("-h") == run("--offline", "--help") == run("--help")
    for name in vars(Trainer).keys() & COMMANDS:
        assert COMMANDS[name] == getattr(Trainer, name).__doc__.partition("\n")[0]
    for name in ("predict", "models", "describe"):
        assert f"\n\n{COMMANDS[name]}" in run(name, "--help")


@pytest.mark.long
def test_checkpoints_of_the_users_own_are_not_taken_for_the_best(run):
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    options = ("--trainer.callbacks+", own, "--trainer.callbacks.every_n_train_steps", 5)
    printed = run("finetune", *QUICK, "--trainer.max_epochs", 3, *options, "--trainer.callbacks.dirpath", "mine")
    assert "Best model   logs/quickstart/version_0/checkpoints/best.ckpt  (val/loss " in printed
    assert list(Path("mine").glob("*.ckpt"))


@pytest.mark.long
def test_plan_shows_the_phases_and_does_nothing(run, photo_root):
    printed = run("plan", *QUICK, "--trainer.max_epochs", 5)
    assert "100 images, 10 a class" in printed
    assert re.search(r"2 +1 +dense, head +693,642 \(100\.0%\) +0\.0015 to 0\.003 +\d\d% +2\.8 MB", printed)
    network = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0)
    printed = run("plan", *network, "--model.backbone", "vit_b_16", "--model.weights", "IMAGENET1K_SWAG_E2E_V1")
    assert "Plan  vit_b_16: stem, blocks1, blocks2, blocks3, blocks4, head" in printed  # and nothing was fetched
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["--unfreeze.strategy", "gradual", "--trainer.max_epochs", 1],
            "--trainer.max_epochs: strategy 'gradual' needs",
        ),
        (
            ["--unfreeze.strategy", "plateau", "--unfreeze.plateau.monitor", "val/x"],
            "--unfreeze.plateau.monitor: unknown",
        ),
        (["--unfreeze.strategy", "plateau", "--trainer.limit_val_batches", 0], "--unfreeze.plateau: the run validates"),
        (["--trainer.strategy", "dpd"], "--trainer.strategy: unknown strategy 'dpd'; nearest: ddp"),
        (["--trainer.accelerator", "cpuu"], "--trainer.accelerator: unknown accelerator 'cpuu'; nearest: cpu"),
        (["--feature_cache.views", -1], "--feature_cache.views: must be at least 0, got -1"),
        (["--checkpoint.monitor", "val/acd"], "--checkpoint.monitor: unknown metric 'val/acd'; nearest: val/acc"),
        (["--checkpoint.save_top_k", -2], "save_top_k"),
        (["--early_stopping.monitor", "val/acd"], "--early_stopping.monitor: unknown metric 'val/acd'"),
        (
            ["--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitor", "val/acd"],
            "--lr_scheduler.monitor: unknown metric 'val/acd'; nearest: val/acc",
        ),
        (
            ["--model.weights", "other.pth"],
            "--model.weights: other.pth is of another network: 4 missing (conv.0.weight",
        ),
    ],
)
def test_plan_refuses_what_a_fit_would_refuse(refused, args, line):
    torch.save({"fc.weight": torch.zeros(2, 2)}, "other.pth")
    for command in ("plan", "fit"):
        assert line in refused(command, *args)
    assert not Path("logs").exists() or not list(Path("logs").glob("*/*"))


def test_plan_makes_a_logger_and_nothing_of_it(run):
    run("plan", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv")
    assert not list(Path().iterdir())


@pytest.mark.long
def test_events_are_told_of_where_a_logger_writes_some(run):
    quick = ("--trainer.max_epochs", 2, "--trainer.limit_train_batches", 1)
    for logger, writes in ((("CSVLogger", "--trainer.logger.save_dir", "csv"), False), (("true",), True)):
        printed = run("fit", *quick, "--trainer.logger", *logger)
        assert ("TensorBoard events)" in printed, "tensorboard --logdir" in printed) == (writes, writes)


def test_data_that_is_missing_is_told_before_weights_are_fetched(refused, monkeypatch):
    def fetch(*_):
        raise AssertionError("it was fetched")

    monkeypatch.setattr("lit_ft.backbones.weights.pretrained.Published.fetch", fetch)
    network = ("--model.backbone", "resnet18")
    folder = ("--data", "ImageFolderDataModule", "--data.root", "nix")
    assert refused("fit", *network, *folder).endswith("--data.root: nix does not exist; give another path")
    assert "--data.root: missing file nix/cifar-10" in refused(
        "fit", *network, "--data", "CIFAR10DataModule", *folder[2:]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "precision", ["bf16-true", *(pytest.param(p, marks=pytest.mark.slow) for p in ("16-true", "64-true"))]
)
def test_finetune_in_another_precision_comes_to_the_same(run, precision):
    options = ("--trainer.max_epochs", 5, "--unfreeze.head_epochs", 3, "--unfreeze.head_fit", "trained")
    options += ("--model.gradient_checkpointing", "true")
    scores = []
    for given in ("32-true", precision):
        printed = run("finetune", *options, "--name", given, "--trainer.precision", given)
        assert "conv to dense cached for train" in printed
        scores.append([float(re.search(rf"test/{name} +(\S+)", printed)[1]) for name in ("acc", "loss")])
    run("predict", "--name", precision, "--ckpt_path", "best", "--trainer.precision", precision, *DIGITS)
    assert scores[1] == pytest.approx(scores[0], abs=0.1)
    if precision != "64-true":
        assert scores[1] != scores[0]


@pytest.mark.long
def test_number_of_batches_is_whole_and_a_share_is_not(run):
    names = [f"limit_{split}_batches" for split in ("train", "val", "test", "predict")]
    names += ["overfit_batches", "val_check_interval"]
    for text, kind in (("1", int), ("1.0", float)):
        options = [part for name in names for part in (f"--trainer.{name}", text)]
        Path("printed.yaml").write_text(yaml.safe_dump({"trainer": dict.fromkeys(names, kind(text))}))
        for given in (options, ["--config", "printed.yaml"]):
            parsed = yaml.safe_load(run("fit", *given, "--print_config"))["trainer"]
            assert {name: (type(parsed[name]), parsed[name]) for name in names} == dict.fromkeys(names, (kind, 1))
    run("fit", *QUICK, "--trainer.max_epochs", 3, "--trainer.limit_train_batches", 1)
    assert torch.load("logs/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def test_missing_config_names_the_nearest(refused):
    line = refused("fit", "--config", CONFIGS / "quickstrat.yaml")
    assert line.endswith(f"quickstrat.yaml'; nearest: {CONFIGS / 'quickstart.yaml'}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("modell: {backbone: x}", "--modell.backbone: there is no such option; nearest: --model.backbone"),
        ("model: {backbon: x}", "--model.backbon: there is no such option; nearest: --model.backbone"),
        ("model: {backbone: x", "--config: mistake.yaml is not valid YAML: line 1 ("),
        (
            "",
            "--config: mistake.yaml has no options in it, such as model: {backbone: resnet50}",
        ),
        ("[1, 2]", "--config: mistake.yaml has no options in it, such as model: {backbone: resnet50}"),
        ("unfreeze: {strategy: phases, phases: [{trian: [head]}]}", "nearest: --unfreeze.phases.train"),
    ],
)
def test_mistake_in_a_config_ends_in_one_line(refused, text, line):
    Path("mistake.yaml").write_text(text)
    assert line in refused("fit", "--config", "mistake.yaml")


@pytest.mark.long
@pytest.mark.parametrize(("monitor", "mode"), [("val/f1", "max"), ("val/loss", "min")])
def test_monitored_metric_tells_what_is_best(run, monitor, mode):
    run("fit", "--trainer.max_epochs", 2, "--checkpoint.monitor", monitor, "--early_stopping.monitor", monitor)
    config = yaml.safe_load(Path("logs/run/version_0/config.yaml").read_text())
    assert [config[key]["init_args"]["mode"] for key in ("checkpoint", "early_stopping")] == [mode, mode]


def test_resume_refuses_other_classes_and_keeps_the_config(run, refused, photo_root):
    data = ("--data", "ImageFolderDataModule", "--data.num_workers", 0, "--model.input.size", 28)
    run(
        "fit",
        *data,
        "--data.root",
        photo_root,
        "--trainer.max_epochs",
        1,
        "--unfreeze",
        "null",
        "--model.weights",
        "null",
    )
    before = Path("logs/run/version_0/config.yaml").read_text()
    (photo_root / "cat").rename(photo_root / "dog")
    line = refused(
        "fit", "--config", "logs/run/version_0/config.yaml", "--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt"
    )
    assert "is of a run with the classes ['ant', 'bee', 'cat'], not ['ant', 'bee', 'dog']" in line
    assert Path("logs/run/version_0/config.yaml").read_text() == before


@pytest.mark.long
def test_resume_refuses_another_model(run, refused):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null")
    last = "logs/run/version_0/checkpoints/last.ckpt"
    line = refused("fit", "--ckpt_path", last, "--model.head.hidden", "[8]")
    assert "is of a run with --model.head {'hidden': [], 'dropout': 0.0, " in line
    assert f"--model.weights {last}" in line


@pytest.mark.long
def test_checkpoint_whose_parts_are_something_else_is_refused_in_one_line(run, refused):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze", "null")
    last = Path("logs/run/version_0/checkpoints/last.ckpt")
    good = torch.load(last, weights_only=True)
    cases = {
        ("test", "standardisation"): {"a": 1},
        ("validate", "DigitsDataModule"): {},
        ("test", "loops"): "x",
        ("fit", "images"): {"a": 1},
        ("fit", "measured"): {"val/loss": "x"},
        ("fit", "optimizer_states"): ["x"],
        ("fit", "lr_schedulers"): ["x"],
        ("fit", "callbacks"): [1],
    }
    for (command, key), value in cases.items():
        torch.save({**good, key: value}, last)
        data = ("--unfreeze", "null") if command == "fit" else DIGITS
        line = refused(command, "--ckpt_path", last, *data)
        assert line.startswith(f"lit-ft: --ckpt_path: {last} "), (command, key, line)
        assert "damaged" in line
    good["loops"]["fit_loop"]["epoch_progress"]["current"] = dict.fromkeys(
        ("ready", "started", "processed", "completed"), 5
    )
    torch.save(good, last)
    line = refused("fit", "--ckpt_path", last, "--unfreeze", "null", "--trainer.max_epochs", 3)
    assert "current_epoch=5, but you have set Trainer(max_epochs=3)" in line


@pytest.mark.long
def test_mixing_and_weights_are_options_of_the_run_and_of_its_checkpoint(run, refused):
    mix = ("--model.mix.mixup", 0.2, "--model.mix.cutmix", 1, "--model.mix.erase", 0.25)
    run("fit", *QUICK, "--trainer.max_epochs", 3, *mix, "--model.class_weight", "balanced")
    folder = Path("logs/quickstart/version_0")
    options = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    last = folder / "checkpoints/last.ckpt"
    hparams = torch.load(last, weights_only=True)["hyper_parameters"]
    for kept in (options, hparams):
        assert kept["mix"] == {"mixup": 0.2, "cutmix": 1.0, "erase": 0.25}
        assert kept["class_weight"] == "balanced"
    line = refused("fit", "--config", folder / "config.yaml", "--ckpt_path", last, "--model.mix.erase", 0)
    assert "is of a run with --model.mix {'mixup': 0.2, 'cutmix': 1.0, 'erase': 0.25}, but this one has {" in line
    told = run("fit", "--model.help")
    assert {"--model.mix.mixup", "--model.mix.cutmix", "--model.mix.erase", "--model.class_weight"} <= set(told.split())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--model.mix.mixup", -1], "--model.mix.mixup: must be a number that is at least 0, got -1.0"),
        (["--model.mix.erase", 2], "--model.mix.erase: must be at least 0 and at most 1, got 2.0"),
        (
            ["--model.mix.mixpu", 1],
            "--model.mix.mixpu: there is no such option; nearest: --model.mix.mixup, --model.mix.cutmix, --model.mix",
        ),
        (
            ["--model.mix.cutmix", 1, "--model.task", "regression"],
            "--model.mix.cutmix: is for classes, not --model.task regression; take --model.mix.mixup",
        ),
        (
            ["--model.class_weight", "balancd"],
            "--model.class_weight: unknown value 'balancd'; nearest: balanced (choose from balanced, null)",
        ),
        (
            ["--model.class_weight", "balanced", "--model.task", "regression"],
            "--model.class_weight: is for --model.task multiclass or multilabel, not regression",
        ),
    ],
)
def test_wrong_mixing_or_weights_end_in_one_line(refused, args, line):
    assert refused("fit", *args).endswith(line)


@pytest.mark.long
def test_start_from_the_backbone_of_a_checkpoint(run):
    run("fit", "--trainer.max_epochs", 1, "--unfreeze.strategy", "full")
    source = "logs/run/version_0/checkpoints/best.ckpt"
    frozen = ("--model.weights", source, "--unfreeze.strategy", "linear_probe")
    run("fit", "--name", "next", "--trainer.max_epochs", 1, *frozen)
    states = [
        torch.load(path, weights_only=True)["state_dict"]
        for path in (source, "logs/next/version_0/checkpoints/best.ckpt")
    ]
    assert torch.equal(*(state["backbone.stages.conv.conv.0.weight"] for state in states))
    assert not torch.equal(*(state["head.0.weight"] for state in states))


def test_debug_brings_the_traceback_back(lit_ft):
    with pytest.raises(ValueError, match="unknown backbone"):
        lit_ft("fit", "--model.backbone", "resnet5", "--debug")


def test_print_config_parses_again(run):
    Path("printed.yaml").write_text(run("fit", *QUICK, "--print_config"))
    run("fit", "--config", "printed.yaml", "--trainer.fast_dev_run", "true")


# Of two recipes with the same large network one is enough here.
SLOW = {"vgg16_gap_dense", "resnet50_features", "image_folder_gradual"}
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.long
@pytest.mark.parametrize("recipe", [pytest.param(r, marks=pytest.mark.slow) if r in SLOW else r for r in RECIPES])
def test_recipe_runs_two_batches(run, recipe, photo_root, cifar_root, mnist_root, letters_root):
    args = ["--config", CONFIGS / f"{recipe}.yaml", "--trainer.fast_dev_run", 2, "--data.batch_size", 2]
    config = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    if config["data"]["class_path"] != "DigitsDataModule":
        args += ["--data.root", photo_root if "Folder" in config["data"]["class_path"] else photo_root.parent]
    if "split" in config["data"].get("init_args", {}):
        args += ["--data.split", "letters", "--data.val_fraction", 0.2]
    if config["model"]["backbone"] != "mnist_cnn":
        args += ["--model.weights", "null"]  # the published ones need a network
    if recipe == "image_folder":
        args += ["--model.backbone", "resnet18"]  # it reads its photos several times
    printed = run("finetune", *args)
    assert "Plan" in printed
    assert "test/recall" in printed


def test_class_that_is_no_data_module_is_refused_with_those_there_are(tmp_path):
    # In a process of its own, where no test has made data modules.
    done = forked.command("fit", "--data", "torch.nn.Linear", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    start = "lit-ft: --data: torch.nn.Linear is no LightningDataModule; choose from CIFAR10DataModule, "
    assert done.stderr.startswith(start)
    assert done.stderr.endswith("StreamDataModule, or derive yours from it\n")


@pytest.mark.long
def test_interrupt_tells_how_to_go_on():
    command = [sys.executable, "-m", "lit_ft", "fit", "--trainer.max_epochs", "1000", "--model.weights", "null"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell lets what it runs in the background ignore the signal, and so would the tests' children.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                process.send_signal(signal.SIGINT)
                break
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    last = "logs/run/version_0/checkpoints/last.ckpt"
    assert said.splitlines()[-1] == f"lit-ft: interrupted; to resume: the same command with --ckpt_path {last}"
    assert torch.load(last, weights_only=True)["epoch"] >= 1


def acts(text):
    """The signs in a text that would act on a terminal."""
    return set(text) & set("\x1b\x07\r\u202e\x9b")


@pytest.mark.long
def test_names_from_data_do_not_reach_the_terminal_raw(lit_ft, photo_root):
    (photo_root / "bee").rename(photo_root / "b\x1b[2J\u202eee\nx")
    (photo_root / "cat" / "3.png").rename(photo_root / "cat" / "\x1b]0;x\x07\r.png")
    (photo_root / "cat" / "\x1b]0;x\x07\r.png").write_text("no image")
    (photo_root / "ant" / "a\x9b2J.txt").touch()
    data = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0)
    spelt = r"b\x1b[2J\u202eee\nx"

    code, out, err = lit_ft("check", *data)
    assert code == 1
    assert r"\x1b]0;x\x07\r.png" in out
    assert r"a\x9b2J.txt" in out
    assert not acts(out)

    code, out, err = lit_ft("plan", *data)
    assert (code, not acts(out), f"ant, {spelt}, cat)" in out) == (0, True, True)

    code, out, err = lit_ft("fit", *data, "--data.predict", photo_root)
    assert (code, len(err), acts(err[0])) == (2, 1, set())
    assert r"cat/\x1b]0;x\x07 .png (" in err[0]

    code, out, err = lit_ft(
        "fit", *data, "--data.on_bad_image", "skip", "--trainer.max_epochs", 1, "--unfreeze", "null"
    )
    assert code == 0
    assert not acts(out)


def test_warnings_do_not_reach_the_terminal_raw(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", None)
    warn_in_one_line()
    told = warnings.formatwarning(UserWarning("not used: more\x1b[2J\nand more"), UserWarning, "x.py", 1)
    assert told == "lit-ft: warning: not used: more\\x1b[2J\nand more\n"


@pytest.mark.long
def test_refit_is_told_with_the_score_before_it_and_left_out_of_fit(run, refused):
    probe = (*DIGITS, "--data.shots", 4, "--model.backbone", "mnist_cnn", "--unfreeze.strategy", "linear_probe")
    printed = run("finetune", *probe, "--refit", "true")
    assert re.search(r"\nRefit   on \d+ images", printed)
    assert re.search(r"\nBest model   \S+  \(refit; before it val/acc 0\.\d+\)", printed)
    with pytest.warns(UserWarning, match="`refit`: fit leaves it out; use lit-ft finetune for it"):
        printed = run("fit", *probe, "--refit", "true")
    assert re.search(r"\nBest model   \S+  \(val/acc 0\.\d+\)", printed)
    Path("refit.yaml").write_text("refit: true\n")
    run("fit", *probe, "--config", "refit.yaml", "--trainer.fast_dev_run", "true")  # without a warning, an error here
    best = Path("logs/run/version_1/checkpoints/best.ckpt")
    line = refused("fit", *probe, "--ckpt_path", best)
    expected = "is what was handed back, not an epoch to go on from; give logs/run/version_1/checkpoints/last.ckpt"
    assert line == f"lit-ft: --ckpt_path: {best} {expected}"
