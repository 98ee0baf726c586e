import numpy as np
import pytest
from PIL import Image

from samparser.data import DataError, read_image
from samparser.data.readers.images import image_size
from tests.data.files import picture, save


def test_rgb_is_read_as_it_is(tmp_path):
    pixels = picture()
    assert np.array_equal(read_image(save(pixels, tmp_path / "a.png")), pixels)


def test_grey_one_bit_palette_and_alpha_become_rgb(tmp_path):
    grey = picture()[:, :, 0]
    rgba = np.dstack([picture(), grey])
    for name, stored, expected in (
        ("grey", Image.fromarray(grey), np.dstack([grey] * 3)),
        ("bits", Image.fromarray(grey > 99), np.dstack([(grey > 99) * np.uint8(255)] * 3)),
        ("rgba", Image.fromarray(rgba), rgba[:, :, :3]),
        ("grey_alpha", Image.fromarray(grey).convert("LA"), np.dstack([grey] * 3)),
    ):
        path = tmp_path / f"{name}.png"
        stored.save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        assert np.array_equal(read, expected), name


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path):
    indices = picture()[:, :, 0] % 3
    colours = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 255]], dtype=np.uint8)
    stored = Image.fromarray(indices).convert("P")
    stored.putpalette(colours.ravel().tolist())
    stored.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), colours[indices])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_stretched_to_eight_image_by_image(tmp_path, suffix):
    # Twelve bits in a sixteen-bit file would be nearly black if divided by 257.
    values = np.linspace(100, 4095, 24 * 32).reshape(24, 32).astype(np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    read = read_image(path)
    assert read.shape == (24, 32, 3)
    assert (read.min(), read.max()) == (0, 255)
    assert (np.diff(read[:, :, 0].ravel().astype(int)) >= 0).all()


def test_an_even_sixteen_bit_image_does_not_divide_by_zero(tmp_path):
    path = save(np.full((4, 4), 700, dtype=np.uint16), tmp_path / "even.png")
    assert (read_image(path) == 0).all()


def test_the_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    Image.fromarray(pixels).save(path, exif=exif)
    read = read_image(path)
    assert read.shape == (32, 16, 3)
    assert image_size(path) == (32, 16)
    assert (read[:8, 8:] == 255).all()
    assert read.sum() == pixels.sum()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        read_image(tmp_path / "nowhere.png")


def test_something_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"text\.png is not an image that Pillow can open"):
        read_image(path)


def test_a_truncated_image_is_named(tmp_path):
    path = save(picture(200, 200), tmp_path / "half.png")
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(DataError, match=r"half\.png does not open.*damaged or incomplete"):
        read_image(path)


def test_a_file_of_several_pages_is_refused(tmp_path):
    pages = [Image.fromarray(picture(seed=n)) for n in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"stack\.tif holds 3 pages"):
        read_image(tmp_path / "stack.tif")


def test_values_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "nan.tif"
    Image.fromarray(np.array([[0, np.nan], [1, 2]], dtype=np.float32)).save(path)
    with pytest.raises(DataError, match="not finite"):
        read_image(path)
