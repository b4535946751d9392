# Clients that cost more than themselves, while others pull: nothing sent, heads and bodies and reading that crawl, floods of
# HTTP/2 frames. The others' pulls go on, each whole and right; memory does not grow with what is sent; and when the flood is
# over its connections are gone.
# shellcheck shell=bash

check_needs() { echo slowhttptest python3; }

check() {
    local kind
    FLOOD_DIGEST=$(jq -r .layers[0].digest "$WORK/expect/oci.manifest")
    FLOOD_URL=http://$OCISTERN/v2/$(upstream_of oci)/$(repository_of oci)/blobs/$FLOOD_DIGEST
    try "floods start" floods_start
    # More than there are places for connections.
    try "floods 9,000 connections that send nothing" flood 25 crowd silent 9000
    try "floods 2,000 heads that crawl" flood 12 crowd slow-head 2000
    for kind in resets continuation empty settings ping; do
        try "floods HTTP/2 $kind" flood 6 thrown_out "$kind" 8
    done
    try "floods slow heads (slowhttptest)" flood 10 slow -H -i 3
    try "floods slow bodies (slowhttptest)" flood 10 slow -B -i 3
    try "floods many ranges (slowhttptest)" flood 10 slow -R
    try "floods slow reading (slowhttptest)" flood 10 slow -X -w 1 -y 2 -n 3 -z 1
    try "floods stop" cistern_stop
}

floods_start() {
    cistern_start
    flood_pull
}

# flood SECONDS COMMAND…: pulls go on for as long as it runs, and a little longer. How many that are is also a matter of who else
# has the processors: where they are few, the flood comes again, a few times.
flood() {
    local seconds=$1 before after pulls=0 rounds=0 flooding longest=0 took
    shift
    before=$(resident)
    while ((pulls <= 5 && rounds < 5)); do
        rounds=$((rounds + 1))
        "$@" "$seconds" >"$WORK/tmp/flood" 2>&1 &
        flooding=$!
        sleep 1
        while kill -0 "$flooding" 2>/dev/null; do
            took=$(flood_pull)
            pulls=$((pulls + 1))
            longest=$(awk -v a="$longest" -v b="$took" 'BEGIN { print (b > a) ? b : a }')
            sleep 0.05
        done
        wait "$flooding" || {
            cat "$WORK/tmp/flood" >&2
            return 1
        }
    done
    after=$(resident)
    printf '%d pulls in %d floods, the longest %s s; resident %d to %d KiB; %s\n' "$pulls" "$rounds" "$longest" "$before" "$after" \
        "$(tail -n 1 "$WORK/tmp/flood")"
    ((pulls > 5)) || {
        echo "only $pulls pulls came to their end" >&2
        return 1
    }
    wait_for 60 few_connections
    # What 9,000 connections have needed is less than what they sent could have been made to be.
    at_most "peak resident memory in KiB" $((400 * 1024)) "$(awk '/^VmHWM/ { print $2 }' "/proc/$(<"$WORK/pid/ocistern")/status")"
}

# flood_pull: one pull, right and in time for any client; prints its seconds.
flood_pull() {
    local took
    took=$(curl -fsS -m 20 -o "$WORK/tmp/pulled" -w '%{time_total}' "$FLOOD_URL")
    same "a pull's content" "$FLOOD_DIGEST" "$(digest_of "$WORK/tmp/pulled")"
    printf '%s\n' "$took"
}

crowd() { python3 "$E2E/flooder.py" "$1" "$OCISTERN" "$3" "$2"; }

# thrown_out KIND CONNECTIONS SECONDS: the server ends such connections.
thrown_out() {
    local said
    said=$(python3 "$E2E/flooder.py" "$1" "$OCISTERN" "$3" "$2")
    echo "$said"
    ((${said##*ended=} > 0))
}

slow() {
    local seconds=${*: -1}
    set -- "${@:1:$#-1}"
    (cd "$WORK/tmp" && slowhttptest -c 1000 -r 500 -l "$seconds" -u "$FLOOD_URL" "$@" >slowhttptest.log 2>&1) || true
    tail -n 3 "$WORK/tmp/slowhttptest.log" | tr '\n' ' '
    grep -q 'connected' "$WORK/tmp/slowhttptest.log"
}

resident() { awk '/^VmRSS/ { print $2 }' "/proc/$(<"$WORK/pid/ocistern")/status"; }

few_connections() {
    local count
    count=$(find "/proc/$(<"$WORK/pid/ocistern")/fd" -lname 'socket:*' 2>/dev/null | wc -l)
    ((count < 100))
}
