"""A web app in one file: answers every request with a page, logs one line for each, ends on SIGTERM."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = """<!doctype html>
<title>It works</title>
<style>body {{ font: 18px/1.5 system-ui; margin: 4em auto; max-width: 34em }}</style>
<h1>It works</h1>
<p>This is release {release} of <b>{app}</b>, served by {dyno}.</p>
<p>Change <code>server.py</code>, commit, and <code>git push flex main</code>.</p>
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        env = {name.lower().removeprefix("flex_"): value for name, value in os.environ.items()}
        body = PAGE.format(
            release=env.get("release", "?"), app=env.get("app", "?"), dyno=env.get("dyno", "?")
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT", "5000"))
    print(f"listening on port {port}", flush=True)
    ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
