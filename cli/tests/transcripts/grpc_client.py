"""Talks to grpc_app.py at ADDRESS:PORT and prints what happens, without anything that differs from run to run."""
import hashlib, os, queue, sys
import grpc

ADDRESS, NAME = sys.argv[1:3]
TIMEOUT = 60
TOKEN = os.urandom(4)

def say(*words):
    print(*words, flush=True)

def channel(**more):
    options = [("grpc.default_authority", NAME), ("grpc.max_receive_message_length", 32 << 20),
               ("grpc.max_send_message_length", 32 << 20), ("grpc.enable_http_proxy", 0)]
    return grpc.insecure_channel(ADDRESS, options=options, **more)

def known(metadata):
    return sorted((key, value) for key, value in metadata or () if key.startswith("x-"))

def outcome(call):
    return call.code().name, call.details(), known(call.trailing_metadata())

def unary(rpc, name):
    call = rpc.unary_unary("/echo.Echo/Unary")
    sent = [("x-echo", "one"), ("x-echo", "two, three"), ("x-echo-bin", bytes(range(256))), ("x-echo-empty", "")]
    for size in (0, 1, 16_384, 5 << 20):
        message = hashlib.sha256(str(size).encode()).digest() * (size // 32 + 1)
        answer, made = call.with_call(message[:size], timeout=TIMEOUT, metadata=sent)
        say(name, size, answer == message[:size], known(made.initial_metadata()), outcome(made))

def statuses(rpc):
    for code in range(1, 17):
        try:
            rpc.unary_unary("/echo.Echo/Fail")(str(code).encode(), timeout=TIMEOUT)
        except grpc.RpcError as error:
            say("status", outcome(error))
    try:
        rpc.unary_unary("/echo.Echo/NoSuchMethod")(b"", timeout=TIMEOUT)
    except grpc.RpcError as error:
        say("unknown", outcome(error))

def deadlines(rpc):
    say("no deadline", rpc.unary_unary("/echo.Echo/Remaining")(b"0"))
    say("a deadline", rpc.unary_unary("/echo.Echo/Remaining")(b"50", timeout=50))
    try:
        rpc.unary_unary("/echo.Echo/Wait")(TOKEN + b"deadline", timeout=1.0)
    except grpc.RpcError as error:
        say("too late", error.code().name)
    begun = [rpc.unary_stream("/echo.Echo/Stall")(b"", timeout=1.0) for _ in range(16)]
    for stream in begun:
        try:
            list(stream)
        except grpc.RpcError:
            pass
    say("too late, but begun", {stream.code().name for stream in begun})
    say("seen by the server", rpc.unary_unary("/echo.Echo/Was")(TOKEN + b"deadline", timeout=TIMEOUT))

def cancelled(rpc):
    was = rpc.unary_unary("/echo.Echo/Was")
    waiting = rpc.unary_unary("/echo.Echo/Wait").future(TOKEN + b"cancelled", timeout=TIMEOUT)
    say("entered", was(TOKEN + b"cancelled/entered", timeout=TIMEOUT))
    waiting.cancel()
    say("cancelled", waiting.code().name, was(TOKEN + b"cancelled", timeout=TIMEOUT))
    stream = rpc.unary_stream("/echo.Echo/Endless")(TOKEN + b"endless", timeout=TIMEOUT)
    say("endless", len(next(stream)))
    stream.cancel()
    say("cancelled", stream.code().name, was(TOKEN + b"endless", timeout=TIMEOUT))

def streams(rpc):
    stream = rpc.unary_stream("/echo.Echo/Count")(b"2000", timeout=TIMEOUT)
    say("count", sum(map(int, stream)), outcome(stream))
    stream = rpc.unary_stream("/echo.Echo/Count")(b"0", timeout=TIMEOUT)
    say("empty", list(stream), outcome(stream))
    stream, got = rpc.unary_stream("/echo.Echo/Half")(b"", timeout=TIMEOUT), []
    try:
        got.extend(stream)
        for message in stream:
            got.append(message)
    except grpc.RpcError:
        say("half", got, outcome(stream))
    answer, made = rpc.stream_unary("/echo.Echo/Join").with_call((b"%d" % n for n in range(500)), timeout=TIMEOUT)
    say("join", len(answer), outcome(made))
    say("join nothing", rpc.stream_unary("/echo.Echo/Join")(iter(()), timeout=TIMEOUT))
    try:
        rpc.stream_unary("/echo.Echo/Hasty")((b"x" * 1000 for _ in range(200)), timeout=TIMEOUT)
    except grpc.RpcError as error:
        say("hasty", outcome(error))

def chat(rpc):
    sent = queue.Queue()
    stream = rpc.stream_stream("/echo.Echo/Chat")(iter(sent.get, None), timeout=TIMEOUT)
    say("first word", next(stream))
    for word in (b"hello", b"", b"x" * 100_000, b"last"):
        sent.put(word)
        say("turn", len(next(stream)), next(stream))
    sent.put(b"bye")
    say("rest", list(stream), outcome(stream))
    sent.put(None)

with channel() as rpc:
    unary(rpc, "plain")
    statuses(rpc)
    deadlines(rpc)
    cancelled(rpc)
    streams(rpc)
    chat(rpc)
with channel(compression=grpc.Compression.Gzip) as rpc:
    unary(rpc, "gzip")
