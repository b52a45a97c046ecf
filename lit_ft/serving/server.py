"""The server: its processes, from the check of the checkpoint to the end of the last of them."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ctypes import c_int
from importlib.metadata import version
from multiprocessing import resource_tracker
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from litserve import LitServer

from lit_ft.assets import checksum
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations.maps import choose_quick_method
from lit_ft.evaluation.inference import load
from lit_ft.model.image_model import ImageModel
from lit_ft.runs import find_best_checkpoint
from lit_ft.serving.answers import valid_text
from lit_ft.serving.guard import SECONDS, RequestGuard
from lit_ft.serving.page import page_route
from lit_ft.serving.photo_api import MAX_MEGAPIXELS, PhotoAPI

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
"""What LitServe can listen on: this machine alone, all its networks, and these of IPv6 too."""

PORTS = range(1024, 65536)
"""The ports that LitServe takes."""

_GRACE_SECONDS = 5
_OPEN = "anyone in the networks of {host} can use this server, unless the variable LIT_SERVER_API_KEY sets a key for it"


class PhotoServer(LitServer):  # type: ignore[misc]
    """LitServe's server with a line when it is ready, and a process for predictions that Ctrl-C does not reach."""

    address = ""
    is_ending = False
    restarts: c_int
    """How often the process that predicts was started again, in memory that processes share."""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs the process that speaks HTTP, from its start to its end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the first process ends this one, once, and in order
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns of each form that is malformed
        async with super().lifespan(app):
            print(f"Serving on {self.address} (Ctrl-C ends it)", flush=True)
            yield

    def launch_inference_worker(self, lit_api: Any) -> Any:
        """Starts the process that predicts."""
        with _without_interrupts():
            return super().launch_inference_worker(lit_api)

    def launch_single_inference_worker(self, lit_api: Any, worker_id: int) -> Any:
        """Starts that process again, if it has died by itself."""
        if self.is_ending:
            raise RuntimeError("the server ends")
        self.restarts.value += 1
        with _without_interrupts():
            return super().launch_single_inference_worker(lit_api, worker_id)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Lets Ctrl-C not reach the processes that are started within, not even while they load their libraries."""
    resource_tracker.ensure_running()  # else it starts with the first of them, and lets signals through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def serve(
    checkpoint: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 16,
    max_mb: float = 20.0,
    device: str | None = None,
) -> None:
    """Serves predictions over HTTP until it is interrupted.

    Args:
        checkpoint: The checkpoint, or the folder of a run, whose best one is taken.
        host: The address to listen on, one of `HOSTS`.
        port: The port to listen on.
        max_batch: The largest number of images that pass the network at once.
        max_mb: The largest upload, in millions of bytes.
        device: Where to compute; ``None`` takes a GPU where there is one.

    Raises:
        UserError: If something is out of range, the checkpoint or the device cannot be used, or the port is taken.
        KeyboardInterrupt: If it is interrupted before it serves.
        SystemExit: If it is ended by a signal.
    """
    _check(host, port, max_batch, max_mb)
    place = find_device(device)
    path = find_best_checkpoint(checkpoint)
    about = describe_model(load(path, "cpu"), path) | {"max_mb": max_mb, "max_megapixels": MAX_MEGAPIXELS}
    if host != HOSTS[0] and not os.environ.get("LIT_SERVER_API_KEY"):
        warnings.warn(_OPEN.format(host=host), stacklevel=2)
    limits = {"max_bytes": int(max_mb * 1e6), "slots": 2 * max_batch}
    server = _build_server(PhotoAPI(path.absolute(), str(place), max_batch, about["explain"]), place, about, limits)
    server.address = f"http://{'[::1]' if host == '::' else host}:{port}"
    with _no_process_left(server):
        server.run(host, port, num_api_servers=1, log_level="warning", generate_client_file=False, server_header=False)


def _build_server(api: PhotoAPI, device: torch.device, about: dict[str, Any], limits: dict[str, int]) -> PhotoServer:
    restarts = RawValue(c_int)
    server = PhotoServer(
        api,
        **_litserve_devices(device),
        timeout=SECONDS,
        model_metadata=about,
        middlewares=[(RequestGuard, {**limits, "restarts": restarts})],
        disable_openapi_url=True,  # whose page loads scripts from elsewhere
        restart_workers=True,
    )
    server.restarts = restarts
    server.uvicorn_graceful_timeout = _GRACE_SECONDS
    server.app.router.routes.insert(0, page_route())  # LitServe has a line of text there
    return server


def describe_model(model: ImageModel, path: Path) -> dict[str, Any]:
    """What ``GET /info`` tells of a model; its version is of the checkpoint's content."""
    return {
        "name": valid_text(str(model.hparams["backbone"])),
        "version": checksum(path)[:12],
        "task": model.task.name,
        "classes": [valid_text(name) for name in model.class_names],
        "input": _describe_input(model.input_spec),
        "explain": choose_quick_method(model),
        "lit_ft": version("lit_ft"),
    }


def _describe_input(spec: InputSpec) -> dict[str, Any]:
    bands = {} if spec.bands is None else {"bands": spec.bands}
    return {"size": spec.size, "channels": spec.channels, **bands}


def find_device(given: str | None) -> torch.device:
    """The device that is given, or a GPU where there is one, without starting it in this process.

    Raises:
        UserError: If there is no such device.
    """
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if given is None:
        return gpu or torch.device("cpu")
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise UserError(f"`device`: {given} is no device; give cpu, cuda or cuda:1") from error
    count = torch.accelerator.device_count() if gpu else 0
    if device.type != "cpu" and (gpu is None or device.type != gpu.type or (device.index or 0) >= count):
        raise UserError(f"`device`: there is no {given} on this machine; give {f'{gpu.type} or ' if gpu else ''}cpu")
    return device


def _litserve_devices(device: torch.device) -> dict[str, Any]:
    """The device as LitServe takes it; it knows cpu, cuda and mps, and `PhotoAPI` has its own word for others."""
    if device.type == "cuda":
        return {"accelerator": "cuda", "devices": [device.index or 0]}
    return {"accelerator": "mps" if device.type == "mps" else "cpu", "devices": 1}


def _check(host: str, port: int, max_batch: int, max_mb: float) -> None:
    if not hasattr(signal, "pthread_sigmask"):
        raise UserError("lit-ft serve needs Linux or macOS; Windows has it in WSL")
    if host not in HOSTS:
        raise UserError(f"`host`: must be 127.0.0.1 (this machine alone), 0.0.0.0 or :: (all networks), got {host}")
    if port not in PORTS:
        raise UserError(f"`port`: must be from {PORTS[0]} to {PORTS[-1]}, got {port}")
    if max_batch < 1:
        raise UserError(f"`max_batch`: must be at least 1, got {max_batch}")
    if not 0 < max_mb <= 1000:
        raise UserError(f"`max_mb`: must be above 0 and at most 1000, got {max_mb:g}")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise UserError(
            f"`port`: cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); give another"
        ) from error


@contextmanager
def _no_process_left(server: PhotoServer) -> Iterator[None]:
    """Ends whatever the server has started, also where it is interrupted half-way or ended by a signal.

    Raises:
        UserError: If it has not started.
        SystemExit: If it was ended by SIGTERM.
    """
    first, ended_by = os.getpid(), 0

    def end(number: int, _: Any) -> None:
        nonlocal ended_by
        if os.getpid() != first:  # that which speaks HTTP inherits this
            raise SystemExit(128 + number)
        ended_by, server.is_ending = ended_by or number, True
        signal.alarm(_GRACE_SECONDS + 1)  # once more, as Python drops what is raised while it forks, and to hurry then
        logging.getLogger("litserve").setLevel(logging.CRITICAL + 1)  # it looks after processes that are ended here
        gc.freeze()  # else Python looks for garbage among all libraries once more, which takes seconds
        raise KeyboardInterrupt  # after which LitServe ends in order

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    except RuntimeError as error:  # of LitServe, whose log has the reason
        raise UserError(f"the server has not started: {error}") from error
    finally:
        signal.alarm(0)
        for process in multiprocessing.active_children():
            process.terminate()
            process.join(_GRACE_SECONDS)
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
        if ended_by == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
