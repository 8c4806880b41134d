"""What the documents say is run: sessions, scripts, commands, links, names and paths."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pagemove
from pagemove.cli import app
from support.servers import Redis, free_ports

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(pagemove.__path__, "pagemove.")
    # The shared object that the native modules are in is none itself.
    if not module.name.endswith(("__main__", "._native.core"))
]
MAP = re.compile(r"^(?P<indent> *)(?P<path>[\w./]+)(?:  +\S.*)?$", re.MULTILINE)

#: What a page's sessions need beyond moving pages.
NEEDS = {
    "huge-pages.md": ["thp"],
    "stores.md": ["fsspec", "zstandard"],
    "works-with.md": ["xarray"],
}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: its language, its text, and the lines it has there."""

    page: Path
    language: str
    first: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def is_session(self) -> bool:
        return self.language == "python" and self.text.lstrip().startswith(">>>")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.first}"


def blocks(page: Path) -> Iterator[Block]:
    opened: Block | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = line.lstrip().startswith("```")
        if opened is None:
            if fence:
                opened = Block(page, line.strip().strip("`"), number + 1, [])
        elif fence:
            yield opened
            opened = None
        else:
            opened.lines.append(line)
    assert opened is None, f"{page}: the last block is never closed"


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def _marked(pages: list[Path]) -> list[object]:
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=pytest.mark.needs("move", *NEEDS.get(page.name, ())),
        )
        for page in pages
    ]


def _of_language(*languages: str) -> list[object]:
    return [pytest.param(b, id=str(b)) for b in ALL_BLOCKS if b.language in languages]


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.each
@pytest.mark.parametrize(
    "page", _marked([page for page in PAGES if any(b.is_session for b in blocks(page))])
)
def test_sessions_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    lines = [""] * len(page.read_text().splitlines())
    for block in blocks(page):
        if block.is_session:
            # In the same lines as on the page, so that doctest names the right one.
            lines[block.first - 1 : block.first - 1 + len(block.lines)] = block.lines
    text = tmp_path / page.with_suffix(".txt").name
    text.write_text("\n".join(lines) + "\n")
    # In a process of its own, because pages fork and open userfaultfds.
    options = [part for name in ("ELLIPSIS", "NORMALIZE_WHITESPACE") for part in ("-o", name)]
    _run([sys.executable, "-W", "error", "-m", "doctest", *options, text.name], tmp_path)


@pytest.mark.each
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=str(block), marks=pytest.mark.needs("move"))
        for block in ALL_BLOCKS
        if block.language == "python" and not block.is_session
    ],
)
def test_scripts_run(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(block.text)
    _run([sys.executable, "-W", "error", script.name], tmp_path)


@pytest.mark.needs("move", "redis")
def test_run_on_redis_runs_as_printed(tmp_path: Path) -> None:
    text = (DOCS / "how-to" / "stores.md").read_text()
    section = text.index("## Run on Redis")
    (start,) = re.findall(r"^\$ redis-server --port (\d+) (.*)$", text[section:], re.MULTILINE)
    (program,) = (
        block.text
        for block in blocks(DOCS / "how-to" / "stores.md")
        if block.language == "py" and "RedisStore" in block.text
    )
    printed = f"redis://localhost:{start[0]}"
    assert program.count(printed) == 2
    # The port may be taken on the machine that tests: everything else is as printed.
    with Redis(tmp_path / "redis", free_ports(1)[0], *shlex.split(start[1])) as server:
        script = tmp_path / "script.py"
        script.write_text(program.replace(f":{start[0]}", f":{server.port}"))
        _run([sys.executable, "-W", "error", script.name], tmp_path)
        assert server.say_whole("DBSIZE").strip() != b"0"


@pytest.mark.each
@pytest.mark.needs("move")
@pytest.mark.parametrize("name", ["pagemove", *MODULES])
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(module):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.each
@pytest.mark.parametrize("name", sorted(pagemove.__all__))
def test_every_public_name_is_in_the_reference_and_has_a_docstring(name: str) -> None:
    reference = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert re.search(rf"\b{name}\b", reference)
    thing = getattr(pagemove, name)
    if callable(thing):
        assert thing.__doc__
        if not isinstance(thing, type):
            assert ">>> " in thing.__doc__, "no example"


#: Those of numpy.ndarray, and what the native base of a class has for that class alone.
_NOT_FOR_USERS = {"astype", "copy", "flatten", "change_total", "counters", "hand_over_lock"}


def test_every_method_has_an_example() -> None:
    missing = []
    names = {name: getattr(pagemove, name) for name in pagemove.__all__}
    names |= {name: getattr(pagemove.stores, name) for name in pagemove.stores.__all__}
    for name, kind in sorted(names.items()):
        if not isinstance(kind, type) or issubclass(kind, BaseException):
            continue
        for method, what in inspect.getmembers(kind, callable):
            owners = [each.__module__ for each in kind.__mro__ if method in vars(each)]
            ours = bool(owners) and owners[0].startswith("pagemove.") and "_native" not in owners[0]
            if owners[:1] == ["pagemove.paging.plain"]:
                continue  # NumPy's documents have examples of its methods
            public = not method.startswith("_") and method not in _NOT_FOR_USERS
            if ours and public and ">>> " not in (what.__doc__ or ""):
                missing.append(f"{name}.{method}")
    assert missing == []


@pytest.mark.parametrize("block", _of_language("json"))
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


def _commands(program: str) -> list[object]:
    return [
        pytest.param(line[2:].split()[1:], id=f"{block}:{line[2:]}")
        for block in ALL_BLOCKS
        if block.language == "console"
        for line in block.lines
        if line.startswith(f"$ {program} ") or line == f"$ {program}"
    ]


@pytest.mark.each
@pytest.mark.parametrize("arguments", _commands("pagemove"))
def test_commands_exist_with_their_options(arguments: list[str]) -> None:
    words = [word for word in arguments if re.fullmatch(r"[a-z]+", word)][:1]
    options = [word for word in arguments if word.startswith("--")]
    environment = {"NO_COLOR": "1", "TERMINAL_WIDTH": "200"}
    done = CliRunner().invoke(app, [*words, "--help"], env=environment)
    assert done.exit_code == 0, done.output
    assert all(option in done.output for option in options)


@pytest.mark.each
@pytest.mark.parametrize("arguments", _commands("make"))
def test_make_targets_exist(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        if "=" not in word:
            assert re.search(rf"^{word}\b.*:", makefile, re.MULTILINE), word


@pytest.mark.each
@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_map_of_the_sources_is_true() -> None:
    """Every path of the map is there, and the map is what the files say of themselves."""
    page = DOCS / "contributing" / "map.md"
    named = 0
    stack: list[tuple[int, Path]] = [(-1, ROOT)]
    (tree,) = (b for b in blocks(page) if b.language == "text")
    for line in MAP.finditer(tree.text):
        indent = len(line["indent"])
        while stack[-1][0] >= indent:
            stack.pop()
        path = stack[-1][1] / line["path"]
        assert path.exists(), path
        stack.append((indent, path))
        named += path.suffix in (".py", ".pyx", ".pxi", ".c")
    package = ROOT / "src" / "pagemove"
    assert named == sum(1 for p in package.rglob("*") if p.suffix in (".py", ".pyx", ".pxi", ".c"))
    _run([sys.executable, str(ROOT / "tools" / "file_tree.py"), "--check"], ROOT)


def test_the_diagrams_are_what_their_script_draws(tmp_path: Path) -> None:
    _run([sys.executable, str(DOCS / "figures" / "diagrams.py"), str(tmp_path)], ROOT)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["eviction.svg", "fault.svg", "move.svg"]
    for name in drawn:
        assert (tmp_path / name).read_text() == (DOCS / "_static" / name).read_text()


def test_pages_for_newcomers_stay_short() -> None:
    for name, most in (("README.md", 110), ("CONTRIBUTING.md", 199)):
        assert len((ROOT / name).read_text().splitlines()) <= most, name


def test_the_readme_says_what_bites_and_how_to_begin() -> None:
    text = (ROOT / "README.md").read_text()
    for words in ("fork", "System calls without privilege", "SIGBUS", "$ make demo", "$ make test"):
        assert words in text
    assert text.count("$ sudo apt install ") == 1
