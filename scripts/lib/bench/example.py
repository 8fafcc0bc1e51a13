"""example.py NAME FOLDER -- COMMAND...: runs a benchmark that is an example of its crate, and keeps what it printed.

A line of JSON becomes a row of the table (its first value names it); any other line is shown as it is.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import report


def rows_of(results):
    for result in results:
        (_, what), *rest = result.items()
        yield str(what), ", ".join(f"{key} {value}" for key, value in rest)


def ratios(name, results):
    """What is compared: how much faster than OpenSSH with git, 1 being as fast; as it comes, and keeping packs as Flex does."""
    medians = {r["target"]: r["median"] for r in results if "target" in r}
    if name != "receive" or not {"flex", "openssh"} <= medians.keys():
        return {}
    others = [target for target in medians if target.startswith("openssh")]
    return {f"ratio_to_{other.replace('-', '_')}": round(medians[other] / medians["flex"], 3) for other in others}


name, folder, _, *command = sys.argv[1:]
before = report.load()
# What it leaves in its folders when it is ended goes with them; the store's must be on the disk that is measured.
scratch, disk = tempfile.mkdtemp(prefix="flex-bench-"), tempfile.mkdtemp(prefix="disk-", dir=folder)
atexit.register(lambda: [shutil.rmtree(path, ignore_errors=True) for path in (scratch, disk)])
env = os.environ | {"TMPDIR": scratch, "FLEX_BENCH_DISK": disk}
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env)


def end(*_):
    """An interrupted measurement leaves no process behind."""
    os.killpg(child.pid, signal.SIGTERM)
    child.wait()
    sys.exit("ended by a signal")


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
results, output = [], []
for line in child.stdout:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict) and parsed:
        results.append(parsed)
    else:
        output.append(line.rstrip("\n"))
        print("       " + line, end="", flush=True)
if child.wait() != 0:
    sys.exit(f" !     {name}: its program ended with status {child.returncode}")
compared = ratios(name, results)
rows = [*rows_of(results), *((key.replace("_", " "), value) for key, value in compared.items())]
values = {"results": results, **compared} if results else {}
report.finish(name, folder, before, rows, values | ({"output": output} if output else {}))
