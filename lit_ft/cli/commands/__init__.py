"""The commands of ``lit-ft``, which are printed before anything is loaded that takes seconds."""

import argparse
import re
from difflib import get_close_matches
from typing import NoReturn

from lit_ft.errors import UserError

COMMANDS = {
    "finetune": "Fits, then tests the best checkpoint.",
    "plan": "Prints what a fit would do, phase by phase, and refuses what it would refuse, without training.",
    "check": "Looks for what would hurt a training in the data: damaged files, copies across splits, placeholders.",
    "probe": "Measures what features alone can tell: which backbone, which stage, how many labels, which are wrong.",
    "tune": "Searches options by many trials, by the validation metric: lit-ft tune PHOTOS --tune SPACE.yaml.",
    "download": "Fetches the weights and data that a config needs into one folder, for machines without a network.",
    "convert": "Writes the photos of a config for StreamDataModule, which streams them from a folder or a bucket.",
    "fit": "Trains and validates, without the test at the end.",
    "validate": "Measures a checkpoint on the validation images.",
    "test": "Measures a checkpoint, or a .onnx or .pt2 file that lit-ft export wrote, on the test images.",
    "predict": "Writes predictions to a table, a row an image: lit-ft predict CHECKPOINT PHOTOS, or by a config.",
    "explain": "Writes a page of where a model finds its evidence, before and after: lit-ft explain CHECKPOINT PHOTOS.",
    "serve": "Serves predictions over HTTP, with a page to drop photos on: lit-ft serve CHECKPOINT.",
    "export": "Writes a checkpoint as .onnx or .pt2, preprocessing inside, or as .safetensors, and verifies it.",
    "verify": "Runs the examples in an exported file, and tells whether it gives here what the model gave.",
    "report": "Writes report.html into the folder of a run: curves, metrics, confusion, the worst mistakes.",
    "compare": "Compares runs: their options, and their metrics and mistakes on the same images; writes compare.html.",
    "recipes": "Lists the recipes with data, time and score, or prints one: lit-ft recipes NAME > mine.yaml.",
    "models": "Lists the backbones: size without classifier, compute, input, stages, weights on this machine.",
    "describe": "Prints the stages of a backbone, the images that it expects, and its published weights.",
}
"""A line about each, in the order of the list."""

EVALUATIONS = ("validate", "test", "predict")

OWN_PARSERS = ("predict", "verify", "explain", "serve", "export", "report", "compare", "recipes")
"""Those without a config, each ``run`` of the file of that name."""

PREDICT_OPTIONS = ("-h", "--help", "--out", "--overwrite", "--top_k", "--probabilities", "--tta", "--device")
"""Those of ``predict`` that no config has."""

METHOD_OPTIONS = ("ckpt_path", "resume", "weights_only", "verbose", "return_predictions")
"""What only some of the trainer's commands take, and others would not know."""


def print_commands() -> None:
    """Prints the list of commands."""
    parser = argparse.ArgumentParser(
        "lit-ft",
        description="Fine-tune pretrained image models, stage by stage.",
        epilog="lit-ft COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--offline", action="store_true", help="fetch nothing from a network; list what is missing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about)
    parser.print_help()


_SYNONYMS = (
    "out output o save save_path csv file output_file outfile output_dir",
    "overwrite exist_ok force y",
    "top_k topk k top",
    "probabilities probs prob scores all",
    "tta augment test_time_augmentation",
    "device gpu gpus cuda",
    "host bind address ip",
    "port p",
    "max_batch batch_size batch bs",
    "limit n num max max_images",
    "methods method",
    "target class label",
    "int8 quantize quant half",
    "examples calibration images data",
    "until stage layer",
    "size imgsz img_size image_size",
)
"""Names of one option: the one that some command has, and what it is called elsewhere."""

PLACES = {
    "CHECKPOINT": "model checkpoint checkpoint_path model_path ckpt ckpt_path weights run run_dir m",
    "PHOTOS": "source input inputs photos photo images image data data_dir img folder dir path file i",
}
"""By what an argument without a name is called in help: what it is an option of elsewhere."""

_RECORDED = ("data.", "model.")
"""How options of a run begin that its checkpoint has."""


class CommandParser(argparse.ArgumentParser):
    """The options of a command without a config."""

    def error(self, message: str) -> NoReturn:
        """Raises the error in one line, without the usage."""
        if found := re.match("unrecognized arguments: (--?[A-Za-z][^ =]*)", message):
            raise UserError(f"{found[1]}: there is no such option; {self._describe_own(found[1])}")
        raise UserError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def _describe_own(self, given: str) -> str:
        """The option that is meant, or all that there are."""
        own = dict.fromkeys(re.findall(r"--(\w+)", self.format_usage()))
        name = given.strip("-").replace("-", "_").lower()
        same = next((names.split() for names in _SYNONYMS if name in names.split()), [])
        if meant := [option for option in own if option in (name, *same)] or get_close_matches(name, own, 1):
            return f"nearest: --{meant[0]}"
        if "CHECKPOINT" in self.format_usage() and (name.startswith(_RECORDED) or name in ("fit", "bands")):
            return "options of data and model are those of the checkpoint, as how photos are fitted; leave it out"
        places = re.sub(r"\[[^]]*\]", "", self.format_usage()).partition(self.prog)[2].split()
        if any(name in PLACES.get(place, "").split() for place in places):
            return f"what it names stands alone: {self.prog} {' '.join(places)}"
        return f"{self.prog} has {', '.join(f'--{option}' for option in own) or 'no options'}"
