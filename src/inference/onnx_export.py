"""Export of an ensemble to one ONNX graph: images → mean probability."""

import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.files import atomic_write
from core.settings import Settings
from inference.combine import weighted_mean
from inference.members import EnsembleMember
from inference.tta import predict_probability_tta
from models.segmenter import Segmenter

MAX_BYTES = 2**31 - 2**20  # of weights: ONNX files are protobuf, which is limited to 2 GiB
MAX_DIFFERENCE = 1e-3  # of a probability between onnxruntime and torch
EXAMPLE_SHAPE = (2, 3, 512, 544)  # the exporter would treat a dimension of size 1 as constant


class MeanProbability(nn.Module):
    """Module that maps uint8 RGB images B×3×H×W to probabilities, float32 B×C×H×W.

    A probability is the mean over the flips of test-time augmentation, then the weighted mean over
    the members.
    """

    def __init__(self, members: list[EnsembleMember], settings: Settings):
        super().__init__()
        self.models = nn.ModuleList(member.model for member in members)
        self.weights = [member.weight for member in members]
        self.settings = settings

    def forward(self, images: Tensor) -> Tensor:
        each = [predict_probability_tta(model, images, self.settings) for model in self.models]
        return weighted_mean(list(zip(self.weights, each, strict=True)))


def check_exportable(members: list[EnsembleMember], settings: Settings) -> None:
    """Raise InputError if one graph cannot hold the members."""
    preprocessings = {member.preprocessing for member in members}
    if len(preprocessings) > 1:
        sizes = " and ".join(str(p.size or "native") for p in preprocessings)
        raise InputError(
            f"runs={','.join(settings.runs)}: differ in input ({sizes}); export each run alone"
        )
    if settings.reduce_colors:
        raise InputError(
            f"reduce_colors={settings.reduce_colors}: ONNX cannot reduce colors; export a run that "
            "was trained with reduce_colors=0"
        )
    if settings.tile_size:
        raise InputError(
            f"tile_size={settings.tile_size}: ONNX predicts whole images; set tile_size=0"
        )
    n_bytes = sum(t.nbytes for member in members for t in member.model.state_dict().values())
    if n_bytes > MAX_BYTES:
        raise InputError(
            f"{len(members)} networks have {n_bytes / 2**30:.1f} GiB of weights, but an ONNX file "
            "is limited to 2 GiB; export one fold, as with fold=0"
        )


def smallest_side(model: Segmenter) -> int:
    """Return the smallest image side that can be padded by reflection."""
    sides = range(1, EXAMPLE_SHAPE[2])
    too_short = [side for side in sides if (model.input_size(side) - side + 1) // 2 >= side]
    return max(too_short, default=0) + 1


def export_onnx(
    path: Path, model: MeanProbability, metadata: dict[str, str], images: list[np.ndarray]
) -> float:
    """Write the model to `path` with dynamic batch, height and width.

    Runs the file in onnxruntime on `images` (each B×3×h×w uint8) and returns the largest difference
    from torch's probabilities. Raises InputError, and writes nothing, if the difference is above
    MAX_DIFFERENCE or if all `images` are too small.
    """
    side = max(smallest_side(member) for member in model.models)
    images = [batch for batch in images if min(batch.shape[2:]) >= side]
    if not images:
        raise InputError(
            f"{path}: is for images of {side} pixels or more on each side, and the photograph to "
            "check it has fewer; set images= to a larger one"
        )
    # Tracing needs two pixels or more at every level, so it fails for a smaller minimum size. The
    # exported graph still accepts all images whose sides have `side` pixels or more.
    traced = max(side, *(member.input_size(1) + 1 for member in model.models))
    sizes = {0: ("batch", 1), 2: ("height", traced), 3: ("width", traced)}
    # The exporter warns about its own code.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        program = torch.onnx.export(
            with_static_padding(model.eval()),
            (torch.zeros(EXAMPLE_SHAPE, dtype=torch.uint8),),
            verbose=False,
            input_names=["images"],
            output_names=["probability"],
            dynamic_shapes=[
                {axis: torch.export.Dim(name, min=least) for axis, (name, least) in sizes.items()}
            ],
        )
    program.model.metadata_props.update(metadata | {"smallest_side": str(side)})
    with atomic_write(path) as tmp_path:
        program.save(tmp_path)
        difference = max(_difference(tmp_path, model, each) for each in images)
        if not difference <= MAX_DIFFERENCE:
            raise InputError(
                f"{path}: not written: its output differs from torch's by {difference:.1e}, the "
                f"limit is {MAX_DIFFERENCE:g}; predict with predict.sh or load() instead"
            )
    return difference


def with_static_padding(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which each Conv2dSame of timm has a constant padding.

    Conv2dSame computes its padding from the input size, which makes an export take ten times as
    long. The padding is in fact constant: Segmenter pads images to multiples of all strides.
    """
    model = deepcopy(model)
    for parent in [*model.modules()]:
        for name, module in parent.named_children():
            if type(module).__name__ == "Conv2dSame":  # the import of timm takes seconds
                setattr(parent, name, _pad_then_convolve(module))
    return model


def _pad_then_convolve(conv: nn.Conv2d) -> nn.Module:
    """Return `conv` with constant "same" padding, for sides that are multiples of its stride."""
    sides = zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)
    rows, columns = ((size - 1) * dilation + 1 - stride for size, dilation, stride in sides)
    pad = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    options = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    padded = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **options)
    padded.weight, padded.bias = conv.weight, conv.bias
    return nn.Sequential(pad, padded)


@torch.inference_mode()
def _difference(path: Path, model: MeanProbability, images: np.ndarray) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"images": images})
    return float(np.abs(found - model(torch.from_numpy(images)).numpy()).max())
