"""The web interface: the files of a folder, as they are. What they do is done in the browser, by the API."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web

from llamaswapd.http.gate import no_route

FOLDER = Path(__file__).parents[1] / "ui"
PAGE = "index.html"
PACKED = ".br"

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}

# What is shown comes from models and clients: should any of it ever be taken for a script, it must not run.
HEADERS = {
    "Cache-Control": "no-cache",  # ask each time, by the ETag
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent. `packed` is the same for who takes brotli."""

    body: bytes
    content_type: str
    packed: bytes | None = None


class Ui:
    """Handlers of `/ui/` and `/favicon.ico`. The folder is read once, when somebody first asks for one of its files.

    No path of a request ever gets near the file system: it is looked up among the names that the folder had.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._files: Mapping[str, File] = {}

    async def file(self, request: web.Request) -> web.Response:
        """Answer with the file that the path names; with the page if it could be one of its views."""
        name = unquote(request.rel_url.raw_path.removeprefix("/ui/"))
        return await self._answer(request, name)

    async def favicon(self, request: web.Request) -> web.Response:
        """Answer with the icon, which browsers would ask for again at every turn."""
        answer = await self._answer(request, "favicon.ico")
        answer.headers["Cache-Control"] = "max-age=86400"
        return answer

    async def _answer(self, request: web.Request, name: str) -> web.Response:
        if not self._files:
            self._files = await asyncio.to_thread(read_files, self._folder)
        file = self._files.get(name)
        if file is None and may_be_view(name):
            file = self._files.get(PAGE)
        if file is None:
            return no_route(web.HTTPNotFound())
        return file_answer(request, file)


def read_files(folder: Path) -> dict[str, File]:
    """Return what is below a folder: path → file, with the packed form of those that have one beside them."""
    bodies = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: File(body, content_type(name), bodies.get(name + PACKED))
        for name, body in bodies.items()
        if not (name.endswith(PACKED) and name.removesuffix(PACKED) in bodies)
    }


def content_type(name: str) -> str:
    return CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream")


def may_be_view(name: str) -> bool:
    """Whether a path is no file's, but may be a view of the page that somebody has kept."""
    *folders, last = name.split("/")
    return "." not in last and ".." not in folders


def file_answer(request: web.Request, file: File) -> web.Response:
    """Return a file, or that the client has it already."""
    packed = file.packed if accepts_brotli(request.headers.get("Accept-Encoding", "")) else None
    body = file.body if packed is None else packed
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {**HEADERS, "ETag": f'"{tag}"'}
    if file.packed is not None:
        headers["Vary"] = "Accept-Encoding"
    known = request.if_none_match or ()
    if any(entry.value in (tag, "*") for entry in known):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = file.content_type
    if packed is not None:
        headers["Content-Encoding"] = "br"
    return web.Response(body=body, headers=headers)


_BROTLI = re.compile(r"br(?:[ \t]*;[ \t]*q=([0-9.]+))?", re.ASCII | re.IGNORECASE)


def accepts_brotli(accept_encoding: str) -> bool:
    """Whether brotli is among the encodings of this header, RFC 9110 section 12.5.3, and not with a weight of 0."""
    found = [match for entry in accept_encoding.split(",") if (match := _BROTLI.fullmatch(entry.strip(" \t")))]
    return any((match[1] or "1").strip("0.") for match in found)
