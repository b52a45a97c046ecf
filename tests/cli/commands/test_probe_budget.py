"""``lit-ft probe --budget`` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from probe_sets import write_photos

# Its three features, of random weights, tell digits badly apart; trained, they tell them well.
NARROW = """
from torch import nn


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), nn.ReLU(), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(392, 3), nn.Tanh())
        self.fc = nn.Linear(3, 10)

    def forward(self, images):
        return self.fc(self.neck(self.body(images)))
"""
CONFIG = {
    "model": {
        "backbone": {
            "class_path": "narrow_net.Narrow",
            "stages": {"body": "body", "neck": "neck"},
            "classifier": "fc",
            "channels": 1,
        },
        "weights": None,
        "input": {"size": 28, "mean": [0.5], "std": [0.5]},
        "lr": 0.01,
    },
    "data": {"class_path": "DigitsDataModule", "init_args": {"shots": 20, "batch_size": 16, "augment": "none"}},
    "unfreeze": {"strategy": "full"},
    "trainer": {"max_epochs": 3, "accelerator": "cpu"},
}
MNIST = ("--model.backbone", "mnist_cnn", "--model.weights", "MNIST")


@pytest.fixture
def narrow(lit_ft):
    """A config of that network, in the folder of the command."""
    Path("narrow_net.py").write_text(NARROW)
    Path("narrow.yaml").write_text(yaml.safe_dump(CONFIG))
    return ("--config", "narrow.yaml", "--stages", "last", "--folder", "out")


def read_results(printed):
    """The trial of probe.json, the suggested config and its text; and that the terminal and the page say the same."""
    trial = json.loads(Path("out/probe.json").read_text())["trial"]
    score, page = trial["comparison"]["score"], Path("out/probe.html").read_text()
    assert f"<td>fine-tuned</td><td>{score['tuned']:.1%}</td>" in page
    assert re.search(rf"  linear probe +{score['probe']:.1%} ", printed)
    assert f"-> predicted {trial['predicted_seconds']:.1f}s, took {trial['seconds']:.1f}s" in printed
    text = Path("out/suggested.yaml").read_text()
    return trial, yaml.safe_load(text), text


@pytest.mark.long
def test_unfreezing_that_helps_is_suggested(run, narrow):
    trial, config, text = read_results(run("probe", *narrow, "--budget", "1h"))
    low, _ = trial["comparison"]["score"]["interval"]
    assert low > 0.1
    assert trial["verdict"] == "fine-tune"
    assert config["unfreeze"]["init_args"] == {"strategy": "full"}
    figures = r"# fine-tuned .* points \(.*\); log-loss .*\n# .* epochs on .*\nunfreeze:"
    assert re.search(rf"# fine-tune: {trial['reason']}\n{figures}", text)
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"narrow_net.py", "narrow.yaml", "out"}


@pytest.mark.long
def test_linear_probe_that_is_enough_is_suggested_and_runs(run, narrow):
    slow = ("--model.lr", 1e-9, "--trainer.max_epochs", 1)
    trial, config, text = read_results(run("probe", *narrow, *slow, "--budget", "1h"))
    assert trial["comparison"]["score"]["probe"] == trial["comparison"]["score"]["tuned"]
    assert (trial["verdict"], trial["reason"]) == ("linear probe", "fine-tuning gains less than 1 point")
    assert (trial["num_folds"], trial["num_held_out"]) == (5, trial["num_images"])
    assert config["unfreeze"] == {"strategy": "linear_probe", "head_fit": "solved"}
    assert "# the linear probe is enough: fine-tuning gains less than 1 point\n" in text
    assert "# Backbone, weights and unfreezing were measured" in text
    assert "Chosen  linear probe" in run("finetune", "--config", "out/suggested.yaml")


@pytest.mark.long
def test_trial_that_is_refused_loses_nothing_of_the_probe(run, narrow):
    phases = ("--unfreeze.strategy", "phases", "--unfreeze.phases", "[{train: [deep], epochs: 1}, {train: [head]}]")
    printed = run("probe", *narrow, *phases, "--budget", "20s")
    assert "-> fine-tuning was not tried: --unfreeze.phases[0].train: unknown stage 'deep'" in printed
    assert "Labels needed" in printed
    assert json.loads(Path("out/probe.json").read_text())["trial"] is None
    assert re.search(r"# accuracy .*\n    backbone:", Path("out/suggested.yaml").read_text())


@pytest.mark.long
def test_budget_for_too_few_images_is_told(run, narrow, monkeypatch):
    monkeypatch.setattr("lit_ft.probes.trial.Costs.predict", lambda self, size: size.num_images)
    printed = run("probe", *narrow, "--budget", "9s")
    assert "fine-tuning was not tried: --budget: 9.0s suffices for 9 images, and 40 are needed" in printed


@pytest.mark.long
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_tried(run, task):
    write_photos(Path("photos"), {"dots": 20, "lines": 20})
    paths = sorted(Path("photos").rglob("*.png"))
    cells = [f"{int('dots' in str(path))},{int('lines' in str(path))}" for path in paths]
    Path("table.csv").write_text("\n".join(["path,a,b", *map("{},{}".format, paths, cells)]))
    data = ("--data", "ImageTableDataModule", "--data.table", "table.csv", "--data.label_columns", '["a", "b"]')
    given = (*MNIST, *data, "--data.num_workers", 0, "--model.task", task, "--trainer.max_epochs", 1)
    printed = run("probe", *given, "--stages", "last", "--folder", "out", "--budget", "1h")
    metric = {"multilabel": "label accuracy", "regression": "R2"}[task]
    assert re.search(rf"Fine-tuning of mnist_cnn\n  model +{metric} ", printed)
    score = json.loads(Path("out/probe.json").read_text())["trial"]["comparison"]["score"]
    assert 0.2 < score["probe"] <= 1


@pytest.mark.parametrize("budget", ["5", "5 m", "-5m", "0s", "5m30s", "soon", "1d", "nan", "infs", "٣m"])
def test_budget_that_is_no_duration_is_refused_before_any_work(refused, budget):
    given = (*MNIST, "--data", "ImageFolderDataModule", "--data.root", "nowhere", f"--budget={budget}")
    line = refused("probe", *given)
    assert f"--budget: {budget!r} is no duration above 0; give one such as 90s, 5m or 1h" in line


def test_what_cannot_be_tried_is_refused_before_any_work(refused):
    given = (*MNIST, "--data", "ImageFolderDataModule", "--data.root", "nowhere", "--budget", "5m")
    line = refused("probe", *given, "--model.head.hidden", "[8]")
    assert "--budget: a trial begins with a solved head, and that is linear, without --model.head.hidden" in line
    assert "--budget: --unfreeze null leaves nothing to try" in refused("probe", *given, "--unfreeze", "null")
