"""Runs to export: a small network, its photos, and what a fit and its calibration leave behind."""

import csv
import json

import lightning as L
import numpy as np
import torch
from PIL import Image

from lit_ft.data import ImageDataModule
from lit_ft.model.calibration import Calibration, distances_to_nearest
from lit_ft.model.module import FineTuneModule
from lit_ft.model.prediction import head_inputs

CLASSES = ["ant", "be|e <i>"]
LEAST = 0.004
"""The probability from which a class is in a label set."""


def write_run(folder, spread=1.0, **options):
    """A run as after a fit and a validation: photos of two classes, a checkpoint, results by class and group."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    rows = []
    for i in range(24):
        path = folder / "photos" / ("train" if i < 16 else "val") / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 100 if i % 2 else 0
        Image.fromarray(random.integers(low, low + 155, (30 + i, 44, 3), dtype=np.uint8)).save(path)
        rows.append([str(path), CLASSES[i % 2], "train" if i < 16 else "val", f"camera {i % 3}"])
    module = FineTuneModule(**{"backbone": "mnist_cnn", "weights": None, "classes": CLASSES, **options})
    torch.nn.init.normal_(module.head[-1].weight, std=spread)
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    content |= {"run_options": {"data": "lit_ft.data.ImageFolderDataModule"}}
    content |= {ImageDataModule.CHECKPOINT_HYPER_PARAMS_KEY: {"root": str(folder / "photos"), "num_workers": 0}}
    content |= {"calibration": calibrate(module, folder / "photos/val").plain()}
    torch.save({**content, "pytorch-lightning_version": L.__version__}, run / "checkpoints/best.ckpt")
    data = {"class_path": "lit_ft.data.ImageFolderDataModule", "init_args": {"root": str(folder / "photos")}}
    (run / "config.yaml").write_text(json.dumps({"data": data}))
    with open(run / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "group"], *rows])
    with open(run / "predictions_val.csv", "w", newline="") as file:
        found = [[path, label, CLASSES[0], "0.9", "1"] for path, label, split, _ in rows if split == "val"]
        csv.writer(file).writerows([["path", "class", "predicted", "probability", "loss"], *found])
    metrics = {"val/acc": 0.5, "intervals": {"val/acc": [0.25, 0.75]}}
    (run / "metrics.json").write_text(json.dumps({"val": {"checkpoint": "checkpoints/best.ckpt", **metrics}}))
    (run / "per_class_val.csv").write_text(f"class,images,predicted,precision,recall,f1\n{CLASSES[0]},40,8,0.5,1,0.6\n")
    return run


def calibrate(module, photos, least=LEAST):
    """A calibration by the features of some photos, whose bound is in the widest gap among the distances of all."""
    with head_inputs(module.head) as seen:
        module.eval().predict(photos)
    features = torch.cat(seen)
    references = torch.nn.functional.normalize(features, dim=1)[:3].half()
    apart = distances_to_nearest(features, references).sort().values
    widest = int(apart.diff().argmax())
    return Calibration(1.0, least, references, float(apart[widest : widest + 2].mean()))
