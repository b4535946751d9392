# A herd on one cold blob of 1 GiB, and the image with that layer pulled by a real client: one download, right bytes,
# little memory.
# shellcheck shell=bash

check() {
    try "herd start" cistern_start
    try "herd of 8 on a cold 1 GiB blob" herd 8
    try "herd stop" cistern_stop
    try "big start" cistern_start
    try "big image cold" big
    try "big image warm" big
    stop_upstreams
    try "big image with the upstream gone" big
    start_upstreams
    try "big stop" cistern_stop
}

big_layer() { jq -r .layers[0].digest "$WORK/expect/big.manifest"; }

herd() {
    local clients=$1 digest url n pids=() downloads received
    digest=$(big_layer)
    url=http://$OCISTERN/v2/library/big/blobs/$digest
    downloads=$(downloads) received=$(metric ocistern_upstream_received_bytes_total)
    for ((n = 0; n < clients; n++)); do
        (curl -fsS -m 300 "$url" | sha256sum | cut -d' ' -f1 >"$WORK/tmp/herd.$n") &
        pids+=($!)
    done
    for n in "${pids[@]}"; do wait "$n"; done
    for ((n = 0; n < clients; n++)); do same "client $n" "$digest" "sha256:$(<"$WORK/tmp/herd.$n")"; done
    wait_for 30 settled
    same downloads $((downloads + 1)) "$(downloads)"
    received=$(($(metric ocistern_upstream_received_bytes_total) - received))
    same "bytes from upstream" "$(expected big bytes)" "$received"
    at_most "peak resident memory in KiB" 65536 "$(awk '/^VmHWM/ { print $2 }' "/proc/$(<"$WORK/pid/ocistern")/status")"
}

big() {
    local to=$WORK/storage/big
    rm -rf "$to"
    bounded skopeo copy --quiet --src-tls-verify=false "docker://$OCISTERN/library/big:1" "dir:$to"
    same manifest "$(expected big manifest)" "$(digest_of "$to/manifest.json")"
    same layer "$(big_layer)" "$(digest_of "$to/$(big_layer | cut -d: -f2)")"
    rm -rf "$to"
}
