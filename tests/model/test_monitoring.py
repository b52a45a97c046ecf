import gc

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from host_syncs import META, HostSyncs
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from small_runs import FewDigits, images_of, small_module, small_resnet, small_trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.errors import UserError
from lit_ft.model import monitoring
from lit_ft.model.module import FineTuneModule
from lit_ft.model.monitoring import LossWatch, TrainScore, build_divergence_error, find_largest_gradient
from lit_ft.tasks.task import Task

pytestmark = pytest.mark.filterwarnings("ignore")


class Explode(Callback):
    """Makes a weight of a stage infinite before a step, as a step that is far too long does."""

    def __init__(self, step, stage="dense"):
        self.step, self.stage = step, stage

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            # The gradients of the step before are still there.
            for parameter in torch.nn.ModuleList(pl_module.stage_modules()[self.stage]).parameters():
                parameter.grad *= 1e6
            with torch.no_grad():
                pl_module.head[-1].weight[0, 0] = torch.nan


def test_run_stops_in_the_step_whose_loss_is_not_finite(tmp_path):
    L.seed_everything(1)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    trainer = small_trainer(5, Explode(5), best)
    module = small_module(lr_scheduler=None, lr=0.01)
    with pytest.raises(UserError) as caught:
        trainer.fit(module, datamodule=FewDigits())  # two steps an epoch
    assert str(caught.value) == (
        "train/loss is not finite in step 5 (learning rate 0.01, largest gradient in dense): lower model.lr, or give "
        f"trainer.gradient_clip_val 1; best model before that: {tmp_path / 'best.ckpt'}"
    )
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["global_step"] <= 4
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert torch.isfinite(best.best_model_score)


def test_learning_rate_that_is_far_too_high_ends_in_one_line():
    L.seed_everything(1)
    module = small_module(optimizer="SGD", lr_scheduler=None, lr=1e12, weights=None)
    with pytest.raises(UserError, match=r"is not finite in step \d+ \(learning rate 1e\+12, largest gradient in "):
        small_trainer(20).fit(module, datamodule=FewDigits())


def test_first_step_blames_no_learning_rate():
    images = torch.zeros(8, 1, 28, 28)
    images[7] = torch.nan
    data = DataLoader(TensorDataset(images - 1, torch.arange(8)), batch_size=4)
    with pytest.raises(UserError, match=r"^train_dataloader: images have values that are not finite$"):
        small_trainer(1).fit(small_module(classes=10), DataLoader(data.dataset, batch_size=8))
    with pytest.raises(UserError, match=r"^train/loss is not finite in step 1 \(learning rate .*lower model.lr"):
        small_trainer(1).fit(small_module(classes=10), data)
    module = small_module(classes=10)
    torch.nn.init.constant_(module.head[0].bias, torch.nan)
    with pytest.raises(UserError, match=r"^train/loss is not finite in step 0 .*: look for weights, images or targets"):
        small_trainer(1).fit(module, datamodule=FewDigits())


@pytest.mark.parametrize(("how", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_whose_loss_is_not_finite_is_an_error(how, split):
    module = small_module(classes=10)
    torch.nn.init.constant_(module.head[0].bias, torch.inf)
    text = rf"^{split}/loss is not finite: look for weights, images or targets that are not$"
    with pytest.raises(UserError, match=text):
        getattr(small_trainer(1), how)(module, datamodule=FewDigits(), verbose=False)


def test_validation_after_which_nothing_is_saved_as_best(tmp_path):
    class Spoil(Callback):
        def on_validation_start(self, trainer, pl_module):
            torch.nn.init.constant_(pl_module.head[-1].bias, torch.nan)

    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    text = r"^val/loss is not finite in step 2 \(learning rate 0.05, largest gradient in \w+\): lower"
    with pytest.raises(UserError, match=text):
        small_trainer(2, Spoil(), best).fit(small_module(lr_scheduler=None), datamodule=FewDigits())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("few", [{"num_sanity_val_steps": 1, "max_steps": 1}, {"fast_dev_run": 1}])
def test_validation_before_anything_has_settled_ends_no_run(few):
    class Spoil(Callback):
        """As batch norm does that has seen next to nothing, in evaluations alone."""

        def on_validation_start(self, trainer, pl_module):
            if trainer.sanity_checking or trainer.fast_dev_run:
                self.bias = pl_module.head[-1].bias.clone()
                torch.nn.init.constant_(pl_module.head[-1].bias, torch.inf)

        def on_validation_end(self, trainer, pl_module):
            if trainer.sanity_checking or trainer.fast_dev_run:
                pl_module.head[-1].bias.data.copy_(self.bias)

    trainer = small_trainer(1, Spoil(), **few)
    trainer.fit(small_module(lr_scheduler=None), datamodule=FewDigits())
    assert trainer.global_step == 1


def test_r2_that_is_not_defined_ends_no_run():
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    data = DataLoader(TensorDataset(images, torch.full((4, 1), 5.0)), batch_size=4)
    trainer = small_trainer(2)
    trainer.fit(small_module(classes=1, task="regression"), data, data)
    assert trainer.callback_metrics["val/r2"].isnan()
    assert trainer.global_step == 2


class Elsewhere(LossWatch):
    """Treats a CPU as a device that should not be waited for."""

    def note(self, module, loss):
        self._waits = True
        self._noted.append((module.global_step, loss.detach().clone()))


def test_losses_on_a_device_are_looked_at_when_something_is_logged_and_before_a_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr("lit_ft.model.module.LossWatch", Elsewhere)

    def stopped(*callbacks, **options):
        L.seed_everything(1)
        trainer = small_trainer(9, Explode(9, "conv"), *callbacks, limit_val_batches=0, **options)
        with pytest.raises(UserError) as caught:
            trainer.fit(small_module(lr_scheduler=None, lr=0.01), datamodule=FewDigits())
        assert "train/loss is not finite in step 9 (learning rate 0.01, largest gradient in " in str(caught.value)
        return trainer.global_step

    assert stopped(log_every_n_steps=6) == 12
    assert stopped(log_every_n_steps=2) == 10
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    assert stopped(every, log_every_n_steps=6) == 10
    assert {path.stem for path in tmp_path.iterdir()} == {f"step={step}" for step in range(1, 10)}


def test_largest_gradient_is_of_the_stage_with_the_largest_number():
    module = small_module(classes=10)
    assert find_largest_gradient(module) is None
    for stage, size in (("conv", 1.0), ("dense", 3.0), ("head", 2.0)):
        for parameter in torch.nn.ModuleList(module.stage_modules()[stage]).parameters():
            parameter.grad = torch.full_like(parameter, -size)
    assert find_largest_gradient(module) == "dense"
    module.head[0].bias.grad[0] = torch.nan
    assert find_largest_gradient(module) == "head"
    module.backbone.stages["conv"].conv[0].bias.grad[0] = torch.inf
    assert find_largest_gradient(module) == "head"


def test_error_without_a_trainer_names_what_is_known():
    assert str(build_divergence_error(small_module(classes=10), "train/loss", 3, "head")) == (
        "train/loss is not finite in step 3 (largest gradient in head): lower model.lr, or give "
        "trainer.gradient_clip_val 1"
    )


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


class Evaluations(Callback):
    """What callbacks see at the end of an evaluation, and what they would by hand; fails in a batch, if told to."""

    def __init__(self, failing=None):
        self.failing, self.outputs, self.seen = failing, [], []

    def on_validation_start(self, trainer, pl_module):
        self.outputs = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.failing:
            raise RuntimeError
        self.outputs.append((outputs["logits"].clone(), outputs["targets"]))

    def on_validation_epoch_end(self, trainer, pl_module):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def by_hand(self, module):
        logits, targets = map(torch.cat, zip(*self.outputs, strict=True))
        metrics = module.task.metrics("val/")
        module.task.update(metrics, logits, targets)
        loss = module.task.loss(logits, targets)
        return {name: float(value) for name, value in {**metrics.compute(), "val/loss": loss}.items()}


class FewBatches:
    """Gives two batches, although it tells another number, or none."""

    def __init__(self, told):
        self.batches = [(images_of(num=4), torch.tensor([3, 1, 4, 1])), (images_of(num=2), torch.tensor([5, 9]))]
        if told is not None:
            self.__class__ = type("Sized", (FewBatches,), {"__len__": lambda _: told})

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize(("waiting", "counted"), [(1 << 20, 1), (200, 2), (1, 4)])
def test_evaluation_counts_batches_together_before_callbacks_look(waiting, counted, monkeypatch):
    monkeypatch.setattr(monitoring, "_WAITING_VALUES", waiting)
    module, seen, updates = small_module(), Evaluations(), []
    update = Task.update
    monkeypatch.setattr(
        Task, "update", lambda task, metrics, *batch: updates.append(0) or update(task, metrics, *batch)
    )
    trainer = small_trainer(1, seen)
    found = trainer.validate(module, datamodule=FewDigits(), verbose=False)  # 37 images of 10 classes in 4 batches
    assert (len(seen.outputs), len(updates)) == (4, counted)
    assert found[0].keys() == {f"val/{name}" for name in ("loss", "acc", "acc_top5", "precision", "recall", "f1")}
    assert seen.seen[-1] == found[0] == pytest.approx(seen.by_hand(module), rel=1e-6)


@pytest.mark.parametrize("told", [2, 3, None])
def test_evaluation_counts_all_batches_whatever_number_its_loader_tells(told):
    module, seen = small_module(classes=10), Evaluations()
    found = small_trainer(1, seen).validate(module, FewBatches(told), verbose=False)
    assert len(seen.outputs) == 2
    assert found[0] == pytest.approx(seen.by_hand(module), rel=1e-6)
    assert seen.seen[-1] == found[0]


class Skipping(FineTuneModule):
    def validation_step(self, batch, batch_idx):
        return super().validation_step(batch, batch_idx) if len(batch[1]) == 10 else None


class Unnumbered(FineTuneModule):
    def validation_step(self, batch, batch_idx):
        return super().validation_step(batch, 0)


class InParts(FineTuneModule):
    def validation_step(self, batch, batch_idx):
        images, targets = batch
        super().validation_step((images[:4], targets[:4]), batch_idx)
        return super().validation_step((images[4:], targets[4:]), batch_idx)


class Twice(Callback):
    """Asks the module once more for each batch, as for another view of it."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        pl_module.validation_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [FineTuneModule, Skipping, Unnumbered, InParts, Twice])
def test_each_image_that_a_step_of_the_users_own_hands_on_is_counted(kind):
    module = (FineTuneModule if kind is Twice else kind)("mnist_cnn", weights="MNIST", classes=10)
    data = FewDigits(num_val=37)
    found = small_trainer(1, *[Twice()] * (kind is Twice)).validate(module, datamodule=data, verbose=False)
    used = 30 if kind is Skipping else 37  # the last batch has 7
    data.setup("validate")
    images, targets = (torch.cat(parts)[:used] for parts in zip(*data.val_dataloader(), strict=True))
    with torch.inference_mode():
        logits = module.eval()(images)
    assert found[0]["val/acc"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert found[0]["val/loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)


def test_evaluation_after_one_that_failed_counts_its_own_batches_alone():
    module, data, seen = small_module(), FewDigits(), Evaluations(failing=2)
    with pytest.raises(RuntimeError):
        small_trainer(1, seen).validate(module, datamodule=data)
    seen.failing = None
    # By a trainer whose tensors are of another kind, in the memory of the first.
    found = small_trainer(1, seen, inference_mode=False).validate(module, datamodule=data, verbose=False)
    assert found[0] == pytest.approx(seen.by_hand(module), rel=1e-6)


@pytest.mark.parametrize("waiting", [0, 1 << 20])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_train_score_is_the_main_metric_of_all_batches_and_goes_on_after_a_resume(task, waiting, monkeypatch):
    monkeypatch.setattr(monitoring, "_WAITING_VALUES", waiting)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 3, generator=generator)
    targets = torch.randint(3, (12,), generator=generator)
    if task != "multiclass":
        targets = torch.nn.functional.one_hot(targets, 3).float()
    score = TrainScore(Task(task, 3), torch.device("cpu"))
    assert (score.compute(), score.state_dict()) == ({}, {})
    score.add(logits[:5], targets[:5])
    resumed = TrainScore(Task(task, 3), torch.device("cpu"))
    resumed.load_state_dict(score.state_dict())
    assert resumed.compute() == score.compute()  # also before a further batch
    for one in (score, resumed):
        one.add(logits[5:], targets[5:])
    whole = Task(task, 3).metrics("train/")
    Task(task, 3).update(whole, logits, targets)
    [(name, value)] = score.compute().items()
    assert name == {"multiclass": "train/acc", "multilabel": "train/f1", "regression": "train/mse"}[task]
    assert value == pytest.approx(float(whole.compute()[name]), rel=1e-6)
    assert resumed.compute() == score.compute()
    score.reset()
    assert score.compute() == {}


def test_train_score_keeps_no_tensor_of_a_step_and_counts_other_kinds_of_logits_apart():
    score, targets = TrainScore(Task("multiclass", 3), torch.device("cpu")), torch.tensor([0, 1, 2, 0])
    score.add(torch.eye(3)[targets], targets)
    where = [kept.data_ptr() for kept in score._waiting._kept]
    num_tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    for _ in range(50):
        score.add(torch.eye(3)[targets], targets)
    assert [kept.data_ptr() for kept in score._waiting._kept] == where
    assert sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()) == num_tensors
    score.add(torch.eye(3)[(targets + 1) % 3].bfloat16(), targets)
    assert score._waiting._kept[0].dtype == torch.bfloat16
    assert score.compute() == {"train/acc": pytest.approx(51 / 52)}


@pytest.mark.parametrize(("mix", "has_score"), [({}, True), ({"mixup": 0.4}, False), ({"erase": 0.5}, False)])
def test_train_score_is_that_of_the_steps_and_there_is_none_of_mixed_images(mix, has_score):
    class Counts(Callback):
        hits = total = 0

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module.objective.score:
                waiting, num = pl_module.objective.score._waiting, len(batch[1])
                logits, targets = (kept[waiting._num - num : waiting._num] for kept in waiting._kept)
                assert targets.equal(batch[1])
                self.hits, self.total = self.hits + int((logits.argmax(1) == targets).sum()), self.total + len(targets)

    counts, module = Counts(), small_module(mix=mix)
    small_trainer(1, counts, limit_val_batches=0).fit(module, datamodule=FewDigits())
    found = module.train_metrics()
    assert found == ({"train/acc": pytest.approx(counts.hits / counts.total)} if has_score else {})
    assert not has_score or counts.total == 20


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("trained", [["head"], ["layer4", "head"]], ids=["head", "stage"])
def test_step_and_validation_on_a_gpu_are_waited_for_by_nothing(task, trained):
    module = small_resnet(classes=7, task=task, head={"dropout": 0.5}, mix={"erase": 0.5}).to(META)
    module.set_trainable(trained)
    module.objective.score = TrainScore(module.task, META)
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=META)
    targets = torch.zeros(4, dtype=torch.long) if task == "multiclass" else torch.zeros(4, 7)
    for _ in range(2):  # the units of a regression are copied once, for all steps
        with HostSyncs() as syncs:
            loss, _ = module.objective(module, (images, targets.to(META, non_blocking=True)))
            module._losses.note(module, loss)
            loss.backward()
            module.eval()
            with torch.inference_mode():
                module.metrics["val"].to(META).update(
                    module, module(images), targets.to(META, non_blocking=True), 1, all_come=True
                )
            module.train()
    assert module.head[-1].weight.grad.device == META
    assert syncs.found == []
