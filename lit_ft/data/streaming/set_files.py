"""Files of a streamed set in a folder or bucket."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lit_ft.assets import is_offline
from lit_ft.compat import download_from_bucket
from lit_ft.data.files.folders import find_folder
from lit_ft.errors import UserError

SET_FILE = "set.json"
TARGETS_FILE = "targets.npy"


def check_litdata(key: str) -> None:
    """Raises `UserError` where litdata is not installed."""
    try:
        import litdata as _  # noqa: F401
    except ImportError as error:
        raise UserError(f"{key}: streaming needs {error.name}; run: pip install 'lit_ft[stream]'") from error


def is_bucket(root: str) -> bool:
    """Whether a set lies where litdata must fetch it from; ``local:FOLDER`` is a folder that is treated so."""
    return "://" in root or root.startswith("local:")


def read_set_file(root: str, name: str) -> bytes:
    """Content of a small file of a set.

    Args:
        root: Folder or bucket; a folder may also lie below the one in the variable LIT_FT_DATA.
        name: The file within.

    Raises:
        UserError: If it cannot be read.
    """
    if not is_bucket(root):
        return _read_local_file(find_folder(root, "`data.root`") / name)
    if is_offline() and not root.startswith("local:"):
        raise UserError(f"`offline`: `data.root` {root} is streamed over the network; give a folder")
    check_litdata("`data.root`")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            download_from_bucket(root, name, temporary)
            return Path(temporary, name).read_bytes()
        except Exception as error:  # each kind of bucket has errors of its own
            raise UserError(f"`data.root`: cannot read {root}/{name} ({format_reason(error)})") from error


def _read_local_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        above = file.parent.parent
        is_part = file.name == SET_FILE and (above / SET_FILE).is_file()
        hint = f"give {above}" if is_part else "make one of a folder of photos with: lit-ft convert"
        raise UserError(f"`data.root`: {file.parent} is no converted set, it has no {file.name}; {hint}") from error
    except OSError as error:
        raise UserError(f"`data.root`: cannot read {file} ({format_reason(error)})") from error


def format_reason(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
