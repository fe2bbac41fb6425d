"""Kill training and prediction at random moments, restart them, and compare what they leave, byte
for byte, with uninterrupted ones.

python tests/kill_test.py 50                      50 kills of each job by each of three signals
python tests/kill_test.py 50 training SIGTERM     of some only
"""

import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from conftest import ROOT, prediction_args, tiny_settings_args
from tiny_datasets import make_data

import predict
import train

EXIT_CODES = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130, -2}}
TIMES = ["seconds", "images_per_second", "peak_gb"]  # of history.csv, vary between runs
UNCOMPARED = {"provenance.json", "submission.json", ".lock"}  # these record when a run started
START_SECONDS = 5  # of a process, most of it for imports
KILLS_PER_RUN = 10  # then the job may finish and is compared


class Job:
    """A command that is killed and restarted, and the files that it leaves in its folder.

    It is killed in a process of its own, and runs to its end in this one, which has imported torch
    already; both have one thread, as the bytes depend on the number. `progress` is a glob pattern
    of files in the folder from which the command can resume.
    """

    def __init__(self, script: str, args: list[str], folder: Path, progress: str = ""):
        self.script, self.args, self.folder, self.progress = script, args, folder, progress
        start = time.monotonic()
        self.finish()
        self.seconds, self.expected = time.monotonic() - start, self.read_files()

    def finish(self) -> str:
        """Run the command to its end in this process; return what it prints."""
        main = {"train.py": train.main, "predict.py": predict.main}[self.script]
        argv = [str(ROOT / "src" / self.script), *self.args]  # is stored with the weights
        with redirect_stdout(io.StringIO()) as printed, patch.object(sys, "argv", argv):
            main(self.args)
        return printed.getvalue()

    def start(self) -> subprocess.Popen:
        """Start the command in a process group of its own, as a shell does."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "src" / self.script), *self.args],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def read_files(self) -> dict[str, bytes]:
        """Return the content of the files in the folder, without what varies between runs."""
        files = {}
        for path in self.folder.iterdir():
            skip = path.is_dir() or path.name in UNCOMPARED
            files[path.name] = b"" if skip else path.read_bytes()
        if weights := files.get("best.safetensors"):  # someone may commit while this runs
            files["best.safetensors"] = re.sub(rb'commit\\": \\"\w+\+?', b"", weights)
        if "history.csv" in files:
            history = pd.read_csv(self.folder / "history.csv").drop(columns=TIMES)
            files["history.csv"] = history.to_csv().encode()
        return files


def training_job(folder: Path, epochs: int = 12) -> Job:
    """Train a fold of small images, with a snapshot after every update and a worker process."""
    args = tiny_settings_args(make_data(folder / "data", views=8), folder / "output")
    args += ["fold=0", f"epochs={epochs}", "validate_every_epochs=2", "dropout=[0,0.2]"]
    args += ["snapshot_seconds=0", "num_workers=1", "resume=true"]
    return Job("train.py", args, folder / "output/tiny/fold0", "resume/*.pt")


def prediction_job(folder: Path, views: int = 200) -> Job:
    """Predict small test images of five cars by one fold, in chunks of 16."""
    args = tiny_settings_args(
        make_data(folder / "data", test_cars=5, views=views), folder / "output"
    )
    train.main([*args, "fold=0", "max_images=8", "epochs=1"])
    args = [*prediction_args(args), "batch_size=1"]
    args += [f"submission_csv={folder / 'submitted/submission.csv'}"]
    return Job("predict.py", args, folder / "submitted", "*.chunks/*_0*.json")


JOBS = {"training": training_job, "prediction": prediction_job}


def kill_and_compare(
    job: Job, signal_name: str, draw: random.Random, kills: int, after_progress: bool
) -> Counter:
    """Kill the job up to `kills` times, let it finish, and compare its files.

    Each kill comes at a random moment, with `after_progress` soon after there is something to
    resume from. Returns the number of kills and of the starts after them that resumed.
    """
    shutil.rmtree(job.folder)
    counts = Counter(runs=1)
    while True:
        if counts["kills"] == kills:
            code, printed = 0, job.finish()
        else:
            process = job.start()
            killed = kill_soon(job, process, signal_name, draw, after_progress)
            printed, _ = process.communicate(timeout=300)
            code, expected = process.returncode, {0, *(EXIT_CODES[signal_name] if killed else ())}
            assert code in expected, (code, printed)
            if signal_name != "SIGKILL" and "Exception ignored" not in printed:
                assert "Traceback" not in printed, printed  # orphaned workers may print one
        counts["resumed"] += "resuming" in printed
        if code == 0:
            files = job.read_files()
            names = files.keys() | job.expected.keys()
            wrong = [name for name in names if files.get(name) != job.expected.get(name)]
            assert not wrong, f"{job.folder}: {wrong} differ after {dict(counts)}"
            return counts
        counts["kills"] += 1


def kill_soon(
    job: Job,
    process: subprocess.Popen,
    signal_name: str,
    draw: random.Random,
    after_progress: bool,
) -> bool:
    """Kill the process at a random moment; return False if it ended before.

    SIGKILL hits the process alone; Ctrl-C also its workers, and SIGTERM sometimes.
    """
    while after_progress and process.poll() is None and not any(job.folder.glob(job.progress)):
        time.sleep(0.01)
    seconds = (
        draw.uniform(0, 0.05)
        if after_progress
        else draw.uniform(0.2, 1) * (START_SECONDS + job.seconds)
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        signum = getattr(signal, signal_name)
        if signal_name == "SIGINT" or (signal_name == "SIGTERM" and draw.random() < 0.5):
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        return True


def main() -> None:
    torch.set_num_threads(1)  # as in the processes
    kills, selected = int(sys.argv[1]), {*sys.argv[2:]}
    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in JOBS if name in selected or not selected & JOBS.keys()]:
            job = JOBS[name](Path(folder) / name)
            for signal_name in EXIT_CODES:
                if signal_name not in selected and selected & EXIT_CODES.keys():
                    continue
                draw, counts, start = random.Random(signal_name), Counter(), time.monotonic()
                while counts["kills"] < kills:
                    most = min(KILLS_PER_RUN, kills - counts["kills"])
                    after_progress = draw.random() < 2 / 3
                    counts += kill_and_compare(job, signal_name, draw, most, after_progress)
                print(
                    f"{name:<10} {signal_name:<7} {counts['kills']} kills, {counts['resumed']} "
                    f"starts resumed, {counts['runs']} runs compared, all equal; "
                    f"{time.monotonic() - start:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
