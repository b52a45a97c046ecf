"""``lit-ft explain CHECKPOINT PHOTOS``: a page of where a model finds its evidence, and what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_ft import data
from lit_ft.assets import replace_atomically
from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.cli.commands.predict import find_photos
from lit_ft.cli.config.checkpoint import read_saved_data
from lit_ft.console import format_table, log_progress, rank_zero_print
from lit_ft.data.datasets.classes import refuse_foreign_dataset
from lit_ft.data.images.decode import decode
from lit_ft.data.images.loss import format_reduced, note_loss
from lit_ft.errors import UserError, printable, refuse_unwritable
from lit_ft.evaluation.explanations.before import Before, find_before
from lit_ft.evaluation.explanations.maps import choose_methods, explain_image, find_target
from lit_ft.evaluation.explanations.page import METHODS, ShownPhoto, draw_photo, render_explanations
from lit_ft.evaluation.explanations.stage_comparison import (
    ComparedImages,
    choose_images,
    compare_stages,
    describe,
    gather_photos,
)
from lit_ft.evaluation.explanations.transfer import FEWEST
from lit_ft.evaluation.inference import load
from lit_ft.evaluation.prediction_files import check_target
from lit_ft.model.image_model import ImageModel
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import find_best_checkpoint
from lit_ft.training.handed_back import is_refitted

_LIMIT = 24
"""Number of photos that are explained, unless another one is given."""

_OPTIONS = ("target", "methods", "device")
"""What the library calls as the command does, but for the dashes."""

_DEFAULTS = {
    "multiclass": "the predicted class",
    "multilabel": "the most probable label",
    "regression": "the first number",
}
"""What is explained, by task, where no target is given."""


def run(args: Sequence[str]) -> int:
    """Explains photos, and writes a page."""
    given, out = _parse(args)
    model, target, methods = _load(given)
    found = [path for source in given.photos for path in find_photos(source, raw=model.reader is not None)]
    rows = torch.linspace(0, len(found) - 1, min(given.limit, len(found))).round().long().tolist()
    before = find_before(given.checkpoint, model)
    photos = _explain([found[row] for row in rows], before, model, target, methods)
    readable = [photo.path for photo in photos if not photo.error]
    transfer = compare_stages(before, model, _find_images(given.checkpoint, model, readable))
    count = f"{len(rows):,}" + (f" of {len(found):,} (--limit), evenly spaced" if len(rows) < len(found) else "")
    facts = {
        "checkpoint": given.checkpoint,
        "backbone": str(model.hparams["backbone"]),
        "explained": given.target or _DEFAULTS[model.task.name],
        "before": before.name,
        "photos": count,
    }
    text = render_explanations(facts, photos, methods, transfer)
    with refuse_unwritable(out), replace_atomically(out) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
    if table := describe(transfer):
        rank_zero_print(format_table(table, "<" + ">" * (len(table[0]) - 1)) + "\n")
    for note in transfer.notes:
        rank_zero_print(f"Note: {note}")
    failed = len(photos) - len(readable)
    print(f"Explanations: {printable(str(out))}; photos: {count}" + (f", {failed:,} unreadable" if failed else ""))
    return 0 if readable else 1


def _parse(args: Sequence[str]) -> tuple[Any, Path]:
    """The options, and the file to write."""
    parser = CommandParser(prog="lit-ft explain", description=COMMANDS["explain"])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or the folder of a run")
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTOS",
        help="files, folders, quoted patterns such as 'a_*.png', or a .csv, .tsv or .txt list of files",
    )  # fmt: skip
    parser.add_argument("--out", default="explain.html", metavar="FILE", help="an .html file")
    parser.add_argument("--overwrite", action="store_true", help="replace that file, if it is there")
    parser.add_argument("--target", metavar="CLASS", help="the class, label or number to explain")
    parser.add_argument("--methods", metavar="A,B", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help="number of photos to explain at most")
    parser.add_argument("--device", metavar="DEVICE", help="where to compute; by default a GPU, if there is one")
    given = parser.parse_args(args)
    out = Path(given.out).expanduser()  # the shell leaves that of --out=~/a.html as it is
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out: {out} must end in .html")
    if given.limit < 1:
        raise UserError(f"--limit: must be at least 1, got {given.limit}")
    if refusal := check_target(out, given.overwrite):
        raise UserError(f"--out: {refusal.replace('`predictions.overwrite` true', '--overwrite')}")
    return given, out


def _load(given: Any) -> tuple[ImageModel, int | None, list[str]]:
    """The model, the output that is explained, and the methods."""
    try:
        model = load(given.checkpoint, given.device)
        methods = None if given.methods is None else [name.strip() for name in given.methods.split(",")]
        return model, find_target(model, given.target), choose_methods(model, methods)
    except UserError as error:
        option, colon, text = str(error.args[0]).partition(":")
        flag = {"`ckpt_path`": "CHECKPOINT"}.get(option, f"--{option}" if option in _OPTIONS else option)
        raise UserError(f"{flag}{colon}{text}") from error


def _explain(
    paths: Sequence[str], before: Before, model: ImageModel, target: int | None, methods: Sequence[str]
) -> list[ShownPhoto]:
    """Each photo with its evidence, or the reason why it cannot be read."""
    photos: list[ShownPhoto] = []
    if model.reader is None and (reduced := [path for path in paths if note_loss(path)]):
        rank_zero_warn(format_reduced(reduced, len(paths)))

    def each() -> Iterator[int]:
        for path in paths:
            photos.append(_explain_one(path, before.probe, model, target, methods))
            yield 1

    log_progress("Explain", each(), len(paths))
    return photos


def _explain_one(
    path: str, probe: ImageModel | None, model: ImageModel, target: int | None, methods: Sequence[str]
) -> ShownPhoto:
    try:
        image = decode(path) if model.reader is None else model.reader(path)
        after = explain_image(model, image, path, target, methods)
    except UserError as error:
        return ShownPhoto(path, str(error).removeprefix(f"{path}: "))
    same = model.class_names.index(after.target)
    before = None if probe is None else explain_image(probe, image, path, same, methods)
    return draw_photo(image, before, after)


def _find_images(checkpoint: str, model: ImageModel, photos: Sequence[str]) -> ComparedImages | str:
    """The images on which stages are compared: those of the run, or else the given photos; or why there are none."""
    path = str(find_best_checkpoint(checkpoint))
    saved = read_saved_data(path)
    reason = "the checkpoint names no data of lit_ft"
    if saved is not None:
        try:
            refuse_foreign_dataset(saved["init_args"].get("dataset"), None)
            made = getattr(data, saved["class_path"].rpartition(".")[2])(**saved["init_args"])
            return choose_images(made, model, is_refitted(path))
        except (UserError, TypeError) as error:  # the latter of options that have another name by now
            reason = f"the data of the run cannot be read ({error})"
    return gather_photos(photos, model, reason) if len(photos) >= FEWEST else reason
