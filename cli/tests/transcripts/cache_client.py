"""What a client of Redis sees: cache_client.py HOST:PORT"""
import sys
import redis

host, port = sys.argv[1].rsplit(":", 1)
client = redis.Redis(host=host, port=int(port), socket_timeout=20)


def say(*words):
    print(*words, flush=True)


say("ping", client.ping())
client.flushall()
say("set", client.set("a", b"\x00\r\n\xff"), client.get("a"), client.get("nothing"))
say("count", [client.incrby("n", step) for step in (1, 10, 100)])
say("list", client.rpush("l", *range(1000)), client.lrange("l", 990, -1))
say("hash", client.hset("h", mapping={"x": 1, "y": "z"}), client.hgetall("h"))
large = bytes(range(256)) * (16 << 10)
say("large", client.set("large", large), client.get("large") == large, client.strlen("large"))
with client.pipeline(transaction=False) as pipe:
    for number in range(2000):
        pipe.set(f"k{number}", number)
        pipe.get(f"k{number}")
    answers = pipe.execute()
say("pipeline", len(answers), answers[-1])
with client.pipeline() as pipe:
    pipe.multi()
    pipe.incr("n")
    pipe.lpop("l")
    say("transaction", pipe.execute())
try:
    client.lpush("a", 1)
except redis.ResponseError as error:
    say("error", error)
say("script", client.eval("return {KEYS[1], ARGV[1], 7}", 1, "key", "argument"))
say("blocked in vain", client.blpop("empty", timeout=1))
with client.pubsub() as pubsub:
    pubsub.subscribe("news")
    say("subscribed", pubsub.get_message(timeout=20)["type"])
    for text in ("first", "second"):
        say("published", client.publish("news", text))
    for _ in range(2):
        message = pubsub.get_message(timeout=20)
        say(message["type"], message["channel"], message["data"])
say("keys", sum(1 for _ in client.scan_iter(count=100)))
other = redis.Redis(host=host, port=int(port), socket_timeout=20, single_connection_client=True, retry=None)
say("killed", client.client_kill_filter(_id=other.client_id()))
try:
    other.connection.send_command("PING")
    other.connection.read_response()
except redis.ConnectionError as error:
    say("closed by the server", type(error).__name__)
say("still there", client.ping())
