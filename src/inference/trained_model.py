"""A trained run or ensemble as an object that is called with a photograph."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from core.config import load_settings
from core.device import explain_large_photograph, pick_device
from core.settings import Settings
from data.color_profile import convert_to_srgb
from data.image_io import read_image
from data.loaders import LoadedSample, collate_samples
from data.preprocess import preprocess_image
from inference.cutout import edge_radius
from inference.members import EnsembleMember, make_member
from inference.postprocess import Binarizer
from inference.predictor import BatchPredictor, keep_mean
from inference.predictor_file import read_predictor, select_fold
from inference.segmentation import Segmentation
from models import checkpoint

# OpenMP's threads do not survive a fork: a forked process would wait for them without end.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class TrainedModel:
    """The networks of a run or ensemble, with its threshold and post-processing.

    Call it with the path of a photograph of any size, or with its pixels, H×W×3 uint8 RGB.
    """

    def __init__(self, members: list[EnsembleMember], binarizer: Binarizer, settings: Settings):
        self.members, self.binarizer = members, binarizer
        self.predictor = BatchPredictor(members, settings, keep_mean)

    def __call__(self, image: str | os.PathLike | np.ndarray) -> Segmentation:
        """Return the probability and the mask of a photograph at its own size.

        Raises InputError if the file is not an image, TypeError if `image` is neither a path nor an
        array, and ValueError if an array is not H×W×3 uint8.
        """
        if not isinstance(image, str | os.PathLike | np.ndarray):
            raise TypeError(f"expected a path or an array, found {type(image).__name__}")
        if not isinstance(image, np.ndarray):
            path = Path(os.path.expanduser(image))
            pixels = read_image(path)
            result = self.segment(pixels, str(path))
            return replace(result, image=convert_to_srgb(path, pixels))
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"expected H×W×3 uint8 RGB, found {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        return self.segment(image.copy(), f"array of {width}×{height} pixels")

    def segment(self, image: np.ndarray, name: str) -> Segmentation:
        """Return the prediction of an image H×W×3 uint8 RGB. `name` is for error messages.

        The result refers to `image`, which must not be changed.
        """
        preprocessings = {member.preprocessing for member in self.members}
        loaded = LoadedSample(None, image.shape[:2], None)
        with explain_large_photograph(name):
            images = {p: preprocess_image(image, p) for p in preprocessings}
            started = self.predictor.start(collate_samples([(loaded, images)]))
            [prediction] = self.predictor.finish(started)
        probability = prediction.probability.numpy()
        return Segmentation(
            image,
            probability if len(probability) > 1 else probability[0],
            self.binarizer,
            edge_radius(image.shape[:2], preprocessings),
        )


def load(
    run_dir: str | os.PathLike,
    device: str = "auto",
    precision: str = "auto",
    fold: int | None = None,
    tta: str | None = None,
) -> TrainedModel:
    """Load a trained run (folder output/<run>) or an ensemble (folder output/<run>+<run>).

    Args:
        run_dir: The folder of the run or ensemble.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "bf16", "fp16" or "fp32".
        fold: Use only the networks that held out this fold; None uses all networks.
        tta: Test-time augmentation: "none", "hflip" or "flips"; None uses the setting of the run.
            Each network runs once for each flip.

    Raises InputError for other values, or if the folder holds no trained run.
    """
    run_dir = Path(os.path.expanduser(run_dir))
    stored = read_predictor(run_dir)
    tta = tta or stored.tta
    requested = load_settings([f"device={device}", f"precision={precision}", f"tta={tta}"])
    networks = stored.networks if fold is None else select_fold(run_dir, stored.networks, fold)
    members, trained = [], []
    for network in networks:
        path = run_dir / network.path
        model, settings = checkpoint.load_model(path, pick_device(requested))
        members.append(make_member(model, settings, network.weight))
        trained.append(settings)
    # Earlier versions stored no tiles; then the settings of the first network apply.
    settings = replace(trained[0], device=device, precision=precision, tta=tta, **stored.tiles)
    return TrainedModel(members, Binarizer(stored.threshold, stored.postprocess), settings)
