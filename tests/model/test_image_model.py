"""Models that predict, made of checkpoints without what trains them."""

import pytest
import torch
from small_runs import images_of

from lit_ft.errors import UserError
from lit_ft.model.image_model import ImageModel, build_model
from lit_ft.model.module import FineTuneModule
from lit_ft.tasks.standardisation import Standardisation

UNITS = Standardisation((1e6, 0.5), (3.0, 1e-3))
KINDS = {
    "multiclass": {"classes": ["a", "b", "c"], "head": {"hidden": [8]}, "pool": "flatten"},
    "cosine": {"classes": 3, "head": {"kind": "cosine"}, "penalty": {"kind": "l2_sp"}},
    "multilabel": {"classes": ["sun", "sea"], "task": "multilabel", "weights": None, "input": {"size": 24}},
    "regression": {"classes": ["age", "height"], "task": "regression"},
}


class OwnModule(FineTuneModule):
    """A module whose constructor sets its backbone, and adds weights that only its training needs."""

    def __init__(self, width=4, **options):
        super().__init__("mnist_cnn", weights=None, **options)
        self.extra = torch.nn.Linear(width, 1)


def checkpoint_of(module, **more):
    return {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), **more}


def known_of(features):
    return {"least_probability": 0.3, "references": torch.eye(features)[:3].half(), "farthest": 1.3}


@pytest.mark.parametrize("sees_whole_images", [False, True])  # as the first release recorded it
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_bit_for_bit_those_of_the_module_that_trains(kind, sees_whole_images, tmp_path):
    torch.manual_seed(0)
    module = FineTuneModule(**{"backbone": "mnist_cnn", "weights": "MNIST", **KINDS[kind]})
    torch.nn.init.normal_(module.head[-1].weight)
    given = checkpoint_of(module, sees_whole_images=sees_whole_images, calibration=known_of(module.head[0].in_features))
    if kind == "regression":
        given["standardisation"] = UNITS.plain()
    torch.save({**given, "pytorch-lightning_version": "2.6.0"}, tmp_path / "a.ckpt")
    trained, model = FineTuneModule.load_from_checkpoint(tmp_path / "a.ckpt"), build_model(given)
    assert type(model) is ImageModel
    assert not any(part.training for part in model.modules())
    assert model.input_spec == trained.input_spec
    assert (model.main_metric, model.device) == (trained.main_metric, trained.device)
    assert list(model.stage_modules()) == list(trained.stage_modules())
    assert model.input_spec.fit == ("squash" if sees_whole_images else "crop")
    photos = images_of(channels=3, size=50)
    for views in (None, "flip"):
        found = model.predict(photos, top_k=3, tta=views)
        assert repr(found) == repr(trained.predict(photos, top_k=3, tta=views))  # as nan is no nan
        assert {one.unlike_training for one in found} <= {True, False}
    sized = images_of(size=model.input_spec.size)
    assert model(sized).equal(trained(sized))
    if kind == "regression":
        assert min(one.values["age"] for one in found) > 999_000


def test_checkpoint_of_a_subclass_is_built_by_all_of_its_options():
    module = OwnModule(classes=["a", "b"], lr=0.1)
    given = checkpoint_of(module)
    module.write_hyperparameters(given, FineTuneModule)
    assert "backbone" not in given["hyper_parameters"]
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "extra.weight", "extra.bias"'):
        build_model(given)
    del module.extra
    given["state_dict"] = module.state_dict()
    assert build_model(given).class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "fault"), [("head.0.bias", "Missing key"), ("backbone.stages.conv.conv.0.weight", "Missing key")]
)
def test_weights_are_all_there(name, fault):
    given = checkpoint_of(FineTuneModule("mnist_cnn", weights=None, classes=2))
    del given["state_dict"][name]
    with pytest.raises(RuntimeError, match=fault):
        build_model(given)


def test_network_of_somebodys_own_is_refused_before_it_is_imported():
    given = checkpoint_of(FineTuneModule("mnist_cnn", weights=None, classes=2))
    given["hyper_parameters"]["backbone"] = {"class_path": "planted.Net", "stages": ["a"]}
    with pytest.raises(UserError, match=r"the checkpoint names planted\.Net, whose code would run"):
        build_model(given)
