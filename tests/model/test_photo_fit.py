"""How photos become squares: what the data says, what a checkpoint records, and that all who predict do the same."""

from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from band_files import save_tiff
from lightning.pytorch.callbacks import Callback
from PIL import Image
from small_runs import FewDigits, small_trainer

from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.cli.commands.export import make_saved_data
from lit_ft.data import ImageFolderDataModule
from lit_ft.errors import UserError
from lit_ft.export.inference_model import InferenceModel
from lit_ft.model.checkpoint import all_hyperparameters, read_checkpoint
from lit_ft.model.module import FineTuneModule
from lit_ft.model.photo_fit import settle_fit
from lit_ft.serving.photo_api import PhotoAPI
from lit_ft.serving.uploads import Upload


@pytest.fixture
def root(tmp_path):
    """Long photos of two classes, whose objects are at one end or the other."""
    random = np.random.default_rng(0)
    for i in range(12):
        photo = np.full((20, 70 + i, 3), 90, np.uint8)
        start = random.integers(8) if i % 3 else 48 + random.integers(8)
        photo[4:16, start : start + 12] = random.integers(100, 255, (12, 12, 3)) * ([0, 0, 1] if i % 2 else [1, 0, 0])
        if i % 4 == 3:
            photo = photo.transpose(1, 0, 2)
        for split in ("train",) if i < 8 else ("val", "test"):
            path = tmp_path / "photos" / split / ("blue" if i % 2 else "red") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(path)
    return tmp_path / "photos"


def data_of(root, **options):
    return ImageFolderDataModule(str(root), num_workers=0, batch_size=4, **options)


def model_of(**images):
    torch.manual_seed(0)
    return FineTuneModule("mnist_cnn", weights=None, input=InputConfig(channels=3, **images), lr=1e-3)


class Answers(Callback):
    """Notes the probabilities of each evaluated image."""

    def __init__(self):
        self.found = []

    def on_validation_batch_end(self, trainer, module, outputs, *_):
        self.found.append(outputs["logits"].softmax(dim=1))

    on_test_batch_end = on_validation_batch_end


@pytest.fixture
def fitted(root, tmp_path):
    """A model that was fitted on padded photos, and its checkpoint."""
    module, trainer = model_of(), small_trainer(1)
    trainer.fit(module, datamodule=data_of(root, fit="pad"))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.nn.init.normal_(module.head[-1].weight, std=2)  # so that photos are told apart
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    return module.eval(), tmp_path / "x.ckpt"


def probabilities(predictions):
    return torch.tensor([[dict(one.top_k)[name] for name in ("blue", "red")] for one in predictions])


def test_all_who_predict_see_the_same_padded_photos(root, fitted, tmp_path):
    fitted[0].head = None  # what follows is of the checkpoint alone
    model = FineTuneModule.load_from_checkpoint(fitted[1])
    assert model.input_spec == InputSpec(28, 28, mean=(0.1307,) * 3, std=(0.3081,) * 3, fit="pad")
    paths = sorted((root / "val").rglob("*.png"))
    pixels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    padded = torch.stack([model.input_spec.geometry()(image) for image in pixels])
    with torch.no_grad():
        wanted = model(padded).softmax(dim=1)
        cropped = model(torch.stack([InputSpec(28, 28).geometry()(image) for image in pixels])).softmax(dim=1)
    assert (wanted - cropped).abs().amax(dim=1).min() > 0.01

    for options in ({}, {"fit": "pad"}, {"cache": str(tmp_path / "cache")}):
        data, answers = data_of(root, **options), Answers()
        trainer = small_trainer(1, answers)
        trainer.validate(model, datamodule=data, verbose=False)
        trainer.test(model, datamodule=data, verbose=False)
        predicted = trainer.predict(model, datamodule=data_of(root, predict=str(root / "val"), **options))
        for found in (torch.cat(answers.found[:1]), torch.cat(answers.found[1:]), predicted[0]["answers"]):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probabilities(model.predict(paths, 2)), wanted, atol=1e-5, rtol=1e-4)
    files = [Upload(path.read_bytes(), 2) for path in paths]
    api = PhotoAPI(fitted[1], "cpu", 8)
    api.model = model
    torch.testing.assert_close(probabilities(api.predict(files)), wanted, atol=1e-5, rtol=1e-4)
    flipped = probabilities(model.predict(paths, 2, tta="flip"))
    with torch.no_grad():
        both = (wanted + model(padded.flip(-1)).softmax(dim=1)) / 2
    torch.testing.assert_close(flipped, both, atol=1e-5, rtol=1e-4)

    with torch.no_grad():
        exported = torch.cat([InferenceModel(model)(image.permute(1, 2, 0)[None])[0] for image in pixels])
    # Where torch rounds once, a pixel may be one level off.
    assert (exported - wanted).abs().max() < 0.05


def test_checkpoint_has_the_fit_of_its_data(root, fitted):
    images = all_hyperparameters(read_checkpoint(fitted[1]))["input"]
    assert (images["fit"], images["size"], images["resize"]) == ("pad", 28, 28)
    again = FineTuneModule.load_from_checkpoint(fitted[1], input=InputConfig(channels=3, fit="squash"))
    assert again.input_spec == replace(fitted[0].input_spec, fit="squash")  # as it is asked for
    assert make_saved_data(fitted[1], fitted[0]).input_spec == fitted[0].input_spec


def test_images_of_a_fit_are_those_of_the_data_and_no_longer_those_of_an_earlier_one(root):
    module = model_of(resize=32)
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=1)
    for fit, wanted in (("pad", "pad"), (None, "crop"), ("squash", "squash")):
        data = data_of(root, fit=fit)
        if fit is None:
            trainer.fit(module, datamodule=data)
            assert module.input_spec.resize == 32
        else:
            with pytest.raises(UserError, match=rf"^model.input.resize: 32, but with data.fit {fit} the whole photo"):
                trainer.fit(module, datamodule=data)
            continue
        assert module.input_spec.fit == data.input_spec.fit == wanted
    module = model_of()
    for fit, wanted in (("pad", "pad"), (None, "crop"), ("squash", "squash")):
        data = data_of(root, fit=fit)
        trainer.fit(module, datamodule=data)
        assert module.input_spec.fit == data.input_spec.fit == module.hparams["input"]["fit"] == wanted


def test_other_fit_than_that_of_the_model_is_refused(root, fitted, tmp_path):
    module, path = fitted
    trainer = small_trainer(1)
    for evaluate in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(UserError, match=r"^data.fit: crop, but the model was fitted with pad; leave it out$"):
            evaluate(module, datamodule=data_of(root, fit="crop"))
    text = r"^data.fit: pad, but model.input.fit is squash; leave one of them out$"
    with pytest.raises(UserError, match=text):
        trainer.fit(model_of(fit="squash"), datamodule=data_of(root, fit="pad"))
    with pytest.raises(UserError, match=r"^data.spec.fit: crop, but model.input.fit is squash"):
        trainer.fit(model_of(fit="squash"), datamodule=data_of(root, spec=InputSpec(28, 28)))
    # A model that is not fitted yet takes that of a checkpoint, and so does its data.
    data = data_of(root)
    trainer.test(fresh := model_of(), data, path)
    assert fresh.input_spec.fit == data.input_spec.fit == "pad"
    with pytest.raises(UserError, match=r"^data.fit: squash, but the model was fitted with pad"):
        trainer.test(model_of(), data_of(root, fit="squash"), path)
    with pytest.raises(UserError, match=r"^data.fit: unknown fit 'nix' \(choose from crop, pad, squash\)$"):
        data_of(root, fit="nix")


def test_spec_of_the_data_says_its_fit_to_the_model(root):
    module, data = model_of(), data_of(root, spec=InputSpec(28, 28, fit="squash"))
    settle_fit(module, data, is_fitted_on=True)
    assert module.input_spec.fit == data.input_spec.fit == "squash"
    settle_fit(module, data_of(root, spec=InputSpec(28, 28, fit="squash"), fit="pad"), is_fitted_on=True)
    assert module.input_spec.fit == "pad"


def test_squares_are_seen_as_a_whole_whatever_the_options_say():
    for fit in (None, "crop", "squash"):
        module = FineTuneModule("mnist_cnn", weights=None, classes=10, input=InputConfig(fit=fit))
        settle_fit(module, FewDigits(), is_fitted_on=True)
        assert module.input_spec.fit == "squash"
    module = FineTuneModule("mnist_cnn", weights=None, classes=10, input=InputConfig(fit="pad"))
    with pytest.raises(UserError, match=r"^model.input.fit: pad is for photos, and images in memory are squeezed; "):
        settle_fit(module, FewDigits(), is_fitted_on=True)
    module = FineTuneModule("mnist_cnn", weights=None, classes=10, input=InputConfig(resize=32))
    settle_fit(module, FewDigits(), is_fitted_on=False)
    assert (module.input_spec.fit, module.input_spec.resize) == ("crop", 32)
    settle_fit(module, FewDigits(), is_fitted_on=True)
    assert module.hparams["input"]["resize"] == module.input_spec.resize == 28
    settle_fit(module, L.LightningDataModule(), is_fitted_on=True)  # which says nothing
    assert module.input_spec.fit == "squash"


def test_squares_are_seen_as_a_whole_after_their_checkpoint_is_loaded_again(tmp_path):
    """Also by a network whose own images are squashed with a margin, as of some of timm."""
    module, trainer = model_of(), small_trainer(1, limit_train_batches=1, limit_val_batches=1)
    module.own_spec = replace(module.own_spec, fit="squash", resize=32)
    trainer.fit(module, datamodule=OfColour())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    trainer.test(module, OfColour(), tmp_path / "x.ckpt", verbose=False)
    assert (module.input_spec.fit, module.input_spec.resize) == ("squash", 28)


class OfColour(FewDigits):
    """Digits of three channels."""

    def read_splits(self):
        splits = super().read_splits()
        return {name: replace(split, images=split.images.expand(-1, 3, -1, -1)) for name, split in splits.items()}


def test_raw_values_are_padded_with_the_mean_of_the_training_images(tmp_path):
    for i in range(12):
        values = np.random.default_rng(i).integers(1000, 4000, (20, 36, 4)).astype(np.uint16)
        save_tiff(tmp_path / "set" / "ab"[i % 2] / f"{i}.tif", values)
    data = data_of(tmp_path / "set", bands="all", val_fraction=0.4, augment="none", fit="pad")
    module = FineTuneModule("mnist_cnn", "MNIST")
    small_trainer(1, limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=data)
    assert (data.input_spec.fit, data.input_spec.mean) == ("pad", module.input_spec.mean)
    assert min(module.input_spec.mean) > 0
    images, _ = next(iter(data.val_dataloader()))
    made = module.normalise(images)
    assert made.shape[1:] == (4, 28, 28)
    assert module.input_spec.resized(20, 36) == (16, 28)
    assert not made[:, :, [0, 5, 22, 27]].any()
    assert made[:, :, 6:22].std() > 0.1


class OfItsOwn(FineTuneModule):
    """A subclass whose constructor knows nothing of images."""

    def __init__(self, lr=1e-3, **others):
        super().__init__("mnist_cnn", weights=None, input=InputConfig(channels=3), lr=lr, **others)


def test_subclass_without_the_option_has_the_fit_of_its_checkpoint(root, tmp_path):
    trainer = small_trainer(1, limit_train_batches=1, limit_val_batches=1)
    trainer.fit(OfItsOwn(), datamodule=data_of(root, fit="pad"))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert "input" not in read_checkpoint(tmp_path / "own.ckpt")["hyper_parameters"]
    assert OfItsOwn.load_from_checkpoint(tmp_path / "own.ckpt", classes=2).input_spec.fit == "pad"


@pytest.mark.parametrize(
    ("old", "wanted"),
    [
        ({"squash": True, "resize": 32}, ("squash", 32)),
        ({"squash": False, "resize": 32}, ("crop", 32)),
        ({"squash": False, "resize": 32, "sees_whole_images": True}, ("squash", 28)),
    ],
)
def test_checkpoint_of_the_first_release_is_read_as_it_was_meant(fitted, tmp_path, old, wanted):
    content, old = read_checkpoint(fitted[1]), dict(old)
    images = content["hyper_parameters"]["input"]
    del images["fit"]
    content["sees_whole_images"] = old.pop("sees_whole_images", False)
    images |= old
    torch.save(content, path := tmp_path / "old.ckpt")
    found = FineTuneModule.load_from_checkpoint(path)
    assert (found.input_spec.fit, found.input_spec.resize) == wanted
    options = all_hyperparameters(read_checkpoint(path))["input"]
    assert (options["fit"], options["resize"], "squash" in options) == (*wanted, False)
    assert found.hparams["input"] == options
