"""Settings: their choices, help texts and scopes, and the names of the first release."""

from dataclasses import fields
from typing import get_args

import pytest

from core import device
from core.old_settings import REMOVED, RENAMED, RENAMED_VALUES, rename_old_settings
from core.settings import FIELDS, POSTPROCESS_STEPS, Settings
from data import augment, datasets
from inference import postprocess, tta
from models import unet
from training import losses, optim

CHOICES = {
    "augmentation": augment.POLICIES,
    "dataset_format": datasets.FORMATS,
    "loss": losses.BINARY_LOSSES | losses.MULTICLASS_LOSSES,
    "lr_schedule": optim.SCHEDULES,
    "optimizer": optim.OPTIMIZERS,
    "precision": {"auto", *device.DTYPES},
    "tta": tta.TTA_FLIPS,
    "upsampling": unet.UPSAMPLERS,
}


@pytest.mark.parametrize("name", CHOICES)
def test_literal_setting_allows_exactly_the_keys_of_its_table(name):
    assert set(get_args(FIELDS[name].type)) == set(CHOICES[name])


def test_postprocess_allows_exactly_the_steps():
    assert set(POSTPROCESS_STEPS) == set(postprocess.STEPS)


@pytest.mark.parametrize(
    ("stored", "current"), [("fill,hull", "fill"), ("hull", "none"), ("auto", "auto")]
)
def test_rename_old_settings_drops_a_step_that_no_longer_exists(stored, current):
    assert rename_old_settings({"postprocess": stored}) == {"postprocess": current}


def test_every_setting_has_a_help_text_and_a_scope():
    for field in fields(Settings):
        assert field.metadata["help"], field.name
        assert field.metadata["scope"] in ("run", "model", "training", "invocation"), field.name


def test_model_settings_are_those_that_weights_need():
    scopes = {field.name: field.metadata["scope"] for field in fields(Settings)}
    model = {name for name, scope in scopes.items() if scope == "model"}
    assert {"size", "channels", "norm", "encoder", "reduce_colors"} <= model
    assert not {"lr", "loss", "threshold", "device", "run"} & model


def test_renamed_settings_exist_and_their_old_names_do_not():
    assert set(RENAMED.values()) <= FIELDS.keys()
    assert not (RENAMED.keys() | REMOVED) & FIELDS.keys()


def test_rename_old_settings_maps_names_and_drops_removed_ones():
    old = {"batch": 4, "amp": "fp32", "augment_on": "cpu", "full_size_skip": 0, "convs": 2}
    assert rename_old_settings(old) == {"batch_size": 4, "precision": "fp32"}
    assert rename_old_settings({"convs_per_level": 3}) == {"convs_per_level": 3}  # unknown


def test_rename_old_settings_replaces_old_values_also_in_stages():
    old = {"upsampling": "nearest", "stages": [{"augmentation": "flip"}, {"epochs": 2}]}
    new = {"upsampling": "nearest_conv", "stages": [{"augmentation": "hflip"}, {"epochs": 2}]}
    assert rename_old_settings(old) == new
    for (name, _), value in RENAMED_VALUES.items():
        assert value in get_args(FIELDS[name].type)
