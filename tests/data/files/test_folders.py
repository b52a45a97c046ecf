import os
from pathlib import Path

import pytest

from lit_ft.data.files.folders import class_folders, find_file, find_folder, subfolders
from lit_ft.errors import UserError


def test_missing_folder_tells_the_nearest(tmp_path):
    (tmp_path / "flowers5").mkdir()
    with pytest.raises(UserError, match=rf"^data.root: {tmp_path}/flower does not exist; nearest: flowers5$"):
        find_folder(str(tmp_path / "flower"), "`data.root`")


@pytest.mark.parametrize(
    ("given", "fault"), [("", "names nothing; give a path"), ("zoo", "zoo does not exist; give .*")]
)
def test_folder_that_is_not_meant_tells_what_to_change(tmp_path, monkeypatch, given, fault):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^data.root: {fault}"):
        find_folder(given, "`data.root`")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("data", "no other folder was given; give that of your photos"),
        ("s3://bucket/photos", "it is an address; fetch what is there, and give its folder"),
        ("'photos'", "the quotation marks are a part of it; give it without, or with the other ones"),
        ("C:Usersmephotos", "the shell has taken its backslashes; quote it, or type / instead"),
        ("D:\\me\\My photos", "it is a path of Windows, which under WSL is /mnt/d/me/My photos"),
        ("lables", "give another path"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="where these are paths")
def test_missing_folder_is_told_with_what_its_spelling_means(tmp_path, monkeypatch, given, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").touch()
    with pytest.raises(UserError) as refused:
        find_folder(given, "`data.root`")
    assert str(refused.value).endswith(f" does not exist; {hint}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("photos.zip", "; unpack it, and give the folder"),
        ("train-images-idx3-ubyte.gz", "; give the one that it is in, ."),
        ("images.idx.gz", "; give the one that it is in, ."),
        ("photos.gz", "; unpack it, and give the folder"),
        ("labels.csv", "; for a table of images: data ImageTableDataModule data.table labels.csv"),
        ("of/x.png", "; give the one that it is in, of"),
    ],
)
def test_file_in_place_of_a_folder_is_told_with_what_to_give(tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(UserError) as refused:
        find_folder(name, "`data.root`")
    assert str(refused.value) == f"data.root: {name} is a file, not a folder{hint}"


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match=r"^data.predict: .*x.png is a file, not a folder"):
        find_folder(str(tmp_path / "x.png"), "`data.predict`")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(UserError, match=rf"^data.table: {tmp_path} is a folder, not a file$"):
        find_file(str(tmp_path), "`data.table`")


def test_relative_folder_may_lie_in_the_shared_one(tmp_path, monkeypatch):
    (tmp_path / "shared" / "flowers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="flowers does not exist"):
        find_folder("flowers", "`data.root`")
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path / "shared"))
    assert find_folder("flowers", "`data.root`") == tmp_path / "shared" / "flowers"
    (tmp_path / "flowers").mkdir()
    assert find_folder("flowers", "`data.root`").resolve() == tmp_path / "flowers"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    assert find_folder("~/x", "`data.root`") == tmp_path / "x"


def test_folder_without_class_folders(tmp_path):
    with pytest.raises(UserError, match=r"^data.root: .* has no class folders, it is empty; put the images of each"):
        class_folders(tmp_path)
    for i in range(7):
        (tmp_path / f"{i}.jpg").touch()
    with pytest.raises(UserError, match=r"only 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more; put"):
        class_folders(tmp_path)


@pytest.mark.parametrize("name", ["", "flowers"])
def test_folder_that_must_not_be_read(tmp_path, monkeypatch, name):
    (tmp_path / "flowers").mkdir()
    scandir = os.scandir

    def forbidden(folder):
        if Path(folder) == tmp_path / name:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=rf"^data.root: {tmp_path / name} cannot be read \(Permission denied\); "):
        class_folders(tmp_path)


def test_folder_in_one_that_must_not_be_read(tmp_path, monkeypatch):
    def forbidden(self, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(UserError, match=rf"^data.predict: {tmp_path}/x cannot be read \(Permission denied\); "):
        find_folder(str(tmp_path / "x"), "`data.predict`")


def test_link_that_leads_nowhere_is_no_folder(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "flowers").mkdir()
    assert subfolders(tmp_path) == [tmp_path / "flowers"]


def test_only_one_class(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"has only one class, 'flowers', and two are needed; put"):
        class_folders(tmp_path)
    (tmp_path / "flowers" / "daisy").mkdir()
    (tmp_path / "flowers" / "rose").mkdir()
    with pytest.raises(UserError, match=rf"if the classes are daisy, rose: data.root {tmp_path}/flowers$"):
        class_folders(tmp_path)
