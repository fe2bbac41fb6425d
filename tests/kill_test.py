"""Kills training and prediction at random moments and starts them again, many times over: what they
leave must be, byte for byte, what undisturbed ones leave.

python tests/torture.py 50             kills by each of three signals, of training and of prediction
python tests/torture.py 50 training SIGTERM     of some alone
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
from conftest import ROOT, make_data, place, words_for

CODES = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "SIGINT": (130, -2)}
TIMES = ["seconds", "images_per_second", "peak_gb"]  # of history.csv: no two runs have them alike
DIFFER = {"about.json", "submission.json", ".lock"}  # they tell when it was started, by whom
ROUND = 10  # kills before a run is let through
MARKS = {"training": "resume/*.pt", "prediction": "*.parts/0*.csv"}  # what there is to go on from


class Victim:
    """A command, the folder that it fills, and what it leaves there undisturbed."""

    def __init__(self, script: str, words: list[str], folder: Path):
        self.script, self.words, self.folder = script, words, folder
        begun = time.monotonic()
        self.finish(self.start())
        self.seconds, self.expected = time.monotonic() - begun, self.left()

    def start(self) -> subprocess.Popen:
        """The process, in a group of its own, as a shell starts it."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "src" / self.script), *self.words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen) -> str:
        """Wait for a good end; what it printed."""
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        return printed

    def left(self) -> dict[str, bytes]:
        """The folder's files by name; of history.csv all but the times."""
        found = {}
        for path in self.folder.iterdir():
            found[path.name] = b"" if path.is_dir() or path.name in DIFFER else path.read_bytes()
        if "history.csv" in found:
            table = pd.read_csv(self.folder / "history.csv").drop(columns=TIMES)
            found["history.csv"] = table.to_csv().encode()
        return found


def training(folder: Path, epochs: int = 12) -> Victim:
    """A fold of small images, with a snapshot after every update and a worker process."""
    data = make_data(folder / "data", views=8)
    more = [
        "fold=0",
        f"epochs={epochs}",
        "validate_every_epochs=10",
        "dropout=[0,0.2]",
        "snapshot_seconds=0",
    ]
    words = [*words_for(data, folder / "out"), *more, "num_workers=1", "resume=true"]
    return Victim("train.py", words, folder / "out/tiny/fold0")


def prediction(folder: Path, views: int = 200) -> Victim:
    """Small test images of five cars by such a fold, in parts of 16."""
    data = make_data(folder / "data", test_cars=5, views=views)
    words = words_for(data, folder / "out")
    Victim("train.py", [*words, "fold=0", "max_images=8", "epochs=1"], folder / "out/tiny/fold0")
    more = ["batch_size=1", f"submission_csv={folder / 'submitted/submission.csv'}"]
    return Victim("predict.py", [*place(words), *more], folder / "submitted")


def disturb(
    victim: Victim, name: str, draw: random.Random, most: int, mark: str | None = None
) -> Counter:
    """Kill it up to `most` times, at random moments or once it has left the files `mark`, then let
    it through and compare: how many kills there were, and how many of the starts after them went
    on from something."""
    shutil.rmtree(victim.folder)
    counts = Counter(runs=1)
    while True:
        process = victim.start()
        try:
            if counts["kills"] < most:
                while mark and process.poll() is None and not any(victim.folder.glob(mark)):
                    time.sleep(0.01)
                process.wait(draw.uniform(*((0, 0.05) if mark else (0.2, 1))) * victim.seconds)
        except subprocess.TimeoutExpired:
            kill(process, name, draw)
            printed, _ = process.communicate(timeout=120)
            assert process.returncode in (0, *CODES[name]), (process.returncode, printed)
            if name != "SIGKILL" and "Exception ignored" not in printed:
                assert "Traceback" not in printed, printed  # orphaned workers may complain
            if process.returncode:
                counts += Counter(kills=1, resumed="going on" in printed)
                continue
        else:
            printed = victim.finish(process)
        counts["resumed"] += "going on" in printed
        left = victim.left()
        wrong = [
            n for n in left.keys() | victim.expected.keys() if left.get(n) != victim.expected.get(n)
        ]
        assert not wrong, f"{victim.folder}: {wrong} differ after {dict(counts)}"
        return counts


def kill(process: subprocess.Popen, name: str, draw: random.Random) -> None:
    """SIGKILL hits the process alone; Ctrl-C its workers, too, and SIGTERM sometimes."""
    number = getattr(signal, name)
    if name == "SIGINT" or (name == "SIGTERM" and draw.random() < 0.5):
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def main() -> None:
    kills, only = int(sys.argv[1]), sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for make in (training, prediction):
            names = [name for name in CODES if name in only or not {*CODES} & {*only}]
            if {*MARKS} & {*only} and make.__name__ not in only:
                continue
            victim = make(Path(folder) / make.__name__)
            for name in names:
                draw, counts, begun = random.Random(name), Counter(), time.monotonic()
                while counts["kills"] < kills:
                    most, mark = min(ROUND, kills - counts["kills"]), MARKS[make.__name__]
                    counts += disturb(victim, name, draw, most, draw.choice([None, mark, mark]))
                print(
                    f"{make.__name__:<10} {name:<7} {counts['kills']} kills, {counts['resumed']} "
                    f"starts went on, {counts['runs']} runs compared, none differs; "
                    f"{time.monotonic() - begun:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
