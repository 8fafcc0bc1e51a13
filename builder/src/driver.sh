#!/bin/bash
# Runs buildpacks in the build container, as the build user. Constant text: whatever comes from users comes as an argument
# or a file, is always quoted, and is never evaluated.
#
# Usage: bash -c TEXT driver MODE [KIND VALUE REF SHOWN]... <TAR
#   TAR    holds build/ (the source), cache/, env/ (config vars) and flex/, and is unpacked in /tmp.
#   MODE   listed: every buildpack must accept the source; detect: the first that accepts it is used.
#   KIND   builtin (VALUE: name), path (VALUE: ./dir in the source), inline, git (VALUE: URL), archive (VALUE: URL).
# Standard output is the log for people. Standard error (descriptor 3 here) carries facts for the builder, one a line:
#   phase NAME MICROSECONDS | detected BASE64 SHOWN-INDEX | release BASE64 | cache BYTES | failed STEP STATUS INDEX
set -uo pipefail
umask 022
readonly build=/tmp/build cache=/tmp/cache env=/tmp/env work=/tmp/flex builtin=/opt/flex/buildpacks
mode=$1
shift
exec 3>&2 2>&1
if ! tar --extract --file - --directory /tmp --no-same-owner --preserve-permissions 3>&-; then
  printf 'failed unpack 1 0\n' >&3
  exit 1
fi
exec </dev/null
started=${EPOCHREALTIME//[!0-9]/}
before=" $(cd /proc && echo [0-9]*) "

say() { printf '%s\n' "$1"; }
fact() { printf '%s\n' "$*" >&3; }

# Ends what the buildpacks left running, so that the tree is still when it is packed and no pipe stays open.
sweep() {
  local p
  for p in /proc/[0-9]*; do
    p=${p#/proc/}
    [[ $p == "$$" || $before == *" $p "* ]] || kill -KILL "$p" 2>/dev/null
  done
}

fail() {
  # What was under way counts as well.
  case $1 in
    fetch | missing | usage | unpack) phase fetch_cache ;;
    detect | nothing) spend detect; clocks ;;
    compile | no_compile | copy) spend compile; clocks ;;
  esac
  fact failed "$1" "$2" "$3"
  sweep
  exit 1
}

phase() {
  local t=${EPOCHREALTIME//[!0-9]/}
  fact phase "$1" "$((t - started))"
  started=$t
}

# Nothing of git's configuration, no prompts, no submodules, no transports that run programs.
quiet_git() {
  GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0 GIT_ASKPASS=/bin/false \
    GIT_ALLOW_PROTOCOL=https:http:git:file git -c safe.directory='*' -c core.hooksPath=/dev/null "$@" 3>&-
}

fetch_git() {
  local url=$1 ref=$2 dir=$3 name
  quiet_git init --quiet -- "$dir" && cd "$dir" || return 1
  if quiet_git fetch --quiet --depth 1 --no-tags --no-recurse-submodules -- "$url" "${ref:-HEAD}" 2>"$work/fetch.log"; then
    quiet_git checkout --quiet --detach FETCH_HEAD --
    return
  fi
  # A server need not hand out a commit by its id: take everything and look there.
  if [[ -n $ref ]] && quiet_git fetch --quiet --no-recurse-submodules -- "$url" \
    '+refs/heads/*:refs/flex/heads/*' '+refs/tags/*:refs/flex/tags/*' 2>>"$work/fetch.log"; then
    for name in "refs/flex/heads/$ref" "refs/flex/tags/$ref" "$ref"; do
      if quiet_git rev-parse --quiet --verify --end-of-options "$name^{commit}" >/dev/null; then
        quiet_git checkout --quiet --detach "$name" --
        return
      fi
    done
  fi
  sed 's/^/       /' "$work/fetch.log"
  return 1
}

fetch_archive() {
  local url=$1 dir=$2 inner
  mkdir -p "$dir" &&
    curl --fail --silent --show-error --location --proto '=https,http,file' --proto-redir '=https,http' --retry 2 \
      --connect-timeout 15 --max-time 180 --max-filesize 104857600 --output "$dir.tar" -- "$url" 3>&- &&
    tar --extract --no-same-owner --no-same-permissions --file "$dir.tar" --directory "$dir" 3>&- || return 1
  rm -f "$dir.tar"
  if [[ ! -e $dir/bin/compile ]]; then
    for inner in "$dir"/*/; do
      if [[ -e ${inner}bin/compile ]]; then
        found=${inner%/}
        return
      fi
    done
  fi
}

# Sets `found` to the directory of buildpack $1 ($2...: its four arguments).
place() {
  local index=$1 kind=$2 value=$3 ref=$4
  found=$work/bp/$index
  case $kind in
    builtin) found=$builtin/$value ;;
    inline) found=$build ;;
    path) found=$build/${value#./} ;;
    git) say "-----> Fetching buildpack $5"; (fetch_git "$value" "$ref" "$found") || fail fetch 1 "$index" ;;
    archive) say "-----> Fetching buildpack $5"; fetch_archive "$value" "$found" || fail fetch 1 "$index" ;;
    *) fail usage 2 "$index" ;;
  esac
  [[ -d $found ]] || fail missing 1 "$index"
}

# Whether the buildpack in $1 accepts the source; sets `label` to the name that it prints.
detect() {
  local status
  label=
  [[ -x $1/bin/detect ]] || return 126
  (cd "$build" && exec "$1/bin/detect" "$build") >"$work/detect.out" 2>"$work/detect.err" 3>&-
  status=$?
  label=$(head -c 200 "$work/detect.out" | tr -d '\000' | head -n 1)
  return $status
}

# A built-in buildpack may write beside itself (`export`), so it runs from a copy, with what it shares with the others.
copy_builtins() {
  local entry
  [[ -d $work/builtin ]] && return
  mkdir -p "$work/builtin"
  for entry in "$builtin"/*; do
    cp -R -- "$entry" "$work/builtin/" || return 1
  done
}

mkdir -p "$work/bp"
kinds=() values=() dirs=()
index=0
while (($# >= 4)); do
  place "$index" "$1" "$2" "$3" "$4"
  kinds+=("$1") values+=("$2") dirs+=("$found")
  index=$((index + 1))
  shift 4
done
phase fetch_cache

# Detection and compilation of several buildpacks alternate, so each has a clock of its own.
declare -A spent=([detect]=0 [compile]=0)
spend() {
  local t=${EPOCHREALTIME//[!0-9]/}
  spent[$1]=$((spent[$1] + t - started))
  started=$t
}
clocks() {
  fact phase detect "${spent[detect]}"
  fact phase compile "${spent[compile]}"
}

# Asks the buildpack; with a yes, the name that it printed is a fact.
accepts() {
  local status
  detect "${dirs[$1]}"
  status=$?
  ((status != 0)) || fact detected "$(printf %s "$label" | base64 -w 0)" "$1"
  return $status
}

exports=()
compile() {
  local index=$1 status file
  dir=${dirs[index]}
  if [[ ${kinds[index]} == builtin ]]; then
    copy_builtins || fail copy 1 "$index"
    dir=$work/builtin/${values[index]}
  fi
  say "-----> ${label:-Unnamed} app detected"
  [[ -x $dir/bin/compile ]] || fail no_compile 126 "$index"
  (
    set +u
    # shellcheck disable=SC1090
    for file in "${exports[@]}"; do . "$file"; done
    cd "$build" && exec "$dir/bin/compile" "$build" "$cache" "$env"
  ) 3>&-
  status=$?
  ((status == 0)) || fail compile "$status" "$index"
  [[ -f $dir/export ]] && exports+=("$dir/export")
}

dir=
for index in "${!dirs[@]}"; do
  # Each is asked when its turn comes: what one makes is what the next one sees, and may be all that it accepts.
  accepts "$index"
  status=$?
  spend detect
  if ((status == 0)); then
    compile "$index"
    spend compile
    [[ $mode == detect ]] && break
  elif [[ $mode == listed ]]; then
    sed 's/^/       /' "$work/detect.out" "$work/detect.err" | head -c 4000
    fail detect "$status" "$index"
  fi
done
[[ -n $dir ]] || fail nothing 1 0
sweep
clocks

# As on Heroku, the last buildpack alone says what the app's defaults are.
if [[ -x $dir/bin/release ]]; then
  released=$( (cd "$build" && exec "$dir/bin/release" "$build") 3>&- | head -c 65537 | base64 -w 0) || fail release "$?" "$index"
  fact release "$released"
fi
sweep
# A small cache is measured here at no cost; a large one by the builder, while the image is stored.
used=$(timeout 0.1 du -s -B1 "$cache" 2>/dev/null 3>&-) && fact cache "${used%%[!0-9]*}"
fact "done"
