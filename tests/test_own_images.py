"""The Python lines of README and docs/deployment.md run as they are printed there."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, prediction_args, tiny_settings_args
from tiny_datasets import make_data

import export
import predict
import train

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(run_copy, tmp_path, monkeypatch):
    """A folder with output/own_images, a trained run, and photo.jpg."""
    shutil.copytree(run_copy.output_dir / "tiny", tmp_path / "output" / "own_images")
    shutil.copy(min((run_copy.data_dir / "test").iterdir()), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_code(code):
    names = {}
    exec(compile(code, "docs/deployment.md", "exec"), names)
    return names


def test_python_lines_of_readme_train_a_step(shared_data_dir, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(import torch.*?)^```", readme, re.MULTILINE | re.DOTALL)
    args = tiny_settings_args(shared_data_dir, tmp_path)
    names = run_code(code.replace('["recipe=demo"]', repr(args)))
    assert names["images"].shape[1:] == (3, 32, 48) and names["loss"] > 0
    assert names["logits"].shape == names["targets"].shape


def test_python_lines_of_the_page_give_mask_and_cutout(folder):
    result = run_code(CODE[0])["result"]
    assert result.mask.dtype == bool and result.mask.any()
    assert result.cutout().shape == (*result.mask.shape, 4)
    assert result.cutout("white").shape == (*result.mask.shape, 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["of the run", "native"])
def test_onnx_lines_of_the_page_give_the_same_mask(folder, run_copy, size):
    args = [a for a in prediction_args(run_copy.args) if not a.startswith(("run=", "output_dir="))]
    if size == "native":
        train_args = [
            a for a in run_copy.args if not a.startswith(("run=", "output_dir=", "size="))
        ]
        shutil.rmtree("output/own_images")
        train.main([*train_args, "run=own_images", "output_dir=output", "size=null", "fold=0"])
    export.main([*args, "run=own_images", "output_dir=output", "images=photo.jpg"])
    [onnx_code] = [code for code in CODE if "onnxruntime" in code]
    result, names = run_code(CODE[0])["result"], run_code(onnx_code)
    np.testing.assert_allclose(names["probability"], result.probability, atol=0.02)
    assert np.mean(names["mask"] == result.mask) > 0.99


def test_recipe_own_images_trains_and_predicts_with_nothing_but_a_folder(tmp_path, monkeypatch):
    data_dir = make_data(tmp_path / "shoes", cars=3)
    for path in [*data_dir.glob("*.csv")]:
        path.unlink()
    args = ["recipe=own_images", f"data_dir={data_dir}", f"output_dir={tmp_path}", "device=cpu"]
    small = ["model=unet", "half_size_decoder=false", "channels=8,16", "size=32,48"]
    small += ["epochs=1", "fold=0"]
    train.main([*args, *small])
    folds = pd.read_csv(data_dir / "folds.csv", dtype=str)
    images = sorted(path.stem for path in (data_dir / "train").iterdir())
    assert folds["group"].tolist() == images and set(folds["fold"]) == {*"01234"}
    predict.main([*args, f"images={data_dir / 'test'}"])
    masks = {path.name for path in (tmp_path / "own_images" / "test").glob("*_mask.png")}
    assert masks == {f"{path.stem}_mask.png" for path in (data_dir / "test").iterdir()}
