"""Training and prediction on a real GPU agree with the CPU's. Skipped without one.

These alone: bash tests/run.sh tests/test_gpu.py -n 0
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, prediction_args, run_script, smp_args, tiny_settings_args
from tiny_datasets import make_data
from tqdm import tqdm

import bench
import predict
import train
from benchmark import timer
from core import run_folder
from core.config import load_settings
from core.device import explain_out_of_memory, find_compile_error
from core.errors import InputError
from data import rle
from data.datasets import load_training_samples
from data.loaders import prediction_loader
from evaluation import oof
from inference.members import make_member
from inference.predictor import BatchPredictor
from models.build import build_model
from training import snapshots
from training.snapshots import SnapshotWriter
from training.trainer import FoldTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"
GPU = torch.device(DEVICE, 0)


@pytest.fixture(scope="module")
def shared_data_dir(tmp_path_factory):
    """A dataset whose folds train on 10 images each: two steps of 4, two images are left out."""
    return make_data(tmp_path_factory.mktemp("gpu") / "tiny", views=5)


def gpu_args(data_dir, output_dir, *args):
    args = ["fold=0", "epochs=20", "precision=fp32", "compile=false", *args]
    return [*tiny_settings_args(data_dir, output_dir), f"device={DEVICE}", *args]


def oof_dice(output_dir):
    return pd.read_csv(output_dir / "tiny/fold0/oof.csv")["oof_dice"].mean()


@pytest.fixture(scope="module")
def cpu_run(shared_data_dir, tmp_path_factory):
    """The output folder of the run on the CPU."""
    output_dir = tmp_path_factory.mktemp("cpu")
    train.main(gpu_args(shared_data_dir, output_dir, "device=cpu"))
    return output_dir


@pytest.fixture
def trainer(shared_data_dir, tmp_path):
    """A FoldTrainer on the GPU, in bf16."""
    settings = load_settings(gpu_args(shared_data_dir, tmp_path, "precision=bf16"))
    samples = load_training_samples(settings)
    return FoldTrainer(settings, 0, samples, None)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_reaches_the_dice_of_the_cpu(
    shared_data_dir, tmp_path, cpu_run, precision, num_workers
):
    args = [f"precision={precision}", f"num_workers={num_workers}"]
    train.main(gpu_args(shared_data_dir, tmp_path, *args))
    assert oof_dice(tmp_path) == pytest.approx(oof_dice(cpu_run), abs=5e-3)
    assert (pd.read_csv(tmp_path / "tiny/fold0/history.csv")["peak_gb"] > 0).all()


def test_compilation_works_on_this_machine():
    """Needs a C compiler, Python headers, Triton and a cache folder."""
    assert find_compile_error(GPU) == ""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_compiled_training_reaches_the_dice_of_the_cpu(
    shared_data_dir, tmp_path, cpu_run, capsys, precision
):
    find_compile_error(GPU)  # compiles a function of its own
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    args = [f"precision={precision}", "compile=true", "fold=null"]
    train.main(gpu_args(shared_data_dir, tmp_path, *args))
    assert "without compiling" not in capsys.readouterr().out
    assert oof_dice(tmp_path) == pytest.approx(oof_dice(cpu_run), abs=5e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # of both folds


def test_training_step_never_waits_for_the_gpu(trainer):
    images = torch.zeros(4, 3, 32, 48, dtype=torch.uint8, device=GPU)
    targets = torch.zeros(4, 1, 32, 48, dtype=torch.uint8, device=GPU)
    trainer.state.train_step(images, targets)  # the first one makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, logits = trainer.state.train_step(images, targets)
        trainer.metrics.add(loss, logits, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_images_per_second_is_not_more_than_the_wall_clock_allows(trainer):
    trainer.train_epoch(tqdm(disable=True))
    trainer.next_epoch()
    torch.cuda.synchronize()
    start = time.perf_counter()
    row = trainer.train_epoch(tqdm(disable=True))
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    sampler = trainer.loader.batch_sampler
    assert row["images_per_second"] <= 1.05 * len(sampler) * sampler.step_size / wall


def test_training_resumes_in_another_precision(shared_data_dir, tmp_path, cpu_run):
    args = gpu_args(shared_data_dir, tmp_path)
    settings = load_settings([*args, "precision=bf16"])
    trainer = FoldTrainer(settings, 0, load_training_samples(settings), None)
    for _ in range(4):
        trainer.train_epoch(tqdm(disable=True))
        trainer.next_epoch()
    trainer.save_snapshot()
    trainer.snapshots.wait()
    run_folder.save_run_settings(replace(settings, fold=None))
    train.main([*args, "precision=fp16", "resume=true"])
    assert oof_dice(tmp_path) == pytest.approx(oof_dice(cpu_run), abs=5e-3)


def test_killed_training_resumes(shared_data_dir, tmp_path, cpu_run):
    args = gpu_args(shared_data_dir, tmp_path, "snapshot_seconds=0")
    command = [sys.executable, str(ROOT / "src/train.py"), *args]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not any(tmp_path.glob("tiny/fold0/resume/00002*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train.main([*args, "resume=true"])
    assert oof_dice(tmp_path) == pytest.approx(oof_dice(cpu_run), abs=5e-3)
    epochs = pd.read_csv(tmp_path / "tiny/fold0/history.csv")["epoch"]
    assert list(epochs) == list(range(1, 21))


def test_snapshot_holds_the_values_of_its_moment(tmp_path):
    """The kernels that training queues afterwards do not change it."""
    weights = torch.arange(2**26, dtype=torch.float32, device=GPU)
    writer = SnapshotWriter(tmp_path, GPU)
    for step in range(3):
        expected = weights.cpu()
        writer.start({"epoch": 0, "step": step, "fingerprint": "", "w": weights})
        for _ in range(100):
            weights.mul_(0.99)
        writer.wait()
        saved = snapshots.load_snapshot(tmp_path, "")
        assert saved["step"] == step and torch.equal(saved["w"], expected)


@pytest.mark.parametrize("compiles", ["false", "true"])
def test_bench_measures_the_gpu(shared_data_dir, tmp_path, monkeypatch, compiles):
    monkeypatch.setattr(timer, "MIN_STEP_SECONDS", 0.05)
    monkeypatch.setattr(timer, "LOOP_SECONDS", 0.5)
    args = ["precision=bf16", f"compile={compiles}", "recipe=carvana"]
    bench.main(gpu_args(shared_data_dir, tmp_path, *args))
    report = json.loads((tmp_path / "bench.json").read_text())
    [result] = report["recipes"].values()
    assert all(value > 0 for value in result.values() if isinstance(value, float))
    assert result["matrix_product_tflops"] > result["training_tflops"]
    assert report["machine"]["gpu"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "efficientnet-b0"])
def test_two_gpus_train_as_one(shared_data_dir, tmp_path, monkeypatch, encoder):
    """The layers of the first hold activations, the second has unused parameters."""
    dice = []
    for count in ("1", "2"):
        monkeypatch.setenv("GPUS", count)
        args = gpu_args(shared_data_dir, tmp_path / count, "size=[64,64]")
        done = run_script("train.py", *smp_args(args, encoder))
        assert done.returncode == 0, done.stderr
        dice.append(oof_dice(tmp_path / count))
    assert dice[1] == pytest.approx(dice[0], abs=0.02)


# ---------------------------------------------------------------- memory and prediction


def test_out_of_memory_is_explained():
    with (
        pytest.raises(InputError, match="out of memory with batch_size=4"),
        explain_out_of_memory(load_settings([])),
    ):
        torch.empty(2**46, dtype=torch.uint8, device=GPU)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_predicting_a_batch_never_waits_for_the_gpu(shared_data_dir, tmp_path, precision):
    settings = load_settings(gpu_args(shared_data_dir, tmp_path, f"precision={precision}"))
    samples = load_training_samples(settings)[:4]
    member = make_member(build_model(settings, pretrained=False).eval().to(GPU), settings)
    [batch] = prediction_loader(samples, {member.preprocessing}, settings, with_mask=True)
    assert all(x.is_pinned() for part in batch for x in part.images.values())
    predictor = BatchPredictor([member], settings, oof.keep_statistics)
    predictor.finish(predictor.start(batch))  # loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = predictor.start(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [prediction.sample for prediction in predictor.finish(started)] == samples


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_submission_is_that_of_the_cpu(shared_data_dir, cpu_run, tmp_path, precision):
    args = [*prediction_args(gpu_args(shared_data_dir, cpu_run)), "postprocess=none"]
    masks = {}
    for device, dtype in (("cpu", "fp32"), (DEVICE, precision)):
        path = tmp_path / f"{device}.csv"
        args += [f"device={device}", f"precision={dtype}", f"submission_csv={path}"]
        predict.main(args)
        table = pd.read_csv(path, keep_default_na=False)
        masks[device] = [rle.decode(text, (48, 72)) for text in table["rle_mask"]]
    for one, two in zip(masks["cpu"], masks[DEVICE], strict=True):
        dice = 2 * np.logical_and(one, two).sum() / max(1, one.sum() + two.sum())
        assert 1 - dice < 1e-3 or (one ^ two).sum() <= 2
