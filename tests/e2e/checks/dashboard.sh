# The dashboard in a real Chromium, on what real pulls have left: names and error texts of strangers, light and dark, phones,
# a daemon that does not answer, a token that is typed in; by tests/e2e/dashboard.py.
# shellcheck shell=bash

check_needs() { printf '%s\n' chromium chromedriver python3; }

check() {
    try "dashboard start" cistern_start
    try "dashboard pulls, and errors of strangers" traffic
    try "dashboard in Chromium" browse look
    try "dashboard of a daemon that hangs" browse_away
    try "dashboard stop" cistern_stop
    try "dashboard start with a token" with_token
    try "dashboard from elsewhere, with the token" browse_token
    try "dashboard stop with a token" cistern_stop
}

# browse COMMAND [ARGUMENT]: in a profile of its own.
browse() {
    local command=$1 to=$WORK/tmp/dashboard
    shift
    rm -rf "$to"
    mkdir -p "$to"
    bounded python3 "$E2E/dashboard.py" "$command" "${ADDRESS:-$ADMIN}" "$to" "$@"
}

traffic() {
    local item
    for item in image basic oci image; do
        rm -rf "$WORK/storage/dashboard"
        bounded skopeo copy --quiet --src-tls-verify=false "docker://$OCISTERN/$(upstream_of "$item")/$(repository_of "$item")$(reference "$item")" \
            "dir:$WORK/storage/dashboard"
    done
    wait_for 30 settled
    # As odd as the grammar allows; what it does not allow is in the error's own words.
    local name code
    for name in a__b--c.d/0-0 x/script.script--alert-1 team/onerror--x; do
        code=$(curl -sS -m 30 -o /dev/null -w '%{http_code}' "http://$OCISTERN/v2/docker.io/$name/manifests/_-.-_")
        [[ $code == 404 ]]
    done
    for name in '%3Cscript%3Ewindow.pwned=1%3C/script%3E' 'a%22%3E%3Cimg%20src=x%20onerror=window.pwned=1%3E'; do
        code=$(curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' "http://$OCISTERN/v2/library/$name/manifests/1")
        [[ $code == 400 || $code == 404 ]]
    done
    # A host that is none of the upstreams is repeated in the error.
    code=$(curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' "http://$OCISTERN/v2/library/debian/manifests/1?ns=%3Cscript%3Ewindow.pwned=1%3C/script%3E.example")
    [[ $code == 404 || $code == 400 ]]
    curl -fsS -m 10 "http://$ADMIN/api/v1/errors" | jq -e '[.errors[].message] | any(contains("<script>"))' >/dev/null
}

browse_away() { browse away "$(<"$WORK/pid/ocistern")"; }

# On an address of this machine's that is no loopback one, which is as good as elsewhere.
with_token() {
    ip addr replace 192.0.2.80/32 dev lo
    echo "canary-token-of-the-suite" >"$WORK/secret/admin-token"
    cistern_config | sed "s|^address = \"$ADMIN\"|address = \"192.0.2.80:$ADMIN_PORT\"\ntoken_file = \"$WORK/secret/admin-token\"|" >"$WORK/ocistern.toml"
    halt ocistern KILL
    spawn ocistern "$OCISTERN_BIN" serve --config "$WORK/ocistern.toml"
    wait_http ocistern "http://192.0.2.80:$ADMIN_PORT/readyz"
    same "status without the token" 401 "$(curl -s -m 10 -o /dev/null -w '%{http_code}' "http://192.0.2.80:$ADMIN_PORT/api/v1/status")"
}

browse_token() { ADDRESS=192.0.2.80:$ADMIN_PORT browse token "$WORK/secret/admin-token"; }
