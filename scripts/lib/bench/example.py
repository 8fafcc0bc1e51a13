"""example.py NAME FOLDER -- COMMAND...: runs a benchmark that prints its own table, and keeps what it printed."""

import subprocess
import sys

import report

name, folder, _, *command = sys.argv[1:]
before = report.load()
ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
print(ran.stdout, end="")
if ran.returncode != 0:
    sys.exit(ran.returncode)
report.finish(name, folder, before, [], {"output": ran.stdout.splitlines()})
