import json
import os
import pickle
import re
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import save_photo
from PIL import Image
from test_base import FakeTrainer

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule, ImageTableDataModule, StreamDataModule
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.modules import stream
from lit_ft.data.streaming.convert import _write_set, convert
from lit_ft.data.streaming.stream_set import unpack
from lit_ft.errors import UserError

pytest.importorskip("litdata")

import processes

SMALL = {"spec": InputSpec(size=16, resize=20), "num_workers": 0, "batch_size": 4}


@pytest.fixture
def photos(photo_root):
    """21 photos of 3.7 kB to train on and 9 to validate on; each has a colour of its own."""
    for path in photo_root.rglob("*.png"):
        Image.open(path).save(path, compress_level=0)
    return ImageFolderDataModule(str(photo_root), val_fraction=0.3, **SMALL)


@pytest.fixture
def stream_root(photos, tmp_path):
    """The same photos, converted, in chunks of about four."""
    return convert(photos, tmp_path / "stream", chunk_bytes=16_000)


@pytest.fixture(autouse=True)
def _no_cache_in_the_home_folder(monkeypatch):
    monkeypatch.setattr("litdata.utilities.dataset_utilities._DEFAULT_CACHE_DIR", "/nowhere/chunks")


def make(root, trainer=None, **options):
    data = StreamDataModule(str(root), **{**SMALL, **options})
    data.trainer = trainer
    data.order_seed = 1
    data.setup()
    return data


def batches_of(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(left, right):
    assert [y.tolist() for _, y in left] == [y.tolist() for _, y in right]
    assert all(a.equal(b) for (a, _), (b, _) in zip(left, right, strict=True))


def colors(batches):
    """Which photos they are."""
    return [tuple(x[:, 8, 8].tolist()) for images, _ in batches for x in images]


def singly(batches):
    return [(x, int(y)) for images, targets in batches for x, y in zip(images, targets, strict=True)]


def chunk_files(root, split="train"):
    return sorted((Path(root) / split).glob("chunk-*.bin"))


def test_val_and_predict_are_those_of_the_folder(photos, stream_root):
    data = make(stream_root)
    photos.setup()
    assert len(chunk_files(stream_root)) >= 4
    assert data.class_names == photos.class_names == ["ant", "bee", "cat"]
    assert data.counts() == photos.counts() == {"train": [7] * 3, "val": [3] * 3}
    assert_same(batches_of(data.val_dataloader()), batches_of(photos.val_dataloader()))
    assert_same(batches_of(data.predict_dataloader()), batches_of(photos.predict_dataloader()))
    assert data.predict_paths == [os.path.relpath(path, photos.root) for path in photos.predict_paths]


def test_photos_are_padded_as_those_of_the_folder(photo_root, stream_root):
    folder = ImageFolderDataModule(str(photo_root), val_fraction=0.3, fit="pad", **SMALL)
    folder.setup()
    data = make(stream_root, fit="pad")
    assert data.input_spec == folder.input_spec == InputSpec(16, 16, fit="pad")
    assert_same(batches_of(data.val_dataloader()), batches_of(folder.val_dataloader()))
    [(images, _), *_] = batches_of(data.val_dataloader())
    assert images[0, :, 0, 0].tolist() == [124, 116, 104]
    assert "PadToSquare" in data.train_dataloader().source.identity()


def test_files_are_kept_as_they_are(tmp_path):
    for name in ("a", "b"):
        for i in range(4):
            save_photo(tmp_path / "photos" / name / f"{i}.jpg", (10 * i, 90, 30), quality=70)
    root = convert(ImageFolderDataModule(str(tmp_path / "photos")), tmp_path / "stream")
    written = b"".join(path.read_bytes() for path in root.rglob("*.bin"))
    assert all(path.read_bytes() in written for path in (tmp_path / "photos").rglob("*.jpg"))


def test_test_images_are_converted_and_said_to_be_missing_where_they_are(photo_root, stream_root, tmp_path):
    photos = ImageFolderDataModule(str(photo_root), test_fraction=0.2, **SMALL)
    data = make(convert(photos, tmp_path / "tested"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(batches_of(data.test_dataloader()), batches_of(photos.test_dataloader()))
    assert data.predict_paths == [os.path.relpath(path, photo_root) for path in photos.predict_paths]
    with pytest.warns(
        UserWarning, match="no test images, .*; to hold some out, convert the photos again with `data.test_fraction`"
    ):
        assert colors(make(stream_root).test_dataloader()) == colors(make(stream_root).val_dataloader())


def test_an_epoch_has_every_image_once_with_its_target(stream_root):
    data = make(stream_root, augment="none")
    epochs = [batches_of(data.train_dataloader(), epoch) for epoch in range(2)]
    for batches in epochs:
        images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
        assert (images.dtype, images.shape, targets.dtype) == (torch.uint8, (21, 3, 16, 16), torch.int64)
        assert images.float().mean((2, 3)).argmax(1).equal(targets)  # ants are red, bees green, cats blue
    assert len(set(colors(epochs[0]))) == 21
    assert colors(epochs[0]) != colors(epochs[1])
    assert sorted(colors(epochs[0])) == sorted(colors(epochs[1]))


def test_chunks_hold_all_classes_and_are_read_one_after_the_other(stream_root):
    data = make(stream_root)
    stops = data.splits["train"].stops
    starts = torch.cat([torch.zeros(1, dtype=torch.long), stops[:-1]])
    mixed = [len(set(data.splits["train"].targets[a:b].tolist())) > 1 for a, b in zip(starts, stops, strict=True)]
    assert sum(mixed) > len(mixed) / 2  # the folders come class by class
    orders = []
    for epoch in range(2):
        sampler = data.train_dataloader().sampler
        sampler.set_epoch(epoch)
        rows = torch.cat([picks.rows for picks in sampler.batches()])
        chunks = torch.searchsorted(stops, rows, right=True)
        assert len(chunks.unique_consecutive()) == len(stops) > 3
        orders.append(chunks.unique_consecutive().tolist())
    assert orders[0] != orders[1] != sorted(orders[1])


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("split", ["train", "val", "predict"])
def test_processes_share_the_images_and_none_is_dropped(stream_root, world_size, split):
    alone = singly(batches_of(getattr(make(stream_root), f"{split}_dataloader")()))
    shared, numbers = [], []
    for rank in range(world_size):
        data = make(stream_root, FakeTrainer(global_rank=rank, world_size=world_size, num_devices=1))
        batches = batches_of(getattr(data, f"{split}_dataloader")())
        numbers.append(len(batches))
        shared += singly(batches)
    assert len(set(numbers)) == 1
    # The same images in the same places, and so with the same augmentation.
    assert all(a.equal(b) and x == y for (a, x), (b, y) in zip(alone, shared, strict=True))


def test_augmentation_is_for_training_and_belongs_to_the_place(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            noise = Image.fromarray(generator.integers(0, 256, (30, 30, 3), dtype=np.uint8))
            noise.save(tmp_path / "photos" / name / f"{i}.png")
    photos = ImageFolderDataModule(str(tmp_path / "photos"), **SMALL)
    root = convert(photos, tmp_path / "stream", chunk_bytes=100_000)
    assert_same(batches_of(make(root).val_dataloader()), batches_of(photos.val_dataloader()))
    alone = singly(batches_of(make(root).train_dataloader()))
    ranks = [make(root, FakeTrainer(global_rank=rank, num_devices=1)) for rank in range(2)]
    shared = [pair for data in ranks for pair in singly(batches_of(data.train_dataloader()))]
    assert all(a.equal(b) and x == y for (a, x), (b, y) in zip(alone, shared, strict=True))
    more = singly(batches_of(make(root, augment="trivial").train_dataloader()))
    assert not all(x.equal(y) for (x, _), (y, _) in zip(alone, more, strict=True))
    plain = singly(batches_of(make(root, augment="none").train_dataloader()))
    assert [y for _, y in plain] == [y for _, y in alone]
    assert not any(a.equal(b) for (a, _), (b, _) in zip(alone, plain, strict=True))


@pytest.mark.parametrize("done", [1, 3, 5])
def test_resume_in_mid_epoch_gives_the_batches_that_were_left(stream_root, done):
    loader = make(stream_root).train_dataloader()
    whole = batches_of(loader, 3)
    loader.sampler.set_epoch(3)
    begun = iter(loader)
    for _ in range(done):
        next(begun)
    resumed = make(stream_root).train_dataloader()
    resumed.position.load_state_dict(loader.position.state_dict())
    assert len(whole) == 5
    assert_same(batches_of(resumed, 3), whole[done:] or whole)


def test_workers_give_the_same_batches_epoch_after_epoch_and_when_left(stream_root):
    plain, workers = (make(stream_root, num_workers=n).train_dataloader() for n in (0, 2))
    assert workers.source._workers._loader[0].num_workers == 2
    for epoch in range(2):
        assert_same(batches_of(plain, epoch), batches_of(workers, epoch))
    next(iter(workers))
    assert_same(batches_of(plain, 2), batches_of(workers, 2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_views_are_those_that_are_read_one_by_one_from_one_sample(stream_root, num_workers, monkeypatch):
    source = make(stream_root, num_workers=num_workers, augment="trivial").train_dataloader().source
    batches = [Picks(torch.tensor([0, 1]), torch.tensor([0, 1])), Picks(torch.tensor([2]), torch.tensor([5]))]
    by_view = [list(source.read(batches, torch.Generator().manual_seed(view))) for view in range(3)]
    unpacked = []
    monkeypatch.setattr(stream, "unpack", lambda sample: unpacked.append(sample) or unpack(sample))
    found = list(source.read_views(batches, [torch.Generator().manual_seed(view) for view in range(3)]))
    assert len(unpacked) == 3
    for (images, targets), *parts in zip(found, *by_view, strict=True):
        assert images.equal(torch.stack([view for view, _ in parts], dim=1).flatten(0, 1))
        assert targets.equal(parts[0][1].repeat_interleave(3))
    assert not found[0][0][0].equal(found[0][0][1])


def test_what_workers_need_can_be_sent_to_spawned_ones(stream_root, tmp_path):
    dataset = make(stream_root).train_dataloader().source._workers.dataset
    sent = pickle.loads(pickle.dumps(dataset))
    save_photo(tmp_path / "x.png")
    samples = [((tmp_path / "x.png").read_bytes(), "x.png", [3, 4])]
    assert sent[samples].equal(dataset[samples])


def test_bucket_gives_the_same_batches_and_a_small_cache_stays_small(stream_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_CACHE_SIZE", "60000")
    folder = make(stream_root).train_dataloader()
    bucket = make(f"local:{stream_root}", chunk_cache=str(tmp_path / "cache")).train_dataloader()
    most = 0
    for epoch in range(2):
        folder.sampler.set_epoch(epoch)
        bucket.sampler.set_epoch(epoch)
        for (images, targets), (others, other_targets) in zip(folder, bucket, strict=True):
            assert images.equal(others)
            assert targets.equal(other_targets)
            most = max(most, len(list((tmp_path / "cache").rglob("*.bin"))))
    assert 1 <= most < len(chunk_files(stream_root))


def test_few_images_of_each_class(stream_root):
    data = make(stream_root, shots=2, augment="none")
    assert data.counts() == {"train": [2] * 3, "val": [3] * 3}
    batches = batches_of(data.train_dataloader())
    images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    assert Counter(targets.tolist()) == {0: 2, 1: 2, 2: 2}
    assert images.float().mean((2, 3)).argmax(1).equal(targets)
    assert set(colors(batches)) < set(colors(batches_of(make(stream_root).train_dataloader())))


@pytest.mark.long
def test_two_processes_see_every_image_once_and_resume(stream_root, tmp_path):
    shutil.copytree(stream_root, tmp_path / "runs" / "set")
    ranks = [found["stream"] for found in processes.launch(tmp_path / "runs", "stream")]
    for phase, size in (("train", 21), ("val", 9)):
        for epoch in range(2):
            seen = [found["whole"][phase, epoch] for found in ranks]
            assert Counter(len(batches) for batches in seen).keys() == {3 if phase == "train" else 1}
            assert len({image for batches in seen for batch in batches for image in batch}) == size
            assert sum(len(batch) for batches in seen for batch in batches) == size
    for found in ranks:
        assert found["whole"]["train", 0] != found["whole"]["train", 1]
        assert found["resumed"]["train", 0] == found["whole"]["train", 0][2:]  # bit for bit: pixels are compared
        assert found["resumed"]["train", 1] == found["whole"]["train", 1]


@pytest.mark.long
def test_command_line_converts_trains_and_predicts(run, photo_root):
    out = run("convert", "--data", "ImageFolderDataModule", "--data.root", photo_root, "--folder", "big set")
    assert re.search(r"train +24 images +0.0 MB +1 chunks\n  val +6 images", out)
    assert out.endswith("Train on it: --data StreamDataModule --data.root 'big set'\n")
    data = ("--data", "StreamDataModule", "--data.root", "big set", "--data.num_workers", 0)
    model = ("--model.backbone", "squeezenet1_1", "--model.weights", "null", "--model.input.size", 32)
    out = run(
        "fit",
        *data,
        *model,
        "--unfreeze.strategy",
        "full",
        "--trainer.max_epochs",
        1,
        "--trainer.accelerator",
        "cpu",
        "--name",
        "s",
    )
    assert re.search(r"train +24 images, 8 a class\n +val +6 images, 2 a class", out)
    best = ("--config", "logs/s/version_0/config.yaml", "--ckpt_path", "logs/s/version_0/checkpoints/best.ckpt")
    run("predict", *best)
    rows = Path("logs/s/version_0/predictions.csv").read_text().splitlines()
    assert len(rows) == 7
    assert re.match(r"ant/\d.png,(ant|bee|cat),0\.\d{4,}$", rows[1])


def test_command_line_refuses_arrays(refused):
    told = refused("convert", "--data", "DigitsDataModule", "--folder", "F")
    assert told == "lit-ft: --data: lit-ft convert takes photos in files, not DigitsDataModule"


def test_labels_and_numbers_are_streamed_as_they_were(run, refused, photo_root):
    paths = sorted(photo_root.rglob("*.png"))
    rows = [f"{path.relative_to(photo_root)},{i % 2},{i % 3 // 2}" for i, path in enumerate(paths)]
    (photo_root / "t.csv").write_text("\n".join(["path,odd,third", *rows]))
    for task in ("multilabel", "regression"):
        table = ("--data", "ImageTableDataModule", "--data.table", photo_root / "t.csv")
        run("convert", *table, "--data.label_columns", "[odd, third]", "--model.task", task, "--folder", task)
        data = make(task, augment="none")
        whole = ImageTableDataModule(str(photo_root / "t.csv"), label_columns=["odd", "third"], task=task, **SMALL)
        whole.setup()
        assert (data.task, data.class_names) == (task, ["odd", "third"])
        assert data.splits["val"].targets.equal(whole.splits["val"].targets)
        assert data.counts()["train"] == whole.counts()["train"]
    stream = ("--data", "StreamDataModule", "--data.root", "multilabel", "--data.num_workers", 0, "--unfreeze", "null")
    run("fit", *stream, "--model.task", "multilabel", "--trainer.fast_dev_run", 1)
    told = (
        "--model.task: multiclass, but the targets of StreamDataModule are for multilabel; give --model.task multilabel"
    )
    assert told in refused("fit", *stream)


def test_existing_folder_is_not_overwritten(photos, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"^folder: .*there exists; name a folder that does not$"):
        convert(photos, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_bad_image_is_named_and_nothing_is_left_behind(photos, photo_root, tmp_path, damage):
    bad = photo_root / "bee" / "4.png"
    if damage == "gone":
        photos.setup()
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[: 50 if damage == "cut" else 0])
    with pytest.raises(UserError, match=rf"1 of 30 images cannot be read: {bad} |^{bad}: cannot be read \(No such"):
        convert(photos, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


WRITE = "lit_ft.data.streaming.convert._write_set"


def test_conversion_that_fails_leaves_another_one_to_that_folder_alone(photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left")

    def write_beside_another(folder, *given):
        _write_set(folder, *given)
        monkeypatch.setattr(WRITE, fail)
        with pytest.raises(UserError, match="No space left"):
            convert(photos, tmp_path / "out")

    monkeypatch.setattr(WRITE, write_beside_another)
    assert len(make(convert(photos, tmp_path / "out")).splits["train"]) == 21
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_second_of_two_conversions_to_a_folder_is_refused(photos, tmp_path, monkeypatch):
    def write_after_another(folder, *given):
        _write_set(folder, *given)
        monkeypatch.setattr(WRITE, _write_set)
        convert(photos, tmp_path / "out")

    monkeypatch.setattr(WRITE, write_after_another)
    with pytest.raises(UserError, match=r"^folder: cannot write .*out \(Directory not empty\)$"):
        convert(photos, tmp_path / "out")
    assert len(make(tmp_path / "out").splits["train"]) == 21
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_folder_below_a_file(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^folder: cannot write .*file/out \(Not a directory\)$"):
        convert(photos, tmp_path / "file" / "out")


def test_missing_permission_is_told_for_reading_and_writing(photos, stream_root, tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"^folder: cannot write .*/out \(Permission denied\)$"):
        convert(photos, tmp_path / "out")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"^data.root: cannot read .*stream/set.json \(Permission denied\)$"):
        make(stream_root)


def test_roots_that_are_no_converted_set(photo_root, stream_root):
    for root, told in {
        "nix": "nix does not exist",
        photo_root: f"{photo_root} is no converted set, it has no set.json; make one of a folder of photos with:",
        stream_root / "train": f"{stream_root}/train is no converted set, it has no set.json; give {stream_root}",
        "local:nix": "cannot read local:nix/set.json (The provided remote_path doesn't exist",
    }.items():
        with pytest.raises(UserError, match="^" + re.escape(f"data.root: {told}")):
            make(root)


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


TOO_DEEP = "maximum recursion" if sys.version_info < (3, 14) else "Stack overflow"
DAMAGES = {
    "{root}/set.json is damaged (Expecting": lambda root: (root / "set.json").write_text("{"),
    "{root}/set.json is damaged (": lambda root: (root / "set.json").write_text('{"task": 1}'),
    "{root}/set.json: unknown split 'vals'; nearest: val": lambda root: rewritten(
        root / "set.json", lambda content: content["images"].update(vals=1)
    ),
    "{root}/train does not exist": lambda root: shutil.rmtree(root / "train"),
    "cannot read the index of {root}/train (": lambda root: (root / "train" / "index.json").write_text("["),
    "{root}/val is no converted set, it has no index.json": lambda root: (root / "val" / "index.json").unlink(),
    "cannot read the index of {root}/val ('chunks": lambda root: rewritten(
        root / "val" / "index.json", lambda content: content.pop("chunks")
    ),
    "cannot read the index of {root}/val (Object arrays cannot be loaded": lambda root: np.save(
        root / "val" / "targets.npy", np.array([{}] * 9), allow_pickle=True
    ),
    "{root}/val holds 9 samples of ['bytes', 'pickle'] and 9 targets, not 9 of": lambda root: rewritten(
        root / "val" / "index.json", lambda content: content["config"].update(data_format=["bytes", "pickle"])
    ),
    "{root}/val holds 9 samples of ['bytes'] and 8 targets, not 9 of": lambda root: np.save(
        root / "val" / "targets.npy", np.zeros(8, np.uint8)
    ),
    "the targets of {root}/val are not of multiclass with 3 classes": lambda root: np.save(
        root / "val" / "targets.npy", np.full(9, 3, np.uint8)
    ),
    "the targets of {root}/train are not of multiclass with 3 classes": lambda root: np.save(
        root / "train" / "targets.npy", np.zeros((21, 3), np.uint8)
    ),
    "{root}/train holds 21 samples of ['bytes'] and 0 targets, not 21 of": lambda root: np.save(
        root / "train" / "targets.npy", np.zeros((21, 0), np.uint8)
    ),
    "{root}/set.json is damaged (its class_names are no list of text)": lambda root: rewritten(
        root / "set.json", lambda content: content.update(class_names=["a", 1, "c"])
    ),
    "{root}/set.json is damaged (its names of val are no list of text)": lambda root: rewritten(
        root / "set.json", lambda content: content["names"].update(val="a/1.png")
    ),
    "{root}/set.json is damaged (it names 1 of 9 images of val)": lambda root: rewritten(
        root / "set.json", lambda content: content["names"].update(val=["a/1.png"])
    ),
    "{root}/set.json is damaged (its number of images of val is 1e+30)": lambda root: rewritten(
        root / "set.json", lambda content: content["images"].update(val=1e30)
    ),
    f"{{root}}/set.json is damaged ({TOO_DEEP}": lambda root: (root / "set.json").write_text("[" * 100_000),
    "{root}/train/chunk-0-1.bin is missing or cut short": lambda root: chunk_files(root)[1].unlink(),
    "{root}/train/chunk-0-0.bin is missing or cut short": lambda root: chunk_files(root)[0].write_bytes(b"1"),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_damaged_set_is_refused_in_one_line(stream_root, told):
    DAMAGES[told](stream_root)
    with pytest.raises(UserError, match="^" + re.escape("data.root: " + told.format(root=stream_root))) as error:
        make(stream_root)
    assert "\n" not in str(error.value)


def test_image_that_was_damaged_in_its_chunk_is_named(stream_root):
    for file in chunk_files(stream_root, "val"):
        file.write_bytes(file.read_bytes().replace(b"IDAT", b"IDAX"))
    with pytest.raises(UserError, match=rf"^{stream_root}/val: ant/\d.png: cannot be read as an image"):
        list(make(stream_root).val_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "data.num_workers: -1 is less than 0"),
        ({"sampling": "balanced"}, "data.sampling: balanced is not for a streamed set; use shuffle"),
        ({"fit": "nix"}, r"data.fit: unknown fit 'nix' \(choose from crop, pad, squash\)$"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        StreamDataModule("nowhere", **options)


def test_without_litdata_the_extra_is_named(photos, stream_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    told = r"streaming needs litdata; run: pip install 'lit_ft\[stream\]'$"
    with pytest.raises(UserError, match=f"^data.root: {told}"):
        make(stream_root)
    with pytest.raises(UserError, match=f"^folder: {told}"):
        convert(photos, tmp_path / "out")


def test_bucket_is_refused_offline(monkeypatch):
    monkeypatch.setenv("LIT_FT_OFFLINE", "1")
    with pytest.raises(UserError, match=r"^offline: data.root s3://b/set is streamed over the network"):
        make("s3://b/set/")


def test_identity_tells_splits_parts_and_transforms_apart(stream_root):
    trained = ({"augment": "basic"}, {"augment": "none"}, {"augment": "none", "shots": 2})
    loaders = [make(stream_root, **options).train_dataloader() for options in trained]
    loaders.append(make(stream_root).val_dataloader())
    assert [loader.source.is_augmented for loader in loaders] == [True, False, False, False]
    assert len({loader.source.identity() for loader in loaders}) == 4
    assert make(stream_root).val_dataloader().source.identity() == loaders[-1].source.identity()


def test_chunks_are_fetched_ahead_of_the_one_that_is_read(stream_root, tmp_path):
    cache = tmp_path / "cache"
    split = make(f"local:{stream_root}", chunk_cache=str(cache)).splits["train"]
    samples = split.samples(torch.arange(21))
    next(samples)
    deadline = time.monotonic() + 30  # another thread fetches
    while len(list(cache.rglob("chunk-*.bin"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(cache.rglob("chunk-*.bin"))) >= 2


HOSTILE = {
    "'../../../x.bin' is no name of a chunk": lambda index: index["chunks"][0].update(filename="../../../x.bin"),
    "'/tmp/x.bin' is no name": lambda index: index["chunks"][0].update(filename="/tmp/x.bin"),
    "'chunk-0-0.bin/../../x' is no name": lambda index: index["chunks"][0].update(filename="chunk-0-0.bin/../../x"),
    "'index.json' is no name": lambda index: index["chunks"][0].update(filename="index.json"),
    "17 is no name": lambda index: index["chunks"][0].update(filename=17),
    "a chunk is in it twice": lambda index: index["chunks"].append(index["chunks"][0]),
    "updated_at is no time: '../../../x'": lambda index: index.update(updated_at="../../../x"),
    "updated_at is no time: '..'": lambda index: index.update(updated_at=".."),
    "it has compression 'zstd'": lambda index: index["config"].update(compression="zstd"),
    "it has encryption {'level'": lambda index: index["config"].update(encryption={"level": "chunk"}),
    "it has format 'mds'": lambda index: index["config"].update(format="mds"),
    "item_loader 'TokensLoader' is not read": lambda index: index["config"].update(item_loader="TokensLoader"),
    "-7 is no number": lambda index: index["chunks"][0].update(chunk_size=-7),
    "1e+99 is no number": lambda index: index["chunks"][0].update(chunk_bytes=1e99),
}


@pytest.mark.parametrize("told", HOSTILE)
@pytest.mark.parametrize("where", ["", "local:"])
def test_index_is_refused_before_anything_in_it_becomes_a_path(stream_root, tmp_path, where, told):
    cache = tmp_path / "a" / "b" / "c" / "cache"
    cache.mkdir(parents=True)
    (stream_root / "x.bin").write_bytes(bytes(100_000))  # what a name that leads upwards would find
    rewritten(stream_root / "train" / "index.json", HOSTILE[told])
    before = set(tmp_path.rglob("*"))
    start = f"data.root: cannot read the index of {where}{stream_root}/train ({told}"
    with pytest.raises(UserError, match="^" + re.escape(start)) as error:
        make(f"{where}{stream_root}", chunk_cache=str(cache))
    assert "\n" not in str(error.value)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["", "local:"])
def test_chunk_that_holds_something_else_is_named(stream_root, tmp_path, where):
    chunk = chunk_files(stream_root, "val")[0]
    chunk.write_bytes(b"\xff" * 64 + chunk.read_bytes()[64:])
    data = make(f"{where}{stream_root}", chunk_cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"^data.root: {where}{stream_root}/val/{chunk.name} cannot be read "):
        batches_of(data.val_dataloader())


def test_index_in_the_cache_that_was_not_checked_is_refused(stream_root, tmp_path):
    data = make(f"local:{stream_root}", chunk_cache=str(tmp_path / "cache"))
    assert len(batches_of(data.val_dataloader())) == 3
    original = (stream_root / "val" / "index.json").read_bytes()
    [index] = [path for path in (tmp_path / "cache").rglob("index.json") if path.read_bytes() == original]
    rewritten(index, lambda content: content["chunks"][0].update(filename="../../../x.bin"))
    with pytest.raises(UserError, match=rf"^data.root: {index} is not the index of local:{stream_root}/val; delete"):
        batches_of(data.val_dataloader())
