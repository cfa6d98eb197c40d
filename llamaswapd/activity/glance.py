"""The tokens of short answers, found without parsing them, if they stand where most servers write them.

Pure. This is done on the loop, of nearly every answer; what it cannot tell for certain is for `usage` to read.
"""

from __future__ import annotations

from functools import lru_cache

from llamaswapd.activity.usage import NOTHING, UNREADABLE, Tokens, counts, scan

OBJECT_END_IN_CHUNKS = b"}\r\n0\r\n\r\n"
LINES_OF_ONE_CHUNK = 4  # its size, itself, the last chunk's size, the end
TEXT_BEGINS = b'"content":"'
TEXT_BEGINS_WITHIN = 512  # bytes
TAIL_LIMIT = 256  # bytes of what is remembered
TAILS_KEPT = 2048

Found = tuple[Tokens, float]


def at_a_glance(body: bytes) -> Found | None:
    """Return what `usage.of_json` would of an answer; None if it takes that to know.

    It does not if the last member is `usage`, nor for an answer without any of the words.
    """
    # To look through the text of the first message would take longest. A word with both its quotes cannot stand in
    # there, where quotes have a backslash in front.
    text = body.find(TEXT_BEGINS, 0, TEXT_BEGINS_WITHIN) + len(TEXT_BEGINS)
    if text >= len(TEXT_BEGINS):
        before, end = body[:text], body.find(b'"', text)
        if end < 0 or before.find(b'"usage"') >= 0 or _has_others(before):
            return None
        body = body[end:]
    # Short answers have few different ends: their numbers of tokens differ, and those are small.
    return _of_tail(body) if len(body) <= TAIL_LIMIT else _of_end(body)


class Glances:
    """Looks at many answers, which are alike: what stands in front of the text and behind it is as long as it was.

    What is in front is looked through in the end, that of all at once.
    """

    __slots__ = ("_tails", "_text_at", "before")

    def __init__(self) -> None:
        self.before: list[bytes] = []  # what has not been looked through yet
        self._text_at = len(TEXT_BEGINS)  # where the last text began
        self._tails: dict[bytes, Found] = {}  # few: the numbers of tokens differ, and those are small

    def look(self, body: bytes) -> Found | None:
        """Return what `at_a_glance` does, unless `has_missed` tells otherwise."""
        at = self._text_at
        if body[at - len(TEXT_BEGINS) : at] != TEXT_BEGINS:
            at = body.find(TEXT_BEGINS, 0, TEXT_BEGINS_WITHIN) + len(TEXT_BEGINS)
            if at < len(TEXT_BEGINS):
                return _of_end(body)
            self._text_at = at
        end = body.find(b'"', at)
        if end < 0:
            return None
        self.before.append(body[:at])
        tail = body[end:]
        found = self._tails.get(tail)
        if found is None:
            found = _of_end(tail)
            if found is not None and len(tail) <= TAIL_LIMIT:
                if len(self._tails) >= TAILS_KEPT:
                    self._tails.clear()
                self._tails[tail] = found
        return found

    def has_missed(self) -> bool:
        """Return whether one of the answers since the last call has one of the words in front of its text."""
        before = b"".join(self.before)
        self.before.clear()
        return before.find(b'"usage"') >= 0 or _has_others(before)


def at_a_glance_in_chunks(body: bytes) -> Found | None:
    """Return the same of an answer as it came in chunks. Those of more than one take a closer look: they may cut words.

    The frame of the only one needs no removing.
    """
    if not body.endswith(OBJECT_END_IN_CHUNKS) or body.count(b"\r\n") > LINES_OF_ONE_CHUNK:
        return None
    return at_a_glance(body[: 1 - len(OBJECT_END_IN_CHUNKS)])


def _of_end(body: bytes) -> Found | None:
    """Return what the end of an answer says."""
    if _has_others(body):
        return None
    at = body.rfind(b'"usage"')
    if at < 0:
        return NOTHING
    return _of_last_member(body[at - 1 : -1]) if at and body.endswith(b"}") and len(body) - at <= TAIL_LIMIT else None


def _has_others(text: bytes) -> bool:
    return text.find(b'"timings"') >= 0 or text.find(b'"metrics"') >= 0  # `in` takes half as long again


@lru_cache(maxsize=2048)
def _of_last_member(tail: bytes) -> Found | None:
    """Return what `usage` says, if this is all of it, with the byte in front and without the brace behind."""
    try:
        text = tail.decode()
        usage, end = scan(text, 9)
    except UNREADABLE:
        return None
    # No backslash stands in front, as in a text that only looks like a key.
    if end != len(text) or text[8] != ":" or text[0] == "\\" or usage.__class__ is not dict:
        return None
    prompt, output, cached = counts(usage)
    return Tokens(-1 if cached is None else cached, -1, -1, prompt or 0, output or 0, -1.0, -1.0), 0.0


_of_tail = lru_cache(maxsize=2048)(_of_end)
