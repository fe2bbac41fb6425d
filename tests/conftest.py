"""What the tests share: where real photographs may be, and a tiny data set in their layout."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
REAL = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared" / "data"))

settings.register_profile("same every time", derandomize=True, database=None, deadline=None)
settings.load_profile("same every time")

needs_real_data = pytest.mark.skipif(
    not (REAL / "carvana" / "train").is_dir(), reason="no real photographs; REAL_DATA names them"
)


def draw_car(seed: int, view: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A dark ellipse on light ground: uint8 H×W×3 and the bool mask, drawn from seed and view."""
    height, width = size
    rng = np.random.default_rng([seed, view])
    centre = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    radii = np.array([width, height]) * rng.uniform(0.2, 0.35, 2)
    y, x = np.mgrid[:height, :width]
    mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
    image = rng.normal(200, 8, (height, width, 3))
    image[mask] -= rng.uniform(90, 150, 3)
    return image.clip(0, 255).astype(np.uint8), mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """A palette GIF of 0 and 1, as the competition's."""
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(path)


def make_data(
    folder: Path,
    cars: int = 4,
    test_cars: int = 2,
    views: int = 3,
    size: tuple[int, int] = (48, 72),
    folds: int = 2,
) -> Path:
    """The competition's layout in small, with folds.csv and the truth of the test cars."""
    from inference import rle

    for part in ("train", "train_masks", "test"):
        (folder / part).mkdir(parents=True)
    truth = ["img,rle_mask"]
    for car in range(cars + test_cars):
        for view in range(1, views + 1):
            name = f"{car:012x}_{view:02d}"
            image, mask = draw_car(car, view, size)
            part = "train" if car < cars else "test"
            cv2.imwrite(str(folder / part / f"{name}.jpg"), image)
            if part == "train":
                write_mask(folder / "train_masks" / f"{name}_mask.gif", mask)
            else:
                truth.append(f"{name}.jpg,{rle.encode(mask)}")
    (folder / "test_truth.csv").write_text("\n".join(truth) + "\n")
    sample = [truth[0], *(line.split(",")[0] + ",1 1" for line in truth[1:])]
    (folder / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    rows = [f"tiny,{car:012x},{car % folds}" for car in range(cars)]
    (folder / "folds.csv").write_text("\n".join(["dataset,group,fold", *rows]) + "\n")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A fresh tiny data set that a test may spoil."""
    return make_data(tmp_path / "tiny")


def words_for(data: Path, output: Path) -> list[str]:
    """Settings with which the tiny data set trains in a second."""
    return [
        *(f"data_dir={data}", f"folds_csv={data / 'folds.csv'}", f"output_dir={output}"),
        *(
            "dataset_name=tiny",
            "run=tiny",
            "size=[32,48]",
            "channels=[8,16]",
            "batch_size=4",
            "epochs=3",
        ),
        *("lr=0.01", "ema_decay=0.5", "device=cpu", "precision=fp32", "num_workers=0"),
    ]


def place(words: list[str]) -> list[str]:
    """The words that say where things are, and not what is trained."""
    keys = ("data_dir", "output_dir", "run", "device", "amp", "workers")
    return [word for word in words if word.split("=")[0] in keys]


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def run_script(name: str, *words: str) -> subprocess.CompletedProcess:
    """Run src/<name> as a person would; text in and out."""
    command = [sys.executable, str(ROOT / "src" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def refused(done: subprocess.CompletedProcess, *parts: str) -> str:
    """The one line that a script refused with: exit code 2, no traceback, naming `parts`."""
    assert done.returncode == 2, done.stderr + done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]
