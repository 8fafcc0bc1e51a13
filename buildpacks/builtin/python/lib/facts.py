"""Reads facts about a Python project for the buildpack; standard library only.

facts.py requires-python FILE    prints what pyproject.toml asks for (PEP 621, then Poetry), or nothing
facts.py satisfies SPEC VERSION  status 0: VERSION meets SPEC; 1: it does not; 3: SPEC cannot be understood
facts.py same-major SPEC VERSION status 0: some version of VERSION's major meets SPEC; 1: none does
facts.py packaged FILE           status 0: the project itself is to be installed (it has a build system)
facts.py uv-indexes FILE         prints the indexes that pyproject.toml names for uv, as lines of a requirements file
facts.py included FILE           prints every file that a requirements file reads, one a line, itself first;
                                 status 4: it installs something from the source tree
"""

import os
import re
import sys
import tomllib


def load(path):
    try:
        with open(path, "rb") as f:
            return tomllib.load(f)
    except (OSError, tomllib.TOMLDecodeError) as e:
        print(f"       {path}: {e}", file=sys.stderr)
        sys.exit(2)


def table(value):
    return value if isinstance(value, dict) else {}


def requires_python(path):
    data = load(path)
    poetry = table(table(data.get("tool")).get("poetry"))
    spec = table(data.get("project")).get("requires-python") or table(poetry.get("dependencies")).get("python") or ""
    print(" || ".join(",".join(map(pep440, a)) for a in alternatives(spec)) if isinstance(spec, str) else "")


def pep440(clause):
    """Poetry's two own operators in words that uv understands too."""
    m = re.fullmatch(r"([~^])([0-9]+)(?:\.([0-9]+))?((?:\.[0-9]+)?)", clause)
    if not m:
        return clause
    op, major, minor, patch = m.groups()
    end = int(major) + 1 if op == "^" or minor is None else f"{major}.{int(minor) + 1}"
    return f">={major}{'' if minor is None else '.' + minor}{patch},<{end}"


def numbers(text):
    return tuple(int(p) for p in text.split("."))


def padded(v, n=3):
    return v + (0,) * (n - len(v))


def meets(spec, have):
    """One clause against a version tuple; raises ValueError on what it does not know."""
    m = re.fullmatch(r"\s*(===?|~=|!=|>=|<=|>|<|\^|~|=)?\s*v?([0-9]+(?:\.[0-9]+){0,2})(\.\*|\.x|-dev|rc\d+|[ab]\d+)?\s*", spec)
    if not m:
        raise ValueError(spec)
    op, want = m.group(1) or "", numbers(m.group(2))
    if op in ("", "=", "==", "==="):
        return have[: len(want)] == want
    if op == "!=":
        return have[: len(want)] != want
    if op == ">=":
        return have >= padded(want)
    if op == ">":
        return have[: len(want)] > want
    if op == "<":
        return have < padded(want)
    if op == "<=":
        return have[: len(want)] <= want
    if op == "~=":
        return have >= padded(want) and have[: len(want) - 1] == want[:-1]
    if op == "~":
        return have >= padded(want) and have[: min(len(want), 2)] == want[:2]
    return have >= padded(want) and have[0] == want[0]


def alternatives(spec):
    """The clauses of each alternative. Poetry lets people write a blank where others want a comma."""
    joined = re.sub(r"([<>=!~^])\s+", r"\1", spec)
    return [re.findall(r"[^,\s]+", alt) for alt in re.split(r"\|\|?", joined)]


def satisfies(spec, have):
    if spec.strip() in ("*", ""):
        return True
    return any(all(c == "*" or meets(c, have) for c in alt) for alt in alternatives(spec))


def release(version):
    return padded(numbers(re.match(r"[0-9.]+", version).group().strip(".")))


def same_major(spec, version):
    """A specifier has no bounds to be asked for, so versions are tried: those that there may be, and those that it names."""
    major = release(version)[0]
    tried = [(major, minor, patch) for minor in range(40) for patch in range(40)]
    tried += [padded(numbers(v)) for v in re.findall(r"[0-9]+(?:\.[0-9]+){0,2}", spec)]
    return any(have[0] == major and satisfies(spec, have) for have in tried)


def uv_indexes(path):
    found = table(table(load(path).get("tool")).get("uv")).get("index")
    for index in found if isinstance(found, list) else []:
        url = table(index).get("url")
        if isinstance(url, str) and "://" in url and not re.search(r"\s", url):
            print(f"{'--index-url' if index.get('default') is True else '--extra-index-url'} {url}")


def included(path):
    seen, local, todo = [], False, [path]
    while todo:
        current = os.path.normpath(todo.pop(0))
        if current in seen or not os.path.isfile(current):
            continue
        seen.append(current)
        with open(current, encoding="utf-8-sig", errors="replace") as f:
            for raw in f:
                line = re.sub(r"(^|\s)#.*", "", raw).strip()
                m = re.match(r"(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)", line)
                if m:
                    if "://" not in m.group(1):
                        todo.append(os.path.join(os.path.dirname(current), m.group(1)))
                elif re.match(r"(-e|--editable|\.|/|file:)", line) or "@ file:" in line or "--find-links" in line:
                    local = True
                elif "/" in line.split(";")[0] and "://" not in line and not line.startswith("-"):
                    local = True
    print("\n".join(seen))
    return 4 if local else 0


def main():
    what, *args = sys.argv[1:]
    if what == "requires-python":
        requires_python(*args)
    elif what == "satisfies":
        try:
            return 0 if satisfies(args[0], release(args[1])) else 1
        except ValueError:
            return 3
    elif what == "same-major":
        return 0 if same_major(*args) else 1
    elif what == "packaged":
        data = load(*args)
        return 0 if "build-system" in data and table(table(data.get("tool")).get("uv")).get("package") is not False else 1
    elif what == "uv-indexes":
        uv_indexes(*args)
    elif what == "included":
        return included(*args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
