"""What was said: requests and answers, the newest ones, in a bounded piece of memory.

A capture costs nothing but its place until somebody looks at it: bodies stay as they went by, headers are read then.
What is large is compressed a little later, in another thread.
"""

from __future__ import annotations

import base64
import contextlib
import zlib
from bisect import bisect_right
from collections import deque
from operator import attrgetter

from llamaswapd.activity.content import Undecodable, is_packed, unframed, unpacked
from llamaswapd.activity.plain import ENTRY_BYTES, Bunch
from llamaswapd.activity.record import REQUESTS_NOT_KEPT, SUCCESS, Pairs, Pieces, Record
from llamaswapd.observe.inflight import clean, shown_headers

COMPRESSED_FROM_BYTES = 16 * 1024
COMPRESSION_LEVEL = 1  # what is said compresses well enough by it, and quickly

# Paths whose answers are large and say little: audio and pictures.
RESPONSES_NOT_KEPT = frozenset((
    "/v1/audio/speech", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img",
))  # fmt: skip

# Of one connection only; Go's header maps do not hold them.
NOT_SHOWN = ("Connection", "Keep-Alive", "Transfer-Encoding")


class Capture:
    """One exchange. `size`: bytes it is taken to hold."""

    __slots__ = (
        "_held", "_is_chunked", "_path", "_request_pairs", "_response_pairs", "content_encoding", "is_compressed",
        "size",
    )  # fmt: skip

    def __init__(self, record: Record, request: bytes | Pieces | None, response: bytes) -> None:
        """`request` and `response`: the bodies as they were relayed. Nothing else of the record is held."""
        path = self._path = record.sent_path
        self._is_chunked, self.content_encoding = record.is_chunked, record.content_encoding
        self._request_pairs, self._response_pairs = record.request_pairs(), record.response_pairs()
        sent = None if path in REQUESTS_NOT_KEPT else request
        body = None if record.outcome != SUCCESS or path in RESPONSES_NOT_KEPT else response
        self.is_compressed = False
        self._held: tuple[bytes | Pieces | None, bytes | None, bool] = sent, body, False
        self.size = ENTRY_BYTES + record.heads_bytes + len(sent or b"") + len(body or b"")

    @classmethod
    def of(cls, record: Record) -> Capture:
        return cls(record, record.request, record.response)

    def compressed(self) -> tuple[bytes | None, bytes | None]:
        """Return the bodies compressed; takes a while."""
        request, response, _ = self._held
        return _compressed(_whole(request)), _compressed(response)

    def replace(self, request: bytes | None, response: bytes | None) -> None:
        """Hold the compressed bodies from now on."""
        before, after = self._held, (request, response, True)
        self._held = after  # all at once: other threads may be looking
        self.is_compressed = True
        self.size += sum(len(each or b"") for each in after[:2]) - sum(len(each or b"") for each in before[:2])

    def shown(self, id_: int) -> dict[str, object]:
        """Return the capture as clients see it; takes a while."""
        held, response, is_compressed = self._held
        request = _whole(held)
        if is_compressed:
            request = None if request is None else zlib.decompress(request)
            response = None if response is None else zlib.decompress(response)
        response_headers = _headers(self._response_pairs())
        if response is not None:
            response = unframed(response) if self._is_chunked else response
            # What cannot be unpacked is shown as it came, and its headers say what it is.
            with contextlib.suppress(Undecodable):
                response = unpacked(response, self.content_encoding)
                if is_packed(self.content_encoding):
                    response_headers.pop("Content-Encoding", None)
        return {
            "id": id_,
            "req_path": clean(self._path),
            "req_headers": _headers(self._request_pairs()),
            "req_body": _base64(request),
            "resp_headers": response_headers,
            "resp_body": _base64(response),
        }


class Captures:
    """The captures by activity id, the oldest of which make room for the newest.

    Small ones count as they are, large ones compressed. Until they are, they have a place of their own, twice as large:
    a request and an answer may each be as large as all of the rest. Those that do not fit are skipped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.uncompressed: deque[int] = deque()  # large ones, of which some may be gone
        self._kept: dict[int, Capture] = {}
        self._order: deque[int] = deque()  # of their ids
        self._plain: deque[Bunch] = deque()  # by their ids
        self._bytes = 0
        self._large_bytes = 0  # of those that are to be compressed

    def __contains__(self, id_: object) -> bool:
        return id_ in self._kept or self._bunch_with(id_) is not None

    def add(self, id_: int, capture: Capture) -> None:
        """Keep a capture, if captures are kept at all; ids come in order."""
        size = capture.size
        if size > 2 * self.limit:
            return
        if size >= COMPRESSED_FROM_BYTES:
            self.uncompressed.append(id_)
            self._large_bytes += size
        elif size > self.limit:
            return
        else:
            self._bytes += size
        self._kept[id_] = capture
        self._order.append(id_)
        if self._bytes > self.limit or self._large_bytes > 2 * self.limit:
            self._make_room()

    def extend(self, entries: list[Record]) -> None:
        """Keep plain requests, of which others may drop the bodies then; ids come in order and without gaps."""
        bunch = Bunch(entries)
        if bunch.size > self.limit and len(entries) > 1:  # the newest ones may have room
            middle = len(entries) // 2
            self.extend(entries[:middle])
            self.extend(entries[middle:])
            return
        self._plain.append(bunch)
        self._bytes += bunch.size
        if self._bytes > self.limit:
            self._make_room()

    def get(self, id_: int) -> Capture | None:
        if id_ in self._kept:
            return self._kept[id_]
        bunch = self._bunch_with(id_)
        return Capture(*bunch.of(id_)) if bunch is not None else None

    def _bunch_with(self, id_: object) -> Bunch | None:
        if not isinstance(id_, int):
            return None
        at = bisect_right(self._plain, id_, key=attrgetter("first_id")) - 1
        return self._plain[at] if at >= 0 and id_ <= self._plain[at].last_id else None

    def compressed(self, id_: int, bodies: tuple[bytes | None, bytes | None]) -> None:
        """Take the compressed bodies of a capture, if it is still there and they are not too large."""
        capture = self._kept.get(id_)
        if capture is None:
            return
        self._large_bytes -= capture.size
        capture.replace(*bodies)
        self._bytes += capture.size
        if capture.size > self.limit:
            self._order.remove(id_)
            self._drop(id_)
        self._make_room()

    def _make_room(self) -> None:
        order, plain, limit = self._order, self._plain, self.limit
        while self._bytes > limit or self._large_bytes > 2 * limit:
            if plain and not (order and order[0] < plain[0].first_id):
                self._bytes -= plain.popleft().size
            elif order:
                self._drop(order.popleft())
            else:
                return

    def _drop(self, id_: int) -> None:
        capture = self._kept.pop(id_, None)
        if capture is None:
            return
        if capture.size >= COMPRESSED_FROM_BYTES and not capture.is_compressed:
            self._large_bytes -= capture.size
        else:
            self._bytes -= capture.size


def _headers(pairs: Pairs) -> dict[str, str]:
    shown = shown_headers(pairs)
    for name in NOT_SHOWN:
        shown.pop(name, None)
    return shown


def _whole(body: bytes | Pieces | None) -> bytes | None:
    return None if body is None else bytes(body)


def _compressed(body: bytes | None) -> bytes | None:
    return None if body is None else zlib.compress(body, COMPRESSION_LEVEL)


def _base64(body: bytes | None) -> str | None:
    return None if body is None else base64.b64encode(body).decode()
