"""cli.py NAME FOLDER: what the command line's commands take, end to end, beside what the bare engine takes.

`flex run true` stands beside create + start + wait of the same image with the same limits through the engine's own API, in turns.
"""

import http.client
import json
import os
import signal
import socket
import sys
import time

import report
import world

QUICK = bool(os.environ.get("FLEX_BENCH_QUICK"))
ROUNDS = 3 if QUICK else 25


class Engine(http.client.HTTPConnection):
    """The engine, over its socket."""

    def __init__(self):
        super().__init__("localhost")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.environ.get("FLEXD_DOCKER", "/var/run/docker.sock"))

    def ask(self, method, path, body=None):
        text = json.dumps(body) if body is not None else None
        self.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = self.getresponse()
        data = answer.read()
        if answer.status >= 400:
            raise SystemExit(f" !     {method} {path}: {answer.status} {data.decode()}")
        return json.loads(data) if data else None


def alike(facts, command):
    """A container like an instance, for another command."""
    kept = ("CapDrop", "SecurityOpt", "Init", "Memory", "MemorySwap", "PidsLimit", "Ulimits", "NetworkMode", "IpcMode", "CpuShares")
    host = {k: facts["HostConfig"][k] for k in kept if facts["HostConfig"].get(k) is not None}
    host["LogConfig"] = {"Type": "none"}
    return {"Image": facts["Image"], "Entrypoint": command[:1], "Cmd": command[1:], "Env": facts["Config"]["Env"], "HostConfig": host}


def floor(engine, body):
    began = time.monotonic()
    made = engine.ask("POST", "/containers/create", body)["Id"]
    engine.ask("POST", f"/containers/{made}/start")
    engine.ask("POST", f"/containers/{made}/wait")
    took = time.monotonic() - began
    engine.ask("DELETE", f"/containers/{made}?force=1")
    return took * 1000


def timed(w, *arguments):
    began = time.monotonic()
    w.flex(*arguments)
    return (time.monotonic() - began) * 1000


def stopped(*_):
    raise SystemExit("ended by a signal")


name, folder = sys.argv[1:]
signal.signal(signal.SIGTERM, stopped)
before = report.load()
with world.World() as w:
    w.create("bench")
    engine = Engine()
    wanted = json.dumps({"label": ["flex.app-name=bench", f"flex.cluster={(w.data / 'cluster').read_text().strip()}"]})
    instance = engine.ask("GET", f"/containers/json?filters={wanted.replace(' ', '').replace(chr(34), '%22')}")[0]["Id"]
    body = alike(engine.ask("GET", f"/containers/{instance}/json"), ["/opt/flex/launch", "true"])
    runs, bare, ps, config = [], [], [], []
    for _ in range(ROUNDS):
        bare.append(floor(engine, body))
        runs.append(timed(w, "run", "-a", "bench", "true"))
        ps.append(timed(w, "ps", "-a", "bench"))
        config.append(timed(w, "config", "-a", "bench"))
mid = {key: round(report.percentile(values, 0.5), 1) for key, values in {"run_true": runs, "engine": bare, "ps": ps, "config": config}.items()}
ratio = round(mid["run_true"] / mid["engine"], 2)
rows = [
    ("flex run true, p50", f"{mid['run_true']} ms"),
    ("the engine's create + start + wait, p50", f"{mid['engine']} ms"),
    ("ratio", f"{ratio} (wanted: at most 1.2)"),
    ("flex ps, p50", f"{mid['ps']} ms"),
    ("flex config, p50", f"{mid['config']} ms"),
]
report.finish(name, folder, before, rows, {"ms": mid, "ratio_run_to_engine": ratio, "rounds": ROUNDS})
