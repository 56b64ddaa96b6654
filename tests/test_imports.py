"""Who may import whom (DESIGN), read from the syntax trees; and what a server process may never load."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sidecar.settings import ROOT

BASE = {"bounds", "errors", "settings", "wire", "process"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "bounds": set(),
    "settings": {"bounds", "errors"},
    "wire": {"errors"},
    "process": {"process_posix", "process_windows"},
    "process_posix": set(),
    "process_windows": set(),
    "catalogue": BASE,
    "store": BASE,
    "capabilities": {"errors"},
    "runner": {"capabilities", "catalogue", *BASE},
    "inference": {"catalogue", *BASE},
    "sessions": {"inference", "capabilities", *BASE},
    "server": {"capabilities", "catalogue", "store", "inference", "sessions", *BASE},
    "supervisor": {"errors", "settings"},
    "doctor": {"catalogue", "supervisor", *BASE},
    "optimise": {"capabilities", "catalogue", "runner", "supervisor", *BASE},
    "__main__": {"optimise", "supervisor", "server", "runner", "catalogue", "doctor", *BASE},
}
FILES = sorted((ROOT / "sidecar").rglob("*.py"))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _ours(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "sidecar" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layout(path: "object") -> None:
    relative = path.relative_to(ROOT / "sidecar")  # type: ignore[attr-defined]
    package = relative.parts[0].removesuffix(".py")
    if package == "__init__":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    allowed = MAY_IMPORT[package] | {package, "__version__"}
    used = {name for name in map(_ours, _imports(tree)) if name}
    assert used <= allowed, f"{relative} imports {sorted(used - allowed)}"


def test_there_are_no_import_cycles() -> None:
    graph = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        # Only imports at module level make a cycle that Python can trip over.
        top = ast.Module([node for node in ast.parse(path.read_text("utf-8")).body], [])
        for node in list(top.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                top.body.remove(node)
        graph[module] = {name for name in _imports(top) if name.startswith("sidecar")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' → '.join((*path, module))}"
        if module in done or module not in graph:
            return
        for target in graph[module] - {module}:
            visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_server_process_loads_no_ml_library() -> None:
    code = (
        "import sys, sidecar.server.app\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'torch', 'transformers', 'ctranslate2', 'av', 'soxr'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_launcher_is_standard_library_only() -> None:
    tree = ast.parse((ROOT / "launcher.py").read_text(encoding="utf-8"))
    tops = {name.split(".")[0] for name in _imports(tree) if name}
    assert tops <= sys.stdlib_module_names
