import pytest

from lit_ft.cli.config.keywords import name_as_given, settle_keywords
from lit_ft.cli.config.other_names import OTHER_NAMES
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError


def test_short_names_become_full_ones_in_their_order():
    given = {"epochs": 3, "model": {"lr": 0.1}, "seed": 1, "batch_size": 8, "image_size": 64}
    assert settle_keywords(given) == {
        "trainer.max_epochs": 3,
        "model": {"lr": 0.1},
        "seed_everything": 1,
        "data.batch_size": 8,
        "model.input.size": 64,
    }


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("lr", 1e-5, "give model={'lr': 1e-05} (of the head; a recipe may set model.lr_backbone as well)"),
        ("num_epochs", 3, "give epochs=3"),
        ("imgsz", (224, 224), "give image_size=224"),
        ("pretrained", False, "give model={'weights': None}"),
        (
            "pretrained",
            True,
            "the weights are pretrained by default; leave it out, or for random ones: model.weights null",
        ),
        ("device", "cuda:1", "give trainer={'accelerator': 'gpu', 'devices': [1]}"),
        ("wd", 0.1, "give optimizer={'class_path': 'AdamW', 'init_args': {'weight_decay': 0.1}}"),
        ("ema", True, "give trainer={'callbacks': [{'class_path': 'EMAWeightAveraging'}]}"),
        ("lr_mult", 100, "give model={'lr_decay': 0.6}, the factor from a stage to the next shallower one"),
        ("data_dir", "My Photos", "the folder of photos is the first argument of lit_ft.finetune"),
        ("cfg", "a.yaml", "give recipe='a.yaml'"),
        ("fp16", True, "give trainer={'precision': '16-mixed'}"),
    ],
)
def test_name_of_another_tool_is_answered_with_arguments(name, value, instead):
    with pytest.raises(UserError) as refused:
        settle_keywords({name: value})
    assert str(refused.value) == f"{name}: there is no such argument; {instead}"


def test_swa_has_its_rate_among_its_options():
    with pytest.raises(UserError, match=r"'StochasticWeightAveraging', 'init_args': \{'swa_lrs': 0.001\}\}\]\}$"):
        settle_keywords({"swa": True})


@pytest.mark.parametrize("value", [None, True, 3, "abc"])
def test_no_answer_has_signs_of_the_command_line(value):
    for name in OTHER_NAMES.keys() - {"version"}:
        try:
            settle_keywords({name: value})
        except UserError as error:
            assert not {"`", "--"} & set(str(error)), error  # noqa: PT017
            assert "VALUE" not in str(error)  # noqa: PT017


def test_error_has_the_short_name_that_was_given():
    for given, named in (("epochs", "epochs: ten"), ("lr", "trainer.max_epochs: ten")):
        with pytest.raises(UserError, match=f"^{named} does not fit"), name_as_given({given: "ten"}):
            raise UserError("`trainer.max_epochs`: ten does not fit")
    with pytest.raises(UserCodeError) as caught, name_as_given({"epochs": 3}):
        raise UserCodeError("`trainer.max_epochs`: fails", "its traceback")
    assert (str(caught.value), caught.value.trace) == ("epochs: fails", "its traceback")
