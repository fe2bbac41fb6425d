"""Every setting of every script, with its meaning and what it may be."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

# ---------------------------------------------------------------- what a value may be

Check = tuple[str, Callable[[Any], bool]]
POSITIVE: Check = ("above 0", lambda v: 0 < v < float("inf"))
NOT_NEGATIVE: Check = ("0 or more", lambda v: 0 <= v < float("inf"))
BELOW_ONE: Check = ("0 or more and below 1", lambda v: 0 <= v < 1)
BETWEEN: Check = ("above 0 and below 1", lambda v: 0 < v < 1)
TWO_OR_MORE: Check = ("2 or more", lambda v: v >= 2)
ONE_TWO_FOUR: Check = ("1, 2 or 4", lambda v: v in (1, 2, 4))
SIZE: Check = ("[height,width], each 8 or more", lambda v: len(v) == 2 and min(v) >= 8)
WIDTHS: Check = ("2 to 8 widths, each above 0", lambda v: 2 <= len(v) <= 8 and min(v) > 0)
EACH_POSITIVE: Check = ("a list of numbers above 0", lambda v: all(x > 0 for x in v))
EACH_BELOW_ONE: Check = (
    "a list of numbers from 0 to below 1",
    lambda v: all(0 <= x < 1 for x in v),
)
CLASSES: Check = ("19 or 34", lambda v: v in (19, 34))
QUANTIZE: Check = ("0, or 2 to 256", lambda v: v == 0 or 2 <= v <= 256)
TILE: Check = ("0, or 128 or more", lambda v: v == 0 or v >= 128)
OVERLAP: Check = ("0 or more and at most 0.75", lambda v: 0 <= v <= 0.75)
NAME: Check = ("a plain folder name", lambda v: re.fullmatch(r"([\w+][\w.+-]*)?", v) is not None)
NAMES: Check = ("names, each once", lambda v: all(map(NAME[1], v)) and len({*v}) == len(v))
STEPS: Check = (
    "auto, none, or names like specks,fill",
    lambda v: re.fullmatch(r"\w+(,\w+)*", v) is not None,
)
PATTERN: Check = ("a regular expression with one group", lambda v: _groups(v) == 1)


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error:
        return -1


def setting(default: Any, meaning: str, check: Check | None = None) -> Any:
    """A dataclass field that carries its meaning and its check."""
    about = {"meaning": meaning, "check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=about)
    return field(default=default, metadata=about)


# ---------------------------------------------------------------- the settings


# fmt: off
@dataclass
class Settings:
    """Every setting of every script, checked. `bash train.sh help` prints this table."""

    recipe: str = setting("carvana", "settings to start from: a name in src/recipes, or a .yaml file")
    run: str = setting("", "folder of the run under output/; empty: the recipe's name", NAME)
    fold: int | None = setting(None, "the fold to hold out; null: every fold in turn", NOT_NEGATIVE)
    resume: bool = setting(False, "go on with an interrupted run; finished folds are skipped")
    snapshot_every: float = setting(60, "seconds of training between two snapshots, the most that is lost if it is killed", NOT_NEGATIVE)
    limit: int = setting(0, "only the first N images, for a quick trial; 0: all", NOT_NEGATIVE)
    output_dir: str = setting("output", "where runs and submissions are written")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the network runs")
    amp: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", "precision of the forward pass; auto: what the device is fast at")
    compile: Literal["auto", "true", "false"] = setting("auto", "fuse the network's operations for training, in a minute or so; auto: on a GPU")
    workers: int | None = setting(None, "processes that load images; null: as many as help here", NOT_NEGATIVE)

    data_dir: str = setting("input/carvana", "holds train/, train_masks/, test/, sample_submission.csv")
    dataset: str = setting("carvana", "its name in folds_csv", NAME)
    layout: Literal["carvana", "pairs", "cityscapes", "pets"] = setting("carvana", "how data_dir is laid out, see input/README.md")
    classes: int = setting(19, "cityscapes, pairs: the 19 classes that are evaluated, or all 34 ids", CLASSES)
    unsure: int = setting(0, "pairs: ignore label pixels further than this from every colour (RGB distance); 0: none", NOT_NEGATIVE)
    border: Literal["pet", "background", "ignore", "class"] = setting("pet", "pets: what the border of a trimap counts as")
    skip_empty: bool = setting(False, "leave out training images whose label shows nothing but background")
    hq: bool = setting(False, "read train_hq/ and test_hq/ in place of train/ and test/")
    group_by: str = setting(r"(.+)_\d+", "regular expression on file stems: its group (the car) is never split", PATTERN)
    folds_csv: str = setting("folds.csv", "which group is held out in which fold")
    k: int = setting(5, "folds that folds.py writes; the other scripts count them in folds_csv", TWO_OR_MORE)
    size: list[int] | None = setting(None, "[height,width] the network sees; null: the images' own", SIZE)
    fit: Literal["stretch", "letterbox"] = setting("stretch", "how an image is brought to `size`; letterbox keeps its proportions")
    quantize: int = setting(0, "reduce each image to so many of its colours by k-means; 0: none", QUANTIZE)
    decode: Literal["full", "scaled"] = setting("full", "scaled: JPEGs at 1/2, 1/4, 1/8 where the network sees no more: faster, a little other pixels")
    cache: Literal["auto", "ram", "disk", "none"] = setting("auto", "where images decoded once are kept; auto: in half the free memory, or on disk, shared by all processes")
    augment: Literal["none", "flip", "light", "strong", "paper"] = setting("light", "what is done to training images")
    augment_on: Literal["cpu", "gpu"] = setting("cpu", "gpu: augment whole batches where the network runs, from a cache that stays there if it fits")
    prepare: list[str] = setting([], "scripts that make data_dir, or folds_csv, where it is missing")
    demo_cars: int = setting(12, "training cars that demo.py renders", TWO_OR_MORE)
    demo_test_cars: int = setting(4, "test cars that demo.py renders", POSITIVE)

    model: Literal["unet", "smp"] = setting("unet", "the U-Net of src/unet.py, or one of segmentation_models_pytorch")
    channels: list[int] = setting([64, 128, 256, 512, 1024], "unet: width of each level, top to bottom", WIDTHS)
    norm: Literal["batch", "none"] = setting("batch", "unet: normalisation after each convolution")
    up: Literal["transpose", "transpose3", "nearest", "repeat", "bilinear"] = setting("transpose", "unet: how the decoder doubles the size")
    decoder: list[int] = setting([], "unet: width of each level on the way up, bottom to top; []: as `channels`", EACH_POSITIVE)
    ups: list[int] = setting([], "unet: channels that each up-sampling gives, bottom to top; []: as `decoder`", EACH_POSITIVE)
    tail: list[int] = setting([], "unet: widths of further 3×3 convolutions before the last one", EACH_POSITIVE)
    convs: int = setting(2, "unet: convolutions of each level", POSITIVE)
    padding: Literal["same", "valid"] = setting("same", "unet: valid: unpadded convolutions over a mirrored border, as in the paper")
    dropout: list[float] = setting([], "unet: dropout after each level of the way down, top to bottom; []: none", EACH_BELOW_ONE)
    init: Literal["default", "he"] = setting("default", "unet: the first weights: torch's, or He's normal ones")
    stem: int = setting(1, "unet: fold s×s pixels into channels at the input, unfold at the output", ONE_TWO_FOUR)
    arch: str = setting("Unet", "smp: architecture")
    encoder: str = setting("resnet34", "smp: encoder")
    encoder_weights: str = setting("imagenet", "smp: pretrained weights of the encoder, or none")

    epochs: int = setting(20, "passes over the training images", POSITIVE)
    batch: int = setting(4, "images a step, of all GPUs together", POSITIVE)
    accumulate: int = setting(1, "steps whose gradients make one update", POSITIVE)
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = setting("adamw", "the update rule")
    lr: float = setting(1e-3, "peak learning rate", POSITIVE)
    lr_batch: int = setting(0, "images of an update that lr is meant for: other batches scale it by lr_rule; 0: lr is as said", NOT_NEGATIVE)
    lr_rule: Literal["sqrt", "linear"] = setting("sqrt", "how lr grows with the batch, where lr_batch is said")
    weight_decay: float = setting(1e-2, "decoupled in AdamW, L2 penalty in the others", NOT_NEGATIVE)
    schedule: Literal["cosine", "onecycle", "plateau", "constant"] = setting("cosine", "the learning rate over time")
    warmup: float = setting(0.05, "part of all updates in which lr rises to its peak", BELOW_ONE)
    clip: float = setting(1.0, "largest gradient norm; 0: unlimited", NOT_NEGATIVE)
    ema: float = setting(0.99, "decay of the averaged weights, which are scored and kept; 0: none", BELOW_ONE)
    loss: Literal["bce_dice", "bce", "dice", "focal", "lovasz", "ce", "ce_dice"] = setting("bce_dice", "what is minimised, in fp32 on logits; ce, ce_dice: for several classes")
    validate_every: int = setting(1, "epochs between two scorings of the held-out images", POSITIVE)
    best_by: Literal["dice", "accuracy"] = setting("dice", "score of the held-out images by which the best epoch's weights are kept")
    seed: int = setting(0, "start of every random draw", NOT_NEGATIVE)

    runs: list[str] = setting([], "runs whose networks vote together, as leaderboard.py weighs them; empty: only `run`", NAMES)
    tta: Literal["none", "hflip", "flips"] = setting("hflip", "views of an image whose probabilities are averaged")
    tile: int = setting(0, "predict larger images in tiles of so many pixels a side; 0: whole", TILE)
    overlap: float = setting(0.25, "part of a tile that its neighbour covers as well", OVERLAP)
    threshold: float | None = setting(None, "probability from which a pixel counts; null: the best out of fold", BETWEEN)
    postprocess: str = setting("auto", "what is done to masks: none, or of specks,largest,fill,hull; auto: what gains on every fold", STEPS)
    skip_bad: bool = setting(False, "test images that cannot be read get an empty mask, are listed at the end, and exit code 3")
    masks: bool = setting(False, "predict.py: also write PNG masks and overlays to look at")
    submission: str = setting("", "the csv to write or check; empty: output/submission.csv, or in the run's folder")
    truth: str = setting("", "score.py: csv of true masks (img,rle_mask)")
    compare: bool = setting(False, "bench.py: measure plain rivals beside it")
    minutes: float = setting(0, "bench.py: train the plain U-Net of 31M for so long, and score the fold it never saw", NOT_NEGATIVE)

    @property
    def run_dir(self) -> Path:
        """output/<run>: a folder for each fold, and config.yaml."""
        return Path(self.output_dir) / self.run

    @property
    def submission_csv(self) -> Path:
        """Where predict.py writes: output/ holds the competition's, the run's folder any other."""
        folder = Path(self.output_dir) if self.dataset == "carvana" else self.run_dir
        return Path(self.submission) if self.submission else folder / "submission.csv"
# fmt: on


FIELDS = {f.name: f for f in fields(Settings)}
PARTS = {  # the first setting of each part
    "recipe": "run",
    "data_dir": "data",
    "model": "network (stored with the weights)",
    "epochs": "training",
    "runs": "prediction and checking",
}
NETWORK = [
    "size",
    "fit",
    "quantize",
    "decode",
    *list(FIELDS)[list(FIELDS).index("model") : list(FIELDS).index("epochs")],
]

# What may differ between the folds of one run, or when it is resumed.
FREE = {"recipe", "fold", "resume", "device", "amp", "workers", "cache", "prepare", "k", "compile"}
FREE |= {"data_dir", "output_dir", "folds_csv", "runs", "threshold", "postprocess", "masks"}
FREE |= {"submission", "truth", "tile", "overlap", "compare", "minutes", "skip_bad"}
FREE |= {"snapshot_every"}
