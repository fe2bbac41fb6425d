"""How a run starts or resumes: its settings, the scripts that prepare its data, locks of folds."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_settings_args

from core import config, process_env, run_folder
from core.errors import InputError
from training import run_start


def test_resume_prints_what_the_recipe_has_changed_since(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 40\nlr: 1.0e-3\n")
    args = [f"recipe={recipe}", f"output_dir={tmp_path}"]
    run_folder.save_run_settings(config.load_settings(args))
    run_folder.weights_path(tmp_path / "mine", 0).parent.mkdir()
    run_folder.weights_path(tmp_path / "mine", 0).touch()
    assert run_start.load_run_settings([*args, "resume=true"]).epochs == 40
    assert not capsys.readouterr().out
    recipe.write_text("epochs: 80\nlr: 1.0e-3\n")
    assert run_start.load_run_settings([*args, "resume=true"]).epochs == 40
    assert f"resuming with epochs=40, unlike recipe={recipe}" in capsys.readouterr().out


def test_resume_by_the_same_command_prints_no_difference_from_the_recipe(tmp_path, capsys):
    args = ["recipe=carvana_small", f"output_dir={tmp_path}", "lr=0.5", "run=a"]
    args.append("stages=[{epochs: 1}, {epochs: 2, size: [64,96]}]")
    run_start.save_config(run_start.load_run_settings(args))
    run_folder.weights_path(tmp_path / "a", 0).parent.mkdir()
    run_folder.weights_path(tmp_path / "a", 0).touch()
    run_start.load_run_settings([*args, "resume=true"])
    assert not capsys.readouterr().out
    process_env.print_once.cache_clear()
    run_start.load_run_settings([*args[:-1], "resume=true"])
    assert "resuming with its own stages, unlike recipe=carvana_small" in capsys.readouterr().out


def test_same_command_resumes_a_run_with_weights_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["model=smp", "encoder_weights=w.pth", "run=a", f"output_dir={tmp_path}"]
    settings = config.load_settings(args)
    run_folder.save_run_settings(settings)
    weights = run_folder.weights_path(settings.run_dir, 0)
    weights.parent.mkdir()
    weights.touch()
    assert run_start.load_run_settings([*args, "fold=1"]).encoder_weights == "w.pth"
    assert run_start.load_run_settings([*args, "resume=true"]).encoder_weights == "w.pth"
    with pytest.raises(InputError, match=f"this run has encoder_weights={tmp_path}/w.pth, not"):
        run_start.load_run_settings([*args, "encoder_weights=other.pth"])
    with pytest.raises(InputError, match="this run has channels="):
        run_start.load_run_settings([*args, "resume=true", "channels=8,16"])


def test_lock_fold_rejects_a_fold_that_another_process_has_finished(run_copy):
    settings = config.load_settings(run_copy.args)
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    with run_start.lock_fold(settings, 1):
        pass
    with (
        pytest.raises(InputError, match="fold0: another process has trained it"),
        run_start.lock_fold(settings, 0),
    ):
        pass


def test_lock_fold_rejects_settings_that_another_process_has_replaced(run_copy):
    settings = config.load_settings(run_copy.args)
    (run_copy.output_dir / "tiny/fold1/oof.npz").unlink()
    run_folder.save_run_settings(replace(settings, lr=0.5))
    with (
        pytest.raises(InputError, match=r"another process has started this run with lr=0\.5, not"),
        run_start.lock_fold(settings, 1),
    ):
        pass


def test_save_config_rejects_a_run_that_another_process_has_started_meanwhile(tmp_path):
    args = ["recipe=carvana_small", f"output_dir={tmp_path}", "fold=1"]
    settings = run_start.load_run_settings(args)
    other = run_start.load_run_settings([*args, "fold=0", "lr=0.5"])
    run_start.save_config(other)
    run_start.save_config(settings)  # nothing has been trained with the other settings yet
    run_start.save_config(other)
    with (
        run_start.lock_fold(other, 0),
        pytest.raises(InputError, match=r"another process has started this run with lr=0\.5, not"),
    ):
        run_start.save_config(settings)
    assert run_folder.read_run_settings(settings.run_dir)["lr"] == 0.5


def test_resume_names_the_setting_of_a_stage_that_differs(tmp_path):
    args = [f"output_dir={tmp_path}", "run=a", "stages=[{epochs: 1}, {epochs: 2, lr: 0.5}]"]
    settings = run_start.load_run_settings(args)
    run_start.save_config(settings)
    run_folder.weights_path(settings.run_dir, 0).parent.mkdir()
    run_folder.weights_path(settings.run_dir, 0).touch()
    message = r"this run has lr=0\.0005 in stage 1, not 0\.25; leave it out"
    with pytest.raises(InputError, match=message):
        run_start.load_run_settings([*args, "resume=true", "lr=0.25"])


def test_resume_of_a_moved_and_renamed_run_continues_there_with_its_settings(run_copy, tmp_path):
    (run_copy.output_dir / "tiny").rename(tmp_path / "renamed")
    args = [f"output_dir={tmp_path}", "run=renamed", "resume=true"]
    settings = run_start.load_run_settings(args)
    assert settings.run_dir == tmp_path / "renamed" and settings.channels == [8, 16]


def test_resume_of_a_run_moved_into_the_default_folder_continues_there(
    run_copy, tmp_path, monkeypatch
):
    for module in (config, run_start.config):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    (run_copy.output_dir / "tiny").rename(tmp_path / "output/tiny")
    settings = run_start.load_run_settings(["run=tiny", "resume=true"])
    assert settings.run_dir == Path("output/tiny")


def test_run_with_the_name_of_an_ensemble_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"run=a\+b: the names of ensembles contain \+; choose"):
        run_start.load_run_settings(["run=a+b", f"output_dir={tmp_path}"])


def test_resume_of_a_run_that_does_not_exist_is_announced(tmp_path, capsys):
    (tmp_path / "carvana").mkdir()
    run_start.load_run_settings(["run=carvna", f"output_dir={tmp_path}", "resume=true"])
    expected = (
        "carvna: nothing to resume (did you mean carvana?); training from scratch with recipe="
    )
    assert f"{tmp_path}/{expected}carvana\n" in capsys.readouterr().out


def test_resume_of_a_run_without_a_snapshot_starts_with_its_config(tmp_path, capsys):
    run = ["run=stopped", f"output_dir={tmp_path}"]
    run_folder.save_run_settings(config.load_settings([*run, "lr=0.125"]))
    assert run_start.load_run_settings(run).lr != 0.125  # anew
    assert not capsys.readouterr().out
    resumed = run_start.load_run_settings([*run, "resume=true"])
    assert resumed.lr == 0.125
    assert run_start.is_continued(resumed)
    text = f"nothing to resume; training from scratch with the settings of {tmp_path}/stopped/conf"
    assert text in capsys.readouterr().out
    message = r"this run has lr=0\.125, not 0\.5; leave it out, or choose another run="
    with pytest.raises(InputError, match=message):
        run_start.load_run_settings([*run, "resume=true", "lr=0.5"])


def test_prepare_data_rejects_another_number_of_folds_than_the_file_has(data_dir, tmp_path):
    args = [*tiny_settings_args(data_dir, tmp_path), "n_folds=3"]
    with pytest.raises(InputError, match=r"n_folds=3: .*has 2 folds"):
        run_start.prepare_data(config.load_settings(args), args)


def test_prepare_data_rejects_another_number_of_demo_cars_than_were_rendered(data_dir, tmp_path):
    args = [*tiny_settings_args(data_dir, tmp_path), "prepare_scripts=demo.py"]
    run_start.prepare_data(config.load_settings([*args, "demo_cars=4"]), [*args, "demo_cars=4"])
    with pytest.raises(InputError, match=r"demo_cars=9: .* has 4 training cars; delete it, or set"):
        run_start.prepare_data(config.load_settings([*args, "demo_cars=9"]), [*args, "demo_cars=9"])


# ---------------------------------------------------------------- settings of a run


def test_load_run_settings_resumes_after_a_restart_by_torchrun(run_copy, monkeypatch):
    assert not run_start.load_run_settings(run_copy.args).resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_start.load_run_settings(run_copy.args).resume


def test_load_run_settings_of_a_new_run_rejects_an_option_of_the_other_model(tmp_path):
    args = ["recipe=carvana_small", f"output_dir={tmp_path}", "run=a", "encoder=resnet18"]
    with pytest.raises(InputError, match="encoder=resnet18: is an option of model=smp"):
        run_start.load_run_settings(args)


@pytest.mark.parametrize("arg", ["images=photos", "background=white", "pictures_dir=pictures"])
def test_load_run_settings_of_a_new_run_rejects_settings_of_photographs(tmp_path, arg):
    args = [f"output_dir={tmp_path}", arg]
    with pytest.raises(InputError, match=f"{arg.partition('=')[0]}: is for predict.sh"):
        run_start.load_run_settings(args)


def test_load_run_settings_in_one_of_several_processes_prints_nothing(
    run_copy, tmp_path, monkeypatch, capsys
):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 80\n")
    args = [f"output_dir={run_copy.output_dir}", "run=tiny", f"recipe={recipe}", "resume=true"]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("CARVANA_LAUNCHED", "1")
    run_start.load_run_settings(args)
    run_start.load_run_settings([*args, "run=new"])
    assert not capsys.readouterr().out


def test_resume_prints_nothing_of_settings_that_are_typed_or_of_the_machine(run_copy, capsys):
    recipe = run_copy.data_dir.parent / "mine.yaml"
    recipe.write_text("epochs: 80\nlr: 0.5\nnum_workers: 3\n")
    args = [f"output_dir={run_copy.output_dir}", "run=tiny", f"recipe={recipe}", "resume=true"]
    run_start.load_run_settings([*args, "epochs=8"])
    assert f"resuming with lr=0.01, unlike recipe={recipe}\n" in capsys.readouterr().out


# ---------------------------------------------------------------- prepare_data


@pytest.fixture
def run_scripts(data_dir, tmp_path, monkeypatch):
    """Return which scripts prepare_data runs if the paths of these settings are missing."""

    def run(*missing):
        scripts = []
        monkeypatch.setattr(
            run_start.cli, "run_script_in_subprocess", lambda script, args: scripts.append(script)
        )
        settings = config.load_settings(tiny_settings_args(data_dir, tmp_path))
        settings.prepare_scripts = ["demo.py", "folds.py"]
        run_start.prepare_data(
            replace(settings, **dict.fromkeys(missing, f"{tmp_path}/missing")), []
        )
        return scripts

    return run


@pytest.mark.parametrize(
    ("missing", "scripts"),
    [
        ([], []),
        (["folds_csv"], ["folds.py"]),
        (["data_dir"], ["demo.py", "folds.py"]),
        (["data_dir", "folds_csv"], ["demo.py", "folds.py"]),
    ],
)
def test_prepare_data_runs_the_scripts_of_what_is_missing(run_scripts, missing, scripts):
    assert run_scripts(*missing) == scripts


def test_prepare_data_under_torchrun_or_of_a_started_run_runs_no_script(
    run_scripts, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        assert not run_scripts("data_dir", "folds_csv")
    weights = run_folder.weights_path(tmp_path / "tiny", 0)
    weights.parent.mkdir(parents=True)  # tmp_path / "tiny" is the dataset, too
    weights.touch()
    assert not run_scripts("data_dir", "folds_csv")


def test_lock_fold_of_another_rank_neither_locks_nor_checks(run_copy, monkeypatch):
    settings = config.load_settings(run_copy.args)
    monkeypatch.setenv("RANK", "1")
    lock = run_copy.output_dir / "tiny/fold0/.lock"
    lock.unlink()
    with run_start.lock_fold(settings, 0):  # the main process might have finished it by now
        assert not lock.exists()
