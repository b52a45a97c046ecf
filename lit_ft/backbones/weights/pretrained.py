"""Published weights: where they are on this machine, and their download."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torch.hub import download_url_to_file

from lit_ft import assets
from lit_ft.backbones.weights import load as weights
from lit_ft.errors import UserError


@dataclass(frozen=True)
class Published:
    """Weights that somebody has published.

    Args:
        title: Network and tag, for messages.
        file: Its name in the folder of weights.
        url: Its address; none if it comes with the package.
        sha256: The first digits of its checksum, if known.
        others: Other paths of it, such as in a library's cache.
        licence: Its licence, as far as the library says.
        about: An address that says how it was made, likewise.
    """

    title: str
    file: str
    url: str | None = None
    sha256: str | None = None
    others: tuple[Path, ...] = ()
    licence: str | None = None
    about: str | None = None

    def places(self) -> list[Path]:
        """The paths at which the file is searched, in this order."""
        return [assets.weights_folder() / self.file, *self.others]

    def local(self) -> Path | None:
        """The path of the file on this machine, if it is here."""
        return next((place for place in self.places() if place.is_file()), None)

    def read(self) -> dict[str, Tensor]:
        """The tensors, from this machine or downloaded into torch's cache.

        Raises:
            UserError: If they are not here and cannot be fetched, or the file is damaged.
        """
        local = self.local()
        if local is None:
            if assets.is_offline():
                raise UserError(
                    f"`offline`: the weights of {self.title} are missing; put {self.url} at {self.places()[0]}"
                )
            local = self.fetch(Path(torch.hub.get_dir()) / "checkpoints", self.places()[0])
        elif local == assets.weights_folder() / self.file and not self._is_intact(local):
            raise UserError(f"`model.weights`: {local} {self._describe_other(local)}")
        return weights.read(local)

    def _describe_other(self, place: Path) -> str:
        """What a file is that lies where the weights do, and has another checksum."""
        if (manifest := assets.data_root() / assets.MANIFEST).is_file():
            return (
                f"is damaged: its checksum is not the one in {manifest}, nor the published one; fetch it again with "
                "the same lit-ft download"
            )
        return (
            f"is damaged, or not {self.title}: its checksum is not the published one; remove it, or to take it as it "
            f"is, give `model.weights` {place}"
        )

    def _is_intact(self, place: Path) -> bool:
        known = assets.entry_name(assets.data_root(), place) in assets.read_manifest(assets.data_root())
        return assets.is_intact(assets.data_root(), place) if known else self.fits(place)

    def fits(self, place: Path) -> bool:
        """Whether a file has the published checksum, as far as that is known."""
        return self.sha256 is None or assets.checksum(place).startswith(self.sha256)

    def fetch(self, folder: Path, by_hand: Path | None = None) -> Path:
        """Downloads the file into a folder, atomically.

        Args:
            folder: The folder.
            by_hand: The path that the error names to a user who downloads it by hand, if not in that folder.

        Raises:
            UserError: If the download fails.
        """
        assert self.url is not None  # else it comes with the package, and is never missing
        place = folder / self.file
        partial = folder / f".{assets.random_part()}-{self.file}"  # it is read by its suffix
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Bars are for people; elsewhere they would surround the one line after a failure.
            download_url_to_file(self.url, str(partial), self.sha256, progress=sys.stderr.isatty())
            if self.sha256 is None:
                weights.read(partial)  # a connection that breaks off is no error, so that half a file may have come
            partial.replace(place)
        except (URLError, OSError, RuntimeError, HTTPException, UserError) as error:  # RuntimeError: a wrong checksum
            reason = "what came is damaged" if isinstance(error, UserError) else str(error).partition("\n")[0]
            raise UserError(
                f"`model.weights`: could not fetch {self.title} ({reason}); put {self.url} at {by_hand or place}, "
                "name a local file, or give null for random weights"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return place
