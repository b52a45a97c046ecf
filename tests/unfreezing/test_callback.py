import math
import warnings
from types import SimpleNamespace

import lightning as L
import processes
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, XLAStrategy
from small_runs import FewDigits, Recorder, digest, digests, small_module, small_resnet, small_trainer
from torch import nn
from torchmetrics import MeanMetric

from lit_ft.backbones.freezing import Staged
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.strategies import make_plan

SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.1}}
ADAMW = {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}


def fit(module, unfreezing, max_epochs, **data):
    recorder = Recorder()
    L.seed_everything(1)
    trainer = small_trainer(max_epochs, unfreezing, recorder, limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits(**data))
    return trainer, recorder


EVERYTHING = {"conv", "dense", "head"}
REFREEZING = [
    {"train": ["head", "dense"], "epochs": 1},
    {"train": ["con*"], "epochs": 1},
    {"train": ["head"], "epochs": 1},
]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strategy": "full"}, [EVERYTHING]),
        ({"strategy": "linear_probe"}, [{"head"}, {"head"}]),
        ({"strategy": "lp_ft"}, [{"head"}, EVERYTHING]),
        ({"strategy": "deepest"}, [{"head"}, {"dense", "head"}, {"dense", "head"}]),
        ({"strategy": "gradual"}, [{"head"}, {"dense", "head"}, EVERYTHING]),
        ({"strategy": "gradual", "head_epochs": 2}, [{"head"}, {"head"}, {"dense", "head"}, EVERYTHING]),
        ({"strategy": "phases", "phases": REFREEZING}, [{"head", "dense"}, {"conv"}, {"head"}]),
    ],
    ids=lambda value: "-".join(map(str, value.values()))[:12] if isinstance(value, dict) else "",
)
def test_only_the_stages_of_the_phase_move(options, expected, optimizer):
    module = small_module(optimizer=optimizer, lr_scheduler=None)
    trainer, recorder = fit(module, GradualUnfreezing(**options), len(expected))
    assert recorder.moved() == expected
    assert recorder.modes == [stages for stages in expected for _ in range(2)]
    assert len(trainer.optimizers[0].param_groups) == 6


def norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.long
@pytest.mark.parametrize("frozen_norm", ["eval", "stats", "train"])
def test_frozen_norm_layers_do_what_the_option_says(frozen_norm):
    module = small_resnet(penalty={"kind": "l2", "strength": 0.1}, optimizer=SGD)
    frozen = nn.ModuleList([module.backbone.stages[name] for name in ("stem", "layer1", "layer2", "layer3")])
    norm_ids = {id(p) for norm in norms(frozen) for p in norm.parameters()}

    def state():
        others = digest(p for p in frozen.parameters() if id(p) not in norm_ids)
        return others, digest(p for norm in norms(frozen) for p in norm.parameters()), digest(frozen.buffers())

    phases = [{"train": ["head"], "epochs": 1}, {"train": ["layer4", "head"], "epochs": 1}]
    before = state()
    _, recorder = fit(module, GradualUnfreezing("phases", phases=phases, frozen_norm=frozen_norm), 2)
    unchanged = [now == then for now, then in zip(state(), before, strict=True)]
    assert (
        unchanged
        == {"eval": [True, True, True], "stats": [True, True, False], "train": [True, False, False]}[frozen_norm]
    )
    all_stages = {"stem", "layer1", "layer2", "layer3", "layer4", "head"}
    if frozen_norm == "eval":
        assert recorder.moved(1) == [set(), {"layer4"}]
        assert recorder.moved(0) == [{"head"}, {"layer4", "head"}]
    if frozen_norm == "train":
        assert recorder.moved(0) == [
            all_stages,
            all_stages,
        ]  # of the frozen ones just the norms, in the first phase too


@pytest.mark.parametrize("norm", ["train", "eval"])
def test_norm_layers_of_stages_that_train_do_what_the_option_says(norm):
    module = small_resnet(optimizer=SGD)
    _, recorder = fit(module, GradualUnfreezing("full", norm=norm), 1)
    backbone = {"stem", "layer1", "layer2", "layer3", "layer4"}
    assert recorder.moved(0) == [{*backbone, "head"}]  # their weights train in both
    assert recorder.moved(1) == [backbone if norm == "train" else set()]
    module.backbone.train()  # whoever calls it
    assert {layer.training for layer in norms(module)} == {norm == "train"}


def test_norm_that_is_unknown():
    with pytest.raises(UserError, match=r"unfreeze.norm.*'frozen'.*choose from train, eval"):
        GradualUnfreezing(norm="frozen")


@pytest.fixture(scope="module")
def gradual_run():
    """Three epochs of four steps, one stage unfrozen after each of the first two, with a warm-up of three steps."""
    module = small_module(
        lr=0.8, lr_decay=0.5, lr_scheduler={"class_path": "WarmupCosine", "init_args": {"warmup_fraction": 0.25}}
    )
    return fit(module, GradualUnfreezing("gradual"), 3, batch_size=5)


def test_learning_rates_warm_up_from_each_unfreezing(gradual_run):
    _, recorder = gradual_run
    assert len(recorder.rates) == 12
    # (1 + cos(pi k / 9)) / 2 after the warm-up of the head, k = 0 at step 3.
    cosine = {3: 1.0, 4: 0.969846, 5: 0.883022, 6: 0.75, 7: 0.586824, 8: 0.413176, 9: 0.25, 10: 0.116978, 11: 0.030154}
    head = [0.8 / 3, 1.6 / 3, 0.8, *(0.8 * cosine[step] for step in range(3, 12))]
    dense = [0.4 * cosine[4] / 3, 0.8 * cosine[5] / 3, *(0.4 * cosine[step] for step in range(6, 12))]
    conv = [0.2 * cosine[8] / 3, 0.4 * cosine[9] / 3, 0.2 * cosine[10], 0.2 * cosine[11]]
    for name in ("", "/no_decay"):
        assert [rates["head" + name] for rates in recorder.rates] == pytest.approx(head, rel=1e-4)
        assert [rates["dense" + name] for rates in recorder.rates[4:]] == pytest.approx(dense, rel=1e-4)
        assert [rates["conv" + name] for rates in recorder.rates[8:]] == pytest.approx(conv, rel=1e-4)
        assert {rates["conv" + name] for rates in recorder.rates[1:8]} == {0.0}


def test_groups_stay_and_each_knows_when_it_is_unfrozen(gradual_run):
    trainer, recorder = gradual_run
    names = ["head", "head/no_decay", "dense", "dense/no_decay", "conv", "conv/no_decay"]
    assert all(list(rates) == names for rates in recorder.rates)
    groups = trainer.optimizers[0].param_groups
    assert [group["unfreeze_epoch"] for group in groups] == [0, 0, 1, 1, 2, 2]


def test_optimizer_state_survives_unfreezing(gradual_run):
    trainer, _ = gradual_run
    optimizer = trainer.optimizers[0]
    steps = [{int(optimizer.state[p]["step"]) for p in group["params"]} for group in optimizer.param_groups]
    assert steps == [{12}, {12}, {8}, {8}, {4}, {4}]


@pytest.mark.long
def test_norm_layers_that_train_while_frozen_are_not_held_back_by_the_warm_up():
    module = small_resnet()
    unfreezing = GradualUnfreezing("lp_ft", frozen_norm="train")
    trainer, _ = fit(module, unfreezing, 2)
    epochs = {group["name"]: group["unfreeze_epoch"] for group in trainer.optimizers[0].param_groups}
    assert (epochs["layer1"], epochs["layer1/no_decay"]) == (1, 0)


def test_accumulated_batches_count_as_one_step():
    module = small_module()
    trainer = small_trainer(2, GradualUnfreezing("lp_ft"), accumulate_grad_batches=3, limit_val_batches=0)
    trainer.fit(module, datamodule=FewDigits(batch_size=5))
    assert trainer.global_step == 4
    assert trainer.lr_scheduler_configs[0].scheduler.epoch_steps == 2


def test_applying_a_phase_twice_changes_nothing():
    module = small_module(classes=10)
    module(torch.zeros(2, 1, 28, 28)).sum().backward()
    seen = []
    for _ in range(2):
        module.set_trainable(("head",))
        trains = {name: (p.requires_grad, p.grad is None) for name, p in module.named_parameters()}
        seen.append((trains, {name: part.training for name, part in module.named_modules()}))
    assert seen[0] == seen[1]
    # A gradient that was left there would move the frozen stage in the next step.
    assert trains["backbone.stages.dense.dense.1.weight"] == (False, True)
    assert trains["head.0.weight"] == (True, False)


def test_checkpoint_holds_the_plan(gradual_run):
    unfreezing = next(c for c in gradual_run[0].callbacks if isinstance(c, GradualUnfreezing))
    phase = unfreezing.state_dict()["plan"][1]
    assert (phase["first_epoch"], phase["num_epochs"], phase["trainable"]) == (1, 1, ["dense", "head"])


@pytest.mark.parametrize(
    ("options", "max_epochs", "message"),
    [
        ({"strategy": "gradual"}, 2, r"trainer.max_epochs: .* at least 3 epochs .* got 2"),
        ({"strategy": "phases", "phases": [{"train": ["layer9", "head"]}]}, 2, r"unknown stage 'layer9'"),
    ],
)
def test_plan_that_does_not_fit_is_refused_before_training(options, max_epochs, message):
    module = small_module()
    before = digest(module.parameters())
    with pytest.raises(UserError, match=message):
        fit(module, GradualUnfreezing(**options), max_epochs)
    assert digest(module.backbone.parameters()) == before


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, XLAStrategy])
def test_sharded_strategy_cannot_unfreeze(kind):
    strategy = object.__new__(kind)  # as some need a library to be made
    options = {"max_epochs": 2, "current_epoch": 0, "fast_dev_run": False, "enable_validation": True, "callbacks": []}
    options |= {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "early_stopping_callbacks": []}
    trainer = SimpleNamespace(strategy=strategy, **options)
    module = small_module(classes=10)
    with pytest.raises(UserError, match=rf"trainer.strategy: {kind.__name__} cannot unfreeze .* use ddp"):
        GradualUnfreezing("lp_ft").setup(trainer, module, "fit")
    GradualUnfreezing("linear_probe").setup(trainer, module, "fit")


def test_run_without_an_end_follows_the_plan():
    trainer = small_trainer(-1, GradualUnfreezing("lp_ft"), recorder := Recorder(), max_steps=4, limit_val_batches=0)
    trainer.fit(small_module(lr_scheduler=None), datamodule=FewDigits())
    assert recorder.moved() == [{"head"}, EVERYTHING]


class Endless(torch.utils.data.IterableDataset):
    """Eight images of as many classes, of which nobody knows how many there are."""

    def __iter__(self):
        for i in range(8):
            yield torch.zeros(1, 28, 28, dtype=torch.uint8), i


def fit_endless(lr_scheduler, **options):
    recorder = Recorder()
    trainer = small_trainer(**options, limit_val_batches=0)
    trainer.callbacks[:0] = [GradualUnfreezing("lp_ft"), recorder]
    module = small_module(lr_scheduler=lr_scheduler, lr=1.0, classes=10)
    trainer.fit(module, torch.utils.data.DataLoader(Endless(), batch_size=2))
    return recorder


def test_data_without_a_length():
    for schedule in (None, "WarmupCosine"):
        assert fit_endless(schedule, max_epochs=2).moved() == [{"head"}, EVERYTHING]


def test_cosine_goes_on_epoch_by_epoch_where_the_data_has_no_length():
    rates = fit_endless("WarmupCosine", max_epochs=4).rates
    # A warm-up of 0.2 epochs counts as one, so that the cosine has three left.
    cosine = [1.0, 1.0, 0.75, 0.25]
    assert [r["head"] for r in rates] == pytest.approx([factor for factor in cosine for _ in range(4)])
    assert [r["conv"] for r in rates[4:]] == pytest.approx([factor for factor in cosine[1:] for _ in range(4)])


def test_cosine_goes_on_step_by_step_where_the_data_has_no_length_and_the_run_ends_after_some_steps():
    rates = fit_endless("WarmupCosine", max_epochs=-1, max_steps=6).rates
    cosine = [(1 + math.cos(math.pi * max(0, step - 1) / 5)) / 2 for step in range(6)]
    assert [r["head"] for r in rates] == pytest.approx(cosine)
    assert [r["conv"] for r in rates[4:]] == pytest.approx(cosine[4:])


@pytest.mark.parametrize(
    ("schedule", "options", "text"),
    [
        (
            "OneCycleLR",
            {"max_epochs": 2},
            "OneCycleLR needs the number of steps, but data without a length .*",
        ),
        ("WarmupCosine", {"max_epochs": -1}, "WarmupCosine needs a run with an end; set trainer.max_epochs"),
    ],
)
def test_schedule_that_needs_what_nobody_knows_is_refused(schedule, options, text):
    with pytest.raises(UserError, match=rf"^lr_scheduler: {text}"):
        fit_endless(schedule, **options)


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    scenarios = ("watch_unfreezing", "watch_norms", "resume", "choose_by_gradient", "keep_features", "disagree")
    return processes.launch(folder, *scenarios), folder


@pytest.mark.parametrize("scenario", ["watch_unfreezing", "watch_norms"])
def test_replicas_are_equal_after_every_epoch(both_ranks, scenario):
    for found in both_ranks[0]:
        assert found[scenario]["equal_replicas"] == [True] * 4


def test_each_phase_trains_its_stages_on_every_process(both_ranks):
    for found in both_ranks[0]:
        assert found["watch_unfreezing"]["moved"] == [{"head"}, {"dense", "head"}, {"dense", "head"}, EVERYTHING]
        some = {"layer4", "head"}
        everything = {"stem", "layer1", "layer2", "layer3", *some}
        assert found["watch_norms"]["moved"] == [{"head"}, some, some, everything]


HEAD, DENSE, CONV = 128 * 10 + 10, 32 * 13 * 13 * 128 + 128, 32 * 9 + 32


def test_what_is_reduced_follows_the_phase(both_ranks):
    expected = [HEAD] * 3 + [HEAD + DENSE] * 6 + [HEAD + DENSE + CONV] * 3
    for found in both_ranks[0]:
        assert found["watch_unfreezing"]["reduced"] == expected


def test_model_is_wrapped_anew_at_an_unfreezing_alone_and_the_old_wrapper_is_gone(both_ranks):
    for found in both_ranks[0]:
        assert found["watch_unfreezing"]["wrapped"] == [(1, 1)] * 3 + [(2, 1)] * 6 + [(3, 1)] * 3
        assert found["watch_norms"]["wrapped"] == [(1, 1)] * 2 + [(2, 1)] * 4 + [(3, 1)] * 2


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_gradient_is_that_of_the_joined_batch_on_one_process(both_ranks, epoch):
    first, second = (found["watch_unfreezing"]["steps"][epoch] for found in both_ranks[0])
    assert not first["batch"][0].equal(second["batch"][0])
    assert all(first["gradients"][name].equal(second["gradients"][name]) for name in first["gradients"])
    module = small_module(weights=None, classes=10)
    module.load_state_dict(first["weights"])
    images, targets = (torch.cat(parts) for parts in zip(first["batch"], second["batch"], strict=True))
    weight = sum(processes.UNEVEN) / (10 * torch.tensor(processes.UNEVEN))
    module.task.loss(module(images), targets, weight).backward()
    own = dict(module.named_parameters())
    assert len(first["gradients"]) == {0: 2, 1: 4, 3: 6}[epoch]
    for name, gradient in first["gradients"].items():
        torch.testing.assert_close(gradient, own[name].grad, rtol=1e-4, atol=1e-6)


def test_validation_on_two_processes_is_that_of_the_checkpoint_on_one(both_ranks):
    found, folder = both_ranks
    metrics = found[0]["watch_norms"]["metrics"]
    assert found[1]["watch_norms"]["metrics"] == pytest.approx(metrics)
    module = FineTuneModule.load_from_checkpoint(folder / "norms.ckpt")
    trainer = small_trainer(1)
    alone = trainer.validate(module, datamodule=FewDigits(batch_size=16), verbose=False)[0]
    assert (
        metrics.keys() == alone.keys() == {f"val/{m}" for m in ("loss", "acc", "acc_top5", "precision", "recall", "f1")}
    )
    assert all(math.isfinite(value) for value in alone.values())
    assert metrics == pytest.approx(alone, rel=1e-4)


def test_run_on_two_processes_resumes_in_mid_epoch_bit_for_bit(both_ranks):
    for found in both_ranks[0]:
        assert found["resume"] == {"steps": 9, "differences": {"step=4": []}}


@pytest.mark.slow
def test_run_on_two_processes_resumes_from_everywhere_bit_for_bit(tmp_path):
    for found in processes.launch(tmp_path, "resume_everywhere", seconds=3000):
        for name, case in found["resume_everywhere"].items():
            assert len(case["differences"]) == case["steps"], name
            assert not any(case["differences"].values()), name


@pytest.mark.slow
def test_four_processes_stay_equal_and_send_what_trains(tmp_path):
    expected = [HEAD] * 2 + [HEAD + DENSE] * 4 + [HEAD + DENSE + CONV] * 2
    for found in processes.launch(tmp_path, "watch_unfreezing", num_processes=4):
        assert found["watch_unfreezing"]["equal_replicas"] == [True] * 4
        assert found["watch_unfreezing"]["reduced"] == expected


def test_two_processes_keep_the_features_that_one_does(both_ranks):
    for found in both_ranks[0]:
        rank = found["keep_features"]
        assert rank["equal_replicas"]
        assert rank["furthest"] < 1e-5
        # Half of all, two to tell the shape, and at most 16 of each split to compare.
        assert rank["images"] <= 2 + 10 + 19 + 10 + 16
        assert rank["kinds"] == {"StageOutput"}


def test_all_processes_choose_by_the_gradient_of_all_their_images(both_ranks):
    one, two = (found["choose_by_gradient"] for found in both_ranks[0])
    assert one["gradients"] == two["gradients"]
    assert one["trainable"] == two["trainable"]
    assert one["equal_replicas"] == two["equal_replicas"] == [True, True]
    assert one["moved"][1] == set(one["trainable"])


def test_processes_in_different_phases_raise(both_ranks):
    for found in both_ranks[0]:
        assert found["disagree"].startswith("the processes disagree on the phase of epoch 1: [1, 0]; what ends a phase")


# What follows from the run


def gradients_by_hand(module, batches):
    """Norm of the mean gradient by norm of the weights, of each stage but the head."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    sum(module.task.loss(module(images), targets) for images, targets in batches).div(len(batches)).backward()
    found = {}
    for name, parts in module.backbone.stage_modules().items():
        own = [parameter for part in parts for parameter in part.parameters()]
        squares = [sum(float(t.detach().square().sum()) for t in ts) for ts in ([p.grad for p in own], own)]
        found[name] = math.sqrt(squares[0] / squares[1])
    return found


def test_auto_trains_the_stages_with_the_largest_relative_gradients(tmp_path):
    class Kept(Recorder):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            if trainer.current_epoch == 0:
                self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    kept, unfreezing = Kept(), GradualUnfreezing("auto", auto_batches=2, auto_threshold=0.99)
    module, data = small_module(lr_scheduler=None), FewDigits(batch_size=10)
    small_trainer(3, unfreezing, kept).fit(module, datamodule=data)
    (chosen,) = [
        stage
        for stage, value in unfreezing.state.gradients.items()
        if value == max(unfreezing.state.gradients.values())
    ]
    assert kept.moved() == [{"head"}, {chosen, "head"}, {chosen, "head"}]
    twin = small_module(weights=None, classes=10)
    twin.load_state_dict(kept.weights)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    expected = gradients_by_hand(twin, list(loader))
    assert unfreezing.state.gradients == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_measuring_gradients_changes_nothing_else():
    """A run that unfreezes all by name equals one that measures first, and then chooses all."""

    def run(unfreezing):
        L.seed_everything(1)
        module = small_resnet(lr_scheduler=None)
        small_trainer(2, unfreezing, limit_val_batches=1).fit(module, datamodule=FewDigits(augment="basic"))
        return module.state_dict()

    chosen, named = run(GradualUnfreezing("auto", auto_threshold=1e-9)), run(GradualUnfreezing("lp_ft"))
    assert all(chosen[name].equal(named[name]) for name in named)


def test_next_phase_begins_when_the_loss_has_stopped_to_fall(capsys):
    values = iter([2.0, 1.0, 1.1, 1.2, 0.9, 0.8, 0.8, 0.9, 0.1, 0.1])

    class Told(Callback):
        """Tells what the validation would measure."""

        def on_validation_epoch_start(self, trainer, pl_module):
            value = torch.tensor(next(values))
            pl_module.metrics["val"].loss.compute = lambda: value

    plateau = {"patience": 2, "monitor": "val/loss"}
    rates = {"class_path": "WarmupCosine", "init_args": {"warmup_fraction": 0.1}}
    module, unfreezing, recorder = (
        small_module(lr=0.8, lr_scheduler=rates),
        GradualUnfreezing("plateau", plateau=plateau),
        Recorder(),
    )
    trainer = small_trainer(10, unfreezing, recorder, Told(), limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    assert [scores["val/loss"] for scores in unfreezing.state.scores.values()] == pytest.approx(
        [2.0, 1.0, 1.1, 1.2, 0.9, 0.8, 0.8, 0.9, 0.1, 0.1]
    )
    assert recorder.moved() == [{"head"}] * 4 + [{"dense", "head"}] * 4 + [EVERYTHING] * 2
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("From")]
    assert told == ["From epoch 4 on dense, head train", "From epoch 8 on conv, dense, head train"]
    # Two steps an epoch: the stages unfrozen at steps 8 and 16 warm up from there, for two of the run's 20 steps.
    factor = trainer.lr_scheduler_configs[0].scheduler.factor
    for step, stage, rate in ((8, "dense", 0.8), (16, "conv", 0.8)):
        assert [recorder.rates[step - 1][stage], recorder.rates[step][stage], recorder.rates[step + 1][stage]] == (
            pytest.approx([0.0, 0.5 * rate * factor(step, 0), rate * factor(step + 1, 0)])
        )


@pytest.mark.parametrize(
    ("options", "trainer_options", "text"),
    [
        (
            {"plateau": {"monitor": "val/los"}},
            {},
            "unfreeze.plateau.monitor: unknown metric 'val/los'; nearest: val/loss",
        ),
        ({}, {"limit_val_batches": 0}, "unfreeze.plateau: the run validates nothing, so that no plateau would ever"),
    ],
)
def test_plateau_that_would_never_be_seen_is_refused(options, trainer_options, text):
    trainer = small_trainer(5, GradualUnfreezing("plateau", **options), **trainer_options)
    with pytest.raises(UserError, match=f"^{text}"):
        trainer.fit(small_module(), datamodule=FewDigits())


def test_early_stopping_that_could_end_the_run_before_the_last_phase_is_warned_of():
    def warned(patience):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            unfreezing = GradualUnfreezing("gradual", head_epochs=3, epochs_per_stage=2)
            trainer = small_trainer(9, unfreezing, EarlyStopping("val/loss", patience=patience))
            unfreezing.setup(trainer, small_module(classes=10), "fit")
        return [str(one.message) for one in caught if "early_stopping.patience" in str(one.message)]

    assert warned(4) == [
        "`early_stopping.patience`: 4 can end the run after 5 epochs, but the plan's last phase begins after 5; "
        "raise it to 5 or more"
    ]
    assert warned(5) == []


# Modules of others


class Plain(Staged, L.LightningModule):
    """A module that knows of lit_ft just that its stages have names."""

    def __init__(self):
        super().__init__()
        self.input_spec = InputSpec(28, 28, mean=(0.5,), std=(0.5,))
        self.first, self.norm, self.last = nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def stage_modules(self):
        return {"body": [self.first, self.norm], "top": [self.last]}

    def forward(self, images):
        return self.last(self.norm(self.first(images.float().flatten(1) / 255)).relu())

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strategy": "gradual"}, [{"top"}, {"body", "top"}]),
        ({"strategy": "auto"}, [{"top"}, {"body", "top"}]),
        ({"strategy": "plateau", "plateau": {"patience": 1, "min_delta": 9.0}}, [{"top"}, {"top"}, {"body", "top"}]),
        (
            {"strategy": "phases", "phases": [{"train": ["t*"], "epochs": 1}, {"train": ["body"]}]},
            [{"top"}, {"body"}],
        ),
    ],
)
def test_any_module_that_names_its_stages_is_unfrozen(options, expected):
    module, recorder = Plain(), Recorder()
    before = digests(module)
    # Plain has one group of parameters, without a name.
    recorder.on_train_batch_start = lambda *_: None
    small_trainer(len(expected), GradualUnfreezing(**options), recorder).fit(module, datamodule=FewDigits())
    assert recorder.moved() == expected
    assert recorder.digests[1]["body"] == before["body"]  # its batch norm, too


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_module_that_names_no_stages_is_refused():
    class Other(L.LightningModule):
        training_step = configure_optimizers = Plain.training_step

    with pytest.raises(UserError, match=r"^GradualUnfreezing: Other names no stages; derive it from lit_ft.Staged"):
        small_trainer(2, GradualUnfreezing("lp_ft")).fit(Other(), datamodule=FewDigits())


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ({"body": ["first"], "top": ["last"]}, "parameter norm.weight is in no stage; it must be in exactly one"),
        (
            {"body": ["first", "norm"], "top": ["last", "first"]},
            "parameter first.weight is in body and in top; it must be in exactly one",
        ),
    ],
)
def test_stages_that_do_not_hold_each_parameter_once_are_refused(stages, text):
    module = Plain()
    module.stage_modules = lambda: {name: [getattr(module, part) for part in parts] for name, parts in stages.items()}
    with pytest.raises(UserError, match=rf"^Plain.stage_modules: {text}"):
        small_trainer(2, GradualUnfreezing("lp_ft")).fit(module, datamodule=FewDigits())


def test_metric_of_somebody_else_must_say_what_is_best():
    plateau = {"monitor": "val_acc", "patience": 1}
    with pytest.raises(UserError, match=r"^unfreeze.plateau.mode: say whether the min or the max of val_acc is best"):
        GradualUnfreezing("plateau", plateau=plateau).make_plan(Plain(), 9)
    plan = GradualUnfreezing("plateau", plateau={**plateau, "mode": "max"}).make_plan(Plain(), 9)
    assert plan.phases[0].plateau.mode == "max"


class HeadAlone(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.last.parameters(), lr=0.1)


def test_unfreezing_what_no_optimizer_has_is_refused():
    with pytest.raises(UserError, match=r"^HeadAlone.configure_optimizers: first.weight shall train from epoch 1 on"):
        small_trainer(3, GradualUnfreezing("lp_ft")).fit(HeadAlone(), datamodule=FewDigits())
    small_trainer(1, GradualUnfreezing("linear_probe")).fit(HeadAlone(), datamodule=FewDigits())


def test_run_of_too_few_steps_is_refused():
    trainer = small_trainer(9, GradualUnfreezing("gradual"), max_steps=4)  # of two an epoch
    with pytest.raises(UserError, match=r"^trainer.max_steps: 4 steps end the run after 2 epochs, but the last phase"):
        trainer.fit(small_module(), datamodule=FewDigits())


def test_norm_layer_in_no_stage_is_refused():
    module = Plain()
    module.extra = nn.BatchNorm1d(8, affine=False)
    with pytest.raises(UserError, match=r"^Plain.stage_modules: extra is in no stage; it must be in exactly one"):
        small_trainer(2, GradualUnfreezing("lp_ft")).fit(module, datamodule=FewDigits())


def test_frozen_stage_stays_in_eval_mode_whoever_calls_train():
    module = small_resnet(classes=10)
    module.set_trainable(["layer4", "head"])
    for caller in (module.train, module.backbone.train):
        caller()
        assert {name: stage.training for name, stage in module.backbone.stages.items()} == {
            **dict.fromkeys(["stem", "layer1", "layer2", "layer3"], False),
            "layer4": True,
        }
        assert not module.backbone.stages["stem"].bn1.training


PLATEAU = {"strategy": "plateau", "plateau": {"patience": 1, "min_delta": 9.0}}


def checkpointed(folder, max_epochs, unfreezing, module=None, ckpt_path=None):
    recorder = Recorder()
    recorder.on_train_batch_start = lambda *_: None
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    last = ModelCheckpoint(folder, "end", save_on_train_epoch_end=True)
    L.seed_everything(1)
    module = module or small_module(lr_scheduler=None)
    trainer = small_trainer(max_epochs, unfreezing, every, last, recorder)
    trainer.fit(module, datamodule=FewDigits(), ckpt_path=ckpt_path)
    return recorder, module


@pytest.mark.long
def test_longer_run_keeps_to_the_phases_that_have_begun(tmp_path):
    first = GradualUnfreezing(**PLATEAU)
    checkpointed(tmp_path / "first", 5, first)
    assert first.state.starts == [0, 2, 4]
    longer = GradualUnfreezing("plateau", plateau={"patience": 3})
    recorder, _ = checkpointed(tmp_path / "longer", 12, longer, ckpt_path=tmp_path / "first" / "end.ckpt")
    assert longer.state.starts == [0, 2, 4]
    assert recorder.moved() == [EVERYTHING] * 7


def test_checkpoint_of_other_phases_is_refused(tmp_path):
    checkpointed(tmp_path, 3, GradualUnfreezing("gradual"))
    with pytest.raises(
        UserError, match=r"^unfreeze: the checkpoint is of a run with other phases \(head; dense, head; "
    ):
        checkpointed(tmp_path / "other", 5, GradualUnfreezing("lp_ft"), ckpt_path=tmp_path / "end.ckpt")


def test_evaluating_an_earlier_checkpoint_leaves_the_phases_of_the_fit(tmp_path):
    unfreezing = GradualUnfreezing("auto", auto_threshold=1.0)
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, data = small_module(lr_scheduler=None), FewDigits()
    trainer = small_trainer(3, unfreezing, every, limit_val_batches=1, limit_test_batches=1)
    trainer.fit(module, datamodule=data)
    state = unfreezing.state.to_plain()
    assert state["starts"] == [0, 1]
    assert len(state["plan"][1]["trainable"]) == 2  # the head and one stage, which no checkpoint before has chosen
    trainer.test(module, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert unfreezing.state.to_plain() == state


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_any_module_resumes_where_it_was(tmp_path, step):
    whole, module = checkpointed(tmp_path / "whole", 6, GradualUnfreezing(**PLATEAU), Plain())
    _, again = checkpointed(
        tmp_path / "again", 6, GradualUnfreezing(**PLATEAU), Plain(), tmp_path / "whole" / f"step={step}.ckpt"
    )
    assert whole.moved()[-2:] == [{"body", "top"}] * 2
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in module.state_dict().items())


class Counting(Plain):
    """One that draws random numbers and counts in its training step."""

    def __init__(self):
        super().__init__()
        self.seen = MeanMetric()

    def training_step(self, batch):
        self.seen.update(batch[1].float())
        images = batch[0] + torch.rand(())
        return nn.functional.cross_entropy(self(images), batch[1])


def test_measuring_disturbs_neither_random_numbers_nor_loaders_nor_metrics():
    def run(unfreezing):
        torch.manual_seed(0)
        images = torch.randn(40, 1, 28, 28)
        data = torch.utils.data.TensorDataset(images, torch.arange(40) % 10)
        generator = torch.Generator().manual_seed(3)
        loader = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True, generator=generator)
        L.seed_everything(1)
        module = Counting()
        small_trainer(3, unfreezing).fit(module, loader)
        return module

    measured, named = run(GradualUnfreezing("auto", auto_threshold=1e-9)), run(GradualUnfreezing("lp_ft"))
    assert all(tensor.equal(named.state_dict()[name]) for name, tensor in measured.state_dict().items())
    assert (measured.seen.compute(), measured.seen.weight) == (named.seen.compute(), named.seen.weight)


def test_second_fit_measures_again():
    unfreezing = GradualUnfreezing("auto")
    gradients = []
    for seed in (1, 2):
        L.seed_everything(seed)
        small_trainer(2, unfreezing).fit(small_module(lr_scheduler=None), datamodule=FewDigits())
        gradients.append(unfreezing.state.gradients)
    assert gradients[0] != gradients[1]


def test_auto_is_refused_where_it_cannot_measure():
    module = Plain()
    module.automatic_optimization = False
    with pytest.raises(
        UserError, match=r"^unfreeze.strategy: auto measures the losses of training_step, which must be"
    ):
        small_trainer(2, GradualUnfreezing("auto")).fit(module, datamodule=FewDigits())


# What a fit costs


@pytest.mark.parametrize(
    ("options", "epochs", "written"),
    [
        # Conv and dense have two parameters each, and so has the head, which trains from the start.
        ({"strategy": "full"}, 2, [0, 0]),
        ({"strategy": "linear_probe"}, 2, [4, 0]),
        ({"strategy": "lp_ft"}, 3, [4, 4, 0]),
        ({"strategy": "gradual", "head_epochs": 2}, 4, [4, 0, 2, 2]),
    ],
)
def test_plan_is_made_once_and_gradients_are_switched_where_a_phase_changes_them(monkeypatch, options, epochs, written):
    made, switched = [], []

    def counted(*args):
        made.append(args)
        return make_plan(*args)

    class Switches(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            switched.append(len(calls))
            calls.clear()

    calls = []
    module = small_module(lr_scheduler=None)
    switch = nn.Parameter.requires_grad_
    monkeypatch.setattr("lit_ft.unfreezing.callback.make_plan", counted)
    monkeypatch.setattr(
        nn.Parameter, "requires_grad_", lambda self, on: (calls.append(on), switch(self, on))[1], raising=False
    )
    trainer = small_trainer(epochs, GradualUnfreezing(**options), Switches(), limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    assert len(made) == 1
    assert switched == written


def test_strategy_that_there_is_not_is_refused_at_once():
    with pytest.raises(UserError, match=r"^unfreeze.strategy: unknown strategy 'gradul'; nearest: gradual"):
        GradualUnfreezing("gradul")
