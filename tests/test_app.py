"""The page: its functions in process, and the page itself in a browser."""

import importlib.util
import io
import shutil
import urllib.request

import numpy as np
import pytest
from browser import Browser, wait_for
from conftest import REAL, assert_input_error
from PIL import Image
from tiny_datasets import draw_car

import app
from inference import load

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="requirements-app.txt is not installed"
)


@pytest.fixture(scope="module")
def model(trained_run):
    return load(trained_run.output_dir / "tiny", device="cpu")


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "car.png"
    Image.fromarray(draw_car(7, 0, (60, 90))[0]).save(path)
    return str(path)


def test_draw_shows_the_mask_and_the_cutout_at_a_threshold(model, photograph):
    result = model(photograph)
    mask, cutout = app.draw(result, 0.5, app.TRANSPARENT, "#ffffff")
    assert mask.shape == (60, 90) and set(np.unique(mask)) == {0, 255}
    assert cutout.shape == (60, 90, 4)
    high = float(np.quantile(result.probability, 0.95))
    strict, _ = app.draw(result, high, app.TRANSPARENT, "#ffffff")
    assert 0 < (strict > 0).sum() < (mask > 0).sum()
    _, on_red = app.draw(result, 0.5, app.COLORED, "rgba(254.6, 0, 0, 1)")
    assert (on_red[cutout[..., 3] == 0] == (255, 0, 0)).all()


def test_draw_does_not_run_the_network(model, photograph, monkeypatch):
    result = model(photograph)
    monkeypatch.setattr(type(model), "__call__", None)
    assert app.draw(result, 0.3, app.TRANSPARENT, "")[0].any()


def test_page_without_a_photograph_is_empty():
    assert app.draw(None, 0.5, app.TRANSPARENT, "") == (None, None)


@pytest.mark.parametrize(
    ("color", "expected"),
    [("#12ab0f", "#12ab0f"), ("rgba(18, 171.2, 14.9, 1)", "#12ab0f"), ("rgb(0,0,0)", "#000000")],
)
def test_to_hex_reads_what_the_color_picker_sends(color, expected):
    assert app.to_hex(color) == expected


def test_app_names_the_missing_package_or_run(trained_run, tmp_path, monkeypatch):
    args = ["run=tiny", f"output_dir={tmp_path}", "device=cpu"]
    if importlib.util.find_spec("gradio"):
        assert_input_error(app.main, args, "tiny: has no trained fold; train it with")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_input_error(app.main, args, "pip install -r requirements-app.txt")


@needs_gradio
def test_page_shows_the_threshold_that_was_chosen_out_of_fold(model):
    page = app.build_page(model, "title")
    components = {c["props"].get("label"): c for c in page.config["components"]}
    assert components.keys() >= {"Photograph", "Mask", "Cutout", "Threshold", "Background"}
    threshold = components["Threshold"]["props"]["value"]
    assert threshold == pytest.approx(model.binarizer.threshold, abs=5e-4)


# ---------------------------------------------------------------- in a browser

# Address of the loaded picture of each image component, by its label.
PICTURES = """
const pictures = {};
for (const image of document.querySelectorAll("img")) {
  const block = image.closest(".block");
  const label = block && block.querySelector("label, [data-testid='block-label']");
  if (label && image.naturalWidth) pictures[label.textContent.trim()] = image.src;
}
return pictures;
"""
MOVE_SLIDER = """
const slider = document.querySelector("input[type=range]");
slider.value = 0.875;
slider.dispatchEvent(new Event("input", {bubbles: true}));
slider.dispatchEvent(new Event("pointerup", {bubbles: true}));
"""
CLEAR = "document.querySelector('[aria-label=\\'Remove Image\\']').click()"
MESSAGE = "return document.querySelector('.toast-wrap')?.textContent || ''"


def fetch_image(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        return np.asarray(Image.open(io.BytesIO(response.read())))


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are missing",
)
def test_page_in_a_browser_shows_mask_and_cutout_and_moves_the_threshold(
    model, photograph, tmp_path
):
    if (REAL / "carvana" / "test").is_dir():
        photograph = str(min((REAL / "carvana" / "test").glob("*.jpg")))
    expected = model(photograph)
    page = app.build_page(model, "tiny")
    _, url, _ = page.launch(quiet=True, prevent_thread_lock=True)
    try:
        with Browser() as browser:
            browser.open(url)
            [upload] = wait_for(lambda: browser.find("input[type=file]"))
            browser.type(upload, photograph)
            labels = {"Photograph", "Mask", "Cutout"}
            shown = wait_for(lambda: browser.run(PICTURES), lambda found: found.keys() >= labels)
            mask = fetch_image(shown["Mask"]) > 0
            assert (mask == expected.mask).all()
            assert (fetch_image(shown["Cutout"])[..., 3] == expected.alpha).all()
            browser.run(MOVE_SLIDER)
            moved = wait_for(
                lambda: browser.run(PICTURES),
                lambda found: found.get("Mask", shown["Mask"]) != shown["Mask"],
            )
            strict = fetch_image(moved["Mask"]) > 0
            assert (strict == expected.with_threshold(0.875).mask).all()
            assert strict.sum() < mask.sum()
            (tmp_path / "film.png").write_bytes(b"\0\0\0\x18ftypisom")
            browser.run(CLEAR)
            [upload] = wait_for(lambda: browser.find("input[type=file]"))
            browser.type(upload, str(tmp_path / "film.png"))
            text = wait_for(lambda: browser.run(MESSAGE), lambda found: "film.png" in found)
            assert "extract the frames of a video first" in text
            assert not browser.run(PICTURES)
    finally:
        page.close(verbose=False)
