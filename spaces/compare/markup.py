"""Small pieces of HTML shared by panels.py, classes.py, metrics.py and origins.py.

These modules are pure functions from the zoo's data to HTML, styled by style.css. Everything from a repository or a URL
is escaped: anyone may have written it.
"""

from __future__ import annotations

import base64
from html import escape

SIDES = ("left", "right")


def number(value: float) -> str:
    """A metric in three significant digits, trailing zeros included."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def data_url(content: bytes, mime_type: str) -> str:
    """Content embedded in the page: the server keeps no file that another visitor could request."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def message(text: str, failed: bool = False) -> str:
    """A sentence in place of something that cannot be shown."""
    return f'<p class="message{" failed" if failed else ""}" role="{"alert" if failed else "note"}">{escape(text)}</p>'


def link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(text)}</a>'


def copyable(text: str, label: str) -> str:
    """Code with a copy button, see page.js."""
    return (
        f'<div class="copyable"><pre tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<code>{escape(text)}</code></pre><button type="button" class="copy">Copy</button></div>'
    )
