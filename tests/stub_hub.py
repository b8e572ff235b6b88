"""A hub on this machine that answers as it is told to: files of one repository, errors, silence, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StubHub:
    """Serves the files of a folder as the repository `someone/tiny`.

    Attributes:
        mood: "well", an HTTP status to answer everything with, "hangs", or "cuts" (half a file, then the end).
        last_answers: requests that are still answered before it hangs up; None for all.
        asked: method and file of each request.
        sent: bytes of each file that were sent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.mood = folder, "well"
        self.last_answers: int | None = None
        self.asked: list[str] = []
        self.sent: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[StubHub]:
        """Serve until the block ends."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _listing(self, url: str) -> bytes | None:
        """The hub's answer to a question for the files of a folder; None for other questions and no such folder."""
        _, is_asked, place = urlsplit(url).path.partition("/tree/")
        name = place.partition("/")[2]
        if not is_asked or not (self.folder / name).is_dir():
            return None
        files = [
            {"path": f"{name}/{path.name}".lstrip("/"), "type": "file", "size": path.stat().st_size, "oid": ""}
            for path in (self.folder / name).iterdir()
            if path.is_file()
        ]
        return json.dumps(files).encode()

    def _answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        path = self.folder / request.path.split("/resolve/", 1)[-1].split("/", 1)[-1]
        self.asked.append(f"{request.command} {path.name}")
        if self.last_answers is not None:
            self.last_answers -= 1
            if self.last_answers < 0:
                request.connection.close()
                return
        if self.mood == "hangs":
            time.sleep(30)
            return
        listed = self._listing(request.path)
        found = listed is not None or path.is_file()
        status = int(self.mood) if self.mood.isdigit() else 200 if found else 404
        content = b"" if status != 200 else path.read_bytes() if listed is None else listed
        first, _, last = request.headers.get("range", "").removeprefix("bytes=").partition("-")
        if first and status == 200:
            content, status = content[int(first) : int(last) + 1], 206
        request.send_response(status)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content)))
        if status == 404:
            request.send_header("X-Error-Code", "EntryNotFound")
        request.end_headers()
        if with_body:
            self.sent[path.name] += len(content)
            request.wfile.write(content[: len(content) // 2] if self.mood == "cuts" else content)
