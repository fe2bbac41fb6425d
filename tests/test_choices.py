"""What settings may name is exactly what the tables hold."""

from dataclasses import fields
from typing import get_args

import pytest

import augment
import device
import infer
import losses
import optim
import unet
from settings import Settings

TABLES = {
    "loss": losses.LOSSES,
    "augment": augment.POLICIES,
    "tta": infer.VIEWS,
    "norm": unet.NORMS,
    "up": unet.UPS,
    "optimizer": optim.OPTIMIZERS,
    "amp": {"auto", *device.PRECISIONS},
}


@pytest.mark.parametrize("name", TABLES)
def test_choices_are_the_tables_keys(name):
    types = {f.name: f.type for f in fields(Settings)}
    assert set(get_args(types[name])) == set(TABLES[name])
