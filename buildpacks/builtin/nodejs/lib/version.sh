# shellcheck shell=bash disable=SC2034,SC2154
# Which Node.js, which package manager; how they are put in place. Sourced by bin/compile.
#
# Sets: manager, manager_asked, manager_version, lock_file, node_version, toolchain (a tree in the cache).

# The line of long-term support that an app gets when it names none.
readonly DEFAULT_NODE=24.x

choose_manager() {
  local found=() file
  for file in package-lock.json npm-shrinkwrap.json pnpm-lock.yaml yarn.lock; do
    if [[ -f $file ]]; then found+=("$file"); fi
  done
  manager_asked=$(jq -r '.packageManager? // "" | strings | (split("+")[0] // "")' package.json)
  lock_file=
  case ${manager_asked%%@*} in
    npm | pnpm | yarn) manager=${manager_asked%%@*} manager_asked=${manager_asked#*@} ;;
    "") manager= ;;
    *) fail "package.json asks for package manager \"${manager_asked:0:80}\"; npm, pnpm and yarn are known." ;;
  esac
  for file in "${found[@]}"; do
    case $manager:$file in
      npm:package-lock.json | npm:npm-shrinkwrap.json | :package-lock.json | :npm-shrinkwrap.json) manager=npm lock_file=$file ;;
      pnpm:pnpm-lock.yaml | :pnpm-lock.yaml) manager=pnpm lock_file=$file ;;
      yarn:yarn.lock | :yarn.lock) manager=yarn lock_file=$file ;;
      *) continue ;;
    esac
    break
  done
  manager=${manager:-npm}
  if ((${#found[@]} > 1)); then
    warn "There is more than one lock file (${found[*]}): ${lock_file:-none of them} is used. Delete the others."
  fi
  [[ -n $manager_asked ]] || manager_asked=$(jq -r --arg m "$manager" '.engines[$m]? // "" | strings' package.json)
}

# npm_versions PACKAGE RANGE: prints the highest version that npm finds in the range, or nothing.
# Status 1 when the registry could not be asked.
highest() {
  local out
  out=$(npm view --json -- "$1@$2" version 2>"$CACHE_DIR/view.err") || {
    grep -q 'E404\|ETARGET\|No match' "$CACHE_DIR/view.err" && return 0
    return 1
  }
  jq -r 'if type == "array" then .[] else . end' <<<"$out" 2>/dev/null | grep -E '^[0-9]' | sort -V | tail -n 1 || true
}

valid_range() { [[ ${#1} -le 200 && $1 =~ ^[0-9A-Za-z.*^~\<\>=|+\ -]+$ ]]; }

# resolve PACKAGE RANGE: `resolved` is the version, asked of the registry at most once a day for the same range.
resolve() {
  local kept
  kept=$CACHE_DIR/resolved-$(hash_of "$1" "$2")
  if [[ -n $(find "$kept" -mmin -1440 2>/dev/null) ]]; then
    resolved=$(<"$kept")
    return
  fi
  resolved=$(highest "$1" "$2") || fail "The npm registry could not be asked which versions of $1 there are:" "$(grep -v '^npm warn' "$CACHE_DIR/view.err" | head -n 3)"
  [[ -z $resolved ]] || printf '%s' "$resolved" >"$kept"
}

choose_node() {
  local arch range where=package.json major
  case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64) arch=arm64 ;;
    *) fail "There is no build of Node.js for this machine ($(uname -m))." ;;
  esac
  node_package=node-linux-$arch
  range=$(jq -r '.engines.node? // "" | strings' package.json)
  if [[ -z $range && -f .node-version ]]; then where=.node-version range=$(head -n 1 .node-version | tr -d '[:space:]'); fi
  if [[ -z $range && -f .nvmrc ]]; then where=.nvmrc range=$(head -n 1 .nvmrc | tr -d '[:space:]'); fi
  case $range in
    "") info "No Node.js version is asked for (engines.node in package.json): using $DEFAULT_NODE" && range=$DEFAULT_NODE ;;
    lts* | stable) range=$DEFAULT_NODE ;;
    node | latest | current) range='*' ;;
  esac
  valid_range "$range" || fail "$where asks for a Node.js version that cannot be understood." "Write a range such as 24.x or >=22 there."
  case $range in '>='* | '>'* | '*') [[ $range == *'<'* ]] || info "The range \"$range\" takes new major versions as they come; 24.x would not" ;; esac
  resolve "$node_package" "$range"
  if [[ -z $resolved ]]; then
    major=$(grep -oE '[0-9]+' <<<"$range" | head -n 1 || true)
    [[ -z $major ]] || resolve "$node_package" "$major.x"
    [[ -n $resolved ]] || other_major Node.js "$range ($where)" "the npm registry has no build in that range." "$(node_majors)"
    wanted_unavailable Node.js "$range ($where)" "the npm registry has no build in that range." "$resolved"
  fi
  node_version=$resolved
}

# The major versions of Node.js that the registry has builds of, for people.
node_majors() {
  npm view --json -- "$node_package" versions 2>/dev/null |
    jq -r '[.[] | select(test("^[0-9]+[.][0-9.]+$")) | split(".")[0] | tonumber] | unique | map("\(.).x") | join(", ")' 2>/dev/null ||
    printf '%s' "$DEFAULT_NODE"
}

# The major version of npm that comes with this major version of Node.js.
npm_for() {
  if (($1 >= 24)); then echo 11; elif (($1 >= 20 || $1 == 18)); then echo 10; elif (($1 == 19)); then echo 9; elif (($1 >= 14)); then echo 8; else echo 6; fi
}

# The manager's version: the app's, or the one that fits the lock file and this Node.js.
choose_manager_version() {
  local major=${node_version%%.*} range=$manager_asked package=$manager
  if [[ -z $range ]]; then
    case $manager in
      npm) range=$(npm_for "$major") ;;
      pnpm)
        case $(grep -m 1 '^lockfileVersion:' pnpm-lock.yaml 2>/dev/null) in
          *5*) range=7 ;;
          *6*) range=8 ;;
          *) range=10 ;;
        esac
        ;;
      yarn) if grep -q '^__metadata:' yarn.lock 2>/dev/null; then range=4; else range=1; fi ;;
    esac
  fi
  valid_range "$range" || fail "package.json asks for a version of $manager that cannot be understood."
  if [[ $manager == yarn && ! $range =~ ^[\^~=v]*1(\.|$) ]]; then package=@yarnpkg/cli-dist; fi
  resolve "$package" "$range"
  [[ -n $resolved ]] || fail "The npm registry has no $manager $range." "Change packageManager or engines.$manager in package.json."
  manager_version=$resolved manager_package=$package
}

# kept PREFIX NAME: whether the tree PREFIX-NAME is in the cache; the others of that prefix go when it is not.
kept() {
  [[ ! -d $CACHE_DIR/$1-$2 ]] || return 0
  find "$CACHE_DIR" -maxdepth 1 -name "$1-*" -exec rm -rf -- {} +
  return 1
}

# Puts Node.js and the manager into the cache once, and into the app each time.
place_node() {
  local new=$CACHE_DIR/new tree tools packages=("$manager_package@$manager_version")
  # npm is always there: `npm start` is how Node.js apps are started.
  [[ $manager == npm ]] || packages+=("npm@$(npm_for "${node_version%%.*}")")
  tree=$(hash_of 4 "$node_version") tools=$(hash_of 4 "${packages[@]}")
  if ! kept runtime "$tree"; then
    header "Installing Node.js $node_version"
    rm -rf "$new"
    mkdir -p "$new/node"
    quiet_or_fail "Node.js $node_version could not be fetched." \
      env -C "$new" npm install --prefix "$new/node" --no-save --no-package-lock --ignore-scripts --global=false -- "$node_package@$node_version"
    mv "$new/node/node_modules/$node_package"/{bin,include} "$new/" || fail "The package $node_package $node_version does not hold what it should."
    rm -rf "$new/node"
    mv -T "$new" "$CACHE_DIR/runtime-$tree"
  fi
  if ! kept tools "$tools"; then
    header "Installing $manager $manager_version"
    rm -rf "$new"
    mkdir -p "$new"
    quiet_or_fail "$manager $manager_version could not be fetched." \
      npm install --global --prefix "$new" --ignore-scripts -- "${packages[@]}"
    # The installing npm leaves its own settings in the new one, which does not know all of them.
    rm -f "$new/lib/node_modules/npm/npmrc"
    mv -T "$new" "$CACHE_DIR/tools-$tools"
  fi
  # Headers stay in the cache; the rest is linked where that can be done, as nothing of it is ever written to in place.
  toolchain=$CACHE_DIR/runtime-$tree
  rm -rf "$BUILD_DIR/.flex/node"
  mkdir -p "$BUILD_DIR/.flex/node"
  for tree in "$toolchain/bin" "$CACHE_DIR/tools-$tools"/{bin,lib}; do
    cp -al -- "$tree" "$BUILD_DIR/.flex/node/" 2>/dev/null || cp -a --reflink=auto -- "$tree" "$BUILD_DIR/.flex/node/"
  done
  export PATH=$BUILD_DIR/.flex/node/bin:$PATH
  if ! node --version >/dev/null 2>"$CACHE_DIR/node.err"; then
    fail "Node.js $node_version does not run on this machine:" "$(head -n 3 "$CACHE_DIR/node.err")"
  fi
}
