"""Findings of a check, and reports of them: lines in a terminal, JSON for programs, and a page of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_ft.console import dump_json, format_path, format_table, rank_zero_print
from lit_ft.data.pages import make_folder, render_page, write_report
from lit_ft.errors import for_command_line, printable

_MAX_LINES = 5  # of a finding, in the terminal
_MAX_ABREAST = 8  # images of a group


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, and how many images, files or classes it concerns."""

    kind: str  # a name for programs, such as ``leak``
    hurts: bool  # whether it makes training fail or its figures wrong; the rest is worth knowing
    what: str
    advice: str
    count: int
    items: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)  # images that show the same, where it is about these


@dataclass(frozen=True)
class Checked:
    """What was checked, and what was found, the worst first."""

    data: str  # name of the data module
    source: str  # its folder or table, or again its name
    seconds: float
    sizes: dict[str, int]  # images by split
    counts: dict[str, dict[str, int]]  # images by split and class, or label; of numbers there is none
    findings: list[Finding]
    facts: dict[str, str] = field(default_factory=dict)  # formats and sizes of files
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # images of each class
    pictures: dict[str, str] = field(default_factory=dict)  # of those that are in no file, by path, for the page

    @property
    def hurts(self) -> bool:
        """Whether anything was found that hurts."""
        return any(finding.hurts for finding in self.findings)


def print_check(checked: Checked, folder: str | None) -> int:
    """Prints what was found, writes ``check.json`` and ``check.html`` where wanted, and gives the exit code.

    Raises:
        UserError: If these cannot be written.
    """
    findings = [
        replace(finding, what=for_command_line(finding.what), advice=for_command_line(finding.advice))
        for finding in checked.findings
    ]
    checked = replace(checked, findings=findings)
    rank_zero_print(format_text(checked))
    if folder is not None:
        texts = {"check.json": format_json(checked), "check.html": render_check(checked)}
        write_report(make_folder(folder), texts)
    return int(checked.hurts)


def format_text(checked: Checked) -> str:
    """What was found, the worst first, with a few examples of each."""
    lines = [f"Checked {checked.data} in {checked.seconds:.1f} s"]
    rows = []
    for split, size in checked.sizes.items():
        counts = checked.counts.get(split, {})
        low, high = min(counts.values(), default=0), max(counts.values(), default=0)
        number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        spread = f", {number} in each of {len(counts)} classes" if counts else ""
        rows.append((f"  {split}", f"{size:,}", f"images{spread}"))
    lines += format_table(rows, ("<8", ">8"), gap=" ").splitlines()
    for finding in checked.findings:
        lines += ["", f"{'HURTS' if finding.hurts else 'note '}  {finding.what}", f"       -> {finding.advice}"]
        examples = [_line(item) for item in finding.items]
        examples += [" = ".join(map(_line, group["images"][:4])) for group in finding.groups]
        lines += [f"       {example}" for example in examples[:_MAX_LINES]]
        if len(examples) > _MAX_LINES:
            lines.append(f"       and {len(examples) - _MAX_LINES:,} more")
    if not checked.findings:
        lines += ["", "Nothing was found."]
    return "\n".join(map(printable, lines))


def format_json(checked: Checked) -> str:
    """The same in full: the fields of `Checked` and `Finding`.

    An item has the ``path``, ``split`` and ``class`` of an image, and ``reason`` where there is one, or is of a class:
    ``class``, and ``images`` or ``split``. A group has ``same``, which is ``bytes`` or ``look``, and ``images``.
    """
    return dump_json({"hurts": checked.hurts, **asdict(replace(checked, pictures={}))}, indent=1)


def render_check(checked: Checked) -> str:
    """The same as one HTML file, with the pictures in it."""
    return render_page(
        "lit_ft.data.checks",
        "check.html",
        title=f"Check of {checked.source}",
        checked=checked,
        names=list(next(iter(checked.counts.values()), {})),
        max_abreast=_MAX_ABREAST,
    )


def _line(item: dict[str, Any]) -> str:
    """An item in a line, its path from here if it lies below."""
    if "path" not in item:
        found = f"{item['images']:,} image(s)" if "images" in item else f"none in {item['split']}"
        return f"{item['class']}: {found}"
    reason = f": {item['reason']}" if "reason" in item else ""
    split = f" ({item['split']}, {item['class']})" if "split" in item and not reason else ""
    return f"{format_path(Path(item['path']))}{split}{reason}"
