# The Debian package: what is in it, installed into a Debian system as dpkg does it, then pulls from the program that it
# installed; installed again over changes, removed, purged. The system is not booted here: checks/systemd.sh does that.
# shellcheck shell=bash
# shellcheck source=tests/e2e/roots.sh
source "$E2E/roots.sh"

check_needs() {
    cargo_tool cargo-deb
    echo dpkg-deb
}

check_prepare() {
    build_root
    build_package
}

check() {
    try "deb contents" deb_contents
    try "deb install" deb_install
    try "deb pull" deb_pull
    try "deb install again over a changed configuration" deb_again
    try "deb remove keeps configuration and store" deb_remove
    try "deb purge" deb_purge
    leave_root
}

deb_contents() {
    local list wanted depends
    dpkg-deb --info "$WORK/bin/ocistern.deb"
    list=$(dpkg-deb --contents "$WORK/bin/ocistern.deb" | awk '{ print $6 }')
    printf '%s\n' "$list"
    for wanted in ./usr/bin/ocistern ./etc/ocistern/config.toml ./usr/lib/systemd/{system,user}/ocistern.{service,socket} \
        ./usr/lib/sysusers.d/ocistern.conf ./usr/lib/tmpfiles.d/ocistern.conf ./usr/share/doc/ocistern/{copyright,README.md} \
        ./usr/share/doc/ocistern/examples/ocistern.toml; do
        seen -x "$wanted\(\.gz\)\?" <<<"$list" || same "a file of the package" "$wanted" none
    done
    # Who has these commands ships what they write.
    if "$OCISTERN_BIN" man --help >/dev/null 2>&1; then
        for wanted in ./usr/share/man/man1/ocistern{,-serve,-status}.1.gz; do seen -x "$wanted" <<<"$list"; done
    fi
    if "$OCISTERN_BIN" completions --help >/dev/null 2>&1; then
        for wanted in bash-completion/completions/ocistern zsh/vendor-completions/_ocistern fish/vendor_completions.d/ocistern.fish; do
            seen -x "./usr/share/$wanted" <<<"$list"
        done
    fi
    # Nothing but the C library and what is asked for on purpose: neither OpenSSL nor a C++ library. (libgcc-s1 comes
    # with libc6.)
    depends=$(dpkg-deb --field "$WORK/bin/ocistern.deb" Depends | tr ',' '\n' | sed 's/^ *//; s/ .*//' | sort -u | paste -sd' ')
    same "what it depends on" "ca-certificates libc6 systemd" "$depends"
    same "configuration files" /etc/ocistern/config.toml "$(dpkg-deb --ctrl-tarfile "$WORK/bin/ocistern.deb" | tar -xO ./conffiles)"
}

deb_install() {
    unpack_root "$ROOT"
    cp "$WORK/bin/ocistern.deb" "$ROOT/ocistern.deb"
    in_root dpkg --install /ocistern.deb
    in_root dpkg --verify ocistern
    same "owner and mode of the store" "ocistern:ocistern 700" "$(in_root stat -c '%U:%G %a' /var/cache/ocistern)"
    same "shell of the user" /usr/sbin/nologin "$(in_root getent passwd ocistern | cut -d: -f7)"
    [[ -L $ROOT/etc/systemd/system/multi-user.target.wants/ocistern.service ]]
    [[ ! -e $ROOT/etc/systemd/system/sockets.target.wants/ocistern.socket ]]
    same "config check" "/etc/ocistern/config.toml: no problem found" "$(in_root ocistern config check)"
    in_root ocistern config show | grep -x 'root = "/var/cache/ocistern"'
    # The whole documented one is right, too.
    in_root sh -c 'zcat -f /usr/share/doc/ocistern/examples/ocistern.toml* >/tmp/example.toml'
    same "config check of the example" "/tmp/example.toml: no problem found" "$(in_root ocistern config check --config /tmp/example.toml)"
}

# As its own user, on the addresses that the documentation names.
deb_pull() {
    package_config '{ from = "anonymous" }' >"$ROOT/etc/ocistern/config.toml"
    spawn ocistern env -i PATH=/usr/sbin:/usr/bin chroot --userspec=ocistern:ocistern "$ROOT" ocistern serve
    wait_http ocistern "http://$ADMIN/readyz"
    local phase
    for phase in cold warm; do
        rm -rf "$WORK/storage/deb"
        bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" \
            "docker://$OCISTERN/oci.test/samples/app:v1" "dir:$WORK/storage/deb"
        same "digest $phase" "$(expected oci manifest)" "$(<"$WORK/tmp/digest")"
    done
    # Root asks the daemon of the user.
    in_root ocistern ls | tee "$WORK/tmp/ls"
    grep -F samples/app "$WORK/tmp/ls"
    cistern_stop
    # And nobody: what the user leaves is the user's to look after.
    in_root setpriv --reuid=ocistern --regid=ocistern --clear-groups ocistern verify
}

deb_again() {
    echo '# mine' >>"$ROOT/etc/ocistern/config.toml"
    in_root systemctl disable ocistern.service
    in_root dpkg --install /ocistern.deb </dev/null
    grep -x '# mine' "$ROOT/etc/ocistern/config.toml"
    [[ ! -e $ROOT/etc/systemd/system/multi-user.target.wants/ocistern.service ]] || {
        echo "an upgrade has switched on again what was switched off" >&2
        return 1
    }
}

deb_remove() {
    in_root dpkg --remove ocistern
    [[ ! -e $ROOT/usr/bin/ocistern ]]
    grep -x '# mine' "$ROOT/etc/ocistern/config.toml"
    [[ -f $ROOT/var/cache/ocistern/oci-layout ]]
}

deb_purge() {
    in_root dpkg --purge ocistern
    local left
    left=$(find "$ROOT/etc" "$ROOT/var/cache" "$ROOT/var/lib/systemd" "$ROOT/usr" -name '*ocistern*')
    none "what is left" "$left"
}
