from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_ft.assets import data_root
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import DigitsDataModule, ImageDataModule
from lit_ft.errors import UserError


class FakeTrainer(SimpleNamespace):
    """What a data module asks of the Trainer, as the second of two processes."""

    def __init__(self, spec=None, seed=11, **options):
        module = SimpleNamespace(input_spec=spec) if spec else SimpleNamespace()
        progress = SimpleNamespace(current=SimpleNamespace(processed=0))
        defaults = {
            "lightning_module": module,
            "strategy": SimpleNamespace(broadcast=lambda _: seed, root_device=torch.device("cpu")),
            "global_rank": 1,
            "world_size": 2,
            "overfit_batches": 0,
            "train_dataloader": None,
            "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        }
        super().__init__(**{**defaults, **options})


def attached(trainer, **options):
    data = DigitsDataModule(**options)
    data.trainer = trainer
    data.setup()
    return data


def test_size_comes_from_the_option_then_the_model_then_the_default():
    small, large = InputSpec(size=32, resize=32), InputSpec(size=40, resize=40)
    assert attached(FakeTrainer(small), spec=large).input_spec == large
    assert attached(FakeTrainer(small)).input_spec == small
    assert attached(FakeTrainer()).input_spec == InputSpec()
    assert next(iter(attached(FakeTrainer(small)).val_dataloader()))[0].shape == (32, 1, 32, 32)


def test_another_model_changes_the_size_and_not_the_images():
    data = attached(FakeTrainer(InputSpec(size=32, resize=32)))
    data.trainer = FakeTrainer(InputSpec(size=36, resize=36))
    splits = data.splits
    data.setup()
    assert data.input_spec.size == 36
    assert data.splits is splits


def test_order_seed_is_the_one_that_all_processes_share():
    torch.manual_seed(4)
    data = attached(FakeTrainer(seed=123))
    assert data.train_dataloader().sampler.seed == 123
    torch.manual_seed(4)
    alone = DigitsDataModule()
    assert alone.train_dataloader().sampler.seed == 4


def test_order_seed_is_kept_by_a_resume():
    torch.manual_seed(4)
    data = DigitsDataModule()
    data.train_dataloader()
    torch.manual_seed(5)
    assert data.train_dataloader().sampler.seed == 4
    resumed = DigitsDataModule()
    resumed.load_state_dict(data.state_dict())
    assert resumed.train_dataloader().sampler.seed == 4


def test_loaders_follow_rank_and_world_size():
    data = attached(FakeTrainer(InputSpec(size=28, resize=28)))
    sampler = data.val_dataloader().sampler
    assert (sampler.rank, sampler.world_size, sampler.batch_size) == (1, 2, 32)
    assert torch.cat([i for _, i in data.predict_dataloader()]).tolist() == list(range(1, 1000, 2))


def test_only_training_shuffles_and_not_when_overfitting():
    data = attached(FakeTrainer())
    assert [x.sampler.shuffle for x in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())] == [
        True,
        False,
        False,
    ]
    assert not attached(FakeTrainer(overfit_batches=2)).train_dataloader().sampler.shuffle


def test_loaders_work_without_a_trainer_or_setup():
    assert sum(len(y) for _, y in DigitsDataModule().val_dataloader()) == 300


def test_data_root_is_the_option_then_the_variable_then_data(monkeypatch, tmp_path):
    assert str(data_root(None)) == "data"
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    assert str(data_root("mine")) == "mine"
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(data_root("~/x")) == "/home/ann/x"


@pytest.mark.parametrize("name", ["MNISTToEMNIST", "CIFAR10", "Digits", "ImageFolder"])
def test_command_line_knows_every_option(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    own = {
        "ImageFolder": ["--data.root=x", "--data.num_workers=0", "--data.shots=3"],
        "Digits": ["--data.shots=null"],
    }.get(name, ["--data.root=x", "--data.shots=3", "--data.val_fraction=0.3"])
    common = ["--data.batch_size=7", "--data.augment=none", "--data.split_seed=5", "--data.spec.size=40"]
    parsed = parser.parse_args([f"--data=lit_ft.data.{name}DataModule", *own, *common])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.49
    data = instantiate(parsed).data
    assert (data.batch_size, data.augment, data.split_seed, data.spec.size) == (7, "none", 5, 40)
    assert getattr(data, "shots", 3) == (None if name == "Digits" else 3)


def test_few_labels_change_the_training_images_alone():
    few = ({"shots": None}, {"shots": 3}, {"shots": None, "fraction": 0.5})
    whole, shots, fraction = (DigitsDataModule(**options) for options in few)
    for data in (whole, shots, fraction):
        data.setup()
    assert shots.counts()["train"] == [3] * 10
    assert fraction.counts()["train"] == [round(n / 2) for n in whole.counts()["train"]]
    assert all(x.splits[s].rows.equal(whole.splits[s].rows) for x in (shots, fraction) for s in ("val", "test"))


def test_balanced_sampling_is_for_training_alone():
    data = DigitsDataModule(shots=None, sampling="balanced", augment="none")
    [counts] = [torch.cat([y for _, y in data.train_dataloader()]).bincount()]
    assert sorted(counts.tolist()) == [49] * 3 + [50] * 7
    assert sum(len(y) for _, y in data.val_dataloader()) == 300
    assert data.val_dataloader().sampler.classes is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "data.shots: 0 is less than 1"),
        ({"fraction": 0.5}, "data.fraction: 0.5 and data.shots 10 cannot both be; set one to null"),
        ({"shots": None, "fraction": 1.5}, "data.fraction: 1.5 is not a fraction between 0 and 1"),
        ({"sampling": "balance"}, "data.sampling: unknown sampling 'balance'; nearest: balanced"),
        ({"split_seed": -1}, "data.split_seed: -1 is not between 0 and"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        DigitsDataModule(**options)


def test_data_module_with_other_splits_has_a_state_of_its_own():
    data = DigitsDataModule(shots=2)
    data.setup()
    before = dict(data.splits)
    other = data.with_splits({"train": data.splits["val"], "val": data.splits["train"]})
    assert len(other.train_dataloader().source) == len(before["val"])
    assert data.splits == before
    assert data.order_seed is None
    assert other._sources is not data._sources
    assert other.position is not data.position
    assert (other.position.owner.__self__, data.position.owner.__self__) == (other, data)
