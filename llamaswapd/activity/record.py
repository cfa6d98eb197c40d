"""What is known of a request: what the relay notes, what is shown while it is in flight, what rows are made of later.

One object for all of it, because it is made for every request: little is worked out here and nothing is copied. Headers
are read when somebody asks for them, bodies are the very bytes that went through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from llamaswapd.activity.rows import Row, Stored
from llamaswapd.activity.usage import Tokens
from llamaswapd.observe.inflight import Headers, InflightEntry

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


class Record(InflightEntry):
    """One request, to the end of its answer and beyond.

    `sent_path` is the path that the model's server saw, `outcome` the status that the client got. `began`, `granted`,
    `first_byte` and `ended` are seconds of the monotonic clock: when the request came, when its model was ready for it,
    when its answer began, when that ended; 0.0 for what did not come about. `load_began` is when the load that it
    waited for began, 0.0 if it waited for none. `error` is our own words for what went wrong, "" when the answer is the
    model's.

    `request`: the body as it was sent to the model, None where it was not kept. `response`: the answer's body as it was
    relayed, framed in chunks if `is_chunked`. When `is_cut`, its middle is missing, and the request is not kept either:
    the answer was too long for a capture, and what there is serves to find usage in.

    Of a plain one the activity keeps the record itself. It is a short POST that did not wait for its model, and whose
    answer was a success, short, and there in one piece; and it holds on to nothing else by now. It is plain only if
    somebody says so.
    """

    __slots__ = (
        "about", "ended", "error", "first_byte", "granted", "heads_bytes", "is_cut", "is_plain", "load_began", "number",
        "outcome", "request", "request_at", "response", "response_at", "sent_path", "tokens", "took_ms", "wall_ahead",
    )  # fmt: skip

    sent_path: str
    about: Mapping[str, str]  # what else there is to say of it
    outcome: int
    error: str
    heads_bytes: int  # about how much memory the heads of request and answer take
    request: bytes | Pieces | None
    response: bytes
    is_cut: bool
    is_plain: bool

    # What the activity notes of a plain one.
    number: int  # of its row
    request_at: int  # where they begin among the bodies of those that ended together
    response_at: int
    tokens: Tokens

    def __init__(self, model_id: str, method: str, path: str, headers: Headers, peer_ip: str) -> None:
        super().__init__(model_id, method, path, headers, peer_ip)
        self.granted = self.first_byte = self.load_began = self.ended = 0.0
        self.took_ms = self.wall_ahead = 0.0  # the latter in seconds, of the wall clock before the monotonic clock

    @property
    def content_type(self) -> str:
        """Of the answer, "" if it has none."""
        raise NotImplementedError

    @property
    def content_encoding(self) -> str:
        raise NotImplementedError

    @property
    def is_chunked(self) -> bool:
        raise NotImplementedError

    def request_pairs(self) -> Callable[[], Pairs]:
        """Return what tells the header fields of the request, perhaps much later, and holds nothing else."""
        raise NotImplementedError

    def response_pairs(self) -> Callable[[], Pairs]:
        """Return the same for the answer's."""
        raise NotImplementedError

    def shorten(self, response: bytes) -> None:
        """Keep no more of it than that much of the answer."""
        self.response, self.request, self.is_cut = response, None, True

    def metadata(self) -> Mapping[str, str]:
        return self.about

    def stored(self) -> Stored:
        """Return the row of a plain one, in the order of COLUMNS."""
        return Row(
            self.number, int(self.ended + self.wall_ahead), self.model_id, self.sent_path, self.content_type,
            self.outcome, self.tokens, self.took_ms, self.began, self.load_began, self.granted, self.first_byte,
            self.ended, self.error, self.about,
        ).stored()  # fmt: skip
