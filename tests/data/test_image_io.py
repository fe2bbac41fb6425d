"""Reading of images and masks: valid, unusual and damaged files."""

import cv2
import numpy as np
import pytest
from byte_edits import EDITS, apply_edits
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_datasets import draw_car, write_mask

from core.errors import InputError
from data import image_io, mask_io
from data.classes import ClassMap


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_read_image_rejects_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), draw_car(0, 1, (48, 72))[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=f"a{suffix}: cannot be read as an image .*truncated"):
        image_io.read_image(path)


def test_read_image_accepts_fill_bytes_in_a_jpeg_and_data_after_a_png(tmp_path):
    paths = tmp_path / "a.jpg", tmp_path / "a.png"
    for path in paths:
        Image.fromarray(PHOTOGRAPH).save(path, quality=95)
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[:2] + b"\xff\xff" + data[2:])
    paths[1].write_bytes(paths[1].read_bytes() + b"\0" * 5000)
    for path in paths:
        assert_shows(image_io.read_image(path), PHOTOGRAPH)


# ---------------------------------------------------------------- file types

PHOTOGRAPH = cv2.resize(draw_car(0, 1, (48, 72))[0], (60, 40))
FILE_TYPES = {
    "a.jpg": {"quality": 95},
    "a.jfif": {"format": "JPEG", "quality": 95},
    "a.png": {},
    "a.bmp": {},
    "a.gif": {},
    "a.tif": {},
    "a.tiff": {"compression": "jpeg", "quality": 95},
    "a.webp": {"quality": 95},
    "progressive.jpeg": {"quality": 95, "progressive": True},
    "lossless.webp": {"lossless": True},
    "png named.jpg": {"format": "PNG"},
    "webp named.png": {"format": "WEBP", "quality": 95},
}


def assert_shows(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Assert that the pixels are the expected ones but for compression."""
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("name", FILE_TYPES)
def test_read_image_reads_every_file_type_by_its_content(tmp_path, name):
    Image.fromarray(PHOTOGRAPH).save(tmp_path / name, **FILE_TYPES[name])
    assert_shows(image_io.read_image(tmp_path / name), PHOTOGRAPH)
    assert image_io.read_image_size(tmp_path / name) == (40, 60)


def gray_photograph() -> np.ndarray:
    return np.asarray(Image.fromarray(PHOTOGRAPH).convert("L"))


UNUSUAL_IMAGES = {
    "gray": lambda: Image.fromarray(gray_photograph()),
    "16_bits": lambda: Image.fromarray(gray_photograph().astype(np.uint16) * 257),
    "gray_alpha": lambda: Image.fromarray(gray_photograph()).convert("LA"),
    "alpha": lambda: Image.fromarray(np.dstack([PHOTOGRAPH, PHOTOGRAPH[..., 0]])),
    "palette": lambda: Image.fromarray(PHOTOGRAPH).quantize(256),
    "four_bits": lambda: Image.fromarray(PHOTOGRAPH).quantize(12),
    "cmyk": lambda: Image.fromarray(PHOTOGRAPH).convert("CMYK"),
}


@pytest.mark.parametrize(
    "name",
    [
        *("gray.tif", "gray.png", "16_bits.tif", "16_bits.png", "gray_alpha.png", "alpha.tif"),
        *("alpha.png", "palette.bmp", "palette.png", "four_bits.bmp", "cmyk.tif", "cmyk.jpg"),
    ],
)
def test_read_image_converts_every_color_mode_to_rgb(tmp_path, name):
    mode, suffix = name.split(".")
    picture = UNUSUAL_IMAGES[mode]()
    picture.save(tmp_path / name, quality=98)
    is_gray = "gray" in name or "16_bits" in name
    expected = np.dstack([gray_photograph()] * 3) if is_gray else PHOTOGRAPH
    if mode in ("palette", "four_bits"):
        expected = np.asarray(picture.convert("RGB"))
    pixels = image_io.read_image(tmp_path / name)
    assert_shows(pixels, expected)
    assert suffix == "jpg" or np.array_equal(pixels, expected)
    assert image_io.read_image_size(tmp_path / name) == (40, 60)


def test_read_image_ignores_what_a_phone_appends_to_a_jpeg(tmp_path):
    path = tmp_path / "motion photograph.jpg"
    Image.fromarray(PHOTOGRAPH).save(path, quality=95)
    path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + b"\0" * 10_000)
    assert_shows(image_io.read_image(path), PHOTOGRAPH)
    picture = Image.fromarray(PHOTOGRAPH)
    picture.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[picture.rotate(180)])
    assert_shows(image_io.read_image(tmp_path / "two.jpg"), PHOTOGRAPH)


# ---------------------------------------------------------------- orientation

L_SHAPE = np.zeros((16, 24), np.uint8)
L_SHAPE[2:10, 3:17] = L_SHAPE[8:14, 3:9] = 255
UPRIGHT = {  # EXIF orientation → what a viewer shows
    1: L_SHAPE,
    2: L_SHAPE[:, ::-1],
    3: L_SHAPE[::-1, ::-1],
    4: L_SHAPE[::-1],
    5: L_SHAPE.T,
    6: np.rot90(L_SHAPE, 3),
    7: L_SHAPE[::-1, ::-1].T,
    8: np.rot90(L_SHAPE),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_image_mask_and_size_are_turned_as_exif_demands(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(L_SHAPE).save(path, exif=exif, quality=100)
    expected = UPRIGHT[orientation]
    assert_shows(image_io.read_image(path), np.dstack([expected] * 3))
    assert np.array_equal(mask_io.read_mask(path, 128), expected > 0)
    assert image_io.read_image_size(path) == expected.shape
    if suffix in ("png", "tif"):
        assert np.array_equal(mask_io.read_label_values(path, ClassMap((), ())), expected)


def test_png_whose_exif_follows_the_pixels_is_turned(tmp_path):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(L_SHAPE).save(path, exif=exif)
    data = path.read_bytes()
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4])]
    end = data.index(b"IEND") - 4
    path.write_bytes(data[:at] + data[at + len(chunk) : end] + chunk + data[end:])
    assert "exif" not in Image.open(path).info
    assert image_io.read_image_size(path) == UPRIGHT[6].shape
    assert np.array_equal(image_io.read_image(path)[..., 0], UPRIGHT[6])
    assert np.array_equal(mask_io.read_mask(path), UPRIGHT[6] > 0)


def test_intact_photograph_with_a_damaged_exif_header_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(PHOTOGRAPH).save(path, exif=b"Exif\0\0not a TIFF header")
    assert image_io.read_image(path).shape == PHOTOGRAPH.shape
    assert image_io.read_orientation(path) == 1


# ---------------------------------------------------------------- files that are not one picture


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_reading_rejects_a_file_of_several_pictures(tmp_path, suffix):
    path, picture = tmp_path / f"a.{suffix}", Image.fromarray(PHOTOGRAPH)
    picture.save(path, save_all=True, append_images=[picture.rotate(180)])
    for read in (image_io.read_image, mask_io.read_mask, image_io.read_image_size):
        with pytest.raises(InputError, match=f"a.{suffix}: contains 2 pictures; save the one"):
            read(path)


def test_read_image_reads_a_tiff_with_reduced_copies_of_its_picture(tmp_path):
    path, picture = tmp_path / "geo.tif", Image.fromarray(PHOTOGRAPH)
    copy = picture.resize((8, 8))
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: reduced resolution
    picture.save(path, save_all=True, append_images=[copy])
    assert Image.open(path).n_frames == 2
    assert np.array_equal(image_io.read_image(path), PHOTOGRAPH)
    assert image_io.read_image_size(path) == PHOTOGRAPH.shape[:2]


def test_read_image_rejects_a_16_bit_tiff_in_which_0_is_white(tmp_path):
    path = tmp_path / "a.tif"
    gray = gray_photograph()
    Image.fromarray(gray).save(path, tiffinfo={262: 0})  # 0 is white
    assert np.array_equal(image_io.read_image(path)[..., 0], gray)
    Image.fromarray(gray.astype(np.uint16) * 257).save(path, tiffinfo={262: 0})
    with pytest.raises(InputError, match="is a 16-bit TIFF in which 0 is white"):
        image_io.read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_read_image_rejects_12_bits_in_16(tmp_path, suffix, n_channels):
    path, values = tmp_path / f"a.{suffix}", gray_photograph().astype(np.uint16)
    for scale, is_valid in ((16, False), (257, True), (1, True), (0, True)):
        cv2.imwrite(str(path), np.dstack([values * scale] * n_channels))
        if is_valid:
            expected = gray_photograph() * np.uint8(scale > 0)
            assert_shows(image_io.read_image(path), np.dstack([expected] * 3))
        else:
            with pytest.raises(InputError, match=f"a.{suffix}: its 16-bit values use 12 bits"):
                image_io.read_image(path)


def test_read_image_rejects_all_12_bits_in_16(tmp_path):
    values = gray_photograph().astype(np.uint16) * 16
    values[0, 0] = 4095
    cv2.imwrite(str(tmp_path / "a.png"), values)
    with pytest.raises(InputError, match=r"a\.png: its 16-bit values use 12 bits or fewer"):
        image_io.read_image(tmp_path / "a.png")


def test_read_image_rejects_values_of_32_bits(tmp_path):
    Image.fromarray(gray_photograph().astype(np.float32)).save(tmp_path / "a.tif")
    for read in (image_io.read_image, image_io.check_header):
        with pytest.raises(InputError, match=r"a\.tif: .*32 bits; save it with 8 or 16 bits"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        (b"\0\0\0\x18ftypheic", "convert HEIC or AVIF to JPEG"),
        (b"\0\0\0\x18ftypmif1", "convert HEIC or AVIF to JPEG"),
        (b"\0\0\0\x18ftypavif", "convert HEIC or AVIF to JPEG"),
        (b"\0\0\0\x18ftypmp42", "ffmpeg"),
        (b"\0\0\0\x14ftypqt  ", "ffmpeg"),
        (b"\x1aE\xdf\xa3 a webm", "ffmpeg"),
        (b"RIFF\0\0\0\0AVI ", "ffmpeg"),
        (b"something else", "download it again, or save it as JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "save it as JPEG or PNG"),
    ],
)
def test_reading_explains_what_to_do_with_heic_and_videos(tmp_path, start, remedy):
    path = tmp_path / "a.jpg"
    path.write_bytes(start + b"\0" * 100)
    for read in (image_io.read_image, image_io.read_image_size):
        with pytest.raises(InputError, match=f"a.jpg: cannot be read as an image .*{remedy}"):
            read(path)


# ---------------------------------------------------------------- damaged files


@given(st.sampled_from(["gif", "png"]), EDITS)
def test_read_mask_of_damaged_file_has_the_declared_size_or_is_one_line(scratch_dir, suffix, edits):
    path = scratch_dir / f"mask.{suffix}"
    write_mask(path, draw_car(0, 1, (24, 36))[1])
    path.write_bytes(apply_edits(path.read_bytes(), edits))
    try:
        size = image_io.read_image_size(path)
        mask = mask_io.read_mask(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert mask.dtype == bool and mask.shape == size


@given(st.sampled_from([".jpg", ".png", ".tif"]), EDITS)
def test_read_image_of_damaged_file_has_the_declared_size_or_is_one_line(
    scratch_dir, suffix, edits
):
    data = cv2.imencode(suffix, draw_car(0, 1, (24, 36))[0])[1].tobytes()
    path = scratch_dir / f"image{suffix}"
    path.write_bytes(apply_edits(data, edits))
    try:
        image = image_io.read_image(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape == (*image_io.read_image_size(path), 3)


def test_write_image_scales_down_what_is_too_large_for_a_jpeg(tmp_path, capfd):
    pixels = np.full((20, 66_000, 3), 90, np.uint8)
    image_io.write_image(tmp_path / "wide.jpg", pixels)
    assert image_io.read_image_size(tmp_path / "wide.jpg") == (19, 65_500)
    out, err = capfd.readouterr()
    assert "wide.jpg: scaled down to 65500×19 pixels" in out and not err
    image_io.write_image(tmp_path / "wide.png", pixels)
    assert image_io.read_image_size(tmp_path / "wide.png") == (20, 66_000)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_write_image_keeps_colors_and_opacity(tmp_path, n_channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, n_channels), np.uint8).squeeze()
    image_io.write_image(tmp_path / "a.png", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
