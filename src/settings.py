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
    limit: int = setting(0, "only the first N images, for a quick trial; 0: all", NOT_NEGATIVE)
    output_dir: str = setting("output", "where runs and submissions are written")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the network runs")
    amp: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", "precision of the forward pass; auto: what the device is fast at")
    workers: int | None = setting(None, "processes that load images; null: as many as help here", NOT_NEGATIVE)

    data_dir: str = setting("input/carvana", "holds train/, train_masks/, test/, sample_submission.csv")
    dataset: str = setting("carvana", "its name in folds_csv", NAME)
    hq: bool = setting(False, "read train_hq/ and test_hq/ in place of train/ and test/")
    group_by: str = setting(r"(.+)_\d+", "regular expression on file stems: its group (the car) is never split", PATTERN)
    folds_csv: str = setting("folds.csv", "which group is held out in which fold")
    k: int = setting(5, "folds that folds.py writes; the other scripts count them in folds_csv", TWO_OR_MORE)
    size: list[int] | None = setting(None, "[height,width] the network sees; null: the images' own", SIZE)
    cache: Literal["auto", "ram", "none"] = setting("auto", "decode training images once; auto: if they fit half the free memory")
    augment: Literal["none", "flip", "light", "strong"] = setting("light", "what is done to training images")
    prepare: list[str] = setting([], "scripts that make data_dir where it is missing (the demo's)")
    demo_cars: int = setting(12, "training cars that demo.py renders", TWO_OR_MORE)
    demo_test_cars: int = setting(4, "test cars that demo.py renders", POSITIVE)

    model: Literal["unet", "smp"] = setting("unet", "the U-Net of src/unet.py, or one of segmentation_models_pytorch")
    channels: list[int] = setting([64, 128, 256, 512, 1024], "unet: width of each level, top to bottom", WIDTHS)
    norm: Literal["batch", "none"] = setting("batch", "unet: normalisation after each convolution")
    up: Literal["transpose", "nearest", "bilinear"] = setting("transpose", "unet: how the decoder doubles the size")
    dropout: float = setting(0.0, "unet: dropout at the bottleneck", BELOW_ONE)
    stem: int = setting(1, "unet: fold s×s pixels into channels at the input, unfold at the output", ONE_TWO_FOUR)
    arch: str = setting("Unet", "smp: architecture")
    encoder: str = setting("resnet34", "smp: encoder")
    encoder_weights: str = setting("imagenet", "smp: pretrained weights of the encoder, or none")

    epochs: int = setting(20, "passes over the training images", POSITIVE)
    batch: int = setting(4, "images a step", POSITIVE)
    accumulate: int = setting(1, "steps whose gradients make one update", POSITIVE)
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = setting("adamw", "the update rule")
    lr: float = setting(1e-3, "peak learning rate", POSITIVE)
    weight_decay: float = setting(1e-2, "decoupled in AdamW, L2 penalty in the others", NOT_NEGATIVE)
    schedule: Literal["cosine", "onecycle", "plateau", "constant"] = setting("cosine", "the learning rate over time")
    warmup: float = setting(0.05, "part of all updates in which lr rises to its peak", BELOW_ONE)
    clip: float = setting(1.0, "largest gradient norm; 0: unlimited", NOT_NEGATIVE)
    ema: float = setting(0.99, "decay of the averaged weights, which are scored and kept; 0: none", BELOW_ONE)
    loss: Literal["bce_dice", "bce", "dice", "focal", "lovasz"] = setting("bce_dice", "what is minimised, in fp32 on logits")
    validate_every: int = setting(1, "epochs between two scorings of the held-out images", POSITIVE)
    seed: int = setting(0, "start of every random draw", NOT_NEGATIVE)

    runs: list[str] = setting([], "runs whose networks vote together, as leaderboard.py weighs them; empty: only `run`", NAMES)
    tta: Literal["none", "hflip", "flips"] = setting("hflip", "views of an image whose probabilities are averaged")
    threshold: float | None = setting(None, "probability from which a pixel counts; null: the best out of fold", BETWEEN)
    postprocess: str = setting("auto", "what is done to masks: none, or of specks,largest,fill,hull; auto: what gains on every fold", STEPS)
    masks: bool = setting(False, "predict.py: also write PNG masks and overlays to look at")
    submission: str = setting("", "the csv to write or check; empty: output/submission.csv, or in the run's folder")
    truth: str = setting("", "score.py: csv of true masks (img,rle_mask)")

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
NETWORK = ["size", *list(FIELDS)[list(FIELDS).index("model") : list(FIELDS).index("epochs")]]
