import numpy as np
import pytest
import torch
from image_files import save_photo, scene
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import InterpolationMode, v2

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.crops import make_crops
from lit_ft.data.images.decode import ORIENTATION, decode
from lit_ft.data.images.transforms import train_transform

MODES = {0: InterpolationMode.NEAREST, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}
SEEDS = range(6)


def crop_of(size, **options):
    return v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True, **options)


def both(path, crop, seed):
    """What a crop gives by the short way, and of the whole image."""
    short = next(make_crops(path, crop, [seed]))
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    whole = crop(decode(path))
    assert after.equal(torch.get_rng_state())  # what comes next is as random in one as in the other
    return short, whole


@pytest.mark.parametrize(("name", "interpolation"), [("x.jpg", 2), ("x.jpg", 3), ("x.jpg", 0), ("x.png", 2)])
def test_crop_has_the_very_pixels_where_it_is_not_shrunk(tmp_path, name, interpolation):
    Image.fromarray(scene(375, 500)).save(tmp_path / name)
    # The nearest pixel is one of the whole image, however large that is.
    crop = crop_of(224 if interpolation else 32, interpolation=MODES[interpolation])
    for seed in range(4):
        short, whole = both(tmp_path / name, crop, seed)
        assert short.shape == (3, *crop.size)
        assert short.equal(whole)


@pytest.mark.parametrize("size", [(600, 800), (599, 801)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("interpolation", [2, 3])
def test_crop_of_a_large_jpeg_is_close_to_the_exact_one(tmp_path, size, orientation, interpolation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(scene(*size)).save(tmp_path / "x.jpg", quality=92, exif=exif)
    crop = crop_of(64, interpolation=MODES[interpolation])
    pairs = [both(tmp_path / "x.jpg", crop, seed) for seed in range(4)]
    wrong = [float((short.float() - whole.float()).abs().mean()) for short, whole in pairs]
    assert max(wrong) < 2.0  # levels of 255; a shift by one pixel of the result would be 9 or more
    odd_and_turned = size == (599, 801) and orientation > 1
    assert all(short.equal(whole) for short, whole in pairs) == odd_and_turned


def test_large_jpeg_is_decoded_smaller_but_never_below_the_result(tmp_path, monkeypatch):
    Image.fromarray(scene(600, 800)).save(tmp_path / "x.jpg")
    drafts = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: drafts.append(args[2]) or draft(*args))
    for size in (600, 301, 300, 151, 150, 75, 10):
        crop = v2.RandomResizedCrop(size, scale=(1, 1), ratio=(4 / 3, 4 / 3))
        next(make_crops(tmp_path / "x.jpg", crop, [0]))
    assert drafts == [(400, 300), (400, 300), (200, 150), (100, 75), (100, 75)]  # from 300 on


@pytest.mark.parametrize("shape", [(40, 50), (1, 1), (1, 300), (300, 1)])
def test_crop_of_pixels_is_the_crop_itself(shape):
    image = torch.from_numpy(scene(*shape)).permute(2, 0, 1)
    transform = train_transform(InputSpec(16, 18), "basic")
    crop = transform.transforms[0]
    for seed in range(5):
        torch.manual_seed(seed)
        expected = crop(image)
        assert next(make_crops(image, crop, [seed])).equal(expected)


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_of_few_pixels_are_resized_like_any_other(tmp_path, size, suffix):
    save_photo(tmp_path / f"x.{suffix}", (200, 30, 30), size)
    short, whole = both(tmp_path / f"x.{suffix}", crop_of(16), 0)
    assert short.equal(whole)
    evaluated = InputSpec(16, 18).geometry()(decode(tmp_path / f"x.{suffix}"))
    for image in (short, evaluated):
        assert image.shape == (3, 16, 16)
        assert (image[:, 8, 8].float() - torch.tensor([200.0, 30, 30])).abs().max() < 6


@pytest.fixture
def drafts(monkeypatch):
    """The sizes at which JPEGs are decoded, of those that are decoded smaller."""
    sizes, draft = [], JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: sizes.append(args[2]) or draft(*args))
    return sizes


def shrinks_alone(path, crop, drafts, width):
    """How much smaller a JPEG is decoded for the crop of each seed alone, and that crop."""
    alone, shrinks = [], []
    for seed in SEEDS:
        drafts.clear()
        alone.append(next(make_crops(path, crop, [seed])))
        shrinks.append(width // drafts[0][0] if drafts else 1)
    drafts.clear()
    return alone, shrinks


def by_hand(path, crop, seed, shrink):
    """What Pillow makes of a crop of a JPEG that is decoded so much smaller."""
    with Image.open(path) as image:
        torch.manual_seed(seed)
        drawn = crop.make_params([torch.empty(3, image.height, image.width)])
        image.draft(None, (image.width // shrink, image.height // shrink))
        top, left = drawn["top"], drawn["left"]
        box = [edge / shrink for edge in (left, top, left + drawn["width"], top + drawn["height"])]
        return torch.from_numpy(np.array(image.resize(crop.size, Image.Resampling.BILINEAR, box))).permute(2, 0, 1)


def test_crops_of_one_decode_are_those_of_the_scale_that_the_finest_needs(tmp_path, drafts):
    path, crop = tmp_path / "x.jpg", crop_of(64)
    Image.fromarray(scene(600, 800)).save(path, quality=92)
    alone, shrinks = shrinks_alone(path, crop, drafts, 800)
    assert set(shrinks) == {4, 8}
    together = list(make_crops(path, crop, SEEDS))
    assert drafts == [(200, 150)]  # once, at a quarter
    whole = decode(path)
    for seed, one, own, shrink in zip(SEEDS, together, alone, shrinks, strict=True):
        assert one.equal(by_hand(path, crop, seed, 4))
        assert one.equal(own) == (shrink == 4)
        torch.manual_seed(seed)
        exact = crop(whole).float()
        assert shrink == 4 or (one - exact).abs().mean() < (own - exact).abs().mean()  # the finer, the closer


def test_crops_of_one_scale_are_those_that_each_has_alone(tmp_path, drafts):
    path, crop = tmp_path / "x.jpg", crop_of(50)
    Image.fromarray(scene(600, 800)).save(path)
    alone, shrinks = shrinks_alone(path, crop, drafts, 800)
    assert set(shrinks) == {8}
    assert torch.stack(alone).equal(torch.stack(list(make_crops(path, crop, SEEDS))))


@pytest.mark.parametrize("orientation", [1, 6])
def test_crops_are_exact_where_one_of_them_needs_the_full_size(tmp_path, drafts, orientation):
    path, crop = tmp_path / "x.jpg", crop_of(224)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(scene(600, 800)).save(path, exif=exif)
    assert set(shrinks_alone(path, crop, drafts, 800)[1]) == {1, 2}
    whole = decode(path)
    for seed, one in zip(SEEDS, make_crops(path, crop, SEEDS), strict=True):
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        assert one.equal(crop(whole))
        assert after.equal(torch.get_rng_state())  # a view goes on with its own random numbers
    assert not drafts


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif", "x.jpg"])
def test_file_is_decoded_once_for_all_crops(tmp_path, monkeypatch, name):
    Image.fromarray(scene(60, 80)).save(tmp_path / name, **({"lossless": True} if name == "x.webp" else {}))
    whole, opens, opened = decode(tmp_path / name), [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opens.append(args[0]) or opened(*args, **options))
    crop = crop_of(16 if name != "x.jpg" else 50)
    together = list(make_crops(tmp_path / name, crop, SEEDS))
    assert opens == [tmp_path / name]
    for seed, one in zip(SEEDS, together, strict=True):
        torch.manual_seed(seed)
        assert one.equal(crop(whole))
