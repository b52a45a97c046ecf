import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import save_photo
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from safetensors.torch import save_file

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.images import verification
from lit_ft.data.images.decode import decode
from lit_ft.data.images.verification import (
    drop_unreadable,
    find_unreadable,
    format_unreadable,
    problem,
    splits_to_verify,
)
from lit_ft.data.loading.workers import sweep
from lit_ft.errors import UserError

SPEC = InputSpec(size=16, resize=20)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "kept"))


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read, in this process."""
    names = []
    decode = verification.decode
    monkeypatch.setattr(verification, "decode", lambda path, **how: (names.append(path.name), decode(path, **how))[1])
    return names


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


def folder(root, **options):
    return ImageFolderDataModule(str(root), num_workers=0, spec=SPEC, **options)


def packed(root):
    return PackedPaths.pack("", sorted(root.rglob("*.png")))


def unreadable(paths):
    return find_unreadable(paths)[0]


def test_each_file_is_read_once_until_it_changes(photo_root, reads):
    assert unreadable(packed(photo_root)) == {}
    assert len(reads) == 30
    reads.clear()
    cut(photo_root / "bee" / "3.png")
    save_photo(photo_root / "cat" / "new.png")
    found = unreadable(packed(photo_root))
    assert list(found) == [13]
    assert "truncated" in found[13]
    assert sorted(reads) == ["3.png", "new.png"]
    reads.clear()
    assert unreadable(packed(photo_root)) == found
    assert reads == ["3.png"]  # the reason may have gone without a change of the file
    assert list(unreadable(packed(photo_root).part(torch.tensor([13])))) == [0]
    save_photo(photo_root / "bee" / "3.png")
    reads.clear()
    assert unreadable(packed(photo_root)) == {}
    assert unreadable(packed(photo_root)) == {}
    assert reads == ["3.png"]


@pytest.fixture
def drafts(monkeypatch):
    """The sizes at which JPEGs are decoded."""
    sizes = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: sizes.append(args[2]) or draft(*args))
    return sizes


def save_noise(path, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).convert(mode).save(path, **options)


JPEGS = [
    {"subsampling": 2},
    {"subsampling": 0, "quality": 97},
    {"progressive": True},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"restart_marker_rows": 1},
    {"keep_rgb": True, "quality": 90},
]


def damage(content, rng):
    """Content that is cut short, or has bytes of its header or its data changed, left out or added."""
    data = content.index(b"\xff\xda")
    kind, place, inner = rng.randrange(5), rng.randrange(2, len(content)), rng.randrange(data, len(content) - 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        head = rng.randrange(2, data + 14)
        return content[:head] + rng.randbytes(1) + content[head + 1 :]
    if kind == 2:
        return content[:place] + content[place + rng.choice((1, 10, 1000)) :]
    if kind == 3:
        return content[:place] + rng.randbytes(10) + content[place:]
    marker = bytes((0xFF, rng.choice((0xC0, 0xC4, 0xD8, 0xD9, 0xDA))))
    return content[:inner] + marker + content[inner + 2 :]


def problem_of_all_pixels(path):
    try:
        decode(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: cannot be read as an image (").removesuffix("); fix or remove it")
    return ""


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_jpegs_are_verified_at_an_eighth_and_have_the_problems_of_their_full_size(tmp_path, drafts, options):
    path = tmp_path / "x.jpg"
    save_noise(path, **options)
    content, rng = path.read_bytes(), random.Random(0)
    assert problem(path) == ""
    assert drafts == [(40, 30)]
    found = set()
    for _ in range(60):
        path.write_bytes(damage(content, rng))
        found.add(problem(path))
        assert problem(path) == problem_of_all_pixels(path)
    assert "" in found
    assert len(found) > 5


def test_a_limit_that_is_lifted_is_not_held_against_an_image(photo_root, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    assert len(unreadable(packed(photo_root))) == 30
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10**8)
    assert unreadable(packed(photo_root)) == {}


def test_a_change_that_leaves_size_and_mtime_is_seen(photo_root):
    assert unreadable(packed(photo_root)) == {}
    path = photo_root / "bee" / "3.png"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(unreadable(packed(photo_root))) == [13]


def test_each_file_is_read_once_more_where_decoding_has_changed(photo_root, reads, monkeypatch):
    for number, expected in ((1, 30), (1, 0), (2, 30)):
        monkeypatch.setattr(verification, "DECODING", number)
        reads.clear()
        assert unreadable(packed(photo_root)) == {}
        assert len(reads) == expected


def test_a_part_of_the_files_does_not_forget_the_others(photo_root, reads):
    paths = packed(photo_root)
    unreadable(paths)
    reads.clear()
    unreadable(paths.part(torch.tensor([0, 29])))
    unreadable(paths)
    assert reads == []


def test_a_missing_file_and_a_folder_that_cannot_be_written(photo_root, monkeypatch, tmp_path):
    paths = packed(photo_root)
    (photo_root / "ant" / "0.png").unlink()
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert list(unreadable(paths)) == [0]


def name_of(path):
    return path.name, os.getpid()


def test_sweep_keeps_the_order_and_the_random_numbers_in_several_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = list(sweep([Path(str(i)) for i in range(200)], name_of, "looking"))
    assert [name for name, _ in found] == [str(i) for i in range(200)]
    assert len({process for _, process in found}) == 2
    assert torch.get_rng_state().equal(before)


def test_error_names_the_files_before_training(photo_root):
    for i in range(10):
        cut(photo_root / "ant" / f"{i}.png")
    (photo_root / "bee" / "0.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        folder(photo_root).setup()
    text = str(caught.value)
    assert text.startswith("data.on_bad_image: 11 of 30 images cannot be read: ")
    assert text.count(".png (") == 10
    assert " and 1 more; fix or remove them, or leave them out with data.on_bad_image skip" in text


def test_skip_goes_on_with_what_is_left(photo_root):
    for name in ("ant/0", "ant/1", "cat/5"):
        cut(photo_root / f"{name}.png")
    whole = folder(photo_root)
    whole.verifies = False
    whole.setup()
    data = folder(photo_root, on_bad_image="skip", augment="none")
    with pytest.warns(UserWarning, match="on_bad_image` skip: 3 of 30 images cannot be read: .*; they are left out"):
        data.setup()
    bad = {str(photo_root / f"{name}.png") for name in ("ant/0", "ant/1", "cat/5")}
    for split in ("train", "val"):
        before, after = whole.splits[split], data.splits[split]
        kept = [i for i, path in enumerate(before.paths) if str(path) not in bad]
        assert [str(p) for p in after.paths] == [str(before.paths[i]) for i in kept]
        assert after.targets.tolist() == before.targets[kept].tolist()
    assert [sum(column) for column in zip(*data.counts().values(), strict=True)] == [8, 10, 9]
    assert sorted(line.split(": ")[0] for lines in data.left_out.values() for line in lines) == sorted(bad)
    seen = 0
    for images, targets in data.train_dataloader():
        assert images.float().mean((2, 3)).argmax(1).equal(targets)  # ants are red, bees green, cats blue
        seen += len(targets)
    assert seen == len(data.splits["train"])


def test_skip_refuses_a_class_of_which_nothing_is_left(photo_root):
    for path in (photo_root / "bee").iterdir():
        cut(path)
    with pytest.raises(UserError, match="on_bad_image: skip leaves no images of train of bee, as none can be read"):
        folder(photo_root, on_bad_image="skip").setup()
    for path in photo_root.rglob("*.png"):
        cut(path)
    with pytest.raises(UserError, match="skip leaves no images of train, as none of 24 can be read"):
        folder(photo_root, on_bad_image="skip").setup()


def test_what_is_predicted_keeps_its_places(photo_root, tmp_path):
    new = tmp_path / "new"
    shutil.copytree(photo_root / "ant", new)
    cut(new / "0.png")
    cut(photo_root / "ant" / "0.png")  # which predicting does not use
    data = folder(photo_root, predict=str(new), on_bad_image="skip")
    with pytest.warns(UserWarning, match="1 of 10 images cannot be read"):
        data.setup("predict")
    assert [Path(path).name for path in data.predict_paths] == [f"{i}.png" for i in range(1, 10)]
    assert torch.cat([index for _, index in data.predict_dataloader()]).tolist() == list(range(9))
    with pytest.raises(UserError, match="1 of 10 images cannot be read"):
        folder(photo_root, predict=str(new)).setup("predict")


@pytest.mark.parametrize("stages", [["predict"], ["fit"], ["fit", "predict"]], ids="-".join)
def test_image_that_cannot_be_read_stays_out_of_a_second_prediction(photo_root, tmp_path, stages):
    new = tmp_path / "new"
    shutil.copytree(photo_root / "ant", new)
    cut(new / "0.png")
    data = folder(photo_root, predict=str(new), on_bad_image="skip")
    with pytest.warns(UserWarning, match="1 of 10 images cannot be read"):
        data.setup("predict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stage in stages:
            data.setup(stage)
    assert [Path(path).name for path in data.predict_paths] == [f"{i}.png" for i in range(1, 10)]
    assert [line.partition(": ")[0] for line in data.left_out["predict"]] == [str(new / "0.png")]


def test_second_prediction_takes_the_images_that_are_there_now(photo_root, tmp_path):
    new = tmp_path / "new"
    shutil.copytree(photo_root / "ant", new)
    fine = (new / "3.png").read_bytes()
    cut(new / "3.png")
    data = folder(photo_root, predict=str(new), on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"1 of 10 images cannot be read: .*3\.png"):
        data.setup("predict")
    (new / "3.png").write_bytes(fine)
    shutil.copy(new / "5.png", new / "00.png")
    cut(new / "1.png")
    with pytest.warns(UserWarning, match=r"1 of 11 images cannot be read: .*1\.png"):
        data.setup("predict")
    assert [Path(path).name for path in data.predict_paths] == ["0.png", "00.png", *(f"{i}.png" for i in range(2, 10))]


def test_an_evaluation_reads_only_what_it_uses(photo_root, reads):
    data = folder(photo_root, test_fraction=0.1)
    data.setup("test")
    assert len(reads) == 3
    data.setup("validate")
    assert len(reads) == 3 + 6


def test_processes_leave_out_the_same(photo_root, reads):
    cut(photo_root / "ant" / "4.png")
    ranks = [folder(photo_root, on_bad_image="skip") for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in ranks:
            data.setup("fit")
    assert len(reads) == 31  # the second has it from the first, and looks at what could not be read again
    first, second = ([str(p) for p in data.splits["train"].paths] for data in ranks)
    assert first == second
    assert np.array_equal(ranks[0].splits["train"].targets, ranks[1].splits["train"].targets)


def test_unknown_choice_is_refused():
    with pytest.raises(UserError, match=r"data\.on_bad_image: unknown on_bad_image 'ignore'"):
        ImageFolderDataModule(on_bad_image="ignore")


def test_a_run_lists_what_it_leaves_out(run, refused, photo_root):
    cut(photo_root / "ant" / "4.png")
    data = ("--data", "ImageFolderDataModule", "--data.num_workers", 0, "--data.root", photo_root)
    model = ("--model.backbone", "mnist_cnn", "--model.weights", "null", "--unfreeze.strategy", "full")
    options = (*data, *model, "--trainer.max_epochs", 1)
    assert refused("fit", *options).startswith("lit-ft: --data.on_bad_image: 1 of 30 images cannot be read: ")
    assert not list(Path("logs").rglob("*.ckpt"))
    assert "Plan" in run("plan", *options)  # which reads none
    with pytest.warns(UserWarning, match="they are left out"):
        out = run("fit", *options, "--data.on_bad_image", "skip")
    assert "  left out  1 image(s) that cannot be read, see skipped_images.txt" in out
    [listed] = Path("logs").rglob("skipped_images.txt")
    split, path, reason = listed.read_text().strip().split(": ", 2)
    assert (split in ("train", "val"), path) == (True, str(photo_root / "ant" / "4.png"))
    assert "truncated" in reason


def test_process_that_prepared_the_data_looks_no_second_time(photo_root, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "lit_ft.data.images.verification.find_unreadable",
        lambda paths, reader: (looked.append(len(paths)) or {}, {}),
    )
    data = folder(photo_root, val_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    assert sorted(looked) == [6, 24]


@pytest.mark.parametrize(
    "arrays", [{"x": torch.zeros(1)}, {"good": torch.zeros(3)}, {"good": torch.zeros(3, 3).long()}]
)
def test_what_another_program_kept_is_passed_over(photo_root, reads, tmp_path, arrays):
    unreadable(packed(photo_root))
    [path] = (tmp_path / "kept").iterdir()
    save_file(arrays, path, {"facts": "{}"})
    reads.clear()
    assert unreadable(packed(photo_root)) == {}
    assert len(reads) == 30


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("fit", ["train", "val", "test"]),
        (None, ["train", "val", "test"]),
        ("validate", ["val"]),
        ("test", ["test"]),
        ("predict", ["predict"]),
    ],
)
def test_splits_that_a_stage_uses_are_verified(stage, expected):
    assert splits_to_verify(stage, ["train", "val", "test", "predict"], "test") == expected


def files(*targets):
    return FileSplit(PackedPaths.pack("", [f"{i}.png" for i in range(len(targets))]), torch.tensor(targets))


@pytest.mark.parametrize(
    ("split", "bad", "names", "targets"),
    [
        ("train", [], ["0.png", "1.png", "2.png"], [0, 1, 1]),
        ("train", [1], ["0.png", "2.png"], [0, 1]),
        ("val", [0], ["1.png", "2.png"], [1, 1]),  # which need not have all classes
        ("predict", [0], ["1.png", "2.png"], [0, 1]),  # whose targets are their places
    ],
)
def test_images_that_cannot_be_read_are_dropped(split, bad, names, targets):
    rest = drop_unreadable(split, files(0, 1, 1), bad, ["ant", "bee"])
    assert (list(rest.paths.names()), rest.targets.tolist()) == (names, targets)


@pytest.mark.parametrize(
    ("split", "bad", "message"),
    [
        ("train", [0], "skip leaves no images of train of ant, as none can be read; fix them"),
        ("val", [0, 1, 2], "skip leaves no images of val, as none of 3 can be read; fix them"),
    ],
)
def test_split_of_which_too_little_is_left_is_refused(split, bad, message):
    with pytest.raises(UserError, match=message):
        drop_unreadable(split, files(0, 1, 1), bad, ["ant", "bee"])


def test_first_ten_images_that_cannot_be_read_are_named():
    message = format_unreadable([f"{i}.png (cut short)" for i in range(12)], 1200)
    assert message.startswith("12 of 1,200 images cannot be read: 0.png (cut short), 1.png")
    assert message.endswith("9.png (cut short) and 2 more")
