# Tags that are asked every time: one that moved, one whose upstream is gone, one that was removed.
# shellcheck shell=bash

check() {
    try "freshness start" cistern_start "" always
    try "freshness a tag that moves" moves
    try "freshness a known tag costs a HEAD" head_only
    stop_upstreams
    try "freshness a known tag with the upstream gone" stale
    try "freshness an unknown tag with the upstream gone" unknown
    start_upstreams
    try "freshness the upstream is back" back
    try "freshness stop" cistern_stop
}

URL=http://$OCISTERN/v2/docker.io/library/moving/manifests

put() {
    bounded skopeo copy --quiet --all --preserve-digests --dest-tls-verify=false "oci:$CONTENT/layout:$1" \
        "docker://${UPSTREAM_ADDRESS[docker.io]}/library/moving:1"
}

moves() {
    put app
    same "first" "$(expected oci manifest)" "$(headers "$URL/1" | header docker-content-digest)"
    put debian
    same "after it moved" "$(expected image manifest)" "$(headers "$URL/1" | header docker-content-digest)"
    same "what it was before" "$(expected oci manifest)" "$(headers "$URL/$(expected oci manifest)" | header docker-content-digest)"
}

head_only() {
    local downloads
    downloads=$(downloads)
    same digest "$(expected image manifest)" "$(headers "$URL/1" | header docker-content-digest)"
    same downloads "$downloads" "$(downloads)"
}

stale() {
    local head
    head=$(headers "$URL/1")
    same digest "$(expected image manifest)" "$(header docker-content-digest <<<"$head")"
    same cache-status 'ocistern; hit; detail=stale' "$(header cache-status <<<"$head")"
    (($(metric ocistern_requests_total 'result="stale"') > 0))
    # By digest nothing is ever stale.
    same cache-status 'ocistern; hit' "$(headers "$URL/$(expected image manifest)" | header cache-status)"
}

unknown() {
    local began=$SECONDS code
    code=$(curl -sS -m 30 -o /dev/null -w '%{http_code}' "$URL/never-seen")
    [[ $code == 502 || $code == 503 ]] || same status "502 or 503" "$code"
    at_most "seconds until the error" 20 $((SECONDS - began))
}

fresh() { [[ $(headers "$URL/1" | header cache-status) != *stale* ]]; }

back() {
    wait_for 60 fresh
    same digest "$(expected image manifest)" "$(headers "$URL/1" | header docker-content-digest)"
}
