# shellcheck shell=bash disable=SC2034,SC2154
# Dependencies, build scripts, pruning. Sourced by bin/compile.

script() { jq -r --arg s "$1" '.scripts[$s]? // "" | strings' package.json; }

# Runs a script of package.json if it is there.
run_script() {
  [[ -n $(script "$1") ]] || return 0
  header "Running the script $1"
  or_fail "The script \"$1\" of package.json failed (see above)." "$manager" run "$1"
}

# The command that installs everything, development dependencies too: build tools are usually among them.
install_command() {
  case $manager in
    npm)
      if [[ -n $lock_file ]]; then command=(npm ci --include=dev); else command=(npm install --include=dev --no-package-lock); fi
      ;;
    pnpm)
      command=(pnpm install --prod=false --store-dir "$CACHE_DIR/pnpm" --package-import-method copy)
      if [[ -n $lock_file ]]; then command+=(--frozen-lockfile); else command+=(--no-lockfile); fi
      ;;
    yarn)
      if berry; then command=(yarn install --immutable); else
        command=(yarn install --production=false --non-interactive --no-progress)
        if [[ -n $lock_file ]]; then command+=(--frozen-lockfile); else command+=(--no-lockfile); fi
      fi
      ;;
  esac
}

berry() { [[ $manager_package == @yarnpkg/cli-dist ]]; }

# A workspace has a node_modules in each of its packages: those are left to the manager's own cache.
workspace() { [[ -f pnpm-workspace.yaml ]] || [[ $(jq 'has("workspaces")' package.json) == true ]]; }

# What the app runs around an install; a restored tree needs it too.
readonly HOOKS=(preinstall install postinstall prepare)

install_dependencies() {
  # For pruning too, which happens also where nothing was installed.
  export YARN_ENABLE_TELEMETRY=0 YARN_ENABLE_GLOBAL_CACHE=false YARN_NODE_LINKER=${YARN_NODE_LINKER:-node-modules}
  # pnpm would fetch another pnpm behind the log's back.
  [[ $manager != pnpm ]] || export npm_config_manage_package_manager_versions=false
  local command=() files=(package.json) file key hook started
  for file in "$lock_file" .npmrc .yarnrc .yarnrc.yml pnpm-workspace.yaml .pnpmfile.cjs; do
    if [[ -n $file && -f $file ]]; then files+=("$file"); fi
  done
  key=$(hash_of 1 "$node_version" "$manager_version" "$(hash_files "${files[@]}")" "$(config_var NPM_CONFIG_REGISTRY)")
  cached_modules=$CACHE_DIR/modules-$key
  [[ -n $lock_file ]] || warn "There is no lock file: versions may differ from build to build." "Commit package-lock.json, pnpm-lock.yaml or yarn.lock."
  rm -rf node_modules
  started=$(now_ms)
  if [[ -d $cached_modules ]] && [[ -n $lock_file ]]; then
    copy_tree "$cached_modules" "$BUILD_DIR/node_modules"
    header "Using the cached node_modules ($(($(now_ms) - started)) ms; dependencies have not changed)"
    for hook in "${HOOKS[@]}"; do run_script "$hook"; done
    return
  fi
  header "Installing dependencies with $manager"
  install_command
  or_fail "The dependencies could not be installed (see above)." "${command[@]}"
  info "Installed in $(($(now_ms) - started)) ms"
  find "$CACHE_DIR" -maxdepth 1 -name 'modules-*' -exec rm -rf -- {} +
  if [[ -n $lock_file && -d node_modules ]] && ! workspace && ! linked; then cache_put "$BUILD_DIR/node_modules" "$cached_modules"; fi
}

# Dependencies from the source tree (file:, link:) are not covered by the hash.
linked() { jq -e '[.dependencies?, .devDependencies?, .optionalDependencies?] | map(values | .[]) | any(strings; test("^(file|link|portal|workspace):|^[./]"))' package.json >/dev/null; }

# As on Heroku: heroku-postbuild in place of build, where there is one.
build_app() {
  if [[ -n $(script heroku-postbuild) ]]; then run_script heroku-postbuild; else run_script build; fi
}

prune() {
  [[ $NODE_ENV == production ]] || { info "Keeping development dependencies (NODE_ENV is $NODE_ENV)" && return; }
  [[ -d node_modules && $(jq '.devDependencies? // {} | length' package.json) -gt 0 ]] || return 0
  local pair
  for pair in NPM_CONFIG_PRODUCTION=false YARN_PRODUCTION=false PNPM_SKIP_PRUNING=true; do
    if [[ $(config_var "${pair%=*}") == "${pair#*=}" ]]; then
      info "Keeping development dependencies (the config var ${pair%=*} is ${pair#*=})"
      return
    fi
  done
  header "Pruning development dependencies"
  local command started
  started=$(now_ms)
  case $manager in
    npm) command=(npm prune --omit=dev --ignore-scripts --no-package-lock) ;;
    pnpm) command=(pnpm prune --prod --ignore-scripts --config.store-dir="$CACHE_DIR/pnpm") ;;
    yarn)
      if berry; then command=(yarn workspaces focus --all --production); else
        command=(yarn install --production --frozen-lockfile --ignore-scripts --prefer-offline --non-interactive)
      fi
      ;;
  esac
  or_fail "Development dependencies could not be pruned (see above)." "${command[@]}"
  info "Pruned in $(($(now_ms) - started)) ms"
}
