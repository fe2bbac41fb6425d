"""Write the demo data set: rendered cars in the competition's layout.

    python src/demo.py recipe=demo            # into data_dir, which must be empty or not there

The photographs and masks imitate the competition's (studio.py draws them), so that every step can
run where the real data is not.  Here are the cars and the files.
"""

import csv
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from core import cli, config, errors
from data.demo_cars import cars, render
from data.demo_cars.cars import Body
from inference import rle

if __name__ == "__main__":  # help, wrong words and Ctrl-C are answered before the heavy imports
    cli.run_main(lambda: config.load_settings(sys.argv[1:]))

# fmt: off
BODIES = {
    "sedan": Body([
        (0.18, 0.82, 2.20, -2.22), (0.30, 0.91, 2.33, -2.34), (0.52, 0.93, 2.37, -2.38),
        (0.68, 0.92, 2.34, -2.39), (0.79, 0.90, 2.18, -2.38), (0.92, 0.89, 1.55, -2.34),
        (0.99, 0.87, 0.98, -2.26), (1.05, 0.85, 0.88, -1.68), (1.22, 0.76, 0.60, -1.35),
        (1.40, 0.66, 0.28, -1.00), (1.45, 0.56, -0.02, -0.70), (1.46, 0.0, -0.35, -0.35)],
        5.5, (1.40, -1.38), 0.33, 0.76, 0.96, (1.01, 1.37), (1.1, -0.10, -0.92, -1.36), 0.0, 0.0),
    "coupe": Body([
        (0.16, 0.84, 2.12, -2.06), (0.27, 0.93, 2.25, -2.18), (0.47, 0.95, 2.29, -2.23),
        (0.63, 0.94, 2.25, -2.24), (0.74, 0.93, 2.06, -2.24), (0.87, 0.90, 1.40, -2.21),
        (0.94, 0.88, 0.82, -2.12), (1.00, 0.85, 0.70, -1.78), (1.15, 0.75, 0.40, -1.38),
        (1.29, 0.64, 0.06, -0.92), (1.33, 0.54, -0.22, -0.66), (1.34, 0.0, -0.45, -0.45)],
        5.0, (1.36, -1.30), 0.34, 0.71, 0.91, (0.96, 1.26), (1.0, -0.50, -1.30), 0.0, 0.0),
    "hatchback": Body([
        (0.18, 0.80, 1.88, -1.80), (0.30, 0.88, 2.00, -1.93), (0.52, 0.90, 2.04, -2.00),
        (0.70, 0.89, 2.00, -2.00), (0.83, 0.88, 1.84, -2.00), (0.95, 0.86, 1.35, -1.99),
        (1.02, 0.85, 1.02, -1.97), (1.09, 0.83, 0.92, -1.95), (1.25, 0.76, 0.66, -1.86),
        (1.43, 0.67, 0.34, -1.70), (1.50, 0.57, 0.02, -1.46), (1.51, 0.0, -0.70, -0.70)],
        5.2, (1.26, -1.24), 0.32, 0.80, 1.08, (1.04, 1.41), (1.2, -0.05, -0.88, -1.6), 0.0, 0.0),
    "suv": Body([
        (0.26, 0.86, 2.14, -2.14), (0.38, 0.94, 2.27, -2.26), (0.62, 0.97, 2.33, -2.33),
        (0.86, 0.96, 2.31, -2.34), (1.00, 0.94, 2.18, -2.34), (1.12, 0.92, 1.55, -2.33),
        (1.18, 0.90, 1.12, -2.31), (1.25, 0.88, 1.00, -2.29), (1.44, 0.81, 0.70, -2.19),
        (1.64, 0.73, 0.36, -2.03), (1.72, 0.62, 0.02, -1.80), (1.74, 0.0, -0.85, -0.85)],
        6.0, (1.42, -1.38), 0.38, 0.98, 1.22, (1.20, 1.61), (1.2, 0.02, -0.92, -1.9), 0.018, 0.5),
    "pickup": Body([
        (0.36, 0.88, 2.50, -2.50), (0.48, 0.95, 2.60, -2.60), (0.70, 0.97, 2.66, -2.66),
        (0.95, 0.97, 2.65, -2.67), (1.09, 0.95, 2.52, -2.67), (1.17, 0.94, 1.90, -2.66),
        (1.22, 0.92, 1.36, -2.62), (1.26, 0.90, 1.26, -1.08), (1.36, 0.87, 1.12, -1.00),
        (1.56, 0.80, 0.84, -0.94), (1.75, 0.72, 0.54, -0.86), (1.84, 0.62, 0.24, -0.62),
        (1.86, 0.0, -0.15, -0.15)],
        7.0, (1.74, -1.60), 0.41, 1.06, 1.14, (1.30, 1.71), (1.4, 0.25, -0.72), 0.0, 0.0),
    "van": Body([
        (0.20, 0.86, 2.28, -2.32), (0.32, 0.96, 2.40, -2.44), (0.56, 0.98, 2.47, -2.50),
        (0.78, 0.98, 2.44, -2.51), (0.92, 0.96, 2.28, -2.51), (1.05, 0.94, 1.80, -2.50),
        (1.13, 0.92, 1.42, -2.48), (1.22, 0.89, 1.25, -2.46), (1.42, 0.82, 0.92, -2.37),
        (1.62, 0.74, 0.58, -2.22), (1.72, 0.63, 0.20, -2.00), (1.74, 0.0, -0.90, -0.90)],
        6.0, (1.52, -1.50), 0.34, 0.90, 1.26, (1.14, 1.60), (1.5, 0.40, -0.85, -2.1), 0.016, 0.0),
}
PAINTS = {  # linear light: blue, green, red; the share mirrored head on
    "white": (0.80, 0.81, 0.81, 0.04), "silver": (0.33, 0.325, 0.32, 0.14),
    "grey": (0.09, 0.085, 0.08, 0.09), "black": (0.006, 0.006, 0.006, 0.035),
    "red": (0.018, 0.015, 0.40, 0.04), "blue": (0.13, 0.045, 0.012, 0.05),
    "beige": (0.20, 0.27, 0.31, 0.08), "green": (0.03, 0.06, 0.022, 0.05),
}
NAMES = {  # makes and models which nobody has built
    "sedan": ("Albion", "Corso"), "coupe": ("Vento", "Lince"), "hatchback": ("Piko", "Uno Due"),
    "suv": ("Nordvik", "Fjell"), "pickup": ("Granger", "Hauler"), "van": ("Albion", "Familia"),
}
# fmt: on


class DemoCar(NamedTuple):
    """One car of the data set; its number and the seed fix everything about it."""

    id: str  # 12 hex digits
    number: int
    body: str  # a key of BODIES
    colour: str  # a key of COLOURS
    year: int


def draw_cars(count: int, seed: int) -> list[DemoCar]:
    """Which cars there are: the body types take turns, the rest is drawn."""
    entries = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        body, colour = list(BODIES)[number % len(BODIES)], rng.choice(list(PAINTS))
        name = f"{rng.integers(1 << 48):012x}"
        entries.append(DemoCar(name, number, body, str(colour), int(rng.integers(2006, 2018))))
    return entries


def write_mask(path: Path, mask: np.ndarray) -> None:
    """HxW bool -> the competition's kind of GIF: a palette of black and white, pixels 0 and 1."""
    picture = Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(path)


def render_car(
    folder: Path, entry: DemoCar, training: bool, seed: int, size: tuple[int, int]
) -> list[tuple[str, str]]:
    """Write all views of one car -> (file name, RLE of its mask) of each."""
    cv2.setNumThreads(1)  # the cars already fill the cores
    rng = np.random.default_rng([seed, entry.number, 1])
    car = cars.build_car(rng, BODIES[entry.body], PAINTS[entry.colour])
    rows = []
    for view in range(1, render.N_VIEWS + 1):
        image, mask = render.render_view(car, view, size)
        name = f"{entry.id}_{view:02d}"
        into = folder / ("train" if training else "test") / f"{name}.jpg"
        if not cv2.imwrite(str(into), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"{into}: cannot be written")
        if training:
            write_mask(folder / "train_masks" / f"{name}_mask.gif", mask)
        rows.append((into.name, rle.encode(mask)))
    return rows


def write_table(path: Path, header: str, rows: list[tuple]) -> None:
    """A CSV file of rows, sorted."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([header.split(","), *sorted(rows)])


def write_dataset(
    folder: Path, train_cars: int, test_cars: int, seed: int, size: tuple[int, int]
) -> None:
    """Render everything into an empty folder, one process per core, each a car at a time."""
    for name in ("train", "train_masks", "test"):
        (folder / name).mkdir()
    entries, truth = draw_cars(train_cars + test_cars, seed), []
    # Spawned, not forked: the parent may already run threads, which do not survive a fork.
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
        tqdm(total=len(entries) * render.N_VIEWS, unit="image", desc="render", disable=None) as bar,
    ):
        tasks = {}
        for entry in entries:
            training = entry.number < train_cars
            tasks[pool.submit(render_car, folder, entry, training, seed, size)] = training
        for task in as_completed(tasks):
            truth += [] if tasks[task] else task.result()
            bar.update(len(task.result()))
    write_table(folder / "test_truth.csv", "img,rle_mask", truth)
    write_table(
        folder / "sample_submission.csv", "img,rle_mask", [(row[0], "1 1") for row in truth]
    )
    models = [(e.id, e.year, *NAMES[e.body], e.body, e.colour) for e in entries]
    write_table(folder / "metadata.csv", "id,year,make,model,trim1,trim2", models)


def render_dataset(
    folder: Path,
    train_cars: int,
    test_cars: int,
    seed: int,
    size: tuple[int, int] = (1280, render.FRAME_WIDTH),
) -> None:
    """Write the data set into folder, whole or not at all; InputError if there is something in it.

    size is height, width of the frames.  The same arguments give the same bytes.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.InputError(f"data_dir={folder}: exists and is not empty; remove it first")
    partial = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        write_dataset(partial, train_cars, test_cars, seed, size)
        partial.rename(folder)  # an empty folder gives way
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    settings = config.load_settings(sys.argv[1:])
    render_dataset(
        Path(settings.data_dir), settings.demo_cars, settings.demo_test_cars, settings.seed
    )


if __name__ == "__main__":
    cli.run_main(main)
