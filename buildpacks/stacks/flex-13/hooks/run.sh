#!/bin/bash
# Ends the making of the run image; run as root inside it. Prints nothing when all is well; safe to run twice.
set -euo pipefail
# What a service manager would run; here there is none.
rm -rf /etc/nginx/sites-enabled/* /var/www /etc/logrotate.d /etc/cron.*/*
# Java's own trust store, where the package's trigger ran before there was a Java to make it with.
if [[ -x /etc/ca-certificates/update.d/jks-keystore && ! -s /etc/ssl/certs/java/cacerts ]]; then
  find /etc/ssl/certs -name '*.pem' -printf '+%p\n' | /etc/ca-certificates/update.d/jks-keystore >/dev/null
fi
