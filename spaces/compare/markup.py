"""How is a value written in the page? Small pieces of HTML that several parts share.

The parts are pure functions from the zoo's data to HTML; style.css says how they look. Whatever comes out of a
repository or a URL is escaped: anyone may have written it.
"""

from __future__ import annotations

import base64
from html import escape

SIDES = ("left", "right")
TITLES = {"fid": "FID", "kid": "KID", "kld": "KLD", "ard": "ARD", "kid_std": "KID std", "lwf": "LwF"}


def title(name: str) -> str:
    """A name of the zoo as a person reads it: generative_replay -> Generative replay."""
    return TITLES.get(name) or name[:1].upper() + name[1:].replace("_", " ")


def number(value: float) -> str:
    """A metric in three significant digits, zeros among them."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def data_url(content: bytes, mime_type: str) -> str:
    """Content within the page itself: no file is left on the server that another visitor could ask for."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def message(text: str, failed: bool = False) -> str:
    """A sentence in the place of what cannot be shown."""
    return f'<p class="message{" failed" if failed else ""}" role="{"alert" if failed else "note"}">{escape(text)}</p>'


def link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(text)}</a>'


def copyable(text: str, label: str) -> str:
    """Code with a button that copies it; page.js does the copying."""
    return (
        f'<div class="copyable"><pre tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<code>{escape(text)}</code></pre><button type="button" class="copy">Copy</button></div>'
    )
