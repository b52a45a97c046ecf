from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.training import selected
from lit_ft.training.selected import OutputRecorder, SelectionListener, report_selected


def validated(max_features=5, module=None):
    recorder, module = OutputRecorder(max_features), module or small_module(classes=10)
    trainer = small_trainer(1, recorder)
    trainer.validate(module, datamodule=FewDigits(), verbose=False)
    return recorder.gather(trainer), trainer, module


def test_outputs_are_those_of_the_model_in_the_order_of_the_data():
    outputs, trainer, module = validated()
    data = trainer.datamodule
    assert outputs.targets.equal(data.splits["val"].targets)
    assert outputs.rows.tolist() == [0, 8, 16, 24, 32]  # of 37 images, in four batches of at most 10
    images = torch.cat([images for images, _ in data.val_dataloader()])
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, module(images), atol=1e-4, rtol=1e-4)
        features = module.backbone(module.normalise(images[outputs.rows]))
        torch.testing.assert_close(outputs.features, features, atol=1e-4, rtol=1e-4)
    assert outputs.metrics["val/acc"] == pytest.approx(
        float((outputs.logits.argmax(dim=1) == outputs.targets).float().mean())
    )
    assert not module.head._forward_pre_hooks


def test_no_more_is_kept_than_fits(monkeypatch):
    monkeypatch.setattr(selected, "MAX_FEATURE_VALUES", 300)
    assert len(validated(max_features=99)[0].features) == 2  # of 128 each
    assert validated(max_features=0)[0].features is None
    recorder = OutputRecorder(max_logits=369)
    small_trainer(1, recorder).validate(small_module(classes=10), datamodule=FewDigits(), verbose=False)
    assert recorder.gather(SimpleNamespace(world_size=1)) is None


def test_features_of_two_processes_are_of_the_images_of_both(monkeypatch):
    parts = []
    monkeypatch.setattr(selected, "gather", lambda _, part: parts.append(part) or parts)
    module, features, logits = small_module(classes=10), torch.arange(14.0).unsqueeze(1), torch.zeros(14, 10)
    for rank in (0, 1):
        recorder = OutputRecorder(4)
        trainer = SimpleNamespace(num_val_batches=[2], world_size=2, global_rank=rank, callback_metrics={})
        recorder.on_validation_start(trainer, module)
        for batch in (slice(0, 4), slice(4, 7)):
            rows = torch.arange(rank, 14, 2)[batch]
            recorder._note(trainer, features[rows])
            outputs = {"logits": logits[rows], "targets": torch.zeros(len(rows), dtype=torch.long)}
            recorder.on_validation_batch_end(trainer, module, outputs, None, 0)
        recorder.on_validation_end(trainer, module)
        found = recorder.gather(trainer)
    # Of 16 images, as far as the first batch tells, four of each eight.
    assert found.rows.tolist() == [0, 1, 8, 9]
    assert found.features.flatten().tolist() == [0, 1, 8, 9]


def test_listeners_are_told_what_is_handed_back():
    class Listens(SelectionListener):
        def on_selected(self, trainer, pl_module, share, outputs):
            told.append((pl_module, share, outputs))

    told = []
    report_selected(SimpleNamespace(callbacks=[Callback(), Listens()]), "module", 0.5)
    assert told == [("module", 0.5, None)]
