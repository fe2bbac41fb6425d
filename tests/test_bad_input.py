"""Invalid input: each row of the table in tests/invalid_input.md is run as it is written there.

Most rows call the script's main in this process, whose InputError is the line that a user sees;
those in REAL_COMMANDS run the command itself.
"""

import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, Payload, TinyRun, prediction_args, run_script, tiny_settings_args
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_datasets import draw_car, make_data, write_mask

import folds
import predict
import score
import train
from core import config
from core.errors import InputError
from data import csv_files, rle
from models import checkpoint

# ---------------------------------------------------------------- the table

Corruption = Callable[[Path], object]  # changes a folder that contains data/ and output/


@dataclass
class Case:
    """A row of the table: what is invalid, the command, its exit code and a part of its message."""

    name: str
    command: str
    exit_code: int
    message: str


def read_cases() -> list[Case]:
    """Read the rows of the table in tests/invalid_input.md."""
    lines = (ROOT / "tests/invalid_input.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    rows = [row for row in rows if row[1].startswith("`")]
    return [Case(name, text.strip("`"), int(code), message) for name, text, code, message in rows]


CASES = read_cases()
MAINS = {"train": train.main, "predict": predict.main, "score": score.main, "folds": folds.main}
PATH_SETTINGS = {"recipe", "submission_csv", "truth_csv", "output_dir", "images"}
REAL_COMMANDS = {
    *("truncated JPEG, training", "truncated JPEG, test, skipped"),
    *("a recipe with a Python object", "a value out of range", "an output folder that is a file"),
}

# ---------------------------------------------------------------- corruptions

TRAIN_IMAGE, TEST_IMAGE = "data/train/000000000000_01.jpg", "data/test/000000000004_01.jpg"
MASK = "data/train_masks/000000000000_01_mask.gif"
FOLDS, SAMPLE = "data/folds.csv", "data/sample_submission.csv"
WEIGHTS = "output/tiny/fold0/best.safetensors"
HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100
CORNER = np.zeros((48, 72), int)
CORNER[10:20, 30:60] = 1


def nothing(folder: Path) -> None:
    """For a case in which the arguments are invalid, not the files."""


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Corruption:
    """Return a corruption that replaces the content of a file."""

    def corrupt(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return corrupt


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def copy(old: str, new: str) -> Corruption:
    return lambda folder: shutil.copy(folder / old, folder / new)


def link_test_image_to_itself(folder: Path) -> None:
    (folder / TEST_IMAGE).unlink()
    (folder / TEST_IMAGE).symlink_to(folder / TEST_IMAGE)


def make_test_image_a_folder(folder: Path) -> None:
    (folder / TEST_IMAGE).unlink()
    (folder / TEST_IMAGE).mkdir()


def add_decompression_bomb(folder: Path) -> None:
    """Add a PNG of some bytes whose header declares 100,000×100,000 pixels."""
    data = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    side = (100_000).to_bytes(4, "big")
    header = data[12:16] + side + side + data[24:29]
    data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    (folder / "data/test/000000000009_01.png").write_bytes(data)
    (folder / SAMPLE).unlink()


def write_mask_values(values: np.ndarray, name: str = MASK) -> Corruption:
    """Return a corruption that replaces the mask of TRAIN_IMAGE by gray or color values."""

    def corrupt(folder: Path) -> None:
        (folder / MASK).unlink()
        Image.fromarray(values.astype(np.uint8)).save(folder / name)

    return corrupt


def write_all_masks(value: int) -> Corruption:
    def corrupt(folder: Path) -> None:
        for path in (folder / "data/train_masks").iterdir():
            write_mask(path, np.full((48, 72), value, bool))

    return corrupt


def rename(old: str, new: str) -> Corruption:
    return lambda folder: (folder / old).rename(folder / new)


def rename_masks(folder: Path) -> None:
    for path in list((folder / "data/train_masks").iterdir()):
        path.rename(path.with_name(path.name.replace("_mask", "_segmentation")))


def rename_image_folders(folder: Path) -> None:
    rename("data/train", "data/images")(folder)
    rename("data/train_masks", "data/masks")(folder)


def make_test_images_heic(folder: Path) -> None:
    for path in list((folder / "data/test").iterdir()):
        path.with_suffix(".heic").write_bytes(HEIC)
        path.unlink()


def write_animated_gif(folder: Path) -> None:
    pictures = [Image.new("L", (72, 48), value) for value in (0, 255)]
    pictures[0].save(
        folder / TEST_IMAGE.replace("jpg", "gif"), append_images=pictures[1:], save_all=True
    )
    (folder / TEST_IMAGE).unlink()
    (folder / SAMPLE).unlink()


def write_12_bits(folder: Path) -> None:
    values = np.arange(48 * 72, dtype=np.uint16).reshape(48, 72)
    Image.fromarray(values).save(folder / TRAIN_IMAGE.replace("jpg", "png"))
    (folder / TRAIN_IMAGE).unlink()


def turn_by_exif(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / TRAIN_IMAGE).save(folder / TRAIN_IMAGE, exif=exif)


def add_other_files(folder: Path) -> None:
    for name in (".DS_Store", "notes.txt", "sizes.txt"):
        (folder / "data/train" / name).touch()
    (folder / "data/train/old").mkdir()


def write_masks_csv(folder: Path) -> None:
    shutil.rmtree(folder / "data/train_masks")
    (folder / "data/train_masks.csv").write_text("img,rle_mask\nx.jpg,1 1\n")


def write_classes(*lines: str) -> Corruption:
    text = "\n".join(["value,name,color", *lines]) + "\n"
    return lambda folder: (folder / "data/classes.csv").write_text(text)


def write_label_of_another_color(folder: Path) -> None:
    write_classes("0,background,black", "1,car,red")(folder)
    write_mask_values(CORNER[..., None] * (0, 0, 255), MASK.replace("gif", "png"))(folder)


def rename_an_image_and_its_mask(folder: Path) -> None:
    rename(TRAIN_IMAGE, "data/train/IMG 1.jpg")(folder)
    rename(MASK, "data/train_masks/IMG 1.gif")(folder)


def keep_fold_0(folder: Path) -> None:
    for name in ("train", "train_masks"):
        for path in (folder / "data" / name).iterdir():
            if path.name[:12] in ("000000000001", "000000000003"):
                path.unlink()


def change_weights(change: Callable[[dict, dict], object]) -> Corruption:
    """Return a corruption that changes the tensors and the metadata of the weights."""

    def corrupt(folder: Path) -> None:
        path = folder / WEIGHTS
        with safe_open(path, "pt") as file:
            ((key, text),) = file.metadata().items()
        tensors, metadata = load_file(path), json.loads(text)
        change(tensors, metadata)
        save_file(tensors, path, {key: json.dumps(metadata)})

    return corrupt


def score_again(corrupt: Corruption) -> Corruption:
    """Return a corruption after which the scores are those of the corrupted weights."""

    def corrupt_and_score(folder: Path) -> None:
        corrupt(folder)
        path = folder / WEIGHTS
        with np.load(path.with_name("oof.npz")) as file:
            arrays = dict(file) | {"weights": checkpoint.tensors_sha256(path)}
        np.savez(path.with_name("oof.npz"), **arrays)

    return corrupt_and_score


def set_three_classes(tensors: dict, metadata: dict) -> None:
    metadata.update(classes=3, names=["a", "b", "c"])


def widen_the_network(tensors: dict, metadata: dict) -> None:
    metadata["settings"]["channels"] = [8, 32]


def set_a_weight_to_nan(tensors: dict, metadata: dict) -> None:
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = torch.nan


def write_pickle(name: str) -> Corruption:
    """Return a corruption that writes a pickle which would create the file `exploded`."""

    def corrupt(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Payload(folder / "exploded")))

    return corrupt


def write_pickle_as_snapshot(folder: Path) -> None:
    """Make run `new` one that was interrupted, with a pickle as its only snapshot."""
    write_pickle("output/new/fold0/resume/00001-0000002-0123456789abcdef.pt")(folder)
    text = (folder / "output/tiny/config.yaml").read_text()
    text = text.replace("run: tiny", "run: new").replace("epochs: 8", "epochs: 1")
    (folder / "output/new/config.yaml").write_text(text)


def write_submission_of(mask_of: Callable[[np.ndarray], np.ndarray]) -> Corruption:
    """Return a corruption that replaces each mask of the submission mine.csv."""

    def corrupt(folder: Path) -> None:
        table = pd.read_csv(folder / "data/mine.csv")
        masks = [rle.decode(text, (48, 72)) for text in table["rle_mask"]]
        table["rle_mask"] = [rle.encode(mask_of(mask)) for mask in masks]
        table.to_csv(folder / "data/mine.csv", index=False)

    return corrupt


def draw_the_same(_: np.ndarray) -> np.ndarray:
    return draw_car(0, 0, (48, 72))[1]


def write_recipe(text: str) -> Corruption:
    return lambda folder: (folder / "mine.yaml").write_text(text)


def keep_two_cars(folder: Path) -> None:
    """Keep one car in each fold."""
    for name in ("train", "train_masks"):
        for path in (folder / "data" / name).iterdir():
            if path.name[:12] not in ("000000000000", "000000000001"):
                path.unlink()


CORRUPTIONS: dict[str, Corruption] = {
    "truncated JPEG, training": change_bytes(TRAIN_IMAGE, cut_in_half),
    "truncated JPEG, test": change_bytes(TEST_IMAGE, cut_in_half),
    "truncated JPEG, test, skipped": change_bytes(TEST_IMAGE, cut_in_half),
    "zero-byte image": change_bytes(TRAIN_IMAGE, lambda b: b""),
    "zero-byte image, skipped": change_bytes(TEST_IMAGE, lambda b: b""),
    "text named .jpg": change_bytes(TEST_IMAGE, lambda b: b"not an image"),
    "decompression bomb": add_decompression_bomb,
    "unreadable image (no permission)": lambda folder: (folder / TEST_IMAGE).chmod(0),
    "a folder named .jpg": make_test_image_a_folder,
    "a link to itself": link_test_image_to_itself,
    "a link to itself, skipped": link_test_image_to_itself,
    "HEIC named .jpg": change_bytes(TRAIN_IMAGE, lambda b: HEIC),
    "HEIC photographs only": make_test_images_heic,
    "a video": lambda folder: (folder / "clip.mp4").write_bytes(HEIC.replace(b"heic", b"mp42")),
    "an animated GIF": write_animated_gif,
    "12 bits in 16": write_12_bits,
    "a photograph that is missing": nothing,
    "no data folder": lambda folder: shutil.rmtree(folder / "data"),
    "folders of other names": rename_image_folders,
    "other kinds of files beside the images": add_other_files,
    "two images with one stem": copy(TRAIN_IMAGE, TRAIN_IMAGE.replace("jpg", "png")),
    "mask of another size": write_mask_values(np.zeros((40, 72))),
    "mask of three values": write_mask_values(np.arange(48 * 72).reshape(48, 72) % 3),
    "mask of a color on white": write_mask_values(255 - CORNER[..., None] * (0, 255, 255)),
    "mask whose alpha shows another shape": write_mask_values(
        np.dstack([CORNER * 255] * 3 + [CORNER[::-1] * 255]), MASK.replace("gif", "png")
    ),
    "photograph turned by EXIF, its mask not": turn_by_exif,
    "all masks empty": write_all_masks(0),
    "all masks full": write_all_masks(1),
    "mask missing": lambda folder: (folder / MASK).unlink(),
    "mask without image": lambda folder: (folder / TRAIN_IMAGE).unlink(),
    "two masks of one image": copy(MASK, MASK.replace("gif", "png")),
    "masks of other names": rename_masks,
    "train_masks.csv of another image": write_masks_csv,
    "one class in classes.csv": write_classes("1,car,red"),
    "a value that is not in classes.csv": write_classes("0,background,black", "2,car,red"),
    "a palette in another order than classes.csv": write_classes(
        "0,background,white", "1,car,black"
    ),
    "a color that is not in classes.csv": write_label_of_another_color,
    "a loss of one class for two": write_classes("0,background,black", "1,car,red"),
    "mask is no image": change_bytes(MASK, lambda b: b"GIF89a"),
    "truncated mask": change_bytes(MASK, cut_in_half),
    "a car twice in folds.csv": change_bytes(FOLDS, lambda b: b + b"tiny,000000000000,1\n"),
    "a gap in the fold numbers": change_bytes(FOLDS, lambda b: b.replace(b",1\n", b",2\n")),
    "a fold that is no number": change_bytes(FOLDS, lambda b: b.replace(b",1\n", b",one\n")),
    "an unknown column in folds.csv": change_bytes(
        FOLDS, lambda b: b.replace(b"fold\n", b"part\n")
    ),
    "a car that is not in folds.csv": change_bytes(
        FOLDS, lambda b: b.replace(b"tiny,000000000003,1\n", b"")
    ),
    "folds.csv is not text": change_bytes(FOLDS, lambda b: b"\xff\xfe\x00\x01" * 9),
    "folds.csv missing": lambda folder: (folder / FOLDS).unlink(),
    "names that group_regex does not match": rename_an_image_and_its_mask,
    "fewer groups than folds": nothing,
    "a fold without images here": keep_fold_0,
    "sample names an image that is missing": change_bytes(SAMPLE, lambda b: b + b"x_01.jpg,1 1\n"),
    "sample lacks an image": change_bytes(SAMPLE, lambda b: b[: b.rstrip().rfind(b"\n") + 1]),
    "truth of other images": change_bytes("data/test_truth.csv", lambda b: b + b"x_01.jpg,1 1\n"),
    "truth that lacks images": change_bytes("data/test_truth.csv", lambda b: b"img,rle_mask\n"),
    "a submission of other images is there": change_bytes(
        "output/tiny/submission.csv", lambda b: b"img,rle_mask\nx_01.jpg,1 1\n"
    ),
    "masks that cover the whole images": write_submission_of(np.ones_like),
    "one mask for all images": write_submission_of(draw_the_same),
    "masks counted down the columns": write_submission_of(lambda mask: mask.T),
    "weights cut off": change_bytes(WEIGHTS, lambda b: b[:-9]),
    "weights of another architecture": change_weights(widen_the_network),
    "weights of several classes": change_weights(set_three_classes),
    "weights that train.py did not write": change_weights(lambda _, metadata: metadata.clear()),
    "weights with NaN": score_again(change_weights(set_a_weight_to_nan)),
    "weights exchanged by hand": change_weights(set_a_weight_to_nan),
    "a pickle named best.safetensors": write_pickle(WEIGHTS),
    "a pickle as a snapshot": write_pickle_as_snapshot,
    "a recipe with a Python object": write_recipe(
        "lr: !!python/object/apply:os.system ['touch exploded']\n"
    ),
    "a recipe with an unknown key": write_recipe("epoch: 3\n"),
    "a recipe that is a list": write_recipe("- lr\n"),
    "a recipe with a program": write_recipe("prepare_scripts: [../mine.py]\n"),
    "a text for a number": nothing,
    "steps of one image, of which one pixel is left": nothing,
    "a number for a list": nothing,
    "a value out of range": nothing,
    "a fold that does not exist": nothing,
    "device=cuda without a GPU": nothing,
    "an output folder that is a file": lambda folder: (folder / "file").touch(),
    "a run that exists": nothing,
    "one car in each fold": keep_two_cars,
}

# ---------------------------------------------------------------- the tests


def arguments_of(case: Case, run: TinyRun) -> list[str]:
    """Return the arguments of the case's command; its paths are relative to the run's folder."""
    args = {"train": [*run.args, "fold=0", "epochs=1", "run=new"], "folds": run.args}
    args = args.get(script_of(case), prediction_args(run.args))
    for arg in case.command.split()[1:]:
        key, _, value = arg.partition("=")
        args.append(f"{key}={run.data_dir.parent / value}" if key in PATH_SETTINGS else arg)
    return args


def script_of(case: Case) -> str:
    return Path(case.command.split()[0]).stem


def call_main(main: Callable[[list[str]], None], args: list[str]) -> tuple[int, str]:
    """Call a script's main in this process; return exit code and error line, as cli.run_main."""
    try:
        main(args)
    except InputError as error:
        return 2, str(error)
    except SystemExit as end:
        return end.code, ""
    return 0, ""


def run_case(case: Case, run: TinyRun, capfd: pytest.CaptureFixture) -> tuple[int, str, str]:
    """Run the case's command or call its main; return exit code, stdout and stderr."""
    script, args = script_of(case), arguments_of(case, run)
    if case.name in REAL_COMMANDS:
        completed = run_script(f"{script}.py", *args)
        return completed.returncode, completed.stdout, completed.stderr.strip()
    exit_code, error = call_main(MAINS[script], args)
    return exit_code, capfd.readouterr().out, error


def test_table_has_a_row_for_each_corruption():
    assert [case.name for case in CASES] == list(CORRUPTIONS)
    assert CORRUPTIONS.keys() >= REAL_COMMANDS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_invalid_input_ends_with_the_exit_code_and_line_of_the_table(run_copy, capfd, case):
    if "no permission" in case.name and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if "device=cuda" in case.command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    folder = run_copy.data_dir.parent
    shutil.copy(folder / "data/test_truth.csv", folder / "data/mine.csv")  # a valid submission
    CORRUPTIONS[case.name](folder)
    exit_code, out, err = run_case(case, run_copy, capfd)
    assert exit_code == case.exit_code, out + err
    if exit_code == 2:
        assert case.message in err and "\n" not in err, err
    else:
        assert case.message in out, out
        assert "Traceback" not in err
    assert not (folder / "exploded").exists() and not (ROOT / "exploded").exists()
    assert not list(folder.rglob(".*.tmp"))


# ---------------------------------------------------------------- valid but unusual input


UNUSUAL_NAMES = [
    *("with space_01", "quo'te\"d_01", "a,b_01", "Zürich_01", "-dash_01", "semi;colon_01"),
    "new\nline_01",
]


def test_unusual_file_names_pass_through_folds_training_and_prediction(tmp_path):
    data_dir = make_data(tmp_path / "data", views=2)
    for folder, ending in (("train", ".jpg"), ("train_masks", "_mask.gif"), ("test", ".jpg")):
        source = next((data_dir / folder).iterdir())
        for name in UNUSUAL_NAMES:
            shutil.copy(source, data_dir / folder / f"{name}{ending}")
    (data_dir / "sample_submission.csv").unlink()
    args = tiny_settings_args(data_dir, tmp_path / "output")
    args += [f"folds_csv={tmp_path / 'folds.csv'}"]
    folds.main([*args, "n_folds=2"])
    train.main([*args, "fold=0", "epochs=1"])
    predict.main(prediction_args(args))
    table = pd.read_csv(tmp_path / "output/tiny/submission.csv", keep_default_na=False)
    assert {f"{name}.jpg" for name in UNUSUAL_NAMES} <= set(table["img"])


@pytest.mark.parametrize(
    "change",
    [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n")],
    ids=["BOM", "CRLF"],
)
def test_read_folds_accepts_a_byte_order_mark_and_crlf(data_dir, change):
    settings = config.load_settings([f"folds_csv={data_dir / 'folds.csv'}", "dataset_name=tiny"])
    expected = csv_files.read_folds(settings)
    change_bytes("folds.csv", change)(data_dir)
    assert csv_files.read_folds(settings) == expected
