"""Predictions of pictures with an exported file, as `ImageModel.predict` gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch

from lit_ft.backbones.input_spec import Views, check_bands
from lit_ft.data.bands.reader import BandReader
from lit_ft.errors import UserError
from lit_ft.export.runtime import open_exported
from lit_ft.model.calibration import Calibration
from lit_ft.model.prediction import Picture, Prediction, Predictor, check_positive, read_pictures
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task, TaskName


class ExportedModel(Predictor):
    """An exported file that predicts pictures.

    Args:
        path: The ``.onnx`` or ``.pt2`` file.

    Raises:
        UserError: If it is missing, damaged or not of lit_ft, or what runs it is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.file = open_exported(path)
        self.class_names = self.file.description.classes
        units = self.file.description.units
        self.task = Task(
            cast(TaskName, self.file.description.task),
            len(self.class_names),
            standardisation=None if units is None else Standardisation.from_plain(units),
        )
        self.calibration = Calibration(least_probability=self.file.description.least_probability)

    @property
    def reader(self) -> BandReader | None:
        """What reads raw values of bands for the file; nothing where it takes photos."""
        description = self.file.description
        if description.bands is None:
            return None
        return BandReader(check_bands(description.bands, "bands"), description.channels)

    def read(self, pictures: Picture | Iterable[Picture]) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Predictor.read`."""
        return read_pictures(pictures, self.file.description.channels, self.reader)

    def predict_images(
        self, images: Iterable[tuple[str, torch.Tensor]], top_k: int = 1, batch_size: int = 32, tta: Views | None = None
    ) -> list[Prediction]:
        """Predicts images, in their order; see `Predictor.predict`. The file resizes and crops them, in one view."""
        if tta is not None:
            raise UserError(f"tta: {tta} is for a checkpoint; an exported file sees one view")
        check_positive(top_k=top_k, batch_size=batch_size)
        left, found = iter(images), list[Prediction]()
        while batch := list(islice(left, batch_size)):
            columns = self.judge([image for _, image in batch])
            found += self.format_predictions(columns, [name for name, _ in batch], top_k)
        return found

    def judge(self, images: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What it predicts for N images, each uint8 or raw ``(C, H, W)``.

        Returns:
            ``answers`` ``(N, K)``; ``unsure`` and ``unlike_training`` ``(N,)``, where that is known.
        """
        description = self.file.description
        pixels = [_fit(image, description.channels).permute(1, 2, 0).contiguous().numpy() for image in images]
        outputs, distances = self.file.run_each(pixels)
        columns = {"answers": torch.from_numpy(outputs)}
        if (unsure := (self.calibration or Calibration()).are_unsure(columns["answers"])) is not None:
            columns["unsure"] = unsure
        if distances is not None and description.farthest is not None:
            columns["unlike_training"] = torch.from_numpy(distances > description.farthest)
        return columns


def _fit(image: torch.Tensor, channels: int) -> torch.Tensor:
    """The image ``(C, H, W)`` with the channels that the file takes; raises `UserError` if it has others."""
    if len(image) not in (1, channels):
        raise UserError(f"pictures: an image of {len(image)} channels, but the file takes {channels}")
    return image.expand(channels, -1, -1)
