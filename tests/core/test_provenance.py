"""What is recorded of each start: command, commit, packages, machine."""

import json
import subprocess
import sys

import pytest
import torch

from core import process_env, provenance
from core.errors import InputError


def test_package_versions_are_those_that_are_pinned():
    versions = provenance.package_versions()
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"numpy", "albumentations", "pytest"} <= versions.keys()


def test_package_versions_leave_out_what_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "requirements.txt").write_text("numpy==1.0\nno-such-package==2.0\n")
    assert provenance.package_versions().keys() == {"python", "numpy"}


def start_fold(fold_dir, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    fold_dir.mkdir(exist_ok=True)
    provenance.append_run_record(fold_dir, torch.device("cpu"), {})
    return provenance.train_command(fold_dir)


def test_train_command_quotes_arguments_and_leaves_out_resume(monkeypatch, tmp_path):
    command = start_fold(tmp_path / "fold0", monkeypatch, "size=[8,8]", "resume=true", "run=a")
    assert command == "bash train.sh 'size=[8,8]' run=a"
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", process_env.LAUNCHED: "1"}.items():
        monkeypatch.setenv(name, value)
    assert start_fold(tmp_path / "fold1", monkeypatch) == "GPUS=2 bash train.sh"


def test_train_command_after_a_resume_is_that_of_the_first_start(monkeypatch, tmp_path):
    expected = "bash train.sh run=a lr=3e-4"
    assert start_fold(tmp_path / "fold0", monkeypatch, "run=a", "lr=3e-4") == expected
    assert start_fold(tmp_path / "fold0", monkeypatch, "run=a", "resume=true") == expected
    assert start_fold(tmp_path / "fold1", monkeypatch, "run=a", "resume=True") == expected


def test_train_command_of_a_job_that_always_resumes_keeps_its_fold(monkeypatch, tmp_path):
    command = start_fold(tmp_path / "fold2", monkeypatch, "resume=true", "run=a", "fold=2")
    assert command == "bash train.sh run=a fold=2"


def test_train_command_of_a_later_stage_or_fold_is_that_of_the_run(monkeypatch, tmp_path):
    (tmp_path / "stage1").mkdir()
    args = ["recipe=demo", "run=a"]
    start_fold(tmp_path / "stage1/fold0", monkeypatch, *args, "fold=0")
    for folder in ("fold0", "stage1/fold1"):
        command = start_fold(tmp_path / folder, monkeypatch, "run=a", "resume=true")
        assert command == "bash train.sh recipe=demo run=a"


def test_current_commit_outside_git_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.current_commit.__wrapped__() == "unknown"


def test_current_commit_has_a_plus_if_files_differ(monkeypatch, tmp_path):
    def git(*args):
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *names, *args], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("1")
    for command in (["init"], ["add", "a.py"], ["commit", "-m", "first"]):
        git(*command)
    commit = provenance.current_commit.__wrapped__()
    assert git("rev-parse", "HEAD").stdout.decode().startswith(commit) and len(commit) >= 7
    (tmp_path / "a.py").write_text("2")
    assert provenance.current_commit.__wrapped__() == f"{commit}+"


def test_append_run_record_adds_one_record_a_start(monkeypatch, tmp_path):
    for i in range(2):
        monkeypatch.setattr(sys, "argv", ["train.py", f"fold={i}"])
        provenance.append_run_record(tmp_path, torch.device("cpu"), {"images": i})
    records = json.loads((tmp_path / "provenance.json").read_text())
    assert [record["command"] for record in records] == [f"bash train.sh fold={i}" for i in (0, 1)]
    assert [record["data"] for record in records] == [{"images": 0}, {"images": 1}]
    assert records[0]["gpu"] is None and records[0]["packages"] == provenance.package_versions()


def test_a_damaged_record_is_an_input_error(tmp_path):
    provenance.append_run_record(tmp_path, torch.device("cpu"), {})
    path = tmp_path / "provenance.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(InputError, match=r"provenance\.json: cannot be read .*; delete it"):
        provenance.append_run_record(tmp_path, torch.device("cpu"), {})
