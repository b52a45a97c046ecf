"""Decides how what a check found is shown: lines in a terminal, JSON for programs, and a page of pictures."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lit_ft.data.checks.findings import Checked, Finding
from lit_ft.data.images.formats import formats
from lit_ft.errors import printable

_LINES = 5  # of a finding, in the terminal
_SHOWN = 50  # groups or images of a finding, on the page
_ABREAST = 8  # of a group
_SIDE = 160

_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right}td:first-child,th:first-child{text-align:left}
h2{font-size:1.1em;margin:2em 0 .2em;padding-left:.5em;border-left:.4em solid #999}h2.hurts{border-color:#c22}
.group{display:flex;flex-wrap:wrap;gap:.6em;padding:.6em 0;border-bottom:1px solid #ddd}
figure{margin:0;width:160px;font-size:12px;overflow-wrap:anywhere}img{max-width:160px;max-height:160px;display:block}
.none{width:160px;height:60px;background:#eee}
"""


def print_check(checked: Checked, folder: str | None) -> int:
    """Prints what was found, writes ``check.json`` and ``check.html`` where wanted, and gives the exit code."""
    print(as_text(checked))
    if folder is not None:
        place = Path(folder).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        for name, text in (("check.json", as_json(checked)), ("check.html", as_page(checked))):
            (place / name).write_text(text, encoding="utf-8", errors="surrogateescape")
            print(f"Written: {printable(str(place / name))}")
    return int(checked.hurts)


def as_text(checked: Checked) -> str:
    """What was found, the worst first, with a few examples of each."""
    lines = [f"Checked {checked.data} in {checked.seconds:.1f} s"]
    for split, size in checked.sizes.items():
        counts = checked.counts.get(split, {})
        low, high = min(counts.values(), default=0), max(counts.values(), default=0)
        spread = f", {low:,} to {high:,} in each of {len(counts)} classes" if counts else ""
        lines.append(f"  {split:<6}{size:>9,} images{spread}")
    for finding in checked.findings:
        lines += ["", f"{'HURTS' if finding.hurts else 'note '}  {finding.what}", f"       -> {finding.advice}"]
        examples = [_line(item) for item in finding.items] + [
            f"{' = '.join(_line(image) for image in group['images'][:4])}" for group in finding.groups
        ]
        lines += [f"       {example}" for example in examples[:_LINES]]
        if len(examples) > _LINES:
            lines.append(f"       and {len(examples) - _LINES:,} more")
    if not checked.findings:
        lines += ["", "Nothing was found."]
    return "\n".join(map(printable, lines))


def as_json(checked: Checked) -> str:
    """The same in full: the fields of `Checked`, `Finding` and `Image`, which has ``class`` for its label.

    An item also has ``reason`` where there is one, or is of a class: ``class``, and ``images`` or ``split``. A group
    has ``same``, which is ``bytes`` or ``look``, and ``images``.
    """
    return json.dumps({"hurts": checked.hurts, **asdict(checked)}, indent=1) + "\n"


def as_page(checked: Checked) -> str:
    """The same as one HTML file, with the pictures in it."""
    names = list(next(iter(checked.counts.values()), {}))
    rows = ["".join(f"<td>{cell}</td>" for cell in (split, *(f"{counts[name]:,}" for name in names)))
            for split, counts in checked.counts.items()]  # fmt: skip
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names))
    parts = [f"<h1>{html.escape(checked.data)}</h1><table><tr>{head}</tr><tr>{'</tr><tr>'.join(rows)}</tr></table>"]
    parts += [_section(finding) for finding in checked.findings] or ["<p>Nothing was found.</p>"]
    return (
        f"<!doctype html><meta charset='utf-8'><title>lit-ft check: {html.escape(checked.data)}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}\n"
    )


def _section(finding: Finding) -> str:
    groups = [group["images"] for group in finding.groups] or [finding.items[:_SHOWN]]
    shown = [
        "".join(_figure(image) for image in group[: _ABREAST if finding.groups else _SHOWN])
        + (f"<p>and {len(group) - _ABREAST:,} more</p>" if finding.groups and len(group) > _ABREAST else "")
        for group in groups[:_SHOWN]
    ]
    all_of_them = len(finding.groups or finding.items)
    more = f"<p>and {all_of_them - _SHOWN:,} more, see check.json</p>" if all_of_them > _SHOWN else ""
    title = f"<h2 class='{'hurts' if finding.hurts else ''}'>{html.escape(finding.what)}</h2>"
    blocks = "".join(f"<div class='group'>{figures}</div>" for figures in shown)
    return f"{title}<p>{html.escape(finding.advice)}</p>{blocks}{more}"


def _figure(item: dict[str, Any]) -> str:
    path = Path(item.get("path", ""))
    picture = _picture(path) if path.suffix else ""
    where = " ".join(html.escape(str(item[key])) for key in ("split", "class", "images", "reason") if item.get(key))
    name = html.escape(path.name)
    return f"<figure title='{html.escape(str(path), quote=True)}'>{picture}<b>{where}</b><br>{name}</figure>"


def _picture(path: Path) -> str:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > (limit or 0):
                return "<div class='none'></div>"
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
    except Exception:  # what cannot be read is what this page is about
        return "<div class='none'></div>"
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'>"


def _line(item: dict[str, Any]) -> str:
    """An item in a line, its path from here if it lies below."""
    path = Path(item["path"]) if "path" in item else None
    if path is not None and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    if path is None:
        rest = [f"{item['images']:,} image(s)" if "images" in item else f"none in {item['split']}"]
        return f"{item['class']}: {rest[0]}"
    reason = f": {item['reason']}" if "reason" in item else ""
    split = f" ({item['split']}, {item['class']})" if "split" in item and not reason else ""
    return f"{path}{split}{reason}"
