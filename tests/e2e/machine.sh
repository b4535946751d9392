# The Debian system at $ROOT, really booted (systemd-nspawn). Sourced by checks/{systemd,walk}.sh, after roots.sh.
# shellcheck shell=bash
#
# It shares the suite's network, so the upstreams are where they are for all others.

# Of this lane alone.
CONTROL_GROUP=ocistern-e2e-$(basename "$WORK")

boot_machine() {
    if mountpoint -q "$ROOT/proc"; then umount "$ROOT/proc"; fi
    CONTROL_GROUP=$CONTROL_GROUP spawn nspawn "${BASH:-bash}" -c "$(declare -f in_control_group); in_control_group \"\$@\"" - \
        systemd-nspawn --quiet --directory="$ROOT" --machine=ocistern-e2e --register=no --keep-unit --console=pipe --boot "$@"
    wait_for 60 booted 2>/dev/null
}

# machine COMMAND…: inside of it.
machine() {
    bounded nsenter --target "$(<"$WORK/pid/machine")" --mount --uts --ipc --pid --cgroup -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 SYSTEMD_PAGER= SYSTEMD_COLORS=0 "$@"
}

# property NAME [UNIT]
property() { machine systemctl show --value --property="$1" "${2:-ocistern.service}"; }

journal() { machine journalctl --no-pager --output=cat --unit=ocistern.service; }

# is_active [UNIT]
is_active() { [[ $(property ActiveState "${1:-ocistern.service}") == active ]]; }

# The first process of it, and whether it can be talked to.
booted() {
    pgrep --parent "$(<"$WORK/pid/nspawn")" systemd >"$WORK/pid/machine" || return 1
    machine test -S /run/systemd/private
}

# Whatever control groups it makes are below one of ours, so that they can be removed again.
in_control_group() {
    local hierarchy
    for hierarchy in /sys/fs/cgroup/{systemd,unified} /sys/fs/cgroup; do
        [[ -f $hierarchy/cgroup.procs ]] || continue
        mkdir -p "$hierarchy/$CONTROL_GROUP"
        echo $$ >"$hierarchy/$CONTROL_GROUP/cgroup.procs"
    done
    exec "$@"
}

machine_off() {
    local hierarchy
    machine systemctl poweroff --no-block
    wait_for 60 is_off
    for hierarchy in /sys/fs/cgroup/{systemd,unified} /sys/fs/cgroup; do
        [[ ! -d $hierarchy/$CONTROL_GROUP ]] || find "$hierarchy/$CONTROL_GROUP" -depth -type d -exec rmdir {} +
    done
}
is_off() { ! running nspawn; }
