"""Prints the nginx configuration of a static site: nginx_conf.py BUILD_DIR APP_DIR.

Reads static.json (heroku-buildpack-static's words). Nothing of it reaches the configuration unquoted: text is quoted and
its `$` taken literally, patterns are globs turned into escaped regular expressions, names and codes are checked.
@PORT@ and @WORK@ are filled in at start.
"""

import hashlib
import json
import os
import re
import sys

KNOWN = {"root", "clean_urls", "https_only", "routes", "redirects", "headers", "error_page", "encoding", "logging"}
# Files of the app that are no part of the site when the site is at the top of the repository.
HIDDEN = ["Procfile", "static.json", "app.json", "package.json", "package-lock.json", "Dockerfile", "flex.toml"]
# A build tool puts a hash of the content into such names, so they never change.
HASHED = r"[.-][0-9A-Za-z_]{8,}\.(?:js|css|mjs|woff2?|png|jpe?g|svg|webp|avif|gif|map|wasm)"


def stop(text):
    print(f"       static.json: {text}", file=sys.stderr)
    sys.exit(1)


def quoted(text):
    """A literal for nginx: no quote, variable or control character of it is seen as syntax."""
    if not isinstance(text, str) or re.search(r"[\x00-\x1f\x7f]", text):
        stop(f"{text!r} is not a plain text")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "${flex_dollar}") + '"'


def glob(pattern):
    """/**/ and * as in the original: ** crosses slashes, * does not."""
    if not isinstance(pattern, str) or not pattern.startswith("/") or re.search(r"[\x00-\x20\x7f\"\\{}]", pattern):
        stop(f"the path pattern {pattern!r} must begin with / and hold no blanks, quotes or braces")
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join(".*" if p == "**" else "[^/?]*" if p == "*" else re.escape(p).replace("/", "/") for p in parts)


def inside(root, name, what):
    path = name.lstrip("/") if isinstance(name, str) else stop(f"{what} is not a text")
    if ".." in path.split("/") or re.search(r"[\x00-\x1f]", path):
        stop(f"{what} {name!r} leaves the site")
    return path


def tree_hash(root):
    digest = hashlib.sha256()
    for folder, dirs, files in sorted(os.walk(root)):
        dirs.sort()
        if "/.flex" in folder or "/.git" in folder:
            continue
        for name in sorted(files):
            path = os.path.join(folder, name)
            digest.update(os.path.relpath(path, root).encode("utf-8", "surrogateescape") + b"\0")
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as f:
                    while block := f.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()[:24]


def obj(settings, key):
    value = settings.get(key, {})
    return value if isinstance(value, dict) else stop(f"{key} must be an object")


def main():
    build, app = sys.argv[1:]
    settings = {}
    path = os.path.join(build, "static.json")
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8-sig") as f:
                settings = json.load(f)
        except ValueError as e:
            stop(f"not valid JSON: {e}")
        if not isinstance(settings, dict):
            stop("must be an object")
    for key in sorted(set(settings) - KNOWN):
        print(f" !     static.json: {key} is not known here and has no effect", file=sys.stderr)

    root = settings.get("root")
    if root is None:
        root = next((r for r in ("public_html", "public", "dist", "build", "_site") if os.path.isfile(f"{build}/{r}/index.html")), ".")
    root = inside(build, root, "root").strip("/") or "."
    site = os.path.normpath(os.path.join(build, root))
    if not os.path.isdir(site):
        stop(f"root is {root}, but there is no such directory")
    print(f"       Serving {root if root != '.' else 'the whole repository'}", file=sys.stderr)
    etag = tree_hash(site)
    served = os.path.normpath(os.path.join(app, root))

    maps, body = [], []
    for n, (name, rules) in enumerate(sorted(headers(obj(settings, "headers")).items())):
        maps.append(f"  map $request_uri $flex_header_{n} {{\n    default \"\";")
        # nginx takes the first that matches, people expect the last.
        for pattern, value in reversed(rules):
            maps.append(f"    \"~^{glob(pattern)}(?:\\?|$)\" {quoted(value)};")
        maps.append("  }")
        body.append(f"    add_header {name} $flex_header_{n};")
        if name.lower() == "cache-control":
            body[-1] = f"    add_header Cache-Control $flex_cache_{n};"
            maps.append(f"  map $flex_header_{n} $flex_cache_{n} {{ \"\" $flex_cache; default $flex_header_{n}; }}")
    if not any(line.startswith("    add_header Cache-Control") for line in body):
        body.append("    add_header Cache-Control $flex_cache;")

    if settings.get("https_only") is True:
        body.append('    if ($http_x_forwarded_proto = "http") { return 301 https://$host$request_uri; }')
    clean = settings.get("clean_urls") is True
    body += same_as_before(etag, clean)

    for source, to in obj(settings, "redirects").items():
        to = to if isinstance(to, dict) else {"url": to}
        code = to.get("status", 301)
        if code not in (301, 302, 303, 307, 308):
            stop(f"the redirect of {source} has status {code!r}; 301, 302, 303, 307 and 308 are possible")
        if not isinstance(to.get("url"), str) or not re.match(r"(https?:/)?/", to["url"]):
            stop(f"the redirect of {source} needs a url that begins with / or http")
        body.append(f"    location ~ \"^{glob(source)}$\" {{ return {code} {quoted(to['url'])}; }}")

    if root == ".":
        names = "|".join(re.escape(n) for n in HIDDEN)
        body.append(f"    location ~ \"^/(?:{names})$\" {{ return 404; }}")
    body.append('    location ~ "/\\.(?!well-known/)" { return 404; }')

    page = settings.get("error_page", "404.html" if os.path.isfile(f"{site}/404.html") else None)
    if page is not None:
        page = "/" + inside(site, page, "error_page")
        body.append(f"    error_page 404 {quoted(page)};")
        # An answer of its own, never 304: it stands for a page that is not there.
        body.append(f"    location = {quoted(page).replace('${flex_dollar}', '$')} {{ }}")
    tries = "$uri $uri.html $uri/" if clean else "$uri $uri/"
    routes = obj(settings, "routes")
    for pattern, target in routes.items():
        target = "/" + inside(site, target, f"the route {pattern}")
        if not os.path.isfile(site + target):
            stop(f"the route {pattern} leads to {target}, which is not in the site")
        body.append(f"    location ~ \"^{glob(pattern)}$\" {{ {SAME_OR_ROUTE} try_files {tries} {quoted(target).replace('${flex_dollar}', '')} =404; }}")
    body.append(f"    location / {{ {SAME} try_files {tries} =404; }}")

    print(TEMPLATE % {"maps": "\n".join(maps), "body": "\n".join(body), "root": quoted(served), "etag": etag, "hashed": HASHED})


# nginx decides on If-None-Match by a file's time, which says nothing here, so it is done by hand: 304 only where a page
# would be sent. What is there is looked up for the whole server (in `if`, nginx can neither nest nor join conditions).
SAME = 'if ($flex_state = "same,file") { return 304; }'
# What is no file and no directory is answered with the route's page, which is there.
SAME_OR_ROUTE = 'if ($flex_state ~ "^same,(?:file|none)$") { return 304; }'


def same_as_before(etag, clean):
    """Sets $flex_state: whether the client has this very site, and what its path leads to: `same,file` and the like."""
    lines = [
        'set $flex_same "";',
        f'if ($http_if_none_match ~ "{etag}") {{ set $flex_same "same"; }}',
        'if ($request_method !~ "^(?:GET|HEAD)$") { set $flex_same ""; }',
        'set $flex_there "none";',
        'if (-d $request_filename) { set $flex_there "directory"; }',
        'if (-f $request_filename) { set $flex_there "file"; }',
        'set $flex_index "/dev/null/";',
        'if ($uri ~ "/$") { set $flex_index "$request_filename"; }',
        'if (-f "${flex_index}index.html") { set $flex_there "file"; }',
        'if (-f "${flex_index}index.htm") { set $flex_there "file"; }',
    ]
    if clean:
        lines.append('if (-f "$request_filename.html") { set $flex_there "file"; }')
    return [f"    {line}" for line in [*lines, 'set $flex_state "$flex_same,$flex_there";']]


def headers(given):
    """Header name -> [(pattern, value)], checked."""
    out = {}
    for pattern, pairs in given.items():
        if not isinstance(pairs, dict):
            stop(f"headers for {pattern} must be an object")
        for name, value in pairs.items():
            if not re.fullmatch(r"[A-Za-z0-9!#%&'*+.^_`|~-]{1,100}", name) or "'" in name or "`" in name:
                stop(f"{name!r} is not a header name")
            same = next((n for n in out if n.lower() == name.lower()), name)
            out.setdefault(same, []).append((pattern, str(value)))
    return out


TEMPLATE = r"""# Made by the static buildpack; @..@ are filled in at start.
daemon off;
pid @WORK@/nginx.pid;
worker_processes 1;
error_log stderr warn;
events { worker_connections 1024; }
http {
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  client_body_temp_path @WORK@/body;
  proxy_temp_path @WORK@/proxy;
  fastcgi_temp_path @WORK@/fastcgi;
  uwsgi_temp_path @WORK@/uwsgi;
  scgi_temp_path @WORK@/scgi;
  log_format flex '$request_method $request_uri $status $body_bytes_sent request_id=$http_x_request_id';
  access_log /dev/stdout flex;
  sendfile on;
  tcp_nopush on;
  server_tokens off;
  charset utf-8;
  absolute_redirect off;
  keepalive_timeout 95s;
  gzip on;
  gzip_vary on;
  gzip_proxied any;
  gzip_min_length 512;
  gzip_types text/css text/plain text/xml text/javascript application/javascript application/json application/manifest+json
    application/xml application/rss+xml application/atom+xml application/wasm image/svg+xml font/ttf font/otf;
  geo $flex_dollar { default "$"; }
  map $request_uri $flex_cache {
    default "public, max-age=0, must-revalidate";
    "~%(hashed)s(?:\?|$)" "public, max-age=31536000, immutable";
  }
  map $status $flex_etag {
    default "";
    "~^(?:200|206|304)$" 'W/"%(etag)s"';
  }
%(maps)s
  server {
    listen @PORT@ default_server;
    server_name _;
    root %(root)s;
    index index.html index.htm;
    # Files have no times of their own in a slug, so what nginx would make of them says nothing: the whole site's hash does.
    etag off;
    if_modified_since off;
    add_header ETag $flex_etag;
    add_header X-Content-Type-Options nosniff;
%(body)s
  }
}
"""

main()
