import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from derived_files import rewrite
from image_files import save_photo

from lit_ft.data import ImageFolderDataModule
from lit_ft.data.files import image_index as module
from lit_ft.data.files.image_index import index_images
from lit_ft.errors import UserError


@pytest.fixture
def reads(monkeypatch):
    """The folders that are read, in order; those made just now count as settled."""
    read, scandir = [], os.scandir

    def counted(folder):
        read.append(os.path.basename(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(module, "_COARSEST_CLOCK_NS", -(10**18))
    return read


def names(folder):
    return list(index_images(folder, "`data.root`").paths.names())


def test_images_are_found_at_any_depth_in_a_fixed_order(tmp_path):
    for name in ("b/2.JPG", "b/deep/1.png", "a/3.jpeg", ".hidden/x.png", "b/.dot.png", "__MACOSX/x.png",
                 "a/.ipynb_checkpoints/3.jpeg", "a/@eaDir/3.jpeg", "a/notes.txt"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = names(tmp_path)
    assert found == ["a/3.jpeg", "b/2.JPG", "b/deep/1.png"]


def test_links_are_followed_and_loops_are_not(tmp_path):
    save_photo(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "itself").symlink_to("itself")
    assert list(index_images(tmp_path / "root", "`data.root`").paths) == [tmp_path / "root" / "link" / "1.png"]


def test_pipes_are_no_images_but_links_that_lead_nowhere_are(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to(os.devnull)
    save_photo(tmp_path / "1.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "1.png")
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert names(tmp_path) == ["1.png", "link.png", "loop.png", "lost.png"]


def test_order_is_that_of_paths(tmp_path):
    for name in ("a/b/1.png", "a/b.png", "a/c.png", "a-/1.png", "B/1.png", "ä/1.png", "a/b-/1.png", "z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    index = index_images(tmp_path, "`data.root`")
    assert list(index.paths) == sorted(tmp_path.rglob("*.png"))
    found = {name: [index.paths.name(i) for i in range(*rows)] for name, rows in index.folders.items()}
    assert found == {
        "B": ["B/1.png"], "a": ["a/b/1.png", "a/b-/1.png", "a/b.png", "a/c.png"], "a-": ["a-/1.png"], "empty": [],
        "ä": ["ä/1.png"],
    }  # fmt: skip
    assert list(index.folders) == sorted(index.folders)


def test_folders_are_read_once_while_they_stay_the_same(photo_root, reads):
    first = names(photo_root)
    assert sorted(reads) == ["ant", "bee", "cat", "photos"]
    assert names(photo_root) == first == [f"{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(10)]
    assert len(reads) == 4


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder", "in a linked folder", "link"])
def test_a_change_below_is_seen(photo_root, tmp_path, reads, change):
    for name in ("one", "other"):
        save_photo(tmp_path / name / "1.png")
    (photo_root / "ant" / "link").symlink_to(tmp_path / "one")
    before = names(photo_root)
    match change:
        case "add":
            save_photo(photo_root / "bee" / "new.png")
        case "remove":
            (photo_root / "bee" / "0.png").unlink()
        case "rename":
            (photo_root / "bee" / "0.png").rename(photo_root / "bee" / "x.png")
        case "new folder":
            (photo_root / "dog").mkdir()
        case "in a linked folder":
            save_photo(tmp_path / "one" / "2.png")
        case "link":
            (photo_root / "ant" / "link").unlink()
            (photo_root / "ant" / "link").symlink_to(tmp_path / "nowhere")
    after = names(photo_root)
    assert sorted(after) == sorted(str(p.relative_to(photo_root)) for p in _walked(photo_root))
    assert (after == before) == (change == "new folder")
    assert ("dog" in index_images(photo_root, "k").folders) == (change == "new folder")


def _walked(root):
    return [Path(d, name) for d, _, found in os.walk(root, followlinks=True) for name in found if name.endswith("png")]


def test_a_change_whose_time_was_set_back_is_seen(photo_root, reads):
    """As by a program that unpacks a second archive."""
    facts = os.stat(photo_root / "bee")
    names(photo_root)
    save_photo(photo_root / "bee" / "new.png")
    os.utime(photo_root / "bee", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert "bee/new.png" in names(photo_root)


def test_what_changed_just_before_is_not_trusted(photo_root, reads, monkeypatch):
    monkeypatch.setattr(module, "_COARSEST_CLOCK_NS", 2 * 10**9)
    names(photo_root)
    names(photo_root)
    assert len(reads) == 8


def test_other_suffixes_find_other_files(photo_root, reads, monkeypatch):
    (photo_root / "ant" / "x.mpg").touch()
    assert len(names(photo_root)) == 30
    monkeypatch.setattr(module, "image_suffixes", lambda: {".mpg"})
    assert names(photo_root)[:2] == ["ant/0.png", "ant/1.png"]  # by their content
    assert "ant/x.mpg" in names(photo_root)


def test_files_are_known_by_content_where_their_suffix_says_nothing(photo_root, reads):
    png, other = photo_root / "ant" / "0.png", photo_root / "bee"
    for name in ("IMG_1", "photo.jpg_large", "x.JPG~", "1.2023-05-01", "trailing."):
        shutil.copy(png, other / name)
    for name in ("notes.txt", "labels.xml"):  # said to be something else, and so not looked into
        shutil.copy(png, other / name)
    (other / "LICENSE").write_text("BM is no image, nor is P5")
    (other / "empty").touch()
    os.mkfifo(other / "pipe")
    index = index_images(other, "`data.root`")
    found = [name for name in index.paths.names() if not name.endswith(".png")]
    assert found == ["1.2023-05-01", "IMG_1", "photo.jpg_large", "trailing.", "x.JPG~"]
    assert index.passed_over == {".txt": 1, ".xml": 1, "": 2}
    assert index_images(other, "`data.root`").passed_over == index.passed_over  # as it is kept
    assert reads == ["bee"]


def test_no_file_is_opened_whose_suffix_says_what_it_is(photo_root, reads, monkeypatch):
    (photo_root / "ant" / "notes.txt").touch()
    monkeypatch.setattr("builtins.open", None)
    assert len(index_images(photo_root, "`data.root`").paths) == 30


def test_names_that_are_no_text_are_kept(tmp_path, reads):
    name = os.fsdecode(b"\xff")
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.png").touch()
    assert names(tmp_path) == names(tmp_path) == [f"{name}/{name}.png"]
    assert len(reads) == 2


def test_folder_that_cannot_be_read(photo_root, monkeypatch):
    scandir = os.scandir

    def forbidden(folder):
        if str(folder).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"^data.root: .*photos/bee cannot be read \(Permission denied\); "):
        index_images(photo_root, "`data.root`")


def test_prepare_data_keeps_what_setup_reads(photo_root, reads):
    ImageFolderDataModule(str(photo_root)).prepare_data()
    count = reads.count("bee")
    data = pickle.loads(pickle.dumps(ImageFolderDataModule(str(photo_root))))
    data.setup()
    assert reads.count("bee") == count == 1
    assert len(data.splits["train"]) == 24


STRANGE = {
    "no text": lambda arrays, facts: arrays.pop("text"),
    "another array": lambda arrays, facts: arrays.update(x=torch.zeros(1)),
    "text of another type": lambda arrays, facts: arrays.update(text=arrays["text"].float()),
    "stops of another type": lambda arrays, facts: arrays.update(stops=arrays["stops"].int()),
    "stops of another shape": lambda arrays, facts: arrays.update(stops=arrays["stops"].view(-1, 1)),
    "stops beyond the text": lambda arrays, facts: arrays["stops"].mul_(2),
    "stops that go back": lambda arrays, facts: arrays.update(stops=arrays["stops"][[1, 0, 2]].contiguous()),
    "stops below zero": lambda arrays, facts: arrays["stops"][0].fill_(-3),
    "no stops, but text": lambda arrays, facts: arrays.update(stops=torch.zeros(0, dtype=torch.long)),
    "names that lead upwards": lambda arrays, facts: arrays["text"][:7].copy_(torch.tensor(list(b"../x/ya"))),
    "names that lead upwards within": lambda arrays, facts: arrays["text"][:7].copy_(torch.tensor(list(b"a/../xa"))),
    "names from above": lambda arrays, facts: arrays["text"][:7].copy_(torch.tensor(list(b"/etc/xa"))),
    "no facts": lambda arrays, facts: facts.clear(),
    "folders as a list": lambda arrays, facts: facts.update(folders=[1]),
    "folders of other rows": lambda arrays, facts: facts["folders"].update(a=[0, 99]),
    "folders of rows below zero": lambda arrays, facts: facts["folders"].update(a=[-2, 1]),
    "folders of one row": lambda arrays, facts: facts["folders"].update(a=[0]),
    "folders of text": lambda arrays, facts: facts["folders"].update(a=["0", "1"]),
    "no time": lambda arrays, facts: facts.pop("changed"),
    "fewer times": lambda arrays, facts: facts["changed"].pop(),
    "no folders at all": lambda arrays, facts: facts.update(below=[], changed=[]),
    "names that are numbers": lambda arrays, facts: facts.update(below=[1] * len(facts["below"])),
    "names with zeros": lambda arrays, facts: facts["below"].__setitem__(1, "a\0"),
    "nothing passed over": lambda arrays, facts: facts.pop("passed_over"),
    "passed over as text": lambda arrays, facts: facts.update(passed_over={".txt": "1"}),
    "settled as text": lambda arrays, facts: facts.update(settled="no"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_kept_index_of_another_kind_is_made_anew(tmp_path, monkeypatch, reads, strange):
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "kept"))
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        save_photo(tmp_path / "photos" / name)
    folder = tmp_path / "photos"
    index_images(folder, "`data.root`")
    reads.clear()
    index_images(folder, "`data.root`")
    assert reads == []
    [path] = (tmp_path / "kept").iterdir()
    rewrite(path, STRANGE[strange])
    reads.clear()  # of what was looked up here
    index = index_images(folder, "`data.root`")
    assert reads == ["photos", "a", "b"]
    assert list(index.paths.names()) == ["a/1.png", "a/2.png", "b/3.png"]
    assert index.folders == {"a": (0, 2), "b": (2, 3)}
