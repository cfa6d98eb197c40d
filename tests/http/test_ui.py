from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from standins import Engine, house

from llamaswapd.http.ui import FOLDER, Ui, accepts_brotli, file_answer, read_files

KEY = "Authorization: Basic " + base64.b64encode(b"anybody:k").decode()
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())

# What makes a browser fetch something, or run something that no file of ours holds.
OUTSIDE = re.compile(r"https?://(?!www\.w3\.org/)|//cdn|\bimport\(|\beval\(|innerHTML|outerHTML|insertAdjacentHTML")


def request(path: str, **headers: str) -> web.Request:
    return make_mocked_request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})


# ---- files


@pytest.mark.parametrize(
    ("path", "name", "content_type"),
    [
        ("/ui/", "index.html", "text/html; charset=utf-8"),
        ("/ui/index.html", "index.html", "text/html; charset=utf-8"),
        ("/ui/app.js", "app.js", "text/javascript; charset=utf-8"),
        ("/ui/%61pp.js?v=1", "app.js", "text/javascript; charset=utf-8"),
        ("/ui/style.css", "style.css", "text/css; charset=utf-8"),
        ("/ui/icon.svg", "icon.svg", "image/svg+xml"),
        ("/favicon.ico", "favicon.ico", "image/x-icon"),
    ],
)
async def test_a_file_is_sent_as_it_is(path: str, name: str, content_type: str) -> None:
    async with house(Engine()) as it:
        get, head = await it.ask(path), await it.ask(path, method="HEAD")
    body = (FOLDER / name).read_bytes()
    assert (get.status, get.headers["content-type"], get.body) == (200, content_type, body)
    assert (head.status, head.headers["content-length"]) == (200, str(len(body)))
    assert "vary" not in get.headers


@pytest.mark.parametrize("path", ["/ui/models", "/ui/logs/org%2Fm", "/ui/a/b.c/d", "/ui/models?x=a.b"])
async def test_what_may_be_a_view_gets_the_page(path: str) -> None:
    async with house(Engine()) as it:
        answer = await it.ask(path)
    assert (answer.status, answer.body) == (200, (FOLDER / "index.html").read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "/ui/none.js",
        "/ui/models/app.js",
        "/ui/app.js/x.y",
        "/ui/..%2f__init__.py",
        "/ui/..%2f..%2fetc%2fpasswd",
        "/ui/%2e%2e/%2e%2e/etc/passwd",
        "/ui/%2fetc%2fhost.conf",
        "/ui/app.js%00",
        "/ui/.%2e%5c..%5cx",
    ],
)
async def test_no_other_path_leads_to_a_file(path: str) -> None:
    async with house(Engine()) as it:
        answer = await it.ask(path)
        while answer.status == 307:  # to the cleaned path
            answer = await it.ask(answer.headers["location"])
    assert (answer.status, answer.body) == (404, b"404 page not found\n")


async def test_the_page_is_only_got() -> None:
    async with house(Engine()) as it:
        answer = await it.ask("/ui/", method="POST")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_the_folder_is_read_once_and_not_before_it_is_needed(tmp_path: Path) -> None:
    handlers = Ui(tmp_path)
    (tmp_path / "index.html").write_text("first")
    assert (await handlers.file(request("/ui/"))).body == b"first"
    (tmp_path / "index.html").write_text("second")
    assert (await handlers.file(request("/ui/"))).body == b"first"


# ---- caching


async def test_a_file_is_asked_for_each_time_but_the_icon_once_a_day() -> None:
    async with house(Engine()) as it:
        assert (await it.ask("/ui/app.js")).headers["cache-control"] == "no-cache"
        assert (await it.ask("/ui/")).headers["cache-control"] == "no-cache"
        assert (await it.ask("/favicon.ico")).headers["cache-control"] == "max-age=86400"


async def test_who_has_a_file_is_told_so() -> None:
    async with house(Engine()) as it:
        tag = (await it.ask("/ui/app.js")).headers["etag"]
        other = (await it.ask("/ui/style.css")).headers["etag"]
        for known in (tag, f"W/{tag}", f"{other}, {tag}", "*"):
            answer = await it.ask("/ui/app.js", f"If-None-Match: {known}")
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
        for known in (other, tag.strip('"'), "nonsense"):
            assert (await it.ask("/ui/app.js", f"If-None-Match: {known}")).status == 200


def test_a_packed_form_beside_a_file_is_sent_to_who_takes_it(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/a.js").write_bytes(b"plain")
    (tmp_path / "assets/a.js.br").write_bytes(b"packed")
    (tmp_path / "lone.br").write_bytes(b"x")
    files = read_files(tmp_path)
    assert files.keys() == {"assets/a.js", "lone.br"}
    plain = file_answer(request("/"), files["assets/a.js"])
    packed = file_answer(request("/", Accept_Encoding="gzip, br"), files["assets/a.js"])
    assert (plain.body, packed.body) == (b"plain", b"packed")
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "br"
    for answer in (plain, packed):
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert answer.headers["Content-Type"].startswith("text/javascript")
    assert plain.headers["ETag"] != packed.headers["ETag"]
    known = file_answer(request("/", If_None_Match=packed.headers["ETag"], Accept_Encoding="br"), files["assets/a.js"])
    assert (known.status, known.headers["Vary"]) == (304, "Accept-Encoding")


@pytest.mark.parametrize(
    ("accept_encoding", "accepts"),
    [
        ("br", True),
        ("gzip, BR ;q=0.5", True),
        ("br;q=1.0", True),
        ("", False),
        ("gzip", False),
        ("brx, xbr", False),
        ("br;q=0", False),
        ("br;q=0.000, gzip", False),
    ],
)
def test_brotli_is_taken_by_who_says_so(accept_encoding: str, accepts: bool) -> None:
    assert accepts_brotli(accept_encoding) is accepts


# ---- safety


async def test_the_interface_needs_a_key_and_the_icon_none() -> None:
    async with house(Engine(api_keys=("k",))) as it:
        for path in ("/ui/", "/ui/app.js", "/ui/models", "/ui/none.js"):
            refused = await it.ask(path)
            assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="llama-swap"')
        assert (await it.ask("/ui/", KEY)).status == 200
        assert (await it.ask("/favicon.ico")).status == 200
        assert (await it.ask("/ui")).status == 307


async def test_a_browser_is_told_to_run_nothing_but_these_files() -> None:
    async with house(Engine()) as it:
        for path in ("/ui/", "/ui/app.js", "/favicon.ico"):
            headers = (await it.ask(path)).headers
            assert headers["content-security-policy"].startswith("default-src 'self';")
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".ico")])
def test_a_file_needs_nothing_from_elsewhere_and_takes_no_data_for_html(name: str) -> None:
    assert not OUTSIDE.search((FOLDER / name).read_text())


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    page = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script[^>]*>(?!</script>)", page) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:", page) == []


def test_all_files_that_are_named_are_there() -> None:
    named = set()
    for name in NAMES:
        if name.endswith((".html", ".js")):
            text = (FOLDER / name).read_text()
            named |= set(re.findall(r'"(?:/ui/|\./)([a-z]+\.[a-z]+)"', text))
    assert named == set(NAMES) - {"index.html", "favicon.ico"}


def test_every_part_of_the_page_that_a_script_asks_for_is_there() -> None:
    page = (FOLDER / "index.html").read_text()
    parts = set(re.findall(r'\sid="([^"]+)"', page))
    asked = {id_ for path in FOLDER.glob("*.js") for id_ in re.findall(r'\$\("([^"]+)"\)', path.read_text())}
    assert asked <= parts
    assert len(asked) > 30
