import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from small_runs import (
    ALL_MIXES,
    CASES,
    NUM_VAL,
    SGD,
    FewDigits,
    Recorder,
    differences,
    final_state,
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
from lit_ft.model.mixing import BatchMix, MixConfig
from lit_ft.model.module import FineTuneModule
from lit_ft.model.regularisation import PenaltyConfig
from lit_ft.unfreezing.callback import GradualUnfreezing

EMAWeightAveraging = getattr(lightning_callbacks, "EMAWeightAveraging", None)
with_ema = pytest.mark.skipif(EMAWeightAveraging is None, reason="this Lightning has no EMAWeightAveraging")


def images_of(channels=1, size=28, num=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, channels, size, size), dtype=torch.uint8, generator=generator)


class StopAt(Callback):
    """Fails in the training step of one batch, as a machine does that is lost."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            raise RuntimeError("lost")


def interrupted_run(folder, case, seed, ckpt_path=None, stop_at=None):
    """Phases of three steps, with dropout, augmentation and a schedule, and a checkpoint wherever one can be."""
    L.seed_everything(seed)
    module = small_module(head={"hidden": [16], "dropout": 0.5}, **case.get("module", {}))
    options = {"save_top_k": -1, "enable_version_counter": False, "auto_insert_metric_name": False}
    callbacks = [
        GradualUnfreezing(**case.get("unfreezing", {"strategy": "gradual"})),
        ModelCheckpoint(folder, "step{step}", every_n_train_steps=1, **options),
        ModelCheckpoint(folder, "val{epoch}", monitor="val/loss", save_on_train_epoch_end=False, **options),
        ModelCheckpoint(folder, "end{epoch}", save_on_train_epoch_end=True, **options),
    ]
    if case.get("average"):
        callbacks.append(EMAWeightAveraging(decay=0.5))
    if stop_at is not None:
        callbacks += [StopAt(stop_at), OnExceptionCheckpoint(folder, "exception")]
    trainer = small_trainer(case.get("max_epochs", 3), *callbacks)
    data = FewDigits(batch_size=7, augment="basic", **case.get("data", {}))
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return {**final_state(trainer, module), "unfreezing": callbacks[0].state_dict()}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[with_ema] * bool(c.get("average"))) for name, c in CASES.items()]
)
def whole_run(request, tmp_path_factory):
    """An uninterrupted run, what it ended with, and all of its checkpoints."""
    folder, case = tmp_path_factory.mktemp("whole"), CASES[request.param]
    return folder, case, interrupted_run(folder / "run", case, seed=1)


def differences_after(whole_run, copy, names):
    """For each checkpoint, what a run that is resumed from it ends with otherwise."""
    folder, case, final = whole_run
    # The score is taken up by a callback with the same folder alone, so the folder is put back as it was.
    shutil.copytree(folder / "run", copy)
    found = {}
    for name in names or sorted(path.stem for path in copy.iterdir()):
        found[name] = differences(final, interrupted_run(folder / "run", case, seed=2, ckpt_path=copy / f"{name}.ckpt"))
        shutil.rmtree(folder / "run")
        shutil.copytree(copy, folder / "run")
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("end0", id="epoch_end"),
        pytest.param("val1", id="validation_end_within_the_last_batch"),
        pytest.param("step1", id="first_step"),
        pytest.param("step5", id="mid_epoch_after_a_thaw"),
        pytest.param("step6", id="last_batch_before_validation_at_a_phase_boundary"),
        pytest.param("step8", id="mid_epoch_in_the_last_phase"),
    ],
)
def test_resumed_run_ends_as_the_uninterrupted_one_bit_for_bit(whole_run, tmp_path, name):
    epochs = whole_run[1].get("max_epochs", 3)
    assert (whole_run[2]["steps"], whole_run[2]["epochs"]) == (3 * epochs, epochs)
    assert differences_after(whole_run, tmp_path / "copy", [name]) == {name: []}


@pytest.mark.slow
def test_resumed_run_ends_as_the_uninterrupted_one_from_every_checkpoint(whole_run, tmp_path):
    found = differences_after(whole_run, tmp_path / "copy", None)
    assert len(found) == 5 * whole_run[2]["epochs"]  # three steps an epoch, its validation and its end
    if whole_run[1].get("average"):
        del found["end2"]  # of a run that has ended, after which Lightning does not put the average in its place again
    assert not any(found.values()), found


# Lightning looks for a checkpoint of its own beside that of `OnExceptionCheckpoint`, as if none had been given.
@pytest.mark.filterwarnings(r"ignore:`?\.fit\(ckpt_path=")
def test_run_that_failed_in_mid_step_is_resumed_with_that_step(whole_run, tmp_path):
    _, case, final = whole_run
    with pytest.raises(RuntimeError, match="lost"):
        interrupted_run(tmp_path, case, seed=1, stop_at=4)
    resumed = interrupted_run(tmp_path, case, seed=2, ckpt_path=tmp_path / "exception.ckpt")
    assert differences(final, resumed) == []


def test_another_seed_gives_another_run(tmp_path):
    runs = [interrupted_run(tmp_path, CASES["sgd"], seed)["weights"]["head.4.weight"] for seed in (1, 1, 2)]
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])


def test_dropout_follows_the_seed_of_the_fit_and_not_that_of_an_earlier_checkpoint(tmp_path):
    interrupted_run(tmp_path, CASES["sgd"], seed=1)
    seeds = []
    for seed in (5, 6):
        L.seed_everything(seed)
        module = FineTuneModule.load_from_checkpoint(tmp_path / "end2.ckpt")
        small_trainer(1, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=FewDigits())
        seeds.append(module._fit_state.seed)
    assert seeds == [5, 6]


def refuse(*_, **__):
    raise AssertionError("a checkpoint has its weights; nothing is to be fetched or read")


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
    assert not torch.allclose(module(images), module(images / 255), rtol=1e-2)


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


def loader(num=8, classes=10):
    return DataLoader(TensorDataset(images_of(num=num), torch.arange(num) % classes), batch_size=4)


def test_loaders_alone_need_the_number_of_classes():
    with pytest.raises(UserError, match=r"classes: the data module names no classes; give FineTuneModule\(classes="):
        small_trainer(1).fit(small_module(), loader())


def test_ordinary_loaders_train_and_validate():
    L.seed_everything(1)
    module = small_module(classes=10)
    trainer = small_trainer(2)
    before = module.backbone.stages["conv"].conv[0].weight.clone()
    trainer.fit(module, loader(), loader(6))
    assert not module.backbone.stages["conv"].conv[0].weight.equal(before)
    module.eval()
    images, targets = loader(6).dataset.tensors
    logits = module(images)
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], F.cross_entropy(logits, targets))
    assert trainer.callback_metrics["val/acc"] == (logits.argmax(1) == targets).float().mean()


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


def test_data_of_ten_classes_gives_the_head_and_the_metrics():
    module = small_module()
    results = small_trainer(1).validate(module, datamodule=(data := FewDigits(batch_size=8)), verbose=False)[0]
    assert module.class_names == data.class_names
    assert module.head[-1].out_features == 10
    assert results["val/acc"] * NUM_VAL == pytest.approx(round(results["val/acc"] * NUM_VAL), abs=1e-4)
    images, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    assert len(targets) == NUM_VAL
    assert results["val/loss"] == pytest.approx(F.cross_entropy(module.eval()(images), targets).item(), rel=1e-5)


def one_epoch(batch_size=10, **options):
    L.seed_everything(1)
    module = small_module(**options)
    trainer = small_trainer(1, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits(batch_size=batch_size))
    return trainer, module


def test_l2_sp_penalty_keeps_the_backbone_near_its_start():
    start = small_module().backbone.stages["dense"].dense[1].weight
    distances, penalties = [], []
    for strength in (0.0, 10.0):
        trainer, module = one_epoch(
            batch_size=4,
            lr_scheduler=None,
            optimizer="SGD",
            penalty={"kind": "l2_sp", "strength": strength, "head_strength": 0.0},
        )
        distances.append((module.backbone.stages["dense"].dense[1].weight - start).norm().item())
        penalties.append(float(trainer.callback_metrics["train/penalty"]))
        buffers = [buffer for name, buffer in module.penalty.named_buffers() if name.endswith("dense/1/weight")]
        assert buffers[0].equal(start)
    assert penalties[0] == 0.0 < penalties[1]
    assert 0 < distances[1] < 0.6 * distances[0]


def test_label_smoothing_raises_the_training_loss_by_what_it_is():
    images, targets = loader().dataset.tensors
    L.seed_everything(1)
    module = small_module(classes=10, label_smoothing=0.2)
    module.log = lambda *_, **__: None
    logits = module(images)
    uniform = -logits.log_softmax(1).mean()
    expected = 0.8 * F.cross_entropy(logits, targets) + 0.2 * uniform
    torch.testing.assert_close(module.training_step((images, targets), 0), expected)


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


@with_ema
def test_weight_averaging_finds_the_head_that_the_data_asks_for(tmp_path):
    module = small_module()
    averaging = EMAWeightAveraging(decay=0.5)
    trainer = small_trainer(1, averaging)
    trainer.fit(module, datamodule=DigitsDataModule(shots=1, batch_size=5))
    assert "head.0.weight" in averaging._average_model.module.state_dict()


UNEVEN = [5, 2] + [1] * 8
SHARES = torch.tensor(UNEVEN) / 15


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
    monkeypatch.setattr("lit_ft.model.module.build_backbone", refuse)
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


# Erasing, mixing and weights


def ready(**options):
    """A module outside of a run, as it is in one."""
    module = small_module(classes=10, **options)
    module._fit_state.seed, module.log = 5, lambda *_, **__: None
    return module


def test_training_step_erases_mixes_and_weighs_what_is_normalised():
    images, targets = images_of(), torch.arange(6)
    module = ready(mix=ALL_MIXES, label_smoothing=0.1)
    module.objective.class_weight = weight = torch.arange(1.0, 11.0)
    module.on_train_batch_start((images, targets), 0)
    found = module.training_step((images, targets), 0)
    module.on_train_batch_start((images, targets), 0)
    mixed, shares = BatchMix(MixConfig(**ALL_MIXES), "multiclass", 10)(
        (images - module.normalise.mean) / module.normalise.std, targets
    )
    shares = 0.9 * shares + 0.01
    torch.testing.assert_close(found, -(weight * shares * module(mixed).log_softmax(1)).sum() / 6)
    assert not torch.isclose(found, module.training_step((images, targets), 0))  # the next draw


@pytest.mark.parametrize("images", [images_of(3, 32), images_of(3, 32, num=1), images_of(1, 32).float() / 100 - 1])
def test_network_sees_mixed_images_in_its_own_format(images):
    module = small_resnet(classes=10, mix={**ALL_MIXES, "erase": 1.0})
    module._fit_state.seed, module.log, seen = 5, lambda *_, **__: None, []
    module.eval()  # for a single image; batch norm would refuse
    module.training = True
    module.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.training_step((images, torch.arange(len(images))), 0).backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].shape == (len(images), 3, 32, 32)
    assert seen[0].eq(0).flatten(1).any(1).any()


def test_nothing_is_mixed_and_nothing_drawn_where_all_is_off_or_in_eval_mode():
    batch = (images_of(), torch.arange(6))
    for module in (ready(), ready(mix=ALL_MIXES).eval()):
        before = torch.get_rng_state()
        module.training_step(batch, 0)
        assert torch.get_rng_state().equal(before)
        assert all(mine is given for mine, given in zip(module.objective.augment(module, batch), batch, strict=True))


def test_mixing_differs_between_steps_epochs_and_processes_and_repeats(monkeypatch):
    module, batch = ready(mix={"mixup": 0.5, "erase": 0.5}), (images_of(), torch.arange(6))
    seen = {}
    for rank in (0, 1):
        monkeypatch.setattr(FineTuneModule, "global_rank", rank)
        for epoch in (0, 1):
            monkeypatch.setattr(FineTuneModule, "current_epoch", epoch)
            for step in (0, 1):
                seen[rank, epoch, step] = module.pictured(batch, step)
                assert seen[rank, epoch, step].equal(module.pictured(batch, step))
    assert len({bytes(images.numpy()) for images in seen.values()}) == len(seen) == 8


class Seen(Callback):
    """Notes what comes to the network in the first step, and the pictures of it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.pictured = pl_module.pictured(batch, batch_idx)
            hook = pl_module.backbone.register_forward_pre_hook(lambda _, args: self.note(args[0]))
            self.remove, self.given = hook.remove, batch[0]

    def note(self, images):
        self.seen = images
        self.remove()


@pytest.mark.parametrize("mix", [{}, ALL_MIXES])
def test_pictures_are_of_what_the_network_sees(mix):
    module = small_module(mix=mix, input={"mean": [0.4], "std": [0.2]})
    small_trainer(1, seen := Seen(), limit_val_batches=0).fit(module, datamodule=FewDigits())
    assert seen.pictured.dtype == torch.uint8
    assert (seen.seen * 0.2 + 0.4).mul(255).sub(seen.pictured).abs().max() < 0.51
    assert seen.pictured.equal(seen.given) is not bool(mix)


def test_evaluations_are_neither_mixed_nor_weighted():
    plain, mixed = (
        small_module(classes=10),
        small_module(mix=ALL_MIXES, class_weight="balanced", lr=1e-30, lr_scheduler=None),
    )
    trainer = small_trainer(1)
    L.seed_everything(1)
    trainer.fit(mixed, datamodule=(data := FewDigits(numbers=UNEVEN)))  # which changes next to nothing
    during = dict(trainer.callback_metrics)
    plain.load_state_dict(mixed.state_dict())
    expected = small_trainer(1).validate(plain, datamodule=data, verbose=False)[0]
    assert {name: float(value) for name, value in during.items() if name in expected} == pytest.approx(expected)
    tested = [small_trainer(1).test(module, datamodule=data, verbose=False) for module in (plain, mixed)]
    assert tested[0] == tested[1]
    answers = [small_trainer(1).predict(module, datamodule=data)[0]["answers"] for module in (plain, mixed)]
    assert answers[0].equal(answers[1])


def test_weights_follow_from_the_training_images_of_each_fit(tmp_path):
    module = small_module(class_weight="balanced")
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits(numbers=UNEVEN))
    torch.testing.assert_close(module.objective.class_weight, 1 / (10 * SHARES))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.hparams["class_weight"] == "balanced"
    small_trainer(1, limit_train_batches=1, limit_val_batches=0).fit(loaded, datamodule=FewDigits())
    torch.testing.assert_close(loaded.objective.class_weight, torch.ones(10))


class OwnData(L.LightningDataModule):
    """Somebody's own: targets as they are given, for training and validation."""

    num_classes = 3

    def __init__(self, targets, counts=None):
        super().__init__()
        self.targets = targets
        if counts is not None:
            self.counts = lambda: {"train": counts}

    def sizes(self):
        return {"train": len(self.targets)}

    def train_dataloader(self):
        return DataLoader(TensorDataset(images_of(num=len(self.targets)), self.targets), batch_size=4)

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:regression targets are taken as they are")
@pytest.mark.parametrize(
    ("task", "targets", "options"),
    [
        ("multiclass", torch.rand(6, 3).softmax(1), {"mix": ALL_MIXES, "label_smoothing": 0.1}),
        ("multilabel", torch.tensor([[0, 1, 1], [1, 0, 0]] * 3), {"mix": ALL_MIXES, "class_weight": "balanced"}),
        ("regression", torch.rand(6, 3), {"mix": {"mixup": 0.5, "erase": 0.5}}),
    ],
)
def test_any_task_trains_mixed_and_validates_soft_targets(task, targets, options):
    module = small_module(task=task, **options)
    trainer = small_trainer(1)
    trainer.fit(module, datamodule=OwnData(targets, counts=[3, 3, 3]))
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    logits = module.eval()(images_of(num=6))
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], module.task.loss(logits, targets))
    if task == "multiclass":
        assert trainer.callback_metrics["val/acc"] == (logits.argmax(1) == targets.argmax(1)).float().mean()


def test_outputs_of_an_evaluation_have_the_classes_that_metrics_count():
    shares = torch.rand(6, 10).softmax(1)
    module = ready()
    assert module.validation_step((images_of(), shares), 0)["targets"].equal(shares.argmax(1))


def test_weights_of_loaders_alone_are_not_known():
    with pytest.raises(UserError, match=r"model.class_weight: the data module has no counts\(\)"):
        small_trainer(1).fit(small_module(classes=10, class_weight="balanced"), loader())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mix": {"cutmix": 1.0}, "task": "regression"}, "mix.cutmix"),
        ({"mix": MixConfig(erase=2.0)}, "mix.erase"),
        ({"class_weight": "balanced", "task": "regression"}, "class_weight"),
    ],
)
def test_wrong_mixing_or_weights_are_refused_before_anything_is_fetched(options, key, monkeypatch):
    monkeypatch.setattr("lit_ft.model.module.build_backbone", refuse)
    with pytest.raises(UserError, match=f"^model.{key}: "):
        small_module(**options)


def test_step_is_seeded_as_torch_does_it_but_on_this_device_alone(monkeypatch):
    module = small_module(classes=10)
    module._fit_state.seed, module._trainer = 7, SimpleNamespace(current_epoch=2, global_rank=1)
    torch.manual_seed(int(np.random.SeedSequence([7, 2, 3, 1]).generate_state(1)[0]))
    expected = torch.rand(5)
    monkeypatch.setattr(torch, "manual_seed", None)
    module.on_train_batch_start(None, 3)
    assert torch.rand(5).equal(expected)


@pytest.mark.parametrize("form", ["fused", "foreach"])
def test_run_goes_on_with_the_form_of_optimizer_that_it_began_with(form, tmp_path):
    """Also one that was saved before optimizers were fused."""

    def run(optimizer, ckpt_path=None):
        L.seed_everything(1)
        module, every = small_module(optimizer=optimizer), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = small_trainer(3, GradualUnfreezing("gradual"), every, limit_val_batches=1)
        trainer.fit(module, datamodule=FewDigits(), ckpt_path=ckpt_path)
        return final_state(trainer, module)

    given = {"class_path": "AdamW", "init_args": {form: form != "fused"}}
    whole = run(given)
    resumed = run("AdamW", tmp_path / "epoch=0.ckpt")
    assert differences(whole, resumed) == []
    assert {group["fused"] for group in resumed["optimizer"]["param_groups"]} != {True}


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


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precision_that_would_round_the_numbers_to_learn_is_refused(precision):
    module = small_module(task="regression", classes=["year"])
    mixed = precision.replace("true", "mixed")
    told = f"trainer.precision: {precision} would round the numbers that are to be learnt; give {mixed}"
    with pytest.raises(UserError, match=f"^{told}$"):
        small_trainer(1, precision=precision).fit(module, DataLoader(list(range(4))))
