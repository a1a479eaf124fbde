"""The client of the Hub: time limits, errors, retries, and the rights of a token."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator

import httpx2
from huggingface_hub import HfApi, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from gdzoo.errors import checked_token, one_line

TIMEOUT = 30.0  # seconds without any data from the Hub
LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the Hub asks for more


class TemporaryHubError(Exception):
    """The same call may succeed later.

    Attributes:
        retry_after: seconds that the Hub asks to wait; 0 if it sets none.
    """

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class PermanentHubError(Exception):
    """The Hub or gdzoo refuses the call; trying again does not help."""


def connect(token: str | None = None) -> HfApi:
    """The client of the Hub, with a time limit on every call.

    Args:
        token: by default HF_TOKEN or the token stored by `hf auth login`.

    Raises:
        PermanentHubError: what is there is no token.
    """
    try:
        if token is not None:
            token = checked_token(token, "--hub_token")
        elif stored := get_token():  # from now on no message bears it
            checked_token(stored, "HF_TOKEN, or the token stored by `hf auth login`,")
    except ValueError as error:
        raise PermanentHubError(str(error)) from error
    hooks = get_session().event_hooks["request"]  # huggingface_hub's own: HF_HUB_OFFLINE is checked there
    if _set_time_limit not in hooks:
        hooks = {"request": [*hooks, _set_time_limit]}
        set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True))
    return HfApi(token=token)


def _set_time_limit(request: httpx2.Request):
    # Per request: many calls of huggingface_hub replace the client's own limit by none.
    request.extensions["timeout"] = httpx2.Timeout(TIMEOUT).as_dict()


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the errors of huggingface_hub, which have no common base class, into one of two.

    Raises:
        TemporaryHubError, PermanentHubError: with a message of one line.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (408, 412, 429) or status >= 500:  # 412: another commit came first; compare again
            raise _temporary(error) from error
        raise PermanentHubError(one_line(error)) from error
    # A failed upload is a RuntimeError, an HTML page in place of JSON a JSONDecodeError.
    except (httpx2.RequestError, ConnectionError, RuntimeError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        raise _temporary(error) from error
    except (ValueError, OSError) as error:
        raise PermanentHubError(one_line(error)) from error


def _temporary(error: Exception) -> TemporaryHubError:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    headers = {} if response is None else response.headers
    limit, retry_after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit and limit.remaining == 0:
        return TemporaryHubError(one_line(error), limit.reset_in_seconds + 1.0)  # the Hub rounds it down
    return TemporaryHubError(one_line(error), float(retry_after) if retry_after.isdecimal() else 0.0)


def with_retries(call: Callable, *args, **kwargs):
    """Make a call before training, with up to three attempts: huggingface_hub itself repeats few calls.

    Raises:
        TemporaryHubError, PermanentHubError
    """
    for pause in (1.0, 3.0, None):
        try:
            with translated_errors():
                return call(*args, **kwargs)
        except TemporaryHubError as error:
            if pause is None or error.retry_after > LONGEST_PAUSE:
                raise
            time.sleep(max(pause, error.retry_after))


def check_rights(api: HfApi, namespace: str | None, repo_names: Iterable[str] = ()) -> str:
    """Check that the token may write to a namespace.

    Args:
        namespace: by default that of the token's account.
        repo_names: the repositories to push to; a fine-grained token may be limited to some of them.

    Returns:
        The namespace.

    Raises:
        PermanentHubError, TemporaryHubError
    """
    try:
        account = with_retries(api.whoami)
    except PermanentHubError as error:
        raise PermanentHubError(
            f"the Hub needs a valid token: --hub_token, HF_TOKEN or `hf auth login` ({error})"
        ) from error
    user = account["name"]
    namespace = namespace or user
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise PermanentHubError(f"--hub_token: this token of {user} is read-only; create one with write access")
    roles = {user: "admin"} | {org["name"]: org.get("roleInOrg") for org in account.get("orgs", [])}
    if roles.get(namespace, "read") == "read":
        raise PermanentHubError(
            f"--hub_namespace {namespace}: {user} has no write access there; --hub_namespace {user} would work"
        )
    if token.get("role") == "fineGrained":
        scopes = token["fineGrained"]["scoped"]
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        denied = [name for name in repo_names if not {namespace, f"{namespace}/{name}"} & writable]
        if denied:
            raise PermanentHubError(
                f"--hub_token: this fine-grained token lacks repo.write for {namespace}/{denied[0]}"
            )
    return namespace
