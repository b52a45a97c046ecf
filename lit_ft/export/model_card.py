"""The model card: a page of Markdown beside an exported file, of what is in it and what is known of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_ft.backbones.build import NetworkName, source_of
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.errors import printable
from lit_ft.evaluation.run_files import (
    is_tested_on_validation,
    read_config,
    read_metrics,
    read_rows,
    read_table,
    refuse_damaged,
)
from lit_ft.export.description import Description
from lit_ft.export.inference_model import NetworkParts
from lit_ft.model.image_model import ImageModel
from lit_ft.runs import Run

MOST_ROWS = 50
_OF_WHOLE = (
    "Those of the run are of the whole network. This one was measured at the export, on the validation images; "
    "lit-ft test measures it on others."
)
_OF_FLOAT = "These are of the model before it was quantised, which cost what was measured at the export."

FEW_IMAGES = 30
"""With fewer images of a class, what is measured of it says little."""

_ACTING = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]#|~!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})

_SNIPPETS = {
    ".onnx": """import json, numpy as np, onnxruntime
{imports}
session = onnxruntime.InferenceSession({file!r})
{image}
outputs = session.run(None, {{"images": image[None]}})[0][0]
print(dict(zip(json.loads(session.get_modelmeta().custom_metadata_map["classes"]), outputs.tolist())))""",
    ".pt2": """import json, numpy as np, torch
{imports}
program = torch.export.load({file!r}, extra_files=(extra := {{"lit_ft.json": ""}}))
{image}
outputs = program.module()(torch.from_numpy(image)[None])[0][0]
print(dict(zip(json.loads(json.loads(extra["lit_ft.json"])["classes"]), outputs.tolist())))""",
    ".safetensors": """import safetensors.torch, {library}
model = {code}
model.load_state_dict(safetensors.torch.load_file({file!r}), strict=True)""",
}

_READ_PHOTO = """photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")
image = np.array(Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB"))"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside what is in the file and the run.

    Args:
        file: The name of the exported file.
        module: The model.
        run: The folder of the run that wrote the checkpoint, if that is known.
        checkpoint: The checkpoint.
        weights: The weights that the backbone had before: a tag or a file.
        notes: What was measured as it was exported, in words.
        code: The line of Python that builds the network, for weights alone.
        parts: The network, where it is not the whole one, whose metrics the run has.
    """

    file: str
    module: ImageModel
    run: Run | None
    checkpoint: Path
    notes: Sequence[str] = field(default_factory=list)
    weights: str | None = None
    code: str = ""
    parts: NetworkParts | None = None


def render_card(facts: CardFacts, description: Description) -> str:
    """The model card of an exported file, as Markdown.

    Raises:
        UserError: If a file of the run is damaged.
    """
    run, module = facts.run, facts.module
    parts = [f"# {escape(facts.file)}", _summary(facts, description)]
    parts += ["## Use", _usage(facts), _format_input(facts, description)]
    parts += ["## Classes", ", ".join(map(escape, description.classes[:MOST_ROWS])) + _rest(description.classes)]
    limits: list[str] = []
    if run is not None:
        parts += ["## Data", *_describe_data(run)]
        results, limits = _describe_results(facts, run) if facts.parts is None else ([_OF_WHOLE], [])
        parts += ["## Results", *results]
        parts += [_OF_FLOAT] if description.precision == "int8" and facts.parts is None else []
    parts += ["## Measured at the export", *facts.notes] if facts.notes else []
    parts += ["## Limits", _bullets([*limits, *_general_limits(module, description)])]
    parts += ["## Backbone and licence", describe_weights(module.hparams["backbone"], facts.weights)]
    versions = ", ".join(f"{escape(name)} {escape(number)}" for name, number in description.versions.items())
    parts += ["## Versions", versions]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    r"""Text as Markdown shows it, whatever is in it: no markup, links or HTML, and on one line.

    >>> print(escape("a|b <script> *c*"))
    a\|b &lt;script&gt; \*c\*
    """
    return " ".join(printable(text).split()).translate(_ACTING).replace("://", ":&#47;&#47;")


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first row is its head."""
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in rows[: MOST_ROWS + 1]]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + (f"\n\nand {len(rows) - 1 - MOST_ROWS} more" if len(rows) > MOST_ROWS + 1 else "")


def describe_weights(name: NetworkName, weights: str | None) -> str:
    """Where the weights of the backbone that was fine-tuned come from, and their licence, as far as they are known."""
    if not isinstance(name, str):
        return "A network of the user's own; ask its author for the licence of its code and weights."
    if weights is None:
        return f"{escape(name)} from random weights."
    if is_file_name(weights):
        file = escape(Path(weights).name)
        return f"{escape(name)} from the weights in a file, {file}, whose source and licence lit\\_ft does not know."
    return f"{escape(name)} from the weights {escape(weights)}. {escape(source_of(name).licence(name, weights))}"


def _summary(facts: CardFacts, description: Description) -> str:
    spec = facts.module.input_spec
    rows = [
        ["task", f"{description.task}, {len(description.classes)} outputs"],
        ["network", description.network],
        ["images", _format_geometry(spec)],
        ["parameters", f"{_count_parameters(facts):,}"],
        ["precision", description.precision],
    ]
    return format_rows([["", ""], *rows])


def _count_parameters(facts: CardFacts) -> int:
    modules = [facts.module] if facts.parts is None else [facts.parts.body, facts.parts.head]
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _format_geometry(spec: InputSpec) -> str:
    channels = "grey" if spec.channels == 1 else f"{spec.channels} channels"
    if spec.bands is not None:
        channels = "all bands" if spec.bands == "all" else f"bands {', '.join(map(str, spec.bands))}"
    return f"{spec.in_words}; {channels}"


def _format_input(facts: CardFacts, description: Description) -> str:
    """What goes in and what comes out; of weights alone, what the library's network takes."""
    if Path(facts.file).suffix != ".safetensors":
        return _bullets([escape(description.input_format), escape(description.output_format)])
    spec = facts.module.input_spec
    values = "pixels from 0 to 1" if spec.bands is None else "raw values"
    scale = f"{values}, minus mean {list(spec.mean)}, divided by std {list(spec.std)}"
    return _bullets([escape(f"{_format_geometry(spec)}; {scale}"), "outputs: logits, in the order of classes"])


def _usage(facts: CardFacts) -> str:
    suffix, bands = Path(facts.file).suffix, facts.module.input_spec.bands
    imports, image = "from PIL import Image, ImageOps", _READ_PHOTO
    if bands is not None:
        chosen = "" if bands == "all" else f"[..., {[number - 1 for number in bands]}]"
        imports, image = "import tifffile", f'image = np.float32(tifffile.imread("image.tif")){chosen}  # (H, W, C)'
    parts = {"imports": imports, "image": image, "library": facts.code.partition(".")[0], "code": facts.code}
    return f"```python\n{_SNIPPETS[suffix].format(file=facts.file, **parts)}\n```"


def _describe_data(run: Run) -> list[str]:
    """The data of a run, as far as its files say: kind, name of the folder or table, numbers of images."""
    data = read_config(run).get("data") or {}
    options = data.get("init_args") or {}
    place = next((Path(str(options[key])).name for key in ("table", "root") if options.get(key)), "")
    kind = str(data.get("class_path", "")).rpartition(".")[2]
    told = [escape(f"{kind} {place}".strip())] if kind else []
    with refuse_damaged(run.split_table):
        counts = Counter(row.get("split", "") for row in read_table(run.split_table))
    if counts:
        told.append(
            ", ".join(f"{counts[name]:,} images of {name}" for name in ("train", "val", "test") if counts[name])
        )
    return told


def _describe_results(facts: CardFacts, run: Run) -> tuple[list[str], list[str]]:
    """The metrics of the checkpoint, by class and by group, and what limits them."""
    with refuse_damaged(run.metrics):
        metrics = read_metrics(run)
    called = {
        split: name
        for split in ("val", "test")
        for name in (f"{split}_{facts.checkpoint.stem}", split)  # of another checkpoint than the best, and of that
        if _is_of(metrics.get(name), facts, run)
    }
    if not called:
        return ["Not measured: lit-ft test measures a checkpoint."], []
    measured, splits = {split: metrics[name] for split, name in called.items()}, [*called]
    told, limits = [format_rows(_tabulate(measured, splits)), "95% intervals in parentheses, by bootstrap."], []
    split, name = splits[-1], called[splits[-1]]
    with refuse_damaged(file := run.result_table("per_class", name)):
        classes = read_rows(file)
        few = [row[0] for row in classes[1:] if int(row[1]) < FEW_IMAGES]
    if classes:
        told += [f"By class, {split}:", format_rows(classes)]
    if few:
        names = ", ".join(map(escape, few[:5])) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        limits.append(f"Measured on fewer than {FEW_IMAGES} images each: {names}.")
    if groups := _tabulate_groups(run, name):
        told += [f"By group, {split}, the least accurate first:", format_rows(groups)]
    if split == "test" and is_tested_on_validation(run, measured):
        limits.append("There were no test images: test means the validation images, by which the model was chosen.")
    if measured[split].get("is_before_refit"):
        limits.append("It was fitted again on training and validation images, after it was measured on these.")
    return told, limits


def _is_of(entry: Any, facts: CardFacts, run: Run) -> bool:
    """Whether metrics are of the checkpoint that is exported, on the run's own images."""
    measured = None if (entry or {}).get("data") else (entry or {}).get("checkpoint")
    return bool(measured) and (run.folder / str(measured)).resolve() == facts.checkpoint.resolve()


def _tabulate(metrics: Mapping[str, Mapping[str, Any]], splits: Sequence[str]) -> list[list[str]]:
    names = sorted({name.partition("/")[2] for one in splits for name in metrics[one] if name.startswith(f"{one}/")})
    rows = [["metric", *splits]]
    for name in names:
        row = [name]
        for split in splits:
            value, ends = metrics[split].get(f"{split}/{name}"), metrics[split].get("intervals") or {}
            interval = "{:.4f} to {:.4f}".format(*ends[f"{split}/{name}"]) if f"{split}/{name}" in ends else ""
            row.append("" if value is None else f"{value:.4f}" + (f" ({interval})" if interval else ""))
        rows.append(row)
    return rows


def _tabulate_groups(run: Run, split: str) -> list[list[str]]:
    """Images and accuracy of each group, where groups are known and images have one class each."""
    with refuse_damaged(run.split_table):
        images = read_table(run.split_table)
    with refuse_damaged(file := run.result_table("predictions", split)):
        predictions = read_table(file)
    if not images or "group" not in images[0] or not predictions or "predicted" not in predictions[0]:
        return []
    homes = {row.get("path", ""): row["group"] for row in images}
    hits: defaultdict[str, list[bool]] = defaultdict(list)
    for row in predictions:
        if group := homes.get(row["path"]):
            hits[group].append(row["class"] == row["predicted"])
    found = sorted((sum(right) / len(right), group, len(right)) for group, right in hits.items())
    return (
        [["group", "images", "accuracy"], *([name, str(n), f"{share:.4f}"] for share, name, n in found)]
        if found
        else []
    )


def _general_limits(module: ImageModel, description: Description) -> list[str]:
    told = ["Metrics hold for images like those of the test: other cameras, places or times were not measured."]
    if module.task.name == "multiclass":
        by_distance = (
            "" if description.farthest is None else f", where distance is mostly above {description.farthest:.4g}"
        )
        told.append(f"Each image gets one of the classes, also an image of something else{by_distance}.")
    if module.input_spec.fit == "crop":
        told.append("Of a photo that is not square, what is outside of the centre is not seen.")
    return told


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _rest(names: Sequence[str]) -> str:
    return f" and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else ""
