"""A run for each fold on small photos: what it leaves, what it equals, and how it goes on after its end by a signal."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
import yaml
from image_files import save_photo
from lightning.pytorch.callbacks import Callback

import lit_ft as package
from lit_ft.cli import main as lit_ft_main
from lit_ft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")

COLORS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}
MODEL = {"backbone": "mnist_cnn", "weights": None, "lr": 0.01, "head": {"dropout": 0.5}}


def photos(root):
    """Three classes with ten noisy photos each, two of each for an animal."""
    random = np.random.default_rng(0)
    for name, color in COLORS.items():
        for i in range(10):
            noise = random.integers(-90, 90, 3)
            save_photo(root / name / f"{i // 2}-{i}.png", tuple(int(c) for c in np.clip(color + noise, 0, 255)))
    return root


def options(root, **more):
    """Those of a small run of three folds, below a folder."""
    data = {"root": str(root / "photos"), "num_workers": 0, "groups": "([0-9])-", "folds": 3}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(root / "logs"), "logger": False}
    config = {"refit": True, "model": MODEL, "trainer": trainer, "report": None, "unfreeze": {"strategy": "full"}}
    return {**config, "data": {"class_path": "ImageFolderDataModule", "init_args": data}, **more}


def weights(run, name="best"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def are_equal(one, other, name="best"):
    return all(torch.equal(weights(one, name)[key], value) for key, value in weights(other, name).items())


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def _fewer_samples():
    """Draws the intervals of all runs in a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_ft.evaluation.results._SAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cross-validation that nothing has interrupted: its result and the folder that it is below."""
    root = tmp_path_factory.mktemp("whole")
    photos(root / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_FT_CACHE", str(root / "cache"))
        patch.chdir(root)
        return SimpleNamespace(root=root, result=package.run(options(root)))


def test_each_image_is_predicted_once_by_the_model_that_has_not_seen_it(whole):
    folder = whole.result.folder
    assert folder == whole.root / "logs/run/version_0"
    rows = read(folder / "predictions.csv")
    assert sorted(row["path"] for row in rows) == sorted(map(str, (whole.root / "photos").glob("*/*.png")))
    for row in rows:
        split = {one["path"]: one["split"] for one in read(folder / f"fold_{row['fold']}/split.csv")}
        assert split[row["path"]] == "val"
        assert len(split) == 30
        assert row["class"] == Path(row["path"]).parent.name
        assert sum(float(row[f"probability of {name}"]) for name in COLORS) == pytest.approx(1)
    homes = {(Path(row["path"]).name[0], row["fold"]) for row in rows}
    assert len(homes) == 5  # no animal is in two folds
    assert {row["fold"] for row in rows} == {"1", "2", "3"}


def test_figures_are_those_of_the_folds(whole):
    folder, result = whole.result.folder, whole.result
    assert result.folds == [folder / f"fold_{number}" for number in (1, 2, 3)]
    scores = [json.loads((run / "metrics.json").read_text())["val"]["val/acc"] for run in result.folds]
    assert result.metrics["val/acc"] == pytest.approx(np.mean(scores))
    assert result.metrics["val/acc_std"] == pytest.approx(np.std(scores, ddof=1))
    rows = read(folder / "predictions.csv")
    right = [row["class"] == row["predicted"] for row in rows]
    assert result.metrics["out_of_fold/acc"] == pytest.approx(np.mean(right))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["folds"]["metrics"]["val/acc"]["folds"] == pytest.approx(scores)
    assert metrics["folds"]["images"] == [sum(row["fold"] == str(number) for row in rows) for number in (1, 2, 3)]
    assert "<h3>Folds</h3>" in (folder / "report.html").read_text()
    with pytest.raises(
        UserError, match=r"^model: a cross-validation has one for each fold, .*, and a run without data"
    ):
        _ = result.model
    assert (result.best, result.last, result.config) == (None, None, folder / "config.yaml")
    prediction = package.load(result.folds[1]).predict(rows[0]["path"])[0]
    assert prediction.label in COLORS


def test_fold_is_the_ordinary_run_of_its_split(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = options(whole.root, name="alone")
    alone["data"]["init_args"]["fold"] = 2
    result = package.run({**alone, "refit": False})
    assert result.folds == []
    assert are_equal(result.folder, whole.result.folds[1])
    for table in ("split.csv", "history.csv", "predictions_val.csv"):
        assert (result.folder / table).read_text() == (whole.result.folds[1] / table).read_text()
    config = yaml.safe_load((whole.result.folds[1] / "config.yaml").read_text())
    assert (config["data"]["init_args"]["folds"], config["data"]["init_args"]["fold"]) == (3, 2)
    assert config["refit"] is False  # which would train on the fold
    assert yaml.safe_load(whole.result.config.read_text())["refit"] is True


class EndsInFold(Callback):
    """Ends the second fold by a signal in its second epoch, after which only one step is left."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.datamodule.fold == 2 and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.long
def test_interrupted_folds_refuse_others_and_go_on_to_the_same_end(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = options(whole.root)
    given["trainer"] |= {"default_root_dir": str(tmp_path / "logs")}
    ended = {**given, "trainer": {**given["trainer"], "callbacks": [{"class_path": "test_fold_runs.EndsInFold"}]}}
    with pytest.raises(KeyboardInterrupt) as end:
        package.run(ended)
    assert end.value.message == "interrupted by SIGTERM; to resume: the same command with --resume logs/run/version_0"
    folder = tmp_path / "logs/run/version_0"
    assert sorted(path.name for path in folder.glob("fold_*")) == ["fold_1", "fold_2"]
    assert not (folder / "predictions.csv").exists()

    job = (folder / "job.txt").read_text()
    with pytest.raises(
        UserError, match=r"^resume: .*fold_1 was trained with trainer.max_epochs 2, but this one has 3;"
    ):
        package.run(given, resume=str(folder), **{"trainer.max_epochs": 3})
    with pytest.raises(
        UserError, match=r"^ckpt_path: .*fold_2.*last.ckpt is of a run with model.lr 0.01, but this one"
    ):
        package.run(given, resume="auto", **{"model.lr": 0.5})
    assert (folder / "job.txt").read_text() == job

    first = os.stat(folder / "fold_1/checkpoints/best.ckpt").st_mtime_ns
    capsys.readouterr()
    result = package.run(given, resume=str(folder))
    printed = capsys.readouterr().out
    assert "Fold    1 of 3 is finished" in printed
    assert "Resume  from logs/run/version_0/fold_2/checkpoints/last.ckpt" in printed
    assert result.folder == folder
    assert os.stat(folder / "fold_1/checkpoints/best.ckpt").st_mtime_ns == first
    for name in ("best", "last"):
        assert all(are_equal(one, other, name) for one, other in zip(result.folds, whole.result.folds, strict=True))
    assert (folder / "predictions.csv").read_text() == (whole.result.folder / "predictions.csv").read_text()
    assert result.metrics == whole.result.metrics


@pytest.fixture
def unfinished(whole, tmp_path, monkeypatch):
    """A copy of it that was killed between its second fold and its third."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(whole.result.folder, tmp_path / "logs/run/version_0")
    shutil.rmtree(folder / "fold_3")
    (folder / "predictions.csv").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({"folds": {"finished": [1, 2]}}))
    assert metrics["folds"]["finished"] == [1, 2, 3]
    return folder


@pytest.mark.long
def test_folds_that_are_left_are_trained_where_options_and_images_are_the_same(whole, unfinished, tmp_path):
    given = options(whole.root)
    given["trainer"] |= {"default_root_dir": str(tmp_path / "logs")}
    with pytest.raises(
        UserError, match=r"^resume: .*fold_1 was trained with model.lr 0.01, but this one has 0.5; give"
    ):
        package.run({**given, "model.lr": 0.5}, resume=str(unfinished))
    photo = whole.root / "photos/ant/0-0.png"
    kept = photo.rename(tmp_path / "kept.png")
    try:
        with pytest.raises(
            UserError, match=r"^resume: .*fold_1 was trained with 10 images of ant, but now there are 9;"
        ):
            package.run(given, resume=str(unfinished))
    finally:
        kept.rename(photo)
    assert not (unfinished / "fold_3").exists()  # which is left by none that was refused
    result = package.run(given, resume="auto")
    assert (result.folder, os.listdir(tmp_path / "logs/run")) == (unfinished, ["version_0"])
    assert (unfinished / "predictions.csv").read_text() == (whole.result.folder / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data.folds": 11}, "data.folds: 11 needs as many groups of data.groups, and there are 5; give at most 5"),
        (
            {"resume": "logs/run/version_0", "data.split_seed": 1},
            "resume: logs/run/version_0/fold_1 was trained with d",
        ),
    ],
)
def test_what_does_not_go_with_folds_is_refused_before_any_training(whole, more, message, monkeypatch):
    monkeypatch.chdir(whole.root)
    before = sorted((whole.root / "logs").rglob("*"))
    with pytest.raises(UserError) as caught:
        package.run(options(whole.root), **more)
    assert str(caught.value).startswith(message)
    assert sorted((whole.root / "logs").rglob("*")) == before


def test_folds_are_not_added_to_those_of_an_earlier_run(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    place = {"save_dir": str(whole.root / "logs"), "name": "run", "version": 0}
    given = options(whole.root)
    given["trainer"]["logger"] = [{"class_path": "CSVLogger", "init_args": place}]
    with pytest.raises(UserError, match=r"^trainer.logger: .*version_0, which it names, has folds; to go on with"):
        package.run(given)


@pytest.mark.long
def test_other_commands_take_a_fold_and_plan_the_first(whole, lit_ft, run, refused):
    args = ("--config", whole.result.config, "--data.root", whole.root / "photos")
    printed = run("plan", *args)
    assert printed.startswith("Fold  1 of 3, as the others are like it")
    assert "fold 1 of 3 is held out as val" in printed
    for few_or_many in (1, 11):
        code, out, err = lit_ft("plan", *args, "--folds", few_or_many)
        assert (code, out) == (2, "")
        assert err[0].startswith(f"lit-ft: --folds: {few_or_many} ")
    run("finetune", *args, "--trainer.fast_dev_run", "true")
    missing = "lit-ft: --data.fold: is missing; give which of the 3 folds is held out, 1 to 3, or hold out each"
    assert refused("fit", *args).startswith(missing)
    assert refused("probe", *args, "--folder", "null").startswith(missing)
    scores = run("validate", whole.result.folds[0])
    value = json.loads((whole.result.folds[0] / "metrics.json").read_text())["val"]["val/acc"]
    assert f"val/acc        {value:.4f}" in scores
    held_out = sum(row["fold"] == "1" for row in read(whole.result.folder / "predictions.csv"))
    assert f"{held_out} images of both" in run("compare", whole.result.folder, whole.result.folds[0])
    line = refused("predict", whole.result.folder, whole.root / "photos")
    assert line.endswith("as its folds just measure; a run without --data.folds makes one")
    assert f"{whole.result.folder} is a cross-validation, which has no model of its own" in line


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_predicted_once_out_of_fold(whole, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{kind}/{i // 2}-{i}.png,{kind}{';x' if i % 2 else ''},{i}" for kind in COLORS for i in range(10)]
    Path("t.csv").write_text("\n".join(["path,labels,number", *lines]))
    columns = {"multilabel": "labels", "regression": "number"}[task]
    data = {"table": "t.csv", "root": str(whole.root / "photos"), "label_columns": columns, "num_workers": 0}
    given = options(whole.root, name=task)
    given |= {"model": {**MODEL, "task": task}, "data.folds": 3}
    given["data"] = {"class_path": "ImageTableDataModule", "init_args": data}
    given["trainer"]["default_root_dir"] = str(tmp_path / "logs")
    result = package.run(given)
    rows = read(result.folder / "predictions.csv")
    assert len({row["path"] for row in rows}) == len(rows) == 30
    if task == "regression":
        errors = [float(row["predicted of number"]) - float(row["number"]) for row in rows]
        assert result.metrics["out_of_fold/mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
    else:
        assert [int(row["x"]) for row in rows] == [int(row["path"][-5]) % 2 for row in rows]
        assert 0 < result.metrics["out_of_fold/f1"] <= 1
    for row in rows:
        split = {one["path"]: one["split"] for one in read(result.folds[int(row["fold"]) - 1] / "split.csv")}
        assert split[row["path"]] == "val"


def cross_validate(name, root):
    """In a process of its own."""
    config = Path(f"{name}.json")
    config.write_text(json.dumps(options(root)))
    args = ["finetune", "--config", str(config), "--name", name, "--trainer.max_epochs", "12", "--resume", "auto"]
    return lit_ft_main(args)


@pytest.mark.slow
def test_folds_that_are_killed_again_and_again_end_as_those_that_were_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    assert forked.wait(forked.start(cross_validate, "whole", tmp_path, out="whole.log")) == [0]
    random, kills, log = np.random.default_rng(0), 0, Path("killed.log")
    while not Path("logs/killed/version_0/predictions.csv").exists():
        log.write_text("")
        process, lines = forked.start(cross_validate, "killed", tmp_path, out=log), random.integers(2, 9)
        while process.exitcode is None and log.read_text().count("\nepoch ") < lines:
            process.join(0.02)
        process.join(random.uniform(0, 0.3))
        assert process.exitcode in (None, 0), log.read_text()[-2000:]
        kills += process.exitcode is None
        process.kill()
        process.join()
    one, other = (tmp_path / f"logs/{name}/version_0" for name in ("whole", "killed"))
    print(f"{kills} kills")
    assert kills > 3  # in each fold, and between some
    assert len(list(other.parent.iterdir())) == 1
    for number in (1, 2, 3):
        assert are_equal(one / f"fold_{number}", other / f"fold_{number}")
        assert are_equal(one / f"fold_{number}", other / f"fold_{number}", "last")
    assert (one / "predictions.csv").read_text() == (other / "predictions.csv").read_text()
