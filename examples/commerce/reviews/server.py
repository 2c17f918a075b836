#!/usr/bin/env python3
"""The reviews service: what customers say about a product. Python's standard library and nothing else.

    GET  /reviews?sku=SKU[&limit=20][&offset=0]   count, average and reviews, newest first
    GET  /reviews/ID                              one review
    POST /reviews                                 {"sku", "author", "stars", "title", "body"}: 201 with Location; the same
                                                  words by the same author again: 200 with the review that is there
    GET  /healthz                                 200 when the database answers

Errors are application/problem+json (RFC 9457). Settings: HOST (127.0.0.1), PORT (7103), DATA_DIR (.commerce/reviews);
`--host`, `--port`, `--data-dir` say the same. SIGTERM finishes the requests in flight; a second one stops at once.
"""

import argparse
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

CATALOGUE = Path(__file__).resolve().parent.parent / "catalogue.json"
MAX_BODY = 64 * 1024
MAX_LIMIT = 100
# An idle connection is kept for a client's next request; one that sends half a request is not kept for ever.
IDLE_SECONDS = 60
SKU = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")
LENGTHS = {"author": 60, "title": 120, "body": 4000}
COLUMNS = "id, sku, author, stars, title, body, created_at"

SCHEMA = """
CREATE TABLE IF NOT EXISTS review (
    id INTEGER PRIMARY KEY,
    sku TEXT NOT NULL,
    author TEXT NOT NULL,
    stars INTEGER NOT NULL CHECK (stars BETWEEN 1 AND 5),
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (sku, author, title, body)
);
CREATE INDEX IF NOT EXISTS review_by_sku ON review (sku, id);
"""


def log(level, message, **fields):
    """One JSON line on stderr."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"timestamp": now, "level": level, "message": message, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Problem(Exception):
    """An answer that refuses."""

    def __init__(self, status, detail, errors=(), headers=()):
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), list(headers)


class Store:
    """Reviews in SQLite. One connection behind a lock: a request holds it for well under a millisecond."""

    def __init__(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA cache_size = -1024")

    def start(self, seeds):
        """Creates the schema and, in a database that never had it, the first reviews: both or neither."""
        with self.lock:
            if self.db.execute("PRAGMA user_version").fetchone()[0] > 0:
                return
            self.db.executescript("BEGIN IMMEDIATE;" + SCHEMA)
            for review in seeds:
                self._insert(review)
            self.db.execute("PRAGMA user_version = 1")
            self.db.execute("COMMIT")

    def _insert(self, review):
        now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        values = [review[name] for name in ("sku", "author", "stars", "title", "body")]
        cursor = self.db.execute(
            "INSERT INTO review (sku, author, stars, title, body, created_at) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING", values + [now])
        return cursor.rowcount > 0

    def add(self, review):
        """(the review as stored, whether it is new)"""
        with self.lock:
            created = self._insert(review)
            row = self.db.execute(
                f"SELECT {COLUMNS} FROM review WHERE sku = ? AND author = ? AND title = ? AND body = ?",
                [review[name] for name in ("sku", "author", "title", "body")]).fetchone()
        return shown(row), created

    def get(self, number):
        with self.lock:
            row = self.db.execute(f"SELECT {COLUMNS} FROM review WHERE id = ?", [number]).fetchone()
        return shown(row) if row else None

    def page(self, sku, limit, offset):
        with self.lock:
            count, average = self.db.execute(
                "SELECT count(*), avg(stars) FROM review WHERE sku = ?", [sku]).fetchone()
            rows = self.db.execute(
                f"SELECT {COLUMNS} FROM review WHERE sku = ? ORDER BY id DESC LIMIT ? OFFSET ?",
                [sku, limit, offset]).fetchall()
        average = None if average is None else round(average, 2)
        return {"sku": sku, "count": count, "average": average, "items": [shown(row) for row in rows]}

    def check(self):
        with self.lock:
            return self.db.execute("SELECT count(*) FROM review").fetchone()[0]

    def close(self):
        with self.lock:
            self.db.close()


def shown(row):
    review = dict(row)
    review["createdAt"] = review.pop("created_at")
    return review


def validated(value):
    """The review in `value`; raises a Problem that names every field at fault."""
    if not isinstance(value, dict):
        raise Problem(422, "The body must be a JSON object.")
    errors = []

    def wrong(field, message):
        errors.append({"field": field, "message": message})

    known = ("sku", "author", "stars", "title", "body")
    for field in value:
        if field not in known:
            wrong(field, "is no field of a review; known are " + ", ".join(known))
    if not (isinstance(value.get("sku"), str) and SKU.match(value["sku"])):
        wrong("sku", "must be 1 to 32 letters, digits, '-', '_' or '.'")
    stars = value.get("stars")
    if isinstance(stars, bool) or not isinstance(stars, int) or not 1 <= stars <= 5:
        wrong("stars", "must be a whole number from 1 to 5")
    review = dict(value)
    for field, longest in LENGTHS.items():
        text = value.get(field)
        allowed = "\n\r\t" if field == "body" else ""
        if isinstance(text, str):
            review[field] = text = text.strip().replace("\r\n", "\n")
        if not isinstance(text, str) or not 1 <= len(text) <= longest:
            wrong(field, f"must be 1 to {longest} characters")
        elif any((c < " " or c == "\x7f") and c not in allowed for c in text):
            wrong(field, "must not hold control characters")
    if errors:
        fields = ", ".join(error["field"] for error in errors)
        raise Problem(422, f"Correct these fields and send the request again: {fields}.", errors)
    return review


def number_of(query, name, default, least, most):
    text = query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise Problem(400, f"{name}: must be a whole number from {least} to {most}.")
    return int(text)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    # An answer leaves in one segment, without waiting for the next.
    wbufsize = -1
    disable_nagle_algorithm = True

    def version_string(self):
        return "commerce-reviews"

    def handle_one_request(self):
        self.began = None
        super().handle_one_request()
        self.server.rests(self)

    def parse_request(self):
        # The request line has come: from here to the end of the answer the connection is at work.
        self.began = time.monotonic()
        self.server.works(self)
        return super().parse_request()

    def handle_expect_100(self):
        # The client waits for this line, so it cannot wait in our buffer.
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def do_GET(self):
        self.answer(self.get)

    do_HEAD = do_GET

    def do_POST(self):
        self.answer(self.post)

    def do_other(self):
        self.answer(self.refuse)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_other

    def refuse(self, path, query, body):
        raise Problem(405, f"{path} does not take {self.command}.", headers=[("Allow", "GET, HEAD, POST")])

    def answer(self, handle):
        try:
            try:
                body = self.read_body()
                target = urlsplit(self.path)
                status, value, headers = handle(target.path, dict(parse_qsl(target.query, keep_blank_values=True)), body)
            except sqlite3.Error as error:
                log("ERROR", "database request failed", error=str(error))
                raise Problem(500, "The database could not answer; the service's log says why.") from error
            except ValueError as error:
                raise Problem(400, f"The request's target cannot be read: {error}.") from error
            self.send(status, value, "application/json", headers)
        except Problem as problem:
            self.send_problem(problem)

    def send_problem(self, problem):
        value = {"status": problem.status, "title": self.responses[problem.status][0], "detail": problem.detail}
        if problem.errors:
            value["errors"] = problem.errors
        self.send(problem.status, value, "application/problem+json", problem.headers)

    def send_error(self, code, message=None, explain=None):
        """What the library refuses before a method of ours is called: bad request lines, unknown methods."""
        self.close_connection = True
        self.send_problem(Problem(int(code), message or self.responses[int(code)][1]))

    def read_body(self):
        """The body, always read whole, because what is left of it would be taken for the next request."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers:
            if lengths or self.headers["Transfer-Encoding"].strip().lower() != "chunked":
                self.close_connection = True
                raise Problem(400, "Transfer-Encoding: only chunked is taken, and no Content-Length with it.")
            return self.read_chunks()
        if not lengths:
            return b""
        if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0].strip()):
            self.close_connection = True
            raise Problem(400, "Content-Length: must be one whole number.")
        if int(lengths[0]) > MAX_BODY:
            self.close_connection = True
            raise Problem(413, f"A review has at most {MAX_BODY} bytes.")
        return self.exactly(int(lengths[0]))

    def read_chunks(self):
        body = b""
        while True:
            size = re.fullmatch(rb"([0-9A-Fa-f]{1,8})(;[^\r\n]*)?\r\n", self.rfile.readline(1024))
            if not size:
                self.close_connection = True
                raise Problem(400, "A chunk's size cannot be read.")
            length = int(size[1], 16)
            if len(body) + length > MAX_BODY:
                self.close_connection = True
                raise Problem(413, f"A review has at most {MAX_BODY} bytes.")
            if length == 0:
                break
            body += self.exactly(length)
            if self.exactly(2) != b"\r\n":
                self.close_connection = True
                raise Problem(400, "A chunk does not end where its size says.")
        for _ in range(64):
            if self.rfile.readline(8192) in (b"\r\n", b""):
                return body
        self.close_connection = True
        raise Problem(400, "There are too many trailers.")

    def exactly(self, length):
        data = self.rfile.read(length)
        if len(data) < length:
            self.close_connection = True
            raise Problem(400, "The body ended too early.")
        return data

    def get(self, path, query, body):
        store = self.server.store
        if path == "/healthz":
            return 200, {"status": "ok", "reviews": store.check()}, []
        if path == "/reviews":
            unknown = set(query) - {"sku", "limit", "offset"}
            if unknown:
                raise Problem(400, f"{sorted(unknown)[0]}: is no parameter; known are sku, limit, offset.")
            if not SKU.match(query.get("sku", "")):
                raise Problem(400, "sku: say which product's reviews, as in /reviews?sku=TE1001.")
            limit = number_of(query, "limit", 20, 1, MAX_LIMIT)
            offset = number_of(query, "offset", 0, 0, 10**9 - 1)
            return 200, store.page(query["sku"], limit, offset), []
        found = re.fullmatch(r"/reviews/([0-9]{1,15})", path)
        review = store.get(int(found[1])) if found else None
        if review is None:
            raise Problem(404, f"There is nothing at {path}.")
        return 200, review, []

    def post(self, path, query, body):
        if path != "/reviews":
            known = path == "/healthz" or re.fullmatch(r"/reviews/[0-9]+", path)
            if known:
                raise Problem(405, f"{path} does not take POST.", headers=[("Allow", "GET, HEAD")])
            raise Problem(404, f"There is nothing at {path}.")
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else ""
        if kind != "application/json":
            raise Problem(415, "Send the review as application/json.")
        try:
            value = json.loads(body)
            # JSON can spell half a character (a lone surrogate), which no other program takes from us.
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"The body is no JSON: {error}") from error
        review, created = self.server.store.add(validated(value))
        return (201 if created else 200), review, [("Location", f"/reviews/{review['id']}")]

    def send(self, status, value, kind, headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers:
            self.send_header(name, text)
        if self.server.stopping:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        path = getattr(self, "path", "").partition("?")[0]
        if path == "/healthz":
            return
        micros = int((time.monotonic() - self.began) * 1e6) if self.began else 0
        fields = {"method": self.command, "path": path, "status": int(code), "micros": micros}
        for field, header in (("request_id", "x-request-id"), ("traceparent", "traceparent")):
            if getattr(self, "headers", None) and self.headers.get(header):
                fields[field] = self.headers[header]
        log("INFO", "request", **fields)

    def log_error(self, format, *args):
        # That a client lets a connection rest for long is no error.
        if not (args and isinstance(args[0], TimeoutError)):
            super().log_error(format, *args)

    def log_message(self, format, *args):
        log("WARN", format % args)


class Server(ThreadingHTTPServer):
    """Knows which connections rest between requests, so that a stop waits for the others alone."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, address, store):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.store = store
        self.stopping = False
        self.lock = threading.Lock()
        self.resting = set()
        super().__init__(address, Handler)

    def server_bind(self):
        # HTTPServer asks the resolver for the host's name here, which nobody needs and which can take seconds.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request, client_address):
        with self.lock:
            self.resting.add(request)
        super().process_request(request, client_address)

    def works(self, handler):
        with self.lock:
            self.resting.discard(handler.connection)

    def rests(self, handler):
        with self.lock:
            if self.stopping:
                handler.close_connection = True
            elif not handler.close_connection:
                self.resting.add(handler.connection)

    def shutdown_request(self, request):
        with self.lock:
            self.resting.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            log("ERROR", "request failed", error=repr(error))

    def stop(self):
        """Ends the connections that rest. Shut for reading only: a request that has come already is still read."""
        with self.lock:
            self.stopping = True
            for connection in self.resting:
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    pass
        self.shutdown()


def main():
    parser = argparse.ArgumentParser(description="The reviews service of the reference shop.")
    parser.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 7103))
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("DATA_DIR") or ".commerce/reviews"))
    settings = parser.parse_args()
    try:
        store = Store(settings.data_dir / "reviews.sqlite")
        seeds = []
        if CATALOGUE.exists():
            seeds = json.loads(CATALOGUE.read_text(encoding="utf-8"))["reviews"]
        else:
            log("WARN", "no catalogue beside the program: a new database starts without reviews", path=str(CATALOGUE))
        store.start(seeds)
        server = Server((settings.host, settings.port), store)
    except (OSError, ValueError, KeyError, sqlite3.Error) as error:
        log("ERROR", "cannot start", error=str(error))
        return 1

    def on_signal(number, frame):
        if server.stopping:
            os._exit(1)
        log("INFO", "stopping: requests in flight are finished, new ones refused")
        # shutdown() waits for the loop that this handler interrupts, so another thread calls it.
        threading.Thread(target=server.stop).start()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    host = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    log("INFO", "listening", service="reviews", address=f"{host}:{server.server_port}")
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    store.close()
    log("INFO", "stopped", service="reviews")
    return 0


if __name__ == "__main__":
    sys.exit(main())
