import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from samparser.data import LAYOUTS, DataError, DataSettings, open_dataset, read_image
from samparser.data.intensity import Intensity
from samparser.data.readers import images
from samparser.data.readers.images import image_size
from tests.data.files import picture, polygon, rectangle, save, write_coco


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


def png16(pixels: np.ndarray, path) -> None:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    height, width, channels = pixels.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    )


def tiff16(pixels: np.ndarray, path, order: str = "<", planar: bool = False) -> None:
    """An uncompressed TIFF of 16 bits a channel, in RGB."""
    height, width, channels = pixels.shape
    stored = np.moveaxis(pixels, -1, 0) if planar else pixels
    data = np.ascontiguousarray(stored).astype(f"{order}u2").tobytes()
    size = len(data) // (channels if planar else 1)
    strips = channels if planar else 1
    tags = [(256, width), (257, height), (259, 1), (262, 2), (277, channels), (278, height), (284, 2 if planar else 1)]
    count = len(tags) + 3
    extra = 8 + 2 + 12 * count + 4
    start = extra + 6 + 8 * strips
    entries = [(tag, 3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in tags]
    entries.append((258, 3, 3, struct.pack(f"{order}I", extra)))
    offsets = struct.pack(f"{order}{strips}I", *(start + n * size for n in range(strips)))
    sizes = struct.pack(f"{order}{strips}I", *([size] * strips))
    place = struct.pack(f"{order}I", extra + 6), struct.pack(f"{order}I", extra + 6 + 4 * strips)
    entries.append((273, 4, strips, place[0] if planar else offsets))
    entries.append((279, 4, strips, place[1] if planar else sizes))
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", count)
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    path.write_bytes(head + body + struct.pack(f"{order}I", 0) + bits + offsets + sizes + data)


def twelve_bits() -> np.ndarray:
    """Colours of a twelve-bit camera in sixteen bits: the upper bytes alone have sixteen values."""
    return (np.arange(64 * 64 * 3).reshape(64, 64, 3) % 4096).astype(np.uint16)


@pytest.mark.parametrize("kind", ["rgb", "rgba", "grey and alpha", "little tiff", "big tiff"])
def test_colours_of_sixteen_bits_keep_all_their_values(tmp_path, kind):
    pixels = twelve_bits()
    opaque = np.full((64, 64, 1), 65535, dtype=np.uint16)
    path = tmp_path / ("deep.tif" if "tiff" in kind else "deep.png")
    if "tiff" in kind:
        tiff16(pixels, path, "<" if kind == "little tiff" else ">")
    else:
        stored = {"rgb": [pixels], "rgba": [pixels, opaque], "grey and alpha": [pixels[:, :, :1], opaque]}
        png16(np.dstack(stored[kind]), path)
    expected = pixels[:, :, :1].repeat(3, axis=2) if kind == "grey and alpha" else pixels
    low, high = np.percentile(pixels[:, :, :1] if kind == "grey and alpha" else pixels, [0.1, 99.9])
    scaled = np.clip((expected.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    read = read_image(path)
    assert np.abs(read - scaled).max() < 0.51
    assert len(np.unique(read)) == 256
    assert image_size(path) == (64, 64)


def test_sixteen_bits_in_planes_are_refused(tmp_path):
    tiff16(twelve_bits(), tmp_path / "planes.tif", planar=True)
    with pytest.raises(DataError, match=r"planes\.tif holds 16 bits .* plane for each channel.*Store it as RGB"):
        read_image(tmp_path / "planes.tif")


def test_the_first_picture_of_a_camera_file_counts(tmp_path):
    main = Image.fromarray(np.full((24, 32, 3), 200, dtype=np.uint8))
    main.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[main.resize((8, 6))])
    assert read_image(tmp_path / "phone.jpg").shape == (24, 32, 3)
    main.save(tmp_path / "map.tif", save_all=True, append_images=[main.resize((16, 12))])
    with pytest.raises(DataError, match="holds 2 pages"):
        read_image(tmp_path / "map.tif")
    small = main.resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # a copy in less detail
    main.save(tmp_path / "map.tif", save_all=True, append_images=[small])
    assert read_image(tmp_path / "map.tif").shape == (24, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tif", "jpg", "png"])
def test_the_size_is_that_of_the_picture_that_is_read(tmp_path, suffix, orientation):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif}
    Image.fromarray(picture(24, 60)).save(path, **more)
    assert image_size(path) == read_image(path).shape[:2] == ((60, 24) if orientation > 4 else (24, 60))


def test_an_image_beyond_pillows_limit_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    path = save(picture(), tmp_path / "large.png")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"large\.png is too large: Image size \(768 pixels\).*Cut it into tiles"):
            read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"pipe\.png is a pipe, a socket or a device and not a file"):
            read(tmp_path / "pipe.png")
        with pytest.raises(DataError, match="is a folder and not a file"):
            read(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_pictures_of_every_kind_are_converted_in_strips_as_at_once(tmp_path, monkeypatch, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 17, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    monkeypatch.setattr(images, "_STRIP", 50)
    assert np.array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_stated_range_makes_the_same_value_equally_bright_in_every_image(tmp_path, suffix):
    values = np.array([[0, 100, 1100, 2100, 4100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    Image.fromarray(values[:, 1:4]).save(tmp_path / f"b.{suffix}")
    # 255 * (v - 100) / 4000, rounded: 0.5 and more of it upwards
    expected = [0, 0, 64, 128, 255, 255]
    assert read_image(tmp_path / f"a.{suffix}", Intensity(100, 4100, percent=False))[0, :, 0].tolist() == expected
    assert read_image(tmp_path / f"b.{suffix}", Intensity(100, 4100, percent=False))[0, :, 2].tolist() == expected[1:4]


def test_floating_point_images_keep_to_the_stated_range_or_percentiles(tmp_path):
    values = np.random.default_rng(0).normal(0, 1, (24, 32)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    ordered = sorted(values.ravel().tolist())
    for text, (low, high) in {"-1,2": (-1, 2), "0%,100%": (ordered[0], ordered[-1])}.items():
        read = read_image(tmp_path / "a.tif", Intensity.parse(text))
        for y, x in ((0, 0), (5, 7), (23, 31)):
            share = min(max((float(values[y, x]) - low) / (high - low), 0), 1)
            assert abs(read[y, x, 0] - 255 * share) <= 0.51


def test_colours_of_sixteen_bits_share_one_range(tmp_path):
    pixels = np.array([[[0, 1000, 2000], [4000, 500, 60000]]], dtype=np.uint16)
    png16(pixels, tmp_path / "a.png")
    expected = np.clip(pixels / 4000 * 255, 0, 255).round().astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / "a.png", Intensity.parse("0, 4000")), expected)


def test_images_of_eight_bits_are_left_as_they_are(tmp_path):
    path = save(picture(), tmp_path / "a.png")
    assert np.array_equal(read_image(path, Intensity(0, 10, percent=False)), picture())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-4095", "intensity_range='0-4095' is not possible; give two values, as 0,4095"),
        ("0,99%", "give two values, as 0,4095"),
        ("5,5", "intensity_range='5,5' is empty"),
        ("9,1e400", "is empty"),
        ("-1%,50%", "percentiles beyond 0 and 100"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(data="x", intensity_range=text)


def test_every_layout_shows_deep_images_in_the_stated_range(tmp_path):
    values = np.full((24, 32), 1000, dtype=np.uint16)
    values[0, 0] = 3000
    mask, box = rectangle(2, 2, 9, 9).astype(np.uint8), [[2, 2], [9, 2], [9, 9], [2, 9]]
    region = {"type": "polygonlabels", "value": {"points": [[9, 9], [30, 9], [30, 30]], "polygonlabels": ["a"]}}
    files = {
        "folders/masks/a.png": mask * 255,
        "whu/train/label/a.png": mask * 255,
        "voc/SegmentationClass/a.png": mask,
        "voc/SegmentationObject/a.png": mask,
        "yolo/labels/a.txt": "0 0.1 0.1 0.5 0.1 0.5 0.5",
        "yolo/classes.txt": "thing",
        "labelme/a.json": json.dumps({"shapes": [{"label": "a", "points": box}], "imagePath": "a.png"}),
        "cvat/a.xml": '<annotations><image name="a.png"><box label="a" xtl="1" ytl="1" xbr="9" ybr="9"/></image>'
        "</annotations>",
        "studio/a.json": json.dumps([{"annotations": [{"result": [region]}], "data": {"image": "a.png"}}]),
        "ssdd/voc_style/Annotations_train/a.xml": "<a><object><segm><point>1,1</point><point>9,1</point><point>9,9"
        "</point></segm></object></a>",
    }
    places = {"whu": "train/image", "voc": "JPEGImages", "ssdd": "voc_style/JPEGImages_train"}
    for name, content in files.items():
        root = name.partition("/")[0]
        path = tmp_path / name
        save(values, tmp_path / root / places.get(root, "images") / "a.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content) if isinstance(content, str) else save(content, path)
    save(values, tmp_path / "coco/images/a.png")
    annotation = {"image_id": 1, "segmentation": polygon(1, 1, 9, 9)}
    write_coco(tmp_path / "coco/annotations.json", [(1, "a.png")], [annotation])
    layouts = set()
    for root in sorted(tmp_path.iterdir()):
        dataset = open_dataset(DataSettings(data=str(root), intensity_range="1000,5000"), "all")
        layouts.add(dataset.layout)
        assert dataset[0].image[0, 0, 0] == 128, root
        assert dataset[0].image[5, 5, 0] == 0, root
    # NWPU's is COCO's, volumes have a window, and sets of another package a test of their own.
    assert layouts == set(LAYOUTS) - {"nwpu", "nifti", "datasets"}
