"""Several processes (gloo, on the CPU) give the results of one; a failure in one ends all of them.

README's promise for GPUS=4 and for several machines.
"""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import (
    ROOT,
    TinyRun,
    assert_input_error,
    once_per_session,
    prediction_args,
    smp_args,
    tiny_settings_args,
)
from safetensors.torch import load_file
from tiny_datasets import make_data

import predict
import train
from core import distributed
from core.errors import InputError

# Without it the agents of torch 2.13 keep the address of the first rendezvous, and one that was
# started again waits for it in vain (pytorch issue 135712); docs/several-gpus.md sets it, too.
REJOIN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# Batch normalization takes the statistics of each process; without it the results are equal. An
# epoch takes 12 of the fold's 14 images in three steps: an update of two steps and one of one.
TRAIN_ARGS = ["norm=none", "fold=0", "grad_accumulation=2", "dropout=[]", "lr=3e-3", "epochs=10"]


def start(processes, script, *args, before=()):
    """Start src/<script> in so many processes."""
    return subprocess.Popen(
        [sys.executable, *before, str(ROOT / "src" / script), *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GPUS": str(processes), "OMP_NUM_THREADS": "1"} | REJOIN,
    )


def run(processes, script, *args):
    """Run src/<script> in so many processes: exit code, stdout, stderr."""
    process = start(processes, script, *args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The same fold trained by 1 and 2 processes, as runs by1 and by2. Read-only."""

    def train_all(folder):
        args = tiny_settings_args(make_data(folder / "data", views=7, test_cars=4), folder / "out")
        train.main([*args, "run=by1", *TRAIN_ARGS])
        train_in_processes(2, args)

    folder = once_per_session(tmp_path_factory, "distributed_runs", train_all)
    data_dir, output_dir = folder / "data", folder / "out"
    return TinyRun(data_dir, output_dir, tiny_settings_args(data_dir, output_dir))


def train_in_processes(count, args):
    """Train the fold of `runs` in so many processes, as run by<count>."""
    code, out, err = run(count, "train.py", *args, f"run=by{count}", *TRAIN_ARGS)
    assert code == 0, err
    assert "Warning" not in err, err
    assert out.count("out-of-fold dice") == 1  # only the main process prints


# ---------------------------------------------------------------- results


def assert_equal_runs(folder, other):
    """Assert that two folders of a fold have the same weights, losses and scores."""
    weights, other_weights = (load_file(f / "best.safetensors") for f in (folder, other))
    for name, tensor in weights.items():
        assert np.allclose(tensor, other_weights[name], atol=1e-5), name
    history, other_history = (pd.read_csv(f / "history.csv") for f in (folder, other))
    assert np.allclose(history["loss"], other_history["loss"], atol=1e-5)
    assert np.allclose(history["train_dice"], other_history["train_dice"], atol=1e-4)
    scores, other_scores = (pd.read_csv(f / "oof.csv") for f in (folder, other))
    assert len(scores) == 14 and list(scores["image_id"]) == list(other_scores["image_id"])
    assert scores["area"].nunique() > 10  # else the order would not matter
    for column in ("oof_dice", "area", "predicted_area", "accuracy"):
        assert np.allclose(scores[column], other_scores[column], atol=1e-4), column


def test_training_in_two_processes_gives_weights_losses_and_scores_of_one(runs):
    assert_equal_runs(runs.output_dir / "by1/fold0", runs.output_dir / "by2/fold0")


@pytest.mark.slow
def test_training_in_four_processes_gives_weights_losses_and_scores_of_one(runs, tmp_path):
    train_in_processes(4, [*runs.args, f"output_dir={tmp_path}"])
    assert_equal_runs(runs.output_dir / "by1/fold0", tmp_path / "by4/fold0")


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])  # of three, one has no chunk
def test_prediction_in_several_processes_gives_the_submission_of_one(runs, tmp_path, count):
    args = [*prediction_args(runs.args), "run=by1", "batch_size=1"]
    predict.main([*args, f"submission_csv={tmp_path / '1.csv'}"])
    path = tmp_path / f"{count}.csv"
    code, _, err = run(count, "predict.py", *args, f"submission_csv={path}")
    assert code == 0, err
    assert path.read_bytes() == (tmp_path / "1.csv").read_bytes()


@pytest.mark.parametrize("n_items", [0, 1, 5, 6])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_map_sharded_returns_the_results_in_the_order_of_the_items(monkeypatch, n_ranks, n_items):
    items, shards = list(range(n_items)), []
    monkeypatch.setenv("WORLD_SIZE", str(n_ranks))
    for rank in range(n_ranks):
        monkeypatch.setenv("RANK", str(rank))
        shards.append([-i for i in distributed.shard(items)])

    def all_gather(lists, own, group):
        lists[:] = [[shard] for shard in shards]

    monkeypatch.setattr(distributed, "_long_timeout_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "all_gather_object", all_gather)
    results = distributed.map_sharded(lambda shard: [-i for i in shard], items)
    assert results == [-i for i in items]


# ---------------------------------------------------------------- failures


@pytest.mark.slow
def test_two_processes_train_an_encoder_with_unused_parameters(tmp_path):
    args = tiny_settings_args(make_data(tmp_path / "data"), tmp_path)
    args = [*smp_args(args, "efficientnet-b0"), "fold=0", "size=[64,64]", "epochs=1"]
    code, out, err = run(2, "train.py", *args)
    assert code == 0, err
    assert "out-of-fold dice" in out


def test_prediction_resumes_after_a_process_was_killed_and_after_ctrl_c(runs, tmp_path, capsys):
    data_dir, path = make_data(tmp_path / "data", test_cars=8, views=32), tmp_path / "s.csv"
    args = [*prediction_args(runs.args), f"data_dir={data_dir}", "run=by1", "batch_size=1"]

    def predict_until_a_chunk_is_written():
        before = {*tmp_path.glob("s.chunks/*_0*.json")}
        process = start(2, "predict.py", *args, f"submission_csv={path}")
        while {*tmp_path.glob("s.chunks/*_0*.json")} <= before and process.poll() is None:
            time.sleep(0.01)
        return process

    process = predict_until_a_chunk_is_written()
    by_rank = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    by_rank["1"].kill()
    out, err = process.communicate(timeout=150)
    assert process.returncode == 137 and not path.exists(), out + err
    assert err.count("process 1 of 2 was killed by SIGKILL") == 1 and "Traceback" not in err, err

    process = predict_until_a_chunk_is_written()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 130 and not path.exists(), out + err
    assert "predicted already" in out
    assert err.count("predict.py: stopped; run the same command again") == 1, err
    assert "Traceback" not in err, err

    predict.main([*args, f"submission_csv={path}"])  # one process continues what two have begun
    assert "predicted already" in capsys.readouterr().out
    predict.main([*args, f"submission_csv={tmp_path / 'one.csv'}"])
    assert path.read_bytes() == (tmp_path / "one.csv").read_bytes()


@pytest.mark.parametrize(
    ("args", "gpus", "message"),
    [
        (["lr=0.0"], "2", "must be above 0"),
        (["fold=9"], "2", "folds 0 to 1"),
        (["batch_size=1"], "2", "batch_size=1: is the total over 2 processes"),
        ([], "two", "GPUS=two: must be the number of GPUs"),
    ],
)
def test_train_checks_settings_before_it_starts_processes(
    data_dir, tmp_path, monkeypatch, args, gpus, message
):
    monkeypatch.setenv("GPUS", gpus)
    args = [*tiny_settings_args(data_dir, tmp_path), "fold=0", *args]
    assert_input_error(train.main, args, message)


def test_predict_rejects_photographs_in_several_processes(trained_run, monkeypatch):
    args = [*prediction_args(trained_run.args), "images=car.jpg"]
    for count, message in (
        ("2", "images: one process predicts them, not 2"),
        ("x", "GPUS=x: must"),
    ):
        monkeypatch.setenv("GPUS", count)
        assert_input_error(predict.main, args, message)


FAULTY_TRAIN = """
import sys
sys.path.insert(0, "src")
import train
from core import cli, process_env
from core.errors import InputError
from training.train_state import TrainState

original_step, calls = TrainState.train_step, []

def failing_step(self, *args):
    calls.append(args)
    if process_env.rank() == 1 and len(calls) == 2:
        raise {error}
    return original_step(self, *args)

{fault}
cli.run_main(train.main, "run the same command with resume=true to resume")
"""
FAIL = "TrainState.train_step = failing_step"
OTHER_DATA = "train.dataset_fingerprint = lambda samples: f'data of {process_env.rank()}'"


@pytest.mark.parametrize(
    ("fault", "error", "code", "message"),
    [
        (FAIL, "ZeroDivisionError('in rank 1')", 1, "ZeroDivisionError: in rank 1"),
        pytest.param(
            FAIL,
            "InputError('x.jpg: cannot be read')",
            2,
            "x.jpg: cannot be read",
            marks=pytest.mark.slow,
        ),
        pytest.param(OTHER_DATA, "", 2, "all machines need the same", marks=pytest.mark.slow),
    ],
    ids=["bug", "input_error", "other_data"],
)
def test_error_in_one_process_is_printed_once_and_ends_all(
    data_dir, tmp_path, fault, error, code, message
):
    script = tmp_path / "faulty_train.py"
    script.write_text(FAULTY_TRAIN.format(fault=fault, error=error or "AssertionError"))
    start_time = time.monotonic()
    exit_code, _, err = run(2, str(script), *tiny_settings_args(data_dir, tmp_path), "fold=0")
    assert exit_code == code and err.count(message) == 1, err
    assert "Connection" not in err and "gloo" not in err  # what the other process noticed
    assert time.monotonic() - start_time < 120  # it does not wait for the timeout


def test_processes_with_other_data_are_rejected(monkeypatch):
    found = [{"data_dir": "a", "commit": "c"}, {"data_dir": "b", "commit": "c"}]
    monkeypatch.setattr(distributed, "gather", lambda items: found)
    with pytest.raises(InputError, match=r"data_dir differs .* a in process 0, b in process 1"):
        distributed.assert_equal_on_all_ranks(found[0])


SLOW_PROCESS = """
import sys, time
from datetime import timedelta
sys.path.insert(0, "src")
import torch
from core import cli, distributed, process_env

distributed.PROCESS_GROUP_TIMEOUT = timedelta(seconds=1)

def main(args):
    device = torch.device("cpu")
    if distributed.requested_processes() > 1:
        return distributed.launch_processes(device)
    distributed.init_process_group(device)
    distributed.barrier()
    time.sleep(3 * process_env.rank())
    distributed.barrier()
    time.sleep(3 * process_env.rank())
    print(distributed.gather([process_env.rank()]))
    distributed.destroy_process_group()

cli.run_main(main)
"""


@pytest.mark.slow
def test_barrier_and_gather_wait_longer_than_a_training_step_may_take(tmp_path):
    script = tmp_path / "slow_process.py"
    script.write_text(SLOW_PROCESS)
    code, out, err = run(2, str(script))
    assert (code, out) == (0, "[0, 1]\n"), err


# ---------------------------------------------------------------- two machines


def start_machine(port, number, *args):
    """Start torchrun as on machine `number` of two with one process each."""
    before = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    before += ["--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    before += ["--rdzv-id=test", f"--rdzv-conf=is_host={1 - number}"]
    return start(1, "train.py", *args, before=before)


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
def test_two_machines_resume_after_one_is_killed_and_started_again(runs, tmp_path):
    args = [*runs.args, f"output_dir={tmp_path}", "run=by1", *TRAIN_ARGS]
    args += ["snapshot_seconds=0", "resume=true"]
    port = free_port()
    machines = [start_machine(port, number, *args) for number in (0, 1)]
    while not any(tmp_path.glob("by1/fold0/resume/00001*.pt")):
        assert machines[0].poll() is None, machines[0].communicate()
        time.sleep(0.01)
    for process in [*psutil.Process(machines[1].pid).children(), machines[1]]:
        process.kill()
    machines[1].communicate()
    machines[1] = start_machine(port, 1, *args)
    out, err = machines[0].communicate(timeout=240)
    machines[1].communicate(timeout=150)
    assert machines[0].returncode == 0, err
    assert "resuming after epoch" in out
    expected, dice = (
        pd.read_csv(folder / "by1/fold0/oof.csv")["oof_dice"]
        for folder in (runs.output_dir, tmp_path)
    )
    assert np.allclose(expected, dice, atol=1e-4)
