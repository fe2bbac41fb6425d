"""Submissions and recipes that are damaged at random are rejected in one line or read correctly.

tests/fuzz.py runs the same checks for any length of time, guided by coverage.
"""

from byte_edits import EDITS, apply_edits
from hypothesis import given
from hypothesis import strategies as st

from core import config
from core.errors import InputError
from data import csv_files, rle
from evaluation import submission

SUBMISSION = b"img,rle_mask\na_01.jpg,1 3 9 2\nb_01.jpg,\nc_01.jpg,3456 1\n"
NAMES = ["a_01.jpg", "b_01.jpg", "c_01.jpg"]
RECIPE = b"lr: 1e-3\nsize: [32, 48]\nbatch_size: 4\n"


def check_submission(folder, data: bytes) -> None:
    """Check `data` as a submission: it has errors, or one valid mask of each image."""
    path = folder / "submission.csv"
    path.write_bytes(data)
    try:
        table = csv_files.read_csv_strict(path, submission.SUBMISSION_COLUMNS)
    except InputError as error:
        assert "\n" not in str(error)
        return
    sizes = dict.fromkeys(table["img"], submission.IMAGE_SIZE)
    errors = submission.name_errors(table, NAMES) + submission.mask_errors(table, sizes)[0]
    if not errors:
        assert sorted(table["img"]) == NAMES
        for text in table["rle_mask"]:
            mask = rle.decode(text, submission.IMAGE_SIZE)
            assert mask.sum() == sum(map(int, text.split(" ")[1::2] if text else []))


def check_recipe(path, data: bytes) -> None:
    """Load `data` as a recipe: settings within their ranges, or an InputError of one line."""
    path.write_bytes(data)
    try:
        settings = config.load_settings([f"recipe={path}"])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert settings.lr > 0 and settings.batch_size > 0
        assert settings.size is None or (len(settings.size) == 2 and min(settings.size) >= 8)


@given(EDITS)
def test_damaged_submission_is_rejected_or_valid(scratch_dir, edits):
    check_submission(scratch_dir, apply_edits(SUBMISSION, edits))


@given(EDITS | st.binary(max_size=40).map(lambda data: [(0, 10**6, data)]))
def test_damaged_recipe_is_rejected_or_valid(scratch_dir, edits):
    check_recipe(scratch_dir / "recipe.yaml", apply_edits(RECIPE, edits))
