"""A web server of a folder whose faults a test chooses, and the list of what was asked of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

# (path, how often it was asked before) -> bytes to send of the file at most; -1 for all, None for a 404, -503 for a 503
Fault = Callable[[str, int], int | None]


@dataclass
class Server:
    folder: Path
    fault: Fault = lambda path, before: -1
    pause_s: float = 0.0  # after each 16 KiB of a tar
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def tars(self) -> list[str]:
        return [name for name in self.asked if name.endswith(".tar")]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(self.path.partition("?")[0]).lstrip("/")
            server.asked.append(name)
            most = server.fault(name, counts[name])
            counts[name] += 1
            if most is None or most < -1 or not (folder / name).is_file():
                self.send_error(-most if most is not None and most < -1 else 404)
                return
            data = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            sent = data if most < 0 else data[:most]
            for at in range(0, len(sent), 1 << 14):
                try:
                    self.wfile.write(sent[at : at + (1 << 14)])
                except OSError:
                    return
                if server.pause_s and name.endswith(".tar"):
                    time.sleep(server.pause_s)

        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
