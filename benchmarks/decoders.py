"""What the first epoch on photos takes, step by step, and JPEG decoders at the scale that a training crop needs.

    LIT_FT_DATA=FOLDER python benchmarks/decoders.py [decoders] [crops] [steps] [epochs]

All is CPU time of one process with one thread. The photos are those of flowers5 as they are, decoded at full size, and
at 4000 x 3000 with grain (2.4 MB each), decoded at an eighth. Decoders that are not installed are left out:

    pip install simplejpeg opencv-python-headless pyvips[binary] imagecodecs kornia-rs ajpegli nvidia-nvimgcodec-cu12
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.table import spread
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from lit_ft import FineTuneModule, GradualUnfreezing, ImageFolderDataModule, Trainer
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images import verification
from lit_ft.data.images.decode import decode
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.loading.photo_source import stack_images, transform_seeded

ROUNDS = 5
SPEC = InputSpec()
SMALL, LARGE = "flowers5", "4000 x 3000"
SHRINK = {SMALL: 1, LARGE: 8}  # of a crop of 224 pixels
NETWORKS = {"SqueezeNet 1.1": "squeezenet1_1", "EfficientNet-Lite0": "timm/tf_efficientnet_lite0"}
Decode = Callable[[bytes, int], Any]
"""A JPEG's content and a factor to pixels ``(H, W, 3)``; decoders without scales decode it at full size."""


@cache
def photos(name: str, folder: Path) -> Path:
    """Photos of a size, for training and for validation in five classes."""
    counts = {"train": 40, "val": 10} if name == SMALL else {"train": 8, "val": 2}
    for split, count in counts.items():
        for kind in sorted(Path(os.environ["LIT_FT_DATA"], "flowers5", split).iterdir()):
            for path in sorted(kind.glob("*.jpg"))[:count]:
                place = folder / name / split / kind.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if name == SMALL:
                    place.write_bytes(path.read_bytes())
                else:
                    enlarge(Image.open(path).convert("RGB")).save(place, quality=90, subsampling="4:2:0")
    return folder / name


def enlarge(photo: Image.Image) -> Image.Image:
    """A photo of 12 megapixels, with the grain of a camera, without which it would be smooth and its file small."""
    grain = np.random.default_rng(0).standard_normal((3000, 4000, 1), dtype=np.float32) * 3.5
    pixels = np.asarray(photo.resize((4000, 3000), Image.Resampling.BICUBIC)) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def by_pillow(content: bytes, shrink: int) -> Image.Image:
    """As lit_ft decodes; Pillow keeps its pixels, and gives no array yet."""
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
    return image


def by_simplejpeg(content: bytes, shrink: int, **options: bool) -> Any:
    """Turbojpeg, at the smallest of its 16 scales with enough pixels."""
    package = import_module("simplejpeg")
    height, width, *_ = package.decode_jpeg_header(content)
    least = {"min_height": height // shrink, "min_width": width // shrink, "min_factor": 1}
    return package.decode_jpeg(content, "RGB", **least, **options)


def by_opencv(content: bytes, shrink: int) -> Any:
    """OpenCV."""
    cv2 = import_module("cv2")
    flag = cv2.IMREAD_COLOR if shrink == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{shrink}")
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@cache
def nvimgcodec() -> tuple[Any, Any]:
    """NvImageCodec, and its decoder that needs no GPU; it has regions, but no scales."""
    package = import_module("nvidia.nvimgcodec")
    cpu = {"device_id": package.NVIMGCODEC_DEVICE_CPU_ONLY, "backends": [package.Backend(package.CPU_ONLY)]}
    return package, package.Decoder(max_num_cpu_threads=1, **cpu)


def by_nvimgcodec(content: bytes, _: int) -> Any:
    """The same."""
    package, decoder = nvimgcodec()
    return np.asarray(decoder.decode(package.CodeStream(content)).cpu())


DECODERS: dict[str, Decode] = {
    "Pillow, draft": by_pillow,
    "simplejpeg": by_simplejpeg,
    "simplejpeg, fast DCT and upsampling": partial(by_simplejpeg, fastdct=True, fastupsample=True),
    "OpenCV": by_opencv,
    "pyvips": lambda content, shrink: (
        import_module("pyvips").Image.jpegload_buffer(content, shrink=shrink, access="sequential").numpy()
    ),
    "torchvision": lambda content, _: decode_jpeg(torch.frombuffer(content, dtype=torch.uint8)).permute(1, 2, 0),
    "imagecodecs": lambda content, _: import_module("imagecodecs").jpeg8_decode(content),
    "kornia-rs, libjpeg-turbo": lambda content, _: import_module("kornia_rs.io").decode_image_jpegturbo(content, "rgb"),
    "kornia-rs, zune-jpeg": lambda content, _: import_module("kornia_rs.io").decode_image_jpeg(content),
    "ajpegli": lambda content, _: import_module("ajpegli").imdecode(content),
    "nvImageCodec, CPU": by_nvimgcodec,
}


def found_decoders(content: bytes) -> dict[str, Decode]:
    """The decoders that are installed and work."""
    usable = {}
    for name, one in DECODERS.items():
        try:
            one(content, 1)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: left out ({str(error).partition(chr(10))[0]})")
        else:
            usable[name] = one
    return usable


def take_turns(turns: Mapping[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """CPU milliseconds a photo of each, in turns; each returns how many photos it took. One round more warms up."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            start = time.process_time()
            count = turn()
            if number:
                taken[name].append(1e3 * (time.process_time() - start) / count)
    return taken


def print_ratios(title: str, taken: Mapping[str, list[float]], notes: Mapping[str, str]) -> None:
    """Prints rows of a table, with how many times as fast as the first one each is."""
    print(f"\n| {title} | ms of CPU time a photo | times as fast | pixels |\n|---|---|---|---|")
    first = next(iter(taken.values()))
    for name, values in taken.items():
        ratios = [a / b for a, b in zip(first, values, strict=True)]
        print(f"| {name} | {spread(values, '.2f')} | {spread(ratios, '.2f')} | {notes[name]} |", flush=True)


def compare_pixels(pixels: Any, expected: Any) -> str:
    """How far pixels are from others."""
    found = np.asarray(pixels)
    if found.shape != expected.shape:
        return f"{found.shape[1]} x {found.shape[0]}"
    difference = np.abs(found.astype(int) - expected.astype(int))
    return f"differ by up to {difference.max()}" if difference.any() else "equal"


def decoders(folder: Path) -> None:
    """Decoders, from a file's content to pixels."""
    for name, shrink in SHRINK.items():
        paths = sorted(photos(name, folder).rglob("*.jpg"))
        contents = [path.read_bytes() for path in paths[:: 5 if shrink == 1 else 10]]
        expected = np.asarray(by_pillow(contents[0], shrink))

        def turn(one: Decode, contents: list[bytes] = contents, shrink: int = shrink) -> int:
            for content in contents:
                one(content, shrink)
            return len(contents)

        usable = found_decoders(contents[0])
        notes = {key: compare_pixels(one(contents[0], shrink), expected) for key, one in usable.items()}
        print_ratios(f"{name}, 1/{shrink}", take_turns({key: partial(turn, one) for key, one in usable.items()}), notes)


def crops(folder: Path) -> None:
    """Training images of small photos by lit_ft, and by decoders that give arrays at once."""
    paths = [str(path) for path in sorted(photos(SMALL, folder).rglob("*.jpg"))]
    transform = train_transform(SPEC, "trivial")

    def turn(read: Callable[[str], str | Tensor]) -> list[Tensor]:
        return [transform_seeded(transform, read(path), seed, path) for seed, path in enumerate(paths)]

    def by_array(one: Decode, path: str) -> Tensor:
        return torch.from_numpy(one(Path(path).read_bytes(), 1)).permute(2, 0, 1)

    makes: dict[str, Callable[[str], str | Tensor]] = {"lit_ft": str}
    found = found_decoders(Path(paths[0]).read_bytes())
    makes |= {name: partial(by_array, found[name]) for name in ("simplejpeg", "OpenCV", "imagecodecs") if name in found}
    made = {name: turn(make) for name, make in makes.items()}
    equal = {name: f"{sum(map(torch.equal, images, made['lit_ft']))} equal" for name, images in made.items()}
    taken = take_turns({name: lambda make=make: len(turn(make)) for name, make in makes.items()})
    print_ratios("random crops and TrivialAugment", taken, equal)


def steps(folder: Path) -> None:
    """The steps of the first epoch, each alone."""
    print("\n| step | " + " | ".join(SHRINK) + " |\n|---" + "|---" * len(SHRINK) + "|")
    columns = [take_turns(dict(steps_of(name, folder)), 3) for name in SHRINK]
    for step in columns[0]:
        print(f"| {step} | " + " | ".join(spread(column[step], ".2f") for column in columns) + " |")


def steps_of(name: str, folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """What is done to each photo, once."""
    paths = sorted(photos(name, folder).rglob("*.jpg"))[::5]
    transform, evaluate = train_transform(SPEC, "trivial"), SPEC.geometry()
    crop, flip, trivial = transform.transforms
    contents = [path.read_bytes() for path in paths]
    images = [transform_seeded(v2.Compose([crop, flip]), str(path), 0) for path in paths]
    data = ImageFolderDataModule(str(photos(name, folder)), num_workers=1, augment="trivial", spec=SPEC)
    loader = data.train_dataloader()

    def each(do: Callable[[Any], Any], things: list[Any] = paths) -> int:
        for thing in things:
            do(thing)
        return len(things)

    yield "verification", partial(each, verification.problem)
    yield "verification by decoding at full size", partial(each, decode)
    yield "read", partial(each, Path.read_bytes)
    yield "decode at the crop's scale", partial(each, lambda one: by_pillow(one, SHRINK[name]), contents)
    yield "read, decode, crop, resize", partial(each, lambda path: transform_seeded(v2.Compose([crop]), str(path), 0))
    yield "TrivialAugment", partial(each, trivial, images)
    yield "batch", lambda: len(stack_images(images))
    yield "receive from a worker", lambda: sum(len(batch) for batch, _ in loader)
    yield "read, decode, resize for validation", partial(each, lambda path: evaluate(decode(path)))


def epochs(folder: Path) -> None:
    """The first epoch of a head on a frozen network, by how photos are verified."""
    problem = verification.problem

    def at_full_size(path: Path, reader: Any = None) -> str:
        found = verification.problem_or_pixels(path, reader)
        return found if isinstance(found, str) else ""

    for name in SHRINK:
        for title, network in NETWORKS.items():
            ways = {"at full size": at_full_size, "as lit_ft does": problem}
            turns = {way: partial(first_epoch, network, photos(name, folder), look) for way, look in ways.items()}
            print_ratios(f"{name}, {title}: verified", take_turns(turns, 3), dict.fromkeys(turns, ""))
    verification.problem = problem


def first_epoch(network: str, root: Path, look: Any) -> int:
    """Verification, training and validation; the number of photos."""
    verification.problem = look
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIT_FT_CACHE"] = folder  # as on its first day
        data = ImageFolderDataModule(str(root), num_workers=0, augment="trivial")
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", callbacks=[GradualUnfreezing("linear_probe")], default_root_dir=folder,
            logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(FineTuneModule(network, weights=None), data)
        return sum(data.sizes().values())


TABLES: dict[str, Callable[[Path], None]] = {"decoders": decoders, "crops": crops, "steps": steps, "epochs": epochs}


def main() -> None:
    """Prints the tables that are named."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or TABLES:
            TABLES[name](Path(folder))


if __name__ == "__main__":
    main()
