"""The machine's name, and where results go: a table for people, a line of JSON for programs."""

import json
import math
import os
import pathlib
import platform
import time


def load():
    return round(os.getloadavg()[0], 2)


def machine():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"cores": os.cpu_count(), "processor": model, "memory_gib": round(memory / 2**30, 1), "kernel": platform.release()}


def percentile(values, share):
    """The nearest-rank percentile: always one of the values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def finish(name, folder, load_before, rows, values):
    """`rows` are (what, value) for the table, `values` goes to NAME.jsonl."""
    box, after = machine(), load()
    rows = [
        *rows,
        ("machine", f"{box['cores']} cores ({box['processor']}), {box['memory_gib']} GiB, Linux {box['kernel']}"),
        ("load at start, end", f"{load_before}, {after}"),
    ]
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"       {what:<{width}}  {value}")
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = {"bench": name, "at": at, "machine": box, "load_start": load_before, "load_end": after, "quick": bool(os.environ.get("FLEX_BENCH_QUICK")), **values}
    with open(pathlib.Path(folder) / f"{name}.jsonl", "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
