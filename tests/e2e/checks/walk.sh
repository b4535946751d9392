# The way of a newcomer: a freshly booted Debian that has docker, containerd and podman as they come, and the commands of README.md's
# section about it, as they stand there; then everything once more from the store, with the upstreams gone.
# shellcheck shell=bash
# shellcheck source=tests/e2e/roots.sh
source "$E2E/roots.sh"
# shellcheck source=tests/e2e/machine.sh
source "$E2E/machine.sh"

WALK_PACKAGES=(containerd docker.io podman sudo)
WALK_SECTION='## On Debian, from the package to a warm pull'
# What this machine's kernel has no means for.
WALK_DAEMON_JSON='{"iptables": false, "ip6tables": false, "ip-forward": false, "bridge": "none"}'

check_needs() {
    cargo_tool cargo-deb
    echo systemd-nspawn nsenter
}

walk_archive() { printf '%s/walk-%s.tar\n' "$E2E_HOME" "$(cat "$E2E/roots.sh" "$E2E/checks/walk.sh" | sha256sum | cut -c1-16)"; }

# The system with the clients, before the namespaces, where there is a network.
check_prepare() {
    local archive building
    build_root
    build_package
    archive=$(walk_archive)
    [[ ! -f $archive ]] || return 0
    find "$E2E_HOME" -maxdepth 1 -name 'walk-*.tar' -exec rm -f {} +
    building=$(mktemp -d "$E2E_HOME/building.XXXXXX")
    note "installing ${WALK_PACKAGES[*]} into a Debian system"
    # shellcheck disable=SC2016
    unshare --mount --pid --fork --kill-child --propagation private "${BASH:-bash}" -euo pipefail -c '
        mount -t tmpfs -o size=4g tmpfs "$1"
        mkdir "$1/root"
        tar --numeric-owner -C "$1/root" -xf "$2"
        mount -t proc proc "$1/root/proc"
        # Nothing is started in here.
        printf "#!/bin/sh\nexit 101\n" >"$1/root/usr/sbin/policy-rc.d"
        chmod 0755 "$1/root/usr/sbin/policy-rc.d"
        inside="env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot $1/root"
        $inside apt-get --quiet update
        $inside apt-get --quiet --yes --no-install-recommends install "${@:4}"
        rm -rf "$1"/root/var/cache/apt/archives/*.deb "$1"/root/var/lib/apt/lists/* "$1/root/usr/sbin/policy-rc.d"
        umount "$1/root/proc"
        tar --numeric-owner -C "$1/root" -cf "$3.new" .
        mv "$3.new" "$3"' check_prepare "$building" "$(root_archive)" "$archive" "${WALK_PACKAGES[@]}" >"$building.log" 2>&1 || {
        tail -n 30 "$building.log" >&2
        die "docker, containerd and podman could not be installed into the Debian system"
    }
    rm -rf "$building" "$building.log"
}

check() {
    try "walk a Debian with docker, containerd and podman" walk_boot
    try "walk the commands of README.md" walk_commands
    try "walk all of it again with the upstreams gone" walk_again
    try "walk --undo" walk_undo
    try "walk power off" machine_off
    leave_root
}

walk_boot() {
    rm -rf "$ROOT"
    mkdir -p "$ROOT"
    tar --numeric-owner -C "$ROOT" -xf "$(walk_archive)"
    mkdir -p "$ROOT/etc/docker"
    printf '%s\n' "$WALK_DAEMON_JSON" >"$ROOT/etc/docker/daemon.json"
    cp "$WORK/bin/ocistern.deb" "$ROOT/root/ocistern_e2e.deb"
    boot_machine --capability=all
    wait_for 60 is_active docker.service
    wait_for 60 is_active containerd.service
}

# walk_lines: the commands, as they are copied.
walk_lines() {
    awk -v section="$WALK_SECTION" '
        /^## / { inside = $0 == section }
        /^```/ { block = inside && !block; next }
        block' "$PROJECT/README.md"
}

walk_commands() {
    local line began=$EPOCHREALTIME lines received=
    mapfile -t lines < <(walk_lines)
    ((${#lines[@]} >= 6))
    for line in "${lines[@]}"; do
        printf '$ %s\n' "$line"
        walk_line "$line"
        case $line in
            *"apt install"*) walk_upstreams ;;
            # One download, for whoever comes first.
            *pull*) : "${received:=$(metric ocistern_upstream_received_bytes_total)}" ;;
        esac
    done
    awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s altogether\n", b - a }'
    walk_pulled
    same "bytes from upstream after the first pull" "$received" "$(metric ocistern_upstream_received_bytes_total)"
    ((received > 0))
    machine ocistern ls | seen -F library/debian
}

# There is a terminal for none of them.
walk_line() { machine env HOME=/root DEBIAN_FRONTEND=noninteractive bash -euo pipefail -c "cd; $1" </dev/null; }

# The suite's own stand for what the built-in upstreams lead to.
walk_upstreams() {
    is_active
    package_config '{ from = "anonymous" }' >"$ROOT/etc/ocistern/config.toml"
    machine systemctl restart ocistern
    wait_http nspawn "http://$ADMIN/readyz"
}

# Each has the very image.
walk_pulled() {
    local wanted
    wanted=$(expected image manifest)
    same "docker" "debian@$wanted" "$(machine docker image inspect --format '{{index .RepoDigests 0}}' debian:bookworm)"
    same "podman" "$wanted" "$(machine podman image inspect --format '{{.Digest}}' docker.io/library/debian:bookworm)"
    same "containerd" "$wanted" "$(machine ctr images list | awk '$1 == "docker.io/library/debian:bookworm" { print $3 }')"
}

walk_again() {
    local line
    stop_upstreams
    machine docker image rm --force debian:bookworm >/dev/null
    machine podman image rm --force docker.io/library/debian:bookworm >/dev/null
    machine ctr images rm --sync docker.io/library/debian:bookworm
    while read -r line; do
        case $line in *pull*) walk_line "$line" ;; esac
    done < <(walk_lines)
    walk_pulled
    start_upstreams
}

walk_undo() {
    machine ocistern setup --all --undo
    same "daemon.json" "$WALK_DAEMON_JSON" "$(<"$ROOT/etc/docker/daemon.json")"
    [[ ! -e $ROOT/etc/containerd/certs.d && ! -e $ROOT/etc/containers/registries.conf.d/ocistern.conf ]]
}
