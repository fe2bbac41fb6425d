"""The csv files of a dataset: valid, invalid and damaged."""

import pytest
from byte_edits import EDITS, apply_edits
from hypothesis import given

from core.errors import InputError
from core.settings import Settings
from data import csv_files

FOLDS = b"dataset,group,fold\ntiny,a,0\ntiny,b,1\nother,a,0\ntiny,c,1\n"


def check_read_folds(path, data: bytes) -> None:
    """Read `data` as folds.csv: folds 0…k−1 of its groups, or an InputError of one line."""
    path.write_bytes(data)
    try:
        folds = csv_files.read_folds(Settings(folds_csv=str(path), dataset_name="tiny"))
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert set(folds.values()) == set(range(max(folds.values()) + 1))
        assert data.count(b"tiny") >= len(folds)


def test_read_folds_returns_the_rows_of_this_dataset(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_bytes(FOLDS)
    settings = Settings(folds_csv=str(path), dataset_name="tiny")
    assert csv_files.read_folds(settings) == {"a": 0, "b": 1, "c": 1}


@given(EDITS)
def test_read_folds_of_damaged_file_is_valid_or_one_line(scratch_dir, edits):
    check_read_folds(scratch_dir / "folds.csv", apply_edits(FOLDS, edits))


def test_read_car_metadata_joins_year_make_and_model(tmp_path):
    settings = Settings(data_dir=str(tmp_path))
    assert csv_files.read_car_metadata(settings) is None
    (tmp_path / "metadata.csv").write_text(
        "id,year,make,model,trim1,trim2\nabc,2012,Ford,Focus,Titanium,4dr\n"
    )
    cars = csv_files.read_car_metadata(settings)
    assert cars.loc["abc"].to_dict() == {"make": "Ford", "car": "2012 Ford Focus"}


def test_metadata_of_other_columns_is_not_the_competitions(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"id,photographer\nabc,\xe4\n")
    assert csv_files.read_car_metadata(Settings(data_dir=str(tmp_path))) is None


@pytest.mark.parametrize(
    ("read", "name", "text"),
    [
        (csv_files.read_car_metadata, "metadata.csv", "id,year,make,model,trim1,trim2\n{row}{row}"),
        (csv_files.read_submission_names, "sample_submission.csv", "img,rle_mask\n{row}{row}"),
    ],
)
def test_csv_with_a_name_twice_is_rejected(tmp_path, read, name, text):
    cells = text.splitlines()[0].count(",")
    (tmp_path / name).write_text(text.format(row="abc" + "," * cells + "\n"))
    with pytest.raises(InputError, match=f"{name}: abc is listed twice; remove one of the rows"):
        read(Settings(data_dir=str(tmp_path)))


def test_read_submission_names_keeps_order(tmp_path):
    settings = Settings(data_dir=str(tmp_path))
    assert csv_files.read_submission_names(settings) is None
    (tmp_path / "sample_submission.csv").write_text("img,rle_mask\nb.jpg,1 1\na.jpg,1 1\n")
    assert csv_files.read_submission_names(settings) == ["b.jpg", "a.jpg"]
