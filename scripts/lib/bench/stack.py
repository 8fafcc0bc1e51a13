"""stack.py FOLDER: how long `flexd stack build` takes for a small stack, downloads included.

Each round makes both images of FLEXD_STACK's recipe anew, under a name and in a data directory of the measurement's own.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import report

ROOT = pathlib.Path(os.environ["ROOT"])
ROUNDS = 1 if os.environ.get("FLEX_BENCH_QUICK") else 3


def main():
    folder, before = sys.argv[1], report.load()
    at = pathlib.Path(tempfile.mkdtemp(prefix="flex-bench-"))
    name, recipe = f"bench-{os.getpid()}", at / "recipe"
    flexd = [pathlib.Path(os.environ["FLEX_BENCH_BIN"]).resolve() / "flexd", "--buildpacks", ROOT / "buildpacks"]
    took, size = [], ""
    try:
        shutil.copytree(ROOT / "buildpacks/stacks" / os.environ["FLEXD_STACK"], recipe, symlinks=True)
        text = (recipe / "stack.toml").read_text(encoding="utf-8")
        (recipe / "stack.toml").write_text(re.sub(r'^name = ".*"$', f'name = "{name}"', text, count=1, flags=re.MULTILINE), encoding="utf-8")
        for n in range(ROUNDS):
            data = at / f"data-{n}"
            data.mkdir()
            began = time.monotonic()
            ran = subprocess.run(
                [*flexd, "--data-dir", data, "stack", "build", recipe],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            took.append(time.monotonic() - began)
            if ran.returncode != 0:
                raise SystemExit(f" !     flexd stack build failed:\n{ran.stdout}")
            size = ran.stdout.splitlines()[-1].split(": ", 1)[-1]
            shutil.rmtree(data)
    finally:
        socket = os.environ.get("FLEXD_DOCKER")
        docker = ["docker", *(["-H", f"unix://{socket}"] if socket else [])]
        images = [f"flex/{name}:build", f"flex/{name}:run"]
        subprocess.run([*docker, "image", "rm", *images], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(at, ignore_errors=True)
    rows = [(f"{os.environ['FLEXD_STACK']}, both images", f"p50 {report.percentile(took, 0.5):.1f} s, worst {max(took):.1f} s (n={len(took)}); {size}")]
    report.finish("stack", folder, before, rows, {"stack": os.environ["FLEXD_STACK"], "seconds": took, "p50_s": report.percentile(took, 0.5)})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # cleaned up on the way out
    main()
