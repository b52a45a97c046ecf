"""The process that decodes and predicts, a batch at a time, as LitServe runs it."""

# Without `from __future__ import annotations`: LitServe reads those of `decode_request` and `encode_response`.

import gc
import signal
import sys
import time
from collections import deque
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from queue import Empty, Queue
from typing import Annotated, NoReturn

from fastapi import Depends
from litserve import LitAPI
from litserve.loops import BatchedLoop
from litserve.transport.base import MessageTransport
from PIL import Image
from starlette.responses import Response
from torch import Tensor

from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.decode import decode, why_unread
from lit_ft.data.images.loss import REDUCED, find_loss
from lit_ft.errors import UserError, for_command_line
from lit_ft.evaluation.inference import load
from lit_ft.serving.answers import Answer, Refusal, respond
from lit_ft.serving.heat_map import explain_photo
from lit_ft.serving.uploads import Upload, read_upload

MAX_MEGAPIXELS = 80
"""Images of more are refused before they are decoded."""

_NO_MAP = "explain: this server has no heat map; it needs a network with a map, or a ViT"

Waiting = tuple[int, str, float, Upload]
"""A request in LitServe's queue: whom to answer, its name, when it came, and what was sent."""


class GreedyLoop(BatchedLoop):  # type: ignore[misc]
    """Batches of all that waits: a lone request is never held up, and more gather while a batch is computed.

    What is to be explained takes longer. It goes alone, and one at a time: after a batch, if others wait.

    LitServe's own loop holds each batch up by a fixed time, or else polls its queue as fast as it can, also at rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._to_explain: deque[Waiting] = deque()
        self._explains_next = False

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: "Queue[Waiting]", transport: MessageTransport
    ) -> tuple[list[tuple[int, str, Upload]], list[tuple[int, str]]]:
        """The next requests, and those that came too long ago; waits until there is one."""
        explains = bool(self._to_explain) and self._explains_next
        waiting = [] if explains else self._gather(request_queue, lit_api.max_batch_size)
        self._explains_next = bool(waiting)
        waiting = waiting or [self._to_explain.popleft()]
        oldest = time.monotonic() - lit_api.request_timeout  # nobody waits any more for what came before
        late = [(place, name) for place, name, came, _ in waiting if came < oldest]
        return [(place, name, upload) for place, name, came, upload in waiting if came >= oldest], late

    def _gather(self, request_queue: "Queue[Waiting]", most: int) -> list[Waiting]:
        """All that waits for a prediction alone; none if there is only something to explain."""
        waiting: list[Waiting] = []
        while len(waiting) < most:
            try:
                # Not for ever: what a process that was killed still waits for is lost to the one that replaces it.
                rests = not waiting and not self._to_explain
                one = request_queue.get(timeout=1) if rests else request_queue.get_nowait()
            except Empty:
                if waiting or self._to_explain:
                    break
                continue
            (self._to_explain if one[3].explain else waiting).append(one)
        return waiting


class PhotoAPI(LitAPI):  # type: ignore[misc]
    """Predicts the images of requests with the model of a checkpoint.

    Args:
        checkpoint: The checkpoint, or the folder of a run.
        device: Where it computes.
        max_batch: The largest number of images that pass the network at once.
        method: How it finds where the evidence is, or ``None`` where it cannot.
    """

    def __init__(self, checkpoint: Path, device: str, max_batch: int, method: str | None = None) -> None:
        super().__init__(max_batch_size=max_batch, loop=GreedyLoop())
        self.checkpoint = checkpoint
        self.place = device
        self.method = method
        self._has_warned = False  # of photos that have more than the model takes

    def setup(self, device: str) -> None:
        """Loads the model, in a process of its own."""
        signal.signal(signal.SIGTERM, _end)
        Image.MAX_IMAGE_PIXELS = MAX_MEGAPIXELS * 1_000_000 // 2  # Pillow refuses twice as many
        self.model = load(self.checkpoint, self.place)

    def decode_request(self, request: Annotated[Upload, Depends(read_upload)]) -> Upload:
        """What `read_upload` has made of the request."""
        return request

    def predict(self, uploads: list[Upload]) -> list[Answer]:
        """The answers to a batch of uploads, in order; an image that cannot be read does not hurt the others."""
        answers: dict[int, Answer] = {}
        images: dict[int, Tensor] = {}
        for place, upload in enumerate(uploads):
            image = read_image(upload.content, self.model.reader)
            if isinstance(image, Refusal):
                answers[place] = image
                continue
            if self.model.reader is None and not self._has_warned and find_loss(BytesIO(upload.content)):
                print(f"lit-ft: warning: {for_command_line(REDUCED)}", file=sys.stderr, flush=True)
                self._has_warned = True
            if upload.explain:
                answers[place] = self._explain(image, upload.top_k)
                continue
            images[place] = image
            # So that a batch of large photos takes no more memory than the largest of them.
            if sum(map(_count_pixels, images.values())) > MAX_MEGAPIXELS * 1_000_000:
                answers |= self._predict_images(images, uploads)
                images = {}
        answers |= self._predict_images(images, uploads)
        return [answers[place] for place in range(len(uploads))]

    def encode_response(self, output: Answer) -> Response:
        """The response to a request."""
        return respond(output)

    def _explain(self, image: Tensor, top_k: int) -> Answer:
        """The prediction for a decoded image, and where its evidence is."""
        if self.method is None:
            return Refusal(422, _NO_MAP)
        return explain_photo(self.model, image, self.method, top_k)

    def _predict_images(self, images: dict[int, Tensor], uploads: list[Upload]) -> dict[int, Answer]:
        """The predictions for decoded images, by their places in the batch."""
        if not images:
            return {}
        most = max(uploads[place].top_k for place in images)
        found = self.model.predict_images([("", image) for image in images.values()], most, len(images))
        return {
            place: replace(one, top_k=one.top_k[: uploads[place].top_k])
            for place, one in zip(images, found, strict=True)
        }


def _end(*_: object) -> NoReturn:
    """Ends this process in order, so that no semaphore is left."""
    gc.freeze()  # else Python looks for garbage among all libraries once more, which takes seconds
    sys.exit()


def _count_pixels(image: Tensor) -> int:
    """The number of pixels of a photo, or of raw values, of which each takes more room."""
    return image.numel() if image.is_floating_point() else image.shape[1] * image.shape[2]


def read_image(content: bytes, reader: BandReader | None = None) -> Tensor | Refusal:
    """The pixels of an image, uint8 ``(3, H, W)`` or raw ``(C, H, W)``, or why there are none."""
    file = BytesIO(content)
    try:
        return decode(file) if reader is None else reader(file, "the image")
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            return Refusal(413, f"the image has more than {MAX_MEGAPIXELS} megapixels")
        reason = why_unread(file, cause) if isinstance(cause, Exception) else str(error)
        return Refusal(422, f"the image cannot be read ({reason})")
