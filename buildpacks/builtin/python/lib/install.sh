# shellcheck shell=bash disable=SC2034,SC2154
# How dependencies get into the environment. Sourced by bin/compile.
#
# Every kind of lock file is turned into one exact list of requirements that uv installs, so that there is one installer,
# one cache and one kind of environment. Sets: manager, manager_shown, lock_files.

# The uv that is used when the stack has none.
readonly UV_REQUIREMENT='uv>=0.8,<1'

# Sets `uv` to an executable: the stack's, or one kept in the app's cache.
ensure_uv() {
  [[ -z ${uv:-} ]] || return 0
  if uv=$(command -v uv); then return 0; fi
  uv=$CACHE_DIR/uv/bin/uv
  if [[ ! -x $uv ]]; then
    info "Installing uv"
    rm -rf "$CACHE_DIR/uv" "$CACHE_DIR/uv.new"
    or_fail "uv, the installer of Python packages, could not be installed." \
      python3 -m pip install --quiet --no-input --no-cache-dir --no-compile --break-system-packages --root-user-action=ignore \
      --target "$CACHE_DIR/uv.new" -- "$UV_REQUIREMENT"
    mv -T "$CACHE_DIR/uv.new" "$CACHE_DIR/uv"
  fi
}

choose_manager() {
  local found=() pair
  for pair in uv.lock:uv poetry.lock:poetry pdm.lock:pdm Pipfile.lock:pipenv requirements.txt:pip; do
    [[ -f ${pair%:*} ]] && found+=("$pair")
  done
  if ((${#found[@]} == 0)); then
    [[ ! -f Pipfile ]] || fail "There is a Pipfile but no Pipfile.lock." "Run \`pipenv lock\`, commit Pipfile.lock, and push again."
    if [[ -f pyproject.toml ]]; then found=(pyproject.toml:pyproject); elif [[ -f setup.py ]]; then found=(setup.py:setup); else found=(:none); fi
  fi
  manager=${found[0]#*:}
  lock_files=()
  [[ $manager == none ]] || lock_files=("${found[0]%:*}")
  [[ ! -f pyproject.toml || $manager == pyproject || $manager == pip ]] || lock_files+=(pyproject.toml)
  case $manager in
    none) manager_shown="no dependencies" ;;
    *) manager_shown="dependencies from ${found[0]%:*}" ;;
  esac
  if ((${#found[@]} > 1)); then
    warn "More than one file says what this app needs: ${found[*]%:*}." "Only ${found[0]%:*} is used. Delete the others."
  fi
}

# The exact list of requirements, to the file $1. Poetry's and PDM's locks are read here where they say everything;
# the tool itself is asked (and fetched for that) only about older ones, and about those that may not fit.
write_requirements() {
  local tool=("$uv" tool run --quiet --no-config --python "$python" --from) status=0
  case $manager in
    uv)
      or_fail "uv.lock could not be read, or does not fit pyproject.toml. Run \`uv lock\` and commit the result." \
        env -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_INDEX -u UV_EXTRA_INDEX_URL \
        "$uv" export --quiet --locked --no-dev --no-default-groups --no-emit-workspace --no-annotate --no-header \
        --python "$python" --format requirements-txt --output-file "$1"
      "$python" "$here/lib/facts.py" uv-indexes pyproject.toml >>"$1"
      return
      ;;
    pipenv) lock_to_requirements "$1" Pipfile.lock "$(default_index_of)" || fail "Pipfile.lock could not be read (see above)." "Run \`pipenv lock\` and commit the result." ;;
    poetry) lock_to_requirements "$1" poetry.lock pyproject.toml || status=$? ;;
    pdm) lock_to_requirements "$1" pdm.lock pyproject.toml || status=$? ;;
  esac
  case $status in
    0) return ;;
    5) ;;
    *) fail "$manager.lock could not be read (see above)." "Run \`$manager lock\` and commit the result." ;;
  esac
  info "Asking $manager about its lock"
  case $manager in
    poetry)
      or_fail "poetry.lock does not fit pyproject.toml (see above). Run \`poetry lock\` and commit the result." \
        "${tool[@]}" 'poetry>=2,<3' --with 'poetry-plugin-export>=1.8' poetry export --no-interaction --no-ansi --only main --format requirements.txt --output "$1"
      ;;
    pdm)
      or_fail "pdm.lock does not fit pyproject.toml (see above). Run \`pdm lock\` and commit the result." \
        "${tool[@]}" 'pdm>=2.20,<3' pdm lock --check
      or_fail "pdm.lock could not be used (see above). Run \`pdm lock --strategy inherit_metadata\` and commit the result." \
        "${tool[@]}" 'pdm>=2.20,<3' pdm export --prod --format requirements --output "$1"
      ;;
  esac
}

# lock_to_requirements OUT LOCK [MORE], as lib/locks.py takes it
lock_to_requirements() { "$python" "$here/lib/locks.py" "$manager" "${@:2}" >"$1"; }

# The settings that say where packages come from, config vars before the machine's.
indexes() {
  local name
  for name in UV_DEFAULT_INDEX UV_INDEX_URL UV_INDEX UV_EXTRA_INDEX_URL PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
    if has_config_var "$name"; then config_var "$name"; else printf '%s' "${!name:-}"; fi
    printf '\n'
  done
}

# Whose setting names the default index: `app`, `machine`, or nothing.
default_index_of() {
  local name
  [[ -n ${UV_DEFAULT_INDEX:-} ]] || return 0
  for name in UV_DEFAULT_INDEX UV_INDEX_URL PIP_INDEX_URL; do
    if [[ $(config_var "$name") == "$UV_DEFAULT_INDEX" ]]; then echo app && return; fi
  done
  echo machine
}

install_dependencies() {
  local key cached started local_source=0 files=() list
  if [[ $manager == pip ]] && ! grep -Eq '^[[:space:]]*[-.]|[/@:\\]' requirements.txt; then
    # Names and versions alone: nothing is included.
    files=(requirements.txt)
  elif [[ $manager == pip ]]; then
    list=$("$python" "$here/lib/facts.py" included requirements.txt) || local_source=1
    mapfile -t files <<<"$list"
  else
    files=("${lock_files[@]}")
  fi
  [[ ! -f uv.toml ]] || files+=(uv.toml)
  key=$(hash_of 2 "$python_version" "$manager" "$(hash_files /dev/null "${files[@]}")" "$(indexes)")
  cached=$CACHE_DIR/env-$key
  started=$(now_ms)
  rm -rf "$venv"
  if ((!local_source)) && [[ -d $cached ]]; then
    copy_tree "$cached" "$venv"
    header "Using the cached Python environment ($(($(now_ms) - started)) ms; dependencies have not changed)"
    return
  fi
  header "Installing Python dependencies"
  ensure_uv
  export UV_CACHE_DIR=$CACHE_DIR/uv-cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_TOOL_DIR=$CACHE_DIR/tools
  # uv has its own certificates unless it is told of the machine's.
  [[ -z ${SSL_CERT_FILE:-}${SSL_CERT_DIR:-} ]] || export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true
  export_config_vars
  # pip's names of the settings are what people know; uv has its own.
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-}}} UV_INDEX=${UV_INDEX:-${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}}
  [[ -n $UV_DEFAULT_INDEX ]] || unset UV_DEFAULT_INDEX
  [[ -n $UV_INDEX ]] || unset UV_INDEX
  if [[ -n $python_home ]]; then
    copy_tree "$python_home" "$BUILD_DIR/.flex/cpython"
    python=$BUILD_DIR/.flex/cpython/bin/python3
  fi
  or_fail "The Python environment could not be made." "$uv" venv --quiet --relocatable --no-project --python "$python" -- "$venv"
  local install=("$uv" pip install --no-config --python "$venv/bin/python" --compile-bytecode)
  [[ ! -f uv.toml ]] || install=("$uv" pip install --python "$venv/bin/python" --compile-bytecode)
  case $manager in
    none | setup) ;;
    pip) or_fail "The dependencies in requirements.txt could not be installed (see above)." "${install[@]}" -r requirements.txt ;;
    pyproject) or_fail "The dependencies in pyproject.toml could not be installed (see above)." "${install[@]}" -r pyproject.toml ;;
    *)
      list=$(mktemp)
      write_requirements "$list"
      # Packages of the source tree are not covered by the lock's hash, so such an environment is not kept.
      if grep -Eq '^(\.|/|-e|file:)|@ file:' "$list"; then local_source=1; fi
      or_fail "The locked dependencies could not be installed (see above)." "${install[@]}" --no-deps --index-strategy unsafe-best-match -r "$list"
      rm -f "$list"
      ;;
  esac
  relocate
  info "Installed in $(($(now_ms) - started)) ms"
  find "$CACHE_DIR" -maxdepth 1 -name 'env-*' -exec rm -rf -- {} +
  ((local_source)) || cache_put "$venv" "$cached"
  # Wheels stay for the next change of the lock, within reason.
  if (($(du -sm -- "$UV_CACHE_DIR" | cut -f1) > 512)); then "$uv" cache prune --ci --quiet >/dev/null 2>&1 || rm -rf -- "$UV_CACHE_DIR"; fi
}

# Editable installs name the directory of the build: at run time that is /app.
relocate() {
  local file
  while IFS= read -r -d '' file; do
    sed -i "s|$BUILD_DIR|$APP_DIR|g" "$file"
  done < <(grep -rlZF --include='*.pth' --include='__editable__*' --include=direct_url.json -e "$BUILD_DIR" "$venv/lib" 2>/dev/null || true)
  [[ -z $python_home ]] || sed -i "s|$BUILD_DIR|$APP_DIR|g" "$venv/pyvenv.cfg"
  if [[ -n $python_home ]]; then
    ln -sfn ../../cpython/bin/python3 "$venv/bin/python"
  fi
}

# Installs the project itself when it is a package, without its dependencies: those come from the lock.
install_project() {
  case $manager in
    pip | pipenv | none) return 0 ;;
    setup) ;;
    *) python3 "$here/lib/facts.py" packaged pyproject.toml || return 0 ;;
  esac
  header "Installing the project itself"
  ensure_uv
  export UV_CACHE_DIR=$CACHE_DIR/uv-cache UV_LINK_MODE=copy UV_NO_PROGRESS=1
  [[ -z ${SSL_CERT_FILE:-}${SSL_CERT_DIR:-} ]] || export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true
  local deps=(--no-deps)
  [[ $manager != setup ]] || deps=()
  or_fail "The project could not be built and installed (see above)." \
    "$uv" pip install --python "$venv/bin/python" --compile-bytecode "${deps[@]}" -- "$BUILD_DIR"
  rm -rf -- "$BUILD_DIR"/build "$BUILD_DIR"/*.egg-info
}

# What buildpacks after this one need.
write_export() {
  # shellcheck disable=SC2016
  printf 'export PATH=%q:"$PATH"\n' "$venv/bin" >"$here/export"
}
