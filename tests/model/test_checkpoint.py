import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from small_runs import FewDigits, small_trainer

from lit_ft.errors import UserError
from lit_ft.model.checkpoint import hyper_parameters
from lit_ft.model.heads import HeadConfig
from lit_ft.model.module import FineTuneModule
from lit_ft.model.preprocessing import MixConfig

pytestmark = pytest.mark.filterwarnings("ignore")


class WithOptions(FineTuneModule):
    """Hands on what it does not know."""

    def __init__(self, alpha=0.5, **options):
        super().__init__("mnist_cnn", **options)
        self.alpha = alpha


class WithSignature(FineTuneModule):
    """Has options of its own alone."""

    def __init__(self, width=8):
        super().__init__("mnist_cnn", weights=None, head={"hidden": [width]}, lr=0.02)


class WithBackbone(FineTuneModule):
    def __init__(self, backbone, *, beta=1, **options):
        super().__init__(backbone, **options)
        self.save_hyperparameters()  # as Lightning's pages do
        self.beta = beta


class WithAnything(FineTuneModule):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Derived(WithOptions):
    def __init__(self, gamma, **options):
        super().__init__(alpha=0.25, **options)
        self.gamma = gamma


HEAD = HeadConfig(hidden=[4])
MADE = {
    "options": lambda: WithOptions(alpha=0.75, weights="MNIST", head=HEAD),
    "no options": lambda: WithOptions(weights=None),
    "signature": lambda: WithSignature(width=5),
    "backbone": lambda: WithBackbone("mnist_cnn", beta=3, weights="MNIST", head=HEAD, mix=MixConfig(mixup=0.2)),
    "anything": lambda: WithAnything("mnist_cnn", weights="MNIST", head=HEAD),
    "derived": lambda: Derived(7, weights="MNIST", lr=0.125),
    "itself": lambda: FineTuneModule("mnist_cnn", weights="MNIST", head=HEAD, mix=MixConfig(mixup=0.2)),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_any_subclass_is_loaded_from_its_checkpoint(make, tmp_path):
    module = make()
    trainer = small_trainer(1, limit_val_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    loaded = type(module).load_from_checkpoint(path)
    assert loaded.class_names == module.class_names
    for name in ("alpha", "beta", "gamma"):
        assert getattr(loaded, name, None) == getattr(module, name, None)
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert loaded.eval()(images).equal(module.eval()(images))
    settled = {name: value for name, value in module.hparams.items() if name != "source_weights"}
    assert {name: value for name, value in loaded.hparams.items() if name != "source_weights"} == settled
    # As the command line sees it, and for a run that is resumed, all of them are there.
    assert hyper_parameters(str(path), "predict", "") == dict(module.hparams)
    small_trainer(1).validate(make(), datamodule=FewDigits(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_hyperparameters_are_written_as_plain_yaml(make, logger, tmp_path):
    module = make()
    trainer = small_trainer(1, limit_val_batches=0, logger=logger(tmp_path, name="run", version=0))
    trainer.fit(module, datamodule=FewDigits())
    written = yaml.safe_load((tmp_path / "run/version_0/hparams.yaml").read_text())
    assert written == dict(module.hparams)
    assert written["classes"] == [str(i) for i in range(10)]
    assert written["weights"] is None


def test_argument_of_a_subclass_may_be_an_array(tmp_path):
    class Own(FineTuneModule):
        def __init__(self, sizes, **options):
            super().__init__("mnist_cnn", **options)
            self.sizes = sizes

    module = Own(np.array([1, 2]), weights=None)
    assert module.hparams["backbone"] == "mnist_cnn"
    assert module.hparams["sizes"].tolist() == [1, 2]


class WithLoss(FineTuneModule):
    """Takes what no checkpoint holds, and says so, as Lightning's pages do."""

    def __init__(self, criterion, sizes, weight, **options):
        super().__init__("mnist_cnn", **options)
        self.save_hyperparameters(ignore=["criterion"])
        self.criterion, self.sizes, self.weight = criterion, sizes, weight

    def training_step(self, batch, batch_idx):
        images, targets = batch
        return self.criterion(self(images), targets)


def test_hyperparameter_that_a_subclass_adds_by_hand_keeps_no_checkpoint_from_being_read(tmp_path):
    module = WithOptions(weights=None)
    module.hparams["activation"] = torch.nn.ReLU()
    trainer = small_trainer(1, limit_train_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    assert "activation" not in WithOptions.load_from_checkpoint(path).hparams


class WithFunctions(FineTuneModule):
    def __init__(self, activation=torch.nn.ReLU, squash=torch.tanh, **options):
        super().__init__("mnist_cnn", **options)
        self.functions = activation, squash


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, []),
        ({"activation": torch.nn.ReLU}, []),
        ({"activation": torch.nn.GELU}, ["activation"]),
        ({"squash": torch.sigmoid}, ["squash"]),
    ],
)
def test_function_or_class_that_is_no_default_is_asked_for_and_never_replaced(tmp_path, given, missing):
    module = WithFunctions(**given, weights=None, optimizer=torch.optim.SGD)
    trainer = small_trainer(1, limit_train_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    for name in missing:
        with pytest.raises(UserError, match=rf"^`{name}`: .* load_from_checkpoint\(..., {name}=...\)"):
            WithFunctions.load_from_checkpoint(path)
    loaded = WithFunctions.load_from_checkpoint(path, **{name: given[name] for name in missing})
    assert loaded.functions == module.functions


def test_arguments_that_no_checkpoint_holds_are_left_out_and_given_again(tmp_path):
    others, weight = (torch.nn.CrossEntropyLoss(), np.array([1, 2])), torch.tensor([1.0, 2.0])
    module = WithLoss(*others, weight, weights=None, lr=0.02)
    trainer = small_trainer(1, limit_train_batches=1)
    trainer.fit(module, datamodule=FewDigits())
    trainer.save_checkpoint(path := tmp_path / "a.ckpt")
    assert set(module.hparams) - set(torch.load(path, weights_only=True)["all_hyper_parameters"]) == {
        "criterion",
        "sizes",
    }
    with pytest.raises(
        UserError, match=r"^`sizes`: is neither a plain value nor a tensor, and so in no checkpoint; give"
    ):
        WithLoss.load_from_checkpoint(path, criterion=others[0])
    loaded = WithLoss.load_from_checkpoint(path, criterion=others[0], sizes=others[1])
    assert loaded.hparams["lr"] == 0.02
    assert loaded.weight.equal(weight)
    small_trainer(1).validate(module, datamodule=FewDigits(), ckpt_path=path, verbose=False)
    resumed = small_trainer(2, limit_train_batches=1)
    resumed.fit(WithLoss(*others, weight, weights=None, lr=0.02), datamodule=FewDigits(), ckpt_path=path)
    assert resumed.global_step == 2
