"""A page in the browser: drop a photograph, see its mask and cutout, and move the threshold.

Needs `pip install -r requirements-app.txt`. Only this machine can open the page, unless the
environment variable GRADIO_SERVER_NAME=0.0.0.0 is set; GRADIO_SERVER_PORT chooses the port.
"""

import importlib.util
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from core import cli
from core.errors import InputError

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import numpy as np

from evaluation import ensemble
from inference import load_runs
from inference.segmentation import Segmentation
from inference.trained_model import TrainedModel

if TYPE_CHECKING:
    from gradio import Blocks

TRANSPARENT, COLORED = "transparent", "one color"
KEPT_SECONDS = (600, 3600)  # every 10 minutes, Gradio deletes its files that are an hour old


def draw(
    result: Segmentation | None, threshold: float, background: str, color: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the mask and the cutout at a threshold; no network runs."""
    if result is None:
        return None, None
    result = result.with_threshold(threshold)
    cutout = result.cutout(to_hex(color) if background == COLORED else None)
    return result.mask.astype(np.uint8) * 255, cutout


def to_hex(color: str) -> str:
    """Convert the color picker's 'rgba(255, 127.5, 0, 1)' to '#ff8000'; '#rrggbb' stays."""
    if color.startswith("#"):
        return color
    red, green, blue = (round(float(number)) for number in re.findall(r"[\d.]+", color)[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"


def build_page(model: TrainedModel, title: str) -> "Blocks":
    """Return the page; its state is the Segmentation of the photograph."""
    import gradio as gr

    def segment_or_explain(upload: dict | None) -> Segmentation | None:
        try:
            return model(upload["path"]) if upload else None
        except InputError as error:
            message = f"{error}".removeprefix(f"{Path(upload['path']).parent}/")
            gr.Warning(message, duration=None)
            return None

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEPT_SECONDS) as page:
        gr.Markdown(f"# {title}")
        result = gr.State()
        with gr.Row():
            photograph = gr.Image(sources=["upload", "clipboard"], label="Photograph")
            options = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
            mask = gr.Image(image_mode="L", label="Mask", **options)
            cutout = gr.Image(image_mode="RGBA", label="Cutout", **options)
        with gr.Row():
            best = model.binarizer.threshold
            limits = min(1 / 256, best), max(255 / 256, best)
            threshold = gr.Slider(*limits, best, step=1 / 256, label="Threshold")
            background = gr.Radio([TRANSPARENT, COLORED], value=TRANSPARENT, label="Background")
            color = gr.ColorPicker("#ffffff", label="Color")
        drawing = {"fn": draw, "inputs": [result, threshold, background, color]}
        drawing["outputs"] = [mask, cutout]
        # Skip Gradio's preprocessing, so that our code reads the files and explains bad ones.
        photograph.change(segment_or_explain, photograph, result, preprocess=False).then(**drawing)
        for control, event in ((threshold, "release"), (background, "change"), (color, "change")):
            getattr(control, event)(**drawing)
    return page


def main(args: list[str]) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is missing; install it with `pip install -r requirements-app.txt`")
    settings = load_runs.settings_for_prediction(args)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    model = ensemble.load_trained_model(settings)
    model(np.zeros((64, 64, 3), np.uint8)).cutout()  # InputError for several classes
    page = build_page(model, f"{settings.run}: mask and cutout of a photograph")
    try:
        _, url, _ = page.launch(quiet=True, prevent_thread_lock=True, footer_links=[])
    except OSError as error:  # the port is in use
        raise InputError(f"{error}".splitlines()[0]) from None
    print(f"open {url} in a browser; press Ctrl-C to stop the server", flush=True)
    try:
        threading.Event().wait()  # until a signal
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    cli.run_main(main)
