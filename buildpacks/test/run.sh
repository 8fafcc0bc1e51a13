#!/bin/bash
# Builds fixtures with the built-in buildpacks and serves them, by the container engine alone (no Flex needed).
#
# Usage: run.sh [-k] [NAME...]    all fixtures without a name; -k keeps the caches for the next run
#   BUILD_IMAGE, RUN_IMAGE  the stack's images (flex/flex-13:build, flex/flex-13:run)
# Detection, compile and release run in the build image as the app's user; what comes out is served in the run image with
# the launch script, and must answer GET / with what fixture.toml expects, log it, and end on SIGTERM within 5 s.
# Each fixture is built twice: the second time shows what the cache saves. Exit status 0 only if every fixture did.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
BUILD_IMAGE=${BUILD_IMAGE:-flex/flex-13:build}
RUN_IMAGE=${RUN_IMAGE:-flex/flex-13:run}
keep=
if [[ ${1:-} == -k ]]; then keep=1 && shift; fi
work=${FLEX_TEST_WORK:-$(mktemp -d "${TMPDIR:-/tmp}/buildpacks.XXXXXX")}
mkdir -p "$work"
container=
# Invoked by the trap.
# shellcheck disable=SC2317
cleanup() {
  if [[ -n $container ]]; then docker rm --force "$container" >/dev/null 2>&1 || true; fi
  [[ -n $keep ]] || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# A setting of fixture.toml: setting FILE NAME
setting() { sed -n "s/^$2 = \"\(.*\)\"\$/\1/p" "$1" | sed 's/\\"/"/g'; }

build_environment=(--env SOURCE_DATE_EPOCH=1700000000 --env STACK=flex-13 --env HOME=/tmp/home --env LANG=C.UTF-8)
if [[ -n ${SSL_CERT_FILE:-} ]]; then
  for name in SSL_CERT_FILE PIP_CERT NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE CURL_CA_BUNDLE CARGO_HTTP_CAINFO GIT_SSL_CAINFO; do
    build_environment+=(--env "$name=/etc/ssl/certs/ca-certificates.crt")
  done
  build_environment+=(--volume "$SSL_CERT_FILE:/etc/ssl/certs/ca-certificates.crt:ro" --env npm_config_cafile=/etc/ssl/certs/ca-certificates.crt)
fi

# Builds $1 with the work directory $2; the log goes to standard output.
build() {
  docker run --rm --init --label flex.test=buildpacks --user 10001:10001 --cap-drop ALL --security-opt no-new-privileges \
    "${build_environment[@]}" --volume "$top/buildpacks/builtin:/opt/flex/buildpacks:ro" --volume "$here/inside.sh:/inside.sh:ro" \
    --volume "$2/build:/tmp/build" --volume "$2/cache:/tmp/cache" --volume "$2/env:/tmp/env" "$BUILD_IMAGE" bash /inside.sh
}

# Starts the result of $2 as fixture $1 and checks what it says.
serve() {
  local fixture=$1 dir=$2 expect command port deadline answer started
  expect=$(setting "$fixture/fixture.toml" expect)
  command=$(sed -n 's/^web:[[:space:]]*//p' "$dir/build/Procfile" 2>/dev/null | tr -d '\r')
  [[ -n $command ]] || command=$(sed -n 's/^  web: //p' "$dir/env/.release")
  [[ -n $command ]] || { echo "no web process" && return 1; }
  container=$(docker run --detach --init --label flex.test=buildpacks --user 10001:10001 --cap-drop ALL \
    --security-opt no-new-privileges --memory 512m --publish 127.0.0.1::5000 --env PORT=5000 --env HOME=/app \
    --volume "$dir/build:/app" "$RUN_IMAGE" /opt/flex/launch "$command")
  port=$(docker port "$container" 5000/tcp | head -n 1)
  deadline=$((SECONDS + 30))
  until answer=$(curl --silent --fail --max-time 5 "http://$port/"); do
    if ((SECONDS >= deadline)) || [[ $(docker inspect --format '{{.State.Running}}' "$container") != true ]]; then
      docker logs "$container" 2>&1 | tail -n 20
      echo "no answer to GET /"
      return 1
    fi
  done
  [[ $answer == *"$expect"* ]] || { echo "GET / answered: ${answer:0:200}" && return 1; }
  # Beyond the one page: a script beside the fixture may look closer.
  if [[ -f $here/check-${fixture##*/}.sh ]]; then bash "$here/check-${fixture##*/}.sh" "http://$port" || return 1; fi
  started=${EPOCHREALTIME/./}
  docker stop --time 5 "$container" >/dev/null
  (((${EPOCHREALTIME/./} - started) < 5000000)) || { echo "did not end on SIGTERM within 5 s" && return 1; }
  [[ -n $(docker logs "$container" 2>&1) ]] || { echo "logged nothing" && return 1; }
  docker rm --force "$container" >/dev/null
  container=
}

# One fixture; says what went wrong on standard output.
try() {
  local name=$1 fixture=$top/tests/fixtures/apps/$1 dir=$work/$1 detected refused round log status started
  detected=$(setting "$fixture/fixture.toml" detected)
  refused=$(setting "$fixture/fixture.toml" refused)
  mkdir -p "$dir"/{build,cache,env}
  chown 10001:10001 "$dir"/{build,cache,env}
  for round in first again; do
    log=$dir/$round.log
    rm -rf "$dir/build" && mkdir "$dir/build" && cp -a "$fixture/." "$dir/build/" && chown -R 10001:10001 "$dir/build"
    started=${EPOCHREALTIME/./}
    status=0
    build "$name" "$dir" >"$log" 2>&1 || status=$?
    printf '%s %s: %d ms, compile %s ms, slug %s KiB\n' "$name" "$round" "$(((${EPOCHREALTIME/./} - started) / 1000))" \
      "$(sed -n 's/^compile-ms: //p' "$log")" "$(du -sk "$dir/build" | cut -f1)"
    if [[ -n $refused ]]; then
      if ((status != 0)) && grep -qF -- "$refused" "$log"; then return 0; fi
      cat "$log" && echo "should have been refused with: $refused" && return 1
    fi
    if ((status != 0)); then cat "$log" && return 1; fi
    grep -qxF -- "detected: $detected" "$log" || { cat "$log" && echo "should have been detected as $detected" && return 1; }
  done
  serve "$fixture" "$dir" || { tail -n 40 "$log" && return 1; }
}

names=("$@")
if ((${#names[@]} == 0)); then
  for fixture in "$top"/tests/fixtures/apps/*/fixture.toml; do
    # Those that need more than the built-in buildpacks are walked by the whole-system tests.
    if [[ -z $(setting "$fixture" needs) ]]; then names+=("$(basename "$(dirname "$fixture")")"); fi
  done
fi
passed=0 failed=0
for name in "${names[@]}"; do
  [[ -f $top/tests/fixtures/apps/$name/fixture.toml ]] || { echo "no fixture $name" >&2 && exit 64; }
  if try "$name"; then passed=$((passed + 1)) && echo "ok   $name"; else failed=$((failed + 1)) && echo "FAIL $name"; fi
done
echo "$passed passed, $failed failed"
((failed == 0))
