"""A local server of files, with the faults of a real one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves files by path; each may be cut, changed or missing for its first requests."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.url = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    server = Server(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/files/")
            server.requests.append(path)
            pending = server.faults.get(path, [])
            fault = pending.pop(0) if pending else ""
            content = server.files.get(path)
            if content is None or fault == "missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
            else:
                self.wfile.write(content[::-1] if fault == "corrupt" else content)

        def log_message(self, *arguments: object) -> None:
            pass

    class Patient(ThreadingHTTPServer):
        request_queue_size = 64  # eight connections at once and a busy machine

    http = Patient(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/files"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
