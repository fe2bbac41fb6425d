"""The catalogue of bad input, through the commands as a person types them; tests/README.md has it
as a table, and a test here holds the two together."""

import json
import os
import pickle
import shutil
import subprocess
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, Payload, make_data, place, run_script, words_for
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core import config
from data import csv_files, image_io

Spoil = Callable[[Path], None]  # does something to a folder that holds data/ and out/


def nothing(_: Path) -> None:
    """The words are wrong, not the files."""


def image(part: str = "train") -> str:
    """The first image of a part."""
    return f"data/{part}/{'000000000000' if part == 'train' else '000000000004'}_01.jpg"


MASK = "data/train_masks/000000000000_01_mask.gif"
FOLDS, SAMPLE = "data/folds.csv", "data/sample_submission.csv"
WEIGHTS = "out/tiny/fold0/best.safetensors"


def with_bytes(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Changes a file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return spoil


def link_to_itself(folder: Path) -> None:
    (folder / image("test")).unlink()
    (folder / image("test")).symlink_to(folder / image("test"))


def shut(folder: Path) -> None:
    (folder / image("test")).chmod(0)


def a_folder(folder: Path) -> None:
    (folder / image("test")).unlink()
    (folder / image("test")).mkdir()


def bomb(folder: Path) -> None:
    """A PNG of a few kB that claims 100,000 × 100,000 pixels."""
    data = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    size = (100_000).to_bytes(4, "big")
    header = data[12:16] + size + size + data[24:29]
    data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
    (folder / "data/test/000000000009_01.png").write_bytes(data)
    (folder / SAMPLE).unlink()


def mask_of(values: np.ndarray) -> Spoil:
    def spoil(folder: Path) -> None:
        picture = Image.fromarray(values.astype(np.uint8))
        picture.save(folder / MASK)

    return spoil


def rename(old: str, new: str) -> Spoil:
    return lambda folder: (folder / old).rename(folder / new)


def copy(old: str, new: str) -> Spoil:
    return lambda folder: shutil.copy(folder / old, folder / new)


def weights(change: Callable[[dict, dict], None]) -> Spoil:
    """Changes the tensors and the facts of the trained fold."""

    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["metadata"])
        tensors = load_file(path)
        change(tensors, about)
        save_file(tensors, path, {"metadata": json.dumps(about)})

    return spoil


def other_architecture(tensors: dict, about: dict) -> None:
    about["settings"]["channels"] = [8, 16, 32]


def with_nan(tensors: dict, about: dict) -> None:
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = torch.nan


def payload_in(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Payload(folder / "exploded")))

    return spoil


def payload_among_snapshots(folder: Path) -> None:
    payload_in("out/new/fold0/resume/00001-0000002-0123456789abcdef.pt")(folder)
    config = (folder / "out/tiny/config.yaml").read_text()
    (folder / "out/new/config.yaml").write_text(config.replace("run: tiny", "run: new"))


def recipe(text: str) -> Spoil:
    return lambda folder: (folder / "mine.yaml").write_text(text) and None


def only_two_cars_left(folder: Path) -> None:
    """One in each fold: the fold that is left holds one car."""
    for part in ("train", "train_masks"):
        for path in (folder / "data" / part).iterdir():
            if path.name[:12] not in ("000000000000", "000000000001"):
                path.unlink()


THREE = np.arange(48 * 72).reshape(48, 72) % 3
SPOILS: dict[str, Spoil] = {
    "truncated JPEG, training": with_bytes(image(), lambda b: b[: len(b) // 2]),
    "truncated JPEG, test": with_bytes(image("test"), lambda b: b[: len(b) // 2]),
    "truncated JPEG, test, skipped": with_bytes(image("test"), lambda b: b[: len(b) // 2]),
    "zero-byte image": with_bytes(image(), lambda b: b""),
    "zero-byte image, skip_unreadable=true": with_bytes(image("test"), lambda b: b""),
    "text named .jpg": with_bytes(image("test"), lambda b: b"not an image"),
    "decompression bomb": bomb,
    "unreadable image (no permission)": shut,
    "a folder named .jpg": a_folder,
    "a link to itself": link_to_itself,
    "a link to itself, skipped": link_to_itself,
    "two images with one stem": copy(image(), image().replace("jpg", "png")),
    "mask of another size": mask_of(np.zeros((40, 72))),
    "mask of three values": mask_of(THREE),
    "mask missing": lambda f: (f / MASK).unlink(),
    "mask without image": lambda f: (f / image()).unlink(),
    "two masks of one image": copy(MASK, MASK.replace("gif", "png")),
    "mask is no image": with_bytes(MASK, lambda b: b"GIF89a"),
    "truncated mask": with_bytes(MASK, lambda b: b[: len(b) // 2]),
    "a car twice in folds.csv": with_bytes(FOLDS, lambda b: b + b"tiny,000000000000,1\n"),
    "a hole in the fold numbers": with_bytes(FOLDS, lambda b: b.replace(b",1\n", b",2\n")),
    "a fold that is no number": with_bytes(FOLDS, lambda b: b.replace(b",1\n", b",one\n")),
    "an unknown column in folds.csv": with_bytes(FOLDS, lambda b: b.replace(b"fold\n", b"part\n")),
    "a car that folds.csv lacks": with_bytes(
        FOLDS, lambda b: b.replace(b"tiny,000000000003,1\n", b"")
    ),
    "folds.csv is not text": with_bytes(FOLDS, lambda b: b"\xff\xfe\x00\x01" * 9),
    "folds.csv missing": lambda f: (f / FOLDS).unlink(),
    "sample names an image that is missing": with_bytes(SAMPLE, lambda b: b + b"x_01.jpg,1 1\n"),
    "sample lacks an image": with_bytes(SAMPLE, lambda b: b[: b.rstrip().rfind(b"\n") + 1]),
    "truth of other images": with_bytes("data/test_truth.csv", lambda b: b + b"x_01.jpg,1 1\n"),
    "truth that lacks images": with_bytes("data/test_truth.csv", lambda b: b"img,rle_mask\n"),
    "weights cut off": with_bytes(WEIGHTS, lambda b: b[:-9]),
    "weights of another architecture": weights(other_architecture),
    "weights of several classes": weights(lambda t, a: a.update(classes=3, names=["a", "b", "c"])),
    "weights that train.py did not write": weights(lambda t, a: a.clear()),
    "weights with NaN": weights(with_nan),
    "a pickle named best.safetensors": payload_in(WEIGHTS),
    "a pickle among the snapshots": payload_among_snapshots,
    "a recipe with a Python object": recipe(
        "lr: !!python/object/apply:os.system ['touch exploded']\n"
    ),
    "a recipe with an unknown key": recipe("epoch: 3\n"),
    "a recipe that is a list": recipe("- lr\n"),
    "a text for a number": nothing,
    "a number for a list": nothing,
    "a value out of range": nothing,
    "a fold that is not there": nothing,
    "device=cuda without a GPU": nothing,
    "an output folder that is a file": lambda f: (f / "file").touch(),
    "a run that exists": nothing,
    "only one car beside the fold's": only_two_cars_left,
}


@dataclass
class Case:
    """A row of the catalogue: what is wrong, the command, its exit code and what the line says."""

    what: str
    command: str
    code: int
    says: str


def catalogue() -> list[Case]:
    """The table in README.md."""
    lines = (ROOT / "tests/README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    rows = [row for row in rows if row[1].startswith("`")]
    return [Case(what, text.strip("`"), int(code), says) for what, text, code, says in rows]


CASES = catalogue()
PATHS = {"recipe", "submission", "truth", "output_dir"}


def words_of(case: Case, folder: Path) -> list[str]:
    """The command's words, in this folder."""
    words = words_for(folder / "data", folder / "out")
    if case.command.startswith("predict"):
        words = place(words)
    if case.command.startswith("train"):
        words += ["fold=0", "epochs=1", *([] if case.what == "a run that exists" else ["run=new"])]
    for word in case.command.split()[1:]:
        key, _, value = word.partition("=")
        words.append(f"{key}={folder / value}" if key in PATHS else word)
    return words


@pytest.fixture(scope="module")
def answers(request, tmp_path_factory):
    """What the command of each case that is asked for answered, and in which folder; they run on
    all cores at once."""
    base = tmp_path_factory.mktemp("base")
    words = words_for(make_data(base / "data", views=2), base / "out")
    assert run_script("train.py", *words, "fold=0", "epochs=1").returncode == 0
    shutil.copy(base / "data/test_truth.csv", base / "data/mine.csv")

    def answer(case: Case) -> tuple[Path, subprocess.CompletedProcess]:
        folder = tmp_path_factory.mktemp("case")
        shutil.copytree(base, folder, dirs_exist_ok=True)
        SPOILS[case.what](folder)
        script = case.command.split()[0].removeprefix("src/").replace(".sh", ".py")
        return folder, run_script(script, *words_of(case, folder))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        items = [item for item in request.session.items if hasattr(item, "callspec")]
        asked = [i.callspec.params["case"] for i in items if "case" in i.callspec.params]
        yield {case.what: pool.submit(answer, case) for case in asked if isinstance(case, Case)}


def test_each_case_stands_once_in_the_readme():
    assert [case.what for case in CASES] == list(SPOILS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "_"))
def test_bad_input(answers, case):
    if "no permission" in case.what and os.geteuid() == 0:
        pytest.skip("root may read everything")
    if "device=cuda" in case.command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    folder, done = answers[case.what].result()
    assert done.returncode == case.code, done.stdout + done.stderr
    said = (done.stderr if case.code == 2 else done.stdout).strip().splitlines()
    assert any(case.says in line for line in said), said
    assert len(said) == 1 or case.code != 2, said
    assert "Traceback" not in done.stderr
    assert not (folder / "exploded").exists() and not (ROOT / "exploded").exists()
    assert not list(folder.rglob("*.partial"))


# ---------------------------------------------------------------- odd, and yet good


def saved(path: Path, picture: Image.Image, **more) -> np.ndarray:
    """Save a picture; what pixels.read_image gives of it."""
    pass

    picture.save(path, **more)
    found = image_io.read_image(path)
    assert found.shape[:2] == image_io.read_image_size(path) and found.dtype == np.uint8
    return found


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def test_grey_16_bit_alpha_and_palette_images_are_read_as_rgb(tmp_path):
    rgb = Image.fromarray(COLOURS)
    grey = np.asarray(rgb.convert("L"))
    assert (saved(tmp_path / "grey.png", Image.fromarray(grey)) == grey[..., None]).all()
    alpha = rgb.copy()
    alpha.putalpha(100)
    assert (saved(tmp_path / "alpha.png", alpha) == COLOURS).all()
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert (saved(tmp_path / "deep.png", deep) == grey[..., None]).all()
    palette = rgb.quantize(256)
    assert (saved(tmp_path / "palette.png", palette) == np.asarray(palette.convert("RGB"))).all()


def test_a_cmyk_jpeg_is_read_as_rgb(tmp_path):
    smooth = Image.fromarray(cv2.resize(COLOURS[:3, :3], (48, 32), interpolation=cv2.INTER_CUBIC))
    found = saved(tmp_path / "cmyk.jpg", smooth.convert("CMYK"), quality=98)
    assert np.abs(found.astype(int) - np.asarray(smooth)).mean() < 4


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_image_is_turned_as_exif_says(tmp_path, orientation, turns):
    flat = Image.fromarray(np.kron(COLOURS[:3, :4], np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(tmp_path / "turned.jpg", flat, exif=exif, quality=98)
    expected = np.rot90(np.asarray(flat), turns)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 20 < np.abs(found - expected[::-1]).mean()


ODD = [
    "with space_01",
    "quo'te\"d_01",
    "a,b_01",
    "Zürich_01",
    "-dash_01",
    "semi;colon_01",
    "new\nline_01",
]


def test_odd_names_go_from_image_to_submission(tmp_path):
    data = make_data(tmp_path / "data", views=2)
    for part, suffix, other in (
        ("train", ".jpg", ""),
        ("train_masks", ".gif", "_mask"),
        ("test", ".jpg", ""),
    ):
        source = next((data / part).iterdir())
        for name in ODD:
            shutil.copy(source, data / part / f"{name}{other}{suffix}")
    (data / "sample_submission.csv").unlink()
    words = words_for(data, tmp_path / "out")
    folds = tmp_path / "folds.csv"
    words = [word for word in words if not word.startswith("folds_csv")] + [f"folds_csv={folds}"]
    assert (done := run_script("folds.py", *words, "n_folds=2")).returncode == 0, done.stderr
    done = run_script("train.py", *words, "fold=0", "epochs=1")
    assert done.returncode == 0, done.stderr
    done = run_script("predict.py", *place(words))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out/tiny/submission.csv", keep_default_na=False)
    assert {f"{name}.jpg" for name in ODD} <= set(table["img"])


@pytest.mark.parametrize(
    "change", [lambda b: b"\xef\xbb\xbf" + b, lambda b: b.replace(b"\n", b"\r\n")]
)
def test_folds_csv_with_bom_or_crlf_is_read(data, change):
    pass
    pass

    settings = config.load_settings([f"folds_csv={data / 'folds.csv'}", "dataset_name=tiny"])
    before = csv_files.read_folds(settings)
    with_bytes("folds.csv", change)(data)
    assert csv_files.read_folds(settings) == before
