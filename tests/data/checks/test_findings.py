import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lit_ft.data import ImageFolderDataModule, MNISTToEMNISTDataModule
from lit_ft.data.checks.check_data import check
from lit_ft.data.checks.findings import inspect_file
from lit_ft.errors import plain


def photo(seed, size=(96, 72)):
    """A picture of its own: large shapes and small ones, in colours."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.2)


def png_header(width, height):
    """A PNG that says it is of this size, and has no pixels."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def clean(tmp_path):
    """Three classes in two splits, of 12 and 4 pictures of their own."""
    root = tmp_path / "clean"
    for number, name in enumerate(("ant", "bee", "cat")):
        for split, count in (("train", 12), ("val", 4)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * number + 100 * (split == "val") + i
                photo(seed).save(root / split / name / f"{seed}.jpg", quality=90)
    return root


def inside(root, split="train", name="ant", number=0):
    return sorted((root / split / name).iterdir())[number]


def cut_short(root):
    path = inside(root)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def no_image(root):
    path = root / "train" / "ant" / "page.jpg"
    path.write_text("<html>404 Not Found</html>")
    return path


def gone(root):
    path = root / "train" / "ant" / "gone.jpg"
    path.symlink_to(root / "nowhere.jpg")
    return path


def no_content(root):
    path = root / "val" / "bee" / "empty.png"
    path.touch()
    return path


def bomb(root):
    path = root / "train" / "cat" / "bomb.png"
    path.write_bytes(png_header(30_000, 30_000))
    return path


def wrong_suffix(root):
    path = root / "train" / "ant" / "really.png"
    photo(57).save(path, "WEBP")
    return path


def other_format(root):
    path = root / "train" / "ant" / "drawing.psd"
    path.write_bytes(b"....")
    return path


def thumbnail(root):
    path = root / "train" / "ant" / "tiny.png"
    photo(58, (16, 12)).save(path)
    return path


def panorama(root):
    path = root / "train" / "ant" / "wide.png"
    photo(59, (400, 80)).save(path)
    return path


def turned(root):
    path = root / "train" / "ant" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(60).save(path, exif=exif)
    return path


FILES = {
    cut_short: ("unreadable", True),
    no_image: ("unreadable", True),
    gone: ("unreadable", True),
    no_content: ("empty", True),
    bomb: ("huge", True),
    wrong_suffix: ("suffix", False),
    other_format: ("ignored", False),
    thumbnail: ("tiny", False),
    panorama: ("long", False),
    turned: ("turned", False),
}


def found(root, **options):
    return {finding.kind: finding for finding in check(ImageFolderDataModule(str(root), **options)).findings}


@pytest.mark.filterwarnings("ignore:.*are no images, and not used")  # which is what is found
@pytest.mark.parametrize("plant", FILES, ids=lambda plant: plant.__name__)
def test_a_file_is_found_alone_and_named(clean, plant):
    path = plant(clean)
    kind, hurts = FILES[plant]
    findings = found(clean)
    assert list(findings) == [kind]
    assert findings[kind].hurts is hurts
    assert [item["path"] for item in findings[kind].items] == [str(path)]


def saved(image, path):
    image.save(path, quality=60) if path.suffix == ".jpg" else image.save(path)


def exact(image, path):
    shutil.copy(image.filename, path)


def resized(image, path):
    saved(image.resize((48, 36)), path)


def cropped(image, path):
    saved(image.crop((4, 3, 96, 72)), path)


def darker(image, path):
    saved(image.point(lambda value: value * 0.8), path)


def mirrored(image, path):
    saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), path)


COPIES = {saved: "look", exact: "bytes", resized: "look", cropped: "look", darker: "look", mirrored: "look"}
PLACES = {"leak": "val/ant", "contradiction": "train/bee", "duplicates": "train/ant"}


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
@pytest.mark.parametrize("kind", PLACES)
def test_a_copy_is_found_where_it_is(clean, kind, copy):
    source, path = inside(clean, number=5), clean / PLACES[kind] / "zcopy.jpg"
    with Image.open(source) as image:
        copy(image, path)
    findings = found(clean)
    assert list(findings) == [kind]
    assert findings[kind].hurts is (kind != "duplicates")
    [group] = findings[kind].groups
    assert group["same"] == COPIES[copy]
    assert sorted(image["path"] for image in group["images"]) == sorted([str(source), str(path)])
    assert sorted({image["class"] for image in group["images"]}) == sorted({"ant", path.parent.name})
    assert findings[kind].count == 2


def test_copies_of_copies_are_one_group_and_told_under_all_they_are(clean):
    source = inside(clean)
    for place in ("train/ant", "train/bee", "val/cat"):
        shutil.copy(source, clean / place / "zcopy.jpg")
    findings = found(clean)
    assert list(findings) == ["leak", "contradiction"]
    assert all(len(finding.groups) == 1 and finding.count == 4 for finding in findings.values())


def test_flat_images_are_no_copies_but_exact_ones_are(clean):
    for i in range(5):
        Image.new("RGB", (64, 64), (200 + i, 200, 200)).save(clean / "train" / "ant" / f"flat{i}.png")
    assert found(clean) == {}
    shutil.copy(clean / "train" / "ant" / "flat0.png", clean / "val" / "cat" / "flat.png")
    assert list(found(clean)) == ["leak", "contradiction"]


def not_found(size=(240, 180), background=240, text=120):
    """What a server gives where there is no picture."""
    image = Image.new("RGB", size, (background,) * 3)
    ImageDraw.Draw(image).text((60, 80), "image not found", fill=(text,) * 3)
    return image


def as_it_is(image, path, i):
    image.save(path.with_suffix(".png"))


def with_other_metadata(image, path, i):
    exif = Image.Exif()
    exif[0x010E] = f"number {i}"
    image.save(path.with_suffix((".png", ".bmp", ".tiff")[i % 3]), exif=exif)


def compressed_otherwise(image, path, i):
    image.save(path, quality=50 + 7 * i)


def of_another_size(image, path, i):
    image.resize((240 + 20 * i, 180 + 15 * i)).save(path)


PICTURES = {
    "text": not_found(), "pale": not_found(background=250, text=230), "dark": not_found(background=0, text=255),
    "white": Image.new("RGB", (64, 64), "white"), "black": Image.new("RGB", (64, 64), "black"),
    "photo": photo(99, (240, 180)),
}  # fmt: skip


@pytest.mark.parametrize("places", [["train/ant"], ["train/ant", "train/bee"]], ids=["one class", "two classes"])
@pytest.mark.parametrize("save", [as_it_is, with_other_metadata, compressed_otherwise, of_another_size])
@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_that_is_there_in_number_is_a_placeholder(clean, picture, save, places):
    for i in range(6):
        save(PICTURES[picture], clean / places[i % len(places)] / f"z{i}.jpg", i)
    findings = found(clean)
    if picture == "photo" and save in (compressed_otherwise, of_another_size) and len(places) == 1:
        assert list(findings) == ["duplicates"]  # near copies in one class, as of a film
        return
    assert next(iter(findings)) == "placeholder"
    assert set(findings) <= {"placeholder", *(["contradiction"] if len(places) == 2 else [])}
    assert (findings["placeholder"].hurts, findings["placeholder"].count) == (True, 6)
    [group] = findings["placeholder"].groups
    assert sorted(Path(image["path"]).stem for image in group["images"]) == [f"z{i}" for i in range(6)]


@pytest.mark.parametrize("picture", ["text", "white"])
def test_what_is_there_four_times_is_no_placeholder(clean, picture):
    for i in range(4):
        as_it_is(PICTURES[picture], clean / "train" / "ant" / f"z{i}.png", i)
    assert list(found(clean)) == ["duplicates"]


def test_flat_pictures_of_their_own_are_no_placeholders(clean):
    rng = np.random.default_rng(0)
    for i in range(20):
        haze = Image.fromarray(rng.integers(118, 138, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.BICUBIC)
        haze.save(clean / "train" / "ant" / f"haze{i}.png")
    assert found(clean) == {}


def test_what_cannot_be_read_is_no_placeholder(clean):
    for i in range(6):
        (clean / "train" / "ant" / f"z{i}.jpg").write_text("404")
    assert list(found(clean)) == ["unreadable"]


def test_several_placeholders_and_a_leak_are_told_of(clean):
    for i in range(5):
        as_it_is(PICTURES["text"], clean / ("train", "val")[i % 2] / "ant" / f"x{i}.png", i)
        as_it_is(PICTURES["dark"], clean / "train" / "bee" / f"y{i}.png", i)
    shutil.copy(inside(clean), clean / "train" / "ant" / "zcopy.jpg")
    findings = found(clean)
    assert list(findings) == ["placeholder", "leak", "duplicates"]
    assert findings["placeholder"].what == "10 images show one picture at least 5 times (2 group(s))"
    assert findings["leak"].count == 5
    assert findings["duplicates"].count == 2


def test_a_clean_folder_and_one_that_is_split_here(clean):
    assert found(clean) == {}
    assert found(clean / "train", val_fraction=0.1) == {}


def remove(root, name, keep, split="train"):
    for path in sorted((root / split / name).iterdir())[keep:]:
        path.unlink()


def test_classes_are_counted(clean):
    remove(clean, "bee", 1)
    remove(clean, "cat", 0, "val")
    with pytest.warns(UserWarning, match="no images of"):
        findings = found(clean)
    assert {kind: finding.items for kind, finding in findings.items()} == {
        "too_few": [{"class": "bee", "images": 1}],
        "one_split": [{"class": "cat", "split": "val"}],
        "imbalance": [{"class": "ant", "images": 12}, {"class": "bee", "images": 1}],
    }
    assert [finding.hurts for finding in findings.values()] == [True, True, False]


def test_a_small_class_is_worth_knowing(clean):
    remove(clean, "bee", 9)
    findings = found(clean)
    assert [(f.kind, f.hurts, f.items) for f in findings.values()] == [("few", False, [{"class": "bee", "images": 9}])]


def test_what_cannot_be_split_is_checked_all_the_same(clean):
    remove(clean, "bee", 1)
    cut_short(clean)
    findings = found(clean / "train")
    assert list(findings)[:3] == ["split", "unreadable", "too_few"]
    assert "data.val_fraction: " in plain(findings["split"].what)


def test_the_same_file_in_two_places_is_a_leak(clean):
    os.link(inside(clean), clean / "val" / "ant" / "link.jpg")
    assert list(found(clean)) == ["leak"]


def test_sets_in_memory_are_checked_for_exact_copies(mnist_root):
    data = MNISTToEMNISTDataModule(str(mnist_root), domain="source")
    findings = {finding.kind: finding for finding in check(data).findings}
    # The fixture draws its 30 test images as the first 30 of the training images, 3 a class and not 10.
    assert findings["leak"].count == 30 + 30 * 1
    assert {group["same"] for group in findings["leak"].groups} == {"bytes"}
    assert findings["leak"].groups[0]["images"][0]["path"].startswith("MNISTToEMNISTDataModule/")


def test_looking_never_decodes_what_is_huge(clean, monkeypatch):
    monkeypatch.setattr("lit_ft.data.checks.findings.problem_or_pixels", None)
    assert inspect_file(bomb(clean)).is_huge


def test_command_writes_and_ends_by_what_was_found(lit_ft, clean):
    data = ("--data", "ImageFolderDataModule", "--data.root", clean)
    before = sorted(path for path in clean.rglob("*"))
    code, out, err = lit_ft("check", *data)
    assert (code, err) == (0, [])
    assert out.splitlines()[1:] == [
        "  train        36 images, 12 in each of 3 classes",
        "  val          12 images, 4 in each of 3 classes",
        "",
        "Nothing was found.",
    ]
    panorama(clean)
    assert lit_ft("check", *data)[0] == 0
    shutil.copy(inside(clean), clean / "val" / "bee" / "zcopy.jpg")
    cut_short(clean)
    bomb(clean)
    code, out, err = lit_ft("check", *data, "--folder", "found")
    assert (code, err) == (1, [])
    assert [line[:5] for line in out.splitlines() if "file(s)" in line or "group" in line] == ["HURTS"] * 2 + ["note "]
    told = json.loads(Path("found/check.json").read_text())
    assert told["hurts"] is True
    assert told["counts"]["val"] == {"ant": 4, "bee": 5, "cat": 4}
    assert {f["kind"]: f["count"] for f in told["findings"]} == {"unreadable": 1, "huge": 1, "long": 1}
    assert told["findings"][0]["items"][0]["split"] == "train"
    assert len(before) + 3 == len(list(clean.rglob("*")))  # what was planted, and nothing more
    page = Path("found/check.html").read_text()
    found, _, samples = page.partition("id='samples'")
    assert found.count("<img src='data:image/jpeg;base64,") == 1
    assert found.count("class='none'") == 2
    assert samples.count("<figure") == 6 * 3
    assert f"<h1>{clean}</h1>" in page


def test_command_refuses_in_a_line_what_it_cannot_check_or_write(refused, clean):
    data = ("--data", "ImageFolderDataModule", "--data.root", clean)
    Path("file").touch()
    assert refused("check", *data, "--folder", "file") == "lit-ft: --folder: file is a file; name a folder"
    assert refused("check", "--data", "ImageFolderDataModule", "--data.root", "nix").startswith("lit-ft: --data.root: ")


def test_help_claims_no_more_than_is_found(run):
    told = " ".join(run("--help").split())
    assert "damaged files, copies across splits, placeholders." in told
    assert "wrong labels" not in told


@pytest.mark.parametrize("name", ["check.json", "check.html"])
def test_report_that_cannot_be_written_is_one_line_after_what_was_found(lit_ft, photo_root, name):
    Path("found", name).mkdir(parents=True)  # which no file replaces
    code, out, err = lit_ft("check", "--data", "ImageFolderDataModule", "--data.root", photo_root, "--folder", "found")
    assert (code, err) == (2, [f"lit-ft: found/{name}: cannot be written (Is a directory)"])
    assert "Checked ImageFolderDataModule" in out
    assert [path.name for path in Path("found").glob(".*")] == []


class Entries(list):
    """What `os.scandir` gives, in an order of one's own."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("reverse", [False, True])
def test_kinds_of_ignored_files_come_by_number_then_by_name(clean, monkeypatch, reverse):
    for name in ("1.xml", "2.xml", "1.txt", "1.csv", "1.zip"):
        (clean / "train" / "ant" / name).write_text("no image")
    read = os.scandir

    def scandir(folder):
        return Entries(sorted(read(folder), key=lambda entry: entry.name, reverse=reverse))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"not used: 2 \.xml, 1 \.csv, 1 \.txt, 1 \.zip$"):
        advice = found(clean)["ignored"].advice
    assert advice.startswith("(2 .xml, 1 .csv, 1 .txt, 1 .zip) ")
