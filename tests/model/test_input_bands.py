import numpy as np
import pytest
import torch
from band_files import save_set
from small_runs import ALL_MIXES
from torch import nn

from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.stem import adapted
from lit_ft.data import ImageFolderDataModule
from lit_ft.errors import UserError
from lit_ft.model.input_bands import leave_out_bands, plain_input
from lit_ft.model.module import FineTuneModule
from lit_ft.training.trainer import Trainer

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return save_set(tmp_path_factory.mktemp("bands") / "set", each=6)


def bands_of(root, bands="all", **options):
    return ImageFolderDataModule(str(root), bands=bands, num_workers=0, val_fraction=0.4, augment="none", **options)


def module_for(**options):
    return FineTuneModule("mnist_cnn", "MNIST", **options)


def first_convolution(module):
    return next(part for part in module.modules() if isinstance(part, nn.Conv2d))


def test_module_takes_bands_and_their_statistics_from_its_data(root):
    module, data = module_for(lr=1e-12), bands_of(root)
    before = first_convolution(module).weight.detach().clone()
    Trainer(**QUIET, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=data)
    spec = module.input_spec
    assert (spec.bands, spec.channels, spec.size) == ("all", 4, 28)
    assert (spec.mean, spec.std) == (data.measured_spec().mean, data.measured_spec().std)
    torch.testing.assert_close(first_convolution(module).weight.detach(), adapted(before, 4))
    assert module.hparams["input"] == plain_input(spec)
    assert InputConfig(**module.hparams["input"]).applied_to(InputSpec()) == spec
    raw = torch.rand(2, 4, 28, 28) * 4000
    wanted = (raw - torch.tensor(spec.mean).view(-1, 1, 1)) / torch.tensor(spec.std).view(-1, 1, 1)
    given = raw.clone()
    torch.testing.assert_close(module.normalise(given), wanted)
    assert torch.equal(given, raw)  # which is the caller's


def test_checkpoint_needs_no_data(root, tmp_path):
    module, data = module_for(), bands_of(root, [4, 1])
    trainer = Trainer(**QUIET)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = FineTuneModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.input_spec == module.input_spec
    images = torch.rand(2, 2, 28, 28) * 4000
    module.eval()
    assert torch.equal(loaded(images), module(images))

    class Own(FineTuneModule):
        def __init__(self):
            super().__init__("mnist_cnn", None)

    Trainer(**QUIET).fit(own := Own(), datamodule=data)
    trainer = own.trainer
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = Own.load_from_checkpoint(tmp_path / "own.ckpt")
    assert again.input_spec.mean == module.input_spec.mean
    assert torch.equal(again(images), own.eval()(images))


def test_own_mean_and_deviation_are_kept(root, monkeypatch):
    monkeypatch.setattr("lit_ft.data.modules.photos.measure_bands", None)
    given = {"bands": [4, 1], "mean": [2900.0, 2000.0], "std": [60.0, 1000.0]}
    for bands in ([4, 1], None):
        module = module_for(input=given)
        Trainer(**QUIET, limit_train_batches=1, limit_val_batches=1).fit(module, datamodule=bands_of(root, bands))
        assert (module.input_spec.mean, module.input_spec.bands) == ((2900.0, 2000.0), (4, 1))


@pytest.mark.parametrize(
    ("options", "trainer", "reason"),
    [
        ({"input": {"channels": 3}}, {}, "model.input.channels: 3, but data.bands gives 4; leave it out"),
        ({"input": {"mean": [0.5]}}, {}, "model.input.mean: is computed from the training images for data.bands"),
        ({"input": {"std": [0.5]}}, {}, "model.input.std: is computed from the training images for data.bands"),
        ({}, {"precision": "bf16-true"}, "trainer.precision: bf16-true would round raw values .* give bf16-mixed"),
        ({"input": {"bands": [1], "mean": [1.0], "std": [1.0]}}, {}, r"data.bands: all, but the model takes \[1\]"),
    ],
)
def test_options_that_contradict_the_bands_are_refused(root, options, trainer, reason):
    with pytest.raises(UserError, match=reason):
        Trainer(**QUIET, **trainer).fit(module_for(**options), datamodule=bands_of(root))


def test_channels_that_agree_need_no_adapting(root):
    module = module_for(input={"channels": 4}, lr=1e-12)
    before = first_convolution(module).weight.detach().clone()
    Trainer(**QUIET, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=bands_of(root))
    torch.testing.assert_close(first_convolution(module).weight.detach(), before)


def test_model_of_photos_does_not_evaluate_bands(root):
    module = module_for(classes=["calm", "rough"])
    module._seed = 0  # as of a fit
    with pytest.raises(UserError, match=r"data.bands: the model was fitted to photos of 8 bits"):
        Trainer(**QUIET).validate(module, datamodule=bands_of(root), verbose=False)


def test_plan_measures_nothing(root, monkeypatch, capsys):
    monkeypatch.setattr("lit_ft.data.modules.photos.measure_bands", None)
    module = module_for(input={"mean": [0.5], "std": [0.5]})  # as a plan has them of weights
    Trainer(**QUIET).plan(module, bands_of(root))
    assert module.input_spec.channels == 4


def test_mixed_images_are_normalised_once(root):
    module, data = module_for(mix=ALL_MIXES, penalty={"kind": "l2_sp"}), bands_of(root)
    Trainer(**QUIET, limit_val_batches=0).fit(module, datamodule=data)
    module.train()
    images = torch.from_numpy(np.random.default_rng(0).normal(3000, 900, (8, 4, 28, 28))).float()
    mixed, _ = module.objective.augment(module, (images, torch.arange(8) % 2))
    assert isinstance(mixed, StageOutput)
    assert mixed.values.abs().max() < 100
    module.eval()
    torch.testing.assert_close(module(mixed), module.head(module.backbone(mixed.values)))
    assert module.normalise.pixels(mixed).dtype == torch.uint8
    starts = [value for name, value in module.penalty.named_buffers()]
    assert starts[0].shape == first_convolution(module).weight.shape


def test_batch_of_raw_values_is_checked(root):
    module = module_for(input={"bands": "all", "mean": [0.0, 0.0], "std": [1.0, 1.0]}, classes=2).eval()
    with pytest.raises(UserError, match=r"model.input.channels.*takes images of 2 channels, but the data gives 3"):
        module(torch.rand(1, 3, 28, 28))
    assert module(torch.rand(1, 2, 28, 28) * 1e4).shape == (1, 2)

    def loader(images):
        return torch.utils.data.DataLoader(list(zip(images, torch.tensor([0, 1]), strict=True)), batch_size=2)

    for images, reason in (
        (torch.full((2, 2, 28, 28), torch.nan), "images have values that are not finite"),
        (torch.rand(2, 3, 28, 28), r"images are float32 \(2, 3, 28, 28\), expected raw numbers \(B, 2, H, W\)"),
    ):
        with pytest.raises(UserError, match=f"train_dataloader: {reason}"):
            Trainer(**QUIET, limit_val_batches=0).fit(module, loader(images))
    Trainer(**QUIET, limit_val_batches=0).fit(module, loader(torch.randint(60_000, (2, 2, 28, 28), dtype=torch.int32)))


def test_only_bands_that_came_from_data_are_left_out_of_a_comparison():
    spec = InputSpec(bands="all", mean=(1.0,) * 4, std=(1.0,) * 4)
    saved, now = {"input": plain_input(spec), "lr": 1}, {"input": plain_input(InputSpec()), "lr": 1}
    then, new = leave_out_bands(saved, now)
    assert then == new
    assert set(then["input"]) == {"size", "resize", "interpolation", "fit"}
    assert leave_out_bands(saved, saved) == (saved, saved)
    assert leave_out_bands(now, now) == (now, now)
