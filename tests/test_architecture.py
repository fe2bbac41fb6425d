"""The layout of src/: rooms that import only upwards, short files, one name for one thing."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

from core.settings import FIELDS

SRC = ROOT / "src"
# Each room imports only from the rooms before it; rooms of one tuple do not import each other.
ROOM_ORDER = [
    *(("core",), ("data",), ("models",), ("inference",), ("evaluation",), ("training",)),
    ("reporting", "benchmark"),
]
ROOMS = [room for tier in ROOM_ORDER for room in tier]
SCRIPTS = {path.stem for path in SRC.glob("*.py")}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 260, 45

# Public names that two modules define, each with the reason.
SHARED_NAMES = {
    "main": "the entry point of every script",
}
# Private names of libraries that are used, each with the reason.
PRIVATE_USES = {
    "os._exit": "a worker ends in its signal handler without waiting for its queues",
    "torch._dynamo": "config.suppress_errors has no public name",
    "torch._functorch.config": "nor has force_non_lazy_backward_lowering",
}


def modules() -> dict[str, Path]:
    """Return all modules of src by dotted name; packages by the name of their folder."""
    paths = {path.relative_to(SRC).with_suffix(""): path for path in SRC.rglob("*.py")}
    return {".".join(p.parts).removesuffix(".__init__"): path for p, path in paths.items()}


MODULES = modules()


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports_of(name: str) -> frozenset[str]:
    """Return the modules of src that a module imports, wherever the import is written."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found & MODULES.keys())


def room_of(name: str) -> str:
    """Return a module's room; scripts are in none."""
    return name.partition(".")[0] if name not in SCRIPTS else ""


def tier_of(room: str) -> int:
    return next(i for i, tier in enumerate(ROOM_ORDER) if room in tier)


# ---------------------------------------------------------------- rooms


def test_src_has_the_rooms_and_scripts_only():
    folders = {path.name for path in SRC.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*ROOMS, "recipes"}
    assert not {*ROOMS} & SCRIPTS  # `import report` would be ambiguous


def test_imports_go_only_upwards():
    for name in MODULES:
        room = room_of(name)
        for other in map(room_of, imports_of(name)):
            assert other, f"{name} imports a script"
            if room and other != room:
                assert tier_of(other) < tier_of(room), f"{name} imports {other}"


def test_imports_have_no_circle():
    left = {name: imports_of(name) for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize(
    "name", ["data.rle", "evaluation.metrics", "training.losses", "models.unet"]
)
def test_standalone_modules_import_nothing_of_ours(name):
    assert not imports_of(name)


# What packages offer besides their modules, each with the reason.
PACKAGE_EXPORTS = {
    "inference": "from inference.trained_model import load",  # the interface for Python users
}


def test_packages_are_one_docstring():
    for name in sorted({MODULES[name].parent for name in MODULES if name not in SCRIPTS}):
        body = ast.parse((name / "__init__.py").read_text(encoding="utf-8")).body
        if name.name in PACKAGE_EXPORTS:
            exported = body.pop(1)
            assert ast.unparse(exported) == PACKAGE_EXPORTS[name.name]
            assert ast.unparse(body.pop(1)).startswith("__all__"), name
        assert len(body) == 1, name
        assert isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), name


def test_scripts_define_main_and_check_arguments_early():
    for name in SCRIPTS:
        text = MODULES[name].read_text(encoding="utf-8")
        functions = [n for n in tree_of(name).body if isinstance(n, ast.FunctionDef)]
        main = next(f for f in functions if f.name == "main")
        assert ast.unparse(main.args) == "args: list[str]", name
        assert "cli.check_arguments()" in text and "cli.run_main(main" in text, name
    for name in MODULES.keys() - SCRIPTS:
        assert "__main__" not in MODULES[name].read_text(encoding="utf-8"), name


def test_no_module_is_a_collection_of_leftovers():
    leftovers = {"utils", "util", "common", "helpers", "misc"}
    assert not leftovers & {part for name in MODULES for part in name.split(".")}


# ---------------------------------------------------------------- files and names


def test_files_and_functions_are_short_and_documented():
    for name, path in MODULES.items():
        assert ast.get_docstring(tree_of(name)), f"{name}: no docstring"
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        assert n_lines <= MAX_FILE_LINES, f"{name}: {n_lines} lines; split it"
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.FunctionDef):
                n_lines = node.end_lineno - node.lineno + 1
                found = f"{name}.{node.name}: {n_lines} lines; split it"
                assert n_lines <= MAX_FUNCTION_LINES, found


def test_public_functions_are_annotated():
    for name in MODULES:
        for node in tree_of(name).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert node.returns is not None, f"{name}.{node.name}"
                for argument in [*node.args.args, *node.args.kwonlyargs]:
                    assert argument.annotation, f"{name}.{node.name}({argument.arg})"


def public_names(name: str) -> set[str]:
    """Return the functions, classes and constants that a module defines without an underscore."""
    found = set()
    for node in tree_of(name).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {n for n in found if not n.startswith("_")}


def test_public_names_are_defined_once():
    where = defaultdict(list)
    for name in MODULES:
        for public in public_names(name):
            where[public].append(name)
    doubled = {public: found for public, found in where.items() if len(found) > 1}
    assert doubled.keys() <= SHARED_NAMES.keys(), doubled
    assert SHARED_NAMES.keys() <= doubled.keys(), "an exception that is no longer needed"


def test_public_functions_are_not_named_like_modules():
    stems = {name.rpartition(".")[2] for name in MODULES.keys() - SCRIPTS}
    functions = {
        f"{name}.{node.name}"
        for name in MODULES
        for node in tree_of(name).body
        if isinstance(node, ast.FunctionDef) and node.name in stems
    }
    assert not functions


def test_file_names_of_a_run_are_spelled_only_in_run_folder():
    names = {"best.safetensors", "history.csv", "config.yaml", "ensemble.json"}
    for name in MODULES.keys() - {"core.run_folder"}:
        constants = {n.value for n in ast.walk(tree_of(name)) if isinstance(n, ast.Constant)}
        assert not constants & names, name


# ---------------------------------------------------------------- libraries


def imported_libraries(name: str) -> set[str]:
    """Return the names under which a module knows libraries and what it takes from them."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            ours = isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ROOMS
            found |= {(a.asname or a.name).split(".")[0] for a in node.names if not ours}
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(name: str) -> set[str]:
    """Return the private modules, functions and attributes of libraries that a module uses."""
    found, libraries = set(), imported_libraries(name)
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom):
            imported = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {f"{node.module}.{n}" for n in imported if is_private(n)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if any(map(is_private, a.name.split(".")))}
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in libraries:
                found.add(ast.unparse(node))
    return found


def test_library_internals_are_not_used():
    used = {use for name in MODULES for use in private_uses(name)}
    assert used == PRIVATE_USES.keys()


# ---------------------------------------------------------------- pages

PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*put/README.md")]
PAGES += ROOT.glob("tests/*.md")


def test_readme_tree_names_the_rooms_and_scripts():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = set(re.findall(r"^\s+(\w+)/", readme, re.MULTILINE))
    assert {*ROOMS, "recipes"} <= folders
    assert all((SRC / name).is_dir() or (ROOT / name).is_dir() for name in folders)
    assert {name for name in SCRIPTS if f"{name}.py" in readme} == SCRIPTS
    for name in re.findall(r"\b(\w+\.py)\b", readme):
        assert list(ROOT.glob(f"src/**/{name}")) or (ROOT / "tests" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_link_only_to_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for link, image in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text):
        target = link or image
        assert target.startswith("http") or (page.parent / target).exists(), target


def heading_anchors(page):
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_link_only_to_headings_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        target = page.parent / link if link else page
        assert anchor in heading_anchors(target), f"{link}#{anchor}"


def test_commands_on_the_pages_have_settings_that_exist():
    """Measurements also have commands of older commits, tests/invalid_input.md wrong ones."""
    measured = ("experiments.md", "speed.md")
    pages = [page for page in PAGES if page.name not in measured and "tests" not in page.parts]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    commands = [line for line in lines if re.search(r"(train|predict)\.sh |src/\w+\.py ", line)]
    typed = set(re.findall(r"(?:^|[ `])([a-z_]+)=", "\n".join(commands))) - {"key"}
    assert len(typed) > 15 and typed <= FIELDS.keys(), typed - FIELDS.keys()
