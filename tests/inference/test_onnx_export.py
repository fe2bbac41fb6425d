"""Networks in ONNX give torch's probabilities in onnxruntime, at every size."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import assert_input_error, prediction_args

import export
from core import config
from core.errors import InputError
from core.settings import Settings
from data.preprocess import Preprocessing
from inference import load_runs
from inference.members import EnsembleMember
from inference.onnx_export import (
    MeanProbability,
    check_exportable,
    export_onnx,
    smallest_side,
    with_static_padding,
)
from inference.postprocess import Binarizer
from inference.tta import predict_probability_tta
from models.build import build_model


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def build_members(settings, weights=(1.0,)):
    torch.manual_seed(0)
    return [
        EnsembleMember(build_model(settings, pretrained=False).eval(), Preprocessing(None), weight)
        for weight in weights
    ]


def test_export_writes_the_mean_over_the_flips(run_copy, capsys):
    photograph = run_copy.data_dir / "test/000000000004_01.jpg"
    args = [*prediction_args(run_copy.args), f"images={photograph}", "fold=0"]
    export.main([*args, "threshold=0.3", "postprocess=fill"])
    run_dir = run_copy.output_dir / "tiny"
    path = run_dir / "tiny_fold0.onnx"
    printed = capsys.readouterr().out
    assert f"{path}: 1 network, tta=hflip" in printed and "differs from torch's by" in printed

    settings = load_runs.settings_for_prediction([*prediction_args(run_copy.args), "fold=0"])
    [member] = load_runs.load_members(settings)
    for shape in ((1, 3, 32, 48), (3, 3, 41, 77), (2, 3, 100, 33)):
        images = random_images(*shape)
        with torch.inference_mode():
            expected = predict_probability_tta(member.model, torch.from_numpy(images), settings)
        np.testing.assert_allclose(run_onnx(path, images), expected.numpy(), atol=1e-5)

    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert (metadata["size"], metadata["tta"]) == ("32x48", "hflip")
    assert json.loads(metadata["classes"]) == ["object"]
    assert (metadata["threshold"], metadata["postprocess"]) == ("0.3", "fill")


def test_mean_probability_weighs_the_members():
    settings = config.load_settings(["channels=[4,8]", "tta=none", "device=cpu"])
    members = build_members(settings, weights=(1.0, 3.0))
    images = torch.from_numpy(random_images(1, 3, 16, 24))
    with torch.inference_mode():
        first, second = (predict_probability_tta(m.model, images, settings) for m in members)
        mean = MeanProbability(members, settings)(images)
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(mean, 0.25 * first + 0.75 * second)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_args",
    [
        ["channels=[8,16,24]", "padding=valid", "upsampling=bilinear"],
        ["channels=[8,16]", "space_to_depth=4", "upsampling=transpose3"],
        ["model=smp", "encoder=resnet18", "encoder_weights=none"],
        ["model=smp", "encoder=tu-tf_efficientnet_lite0", "encoder_weights=none"],
    ],
    ids=["valid", "space_to_depth", "smp", "lite0"],
)
def test_export_pads_and_weights_as_torch_does(tmp_path, model_args):
    settings = config.load_settings([*model_args, "tta=none", "device=cpu"])
    members = build_members(settings, weights=(0.25, 0.75))
    model, path = MeanProbability(members, settings), tmp_path / "model.onnx"
    side = max(smallest_side(member.model) for member in members)
    images = [random_images(1, 3, side, side + 1), random_images(2, 3, side + 37, side + 10)]
    assert export_onnx(path, model, {}, images) < 1e-4
    with torch.inference_mode():
        alone = [
            predict_probability_tta(member.model, torch.from_numpy(images[1]), settings).numpy()
            for member in members
        ]
    np.testing.assert_allclose(
        run_onnx(path, images[1]), 0.25 * alone[0] + 0.75 * alone[1], atol=1e-4
    )


def test_with_static_padding_keeps_the_logits_of_all_sizes():
    args = ["model=smp", "encoder=tu-tf_efficientnet_lite0", "encoder_weights=none"]
    [member] = build_members(config.load_settings(args))
    fixed = with_static_padding(member.model)
    for network, count in ((member.model, 5), (fixed, 0)):
        assert [type(module).__name__ for module in network.modules()].count("Conv2dSame") == count
    for shape in ((1, 3, 32, 48), (2, 3, 41, 77)):
        images = torch.from_numpy(random_images(*shape))
        with torch.inference_mode():
            torch.testing.assert_close(fixed(images), member.model(images))


def test_smallest_side_is_the_first_that_can_be_reflected():
    [member] = build_members(Settings(channels=[8, 16, 16, 16]))
    assert smallest_side(member.model) == 4  # 3 pixels become 8 by 2 and 3 more, which they lack
    [valid] = build_members(Settings(channels=[8, 16], padding="valid"))
    side = smallest_side(valid.model)
    border = [(valid.model.input_size(n) - n + 1) // 2 for n in (side - 1, side)]
    assert border[0] >= side - 1 and border[1] < side


@pytest.mark.slow
def test_export_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    settings = config.load_settings(["channels=[8,16]", "tta=none", "device=cpu"])
    model, path = MeanProbability(build_members(settings), settings), tmp_path / "model.onnx"
    monkeypatch.setattr("inference.onnx_export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(InputError, match="not written: its output differs from torch's by"):
        export_onnx(path, model, {}, [random_images(1, 3, 64, 64)])
    assert not list(tmp_path.iterdir())


def test_export_without_an_image_that_the_graph_takes_asks_for_one(tmp_path):
    settings = config.load_settings(["channels=[8,16]", "tta=none", "device=cpu"])
    model = MeanProbability(build_members(settings), settings)
    with pytest.raises(InputError, match=r"is for images of 2 pixels or more .* set images="):
        export_onnx(tmp_path / "model.onnx", model, {}, [random_images(1, 3, 1, 64)])


def test_check_exportable_explains_what_one_graph_cannot_hold(monkeypatch):
    settings = Settings(channels=[8, 16], runs=["a", "b"])
    [member] = build_members(settings)
    check_exportable([member], settings)
    other = replace(member, preprocessing=Preprocessing((32, 32)))
    for members, changed, part in (
        ([member, other], {}, "export each run alone"),
        ([member], {"reduce_colors": 8}, "reduce_colors=8"),
        ([member], {"tile_size": 512}, "tile_size=512"),
    ):
        with pytest.raises(InputError, match=part):
            check_exportable(members, replace(settings, **changed))
    monkeypatch.setattr("inference.onnx_export.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="export one fold, as with fold=0"):
        check_exportable([member], settings)


def test_export_without_any_photograph_asks_for_one(run_copy, tmp_path):
    args = [a for a in prediction_args(run_copy.args) if not a.startswith("data_dir=")]
    args.append(f"data_dir={tmp_path}")
    assert_input_error(export.main, args, "test", "set images=photo.jpg")


def test_export_stores_the_chosen_threshold_and_steps_and_how_to_resize(run_copy, monkeypatch):
    stored = {}

    def keep(path, model, metadata, images):
        stored.update(metadata)
        path.touch()
        return 0.0

    monkeypatch.setattr(export, "export_onnx", keep)
    monkeypatch.setattr(export.oof, "choose_binarizer", lambda *_: Binarizer(0.25, ["fill"]))
    config_path = run_copy.output_dir / "tiny/config.yaml"
    text = config_path.read_text()
    config_path.write_text(text.replace("resize_mode: stretch", "resize_mode: letterbox"))
    photograph = run_copy.data_dir / "test/000000000004_01.jpg"
    export.main([*prediction_args(run_copy.args), f"images={photograph}"])
    assert (stored["threshold"], stored["postprocess"]) == ("0.25", "fill")
    assert stored["resize_mode"] == "letterbox"
