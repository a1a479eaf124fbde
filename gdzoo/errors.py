"""Text from outside (errors of other libraries, names of files and classes) for messages of one line.

gdzoo prints such text only through `clean`, which masks tokens and escapes control characters.
"""

import os
import re

MASK = "***"
# A token of the Hub, what follows "Bearer", a password in a URL, and a parameter of a URL that signs or opens it.
_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[\w.-]+"
    r"|(?<=bearer )[^\s'\"]+"
    r"|(?<=://)[^\s/@]+(?=@)"
    r"|(?<=[?&])[\w-]*(?:token|signature|credential|secret|key)[\w-]*=[^\s&'\"]+",
    re.IGNORECASE,
)
# Control characters, marks of direction, and half characters (file names that are no UTF-8), which cannot be printed.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:TOKEN|API_KEY|SECRET|PASSWORD)$")  # HF_TOKEN, WANDB_API_KEY, ...
_SHORTEST = 6  # characters of a secret; a shorter one would mask ordinary words
_given: set[str] = set()  # the tokens that `checked_token` was given


def one_line(error: BaseException, limit: int = 200) -> str:
    """Type and text of another library's error, clean, with at most `limit` characters of the text."""
    text = clean(str(error))[:limit]  # masked before it is cut, which could leave half a token
    return clean(type(error).__name__) + (f": {text}" if text else "")


def clean(text: str) -> str:
    """`text` on one line, without tokens; control characters and those that turn its direction are escaped."""
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), " ".join(text.split()))
    for secret in _given | {value.strip() for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}:
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    return _SECRETS.sub(MASK, text)


def cut(text: str, most: int = 200) -> str:
    """`text` with at most about `most` characters: its begin and its end."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def checked_token(token: str, name: str) -> str:
    """A token without white space around it; from now on `clean` masks it.

    Args:
        name: where it was given, such as --hub_token.

    Raises:
        ValueError: in one line that does not bear it: it is empty, or no token has its characters.
    """
    token = token.strip()
    _given.add(token)
    if not token:
        raise ValueError(f"{name} is empty: leave it out, or give a token of the Hub")
    if not re.fullmatch("[!-~]+", token):
        raise ValueError(f"{name} is no token: it has white space or other characters that no token has; copy it again")
    return token
