"""Decides what a config needs of the network: fetches it into one folder, or lists what is missing of it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from lit_ft.assets import MANIFEST, data_root, entry_name, is_intact, read_manifest, record, weights_folder
from lit_ft.backbones.build import input_spec, source_of
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError

MakeData = Callable[[Path | None, Path | None], Any]
"""Makes the data module that fetches: into the first folder if the config names none, or anyway into the second."""

# What only some commands take, and the others would not know.
_OWN_OPTIONS = ("--ckpt_path", "--weights_only", "--verbose", "--return_predictions", "--folder")


def published_weights(model: Mapping[str, Any]) -> Published | None:
    """The published weights that ``--model`` asks for, if any.

    Args:
        model: ``backbone`` and ``weights``.

    Raises:
        UserError: If the backbone or the tag is unknown.
    """
    name, tag = model.get("backbone"), model.get("weights")
    if name is None or tag is None or is_file_name(tag):
        return None
    input_spec(name, tag)  # refuses what is unknown
    found = source_of(name).tags(str(name))[tag]
    return found if found.url is not None else None


def same_command(arguments: list[str], command: str, other: str) -> str:
    """The command line that does ``other`` with the config of ``command``.

    >>> same_command(["test", "--config", "a b.yaml", "--ckpt_path", "x.ckpt", "--model.lr=1"], "test", "download")
    "lit-ft download --config 'a b.yaml' --model.lr=1"
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not skip and name not in _OWN_OPTIONS:
            kept.append(other if argument == command and other not in kept else argument)
        skip = name in _OWN_OPTIONS and not equals
    return shlex.join(["lit-ft", *kept])


def refuse_missing(model: Mapping[str, Any], data: Any, command: str) -> None:
    """Refuses to start where something is not on this machine, and lists all of it.

    Args:
        model: ``backbone`` and ``weights``.
        data: The data module.
        command: What fetches the files where there is a network.

    Raises:
        UserError: If a file is missing.
    """
    weights = published_weights(model)
    missing = []
    if weights is not None and weights.local() is None:
        missing.append(f"{weights.places()[0].absolute()} (from {weights.url})")
    missing += [str(path.absolute()) for path in getattr(data, "missing_files", list)()]
    if missing:
        folder = shlex.quote(str(data_root()))
        raise UserError(
            f"--offline: {len(missing)} {'file is' if len(missing) == 1 else 'files are'} missing: "
            f"{', '.join(missing)}; to fetch them where there is a network: {command} --folder {folder}"
        )


def must_fetch(model: Mapping[str, Any]) -> bool:
    """Whether the weights that ``--model`` asks for are published and not on this machine."""
    weights = published_weights(model)
    return weights is not None and weights.local() is None


def read_before_fetching(data: Any) -> None:
    """Reads the data of a run, so that what is missing or wrong there is told before weights are fetched.

    Args:
        data: The data module. What it will fetch by itself is not read, and neither is what is of no module of lit_ft.

    Raises:
        UserError: If the data cannot be read.
    """
    fetches = getattr(data, "download", False) and data.missing_files()
    if isinstance(data, ImageDataModule) and not fetches:
        data.read()


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
        _tell(folder, place, None if there else weights.url)
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
        _tell(folder, data.find_file(path), url if path in wanted else None)


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
                raise UserError(f"--data.download: {path.name} is not among what was fetched")
            if (damaged := data.find_file(path)) is not None:
                damaged.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            new.replace(path.with_name(new.name))
    except UserError as error:
        raise UserError(error.args[0].replace(str(partial), str(data.root))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tell(folder: Path, path: Path, url: str | None) -> None:
    """Records a file, and prints its size and whether it was fetched."""
    if url is not None or entry_name(folder, path) not in read_manifest(folder):
        record(folder, path, url)
    size = path.stat().st_size
    amount = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    print(f"  {entry_name(folder, path):<60} {amount:>12}  {'fetched' if url else 'was there'}", flush=True)
