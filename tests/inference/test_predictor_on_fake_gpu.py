"""Prediction never waits for a GPU but in the caller: tried on a GPU that is not there."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import smp_args
from fake_cuda import Watch, fake_gpu

from core.config import load_settings
from data.loaders import LoadedSample, collate_samples
from evaluation.pixel_counts import count_pixels
from inference import predictor
from inference.members import make_member
from inference.postprocess import Binarizer
from models.build import build_model

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch is built without CUDA"
)
UNET = ["channels=[8,16]", "size=[32,48]", "tta=hflip", "device=cuda"]
SMP = smp_args(UNET, "resnet18")


def make_batch(members, n_images, n_classes):
    """Images of two native sizes, with their masks."""
    image, batch = np.zeros((32, 48, 3), np.uint8), []
    for i in range(n_images):
        size = (64, 96) if i < 2 else (50, 70)
        mask = np.zeros(size, bool if n_classes == 1 else np.uint8)
        images = {member.preprocessing: image for member in members}
        batch.append((LoadedSample(None, size, mask), images))
    return collate_samples(batch)


def reduce(image):
    """All that predict.py and report.py keep of an image."""
    mean = image.mean()
    kept = count_pixels(mean, image.mask) | {"mask": Binarizer(0.4, ["fill"]).to_mask(mean)}
    return kept | {"agreement": image.agreement(mean), "each": image.each()}


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
@pytest.mark.parametrize(
    ("args", "n_classes"), [(UNET, 1), ([*UNET, "tile_size=128"], 1), (UNET, 3), (SMP, 1)]
)
def test_predicting_a_batch_on_a_fake_gpu_never_waits(monkeypatch, args, n_classes, precision):
    settings = load_settings([*args, f"precision={precision}"])
    events = Counter()
    monkeypatch.setattr(
        predictor, "record_event", lambda device: events.update([device.type]) or (lambda: None)
    )
    networks = [build_model(settings, n_classes, pretrained=False).eval() for _ in range(2)]
    members = [make_member(network, settings) for network in networks]
    networks += [member.fused_model for member in members]  # reads values, once a network
    batch = make_batch(members, 4, n_classes)
    with fake_gpu() as fake:
        # Of real tensors, as pinning itself asks the driver; only pinned ones can be copied.
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: fake.from_tensor(tensor))
        for network in networks:
            network.to(torch.device("cuda", 0))
        batch_predictor = predictor.BatchPredictor(members, settings, reduce)
        assert batch_predictor.precision == ("fp16" if precision == "auto" else precision)
        with Watch() as watch:
            started = batch_predictor.start(batch)
        with Watch() as reading:
            next(networks[0].parameters()).to("cpu")
    assert not watch.waits, watch.waits
    assert reading.waits  # so that Watch can fail
    assert events == {"cuda": 1} and len(started.kept) == 4
