# shellcheck shell=bash disable=SC2034,SC2154
# Django's static files. Sourced by bin/compile.

collectstatic() {
  local manage output status=0
  [[ -d $(find "$venv"/lib/python3*/site-packages -maxdepth 1 -type d -iname django -print -quit) ]] || return 0
  manage=$(find . -maxdepth 3 -type f -name manage.py -not -path './.flex/*' -not -path '*/node_modules/*' -printf '%d %P\n' | sort -n | head -n 1)
  manage=${manage#* }
  [[ -n $manage ]] || return 0
  if has_config_var DISABLE_COLLECTSTATIC && [[ $(config_var DISABLE_COLLECTSTATIC) != 0 ]]; then
    header "Not collecting static files (DISABLE_COLLECTSTATIC is set)"
    return 0
  fi
  # In a subshell: config vars are the app's, not the rest of the build's.
  if ! (export_config_vars && cd "$(dirname -- "$manage")" && "$venv/bin/python" manage.py help collectstatic) >/dev/null 2>"$CACHE_DIR/collectstatic.err"; then
    if grep -q "Unknown command" "$CACHE_DIR/collectstatic.err"; then
      info "Not collecting static files: django.contrib.staticfiles is not among INSTALLED_APPS"
      return 0
    fi
  fi
  header "Collecting Django's static files"
  output=$(mktemp)
  (export_config_vars && cd "$(dirname -- "$manage")" && "$venv/bin/python" manage.py collectstatic --noinput) >"$output" 2>&1 </dev/null || status=$?
  grep -v '^Post-processed \|^Copying \|^$' "$output" | tail -n 40 | indent || true
  if ((status != 0)); then
    local why=("The message above says why.")
    if grep -q 'STATIC_ROOT' "$output"; then
      why=("STATIC_ROOT is not set. Add to the settings: STATIC_ROOT = BASE_DIR / \"staticfiles\"")
    elif grep -q 'SECRET_KEY' "$output"; then
      why=("The settings need SECRET_KEY. Set it: flex config:set SECRET_KEY=...")
    elif grep -Eq "KeyError: '|Set the [A-Z_]+ environment variable" "$output"; then
      why=("The settings read a config var that is not set. Set it with flex config:set, or give it a default.")
    fi
    fail "\`python $manage collectstatic --noinput\` failed with status $status." "${why[@]}" \
      "To build without collecting static files: flex config:set DISABLE_COLLECTSTATIC=1"
  fi
  rm -f "$output"
}
