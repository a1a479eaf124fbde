"""The Hub's client: time limits, errors, retries and rights."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers
from huggingface_hub.utils._http import hf_request_event_hook  # HF_HUB_OFFLINE is heeded in it

TIMEOUT = 30.0  # seconds that a call may be silent
LONGEST_PAUSE = 60.0  # seconds between two tries, unless the Hub asks for more


class TemporaryHubError(Exception):
    """The Hub cannot do it now. `retry_after`: for how many seconds it wants to be left alone, if it says so."""

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class PermanentHubError(Exception):
    """The Hub will not do it, or gdzoo must not: trying again would change nothing."""


def connect(token: str | None = None) -> HfApi:
    """The Hub's client, with a time limit on every call; without `token` the usual places are looked through."""

    def limit(request: httpx2.Request):
        # Here, since many calls override the client's own limit with none.
        request.extensions["timeout"] = httpx2.Timeout(TIMEOUT).as_dict()

    hooks = {"request": [hf_request_event_hook, limit]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True))
    return HfApi(token=token)


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the errors of huggingface_hub, which share no base class, into one of two.

    Raises:
        TemporaryHubError, PermanentHubError: in one line.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (408, 412, 429) or status >= 500:  # 412: a commit came between, so look again
            raise _outage(error) from error
        raise PermanentHubError(one_line(error)) from error
    # A failed upload is a RuntimeError, an HTML page in place of JSON a JSONDecodeError.
    except (httpx2.RequestError, ConnectionError, RuntimeError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        raise _outage(error) from error
    except (ValueError, OSError) as error:
        raise PermanentHubError(one_line(error)) from error


def _outage(error: Exception) -> TemporaryHubError:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    headers = {} if response is None else response.headers
    limit, wanted = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if limit and limit.remaining == 0:
        return TemporaryHubError(one_line(error), limit.reset_in_seconds + 1.0)  # it is rounded down
    return TemporaryHubError(one_line(error), float(wanted) if wanted.isdecimal() else 0.0)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def with_retries(call: Callable, *args, **kwargs):
    """A call before training, tried three times: the client repeats most of them never.

    Raises:
        TemporaryHubError, PermanentHubError
    """
    for pause in (1.0, 3.0, None):
        try:
            with translated_errors():
                return call(*args, **kwargs)
        except TemporaryHubError as outage:
            if pause is None or outage.retry_after > LONGEST_PAUSE:
                raise
            time.sleep(max(pause, outage.retry_after))


def check_rights(api: HfApi, namespace: str | None, repo_names: Iterable[str] = ()) -> str:
    """Whether the token may write to a namespace, by default its account's own, which is returned.

    Args:
        repo_names: the repos to push to; a fine-grained token may be good for single ones.

    Raises:
        PermanentHubError, TemporaryHubError
    """
    try:
        me = with_retries(api.whoami)
    except PermanentHubError as error:
        raise PermanentHubError(
            f"the Hub needs a valid token: --hub_token, HF_TOKEN or `hf auth login` ({error})"
        ) from error
    namespace = namespace or me["name"]
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise PermanentHubError(f"--hub_token: this token of {me['name']} can only read; make one of role write")
    roles = {me["name"]: "admin"} | {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])}
    if roles.get(namespace, "read") == "read":
        raise PermanentHubError(
            f"--hub_namespace {namespace}: {me['name']} may not write there (--hub_namespace {me['name']}?)"
        )
    if token.get("role") == "fineGrained":
        scopes = token["fineGrained"]["scoped"]
        open_to = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        closed = [name for name in repo_names if not {namespace, f"{namespace}/{name}"} & open_to]
        if closed:
            raise PermanentHubError(
                f"--hub_token: this fine-grained token lacks repo.write for {namespace}/{closed[0]}"
            )
    return namespace
