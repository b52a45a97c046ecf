"""Air-gapped use: what ``lit-ft download`` fetches from a real server, and ``--offline`` without any."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx_bytes, noise
from torchvision.datasets import MNIST

from lit_ft.assets import record
from lit_ft.backbones.build import source_of, torchvision
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.weights import pretrained
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.data import CIFAR10DataModule, ImageFolderDataModule, MNISTToEMNISTDataModule
from lit_ft.errors import UserError

NET = "squeezenet1_1"
WEIGHTS = "weights/net.pth"
IMAGES = "MNIST/raw/t10k-images-idx3-ubyte"
CONFIGS = Path(__file__).parents[3] / "configs"


pytestmark = pytest.mark.usefixtures("lit_ft")  # all run in an empty folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path):
    """The folder of the server: a network's weights, and MNIST with 2 images a class."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.manual_seed(1)
    torch.save(torchvision.build(NET, InputSpec()).module.state_dict(), folder / "net.pth")
    for part in ("train", "t10k"):
        images, labels = idx_bytes(noise(20)), idx_bytes(np.arange(20) % 10)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


@pytest.fixture
def requests(served, monkeypatch):
    """What the server was asked for; weights and data come from it."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    digits = sha256(served / "net.pth")[:8]
    monkeypatch.setattr(
        torchvision, "_published", lambda name, _: Published(f"{name} V1", "net.pth", f"{url}/net.pth", digits)
    )
    monkeypatch.setattr(MNIST, "mirrors", [f"{url}/"])
    sums = [(name, hashlib.md5((served / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources]
    monkeypatch.setattr(MNIST, "resources", sums)
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


DATA = ("--data", "MNISTToEMNISTDataModule", "--data.domain", "source", "--data.val_fraction", 0.5)
ALL = ("download", *DATA, "--model.backbone", NET, "--folder", "F")
MNIST_FILES = [f"/{p}-{f}-ubyte.gz" for p in ("train", "t10k") for f in ("images-idx3", "labels-idx1")]


def test_download_fetches_all_and_tells_of_each_file(lit_ft, requests, served):
    code, out, err = lit_ft(*ALL)
    assert (code, err) == (0, [])
    assert list(dict.fromkeys(requests)) == ["/net.pth", *MNIST_FILES]  # torchvision asks twice
    files = json.loads(Path("F/manifest.json").read_text())["files"]
    raw = [f"MNIST/raw/{name[1:-3]}" for name in MNIST_FILES]
    assert sorted(files) == sorted([*raw, WEIGHTS])
    for name, entry in files.items():
        assert entry["bytes"] == (Path("F") / name).stat().st_size
        assert entry["sha256"] == sha256(Path("F") / name)
        assert name in out
    assert sha256(Path("F") / WEIGHTS) == sha256(served / "net.pth")
    assert files[WEIGHTS]["url"].endswith("/net.pth")
    assert files[IMAGES]["url"].endswith("/t10k-images-idx3-ubyte.gz")
    present = sorted(str(p.relative_to("F")) for p in Path("F").rglob("*") if p.is_file())
    assert present == sorted([*raw, WEIGHTS, "manifest.json", ".manifest.json.lock"])
    arguments = " ".join(map(str, ALL[1:-2]))
    assert out.splitlines()[-1] == f"Run: LIT_FT_DATA=F lit-ft finetune {arguments} --offline"


def test_second_download_fetches_nothing_and_keeps_the_manifest(lit_ft, requests):
    lit_ft(*ALL)
    before = Path("F/manifest.json").read_bytes()
    requests.clear()
    code, out, _ = lit_ft(*ALL)
    assert (code, requests) == (0, [])
    assert out.count("was there") == 5
    assert Path("F/manifest.json").read_bytes() == before


def test_data_set_of_torchvision_is_fetched_once_and_then_used_offline(lit_ft, requests):
    data = ("--data", "ImageDatasetDataModule", "--data.dataset", "MNIST", "--data.val_fraction", 0.5)
    small = ("--model.backbone", "mnist_cnn", "--model.weights", "null")
    code, _, err = lit_ft("plan", *data, *small, "--data.root", "F", "--offline")
    place = Path("F/MNIST")
    assert code == 2
    assert f"1 file is missing: {place.absolute()}; to fetch them where there is a network: lit-ft download" in err[0]
    code, out, err = lit_ft("download", *data, *small, "--folder", "F")
    assert (code, err) == (0, [])
    assert list(dict.fromkeys(requests)) == MNIST_FILES
    assert "Data: MNIST is in F; manifest.json has none of it" in out
    requests.clear()
    assert lit_ft("download", *data, *small, "--folder", "F")[0] == 0
    code, out, _ = lit_ft("plan", *data, *small, "--data.root", "F", "--offline")
    assert (code, requests) == (0, [])
    assert "train        10 images, 1 a class" in out


@pytest.mark.parametrize(("name", "asked"), [(WEIGHTS, ["/net.pth"]), (IMAGES, MNIST_FILES)])
def test_damaged_file_is_fetched_again(lit_ft, requests, name, asked):
    lit_ft(*ALL)
    path = Path("F") / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    requests.clear()
    assert lit_ft(*ALL)[0] == 0
    assert list(dict.fromkeys(requests)) == asked
    assert path.read_bytes() == whole
    assert not list(Path("F").rglob("*partial*"))


def test_damaged_weights_of_unknown_checksum_are_fetched_again(lit_ft, requests, monkeypatch):
    url = torchvision._published(NET, None).url
    monkeypatch.setattr(torchvision, "_published", lambda *_: Published("net", "net.pth", url))
    lit_ft(*ALL)
    whole = (Path("F") / WEIGHTS).read_bytes()
    (Path("F") / WEIGHTS).write_bytes(whole[:-1] + b"x")
    requests.clear()
    assert lit_ft(*ALL)[0] == 0
    assert requests == ["/net.pth"]
    assert (Path("F") / WEIGHTS).read_bytes() == whole


def test_data_that_two_processes_fetch_at_once_are_whole(run, requests, monkeypatch):
    prepare, others = MNISTToEMNISTDataModule.prepare_data, iter([ALL])

    def fetch(data):
        prepare(data)
        for args in others:
            run(*args)

    monkeypatch.setattr(MNISTToEMNISTDataModule, "prepare_data", fetch)
    assert "Manifest: F/manifest.json" in run(*ALL)
    assert sha256(Path("F") / IMAGES) == json.loads(Path("F/manifest.json").read_text())["files"][IMAGES]["sha256"]
    assert not list(Path("F").rglob("*partial*"))


def test_weights_that_two_processes_fetch_at_once_are_whole(tmp_path, monkeypatch):
    weights = Published("net", "net.pth", "https://host/net.pth", "0")
    contents = iter(["whole", None])

    def fetch(url, path, *_, **__):
        if (content := next(contents)) is None:
            raise OSError("no route to host")
        Path(path).write_text(content)
        with pytest.raises(UserError, match="no route to host"):
            weights.fetch(tmp_path)  # another process, which fails and removes what it has

    monkeypatch.setattr(pretrained, "download_url_to_file", fetch)
    assert weights.fetch(tmp_path).read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.pth"]


def test_next_config_adds_to_the_manifest(lit_ft, requests):
    lit_ft("download", "--model.backbone", NET, "--folder", "F")
    assert list(json.loads(Path("F/manifest.json").read_text())["files"]) == [WEIGHTS]
    lit_ft("download", "--model.weights", "null", *DATA, "--folder", "F")
    assert len(json.loads(Path("F/manifest.json").read_text())["files"]) == 5


def test_weights_with_a_wrong_checksum_are_refused_and_not_kept(lit_ft, requests, served):
    torch.save({}, served / "net.pth")
    code, _, err = lit_ft(*ALL)
    assert code == 2
    assert len(err) == 1
    assert f"--model.weights: could not fetch {NET} V1 (invalid hash value" in err[0]
    assert "/net.pth at F/weights/net.pth, name a local file" in err[0]
    assert [path for path in Path("F").rglob("*") if path.is_file()] == []


def test_half_a_file_of_unknown_checksum_is_refused_and_not_kept(lit_ft, requests, served, monkeypatch):
    url = torchvision._published(NET, None).url
    (served / "net.pth").write_bytes((served / "net.pth").read_bytes()[:-5000])
    monkeypatch.setattr(torchvision, "_published", lambda *_: Published("net", "net.pth", url))
    code, _, err = lit_ft(*ALL)
    assert code == 2
    assert len(err) == 1
    assert "could not fetch net (what came is damaged)" in err[0]
    assert [path for path in Path("F").rglob("*") if path.is_file()] == []


def test_data_with_a_wrong_checksum_is_refused_and_not_kept(lit_ft, requests, served):
    (served / MNIST_FILES[2][1:]).write_bytes(gzip.compress(idx_bytes(noise(3))))
    code, _, err = lit_ft("download", *DATA, "--folder", "F")
    assert code == 2
    assert len(err) == 1
    assert err[0].startswith("lit-ft: --data.download: failed (")
    assert err[0].endswith("put them in F/MNIST/raw")
    assert [path for path in Path("F").rglob("*") if path.is_file()] == []


def test_data_goes_where_the_config_says(lit_ft, requests):
    assert lit_ft("download", *DATA, "--data.root", "mine", "--folder", "F")[0] == 0
    place = Path("mine") / IMAGES
    assert place.is_file()
    assert json.loads(Path("F/manifest.json").read_text())["files"][str(place.absolute())]["sha256"] == sha256(place)


def test_nothing_to_fetch_is_said(lit_ft, monkeypatch):
    monkeypatch.setattr("lit_ft.backbones.weights.pretrained.download_url_to_file", None)
    code, out, _ = lit_ft("download", "--config", CONFIGS / "quickstart.yaml")
    assert code == 0
    assert "Weights: nothing to fetch for --model.backbone mnist_cnn --model.weights MNIST" in out
    assert "Data: nothing to fetch for DigitsDataModule" in out
    code, out, _ = lit_ft("download", "--config", CONFIGS / "vgg16_frozen_mlp.yaml", "--model.weights", "x.pth")
    assert code == 0
    assert "Weights: nothing to fetch for --model.backbone vgg16 --model.weights x.pth; copy this file by hand" in out
    assert "Data: nothing to fetch for ImageFolderDataModule; photos" in out


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_recipe_downloads_without_a_model(lit_ft, recipe, monkeypatch):
    def fetched(self, folder):
        folder.mkdir(parents=True)
        (folder / self.file).touch()

    def put(self):
        for path in self.files():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    monkeypatch.setattr(Published, "fetch", fetched)
    monkeypatch.setattr(MNISTToEMNISTDataModule, "prepare_data", put)
    monkeypatch.setattr(CIFAR10DataModule, "prepare_data", put)
    monkeypatch.setattr("lit_ft.model.image_model.build_backbone", None)
    code, out, err = lit_ft("download", "--config", CONFIGS / f"{recipe}.yaml")
    assert (code, err) == (0, [])
    assert out.endswith(f"Run: LIT_FT_DATA=data lit-ft finetune --config {CONFIGS / recipe}.yaml --offline\n")
    names = " ".join(json.loads(Path("data/manifest.json").read_text())["files"]) if "Manifest" in out else ""
    network = next((net for net in ("resnet50", "vgg16") if recipe.startswith(net)), None)
    assert network is None or f"weights/{network}-" in names
    assert ("cifar-10-batches-py/test_batch" in names) == ("cifar10" in recipe)
    assert ("emnist-byclass-test-images-idx3-ubyte" in names) == ("emnist" in recipe)


def test_download_is_refused_offline(lit_ft):
    code, _, err = lit_ft("download", "--offline")
    assert code == 2
    assert err == ["lit-ft: --offline: lit-ft download fetches files; run it without --offline and LIT_FT_OFFLINE"]


@pytest.mark.parametrize("way", ["option", "variable"])
def test_offline_lists_all_that_is_missing_before_the_model_is_built(lit_ft, requests, monkeypatch, tmp_path, way):
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path / "F"))
    monkeypatch.setattr("lit_ft.model.image_model.build_backbone", None)
    kept = tmp_path / "F" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    kept.parent.mkdir(parents=True)
    kept.touch()
    monkeypatch.setenv("LIT_FT_OFFLINE", "01"[way == "variable"])
    args = (*DATA, "--model.backbone", NET, "--data.download", "true")
    code, _, err = lit_ft(*["--offline"][: way == "option"], "finetune", *args, "--ckpt_path", "last.ckpt")
    assert (code, len(err), requests) == (2, 1, [])
    url = torchvision._published(NET, None).url
    raw = f"{tmp_path}/F/MNIST/raw"
    assert err[0] == (
        f"lit-ft: --offline: 4 files are missing: {tmp_path}/F/{WEIGHTS} (from {url}), "
        f"{raw}/train-images-idx3-ubyte, {raw}/t10k-images-idx3-ubyte, {raw}/t10k-labels-idx1-ubyte; "
        f"to fetch them where there is a network: lit-ft download {' '.join(map(str, args))} --folder {tmp_path}/F"
    )


def test_missing_files_of_each_data_module(tmp_path, letters_root, cifar_root):
    letters = MNISTToEMNISTDataModule(str(letters_root), split="letters")
    assert letters.missing_files() == []
    gone = letters_root / "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte"
    gone.with_name(gone.name + ".gz").unlink()
    assert letters.missing_files() == [gone]
    cifar = CIFAR10DataModule(str(cifar_root))
    assert cifar.missing_files() == []
    (cifar_root / "cifar-10-batches-py/data_batch_2.gz").unlink()
    assert cifar.missing_files() == [cifar_root / "cifar-10-batches-py/data_batch_2"]
    assert ImageFolderDataModule(str(tmp_path)).missing_files() == []


def test_prepare_data_fetches_nothing_offline(monkeypatch, requests):
    monkeypatch.setenv("LIT_FT_OFFLINE", "1")
    data = MNISTToEMNISTDataModule("F", domain="source", download=True)
    with pytest.raises(ValueError, match=r"^offline: files are missing in F/MNIST/raw; fetch them elsewhere"):
        data.prepare_data()
    assert requests == []


def test_damaged_weights_are_refused(lit_ft, requests, monkeypatch):
    lit_ft(*ALL)
    monkeypatch.setenv("LIT_FT_DATA", "F")
    torch.save({"other": torch.zeros(1)}, Path("F") / WEIGHTS)
    code, _, err = lit_ft("finetune", *ALL[1:-2], "--offline")
    assert (code, len(err)) == (2, 1)
    assert (
        "--model.weights: F/weights/net.pth is damaged: its checksum is not the one in F/manifest.json, nor" in err[0]
    )
    Path("F/manifest.json").unlink()  # as where the file was put there by hand
    code, _, err = lit_ft("finetune", *ALL[1:-2], "--offline")
    assert (code, len(err)) == (2, 1)
    assert "its checksum is not the published one; remove it, or to take it as it is, give --model.weights F/" in err[0]


@pytest.mark.parametrize(
    "content",
    [
        '{"files": ',
        '{"files": {"a": 1}}',
        '{"files": {"a": {}}}',
        '{"files": {"a": {"bytes": "1", "sha256": ""}}}',
        "[" * 10**5,
    ],
)
def test_damaged_manifest_is_one_line(lit_ft, requests, content):
    Path("F").mkdir()
    Path("F/manifest.json").write_text(content)
    code, _, err = lit_ft(*ALL)
    assert (code, len(err)) == (2, 1)
    assert "F/manifest.json: damaged, not a manifest of lit-ft download" in err[0]


HOOKED = """
import os, sys

def hook(event, args):
    # TensorBoard asks for the name of the machine, and urllib3 whether it knows IPv6, by a socket that goes nowhere.
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        sys.stderr.write(f"SOCKET {event} {args}\\n")
        sys.stderr.flush()
        os._exit(99)

sys.addaudithook(hook)
"""


@pytest.mark.long
def test_offline_run_opens_no_socket(mnist_root):
    place = mnist_root / "weights" / source_of(NET).tags(NET)["DEFAULT"].file
    place.parent.mkdir()
    torch.save(torchvision.build(NET, InputSpec()).module.state_dict(), place)
    record(mnist_root, place)
    code = f"{HOOKED}\nfrom lit_ft.cli import main\nsys.exit(main())"
    args = [
        "finetune",
        "--model.backbone",
        NET,
        "--model.input.size",
        64,
        *DATA,
        "--data.download",
        "true",
        "--offline",
    ]
    args += ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1]
    args += ["--trainer.limit_test_batches", 1, "--unfreeze.strategy", "full", "--trainer.accelerator", "cpu"]
    env = {**os.environ, "LIT_FT_DATA": str(mnist_root), "PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "test/acc" in done.stdout
    control = f"{HOOKED}\nimport socket\nsocket.getaddrinfo('localhost', 80)"
    assert subprocess.run([sys.executable, "-c", control], capture_output=True).returncode == 99
