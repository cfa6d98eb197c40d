from __future__ import annotations

import pytest

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http.pool import Pool, parse_base
from llamaswapd.http.upstream import Origin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:5800", (Origin("localhost", 5800, False), "")),
        ("http://localhost/", (Origin("localhost", 80, False), "")),
        ("https://gpu.example/v2/", (Origin("gpu.example", 443, True), "/v2")),
        ("http://[::1]:8080/a%2Fb", (Origin("::1", 8080, False), "/a%2Fb")),
    ],
)
def test_a_proxy_url_is_an_origin_and_a_prefix(url: str, expected: tuple[Origin, str]) -> None:
    assert parse_base(url)[:2] == expected


@pytest.mark.parametrize("url", ["", "localhost:5800", "ftp://x", "http://", "http://x:y", "http://x:99999"])
def test_what_is_no_proxy_url_is_named(url: str) -> None:
    with pytest.raises(UpstreamError, match='proxy "'):
        parse_base(url)


@pytest.mark.parametrize(
    ("url", "target", "seen"),
    [
        ("http://h/v1/", "/x?a=1", "/v1/x?a=1"),
        ("http://h/v1?api-version=2", "/x", "/v1/x?api-version=2"),
        ("http://h?api-version=2", "/x?a=1&b", "/x?api-version=2&a=1&b"),
    ],
)
async def test_path_and_query_of_a_base_belong_to_every_target(url: str, target: str, seen: str) -> None:
    assert Pool().of(url, Timeouts()).target(target) == seen
