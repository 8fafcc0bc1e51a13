# shellcheck shell=bash disable=SC2034,SC2154
# Which Python: what the app asks for, what can be had. Sourced by bin/compile.
#
# Sets: python (an interpreter), python_version, python_home (a copy to take into the slug, or nothing).

# Prints the version that the app asks for: X.Y, X.Y.Z, a specifier such as >=3.11,<3.14, or nothing. Sets asked_in.
asked_version() {
  local text
  asked_in=
  if [[ -f .python-version ]]; then
    asked_in=.python-version
    text=$(grep -Ev '^[[:space:]]*(#|$)' .python-version | head -n 1 | tr -d '[:space:]' | sed 's/^cpython-//; s/^python-//')
  elif [[ -f runtime.txt ]]; then
    asked_in=runtime.txt
    text=$(head -n 1 runtime.txt | tr -d '[:space:]' | sed 's/^python-//')
  elif [[ $manager == pipenv ]]; then
    asked_in=Pipfile.lock
    text=$(jq -r '._meta.requires.python_full_version // ._meta.requires.python_version // ""' Pipfile.lock)
  elif [[ -f pyproject.toml ]]; then
    asked_in=pyproject.toml
    text=$(python3 "$here/lib/facts.py" requires-python pyproject.toml) || fail "pyproject.toml cannot be read (see above)."
  else
    text=
  fi
  asked=$text
}

choose_python() {
  local stack_version asked status=0
  # Isolated and without site: a tenth of the time that a Python takes to start with all it has.
  stack_version=$(python3 -I -S -c 'import sys; print(sys.version.split()[0])')
  python=$(command -v python3) python_version=$stack_version python_home=
  asked_version
  [[ -n $asked ]] || return 0
  [[ ${#asked} -le 200 && $asked =~ ^[A-Za-z0-9.,=\>\<~!*|^\ -]+$ ]] ||
    fail "$asked_in asks for a Python version that cannot be understood." \
      "Write a version such as 3.13 or 3.13.1 there."
  python3 "$here/lib/facts.py" satisfies "$asked" "$stack_version" || status=$?
  case $status in
    0) return 0 ;;
    3) fail "$asked_in asks for Python \"$asked\", which cannot be understood." "Write a version such as 3.13 or 3.13.1 there." ;;
  esac
  if ! python3 "$here/lib/facts.py" same-major "$asked" "$stack_version"; then
    other_major Python "$asked ($asked_in)" "this stack has $stack_version." "${stack_version%%.*}"
  fi
  if other_python "$asked"; then return 0; fi
  wanted_unavailable Python "$asked ($asked_in)" "this stack has $stack_version, and no other build could be fetched." "$stack_version"
}

# Fetches a build of CPython with uv, where the machine can reach one. A refusal is remembered for a day: it costs time.
other_python() {
  local dir=$CACHE_DIR/pythons marker found
  marker=$CACHE_DIR/no-python-$(hash_of "$1")
  [[ -z $(find "$marker" -mmin -1440 2>/dev/null) ]] || return 1
  ensure_uv
  info "Looking for Python $1 (this stack has $python_version)"
  if UV_HTTP_TIMEOUT=20 UV_HTTP_RETRIES=0 UV_PYTHON_INSTALL_DIR=$dir timeout 300 "$uv" python install --quiet --no-bin -- "$1" >/dev/null 2>&1 &&
    found=$(UV_PYTHON_INSTALL_DIR=$dir "$uv" python find --managed-python --no-project -- "$1" 2>/dev/null); then
    python=$found
    python_version=$("$found" -c 'import platform; print(platform.python_version())')
    python_home=$("$found" -c 'import sys; print(sys.base_prefix)')
    return 0
  fi
  : >"$marker"
  return 1
}
