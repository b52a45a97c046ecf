"""A run of ``lit-ft`` on a machine with a GPU, from photos to predictions, explanations and exported files."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from probe_sets import draw, write_photos
from safetensors.torch import load_file

import lit_ft
from lit_ft.cli import main
from lit_ft.data import ImageFolderDataModule
from lit_ft.evaluation.run_report import RunReport
from lit_ft.export.predictor import ExportedModel
from lit_ft.model.image_model import ImageModel
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]

KINDS = ("dots", "lines", "plain")


@pytest.fixture(scope="module")
def finished(device, tmp_path_factory):
    """A run by the recipe for photos, as small as it can be, and the folder of its photos."""
    folder = tmp_path_factory.mktemp("gpu")
    photos = write_photos(folder / "photos", dict.fromkeys(KINDS, 20))
    options = ["--model.backbone", "resnet18", "--model.weights", "null", "--image_size", "32", "--epochs", "2",
               "--batch_size", "8", "--data.num_workers", "2", "--feature_cache.views", "2"]  # fmt: skip
    options += ["--trainer.precision", "bf16-mixed"] if device == "cuda" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_FT_CACHE", str(folder / "cache"))
        assert main(["finetune", str(photos), *options]) == 0
    (run,) = (folder / "logs").glob("*/version_0")
    return Run(run), photos


def test_run_notes_the_device_and_ends_with_what_it_hands_back(finished, device):
    run, _ = finished
    metrics = json.loads(run.metrics.read_text())
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    assert name in json.dumps(metrics)
    assert {"calibration", "refit", "selection"} <= metrics.keys()
    rows = list(csv.DictReader(run.history.read_text().splitlines()))
    assert len(rows) == 2
    assert all(np.isfinite(float(row["val/loss"])) for row in rows)
    best = torch.load(run.checkpoint("best"), weights_only=True, map_location="cpu")["state_dict"]
    assert all(value.isfinite().all() for value in best.values())


def pictures(first=0, count=4):
    return [draw(kind, seed).convert("RGB") for seed in range(first, first + count) for kind in KINDS]


def loss_in(text):
    return float(re.search(r"val/loss +([0-9.]+)", text)[1])


def test_model_is_loaded_to_the_device_and_predicts_as_on_the_cpu(finished, device):
    run, _ = finished
    model, here = lit_ft.load(run.folder), lit_ft.load(run.folder, "cpu")
    assert model.device.type == device
    for found, expected in zip(model.predict(pictures(), top_k=3), here.predict(pictures(), top_k=3), strict=True):
        assert dict(found.top_k) == pytest.approx(dict(expected.top_k), abs=2e-3)
        assert (found.unsure is None, found.unlike_training) == (expected.unsure is None, expected.unlike_training)
    pixels = torch.rand(2, 3, 32, 32)
    moved = model.predict(pixels.to(device), top_k=3)  # that lie there
    assert [one.top_k for one in moved] == [one.top_k for one in model.predict(pixels, top_k=3)]


def test_predict_command_takes_the_device_by_itself(finished, device, run, monkeypatch):
    made, photos = finished
    used, own, found = [], ImageModel.to, []

    def move(module, place):
        used.append(torch.device(place).type)
        return own(module, place)

    monkeypatch.setattr(ImageModel, "to", move)
    for wanted, options in ((device, ()), ("cpu", ("--device", "cpu"))):
        run("predict", made.folder, photos, "--out", "found.csv", "--overwrite", *options)
        assert used[-1] == wanted
        found.append(list(csv.DictReader(Path("found.csv").read_text().splitlines())))
    pairs = list(zip(*found, strict=True))
    assert len(pairs) == 60
    for there, here in pairs:
        assert there["path"] == here["path"]
        assert float(there["probability"]) == pytest.approx(float(here["probability"]), abs=2e-3)


def test_evidence_is_found_on_the_device_as_on_the_cpu(finished, device):
    run, _ = finished
    maps = []
    for place in (None, "cpu"):
        model = lit_ft.load(run.folder, place)
        found = lit_ft.explain(model, pictures(count=1), target="dots", methods=["grad_cam"])
        maps.append([one.maps["grad_cam"] for one in found])
    for there, here in zip(*maps, strict=True):
        np.testing.assert_allclose(there, here, atol=2e-2 * max(1e-6, np.abs(here).max()))


def test_attention_of_a_transformer_is_found_on_the_device_as_on_the_cpu(device):
    images, found = [draw("dots", 1).convert("RGB")], []
    torch.manual_seed(0)
    module = FineTuneModule("vit_b_16", weights=None, classes=["a", "b"], input={"size": 32, "resize": 32}).eval()
    for place in ("cpu", device):
        (one,) = lit_ft.explain(module.to(place), images, methods=["attention_rollout"])
        found.append(one.maps["attention_rollout"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-2)


def test_explain_command_compares_stages_on_the_device(finished, device, run):
    made, photos = finished
    text = run("explain", made.folder, photos, "--methods", "grad_cam", "--limit", "4", "--out", "explain.html")
    assert re.search(r"layer4 +0\.\d+ +[01]\.\d+", text)  # drift and CKA
    assert Path("explain.html").stat().st_size > 10_000


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_exported_file_gives_what_the_model_gives_on_the_device(suffix, finished, device, run):
    made, _ = finished
    run("export", made.folder, f"model{suffix}")
    model = lit_ft.load(made.folder)
    if suffix == ".safetensors":
        assert load_file("model.safetensors")["fc.weight"].equal(model.head[-1].weight.detach().cpu())
        return
    found = ExportedModel(Path(f"model{suffix}")).predict(pictures(), top_k=3)
    for one, other in zip(found, model.predict(pictures(), top_k=3), strict=True):
        assert dict(one.top_k) == pytest.approx(dict(other.top_k), abs=0.02)  # the file resizes by its own arithmetic


def test_validation_of_the_checkpoint_is_that_of_the_cpu(finished, run):
    made, _ = finished
    given = ("validate", "--config", made.config, "--ckpt_path", made.checkpoint("best"), "--trainer.precision")
    there = loss_in(run(*given, "bf16-mixed"))
    here = loss_in(run(*given, "32-true", "--trainer.accelerator", "cpu"))
    assert there == pytest.approx(here, rel=0.03)  # 18 layers, each of which rounds by 0.4%


def test_plan_of_a_cluster_is_measured_within_a_fit_on_the_device(device, capsys, photo_root, tmp_path):
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[GradualUnfreezing("lp_ft"), RunReport()],
        default_root_dir=tmp_path,
    )  # fmt: skip
    module = FineTuneModule("resnet18", weights=None, input={"size": 32, "resize": 32})
    data = ImageFolderDataModule(str(photo_root), batch_size=4, num_workers=0)
    trainer.plan(module, datamodule=data, nodes=2, devices=4, precision="bf16-mixed")
    text = capsys.readouterr().out
    assert "2 x 4 devices, ddp, bf16-mixed" in text
    assert len(re.findall(r"^ +[12] +\d.* MB .* s ", text, re.MULTILINE)) == 2  # a line a phase


def test_serving_takes_the_device_by_itself(finished, device, monkeypatch):
    pytest.importorskip("litserve")
    from lit_ft.serving.photo_api import PhotoAPI
    from lit_ft.serving.server import find_device

    run, _ = finished
    api = PhotoAPI(run.folder, str(find_device(None)), 4)
    monkeypatch.setattr("lit_ft.serving.photo_api.signal.signal", lambda *_: None)  # it is no process of its own here
    api.setup("cpu")  # of LitServe's own, which is not asked
    assert api.model.device.type == device
