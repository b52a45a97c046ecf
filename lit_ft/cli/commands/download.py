"""``lit-ft download``: published weights and data fetched into one folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser

from lit_ft.assets import MANIFEST, data_root, entry_name, is_intact, is_offline, read_manifest, record, weights_folder
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.cli.config.offline import published_weights, same_options
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.errors import UserError

MakeData = Callable[[Path | None, Path | None], Any]
"""Makes the data module that fetches: into the first folder if the config names none, or anyway into the second."""


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds what the command alone takes."""
    about = "The folder of data and weights; null takes the variable LIT_FT_DATA, or data."
    parser.add_argument("--folder", type=str | None, default=None, help=about)


def run(cli: ConfigCLI) -> int:
    """Fetches what a config needs, and prints the command that runs it offline.

    Raises:
        UserError: If something cannot be fetched.
    """
    if is_offline():
        raise UserError("`offline`: lit-ft download fetches files; run it without --offline and LIT_FT_OFFLINE")
    folder = data_root(cli.config["folder"])
    download(cli.model_options(), cli.make_data, folder)
    print(f"Run: LIT_FT_DATA={shlex.quote(str(folder))} {same_options('finetune', cli.args)} --offline")
    return 0


def download(model: Mapping[str, Any], make_data: MakeData, folder: Path) -> None:
    """Fetches published weights and data into a folder, and writes its manifest; what is there and intact stays.

    Args:
        model: ``backbone`` and ``weights``.
        make_data: Makes the data module.
        folder: The folder of data and weights.

    Raises:
        UserError: If something cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = published_weights(model)
    if weights is None:
        print(f"Weights: {_nothing_to_fetch(model)}")
    else:
        place = weights_folder(folder) / weights.file
        there = place.is_file() and (weights.fits(place) and is_intact(folder, place))
        if not there:
            print(f"Fetching {weights.url}", flush=True)
            weights.fetch(place.parent)
        _record_file(folder, place, None if there else weights.url)
    _download_data(make_data, folder)
    if (folder / MANIFEST).is_file():
        print(f"Manifest: {folder / MANIFEST}")


def _nothing_to_fetch(model: Mapping[str, Any]) -> str:
    name, tag = model.get("backbone"), model.get("weights")
    title = name.get("class_path") if isinstance(name, Mapping) else name
    carry = "; copy this file by hand" if tag and is_file_name(tag) else ""
    carry += "; copy its code by hand, too" if isinstance(name, Mapping) else ""
    return f"nothing to fetch for --model.backbone {title} --model.weights {tag or 'null'}{carry}"


def _download_data(make_data: MakeData, folder: Path) -> None:
    data = make_data(folder, None)
    title = type(data).__name__
    # Ours prepare other things as well, and name what they fetch.
    none_named = hasattr(data, "files") and not data.files()
    if none_named or type(data).prepare_data is L.LightningDataModule.prepare_data:
        print(f"Data: nothing to fetch for {title}; photos and other files of your own are copied by hand")
        return
    files: dict[Path, str | None] = getattr(data, "files", dict)()
    if not files:
        data.prepare_data()
        print(f"Data: {title} has prepared its data; it names no files, so that {MANIFEST} has none of it")
        return
    wanted = {path for path in files if (found := data.find_file(path)) is None or not is_intact(folder, found)}
    if wanted:
        print(f"Fetching {title} from {', '.join(sorted({url for p in wanted if (url := files[p])}))}", flush=True)
        _fetch_data(make_data, data, wanted)
    for path, url in files.items():
        _record_file(folder, data.find_file(path), url if path in wanted else None)


def _fetch_data(make_data: MakeData, data: Any, wanted: set[Path]) -> None:
    """Fetches a data set beside its place and moves what is wanted there, so that half a file is never taken for one.

    Raises:
        UserError: If it cannot be fetched.
    """
    partial = data.root / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        fetched = make_data(None, partial)
        fetched.prepare_data()
        for path in wanted:
            new = fetched.find_file(partial / path.relative_to(data.root))
            if new is None:
                raise UserError(f"`data.download`: {path.name} is not among what was fetched")
            if (damaged := data.find_file(path)) is not None:
                damaged.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            new.replace(path.with_name(new.name))
    except UserError as error:
        raise UserError(error.args[0].replace(str(partial), str(data.root))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record_file(folder: Path, path: Path, url: str | None) -> None:
    """Records a file in the manifest, and prints its size and whether it was fetched."""
    if url is not None or entry_name(folder, path) not in read_manifest(folder):
        record(folder, path, url)
    size = path.stat().st_size
    amount = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    print(f"  {entry_name(folder, path):<60} {amount:>12}  {'fetched' if url else 'was there'}", flush=True)
