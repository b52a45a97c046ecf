"""Models that predict, from a checkpoint alone."""

import lightning as L
import pytest
import torch
from small_runs import FewDigits, small_module, small_trainer

import lit_ft
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule


class Modes(L.Callback):
    """Notes whether the head is in training mode at each step."""

    def __init__(self, modes):
        self.modes = modes

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.modes.append(pl_module.head.training)


@pytest.fixture(scope="module")
def module():
    return small_module(head={"dropout": 0.5})


@pytest.fixture(scope="module")
def path(module, tmp_path_factory):
    """The checkpoint of a run."""
    trainer = small_trainer(1)
    trainer.fit(module, datamodule=FewDigits(shots=4))
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(path)
    return path


def test_loaded_model_is_ready_to_predict_and_a_fit_lets_it_train(module, path):
    model = lit_ft.load(path, device="cpu")
    by_folder = lit_ft.load(path.parents[1], device="cpu")
    assert all(value.equal(by_folder.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in model.modules())
    digits = FewDigits(shots=4)
    digits.setup()
    images = digits.splits["val"].images[:8]
    with torch.no_grad():
        wanted = module.eval()(images).argmax(dim=1)
    assert [one.label for one in model.predict(images)] == [model.class_names[k] for k in wanted]
    with pytest.raises(TypeError, match=r"must be a `LightningModule`.*got `ImageModel`"):
        small_trainer(1).fit(model, datamodule=digits)
    module_of_a_fit = FineTuneModule.load_from_checkpoint(path)
    assert not module_of_a_fit.training
    modes = []
    again = small_trainer(1)
    again.callbacks.append(Modes(modes))
    again.fit(module_of_a_fit, datamodule=FewDigits(shots=4))
    assert modes
    assert all(modes)


def test_whole_images_are_predicted_as_they_were_evaluated(tmp_path):
    L.seed_everything(0)
    module, trainer = (
        small_module(input={"resize": 40}, lr=0.001),
        small_trainer(3),
    )  # photos lose their margin
    trainer.fit(module, datamodule=(digits := FewDigits(shots=8)))
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    images = digits.splits["train"].images[:64]
    module.eval()
    with torch.no_grad():
        whole = module(images).softmax(dim=1)
        centres = module(torch.stack([module.own_spec.geometry()(image) for image in images])).softmax(dim=1)
    for one in (module, lit_ft.load(path, device="cpu")):
        found = torch.tensor([prediction.probability for prediction in one.predict(images)])
        torch.testing.assert_close(found, whole.max(dim=1).values, atol=1e-5, rtol=1e-4)
    assert (whole - centres).abs().max() > 0.01


def test_what_is_no_checkpoint_or_device_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"ckpt_path: no such file: .*nowhere\.ckpt"):
        lit_ft.load(tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"text\.ckpt is not a checkpoint, or it is damaged"):
        lit_ft.load(tmp_path / "text.ckpt")
    with pytest.raises(UserError, match=r"device: cuda:9 cannot be used \(.*\); give cpu"):
        lit_ft.load(path, device="cuda:9")
