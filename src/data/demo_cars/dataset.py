"""Write rendered cars as a dataset in the competition's layout."""

import csv
import errno
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from core.errors import InputError
from core.files import folder_lock
from data import rle
from data.demo_cars.cars import build_car
from data.demo_cars.designs import BODIES, MAKES_AND_MODELS, PAINTS
from data.demo_cars.render import FRAME_SIZE, N_VIEWS, render_view


class DemoCar(NamedTuple):
    """One car of the dataset; with the seed, `number` determines everything drawn for it."""

    id: str  # 12 hex digits
    number: int
    body: str  # key of BODIES
    color: str  # key of PAINTS
    year: int


def draw_cars(count: int, seed: int) -> list[DemoCar]:
    """Draw `count` cars; body types alternate, the rest is random."""
    demo_cars = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        body, color = list(BODIES)[number % len(BODIES)], rng.choice(list(PAINTS))
        car_id = f"{rng.integers(1 << 48):012x}"
        demo_cars.append(DemoCar(car_id, number, body, str(color), int(rng.integers(2006, 2018))))
    return demo_cars


def write_mask_gif(path: Path, mask: np.ndarray) -> None:
    """Write an H×W bool mask as a palette GIF with pixels 0 and 1, like the competition's masks."""
    image = Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path)


def write_view(
    folder: Path, demo_car: DemoCar, view: int, split: str, seed: int, size: tuple[int, int]
) -> tuple[str, str]:
    """Render one view (1 to 16) and write its image to `folder`, for training also its mask.

    Returns the name of the image file and the run-length mask.
    """
    cv2.setNumThreads(1)  # the processes already use all cores
    rng = np.random.default_rng([seed, demo_car.number, 1])
    car = build_car(rng, BODIES[demo_car.body], PAINTS[demo_car.color])
    image, mask = render_view(car, view, size)
    image_id = f"{demo_car.id}_{view:02d}"
    path = folder / split / f"{image_id}.jpg"
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(jpeg.tobytes())
    if split == "train":
        write_mask_gif(folder / "train_masks" / f"{image_id}_mask.gif", mask)
    return path.name, rle.encode(mask)


def write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    """Write `rows`, sorted, below a comma-separated header."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header.split(","), *sorted(rows)])


def write_files(
    folder: Path, demo_cars: list[DemoCar], train_cars: int, seed: int, size: tuple[int, int]
) -> None:
    """Render the first `train_cars` cars for training and the others for testing, and write the
    csv files."""
    for name in ("train", "train_masks", "test"):
        (folder / name).mkdir()
    # Spawned, not forked: a fork of a process with running threads may hang.
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
        tqdm(total=len(demo_cars) * N_VIEWS, unit="image", desc="render", disable=None) as bar,
    ):
        futures = {"train": [], "test": []}
        for demo_car in demo_cars:
            split = "train" if demo_car.number < train_cars else "test"
            for view in range(1, N_VIEWS + 1):
                args = folder, demo_car, view, split, seed, size
                futures[split].append(pool.submit(write_view, *args))
        try:
            for future in as_completed(futures["train"] + futures["test"]):
                future.result()
                bar.update()
        except BaseException:  # such as StopRequested; leaving the pool waits for all views
            pool.shutdown(cancel_futures=True)
            raise
    truth = [future.result() for future in futures["test"]]
    write_csv(folder / "test_masks.csv", "img,rle_mask", truth)
    sample_submission = [(file_name, "1 1") for file_name, _ in truth]
    write_csv(folder / "sample_submission.csv", "img,rle_mask", sample_submission)
    metadata = [(c.id, c.year, *MAKES_AND_MODELS[c.body], c.body, c.color) for c in demo_cars]
    write_csv(folder / "metadata.csv", "id,year,make,model,trim1,trim2", metadata)


def write_demo_dataset(
    folder: Path, train_cars: int, test_cars: int, seed: int, size: tuple[int, int] = FRAME_SIZE
) -> None:
    """Render `train_cars` + `test_cars` cars into `folder`, one process per core.

    `folder` must be missing or empty; it is created only when the dataset is complete. The same
    arguments give the same bytes. `size` is height, width.
    """
    if not folder.name or folder.is_symlink() or folder.is_mount():
        raise InputError(f"data_dir={folder}: choose a folder that can be created")
    tmp_folder = folder.with_name(f"{folder.name}.tmp")
    with folder_lock(tmp_folder, "wait until it is written"):
        try:
            for left in ("train", "train_masks", "test"):  # by a process that was killed
                shutil.rmtree(tmp_folder / left, ignore_errors=True)
            demo_cars = draw_cars(train_cars + test_cars, seed)
            write_files(tmp_folder, demo_cars, train_cars, seed, size)
            (tmp_folder / ".lock").unlink()
            tmp_folder.rename(folder)  # replaces an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            found = "another process created it in the meantime"
            raise InputError(f"{folder}: {found}; run this command again") from None
        finally:
            shutil.rmtree(tmp_folder, ignore_errors=True)
