#!/bin/bash
# Ends the making of the build image; run as root inside it. Prints nothing when all is well.
set -euo pipefail
# Builds run as the same user as the app will.
getent group app >/dev/null || groupadd --gid 10001 app
getent passwd app >/dev/null ||
  useradd --uid 10001 --gid 10001 --home-dir /app --no-create-home --shell /bin/bash app
install -d -o app -g app -m 0755 /app
# Buildpacks that read the old list of package sources expect the file to exist.
touch /etc/apt/sources.list
# What differs between two makings of the same list, and caches.
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old \
  /var/log/* /tmp/* /root/.gnupg
: >/etc/machine-id
# Java's own trust store, where the package's trigger ran before there was a Java to make it with.
if [[ -x /etc/ca-certificates/update.d/jks-keystore && ! -s /etc/ssl/certs/java/cacerts ]]; then
  find /etc/ssl/certs -name '*.pem' -printf '+%p\n' | /etc/ca-certificates/update.d/jks-keystore >/dev/null
fi
