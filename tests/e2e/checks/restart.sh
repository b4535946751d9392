# Killed without warning: what was stored is served by the next start, with no upstream; what was half downloaded is
# complete after the next pull. And a start with no configuration at all.
# shellcheck shell=bash

check() {
    try "restart start" cistern_start
    try "restart pull" pull
    try "restart kill -9" halt ocistern KILL
    stop_upstreams
    try "restart start with the upstreams gone" cistern_run
    try "restart pull with the upstreams gone" pull
    start_upstreams
    try "restart stop" cistern_stop
    try "restart start without the index" without_index
    try "restart pull without the index" pull
    try "restart kill -9 in the middle of a fill" killed_fill
    try "restart start after it" cistern_run
    try "restart the blob is complete after the next pull" complete
    try "restart stop after it" cistern_stop
    try "restart a second daemon on the root is refused" second
    try "restart no configuration at all" defaults
}

pull() {
    local item
    for item in image basic bearer; do
        rm -rf "$WORK/storage/restart"
        bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" \
            "docker://$OCISTERN/$(upstream_of "$item")/$(repository_of "$item")$(reference "$item")" "dir:$WORK/storage/restart"
        same "$item" "$(expected "$item" manifest)" "$(<"$WORK/tmp/digest")"
    done
    wait_for 10 settled
}

without_index() {
    rm -rf "$WORK/cistern/index"
    cistern_run
}

big_url() { printf 'http://%s/v2/library/big/blobs/%s\n' "$OCISTERN" "$(jq -r .layers[0].digest "$WORK/expect/big.manifest")"; }

killed_fill() {
    local client
    curl -sS -m 100 --limit-rate 200M -o /dev/null "$(big_url)" &
    client=$!
    wait_for 20 filling
    halt ocistern KILL
    # The client must have noticed: a broken transfer, not a short one that looks whole.
    if wait "$client"; then
        echo "the client took a broken transfer for a whole one" >&2
        return 1
    fi
}

filling() { (($(metric ocistern_upstream_received_bytes_total 'docker.io') > 50000000)); }

complete() {
    same blob "$(jq -r .layers[0].digest "$WORK/expect/big.manifest")" "sha256:$(curl -fsS -m 100 "$(big_url)" | sha256sum | cut -d' ' -f1)"
}

second() {
    cistern_run
    local status=0
    bounded "$OCISTERN_BIN" serve --root "$WORK/cistern" --listen 127.0.0.1:5999 --admin-listen 127.0.0.1:5998 >"$WORK/tmp/second" 2>&1 || status=$?
    cat "$WORK/tmp/second"
    ((status == 1 || status == 64))
    grep -q "$(<"$WORK/pid/ocistern")" "$WORK/tmp/second"
    cistern_stop
}

# Listens on the documented addresses and answers, though none of the built-in upstreams can be reached.
defaults() {
    local code began
    mkdir -p "$WORK/tmp/nobody"
    HOME=$WORK/tmp/nobody spawn ocistern "$OCISTERN_BIN" serve
    wait_http ocistern http://127.0.0.1:5080/readyz
    curl -fsS -o /dev/null http://127.0.0.1:5000/oauth2/token
    curl -fsS -o /dev/null 'http://[::1]:5000/oauth2/token'
    began=$SECONDS
    code=$(curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' http://127.0.0.1:5000/v2/ghcr.io/org/app/manifests/v1)
    cat "$WORK/tmp/answer"
    [[ $code == 50[234] ]] || same status "502, 503 or 504" "$code"
    at_most "seconds until the error" 20 $((SECONDS - began))
    [[ -f $WORK/tmp/nobody/.cache/ocistern/CACHEDIR.TAG ]]
    cistern_stop
}
