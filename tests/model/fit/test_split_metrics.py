import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from small_runs import (
    FewDigits,
    images_of,
    small_module,
    small_trainer,
)
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.errors import UserError


def test_metrics_that_agree_by_chance_in_the_first_batch_stay_apart():
    module = small_module(classes=10)
    first, second = torch.zeros(1, 10), torch.zeros(1, 10)
    first[0, 3], second[0, 1] = 1.0, 1.0
    metrics = module.metrics["val"].metrics
    module.task.update(metrics, first, torch.tensor([9]))  # no metric counts a hit
    second[0, 2] = 0.5
    module.task.update(metrics, second, torch.tensor([2]))  # just the top five do
    assert {name: round(float(value), 2) for name, value in metrics.compute().items()} == {
        "val/acc": 0.0,
        "val/acc_top5": 0.5,
        "val/precision": 0.0,
        "val/recall": 0.0,
        "val/f1": 0.0,
    }


@pytest.mark.parametrize("watching", [ModelCheckpoint, EarlyStopping])
def test_metric_that_is_not_logged_of_so_few_classes_is_refused(watching, tmp_path):
    options = {"dirpath": tmp_path} if watching is ModelCheckpoint else {}
    data = DataLoader(TensorDataset(images_of(), torch.arange(6) % 5), 2)
    trainer = small_trainer(1, watching(monitor="val/acc_top5", mode="max", **options))
    told = rf"^{watching.__name__}.monitor: unknown metric 'val/acc_top5'; nearest: val/acc"
    with pytest.raises(UserError, match=told):
        trainer.fit(small_module(classes=5), data, data)
    trainer.fit(small_module(classes=6), data, data)
    assert trainer.global_step == 3


def test_outputs_of_an_evaluation_have_the_classes_that_metrics_count():
    shares = torch.rand(6, 10).softmax(1)
    module = small_module(classes=10)
    module.log = lambda *_, **__: None
    assert module.validation_step((images_of(), shares), 0)["targets"].equal(shares.argmax(1))


class Logits(Callback):
    def __init__(self):
        self.losses = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.losses.append(F.cross_entropy(outputs["logits"].double(), outputs["targets"], reduction="none"))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_loss_is_a_mean_in_float32_whatever_type_the_weights_have(precision):
    module, seen = small_module(lr=1e-3), Logits()
    trainer = small_trainer(1, seen, precision=precision)
    trainer.fit(module, datamodule=FewDigits(num_val=297))
    assert next(module.parameters()).dtype != torch.float32
    loss = trainer.callback_metrics["val/loss"]
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(torch.cat(seen.losses).mean()), rel=1e-5)
