"""Measures lit_ft on a CUDA GPU, and writes one table for ``benchmarks/README.md``.

    python benchmarks/gpu.py --all --minutes 8 [--out gpu.md]
    python benchmarks/gpu.py share cifar

Its parts, the most valuable first: the tests marked ``gpu``; training at 224 px as a share of the model's steps alone;
an epoch of CIFAR-10 against a bare loop; photos by nvJPEG against the CPU's; the batched solver of heads; memory of the
phases. All images are generated, as speed does not depend on them; training is in bf16 (mixed precision).

Each part has a process of its own and a share of the time that is left, and is ended when that is over. Rows are
written as they come, so that nothing is lost by a part that fails or hangs, nor by a kill. What the parts print is in a
.log file beside the page. ``--device cpu`` tries all of it with tiny sizes, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_parts import PARTS

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "gpu_parts"]
_LEAST_SECONDS = 4.0
"""A part with less is not begun."""

_ENDING_SECONDS = 3.0
"""So long before a part is ended it should end by itself; and what the last page needs."""

_FACTS = """
import importlib.metadata as m, json, os, platform, subprocess, torch
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
def driver():
    try: return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
    except Exception: return "unknown"
names = ["torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy", "scikit-learn", "pytest"]
needed = ["lit_ft", "jsonargparse", "docstring-parser", "typeshed-client", "tensorboard", "safetensors", "scipy"]
needed += ["matplotlib", "tqdm", "filelock", "jinja2", "platformdirs"]
facts = {"python": platform.python_version(), **{name: version(name) for name in names},
    "missing": [name for name in needed if version(name) is None], "cores": len(os.sched_getaffinity(0))}
if torch.cuda.is_available():
    torch.ones(2, device="cuda").sum().item()
    about = torch.cuda.get_device_properties(0)
    facts |= {"gpu": about.name, "memory": round(about.total_memory / 2**30), "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "driver": driver(), "gpus": torch.cuda.device_count()}
print(json.dumps(facts))
"""


@dataclass
class Done:
    """A part on the page.

    Args:
        name: The part.
        rows: The file with its rows.
        note: What to know about how it ended.
    """

    name: str
    rows: Path
    note: str = ""


@dataclass
class Page:
    """The page, which is written anew after each row.

    Args:
        file: The page.
        heading: Device, versions and command.
        parts: What was measured.
    """

    file: Path
    heading: str
    parts: list[Done] = field(default_factory=list)

    def write(self) -> str:
        """Writes the page by way of a file beside it, so that a kill leaves a whole one."""
        text = f"{self.heading}\n\n{format_table(self.parts)}\n"
        notes = [f"- {PARTS[part.name].title}: {part.note}." for part in self.parts if part.note]
        text += "".join(f"\n{note}" for note in notes) + ("\n" if notes else "")
        beside = self.file.with_name(f"{self.file.name}.part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.file)
        return text


def format_table(parts: list[Done]) -> str:
    """One table of all rows, in the order of the parts."""
    lines = ["| part | measured | min / median / max | relative |", "|---|---|---|---|"]
    for part in parts:
        rows = read_rows(part.rows) or [{"what": "nothing", "result": "", "relative": ""}]
        cells = ((row["what"], row["result"], row["relative"]) for row in rows)
        title = PARTS[part.name].title
        lines += [f"| {' | '.join(text.replace('|', '/') for text in (title, *row))} |" for row in cells]
    return "\n".join(lines)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a file, each name once, where it stood first; a line that a kill cut short is left out."""
    rows: dict[str, dict[str, str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):
            row = json.loads(line)
            rows[row["what"]] = row
    return list(rows.values())


def divide(left: float, names: list[str]) -> float:
    """The seconds of the first of these parts, by the weights of all of them.

    >>> round(divide(100.0, ["heads", "memory"]), 1), divide(100.0, ["memory"])
    (50.0, 100.0)
    """
    return left * PARTS[names[0]].weight / sum(PARTS[name].weight for name in names)


def run_part(done: Done, seconds: float, args: argparse.Namespace, page: Page, log: Any) -> str:
    """Runs a part in a process of its own; returns what to know about its end."""
    began = time.time()
    given = [f"--device={args.device}", f"--rounds={args.rounds}", f"--rows={done.rows}"]
    given += [f"--until={began + max(seconds - _ENDING_SECONDS, seconds / 2)}"]
    print(f"\n===== {done.name}, {seconds:.0f} s", file=log, flush=True)
    process = subprocess.Popen(
        [*COMMAND, done.name, *given], cwd=HERE.parent, env=environment(LIT_FT_CACHE=str(done.rows.parent)),
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        size = 0
        while process.poll() is None and time.time() - began < seconds:
            time.sleep(0.2)
            if done.rows.is_file() and done.rows.stat().st_size != size:
                size = done.rows.stat().st_size
                page.write()
        if process.poll() is None:
            return f"ended after its {seconds:.0f} s, so that rows may be missing"
        return "" if process.returncode == 0 else f"failed with {process.returncode} ({last_line(Path(log.name))})"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started
        process.wait()


def environment(**variables: str) -> dict[str, str]:
    """That of a part, in which lit_ft is the one of this checkout."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own, **variables}


def last_line(file: Path) -> str:
    """The last line of a log that is not empty, cut to a readable length."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160].replace("|", "/") if lines else "no output"


def find_facts() -> dict[str, Any]:
    """Device, driver and versions, of a process of its own, as a driver can hang."""
    found = subprocess.run(
        [sys.executable, "-c", _FACTS], env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    if found.returncode:
        raise SystemExit(f"gpu.py: torch cannot be used ({(found.stderr.strip().splitlines() or ['no output'])[-1]})")
    facts: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return facts


def find_commit() -> str:
    """The commit of this checkout, where git knows it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return "unknown"


def format_heading(facts: dict[str, Any], args: argparse.Namespace) -> str:
    """What the page begins with."""
    device = "A CPU, tiny sizes: these figures say nothing"
    if args.device == "cuda":
        number = f"{facts['gpus']} x " if facts["gpus"] > 1 else ""
        device = f"{number}{facts['gpu']} ({facts['memory']} GiB), driver {facts['driver']}, CUDA {facts['cuda']}"
        device += f", cuDNN {facts['cudnn']}"
    names = ("python", "torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn", "timm", "pytest")
    versions = ", ".join(f"{name} {facts[name]}" for name in names if facts[name])
    missing = f" Not installed: {', '.join(facts['missing'])}." if facts["missing"] else ""
    parts = "--all" if list(args.parts) == list(PARTS) else " ".join(args.parts)
    command = f"`python benchmarks/gpu.py {parts} --minutes {args.minutes:g}`"
    date = time.strftime("%Y-%m-%d")
    return f"{device}; {facts['cores']} CPU cores; {versions}; commit {args.commit}, {date}, {command}.{missing}"


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--all", action="store_true", help="all parts")
    parser.add_argument("--minutes", type=float, default=8.0, help="the time of all parts together")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant, at most")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try it out")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the page")
    parser.add_argument("--commit", help="the commit, where git does not know it")
    args = parser.parse_args()
    if strange := [name for name in args.parts if name not in PARTS]:
        parser.error(f"there is no part {strange[0]}; there are {', '.join(PARTS)}")
    if args.all == bool(args.parts):
        parser.error(f"give --all, or some of {', '.join(PARTS)}")
    args.parts = [name for name in PARTS if args.all or name in args.parts]
    args.commit = args.commit or find_commit()
    return args


def main() -> int:
    """Measures, and prints the page; 2 where there is no GPU."""
    args = parse()
    end = time.time() + 60 * args.minutes - _ENDING_SECONDS
    facts = find_facts()
    if args.device == "cuda" and "gpu" not in facts:
        print("gpu.py: needs a CUDA GPU, and torch sees none; --device cpu tries it with tiny sizes", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = Page(args.out.resolve(), format_heading(facts, args))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part is ended, too
    with tempfile.TemporaryDirectory() as folder, page.file.with_suffix(".log").open("w", encoding="utf-8") as log:
        try:
            for row, name in enumerate(args.parts):
                seconds = divide(end - time.time(), args.parts[row:])
                page.parts.append(done := Done(name, Path(folder, f"{name}.jsonl"), "not ended"))
                page.write()
                done.note = (
                    run_part(done, seconds, args, page, log) if seconds >= _LEAST_SECONDS else "no time was left for it"
                )
        finally:
            print(page.write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
