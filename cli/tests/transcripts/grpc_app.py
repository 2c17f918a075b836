"""A gRPC application without a schema: messages are bytes."""
import os, threading
from concurrent import futures
import grpc

seen = {}

def event(name):
    return seen.setdefault(name, threading.Event())

def metadata(context):
    return [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-echo")]

def unary(request, context):
    context.send_initial_metadata([("x-initial", "first"), ("x-initial-bin", b"\x00\x01\xff")])
    context.set_trailing_metadata(metadata(context))
    return request

def fail(request, context):
    context.set_trailing_metadata([("x-why-bin", b"\xfe\xed"), ("x-why", "asked")])
    number = int(request)
    code = next(code for code in grpc.StatusCode if code.value[0] == number)
    context.abort(code, "détails: 100 % \"quoted\"\n2nd line")

def wait(request, context):
    name = request.hex()
    context.add_callback(event(name).set)
    event((request + b"/entered").hex()).set()
    event(name).wait(60)
    return b"too late"

def was(request, context):
    return b"yes" if event(request.hex()).wait(30) else b"no"

def remaining(request, context):
    # Without one it counts to the end of time.
    left = context.time_remaining()
    return b"none" if left > 1e9 else b"within" if 0 < left < int(request) + 1 else str(left).encode()

def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()

def half(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "half")

def endless(request, context):
    context.add_callback(event(request.hex()).set)
    while context.is_active():
        yield b"x" * 10_000

def stall(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    yield b"one"
    over.wait(60)

def join(requests, context):
    return b",".join(requests)

def chat(requests, context):
    yield b"welcome"
    for request in requests:
        if request == b"bye":
            context.set_trailing_metadata([("x-said", "bye")])
            return
        yield request.upper()
        yield b"?"

def hasty(requests, context):
    next(requests)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

methods = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "Was": grpc.unary_unary_rpc_method_handler(was),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Half": grpc.unary_stream_rpc_method_handler(half),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Stall": grpc.unary_stream_rpc_method_handler(stall),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Hasty": grpc.stream_unary_rpc_method_handler(hasty),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
options = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]
server = grpc.server(futures.ThreadPoolExecutor(32), options=options, compression=grpc.Compression.Gzip)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Echo", methods)])
assert server.add_insecure_port(f"{os.environ['HOST']}:{os.environ['PORT']}")
server.start()
server.wait_for_termination()
