"""Talks to tcp_server.py and prints what it hears: tcp_client.py HOST PORT [PROXY_HOST PROXY_PORT]."""

import hashlib
import socket
import sys
import threading

host, port = sys.argv[1], int(sys.argv[2])
proxy = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else None


def connect():
    if proxy is None:
        tcp = socket.create_connection((host, port), timeout=30)
    else:
        tcp = socket.create_connection(proxy, timeout=30)
        tcp.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = tcp.recv(1)
            assert byte, head
            head += byte
        assert head.startswith(b"HTTP/1.1 200"), head
    return tcp


def line(tcp):
    text = b""
    while not text.endswith(b"\n"):
        byte = tcp.recv(1)
        if not byte:
            return text, "end"
        text += byte
    return text


def rest(tcp):
    digest, length = hashlib.sha256(), 0
    try:
        while chunk := tcp.recv(65536):
            digest.update(chunk)
            length += len(chunk)
        return length, digest.hexdigest(), "end"
    except ConnectionResetError:
        return length, "reset"


tcp = connect()
print("greeting", line(tcp))
for text in [b"echo one", b"echo two three", b"nonsense", b"quit"]:
    tcp.sendall(text + b"\n")
    print(text, line(tcp))
print("after quit", rest(tcp))

tcp = connect()
print("greeting", line(tcp))
tcp.sendall(b"sum\nabc")
tcp.shutdown(socket.SHUT_WR)
print("half-close", line(tcp), rest(tcp))

tcp = connect()
print("greeting", line(tcp))
tcp.sendall(b"give 256\n")
print("much from the server", rest(tcp))

tcp = connect()
print("greeting", line(tcp))
data = b"".join(bytes([number % 241]) * 4096 for number in range(4096))
sending = threading.Thread(target=lambda: (tcp.sendall(b"sum\n" + data), tcp.shutdown(socket.SHUT_WR)))
sending.start()
print("much from the client", line(tcp), rest(tcp))
sending.join()

many = [connect() for _ in range(50)]
print("fifty at once", {line(tcp) for tcp in many})
for number, tcp in enumerate(many):
    tcp.sendall(b"echo %d\n" % number)
print("each its own", all(line(tcp) == b"%d\n" % number for number, tcp in enumerate(many)))
