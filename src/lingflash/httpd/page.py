"""The page for a browser: the static files of `web/` under /ui, and what this server has for it.

Nothing on it comes from another origin, and the browser is told to allow nothing else: no inline
script or style, no frame around it, no request elsewhere. A server that does not install it has no
route for it.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request, Response

from lingflash.core.errors import NotFoundError
from lingflash.httpd.body import json_response

PAGE_PATH = "/ui"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a newer server's files are seen at once; the tag saves the bytes
    "vary": "accept-encoding",
}
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}


@dataclass(frozen=True, slots=True)
class _File:
    content_type: str
    tag: str
    plain: bytes
    packed: bytes


def install_page(
    app: FastAPI,
    server: str,
    screens: Sequence[str],
    *,
    needs_key: bool,
    features: Sequence[str] = (),
) -> None:
    """Add the page's routes.

    Args:
        server: what the page calls whoever serves it, such as "ling serve".
        screens: names in `SCREENS` of `web/app.js`; the page has these and no others, so a screen
            is named by the server whose routes it needs.
        needs_key: whether the API takes one, so that the page asks for it.
        features: names in `FEATURES` of `web/lib/server.js`: what screens may ask for that not
            every server has.
    """
    # What a page that has no key yet must know.
    about = {
        "server": server,
        "version": installed_version(),
        "needs_key": needs_key,
        "screens": list(screens),
        "features": list(features),
    }

    @app.get(PAGE_PATH, include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, _files()["index.html"])

    @app.get(PAGE_PATH + "/server.json", include_in_schema=False)
    async def server_json() -> Response:
        return json_response(about, headers=_HEADERS)

    @app.get(PAGE_PATH + "/{name:path}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        """One of the files that there are; a name is looked up, never opened."""
        found = _files().get(name)
        if found is None:
            raise NotFoundError(f"The page has no file {name!r}.")
        return _answer(request, found)


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.tag, "content-type": file.content_type}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.plain, headers=headers)
    return Response(file.packed, headers={**headers, "content-encoding": "gzip"})


@functools.cache
def _files() -> dict[str, _File]:
    """Every file by its path under `web/`; read when the first is asked for."""
    return dict(_read(files("lingflash") / "web", ""))


def _read(folder: Traversable, prefix: str) -> list[tuple[str, _File]]:
    found: list[tuple[str, _File]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
            continue
        suffix = entry.name[entry.name.rfind(".") :]
        kind = _TYPES.get(suffix) or mimetypes.guess_type(entry.name)[0] or "text/plain"
        data = entry.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        file = _File(f"{kind}; charset=utf-8", tag, data, gzip.compress(data, mtime=0))
        found.append((prefix + entry.name, file))
    return found


def installed_version() -> str:
    """The version of this package."""
    try:
        return version("lingflash")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"
