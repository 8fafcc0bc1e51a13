# Sourced by scripts/up and scripts/down: how flexd is started, found and stopped, with and without systemd.
# shellcheck shell=bash

# FLEX_BIN: a folder with a flexd and a flex that are built already.
BIN=${FLEX_BIN:-$ROOT/target/release}
FLEXD=$BIN/flexd
# shellcheck disable=SC2034  # used by scripts/up
FLEX=$BIN/flex
# Found beside the checkout's own binaries, and not beside others.
export FLEXD_BUILDPACKS=${FLEXD_BUILDPACKS:-$ROOT/buildpacks}

if [ -n "${FLEXD_DATA_DIR:-}" ]; then
  DATA_DIR=$FLEXD_DATA_DIR
elif [ "$(id -u)" = 0 ]; then
  DATA_DIR=/var/lib/flex
else
  DATA_DIR=${XDG_DATA_HOME:-$HOME/.local/share}/flex
fi
PID_FILE=$DATA_DIR/flexd.pid
LOG_FILE=$DATA_DIR/flexd.log
UNIT=/etc/systemd/system/flexd.service

# Under systemd the standard installation is a unit, so that it comes back after a reboot.
uses_systemd() { [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ] && [ "$DATA_DIR" = /var/lib/flex ]; }

# setting NAME: what flexd goes by, whatever says so: the environment, flexd.toml or the default. As the unit and start_server
# have it, with this data directory.
setting() { "$FLEXD" --data-dir "$DATA_DIR" settings "$1"; }

# server_pid: prints the pid of the running flexd of this data directory, if there is one. It is known by the lock that it
# holds there: its executable may have been reached by a link, or been replaced.
server_pid() {
  local pid fd
  if uses_systemd; then
    pid=$(systemctl show --property MainPID --value flexd 2>/dev/null) || return 1
  else
    pid=$(cat "$PID_FILE" 2>/dev/null) || return 1
  fi
  [ "${pid:-0}" != 0 ] || return 1
  for fd in "/proc/$pid/fd/"*; do
    if [ "$fd" -ef "$DATA_DIR/lock" ]; then
      printf '%s' "$pid"
      return 0
    fi
  done
  return 1
}

# healthy: flexd answers at the address that its settings name; api_addr has it then.
healthy() {
  api_addr=$(setting api 2>/dev/null) && curl -fsS -o /dev/null --max-time 2 "http://$api_addr/health" 2>/dev/null
}

# unit_text: the unit of this server. It has the settings, proxies and CA bundle that the environment holds now: the server must have
# them at the next boot, too.
unit_text() {
  local name value
  cat <<TEXT
[Unit]
Description=Flex
After=network-online.target docker.service
Wants=network-online.target docker.service
# Tried for as long as it takes: a port that is taken at boot may be free a minute later.
StartLimitIntervalSec=0

[Service]
ExecStart="${FLEXD//%/%%}"
Restart=always
RestartSec=1
# An upgrade without a failed request: a new process takes over from the one that runs, and says so itself.
ExecReload=/bin/kill -USR2 \$MAINPID
NotifyAccess=all
# Apps are the engine's children, not flexd's: stopping flexd leaves them running.
KillMode=process
LimitNOFILE=1048576
TEXT
  for name in $(compgen -e | grep -E '^(FLEXD_.*|(https?|no)_proxy|(HTTPS?|NO)_PROXY|SSL_CERT_FILE)$'); do
    [ "$name" != FLEXD_ROUTER_TOKEN ] || continue # a secret, and another role's
    value=${!name//\\/\\\\}
    value=${value//\"/\\\"}
    printf 'Environment="%s=%s"\n' "$name" "${value//%/%%}"
  done
  printf '\n[Install]\nWantedBy=multi-user.target\n'
}

# start_server [FLAG]: starts flexd (again, under systemd), and waits until it serves.
start_server() {
  local started=
  mkdir -p "$DATA_DIR"
  if uses_systemd; then
    unit_text >"$UNIT"
    systemctl daemon-reload
    systemctl enable --quiet flexd
    systemctl restart flexd
  else
    # A new session of its own, so that it outlives this terminal.
    FLEXD_DATA_DIR=$DATA_DIR setsid "$FLEXD" "$@" </dev/null >>"$LOG_FILE" 2>&1 &
    started=$!
    printf '%s\n' "$started" >"$PID_FILE"
  fi
  local i
  for i in $(seq 1 300); do
    healthy && return 0
    # A process that has ended, and that nobody has waited for, has no executable any more.
    if ! uses_systemd && ! readlink "/proc/$started/exe" >/dev/null; then break; fi
    sleep 0.1
  done
  if uses_systemd; then journalctl -u flexd -n 20 --no-pager >&2; else tail -n 20 "$LOG_FILE" >&2; fi
  die "flexd did not start; its last lines are above."
}

# upgrade_server: another process takes over from the flexd that runs, with no failed request. One that has no door for that, or
# a unit with other settings, is restarted.
upgrade_server() {
  local old i
  old=$(server_pid)
  if [ ! -S "$DATA_DIR/router/handover.sock" ]; then
    stop_server
    start_server
    return
  fi
  if uses_systemd; then
    if [ "$(unit_text)" != "$(cat "$UNIT" 2>/dev/null)" ]; then
      start_server
      return
    fi
    systemctl reload flexd
  else
    start_server --take-over
  fi
  # It ends when its last request has: within half a minute, and pushes have as long before.
  for i in $(seq 1 900); do
    readlink "/proc/$old/exe" >/dev/null || break
    if ! uses_systemd && ! readlink "/proc/$(cat "$PID_FILE")/exe" >/dev/null; then
      printf '%s\n' "$old" >"$PID_FILE"
      break
    fi
    sleep 0.1
  done
  if readlink "/proc/$old/exe" >/dev/null; then die "The flexd that runs (pid $old) was not taken over from; see its log."; fi
  for i in $(seq 1 300); do
    healthy && server_pid >/dev/null && return 0
    sleep 0.1
  done
  die "flexd did not start; see its log: journalctl -u flexd, or $LOG_FILE."
}

stop_server() {
  if uses_systemd && [ -e "$UNIT" ]; then
    systemctl disable --now --quiet flexd || true
    rm -f "$UNIT"
    systemctl daemon-reload
    return 0
  fi
  local pid i
  pid=$(server_pid) || return 0
  kill -TERM "$pid"
  for i in $(seq 1 400); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$pid" 2>/dev/null; then
    note "flexd did not stop within $((i / 10)) s; killing it"
    kill -KILL "$pid"
  fi
  rm -f "$PID_FILE"
}
