"""submission.py finds every error of a submission, and its score is the competition's."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REAL, assert_input_error, needs_real_data
from PIL import Image
from tiny_datasets import draw_car, write_mask, write_test_masks

import score
from core import config, run_folder
from core.errors import InputError
from core.settings import Settings
from data import csv_files, mask_io, rle
from evaluation import submission
from evaluation.metrics import mask_dice


@pytest.fixture
def csv_path(data_dir, tmp_path):
    """The true masks as a submission."""
    path = tmp_path / "s.csv"
    path.write_bytes((data_dir / "test_truth.csv").read_bytes())
    return path


@pytest.fixture
def args(data_dir, csv_path):
    return [f"data_dir={data_dir}", f"submission_csv={csv_path}"]


def errors_of(csv_path, args):
    settings = config.load_settings(args)
    table = csv_files.read_csv_strict(csv_path, submission.SUBMISSION_COLUMNS)
    errors = submission.name_errors(table, submission.expected_file_names(settings))
    sizes = submission.read_image_sizes(settings, table["img"])
    return errors + submission.mask_errors(table, sizes)[0]


# ---------------------------------------------------------------- writing


def test_write_submission_writes_the_bytes_that_kaggle_expects(tmp_path):
    path = tmp_path / "s.csv"
    submission.write_submission(path, iter([("a.jpg", "1 3"), ("b.jpg", "")]))
    assert path.read_bytes() == b"img,rle_mask\na.jpg,1 3\nb.jpg,\n"


# ---------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda t: t.drop(index=2), "000000000004_03.jpg: has no row"),
        (lambda t: pd.concat([t, t.iloc[[1]]]), "row 8, 000000000004_02.jpg: is listed twice"),
        (lambda t: t.replace("000000000004_02.jpg", "x.jpg"), "row 3, x.jpg: is not a test image"),
        (lambda t: t.assign(rle_mask="1 2 3"), "row 2, 000000000004_01.jpg: an odd count"),
        (lambda t: t.assign(rle_mask="3450 20"), "3456"),
    ],
)
def test_errors_name_row_and_image(csv_path, args, edit, error):
    assert errors_of(csv_path, args) == []
    edit(pd.read_csv(csv_path)).to_csv(csv_path, index=False)
    assert any(error in line for line in errors_of(csv_path, args))


def test_check_submission_with_errors_lists_them_and_raises(csv_path, args, capsys):
    csv_path.write_text(csv_path.read_text().replace("000000000004_02", "nobody"))
    assert_input_error(score.main, args, f"{csv_path}: invalid submission, 2 errors")
    captured = capsys.readouterr()
    assert captured.out == "" and "row 3, nobody.jpg: is not a test image" in captured.err
    assert "000000000004_02.jpg: has no row" in captured.err


def test_swapped_columns_are_errors_of_their_rows(csv_path, args):
    """Run lengths are longer than any file name may be."""
    table = pd.read_csv(csv_path).rename(columns={"img": "rle_mask", "rle_mask": "img"})
    table.assign(img="1 1 " * 500)[["img", "rle_mask"]].to_csv(csv_path, index=False)
    assert errors_of(csv_path, args)[0].startswith("row 2, 1 1 1 1 ")


def test_check_submission_prints_at_most_20_errors(csv_path, args, capsys):
    rows = [f"{i}.jpg," for i in range(30)]
    csv_path.write_text(csv_path.read_text() + "\n".join(rows) + "\n")
    assert_input_error(score.main, args, "30 errors")
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 22 and errors[-1] == "  ... and 10 more"


def test_expected_file_names_without_sample_are_the_test_images(csv_path, args, data_dir):
    (data_dir / "sample_submission.csv").unlink()
    assert errors_of(csv_path, args) == []
    (data_dir / "test/000000000005_02.jpg").unlink()
    assert errors_of(csv_path, args) == ["row 6, 000000000005_02.jpg: is not a test image"]


@pytest.mark.parametrize("header", ["image,mask", "img,rle_mask,extra"])
def test_check_submission_with_wrong_header_is_rejected(csv_path, args, header):
    csv_path.write_text(csv_path.read_text().replace("img,rle_mask", header))
    assert_input_error(score.main, args, str(csv_path), "expected the header img,rle_mask")


def test_check_submission_of_part_of_the_images_is_announced(csv_path, args, capsys):
    csv_path.write_text("".join(csv_path.read_text().splitlines(keepends=True)[:3]))
    score.main([*args, "max_images=2"])
    printed = capsys.readouterr().out
    assert "max_images=2: these are not all test images" in printed
    assert f"{csv_path}: 2 rows, valid" in printed


def test_read_image_sizes_of_absent_image_is_that_of_the_competition(args, data_dir):
    sizes = submission.read_image_sizes(
        config.load_settings(args), ["000000000004_01.jpg", "absent.jpg"]
    )
    assert sizes == {"000000000004_01.jpg": (48, 72), "absent.jpg": (1280, 1918)}


def test_masks_of_other_images_than_the_competitions_are_not_checked_without_them(args, data_dir):
    (data_dir / "test").rename(data_dir / "elsewhere")
    truth = f"truth_csv={data_dir / 'test_truth.csv'}"
    parts = ["test: does not exist", "masks are checked against the size of their images"]
    assert_input_error(score.main, [*args, truth, "dataset_name=tiny"], *parts)
    score.main([*args, truth])


def test_read_image_sizes_of_unreadable_image_raises_unless_skipped(args, data_dir):
    path = data_dir / "test/000000000004_01.jpg"
    path.write_bytes(b"no image")
    assert_input_error(score.main, args, str(path))
    settings = config.load_settings([*args, "skip_unreadable=true"])
    assert submission.read_image_sizes(settings, [path.name]) == {path.name: (1280, 1918)}


def warnings_of(masks):
    """Return the warnings of masks of equal size, without the names of the images."""
    names = pd.Series([f"{i}.jpg" for i in range(len(masks))])
    table = pd.DataFrame({"img": names, "rle_mask": [rle.encode(mask) for mask in masks]})
    errors, statistics = submission.mask_errors(table, dict.fromkeys(names, masks[0].shape))
    assert not errors
    lines = submission.suspicious_masks(table, statistics)
    return {int(line.split(",")[0].removeprefix("row ")) - 2: line.split(": ")[1] for line in lines}


def draw_masks(count, size=(48, 72)):
    """Return different masks of roughly the same area."""
    return [draw_car(0, view, size)[1] for view in range(count)]


def test_suspicious_masks_are_empty_or_outliers():
    masks = draw_masks(20)
    assert warnings_of(masks) == {}
    masks[3], masks[7] = np.zeros((48, 72), bool), np.ones((48, 72), bool)
    masks[7][:5] = False
    assert warnings_of(masks) == {3: "is empty", 7: "covers 89.6%"}
    assert warnings_of([masks[3]] * 3) == dict.fromkeys(range(3), "is empty")


def test_suspicious_masks_cover_the_whole_image():
    masks = [np.ones((48, 72), bool) for _ in range(3)]
    masks[1][0, 0] = masks[2][-1, -1] = False
    assert warnings_of(masks) == dict.fromkeys(range(3), "covers 100.0%")
    for i, mask in enumerate(masks):
        mask[0, : 20 + i] = False  # 0.6% of 3,456 pixels
    assert {*warnings_of(masks).values()} <= {"covers 99.4%", "covers 99.3%"}
    assert len(warnings_of(masks)) == 3


def test_suspicious_masks_are_repeated():
    masks = draw_masks(6)
    assert warnings_of([*masks, masks[1]]) == {}
    repeated = [*masks, masks[1], masks[1], masks[4], masks[4], masks[4]]
    assert warnings_of(repeated) == {
        1: "is the same mask as in 2 other rows",
        4: "is the same mask as in 3 other rows",
    }


@pytest.mark.parametrize("size", [(48, 72), (72, 48), (400, 600)])
def test_suspicious_masks_are_counted_down_the_columns(size):
    masks = draw_masks(4, size)
    assert warnings_of(masks) == {}
    lines = warnings_of([mask.T.reshape(size) for mask in masks])
    assert lines.keys() == {0, 1, 2, 3}
    for line in lines.values():
        assert (
            line.startswith("is scattered (")
            and "down the columns instead of along the rows" in line
        )


@needs_real_data
def test_suspicious_masks_of_the_competition_are_those_counted_down_the_columns():
    path = REAL / "carvana/train_masks.csv"
    table = csv_files.read_csv_strict(path, submission.SUBMISSION_COLUMNS)[:32]
    masks = [rle.decode(text, submission.IMAGE_SIZE) for text in table["rle_mask"]]
    assert warnings_of(masks) == {}
    lines = warnings_of([mask.T.reshape(mask.shape) for mask in masks])
    assert len(lines) == 32 and all("is scattered" in line for line in lines.values())


# ---------------------------------------------------------------- replacing


@pytest.mark.parametrize(
    ("existing", "is_replaceable"),
    [
        (["a.jpg", "b.jpg"], True),
        (["b.jpg", "a.jpg"], True),
        (["a.jpg"], True),  # of a trial with max_images=1
        ([], True),
        (["a.jpg", "b.jpg", "c.jpg"], False),
        (["x.jpg"], False),
    ],
)
def test_require_replaceable_rejects_a_csv_of_other_images(tmp_path, existing, is_replaceable):
    path = tmp_path / "s.csv"
    submission.write_submission(path, ((name, "1 3") for name in existing))
    settings = config.load_settings([f"submission_csv={path}", "data_dir=photos"])
    if is_replaceable:
        submission.require_replaceable(settings, ["a.jpg", "b.jpg"])
        return
    with pytest.raises(InputError) as error:
        submission.require_replaceable(settings, ["a.jpg", "b.jpg"])
    for part in (f"{path}: has masks of other images (1), such as {existing[-1]}", "2 masks of "):
        assert part in str(error.value)
    assert "photos, such as a.jpg: set submission_csv=... or delete that file" in str(error.value)


@pytest.mark.parametrize(("stored", "printed"), [('["a"]', True), ('["b"]', False), ("", False)])
def test_require_replaceable_names_the_runs_whose_submission_it_replaces(
    tmp_path, capsys, stored, printed
):
    path = tmp_path / "submission.csv"
    path.write_text("img,rle_mask\na.jpg,1 1\n")
    path.with_suffix(".json").write_text(f'{{"runs": {stored}}}')
    submission.require_replaceable(Settings(submission_csv=str(path), runs=["b"]), ["a.jpg"])
    line = f"{path}: will replace the submission of a; to keep it, set submission_csv=...\n"
    assert capsys.readouterr().out == (line if printed else "")


def test_require_replaceable_rejects_another_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,age\n")
    settings = config.load_settings([f"submission_csv={path}"])
    with pytest.raises(InputError, match=r"found name,age; it would be replaced: set submission_"):
        submission.require_replaceable(settings, ["a.jpg"])
    path.unlink()
    submission.require_replaceable(settings, ["a.jpg"])


# ---------------------------------------------------------------- scoring


def test_score_of_the_truth_is_one(args, data_dir, capsys):
    score.main([*args, f"truth_csv={data_dir / 'test_truth.csv'}"])
    printed = capsys.readouterr().out
    assert "6 rows, valid" in printed
    assert "mean dice 1.000000 ± 0.000000 of the submission, on 6 images of 2 groups" in printed


def test_score_against_a_truth_with_an_image_twice_is_rejected(args, data_dir, tmp_path):
    truth = pd.read_csv(data_dir / "test_truth.csv")
    path = tmp_path / "truth.csv"
    pd.concat([truth, truth.iloc[[0]]]).to_csv(path, index=False)
    assert_input_error(score.main, [*args, f"truth_csv={path}"], "is listed twice")


def test_score_against_a_truth_counted_down_the_columns_is_rejected(args, data_dir, tmp_path):
    truth = pd.read_csv(data_dir / "test_truth.csv")
    columns = [rle.encode(rle.decode(text, (48, 72)).T) for text in truth["rle_mask"]]
    path = tmp_path / "truth.csv"
    truth.assign(rle_mask=columns).to_csv(path, index=False)
    parts = (f"{path}: 000000000004_01.jpg: its pixels seem to be counted down the columns",)
    assert_input_error(score.main, [*args, f"truth_csv={path}"], *parts)


def test_score_is_the_mean_dice_of_the_masks(csv_path, args, data_dir, capsys):
    table = pd.read_csv(csv_path)
    masks = [rle.decode(text, (48, 72)) for text in table["rle_mask"]]
    shifted = [np.roll(mask, 3) for mask in masks]
    table.assign(rle_mask=list(map(rle.encode, shifted))).to_csv(csv_path, index=False)
    score.main([*args, f"truth_csv={data_dir / 'test_truth.csv'}"])
    dice = np.mean([mask_dice(a, b) for a, b in zip(shifted, masks, strict=True)])
    assert 0.8 < dice < 0.99 and f"mean dice {dice:.6f} ± " in capsys.readouterr().out


@pytest.mark.parametrize("truth", ["csv", "masks"])
def test_score_of_rows_in_another_order_is_that_of_their_images(
    csv_path, args, data_dir, capsys, truth
):
    if truth == "csv":
        args = [*args, f"truth_csv={data_dir / 'test_truth.csv'}"]
    else:
        write_test_masks(data_dir)
    pd.read_csv(csv_path)[::-1].to_csv(csv_path, index=False)
    score.main(args)
    assert "mean dice 1.000000" in capsys.readouterr().out


def test_score_lists_the_worst_images_first(csv_path, args, data_dir, capsys):
    table = pd.read_csv(csv_path, keep_default_na=False)
    table.loc[3, "rle_mask"] = "1 5"
    table.to_csv(csv_path, index=False)
    score.main([*args, f"truth_csv={data_dir / 'test_truth.csv'}"])
    lines = capsys.readouterr().out.split("worst images (6):\n")[1].splitlines()
    assert lines[0].endswith(f" {table['img'][3]}") and lines[1].startswith("  1.00000 ")


def test_score_reads_masks_and_groups_as_the_run_does(run_copy, capsys):
    run_dir, data_dir = run_copy.output_dir / "tiny", run_copy.data_dir
    path, text = run_folder.config_path(run_dir), run_folder.config_path(run_dir).read_text()
    settings = yaml.safe_load(text) | {"mask_threshold": 128, "group_regex": "(.+)"}
    path.write_text(yaml.safe_dump(settings))
    write_test_masks(data_dir)
    for mask in (data_dir / "test_masks").iterdir():
        soft = np.where(mask_io.read_mask(mask), 200, 60).astype(np.uint8)
        soft[0, 0] = 0
        mask.unlink()
        Image.fromarray(soft).save(mask.with_suffix(".png"))
    shutil.copy(data_dir / "test_truth.csv", run_dir / "submission.csv")
    score.main([f"output_dir={run_copy.output_dir}", "run=tiny", f"data_dir={data_dir}"])
    expected = "mean dice 1.000000 ± 0.000000 of the submission, on 6 images of 6 groups"
    assert expected in capsys.readouterr().out


def test_score_against_a_mask_of_another_size_is_rejected(csv_path, args, data_dir):
    write_test_masks(data_dir)
    path = data_dir / "test_masks" / "000000000005_02_mask.gif"
    write_mask(path, np.ones((24, 1), bool))
    assert_input_error(score.main, args, "000000000005_02.jpg: is 72×48, but its true mask is 1×24")


def test_score_of_an_empty_mask_for_an_unreadable_image_is_zero(csv_path, args, data_dir, capsys):
    write_test_masks(data_dir)
    (data_dir / "test" / "000000000005_02.jpg").write_bytes(b"junk")
    table = pd.read_csv(csv_path)
    table.loc[table["img"] == "000000000005_02.jpg", "rle_mask"] = ""
    table.to_csv(csv_path, index=False)
    score.main([*args, "skip_unreadable=true"])
    assert "mean dice 0.833333" in capsys.readouterr().out


def test_score_against_a_truth_of_other_names_blames_the_truth(args, data_dir, tmp_path):
    (data_dir / "sample_submission.csv").unlink()
    path = tmp_path / "truth.csv"
    path.write_text((data_dir / "test_truth.csv").read_text().replace(".jpg", ""))
    assert_input_error(score.main, [*args, f"truth_csv={path}"], f"{path}: has no mask of 0000")


def test_score_of_several_classes_is_rejected(args, data_dir):
    (data_dir / "classes.csv").write_text("value,name,color\n0,floor,black\n1,car,red\n")
    assert_input_error(score.main, args, "has several classes, of which there is no submission.csv")


def test_score_of_one_group_has_no_nan(csv_path, args, data_dir, capsys):
    lines = csv_path.read_text().splitlines(keepends=True)[:4]  # the header and one car
    csv_path.write_text("".join(lines))
    score.main([*args, f"truth_csv={data_dir / 'test_truth.csv'}", "max_images=3"])
    assert "mean dice 1.000000 (one group, no standard error)" in capsys.readouterr().out


@needs_real_data
def test_dice_of_shifted_and_transposed_real_masks():
    """A mask shifted by one pixel still scores 0.99: only a check against a truth notices."""
    path = REAL / "carvana/test_truth.csv"
    table = csv_files.read_csv_strict(path, submission.SUBMISSION_COLUMNS)
    masks = [rle.decode(text, submission.IMAGE_SIZE) for text in table["rle_mask"][:16]]
    shifted = [mask_dice(np.roll(mask, 1), mask) for mask in masks]
    assert 0.998 < np.mean(shifted) < 0.9996
    column_major = [mask_dice(mask.T.reshape(mask.shape), mask) for mask in masks]
    assert np.mean(column_major) < 0.6
