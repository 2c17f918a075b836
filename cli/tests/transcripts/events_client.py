"""Reads events of events_app.py at ADDRESS:PORT and prints what happens, without anything that differs from run to run."""
import hashlib, os, sys
import httpx

ADDRESS, NAME = sys.argv[1:3]
TOKEN = os.urandom(4).hex()

def say(*words):
    print(*words, flush=True)

def client(**version):
    return httpx.Client(base_url=f"http://{ADDRESS}", headers={"host": NAME}, trust_env=False, timeout=60, **version)

def events(lines):
    event = []
    for line in lines:
        if line:
            event.append(line)
        elif event:
            yield event
            event = []

with client() as asking, client() as reading:
    for run, begin in (("first", 0), ("again", 5)):
        headers = {"accept": "text/event-stream"} | ({"last-event-id": str(begin)} if begin else {})
        with reading.stream("GET", f"/events?run={TOKEN}-{run}", headers=headers) as response:
            say(response.status_code, response.headers["content-type"], response.headers["cache-control"])
            for event in events(response.iter_lines()):
                say(event[:3], hashlib.sha256(event[3].encode()).hexdigest()[:12])
                number = event[0].removeprefix("id: ")
                say(asking.get("/on", params={"step": f"{TOKEN}-{run}/{number}"}).text)
        say("the end")
    with reading.stream("GET", f"/events?run={TOKEN}-endless") as response:
        for number in range(1, 6):
            asking.get("/on", params={"step": f"{TOKEN}-endless/{number}"})
        lines = response.iter_lines()
        while next(lines) != ": still here":
            pass
    say("the server sees us go:", asking.get("/until", params={"step": f"{TOKEN}-endless/gone"}).text)
