import re

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from small_runs import (
    NUM_VAL,
    SGD,
    SHARES,
    UNEVEN,
    FewDigits,
    Recorder,
    images_of,
    loader,
    one_epoch,
    small_module,
    small_resnet,
    small_trainer,
)
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.weights import load
from lit_ft.data import DigitsDataModule
from lit_ft.errors import UserError
from lit_ft.model.heads import HeadConfig
from lit_ft.model.module import FineTuneModule
from lit_ft.model.objective import PenaltyConfig
from lit_ft.unfreezing.callback import GradualUnfreezing


def refuse(*_, **__):
    raise AssertionError("a checkpoint has its weights; nothing is to be fetched or read")


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "mnist_cnn", "weights": "MNIST", "optimizer": SGD, "penalty": {"kind": "l2_sp"}},
        {
            "backbone": "resnet18",
            "weights": None,
            "input": InputConfig(size=32, mean=[0.5, 0.5, 0.5]),
            "head": HeadConfig(hidden=[8], dropout=0.1),
            "penalty": PenaltyConfig("l2", 0.1),
            "lr": np.float64(0.01),
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"betas": (0.8, 0.9)}},
        },
        {
            "backbone": "resnet18",
            "weights": None,
            "stem": "small",
            "pool": "flatten",
            "input": {"size": 16, "channels": 1},
            "head": {"kind": "cosine"},
        },
        {
            "backbone": {
                "class_path": "torchvision.models.SqueezeNet",
                "init_args": {"version": "1_1", "num_classes": 3},
                "stages": {"stem": r"features\.0", "body": r"features\.[3467]", "deep": r"features\.(9|1[012])"},
                "classifier": "classifier",
            },
            "weights": None,
            "input": {"size": 32},
        },
    ],
    ids=["dicts", "dataclasses", "other images", "own network"],
)
def test_checkpoint_needs_nothing_beside_it(options, tmp_path, monkeypatch):
    module = FineTuneModule(**options)
    trainer = small_trainer(2, GradualUnfreezing("lp_ft"), limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["source_weights"] == options["weights"]
    assert content["hyper_parameters"]["classes"] == [str(i) for i in range(10)]
    monkeypatch.setattr(load, "read", refuse)
    loaded = FineTuneModule.load_from_checkpoint(path)
    assert loaded.class_names == [str(i) for i in range(10)]
    assert loaded.input_spec == module.input_spec
    assert {**loaded.hparams, "source_weights": options["weights"]} == dict(module.hparams)
    images = images_of(module.input_spec.channels, module.input_spec.size)
    assert loaded.eval()(images).equal(module.eval()(images))
    assert small_trainer(1).predict(loaded, DataLoader(images), return_predictions=True)[0]["answers"].shape == (1, 10)


def test_input_spec_is_kept_where_the_images_differ(tmp_path):
    module = small_resnet(input=InputConfig(size=40, resize=48, std=[0.1, 0.2, 0.3]), classes=2)
    expected = InputSpec(size=40, resize=48, mean=(0.485, 0.456, 0.406), std=(0.1, 0.2, 0.3))
    assert module.input_spec == expected
    again = FineTuneModule(**{key: value for key, value in module.hparams.items() if key != "source_weights"})
    assert again.input_spec == expected


def test_uint8_and_normalised_float_images_give_the_same_logits():
    module = small_resnet(classes=4).eval()
    images = images_of(3, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(module(images), module((images / 255 - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:images are float from 0.2 to 0.8, as if they were not normalised")
def test_light_images_that_are_normalised_are_taken():
    module = small_resnet(classes=4).eval()
    assert module(torch.linspace(0.2, 0.8, 3 * 32 * 32).view(1, 3, 32, 32)).shape == (1, 4)
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (images_of(3, 32) / 255, "images are float from 0 to 1, and not normalised"),
        (images_of(3, 32).float(), "images are float from 0 to 255, and not normalised"),
        (images_of(3, 32).int(), "images are int32, expected uint8 or normalised float"),
        (images_of(3, 40), "images are 40 x 40, but the model was validated on 32 x 32"),
        (images_of(3, 32)[0], "images are uint8 (3, 32, 32), expected a batch (B, C, 32, 32)"),
        ("a.jpg", "images are of type str, expected a batch (B, C, 32, 32)"),
    ],
)
def test_pixels_that_are_not_as_in_validation_are_refused(given, told):
    module = small_resnet(classes=4).eval()
    told = f"^{re.escape(told)}; call model.predict.images., which prepares pictures of any kind$"
    with pytest.raises(UserError, match=told):
        module(given)
    if torch.is_tensor(given) and given.ndim == 4:
        module.train()(given)  # who trains chooses what it sees


def test_grey_images_fit_a_colour_backbone_and_colour_images_a_grey_one():
    colour, grey = small_resnet(classes=4).eval(), small_module(classes=4).eval()
    images = images_of(1, 32)
    assert colour(images).equal(colour(images.expand(-1, 3, -1, -1)))
    images = images_of(3)
    red, green, blue = images.float().unbind(1)
    luma = (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(1)
    torch.testing.assert_close(grey(images), grey(luma))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"model.lr: must be above 0, got 0.0"),
        ({"lr_backbone": -1.0}, r"model.lr_backbone: must be above 0, got -1.0"),
        ({"lr_decay": 0.0}, r"model.lr_decay: must be above 0 and at most 1, got 0.0"),
        ({"lr_decay": 1.5}, r"model.lr_decay: .* got 1.5"),
        ({"classes": 0}, r"classes: must be at least 1"),
        ({"backbone": "mnist_cmn"}, r"model.backbone: unknown backbone 'mnist_cmn'; nearest: mnist_cnn"),
        ({"label_smoothing": 1.0}, r"model.label_smoothing: .* got 1.0"),
        ({"penalty": {"kind": "l2", "strength": -1.0}}, r"model.penalty.strength: must not be negative, got -1.0"),
    ],
)
def test_wrong_option_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        small_module(**options)


class Letters(FewDigits):
    class_names = tuple("abcdefghij")


@pytest.mark.parametrize(
    ("classes", "data", "message"),
    [
        (3, FewDigits, r"the model has 3 classes \(0, 1, 2\), but the data has 10 classes \(0, 1, 2, 3, 4, …\)"),
        (list("jihgfedcba"), Letters, r"the model has 10 classes \(j, i, .*, but the data has 10 classes \(a, b"),
    ],
)
def test_data_with_other_classes_is_refused(classes, data, message):
    with pytest.raises(UserError, match=message):
        small_trainer(1).validate(small_module(classes=classes), datamodule=data(), verbose=False)


def test_loaders_alone_need_the_number_of_classes():
    with pytest.raises(UserError, match=r"classes: the data module names no classes; give FineTuneModule\(classes="):
        small_trainer(1).fit(small_module(), loader())


def test_ordinary_loaders_train_and_validate():
    L.seed_everything(1)
    module = small_module(classes=10, label_smoothing=0.2)  # which is of the training loss alone
    trainer = small_trainer(2)
    before = module.backbone.stages["conv"].conv[0].weight.clone()
    trainer.fit(module, loader(), loader(6))
    assert not module.backbone.stages["conv"].conv[0].weight.equal(before)
    module.eval()
    images, targets = loader(6).dataset.tensors
    logits = module(images)
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], F.cross_entropy(logits, targets))
    assert trainer.callback_metrics["val/acc"] == (logits.argmax(1) == targets).float().mean()


def test_data_of_ten_classes_gives_the_head_and_the_metrics():
    module = small_module()
    results = small_trainer(1).validate(module, datamodule=(data := FewDigits(batch_size=8)), verbose=False)[0]
    assert module.class_names == data.class_names
    assert module.head[-1].out_features == 10
    assert results["val/acc"] * NUM_VAL == pytest.approx(round(results["val/acc"] * NUM_VAL), abs=1e-4)
    images, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    assert len(targets) == NUM_VAL
    assert results["val/loss"] == pytest.approx(F.cross_entropy(module.eval()(images), targets).item(), rel=1e-5)


def test_schedule_can_be_left_out_or_be_any_of_torch():
    trainer, _ = one_epoch(lr_scheduler=None, lr=0.03, lr_decay=0.1)
    assert trainer.lr_scheduler_configs == []
    rates = {group["stage"]: group["lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == pytest.approx({"head": 0.03, "dense": 0.003, "conv": 0.0003})
    exponential = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}}
    trainer, _ = one_epoch(lr_scheduler=exponential, lr=0.03)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.015] * 6
    trainer, _ = one_epoch(lr_scheduler="OneCycleLR", lr=0.03, lr_decay=0.1)
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == trainer.global_step == 2


def test_plateau_is_of_the_validation_loss():
    module = small_module(lr_scheduler={"class_path": "ReduceLROnPlateau", "init_args": {"patience": 0}})
    trainer = small_trainer(1, limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.mode == "min"
    assert scheduler.best == pytest.approx(float(trainer.callback_metrics["val/loss"]))


def test_plateau_of_an_accuracy_is_where_it_does_not_rise(monkeypatch):
    scores = iter([0.1, 0.2, 0.3, 0.3, 0.2])
    monkeypatch.setattr(
        "torchmetrics.classification.MulticlassAccuracy.compute", lambda self: torch.tensor(next(scores))
    )
    spec = {"class_path": "ReduceLROnPlateau", "init_args": {"patience": 0, "factor": 0.5, "monitor": "val/acc"}}
    module = small_module(lr_scheduler=spec, lr=0.01, classes=[str(i) for i in range(10)])
    monkeypatch.delitem(module.metrics["val"].metrics._modules, "acc_top5")
    recorder = Recorder()
    small_trainer(5, recorder, limit_val_batches=1, limit_train_batches=1).fit(module, datamodule=FewDigits())
    assert [rates["head"] for rates in recorder.rates] == [0.01, 0.01, 0.01, 0.01, 0.005]


def test_plateau_of_a_metric_that_is_not_logged_of_so_few_classes_is_refused():
    data = DataLoader(TensorDataset(images_of(), torch.arange(6) % 5), 2)
    options = {"plateau": {"monitor": "val/acc_top5"}}
    trainer = small_trainer(9, GradualUnfreezing("plateau", **options))
    with pytest.raises(UserError, match=r"^unfreeze.plateau.monitor: unknown metric 'val/acc_top5'; nearest: val/ac"):
        trainer.fit(small_module(classes=5), data, data)
    assert trainer.global_step == 0


def test_images_in_the_floats_of_numpy_are_those_of_torch():
    module = small_module(classes=5).eval()
    images = module.normalise(images_of())
    assert torch.equal(module(images.double()), module(images))


def test_plateau_counts_the_epochs_that_validate():
    spec = {"class_path": "ReduceLROnPlateau", "init_args": {"patience": 0, "factor": 0.5, "threshold": 100.0}}
    spec["init_args"]["threshold_mode"] = "abs"  # no loss falls by so much
    recorder = Recorder()
    options = {"check_val_every_n_epoch": 2, "limit_val_batches": 1, "limit_train_batches": 1}
    module = small_module(lr_scheduler=spec, lr=0.01)
    small_trainer(7, recorder, **options).fit(module, datamodule=FewDigits())
    assert [rates["head"] for rates in recorder.rates] == [0.01] * 4 + [0.005] * 2 + [0.0025]


@pytest.mark.parametrize(
    ("monitor", "options", "told"),
    [
        ("val/acd", {}, "lr_scheduler.monitor: unknown metric 'val/acd'; nearest: val/acc"),
        (
            "val/acc",
            {"limit_val_batches": 0},
            "lr_scheduler: ReduceLROnPlateau waits for validations, and the run has",
        ),
    ],
)
def test_plateau_that_no_run_could_come_to_is_refused_before_the_first_step(monitor, options, told):
    module = small_module(lr_scheduler={"class_path": "ReduceLROnPlateau", "init_args": {"monitor": monitor}})
    trainer = small_trainer(1, **options)
    with pytest.raises(UserError, match=f"^{told}"):
        trainer.fit(module, datamodule=FewDigits())
    assert trainer.global_step == 0


def test_predictions_have_the_indices_of_their_images():
    module = small_module(classes=10)
    data = FewDigits(batch_size=8)
    answers = small_trainer(1).predict(module, datamodule=data)
    assert torch.cat([batch["indices"] for batch in answers]).tolist() == list(range(20))
    probabilities = torch.cat([batch["answers"] for batch in answers])
    images = torch.cat([images for images, _ in data.predict_dataloader()])
    torch.testing.assert_close(probabilities, module.eval()(images).softmax(1))


def test_images_alone_are_predicted():
    module = small_module(classes=10).eval()
    images = images_of()
    assert module.predict_step(images, 0).keys() == {"answers"}
    assert module.predict_step([images], 0)["answers"].equal(module(images).softmax(1))


def test_weight_averaging_finds_the_head_that_the_data_asks_for(tmp_path):
    module = small_module()
    averaging = EMAWeightAveraging(decay=0.5)
    trainer = small_trainer(1, averaging)
    trainer.fit(module, datamodule=DigitsDataModule(shots=1, batch_size=5))
    assert "head.0.weight" in averaging._average_model.module.state_dict()


class FirstSoftmax(Callback):
    """Notes what the model answers before the first step."""

    def on_train_start(self, trainer, pl_module):
        with torch.no_grad():
            self.answers = pl_module(images_of()).softmax(1)
            self.bias = pl_module.head[-1].bias.clone()


def prior_fit(module, data=None, ckpt_path=None, **options):
    """One step on the uneven digits, and what the model answered before it."""
    first = FirstSoftmax()
    trainer = small_trainer(options.pop("max_epochs", 1), first, limit_train_batches=1, limit_val_batches=0, **options)
    trainer.fit(module, datamodule=data or FewDigits(numbers=UNEVEN), ckpt_path=ckpt_path)
    return trainer, first


def test_fit_starts_at_the_shares_of_its_training_images():
    _, first = prior_fit(small_module(head={"zero_init": True, "prior_bias": True}))
    torch.testing.assert_close(first.answers, SHARES.expand(6, 10))
    _, first = prior_fit(small_module(head={"zero_init": True}))
    torch.testing.assert_close(first.answers, torch.full((6, 10), 0.1))


def test_trained_bias_is_kept_in_every_later_fit(tmp_path):
    options = {"head": {"prior_bias": True}, "lr_scheduler": None}
    module = small_module(**options)
    trainer, first = prior_fit(module)
    torch.testing.assert_close(first.bias.exp(), SHARES)
    trained = module.head[-1].bias.detach().clone()
    assert (trained - first.bias).abs().min() > 1e-3
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    fresh = small_module(**options, classes=10)
    fresh.load_state_dict(module.state_dict())
    runs = {
        "second fit": prior_fit(module),
        "loaded weights": prior_fit(fresh),
        "loaded checkpoint": prior_fit(FineTuneModule.load_from_checkpoint(path)),
        "resume": prior_fit(small_module(**options), ckpt_path=path, max_epochs=2),
    }
    assert {name: first.bias.equal(trained) for name, (_, first) in runs.items()} == dict.fromkeys(runs, True)


def test_checkpoint_from_before_any_fit_still_starts_at_the_shares(tmp_path):
    module = small_module(head={"prior_bias": True})
    trainer = small_trainer(1, limit_val_batches=1)
    trainer.validate(module, datamodule=FewDigits(numbers=UNEVEN), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, first = prior_fit(FineTuneModule.load_from_checkpoint(tmp_path / "a.ckpt"))
    torch.testing.assert_close(first.bias.exp(), SHARES)


def test_shares_of_loaders_alone_are_not_known():
    with pytest.raises(UserError, match=r"model.head.prior_bias: the data module has no counts\(\)"):
        small_trainer(1).fit(small_module(classes=10, head={"prior_bias": True}), loader())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"head": {"dropout": 1.0}}, "dropout"),
        ({"head": {"kind": "cosine", "zero_init": True}}, "zero_init"),
        ({"head": {"kind": "cosine", "prior_bias": True}}, "prior_bias"),
    ],
)
def test_wrong_head_is_refused_before_anything_is_fetched(options, key, monkeypatch):
    monkeypatch.setattr("lit_ft.model.image_model.build_backbone", refuse)
    with pytest.raises(UserError, match=f"^model.head.{key}: "):
        small_module(**options)


def test_cosine_head_trains_and_its_checkpoint_answers_the_same(tmp_path):
    L.seed_everything(1)
    module = small_module(head=HeadConfig(hidden=[16], kind="cosine"), lr_scheduler=None)
    trainer = small_trainer(1, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits())
    assert module.head[-1].scale_bias.abs() > 1e-3
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert loaded(images_of()).equal(module.eval()(images_of()))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mix": {"cutmix": 1.0}, "task": "regression"}, "mix.cutmix"),
        ({"mix": {"erase": 2.0}}, "mix.erase"),
        ({"class_weight": "balanced", "task": "regression"}, "class_weight"),
    ],
)
def test_wrong_mixing_or_weights_are_refused_before_anything_is_fetched(options, key, monkeypatch):
    monkeypatch.setattr("lit_ft.model.image_model.build_backbone", refuse)
    with pytest.raises(UserError, match=f"^model.{key}: "):
        small_module(**options)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precision_that_would_round_the_numbers_to_learn_is_refused(precision):
    module = small_module(task="regression", classes=["year"])
    mixed = precision.replace("true", "mixed")
    told = f"trainer.precision: {precision} would round the numbers that are to be learnt; give {mixed}"
    with pytest.raises(UserError, match=f"^{told}$"):
        small_trainer(1, precision=precision).fit(module, DataLoader(list(range(4))))
