"""Faults of the test Hub: which calls fail, and how."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.hub.routes import Response, json_response

HTML_ERROR = b"<!DOCTYPE html><html><body><h1>503</h1><p>The Hub is down for maintenance.</p></body></html>"


@dataclass
class Fault:
    """An error at calls to come, see `FakeHub.fault`. `hits` counts the calls that failed."""

    match: str
    kind: str
    times: int | None
    skip: int
    method: str | None
    retry_after: int
    seconds: float
    hits: int = 0

    def strikes(self, method: str, kind: str) -> bool:
        """Whether this call fails. Counts the call."""
        if not fnmatchcase(kind, self.match) or self.method not in (None, method) or self.hits == self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True

    def response(self) -> Response | None:
        """What is answered in place of the endpoint's own answer; None where nothing is."""
        if self.kind == "html":
            return Response(503, HTML_ERROR, {"Content-Type": "text/html"})
        if self.kind == "quota":
            headers = {
                "ratelimit": f'"api";r=0;t={self.retry_after}',
                "ratelimit-policy": '"fixed window";"api";q=9;w=300',
            }
            return json_response({"error": "Too many requests"}, 429, headers)
        if self.kind.isdigit():
            headers = {"Retry-After": str(self.retry_after)} if self.kind == "429" else {}
            return json_response({"error": f"A fault of kind {self.kind}"}, int(self.kind), headers)
        return None
