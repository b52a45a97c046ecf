"""Writes data sets of torchvision in their own formats, small ones."""

import numpy as np
from image_files import noise, save_photo, write_idx
from PIL import Image
from scipy.io import savemat

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def write_fashion_mnist(root, train=50, test=10):
    """Images whose first pixel is their number, and their class the last digit of it."""
    for part, count in (("train", train), ("t10k", test)):
        images = noise(count)
        images[:, 0, 0] = np.arange(count)
        write_idx(root / "FashionMNIST/raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "FashionMNIST/raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return root


def write_flowers(root):
    """Flowers102 with photos of three classes, 12 to train, 3 for validation and 6 for test."""
    folder = root / "flowers-102"
    ids = {"trnid": range(1, 13), "valid": range(13, 16), "tstid": range(16, 22)}
    for number in range(1, 22):
        size = (30 + number, 40)
        save_photo(folder / "jpg" / f"image_{number:05d}.jpg", COLORS[number % 3], size, quality=95)
    savemat(folder / "setid.mat", {name: np.array([*some]) for name, some in ids.items()})
    savemat(folder / "imagelabels.mat", {"labels": np.array([1 + number % 3 for number in range(1, 22)])})
    return root


def write_svhn(root):
    for part, count in (("train", 15), ("test", 6)):
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": 1 + np.arange(count)[:, None] % 3})
    return root


def write_traffic_signs(root):
    """GTSRB: folders of numbers to train, and a table for test."""
    folder = root / "gtsrb"
    for number in range(15):
        save_photo(folder / f"GTSRB/Training/{number % 3:05d}/{number:05d}.ppm", COLORS[number % 3], (20 + number, 20))
    lines = ["Filename;Width;Height;ClassId"]
    for number in range(3):
        save_photo(folder / f"GTSRB/Final_Test/Images/{number:05d}.ppm", COLORS[number])
        lines.append(f"{number:05d}.ppm;40;30;{number}")
    (folder / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return root


def write_caltech(root):
    for name, color in zip(("ant", "bee"), COLORS, strict=False):
        for number in range(1, 7):
            save_photo(root / f"caltech101/101_ObjectCategories/{name}/image_{number:04d}.jpg", color)
    (root / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    (root / "caltech101/Annotations").mkdir()
    return root


def write_pets(root):
    """Oxford's pets, which have no split called train."""
    folder = root / "oxford-iiit-pet"
    for split, numbers in (("trainval", range(1, 9)), ("test", range(9, 13))):
        lines = []
        for number in numbers:
            name = ("Abyssinian", "beagle")[number % 2]
            Image.new("RGB", (40, 30), COLORS[number % 2]).save(_made(folder / f"images/{name}_{number}.jpg"))
            lines.append(f"{name}_{number} {1 + number % 2} {1 + number % 2} 1")
        _made(folder / f"annotations/{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_textures(root):
    """DTD, whose validation images lack the first of three classes."""
    folder = root / "dtd/dtd"
    for split, names in (("train", "abc" * 3), ("val", "bc"), ("test", "abc")):
        lines = []
        for number, name in enumerate(names):
            save_photo(folder / f"images/{name}/{name}_{split}{number}.jpg", COLORS["abc".index(name)])
            lines.append(f"{name}/{name}_{split}{number}.jpg")
        _made(folder / f"labels/{split}1.txt").write_text("\n".join(lines) + "\n")
    return root


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
