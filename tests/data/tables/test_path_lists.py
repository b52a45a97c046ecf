"""Lists of images as spreadsheets and shells write them."""

import os
from pathlib import Path

import pytest

from lit_ft.data.tables.path_lists import read_path_list
from lit_ft.errors import UserError

NAMES = ["b.png", "deep/a.png", "a;b.png", "=x.png", "\u00e4.png", '"q".png', "with space.png"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/deep").mkdir(parents=True)
    for name in NAMES:
        Path("photos", name).touch()
    return Path("photos")


TWO = ["b.png", "deep/a.png"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.csv", "path\nb.png\n\ndeep/a.png\n", TWO),
        ("l.csv", "id,path\n1,b.png\n2,deep/a.png\n", TWO),
        ("l.csv", "id;path\n1;b.png\n2;deep/a.png\n", TWO),
        ("l.csv", "id\tpath\n1\tb.png\n2\tdeep/a.png\n", TWO),
        ("l.tsv", "id,path\n1,b.png\n2,deep/a.png\n", TWO),
        ("l.csv", "b.png;1\ndeep/a.png;2\n", TWO),
        ("l.csv", 'label,File\nx,"b.png"\nx,deep/a.png\n', TWO),
        ("l.csv", "label,Image, \nx,b.png,\nx,deep/a.png,\n", TWO),
        ("l.csv", "filename\nb.png\ndeep/a.png\n", TWO),
        ("l.csv", "image,path\nx,b.png\ny,deep/a.png\n", TWO),
        ("l.csv", "class, path\nx, b.png\ny, deep/a.png\n", TWO),
        ("l.csv", "path\n'=x.png\na;b.png\n", ["=x.png", "a;b.png"]),
        ("l.csv", "a;b.png\nb.png\n", ["a;b.png", "b.png"]),
        ("l.csv", "path\ndeep\\a.png\nwith space.png\n", ["deep/a.png", "with space.png"]),
        ("l.txt", 'b.png\r\n"deep/a.png"\r\n"q".png\r\n=x.png', ["b.png", "deep/a.png", '"q".png', "=x.png"]),
        ("l.txt", "b.png\ngone.png\n", ["b.png", "gone.png"]),
    ],
)
def test_list_gives_its_paths_from_its_folder(photos, name, content, expected):
    (photos / name).write_text(content, "utf-8", newline="")
    assert read_path_list(photos / name, "PHOTOS") == [f"photos/{one}" for one in expected]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["l.csv", "l.txt"])
def test_encoding_is_found_out(photos, name, encoding):
    (photos / name).write_bytes("b.png\n\u00e4.png\n".encode(encoding))
    assert read_path_list(photos / name, "PHOTOS") == ["photos/b.png", "photos/\u00e4.png"]


def test_names_that_are_no_text_are_those_of_files_or_refused(photos):
    (photos / "l.csv").write_bytes("path\nb.png\n\u00e4.png\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^PHOTOS: photos/l.csv is not in UTF-8, .*udce4.png'; save it in that enc"):
        read_path_list(photos / "l.csv", "PHOTOS")
    try:
        Path(os.fsdecode(b"photos/\xe4.png")).touch()
    except OSError:
        pytest.skip("this file system has names of text alone")
    assert read_path_list(photos / "l.csv", "PHOTOS")[1] == os.fsdecode(b"photos/\xe4.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no paths of images$"),
        (b"path\n", "has no paths of images$"),
        (b"id,path\n1,b.png\n2\n", "has a row without a path, its row 2 of 2$"),
        (b"Bild\nb.png\n", "begins with 'Bild', which is no file; call the column of the files path$"),
        (b"id;Bild\n1;b.png\n", "begins with 'id', which is no file; call the column"),
        (b"photos/b.png\n", "names no file that is there, such as photos/photos/b.png; move it here, where they start"),
        (b"path\nx.png\n", "names no file that is there, such as photos/x.png; they start from its folder, unless"),
        (b"path\n" + b"x" * 200000, r"cannot be read \(field larger than field limit"),
        (b"\xff\xfep\x00a\x00t", r"cannot be read \(.*truncated data\)"),
    ],
)
def test_mistake_is_named_with_what_to_change(photos, content, message):
    (photos / "l.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"^PHOTOS: photos/l.csv {message}"):
        read_path_list(photos / "l.csv", "PHOTOS")


def test_list_that_cannot_be_opened_is_named(photos):
    (photos / "l.csv").mkdir()
    with pytest.raises(UserError, match=r"l.csv cannot be read \(Is a directory\)"):
        read_path_list(photos / "l.csv", "PHOTOS")
