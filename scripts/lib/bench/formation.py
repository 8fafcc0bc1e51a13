"""formation.py FOLDER: how long people wait for the command line, from its start to its end."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import report
from served import until_served
from world import BIN, World, run

QUICK = bool(os.environ.get("FLEX_BENCH_QUICK"))
CALLS = 5 if QUICK else 50
ROLLBACKS = 2 if QUICK else 10
INSTANCES = int(os.environ.get("FLEX_BENCH_INSTANCES", "5" if QUICK else "50"))
SCALES = 1 if QUICK else 3
TIMEOUT = 120
# As many as the bare engine is asked for at once: enough that it never waits for the one who asks.
AT_ONCE = 16


def millis(values):
    return f"p50 {report.percentile(values, 0.5) * 1000:.0f} ms, p95 {report.percentile(values, 0.95) * 1000:.0f} ms (n={len(values)})"


def called(world, *command):
    """Seconds of each of several calls, the program's own start included."""
    took = []
    for _ in range(CALLS):
        began = time.monotonic()
        world.flex(*command)
        took.append(time.monotonic() - began)
    return took


def rollbacks(world):
    """Seconds from the start of `flex rollback` until the older page is served."""
    took = []
    world.change("app", "second")
    world.push("app")
    until_served(world, "app", "second")
    for n in range(ROLLBACKS):
        text = ("first", "second")[n % 2]
        began = time.monotonic()
        client = subprocess.Popen(
            [BIN / "flex", "rollback", "-a", "app", f"v{(1, 3)[n % 2]}"], env=world.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        until_served(world, "app", text)
        took.append(time.monotonic() - began)
        if client.wait() != 0:
            raise SystemExit(" !     flex rollback failed")
    return took


def answers(address):
    try:
        with urllib.request.urlopen(f"http://{address}:5000/", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def addresses(containers):
    if not containers:
        return []
    listed = run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", *containers)
    return [a for a in listed.split() if a]


def until_all_answer(containers, count):
    """`containers` gives the ids that there are; ends when that many answer HTTP."""
    deadline = time.monotonic() + TIMEOUT
    good = set()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        while len(good) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f" !     {len(good)} of {count} answer after {TIMEOUT} s")
            left = [a for a in addresses(containers()) if a not in good]
            good |= {a for a, ok in zip(left, threads.map(answers, left)) if ok}
            time.sleep(0.02)


def instances(world):
    return run(
        "docker", "ps", "-q", "--filter", f"label=flex.cluster={world.cluster()}", "--filter", "label=flex.kind=instance"
    ).split()


def scaled(world):
    began = time.monotonic()
    world.flex("scale", f"web={INSTANCES}", "-a", "app", "--no-wait")
    until_all_answer(lambda: instances(world), INSTANCES)
    took = time.monotonic() - began
    world.flex("scale", "web=1", "-a", "app")
    deadline = time.monotonic() + TIMEOUT
    while len(instances(world)) > 1:
        if time.monotonic() > deadline:
            raise SystemExit(" !     the instances do not go")
        time.sleep(0.1)
    return took


def bare(world):
    """Seconds of the engine alone for as many of the same container, hardened and limited alike."""
    one = instances(world)[0]
    shown = json.loads(run("docker", "inspect", one))[0]
    network = next(iter(shown["NetworkSettings"]["Networks"]))
    command = [shown["Path"], *shown["Args"]]
    made = []

    def start(_):
        made.append(run(
            "docker", "run", "-d", "--init", "--label", f"flex.cluster={world.cluster()}", "--label", "flex.bench=bare",
            "--network", network, "--memory", str(shown["HostConfig"]["Memory"]), "--pids-limit", "1024", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--env", "PORT=5000", "--env", "DYNO=bare.1", "--user", shown["Config"]["User"] or "root",
            "--workdir", shown["Config"]["WorkingDir"] or "/", "--entrypoint", command[0], shown["Image"], *command[1:],
        ).strip())

    try:
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
            work = [threads.submit(start, n) for n in range(INSTANCES)]
            until_all_answer(lambda: list(made), INSTANCES)
            took = time.monotonic() - began
            for done in work:
                done.result()
        return took
    finally:
        if made:
            run("docker", "rm", "-f", *made)


def cli(world):
    world.create("app")
    until_served(world, "app", "first")
    world.flex("config:set", "A=1", "B=2", "-a", "app")
    world.flex("scale", "web=1:64M", "-a", "app")
    ps, config = called(world, "ps", "-a", "app"), called(world, "config", "-a", "app")
    back = rollbacks(world)
    ours, engine = [], []
    for _ in range(SCALES):
        engine.append(bare(world))
        ours.append(scaled(world))
    middle = report.percentile
    ratio = middle(ours, 0.5) / middle(engine, 0.5)
    shown = lambda values: ", ".join(f"{v:.2f}" for v in values) + " s"
    rows = [
        ("flex ps", millis(ps)),
        ("flex config", millis(config)),
        ("rollback until served", millis(back)),
        (f"scale web={INSTANCES}, all answer", shown(ours)),
        (f"bare engine's {INSTANCES}", shown(engine)),
        ("ratio of the medians", f"{ratio:.2f}"),
    ]
    return rows, {"ps_s": ps, "config_s": config, "rollback_s": back, "scale_s": ours, "bare_s": engine, "ratio": ratio, "instances": INSTANCES}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # the world is cleaned up on the way out
    folder = sys.argv[1]
    before = report.load()
    with World() as world:
        rows, values = cli(world)
    report.finish("formation", folder, before, rows, values)
