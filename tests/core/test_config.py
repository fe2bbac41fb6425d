"""Settings: words over recipe over defaults; what is wrong is said in one line."""

from dataclasses import fields

import pytest
import yaml
from conftest import refused, run_script

from core import cli, config
from core.errors import InputError
from core.settings import FIELDS, Settings


def test_words_win_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 2.0e-4\nepochs: 7\n")
    settings = config.load_settings([f"recipe={recipe}", "epochs=9"])
    assert (settings.lr, settings.epochs, settings.batch_size) == (2e-4, 9, Settings().batch)
    assert settings.run == "mine" and settings.runs == ["mine"]


def test_stored_settings_take_the_recipes_place():
    settings = config.load_settings(["epochs=9"], stored={"lr": 0.5, "run": "kept"})
    assert (settings.lr, settings.epochs, settings.run) == (0.5, 9, "kept")
    assert settings.size is None  # and not that of recipe carvana


@pytest.mark.parametrize(
    "path", sorted((config.SRC / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_of_ours_loads_and_says_in_a_comment_what_it_is(path):
    assert config.load_settings([f"recipe={path.stem}"]).run == path.stem
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("lrr=1", ["lrr", "Did you mean", "'lr'"]),
        ("epochs", ["key=value"]),
        ("lr=fast", ["lr=fast", "Float"]),
        ("lr=0", ["above 0"]),
        ("lr=nan", ["above 0"]),
        ("lr=inf", ["above 0"]),
        ("lr=", ["None"]),
        ("epochs=1.5", ["epochs=1.5", "Integer"]),
        ("fold=-1", ["0 or more"]),
        ("size=[256]", ["[height,width]"]),
        ("size=256", ["a list is meant"]),
        ("size=[256", ["not a value"]),
        ("channels=[64]", ["widths"]),
        ("loss=bcee", ["expected one of", "bce_dice"]),
        ("optimizer=lion", ["adamw"]),
        ("model=vnet", ["unet"]),
        ("threshold=1", ["above 0 and below 1"]),
        ("ema_decay=1", ["below 1"]),
        ("run=../up", ["folder name"]),
        ("runs=[a,a]", ["each once"]),
        ("group_regex=(.+", ["regular expression"]),
        ("group_regex=.+", ["one group"]),
        ("lr=2001-99-99", ["not a value"]),
        ("size=" + "[" * 5000, ["not a value"]),
        ("size=[8,{a: 1}]", ["size=", "each 8 or more"]),
        ("recipe=nope", ["no such recipe", "carvana_smp"]),
        ("recipe=absent.yaml", ["no such recipe"]),
    ],
)
def test_a_wrong_word_is_one_line(word, parts):
    with pytest.raises(InputError) as error:
        config.load_settings([word])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "lr: [", "a: !!python/object:os.system x", "lrr: 1"]
)
def test_a_wrong_recipe_is_one_line_that_names_it(tmp_path, text):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml") as error:
        config.load_settings([f"recipe={recipe}"])
    assert "\n" not in str(error.value)


WRONG = ["{a: 1}", "nonsense", "[x, [1]]", "1.5e400", "2001-01-01"]


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type is not str])
def test_every_setting_refuses_values_of_another_type(name):
    """A text, or names in a list, may be nearly anything; all else refuses all of these."""
    kind = str(FIELDS[name].type)
    for text in [t for t in WRONG if not ("list[str]" in kind and t.startswith("[x"))]:
        with pytest.raises(InputError, match=name) as error:
            config.load_settings([f"{name}={text}"])
        assert "\n" not in str(error.value)


def test_text_stays_as_typed():
    assert config.load_settings(["run=1e3"]).run == "1e3"
    assert config.load_settings(["run=no"]).run == "no"


def test_as_words_gives_the_same_settings_again():
    settings = config.load_settings(
        ["recipe=demo", "size=[64,96]", "fold=1", "lr=2e-4", "runs=[a,b]"]
    )
    assert config.load_settings(cli.to_cli_args(settings)) == settings


def test_every_setting_has_a_meaning_and_is_in_help():
    text = config.help_text()
    for f in fields(Settings):
        assert f.metadata["meaning"] in text
        assert f"  {f.name}=" in text


def test_settings_survive_yaml():
    settings = config.load_settings(["recipe=carvana_small"])
    stored = yaml.safe_load(yaml.safe_dump(vars(settings)))
    assert config.load_settings([], stored=stored) == settings


def test_a_workers_error_keeps_its_line():
    wrapped = (
        "Caught InputError in DataLoader worker process 0.\nTraceback\nconfig.InputError: a: b"
    )
    assert str(InputError(wrapped)) == "a: b"


@pytest.mark.parametrize("script", ["train.py", "predict.py", "folds.py", "score.py", "demo.py"])
def test_scripts_answer_help_and_refuse_a_wrong_key(script):
    helped = run_script(script, "help")
    assert helped.returncode == 0 and "lr=0.001" in helped.stdout
    refused(run_script(script, "epoch=3"), "epoch", "Did you mean")
