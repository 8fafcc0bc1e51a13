# Sourced by scripts/up and scripts/test, after common.sh: a Docker engine that answers and keeps containers alive over
# its own restarts ("live-restore"). Never restarts an engine that runs, and leaves all its other settings alone. One that
# FLEXD_DOCKER names is somebody else's to install, set and start.
# shellcheck shell=bash

ENGINE_SOCKET=${FLEXD_DOCKER:-/var/run/docker.sock}
ENGINE_CONFIG=/etc/docker/daemon.json
ENGINE_PID=/var/run/docker.pid
CONTAINERD_SOCKET=/run/containerd/containerd.sock
ENGINE_LOG=/var/log/flex-dockerd.log
CONTAINERD_LOG=/var/log/flex-containerd.log

# engine_get PATH: asks the engine; fails when it does not answer within 5 s.
engine_get() { curl -fsS --max-time 5 --unix-socket "$ENGINE_SOCKET" "http://engine$1" 2>/dev/null; }

engine_answers() { [ -S "$ENGINE_SOCKET" ] && engine_get /_ping >/dev/null; }

# Not piped into grep: with pipefail its early end would count as a failure.
engine_keeps_containers() { [[ $(engine_get /info) == *'"LiveRestoreEnabled":true'* ]]; }

engine_in_swarm() { [[ $(engine_get /info) == *'"LocalNodeState":"active"'* ]]; }

# Under systemd the engine is its unit; the same words work where it came from Docker's own packages.
engine_by_systemd() { [ -d /run/systemd/system ] && systemctl cat docker.service >/dev/null 2>&1; }

# engine_pid: the running dockerd of the standard socket.
engine_pid() {
  local pid
  pid=$(cat "$ENGINE_PID" 2>/dev/null) || return 1
  # By its executable, which a dead process that nobody has waited for no longer has.
  case $(readlink "/proc/${pid:-0}/exe" 2>/dev/null) in
    */dockerd | */dockerd\ *) printf '%s' "$pid" ;;
    *) return 1 ;;
  esac
}

# The engine is not the one of the standard socket.
engine_is_foreign() { [ -n "${FLEXD_DOCKER:-}" ] && [ "$(readlink -m "$FLEXD_DOCKER")" != "$(readlink -m /var/run/docker.sock)" ]; }

# ensure_engine: installs, sets, starts what is missing; under a second when nothing is.
ensure_engine() {
  have curl || apt_install curl ca-certificates
  if engine_is_foreign; then
    engine_answers || die "The container engine does not answer at $ENGINE_SOCKET, which FLEXD_DOCKER names." "Start it, or unset FLEXD_DOCKER to use the machine's own."
    engine_keeps_containers || engine_in_swarm ||
      note "The engine at $ENGINE_SOCKET ends all containers when it restarts: switch on its live-restore."
    return 0
  fi
  if engine_answers; then
    if engine_keeps_containers; then
      # Also after its next restart.
      if [ "$(id -u)" = 0 ] && ! live_restore_is_set; then set_live_restore; fi
      return 0
    fi
    if engine_in_swarm; then
      note "This engine is in swarm mode, which knows no live-restore: restarting it will restart the apps on this machine."
      return 0
    fi
    [ "$(id -u)" = 0 ] || die "The engine ends all containers when it restarts." "Run as root once, so that live-restore can be switched on."
    say "Switching on the engine's live-restore"
    set_live_restore
    reload_engine
    return 0
  fi
  if [ "$(id -u)" != 0 ]; then
    [ -S "$ENGINE_SOCKET" ] && [ ! -w "$ENGINE_SOCKET" ] &&
      die "You may not use the container engine." "Run as root, or: adduser $(id -un) docker, and log in again."
    die "The container engine does not answer at $ENGINE_SOCKET." "Run as root, so that it can be installed and started."
  fi
  # Before the engine is there, so that its very first start has it.
  if ! have dockerd; then
    set_live_restore
    local packages=(docker.io iptables ca-certificates curl)
    # Debian 13 keeps the command apart; Flex does not need it, people do.
    if [ -n "$(apt-cache search --names-only '^docker-cli$' 2>/dev/null)" ]; then packages+=(docker-cli); fi
    apt_install "${packages[@]}"
    # The package may have started it.
    wait_for_engine 3 || true
  elif ! engine_pid >/dev/null; then
    set_live_restore
  fi
  if engine_pid >/dev/null; then
    wait_for_engine 30 ||
      die "The engine runs (process $(engine_pid)) and does not answer." "Look into its log; restart it, then run this again."
  elif ! engine_answers; then
    say "Starting the container engine"
    start_engine
  fi
  if ! engine_keeps_containers && ! engine_in_swarm; then
    set_live_restore
    reload_engine
  fi
  note "The container engine answers."
}

# live_restore_is_set: in the settings file, or on the command line, where the file must not have it as well.
live_restore_is_set() {
  local pid
  grep -Eqs '"live-restore" *: *true' "$ENGINE_CONFIG" && return 0
  pid=$(engine_pid) && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -x -e '--live-restore.*' >/dev/null
}

# set_live_restore: puts "live-restore": true into the engine's settings, whatever else is in them.
set_live_restore() {
  mkdir -p "$(dirname "$ENGINE_CONFIG")"
  if [ ! -s "$ENGINE_CONFIG" ]; then
    printf '{\n  "live-restore": true\n}\n' >"$ENGINE_CONFIG"
    return 0
  fi
  if ! have python3 && ! have jq; then apt_install jq; fi
  local new=$ENGINE_CONFIG.flex
  if have python3; then
    python3 - "$ENGINE_CONFIG" >"$new" <<'PY' || refuse_config "$new"
import json, sys
try:
    with open(sys.argv[1], encoding="utf-8") as f:
        settings = json.load(f)
except ValueError:
    sys.exit(1)
if not isinstance(settings, dict):
    sys.exit(1)
settings["live-restore"] = True
json.dump(settings, sys.stdout, indent=2)
print()
PY
  else
    jq -e '. + {"live-restore": true}' "$ENGINE_CONFIG" >"$new" 2>/dev/null || refuse_config "$new"
  fi
  chmod --reference="$ENGINE_CONFIG" "$new"
  mv "$new" "$ENGINE_CONFIG"
}

refuse_config() { # DRAFT
  rm -f -- "$1"
  die "$ENGINE_CONFIG is not valid JSON; correct it, then run this again."
}

# reload_engine: has a running engine read its settings; containers do not notice.
reload_engine() {
  local pid
  if pid=$(engine_pid); then
    kill -HUP "$pid"
  elif engine_by_systemd; then
    systemctl reload docker
  else
    die "The engine's process was not found." "Reload it yourself (SIGHUP to dockerd), then run this again."
  fi
  local try
  for try in $(seq 50); do
    if engine_keeps_containers; then return 0; fi
    sleep 0.1
  done
  die "The engine did not take up live-restore ($try tries)." "See its log, restart it when the apps allow it, then run this again."
}

# wait_for_engine SECONDS
wait_for_engine() {
  local try
  for try in $(seq $(($1 * 5))); do
    if engine_answers; then return 0; fi
    [ "$try" -lt $(($1 * 5)) ] && sleep 0.2
  done
  return 1
}

start_engine() {
  # Containers of one network are kept apart on the bridge, which needs this module where it is not built in.
  modprobe br_netfilter 2>/dev/null || true
  if engine_by_systemd; then
    systemctl enable --quiet docker 2>/dev/null || true
    systemctl start docker || die "systemctl start docker failed." "See: journalctl -u docker -n 50"
    wait_for_engine 60 || die "The engine does not answer." "See: journalctl -u docker -n 50"
    return 0
  fi
  mount_cgroups
  # A pid file left over from before a crash may name another process by now, and the engine would not start.
  rm -f "$ENGINE_PID"
  if have containerd; then
    # On its own, so that containers survive whatever becomes of the engine.
    start_containerd
    start_detached dockerd "$ENGINE_LOG" dockerd --containerd "$CONTAINERD_SOCKET"
  else
    start_detached dockerd "$ENGINE_LOG" dockerd
  fi
  if ! wait_for_engine 60; then
    tail -n 15 "$ENGINE_LOG" >&2
    die "The engine does not answer; its log is $ENGINE_LOG."
  fi
}

start_containerd() {
  if containerd_answers; then return 0; fi
  start_detached containerd "$CONTAINERD_LOG" containerd
  local try
  for try in $(seq 100); do
    if containerd_answers; then return 0; fi
    [ "$try" -lt 100 ] && sleep 0.1
  done
  tail -n 15 "$CONTAINERD_LOG" >&2
  die "containerd does not answer; its log is $CONTAINERD_LOG."
}

containerd_answers() { [ -S "$CONTAINERD_SOCKET" ] && timeout 5 ctr --address "$CONTAINERD_SOCKET" version >/dev/null 2>&1; }

# start_detached NAME LOG COMMAND...: runs on when this script and its terminal are gone; its pid is in /run/flex-NAME.pid.
start_detached() {
  local name=$1 log=$2
  shift 2
  mkdir -p "$(dirname "$log")" /run
  (
    ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
    cd /
    setsid nohup "$@" >>"$log" 2>&1 </dev/null &
    printf '%s\n' "$!" >"/run/flex-$name.pid"
  )
}

# mount_cgroups: what an init system would have done.
mount_cgroups() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/memory ] || [ -d /sys/fs/cgroup/unified ]; then return 0; fi
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || true
  if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    apt_install cgroupfs-mount
    cgroupfs-mount || die "The cgroup file systems could not be mounted."
  fi
}
