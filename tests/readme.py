"""What the READMEs tell their readers to type, and to write into files."""

import re

from tests.conftest import ROOT

PAGES = ["README.md", "gdzoo/training/README.md", "gdzoo/hub/README.md", ".github/CONTRIBUTING.md"]
PROGRAMS = ("accelerate launch", "python -m gdzoo", "python spaces", "python tests")


def text_of(page: str) -> str:
    """A page, empty where there is none; commands of several lines are put on one."""
    file = ROOT / page
    return re.sub(r" *\\\n\s*", " ", file.read_text()) if file.exists() else ""


def commands(*pages: str) -> list[str]:
    """The commands in code blocks and tables of the pages, each once, without comments."""
    found = {}
    for text in map(text_of, pages or PAGES):
        lines = re.findall(r"^(?: {4}|\$ )(\S.*)$", text, re.MULTILINE)
        for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines += block.splitlines()
        for row in re.findall(r"^\|.*$", text, re.MULTILINE):
            lines += re.findall(r"`([^`]+)`", row)
        for line in lines:
            for command in re.sub(r"\s+#\s.*$", "", line).split(" && "):
                command = command.strip().removeprefix("$ ").removeprefix("PYTHONPATH=. ")
                if command.startswith(PROGRAMS):
                    found[command] = True
    return list(found)


def blocks(language: str, *pages: str) -> list[str]:
    """The code blocks of the pages in this language."""
    text = "".join(map(text_of, pages or PAGES))
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
