"""What is known of a request when its answer has ended: what the relay notes and the activity makes its rows of.

Made for every request, so little is worked out here and nothing is copied: headers are functions to call later, bodies
are the very bytes that went through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from llamaswapd.activity.rows import Row, Stored
from llamaswapd.activity.usage import Tokens

Pairs = Iterable[tuple[str, str]]

NO_METADATA: Mapping[str, str] = {}
SUCCESS = 200

# Paths whose requests are large and say little: audio and pictures (llama-swap).
REQUESTS_NOT_KEPT = frozenset((
    "/v1/audio/transcriptions", "/v1/images/edits", "/sdapi/v1/img2img", "/v1/audio/voices",
))  # fmt: skip

PLAIN_BYTES = 8 * 1024  # of a plain request, and of its answer


class Pieces:
    """A long body as it came: putting it together is for whoever has the time."""

    __slots__ = ("_pieces", "_size")

    def __init__(self, pieces: Sequence[bytes | bytearray], size: int) -> None:
        self._pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)


class Finished:
    """One request whose answer has ended.

    `path` is the path that the model's server saw. `ended_ns` is wall time, in nanoseconds since 1970. `began`,
    `granted`, `first_byte` and `ended` are seconds of the monotonic clock: when the request came, when its model was
    ready for it, when its answer began, when that ended; 0.0 for what did not come about. `load_began` is when the load
    that it waited for began, 0.0 if it waited for none.

    `request`: the body as it was sent to the model, None where it was not kept. `response`: the pieces of the answer's
    body as they were relayed, framed in chunks if `is_chunked`. When `is_cut`, pieces in its middle are missing, and
    the request is not kept either: the answer was too long for a capture, and what there is serves to find usage in.
    `error` is our own words for what went wrong, "" when the answer is the model's.

    `content_type` and `content_encoding` are those of the answer, "" if it has none. They are worked out once for each
    shape of head, not for each answer. `heads_bytes`: about how much memory the two functions for headers hold on to.
    These may be called much later, or never, and must not hold the connections.
    """

    __slots__ = (
        "answer_bytes", "began", "content_encoding", "content_type", "ended", "ended_ns", "error", "first_byte",
        "granted", "heads_bytes", "id", "is_chunked", "is_cut", "load_began", "metadata", "method", "model_id", "path",
        "request", "request_bytes", "request_headers", "response", "response_headers", "status", "tokens", "took_ms",
    )  # fmt: skip

    model_id: str
    method: str
    path: str
    status: int
    ended_ns: int
    began: float
    load_began: float
    granted: float
    first_byte: float
    ended: float
    metadata: Mapping[str, str]
    error: str
    content_type: str
    content_encoding: str
    heads_bytes: int
    request_headers: Callable[[], Pairs]
    response_headers: Callable[[], Pairs]
    request: bytes | Pieces | None
    response: Sequence[bytes]
    is_chunked: bool
    is_cut: bool
    answer_bytes: int  # in `response`

    # What the activity notes of a plain request.
    id: int
    tokens: Tokens
    took_ms: float
    request_bytes: int  # of the request's body; -1 if it is not kept

    @property
    def is_plain(self) -> bool:
        """Whether it is short, was answered with success, and can be read as it is."""
        return (
            self.answer_bytes <= PLAIN_BYTES
            and self.status == SUCCESS
            and not (self.error or self.content_encoding or self.is_cut)
            and (self.request is None or len(self.request) <= PLAIN_BYTES)
            and self.method == "POST"
        )

    def stored(self) -> Stored:
        """Return the row of a plain request, in the order of COLUMNS."""
        return Row(
            self.id, self.ended_ns, self.model_id, self.path, self.content_type, self.status, self.tokens,
            self.took_ms, self.began, self.load_began, self.granted, self.first_byte, self.ended, self.error,
            self.metadata,
        ).stored()  # fmt: skip
