#!/bin/bash
# What the PHP fixture must answer besides its page: check-php.sh BASE_URL
set -euo pipefail
base=$1
[[ $(curl --silent --max-time 5 -- "$base/any/where") == *"Hello from php"* ]] || { echo "no front controller" && exit 1; }
[[ $(curl --silent --output /dev/null --write-out '%{http_code}' --max-time 5 -- "$base/missing.php") == 404 ]] || { echo "a missing .php is not 404" && exit 1; }
