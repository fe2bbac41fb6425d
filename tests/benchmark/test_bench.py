"""bench.py on the tiny dataset: steps, loops, its table and bench.json."""

import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_input_error, once_per_session, tiny_settings_args
from PIL import Image
from tiny_datasets import make_data

import bench
from benchmark import baselines, measurements, timer
from core.config import load_settings
from core.errors import InputError
from core.settings import Settings
from training.stages import find_init_run

CPU = torch.device("cpu")
STEPS = {
    *("decode image", "decode mask", "resize image", "resize mask", "augment", "assemble batch"),
    *("copy to device", "training step", "network with tta", "enlarge", "binarize", "encode"),
}
RESULT = {
    "settings": {"batch_size": 4},
    "precision": "bf16",
    "ms": {"training step": 6.0},
    **{"training_images_per_second": 165.0, "training_busy": 0.99, "training_tflops": 186.0},
    **{"matrix_product_tflops": 800.0, "plain_training_images_per_second": 50.0, "peak_gib": 5.06},
    **{"prediction_images_per_second": 230.0, "prediction_busy": 0.97},
}
MACHINE = {"gpu": "a GPU", "cpu": "a CPU", "threads": 16}


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """What bench.py writes, and in stdout.txt what it prints. Read-only."""

    def run(folder):
        args = tiny_settings_args(make_data(folder / "data"), folder / "output")
        with (
            pytest.MonkeyPatch.context() as patch,
            open(folder / "stdout.txt", "w") as stdout,
            redirect_stdout(stdout),
        ):
            patch.setattr(timer, "MIN_STEP_SECONDS", 0.01)
            patch.setattr(timer, "LOOP_SECONDS", 0.1)
            patch.setattr(baselines, "MATRIX_SIDE", {"cpu": 64})
            bench.main([*args, "batch_size=2"])

    return once_per_session(tmp_path_factory, "bench", run) / "output"


@pytest.fixture
def report(output_dir):
    return json.loads((output_dir / "bench.json").read_text())


# ---------------------------------------------------------------- a whole run


def test_bench_writes_the_time_of_every_step(report):
    [result] = report["recipes"].values()
    assert result["ms"].keys() == STEPS
    assert all(ms > 0 for ms in result["ms"].values())
    assert result["settings"]["batch_size"] == 2 and result["precision"] == "fp32"
    assert report["machine"]["threads"] >= 1 and "src/bench.py" in report["command"]


def test_bench_measures_training_and_prediction_of_a_recipe(report):
    [(name, result)] = report["recipes"].items()
    assert name == "carvana_small"  # on a CPU, where no recipe is named
    assert result.keys() == RESULT.keys()
    assert all(result[key] > 0 for key in RESULT.keys() - {"settings", "precision", "ms"})
    for kind, steps in (
        ("training", ["training step"]),
        ("prediction", ["network with tta", "enlarge", "binarize"]),
    ):
        ms = sum(result["ms"][step] for step in steps)
        busy = result[f"{kind}_images_per_second"] * ms / 1000
        assert result[f"{kind}_busy"] == pytest.approx(busy)


def test_bench_prints_steps_and_table_and_leaves_only_its_json(output_dir):
    assert [path.name for path in output_dir.iterdir()] == ["bench.json"]
    lines = (output_dir.parent / "stdout.txt").read_text().splitlines()
    assert sum(line.endswith(" ms") for line in lines) == len(STEPS)
    header, rule, row = (line for line in lines if line.startswith("|"))
    assert header.count("|") == rule.count("|") == row.count("|") == 10


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("device", "args", "expected"),
    [
        ("cuda", [], ["carvana_smp", "carvana"]),
        ("cpu", [], ["carvana_small"]),
        ("cuda", ["recipe=carvana_small"], ["carvana_small"]),
        ("cpu", ["bench_recipes=carvana_small,carvana", "lr=0.5"], ["carvana_small", "carvana"]),
    ],
)
def test_recipes_to_measure_are_those_named_else_those_for_the_device(
    monkeypatch, device, args, expected
):
    monkeypatch.setattr(bench, "pick_device", lambda settings: torch.device(device))
    recipes = bench.recipes_to_measure(args)
    assert [settings.recipe for settings in recipes.values()] == list(recipes) == expected
    if "lr=0.5" in args:
        assert all(settings.lr == 0.5 for settings in recipes.values())


def test_bench_keeps_what_it_has_measured_before_an_error(data_dir, tmp_path, monkeypatch):
    def measure_recipe(settings, samples, n_training):
        if settings.recipe == "carvana":
            raise InputError("out of memory with batch_size=4")
        return RESULT

    monkeypatch.setattr(measurements, "measure_recipe", measure_recipe)
    args = [
        *tiny_settings_args(data_dir, tmp_path / "output"),
        "bench_recipes=carvana_small,carvana",
    ]
    assert_input_error(bench.main, args, "out of memory with batch_size=4")
    report = json.loads((tmp_path / "output/bench.json").read_text())
    assert report["recipes"].keys() == {"carvana_small"}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("cache=none", "cache=none: bench.py measures training on decoded images"),
        ("fold=7", "fold=7: needs images in this fold and in others"),
        ("loss=ce", "loss=ce"),
        ("encoder=resnet18", "encoder=resnet18: is an option of model=smp"),
        ("bench_recipes=carvana,carvanna", "recipe=carvanna: no such recipe"),
    ],
)
def test_bench_rejects_what_it_cannot_measure(data_dir, tmp_path, arg, message):
    args = [*tiny_settings_args(data_dir, tmp_path / "output"), arg]
    assert_input_error(bench.main, args, message)


# ---------------------------------------------------------------- formatting


def test_bench_measures_on_other_images_than_a_run_was_trained_on(run_copy):
    settings = load_settings([*run_copy.args, "max_images=2"])
    _, samples = bench.load_data(settings)
    assert len(samples) == 4


def test_make_trial_needs_no_pretrained_weights(tmp_path):
    settings = load_settings(["recipe=carvana_lite", "init_run=other"])
    trial = measurements.make_trial(settings, str(tmp_path))
    assert trial.snapshot_seconds > 1e6  # saving them would be timed
    assert trial.encoder_weights == "none" and not find_init_run(trial)


def test_load_data_takes_the_size_of_the_images_for_size_null(data_dir, tmp_path):
    args = [*tiny_settings_args(data_dir, tmp_path / "output"), "size=null"]
    assert bench.load_data(load_settings(args))[0].size == [48, 72]
    other = next((data_dir / "train").glob("*.jpg"))
    Image.open(other).rotate(90, expand=True).save(other)
    mask = next((data_dir / "train_masks").glob(f"{other.stem}*"))
    Image.open(mask).rotate(90, expand=True).save(mask)
    message = f"{data_dir}: has images of 2 sizes; set size=h,w"
    assert_input_error(bench.load_data, load_settings([*args, "batch_size=1"]), message)


def test_format_row_is_a_row_of_the_table():
    row = bench.format_row("carvana_smp", MACHINE, RESULT)
    assert " | ".join(row.values()) == (
        "`carvana_smp` | a GPU, bf16, batch 4 | 165.0 | 99% | 186 (23%) | 3.3 | 5.1 | 230.0 | 97%"
    )
    without = RESULT | {"plain_training_images_per_second": None}
    assert bench.format_row("carvana_smp", MACHINE, without)["times a plain loop"] == "–"
    without_gpu = bench.format_row("a", MACHINE | {"gpu": None}, RESULT)
    assert without_gpu["device"].startswith("16 threads on a CPU, bf16")


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("recipe", "teraflops"), [("carvana", 2.31), ("carvana_smp", 0.375)]
)  # of a forward pass, as in docs/several-gpus.md
def test_count_training_flops_is_three_times_the_forward_pass(recipe, teraflops):
    settings = load_settings([f"recipe={recipe}"])
    counted = measurements.count_training_flops(settings, 1)
    assert counted == pytest.approx(3e12 * teraflops, rel=2e-3)


def test_matrix_product_tflops_counts_multiplications_and_additions(monkeypatch):
    monkeypatch.setattr(timer, "median_seconds", lambda fn, inputs: 0.5)
    monkeypatch.setattr(baselines, "MATRIX_SIDE", {"cpu": 10})
    assert baselines.matrix_product_tflops(CPU, "bf16") == pytest.approx(2 * 1000 / 0.5 / 1e12)


def test_plain_images_per_second_is_none_without_memory(monkeypatch):
    def run_out_of_memory(self, loop):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(timer.LoopTimer, "run", run_out_of_memory)
    settings = Settings(channels=[2, 4], size=[16, 16])
    assert baselines.plain_images_per_second(settings, [None] * 4, CPU) is None


def test_step_timer_returns_results_and_time_per_image(monkeypatch):
    measurement = SimpleNamespace(blocked_autorange=lambda **_: SimpleNamespace(median=0.5))
    monkeypatch.setattr(timer, "Timer", lambda *_, **__: measurement)
    steps = timer.StepTimer()
    assert steps.measure("one", lambda x: x + 1, [1, 2]) == [2, 3]
    steps.measure("ten", lambda x: x + 1, [1, 2], images_per_input=10)
    assert steps.ms == {"one": 500, "ten": 50}


def test_loop_timer_leaves_out_the_first_step_and_repeats_a_short_loop(monkeypatch):
    clock, runs = [0.0], []
    monkeypatch.setattr(timer.time, "monotonic", lambda: clock[0])
    loop = timer.LoopTimer(CPU)

    def run():
        runs.append(1)
        for seconds in (30, 2, 2):  # the first step starts workers, also of the next round
            clock[0] += seconds if len(runs) == 1 else 2
            loop.update(4)

    loop.run(run)
    # 2 + 2 s of the first round, 3 of 2 s of the second and 1 of the third.
    assert len(runs) == 3 and loop.images == 24 and loop.elapsed == 12
    assert loop.images_per_second == 2


def test_loop_timer_waits_for_a_gpu_at_both_ends_only(monkeypatch):
    waits, clock = [], [0.0]
    monkeypatch.setattr(timer.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(clock[0]))
    loop = timer.LoopTimer(torch.device("cuda", 0))

    def step():
        clock[0] += 1
        loop.update()

    loop.run(step)
    assert waits == [1, 12] and loop.images == loop.elapsed == 11


def test_bench_tflops_are_images_per_second_times_those_of_an_image(report):
    [result] = report["recipes"].values()
    flops = measurements.count_training_flops(Settings(**result["settings"]), 1)
    expected = result["training_images_per_second"] * flops / 1e12
    assert result["training_tflops"] == pytest.approx(expected)
