"""One preprocessing path: the same picture gives the same pixels, however it is handed over."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from bwm_pipelines.images import as_pil_images, open_image, square, to_pixels

ORIENTATION, TURN_RIGHT = 0x0112, 6


def assert_same(left: Image.Image, right: Image.Image) -> None:
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture
def turned(image) -> Image.Image:
    """`image` as a camera held sideways stores it: turned, with a note to turn it back."""
    stored = image.rotate(90, expand=True)
    stored.getexif()[ORIENTATION] = TURN_RIGHT
    return stored


def test_exif_orientation_is_applied_to_pil_images(image, turned):
    assert_same(as_pil_images(turned)[0], image)


def test_exif_orientation_is_applied_to_files(image, turned, tmp_path):
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    assert_same(open_image(tmp_path / "turned.png"), image)


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    rgb = as_pil_images(image)[0]
    assert (rgb.mode, rgb.getpixel((0, 0)), rgb.getpixel((1, 1))) == ("RGB", (10, 20, 30), (255, 255, 255))


def test_square_is_the_centre():
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    assert_same(square(image, 5), Image.new("RGB", (5, 5), "blue"))


def test_square_of_the_right_size_is_left_as_it_is(image):
    image = image.crop((0, 0, 16, 16))
    assert_same(square(image, 16), image)


def test_every_kind_of_input_gives_the_same_image(image):
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1) / 255
    kinds = [image, array, array / 255, tensor, tensor[None], [image], [array], np.stack([array])]
    for given in kinds:
        (result,) = as_pil_images(given)
        assert_same(result, image)


def test_batches_keep_their_order(image):
    mirrored = ImageOps.mirror(image)
    batch = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in (image, mirrored)])
    for given in ([image, mirrored], batch, list(batch)):
        first, second = as_pil_images(given)
        assert_same(first, image)
        assert_same(second, mirrored)


def test_pixels_lie_in_minus_one_to_one():
    pixels = to_pixels([Image.new("RGB", (8, 8), (0, 255, 51))], 4)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 4, 4), torch.float32)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("scene.png", "got str; open files with PIL.Image.open"),
        (None, "got NoneType"),
        ([], "is an empty list"),
        (np.zeros((8, 8), np.uint8), r"must have the shape \[H, W, 3\], or a batch of it, got \[8, 8\]"),
        (torch.zeros(8, 8, 3), r"must have the shape \[3, H, W\], or a batch of it, got \[8, 8, 3\]"),
        (torch.zeros(4), r"must have the shape \[3, H, W\]"),
        (np.zeros((0, 8, 3), np.uint8), "must have the shape"),
        (np.full((8, 8, 3), 200.0), "must hold floats in 0-1 .* got float64 in 200 to 200"),
        (torch.full((3, 8, 8), torch.nan), "must hold floats in 0-1"),
        (Image.new("RGB", (0, 5)), "has the size 0x5"),
        (Image.new("I;16", (5, 5)), "more than 8 bits a channel"),
    ],
)
def test_what_is_no_image_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=f"^`before` .*{message}"):
        as_pil_images(given, "before")


def test_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"`image` .*nothing\.png' does not exist; check the path\.$"):
        open_image(tmp_path / "nothing.png")


def test_file_that_is_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"`image` .* cannot be read \(Is a directory\)"):
        open_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_file_that_is_no_image(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"`image` .*broken\.png' cannot be read \(damaged or no image\)"):
        open_image(tmp_path / "broken.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_file_that_was_cut_off(image, tmp_path, suffix):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    image.resize((200, 200)).save(whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match="`image` .* cannot be read"):
        open_image(cut)


@pytest.mark.parametrize("excess", [1.5, 3.0])
def test_image_bomb(tmp_path, monkeypatch, excess):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(100 * 100 / excess))
    with pytest.raises(ValueError, match=r"bomb\.png' has more than [\d,]+ pixels; make it smaller first\."):
        open_image(tmp_path / "bomb.png")
