import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import idx_bytes, noise, write_idx

from lit_ft.data.arrays.files import holds_arrays, list_arrays
from lit_ft.errors import UserError

ARRAYS = {"x": noise(3), "y": np.arange(3), "names": np.array(["ant", "bee", "cat"])}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive_come_back_as_saved(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = list_arrays(tmp_path / "a.npz")
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        name: (array.dtype, array.shape) for name, array in ARRAYS.items()
    }
    assert all(np.array_equal(found[name].read(), ARRAYS[name]) for name in ARRAYS)


def test_files_of_a_folder_are_called_by_their_names_without_suffix(tmp_path):
    np.save(tmp_path / "x_train.npy", ARRAYS["x"])
    np.savez(tmp_path / "test.npz", x=ARRAYS["x"], y=ARRAYS["y"])
    write_idx(tmp_path / "t10k-images-idx3-ubyte", noise(2), gz=True)
    write_idx(tmp_path / "t10k-labels.idx1-ubyte", [4, 5])
    (tmp_path / "notes.txt").touch()
    found = list_arrays(tmp_path)
    assert sorted(found) == ["t10k-images", "t10k-labels", "test/x", "test/y", "x_train"]
    assert np.array_equal(found["t10k-images"].read(), noise(2))
    assert found["t10k-labels"].read().tolist() == [4, 5]
    assert np.array_equal(found["test/x"].read(), ARRAYS["x"])


def test_array_of_its_own_file_is_mapped_and_what_is_written_to_it_stays_in_memory(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["x"])
    before = (tmp_path / "x.npy").read_bytes()
    array = list_arrays(tmp_path)["x"].read()
    assert isinstance(array, np.memmap)
    array[:] = 0
    array.flush()
    assert (tmp_path / "x.npy").read_bytes() == before


def test_array_in_fortran_order_has_its_values(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(ARRAYS["x"]))
    assert np.array_equal(list_arrays(tmp_path)["x"].read(), ARRAYS["x"])


@pytest.mark.parametrize(
    ("dtype", "values"), [(9, [-1, 2]), (11, [-300, 2]), (12, [70000, 2]), (13, [0.5, 2.0]), (14, [0.1, 2.0])]
)
def test_idx_of_other_types(tmp_path, dtype, values):
    code = {9: "b", 11: "h", 12: "i", 13: "f", 14: "d"}[dtype]
    data = bytes([0, 0, dtype, 1]) + struct.pack(f">I2{code}", 2, *values)
    (tmp_path / "y-idx1-ubyte").write_bytes(data)
    assert list_arrays(tmp_path)["y"].read().tolist() == pytest.approx(values)


SPRUNG = []


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return SPRUNG.append, (1,)


@pytest.mark.parametrize("name", ["a.npz", "x.npy"])
def test_objects_are_never_unpickled(tmp_path, name):
    objects = np.array([Trap(), Trap()])
    if name == "a.npz":
        np.savez(tmp_path / name, x=objects, y=np.arange(2))
    else:
        np.save(tmp_path / name, objects)
    found = list_arrays(tmp_path / name if name == "a.npz" else tmp_path)
    with pytest.raises(UserError, match=r"^data.root: .*(a.npz: x|x.npy) holds objects of Python, which could"):
        found["x"].read()
    assert not SPRUNG


def damaged(data):
    """Ways in which an archive is damaged, and the reason that is given."""
    place = data.index(b"PK\x01\x02")  # the directory
    lying = bytearray(data)
    lying[place + 24 : place + 28] = struct.pack("<I", 2**31)  # the size that is said to be unpacked
    content = bytearray(data)
    content[200] ^= 0xFF
    encrypted = bytearray(data)
    encrypted[6] |= 1
    encrypted[place + 8] |= 1
    return {
        "truncated": (data[:-30], "not a zip file"),
        "cut in half": (data[: len(data) // 2], "not a zip file"),
        "none": (b"hello", "not a zip file"),
        "empty": (b"", "not a zip file"),
        "lying": (bytes(lying), "has 2147483648 bytes where its header announces"),
        "changed": (bytes(content), "(Bad CRC-32|Error -3|magic string|header)"),
        "encrypted": (bytes(encrypted), "encrypted"),
    }


@pytest.mark.parametrize("damage", ["truncated", "cut in half", "none", "empty", "lying", "changed", "encrypted"])
def test_damaged_archive_is_named_with_the_reason(tmp_path, damage):
    np.savez_compressed(tmp_path / "whole.npz", x=noise(1))
    data, reason = damaged((tmp_path / "whole.npz").read_bytes())[damage]
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=rf"^data.root: \S*a.npz cannot be read as an array \(.*{reason}.*\); save"):
        list_arrays(tmp_path / "a.npz")["x"].read()


def header(shape, dtype="|u1"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("packed", [True, False])
def test_header_that_announces_more_than_there_is_reserves_nothing(tmp_path, packed):
    content = header((10**9, 10**6)) + bytes(100)
    if packed:
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=rf"has {len(content)} bytes where its header announces {10**15 + 128}"):
        list_arrays(tmp_path / "a.npz" if packed else tmp_path)


def test_archive_that_unpacks_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((64, 1 << 14), np.uint8))
    array = list_arrays(tmp_path / "a.npz")["x"]
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 10)  # a machine with 1 MiB
    assert array.read().shape == (64, 1 << 14)
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 9)
    with pytest.raises(UserError, match=r"a.npz: x: its header announces 1048576 bytes, more than fit into memory$"):
        array.read()


def test_idx_with_counts_beyond_the_file_is_refused(tmp_path):
    (tmp_path / "x-idx3-ubyte").write_bytes(idx_bytes(noise(2))[:4] + struct.pack(">3I", 2**31, 28, 28) + bytes(1568))
    with pytest.raises(UserError, match=r"x-idx3-ubyte: damaged: 1584 bytes where its header announces 168"):
        list_arrays(tmp_path)["x"].read()


def test_file_that_is_called_idx_and_is_none_is_refused(tmp_path):
    (tmp_path / "x-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"x-idx3-ubyte: not an IDX file, as it begins with 3c68746d$"):
        list_arrays(tmp_path)


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros(3, [("a", int), ("b", float)]), r"is of type \[\('a'"),
        (np.zeros((0, 28, 28), np.uint8), r"is empty, its shape is \(0, 28, 28\)"),
        (np.zeros(3, "datetime64[s]"), r"is of type datetime64\[s\]"),
        (np.zeros(3, complex), "is of type complex128"),
    ],
)
def test_arrays_without_images_or_labels_are_refused(tmp_path, array, fault):
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(UserError, match=f"a.npz: x {fault}"):
        list_arrays(tmp_path / "a.npz")["x"].read()


def test_archives_and_folders_of_arrays_alone_hold_arrays(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["x"])
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert holds_arrays(tmp_path)
    assert holds_arrays(tmp_path / "a.npz")
    assert not holds_arrays(tmp_path / "x.npy")
    assert not holds_arrays(tmp_path / "missing")
    (tmp_path / "ant").mkdir()  # a class, it may be
    assert not holds_arrays(tmp_path)
    assert not holds_arrays(Path("."))
