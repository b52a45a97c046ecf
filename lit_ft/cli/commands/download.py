"""``lit-ft download``, and what is missing of a config's weights and data where nothing may be fetched."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lit_ft.assets import (
    MANIFEST,
    data_root,
    entry_name,
    is_intact,
    is_offline,
    name_unfinished,
    read_manifest,
    record,
    weights_folder,
)
from lit_ft.backbones.build import input_spec, source_of
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.cli.commands import METHOD_OPTIONS
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.dataset import ImageDatasetDataModule
from lit_ft.errors import UserError

_OWN_OPTIONS = {f"--{name}" for name in (*METHOD_OPTIONS, "folder", "backbones", "stages")}


def refuse_missing(cli: ConfigCLI) -> None:
    """Refuses to start where something is not on this machine; lists all of it, and the command that fetches it."""
    data, weights = cli.make_data(), _missing_weights(cli)
    missing = [f"{weights.places()[0].absolute()} (from {weights.url})"] if weights else []
    missing += [str(path.absolute()) for path in getattr(data, "missing_files", list)()]
    if missing:
        folder = shlex.quote(str(data_root()))
        raise UserError(
            f"`offline`: {len(missing)} {'file is' if len(missing) == 1 else 'files are'} missing: "
            f"{', '.join(missing)}; to fetch them where there is a network: "
            f"{same_options('download', cli.args)} --folder {folder}"
        )


def read_before_fetching(cli: ConfigCLI) -> None:
    """Reads the data before weights are fetched, so that what is missing or wrong there is refused first.

    What the data module will fetch by itself is not read, and neither is what is of no module of lit_ft.
    """
    if _missing_weights(cli):
        read_if_there(cli.make_data())


def read_if_there(data: Any) -> None:
    """Reads the data of a module of lit_ft, unless that will fetch it by itself."""
    if isinstance(data, ImageDataModule) and not (getattr(data, "download", False) and data.missing_files()):
        data.read()


def same_options(command: str, args: Sequence[str]) -> str:
    """The line that runs a command with the config of another.

    >>> same_options("download", ["--config", "a b.yaml", "--ckpt_path", "x.ckpt", "--model.lr=1"])
    "lit-ft download --config 'a b.yaml' --model.lr=1"
    """
    kept: list[str] = []
    skip = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        if not skip and name not in _OWN_OPTIONS:
            kept.append(arg)
        skip = name in _OWN_OPTIONS and not equals
    return shlex.join(["lit-ft", command, *kept])


def download(cli: ConfigCLI) -> int:
    """Fetches what a config needs, writes the manifest of the folder, and prints the command that runs it offline.

    What is there and intact stays.

    Raises:
        UserError: If something cannot be fetched.
    """
    if is_offline():
        raise UserError("`offline`: lit-ft download fetches files; run it without --offline and LIT_FT_OFFLINE")
    folder = data_root(cli.config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    model = cli.model_options()
    weights = _published_weights(model)
    if weights is None:
        name, tag = model.get("backbone"), model.get("weights")
        title = name.get("class_path") if isinstance(name, Mapping) else name
        carry = "; copy this file by hand" if tag and is_file_name(tag) else ""
        carry += "; copy its code by hand, too" if isinstance(name, Mapping) else ""
        print(f"Weights: nothing to fetch for --model.backbone {title} --model.weights {tag or 'null'}{carry}")
    else:
        place = weights_folder(folder) / weights.file
        there = place.is_file() and weights.fits(place) and is_intact(folder, place)
        if not there:
            print(f"Fetching {weights.url}", flush=True)
            weights.fetch(place.parent)
        _record_file(folder, place, None if there else weights.url)
    _download_data(cli, folder)
    if (folder / MANIFEST).is_file():
        print(f"Manifest: {folder / MANIFEST}")
    print(f"Run: LIT_FT_DATA={shlex.quote(str(folder))} {same_options('finetune', cli.args)} --offline")
    return 0


def _published_weights(model: Mapping[str, Any]) -> Published | None:
    """The published weights that a model asks for, if any."""
    name, tag = model.get("backbone"), model.get("weights")
    if name is None or tag is None or is_file_name(tag):
        return None
    input_spec(name, tag)  # refuses what is unknown
    found = source_of(name).tags(str(name))[tag]
    return found if found.url is not None else None


def _missing_weights(cli: ConfigCLI) -> Published | None:
    """The published weights that a model asks for, if they are not on this machine."""
    weights = _published_weights(cli.model_options())
    return weights if weights is not None and weights.local() is None else None


def _download_data(cli: ConfigCLI, folder: Path) -> None:
    data = cli.make_data(default_root=folder)
    title = type(data).__name__
    if isinstance(data, ImageDatasetDataModule):
        if data.missing_files():
            data.fetch()
        print(f"Data: {data.dataset} is in {data.root}; {MANIFEST} has none of it")
        return
    files: dict[Path, str | None] = getattr(data, "files", dict)()
    # Ours prepare other things as well, and name what they fetch.
    none_named = hasattr(data, "files") and not files
    if none_named or type(data).prepare_data is L.LightningDataModule.prepare_data:
        print(f"Data: nothing to fetch for {title}; photos and other files of your own are copied by hand")
        return
    if not files:
        data.prepare_data()
        print(f"Data: {title} has prepared its data; it names no files, so that {MANIFEST} has none of it")
        return
    wanted = {path for path in files if (found := data.find_file(path)) is None or not is_intact(folder, found)}
    if wanted:
        print(f"Fetching {title} from {', '.join(sorted({url for p in wanted if (url := files[p])}))}", flush=True)
        _fetch_data(cli, data, wanted)
    for path, url in files.items():
        _record_file(folder, data.find_file(path), url if path in wanted else None)


def _fetch_data(cli: ConfigCLI, data: Any, wanted: set[Path]) -> None:
    """Fetches a data set beside its place and moves what is wanted there, so that half a file is not taken for one."""
    partial = name_unfinished(data.root / "partial")
    try:
        fetched = cli.make_data(root=partial)
        fetched.prepare_data()
        for path in wanted:
            new = fetched.find_file(partial / path.relative_to(data.root))
            if new is None:
                raise UserError(f"`data.download`: {path.name} is not among what was fetched")
            if (damaged := data.find_file(path)) is not None:
                damaged.unlink(missing_ok=True)  # another process may fetch it, too
            path.parent.mkdir(parents=True, exist_ok=True)
            new.replace(path.with_name(new.name))
    except UserError as error:
        raise UserError(error.args[0].replace(str(partial), str(data.root))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record_file(folder: Path, path: Path, url: str | None) -> None:
    """Records a file in the manifest, and prints its size and whether it was fetched."""
    name = entry_name(folder, path)
    if url is not None or name not in read_manifest(folder):
        record(folder, path, url)
    size = path.stat().st_size
    amount = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    print(f"  {name:<60} {amount:>12}  {'fetched' if url else 'was there'}", flush=True)
