"""The documentation is true: its code runs, and the files and names that it mentions are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrnn import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINKED = [*PAGES, ROOT / "bench" / "README.md", ROOT / "examples" / "README.md", ROOT / "CHANGELOG.md"]
OPTIONAL = ("torch", "keras", "h5py")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
WORD = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]*\w\.(?:c|h|py|pyx|pxd|md|toml)|(?:src_c|fastrnn|tests|docs|bench|examples)/[\w./-]*")
NAME = re.compile(r"(?:\w+\.)*(\w*_\w*)(?:\(\))?=?")
FOREIGN = {"OMP_WAIT_POLICY", "OMP_DYNAMIC", "OMP_THREAD_LIMIT", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS"}
FOLDERS = ("", "fastrnn", "fastrnn/loaders", "src_c", "src_c/kernels", "docs", "bench", "examples/digits", "tests")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and first line of each code block."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        yield match[1], match[2], text.count("\n", 0, match.start(2))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def absent(code: str) -> list[str]:
    """Optional packages that a block imports, or whose files it reads, and that are not installed."""
    wanted = set(re.findall(r"^import (\w+)", code, re.MULTILINE)) | ({"h5py"} if ".keras" in code else set())
    return [name for name in OPTIONAL if name in wanted and importlib.util.find_spec(name) is None]


def run_commands(text: str) -> None:
    for line in text.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        assert command == "fastrnn", f"only the command fastrnn is run here: {line}"
        assert cli.main(arguments) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    skipped = []
    for language, code, line in blocks(page):
        if language == "sh":
            run_commands(code)
        elif language == "python":
            if missing := absent(code) or [name for name in skipped if re.search(rf"\b{name}\.", code)]:
                skipped += missing
            else:
                exec(compile("\n" * line + code, str(page), "exec"), names)
    if skipped:
        pytest.skip(f"left out what needs {', '.join(sorted(set(skipped)))}")


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_lead_somewhere(page):
    links = [link.split("#")[0] for link in LINK.findall(prose(page)) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_are_there(page):
    mentioned = {word for word in WORD.findall(prose(page)) if FILE.fullmatch(word) and "NAME" not in word}
    assert sorted(m for m in mentioned if not any((ROOT / folder / m).exists() for folder in FOLDERS)) == []


@pytest.fixture(scope="module")
def sources() -> str:
    """All that may define a name."""
    patterns = ("src_c/**/*.[ch]", "fastrnn/**/*.py", "fastrnn/*.p[yx][xd]", "tests/*.py", "*.toml", "setup.py")
    return "\n".join(
        path.read_text() for pattern in patterns for path in ROOT.glob(pattern) if path.name != "test_docs.py"
    )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_names_are_in_the_sources(page, sources):
    words = {word for word in WORD.findall(prose(page)) if "NAME" not in word}
    mentioned = {match[1] for word in words if (match := NAME.fullmatch(word))} - FOREIGN
    assert sorted(name for name in mentioned if not re.search(rf"\b{name}\b", sources)) == []


def test_architecture_names_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    patterns = ("src_c/*.[ch]", "src_c/kernels/*.[ch]", "fastrnn/*.py", "fastrnn/*.p[yx][xd]")
    files = [str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)]
    assert [name for name in sorted(files) if f"`{name}`" not in text] == [], (
        "say in docs/architecture.md what they are"
    )


def test_index_names_every_page():
    text = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"({page.name})" not in text] == ["README.md"]


def test_the_table_of_formats_is_that_of_the_registries():
    spec = importlib.util.spec_from_file_location("make_formats", ROOT / "docs" / "make_formats.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.renewed(maker.PAGE.read_text()) == maker.PAGE.read_text(), "run python docs/make_formats.py"
