"""The benchmark measures every step and writes what it prints."""

import json

import numpy as np
import pytest
from conftest import make_data, run_script, words_for

from benchmark import baselines
from inference import rle


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """bench.py on a tiny data set: what it printed, and what it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    words = words_for(make_data(folder / "data"), folder / "out")
    done = run_script("bench.py", *words, "batch_size=2", "bench_baselines=true")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out/bench.json").read_text())


def test_every_step_has_a_time(measured):
    printed, known = measured
    steps = known["steps"]
    road = "decode image,decode mask,resize image,resize mask,augment,assemble batch,copy to device"
    more = "training step,enlarge,cut,run lengths,csv line,encode: classic,encode: pycocotools"
    assert {*road.split(","), *more.split(","), "network, all views"} <= steps.keys()
    assert all(step["ms"] > 0 and step["images_per_second"] > 0 for step in steps.values())
    assert all(name in printed for name in steps)


def test_the_loops_are_held_against_their_limits_and_rivals(measured):
    printed, known = measured
    ratios = [name for name, value in known.items() if " / " in name and np.isscalar(value)]
    assert len(ratios) >= 5 and all(known[name] > 0 and name in printed for name in ratios)
    assert known["settings"]["batch"] == 2 and known["machine"]["cores"] >= 1


def test_the_classic_encoder_is_right_where_it_is_known_to_be():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    assert baselines.rle_encode_kaggle(mask) == rle.encode(mask)
