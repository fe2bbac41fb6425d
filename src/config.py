"""Every setting, with its meaning: `key=value` words over a recipe over the defaults."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SRC = Path(__file__).resolve().parent
ADVICE = "`bash train.sh help` lists every setting"


class InputError(Exception):
    """What the person gave is wrong: one line that names the thing and the remedy; exit code 2."""

    def __init__(self, message: str):
        # A DataLoader worker hands its error over inside a traceback: keep the line itself.
        super().__init__(message.strip().splitlines()[-1].removeprefix("config.InputError: "))


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

    runs: list[str] = setting([], "runs whose networks vote together; empty: only `run`", NAMES)
    tta: Literal["none", "hflip", "flips"] = setting("hflip", "views of an image whose probabilities are averaged")
    threshold: float | None = setting(None, "probability from which a pixel counts; null: the best out of fold", BETWEEN)
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


# ---------------------------------------------------------------- words → settings


def parse(words: list[str]) -> dict[str, Any]:
    """['lr=2e-4', 'size=[256,384]'] → {'lr': '2e-4', 'size': [256, 384]}; keys are checked."""
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not key=value, as in epochs=10; {ADVICE}")
        try:
            # A text stays as typed: YAML would read run=1e3 as a number, and run=no as false.
            values[key] = text if is_text(key) else yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"{word}: not a value; lists are written [1,2]") from None
    return values


def is_text(key: str) -> bool:
    """Whether a setting is a text or one of several texts."""
    return key in FIELDS and (FIELDS[key].type is str or get_origin(FIELDS[key].type) is Literal)


def load(words: list[str], stored: dict[str, Any] | None = None) -> Settings:
    """Settings of `words` over the recipe they name, or over `stored` ones; InputError if wrong."""
    if "help" in words:
        print(help_text())
        sys.exit(0)
    typed = parse(words)
    conf = OmegaConf.structured(Settings)
    recipe = typed.get("recipe", FIELDS["recipe"].default)
    base = stored if stored is not None else read_recipe(recipe)
    for source, values in ((f"recipe {recipe}: ", base), ("", typed)):
        for key, value in values.items():
            conf = _assign(conf, key, value, source)
    settings = OmegaConf.to_object(conf)
    settings.run = settings.run or Path(settings.recipe).stem
    settings.runs = settings.runs or [settings.run]
    return settings


def read_recipe(name: str) -> dict[str, Any]:
    """The settings in src/recipes/<name>.yaml, or in the .yaml file that `name` is."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SRC / "recipes" / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError:
        known = ", ".join(sorted(p.stem for p in (SRC / "recipes").glob("*.yaml")))
        raise InputError(f"recipe={name}: no such recipe; there are {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is lines of `key: value`")
    return values


def _assign(conf: DictConfig, key: str, value: Any, source: str) -> DictConfig:
    """`conf` with one more value, whose key, type and range are checked."""
    try:
        conf = OmegaConf.merge(conf, {key: value})
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]  # the lines after it repeat the key and the class
        if "ListConfig" in reason:
            reason = "a list is meant, written [a,b]"
        raise InputError(f"{source}{key}={value}: {reason}; {ADVICE}") from None
    check = FIELDS[key].metadata["check"]
    if check and conf[key] is not None and not check[1](conf[key]):
        raise InputError(f"{source}{key}={value}: must be {check[0]}")
    return conf


def help_text() -> str:
    """Every setting: name, default, type, meaning."""
    lines = ["usage: bash train.sh key=value ...   (predict.sh and src/*.py take the same words)"]
    for name, default in asdict(Settings()).items():
        shown = "null" if default is None else str(default).replace(" ", "")
        lines += ["", f"{PARTS[name]}:"] if name in PARTS else []
        lines.append(f"  {name}={shown}  ({_kind(FIELDS[name].type)})")
        lines.append(f"      {FIELDS[name].metadata['meaning']}")
    return "\n".join(lines)


def _kind(annotation: Any) -> str:
    """int → 'int', list[int] | None → 'list[int] | None', Literal["a", "b"] → 'a|b'."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


# ---------------------------------------------------------------- scripts


def run(main: Callable[[], None], stopped: str = "stopped") -> None:
    """Run a script's main; what the person can mend ends in one line and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: {stopped}", file=sys.stderr)
        sys.exit(130)


def run_script(name: str, words: list[str]) -> None:
    """Run another script as a person would; if it fails, its line has been said: end likewise."""
    sys.stdout.flush()
    done = subprocess.run([sys.executable, str(SRC / name), *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def as_words(settings: Settings) -> list[str]:
    """The command line that gives these settings again."""
    values = {k: v for k, v in asdict(settings).items() if v not in ("", [])}
    return [f"{key}={json.dumps(v) if not isinstance(v, str) else v}" for key, v in values.items()]
