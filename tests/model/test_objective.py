import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from small_runs import (
    ALL_MIXES,
    SHARES,
    UNEVEN,
    FewDigits,
    images_of,
    loader,
    one_epoch,
    small_module,
    small_resnet,
    small_trainer,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.model.objective import PenaltyConfig, WeightPenalty
from lit_ft.model.preprocessing import BatchMix, MixConfig


def ready(**options):
    """A module outside of a run, as it is in one."""
    module = small_module(classes=10, **options)
    module._seed, module.log = 5, lambda *_, **__: None
    return module


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
    module._seed, module.log, seen = 5, lambda *_, **__: None, []
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
                seen[rank, epoch, step] = module.pictured(batch, step)[0]
                assert seen[rank, epoch, step].equal(module.pictured(batch, step)[0])
    assert len({bytes(images.numpy()) for images in seen.values()}) == len(seen) == 8


class Seen(Callback):
    """Notes what comes to the network in the first step, and the pictures of it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.pictured, _ = pl_module.pictured(batch, batch_idx)
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
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], module.task.evaluation_loss(logits, targets))
    if task == "multiclass":
        assert trainer.callback_metrics["val/acc"] == (logits.argmax(1) == targets.argmax(1)).float().mean()


def test_weights_of_loaders_alone_are_not_known():
    with pytest.raises(UserError, match=r"model.class_weight: the data module has no counts\(\)"):
        small_trainer(1).fit(small_module(classes=10, class_weight="balanced"), loader())


def networks():
    """A backbone of two layers with the weights 1, 2 and 3, and a head with the weight 4."""
    backbone = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    head = nn.Linear(1, 1, bias=False)
    for value, parameter in enumerate([*backbone.parameters(), *head.parameters()], start=1):
        nn.init.constant_(parameter, value)
    return backbone, head


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += value


def gradients(*modules):
    return [None if p.grad is None else p.grad.item() for module in modules for p in module.parameters()]


def test_l2_sp_has_value_and_gradient_of_the_formula():
    backbone, head = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig("l2_sp", strength=0.5, head_strength=0.25))
    add(backbone, 3.0)
    value = penalty(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.5 / 2 * 3 * 3.0**2 + 0.25 / 2 * 4.0**2)
    assert gradients(backbone, head) == pytest.approx([0.5 * 3.0] * 3 + [0.25 * 4.0])


def test_l2_sp_is_zero_for_the_backbone_at_its_start():
    backbone, head = networks()
    value = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.25))(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.25 / 2 * 4.0**2)
    assert gradients(backbone, head) == [0.0, 0.0, 0.0, 1.0]


def test_l2_has_value_and_gradient_of_the_formula():
    backbone, head = networks()
    value = WeightPenalty(backbone, PenaltyConfig("l2", 0.5, 0.25))(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.5 / 2 * (1 + 4 + 9) + 0.25 / 2 * 16)
    assert gradients(backbone, head) == pytest.approx([0.5, 1.0, 1.5, 1.0])


@pytest.mark.parametrize(("kind", "expected"), [("l2_sp", 0.5 / 2 * 2.0**2), ("l2", 0.5 / 2 * 5.0**2)])
def test_frozen_weights_are_left_out(kind, expected):
    backbone, head = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig(kind, 0.5, 0.25))
    add(backbone, 2.0)
    backbone[0].requires_grad_(False)
    head.requires_grad_(False)
    value = penalty(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(expected)
    assert gradients(backbone[0], head) == [None, None, None]


def test_start_is_a_copy_that_neither_trains_nor_moves():
    backbone, _ = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig("l2_sp"))
    add(backbone, 5.0)
    assert list(penalty.parameters()) == []
    assert [buffer.item() for buffer in penalty.buffers()] == [1.0, 2.0, 3.0]


def test_state_dict_carries_the_start_to_a_resumed_run():
    backbone, head = networks()
    first = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.0))
    assert set(first.state_dict()) == {"0/weight", "0/bias", "1/weight"}
    add(backbone, 3.0)
    resumed = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.0))
    assert resumed(backbone, head).item() == 0.0
    resumed.load_state_dict(first.state_dict())
    assert resumed(backbone, head).item() == first(backbone, head).item() == pytest.approx(0.5 / 2 * 27)


@pytest.mark.parametrize("kind", ["none", "l2"])
def test_other_kinds_keep_no_start(kind):
    assert WeightPenalty(networks()[0], PenaltyConfig(kind)).state_dict() == {}


@pytest.mark.parametrize("key", ["strength", "head_strength"])
def test_negative_factor_is_refused(key):
    with pytest.raises(UserError, match=f"^model.penalty.{key}: must not be negative, got -1.0$"):
        PenaltyConfig("l2", **{key: -1.0})
