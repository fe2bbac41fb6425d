"""Colors of photographs with an ICC profile."""

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny_datasets import swapped_profile

from data.color_profile import convert_to_srgb

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_to_srgb_converts_the_colors_of_another_profile(tmp_path, suffix):
    pixels = np.full((8, 8, 3), RED, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", icc_profile=swapped_profile())
    converted = convert_to_srgb(tmp_path / f"a.{suffix}", pixels)
    assert converted.dtype == np.uint8 and np.abs(converted.astype(int) - GREEN).max() <= 2


SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OF_GRAY = SRGB_PROFILE[:16] + b"GRAY" + SRGB_PROFILE[20:]


@pytest.mark.parametrize("profile", [None, SRGB_PROFILE, OF_GRAY, swapped_profile()[:200], b"x"])
def test_to_srgb_without_another_rgb_profile_returns_the_same_pixels(tmp_path, profile):
    pixels = np.full((8, 8, 3), RED, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", icc_profile=profile)
    assert convert_to_srgb(tmp_path / "a.jpg", pixels) is pixels
