"""A server that speaks first, and no HTTP: greets, then obeys one command a line."""

import hashlib
import os
import socketserver


class Serve(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 ready\n")
        for line in self.rfile:
            command, _, rest = line.strip().partition(b" ")
            if command == b"echo":
                self.wfile.write(rest + b"\n")
            elif command == b"sum":
                # Everything until the caller has said all it had to say.
                digest, length = hashlib.sha256(), 0
                while chunk := self.rfile.read1(65536):
                    digest.update(chunk)
                    length += len(chunk)
                self.wfile.write(b"%d %s\n" % (length, digest.hexdigest().encode()))
                return
            elif command == b"give":
                for number in range(int(rest)):
                    self.wfile.write(bytes([number % 251]) * 65536)
                return
            elif command == b"quit":
                self.wfile.write(b"221 bye\n")
                return
            else:
                self.wfile.write(b"500 what?\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server((os.environ["HOST"], int(os.environ["PORT"])), Serve).serve_forever()
