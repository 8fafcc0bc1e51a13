#!/bin/bash
# What test/run.sh runs inside the build container: the first built-in buildpack that accepts /tmp/build compiles it.
set -uo pipefail
mkdir -p "$HOME"
cp -R /opt/flex/buildpacks /tmp/builtin
while read -r name; do
  [[ -n $name ]] || continue
  if label=$("/tmp/builtin/$name/bin/detect" /tmp/build); then
    echo "detected: $label"
    started=${EPOCHREALTIME/./}
    "/tmp/builtin/$name/bin/compile" /tmp/build /tmp/cache /tmp/env || exit 1
    echo "compile-ms: $(((${EPOCHREALTIME/./} - started) / 1000))"
    "/tmp/builtin/$name/bin/release" /tmp/build >/tmp/env/.release
    cat /tmp/env/.release
    exit
  fi
done </opt/flex/buildpacks/order
echo "No built-in buildpack accepts this source"
exit 1
