"""A WebSocket application: what it does is named by the path."""
import asyncio, http, os
from urllib.parse import parse_qs, urlsplit
from websockets.asyncio.server import serve

ended = {}

def end_of(name):
    return ended.setdefault(name, asyncio.get_running_loop().create_future())

async def handle(socket):
    url = urlsplit(socket.request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    try:
        if url.path == "/close":
            await socket.close(int(query["code"]), query.get("reason", ""))
        elif url.path == "/abort":
            await socket.send("before")
            socket.transport.abort()
        elif url.path == "/fragments":
            await socket.send(["one ", "two ", "three"])
            await (await socket.ping(b"are you there"))
            await socket.send([b"\x00" * 100_000, b"\x01" * 100_000])
        elif url.path == "/push":
            await socket.send(bytes(range(256)) * 4096 * int(query["mib"]))
        elif url.path == "/ended":
            await socket.send(str(await end_of(query["id"])))
        else:
            async for message in socket:
                await socket.send(message)
    finally:
        if "id" in query and url.path != "/ended":
            await socket.wait_closed()
            end_of(query["id"]).set_result(socket.close_code)

def refuse(connection, request):
    for status in (200, 403, 426):
        if request.path == f"/refuse/{status}":
            return connection.respond(http.HTTPStatus(status), f"refused with {status}\n")

def select(connection, offered):
    return "super" if "super" in offered else None

async def main():
    options = {"max_size": None, "select_subprotocol": select, "process_request": refuse}
    async with serve(handle, os.environ["HOST"], int(os.environ["PORT"]), **options) as server:
        await server.serve_forever()

asyncio.run(main())
