"""The rooms of the package: imports go down only, without circles."""

import ast
from pathlib import Path

import pytest

import gdzoo

ROOT = Path(gdzoo.__file__).parent
# A room may import from itself and from the floors before its own; rooms on one floor do not import each other.
FLOORS = [
    {"errors", "machine"},
    {"method"},
    {"models"},
    {"data"},
    {"zoo"},
    {"settings"},
    {"dreambooth_flags"},
    {"config", "config_text_to_image"},
    {"arguments"},
    {"evaluation"},
    {"hub", "report"},
    {"training"},
    {"entry"},
    {"train", "train_text_to_image", "downstream"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")
# These would hide installed packages from `accelerate launch gdzoo/train.py`, which puts gdzoo/ on the path.
SHADOWING = {"datasets", "evaluate", "accelerate", "diffusers", "torch", "types", "logging", "random", "statistics"} | {
    "tokenize",
    "peft",
}


def module_name(file: Path) -> str:
    return ".".join(["gdzoo", *file.relative_to(ROOT).with_suffix("").parts])


def imported(file: Path) -> set[str]:
    """All modules of gdzoo that a file imports, also in functions and for types."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: imports are absolute"
            package = node.module
            whole = [f"{package}.{alias.name}" for alias in node.names]
            names |= {
                name if (ROOT.parent / name.replace(".", "/")).with_suffix(".py").exists() else package
                for name in whole
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("gdzoo.")}


GRAPH = {module_name(file): imported(file) for file in FILES}


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_down_only(module):
    room = module.split(".")[1]
    for other in GRAPH[module]:
        there = other.split(".")[1]
        assert there == room or FLOOR[there] < FLOOR[room], (
            f"{module} imports {other}: move what it needs to a lower room, or the importer to a higher one"
        )


def test_there_are_no_circles():
    def visit(module: str, path: tuple[str, ...]):
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in GRAPH.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    done = set()
    for module in GRAPH:
        visit(module, ())


def test_a_circle_would_be_found():
    graph = {"gdzoo.training.a": {"gdzoo.training.b"}, "gdzoo.training.b": {"gdzoo.training.a"}}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="circle: gdzoo.training.a"):
        patch.setitem(globals(), "GRAPH", graph)
        test_there_are_no_circles()


def test_prepare_and_resume_do_not_import_each_other():
    assert "gdzoo.training.resume" not in GRAPH["gdzoo.training.prepare"]
    assert "gdzoo.training.prepare" not in GRAPH["gdzoo.training.resume"]


def test_the_top_of_the_package_is_small():
    top = [path for path in ROOT.iterdir() if path.is_file()]
    assert len(top) <= 12, f"more than twelve files at the top of gdzoo/: {sorted(path.name for path in top)}"
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *("method", "models", "data", "zoo", "evaluation", "hub", "report", "training")
    }


def test_packages_have_empty_init_files():
    for file in ROOT.glob("*/__init__.py"):
        assert not file.read_text().strip(), f"{file}: keep it empty, so that importing one module imports no other"


def test_no_name_shadows_an_installed_package():
    assert not {path.stem for path in ROOT.iterdir()} & SHADOWING
