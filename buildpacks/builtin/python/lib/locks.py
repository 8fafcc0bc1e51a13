"""Turns a lock file into the exact list of requirements that it pins; standard library only.

locks.py pipenv Pipfile.lock [app|machine]    whose setting names a default index, if any does
locks.py poetry poetry.lock pyproject.toml
locks.py pdm pdm.lock pyproject.toml

Prints one requirement a line, with hashes, to be installed without looking for dependencies. Status 5: only the tool
itself can tell what this lock means, or whether it is still right (an older format, or not made from this pyproject.toml
as far as can be told here). What the formats hold is what their tools write; their versions are checked.
"""

import hashlib
import json
import os
import re
import sys
import tomllib

ASK_THE_TOOL = 5


def load(path):
    try:
        with open(path, "rb") as f:
            return json.load(f) if path.endswith("Pipfile.lock") else tomllib.load(f)
    except (OSError, ValueError) as e:
        print(f"       {path}: {e}", file=sys.stderr)
        sys.exit(2)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(name, pin, extras=(), marker="", hashes=()):
    """One line: `name[extra]==1 ; marker --hash=...`, or `name @ url ; marker`."""
    bracket = "[" + ",".join(sorted(extras)) + "]" if extras else ""
    marker = f" ; {marker}" if marker else ""
    return f"{name}{bracket}{pin}{marker}" + "".join(f" --hash={h}" for h in hashes)


def indexes(sources, setting):
    """The first source of a Pipfile is its default one. An app's own setting replaces it; a machine's replaces the one that
    pipenv calls pypi, and no other: nobody sets up a mirror of an index that only this app knows."""
    for n, source in enumerate(sources):
        if setting and (source.get("name") == "pypi" or (setting == "app" and n == 0)):
            continue
        # As pipenv reads it: a password is named, not written.
        url = os.path.expandvars(source["url"])
        if re.search(r"\s", url):
            raise ValueError("a source with a blank in its url")
        yield f"--{'extra-' if n or setting else ''}index-url {url}"


def pipenv(path, setting=""):
    lock = load(path)
    for line in indexes(lock.get("_meta", {}).get("sources", []), setting):
        print(line)
    for name, pin in sorted(lock.get("default", {}).items()):
        extras, marker = pin.get("extras", ()), pin.get("markers", "")
        if "git" in pin:
            sub = f"#subdirectory={pin['subdirectory']}" if pin.get("subdirectory") else ""
            print(requirement(name, f" @ git+{pin['git']}@{pin['ref']}{sub}", extras, marker))
        elif "file" in pin:
            print(requirement(name, f" @ {pin['file']}", extras, marker))
        elif "path" in pin:
            print(requirement(pin["path"], "", extras, marker))
        else:
            print(requirement(name, pin["version"], extras, marker, pin.get("hashes", ())))


def poetry_hashes(project):
    """What Poetry compares: a hash of what a lock depends on. Two forms; before 2.3 groups did not count."""
    table, tool = project.get("project", {}), project.get("tool", {}).get("poetry", {})
    wanted = ("requires-python", "dependencies", "optional-dependencies")
    main = {key: table[key] for key in wanted if key in table}
    for groups in (project.get("dependency-groups", {}), {}):
        own = {}
        for key in ("dependencies", "source", "extras", "dev-dependencies", "group"):
            # Keys of old are hashed even where they are missing, but only where nothing else says what is needed.
            if key in tool or (key != "group" and not main and not groups):
                own[key] = tool.get(key)
        whole = {"project": main} if main else {}
        if groups:
            whole["dependency-groups"] = groups
        whole = {**whole, "tool": {"poetry": own}} if whole else own
        yield hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def poetry(path, project):
    lock, lines = load(path), []
    meta = lock.get("metadata", {})
    if meta.get("lock-version") != "2.1" or meta.get("content-hash") not in poetry_hashes(load(project)):
        return ASK_THE_TOOL
    for package in lock.get("package", []):
        if package.get("optional") or "main" not in package.get("groups", []):
            continue
        marker = package.get("markers", "")
        marker = marker.get("main", "") if isinstance(marker, dict) else marker
        source, name = package.get("source", {}), package["name"]
        kind, url = source.get("type", ""), source.get("url", "")
        sub = f"#subdirectory={source['subdirectory']}" if source.get("subdirectory") else ""
        if kind in ("", "legacy"):
            if kind and f"--extra-index-url {url}/" not in lines:
                lines.insert(0, f"--extra-index-url {url}/")
            hashes = [f["hash"] for f in package.get("files", [])]
            lines.append(requirement(name, f"=={package['version']}", (), marker, hashes))
        elif kind == "git":
            lines.append(requirement(name, f" @ git+{url}@{source['resolved_reference']}{sub}", (), marker))
        elif kind == "url":
            lines.append(requirement(name, f" @ {url}{sub}", (), marker))
        elif kind in ("directory", "file"):
            lines.append(requirement(url if url.startswith((".", "/")) else f"./{url}", "", (), marker))
        else:
            return ASK_THE_TOOL
    print("\n".join(lines))
    return 0


def pdm_hash(project):
    settings, table = project.get("tool", {}).get("pdm", {}), project.get("project", {})
    groups = {normal(name): list(needs) for name, needs in project.get("dependency-groups", {}).items()}
    for name, needs in settings.get("dev-dependencies", {}).items():
        groups.setdefault(normal(name), []).extend(needs)
    whole = {
        "sources": settings.get("source", []),
        "dependencies": table.get("dependencies", []),
        "dev-dependencies": groups,
        "optional-dependencies": table.get("optional-dependencies", {}),
        "requires-python": table.get("requires-python", ""),
        "resolution": settings.get("resolution", {}),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def pdm(path, project):
    lock, project = load(path), load(project)
    meta = lock.get("metadata", {})
    # Only with inherit_metadata does each package say for which groups and markers it is there.
    if "inherit_metadata" not in meta.get("strategy", []) or not str(meta.get("lock_version", "")).startswith("4."):
        return ASK_THE_TOOL
    if meta.get("content_hash") != f"sha256:{pdm_hash(project)}":
        return ASK_THE_TOOL
    sources = project.get("tool", {}).get("pdm", {}).get("source", [])
    for source in sources:
        # A source may replace the index, which is a name that only the tool knows how to read.
        if source.get("name") == "pypi" or source.get("type", "index") != "index" or "${" in source.get("url", ""):
            return ASK_THE_TOOL
    lines = [f"--extra-index-url {source['url']}" for source in sources]
    for package in lock.get("package", []):
        # An entry with extras repeats the one without.
        if "default" not in package.get("groups", []) or package.get("extras"):
            continue
        name, marker = package["name"], package.get("marker", "")
        sub = f"#subdirectory={package['subdirectory']}" if package.get("subdirectory") else ""
        if "git" in package:
            lines.append(requirement(name, f" @ git+{package['git']}@{package['revision']}{sub}", (), marker))
        elif "url" in package:
            lines.append(requirement(name, f" @ {package['url']}{sub}", (), marker))
        elif "path" in package:
            lines.append(requirement(package["path"], "", (), marker))
        else:
            hashes = [f["hash"] for f in package.get("files", []) if "hash" in f]
            lines.append(requirement(name, f"=={package['version']}", (), marker, hashes))
    print("\n".join(lines))
    return 0


def main():
    kind, *args = sys.argv[1:]
    try:
        return {"pipenv": pipenv, "poetry": poetry, "pdm": pdm}[kind](*args) or 0
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        print(f"       {args[0]} does not hold what {kind} writes there: {e!r}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
