"""``lit-ft serve`` as far as it refuses to begin; a server that runs is in ``tests/serving/test_server.py``."""

import socket
import sys
import warnings

import lightning as L
import pytest
import torch

from lit_ft.model.module import FineTuneModule
from lit_ft.serving import server


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    module = FineTuneModule("mnist_cnn", weights=None, classes=["cat", "dog"])
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(
        {**content, "pytorch-lightning_version": L.__version__},
        path := tmp_path_factory.mktemp("model") / "best.ckpt",
    )
    return path


@pytest.fixture
def started(monkeypatch):
    """The options of servers that would have run."""
    found = []
    monkeypatch.setattr(server.PhotoServer, "run", lambda *args, **options: found.append((*args[1:], options)))
    return found


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--host", "192.168.0.1"],
            "--host: must be 127.0.0.1 (this machine alone), 0.0.0.0 or :: (all networks), got",
        ),
        (["--port", "80"], "--port: must be from 1024 to 65535, got 80"),
        (["--port", "http"], "--port: invalid int value: 'http' (see lit-ft serve --help)"),
        (["--max_batch", "0"], "--max_batch: must be at least 1, got 0"),
        (["--max_mb", "0"], "--max_mb: must be above 0 and at most 1000, got 0"),
        (["--max_mb", "nan"], "--max_mb: must be above 0 and at most 1000, got nan"),
        (["--device", "gpu"], "--device: gpu is no device; give cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], "--device: there is no cuda:99 on this machine; give "),
    ],
)
def test_option_out_of_range_is_refused_before_anything_starts(refused, started, best, options, line):
    assert refused("serve", best, *options).startswith(f"lit-ft: {line}")
    assert started == []


def test_what_is_no_checkpoint_is_refused_before_anything_starts(refused, started, tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    given = {
        tmp_path / "text.ckpt": f"{tmp_path}/text.ckpt is not a checkpoint, or it is damaged",
        tmp_path / "nothing.ckpt": f"no such file: {tmp_path}/nothing.ckpt; nearest: {tmp_path}/text.ckpt",
        tmp_path: f"{tmp_path} is no run, as it has no folder checkpoints; name one",
    }
    for path, reason in given.items():
        assert refused("serve", path) == f"lit-ft: CHECKPOINT: {reason}"
    assert started == []


def test_port_in_use_is_refused_before_anything_starts(refused, started, best):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("serve", best, "--port", port)
    assert line == f"lit-ft: --port: cannot listen on 127.0.0.1:{port} (Address already in use); give another"
    assert started == []


@pytest.mark.parametrize("library", ["litserve", "python_multipart"])
def test_missing_library_is_named_with_what_to_install(refused, best, monkeypatch, library):
    monkeypatch.setattr("lit_ft.cli.commands.serve.find_spec", lambda name: None if name == library else sys)
    assert refused("serve", best) == f"lit-ft: lit-ft serve needs {library}; pip install 'lit_ft[serve]'"


@pytest.mark.parametrize(("host", "key", "warned"), [("localhost", "", 0), ("0.0.0.0", "", 1), ("0.0.0.0", "me", 0)])
def test_server_that_others_reach_without_a_key_is_warned_of(run, best, started, monkeypatch, host, key, warned):
    monkeypatch.setenv("LIT_SERVER_API_KEY", key)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("serve", best, "--host", host, "--port", port, "--device", "cpu")
    assert [given[:2] for given in started] == [(host.replace("localhost", "127.0.0.1"), port)]
    line = "anyone in the networks of 0.0.0.0 can use this server, unless the variable LIT_SERVER_API_KEY sets a key"
    assert [str(one.message).startswith(line) for one in caught] == [True] * warned
