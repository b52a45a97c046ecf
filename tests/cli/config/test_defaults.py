import pytest
from jsonargparse import Namespace

from lit_ft.cli.config.defaults import config_files, count_folds, default_data, settle
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.errors import UserError


@pytest.mark.parametrize("command", ["finetune", "plan", "fit", "download"])
def test_data_to_try_a_fit_with(command):
    assert default_data(command, None).class_path == "lit_ft.data.DigitsDataModule"


@pytest.mark.parametrize(
    ("command", "option"), [("predict", "predict"), ("test", "root"), ("validate", "root"), ("check", "root")]
)
def test_other_commands_need_to_be_given_data(tmp_path, command, option):
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    message = f"`data`: lit-ft {command} needs images; give `data` ImageFolderDataModule `data.{option}` FOLDER"
    with pytest.raises(UserError) as caught:
        default_data(command, str(checkpoint))
    assert caught.value.args[0] == message
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError) as caught:
        default_data(command, str(checkpoint))
    assert caught.value.args[0] == f"{message}, or `--config` {tmp_path / 'config.yaml'} for those of the run"


def test_config_from_python_is_no_file():
    assert config_files(Namespace(config=["a.yaml", None])) == ["a.yaml"]
    assert config_files(Namespace(config=None)) == []


@pytest.mark.parametrize(("files", "name"), [(["a/first.yaml", "second.yaml"], "second"), ([], "run")])
def test_run_has_the_name_of_its_last_config(files, name):
    options = Namespace(class_path="lit_ft.DigitsDataModule", init_args=Namespace())
    config = Namespace(config=files, name=None, ckpt_path=None, data=options, checkpoint=None, trainer=Namespace())
    config.refit = False
    settle(config, "fit", [])
    assert config.name == name


def test_fit_of_photos_is_said_once_and_alike(run):
    given = ("--data", "ImageFolderDataModule", "--data.fit", "pad")
    assert run("probe", *given, "--print_config").count("fit: pad\n") == 1
    with pytest.raises(UserError, match=r"^data.fit: pad, but model.input.fit is squash; leave one of them out$"):
        ConfigCLI("probe", [*given, "--model.input.fit", "squash"])
    with pytest.raises(UserError, match=r"^data.fit: unknown value 'nix'; choose from crop, pad, squash, null$"):
        ConfigCLI("probe", [*given[:3], "nix"])
    with pytest.raises(
        UserError, match=r"^data.fit: unknown value 'padd'; nearest: pad .choose from crop, pad, squash"
    ):
        ConfigCLI("probe", [*given[:3], "padd"])
    with pytest.raises(UserError, match=r"^data.fit: letterbox does not fit; give data.fit pad$"):
        ConfigCLI("probe", [*given[:3], "letterbox"])


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["--model.optimizer=SGD"], "optimizer"),
        (["--model.optimizer.momentum=0.9", "--optimizer=SGD"], "optimizer"),
        (["--model.lr_scheduler.warmup_fraction=0.3"], "lr_scheduler"),
        (["--model.lr_scheduler=null"], "lr_scheduler"),  # which is no default of the class
        (['--model={"class_path": "FineTuneModule", "init_args": {"lr_scheduler": "StepLR"}}'], "lr_scheduler"),
        (["--config=nested.yaml"], "optimizer"),
    ],
)
def test_option_that_a_section_of_its_own_would_replace_is_refused(tmp_path, monkeypatch, args, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nested.yaml").write_text("model: {optimizer: SGD}\n")
    message = f"model.{option}: would be left out there; give {option}, a section of its own"
    with pytest.raises(UserError, match=message):
        ConfigCLI("plan", args)


def test_options_of_their_own_sections_reach_the_model(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("optimizer: {class_path: SGD, init_args: {momentum: 0.9}}\nlr_scheduler: null\n")
    options = ConfigCLI("plan", [f"--config={file}"]).model_options()
    assert options["optimizer"]["init_args"]["momentum"] == 0.9
    assert options["lr_scheduler"] is None


def folded(command="finetune", limit_val_batches=None, **more):
    """The number of folds of a config of five."""
    data = Namespace(class_path="lit_ft.data.DigitsDataModule", init_args=Namespace(folds=5, fold=None))
    parts = {"ckpt_path": None, "checkpoint": Namespace(), "data": data, **more}
    return count_folds(Namespace(trainer=Namespace(limit_val_batches=limit_val_batches), **parts), command)


def test_folds_are_of_finetune_alone_and_of_no_single_one():
    assert folded() == 5
    assert folded("fit") is None
    for options in (Namespace(folds=5, fold=2), Namespace(folds=None, fold=None), Namespace()):
        assert folded(data=Namespace(init_args=options)) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ckpt_path": "x"}, "ckpt_path: resumes one run, and data.folds 5 is several; give resume their folder"),
        ({"checkpoint": None}, "checkpoint: null keeps no model of a fold to measure; leave it out, or data.folds"),
        ({"limit_val_batches": 0}, "trainer.limit_val_batches: 0 measures nothing of a fold; leave it out, or data."),
        ({"data": Namespace(init_args=Namespace(folds=1, fold=None))}, "data.folds: 1 is less than 2; give 5, as is"),
    ],
)
def test_what_does_not_go_with_folds_is_refused(more, message):
    with pytest.raises(UserError) as caught:
        folded(**more)
    assert str(caught.value).startswith(message)
