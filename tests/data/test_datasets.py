"""Samples of the tiny dataset in the competition's layout: pairing, groups, folds, splits."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_datasets import draw_car, write_mask, write_test_masks

from core import config
from core.errors import InputError
from data import datasets, rle
from data.classes import IGNORE, ClassMap
from data.formats import carvana
from data.sample import Sample


def tiny_settings(data_dir, *args):
    folds_csv = data_dir / "folds.csv"
    args = [f"data_dir={data_dir}", f"folds_csv={folds_csv}", "dataset_name=tiny", *args]
    return config.load_settings(args)


# ---------------------------------------------------------------- training samples


def test_load_training_samples_pairs_by_name_and_sets_group_view_and_fold(shared_data_dir):
    samples = datasets.load_training_samples(tiny_settings(shared_data_dir))
    assert len(samples) == 12
    for sample in samples:
        assert sample.mask.name == f"{sample.image_id}_mask.gif"
        assert sample.image_id == f"{sample.group}_{sample.view}"
        assert sample.fold == int(sample.group, 16) % 2


@pytest.mark.parametrize(
    ("stem", "group", "view"),
    [
        ("00087a6bd4dc_01", "00087a6bd4dc", "01"),
        ("left_car7_03", "car7", "left_03"),
        ("car7", "car7", ""),
        ("a_1", "b", "a_1"),
    ],
)
def test_view_is_the_stem_without_the_group(stem, group, view):
    sample = Sample(Path(f"{stem}.jpg"), group, None, -1, "carvana", ClassMap(("car",), ()))
    assert sample.view == view


def test_load_training_samples_with_max_images_takes_the_first_of_each_fold(shared_data_dir):
    samples = datasets.load_training_samples(tiny_settings(shared_data_dir, "max_images=2"))
    names = [f"{car:012x}_{view:02d}" for car in (0, 1) for view in (1, 2)]
    assert [sample.image_id for sample in samples] == names


def test_load_training_samples_with_use_hq_images_reads_train_hq(data_dir):
    shutil.copytree(data_dir / "train", data_dir / "train_hq")
    samples = datasets.load_training_samples(tiny_settings(data_dir, "use_hq_images=true"))
    assert {sample.image.parent.name for sample in samples} == {"train_hq"}


def test_load_training_samples_with_skip_empty_drops_empty_masks(data_dir, capsys):
    name = "000000000001_02"
    write_mask(data_dir / "train_masks" / f"{name}_mask.gif", np.zeros((48, 72), bool))
    kept = datasets.load_training_samples(tiny_settings(data_dir, "skip_empty=true"))
    assert len(kept) == 11 and name not in {sample.image_id for sample in kept}
    assert capsys.readouterr().out == f"skip_empty: 1 mask with only background: {name}\n"


@pytest.mark.parametrize(
    ("group_regex", "names", "suggested"),
    [
        (r"(car\d)", ["car1_3", "car2"], r"(car\d).*"),
        (r"(car\d)", ["a_car1"], r".*(car\d).*"),
        (r"(.+)_\d+", ["car"], ""),
    ],
)
def test_suggest_regex_extends_one_that_matches_a_part_of_the_names(group_regex, names, suggested):
    expected = f"group_regex='{suggested}', or " if suggested else ""
    assert datasets.suggest_regex(group_regex, names) == expected


def test_drop_empty_masks_rejects_a_data_set_without_object(data_dir):
    for path in (data_dir / "train_masks").iterdir():
        write_mask(path, np.zeros((48, 72), bool))
    with pytest.raises(InputError, match="skip_empty=true: all 12 masks show only background"):
        datasets.load_training_samples(tiny_settings(data_dir, "skip_empty=true"))


def test_load_training_samples_rejects_names_in_which_the_group_takes_no_part(data_dir):
    with pytest.raises(InputError, match="does not match 12 of 12, the first is 000000000000_01"):
        datasets.load_training_samples(tiny_settings(data_dir, r"group_regex=(?:car(\d+))?.*"))


# ---------------------------------------------------------------- images and masks


def rename_masks(data_dir, pattern):
    """Rename the masks; {} is the stem of the image."""
    for path in list((data_dir / "train_masks").iterdir()):
        stem = path.stem.removesuffix("_mask")
        path.rename(path.with_name(pattern.format(stem) + path.suffix))


@pytest.mark.parametrize(
    ("pattern", "args"),
    [
        ("{}", []),
        ("{}_mask", ["mask_name={stem}_mask"]),
        ("{}_segmentation", ["mask_name={stem}_segmentation"]),
        ("mask of {}", ["mask_name=mask of {stem}"]),
        ("{}_seg", ["mask_name={stem}_seg.gif"]),
        ("{}.jpg", ["mask_name={stem}.jpg"]),
        ("{}.jpg", ["mask_name={stem}.jpg.gif"]),
    ],
)
def test_load_samples_finds_masks_of_other_names(data_dir, pattern, args):
    rename_masks(data_dir, pattern)
    samples = datasets.load_samples(tiny_settings(data_dir, *args), "train")
    assert [sample.mask.stem for sample in samples] == [pattern.format(s.image_id) for s in samples]


@pytest.mark.parametrize("value", ["segmentation", "{name}_mask", "masks/{stem}"])
def test_mask_name_must_contain_the_stem(data_dir, value):
    with pytest.raises(InputError, match=r"mask_name=.*must be a name with {stem}"):
        tiny_settings(data_dir, f"mask_name={value}")


def test_load_samples_counts_all_mismatches_at_once(data_dir):
    for name in ("train/000000000000_01.jpg", "train/000000000001_01.jpg"):
        (data_dir / name).unlink()
    for view in (1, 2, 3):
        (data_dir / f"train_masks/000000000002_0{view}_mask.gif").unlink()
    masks = data_dir / "train_masks"
    shutil.copy(masks / "000000000003_01_mask.gif", masks / "000000000003_01.png")
    with pytest.raises(
        InputError, match=r"no mask for 3 of 10 images.*; 3 of the masks match no image"
    ):
        datasets.load_samples(tiny_settings(data_dir), "train")


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "tiff", "jfif", "gif", "png", "JPG"])
def test_load_samples_accepts_every_image_type_for_images_and_masks(data_dir, suffix):
    for folder in ("train", "train_masks"):
        for path in list((data_dir / folder).iterdir()):
            image = Image.open(path).convert("RGB")
            path.unlink()
            image.save(path.with_suffix(f".{suffix}"), lossless=True, quality=100)
    samples = datasets.load_training_samples(tiny_settings(data_dir, "mask_threshold=128"))
    assert len(samples) == 12 and datasets.read_checked_sizes(samples) == {(48, 72)}
    expected = draw_car(0, 1, (48, 72))[1]
    assert (datasets.read_sample_mask(samples[0]) == expected).mean() > 0.995


def test_check_sizes_counts_all_masks_of_another_size(data_dir):
    for view in (1, 2):
        write_mask(
            data_dir / f"train_masks/000000000001_0{view}_mask.gif", np.zeros((72, 48), bool)
        )
    samples = datasets.load_training_samples(tiny_settings(data_dir))
    with pytest.raises(InputError) as raised:
        datasets.read_checked_sizes(samples)
    assert str(raised.value) == (
        f"{samples[3].mask}: is 48×72 but 000000000001_01.jpg is 72×48; one of them is rotated, "
        "perhaps by EXIF; rotate the other to match (2 such files)"
    )


# ---------------------------------------------------------------- missing folders


def test_load_samples_explains_the_download_only_for_the_competition(tmp_path, monkeypatch):
    monkeypatch.setattr(carvana, "ROOT", tmp_path)
    data_dir = tmp_path / "input/carvana"
    data_dir.parent.mkdir()
    args = [f"data_dir={data_dir}"]
    for dataset_name, is_explained in (("carvana", True), ("mine", False)):
        settings = config.load_settings([*args, f"dataset_name={dataset_name}"])
        with pytest.raises(InputError, match="input/carvana: does not exist") as raised:
            datasets.load_training_samples(settings)
        assert ("input/README.md" in str(raised.value)) == is_explained


def test_images_of_which_none_is_in_the_folds_get_a_hint_of_own_images_or_group_regex(data_dir):
    for dataset_name, is_explained in (("carvana", True), ("tiny", False)):
        folds_csv = data_dir / f"{dataset_name}.csv"
        folds_csv.write_text(f"dataset,group,fold\n{dataset_name},x,0\n{dataset_name},y,1\n")
        args = [f"data_dir={data_dir}", f"folds_csv={folds_csv}", f"dataset_name={dataset_name}"]
        with pytest.raises(InputError, match="has no row for 0") as raised:
            datasets.load_training_samples(config.load_settings(args))
        assert ("set recipe=own_images" in str(raised.value)) == is_explained
        assert ("with another group_regex than" in str(raised.value)) != is_explained
    folds_csv = data_dir / "some.csv"
    folds_csv.write_text("dataset,group,fold\ncarvana,000000000000,0\ncarvana,y,1\n")
    args = [f"data_dir={data_dir}", f"folds_csv={folds_csv}"]
    with pytest.raises(InputError, match="has no row for 000000000001") as raised:
        datasets.load_training_samples(config.load_settings(args))
    assert "own_images" not in str(raised.value) and "regex" not in str(raised.value)


# ---------------------------------------------------------------- train_masks.csv


def write_masks_csv(data_dir):
    """Replace train_masks/ by train_masks.csv; return the masks by image id."""
    samples = datasets.load_samples(tiny_settings(data_dir), "train")
    masks = {sample.image_id: datasets.read_sample_mask(sample) for sample in samples}
    lines = [f"{image_id}.jpg,{rle.encode(mask)}" for image_id, mask in masks.items()]
    (data_dir / "train_masks.csv").write_text("\n".join(["img,rle_mask", *lines]) + "\n")
    shutil.rmtree(data_dir / "train_masks")
    return masks


def test_train_masks_csv_stands_in_for_the_folder(data_dir):
    masks = write_masks_csv(data_dir)
    samples = datasets.load_training_samples(tiny_settings(data_dir))
    assert datasets.read_checked_sizes(samples) == {(48, 72)} and len(samples) == len(masks) == 12
    for sample in samples:
        assert np.array_equal(datasets.read_sample_mask(sample), masks[sample.image_id])


def test_train_masks_csv_is_read_again_after_it_has_changed(data_dir):
    masks = write_masks_csv(data_dir)
    sample = datasets.load_samples(tiny_settings(data_dir), "train")[0]
    assert datasets.read_sample_mask(sample).sum() == masks[sample.image_id].sum() > 3
    lines = [f"{image_id}.jpg,1 3" for image_id in masks]
    (data_dir / "train_masks.csv").write_text("\n".join(["img,rle_mask", *lines]) + "\n")
    assert datasets.read_sample_mask(sample).sum() == 3


def test_train_masks_csv_counted_down_the_columns_is_rejected(data_dir):
    masks = write_masks_csv(data_dir)
    lines = [f"{image_id}.jpg,{rle.encode(mask.T)}" for image_id, mask in masks.items()]
    (data_dir / "train_masks.csv").write_text("\n".join(["img,rle_mask", *lines]) + "\n")
    samples = datasets.load_samples(tiny_settings(data_dir), "train")
    with pytest.raises(InputError, match="its pixels seem to be counted down the columns"):
        datasets.read_checked_sizes(samples)


def test_train_masks_csv_with_an_image_twice_is_rejected(data_dir):
    write_masks_csv(data_dir)
    path = data_dir / "train_masks.csv"
    path.write_text(path.read_text().replace("000000000001_02.jpg", "000000000001_01.jpg"))
    with pytest.raises(InputError, match=r"train_masks\.csv: 000000000001_01 is listed twice"):
        datasets.load_samples(tiny_settings(data_dir), "train")


def test_train_masks_csv_is_checked(data_dir):
    write_masks_csv(data_dir)
    path = data_dir / "train_masks.csv"
    text = path.read_text()
    path.write_text(text.replace("000000000001_02.jpg", "x.jpg"))
    with pytest.raises(InputError, match=r"no mask for 1 of 12 images.*1 of the masks .* is x$"):
        datasets.load_samples(tiny_settings(data_dir), "train")
    (data_dir / "train_masks.csv").rename(data_dir / "other.csv")
    other = data_dir / "other" / "train_masks.csv"
    shutil.copytree(data_dir / "train", other.parent / "train")
    other.write_text(text.replace("000000000001_02.jpg,", "000000000001_02.jpg,3456 2 "))
    samples = datasets.load_samples(tiny_settings(other.parent), "train")
    with pytest.raises(InputError, match=r"train_masks\.csv: 000000000001_02\.jpg: run .* begins"):
        datasets.read_checked_sizes(samples)


# ---------------------------------------------------------------- classes.csv

CLASSES = "value,name,color\n7,car,#0000ff\n0,background,black\n9,tree,green\n255,ignore,\n"


def write_labels(data_dir, classes=CLASSES):
    """Turn the masks into index files of 0, 7 and 255, with classes.csv."""
    (data_dir / "classes.csv").write_text(classes)
    for path in list((data_dir / "train_masks").iterdir()):
        values = np.asarray(Image.open(path)) * np.uint8(7)
        values[0] = 255
        Image.fromarray(values).save(path.with_suffix(".png"))
        path.unlink()


def test_classes_csv_makes_classes_of_the_values(data_dir):
    write_labels(data_dir)
    settings = tiny_settings(data_dir)
    class_map = datasets.get_class_map(settings)
    assert class_map.names == ("background", "car", "tree") and class_map.has_background
    assert class_map.colors == ((0, 0, 0), (0, 0, 255), (0, 128, 0)) and not class_map.is_binary
    samples = datasets.load_training_samples(settings)
    classes = datasets.read_sample_mask(samples[0])
    expected = draw_car(0, 1, (48, 72))[1].astype(np.uint8)
    expected[0] = IGNORE
    assert np.array_equal(classes, expected)


def test_classes_csv_reads_label_files_in_its_colors(data_dir):
    write_labels(data_dir, CLASSES.replace("ignore,", "Ignore, #ffffff"))
    samples = datasets.load_training_samples(tiny_settings(data_dir))
    expected = datasets.read_sample_mask(samples[0])
    colors = np.zeros((256, 3), np.uint8)
    colors[7], colors[255] = (0, 0, 255), 255
    values = np.asarray(Image.open(samples[0].mask))
    Image.fromarray(colors[values]).save(samples[0].mask)
    assert {*np.unique(expected).tolist()} == {0, 1, IGNORE}
    assert np.array_equal(datasets.read_sample_mask(samples[0]), expected)


def test_classes_of_classes_csv_keep_its_order_after_the_background(data_dir):
    write_labels(data_dir, "value,name,color\n7,tree,red\n8,Background,black\n9,car,blue\n")
    class_map = datasets.get_class_map(tiny_settings(data_dir))
    assert class_map.names == ("background", "tree", "car")
    assert class_map.value_to_class[7:10] == (1, 0, 2)


def test_classes_csv_rejects_mask_threshold(data_dir):
    write_labels(data_dir)
    with pytest.raises(InputError, match="mask_threshold=128: is for masks of one class"):
        datasets.get_class_map(tiny_settings(data_dir, "mask_threshold=128"))


def test_classes_csv_needs_masks_in_image_files(data_dir):
    write_masks_csv(data_dir)
    (data_dir / "classes.csv").write_text(CLASSES)
    samples = datasets.load_samples(tiny_settings(data_dir), "train")
    message = r"train_masks\.csv: holds masks of one class; save masks of .* in train_masks/, or"
    with pytest.raises(InputError, match=message):
        datasets.read_checked_sizes(samples)


EVERY_VALUE = "\n".join(["value,name,color", *(f"{i},class{i},red" for i in range(256)), ""])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (CLASSES.replace("7,", "0,"), "value '0'; expected different numbers, 0 to 255"),
        (CLASSES.replace("7,", "seven,"), "value 'seven'"),
        (CLASSES.replace("7,", "256,"), "value '256'"),
        (EVERY_VALUE, "has 256 classes; expected at most 255"),
        (CLASSES.replace("tree", "car"), "two or more different names"),
        ("value,name,color\n1,car,red\n255,ignore,\n", "two or more different names"),
        (CLASSES.replace("green", "greenish"), "tree: 'greenish' is not a color; write one as"),
        (CLASSES.replace("green", ""), "tree: has no color; write one as"),
        (CLASSES.replace("green", "#00F"), "car and tree have the same color, #00F"),
        (CLASSES + "10,road,white\n254,ignore,#fff\n", "road and ignore have the same color"),
        (CLASSES.replace("value", "id"), "expected the header value,name,color"),
        ("value,name,color\n0,background,0,0,0\n1,car,0,0,255\n", "more cells than the header"),
    ],
)
def test_classes_csv_is_checked(data_dir, classes, message):
    (data_dir / "classes.csv").write_text(classes)
    with pytest.raises(InputError, match=rf"classes\.csv: .*{message}"):
        datasets.get_class_map(tiny_settings(data_dir))


# ---------------------------------------------------------------- test samples


def test_load_test_samples_without_sample_submission_is_sorted_by_name(data_dir):
    (data_dir / "sample_submission.csv").unlink()
    samples = datasets.load_test_samples(tiny_settings(data_dir))
    assert [s.image.name for s in samples] == sorted(p.name for p in (data_dir / "test").iterdir())
    assert all(sample.mask is None for sample in samples)


def test_load_test_samples_pairs_test_masks_in_the_order_of_sample_submission(data_dir):
    write_test_masks(data_dir)
    path = data_dir / "sample_submission.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n")
    samples = datasets.load_test_samples(tiny_settings(data_dir))
    assert [s.image.name for s in samples] == [line.split(",")[0] for line in reversed(lines)]
    assert all(s.mask.stem == f"{s.image_id}_mask" for s in samples)
    (data_dir / "test_masks" / samples[0].mask.name).unlink()
    message = r"test_masks: no mask for 1 of 6 images.*; or rename it, to predict without a score"
    with pytest.raises(InputError, match=message):
        datasets.load_test_samples(tiny_settings(data_dir))
    settings = tiny_settings(data_dir, f"truth_csv={data_dir / 'test_truth.csv'}")
    assert all(sample.mask is None for sample in datasets.load_test_samples(settings))


def test_load_test_samples_reads_test_masks_csv(data_dir):
    shutil.copy(data_dir / "test_truth.csv", data_dir / "test_masks.csv")
    write_test_masks(data_dir)
    of_folder = datasets.load_test_samples(tiny_settings(data_dir))
    masks = list(map(datasets.read_sample_mask, of_folder))
    shutil.rmtree(data_dir / "test_masks")
    of_csv = datasets.load_test_samples(tiny_settings(data_dir))
    assert {sample.mask for sample in of_csv} == {data_dir / "test_masks.csv"}
    assert np.array_equal(masks, list(map(datasets.read_sample_mask, of_csv)))


def test_load_test_samples_needs_no_group(data_dir):
    (data_dir / "sample_submission.csv").unlink()
    shutil.move(data_dir / "test/000000000004_01.jpg", data_dir / "test/holiday.jpg")
    samples = datasets.load_test_samples(tiny_settings(data_dir))
    assert [s.group for s in samples] == ["000000000004"] * 2 + ["000000000005"] * 3 + ["holiday"]


@pytest.mark.parametrize(("orientation", "is_warned"), [(3, True), (1, False)])
def test_read_sizes_warns_of_photographs_that_exif_turns_alone(
    data_dir, capsys, orientation, is_warned
):
    samples = datasets.load_training_samples(tiny_settings(data_dir))
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(samples[0].image) as image:
        image.save(samples[0].image, exif=exif)
    assert datasets.read_checked_sizes(samples) == {(48, 72)}
    assert ("EXIF rotates or mirrors 1 photographs" in capsys.readouterr().out) == is_warned
    in_one_file = replace(samples[0], mask=data_dir / "masks.json")
    assert not datasets.exif_rotates_only_image(in_one_file)


def test_order_by_names_rejects_names_whose_accents_have_another_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "ä_01.jpg") for form in ("NFC", "NFD"))
    images = [tmp_path / decomposed]
    assert carvana.order_by_names(images, [decomposed]) == images
    with pytest.raises(InputError, match="spells this name with other Unicode characters"):
        carvana.order_by_names(images, [composed])


def test_pairs_are_found_whatever_the_form_of_their_accents(tmp_path):
    names = [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")]
    image, mask = tmp_path / "train" / f"{names[0]}.png", tmp_path / "masks" / f"{names[1]}.png"
    for path in (image, mask):
        path.parent.mkdir()
        Image.new("L", (8, 8)).save(path)
    assert carvana.pair_images_with_masks([image], mask.parent, "") == [(image, mask)]
    csv = tmp_path / "train_masks.csv"
    csv.write_text(f"img,rle_mask\n{names[1]}.png,1 3\n", encoding="utf-8")
    assert carvana.pair_images_with_masks([image], csv, "") == [(image, csv)]
    sample = Sample(image, "a", csv, 0, "carvana", ClassMap(("car",), ((0, 0, 0),)))
    assert datasets.read_sample_mask(sample).sum() == 3


@pytest.mark.parametrize("name", ["Classes.csv", "class.csv"])
def test_get_class_map_names_a_file_that_should_be_classes_csv(data_dir, name):
    (data_dir / name).write_text("value,name,color\n0,background,black\n1,car,red\n")
    with pytest.raises(InputError, match=f"{name}: rename it to classes.csv"):
        datasets.get_class_map(tiny_settings(data_dir))


def test_group_from_stem_needs_the_whole_stem_to_match():
    assert datasets.group_from_stem("car_01", r"(.+)_\d+") == "car"
    assert datasets.group_from_stem("car_01 copy", r"(.+)_\d+") == ""


def test_load_test_samples_with_max_images_takes_the_first(shared_data_dir):
    samples = datasets.load_test_samples(tiny_settings(shared_data_dir))
    first = datasets.load_test_samples(tiny_settings(shared_data_dir, "max_images=2"))
    assert len(samples) > 2 and first == samples[:2]


@pytest.mark.parametrize(("first", "is_kept"), [("background", False), ("road", True)])
def test_drop_empty_masks_keeps_masks_of_class_0_unless_it_is_background(tmp_path, first, is_kept):
    class_map = ClassMap((first, "car"), ((0, 0, 0), (9, 9, 9)), (0, 1))
    samples = []
    for value in (0, 1):
        path = tmp_path / f"{value}.png"
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)
        samples.append(Sample(path, path.stem, path, 0, "carvana", class_map))
    kept = [sample.image_id for sample in datasets.drop_empty_masks(samples)]
    assert kept == (["0", "1"] if is_kept else ["1"])


def test_masks_in_a_folder_are_preferred_to_those_of_a_csv(tmp_path):
    settings = tiny_settings(tmp_path)
    (tmp_path / "train_masks.csv").touch()
    assert carvana.masks_path(settings, "train") == tmp_path / "train_masks.csv"
    (tmp_path / "train_masks").mkdir()
    assert carvana.masks_path(settings, "train") == tmp_path / "train_masks"


def test_groups_of_composed_and_decomposed_letters_are_equal():
    names = [unicodedata.normalize(form, "stühl0_1") for form in ("NFC", "NFD")]
    groups = {datasets.group_from_stem(name, r"(.+)_\d+") for name in names}
    assert names[0] != names[1] and groups == {unicodedata.normalize("NFC", "stühl0")}
