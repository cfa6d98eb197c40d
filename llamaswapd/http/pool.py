"""Which connections the requests for a `proxy` take: those to its origin, shared by all who have the same limits."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http.upstream import Origin, OriginPool


class Base(NamedTuple):
    """Where the requests for a `proxy` go."""

    pool: OriginPool
    prefix: str  # of paths
    query: str  # that belongs to every target; "" for most

    def target(self, target: str) -> str:
        """Return the path and query that the server sees of a client's."""
        if not self.query:
            return self.prefix + target
        path, _, query = target.partition("?")
        return f"{self.prefix}{path}?{self.query}{'&' if query else ''}{query}"


class Pool:
    """The connections to all models' servers and peers."""

    def __init__(self) -> None:
        self._by_url: dict[tuple[str, Timeouts], Base] = {}
        self._by_origin: dict[tuple[Origin, Timeouts], OriginPool] = {}

    def of(self, url: str, timeouts: Timeouts) -> Base:
        """Return the connections for a `proxy`, and what it makes of targets; raises UpstreamError."""
        found = self._by_url.get((url, timeouts))
        if found is None:
            origin, prefix, query = parse_base(url)
            pool = self._by_origin.setdefault((origin, timeouts), OriginPool(origin, timeouts))
            if pool.by_way is not None and not origin.tls:
                prefix = f"{origin}{prefix}"  # a proxy is asked with whole URLs (RFC 9112 section 3.2.2)
            found = self._by_url[url, timeouts] = Base(pool, prefix, query)
        return found

    def close(self) -> None:
        """Close the idle connections; those at work end with their requests."""
        for pool in self._by_origin.values():
            pool.close()


def parse_base(url: str) -> tuple[Origin, str, str]:
    """Take a `proxy` URL apart: where to connect, the path prefix without a slash at its end, the query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UpstreamError(f'proxy "{url}" is not a URL: {error}') from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamError(f'proxy "{url}" is not a URL of the form http://host:port')
    tls = parts.scheme == "https"
    return Origin(parts.hostname, port or (443 if tls else 80), tls), parts.path.rstrip("/"), parts.query
