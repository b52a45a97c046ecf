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
    images = next(iter(data.val_dataloader()))[0][:5]
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits[:5], module(images))
        torch.testing.assert_close(outputs.features, module.backbone(module.normalise(images)))
    assert outputs.metrics["val/acc"] == pytest.approx(
        float((outputs.logits.argmax(dim=1) == outputs.targets).float().mean())
    )
    assert not module.head._forward_pre_hooks


def test_no_more_is_kept_than_fits(monkeypatch):
    monkeypatch.setattr(selected, "MAX_FEATURE_VALUES", 300)
    assert len(validated(max_features=99)[0].features) == 2  # of 128 each
    assert validated(max_features=0)[0].features is None
    monkeypatch.setattr(selected, "MAX_LOGITS", 369)
    assert validated()[0] is None


def test_listeners_are_told_what_is_handed_back():
    class Listens(SelectionListener):
        def on_selected(self, trainer, pl_module, share, outputs):
            told.append((pl_module, share, outputs))

    told = []
    report_selected(SimpleNamespace(callbacks=[Callback(), Listens()]), "module", 0.5)
    assert told == [("module", 0.5, None)]
