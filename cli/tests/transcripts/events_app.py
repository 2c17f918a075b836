"""Server-sent events, one at a time: the next one comes when the client says that it has the one before."""
import http.server, os, threading
from urllib.parse import parse_qs, urlsplit

steps = {}

def step(name):
    return steps.setdefault(name, threading.Event())

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/events":
            self.events(query["run"])
        elif url.path == "/until":
            self.answer(b"yes" if step(query["step"]).wait(30) else b"no")
        else:
            step(query["step"]).set()
            self.answer(b"went on")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def events(self, run):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        begin = int(self.headers.get("last-event-id") or 0)
        try:
            for number in range(begin + 1, begin + 6):
                self.chunk(f"id: {number}\nevent: tick\ndata: {number}\ndata: žluť {'x' * number * 1000}\n\n".encode())
                if not step(f"{run}/{number}").wait(30):
                    return
            while run.endswith("endless"):
                self.chunk(b": still here\n\n")
        except OSError:
            step(f"{run}/gone").set()
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
