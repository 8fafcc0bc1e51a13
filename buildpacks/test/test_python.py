"""The pure parts of the Python buildpack: what a lock file comes to, and which versions meet what is asked for.

Run: python3 -m unittest discover --start-directory buildpacks/test
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from unittest import mock

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "builtin", "python", "lib"))

import facts  # noqa: E402
import locks  # noqa: E402

PYPI = {"name": "pypi", "url": "https://index.example/simple", "verify_ssl": True}
PRIVATE = {"name": "private", "url": "https://me:$TOKEN@private.example/simple", "verify_ssl": True}


def said(function, *args):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function(*args)
    return out.getvalue().splitlines()


class Pipfile(unittest.TestCase):
    def lines(self, sources, setting=""):
        lock = {"_meta": {"sources": sources}, "default": {"idna": {"version": "==3.20", "hashes": ["sha256:aa"]}}}
        with tempfile.TemporaryDirectory() as top, mock.patch.dict(os.environ, TOKEN="word"):
            path = os.path.join(top, "Pipfile.lock")
            with open(path, "w", encoding="utf-8") as f:
                json.dump(lock, f)
            lines = said(locks.pipenv, path, setting)
        self.assertEqual(lines.pop(), "idna==3.20 --hash=sha256:aa")
        return lines

    def test_the_first_source_is_the_index(self):
        self.assertEqual(self.lines([]), [])
        self.assertEqual(self.lines([PYPI]), ["--index-url https://index.example/simple"])
        self.assertEqual(self.lines([PRIVATE]), ["--index-url https://me:word@private.example/simple"])
        self.assertEqual(
            self.lines([PRIVATE, PYPI]),
            ["--index-url https://me:word@private.example/simple", "--extra-index-url https://index.example/simple"],
        )

    def test_a_machines_mirror_stands_for_pypi_alone(self):
        self.assertEqual(self.lines([PYPI], "machine"), [])
        self.assertEqual(self.lines([PRIVATE], "machine"), ["--extra-index-url https://me:word@private.example/simple"])
        self.assertEqual(self.lines([PYPI, PRIVATE], "machine"), ["--extra-index-url https://me:word@private.example/simple"])

    def test_the_apps_own_setting_replaces_the_first(self):
        self.assertEqual(self.lines([PRIVATE], "app"), [])
        self.assertEqual(self.lines([PRIVATE, {"url": "https://b.example"}], "app"), ["--extra-index-url https://b.example"])

    def test_a_source_is_one_word(self):
        with self.assertRaises(ValueError):
            self.lines([{"url": "https://a.example --find-links /"}])


class Versions(unittest.TestCase):
    def asks(self, spec):
        return facts.satisfies(spec, facts.release("3.13.5")), facts.same_major(spec, "3.13.5")

    def test_what_fits(self):
        for spec in ("3.13", "3", "*", ">=3.11,<4.0", ">=3.11 <4.0", ">= 3.11, < 4", "^3.11", "~3.13", "~2.7 || ^3.9", "3.13.x", "~=3.8"):
            self.assertEqual(self.asks(spec), (True, True), spec)

    def test_what_is_of_the_same_major(self):
        for spec in ("3.12", "3.12.4", "3.999.1", ">=3.9 <3.12", "~=3.12.1", "!=3.13.*", ">3.13.5,<3.13.7"):
            self.assertEqual(self.asks(spec), (False, True), spec)

    def test_another_major(self):
        for spec in ("2", "2.7", "2.7.18", ">=2.7,<3", "^2.7", "4", ">=4"):
            self.assertEqual(self.asks(spec), (False, False), spec)

    def test_what_is_no_version(self):
        for spec in ("newest", ">=3.x.y", ">"):
            with self.assertRaises(ValueError, msg=spec):
                self.asks(spec)

    def test_poetrys_words_are_put_into_everyones(self):
        for spec, everyones in (
            (">=3.11 <4.0", ">=3.11,<4.0"),
            ("^3.11", ">=3.11,<4"),
            ("^3.11.2 || >= 4", ">=3.11.2,<4 || >=4"),
            ("~3.12", ">=3.12,<3.13"),
            ("~3", ">=3,<4"),
            ("", ""),
        ):
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as f:
                f.write(f'[tool.poetry.dependencies]\npython = "{spec}"\n')
                f.flush()
                self.assertEqual(said(facts.requires_python, f.name), [everyones], spec)


if __name__ == "__main__":
    unittest.main()
