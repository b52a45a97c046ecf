import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.loader import Loader, Position, adopt_earlier_position, first_batch
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.data.modules.arrays import ArraySource, ArraySplit
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError

SPEC = InputSpec(size=8, resize=8)


def make_loader(num_samples=10, batch_size=3, rank=0, world_size=1, processed=None):
    images = torch.arange(num_samples * 64).view(num_samples, 1, 8, 8).remainder(251).to(torch.uint8)
    source = ArraySource(ArraySplit.whole(images, torch.arange(num_samples)), SPEC, [ShiftFlip(2, flip=True)])
    sampler = EpochSampler(num_samples, batch_size, training=True, seed=1, rank=rank, world_size=world_size)
    return Loader(source, sampler, Position(processed))


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(left, right):
    assert len(left) == len(right)
    for (images, targets), (other_images, other_targets) in zip(left, right, strict=True):
        assert targets.equal(other_targets)
        assert images.equal(other_images)


def test_epoch_is_read_at_the_first_batch_and_not_at_iter():
    loader = make_loader()
    iterator = iter(loader)
    loader.sampler.set_epoch(4)
    assert_same([next(iterator)], epoch_of(make_loader(), 4)[:1])


@pytest.mark.parametrize("done", [0, 1, 2])
def test_resume_continues_at_the_next_batch(done):
    loader = make_loader()
    loader.sampler.set_epoch(5)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    resumed = make_loader()
    resumed.position.load_state_dict(loader.position.state_dict())
    assert len(resumed) == 3
    assert resumed.position.state_dict() == loader.position.state_dict()
    whole = epoch_of(make_loader(), 5)
    assert_same(epoch_of(resumed, 5), whole[done:])
    assert_same(epoch_of(resumed, 5), whole)  # only the first epoch after the resume is short


@pytest.mark.parametrize(("done", "epoch"), [(3, 5), (3, 6), (2, 6)])
def test_resume_at_the_end_of_an_epoch_starts_a_new_one(done, epoch):
    resumed = make_loader()
    resumed.position.load_state_dict({"epoch": 5, "batches": done, "of": 3})
    assert_same(epoch_of(resumed, epoch), epoch_of(make_loader(), epoch))


def test_state_counts_what_is_yielded():
    loader = make_loader()
    loader.sampler.set_epoch(2)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    assert loader.position.state_dict() == {"epoch": 2, "batches": 2, "of": 3, "batch_size": 3, "processes": 1}


def test_state_leaves_out_the_batch_of_a_failed_step():
    loader = make_loader(processed=lambda: 1)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    assert loader.position.state_dict()["batches"] == 1


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"of": 7}, "7 batches of 3 images, of which there now are 3 batches of 3 images"),
        # As many batches, which would be cut elsewhere.
        ({"of": 3, "batch_size": 4, "processes": 1}, "3 batches of 4 images, of which there now are 3 batches of 3"),
        (
            {"of": 3, "batch_size": 3, "processes": 2},
            "3 batches of 3 images in each of 2 processes, of which there now are 3 batches of 3 images;",
        ),
    ],
)
def test_resume_with_other_batches_in_mid_epoch_is_refused(state, text):
    loader = make_loader()
    loader.position.load_state_dict({"epoch": 0, "batches": 2, **state})
    with pytest.raises(UserError, match=rf"ckpt_path: written after 2 of the {text}.*batch_size"):
        list(loader)


def test_augmentation_of_a_sample_is_the_same_with_any_number_of_processes():
    def by_sample(loaders):
        return {int(t): x for loader in loaders for xs, ts in epoch_of(loader, 3) for x, t in zip(xs, ts, strict=True)}

    alone = by_sample([make_loader()])
    shared = by_sample([make_loader(batch_size=2, rank=r, world_size=3) for r in range(3)])
    assert alone.keys() == shared.keys()
    assert all(alone[i].equal(shared[i]) for i in alone)


class Recorder(L.LightningModule):
    """Notes which samples come in each epoch; fails at one step if told to."""

    input_spec = SPEC

    def __init__(self, fail_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("power cut")
        self.seen.append((self.current_epoch, batch_idx, batch[1].tolist(), int(batch[0].sum())))
        return self.layer(batch[0].float().mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Save(Callback):
    """Writes a checkpoint at one moment."""

    def __init__(self, hook, step, path):
        self.step, self.path = step, path
        setattr(self, hook, self._save)

    def _save(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.sanity_checking and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(self.path)


class Numbers(ImageDataModule):
    """Ten images, their number as the target."""

    class_names = tuple("0123456789")
    predict_paths = class_names

    def read_splits(self):
        images = torch.arange(640).view(10, 1, 8, 8).remainder(251).to(torch.uint8)
        return dict.fromkeys(("train", "val"), ArraySplit.whole(images, torch.arange(10)))

    def source(self, split, augment):
        return ArraySource(self.splits[split], SPEC, [ShiftFlip(1)] if augment else [])


def fit(tmp_path, module, seed, ckpt_path=None, callbacks=(), **options):
    torch.manual_seed(seed)
    trainer = L.Trainer(
        default_root_dir=tmp_path, max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=Numbers(batch_size=3), ckpt_path=ckpt_path)
    return module.seen


RESUME_FILTER = "ignore:.*(num_workers|logging interval|already|does not have many workers|resuming).*"


@pytest.mark.filterwarnings(RESUME_FILTER)
@pytest.mark.parametrize(
    ("hook", "step", "limit"),
    [
        *(("on_train_batch_end", step, limit) for step in (1, 2, 3, 4, 6) for limit in (None, 2)),
        *((hook, step, None) for hook in ("on_train_epoch_end", "on_validation_end") for step in (3, 6)),
        *((hook, step, 2) for hook in ("on_train_epoch_end", "on_validation_end") for step in (2, 4)),
    ],
)
def test_interrupted_training_sees_the_batches_of_an_uninterrupted_one(tmp_path, hook, step, limit):
    path = tmp_path / "step.ckpt"
    options = {"limit_train_batches": limit} if limit else {}
    whole = fit(tmp_path, Recorder(), 1, callbacks=[Save(hook, step, path)], **options)
    assert len(whole) == 3 * (limit or 3)
    resumed = fit(tmp_path, Recorder(), 2, path, **options)  # another seed: the order must come from the checkpoint
    assert resumed == whole[step:]


@pytest.mark.filterwarnings(RESUME_FILTER)
@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_training_that_failed_repeats_the_batch_of_the_failed_step(tmp_path, step):
    path = tmp_path / "failed.ckpt"
    whole = fit(tmp_path, Recorder(), 1)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, Recorder(fail_at=step), 1, callbacks=[Save("on_train_end", -1, path)])
    assert fit(tmp_path, Recorder(), 2, path) == whole[step:]


def test_images_can_be_had_although_something_stands_in_for_them():
    loader = make_loader()
    expected = epoch_of(loader, 2)
    shuffled = make_loader(num_samples=10, batch_size=3)
    loader.stand_in = lambda asked: ArraySource(shuffled.source.split, SPEC)  # without augmentation
    assert_same(epoch_of(loader.of_images(), 2), expected)
    assert not epoch_of(loader, 2)[0][0].equal(expected[0][0])


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
