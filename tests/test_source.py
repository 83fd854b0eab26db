"""The tree itself: no name that only tests use, no path that leads nowhere, no full room, no long list of parameters."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from bandit.settings.load import Settings

ROOT = Path(__file__).parents[1]
ROOMS = ("bandit", "feature_repo", "serving", "training")
SOURCE = [ROOT / "query_rewards.py", *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]
USERS = [file for room in ("examples", "benchmarks") for file in sorted((ROOT / room).rglob("*.py"))]
HELPERS = [file for file in sorted((ROOT / "tests").rglob("*.py")) if not file.name.startswith("test_")]
MAX_FILES, MAX_PARAMETERS = 15, 9

# Decorators that hand a function to the library that calls it.
REGISTERED = ("verb", "model_validator", "field_validator", "fixture")
# Methods that no line of ours calls by name, and why they stay.
ALLOWED = {
    "settings_customise_sources": "pydantic-settings asks for the sources of settings",
    "data_received": "asyncio hands over what a socket received",
    "readinto": "io.BufferedReader reads through it",
    "sendall": "redis-py writes to a socket",
    "recv_into": "redis-py and hiredis read from a socket",
    "socket_timeout": "redis-py reads it, and sets it",
    "socket_connect_timeout": "redis-py reads it",
    "_connection_arguments": "redis-py asks for them when it connects",
    "draws_session": "one of the five columns of Sums, which compiled loops read by position",
}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module_of(file: Path) -> str:
    return ".".join(part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__")


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def registered(node: ast.stmt) -> bool:
    return any(name in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []) for name in REGISTERED)


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, bool]]:
    """Names of a module and of its classes' methods, the statement that defines each, and whether it is a method."""
    for node in tree.body:
        yield from ((name, node, False) for name in names_of(node))
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                yield member.name, member, True


def uses(module: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What a file uses, and in which line: `module.name`, and `.name` of an attribute, whatever it belongs to."""
    modules: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:  # ruff refuses an import without use
                modules.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                modules.setdefault(alias.asname or alias.name, set()).add(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield f"{module}.{node.id}", node.lineno
        elif isinstance(node, ast.Attribute):
            yield f".{node.attr}", node.lineno
            for owner in modules.get(ast.unparse(node.value), ()):
                yield f"{owner}.{node.attr}", node.lineno


def unused(defining: dict[str, ast.Module], using: dict[str, ast.Module]) -> list[str]:
    """Names without a use outside of what defines them."""
    lines: dict[str, set[tuple[str, int]]] = {}
    for module, tree in (defining | using).items():
        for name, line in uses(module, tree):
            lines.setdefault(name, set()).add((module, line))
    result = []
    for module, tree in defining.items():
        for name, node, is_method in definitions(tree):
            if name.startswith("__") or registered(node) or (is_method and name in ALLOWED):
                continue
            own = {(module, line) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
            if not lines.get(f".{name}" if is_method else f"{module}.{name}", set()) - own:
                result.append(f"{module}:{node.lineno} {name}")
    return result


def trees(files: list[Path]) -> dict[str, ast.Module]:
    return {module_of(file): tree_of(file) for file in files}


def test_every_name_of_the_source_is_used_in_the_source_examples_or_benchmarks():
    assert unused(trees(SOURCE), trees(USERS)) == []


def test_every_name_of_examples_benchmarks_and_test_helpers_is_used_somewhere():
    tests = trees(sorted((ROOT / "tests").rglob("test_*.py")))
    entries = ("conftest", "__main__")  # pytest and the command line read these
    mine = {name: tree for name, tree in trees([*USERS, *HELPERS]).items() if not name.endswith(entries)}
    others = trees([*SOURCE, *USERS, *HELPERS]) | tests
    assert [name for name in unused(mine, others) if not re.fullmatch(r"benchmarks\..* run", name)] == []  # python -m benchmarks calls them


@pytest.mark.parametrize(
    ("defining", "using", "expected"),
    [
        ("def f(): ...", "import a\na.f()", []),
        ("def f(): ...", "from a import f as g\ng()", []),
        ("def f(): ...", "from b import f\nf()", ["a:1 f"]),
        ("def f(): return f()", "", ["a:1 f"]),
        ("X = 1", "def g(X): ...", ["a:1 X"]),
        ("class C:\n    def m(self): ...", "from a import C\nC().m()", []),
        ("class C:\n    def m(self): self.m()", "from a import C\nC()", ["a:2 m"]),
        ("@verb()\ndef f(): ...", "", []),
        ("_X = 1\ndef f(): return _X", "from a import f", []),
    ],
)
def test_the_check_of_names_sees_what_it_should(defining, using, expected):
    assert unused({"a": ast.parse(defining)}, {"u": ast.parse(using)}) == expected


TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.py")),
    *chain.from_iterable((ROOT / "docs").rglob(pattern) for pattern in ("*.md", "*.toml", "*.yml")),
    *(
        file
        for room in (*ROOMS, "tests", "benchmarks", "examples")
        for end in ("py", "pxd", "md", "toml")
        for file in (ROOT / room).rglob(f"*.{end}")
    ),
]
_FOLDERS = (*ROOMS, "benchmarks", "docs", "examples", "tests")
_PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(_FOLDERS)})/[\w./*-]*(?:\{{\w+(?:,\w+)+\}})?[\w.*/-]*")
_FILE = re.compile(r"(?<![\w./*{}-])\w+\.(?:py|pxd|md)\b")
_DOTTED = re.compile(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`")


def expanded(path: str) -> list[str]:
    """`a/{b,c}.py` as the two that it stands for."""
    match = re.fullmatch(r"(.*)\{([\w,]+)\}(.*)", path)
    return [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [path]


@cache
def known_names() -> frozenset[str]:
    """Modules, what they define or hand on, and settings, all dotted."""
    settings = Settings()
    names = {
        f"{section}.{key}" for section in Settings.model_fields for key in getattr(type(getattr(settings, section)), "model_fields", ())
    }
    for module, tree in trees(SOURCE).items():
        names |= {module, *(f"{module}.{name}" for name, _, _ in definitions(tree))}
        names |= {f"{module}.{alias.name}" for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return frozenset(names)


def leads_nowhere(text: str, *, writes_files: bool = False) -> list[str]:
    """Paths, names of files, and dotted names of ours in a text that do not exist. `writes_files`: bare names may be its own files."""
    paths = [path.rstrip(".,-") for path in _PATH.findall(text)]
    return [
        *(path for path in paths if not all(any(ROOT.glob(one)) for one in expanded(path.rstrip("/")))),
        *(name for name in _FILE.findall(text) if not writes_files and not files_called(name)),
        *(name for name in _DOTTED.findall(text) if name not in known_names()),
    ]


@cache
def files_called(name: str) -> bool:
    return (ROOT / name).exists() or any(file.name == name for file in TEXTS)


def test_every_path_that_a_text_names_exists():
    texts = [file for file in TEXTS if file != Path(__file__)]  # this one names what does not exist
    wrong = {
        str(file.relative_to(ROOT)): leads_nowhere(file.read_text(encoding="utf-8"), writes_files=ROOT / "tests" in file.parents)
        for file in texts
    }
    assert {file: names for file, names in wrong.items() if names} == {}


def test_the_check_of_paths_sees_what_it_should():
    assert (
        leads_nowhere("`bandit/policy/{quotas,scores}.py`, tests/test_source.py, `docs/`, scores.py, `bandit.types`, `training.held_out`")
        == []
    )
    wrong = ["bandit/none.py", "tests/{conftest,none}.py", "none.py", "bandit.types.Nothing"]
    assert leads_nowhere("bandit/none.py tests/{conftest,none}.py none.py `bandit.types.Nothing`") == wrong


def test_no_room_has_too_many_files():
    counts = Counter(file.parent.relative_to(ROOT) for file in SOURCE)
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FILES} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_no_two_files_of_a_package_have_one_name(room):
    counts = Counter(file.name for file in (ROOT / room).rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_no_function_has_too_many_parameters():
    long = [
        f"{module}:{node.lineno}"
        for module, tree in trees([*SOURCE, *USERS]).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > MAX_PARAMETERS
    ]
    assert long == []


def test_query_rewards_alone_imports_both_sides_and_nothing_imports_it():
    """The contracts of import-linter cover packages; this is one file."""
    imports = {
        module: {name.split(".")[0] for name, _ in uses(module, tree) if not name.startswith((".", f"{module}."))}
        for module, tree in trees(SOURCE).items()
    }
    assert {module for module, roots in imports.items() if "query_rewards" in roots} == set()
    assert {module for module, roots in imports.items() if {"serving", "training"} <= roots} == {"query_rewards"}
