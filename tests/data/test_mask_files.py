"""Every way in which a mask is saved reads to the same mask; other files are one line."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REAL, needs_real_data
from PIL import Image

from core.errors import InputError
from data import mask_io
from data.classes import ClassMap

MASK = np.zeros((12, 20), bool)
MASK[2:6, 3:13] = MASK[4:9, 3:6] = True  # L-shaped, so that each turn and mirror image differs
GRAY = MASK.astype(np.uint8)


def paint(*colors: tuple[int, ...]) -> np.ndarray:
    """Return the mask as H×W×C, background and object in two colors."""
    return np.array(colors, np.uint8)[GRAY]


def palette_image(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image


BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 0, 255)
SHADES = np.random.default_rng(0).integers(0, 256, (*MASK.shape, 3), np.uint8)

# name of the file → image, and options of its saving
SAME_MASKS = {
    "competition.gif": (palette_image(GRAY, BLACK, WHITE), {}),
    "gray_1.png": (Image.fromarray(GRAY), {}),
    "gray_255.png": (Image.fromarray(GRAY * 255), {}),
    "gray_100.bmp": (Image.fromarray(GRAY * 100), {}),  # below a threshold of 128
    "gray_255.tif": (Image.fromarray(GRAY * 255), {}),
    "gray_255.gif": (Image.fromarray(GRAY * 255), {}),
    "gray_255.webp": (Image.fromarray(GRAY * 255), {"lossless": True}),
    "bilevel.png": (Image.fromarray(MASK), {}),
    "bilevel.bmp": (Image.fromarray(MASK), {}),
    "bilevel.tif": (Image.fromarray(MASK), {}),
    "bilevel_group4.tiff": (Image.fromarray(MASK), {"compression": "group4"}),
    "white_is_zero.tif": (Image.fromarray(MASK), {"tiffinfo": {262: 0}}),
    "16_bits_1.png": (Image.fromarray(GRAY.astype(np.uint16)), {}),
    "16_bits_255.png": (Image.fromarray(GRAY.astype(np.uint16) * 255), {}),
    "16_bits_65535.tif": (Image.fromarray(GRAY.astype(np.uint16) * 65535), {}),
    "32_bits.tif": (Image.fromarray(GRAY.astype(np.int32)), {}),
    "float.tif": (Image.fromarray(GRAY.astype(np.float32)), {}),
    "rgb.png": (Image.fromarray(paint(BLACK, WHITE)), {}),
    "rgb_1.png": (Image.fromarray(paint(BLACK, (1, 1, 1))), {}),
    "red.png": (Image.fromarray(paint(BLACK, RED)), {}),
    "blue.webp": (Image.fromarray(paint(BLACK, BLUE)), {"lossless": True}),
    "rgb_saved_by_pillow.gif": (Image.fromarray(paint(BLACK, WHITE)), {}),  # index 0 is white
    "white_first.png": (palette_image(1 - GRAY, WHITE, BLACK), {}),
    "white_first.bmp": (palette_image(1 - GRAY, WHITE, BLACK), {}),
    "voc.png": (palette_image(GRAY, BLACK, RED), {}),
    "palette_1.png": (palette_image(GRAY * 3, BLACK, RED, RED, (1, 1, 1)), {}),
    "quantized.png": (Image.fromarray(paint(BLACK, WHITE)).quantize(8), {}),
    "interlaced.gif": (palette_image(GRAY, BLACK, WHITE), {"interlace": 1}),
    "cmyk.tif": (Image.fromarray(paint(BLACK, WHITE)).convert("CMYK"), {}),
    "gray_alpha.png": (Image.fromarray(GRAY * 255).convert("LA"), {}),
    "opaque.png": (Image.fromarray(paint((*BLACK, 255), (*WHITE, 255))), {}),
    "half_opaque.png": (Image.fromarray(paint((*BLACK, 128), (*WHITE, 128))), {}),
    "cutout_white.png": (Image.fromarray(paint((*WHITE, 0), (*WHITE, 255))), {}),
    "cutout_black.png": (Image.fromarray(paint((*BLACK, 0), (*BLACK, 255))), {}),
    "cutout_black_on_hidden_white.png": (Image.fromarray(paint((*WHITE, 0), (*BLACK, 255))), {}),
    "cutout.webp": (Image.fromarray(paint((*BLACK, 0), (*RED, 255))), {"lossless": True}),
    "cutout.tif": (Image.fromarray(paint((*BLACK, 0), (*RED, 255))), {}),
    "gray_cutout.png": (Image.fromarray(paint((7, 0), (7, 255))), {}),
    "cutout_on_a_hidden_photograph.png": (
        Image.fromarray(
            np.dstack([np.where(MASK[..., None], np.uint8(255), SHADES), GRAY * 255]), "RGBA"
        ),
        {},
    ),
    "transparent_index.gif": (palette_image(GRAY, BLACK, WHITE), {"transparency": 0}),
    "transparent_index.png": (palette_image(GRAY, WHITE, BLACK), {"transparency": 0}),
    "alpha_and_color.png": (Image.fromarray(paint((*BLACK, 99), (*WHITE, 255))), {}),
}


def save(folder: Path, name: str, image: Image.Image, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", SAME_MASKS)
def test_read_mask_reads_the_same_mask_from_every_file(tmp_path, name):
    image, options = SAME_MASKS[name]
    path = save(tmp_path, name, image, **options)
    for threshold in (0, 128):  # two values need none
        mask = mask_io.read_mask(path, threshold)
        assert mask.dtype == bool and np.array_equal(mask, MASK)


COLORS_16_BITS = {  # BGR or BGRA as OpenCV writes it, for background and object
    "rgb_1": [(0, 0, 0), (1, 1, 1)],
    "rgb_255": [(0, 0, 0), (255, 255, 255)],
    "red_65535": [(0, 0, 0), (0, 0, 65535)],
    "opaque_1": [(0, 0, 0, 65535), (1, 1, 1, 65535)],
    "cutout_1": [(0, 0, 0, 0), (0, 0, 0, 1)],
    "cutout_65535": [(0, 0, 0, 0), (65535, 65535, 65535, 65535)],
}


@pytest.mark.parametrize("name", COLORS_16_BITS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("threshold", [0, 128])
def test_read_mask_reads_16_bits_of_several_channels(tmp_path, name, suffix, threshold):
    path = tmp_path / f"{name}.{suffix}"
    cv2.imwrite(str(path), np.array(COLORS_16_BITS[name], np.uint16)[GRAY])
    assert np.array_equal(mask_io.read_mask(path, threshold), MASK)


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_read_mask_of_one_value_is_empty_or_full(tmp_path, mode, value):
    image = Image.fromarray(np.full((4, 6), value, np.uint8)).convert(mode)
    mask = mask_io.read_mask(save(tmp_path, "m.png", image))
    assert mask.all() if value else not mask.any()


@pytest.mark.parametrize(("value", "is_inside"), [(16, False), (127, False), (200, True)])
def test_read_mask_of_one_value_with_threshold(tmp_path, value, is_inside):
    path = save(tmp_path, "m.png", Image.fromarray(np.full((4, 6), value, np.uint8)))
    assert (mask_io.read_mask(path, 128) == is_inside).all()


def test_read_mask_of_a_transparent_file_of_one_color_is_empty(tmp_path):
    image = Image.fromarray(np.full((4, 6, 4), (255, 255, 255, 0), np.uint8))
    assert not mask_io.read_mask(save(tmp_path, "m.png", image)).any()


# ---------------------------------------------------------------- more than two values

SOFT = cv2.GaussianBlur(GRAY * 255, (3, 3), 0)
ALPHA_SOFT = np.dstack([np.full((*MASK.shape, 3), 255, np.uint8), SOFT])
SOFT_MASKS = {
    "soft.png": (Image.fromarray(SOFT), {}),
    "soft_rgb.bmp": (Image.fromarray(np.dstack([SOFT] * 3)), {}),
    "soft_blue.png": (Image.fromarray(np.dstack([SOFT * 0, SOFT * 0, SOFT])), {}),
    "soft_16_bits.png": (Image.fromarray(SOFT.astype(np.uint16) * 257), {}),
    "soft_8_of_16_bits.png": (Image.fromarray(SOFT.astype(np.uint16)), {}),
    "soft_float.tif": (Image.fromarray(SOFT.astype(np.float32)), {}),
    "soft_fraction.tif": (Image.fromarray(SOFT.astype(np.float32) / 255), {}),
    "soft_alpha.png": (Image.fromarray(ALPHA_SOFT), {}),
    "soft_premultiplied.png": (Image.fromarray(np.dstack([SOFT] * 4)), {}),
}


@pytest.mark.parametrize("name", SOFT_MASKS)
def test_read_mask_needs_a_threshold_for_soft_edges(tmp_path, name):
    path = save(tmp_path, name, SOFT_MASKS[name][0])
    others = len(np.unique(SOFT)) - 3  # three are listed
    with pytest.raises(
        InputError, match=rf"{name}: shows .* {others} others; .*old=128 to read soft"
    ):
        mask_io.read_mask(path)
    assert np.array_equal(mask_io.read_mask(path, 128), SOFT >= 128)
    assert np.array_equal(mask_io.read_mask(path, 1), SOFT >= 1)


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "webp"])
def test_read_mask_with_threshold_reads_lossy_files(tmp_path, suffix):
    large = np.kron(GRAY * 255, np.ones((7, 7), np.uint8))
    path = save(tmp_path, f"m.{suffix}", Image.fromarray(large), quality=80)
    with pytest.raises(InputError, match="mask_threshold=128"):
        mask_io.read_mask(path)
    assert (mask_io.read_mask(path, 128) == (large > 0)).mean() > 0.995


@pytest.mark.parametrize("name", ["m.jpg", "m.tif"])
def test_read_mask_with_threshold_reads_noise_of_one_value_in_a_lossy_file_as_black(tmp_path, name):
    noise = np.zeros((16, 16), np.uint8)
    noise[:8, :8] = 1
    options = {"compression": "jpeg"} if name == "m.tif" else {}
    path = save(tmp_path, name, Image.fromarray(noise), quality=100, **options)
    assert mask_io.read_mask(path).any() and not mask_io.read_mask(path, 128).any()


RAMP = np.arange(240, dtype=np.uint8).reshape(12, 20)
CLASSES_AND_BORDER = np.array([0, 1, 255], np.uint8)[RAMP % 3]
UNCLEAR_MASKS = {
    "neither_black.png": (paint((50,) * 3, WHITE), "shows 50, 255; .*make the background black"),
    "red_on_white.png": (paint(WHITE, RED), "shows #800000, #ffffff; .*background black"),
    "three_values.png": (RAMP % 3, "shows 0, 1, 2; .*list them in .*, or set mask_threshold=1 if"),
    "trimap.png": (RAMP % 3 + 1, "3; .* if they are classes$"),
    "ignored_border.png": (
        CLASSES_AND_BORDER,
        "shows 0, 1, 255; .*in classes.csv if they are classes, as in `255,ignore,`$",
    ),
    "soft.png": (RAMP, "set mask_threshold=128"),
    "photograph.png": (
        np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8),
        "train/ holds photographs, train_masks/ their masks",
    ),
    "small_photograph.png": (
        SHADES,
        "shows #[0-9a-f]{6}, .* 237 others; .*; set mask_thres",
    ),
    "photograph_cutout.png": (np.dstack([SHADES, GRAY * 255]), "different shapes"),
    "other_shape.png": (
        np.dstack([paint(BLACK, WHITE), GRAY[::-1] * 155 + 100]),
        "colors and its alpha channel show different shapes",
    ),
    "hidden_shape.png": (np.dstack([paint(BLACK, WHITE), GRAY * 0]), "different shapes"),
    "hidden_other_shape.png": (
        np.dstack([paint(BLACK, WHITE), GRAY[::-1] * (1 - GRAY) * 255]),
        "different shapes",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR_MASKS)
def test_read_mask_rejects_unclear_masks_in_one_line(tmp_path, name):
    pixels, message = UNCLEAR_MASKS[name]
    path = save(tmp_path, name, Image.fromarray(pixels))
    with pytest.raises(InputError, match=f"{name}: .*{message}") as raised:
        mask_io.read_mask(path)
    assert "\n" not in str(raised.value)


@needs_real_data
def test_read_mask_of_competition_files_is_the_palette_index():
    for path in sorted((REAL / "carvana/train_masks").iterdir())[:8]:
        with Image.open(path) as image:
            assert np.array_equal(mask_io.read_mask(path), np.asarray(image) > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_mask_threshold_1_keeps_every_numbered_object(tmp_path, dtype):
    numbers = np.array([[0, 1, 2, 200]], dtype)
    path = save(tmp_path, "numbers.tif", Image.fromarray(numbers))
    assert mask_io.read_mask(path, 1).tolist() == [[False, True, True, True]]


def test_mask_threshold_1_keeps_every_numbered_object_of_more_than_255(tmp_path):
    numbers = np.array([[0, 1, 2, 300]], np.uint16)
    path = save(tmp_path, "numbers.tif", Image.fromarray(numbers))
    assert mask_io.read_mask(path, 1).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("scale", [1, 257])  # 8 and 16 bits
@pytest.mark.parametrize("threshold", [100, 128, 255])
def test_read_mask_of_several_values_includes_the_threshold(tmp_path, scale, threshold):
    values = [0, 50 * scale, threshold * scale - 1, threshold * scale, 255 * scale]
    pixels = np.array([values], np.uint8 if scale == 1 else np.uint16)
    path = save(tmp_path, "a.png", Image.fromarray(pixels))
    assert mask_io.read_mask(path, threshold).tolist() == [[False, False, False, True, True]]


def test_read_mask_of_a_lossy_file_takes_the_brightest_channel(tmp_path):
    large = np.kron(paint(BLACK, BLUE), np.ones((8, 8, 1), np.uint8))
    path = save(tmp_path, "m.jpg", Image.fromarray(large), quality=95, subsampling=0)
    assert (mask_io.read_mask(path, 128) == (large[..., 2] > 0)).mean() > 0.995


def test_mask_threshold_of_32_bits_is_a_part_of_the_largest_value(tmp_path):
    values = np.array([[0, 40_000, 90_000, 100_000]], np.int32)
    path = save(tmp_path, "a.tif", Image.fromarray(values))
    assert mask_io.read_mask(path, 128).tolist() == [[False, False, True, True]]


def test_read_mask_rejects_nan(tmp_path):
    path = save(tmp_path, "a.tif", Image.fromarray(np.array([[0, np.nan, 1]], np.float32)))
    with pytest.raises(InputError, match="contains NaN or inf"):
        mask_io.read_mask(path, 128)


# ---------------------------------------------------------------- labels of several classes

LABELS = np.arange(240, dtype=np.uint8).reshape(12, 20) % 5
NO_COLORS, THREE_VALUES = ClassMap((), ()), ClassMap((), (), value_to_class=(0, 1, 2))
COLORS = ClassMap((), (), color_values=((0x000000, 0), (0x800000, 3), (0x0000FF, 7)))
LOSSLESS = {"lossless": True, "exact": True, "icc_profile": bytes(600)}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("palette.png", palette_image(LABELS, BLACK, WHITE, (0, 128, 0), WHITE, (1, 2, 3))),
        ("gray.png", Image.fromarray(LABELS)),
        ("gray.tif", Image.fromarray(LABELS)),
        ("16_bits.png", Image.fromarray(LABELS.astype(np.uint16))),
        ("rgb.png", Image.fromarray(np.dstack([LABELS] * 3))),
        ("rgb.webp", Image.fromarray(np.dstack([LABELS] * 3))),
        ("gray_alpha.png", Image.fromarray(LABELS).convert("LA")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("class_map", [NO_COLORS, COLORS], ids=["", "colors_are_listed"])
def test_read_label_values_reads_gray_values_and_palette_indices(tmp_path, name, image, class_map):
    options = LOSSLESS if name.endswith("webp") else {}
    path = save(tmp_path, name, image, **options)
    assert np.array_equal(mask_io.read_label_values(path, class_map), LABELS)


def test_read_label_values_rejects_a_palette_of_grays_in_another_order(tmp_path):
    """Pillow writes gray values as indices of the values that occur."""
    path = save(tmp_path, "labels.gif", Image.fromarray(np.array([[0, 2, 2]], np.uint8)))
    with pytest.raises(InputError, match="gray levels and its palette indices mean"):
        mask_io.read_label_values(path, THREE_VALUES)
    gray = save(tmp_path, "labels.png", Image.fromarray(np.array([[0, 2, 2]], np.uint8)))
    assert mask_io.read_label_values(gray, THREE_VALUES).tolist() == [[0, 2, 2]]
    shades = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    shades.putpalette([0, 0, 0, 99, 99, 99, 200, 200, 200])  # the grays are no values
    path = save(tmp_path, "shades.png", shades)
    assert mask_io.read_label_values(path, THREE_VALUES).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("labels.jpg", {}),
        ("labels.mpo", {}),
        ("labels.webp", {}),
        ("labels.webp", {"icc_profile": bytes(600)}),  # comes before the pixels
        ("labels.tif", {"compression": "jpeg"}),
    ],
)
def test_read_label_values_rejects_lossy_files(tmp_path, name, options):
    path = save(tmp_path, name, Image.fromarray(np.dstack([LABELS] * 3)), **options)
    with pytest.raises(InputError, match=f"{name}: lossy compression changes the classes"):
        mask_io.read_label_values(path, NO_COLORS)


def test_read_label_values_rejects_colors(tmp_path):
    path = save(tmp_path, "color.png", Image.fromarray(paint(BLUE, RED)))
    with pytest.raises(InputError, match=r"color\.png: shows colors; expected a gray or palette"):
        mask_io.read_label_values(path, NO_COLORS)


COLOR_LABELS = np.array([BLACK, RED, BLUE], np.uint8)[LABELS % 3]
COLOR_LABEL_VALUES = np.array([0, 3, 7])[LABELS % 3]


@pytest.mark.parametrize("name", ["rgb.png", "rgb.bmp", "rgba.png", "16_bits.png"])
def test_read_label_values_reads_listed_colors(tmp_path, name):
    path = tmp_path / name
    if name == "16_bits.png":
        cv2.imwrite(str(path), COLOR_LABELS[..., ::-1].astype(np.uint16) * 257)
    else:
        Image.fromarray(COLOR_LABELS).convert(name[:-4].upper()[:4]).save(path)
    assert np.array_equal(mask_io.read_label_values(path, COLORS), COLOR_LABEL_VALUES)


def test_read_label_values_rejects_grays_that_are_values_and_colors_of_other_classes(tmp_path):
    black_and_white = ((0x000000, 0), (0xFFFFFF, 1))
    class_map = ClassMap((), (), (0, 1, *[-1] * 253, 255), color_values=black_and_white)
    for levels, expected in (([0, 1, 255], [0, 1, 255]), ([0, 0, 0], [0, 0, 0])):
        path = save(tmp_path, "a.png", Image.fromarray(np.array([levels], np.uint8)).convert("RGB"))
        assert mask_io.read_label_values(path, class_map).tolist() == [expected]
    for mode in ("RGB", "L"):
        image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
        with pytest.raises(InputError, match="its grays mean different classes in"):
            mask_io.read_label_values(save(tmp_path, f"{mode}.png", image), class_map)


def test_read_label_values_reads_16_bit_values_of_three_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([LABELS] * 3).astype(np.uint16))
    assert np.array_equal(mask_io.read_label_values(tmp_path / "a.png", NO_COLORS), LABELS)


def test_read_label_values_rejects_a_palette_in_another_order_than_the_values(tmp_path):
    Image.fromarray(COLOR_LABELS).convert("P", palette=Image.Palette.ADAPTIVE).save(
        tmp_path / "a.png"
    )
    with pytest.raises(InputError, match="its palette's colors and its palette indices"):
        mask_io.read_label_values(tmp_path / "a.png", COLORS)
    path = save(tmp_path, "b.png", palette_image(LABELS % 2 * 3, BLACK, BLUE, BLUE, RED))
    assert np.array_equal(mask_io.read_label_values(path, COLORS), LABELS % 2 * 3)


def test_read_label_values_rejects_an_unlisted_color_at_the_index_of_a_listed_one(tmp_path):
    """As in GIFs with the colors of classes.csv and a border to ignore, which has no color."""
    labels = palette_image(np.array([[0, 3, 7, 7]]), BLACK, WHITE, WHITE, RED, *[WHITE] * 4)
    path = save(tmp_path, "a.gif", labels, optimize=False)
    with pytest.raises(InputError, match="its palette's colors and its palette indices"):
        mask_io.read_label_values(path, COLORS)
    path = save(tmp_path, "b.png", palette_image(np.array([[0, 3]]), BLACK, *[RED] * 3))
    assert mask_io.read_label_values(path, COLORS).tolist() == [[0, 3]]


def test_read_label_values_reads_palettes_that_are_not_ambiguous(tmp_path):
    white_is_ignored = ClassMap(
        *((), (), (0, 3, *[-1] * 253, 255)),
        color_values=((0x000000, 0), (0x800000, 1), (0xFFFFFF, 255)),
    )
    gray_ramp = Image.fromarray(np.array([[0, 1, 255]], np.uint8)).convert("P")
    path = save(tmp_path, "ramp.png", gray_ramp)
    assert mask_io.read_label_values(path, white_is_ignored).tolist() == [[0, 1, 255]]
    voc = palette_image(np.array([[0, 1, 255]]), BLACK, RED, *[(224, 224, 192)] * 254)
    path = save(tmp_path, "voc.png", voc)
    assert mask_io.read_label_values(path, white_is_ignored).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_read_label_values_rejects_colors_that_are_transparent(tmp_path, mode):
    """An image editor erases pixels so."""
    pixels = np.array([[[*BLACK, 0], [*RED, 255], [*RED, 254]]], np.uint8)
    for count in (2, 3):
        path = save(tmp_path, f"{count}.png", Image.fromarray(pixels[:, :count]).convert(mode))
        if count == 2 and mode == "RGBA":
            assert mask_io.read_label_values(path, COLORS).tolist() == [[0, 3]]
        elif count == 3:
            with pytest.raises(InputError, match="transparent pixels with a color"):
                mask_io.read_label_values(path, COLORS)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_read_mask_of_a_lossy_file_includes_the_threshold(tmp_path, mode):
    values = np.full((16, 16), 128, np.uint8)  # one value survives JPEG unchanged
    values[:, 8:] = 0
    Image.fromarray(values).convert(mode).save(tmp_path / "m.jpg", quality=100)
    read = np.asarray(Image.open(tmp_path / "m.jpg").convert("L"))
    assert set(np.unique(read)) == {0, 128}
    assert np.array_equal(mask_io.read_mask(tmp_path / "m.jpg", 128), values == 128)
