"""Writes the table and the certificate that a router of scripts/conformance finds on its disk: DIR PORT CHAIN KEY."""

import json
import os
import pathlib
import sys

directory, port, chain, key = sys.argv[1:]
state = pathlib.Path(directory) / "router"
state.mkdir(parents=True)
os.umask(0o077)


def app(n, name, policy=None):
    backend = {"instance": f"00000000-0000-4000-8000-1{n:011d}", "name": "web.1", "address": f"127.0.0.1:{port}"}
    route = {"app": f"00000000-0000-4000-8000-{n:012d}", "name": name, "domains": [f"{name}.test"]}
    route |= {"state": "serving", "backends": [backend]}
    return route | ({"policy": policy} if policy else {})


# What slow uploads are ended by is a route's own setting.
paced = {"http": {"min_body_bytes_per_second": 512}}
table = {"format": 2, "revision": 1, "apps": [app(1, "plain"), app(2, "paced", paced)]}
(state / "routes.json").write_text(json.dumps(table))
certificate = {"id": "test", "names": ["plain.test"], "chain": pathlib.Path(chain).read_text()}
certificate["key"] = pathlib.Path(key).read_text()
(state / "certificates.json").write_text(json.dumps({"revision": 1, "certificates": [certificate]}))
