"""What training prints about its data beforehand."""

import pytest
from conftest import tiny_settings_args

from core import config
from core.errors import InputError
from data import datasets
from training import preflight


@pytest.mark.parametrize(
    ("size", "is_turned"), [("32,48", False), ("48x32", True), ("48,48", False), ("null", False)]
)
def test_check_data_warns_of_width_and_height_in_the_wrong_order(data_dir, capsys, size, is_turned):
    args = [*tiny_settings_args(data_dir, data_dir), f"size={size}"]  # of images 72 wide, 48 high
    settings = config.load_settings(args)
    preflight.check_data(settings, datasets.load_training_samples(settings))
    lines = capsys.readouterr().out.splitlines()
    assert "12 images with masks, 72×48" in lines[0]
    warning = (
        "warning: size=48,32 is height,width, but no image is higher than wide; try size=32,48"
    )
    assert lines[1:] == [warning] * is_turned


@pytest.mark.parametrize(
    ("size", "crop_size", "found"),
    [("32,48", "32,56", "32,48"), ("32,48", "40,48", "32,48"), ("null", "48,80", "48,72")],
)
def test_check_data_rejects_a_crop_larger_than_the_images(data_dir, size, crop_size, found):
    args = [*tiny_settings_args(data_dir, data_dir), f"size={size}", f"crop_size={crop_size}"]
    settings = config.load_settings(args)
    with pytest.raises(InputError, match=rf"crop_size={crop_size}: images are {found} \(height,wi"):
        preflight.check_data(settings, datasets.load_training_samples(settings))
