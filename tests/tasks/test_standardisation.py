import csv
import os
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_runs import FewDigits, small_trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.data import ImageTableDataModule
from lit_ft.errors import UserError
from lit_ft.features.cache import FeatureCache
from lit_ft.model.module import FineTuneModule
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.unfreezing.callback import GradualUnfreezing

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*does not have many workers", ".*LeafSpec", ".*callbacks used to create the checkpoint")
]

ROOT = os.environ.get("LIT_FT_DATA")  # read before the tests take the variable away


@pytest.mark.parametrize("offset", [0.0, 3e5, 1.7e9])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_targets_become_mean_0_and_deviation_1_and_come_back(offset, scale):
    targets = offset + scale * torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    found = Standardisation.of(targets)
    standard = found.standardise(targets)
    eps = torch.finfo(torch.float64).eps * (1 + offset / scale)
    torch.testing.assert_close(standard.mean(), torch.tensor(0.0).double(), atol=16 * eps, rtol=0)
    torch.testing.assert_close(standard.square().mean().sqrt(), torch.tensor(1.0).double(), atol=16 * eps, rtol=0)
    torch.testing.assert_close(found.restore(standard), targets, atol=scale * 16 * eps, rtol=0)
    assert found.centred(standard).mean().abs() < scale * 16 * eps


def test_target_that_never_varies_is_subtracted_and_not_scaled():
    targets = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
    found = Standardisation.of(targets)
    assert found.scale[0] == 1.0
    assert found.mean[0] == float(targets[0, 0])
    assert found.standardise(targets)[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert found.standardise(targets)[:, 1].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_squares_of_large_targets_do_not_overflow():
    found = Standardisation.of(torch.tensor([[1e200], [-1e200]], dtype=torch.float64))
    assert found == Standardisation((0.0,), (1e200,))


def test_numbers_without_a_second_dimension_are_of_one_target():
    found = Standardisation((10.0,), (2.0,))
    assert found.standardise(torch.tensor([12, 8])).tolist() == [[1.0], [-1.0]]


def test_half_precision_answers_come_back_with_all_digits():
    found = Standardisation((1990.0,), (5.0,))
    restored = found.restore(torch.tensor([[0.2]], dtype=torch.bfloat16))
    assert restored.dtype == torch.float64
    assert float(restored) == pytest.approx(1991.0, abs=5 * 2**-9)


def test_what_is_prepared_in_inference_mode_serves_training_later():
    found = Standardisation((123.0,), (7.0,))
    with torch.inference_mode():
        found.restore(torch.zeros(1, 1))
    values = torch.ones(1, 1, requires_grad=True)
    found.restore(values).sum().backward()
    assert values.grad.item() == 7.0


# In runs


class Years(L.LightningDataModule):
    """Images whose brightness tells the year, and their year."""

    class_names = ("year",)
    task = "regression"

    def __init__(self, years=None, known=True):
        super().__init__()
        shades = torch.arange(20) * 12
        self.images = shades.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
        self.years = (1980.0 + torch.arange(20.0)).view(-1, 1) if years is None else years
        if known:
            self.train_targets = lambda: self.years

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images, self.years), batch_size=10)

    val_dataloader = test_dataloader = train_dataloader

    def predict_dataloader(self):
        return DataLoader(TensorDataset(self.images), batch_size=10)


LINEAR = {"weights": "MNIST", "task": "regression", "lr": 0.01, "lr_scheduler": None}


def fit_years(*callbacks, data=None, epochs=1, ckpt_path=None, module=None, **options):
    L.seed_everything(1)
    module = module or FineTuneModule("mnist_cnn", **{**LINEAR, **options})
    trainer = small_trainer(epochs, *callbacks)
    trainer.fit(module, datamodule=data or Years(), ckpt_path=ckpt_path)
    return trainer, module


def answers_of(module, data=None):
    return torch.cat([batch["answers"] for batch in small_trainer(1).predict(module, datamodule=data or Years())])


@pytest.mark.long
def test_probe_of_years_learns_them_and_tells_them_in_years():
    trainer, module = fit_years(GradualUnfreezing("linear_probe"), epochs=60)
    errors = answers_of(module) - Years().years
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["val/r2"] > 0.9
    assert found["val/mse"] == pytest.approx(float(errors.square().mean()), rel=1e-4)
    assert found["val/mae"] == pytest.approx(float(errors.abs().mean()), rel=1e-4)
    assert found["val/loss"] == pytest.approx(found["val/mse"] / 33.25, rel=1e-4)  # by the variance of 20 years
    assert found["val/r2"] == pytest.approx(1 - found["val/loss"], abs=1e-5)


def test_first_answer_is_the_mean_of_the_training_targets():
    for head in ({}, {"prior_bias": True}):
        _, module = fit_years(head=head, lr=1e-30)
        torch.testing.assert_close(answers_of(module), torch.full((20, 1), 1989.5).double())
    with pytest.raises(UserError, match=r"^model.head.prior_bias: the data module has no train_targets\(\); add "):
        fit_years(head={"prior_bias": True}, data=Years(known=False))


def test_bfloat16_does_not_round_the_years():
    trainer = small_trainer(1, precision="bf16-mixed")
    trainer.fit(FineTuneModule("mnist_cnn", **{**LINEAR, "lr": 1e-30}), datamodule=Years())
    assert float(trainer.callback_metrics["val/mse"]) == pytest.approx(33.25)
    assert float(trainer.callback_metrics["val/r2"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_checkpoint_answers_in_the_units_that_it_was_trained_in(tmp_path, average):
    others = [EMAWeightAveraging(decay=0.5)] if average else []
    best = ModelCheckpoint(tmp_path, "best", monitor="val/mse")
    trainer, _ = fit_years(*others, best, epochs=3)
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["standardisation"] == {"mean": [1989.5], "scale": [pytest.approx(33.25**0.5)]}
    fresh, data = FineTuneModule("mnist_cnn", **LINEAR), Years()
    for module in (FineTuneModule.load_from_checkpoint(tmp_path / "best.ckpt"), trainer.lightning_module, fresh):
        measured = small_trainer(1).test(module, datamodule=data, ckpt_path=tmp_path / "best.ckpt", verbose=False)[0]
        assert measured["test/mse"] == pytest.approx(float(best.best_model_score), rel=1e-5)
        errors = answers_of(module) - data.years
        assert measured["test/mse"] == pytest.approx(float(errors.square().mean()), rel=1e-5)


def test_resumed_and_later_fits_keep_the_units_of_the_weights(tmp_path):
    trainer, module = fit_years(epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    later = Years(2 * Years().years)
    for given in ({"ckpt_path": tmp_path / "a.ckpt", "epochs": 2}, {"module": module}):
        _, found = fit_years(data=later, **given)
        assert found.task.standardisation.mean == (1989.5,)
    _, anew = fit_years(data=later)
    assert anew.task.standardisation.mean == (2 * 1989.5,)


def test_checkpoint_from_before_targets_were_standardised_answers_as_it_did(tmp_path):
    with pytest.warns(UserWarning, match="regression targets are taken as they are"):
        trainer, _ = fit_years(data=Years(known=False))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "standardisation" not in torch.load(tmp_path / "a.ckpt", weights_only=True)
    _, resumed = fit_years(ckpt_path=tmp_path / "a.ckpt", epochs=1)
    assert resumed.task.standardisation is None


def test_targets_that_nobody_knows_are_taken_as_they_are_and_it_is_told():
    with pytest.warns(UserWarning, match=r"regression targets are taken as they are, .* has no train_targets\(\); add"):
        trainer, module = fit_years(data=Years(known=False), lr=1e-30)
    assert float(answers_of(module).abs().max()) < 1e-6
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(1989.5**2 + 33.25)


class Numbers(FewDigits):
    """Digits with a number each, 100,000 times their class."""

    task, class_names = "regression", ("number",)

    def read_splits(self):
        splits = super().read_splits()
        return {name: replace(split, targets=split.targets.view(-1, 1) * 1e5) for name, split in splits.items()}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(ROOT is None, reason="LIT_FT_DATA is not set")
def test_linear_probe_of_the_brightness_of_photos_is_as_good_as_ridge_regression(tmp_path):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for split in ("train", "val"):
            for path in sorted((Path(ROOT) / "flowers5" / split).glob("*/*")):
                with Image.open(path) as photo:
                    photo.draft("L", (64, 64))  # an eighth of each side is enough for a mean
                    rows.writerow([path, np.asarray(photo.convert("L").resize((8, 8))).mean(), split])
    weights = str(Path(ROOT) / "weights" / "torchvision_squeezenet1_1.pth")
    data = ImageTableDataModule(str(tmp_path / "t.csv"), task="regression", augment="none", num_workers=0)
    L.seed_everything(1)
    module = FineTuneModule("squeezenet1_1", weights, task="regression", input={"size": 64, "resize": 64})
    trainer = small_trainer(5, GradualUnfreezing("linear_probe"), FeatureCache(), default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        (features, targets), (seen, wanted) = (
            [
                torch.cat(part).numpy()
                for part in zip(*((module.backbone(module.normalise(x)), y) for x, y in of), strict=True)
            ]
            for of in (data.train_dataloader(), data.val_dataloader())
        )
    ridge = make_pipeline(StandardScaler(), RidgeCV([10.0**i for i in range(-3, 7)])).fit(features, targets[:, 0])
    assert float(trainer.callback_metrics["val/r2"]) > ridge.score(seen, wanted[:, 0]) - 0.05


def test_cached_features_train_on_the_same_targets(tmp_path):
    def run(*callbacks):
        probe, data = GradualUnfreezing("linear_probe"), Numbers(batch_size=7, shots=None, fraction=0.1)
        L.seed_everything(1)
        trainer = small_trainer(3, probe, *callbacks, default_root_dir=tmp_path)
        trainer.fit(FineTuneModule("mnist_cnn", **LINEAR), datamodule=data)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    plain, kept = run(), run(FeatureCache())
    assert kept == pytest.approx(plain, rel=1e-4)
    assert plain["val/mse"] > 1e8
