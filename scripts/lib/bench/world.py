"""A flexd of the measurement's own: data directory, free ports, user, key. Nothing of it outlives the `with` block."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

BIN = pathlib.Path(os.environ["FLEX_BENCH_BIN"])
BUILDPACKS = pathlib.Path(os.environ["ROOT"], "buildpacks")
SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = open("page.txt", "rb").read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
"""
APP = {
    "bin/detect": "#!/bin/sh\necho Inline\n",
    "bin/compile": "#!/bin/sh\nexit 0\n",
    "bin/release": "#!/bin/sh\necho '---'\necho 'default_process_types:'\necho '  web: exec python3 server.py'\n",
    "server.py": SERVER,
}
PYTHON_APP = {
    "requirements.txt": "flask==3.1.0\ngunicorn==23.0.0\n",
    "Procfile": 'web: gunicorn --bind "0.0.0.0:$PORT" app:app\n',
    "app.py": """
from flask import Flask

app = Flask(__name__)


@app.get("/")
def page():
    return open("page.txt").read()
""",
}


def run(*command, **options):
    ran = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if ran.returncode != 0:
        raise SystemExit(f" !     {' '.join(map(str, command))} failed:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


class World:
    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="flex-bench-"))
        self.data, self.home = self.dir / "data", self.dir / "home"
        self.child, self.env = None, {}
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        self.data.mkdir()
        (self.home / ".ssh").mkdir(parents=True)
        (self.data / "stacks").symlink_to(os.environ["FLEX_BENCH_STACKS"])
        self.launch()
        token = self.token("bench@example.com", "--admin")
        ssh = self.home / ".ssh"
        self.env |= {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "FLEX_TOKEN": token,
            "GIT_SSH_COMMAND": f"ssh -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes"
            f" -o UserKnownHostsFile={ssh}/known_hosts -i {ssh}/id_ed25519",
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "Bench", "GIT_AUTHOR_EMAIL": "bench@example.com",
            "GIT_COMMITTER_NAME": "Bench", "GIT_COMMITTER_EMAIL": "bench@example.com",
        }
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", ssh / "id_ed25519")
        self.flex("keys:add", ssh / "id_ed25519.pub")

    def launch(self):
        """Starts flexd, until it says that it serves."""
        any_port = "127.0.0.1:0"
        with open(self.dir / "out", "w") as out, open(self.dir / "log", "w") as log:
            self.child = subprocess.Popen(
                [BIN / "flexd", "--data-dir", self.data, "--buildpacks", BUILDPACKS, "--api", any_port, "--http", any_port, "--https", any_port, "--ssh", any_port],
                stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            )
        deadline = time.monotonic() + 60
        while not (found := re.search(r"serves: API (\S+), HTTP (\S+), HTTPS \S+, git over SSH (\S+),", (self.dir / "out").read_text())):
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f" !     flexd does not serve:\n{(self.dir / 'log').read_text()}")
            time.sleep(0.02)
        self.api, self.http, self.ssh = found.groups()
        # The ports are new ones at each start.
        self.env["FLEX_API"] = f"http://{self.api}"

    def stop(self):
        """Stops flexd and leaves its data; true if it was running."""
        if not self.child or self.child.poll() is not None:
            return False
        self.child.terminate()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        return True

    def token(self, email, *flags):
        """A token of a user, who is made if need be."""
        return run(BIN / "flexd", "--data-dir", self.data, "--buildpacks", BUILDPACKS, "user:token", email, *flags).strip()

    def flex(self, *arguments, cwd=None):
        return run(BIN / "flex", *arguments, cwd=cwd or self.home, env=self.env)

    def git(self, app, *arguments):
        return run("git", *arguments, cwd=self.home / app, env=self.env)

    def create(self, app, files=APP):
        """An app with its first release served."""
        folder = self.home / app
        (folder / "bin").mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
            if name.startswith("bin/"):
                (folder / name).chmod(0o755)
        self.git(app, "init", "-q", "-b", "main")
        self.flex("create", app, cwd=folder)
        self.change(app, "first")
        self.push(app)

    def change(self, app, text):
        (self.home / app / "page.txt").write_text(text)
        self.git(app, "add", "-A")
        self.git(app, "commit", "-q", "-m", f"Say {text}")

    def phases(self, app):
        """Milliseconds of each phase of the app's newest build, once all are stored."""
        deadline = time.monotonic() + 30
        while True:
            newest = json.loads(self.flex("builds:info", "--json", "-a", app))
            found = {p["phase"]: p["millis"] for p in newest["phases"]}
            if "routed" in found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def push(self, app):
        return self.git(app, "push", "-q", "flex", "main")

    def cluster(self):
        path = self.data / "cluster"
        return path.read_text().strip() if path.exists() else ""

    def __exit__(self, *_):
        self.stop()
        if cluster := self.cluster():
            label = f"label=flex.cluster={cluster}"
            rules = pathlib.Path(__file__).parent.parent / "rules.sh"
            subprocess.run(["bash", "-c", '. "$1"; remove_rules "$2"', "rules", rules, cluster], check=False)
            for listed, remove in (
                (["ps", "-aq"], ["rm", "-f"]),
                (["network", "ls", "-q"], ["network", "rm"]),
                (["volume", "ls", "-q"], ["volume", "rm", "-f"]),
                (["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], ["image", "rm", "-f"]),
            ):
                # Images are shared by content, so they are found by their names.
                which = f"reference=flex-{cluster}/*" if listed[0] == "image" else label
                ids = sorted(set(run("docker", *listed, "--filter", which).split()))
                if ids:
                    subprocess.run(["docker", *remove, *ids], stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)
