"""Talks to websocket_app.py at ADDRESS:PORT and prints what happens, without anything that differs from run to run."""
import asyncio, base64, hashlib, os, struct, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

HOST, PORT = sys.argv[1].rsplit(":", 1)
NAME = sys.argv[2]
TOKEN = os.urandom(4).hex()

def say(*words):
    print(*words, flush=True)

def open(path, **options):
    options = {"compression": None, "max_size": None, "open_timeout": 60, "ping_interval": None} | options
    return connect(f"ws://{NAME}{path}", host=HOST, port=int(PORT), proxy=None, **options)

def brief(message):
    kind = "text" if isinstance(message, str) else "bytes"
    data = message.encode() if isinstance(message, str) else message
    return f"{kind} {len(data)} {hashlib.sha256(data).hexdigest()[:12]}"

async def messages():
    async with open("/echo", subprotocols=["chat", "super"]) as socket:
        say("subprotocol", socket.subprotocol, "extensions", socket.protocol.extensions)
        for message in ("", "hello", "\N{GRINNING FACE} ž \x00", b"\x00\xff" * 70_000, "x" * 125, "x" * 126, "x" * 65_536):
            await socket.send(message)
            say("echo", brief(await socket.recv()))
        async def parts():
            yield "one "
            pong = await socket.ping(b"between")
            yield "two "
            await pong
            yield "three"
        await socket.send(parts())
        say("fragments", await socket.recv())
        await (await socket.ping())
        await socket.close(1000, "bye")
        say("closed", socket.close_code, socket.close_reason)

async def large():
    data = os.urandom(1 << 20) * 6
    async with open("/echo") as socket:
        sending = asyncio.create_task(socket.send(data))
        say("large", len(got := await socket.recv()), got == data)
        await sending
    async with open("/push?mib=8") as socket:
        say("pushed", brief(await socket.recv()))

async def compressed():
    async with open("/echo", compression="deflate") as socket:
        say("extensions", [extension.name for extension in socket.protocol.extensions])
        for message in ("a" * 500_000, "short", "", os.urandom(100_000)):
            await socket.send(message)
            say("deflated", await socket.recv() == message)

async def by_server():
    for path in ("/close?code=1000", "/close?code=1001&reason=going", "/close?code=3000", "/close?code=4999&reason=%C5%BE", "/abort"):
        async with open(path) as socket:
            try:
                while True:
                    say(path, "got", brief(await socket.recv()))
            except ConnectionClosed:
                say(path, "closed", socket.close_code, socket.close_reason)
    async with open("/fragments") as socket:
        parts = [part async for part in socket.recv_streaming()]
        say("streamed", len(parts), "".join(parts))
        say("streamed", [len(part) async for part in socket.recv_streaming()])

async def refused():
    for status in (200, 403, 426):
        try:
            async with open(f"/refuse/{status}"):
                say("opened")
        except InvalidStatus as error:
            say("refused", error.response.status_code, error.response.body)

def frame(opcode, payload=b"", fin=True, rsv=0, mask=True):
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    size = len(payload)
    length = bytes([size]) if size < 126 else struct.pack(">BH", 126, size) if size < 65536 else struct.pack(">BQ", 127, size)
    if not mask:
        return head + length + payload
    key = b"\x01\x02\x03\x04"
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return head + bytes([length[0] | 0x80]) + length[1:] + key + masked

async def raw(path):
    reader, writer = await asyncio.open_connection(HOST, int(PORT))
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                 f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode() + guid).digest()).decode()
    assert f"sec-websocket-accept: {accept}".lower() in head.decode().lower(), head
    return reader, writer

async def frames(reader):
    """What arrives until the connection ends, and how it ends."""
    got = []
    try:
        while True:
            first, second = await reader.readexactly(2)
            size = second & 0x7f
            if size > 125:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
            payload = await reader.readexactly(size)
            code = int.from_bytes(payload[:2], "big") if first & 15 == 8 and payload else ""
            got.append(f"{'fin ' if first & 128 else ''}{first & 15} {code or payload[:20]}")
    except asyncio.IncompleteReadError as error:
        got.append(f"end after {len(error.partial)}")
    except ConnectionResetError:
        got.append("reset")
    return got

async def edges():
    split = "ž€😀".encode()
    cases = {
        "a code point over fragments": frame(1, split[:1], fin=False) + frame(0, split[1:4], fin=False) + frame(9, b"p") + frame(0, split[4:]) + frame(8, b"\x03\xe8"),
        "not UTF-8": frame(1, b"\xc3\x28"),
        "a surrogate": frame(1, b"\xed\xa0\x80"),
        "too long a form": frame(1, b"\xc0\xaf"),
        "beyond Unicode": frame(1, b"\xf4\x90\x80\x80"),
        "UTF-8 cut off": frame(1, b"\xe2\x82"),
        "a reserved opcode": frame(3, b"x"),
        "a reserved bit": frame(1, b"x", rsv=4),
        "not masked": frame(1, b"x", mask=False),
        "a long control frame": frame(9, b"x" * 126),
        "a control frame in fragments": frame(9, b"x", fin=False),
        "a continuation of nothing": frame(0, b"x"),
        "close without a code": frame(8),
        "close with one byte": frame(8, b"x"),
        "close 1001": frame(8, b"\x03\xe9away"),
        "close 4999": frame(8, b"\x13\x87"),
        "close 1005": frame(8, b"\x03\xed"),
        "close 999": frame(8, b"\x03\xe7"),
        "a reason that is not UTF-8": frame(8, b"\x03\xe8\xff"),
    }
    for name, data in cases.items():
        reader, writer = await raw("/echo")
        for byte in data if len(data) < 40 else [data]:
            writer.write(bytes([byte]) if isinstance(byte, int) else byte)
            await writer.drain()
        say(name, await frames(reader))
        writer.close()

async def abrupt():
    for name, end in (("in the middle of a frame", "abort"), ("between two frames", "abort"), ("half closed", "eof")):
        identifier = TOKEN + name.replace(" ", "-")
        reader, writer = await raw(f"/echo?id={identifier}")
        writer.write(frame(1, b"whole"))
        await reader.readexactly(7)
        if "middle" in name:
            writer.write(frame(1, b"never whole")[:-4])
            await writer.drain()
        writer.transport.abort() if end == "abort" else writer.write_eof()
        async with open(f"/ended?id={identifier}") as socket:
            say(name, await socket.recv())
        if end == "eof":
            say(await frames(reader))

async def main():
    for part in (messages, large, compressed, by_server, refused, edges, abrupt):
        say("--", part.__name__)
        await asyncio.wait_for(part(), 60)

asyncio.run(main())
