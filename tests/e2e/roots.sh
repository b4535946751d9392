# A Debian system to install into and to boot, and the package to install. Sourced by checks/{deb,systemd,image,walk}.sh.
# shellcheck shell=bash
#
# The system is built once into $E2E_HOME/root-HASH.tar (HASH: of this file) and unpacked where it is used. It has systemd to
# be booted, and a C compiler to stand in for an image that one builds in.

ROOT_PACKAGES=systemd,systemd-sysv,libpam-systemd,dbus,ca-certificates,gcc,libc6-dev,make

root_archive() { printf '%s/root-%s.tar\n' "$E2E_HOME" "$(sha256sum "$E2E/roots.sh" | cut -c1-16)"; }

# build_root: makes sure that the archive is there. Before the namespaces, where there is a network.
build_root() {
    local archive building
    archive=$(root_archive)
    [[ ! -f $archive ]] || return 0
    find "$E2E_HOME" -maxdepth 1 -name 'root-*.tar' -exec rm -f {} +
    building=$(mktemp -d "$E2E_HOME/building.XXXXXX")
    note "building a Debian system to install into and to boot (debootstrap)"
    # In memory: dpkg waits for the disk after every package. The mount goes with its namespace.
    unshare --mount --propagation private "${BASH:-bash}" -euo pipefail -c '
        mount -t tmpfs -o size=3g tmpfs "$1"
        mkdir "$1/root"
        debootstrap --variant=minbase --include="$2" bookworm "$1/root"
        rm -rf "$1"/root/var/cache/apt/archives/*.deb "$1"/root/var/lib/apt/lists/*
        tar --numeric-owner -C "$1/root" -cf "$3.new" .
        mv "$3.new" "$3"' build_root "$building" "$ROOT_PACKAGES" "$archive" >"$building.log" 2>&1 || {
        tail -n 30 "$building.log" >&2
        die "the Debian system could not be built"
    }
    rm -rf "$building" "$building.log"
}

# unpack_root DIRECTORY: as freshly installed.
unpack_root() {
    rm -rf "$1"
    mkdir -p "$1"
    tar --numeric-owner -C "$1" -xf "$(root_archive)"
}

# build_package: $WORK/bin/ocistern.deb, of the program that is tested. Before the namespaces, where cargo's home is.
build_package() {
    [[ ! -f $WORK/bin/ocistern.deb ]] || return 0
    local target=$WORK/package
    mkdir -p "$target/release"
    cp "$OCISTERN_BIN" "$target/release/ocistern"
    CARGO_TARGET_DIR=$target CARGO_DEB=$(cargo_tool cargo-deb) "$PROJECT/deploy/debian/build" --no-build >"$WORK/package.log" 2>&1 || {
        tail -n 30 "$WORK/package.log" >&2
        die "the Debian package could not be built"
    }
    cat "$WORK/package.log"
    mv "$target"/debian/*.deb "$WORK/bin/ocistern.deb"
    rm -rf "$target"
}

# Not $STORAGE's name of a client: it is unpacked into the same file system.
ROOT=$WORK/storage/root

# in_root COMMAND…: in the system that is unpacked at $ROOT and not booted.
in_root() {
    mountpoint -q "$ROOT/proc" || mount -t proc proc "$ROOT/proc"
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot "$ROOT" "$@"
}

# leave_root: nothing of it stays mounted or takes memory.
leave_root() {
    if mountpoint -q "$ROOT/proc"; then umount "$ROOT/proc"; fi
    rm -rf "$ROOT"
}

# package_config FILE: the package's configuration, with the suite's upstreams. CREDENTIALS as for cistern_config.
package_config() {
    cistern_config "${1:-}" | sed "s|^root = .*|root = \"/var/cache/ocistern\"|"
}
