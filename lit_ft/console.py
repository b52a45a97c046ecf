"""Printing on the terminal, and formatting of tables, bytes, values, paths and JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import chain, repeat, zip_longest
from pathlib import Path
from typing import Any

from lit_ft.errors import plain, printable


def rank_zero_print(text: str) -> None:
    """Prints a line on the first process, above any progress bar, without what would act upon the terminal."""
    from tqdm import tqdm

    from lit_ft.rank_zero import rank_zero_only  # here, as commands that train nothing do without it

    with tqdm.external_write_mode(file=sys.stdout):
        rank_zero_only(print)(printable(plain(text), lines=True), flush=True)


def log_progress(what: str, done: Iterable[int], total: int, is_first: bool = True, unit: str = "images") -> None:
    """Consumes numbers of finished images, or other units; the first process shows a bar, or a line a minute.

    What takes less than a second shows none.
    """
    logged, count = time.monotonic(), 0
    with progress_bar(what, total, unit, shown=is_first, delay=1.0) as bar:
        for number in done:
            count += number
            bar.update(number)
            if bar.disable and time.monotonic() - logged > 60:
                logged = time.monotonic()
                rank_zero_print(f"{what}  {count:,} of {total:,} {unit}")


def progress_bar(what: str, total: int, unit: str = "images", shown: bool = True, delay: float = 0.0) -> Any:
    """A bar of tqdm, which vanishes at its end, and is disabled where none can be drawn.

    Args:
        what: What is going on.
        total: The number of units at the end.
        unit: What is counted.
        shown: Whether to draw it, such as on the first process alone.
        delay: Seconds before it is drawn.
    """
    if is_notebook():
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm  # here, as `lit-ft --help` does without it

    disable = not shown or (False if is_notebook() else None)  # None: unless it would be drawn in a terminal
    return tqdm(total=total, desc=what, unit=f" {unit}", leave=False, delay=delay, disable=disable)


def is_notebook() -> bool:
    """Whether the output goes to a notebook, and ipywidgets can draw there."""
    return type(sys.stdout).__module__.startswith("ipykernel.") and find_spec("ipywidgets") is not None


def format_bytes(size: int) -> str:
    """Bytes, as a person reads them.

    >>> format_bytes(12_345_678_901), format_bytes(3_456_789), format_bytes(5160)
    ('12.3 GB', '3.5 MB', '5.2 kB')
    """
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def format_duration(seconds: float) -> str:
    """A time, as a person reads it.

    >>> format_duration(9.26), format_duration(280), format_duration(3720)
    ('9.3s', '4m 40s', '1h 02m')
    """
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"


def format_value(value: float) -> str:
    """A metric in four decimals, or where that leaves less than three digits of it, in four digits; a large one in six.

    >>> format_value(0.81), format_value(12345.678), format_value(6.25e-7), format_value(0.0), format_value(1.25e15)
    ('0.8100', '12345.6780', '6.25e-07', '0.0000', '1.25e+15')
    """
    if abs(value) >= 1e6:
        return f"{value:.6g}"
    return f"{value:.4g}" if 0 < abs(value) < 0.01 else f"{value:.4f}"


def dump_json(value: Any, indent: int) -> str:
    """Plain values as JSON, which has no numbers that are not finite; these become null.

    >>> print(dump_json({"r2": float("nan"), "mse": 0.5}, indent=0), end="")
    {
    "r2": null,
    "mse": 0.5
    }
    """
    return json.dumps(_only_finite(value), indent=indent, allow_nan=False) + "\n"


def _only_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _only_finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_only_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_path(path: Path) -> Path:
    """A path as a person in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def format_table(rows: Iterable[Sequence[str]], columns: Sequence[str] = (), gap: str = "  ") -> str:
    """Rows of cells, which may end early, as lines with aligned columns.

    A column has an alignment, ``<`` or ``>``, and a least width, such as ``>8``, or else is aligned to the left.

    >>> print(format_table([("stage", "share"), ("layer1", "3%"), ("head", "-")], ("<", ">7")))
    stage     share
    layer1       3%
    head          -
    """
    rows = list(rows)
    specs: list[str] = []
    for column, spec in zip(zip_longest(*rows, fillvalue=""), chain(columns, repeat("<")), strict=False):
        specs.append(f"{spec[0]}{max(int(spec[1:] or 0), *map(len, column))}")
    lines = [gap.join(f"{cell:{spec}}" for cell, spec in zip(row, specs, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
