"""predict.py images=...: pictures of any photograph, in a folder of their own."""

import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import assert_input_error, prediction_args
from PIL import Image
from tiny_datasets import draw_car, swapped_profile

import predict
from core import files
from core.errors import InputError
from core.settings import Settings
from data import image_io, mask_io
from data.classes import ClassMap, decode_values
from data.datasets import get_class_map
from inference import trained_model
from inference.cutout import read_background
from inference.members import make_member
from inference.postprocess import Binarizer
from inference.segmentation import Segmentation
from inference.trained_model import TrainedModel
from models.build import build_model
from reporting import pictures
from reporting.pictures import draw_pictures, list_photographs, predict_photographs


@pytest.fixture
def arguments(run_copy):
    return prediction_args(run_copy.args)


@pytest.fixture
def run_dir(run_copy):
    return run_copy.output_dir / "tiny"


def draw_photograph(path, size=(50, 80), **options):
    image, _ = draw_car(7, 0, size)
    Image.fromarray(image).save(path, **options)
    return path


def read_cutout(path):
    return np.asarray(Image.open(path))


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_predict_writes_mask_cutout_and_overlay_of_a_photograph(
    arguments, run_dir, tmp_path, capsys
):
    photograph = draw_photograph(tmp_path / "my holiday.png")  # matches no group_regex
    before = files_below(run_dir.parent)
    predict.main([*arguments, f"images={photograph}"])
    folder = run_dir / "my holiday"
    assert f"1 photograph from {photograph}, written to {folder}" in capsys.readouterr().out
    names = {f"my holiday_{name}" for name in ("mask.png", "cutout.png", "overlay.jpg")}
    assert {path.name for path in folder.glob("[!.]*")} == {*names, "source.txt"}
    mask = mask_io.read_mask(folder / "my holiday_mask.png")
    cutout = read_cutout(folder / "my holiday_cutout.png")
    assert mask.shape == (50, 80) and cutout.shape == (50, 80, 4)
    assert cv2.imread(str(folder / "my holiday_mask.png"), cv2.IMREAD_UNCHANGED).max() == 255
    assert 0.1 < mask.mean() < 0.6
    assert (mask[cutout[..., 3] == 255]).all() and not mask[cutout[..., 3] == 0].any()
    assert ((cutout[..., 3] > 0) & (cutout[..., 3] < 255)).any()  # soft
    # Nothing else changed, neither the submission nor its statistics.
    after = files_below(run_dir.parent)
    assert {path: data for path, data in after.items() if folder not in path.parents} == before


def test_predict_takes_a_folder_of_photographs_of_any_size_and_orientation(
    arguments, run_dir, tmp_path, capsys
):
    photos = tmp_path / "photos"
    photos.mkdir()
    image, true = draw_car(7, 0, (48, 72))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(image).copy()).save(photos / "turned.png", exif=exif)
    Image.fromarray(image).save(photos / "upright.png")
    draw_photograph(photos / "large.jpg", (480, 330), quality=95)
    predict.main([*arguments, f"images={photos}/"])
    assert (
        f"3 photographs from {photos}, written to {run_dir / 'photos'}" in capsys.readouterr().out
    )
    masks = {
        name: mask_io.read_mask(run_dir / "photos" / f"{name}_mask.png")
        for name in ("turned", "upright", "large")
    }
    assert masks["large"].shape == (480, 330)
    assert (masks["turned"] == masks["upright"]).all()
    assert np.mean(masks["upright"] == true) > 0.9
    assert read_cutout(run_dir / "photos/turned_cutout.png").shape == (48, 72, 4)


def test_predict_reads_paths_from_the_folder_in_which_the_command_is_typed(
    arguments, run_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    draw_photograph(tmp_path / "here.png")
    draw_photograph(tmp_path / "home.png")
    relative = [f"output_dir={os.path.relpath(run_dir.parent)}", "images=here.png"]
    predict.main([*arguments, *relative])
    predict.main([*arguments, "images=~/home.png"])
    assert (run_dir / "here/here_mask.png").exists() and (run_dir / "home/home_mask.png").exists()


def test_predict_puts_the_object_on_another_background(arguments, run_dir, tmp_path):
    photograph, hall = draw_photograph(tmp_path / "car.png"), tmp_path / "hall.png"
    Image.new("RGB", (20, 20), (10, 200, 30)).save(hall)
    for background, color in (("#ff0000", (255, 0, 0)), (hall, (10, 200, 30))):
        predict.main([*arguments, f"images={photograph}", f"background={background}"])
        picture = image_io.read_image(run_dir / "car/car_background.jpg").astype(int)
        outside = read_cutout(run_dir / "car/car_cutout.png")[..., 3] == 0
        inner = cv2.erode(outside.astype(np.uint8), np.ones((17, 17))) > 0  # JPEG blurs the edge
        assert inner.any() and np.abs(picture[inner] - color).max() < 10


def test_predict_without_a_background_removes_the_picture_of_an_earlier_one(
    arguments, run_dir, tmp_path
):
    photograph, picture = draw_photograph(tmp_path / "car.png"), run_dir / "car/car_background.jpg"
    predict.main([*arguments, f"images={photograph}", "background=white"])
    assert picture.exists()
    predict.main([*arguments, f"images={photograph}", "threshold=0.3"])
    assert not picture.exists()


def test_predict_names_photographs_without_an_object(arguments, run_dir, tmp_path, capsys):
    Image.new("RGB", (60, 40), (200, 200, 200)).save(tmp_path / "empty.png")
    predict.main([*arguments, f"images={tmp_path}/empty.png", "threshold=0.999"])
    assert "1 of 1 masks is empty; the first is of empty.png" in capsys.readouterr().out
    assert not read_cutout(run_dir / "empty/empty_cutout.png").any()


def test_photographs_of_several_classes_are_colored_and_have_no_cutout(tmp_path, capsys):
    settings = Settings(
        dataset_format="pets", trimap_border="class", channels=[8, 16], size=[32, 48], tta="none",
        device="cpu", run="pets", output_dir=str(tmp_path / "output"),
        images=str(draw_photograph(tmp_path / "cat.png")),
    )  # fmt: skip
    torch.manual_seed(0)
    (tmp_path / "weights").touch()
    network = build_model(settings, n_classes=3).eval()
    member = make_member(network, settings, path=tmp_path / "weights")
    model = TrainedModel([member], Binarizer(0.5, []), settings)
    assert predict_photographs(settings, model, list_photographs(settings)) == []
    folder = settings.run_dir / "cat"
    names = {path.name for path in folder.glob("[!.]*")}
    assert names == {
        *("cat_mask.png", "cat_label.png", "cat_overlay.jpg"),
        "legend.png",
        "source.txt",
    }
    result = model(settings.images)
    assert result.probability.shape == (3, 50, 80) and result.mask.dtype == np.uint8
    colors = {tuple(color) for color in image_io.read_image(folder / "cat_mask.png").reshape(-1, 3)}
    assert colors <= {tuple(color) for color in get_class_map(settings).colors}
    label = cv2.imread(str(folder / "cat_label.png"), cv2.IMREAD_UNCHANGED)
    assert (decode_values(label, get_class_map(settings), "") == result.mask).all()
    with pytest.raises(InputError, match="a cutout needs a run of one class"):
        result.cutout()
    with pytest.raises(InputError, match="background=white: needs a run of one class; pets has 3"):
        list_photographs(replace(settings, background="white"))


def test_label_of_several_classes_holds_the_values_of_the_label_files():
    class_map = ClassMap(("cat", "dog"), ((9, 0, 0), (0, 9, 0)), (-1, 1, -1, 0))  # dog 1, cat 3
    probability = np.zeros((2, 1, 2), np.float32)
    probability[0, 0, 0] = probability[1, 0, 1] = 1  # cat, dog
    image = np.zeros((1, 2, 3), np.uint8)
    result = Segmentation(image, probability, Binarizer(0.5, []), 1.0)
    drawn = dict(draw_pictures(result, class_map, ""))
    assert drawn["label.png"].tolist() == [[3, 1]]
    assert drawn["mask.png"].tolist() == [[[9, 0, 0], [0, 9, 0]]]


# ---------------------------------------------------------------- bad input


def test_predict_explains_what_is_no_photograph(arguments, tmp_path):
    draw_photograph(tmp_path / "holiday.jpg")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "none").mkdir()
    for name, parts in {
        "holidy.jpg": (f"{tmp_path}/holidy.jpg: does not exist; {tmp_path} holds holiday.jpg",),
        "notes.txt": ("notes.txt: cannot be read as an image",),
        "film.mp4": ("film.mp4", "ffmpeg"),
        "phone.heic": ("phone.heic", "convert HEIC"),
        "none": ("none: is empty; expected images",),
    }.items():
        assert_input_error(predict.main, [*arguments, f"images={tmp_path / name}"], *parts)


def test_predict_skips_unreadable_photographs_if_asked_to(arguments, run_dir, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "c.jpg"):
        draw_photograph(photos / name)
    predict.main([*arguments, f"images={photos}", "background=white"])
    (photos / "b.jpg").write_text("no image")
    data = (photos / "c.jpg").read_bytes()
    (photos / "c.jpg").write_bytes(data[: len(data) // 2])
    args = [*arguments, f"images={photos}"]
    assert_input_error(predict.main, args, "b.jpg: cannot be read as an image")
    with pytest.raises(SystemExit) as exit:
        predict.main([*args, "skip_unreadable=true"])
    assert exit.value.code == 3
    printed = capsys.readouterr().out
    assert f"1 photograph from {photos}, written to {run_dir / 'photos'}" in printed
    assert printed.count("skipped, ") == 2 and "b.jpg: cannot be read" in printed
    names = {path.name for path in (run_dir / "photos").glob("[!.]*")}
    assert names == {"a_mask.png", "a_cutout.png", "a_overlay.jpg", "source.txt"}


@pytest.mark.parametrize("name", ["fold0", "masks"])
def test_predict_does_not_write_photographs_among_the_files_of_the_run(arguments, tmp_path, name):
    photograph = draw_photograph(tmp_path / f"{name}.png")
    assert_input_error(predict.main, [*arguments, f"images={photograph}"], name, "rename")


def test_predict_rejects_an_invalid_background_before_it_predicts(arguments, run_dir, tmp_path):
    photograph = draw_photograph(tmp_path / "car.png")
    args = [*arguments, f"images={photograph}", "background=blau"]
    assert_input_error(predict.main, args, "background=blau: neither an existing picture file nor")
    assert not (run_dir / "car").exists()


def test_predict_does_not_overwrite_pictures_of_another_photograph_of_the_name(
    arguments, run_dir, tmp_path
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = draw_photograph(tmp_path / "a/car.png"), draw_photograph(tmp_path / "b/car.png")
    predict.main([*arguments, f"images={first}"])
    before = files_below(run_dir / "car")
    parts = (f"{run_dir / 'car'}: holds pictures of {first}, not of {second}", "pictures_dir=")
    assert_input_error(predict.main, [*arguments, f"images={second}"], *parts)
    assert files_below(run_dir / "car") == before


@pytest.mark.parametrize("changed", ["", "background=white", "threshold=0.7", "the photograph"])
def test_interrupted_prediction_of_photographs_continues(
    arguments, run_dir, tmp_path, capsys, monkeypatch, changed
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        draw_photograph(photos / f"{name}.png")
    args = [*arguments, f"images={photos}"]
    with monkeypatch.context() as patch:  # interrupted while the second one is predicted
        patch.setattr(pictures, "WRITER_THREADS", 1)
        patch.setattr(TrainedModel, "segment", interrupt_second_call(TrainedModel.segment))
        with pytest.raises(KeyboardInterrupt):
            predict.main(args)
    first = run_dir / "photos/a_mask.png"
    before = first.stat().st_mtime_ns
    assert first.exists() and not (run_dir / "photos/b_mask.png").exists()
    if changed == "the photograph":
        os.utime(photos / "a.png")
    predict.main([*args, changed] if "=" in changed else args)
    continued = "resuming: 1 photograph predicted already" in capsys.readouterr().out
    assert continued == (first.stat().st_mtime_ns == before) == (not changed)
    assert (run_dir / "photos/b_mask.png").exists()
    predict.main(args)  # a finished prediction is made again
    assert "resuming" not in capsys.readouterr().out and first.stat().st_mtime_ns > before


def interrupt_second_call(segment):
    calls = []

    def wrapper(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return segment(*args)

    return wrapper


@pytest.mark.parametrize("arg", ["background=blau", "images=missing.jpg"])
def test_predict_checks_photographs_and_background_before_it_loads_networks(
    arguments, tmp_path, monkeypatch, arg
):
    monkeypatch.setattr(predict.ensemble, "load_trained_model", None)
    args = [*arguments, f"images={draw_photograph(tmp_path / 'car.png')}", arg]
    assert_input_error(predict.main, args, arg.partition("=")[2])


def test_pictures_have_the_colors_of_the_profile(arguments, run_dir, tmp_path):
    path = tmp_path / "car.png"
    red = Image.fromarray(np.full((48, 72, 3), (200, 30, 30), np.uint8))
    red.save(path, icc_profile=swapped_profile())
    predict.main([*arguments, f"images={path}", "threshold=0.001", f"background={path}"])
    assert read_background(path, (8, 8))[4, 4].tolist() == [30, 200, 30]
    for ending in ("overlay", "background"):
        picture = image_io.read_image(run_dir / f"car/car_{ending}.jpg").astype(int)
        assert picture[24, 36, 1] > picture[24, 36, 0] + 100


def test_memory_that_runs_out_names_the_photograph(arguments, tmp_path, monkeypatch):
    def run_out_of_memory(*args):
        raise MemoryError("Unable to allocate 9 GiB")

    photograph = draw_photograph(tmp_path / "car.png")
    args = [*arguments, f"images={photograph}"]
    for module, function in ((trained_model, "preprocess_image"), (pictures, "draw_pictures")):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, run_out_of_memory)
            part = f"{photograph}: out of memory; scale the photograph down, or cut it into tiles"
            assert_input_error(predict.main, args, part)


def test_predictions_of_photographs_into_one_folder_at_a_time_do_not_mix(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    photograph, folder = draw_photograph(tmp_path / "car.png"), tmp_path / "pictures"
    args = [*arguments, f"images={photograph}", f"pictures_dir={folder}"]
    with files.folder_lock(folder, ""):
        part = f"{folder}: another process is using this folder; wait, it writes pictures there"
        assert_input_error(predict.main, args, part)
    assert not list(folder.glob("[!.]*"))


def test_pictures_dir_takes_the_pictures_and_holds_nothing_else(arguments, run_dir, tmp_path):
    photos, folder = tmp_path / "photos", tmp_path / "new/pictures"
    photos.mkdir()
    draw_photograph(photos / "car.png")
    for _ in range(2):  # the second time, they are written again
        predict.main([*arguments, f"images={photos}", f"pictures_dir={folder}"])
    written = {path.name for path in files_below(folder)}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.DS_Store").touch()
    predict.main([*arguments, f"images={photos}", f"pictures_dir={tmp_path / 'other'}"])
    assert written == {"car_mask.png", "car_cutout.png", "car_overlay.jpg", "source.txt"}
    assert not (run_dir / "photos").exists()
    before = files_below(photos)
    part = f"pictures_dir={photos}: is not a folder for pictures only"
    assert_input_error(
        predict.main, [*arguments, f"images={photos}", f"pictures_dir={photos}"], part
    )
    assert files_below(photos) == before


def test_pictures_of_removed_photographs_are_named(arguments, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    removed = draw_photograph(photos / "old.png")
    draw_photograph(photos / "new.png")
    predict.main([*arguments, f"images={photos}"])
    assert "warning" not in capsys.readouterr().out
    removed.unlink()
    predict.main([*arguments, f"images={photos}"])
    assert "photos holds files of an earlier prediction: old_mask.png" in capsys.readouterr().out


def test_photographs_are_written_again_in_the_same_folder(arguments, run_dir, tmp_path):
    photograph = draw_photograph(tmp_path / "car.png")
    predict.main([*arguments, f"images={photograph}"])
    first = files_below(run_dir / "car")
    shutil.rmtree(run_dir / "car")
    predict.main([*arguments, f"images={photograph}"])
    predict.main([*arguments, f"images={photograph}"])
    assert files_below(run_dir / "car") == first
