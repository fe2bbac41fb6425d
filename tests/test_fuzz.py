"""Files that were altered at random are refused in one line or read rightly; nothing else.

tests/fuzz.py does the same for as long as one likes, guided by coverage."""

import cv2
import numpy as np
import pytest
from conftest import draw_car, write_mask
from hypothesis import given
from hypothesis import strategies as st

from core import config
from core.errors import InputError
from core.settings import Settings
from data import csv_files, image_io
from evaluation import submission
from inference import rle

FOLDS = b"dataset,group,fold\ntiny,a,0\ntiny,b,1\nother,a,0\ntiny,c,1\n"
SUBMISSION = b"img,rle_mask\na_01.jpg,1 3 9 2\nb_01.jpg,\nc_01.jpg,3456 1\n"
EDIT = st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=4))
SPECIAL = [
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"-1",
    b"1e3",
    b"\xd9\xa1",
]
EDITS = st.lists(
    EDIT | st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(SPECIAL))
)


def altered(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Some bytes taken out, others put in."""
    for place, out, put in edits:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + out :]
    return data


def check_folds(path, data: bytes) -> None:
    """Read folds.csv: groups in folds that count from 0 without a hole, or a line."""
    path.write_bytes(data)
    try:
        folds = csv_files.read_folds(Settings(folds_csv=str(path), dataset_name="tiny"))
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert set(folds.values()) == set(range(max(folds.values()) + 1))
        assert data.count(b"tiny") >= len(folds)


def check_submission(folder, data: bytes) -> None:
    """Check a submission: it is refused, or names each image once with a mask in the frame."""
    path = folder / "s.csv"
    path.write_bytes(data)
    try:
        table = csv_files.read_csv_strict(path, submission.SUBMISSION_COLUMNS)
        faults = submission.name_errors(table, ["a_01.jpg", "b_01.jpg", "c_01.jpg"])
        sizes = dict.fromkeys(table["img"], submission.CARVANA_SIZE)
        faults += submission.mask_errors(table, sizes)[0]
    except InputError as error:
        assert "\n" not in str(error)
        return
    if not faults:
        assert sorted(table["img"]) == ["a_01.jpg", "b_01.jpg", "c_01.jpg"]
        for text in table["rle_mask"]:
            mask = rle.decode(text, submission.CARVANA_SIZE)
            assert mask.sum() == sum(map(int, text.split(" ")[1::2] if text else []))


def check_recipe(path, data: bytes) -> None:
    """Load a recipe: settings within their ranges, or a line."""
    path.write_bytes(data)
    try:
        settings = config.load_settings([f"recipe={path}"])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert settings.lr > 0 and settings.epochs > 0 and isinstance(settings.channels, list)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(EDITS)
def test_folds(folder, edits):
    check_folds(folder / "folds.csv", altered(FOLDS, edits))


@given(EDITS)
def test_submissions(folder, edits):
    check_submission(folder, altered(SUBMISSION, edits))


@given(EDITS | st.binary(max_size=40).map(lambda data: [(0, 10**6, data)]))
def test_recipes(folder, edits):
    check_recipe(folder / "mine.yaml", altered(b"lr: 1e-3\nsize: [32, 48]\nbatch: 4\n", edits))


@given(st.sampled_from(["gif", "png"]), EDITS)
def test_masks(folder, kind, edits):
    """A mask file is read as some mask of the size that its header claims, or refused."""
    path = folder / f"mask.{kind}"
    write_mask(path, draw_car(0, 1, (24, 36))[1])
    path.write_bytes(altered(path.read_bytes(), edits))
    try:
        size = image_io.read_image_size(path)
        mask = image_io.read_mask(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert mask.dtype == bool and mask.shape == size


@given(st.sampled_from([".jpg", ".png"]), EDITS)
def test_photographs(folder, suffix, edits):
    data = cv2.imencode(suffix, draw_car(0, 1, (24, 36))[0])[1].tobytes()
    path = folder / f"image{suffix}"
    path.write_bytes(altered(data, edits))
    try:
        image = image_io.read_image(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert image.dtype == np.uint8 and image.shape == (*image_io.read_image_size(path), 3)
