"""``lit-ft predict CHECKPOINT PHOTOS``: a table of predictions, without a config."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from shlex import join
from typing import Any, get_args

from lit_ft.assets import replace_atomically
from lit_ft.backbones.input_spec import Views
from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.console import dump_json, log_progress
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.files.image_index import find_images_to_predict
from lit_ft.data.images.decode import decode
from lit_ft.data.images.loss import format_reduced, note_loss
from lit_ft.data.tables.path_lists import LIST_SUFFIXES, read_path_list
from lit_ft.data.tables.tables import escape_formula
from lit_ft.errors import UserError, printable, refuse_unwritable
from lit_ft.evaluation.inference import load
from lit_ft.evaluation.prediction_files import check_target, is_device
from lit_ft.evaluation.shared_work import join_launched
from lit_ft.export.predictor import ExportedModel
from lit_ft.export.runtime import is_runnable
from lit_ft.model.image_model import ImageModel
from lit_ft.model.prediction import Prediction, name_flag
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run

TableRow = dict[str, Any]
"""A row of the table, by the names of its columns."""

_BY_CONFIG = "By a config: lit-ft predict --config CONFIG --ckpt_path FILE, whose options are those of lit-ft test."
_BATCH = 32
_SUFFIXES = (".csv", ".json", ".parquet")


def run(args: Sequence[str]) -> int:
    """Predicts photos with a checkpoint, and writes a table."""
    parser = CommandParser(prog="lit-ft predict", description=COMMANDS["predict"], epilog=_BY_CONFIG)
    about = "a checkpoint, the folder of a run, or a .onnx or .pt2 file that lit-ft export wrote"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=about)
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTOS",
        help=("files, folders, quoted patterns such as 'a_*.png', or a .csv, .tsv or .txt list of files"),
    )
    parser.add_argument(
        "--out", default=Run(Path()).predictions.name, metavar="FILE", help="a .csv, .json or .parquet file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace that file, if it is there")
    parser.add_argument(
        "--top_k", type=int, default=1, metavar="K", help="number of classes to list with their probabilities"
    )
    parser.add_argument("--probabilities", action="store_true", help="list the probabilities of all classes")
    parser.add_argument("--tta", choices=get_args(Views), help=(
        "test-time augmentation: the mean with the mirror image, or with the four corners (crops)"
    ))  # fmt: skip
    parser.add_argument("--device", metavar="DEVICE", help="where to compute; by default a GPU, if there is one")
    given = parser.parse_args(args)
    out = Path(given.out).expanduser()  # the shell leaves that of --out=~/a.csv as it is
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"--out: {out} must end in {', '.join(_SUFFIXES)}")
    if given.top_k < 1:
        raise UserError(f"--top_k: must be at least 1, got {given.top_k}")
    _refuse_swapped(given.checkpoint, given.photos[0])
    with join_launched() as work:
        work.on_first(lambda: _refuse_target(out, given.overwrite))
        model = _load(given.checkpoint, given.device, given.tta, work.device())
        is_raw = model.reader is not None
        paths = work.on_first(lambda: [path for source in given.photos for path in find_photos(source, is_raw)])
        shared = work.share(paths)
        losses = [] if is_raw else work.collect([note_loss(path) for path in shared])
        if reduced := [path for path, loss in zip(paths, losses, strict=False) if loss]:
            rank_zero_warn(format_reduced(reduced, len(paths)))
        own = predict_rows(model, shared, given.top_k, given.probabilities, given.tta, work.is_first)
        rows = work.collect(own)
        return work.on_first(lambda: _write(out, rows, reason_column(model)))


def _refuse_swapped(checkpoint: str, photos: str) -> None:
    """Raises `UserError` for a folder of photos before a run or a checkpoint."""
    is_run = [os.path.isdir(Run(Path(given)).checkpoints) for given in (photos, checkpoint)]  # also of too long a name
    if is_run == [True, False] and os.path.isdir(checkpoint):
        raise UserError(f"{checkpoint}: the run comes first; type lit-ft predict {join([photos, checkpoint])}")


def _refuse_target(out: Path, overwrite: bool) -> None:
    """Raises `UserError` for a file that cannot be written."""
    if refusal := check_target(out, overwrite):
        raise UserError(f"--out: {refusal.replace('`predictions.overwrite` true', '--overwrite')}")


def _write(out: Path, rows: Sequence[TableRow], reason: str) -> int:
    """Writes the table, and gives the exit code: 1 if no image could be read."""
    write_table(out, rows, reason)
    failed = sum(reason in row for row in rows)
    print(f"Predictions: {printable(str(out))}, {len(rows):,} images" + (f", {failed:,} unreadable" if failed else ""))
    return 1 if rows and failed == len(rows) else 0


def _load(path: str, device: str | None, tta: str | None, default: str | None) -> ImageModel | ExportedModel:
    if is_runnable(path):
        for option, value in (("--device", device), ("--tta", tta)):
            if value is not None:
                raise UserError(f"{option}: {value} is for a checkpoint, not an exported file; leave it out")
        return ExportedModel(path)
    try:
        return load(path, device or default)
    except UserError as error:
        raise UserError(error.args[0].replace("`ckpt_path`", "CHECKPOINT").replace("device:", "--device:")) from error


def find_photos(source: str, raw: bool = False) -> list[str]:
    """The images that an argument stands for: a file, those below a folder, that match a pattern, or of a list.

    Args:
        source: The argument.
        raw: Whether raw values of bands are read, and so arrays and DICOM are images, too.

    Raises:
        UserError: If there are none.
    """
    if Path(source).suffix.lower() in LIST_SUFFIXES and os.path.isfile(source):
        return read_path_list(Path(source), "PHOTOS")
    if os.path.exists(source) or not glob.has_magic(source):
        return [str(path) for path in find_images_to_predict(source, "PHOTOS", raw).paths]
    found = sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file())
    if not found:
        raise UserError(f"PHOTOS: no file matches {source}")
    return found


def reason_column(model: ImageModel | ExportedModel) -> str:
    """The column with the reason why an image cannot be read: ``error``, unless a number that is predicted has it."""
    return "error" if model.task.name != "regression" or "error" not in model.class_names else "why unread"


def predict_rows(
    model: ImageModel | ExportedModel,
    paths: Sequence[str],
    top_k: int,
    probabilities: bool = False,
    tta: Views | None = None,
    is_first: bool = True,
) -> list[TableRow]:
    """A row for each image, in order; one that cannot be read has the reason instead of a prediction.

    Args:
        model: The model.
        paths: The images.
        top_k: The number of classes to list.
        probabilities: Whether a row has a column of each class, too.
        tta: Test-time augmentation.
        is_first: Whether this process shows how far it is.
    """
    left, done, reason = iter(paths), list[TableRow](), reason_column(model)
    has_classes = model.task.name == "multilabel" or (probabilities and model.task.name == "multiclass")
    listed = model.class_names if has_classes else []

    def batches() -> Iterator[int]:
        while batch := list(islice(left, _BATCH)):
            read: dict[str, Any] = {path: _decode(path, model.reader) for path in batch}
            good = {path: image for path, image in read.items() if not isinstance(image, str)}
            num = len(listed) or top_k
            found = dict(zip(good, model.predict_images(good.items(), num, tta=tta), strict=True))
            done.extend(
                _cells(path, found[path], top_k, listed) if path in found else {"path": path, reason: read[path]}
                for path in batch
            )
            yield len(batch)

    log_progress("Predict", batches(), len(paths), is_first)
    return done


def _decode(path: str, reader: BandReader | None) -> Any:
    """The pixels of an image, or the reason why there are none."""
    try:
        return decode(path) if reader is None else reader(path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")


def _cells(path: str, found: Prediction, top_k: int, listed: Sequence[str]) -> TableRow:
    """A row of the table; ``listed`` are the classes with a column each, in their order."""
    row: TableRow = {"path": path}
    if found.label:
        row |= {"class": found.label, "probability": found.probability}
        for place, (name, probability) in enumerate(found.top_k[1:top_k], start=2):
            row |= {f"class_{place}": name, f"probability_{place}": probability}
    elif not found.values:
        row["labels"] = "; ".join(found.labels)
    flags = {"unsure": found.unsure, "unlike_training": found.unlike_training}
    row |= found.values | {name_flag(name, found.values): flag for name, flag in flags.items() if flag is not None}
    probabilities = dict(found.top_k)
    return row | {f"probability of {name}": probabilities[name] for name in listed}


def write_table(out: Path, rows: Sequence[TableRow], reason: str = "error") -> None:
    """Writes rows to a file whose suffix says how; the file is replaced as a whole, and a pipe is written to.

    Args:
        out: The file.
        rows: The rows.
        reason: The column that comes last, where there is one.

    Raises:
        UserError: If the file cannot be written, or a library for it is missing.
    """
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != reason]
    columns += [reason] if any(reason in row for row in rows) else []
    target = nullcontext(out) if is_device(out) else replace_atomically(out)
    with refuse_unwritable(out), target as unfinished:
        match out.suffix.lower():
            case ".json":
                unfinished.write_text(dump_json(rows, indent=1), "utf-8")
            case ".parquet":
                _write_parquet(unfinished, columns, rows)
            case _:
                _write_csv(unfinished, columns, rows)


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[TableRow]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        writer.writerow(map(escape_formula, columns))
        writer.writerows([_text(row.get(name, "")) for name in columns] for row in rows)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.9g}" if isinstance(value, float) else escape_formula(str(value))


def _valid(value: Any) -> Any:
    """The value; of the name of a file, which need not be valid text, what is none is spelt out."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _write_parquet(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("--out: .parquet needs pyarrow; pip install 'lit_ft[parquet]', or name a .csv file") from None
    cells = {_valid(name): [_valid(row.get(name)) for row in rows] for name in columns}
    pyarrow.parquet.write_table(pyarrow.table(cells), file)
