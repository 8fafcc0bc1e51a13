"""up.py FOLDER [--cold]: how long scripts/up takes where everything is there already.

An installation of the measurement's own: data directory, ports, home. `--cold` also times the first run, which then
makes the stack images; packages, the engine and the toolchain are there in any case.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import report

ROOT = pathlib.Path(os.environ["ROOT"])
ROUNDS = 2 if os.environ.get("FLEX_BENCH_QUICK") else 5


def free_ports(count):
    """Addresses that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [f"127.0.0.1:{s.getsockname()[1]}" for s in held]
    for s in held:
        s.close()
    return found


def environment(at):
    home, ssh = at / "home", at / "home/.ssh"
    ssh.mkdir(parents=True, mode=0o700)
    api, http, git = free_ports(3)
    real = pathlib.Path(os.environ.get("HOME", "/root"))
    env = {
        "PATH": os.environ["PATH"], "HOME": str(home), "FLEXD_DATA_DIR": str(at / "data"),
        "FLEXD_API": api, "FLEXD_HTTP": http, "FLEXD_SSH": git, "FLEXD_STACK": os.environ["FLEXD_STACK"],
        "CARGO_HOME": os.environ.get("CARGO_HOME", str(real / ".cargo")),
        "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(real / ".rustup")),
        "FLEX_ADMIN_EMAIL": "bench@example.com", "GIT_CONFIG_NOSYSTEM": "1",
        # ssh looks for its files in the user's real home, whatever HOME says.
        "GIT_SSH_COMMAND": f"ssh -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes"
        f" -o UserKnownHostsFile={ssh}/known_hosts -i {ssh}/id_ed25519",
    }
    programs = pathlib.Path(os.environ["FLEX_BENCH_BIN"]).resolve()
    # Its own programs scripts/up is to look after by itself: that is part of its time.
    if programs != (ROOT / "target/release").resolve():
        env["FLEX_BIN"] = str(programs)
    return env


def script(name, env, *arguments):
    began = time.monotonic()
    ran = subprocess.run(
        [ROOT / "scripts" / name, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    took = time.monotonic() - began
    if ran.returncode != 0:
        raise SystemExit(f" !     scripts/{name} failed:\n{ran.stdout}")
    return took, ran.stdout


def main():
    folder, cold = sys.argv[1], "--cold" in sys.argv[2:]
    before = report.load()
    at = pathlib.Path(tempfile.mkdtemp(prefix="flex-bench-"))
    env = None
    try:
        env = environment(at)
        (at / "data").mkdir()
        if not cold:
            (at / "data/stacks").symlink_to(os.environ["FLEX_BENCH_STACKS"])
        first, _ = script("up", env)
        again = []
        for _ in range(ROUNDS):
            took, said = script("up", env)
            if re.search(r"^-----> (Starting flexd|Installing|Making)", said, re.MULTILINE):
                raise SystemExit(f" !     scripts/up did something again:\n{said}")
            again.append(took)
    finally:
        if env:
            subprocess.run([ROOT / "scripts/down", "--purge"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(at, ignore_errors=True)
    rows = [("repeated", f"p50 {report.percentile(again, 0.5):.2f} s, worst {max(again):.2f} s (n={len(again)})")]
    values = {"repeated_s": again, "p50_s": report.percentile(again, 0.5), "worst_s": max(again)}
    if cold:
        rows.insert(0, ("first, stack images included", f"{first:.0f} s"))
        values["first_s"] = first
    report.finish("up", folder, before, rows, values)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # cleaned up on the way out
    main()
