"""Masks, cutouts and overlays of photographs, written to pictures_dir or output/<run>/<name>/."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from core import run_folder
from core.device import explain_large_photograph
from core.errors import InputError
from core.files import atomic_write_text, folder_lock
from core.progress import image_progress
from core.settings import Settings
from core.text import format_count
from core.threads import map_in_threads
from data.classes import ClassMap, colorize, encode_values
from data.color_profile import convert_to_srgb
from data.datasets import SKIP_HINT, check_headers, get_class_map
from data.fingerprint import file_identity, short_hash
from data.image_files import warn_of_other_files
from data.image_io import find_photographs, read_image, write_image
from evaluation import visualize
from inference.chunks import prediction_key
from inference.cutout import read_background
from inference.segmentation import Segmentation
from inference.trained_model import TrainedModel

# Each thread keeps up to three predictions in memory. A prediction of 24 megapixels takes 170 MB.
WRITER_THREADS = 2
PICTURES = ("mask.png", "label.png", "cutout.png", "overlay.jpg", "background.jpg")
SOURCE_NAME = "source.txt"  # the path of the photographs
UNFINISHED_NAME = ".unfinished"  # networks and settings, then a line per finished photograph


def list_photographs(settings: Settings) -> list[Path]:
    """Return the photographs of the setting `images`.

    Raises InputError if their pictures could not be made, before networks are loaded.
    """
    photographs = find_photographs(Path(settings.images))[: settings.max_images or None]
    if not settings.skip_unreadable:
        check_headers(photographs)
    check_background(settings, get_class_map(settings))
    find_pictures_dir(settings)
    return photographs


def predict_photographs(
    settings: Settings, model: TrainedModel, photographs: list[Path]
) -> list[str]:
    """Predict the photographs, write their pictures and print where.

    Continues an interrupted prediction with the same networks and settings. Returns an error
    message for each unreadable photograph that skip_unreadable=true skips. Raises InputError if a
    photograph is unreadable and skip_unreadable=false.
    """
    folder, background = find_pictures_dir(settings), Path(settings.background)
    key = prediction_key(settings, model.members, model.binarizer)
    key += short_hash(file_identity(background) if background.is_file() else settings.background)
    with folder_lock(folder, "wait, it writes pictures there"):
        claim_folder(folder, Path(settings.images))
        finished = read_finished(folder / UNFINISHED_NAME, key)
        pending = {
            path: identity
            for path in photographs
            if (identity := short_hash(file_identity(path), 16)) not in finished
            or not (folder / f"{path.stem}_mask.png").exists()
        }
        if done := len(photographs) - len(pending):
            print(f"resuming: {format_count(done, 'photograph')} predicted already")
        errors = write_pictures(settings, model, pending, folder)
        written = {f"{path.stem}_mask.png" for path in photographs}
        warn_of_other_files(folder, "*_mask.png", written)
        (folder / UNFINISHED_NAME).unlink()
    return errors


def read_finished(log: Path, key: str) -> set[str]:
    """Return the identities of the photographs that a prediction with this key has finished.

    If the log is missing or of another prediction, begins a new one.
    """
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    if lines[:1] == [key]:
        return {*lines[1:]}
    log.write_text(f"{key}\n", encoding="utf-8")
    return set()


def write_pictures(
    settings: Settings, model: TrainedModel, photographs: dict[Path, str], folder: Path
) -> list[str]:
    """Predict photographs, write their pictures to `folder`, and print a summary.

    `photographs` has the line of each photograph for the log of finished ones. Returns the error
    messages of skipped photographs, as predict_photographs() does.
    """
    class_map, errors = get_class_map(settings), []

    def write(predicted: tuple[Path, Segmentation | None]) -> str:
        """Write the pictures of a photograph; return its name if its mask is empty, else ""."""
        photograph, result = predicted
        for ending in PICTURES:  # delete the pictures of an earlier prediction
            (folder / f"{photograph.stem}_{ending}").unlink(missing_ok=True)
        if result is None:
            return ""
        with explain_large_photograph(str(photograph)):
            for ending, picture in draw_pictures(result, class_map, settings.background):
                write_image(folder / f"{photograph.stem}_{ending}", picture)
        with open(folder / UNFINISHED_NAME, "a", encoding="utf-8") as log:
            log.write(f"{photographs[photograph]}\n")
        return "" if result.mask.any() else photograph.name

    # The threads draw and write while the next photographs are predicted.
    results = predict_each(settings, model, [*photographs], errors)
    empty = [name for name in map_in_threads(write, results, WRITER_THREADS) if name]
    if not class_map.is_binary:
        write_image(folder / "legend.png", visualize.draw_legend(class_map))
    count = len(photographs) - len(errors)
    path = Path(settings.images)
    print(f"{format_count(count, 'photograph')} from {path}, written to {folder}")
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        print(f"{len(empty)} of {count} masks {verb} empty; the first is of {empty[0]}")
    return errors


def predict_each(
    settings: Settings, model: TrainedModel, photographs: list[Path], errors: list[str]
) -> Iterator[tuple[Path, Segmentation | None]]:
    """Yield each photograph with its prediction, or with None if the photograph is unreadable.

    Appends the error message of an unreadable photograph to `errors`. Raises InputError instead if
    skip_unreadable=false.
    """
    for photograph in image_progress(photographs, "predict", len(photographs)):
        try:
            with explain_large_photograph(str(photograph)):
                image = read_image(photograph)
        except InputError as error:
            if not settings.skip_unreadable:
                raise InputError(f"{error}{SKIP_HINT}") from None
            errors.append(str(error))
            yield photograph, None
        else:
            result = model.segment(image, str(photograph))
            yield photograph, replace(result, image=convert_to_srgb(photograph, image))


def find_pictures_dir(settings: Settings) -> Path:
    """Return the folder for the pictures: pictures_dir, or else output/<run>/<name>.

    Raises InputError if pictures_dir holds files that predict.py has not written: some of them
    might be overwritten.
    """
    photographs = Path(settings.images)
    if not settings.pictures_dir:
        name = photographs.resolve().name if photographs.is_dir() else photographs.stem
        return run_folder.photographs_dir(settings.run_dir, name)
    folder = Path(settings.pictures_dir)
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        is_usable = SOURCE_NAME in names or all(name.startswith(".") for name in names)
    else:
        is_usable = not folder.exists()
    if not is_usable:
        raise InputError(
            f"pictures_dir={folder}: is not a folder for pictures only; set a new or empty folder"
        )
    return folder


def claim_folder(folder: Path, photographs: Path) -> None:
    """Record in `folder` the path of its photographs.

    Raises InputError if `folder` holds pictures of another path: they would be overwritten or
    mixed.
    """
    note, source = folder / SOURCE_NAME, str(photographs.resolve())
    if not note.exists():
        atomic_write_text(note, source + "\n")
    elif (found := note.read_text(encoding="utf-8").removesuffix("\n")) != source:
        fix = "move it away, or set pictures_dir=<new folder>"
        raise InputError(f"{folder}: holds pictures of {found}, not of {source}; {fix}")


def check_background(settings: Settings, class_map: ClassMap) -> None:
    """Raise InputError if the setting `background` is invalid, before prediction starts."""
    if settings.background and not class_map.is_binary:
        raise InputError(
            f"background={settings.background}: needs a run of one class; {settings.run} has "
            f"{len(class_map.names)}"
        )
    if settings.background:
        read_background(settings.background, (8, 8))


def draw_pictures(
    result: Segmentation, class_map: ClassMap, background: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the file name ending and the pixels of each picture.

    One class: mask, cutout, overlay and, if `background` is set, the object on the background.
    Several classes: mask in color, label file and overlay.
    """
    if not class_map.is_binary:
        colored = colorize(result.mask, class_map)
        yield "mask.png", colored
        yield "label.png", encode_values(result.mask, class_map)
        yield "overlay.jpg", cv2.addWeighted(result.image, 0.5, colored, 0.5, 0)
        return
    yield "mask.png", result.mask.astype(np.uint8) * 255
    yield "cutout.png", result.cutout()
    yield "overlay.jpg", visualize.draw_overlay(result.image, result.mask)
    if background:
        yield "background.jpg", result.cutout(background)
