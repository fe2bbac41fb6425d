"""What settings may name is exactly what the tables hold."""

from dataclasses import fields
from typing import get_args

import pytest

from core import device
from core.settings import Settings
from data import augment
from inference import predictor
from models import unet
from training import losses, optim

TABLES = {
    "loss": losses.LOSSES,
    "augment": augment.POLICIES,
    "tta": predictor.TTA_FLIPS,
    "norm": unet.NORMS,
    "up": unet.UPSAMPLERS,
    "optimizer": optim.OPTIMIZERS,
    "amp": {"auto", *device.PRECISIONS},
}


@pytest.mark.parametrize("name", TABLES)
def test_choices_are_the_tables_keys(name):
    types = {f.name: f.type for f in fields(Settings)}
    assert set(get_args(types[name])) == set(TABLES[name])
