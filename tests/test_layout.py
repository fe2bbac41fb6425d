"""The repository is what README says, and its imports go one way."""

import ast
import re
import sys

import pytest
from conftest import ROOT

SRC = ROOT / "src"
SCRIPTS = {"demo", "folds", "train", "leaderboard", "predict", "score", "report", "bench"}
MODULES = {path.stem: path for path in SRC.glob("*.py")}
ALONE = {"rle", "metrics", "losses", "unet"}  # to be read, or taken, by themselves


def imports(path):
    """The modules of ours that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names & MODULES.keys()


PRINTS_ITSELF = {"models"}  # a module that can be run as well


def test_scripts_are_those_that_can_be_run():
    runnable = {name for name, path in MODULES.items() if "__main__" in path.read_text("utf-8")}
    assert runnable == SCRIPTS | PRINTS_ITSELF


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_a_script_and_some_stand_alone(name):
    assert not imports(MODULES[name]) & SCRIPTS
    if name in ALONE:
        assert not imports(MODULES[name])


def test_imports_have_no_circle():
    left = {name: imports(path) for name, path in MODULES.items()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


def test_no_drawer_for_odds_and_ends():
    assert not MODULES.keys() & {"utils", "util", "common", "helpers", "misc"}


def test_files_and_functions_stay_short():
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 260, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_public_functions_say_what_they_do_and_take():
    for path in MODULES.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.name == "main" or ast.get_docstring(node), f"{path.name}: {node.name}"
                assert node.returns is not None, f"{path.name}: {node.name}"
                for argument in node.args.args:
                    assert argument.annotation, f"{path.name}: {node.name}({argument.arg})"


def test_readmes_tree_is_src():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([\w]+\.(?:py|sh)|recipes/)\s", readme, re.MULTILINE))
    there = {path.name for path in SRC.iterdir() if path.suffix in (".py", ".sh")} | {"recipes/"}
    assert listed == there


def test_readme_names_only_files_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", readme):
        target = name[0] or name[1]
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_python_is_one_that_requirements_are_pinned_for():
    assert sys.version_info[:2] in {(3, 11), (3, 12)}
