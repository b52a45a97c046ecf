import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.data.loading.position import adopt_earlier_position, first_batch
from lit_ft.errors import UserError

SIZES = {"of": 5, "batch_size": 8, "processes": 1}


@pytest.mark.parametrize(
    ("then", "epoch", "expected"),
    [
        ({"epoch": 2, "batches": 3, **SIZES}, 2, 3),
        ({"epoch": 2, "batches": 3, "of": 5}, 2, 3),  # as the first releases wrote it
        ({"epoch": 2, "batches": 3, **SIZES}, 3, 0),
        ({"epoch": 2, "batches": 5, **SIZES}, 2, 0),
        ({"epoch": 2, "batches": 5, **SIZES, "of": 5, "batch_size": 4}, 2, 0),
        ({"epoch": 0, "batches": 0}, 0, 0),  # before any loader was made
    ],
)
def test_epoch_begins_after_the_batches_that_are_done(then, epoch, expected):
    assert first_batch(then, epoch, SIZES) == expected


def test_other_batches_in_mid_epoch_are_refused():
    with pytest.raises(UserError, match="written after 3 of the 5 batches of 4 images, of which there now are 5 batch"):
        first_batch({"epoch": 2, "batches": 3, **SIZES, "batch_size": 4}, 2, SIZES)


@pytest.mark.parametrize(
    ("loops", "expected"),
    [
        ({"fit_loop": {"state_dict": {"combined_loader": [{"epoch": 1, "batches": 2}]}}}, {"epoch": 1, "batches": 2}),
        ({"fit_loop": {"state_dict": {"combined_loader": [{}]}}}, None),
        ({"fit_loop": {"state_dict": {"combined_loader": [{"epoch": 1}, {"epoch": 1}]}}}, None),  # of several loaders
        ({"fit_loop": {"state_dict": {}}}, None),
        ({}, None),
    ],
)
def test_position_of_earlier_checkpoints_moves_to_the_data_module(loops, expected):
    checkpoint = {"loops": loops, "FewDigits": {"order_seed": 3}}
    adopt_earlier_position(checkpoint, FewDigits())
    assert checkpoint["FewDigits"].get("position") == expected
    weights_alone = {"loops": loops}
    adopt_earlier_position(weights_alone, FewDigits())
    assert weights_alone == {"loops": loops}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_earlier", [False, True])
def test_run_is_resumed_exactly_from_present_and_earlier_checkpoints(tmp_path, is_earlier):
    whole = small_module()
    steps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    data = {"batch_size": 7, "augment": "basic"}
    small_trainer(3, steps).fit(whole, datamodule=FewDigits(**data))
    checkpoint = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    position = checkpoint["FewDigits"]["position"]
    assert 0 < position["batches"] < position["of"]
    if is_earlier:
        del checkpoint["FewDigits"]["position"]
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [position]
        torch.save(checkpoint, tmp_path / "step=4.ckpt")
    resumed = small_module()
    small_trainer(3).fit(resumed, datamodule=FewDigits(**data), ckpt_path=tmp_path / "step=4.ckpt")
    for name, value in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


class ReadsBeside(Callback):
    """Reads training images in a fit by a loader of its own, as to measure something."""

    def on_train_start(self, trainer, pl_module):
        next(iter(trainer.datamodule.train_dataloader()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        next(iter(trainer.datamodule.train_dataloader()))


@pytest.mark.filterwarnings("ignore")
def test_loader_beside_that_of_the_fit_leaves_the_position_alone(tmp_path):
    whole, resumed = small_module(), small_module()
    steps = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    small_trainer(2, steps, ReadsBeside()).fit(whole, datamodule=FewDigits(batch_size=7))
    position = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["FewDigits"]["position"]
    assert (position["batches"], position["of"]) == (2, 3)
    path = tmp_path / "step=2.ckpt"
    small_trainer(2, ReadsBeside()).fit(resumed, datamodule=FewDigits(batch_size=7), ckpt_path=path)
    for name, value in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name
