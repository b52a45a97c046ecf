"""The solved head: a linear probe in a fit."""

import lightning as L
import numpy as np
import processes
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from probe_sets import scale
from sklearn.linear_model import LogisticRegression
from small_runs import FewDigits, loader, small_module, small_trainer

from lit_ft.errors import UserError
from lit_ft.features.cache import FeatureCache
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing import solved_head
from lit_ft.unfreezing.callback import GradualUnfreezing


def images_of(data, split):
    data.setup()
    batches = list(getattr(data, f"{split}_dataloader")())
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def fit_solved(module, data, strategy="linear_probe", max_epochs=2, **options):
    unfreezing = GradualUnfreezing(strategy, head_fit="solved")
    L.seed_everything(1)
    trainer = small_trainer(max_epochs, unfreezing, **options)
    trainer.fit(module, datamodule=data)
    return trainer, unfreezing


@pytest.fixture
def data():
    return FewDigits(shots=8, spec=small_module().input_spec)


@pytest.mark.long
def test_head_is_that_of_scikit_learn(data):
    module = small_module()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    trainer, unfreezing = fit_solved(module, data)
    assert trainer.global_step == trainer.current_epoch == 0
    for name, value in module.backbone.state_dict().items():
        assert value.equal(before[name])
    module.eval()
    images, targets = images_of(data, "train")
    with torch.no_grad():
        features, logits = module.backbone(module.normalise(images)), module(images)
    scaled = scale(features)
    peer = LogisticRegression(C=1 / (unfreezing.solved.l2 * len(targets)), tol=1e-9, max_iter=10_000)
    expected = peer.fit(scaled, targets.numpy()).predict_proba(scaled)
    np.testing.assert_allclose(logits.softmax(dim=1), expected, atol=2e-3)
    assert unfreezing.solved.num_images == 80
    assert 0 < unfreezing.solved.accuracy[1] < unfreezing.solved.accuracy[0] < unfreezing.solved.accuracy[2] <= 1


def test_metrics_are_those_of_a_validation(data):
    module = small_module(label_smoothing=0.2)
    trainer, unfreezing = fit_solved(module, data)
    (expected,) = trainer.validate(module, datamodule=data, verbose=False)
    assert unfreezing.solved.metrics == pytest.approx(expected, abs=1e-5)


def test_nothing_is_validated_before_a_training_that_does_not_come(data, capsys):
    module, unfreezing = small_module(), GradualUnfreezing("linear_probe", head_fit="solved")
    passed = []
    module.register_forward_pre_hook(lambda *_: passed.append(1))
    trainer = small_trainer(2, unfreezing, FeatureCache(), num_sanity_val_steps=2)
    trainer.fit(module, datamodule=data)
    assert unfreezing.solved is not None
    assert passed == []
    assert "Features" not in capsys.readouterr().out


@pytest.mark.long
def test_training_begins_from_the_solved_head(data):
    module = small_module(lr=1e-9, lr_scheduler=None)
    trainer, unfreezing = fit_solved(module, data, "lp_ft", max_epochs=1)
    assert trainer.current_epoch == 1
    assert trainer.callback_metrics["val/acc"] == pytest.approx(unfreezing.solved.metrics["val/acc"])


def share_of_the_largest_class(class_weight=None, sampling="shuffle"):
    """The mean probability that a solved head gives to the class with most images."""
    data = FewDigits(numbers=[30, *[3] * 9], spec=small_module().input_spec, sampling=sampling)
    module = small_module(class_weight=class_weight)
    fit_solved(module, data)
    module.eval()
    images, _ = images_of(data, "val")
    with torch.no_grad():
        return float(module(images).softmax(dim=1)[:, 0].mean())


@pytest.mark.long
def test_classes_count_as_in_training():
    plain = share_of_the_largest_class()
    assert share_of_the_largest_class(class_weight="balanced") < plain - 0.003
    assert share_of_the_largest_class(sampling="balanced") < plain - 0.003


def test_regression_is_solved_in_standardised_units():
    class Sizes(FewDigits):
        task = "regression"
        class_names = ("size",)

        def read_splits(self):
            splits = super().read_splits()
            for split in splits.values():
                object.__setattr__(split, "targets", (split.targets.double() * 100 + 1000).unsqueeze(1))
            return splits

        def _keep_few(self, train):
            return train

    data = Sizes(shots=None, numbers=[8] * 10, spec=small_module().input_spec)
    module = small_module(task="regression", classes=["size"])
    _, unfreezing = fit_solved(module, data)
    assert unfreezing.solved.accuracy == []
    assert unfreezing.solved.metrics["val/mae"] < 200  # of numbers from 1,000 to 1,900


@pytest.mark.long
def test_processes_share_the_images_and_the_head(tmp_path):
    first, second = (found["solve_head"] for found in processes.launch(tmp_path, "solve_head"))
    assert first["solved"] == second["solved"]
    assert first["equal_replicas"] == second["equal_replicas"] == [True]
    assert first["solved"]["num_images"] == 20

    data, module = FewDigits(batch_size=5, spec=small_module().input_spec), small_module(lr_scheduler=None)
    _, alone = fit_solved(module, data, "lp_ft", max_epochs=1)
    assert first["solved"]["metrics"] == pytest.approx(alone.solved.metrics, abs=1e-4)


def test_plan_computes_no_features(data, monkeypatch, capsys):
    monkeypatch.setattr(solved_head, "compute_stage_features", None)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        callbacks=[GradualUnfreezing("gradual", head_fit="solved")],
    )  # fmt: skip
    trainer.plan(small_module(), datamodule=data)
    assert not trainer.is_plan


@pytest.mark.long
def test_epochs_of_a_solved_head_are_warned_of(data):
    solved, trained = (GradualUnfreezing("lp_ft", 2, head_fit=fit) for fit in ("solved", "trained"))
    with pytest.warns(UserWarning, match=r"unfreeze.head_epochs`: 2 has no effect.*head_fit` trained.*model.lr"):
        small_trainer(1, solved).fit(small_module(), datamodule=data)
    small_trainer(3, trained).fit(small_module(), datamodule=data)


@pytest.mark.long
def test_resumed_run_keeps_what_was_solved(data, tmp_path, monkeypatch):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    unfreezing = GradualUnfreezing("lp_ft", head_fit="solved")
    L.seed_everything(1)
    small_trainer(1, unfreezing, saved, default_root_dir=tmp_path).fit(small_module(), datamodule=data)
    monkeypatch.setattr(solved_head, "compute_stage_features", None)
    again = GradualUnfreezing("lp_ft", head_fit="solved")
    trainer = small_trainer(2, again, ModelCheckpoint(tmp_path, save_last=True), default_root_dir=tmp_path)
    trainer.fit(small_module(), datamodule=data, ckpt_path=saved.last_model_path)
    assert again.solved == unfreezing.solved
    assert trainer.current_epoch == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"head": {"hidden": [8]}}, "is for a linear layer, without `model.head.hidden`"),
        ({"head": {"kind": "cosine"}}, "is for a linear layer"),
        ({"mix": {"mixup": 0.2}}, "takes images as they are, but `model.mix` changes them"),
    ],
)
def test_what_cannot_be_solved_is_refused_before_any_work(options, text, data, monkeypatch):
    monkeypatch.setattr(solved_head, "compute_stage_features", None)
    with pytest.raises(UserError) as caught:
        fit_solved(small_module(**options), data)
    assert text in caught.value.args[0]


def test_images_given_as_loaders_are_refused():
    trainer = small_trainer(1, GradualUnfreezing(head_fit="solved"))
    with pytest.raises(UserError, match="the data modules of lit_ft; give trained"):
        trainer.fit(small_module(classes=10), loader(), loader())


def test_head_that_a_finder_would_train_is_not_solved(data):
    finder = LearningRateFinder(num_training_steps=5)
    with pytest.raises(UserError, match="solved comes after LearningRateFinder, which would train with a head that"):
        small_trainer(1, GradualUnfreezing(head_fit="solved"), finder).fit(small_module(), datamodule=data)


@pytest.mark.parametrize(
    ("options", "module", "is_solved"),
    [
        ({}, {}, True),
        ({"limit_train_batches": 1}, {}, False),
        ({"limit_train_batches": 1.0}, {}, True),
        ({}, {"label_smoothing": 0.1}, False),
        ({}, {"mix": {"erase": 0.5}}, False),
        ({}, {"penalty": {"kind": "l2"}}, False),
        ({}, {"head": {"hidden": [8]}}, False),
    ],
)
def test_head_is_solved_by_default_where_that_is_what_training_aims_at(data, options, module, is_solved):
    trainer = small_trainer(1, GradualUnfreezing("linear_probe", head_fit=None), limit_val_batches=1, **options)
    trainer.fit(small_module(**module), datamodule=data)
    assert (trainer.global_step == 0) == is_solved


@pytest.mark.parametrize(
    ("unfreezing", "is_solved"),
    [
        ({"strategy": "full"}, False),
        ({"strategy": "lp_ft"}, True),
        ({"strategy": "lp_ft", "frozen_norm": "train"}, False),
        ({"strategy": "lp_ft", "head_epochs": 2, "plateau": {"patience": 1}}, False),
        ({"strategy": "phases", "phases": [{"train": ["head"], "epochs": 1}, {"train": ["*"]}]}, True),
    ],
)
def test_head_is_solved_by_default_where_it_would_be_trained_alone_first(data, unfreezing, is_solved):
    trainer = small_trainer(3, callback := GradualUnfreezing(**unfreezing, head_fit=None), limit_val_batches=1)
    trainer.fit(small_module(), datamodule=data)
    assert (callback.solved is not None) == is_solved
