"""Listing of images, and messages about files that are missing."""

import os
from pathlib import Path

import pytest

from core.errors import InputError
from data.image_files import IMAGE_SUFFIXES, describe_folder, list_images, require_paths
from data.image_io import find_photographs

DATA_FOLDERS = ("train", "train_masks")
HEIC = b"\0\0\0\x18ftypheic"


def touch(folder: Path, *names: str) -> Path:
    """Create empty files; names that end in / are folders."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    return folder


def error_line(function, *args, **options) -> str:
    """Return the InputError of a call; one line."""
    with pytest.raises(InputError) as raised:
        function(*args, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_list_images_returns_every_image_type_sorted(tmp_path, capsys):
    names = [f"IMG {i}{suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)]
    names += [f"{i}{suffix.upper()}" for i, suffix in enumerate(IMAGE_SUFFIXES)]
    assert [path.name for path in list_images(touch(tmp_path, *names))] == sorted(names)
    assert capsys.readouterr().out == ""


def test_list_images_prints_what_it_leaves_out_in_one_line(tmp_path, capsys):
    touch(tmp_path, "a.jpg", ".DS_Store", "._a.jpg", "labels.txt", "more.txt", "old/b.jpg", "notes")
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC)
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg"]
    line = (
        f"{tmp_path}: 1 images; left out 2 hidden, 1 .heic, 2 .txt, 1 without suffix, 1 folder, "
        "the first is .DS_Store; convert HEIC or AVIF to JPEG first, with `sips -s format jpeg` or "
        "`heif-convert`\n"
    )
    assert capsys.readouterr().out == line


def test_list_images_counts_all_pairs_of_one_stem(tmp_path):
    touch(tmp_path, "a.jpg", "a.png", "b.jpg", "b.webp", "c.jpg")
    assert error_line(list_images, tmp_path) == (
        f"{tmp_path}/a.png: a.jpg has the same stem; remove one (pairs in all: 2)"
    )


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "is empty"),
        (["a.heic"], "holds a.heic"),
        (["cars/a.jpg", "x.txt"], "holds cars/, x.txt"),
        ([f"{i}.mp4" for i in range(9)], "holds 0.mp4, 1.mp4, 2.mp4 and 6 others"),
    ],
)
def test_list_images_without_an_image_shows_what_is_there(tmp_path, names, found):
    line = error_line(list_images, touch(tmp_path, *names))
    assert line.startswith(f"{tmp_path}: {found}; expected images, that is .jpg, .jpeg, ")


def test_list_images_rejects_a_name_that_is_not_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("the file system accepts only UTF-8")
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        list_images(tmp_path)


def test_list_images_rejects_a_name_that_ends_a_line_of_a_csv(tmp_path):
    line = error_line(list_images, touch(tmp_path, "a\rb.jpg"))
    assert line.endswith("a\\rb.jpg': its name has a carriage return; rename it")


def test_describe_folder_lists_similar_names_first(tmp_path):
    touch(tmp_path, "images/", "a.txt", "b.txt", "c.txt", "train_mask/", "z.txt")
    assert describe_folder(tmp_path) == "holds images/, train_mask/, a.txt and 3 others"
    found = describe_folder(tmp_path, "train_masks/")
    assert found == "holds train_mask/, images/, a.txt and 3 others"


def test_require_paths_compares_what_is_there_with_what_is_expected(tmp_path):
    touch(tmp_path, "images/", "masks/")
    train, masks = tmp_path / "train", tmp_path / "train_masks"
    line = f"{tmp_path}: holds images/, masks/; expected train/, train_masks/; do this"
    assert error_line(require_paths, train, masks, remedy="; do this") == line
    assert error_line(require_paths, tmp_path / "images", tmp_path / "x" / "folds.csv") == (
        f"{tmp_path}/x/folds.csv: does not exist; {tmp_path} holds images/, masks/"
    )
    no_data = [tmp_path / "image" / name for name in ("train", "train_masks.csv")]
    assert error_line(require_paths, *no_data, remedy="; do this") == (
        f"{tmp_path}/image: does not exist; {tmp_path} holds images/, masks/; expected train/, "
        "train_masks.csv; do this"
    )
    require_paths(tmp_path / "images", tmp_path / "masks")


def test_require_paths_names_a_link_to_something_that_is_gone(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    for path in (link, link / "train"):
        with pytest.raises(InputError, match="link: is a link to a missing file or folder"):
            require_paths(path)


def test_require_paths_in_a_file_names_the_file(tmp_path):
    touch(tmp_path, "a.jpg")
    line = f"{tmp_path}/a.jpg: is not a folder; expected train/, train_masks/"
    assert error_line(require_paths, *(tmp_path / "a.jpg" / name for name in DATA_FOLDERS)) == line


def test_messages_hold_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "holiday.jpg"))
    line = f"{tmp_path}/holidays.jpg: does not exist; {tmp_path} holds holiday.jpg"
    hint = "; images= is one photograph or one folder"
    assert error_line(find_photographs, Path("holidays.jpg")) == line + hint
    line = f"{tmp_path}/a/b: does not exist; {tmp_path} holds holiday.jpg"
    assert error_line(require_paths, Path("a/b")) == line
