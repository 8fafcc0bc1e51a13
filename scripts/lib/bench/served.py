"""served.py push|python|deploys|idle FOLDER: measurements that need a running flexd."""

import asyncio
import concurrent.futures
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import report
from world import PYTHON_APP, World, run

QUICK = bool(os.environ.get("FLEX_BENCH_QUICK"))
ROUNDS = 2 if QUICK else 10
RATE = 200
IDLE_SECONDS = 3 if QUICK else 20
TIMEOUT = 30
STORED_APPS = int(os.environ.get("FLEX_BENCH_APPS", "300" if QUICK else "10000"))


def seconds(values):
    return f"p50 {report.percentile(values, 0.5):.2f} s, p95 {report.percentile(values, 0.95):.2f} s (n={len(values)})"


def summary(values):
    return {"p50_s": report.percentile(values, 0.5), "p95_s": report.percentile(values, 0.95), "all_s": values}


def page(world, app):
    """(status, body) by curl, through the router."""
    ran = subprocess.run(
        ["curl", "-s", "--max-time", "5", "-w", "\n%{http_code}", "-H", f"Host: {app}.localhost", f"http://{world.http}/"],
        capture_output=True, text=True, check=False,
    )
    body, _, status = ran.stdout.rpartition("\n")
    return status, body


def until_served(world, app, text):
    deadline = time.monotonic() + TIMEOUT
    while (answer := page(world, app)) != ("200", text):
        if time.monotonic() > deadline:
            raise SystemExit(f" !     {app} does not answer 200 with {text!r} after {TIMEOUT} s; last: {answer}")
        time.sleep(0.005)


def floor(image, cluster):
    """Seconds of docker create and start of this image until a TCP connect answers."""
    began = time.monotonic()
    made = run(
        "docker", "create", "--label", f"flex.cluster={cluster}", "--label", "flex.bench=floor", "--env", "PORT=5000",
        "--workdir", "/app", "--entrypoint", "python3", image, "server.py",
    ).strip()
    try:
        run("docker", "start", made)
        address = run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", made).strip()
        while True:
            try:
                socket.create_connection((address, 5000), 1).close()
                return time.monotonic() - began
            except OSError:
                if time.monotonic() > began + TIMEOUT:
                    raise SystemExit(f" !     the bare container of {image} does not answer") from None
                time.sleep(0.005)
    finally:
        run("docker", "rm", "-f", made)


def pushes(world, app, after=lambda: None):
    """Seconds from each of several pushes until its page is served, and the phases that each build stored."""
    took, phases = [], []
    for n in range(ROUNDS):
        world.change(app, f"text {n}")
        began = time.monotonic()
        client = subprocess.Popen(
            ["git", "push", "-q", "flex", "main"], cwd=world.home / app, env=world.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        until_served(world, app, f"text {n}")
        took.append(time.monotonic() - began)
        said = client.communicate()[1]
        if client.returncode != 0:
            raise SystemExit(f" !     git push failed: {said.decode()}")
        phases.append(world.phases(app))
        after()
    return took, phases


def medians(phases):
    return {name: report.percentile([p.get(name, 0) for p in phases], 0.5) for name in phases[-1]}


def phase_row(phases):
    return "phases, median ms", ", ".join(f"{name} {millis}" for name, millis in medians(phases).items())


def push(world):
    world.create("app")
    until_served(world, "app", "first")
    floors = []

    def measure_floor():
        running = run("docker", "ps", "-q", "--filter", f"label=flex.cluster={world.cluster()}", "--filter", "label=flex.kind=instance").split()
        floors.append(floor(run("docker", "inspect", "-f", "{{.Image}}", running[0]).strip(), world.cluster()))

    took, phases = pushes(world, "app", measure_floor)
    rows = [("push to first 200", seconds(took)), phase_row(phases), ("bare engine's floor", seconds(floors))]
    return rows, {"push": summary(took), "phases_ms": medians(phases), "floor": summary(floors)}


def python(world):
    """Pushes that change the app and not its requirements."""
    world.create("app", PYTHON_APP)
    until_served(world, "app", "first")
    took, phases = pushes(world, "app")
    return [("push to first 200", seconds(took)), phase_row(phases)], {"push": summary(took), "phases_ms": medians(phases)}


async def request(address, failures):
    host, port = address
    writer = None
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            if not answer.startswith(b"HTTP/1.1 200 ") or b"\r\n\r\ntext" not in answer:
                failures.append(answer.split(b"\r\n", 1)[0].decode(errors="replace") or "closed without an answer")
    except (OSError, TimeoutError) as error:
        failures.append(repr(error))
    finally:
        if writer:
            writer.close()


async def open_loop(world):
    """Requests start on time whether or not earlier ones were answered, so that a slow answer hides none."""
    host, port = world.http.rsplit(":", 1)
    failures, tasks, late = [], [], 0.0

    def deploys():
        for n in range(ROUNDS):
            world.change("app", f"text {n}")
            world.push("app")

    began = time.monotonic()
    work = asyncio.create_task(asyncio.to_thread(deploys))
    while not work.done():
        due = began + len(tasks) / RATE
        await asyncio.sleep(max(0, due - time.monotonic()))
        late = max(late, time.monotonic() - due)
        tasks.append(asyncio.create_task(request((host, int(port)), failures)))
    took = time.monotonic() - began
    await work
    await asyncio.gather(*tasks)
    return len(tasks), failures, took, late


def deploys(world):
    world.create("app")
    world.change("app", "text")
    world.push("app")
    until_served(world, "app", "text")
    count, failures, took, late = asyncio.run(open_loop(world))
    kinds = {kind: failures.count(kind) for kind in sorted(set(failures))}
    rows = [
        ("requests", f"{count} in {took:.1f} s ({count / took:.0f}/s), {ROUNDS} deploys"),
        ("failed", f"{len(failures)} {kinds or ''}".strip()),
        ("client late at most", f"{late * 1000:.0f} ms"),
    ]
    values = {"requests": count, "failed": len(failures), "kinds": kinds, "seconds": took, "late_s": late, "deploys": ROUNDS}
    return rows, values


def idle(world):
    for n in range(ROUNDS):
        world.create(f"app-{n}")
        until_served(world, f"app-{n}", "first")
    proc = pathlib.Path("/proc", str(world.child.pid))

    def used():
        fields = proc.joinpath("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(5)  # what the last deploy leaves to do (old containers, snapshots) is not idleness
    began, before = time.monotonic(), used()
    time.sleep(IDLE_SECONDS)
    share = (used() - before) / (time.monotonic() - began) * 100
    status = dict(line.split(":", 1) for line in proc.joinpath("status").read_text().splitlines())
    rss = int(status["VmRSS"].split()[0]) / 1024
    rows = [("memory (RSS)", f"{rss:.1f} MiB"), ("processor", f"{share:.2f} % of a core over {IDLE_SECONDS} s, {ROUNDS} apps")]
    return rows, {"rss_mib": rss, "cpu_percent": share, "apps": ROUNDS}


def fill(world, token, numbers):
    """Stores these apps with a config var each, and so with a release, over one connection."""
    host, port = world.api.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for n in numbers:
        for method, path, body in (
            ("POST", "/apps", {"name": f"stored-{n}"}),
            ("PATCH", f"/apps/stored-{n}/config-vars", {"NUMBER": str(n), "DATABASE_URL": f"postgres://host/{n}"}),
        ):
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status >= 300:
                raise SystemExit(f" !     {method} {path}: {answer.status} {said.decode(errors='replace')}")
    connection.close()


def cold(world):
    # Each connection is another user's: one user alone would meet the API's rate limit.
    tokens = [world.token(f"bench-{n}@example.com") for n in range(16)]
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(fill, world, token, range(n, STORED_APPS, 16)) for n, token in enumerate(tokens)]:
            done.result()
    filled = time.monotonic() - began
    starts, rss = [], 0.0
    for _ in range(3):
        world.stop()
        began = time.monotonic()
        world.launch()
        last = f"stored-{STORED_APPS - 1}"
        world.flex("apps:info", last)
        # Nothing is deployed, so the router's answer is the one for an app without processes: it has the whole table.
        while (answer := page(world, last)[0]) != "503":
            if time.monotonic() > began + TIMEOUT:
                raise SystemExit(f" !     the router answers {answer} for an app that is stored")
            time.sleep(0.005)
        starts.append(time.monotonic() - began)
        status = dict(line.split(":", 1) for line in pathlib.Path("/proc", str(world.child.pid), "status").read_text().splitlines())
        rss = int(status["VmRSS"].split()[0]) / 1024
    rows = [
        (f"start with {STORED_APPS} apps", f"{', '.join(f'{s:.2f}' for s in starts)} s until the API and the router know the last"),
        ("memory (RSS) then", f"{rss:.1f} MiB"),
        ("storing them", f"{filled:.1f} s, {2 * STORED_APPS / filled:.0f} changes/s over 16 connections"),
    ]
    return rows, {"apps": STORED_APPS, "starts_s": starts, "rss_mib": rss, "filled_s": filled}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # the world is cleaned up on the way out
    name, folder = sys.argv[1:]
    before = report.load()
    with World() as world:
        rows, values = {"push": push, "python": python, "deploys": deploys, "idle": idle, "cold": cold}[name](world)
    report.finish(name, folder, before, rows, values)
