"""What follows from the head of a request under one configuration, whatever its body says.

Worked out once for all heads that differ in nothing but the length: may the client ask, how is the model's name found,
what does the model's server get to see, what will the access log say.
"""

from __future__ import annotations

from llamaswapd.activity.record import REQUESTS_NOT_KEPT
from llamaswapd.config.schema import Config
from llamaswapd.core import jsontext
from llamaswapd.core.multipart import parameter
from llamaswapd.core.routing import MODEL_ROUTES, forwarded_path
from llamaswapd.errors import Unauthorized
from llamaswapd.http.auth import authorize
from llamaswapd.http.forward import forwarded, forwarded_for_line
from llamaswapd.http.heads import Shape
from llamaswapd.http.traffic import printable
from llamaswapd.observe.access import access_head, access_tail

BEGINNING_LIMIT = 256  # bytes of a body's beginning that is remembered
STARTS_KEPT = 64  # beginnings of heads for a model's server, of one head of a client; one for each address and model

EXPRESS_PATHS = frozenset(path for method, path in MODEL_ROUTES if method == "POST")


class Start:
    """How two texts about a request begin.

    `head`: what the model's server gets, up to the digits of the length; `access`: its line in the access log.
    """

    __slots__ = ("access", "head")

    def __init__(self, head: bytes, access: str) -> None:
        self.head = head
        self.access = access


class Route:
    """What follows from a head, under one configuration."""

    __slots__ = (
        "_beginning", "_forwarded_for", "_ip", "_model", "_sent_on", "_starts", "_what", "accept", "access_tail",
        "boundary", "config", "is_admitted", "keeps_request", "path", "query", "sent_path",
    )  # fmt: skip

    def __init__(self, shape: Shape, config: Config) -> None:
        self.config = config
        self.is_admitted = shape.method == "POST" and shape.path in EXPRESS_PATHS and _may_ask(shape, config)
        if not self.is_admitted:
            return
        content_type = shape.value(b"content-type")
        kind = content_type.lower()
        self.boundary: str | None = None  # of a form; None for JSON
        if "application/json" not in kind:
            self.boundary = parameter(content_type, "boundary") if "multipart/form-data" in kind else None
            self.is_admitted = bool(self.boundary)
        self.path = shape.path
        self.query = shape.query
        self.accept = shape.value(b"accept")
        self._what = f"POST {shape.path} HTTP/1.1"
        self.access_tail = access_tail(printable(shape.value(b"user-agent")))
        fields = [(field.name, field.value, field.line) for field in shape.fields]
        lines, self._forwarded_for = forwarded(fields, frozenset(), config.api_keys, is_recorded=True)
        self.sent_path = forwarded_path(shape.path)
        self.keeps_request = self.sent_path not in REQUESTS_NOT_KEPT
        target = self.sent_path + (f"?{shape.query}" if shape.query else "")
        self._sent_on = b"\r\n".join((b"%b HTTP/1.1" % target.encode(), *lines, b""))
        self._starts: dict[tuple[str, str], Start] = {}
        first_ip = shape.value(b"x-forwarded-for").partition(",")[0].strip()
        self._ip = printable(first_ip or shape.value(b"x-real-ip").strip())  # "": the peer's
        self._beginning, self._model = b"", ""  # how the last body began that named its model first

    def model_of(self, text: bytes) -> str | None:
        """Return the model that a whole body names if that is soon found (`quick_model`); None says nothing."""
        if self._model and text.startswith(self._beginning):  # a client asks for one model again and again
            return self._model
        beginning = jsontext.beginning(text)
        if not beginning:
            return jsontext.quick_model(text)
        model = jsontext.first_model(beginning)
        if model and len(beginning) <= BEGINNING_LIMIT:
            self._beginning, self._model = beginning, model
        return model

    def start(self, prefix: str, peer: str) -> Start:
        """Return what begins with where a request goes, and whence it came: `peer`, "" if that has no address."""
        start = self._starts.get((prefix, peer))
        if start is None:
            if len(self._starts) >= STARTS_KEPT:
                self._starts.clear()
            line = forwarded_for_line(self._forwarded_for, peer)
            head = b"POST %b%b%bContent-Length: " % (prefix.encode(), self._sent_on, line and b"%b\r\n" % line)
            start = self._starts[prefix, peer] = Start(head, access_head(self._ip or peer, self._what))
        return start


def _may_ask(shape: Shape, config: Config) -> bool:
    if not config.api_keys:
        return True
    try:
        authorize(
            {"Authorization": shape.value(b"authorization"), "x-api-key": shape.value(b"x-api-key")}, config.api_keys
        )
    except Unauthorized:
        return False
    return True
