"""Pages of reports, and what is in them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
from image_files import save_photo
from PIL import Image

from lit_ft.data.pages import SIDE, encode_thumbnail, make_folder, thumbnail, write_report
from lit_ft.errors import UserError


def decoded(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)))


def test_thumbnail_is_small_and_keeps_the_shape(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png", (200, 30, 30), (640, 320))
    small = decoded(thumbnail(str(tmp_path / "a.png")))
    assert (small.format, small.size) == ("JPEG", (SIDE, SIDE // 2))
    assert small.getpixel((5, 5))[0] > 150


def test_transparent_parts_of_a_thumbnail_are_white_as_for_the_network(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert min(decoded(thumbnail(str(tmp_path / "a.png"))).getpixel((4, 4))) > 250


def test_grey_images_of_memory_have_a_thumbnail() -> None:
    assert decoded(encode_thumbnail(Image.new("L", (8, 8), 100))).size == (8, 8)


def test_what_is_no_image_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    assert thumbnail(str(tmp_path / "a.png")) == ""


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^folder: .*/file is a file; name a folder$"):
        make_folder(str(tmp_path / "file"))


@pytest.mark.parametrize("given", ["", " "])
def test_folder_without_a_name_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"^folder: names nothing; name a folder$"):
        make_folder(given)


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder: .*file/a: cannot be written \(Not a directory\)"):
        make_folder(str(tmp_path / "file" / "a"))


def test_files_are_written_and_their_paths_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(make_folder(str(tmp_path / "a" / "b")), {"x.json": "{}", "name.txt": "\udcff"})
    assert (tmp_path / "a" / "b" / "name.txt").read_bytes() == b"\xff"
    assert capsys.readouterr().out == f"Written: {tmp_path}/a/b/x.json\nWritten: {tmp_path}/a/b/name.txt\n"
