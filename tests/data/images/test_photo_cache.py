import importlib
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import forked
import node_disks
import numpy as np
import processes
import pytest
import torch
from derived_files import rewrite
from image_files import save_photo
from PIL import Image

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.files.file_split import PhotoFiles
from lit_ft.data.images import photo_cache
from lit_ft.data.images.photo_cache import _claimed, cache_path, stored_size
from lit_ft.errors import UserError

SPEC = InputSpec(size=16, resize=20)
PADDED = InputSpec(size=16, resize=20, fit="pad")
SIZES = [(50, 40), (33, 90), (200, 21), (12, 14), (1, 90), (20, 20), (25, 20), (64, 48)]


@pytest.fixture
def root(tmp_path):
    """Two classes of photos of all proportions, some smaller than they are evaluated at, some turned."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        for i, (width, height) in enumerate(SIZES):
            path = tmp_path / "photos" / name / f"{i}.{'jpg' if i % 2 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6 if i in (1, 2) else 1
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, exif=exif)
    return tmp_path / "photos"


def make(root, cache=None, spec=SPEC, **options):
    options = {"num_workers": 0, "val_fraction": 0.25, "test_fraction": 0.25, "batch_size": 3, **options}
    data = ImageFolderDataModule(str(root), cache=str(cache) if cache else None, spec=spec, **options)
    data.order_seed = 5
    return data


def batches(loader):
    return list(loader)


def assert_same(left, right):
    assert len(left) == len(right) > 0
    assert all(x.equal(y) and a.equal(b) for (x, a), (y, b) in zip(left, right, strict=True))


def files_in(folder):
    """The names, without those of locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "spec", [SPEC, InputSpec(16, 20, "bicubic"), InputSpec(16, 16, "nearest"), InputSpec(16, 20, fit="squash"), PADDED]
)
def test_evaluating_gives_the_same_pixels_as_without(root, tmp_path, spec, num_workers):
    plain, cached = make(root, spec=spec), make(root, tmp_path / "cache", spec, num_workers=num_workers)
    for split in ("val", "test", "predict"):
        assert_same(*(batches(getattr(data, f"{split}_dataloader")()) for data in (plain, cached)))
    assert cached.val_dataloader().source._loader.dataset.cache is not None


def test_training_crops_are_cut_from_the_copies(root, tmp_path):
    cached = make(root, tmp_path / "cache", num_workers=1)
    images, _ = next(iter(cached.train_dataloader()))
    dataset = cached.train_dataloader().source._loader.dataset
    sampler = cached.train_dataloader().sampler
    rows, places = sampler.batches()[0]
    seeds = torch.randint(2**63 - 1, (8,), generator=sampler.augment_generator())[places]
    for image, row, seed in zip(images, rows.tolist(), seeds.tolist(), strict=True):
        copy = dataset.cache[row]
        turned = Image.open(dataset.split.paths[row]).getexif()[0x0112] == 6
        width, height = Image.open(dataset.split.paths[row]).size
        assert copy.shape[1:] == stored_size(*((width, height) if turned else (height, width)), SPEC)
        torch.manual_seed(seed)
        assert image.equal(dataset.transform(copy))
    # The part does not depend on where it is cut from: what is written first and what is mapped later are the same.
    assert_same(batches(make(root, tmp_path / "cache").train_dataloader()), batches(cached.train_dataloader()))


def test_cache_is_written_once_and_told_before(root, tmp_path, capsys):
    folder = tmp_path / "deep" / "cache"
    batches(make(root, folder, num_workers=2).train_dataloader())
    [line] = capsys.readouterr().out.splitlines()
    [name] = files_in(folder)
    assert line == f"Cache  43.1 kB for 16 images: {folder / name}"
    assert name.startswith("photos-20-")
    inode = (folder / name).stat().st_ino
    for options in ({}, {"shots": 2}, {"split_seed": 3}, {"val_fraction": 0.5}):  # all of them are there
        assert make(root, folder, **options).train_dataloader().source._loader.dataset.cache is not None
    assert capsys.readouterr().out == ""
    assert (folder / name).stat().st_ino == inode


def change(root):
    save_photo(root / "ant" / "0.png", (1, 2, 3), (50, 40))


def touch(root):
    os.utime(root / "ant" / "0.png", ns=(1, 1))


def add(root):
    save_photo(root / "bee" / "new.png", (1, 2, 3), (50, 40))


def damage(root):
    [path] = (root.parent / "cache").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("happens", [change, touch, add, damage])
def test_cache_is_made_anew_when_files_change(root, tmp_path, capsys, happens):
    make(root, tmp_path / "cache").train_dataloader()
    happens(root)
    capsys.readouterr()
    cached = make(root, tmp_path / "cache")
    assert_same(batches(make(root).val_dataloader()), batches(cached.val_dataloader()))
    assert capsys.readouterr().out.startswith("Cache ")
    assert len(files_in(tmp_path / "cache")) == 1


def test_each_way_of_resizing_has_its_own(root, tmp_path):
    for spec in (SPEC, InputSpec(16, 24), InputSpec(16, 20, "bicubic"), InputSpec(16, 20, fit="squash")):
        make(root, tmp_path / "cache", spec).train_dataloader()
    assert len(files_in(tmp_path / "cache")) == 4
    for spec in (PADDED, InputSpec(17, 20, fit="pad")):
        make(root, tmp_path / "cache", spec).train_dataloader()
    assert len(files_in(tmp_path / "cache")) == 6
    # These do not change what is kept.
    make(root, tmp_path / "cache", InputSpec(12, 20, mean=(0, 0, 0))).train_dataloader()
    assert len(files_in(tmp_path / "cache")) == 6


def test_images_given_to_predict_are_not_cached(root, tmp_path, capsys):
    save_photo(tmp_path / "new" / "1.png", (250, 0, 0), (40, 40))
    data = make(root, tmp_path / "cache", predict=str(tmp_path / "new"))
    data.setup("predict")
    [(images, _)] = data.predict_dataloader()
    assert images[0, :, 8, 8].tolist() == [250, 0, 0]
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_image_is_told_and_leaves_nothing(root, tmp_path, num_workers):
    path = root / "bee" / "7.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    data = make(root, tmp_path / "cache", num_workers=num_workers)
    data.verifies = False  # which would tell it before
    with pytest.raises(UserError, match=rf"^{path}: cannot be read as an image \(.*truncated.*\); fix or remove it$"):
        data.train_dataloader()
    assert files_in(tmp_path / "cache") == []


@pytest.mark.long
def test_no_room_is_told_before_anything_is_written(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4000))
    folder = tmp_path / "cache"
    with pytest.raises(UserError, match=rf"^data.cache: needs 43.1 kB, 4.0 kB are free in {folder}$"):
        make(root, folder).train_dataloader()
    assert files_in(folder) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_disk_that_fills_up_while_writing_is_told_and_leaves_nothing(
    root, tmp_path, monkeypatch, num_workers, reserved
):
    if not reserved:
        monkeypatch.setattr(photo_cache, "_reserve", lambda *_: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # the writing fails as on a full disk
        with pytest.raises(UserError, match=rf"^data.cache: {tmp_path}/cache cannot be written \(File too large\)$"):
            make(root, tmp_path / "cache", num_workers=num_workers).train_dataloader()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(tmp_path / "cache") == []


def test_folder_that_cannot_be_is_told(root, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=rf"^data.cache: {tmp_path}/cache cannot be written \(File exists\)$"):
        make(root, tmp_path / "cache").train_dataloader()


def test_what_a_killed_process_has_half_written_is_not_used(root, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache"
    copy = photo_cache._Copies._copy

    def stops_half_way(self, i):
        if i == 11:
            (tmp_path / "half").touch()
            time.sleep(60)
        return copy(self, i)

    def write():
        torch.set_num_threads(1)  # those of OpenMP are not there after a fork
        make(root, folder).train_dataloader()

    with monkeypatch.context() as patch:
        patch.setattr(photo_cache._Copies, "_copy", stops_half_way)
        process = multiprocessing.get_context("fork").Process(target=write)
        process.start()
    while not (tmp_path / "half").exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [name] = files_in(folder)
    assert name.startswith(".")
    assert (folder / name).stat().st_size > 5000  # room is taken, and some of it is filled
    cached = make(root, folder)
    assert_same(batches(make(root).val_dataloader()), batches(cached.val_dataloader()))
    assert files_in(folder) == [name[1:]]
    assert capsys.readouterr().out.count("Cache ") == 1


def test_two_runs_at_a_time_write_it_once(root, tmp_path, capfd):
    folder = tmp_path / "cache"
    folder.mkdir()
    first, second = make(root, folder), make(root, folder)
    first.setup()
    path = cache_path(folder, [PhotoFiles.of(first.splits[name].paths) for name in ("train", "val", "test")], SPEC)
    runs = [threading.Thread(target=data.train_dataloader) for data in (first, second)]
    with _claimed(path.with_name(f".{path.name}")):
        for run in runs:
            run.start()
        told, line = "", f"Cache  another process writes {path}; waiting for it"
        while told.count(line) < 2 and "images: " not in told:
            told += capfd.readouterr().out
            time.sleep(0.01)
        assert told.count(line) == 2
    for run in runs:
        run.join()
    assert capfd.readouterr().out.count(" for 16 images: ") == 1
    assert files_in(folder) == [path.name]
    assert_same(batches(first.val_dataloader()), batches(second.val_dataloader()))


def test_writing_leaves_the_global_generator_alone(root, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make(root, tmp_path / "cache", num_workers=1).train_dataloader()
    assert torch.get_rng_state().equal(before)


def test_workers_get_the_path_and_refuse_another_cache_in_its_place(root, tmp_path):
    cache = make(root, tmp_path / "cache").val_dataloader().source._loader.dataset.cache
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert pickle.loads(sent)[2].equal(cache[2])
    add(root)
    make(root, tmp_path / "cache").train_dataloader()
    assert cache[2].sum() > 0  # what is mapped stays
    with pytest.raises(UserError, match=r"^data.cache: .* was made anew by another run; start this one again"):
        pickle.loads(sent)


@pytest.mark.long
def test_fit_writes_it_and_plan_and_test_do_not(root, tmp_path, run):
    options = ["--data", "ImageFolderDataModule", "--data.root", root, "--data.num_workers", 0,
               "--data.cache", tmp_path / "cache", "--model.backbone", "mnist_cnn", "--model.weights", "null",
               "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--unfreeze", "null"]  # fmt: skip
    run("plan", *options)
    assert not (tmp_path / "cache").exists()
    out = run("fit", *options)
    assert out.count("Cache ") == 1
    assert out.index("Cache ") < out.index("epoch 0/0")
    assert len(files_in(tmp_path / "cache")) == 1
    shutil.rmtree(tmp_path / "cache")
    [checkpoint] = tmp_path.glob("here/logs/*/version_0/checkpoints/best.ckpt")
    assert "Cache " not in run("test", *options, "--ckpt_path", checkpoint)
    assert not (tmp_path / "cache").exists()


def write_cache_without_fcntl(root, cache):
    warnings.simplefilter("ignore")
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("lit_ft", "filelock"):
            del sys.modules[name]
    sys.modules["fcntl"] = None
    data = importlib.import_module("lit_ft.data").ImageFolderDataModule(
        str(root), cache=str(cache), spec=SPEC, num_workers=0
    )
    data.order_seed = 5
    print(sum(len(images) for images, _ in data.train_dataloader()))


def test_cache_is_written_where_there_is_no_fcntl(root, tmp_path):
    """As on Windows."""
    out, err = tmp_path / "out", tmp_path / "err"
    assert forked.wait(forked.start(write_cache_without_fcntl, root, tmp_path / "cache", out=out, err=err)) == [0]
    assert err.read_text() == ""
    told, count = out.read_text().splitlines()
    assert " for 16 images: " in told
    assert count == "13"
    assert len(files_in(tmp_path / "cache")) == 1


def test_file_system_without_locks_is_told(root, tmp_path, monkeypatch):
    def fails(self, **options):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    with pytest.raises(UserError, match=rf"^data.cache: {tmp_path}/cache cannot be written \(no flock here\)$"):
        make(root, tmp_path / "cache").train_dataloader()


STRANGE = {
    "no sizes": lambda arrays, facts: arrays.pop("sizes"),
    "no mark": lambda arrays, facts: facts.update(made="x"),
    "pixels of another type": lambda arrays, facts: arrays.update(pixels=arrays["pixels"].float()),
    "fewer pixels": lambda arrays, facts: arrays.update(pixels=arrays["pixels"][:-3].clone()),
    "keys of another type": lambda arrays, facts: arrays.update(keys=arrays["keys"].double()),
    "no keys": lambda arrays, facts: arrays.update(keys=arrays["keys"][:0].clone()),
    "sizes of another shape": lambda arrays, facts: arrays.update(sizes=arrays["sizes"].flatten()),
    "sizes of three": lambda arrays, facts: arrays.update(sizes=torch.ones(16, 3, dtype=torch.long)),
    "sizes that are swapped": lambda arrays, facts: arrays.update(sizes=arrays["sizes"].flip(0).contiguous()),
    "sizes below zero": lambda arrays, facts: arrays["sizes"].neg_(),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_cache_of_another_kind_is_written_again(root, tmp_path, strange):
    folder = tmp_path / "cache"
    before = batches(make(root, folder).train_dataloader())
    path = folder / files_in(folder)[0]
    content = path.read_bytes()
    rewrite(path, STRANGE[strange])
    assert_same(batches(make(root, folder).train_dataloader()), before)
    assert path.read_bytes() == content


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    node_disks.photos(folder)
    found = processes.launch(folder, "read_on_nodes", num_nodes=2, home="node_disks")
    return [one["read_on_nodes"] for one in found]


COLOURS = [(10 * i, 100, 200) for i in range(20)]


@pytest.mark.parametrize(
    ("disks", "expected"), [("shared", COLOURS), ("own", COLOURS), ("changed", [(255, 255, 255), *COLOURS[1:]])]
)
def test_nodes_read_each_image_once_an_epoch_as_it_is_now(nodes, disks, expected):
    for epoch in range(2):
        seen = [colour for node in nodes for colour in node[disks]["seen"][epoch]]
        assert sorted(seen) == sorted(expected)


def test_nodes_leave_one_cache_on_each_disk_and_nothing_unfinished(nodes):
    for node in nodes:
        for disks in ("shared", "own", "changed"):
            kinds = [name for name in node[disks]["files"] if name.startswith("cache/")]
            assert len([name for name in kinds if name.endswith(".safetensors")]) == 1
            hidden = [name for name in node[disks]["files"] if name.startswith(("cache/.", "derived/."))]
            assert all(name.endswith(".lock") for name in hidden)
        assert node["is_new"]
