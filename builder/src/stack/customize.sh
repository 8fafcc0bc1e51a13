#!/bin/sh
# Finishes the root file system that mmdebstrap made and writes both images' trees as tars: first the run image's, then,
# with the build packages added, the build image's. Constant text; everything variable comes in the environment:
#   FLEX_ROOTFS (directory laid over the root, or empty), FLEX_CERTS (directory of *.crt), FLEX_OUT (directory for the
#   results), FLEX_RUN_HOOK and FLEX_BUILD_HOOK (scripts, or empty), FLEX_BUILD_PACKAGES (names, space-separated).
# Usage: customize.sh ROOT (run by mmdebstrap)
set -eu
root=$1

# The tree's own apt configuration, kept where no hook can remove it: without it apt would work on this machine itself.
apt_config=$FLEX_OUT/apt.conf
cp -- "$MMDEBSTRAP_APT_CONFIG" "$apt_config"
grep -qF -- "$root" "$apt_config" || {
  echo "mmdebstrap's apt configuration does not name $root" >&2
  exit 1
}

write_tar() {
  # Not part of an image: what the kernel mounts, package lists and caches, logs, and state that differs from run to run.
  # Anchored: a package may well have a folder called sys or proc of its own, as the sources of Go have.
  (
    cd "$root"
    set -- *
    tar --create --file "$FLEX_OUT/$out.tar" --format=gnu --sort=name --numeric-owner --one-file-system \
      --mtime="@$SOURCE_DATE_EPOCH" --clamp-mtime --anchored \
      --exclude='proc/*' --exclude='sys/*' --exclude='dev/*' --exclude='run/*' --exclude='tmp/*' \
      --exclude='var/lib/apt/lists/*' --exclude='var/cache/apt/*' --exclude='var/cache/debconf/*-old' \
      --exclude='var/cache/ldconfig/aux-cache' --exclude='var/lib/dpkg/*-old' --exclude='var/log/*.log' \
      --exclude='var/log/apt/*' --exclude='var/lib/apt/extended_states' --exclude='etc/resolv.conf' \
      --exclude='etc/hostname' --exclude='etc/.pwd.lock' --exclude='etc/apt/apt.conf.d/*mmdebstrap*' \
      --exclude='var/cache/fontconfig/*' \
      -- "$@"
  )
  chroot "$root" dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' >"$FLEX_OUT/$out.packages"
}

run_hook() {
  [ -n "$1" ] || return 0
  cp -- "$1" "$root/tmp/flex-hook"
  chmod 755 "$root/tmp/flex-hook"
  chroot "$root" /tmp/flex-hook
  rm -f "$root/tmp/flex-hook"
}

# Unpacking without waiting for the disk is for the making only.
sed -i '/^force-unsafe-io$/d' "$root"/etc/dpkg/dpkg.cfg.d/*mmdebstrap*
printf 'app:x:10001:10001::/app:/bin/bash\n' >>"$root/etc/passwd"
printf 'app:x:10001:\n' >>"$root/etc/group"
printf 'app:!:19000:0:99999:7:::\n' >>"$root/etc/shadow"
mkdir -p "$root/app"
chown 10001:10001 "$root/app"
chmod 755 "$root/app"

if [ -n "$FLEX_ROOTFS" ]; then
  tar --create --directory "$FLEX_ROOTFS" --owner=0 --group=0 --numeric-owner --mode='u+rwX,go+rX,go-w' . |
    tar --extract --directory "$root" --no-overwrite-dir --preserve-permissions
fi
mkdir -p "$root/usr/local/share/ca-certificates"
for cert in "$FLEX_CERTS"/*.crt; do
  [ ! -e "$cert" ] || install -m 644 -- "$cert" "$root/usr/local/share/ca-certificates/"
done
[ ! -x "$root/usr/sbin/update-ca-certificates" ] || chroot "$root" update-ca-certificates >/dev/null
# Buildpacks that read it fail without it.
[ -e "$root/etc/apt/sources.list" ] || : >"$root/etc/apt/sources.list"

run_hook "$FLEX_RUN_HOOK"
out=run
write_tar

if [ -n "$FLEX_BUILD_PACKAGES" ]; then
  # A hook may have removed the package lists to save their space.
  if ! ls "$root"/var/lib/apt/lists/*Packages* >/dev/null 2>&1; then
    mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
    APT_CONFIG=$apt_config apt-get update
  fi
  # Word splitting is wanted: package names were checked and hold no blanks.
  # shellcheck disable=SC2086
  APT_CONFIG=$apt_config DEBIAN_FRONTEND=noninteractive apt-get --yes --no-install-recommends \
    -oDPkg::Chroot-Directory="$root" -oDPkg::Options::=--force-unsafe-io install $FLEX_BUILD_PACKAGES
  [ ! -x "$root/usr/sbin/update-ca-certificates" ] || chroot "$root" update-ca-certificates >/dev/null
fi
run_hook "$FLEX_BUILD_HOOK"
out=build
write_tar
