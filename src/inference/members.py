"""Members of an ensemble: networks with preprocessing and weight, and a faster copy of each."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.settings import Settings
from data.preprocess import Preprocessing, preprocessing_from
from models.segmenter import Segmenter


@dataclass
class EnsembleMember:
    """One network of an ensemble, with its preprocessing and weight."""

    model: Segmenter
    preprocessing: Preprocessing
    weight: float = 1.0
    path: Path | None = None  # of the weights file that load_members() has read

    @cached_property
    def fused_model(self) -> Segmenter:
        """The model without batch normalization, see fuse_batch_norms()."""
        return fuse_batch_norms(self.model)

    def model_for(self, precision: str) -> Segmenter:
        """Return the model to run in a precision: `model` for 'bf16', `fused_model` for 'fp16' and
        'fp32'.

        Fusing changes the masks most in bf16. For a recipe=carvana_small network, 1 − Dice
        between masks with and without fusing was 8.9e-4 in bf16, 6.6e-5 in fp16 and 5e-8 in fp32
        (docs/speed.md).
        """
        return self.model if precision == "bf16" else self.fused_model


def make_member(
    model: Segmenter, settings: Settings, weight: float = 1.0, path: Path | None = None
) -> EnsembleMember:
    """Return the model as a member with the preprocessing of its training settings."""
    return EnsembleMember(model, preprocessing_from(settings), weight, path)


# ---------------------------------------------------------------- batch normalization


def fuse_batch_norms(model: Segmenter) -> Segmenter:
    """Return a copy of a model with each batch normalization fused into the convolution before it.

    The copy computes the same function in fewer passes over memory. `model` must be in evaluation
    mode. A convolution is paired with the layer that is registered after it. A model may call its
    layers in another order; fusing then changes the logits, and `model` itself is returned.
    """
    fused, is_changed = deepcopy(model), False
    for parent in fused.modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            is_pair = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            if is_pair and conv.out_channels == norm.num_features:
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                # The normalization layers of timm include the activation.
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
                is_changed = True
    return fused if is_changed and computes_the_same(model, fused) else model


@torch.inference_mode()
def computes_the_same(first: Segmenter, second: Segmenter) -> bool:
    """Whether two models have the same logits for a small image, up to 1% of the largest.

    False if they accept only images of another size.
    """
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    image = image.to(next(first.parameters()).device, torch.uint8)
    try:
        expected, logits = first(image), second(image)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return bool((logits - expected).abs().max() <= 0.01 * expected.abs().max())
