# The units: what systemd's own checks say, socket activation by hand, and a Debian system with the package that is really booted
# (systemd-nspawn): start, pulls, reload, secrets that only systemd reads, the socket, the watchdog, a user's own daemon, the stop.
# shellcheck shell=bash
# shellcheck source=tests/e2e/roots.sh
source "$E2E/roots.sh"
# shellcheck source=tests/e2e/machine.sh
source "$E2E/machine.sh"

check_needs() {
    cargo_tool cargo-deb
    echo systemd-analyze systemd-socket-activate systemd-nspawn nsenter
}

check_prepare() {
    build_root
    build_package
}

check() {
    try "systemd units are right" units_verify
    try "systemd exposure is at most 1.5" units_security
    try "systemd socket activation by hand" activated_by_hand
    try "systemd boot" boot
    try "systemd the service runs as it should" service_runs
    try "systemd pull" machine_pull oci
    try "systemd reload" service_reload
    try "systemd a secret that only systemd reads" service_credential
    try "systemd the socket starts the service" service_socket
    try "systemd a registry's own name at port 443" service_own_name
    try "systemd the watchdog ends what hangs" service_watchdog
    try "systemd a user's own daemon" user_service
    try "systemd stop" service_stop
    try "systemd power off" machine_off
    leave_root
}

# --- without a booted system -----------------------------------------------------------------------------------------

units_verify() {
    unpack_root "$ROOT"
    cp "$WORK/bin/ocistern.deb" "$ROOT/ocistern.deb"
    in_root dpkg --install /ocistern.deb
    # Also with systemd's own idea of what a name in a unit may be; warnings are printed and are no exit status.
    in_root systemd-analyze verify ocistern.service ocistern.socket 2>&1 | tee "$WORK/tmp/verify"
    if grep -F ocistern "$WORK/tmp/verify"; then return 1; fi
}

units_security() { systemd-analyze security --no-pager --offline=true --threshold=15 "$PROJECT/systemd/ocistern.service"; }

# The sockets are there before the daemon is.
activated_by_hand() {
    rm -rf "$WORK/cistern"
    cistern_config '{ from = "anonymous" }' >"$WORK/ocistern.toml"
    # Not in the order of the configuration.
    spawn ocistern systemd-socket-activate --listen="[::1]:$OCISTERN_PORT" --listen="127.0.0.1:$OCISTERN_PORT" \
        "$OCISTERN_BIN" serve --config "$WORK/ocistern.toml"
    wait_for 10 grep -q 'Listening on' "$WORK/log/ocistern.err"
    [[ ! -e $WORK/cistern/lock ]]
    pulls oci
    curl -fsS -o /dev/null "http://[::1]:$OCISTERN_PORT/oauth2/token"
    sed -i '0,/^default_upstream/s//public_url = "https:\/\/cache.e2e"\n&/' "$WORK/ocistern.toml"
    kill -HUP "$(<"$WORK/pid/ocistern")"
    wait_for 10 has_public_url
    challenge "[::1]" | grep -F "\"http://[::1]:$OCISTERN_PORT/"
    cistern_stop
}

# pulls ITEM: with its digest compared.
pulls() {
    rm -rf "$WORK/storage/pulled"
    bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" \
        "docker://$OCISTERN/$(upstream_of "$1")/$(repository_of "$1")$(reference "$1")" "dir:$WORK/storage/pulled"
    same "digest of $1" "$(expected "$1" manifest)" "$(<"$WORK/tmp/digest")"
    rm -rf "$WORK/storage/pulled"
}

# --- a booted system -------------------------------------------------------------------------------------------------
boot() {
    package_config '{ from = "static", username = "'"$PULL_USER"'", password_file = "credential:puller" }' >"$ROOT/etc/ocistern/config.toml"
    # The service starts also without the secret; what needs it fails, and that alone.
    boot_machine
    wait_for 60 is_active
    wait_http nspawn "http://$ADMIN/readyz"
}

service_runs() {
    local pid status
    same "type" notify "$(property Type)"
    same "watchdog" 1min "$(property WatchdogUSec)"
    same "user" ocistern "$(machine stat -c %U "/proc/$(property MainPID)")"
    # The kernel's own word for it.
    pid=$(property MainPID)
    status=$(machine cat "/proc/$pid/status")
    same "capabilities" 0000000000000000 "$(awk '$1 == "CapEff:" { print $2 }' <<<"$status")"
    same "bounding set" 0000000000000000 "$(awk '$1 == "CapBnd:" { print $2 }' <<<"$status")"
    same "no new privileges" 1 "$(awk '$1 == "NoNewPrivs:" { print $2 }' <<<"$status")"
    same "system calls are filtered" 2 "$(awk '$1 == "Seccomp:" { print $2 }' <<<"$status")"
    fails machine nsenter --target "$pid" --mount -- touch /usr/ocistern-was-here
    same "restarts" 0 "$(property NRestarts)"
    # What its own process metrics read.
    (($(metric process_start_time_seconds) > 0))
    same "owner and mode of the store" "ocistern:ocistern 700" "$(machine stat -c '%U:%G %a' /var/cache/ocistern)"
    # A command of root reaches the daemon by its socket.
    machine ocistern status | tee "$WORK/tmp/status"
    grep -F "$pid" "$WORK/tmp/status"
}

machine_pull() {
    pulls "$1"
    stop_upstreams
    pulls "$1"
    start_upstreams
}

service_reload() {
    # The first listener alone: the other one goes on as it is.
    machine sed -i -e 's/^\[store\]$/[limits]\nmax_rate = "100MiB"\n&/' \
        -e '0,/^default_upstream/s//public_url = "https:\/\/cache.e2e"\n&/' /etc/ocistern/config.toml
    machine systemctl reload ocistern
    wait_for 10 reloaded
    is_active
    has_public_url
    challenge "[::1]" | grep -F "\"http://[::1]:$OCISTERN_PORT/"
    machine sed -i '/^public_url = /d' /etc/ocistern/config.toml
    machine systemctl reload ocistern
    wait_for 10 has_no_public_url
}
reloaded() { journal | grep -F 'max_rate'; }

has_public_url() { challenge 127.0.0.1 | grep -F '"https://cache.e2e/'; }

has_no_public_url() { challenge 127.0.0.1 | grep -F "\"http://127.0.0.1:$OCISTERN_PORT/"; }

# challenge ADDRESS: where the listener there sends who has no token.
challenge() { curl -sS -o /dev/null -D - "http://$1:$OCISTERN_PORT/v2/" | grep -i '^www-authenticate:'; }

# Readable for root alone, and passed on.
service_credential() {
    fails pulls basic
    machine install -d -m 0700 /etc/ocistern/secrets
    cp "$WORK/secret/password" "$ROOT/etc/ocistern/secrets/puller"
    chmod 0600 "$ROOT/etc/ocistern/secrets/puller"
    machine mkdir -p /etc/systemd/system/ocistern.service.d
    printf '[Service]\nLoadCredential=puller:/etc/ocistern/secrets/puller\n' >"$ROOT/etc/systemd/system/ocistern.service.d/secret.conf"
    machine systemctl daemon-reload
    machine systemctl restart ocistern
    pulls basic
    # What an administrator asks is answered for the service.
    same "config check" "/etc/ocistern/config.toml: no problem found" "$(machine ocistern config check)"
}

service_socket() {
    local before
    machine systemctl stop ocistern
    machine systemctl start ocistern.socket
    same "state before the first client" inactive "$(property ActiveState)"
    pulls oci
    is_active
    # Nobody is refused while it restarts.
    before=$(property MainPID)
    (machine systemctl restart ocistern) &
    for _ in {1..50}; do curl -fsS -m 20 -o /dev/null "http://$OCISTERN/oauth2/token"; done
    wait $!
    [[ $before != "$(property MainPID)" ]]
}

# What `setup ca` prints for the service is done as it stands there: the key by its group, the port from systemd.
service_own_name() {
    local said name=oci.test
    said=$(machine ocistern setup ca $name)
    cp "$ROOT/etc/ocistern/config.toml" "$WORK/tmp/config.before"
    # From its heading to the next empty line.
    sed -n '/^# for ocistern/,/^$/p' <<<"$said" >>"$ROOT/etc/ocistern/config.toml"
    mkdir -p "$ROOT/etc/systemd/system/ocistern.socket.d"
    sed -n 's/^#     //p' <<<"$said" >"$ROOT/etc/systemd/system/ocistern.socket.d/override.conf"
    grep -xF 'ListenStream=0.0.0.0:443' "$ROOT/etc/systemd/system/ocistern.socket.d/override.conf"
    machine systemctl stop ocistern.socket
    machine systemctl daemon-reload
    sed -nE 's/^#   (chgrp|chmod|systemctl) /\1 /p' <<<"$said" >"$ROOT/own-name.sh"
    machine sh -ex /own-name.sh
    same "mode of the key" "root:ocistern 640" "$(machine stat -c '%U:%G %a' /etc/ocistern/tls/server.key)"
    curl -fsS -m 20 --cacert "$ROOT/etc/ocistern/tls/ca.crt" --resolve "$name:443:127.0.0.1" -o /dev/null \
        "https://$name/v2/samples/app/manifests/v1"
    # The listener that was there before is served as well.
    pulls oci
    machine systemctl disable --now ocistern.socket
    machine systemctl stop ocistern
    rm -r "$ROOT/etc/systemd/system/ocistern.socket.d" "$ROOT/own-name.sh"
    cp "$WORK/tmp/config.before" "$ROOT/etc/ocistern/config.toml"
    machine systemctl daemon-reload
    machine systemctl start ocistern.socket
    pulls oci
}

# Stopped where it stands, it says nothing any more.
service_watchdog() {
    local before
    printf '[Service]\nWatchdogSec=2s\nLimitCORE=0\n' >"$ROOT/etc/systemd/system/ocistern.service.d/watchdog.conf"
    machine systemctl daemon-reload
    machine systemctl restart ocistern
    before=$(property MainPID)
    # It lives as long as it says so.
    sleep 5
    same "process after five seconds" "$before" "$(property MainPID)"
    machine systemctl kill --kill-who=main --signal=SIGSTOP ocistern
    wait_for 20 restarted "$before"
    journal | grep -F 'Watchdog timeout'
    pulls oci
    machine rm /etc/systemd/system/ocistern.service.d/watchdog.conf
    machine systemctl daemon-reload
    machine systemctl restart ocistern
}
restarted() { is_active && [[ $(property MainPID) != "$1" && $(property MainPID) != 0 ]]; }

# somebody COMMAND…: as a user with a service manager of her own.
somebody() {
    machine setpriv --reuid=somebody --regid=somebody --clear-groups env HOME=/home/somebody XDG_RUNTIME_DIR=/run/user/1000 "$@"
}

user_service() {
    machine systemctl stop ocistern.socket ocistern.service
    machine useradd --create-home --uid 1000 somebody
    somebody mkdir -p /home/somebody/.config/ocistern
    # Hers alone: the system's file is not read.
    cistern_config '{ from = "anonymous" }' | sed '/^root = /d' >"$ROOT/home/somebody/.config/ocistern/config.toml"
    machine systemctl start user@1000.service
    somebody systemctl --user start ocistern.socket
    pulls oci
    same "state" active "$(somebody systemctl --user show --value --property=ActiveState ocistern.service)"
    same "watchdog" 1min "$(somebody systemctl --user show --value --property=WatchdogUSec ocistern.service)"
    machine test -f /home/somebody/.cache/ocistern/oci-layout
    somebody ocistern ls | tee "$WORK/tmp/ls"
    grep -F samples/app "$WORK/tmp/ls"
    somebody systemctl --user stop ocistern.socket ocistern.service
    same "result" success "$(somebody systemctl --user show --value --property=Result ocistern.service)"
    machine systemctl stop user@1000.service
    machine systemctl start ocistern
}

service_stop() {
    local said
    machine systemctl stop ocistern
    same "result" success "$(property Result)"
    journal >"$WORK/log/journal"
    tail -n 20 "$WORK/log/journal"
    grep -F '"stopped"' "$WORK/log/journal"
    said=$(grep -iE 'panicked at|SIGSYS|not permitted|Operation not supported' "$WORK/log/journal" || true)
    none "what should not be in the journal" "$said"
    if grep -F "$PULL_PASSWORD" "$WORK/log/journal"; then return 1; fi
}
