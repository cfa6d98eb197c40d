"""What was in an answer's body: without the chunk framing, unpacked.

Pure. What a model's server sends is data: nothing here trusts it, and nothing but `Undecodable` is raised.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

UNPACKED_LIMIT = 64 * 1024 * 1024  # bytes; what unpacks to more is given up
MEMBERS_LIMIT = 10_000  # of a gzip body: each costs some time, however short it is
STEP_BYTES = 16 * 1024

GZIP_BITS, ZLIB_BITS, RAW_BITS = 31, 15, -15  # zlib's names for the three formats
FORMATS = {"gzip": (GZIP_BITS,), "x-gzip": (GZIP_BITS,), "deflate": (ZLIB_BITS, RAW_BITS)}

# Between two chunks, the first and the last one included. Used where chunks cannot be counted off.
_FRAMING = re.compile(rb"(?:\A|\r\n)[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?\r\n(?:\r\n\Z)?")


class Undecodable(Exception):
    """The body cannot be unpacked; the message says what is wrong with it, in llama-swap's words.

    `begun`: what it says until it breaks off, b"" where it is wrong in another way.
    """

    def __init__(self, why: object, begun: bytes = b"") -> None:
        super().__init__(f"response decode failed: response decompression failed: {why}")
        self.begun = begun


def unframed(body: bytes, *, is_cut: bool = False) -> bytes:
    """Return what is in the chunks of a chunked body, as far as they go (RFC 9112 section 7.1).

    `is_cut`: something is missing in its middle, so that the sizes of chunks do not lead to its end.
    """
    if is_cut:
        return _FRAMING.sub(b"", body)
    pieces = []
    at = 0
    try:
        while (end := body.find(b"\r\n", at)) > 0:
            line = body[at:end]
            size = int(line if line.isalnum() else line.partition(b";")[0], 16)
            if size <= 0:
                break
            at = end + 2 + size
            pieces.append(body[end + 2 : at])
            at += 2
    except ValueError:  # the relay has looked at the framing: what is here was sent by ourselves, or broke off
        pass
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def is_packed(encoding: str) -> bool:
    """Whether we know how to unpack a body with this Content-Encoding."""
    return encoding.strip().lower() in FORMATS


def unpacked(body: bytes, encoding: str, *, is_cut: bool = False) -> bytes:
    """Unpack a body; one whose encoding is not known stays as it is. Raises Undecodable, unless it `is_cut`."""
    formats = FORMATS.get(encoding.strip().lower())
    if formats is None or not body:
        return body
    why: list[Exception] = []
    begun = b""
    for bits in formats:
        pieces: list[bytes] = []
        try:
            pieces.extend(_members(body, bits))  # keeps what came before an error
        except (zlib.error, EOFError, OverflowError) as error:
            why.append(error)
            if isinstance(error, EOFError):
                begun = begun or b"".join(pieces)
            if is_cut and pieces:
                return b"".join(pieces)
        else:
            return b"".join(pieces)
    if is_cut:
        return b""
    raise Undecodable(f"{encoding}: {why[0]}", begun)


def _members(body: bytes, bits: int) -> Iterator[bytes]:
    """Yield the pieces of one gzip or deflate body, which may consist of several streams."""
    left = UNPACKED_LIMIT
    at, size = 0, len(body)
    for _ in range(MEMBERS_LIMIT):
        stream = zlib.decompressobj(bits)
        while at < size and not stream.eof:
            step = body[at : at + STEP_BYTES]
            piece = stream.decompress(step, left + 1)  # takes the whole step, unless that is too much
            left -= len(piece)
            if left < 0:
                raise OverflowError(f"more than {UNPACKED_LIMIT} bytes")
            yield piece
            at += len(step)
        if not stream.eof:
            raise EOFError("unexpected end")
        at -= len(stream.unused_data)
        if bits != GZIP_BITS or not body.startswith(b"\x1f\x8b", at):  # what follows, padding mostly, is nothing
            return
    raise OverflowError(f"more than {MEMBERS_LIMIT} parts")
