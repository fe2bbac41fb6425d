"""Stages of training: their settings, folders and initial weights, and a run in two stages."""

import pytest
import torch
from conftest import assert_input_error, tiny_settings_args
from safetensors.torch import load_file

import train
from core import config, run_folder
from core.errors import InputError
from core.run_folder import weights_path
from training import preflight
from training.stages import find_init_run, has_begun_later_stage, split_stages

STAGES = "stages=[{size: [64,96], epochs: 2, lr: 1e-3}, {lr: 2e-3}, {size: [128,192], epochs: 1}]"


def test_split_stages_gives_each_its_settings_folder_and_predecessor():
    settings = config.load_settings(["recipe=carvana_small", STAGES])
    stages = split_stages(settings)
    assert [stage.run for stage in stages] == [
        "carvana_small/stage1",
        "carvana_small/stage2",
        "carvana_small",
    ]
    assert stages[0].size == [64, 96] and stages[2].size == [128, 192]
    recipe = config.load_settings(["recipe=carvana_small"])
    assert [stage.lr for stage in stages] == [1e-3, 2e-3, recipe.lr]
    assert [find_init_run(stage) for stage in stages] == [
        "",
        "carvana_small/stage1",
        "carvana_small/stage2",
    ]
    assert stages[-1] is settings


def test_folds_of_a_run_with_stages_are_trained_one_by_one_and_resumed(
    shared_data_dir, tmp_path, capsys
):
    args = [*tiny_settings_args(shared_data_dir, tmp_path), "epochs=1"]
    args.append("stages=[{size: [16,24], epochs: 1}, {size: [32,48], epochs: 1}]")
    for fold in (0, 1):
        train.main([*args, f"fold={fold}"])
    assert "0 1" in capsys.readouterr().out
    weights_path(tmp_path / "tiny", 1).unlink()  # as if interrupted in the last stage
    (tmp_path / "tiny").rename(tmp_path / "renamed")
    train.main([f"output_dir={tmp_path}", "run=renamed", "resume=true"])
    assert "fold 1: out-of-fold dice" in capsys.readouterr().out
    assert run_folder.finished_folds(tmp_path / "renamed") == [0, 1]


def test_a_setting_of_one_stage_is_not_that_of_the_others():
    stages = "stages=[{epochs: 1}, {crop_size: [32,48]}, {size: null, epochs: 2}]"
    first, second, last = split_stages(config.load_settings(["recipe=carvana_small", stages]))
    assert [first.crop_size, second.crop_size, last.crop_size] == [None, [32, 48], None]
    assert [first.size, second.size, last.size] == [[256, 384], [256, 384], None]
    assert [first.epochs, second.epochs, last.epochs] == [1, 24, 2]


def test_split_stages_without_stages_is_the_run_itself():
    settings = config.load_settings(["recipe=carvana_small", "init_run=other"])
    assert split_stages(settings) == [settings] and find_init_run(settings) == "other"


def test_first_of_several_stages_starts_from_init_run():
    first, last = split_stages(
        config.load_settings(
            ["recipe=carvana_small", "init_run=other", "stages=[{lr: 1}, {lr: 2}]"]
        )
    )
    assert find_init_run(first) == "other" and find_init_run(last) == "carvana_small/stage1"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stages=[{szie: [8,8]}]"], "must be a list of stages with settings among size"),
        (["stages=[{size: 4}]"], "stage 1: size=4: expected height,width"),
        (["stages=[{lr: 1}, {lr: -1}]"], "stage 2: lr=-1: must be above 0"),
        (["stages=[{}]"], "must be a list of stages"),
    ],
)
def test_load_settings_rejects_invalid_stages(args, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        config.load_settings(["recipe=carvana_small", *args])


def test_settings_on_the_command_line_apply_to_all_stages():
    args = ["recipe=carvana_small", "stages=[{lr: 1, epochs: 2}, {lr: 3, batch_size: 8}]"]
    stages = split_stages(config.load_settings([*args, "lr=5", "epochs=1"]))
    assert [(s.lr, s.epochs, s.batch_size) for s in stages] == [(5, 1, 4), (5, 1, 8)]
    stored = config.to_stored_settings(stages[1])
    assert split_stages(config.load_settings([], base=stored)) == stages


@pytest.fixture
def staged_args(data_dir, tmp_path):
    of_stages = ("size=", "epochs=", "lr=")
    return [a for a in tiny_settings_args(data_dir, tmp_path) if not a.startswith(of_stages)]


def test_each_stage_trains_from_the_weights_of_the_stage_before(staged_args, tmp_path):
    stages = "[{size: [16,24], epochs: 1, lr: 0.01}, {size: [32,48], epochs: 1, lr: 1.0e-9}]"
    train.main([*staged_args, "fold=0", "norm=none", "ema_decay=0", f"stages={stages}"])
    paths = [weights_path(tmp_path / "tiny" / stage, 0) for stage in ("stage1", "")]
    first, last = map(load_file, paths)
    for name, tensor in first.items():  # from scratch, the second stage would have other weights
        assert torch.allclose(tensor, last[name], atol=1e-6), name


def test_resume_of_a_finished_run_with_stages_trains_nothing(staged_args, capsys):
    stages = "stages=[{size: [16,24], epochs: 1, lr: 0.01}, {size: [32,48], epochs: 1, lr: 0.01}]"
    train.main([*staged_args, "fold=0", stages])
    capsys.readouterr()
    train.main([*staged_args, "fold=0", stages, "resume=true"])
    assert capsys.readouterr().out.count("the requested folds are finished") == 2


@pytest.mark.parametrize("launcher", ["train.sh", "torchrun"])
def test_later_stages_are_checked_before_the_first_one_trains(
    staged_args, tmp_path, monkeypatch, launcher
):
    if launcher == "torchrun":
        monkeypatch.setenv("RANK", "0")
        monkeypatch.delenv("GPUS", raising=False)
    stages = "stages=[{size: [16,24], epochs: 1}, {size: [16,24], epochs: 1, crop_size: [64,64]}]"
    message = "stage 2: crop_size=64,64: images are 16,24"
    assert_input_error(train.main, [*staged_args, stages], message)
    assert not list(tmp_path.glob("tiny/**/*.safetensors"))


def test_a_middle_stage_with_files_is_found_before_the_first_one_trains(staged_args, tmp_path):
    stages = [f"{{size: [{size},24], epochs: 1}}" for size in (8, 16, 32)]
    weights = weights_path(tmp_path / "tiny/stage2", 0)
    weights.parent.mkdir(parents=True)
    weights.touch()
    message = "stage2/fold0: already exists; set resume=true"
    settings = config.load_settings([*staged_args, f"stages=[{','.join(stages)}]"])
    with pytest.raises(InputError, match=f"^{tmp_path}/tiny/{message}"):
        preflight.check_before_launch(settings)


def test_fold_that_a_later_stage_has_begun_needs_no_earlier_stage(tmp_path):
    args = [f"output_dir={tmp_path}", "run=a", "stages=[{epochs: 1}, {epochs: 2}, {epochs: 3}]"]
    first, second, last = split_stages(config.load_settings(args))
    snapshot = run_folder.snapshot_dir(second.run_dir, 0) / "1-0-x.pt"
    weights = run_folder.weights_path(last.run_dir, 1)
    for path in (snapshot, weights, weights.with_name("oof.npz")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a/stage1_old").mkdir()  # of the user
    begun = [[has_begun_later_stage(s, k) for k in (0, 1, 2)] for s in (first, second, last)]
    assert begun == [[True, True, False], [False, True, False], [False, False, False]]
