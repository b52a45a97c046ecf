"""The history of a run, a row an epoch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.assets import replace_atomically
from lit_ft.console import rank_zero_print
from lit_ft.data.loading.protocols import Split
from lit_ft.errors import UserError, refuse_unwritable
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.training.evaluated import gather
from lit_ft.training.handed_back import is_refitted
from lit_ft.training.metrics_file import change_entries, forget_results, remove_tables, set_metrics, write_metrics
from lit_ft.training.progress import RunningLoss, find_penalty, read_new_metrics
from lit_ft.training.result_names import count_trained_on, describe_images, describe_rest, name_results

EpochRow = dict[str, int | float | None]

_ENCODING = "utf-8-sig"  # spreadsheets put a byte order mark before a table
_TOO_MANY = "more cells than columns"


class HistoryWriter(Callback):
    """Writes ``history.csv``, a row an epoch, and ``metrics.json``, the metrics of each split, to the folder of a run.

    A row has the epoch, the optimizer steps until its end, the learning rate of each stage at its beginning (0 while
    the stage is frozen), the mean training loss, the main metric of the training batches, and the metrics that were
    logged in the epoch. A resumed run continues the table. What is known of the model of an earlier fit in the folder
    is removed, as it is not that of this one.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._loss = RunningLoss()
        self._rates: dict[str, float] = {}
        self._earlier: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the folder of the run; a ``fast_dev_run`` has none."""
        is_none = cast(Any, trainer).fast_dev_run or getattr(trainer, "is_plan", False)
        self._run = None if is_none else find_run(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the rows of epochs that a resumed run trains again, and the results of an earlier fit."""
        if self._run is not None and trainer.is_global_zero:
            keep_rows_before(self._run.history, trainer.current_epoch)
            forget_results(self._run)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins a row."""
        self._loss = RunningLoss()
        self._rates = read_rates(trainer.optimizers)
        self._earlier = dict(trainer.callback_metrics)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the loss of a step to the mean."""
        self._loss.add(outputs, find_penalty(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Appends the row, before the checkpoint of the epoch is written."""
        metrics = read_new_metrics(trainer.callback_metrics, self._earlier)  # on all ranks, which may reduce some
        scores: dict[str, float] = getattr(pl_module, "train_metrics", dict)()
        mean = self.mean_loss(trainer)
        if self._run is None or not trainer.is_global_zero:
            return
        loss = {} if mean is None else {"train/loss": mean, **scores}
        rates = {f"lr/{stage}": rate for stage, rate in self._rates.items()}
        row: EpochRow = {"epoch": trainer.current_epoch, "step": trainer.global_step, **rates, **loss, **metrics}
        append_row(self._run.history, {**row, **loss})  # not that of the last step

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the validation metrics of the best checkpoint, or where there is none, of the last epoch."""
        if self._run is None or not trainer.is_global_zero:
            return
        forget_results(self._run)  # of a run that was resumed after its last epoch, which starts no training
        if not (rows := read_history(self._run.history)):
            return
        best = find_best_callback(trainer)
        row = find_best_row(rows, best.monitor, best.best_model_score) if best is not None else None
        chosen = rows[-1] if row is None else row
        metrics = {name: value for name, value in chosen.items() if name.startswith("val/") and value is not None}
        if metrics:
            facts = describe_images(trainer, "val")
            write_metrics(self._run, "val", {**facts, **metrics}, best.best_model_path if row is not None else None)

    def mean_loss(self, trainer: L.Trainer) -> float | None:
        """The mean training loss of an epoch that has ended; all processes must ask. None without a step."""
        self._loss.gather(trainer)
        return self._loss.compute(trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the metrics of a validation that is no part of a fit."""
        if trainer.state.fn == "validate":
            self._write_evaluation(trainer, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the metrics of a test."""
        self._write_evaluation(trainer, "test")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the row as far as it is known, for a run that is resumed within the epoch."""
        losses = gather(trainer, (float(self._loss.total), self._loss.num_steps))
        checkpoint["history_row"] = {"rates": self._rates, "losses": losses}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continues the row of the run that is resumed; each process its own sum, if there are as many as then."""
        if not (row := checkpoint.get("history_row")):  # of an earlier version, or none of a fit
            return
        self._rates, losses = row["rates"], row["losses"]
        if len(losses) != trainer.world_size:
            total, num_steps = (sum(values) for values in zip(*losses, strict=True))
            losses = [(total, num_steps), *[(0.0, 0)] * (trainer.world_size - 1)]
        self._loss = RunningLoss(*losses[trainer.global_rank])

    def _write_evaluation(self, trainer: Any, split: Split) -> None:
        if self._run is None or not trainer.is_global_zero:
            return
        with change_entries(self._run) as entries:  # so that no other evaluation takes the same name meanwhile
            name, place = name_results(trainer, self._run, split, entries)
            facts = describe_images(trainer, split)
            if place is not None:
                facts["data"] = place
                if trained_on := count_trained_on(self._run, trainer.datamodule, split, trainer.ckpt_path):
                    facts["trained_on"] = trained_on
            remove_tables(self._run, name)
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            set_metrics(self._run, entries, name, {**facts, **metrics}, trainer.ckpt_path)
        if name != split:
            rank_zero_print(f"These are not the run's own {split} results, so they are kept apart, as {name}")
        if place is not None and split == "val" and (rest := describe_rest(trainer.datamodule, facts)):
            rank_zero_warn(f"{place} {rest}")
        if "trained_on" in facts:
            rank_zero_warn(f"the model was trained on {facts['trained_on']:,} of the images of {place}")
        elif place is None and split == "val" and trainer.ckpt_path and is_refitted(trainer.ckpt_path):
            rank_zero_warn(
                f"{trainer.ckpt_path} was trained on its validation images, too (`refit`), so that scores on them mean "
                "nothing"
            )


def read_rates(optimizers: Iterable[Any]) -> dict[str, float]:
    """The learning rate of each stage, 0 where nothing of it is trained; of its parameter groups the highest."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            stage, trains = group.get("stage", "model"), any(p.requires_grad for p in group["params"])
            rates[stage] = max(rates.get(stage, 0.0), float(group["lr"]) if trains else 0.0)
    return rates


def read_history(path: Path) -> list[EpochRow]:
    """The rows of a history, an empty cell as None; none where there is no file.

    Raises:
        UserError: If it is no table of numbers with an epoch in each row, as after an edit by hand.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding=_ENCODING) as file:
            rows = list(csv.DictReader(file, restkey=_TOO_MANY))
        # A row that was cut short by a kill is of an epoch that is trained again.
        return [_parse_row(row) for row in rows if None not in row.values()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not the history of a run ({error}); fix or remove the file") from error


def append_row(path: Path, row: EpochRow) -> None:
    """Adds a row to a history; the file is written anew only for new columns, or after a line that has no end."""
    written = path.read_bytes() if path.is_file() else b""
    columns = next(csv.reader([written.partition(b"\n")[0].decode(_ENCODING)]), [])
    if not columns or not row.keys() <= set(columns) or not written.endswith(b"\n"):
        _write_rows(path, [*read_history(path), row])
        return
    with refuse_unwritable(path), path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, columns, lineterminator="\n").writerow(row)


def keep_rows_before(path: Path, epoch: int) -> None:
    """Removes the rows of an epoch and those after it from a history, if there are any."""
    if not path.is_file():
        return
    kept = [row for row in read_history(path) if cast(float, row["epoch"]) < epoch]
    if not kept:
        path.unlink()
    elif len(path.read_text(_ENCODING).splitlines()) != len(kept) + 1:  # also where the last row was cut short
        _write_rows(path, kept)


def find_best_row(rows: Sequence[EpochRow], monitor: str, score: Any) -> EpochRow | None:
    """The first row with the score of the best checkpoint, if any."""
    return next((row for row in rows if score is not None and row.get(monitor) == float(score)), None)


def _parse_row(row: Mapping[str, str]) -> EpochRow:
    if _TOO_MANY in row:
        raise ValueError(f"more cells than columns in the row of epoch {row.get('epoch')!r}")
    if not row.get("epoch", "").isdecimal():
        raise ValueError(f"a row without an epoch: {','.join(row.values())[:40]!r}")
    return {key: _number(cell) for key, cell in row.items()}


def _number(cell: str) -> float | None:
    if not cell:
        return None
    return int(cell) if cell.isdecimal() else float(cell)


def _write_rows(path: Path, rows: Sequence[EpochRow]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with replace_atomically(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
