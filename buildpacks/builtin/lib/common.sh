# shellcheck shell=bash
# What every built-in buildpack shares: how it talks, how it reads config vars, how it uses its cache. Sourced, never run.
#
# Nothing here or in a buildpack may: evaluate text of the app (no eval, no sourcing of its files), name a package
# registry's host (the standard settings of each tool decide where it goes), or write outside BUILD_DIR, CACHE_DIR,
# HOME, TMPDIR and the buildpack's own `export` file.

# Where the build directory will be when the app runs.
# shellcheck disable=SC2034
readonly APP_DIR=/app

header() { printf -- '-----> %s\n' "$*"; }
# Each argument is a line.
info() { printf '       %s\n' "$@"; }
indent() { sed -u 's/^/       /'; }

warn() {
  local line
  while IFS= read -r line; do printf ' !     %s\n' "$line"; done < <(printf '%s\n' "$@")
}

# Ends the build; each argument is a line: what failed, why, what to do.
fail() {
  printf '\n'
  warn "$@"
  printf '\n'
  exit 1
}

# Runs a command with its output in the body of the log; ends the build with the given text when it fails.
# or_fail "text" command args...
or_fail() {
  local text=$1 status=0
  shift
  # After ||, as a pipeline that fails would end the buildpack before it could say why.
  "$@" 2>&1 </dev/null | indent || status=${PIPESTATUS[0]}
  ((status == 0)) || fail "$text" "The command was: $(shown "$@")" "Its exit status: $status"
}

# As or_fail, with the output in the log only when the command fails: for steps that say nothing of use otherwise.
quiet_or_fail() {
  local text=$1 status=0 output
  shift
  output=$(mktemp)
  "$@" >"$output" 2>&1 </dev/null || status=$?
  if ((status != 0)); then
    indent <"$output"
    fail "$text" "The command was: $(shown "$@")" "Its exit status: $status"
  fi
  rm -f "$output"
}

# A command as people would type it.
shown() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Prints the config var $1 (nothing when it is not set). ENV_DIR is the caller's.
config_var() {
  [[ -n ${ENV_DIR:-} && -f $ENV_DIR/$1 ]] && cat -- "$ENV_DIR/$1"
  return 0
}

has_config_var() { [[ -n ${ENV_DIR:-} && -f $ENV_DIR/$1 ]]; }

# Exports config vars into this build, less those that would change the build's own machinery.
export_config_vars() {
  local file name
  [[ -n ${ENV_DIR:-} && -d $ENV_DIR ]] || return 0
  for file in "$ENV_DIR"/*; do
    name=${file##*/}
    [[ -f $file && $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
    case $name in
      PATH | HOME | TMPDIR | SHELL | IFS | CDPATH | BASH* | SHELLOPTS | ENV | PS4 | PROMPT_COMMAND | LD_* | GIT_DIR | GIT_WORK_TREE | CPATH | \
        LIBRARY_PATH | STACK | SOURCE_DATE_EPOCH | BUILD_DIR | CACHE_DIR | ENV_DIR | UID | EUID | PPID | PYTHONHOME | APP_DIR) continue ;;
    esac
    export "$name=$(<"$file")"
  done
}

# The app asks to be refused rather than given another version than the one it names. What app.json says comes as the
# same config var.
strict_versions() {
  local value
  value=$(config_var FLEX_STRICT_VERSIONS)
  case ${value,,} in
    1 | true | yes | on) return 0 ;;
    *) return 1 ;;
  esac
}

# wanted_unavailable LANGUAGE WANTED WHY TAKEN: refuses when the app is strict, warns loudly otherwise. TAKEN is of the
# major version that the app asks for.
wanted_unavailable() {
  if strict_versions; then
    fail "This app asks for $1 $2, which cannot be had: $3" \
      "It takes no other (FLEX_STRICT_VERSIONS, or strict_versions in app.json), so the build stops here." \
      "Ask for another version, or set FLEX_STRICT_VERSIONS=0 to build with $1 $4."
  fi
  warn "" "WARNING: this app asks for $1 $2, which cannot be had: $3" \
    "Building with $1 $4 instead. Set FLEX_STRICT_VERSIONS=1 to have such a build refused." ""
}

# other_major LANGUAGE WANTED WHY HAD: refuses; HAD is what can be had. An app seldom runs unchanged on another major
# version, so none is taken in the place of the one that it asks for.
other_major() {
  fail "This app asks for $1 $2, which cannot be had: $3" \
    "Another major version is not taken in its place." \
    "What can be had: $1 $4. Ask for it, or use a buildpack that brings the version that you need."
}

# Milliseconds of the clock, for what a buildpack says about its own steps.
now_ms() { printf '%s' "$((${EPOCHREALTIME//[!0-9]/} / 1000))"; }

# A short name of the given texts and files: hash_of TEXT... ; hash_files FILE...
hash_of() { printf '%s\0' "$@" | sha256sum | cut -c1-32; }
hash_files() { cat -- "$@" | sha256sum | cut -c1-32; }

# Copies a tree; shares blocks where the file system can.
copy_tree() {
  mkdir -p -- "${2%/*}"
  rm -rf -- "$2"
  cp -a --reflink=auto -- "$1" "$2"
}

# Keeps the tree $1 in the cache as $2, whole or not at all: a build killed half-way leaves no half entry.
cache_put() {
  rm -rf -- "$2.new"
  copy_tree "$1" "$2.new" && rm -rf -- "$2" && mv -T -- "$2.new" "$2"
}

# Writes standard input to the snippet NAME.sh that is sourced before each process of the app.
profile_script() {
  mkdir -p "$BUILD_DIR/.profile.d"
  cat >"$BUILD_DIR/.profile.d/$1.sh"
}

# Prints the default number of web workers, as shell text for a snippet: from the memory limit and the processors, unless
# WEB_CONCURRENCY is set. $1: MiB that one worker usually takes.
web_concurrency_snippet() {
  cat <<SNIPPET
if [ -z "\${WEB_CONCURRENCY:-}" ]; then
  flex_limit=\$(cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null)
  case \$flex_limit in
    '' | max | *[!0-9]* | ??????????????*) flex_mib=\$(awk '/^MemTotal/ { print int(\$2 / 1024) }' /proc/meminfo) ;;
    *) flex_mib=\$((flex_limit / 1048576)) ;;
  esac
  flex_most=\$((\$(nproc) * 2 + 1))
  WEB_CONCURRENCY=\$((flex_mib / $1))
  [ "\$WEB_CONCURRENCY" -le "\$flex_most" ] || WEB_CONCURRENCY=\$flex_most
  [ "\$WEB_CONCURRENCY" -ge 1 ] || WEB_CONCURRENCY=1
  export WEB_CONCURRENCY
  unset flex_limit flex_mib flex_most
fi
SNIPPET
}

# Whether the app's Procfile has process type $1.
procfile_has() { [[ -f $BUILD_DIR/Procfile ]] && grep -Eq "^[[:space:]]*$1[[:space:]]*:" "$BUILD_DIR/Procfile"; }

# Says what to do when nothing says how the web process starts. $1: an example.
note_no_web() {
  procfile_has web || info "No web process is defined. Add a Procfile with a line such as:" "" "  web: $1"
}
