"""bench.py on the tiny data set: steps, loops, baselines, and bench.json."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import assert_input_error, once_per_session, tiny_settings_args
from tiny_datasets import make_data

import bench
from benchmark import baselines, timer
from data import rle

STEPS = {
    *("decode image", "decode mask", "resize image", "resize mask", "augment", "assemble batch"),
    *("copy to device", "training step", "network with tta", "enlarge", "binarize", "encode"),
}
ENCODERS = {"encode true mask", "encode true mask, kaggle kernel", "encode true mask, pycocotools"}


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """What bench.py writes with its baselines, and in stdout.txt what it prints. Read-only."""

    def run(folder):
        args = tiny_settings_args(make_data(folder / "data"), folder / "output")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timer, "MIN_SECONDS", 0.01)
            patch.setattr(bench, "N_LOOP_IMAGES", 4)
            bench.main([*args, "batch_size=2", "lr_schedule=onecycle", "bench_baselines=true"])

    return once_per_session(tmp_path_factory, "bench", run) / "output"


def test_bench_writes_the_time_of_every_step_and_encoder(output_dir):
    report = json.loads((output_dir / "bench.json").read_text())
    assert report["ms"].keys() == STEPS | ENCODERS
    assert all(ms > 0 for ms in report["ms"].values())
    assert report["settings"]["batch_size"] == 2 and report["machine"]["cores"] >= 1
    assert report["machine"]["precision"] == "fp32"


def test_bench_relates_both_loops_to_their_upper_bounds(output_dir):
    report = json.loads((output_dir / "bench.json").read_text())
    rate, ms = report["training loop, images/s"], report["ms"]["training step"]
    ratio = report["training loop / its step on a resident batch"]
    assert rate > 0 and ratio == pytest.approx(rate * ms / 1000)
    assert report["prediction loop, images/s"] > 0
    assert report["prediction loop / its upper bound"] > 0
    assert report["plain training loop, images/s"] > 0


def test_bench_leaves_only_its_json(output_dir):
    assert [path.name for path in output_dir.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("arg", ["size=null", "cache=none"])
def test_bench_without_size_or_cache_is_rejected(data_dir, tmp_path, arg):
    args = [*tiny_settings_args(data_dir, tmp_path / "output"), arg]
    assert_input_error(bench.main, args, "needs size=h,w and a cache")


def test_rle_encode_kaggle_equals_ours_if_no_run_crosses_rows():
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    assert baselines.rle_encode_kaggle(mask) == rle.encode(mask)


def test_step_timer_returns_results_and_time_per_image(monkeypatch):
    measurement = SimpleNamespace(blocked_autorange=lambda **_: SimpleNamespace(median=0.5))
    monkeypatch.setattr(timer, "Timer", lambda *_, **__: measurement)
    steps = timer.StepTimer()
    assert steps.measure("one", lambda x: x + 1, [1, 2]) == [2, 3]
    steps.measure("ten", lambda x: x + 1, [1, 2], images_per_input=10)
    assert steps.ms == {"one": 500, "ten": 50}
