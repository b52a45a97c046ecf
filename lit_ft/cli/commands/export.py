"""``lit-ft export``: a file that works without lit_ft, verified before it is written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import lit_ft.data as data_modules
from lit_ft.assets import replace_atomically
from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.cli.config.checkpoint import read_saved_data
from lit_ft.cli.process import quiet_libraries
from lit_ft.console import format_bytes
from lit_ft.data.datasets.classes import refuse_foreign_dataset
from lit_ft.data.modules.arrays import ArrayDataModule
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.errors import UserError, printable
from lit_ft.evaluation.inference import load
from lit_ft.export.build import Exported, build_export, describe_export, to_array, verify_built
from lit_ft.export.description import PixelArray
from lit_ft.export.examples import (
    choose_rows,
    draw_for,
    read_examples,
    read_folder,
    read_pixels,
    shrink_examples,
)
from lit_ft.export.formats import require_onnx
from lit_ft.export.int8 import NUM_CALIBRATION, measure_cost, quantise
from lit_ft.export.library_weights import build_library_weights
from lit_ft.export.model_card import CardFacts, render_card
from lit_ft.export.truncation import refuse_stage, truncate
from lit_ft.export.verification import format_agreement
from lit_ft.model.checkpoint import EXPORTED, hyper_parameters
from lit_ft.model.image_model import ImageModel
from lit_ft.runs import find_best_checkpoint, find_run_of_checkpoint
from lit_ft.training.handed_back import is_refitted

DRAWN = "drawn"
"""What is given for the folder of examples where no photo is to be in the file."""


MOST_MEASURED = 1000
"""Validation images on which the cost of 8 bits is measured, at most."""

_ALLOWED = {"int8": (".onnx",), "until": (".onnx", ".pt2"), "examples": (".onnx", ".pt2")}


def run(args: Sequence[str]) -> int:
    """Exports a checkpoint."""
    given = _parser().parse_args(args)
    out = Path(given.out).expanduser()
    if Path(given.checkpoint).suffix in EXPORTED and (out.is_dir() or out.suffix == ".ckpt"):
        typed = f"{quote(given.out)} {quote(given.checkpoint)}"
        raise UserError(f"{given.checkpoint}: the run comes first; type lit-ft export {typed}")
    quiet_libraries()
    _refuse_target(out, given.overwrite)
    for option, allowed in _ALLOWED.items():
        if getattr(given, option) and out.suffix not in allowed:
            raise UserError(f"--{option}: is for {' and '.join(allowed)}, not {out.suffix}")
    try:
        checkpoint = find_best_checkpoint(Path(given.checkpoint).expanduser())
        module = load(checkpoint, "cpu")
    except UserError as error:
        raise UserError(error.args[0].replace("`ckpt_path`", "CHECKPOINT")) from error
    weights = hyper_parameters(str(checkpoint), "export", "").get("source_weights")
    if given.until:
        refuse_stage(module, given.until, "--until")
    facts = CardFacts(out.name, module, find_run_of_checkpoint(str(checkpoint)), checkpoint, weights=weights)
    if out.suffix == ".safetensors":
        _export_weights(out, facts)
    else:
        _export_network(out, facts, given)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="lit-ft export", description=COMMANDS["export"])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or the folder of a run")
    parser.add_argument("out", metavar="FILE", help=f"the file to write: {', '.join(EXPORTED)}")
    parser.add_argument(
        "--examples",
        metavar="FOLDER",
        help="photos to put into the file for lit-ft verify, small; by default validation images of the run; "
        f"{DRAWN}: patches of colour, where no photo may leave this machine",
    )
    parser.add_argument(
        "--until",
        metavar="STAGE",
        help="cut the network after this stage, with a head solved on the training images of the run; lit-ft probe "
        "with --stages all measures stages, lit-ft describe lists them",
    )
    parser.add_argument(
        "--int8", action="store_true", help="8-bit weights and activations, calibrated on the training images; .onnx"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE and its model card, if they are there")
    return parser


def _export_weights(out: Path, facts: CardFacts) -> None:
    weights = build_library_weights(facts.module)
    description = describe_export(facts.module, [], _network_name(facts.module))
    _write(out, weights.content, render_card(replace(facts, code=weights.code), description))
    print(f"Exported  {_name(out, len(weights.content))}: loaded strictly, and its logits compared with the model's")
    print(f"Build     {weights.code}")


def _export_network(out: Path, facts: CardFacts, given: argparse.Namespace) -> None:
    module, notes, parts = facts.module, list[str](), None
    name = _network_name(module)
    data = _find_data(facts, "until" if given.until else "int8") if given.int8 or given.until else None
    images, what = find_examples(module, facts.checkpoint, given.examples)
    if given.until:
        cut = truncate(module, data, given.until)
        notes.append(f"Cut after {given.until}: {cut}{_note_refit(facts)}")
        parts, name = cut.parts, f"{name} up to {given.until}"
    built = build_export(module, out.suffix, describe_export(module, images, name, parts), parts)
    if given.int8:
        built, cost = _quantise(built, data, facts)
        notes.append(f"Quantised to 8 bits: {cost}")
    card = render_card(replace(facts, notes=notes, parts=parts), built.description)
    _write(out, built.content, card)
    _print_export(out, built, what)
    for note in notes:
        print(note)


def _find_data(facts: CardFacts, option: str) -> Any:
    """The data of the run, which an option needs."""
    try:
        return make_saved_data(facts.checkpoint, facts.module)
    except UserError as error:
        raise UserError(f"--{option}: needs the training images of the run, which are not at hand ({error})") from error


def _quantise(built: Exported, data: Any, facts: CardFacts) -> tuple[Exported, str]:
    """The file in 8 bits, calibrated on training images, and what that costs on the validation images."""
    channels = built.description.channels

    def read(split: Any, most: int) -> Iterator[PixelArray]:
        rows = choose_rows(split.targets, most)
        return (to_array(read_pixels(split, row, channels, facts.module.reader)) for row in rows)

    train, val = data.splits["train"], data.splits["val"]
    quantised = quantise(built.content, built.description, read(train, NUM_CALIBRATION))
    made = verify_built(quantised.content, ".onnx")
    targets = val.targets[choose_rows(val.targets, MOST_MEASURED)].numpy()
    examples = [example.pixels for example in built.description.examples]
    cost = measure_cost(built.content, made.content, read(val, MOST_MEASURED), targets, examples)
    return made, f"{cost}{_note_refit(facts)}"


def _note_refit(facts: CardFacts) -> str:
    """What must be known of a comparison on validation images, if the model was fitted on these in the end."""
    was_refit = is_refitted(str(facts.checkpoint))
    return "; before, it had been fitted again on the validation images, too" if was_refit else ""


def _write(out: Path, content: bytes, card: str) -> None:
    with replace_atomically(out) as unfinished:
        unfinished.write_bytes(content)
    with replace_atomically(_card_of(out)) as unfinished:
        unfinished.write_text(card, encoding="utf-8", errors="backslashreplace")


def _card_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def _print_export(out: Path, built: Exported, what: str) -> None:
    found = built.description
    agreement = format_agreement(built.agreement, found)
    print(f"Exported  {_name(out, len(built.content))}: {found.network}, {found.task}, {len(found.classes)} outputs")
    print(f"Input     {found.input_format}")
    print(f"Output    {found.output_format}")
    print(f"Verified  by {built.runtime} on {what}, which are in the file: {agreement}")
    print(f"Card      {printable(str(_card_of(out)))}")
    print(f"Verify    lit-ft verify {quote(printable(str(out)))}")


def _name(out: Path, size: int) -> str:
    return f"{printable(str(out))}, {format_bytes(size)}"


def _network_name(module: ImageModel) -> str:
    name = module.hparams["backbone"]
    return name if isinstance(name, str) else str(name.get("class_path", "network")).rpartition(".")[2]


def find_examples(module: ImageModel, checkpoint: Path, given: str | None) -> tuple[list[Any], str]:
    """Images ``(C, H, W)`` to put into the file, and what they are."""
    channels, spec = module.normalise.file_channels, module.input_spec
    if given not in (None, DRAWN):
        images = read_folder(str(given), "--examples", module.reader)
        return shrink_examples(images, spec), f"{len(images)} images of {printable(str(given))}"
    reason = ""
    if given is None:
        try:
            data = make_saved_data(checkpoint, module)
            images = read_examples(data.splits["val"], channels, module.reader)
            return shrink_examples(images, spec), f"{len(images)} validation images"
        except UserError as error:
            reason = str(error)
        print(f"Examples  no validation images at hand ({printable(reason)}); --examples FOLDER gives photos")
    images = draw_for(spec, channels)
    return shrink_examples(images, spec), f"{len(images)} drawn patches of colour"


def make_saved_data(checkpoint: Path, module: ImageModel) -> Any:
    """The data module that a checkpoint was trained on, set up.

    Raises:
        UserError: If the checkpoint does not say which, or its images are not at hand.
    """
    saved = read_saved_data(str(checkpoint))
    if saved is None:
        raise UserError("the checkpoint names no data module of lit_ft")
    refuse_foreign_dataset(saved["init_args"].get("dataset"), None)
    made = getattr(data_modules, saved["class_path"].rpartition(".")[2])
    if not issubclass(made, PhotoDataModule | ArrayDataModule):
        raise UserError(f"{made.__name__} has neither files nor arrays")
    try:
        data = made(**saved["init_args"])
        data.setup()
    except (OSError, TypeError) as error:  # options of another release
        raise UserError(f"{made.__name__}: {error}") from error
    if list(data.class_names) != module.class_names:
        raise UserError(f"{made.__name__} has other classes than the checkpoint")
    data.take_spec(module.input_spec)
    return data


def _refuse_target(out: Path, overwrite: bool) -> None:
    """Raises `UserError` for a file that cannot be written, or must not be."""
    if out.suffix not in EXPORTED:
        raise UserError(f"FILE: {out} must end in {', '.join(EXPORTED)}")
    if out.suffix == ".onnx":
        require_onnx()
    for path in (out, _card_of(out)):
        if os.path.isdir(path):
            raise UserError(f"FILE: {path} is a folder")
        if os.path.exists(path) and not overwrite:
            what = "" if path == out else f", and the model card of {out.name} would replace it"
            raise UserError(f"FILE: {path} exists{what}; name another file, or to overwrite it: --overwrite")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"FILE: nothing can be written in {folder}; name another file")
