import inspect
import os
import re
import shutil
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from small_runs import (
    CASES,
    FewDigits,
    differences,
    final_state,
    small_module,
    small_trainer,
)
from torch import nn

from lit_ft.errors import UserError
from lit_ft.evaluation.run_report import RunReport
from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import GradualUnfreezing


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


@pytest.fixture(scope="module", params=CASES)
def whole_run(request, tmp_path_factory):
    """An uninterrupted run, what it ended with, and all of its checkpoints."""
    folder, case = tmp_path_factory.mktemp("whole"), CASES[request.param]
    return folder, case, interrupted_run(folder / "run", case, seed=1)


def differences_after(whole_run, copy, names):
    """For each checkpoint, what a run that is resumed from it ends with otherwise."""
    folder, case, final = whole_run
    # The score is taken up by a callback with the same folder alone, so the folder is put back as it was. Links are
    # enough, as no checkpoint is written in place.
    shutil.copytree(folder / "run", copy, copy_function=os.link)
    found = {}
    for name in names or sorted(path.stem for path in copy.iterdir()):
        found[name] = differences(final, interrupted_run(folder / "run", case, seed=2, ckpt_path=copy / f"{name}.ckpt"))
        shutil.rmtree(folder / "run")
        shutil.copytree(copy, folder / "run", copy_function=os.link)
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("end0", id="epoch_end"),
        pytest.param("val1", id="validation_end_within_the_last_batch"),
        pytest.param("step1", id="first_step"),
        pytest.param("step5", id="mid_epoch_after_unfreezing"),
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


@pytest.mark.long
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
        seeds.append(module._seed)
    assert seeds == [5, 6]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 5 * 2**61 + 3])
def test_step_is_seeded_as_torch_does_it_but_on_this_device_alone(seed, monkeypatch):
    module = small_module(classes=10)
    module._seed, module._trainer = seed, SimpleNamespace(current_epoch=2, global_rank=1)
    torch.manual_seed(int(np.random.SeedSequence([seed, 2, 3, 1]).generate_state(1)[0]))
    expected = torch.rand(5)
    monkeypatch.setattr(torch, "manual_seed", None)
    module.on_train_batch_start(None, 3)
    assert torch.rand(5).equal(expected)
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    monkeypatch.setattr(type(module), "device", torch.device("cuda:1"))
    module.on_train_batch_start(None, 3)
    assert seeded == [torch.initial_seed()] == [int(np.random.SeedSequence([seed, 2, 3, 1]).generate_state(1)[0])]
    assert torch.rand(5).equal(expected)


def test_setup_that_does_not_call_the_other_is_refused_before_training():
    class HasOwnSetup(FineTuneModule):
        def setup(self, stage):
            """As of Lightning's, which does nothing."""

    trainer = small_trainer(1)
    with pytest.raises(UserError, match=r"^HasOwnSetup.setup: call super\(\).setup\(stage\) in it"):
        trainer.fit(HasOwnSetup("mnist_cnn", weights="MNIST"), datamodule=FewDigits())
    assert trainer.global_step == 0


class AddsToCheckpoints(FineTuneModule):
    def on_save_checkpoint(self, checkpoint):
        """Calls no other, as a hook of Lightning's does nothing."""
        checkpoint["own"] = 1


def test_checkpoint_of_a_subclass_with_a_hook_of_its_own_is_resumed_with_the_seed_of_the_fit(tmp_path):
    def fit(max_epochs, ckpt_path=None):
        L.seed_everything(max_epochs)
        module = AddsToCheckpoints("mnist_cnn", weights="MNIST")
        trainer = small_trainer(max_epochs, limit_val_batches=0)
        trainer.fit(module, datamodule=FewDigits(), ckpt_path=ckpt_path)
        return module, trainer

    fit(1)[1].save_checkpoint(path := tmp_path / "a.ckpt")
    assert torch.load(path, weights_only=True)["own"] == 1
    module, trainer = fit(2, path)
    assert (trainer.global_step, module.run_seed) == (4, 2)


class OfABatchAlone(FineTuneModule):
    """A step of the user's, without the index of its batch."""

    def training_step(self, batch):
        return super().training_step(batch, 0)


def test_arguments_of_a_step_are_read_once_and_are_its_own():
    for module in (FineTuneModule, OfABatchAlone):
        noted = vars(module.training_step)["__signature__"]
        del module.training_step.__signature__
        assert inspect.signature(module.training_step) == noted
        module.training_step.__signature__ = noted
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(OfABatchAlone("mnist_cnn", None, classes=10), datamodule=FewDigits())
    assert trainer.global_step == 1


def test_plain_attributes_are_set_without_torch_and_the_others_by_it(monkeypatch):
    module, by_torch, set_by_torch = small_module(classes=10), [], nn.Module.__setattr__
    trainer = small_trainer(1, limit_train_batches=2, limit_val_batches=0)

    def note(self, name, value):
        by_torch.append(name)
        set_by_torch(self, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", note)
    trainer.fit(module, datamodule=FewDigits())
    assert "_current_fx_name" not in by_torch  # in which Lightning notes what it calls
    module.prefix, module.note = None, nn.Linear(1, 1)
    module.note = None
    assert by_torch[-3:] == ["prefix", "note", "note"]
    with pytest.raises(TypeError, match="cannot assign"):  # it is a part still
        module.note = "text"
    module.prefix = "text"
    assert (module.prefix, module.note) == ("text", None)


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


RATE = ["LearningRateFinder", "--trainer.callbacks.min_lr", 1e-4, "--trainer.callbacks.max_lr", 0.1]
RATE += ["--trainer.callbacks.num_training_steps", 24, "--trainer.callbacks.early_stop_threshold", "null"]
SIZE = ["BatchSizeFinder", "--trainer.callbacks.max_trials", 3, "--trainer.callbacks.steps_per_trial", 1]


@pytest.mark.long
@pytest.mark.parametrize(
    "found_by",
    [["--trainer.callbacks+", *RATE], ["--trainer.callbacks", *SIZE, "--trainer.callbacks+", *RATE]],
    ids=["rate", "size and rate"],
)
def test_run_goes_on_as_one_that_was_given_what_was_found(run, found_by):
    options = ["--trainer.max_epochs", 4, "--model.lr_decay", 0.5, "--lr_scheduler.warmup_fraction", 0.3]
    options += ["--unfreeze.head_fit", "trained"]  # as it is by itself where a finder trains
    printed = run("fit", *options, "--name", "finds", *found_by)
    (found,) = re.findall(r"Found +(.*)", printed)
    values = dict(re.findall(r"(\S+) (\S+)", found))
    assert 1e-4 < float(values["model.lr"]) < 0.1
    assert int(values["data.batch_size"]) == (8 if "BatchSizeFinder" in found_by else 32)
    flags = [part for name, value in values.items() for part in (f"--{name}", value)]
    given = run("fit", *options, "--name", "given", "--data", "DigitsDataModule", "--data.shots", 10, *flags)
    plans = [re.findall(r" +[12] +\d.*head +.*", text) for text in (printed, given)]
    assert plans[0] == plans[1] != []
    checkpoints = [torch.load(f"logs/{name}/version_0/checkpoints/last.ckpt") for name in ("finds", "given")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert differences(*(checkpoint[key] for checkpoint in checkpoints)) == []
    assert checkpoints[0]["hyper_parameters"]["lr"] == float(values["model.lr"])


@pytest.mark.long
def test_found_values_are_those_of_a_run_with_lightnings_own_trainer(tmp_path):
    def fitted(module, data, *callbacks):
        torch.manual_seed(0)
        trainer = small_trainer(5, *callbacks, GradualUnfreezing("full"), RunReport(), default_root_dir=tmp_path)
        trainer.fit(module, datamodule=data)
        return final_state(trainer, module)

    module, data = small_module(lr_decay=0.5), FewDigits(batch_size=4)
    size = BatchSizeFinder(max_trials=2, steps_per_trial=1)
    rate = LearningRateFinder(min_lr=1e-4, num_training_steps=20, early_stop_threshold=None)
    found = fitted(module, data, size, rate)
    assert data.batch_size == size.optimal_batch_size == 4
    assert module.hparams["lr"] == rate.optimal_lr.suggestion() != 0.05
    given = fitted(small_module(lr=module.hparams["lr"], lr_decay=0.5), FewDigits(batch_size=4))
    assert differences(found, given) == []


@pytest.mark.long
def test_resumed_run_keeps_what_was_found(run, refused):
    run("fit", "--trainer.max_epochs", 2)
    last = ("--ckpt_path", "logs/run/version_0/checkpoints/last.ckpt")
    line = refused("fit", "--trainer.max_epochs", 3, *last, "--trainer.callbacks+", *RATE)
    assert "--trainer.callbacks: LearningRateFinder would find other values than those of the run that is" in line


@pytest.mark.long
def test_finder_alone_is_a_list_of_one(run):
    assert "Found  model.lr " in run("fit", "--trainer.max_epochs", 2, "--trainer.callbacks", *RATE)


def test_data_without_a_batch_size_is_not_named(capsys):
    module, finders = small_module(lr=0.25), [LearningRateFinder()]
    strategy = SimpleNamespace(setup_optimizers=lambda _: None)
    module._trainer = SimpleNamespace(
        callbacks=finders, strategy=strategy, is_global_zero=True, progress_bar_callback=None
    )
    module.follow_finders()
    assert capsys.readouterr().out == "Found  model.lr 0.25\n"
