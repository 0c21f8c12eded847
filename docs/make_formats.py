"""Writes the table of what each format supports into formats.md, from the registries of the loaders.

    python docs/make_formats.py

Each module of ``fastrnn.loaders.FORMATS`` has ``supported()``, which names what it converts, in sections.
"""

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastrnn.loaders import FORMATS

PAGE = Path(__file__).with_name("formats.md")
BEGIN, END = "<!-- made by docs/make_formats.py -->\n", "<!-- end of what is made -->\n"


def table() -> str:
    """The table as Markdown."""
    lines = ["| format | what | |", "|---|---|---|"]
    for row in FORMATS:
        sections = import_module(f"fastrnn.loaders.{row.module}").supported()
        for section, found in sections.items():
            names = list(found)
            lines.append(f"| {row.name} | {section} ({len(names)}) | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """The page with the table made anew."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
