"""What a checkpoint or a config names is imported and called only where it may be."""

import sys
from io import BytesIO
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from small_runs import FewDigits, small_module, small_trainer
from torch import nn

from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.weights.trust import network_class, refuse_foreign
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule

STAGES = {"low": "low", "high": "high"}
NET = {"class_path": f"{__name__}.Net", "stages": STAGES}
DIGITS = ("--data", "DigitsDataModule", "--data.shots", 2)
CALLED = f"{__name__}.Called"
MARKER = Path("ran")


class Net(nn.Module):
    """The user's own network."""

    def __init__(self, width=4):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)

    def forward(self, images):
        return self.high(self.low(images).relu()).mean((2, 3))


class Called:
    """Leaves a marker."""

    def __init__(self, file: str):
        Path(file).touch()


class OwnNet(FineTuneModule):
    """A module that names its network itself."""

    def __init__(self, width=4):
        super().__init__({**NET, "init_args": {"width": width}}, None, input={"size": 8}, classes=2)


def calls(*below, **around):
    """What leaves a marker where it is called, alone or as an option of what is named."""
    spec = {"class_path": CALLED, "init_args": {"file": str(MARKER)}}
    for path in below:
        spec = {"class_path": path, "init_args": {"option": spec}}
    return {**spec, **around}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty folder, with a module that leaves a marker when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("planted.py").write_text(
        f"import pathlib, torch\npathlib.Path('{MARKER}').touch()\nclass Net(torch.nn.Module): pass\n"
        "class Slow(torch.optim.SGD): pass\ndef rate(step): return 1.0\n"
    )
    yield tmp_path
    sys.modules.pop("planted", None)


@pytest.fixture(scope="module")
def good():
    """A checkpoint of a short run."""
    trainer, module = small_trainer(1, limit_train_batches=1, limit_val_batches=1), small_module()
    trainer.fit(module, datamodule=FewDigits())
    file = BytesIO()
    torch.save(trainer._checkpoint_connector.dump_checkpoint(), file)
    return file.getvalue()


@pytest.fixture
def changed(good, empty):
    """Writes that checkpoint with other hyperparameters, and gives its path."""

    def write(*, without=(), around=None, **hparams):
        checkpoint = torch.load(BytesIO(good), weights_only=True)
        kept = {key: value for key, value in checkpoint["hyper_parameters"].items() if key not in without}
        path = empty / "changed.ckpt"
        torch.save({**checkpoint, "hyper_parameters": {**kept, **hparams}, **(around or {})}, path)
        return path

    return write


POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(MARKER)]}, "stages": {"a": "x"}}
FOREIGN = {
    "subprocess.Popen": POPEN,
    CALLED: calls(stages=STAGES),
    "planted.Net": {"class_path": "planted.Net", "stages": STAGES},
    # Through what may be named.
    "nested": calls("torch.nn.Identity", stages={"a": "x"}),
    "lit_ft.model.module.FineTuneModule": {
        "class_path": "lit_ft.model.module.FineTuneModule",
        "init_args": {"backbone": "mnist_cnn", "weights": "DEFAULT"},
        "stages": STAGES,
    },
    "torch.hub.load_state_dict_from_url": {"class_path": "torch.hub.load_state_dict_from_url", "stages": STAGES},
    "torch.nn.modules.Path": {"class_path": "lit_ft.model.checkpoint.Path", "stages": STAGES},
}


@pytest.mark.parametrize("network", FOREIGN.values(), ids=FOREIGN)
def test_checkpoint_runs_no_code_of_a_network_that_nobody_named(changed, network):
    path = changed(backbone=network)
    with pytest.raises(UserError, match=r"^(ckpt_path: the checkpoint names|model.backbone.class_path: \S+ is no) "):
        FineTuneModule.load_from_checkpoint(path)
    assert not MARKER.exists()


@pytest.mark.parametrize("command", ["predict", "test", "validate"])
@pytest.mark.parametrize("network", ["subprocess.Popen", "planted.Net", "nested"])
def test_command_runs_no_code_of_a_checkpoint(changed, refused, command, network, tmp_path):
    path = changed(backbone=FOREIGN[network])
    line = refused(command, "--ckpt_path", path, *DIGITS)
    named = CALLED if network == "nested" else network
    assert f"--ckpt_path: the checkpoint names {named}, whose code would run; if you trust it" in line
    assert not any(Path(folder, MARKER).exists() for folder in (tmp_path, "."))


def test_where_a_checkpoint_hides_its_network_makes_no_difference(changed, good):
    inner = {"class_path": "planted.Net", "stages": STAGES}
    hidden = [
        changed(without=["backbone"], around={"hparams": {"backbone": inner}}),
        changed(without=["backbone"], around={"module_arguments": {"backbone": inner}}),
        changed(**inner, around={"hparams_name": "backbone"}),
    ]
    for path in hidden:
        with pytest.raises(UserError, match=r"^ckpt_path: the checkpoint names planted.Net"):
            FineTuneModule.load_from_checkpoint(path)
    FineTuneModule.load_from_checkpoint(changed(_instantiator="planted.rate", _class_path="planted.Net"))
    assert not MARKER.exists()


SPEC = {"class_path": "planted.Slow"}
RATE = {"class_path": "LambdaLR", "init_args": {"lr_lambda": "planted.rate"}}
OTHERS = {
    "optimizer": [SPEC, calls(), calls("torch.optim.SGD"), "planted.Slow"],
    "lr_scheduler": [RATE, SPEC, calls(), calls("torch.optim.lr_scheduler.StepLR"), {"schedulers": [RATE]}],
    "weights": ["planted.pth", "IMAGENET1K_V9"],
    "source_weights": ["planted.pth", "planted.py"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OTHERS.items() for value in values])
def test_what_else_a_checkpoint_names_is_left_alone(changed, run, monkeypatch, key, value, tmp_path):
    path = changed(**{key: value})
    monkeypatch.setattr("lit_ft.backbones.weights.load.read", lambda *_: pytest.fail("opened a file of weights"))
    FineTuneModule.load_from_checkpoint(path)
    assert "test/acc" in run("test", "--ckpt_path", path, *DIGITS)
    assert "planted" not in sys.modules
    assert not any(Path(folder, MARKER).exists() for folder in (tmp_path, "."))


@pytest.mark.parametrize("key", ["head", "mix", "penalty", "input", "classes", "task", "lr", "pool", "class_weight"])
@pytest.mark.parametrize("spec", [calls(), {"class_path": "planted.Net"}], ids=["called", "imported"])
def test_class_where_a_checkpoint_has_options_is_left_alone(changed, refused, key, spec, tmp_path):
    path = changed(**{key: spec})
    assert f"the checkpoint names {spec['class_path']}, whose code" in refused("validate", "--ckpt_path", path, *DIGITS)
    assert not any(Path(folder, MARKER).exists() for folder in (tmp_path, "."))


@pytest.mark.parametrize(
    "options", [{"optimizer": SPEC}, {"lr_scheduler": RATE}], ids=lambda options: next(iter(options))
)
def test_fit_of_a_loaded_module_imports_no_more_unless_it_is_named(changed, options):
    [key] = options
    path = changed(**options)
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(UserError, match=rf"^model.{key}: the checkpoint names planted\.\w+, whose code would run"):
        trainer.fit(FineTuneModule.load_from_checkpoint(path), datamodule=FewDigits())
    assert not MARKER.exists()
    trainer.fit(FineTuneModule.load_from_checkpoint(path, **options), datamodule=FewDigits())
    assert MARKER.exists()


@pytest.fixture
def own_checkpoint(empty):
    """A checkpoint with a network of the user's own."""

    def save(module):
        hparams = {"hparams_name": "kwargs", "hyper_parameters": dict(module.hparams)}
        torch.save(
            {**hparams, "state_dict": module.state_dict(), "pytorch-lightning_version": L.__version__}, "own.ckpt"
        )
        return module

    return save


def test_user_who_names_the_network_gets_it(own_checkpoint):
    module = own_checkpoint(FineTuneModule(NET, None, input={"size": 8}, classes=2))
    with pytest.raises(UserError, match=rf"^ckpt_path: the checkpoint names {__name__}.Net"):
        FineTuneModule.load_from_checkpoint("own.ckpt")
    loaded = FineTuneModule.load_from_checkpoint("own.ckpt", backbone=NET)
    images = torch.randn(2, 3, 8, 8)
    assert loaded.eval()(images).equal(module.eval()(images))


def test_subclass_that_names_its_network_needs_no_more(own_checkpoint):
    module = own_checkpoint(OwnNet(width=6))
    loaded = OwnNet.load_from_checkpoint("own.ckpt")
    images = torch.randn(2, 3, 8, 8)
    assert loaded.eval()(images).equal(module.eval()(images))


MINE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
    def forward(self, images):
        return self.high(self.low(images).relu()).mean((2, 3))
"""


@pytest.mark.long
def test_config_of_the_run_names_the_network(run, refused, tmp_path, monkeypatch):
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    network = {"class_path": "mine.Net", "stages": STAGES, "channels": 1}
    config = {"model": {"backbone": network, "weights": None, "input": {"size": 8}}, "data": "DigitsDataModule"}
    Path("net.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run("fit", "--config", "net.yaml", "--trainer.max_epochs", 1, "--unfreeze.strategy", "full", "--data.shots", 2)
    best = "logs/net/version_0/checkpoints/best.ckpt"
    assert "the checkpoint names mine.Net" in refused("test", "--ckpt_path", best, *DIGITS)
    assert "test/acc" in run("test", "--config", "logs/net/version_0/config.yaml", "--ckpt_path", best)
    assert "test/acc" in run("test", "--model.backbone.class_path", "mine.Net", "--ckpt_path", best, *DIGITS)
    del sys.modules["mine"]


@pytest.mark.parametrize("command", ["plan", "fit"])
@pytest.mark.parametrize(
    ("network", "text"),
    [
        (POPEN, "--model.backbone.class_path: subprocess.Popen is no class derived from torch.nn.Module"),
        (
            {"class_path": "torchvision.models.resnet18", "stages": STAGES},
            "--model.backbone.class_path: torchvision.models.resnet18 is no class derived from torch.nn.Module",
        ),
        (calls("torch.nn.Identity", stages=STAGES), "--model.backbone.stages: low: no parameter fits 'low'"),
    ],
    ids=["a class of another kind", "a function", "options"],
)
def test_config_has_nothing_called_but_networks(refused, command, network, text):
    Path("net.yaml").write_text(yaml.safe_dump({"model": {"backbone": network, "weights": None}}, sort_keys=False))
    assert refused(command, "--config", "net.yaml", *DIGITS) == f"lit-ft: {text}"
    assert not MARKER.exists()


def test_build_calls_nothing_but_networks(empty):
    for path in (CALLED, "builtins.exec", "torch.nn.functional.relu"):
        with pytest.raises(UserError, match=rf"^model.backbone.class_path: {path} is no class derived from"):
            build_backbone(calls(class_path=path, stages=STAGES), None, spec=InputSpec(size=8))
    assert not MARKER.exists()


def test_networks_of_the_libraries_may_be_named_by_a_checkpoint():
    refuse_foreign({"class_path": "torchvision.models.SqueezeNet"}, None)
    refuse_foreign("resnet18", None)
    assert network_class("torch.nn.Linear") is nn.Linear
    for path in ("torchy.Net", "builtins.dict", "lightning.LightningModule"):
        with pytest.raises(UserError, match=rf"names {path}, whose code would run"):
            refuse_foreign({"class_path": path}, "resnet18")


def test_class_of_others_within_a_library_is_refused(monkeypatch):
    monkeypatch.setattr(nn, "Foreign", Net, raising=False)  # as a package that puts its own there would
    with pytest.raises(UserError, match=r"names torch.nn.Foreign, whose code would run"):
        refuse_foreign({"class_path": "torch.nn.Foreign"}, None)


def test_checkpoint_in_an_open_file_is_read_from_where_it_stands(good):
    assert isinstance(FineTuneModule.load_from_checkpoint(BytesIO(good)), L.LightningModule)
