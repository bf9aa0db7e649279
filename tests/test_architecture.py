"""The shape of the package, held by tests: dependencies point one way, and a device needs nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.layers import LAYERS, PACKAGE, PAGE, layer_of, render_page

HEAVY = {
    "torch": ("host", "runtimes/pytorch.py"),
    "timm": ("host", "runtimes/pytorch.py"),
    "transformers": ("host", "runtimes/pytorch.py"),
    "onnx": ("host",),
    "onnx_ir": ("host",),
    "onnxsim": ("host",),
    "onnxruntime": ("host", "runtimes/onnxruntime_session.py"),
    "tensorrt": ("engine", "runtimes"),
    "tensorrt_rtx": ("engine", "runtimes"),
    "pycuda": ("engine", "runtimes"),
    "cuda": ("engine", "runtimes"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (module, whether it is imported when the file is, and not only for type checking)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        eager = id(node) not in typing_only
        if isinstance(node, ast.Import):
            yield from ((alias.name, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, eager
            if node.module == "vitexport":
                yield from ((f"vitexport.{alias.name}", eager) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_dependencies_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        own = ""
    else:
        assert layer_of(own) >= 0, f"{own} has no layer; add it to LAYERS"
    for module, _ in imports(path):
        if not module.startswith("vitexport.") or room(module) in (own, "__version__"):
            continue
        other = room(module)
        assert own == "" or layer_of(other) <= layer_of(own), f"{relative} imports {module}, a higher layer"
        assert {own, other} != {"host", "engine"}, f"{relative}: host and engine do not know each other"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_heavy_packages_are_imported_only_in_their_rooms(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    for module, eager in imports(path):
        rooms = HEAVY.get(module.split(".")[0])
        if rooms is not None and eager:
            assert any(relative == r or relative.startswith(f"{r}/") for r in rooms), f"{relative} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda p: p.name)
def test_the_command_line_calls_the_api_and_nothing_else(path: Path) -> None:
    """Beside it only errors, what an option may be chosen from, and the types of results."""
    allowed = {"api", "cli", "errors", "__version__", "tables"}
    choices = {"vitexport.runtimes", "vitexport.recipe.settings", "vitexport.pipeline.recipe_run"}
    results = {"vitexport.files", "vitexport.verification.result", "vitexport.predict.job"}
    for module, eager in imports(path):
        if module.startswith("vitexport.") and room(module) not in allowed and eager:
            assert module in choices | results, f"{path.name} imports {module}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def find_circle(graph: Mapping[str, set[str]]) -> str:
    """Return the first circle of imports as ``a -> b -> a``; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> str:
        if node in trail:
            return " -> ".join((*trail, node))
        if node in done:
            return ""
        found = next((c for other in sorted(graph.get(node, ())) if (c := visit(other, (*trail, node)))), "")
        done.add(node)
        return found

    return next((circle for node in graph if (circle := visit(node, ()))), "")


def test_rooms_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        rooms = {room(module) for module, eager in imports(path) if module.startswith("vitexport.") and eager}
        graph.setdefault(own, set()).update(rooms - {own, "", "__version__"})
    assert find_circle(graph) == ""


def test_files_do_not_import_each_other_in_circles_not_even_inside_functions() -> None:
    graph = {module_of(path): {module for module, _ in imports(path)} for path in FILES if path.parent != PACKAGE}
    assert find_circle({module: found & set(graph) - {module} for module, found in graph.items()}) == ""


BLOCK_HEAVY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'torchvision', 'timm', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime',
                                  'onnxsim', 'onnxscript', 'tensorrt', 'tensorrt_rtx', 'cuda', 'pycuda'}:
            raise ModuleNotFoundError(f'{name} is blocked', name=name.split('.')[0])
sys.meta_path.insert(0, Block())
"""


def run_blocked(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK_HEAVY + program], capture_output=True, text=True, check=False)


def import_blocked(rooms: Callable[[str], bool]) -> None:
    names = []
    for path in FILES:
        relative = path.relative_to(PACKAGE.parent).with_suffix("")
        if rooms(relative.parts[1]) and path.name != "pytorch.py":
            names.append(".".join(relative.parts).removesuffix(".__init__"))
    assert names
    done = run_blocked("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert done.returncode == 0, done.stderr


def test_everything_outside_host_imports_without_any_heavy_package() -> None:
    import_blocked(lambda room: room not in ("host", "server"))


def test_the_server_imports_without_any_heavy_package() -> None:
    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        pytest.importorskip(package, reason="the extra 'serve' is not installed")
    import_blocked(lambda room: room == "server")


def test_a_missing_extra_names_the_exact_install_line(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.touch()
    done = run_blocked(f"from vitexport.cli import main\nmain(['bench', {str(model)!r}])")
    assert done.returncode == 1
    assert "pip install 'vitexport[ort]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, vitexport\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "pydantic", "onnx", "click", "rich"} & set(done.stdout.split())


def test_every_room_has_a_layer_and_says_what_belongs_there() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms == {room for layer in LAYERS for room in layer}
    silent = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_the_page_shows_the_layers() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render_page(text) == text, "run `python -m tests.support.layers`"


def test_no_public_name_is_hidden_by_a_room() -> None:
    """Importing a subpackage sets it as an attribute of the package, over a function of the same name."""
    import vitexport

    assert not set(vitexport.__all__) & {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
