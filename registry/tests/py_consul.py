"""A service team's day with py-consul, unmodified; prints `ok` when all of it was as Consul's users expect."""

import sys
import threading
import time

import consul

c = consul.Consul(host="127.0.0.1", port=int(sys.argv[1]))

# Register, be found only when healthy.
assert c.agent.self()["Config"]["Datacenter"] == "dc1"
assert c.agent.service.register(
    "reviews", service_id="reviews-1", address="10.1.2.3", port=9080, tags=["v2"], meta={"team": "shop"},
    check=consul.Check.ttl("10s"), extra_checks=[consul.Check.ttl("20s")],
)
index, nodes = c.health.service("reviews", passing=True)
assert nodes == [], nodes
checks = sorted(check for check, shown in c.agent.checks().items() if shown["ServiceID"] == "reviews-1")
assert checks == ["service:reviews-1:1", "service:reviews-1:2"], checks

# A blocking query wakes when the check passes.
woken = []


def wait():
    woken.append(consul.Consul(host="127.0.0.1", port=int(sys.argv[1])).health.service("reviews", index=index, wait="30s"))


waiter = threading.Thread(target=wait)
waiter.start()
time.sleep(0.2)
assert not woken, "it did not block"
for check in checks:
    assert c.agent.check.ttl_pass(check, notes="all well")
waiter.join(timeout=10)
assert woken and int(woken[0][0]) > int(index), woken

_, nodes = c.health.service("reviews", passing=True, tag="v2")
assert [(n["Service"]["ID"], n["Service"]["Port"], n["Service"]["Address"]) for n in nodes] == [("reviews-1", 9080, "10.1.2.3")]
assert c.catalog.services()[1]["reviews"] == ["v2"]
assert c.catalog.service("reviews")[1][0]["ServiceMeta"] == {"team": "shop"}
assert [n["Node"] for n in c.catalog.nodes()[1]] == [c.agent.self()["Config"]["NodeName"]]
assert c.catalog.datacenters() == ["dc1"]
assert c.status.leader() and c.status.peers()
assert "reviews-1" in c.agent.services()

# No change: the answer comes after `wait`, with the same index.
index, _ = c.health.service("reviews")
start = time.monotonic()
again, _ = c.health.service("reviews", index=index, wait="500ms")
assert again == index and 0.5 <= time.monotonic() - start < 5, (again, index, time.monotonic() - start)

# Warnings, failures, maintenance.
assert c.agent.check.ttl_warn(checks[0]) and c.health.service("reviews", passing=True)[1] == []
assert c.agent.check.ttl_fail(checks[0]) and [s["Status"] for s in c.health.state("critical")[1]] == ["critical"]
assert c.agent.check.ttl_pass(checks[0])
assert c.agent.service.maintenance("reviews-1", "true", "patching")
assert c.health.service("reviews", passing=True)[1] == []
assert c.agent.service.maintenance("reviews-1", "false")
assert len(c.health.service("reviews", passing=True)[1]) == 1
assert c.agent.check.register("disk", consul.Check.ttl("15s"), check_id="disk-1", service_id="reviews-1")
assert "disk-1" in c.agent.checks() and c.agent.check.deregister("disk-1")

# Keys.
assert c.kv.get("app/none") [1] is None
assert c.kv.put("app/a", "one", flags=7) and c.kv.put("app/b", b"\x00\xff") and c.kv.put("app/c/d", None)
index, pair = c.kv.get("app/a")
assert (pair["Value"], pair["Flags"]) == (b"one", 7)
assert c.kv.get("app/b")[1]["Value"] == b"\x00\xff"
assert [p["Key"] for p in c.kv.get("app/", recurse=True)[1]] == ["app/a", "app/b", "app/c/d"]
assert c.kv.get("app/", keys=True, separator="/")[1] == ["app/a", "app/b", "app/c/"]
assert not c.kv.put("app/a", "two", cas=1) and c.kv.put("app/a", "two", cas=pair["ModifyIndex"])
assert c.txn.put([{"KV": {"Verb": "get", "Key": "app/a"}}])["Results"][0]["KV"]["Key"] == "app/a"

# Locks.
session = c.session.create(name="leader", ttl=10, lock_delay=0, behavior="release")
other = c.session.create()
assert c.kv.put("lock", "me", acquire=session) and not c.kv.put("lock", "you", acquire=other)
assert c.kv.get("lock")[1]["Session"] == session
assert c.session.renew(session)["ID"] == session and c.session.info(session)[1]["Name"] == "leader"
assert c.kv.put("lock", "me", release=session) and c.kv.put("lock", "you", acquire=other)
assert c.session.destroy(other) and "Session" not in c.kv.get("lock")[1]
assert session in [s["ID"] for s in c.session.list()[1]] and c.session.destroy(session)
assert c.kv.delete("app/", recurse=True) and c.kv.get("app/", recurse=True)[1] is None

# An outside node by the catalog.
assert c.catalog.register("legacy", "10.9.9.9", service={"service": "mainframe", "id": "m1", "port": 23})
assert c.catalog.service("mainframe")[1][0]["Address"] == "10.9.9.9"
assert c.catalog.deregister("legacy")

assert c.agent.service.deregister("reviews-1")
assert c.health.service("reviews")[1] == []
print("ok")
