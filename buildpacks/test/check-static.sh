#!/bin/bash
# What the static fixture must answer besides its page: check-static.sh BASE_URL
set -euo pipefail
base=$1
# expect PATH TEXT [CURL-OPTION...]: TEXT is in the answer, headers included.
expect() {
  local path=$1 text=$2 answer
  shift 2
  answer=$(curl --silent --include --max-time 5 "$@" -- "$base$path")
  [[ $answer == *"$text"* ]] || { printf 'GET %s should hold %s:\n%s\n' "$path" "$text" "$answer" && exit 1; }
}
expect /app/any/where 'Hello from static'
expect /about 'About this site'
# The dollar sign is text.
# shellcheck disable=SC2016
expect /about 'X-Page: costs $5 "net"'
expect / 'X-Frame-Options: DENY'
expect / 'Cache-Control: public, max-age=0, must-revalidate'
expect /assets/site-a1b2c3d4.css 'immutable'
expect /old 'Location: /about'
expect /missing ' 404 '
expect /.flex/static/nginx.conf ' 404 '
expect /../static.json ' 40' --path-as-is
etag=$(curl --silent --head --max-time 5 -- "$base/" | tr -d '\r' | sed -n 's/^ETag: //p')
[[ -n $etag ]] || { echo "no ETag" && exit 1; }
expect / ' 304 ' --header "If-None-Match: $etag"
