# Downloads that do not come in one piece: links that break every 5 MiB, an upstream that goes away for a while or for good, a
# daemon that is killed, clients that ask for parts. Real clients, a real registry behind cutter.py; each pull succeeds at its
# first try, and next to nothing is downloaded twice.
# shellcheck shell=bash

# Links: to the hub, to another registry with the same content, and from a client to ocistern.
CUT_PORT=5011 MIRROR_PORT=5012 FRONT_PORT=5013 SECOND_PORT=5014
declare -A LINK_TO=([cut]=$HUB_PORT [mirror]=$SECOND_PORT [front]=$OCISTERN_PORT)
declare -A LINK_PORT=([cut]=$CUT_PORT [mirror]=$MIRROR_PORT [front]=$FRONT_PORT)
MIB=$((1 << 20))

check_needs() { printf '%s\n' skopeo podman dockerd /usr/bin/docker containerd ctr /usr/bin/python3 umoci "$(go_tool containerd)" "$(go_tool ctr)"; }

check() {
    UPSTREAM_ADDRESS["cut.test"]=127.0.0.1:$CUT_PORT UPSTREAM_PROCESS["cut.test"]=hub
    ITEM["cut"]='cut.test library/large 1 large'
    local client
    try "fills links" start_links
    try "fills content" make_large
    for client in skopeo podman dockerd containerd containerd2; do
        figured "fills $client while the link is cut every 5 MiB" pull_cut "$client"
    done
    figured "fills upstream away for 20 s in mid-layer" pull_away
    figured "fills containerd2 asks for chunks in parallel" pull_parallel
    figured "fills podman pulls parts of zstd:chunked" pull_parts
    figured "fills dockerd resumes, cold and warm" pull_resumed
    figured "fills kill -9 in mid-layer" pull_killed
    figured "fills upstream gone for good in mid-layer, with a mirror" pull_mirrored
    try "fills links stop" stop_links
}

# make_large: library/large:1 upstream, and what a client must find there: the suite's Debian with a layer of 32 MiB more.
make_large() {
    local layout=$WORK/tmp/large root=$WORK/storage/large manifest config
    mkdir -p "$root/opt"
    bounded skopeo copy --quiet --preserve-digests "oci:$CONTENT/layout:debian" "oci:$layout:large"
    openssl rand -out "$root/opt/model" $((32 * MIB))
    tar --numeric-owner -C "$root" -cf "$WORK/tmp/large.tar" opt
    umoci raw add-layer --image "$layout:large" "$WORK/tmp/large.tar"
    rm -rf "$root" "$WORK/tmp/large.tar"
    bounded skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$layout:large" \
        "docker://${UPSTREAM_ADDRESS[docker.io]}/library/large:1"
    umoci raw unpack --image "$layout:large" "$root"
    bounded skopeo inspect --raw --tls-verify=false "docker://${UPSTREAM_ADDRESS[docker.io]}/library/large:1" >"$WORK/expect/cut.manifest"
    manifest=$(digest_of "$WORK/expect/cut.manifest")
    config=$(jq -r .config.digest "$WORK/expect/cut.manifest")
    {
        printf 'manifest %s\nplatform %s\n' "$manifest" "$manifest"
        jq -r '"blob " + (.config.digest, .layers[].digest)' "$WORK/expect/cut.manifest"
        jq -r '.rootfs.diff_ids[] | "diff " + .' "$layout/blobs/sha256/${config#sha256:}"
        echo "tree $(tree_of "$root")"
        echo "bytes $(layer_bytes cut)"
    } >"$WORK/expect/cut"
    rm -rf "$root" "$layout"
}

# figured NAME FUNCTION [ARGUMENT…]: a case whose figures are shown.
figured() {
    : >"$WORK/tmp/figures"
    try "$@"
    sed 's/^/#       /' "$WORK/tmp/figures"
}
figure() { printf '%s\n' "$*" | tee -a "$WORK/tmp/figures"; }

# --- links -----------------------------------------------------------------------------------------------------------

start_links() {
    distribution_config "$SECOND_PORT" "$WORK/upstream/hub" >"$WORK/upstream/second.yml"
    spawn second docker-registry serve "$WORK/upstream/second.yml"
    wait_http second "http://127.0.0.1:$SECOND_PORT/v2/"
    local name
    for name in "${!LINK_TO[@]}"; do
        spawn "link-$name" /usr/bin/python3 "$E2E/cutter.py" "127.0.0.1:${LINK_PORT[$name]}" "127.0.0.1:${LINK_TO[$name]}" \
            "127.0.0.1:$((LINK_PORT[$name] + 100))"
    done
    for name in "${!LINK_TO[@]}"; do wait_http "link-$name" "http://127.0.0.1:$((LINK_PORT[$name] + 100))/"; done
}

stop_links() {
    local name
    for name in "${!LINK_TO[@]}"; do halt "link-$name"; done
    halt second
}

# link NAME [KEY=VALUE…]: see cutter.py.
link() {
    local name=$1
    shift
    local IFS='&'
    curl -fsS -m 10 -o /dev/null "http://127.0.0.1:$((LINK_PORT[$name] + 100))/set?$*"
}
link_is() { curl -fsS -m 10 "http://127.0.0.1:$((LINK_PORT[$1] + 100))/" | jq -r --arg key "$2" '.[$key]'; }
link_fresh() { link "$1" clear=1 mode=open cut=0 rate=0 at=0 for=0; }
reached() { [[ $(link_is "$1" reached) == true ]]; }

# --- ocistern --------------------------------------------------------------------------------------------------------

# cut_start [KEYS OF THE UPSTREAM] [KEYS OF THE STORE]: ocistern with an empty store, all links as new.
cut_start() {
    local name
    for name in "${!LINK_TO[@]}"; do link_fresh "$name"; done
    # Of a case that failed.
    if ! running hub; then
        spawn hub docker-registry serve "$WORK/upstream/hub.yml"
        wait_http hub http://127.0.0.1:$HUB_PORT/v2/
    fi
    {
        cistern_config | sed "s|^\[store\]|&\n${2:-}|"
        printf '\n[upstream."cut.test"]\nurl = "http://127.0.0.1:%s"\n%s\n' "$CUT_PORT" "${1:-}"
    } >"$WORK/ocistern.toml"
    rm -rf "$WORK/cistern"
    LOGGED=$(wc -c <"$WORK/log/ocistern.err" 2>/dev/null || echo 0)
    cistern_run
}

# answers FILTER: of all answers since cut_start, those that the jq filter selects, as `STATUS BYTES END REFERENCE`.
answers() {
    tail -c "+$((LOGGED + 1))" "$WORK/log/ocistern.err" |
        jq -r "select(.message == \"request\") | select($1) | \"\(.status) \(.bytes) \(.end) \(.reference)\""
}

# content: bytes of the image's layers and configuration.
content() { jq '([.layers[].size] | add) + .config.size' "$WORK/expect/cut.manifest"; }

# frugal WHAT CONTENT: by all links to registries at most 1.05 of that came, with heads and manifests.
frugal() {
    local bytes
    bytes=$(($(link_is cut bytes) + $(link_is mirror bytes)))
    figure "$1: $bytes bytes came from upstream, $(share "$bytes" "$2") of the content; resumes: $(metric ocistern_fill_resumes_total)"
    at_most "$1: bytes from upstream for $2 of content" "$(($2 * 105 / 100))" "$bytes"
    at_most "$1: bytes that ocistern counts" "$(($2 * 105 / 100))" "$(metric ocistern_upstream_received_bytes_total cut.test)"
}
share() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

# unnoticed: no answer to a client was broken off.
unnoticed() {
    local broken
    broken=$(answers '.end == "broken off"')
    none "answers that were broken off" "$broken"
}

# --- clients ---------------------------------------------------------------------------------------------------------

# with_client NAME FUNCTION [ARGUMENT…]: with the client's functions from clients/NAME.sh and the client running, which ends also if
# that fails. In a case's own subshell.
with_client() {
    local name=$1
    shift
    # shellcheck disable=SC1090
    source "$E2E/clients/$name.sh"
    STORAGE=$WORK/storage/fills-$name
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
    trap 'client_stop; cleared "$STORAGE"' EXIT
    client_start prefix
    client_fresh
    "$@"
}

# cleared DIRECTORY: it goes, with what is mounted in it.
cleared() {
    local mounted
    while read -r mounted; do umount -l "$mounted"; done < <(awk -v below="$1/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r)
    rm -rf "$1"
}

# pull_right: the image, and everything of it is right.
pull_right() {
    local found
    found=$(client_pull prefix cut)
    compare cut "$found"
}

# --- cases -----------------------------------------------------------------------------------------------------------

pull_cut() {
    cut_start
    link cut cut=$((5 * MIB))
    (with_client "$1" pull_right)
    wait_for 30 settled
    unnoticed
    figure "$1: the link was cut $(link_is cut cuts) times"
    frugal "$1" "$(content)"
    (($(metric ocistern_fill_resumes_total) > 0))
    (($(link_is cut cuts) > $(content) / (10 * MIB)))
    cistern_stop
}

# Two clients at once, which ask for all layers at once: none is still to begin when upstream goes away, for that would be told at once.
pull_away() {
    local client pids=() began=$SECONDS
    cut_start
    link cut at=$(($(content) - 10 * MIB)) then=refuse for=20
    CONTAINERD_CONFIG="[plugins.'io.containerd.transfer.v1.local']
max_concurrent_downloads = 8"
    for client in skopeo containerd2; do
        (with_client "$client" pull_right) &
        pids+=($!)
    done
    for client in "${pids[@]}"; do wait "$client"; done
    figure "away: the pulls took $((SECONDS - began)) s"
    ((SECONDS - began >= 20))
    reached cut
    wait_for 30 settled
    unnoticed
    frugal away "$(content)"
    (($(metric ocistern_fill_resumes_total) > 0))
    cistern_stop
}

# Each worker of containerd asks for everything from its chunk on, and hangs up when it has the chunk. The link gives each
# connection little, so that what is asked for is not there yet.
pull_parallel() {
    local parts layers
    cut_start
    link cut rate=$((8 * MIB))
    CONTAINERD_CONFIG="[plugins.'io.containerd.transfer.v1.local']
max_concurrent_downloads = 4
concurrent_layer_fetch_buffer = $((4 * MIB))"
    (with_client containerd2 pull_right)
    wait_for 60 settled
    parts=$(answers '.kind == "blob" and .status == 206' | wc -l)
    layers=$(jq '.layers | length' "$WORK/expect/cut.manifest")
    figure "parallel: $parts answers with 206 for $layers layers; $(link_is cut connections) connections upstream"
    # Of the larger layers there are several each.
    ((parts >= $(content) / (8 * MIB)))
    frugal parallel "$(content)"
    cistern_stop
}

# podman 4.3 (containers/storage 1.43) asks for the table of contents at the end of the layer, and then in one request for as
# many ranges as there are chunks that no layer of its store has. With range_fill = "never" that is all that comes.
pull_parts() {
    local version id mounted layer size before parts
    make_parts
    cut_start '' 'range_fill = "never"'
    mkdir -p "$WORK/storage/parts"
    trap 'cleared "$WORK/storage/parts"' EXIT
    cat >"$WORK/storage/parts/storage.conf" <<TOML
[storage]
driver = "overlay"
graphroot = "$WORK/storage/parts/root"
runroot = "/run/podman-parts"

[storage.options]
pull_options = {enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}
TOML
    for version in v1 v2; do
        layer=$(jq -r .layers[0].digest "$WORK/tmp/parts.$version")
        size=$(jq -r .layers[0].size "$WORK/tmp/parts.$version")
        before=$(link_is cut bytes)
        id=$(podman_parts --log-level debug pull --quiet --tls-verify=false "$OCISTERN/cut.test/library/parts:$version" 2>"$WORK/log/podman-parts-$version.err")
        grep "Retrieved partial blob $layer" "$WORK/log/podman-parts-$version.err"
        mounted=$(podman_parts image mount "$id")
        same "files of $version" "$(tree_of "$WORK/tmp/parts/$version")" "$(tree_of "$mounted")"
        podman_parts image unmount "$id" >/dev/null
        wait_for 30 settled
        before=$(($(link_is cut bytes) - before))
        figure "parts $version: $(sed -n 's/.*\(Missing [^"]*\).*/\1/p' "$WORK/log/podman-parts-$version.err"); answers: $(answers ".kind == \"blob\" and .reference == \"$layer\"" | awk '{ print $1 " with " $2 " bytes" }' | paste -sd,); $before bytes came from upstream for a layer of $size"
        answers ".reference == \"$layer\"" | seen '^206 '
        if [[ $version == v1 ]]; then
            at_most "bytes from upstream for v1" $((size * 105 / 100)) "$before"
        else
            at_most "bytes from upstream for v2" $((size / 5)) "$before"
            parts=$(answers ".reference == \"$layer\" and .status != 206")
            none "answers with all of v2" "$parts"
        fi
    done
    unnoticed
    cistern_stop
}

podman_parts() {
    CONTAINERS_STORAGE_CONF=$WORK/storage/parts/storage.conf bounded podman --tmpdir /run/podman-parts/tmp \
        --cgroup-manager cgroupfs --events-backend none "$@"
}

# make_parts: library/parts:v1 and :v2 upstream, of which v2 has few other files; trees in tmp/parts, manifests in tmp/parts.VERSION.
make_parts() {
    local version layer name
    mkdir -p "$WORK/tmp/parts/v1"
    layer=$(jq -r .layers[0].digest "$WORK/expect/oci.manifest")
    tar -xzf "$CONTENT/layout/blobs/sha256/${layer#sha256:}" -C "$WORK/tmp/parts/v1"
    openssl rand "$((12 * MIB))" | split --bytes=60000 --suffix-length=4 - "$WORK/tmp/parts/v1/data."
    cp -a "$WORK/tmp/parts/v1" "$WORK/tmp/parts/v2"
    for name in "$WORK"/tmp/parts/v2/data.aaa[c-l]; do openssl rand -out "$name" 60000; done
    umoci init --layout "$WORK/tmp/parts/layout"
    for version in v1 v2; do
        tar --sort=name --numeric-owner -C "$WORK/tmp/parts/$version" -cf "$WORK/tmp/parts/$version.tar" .
        umoci new --image "$WORK/tmp/parts/layout:$version"
        umoci raw add-layer --image "$WORK/tmp/parts/layout:$version" "$WORK/tmp/parts/$version.tar"
        umoci config --image "$WORK/tmp/parts/layout:$version" --os linux --architecture amd64
        bounded skopeo copy --quiet --dest-tls-verify=false --dest-compress --dest-compress-format zstd:chunked \
            "oci:$WORK/tmp/parts/layout:$version" "docker://${UPSTREAM_ADDRESS[docker.io]}/library/parts:$version"
        bounded skopeo inspect --raw --tls-verify=false "docker://${UPSTREAM_ADDRESS[docker.io]}/library/parts:$version" >"$WORK/tmp/parts.$version"
        jq -e '.layers[0].annotations["io.containers.zstd-chunked.manifest-checksum"]' "$WORK/tmp/parts.$version"
    done
}

# dockerd waits five seconds before it asks again, by Range.
pull_resumed() {
    cut_start
    (with_client dockerd resumed)
    cistern_stop
}

resumed() {
    local phase cuts parts largest
    largest=$(jq '[.layers[].size] | max' "$WORK/expect/cut.manifest")
    # Not so fast that all is there before dockerd asks again.
    link cut rate=$((6 * MIB))
    OCISTERN_PORT=$FRONT_PORT
    for phase in cold warm; do
        client_fresh
        LOGGED=$(wc -c <"$WORK/log/ocistern.err")
        link front clear=1 cut=$((largest * 2 / 3))
        if [[ $phase == warm ]]; then link cut clear=1 mode=refuse; fi
        pull_right
        wait_for 60 settled
        cuts=$(link_is front cuts)
        parts=$(answers '.kind == "blob" and .status == 206' | wc -l)
        figure "dockerd $phase: the client's link was cut $cuts times, $parts answers with 206"
        ((cuts > 0 && parts > 0))
        if [[ $phase == cold ]]; then
            frugal "dockerd $phase" "$(content)"
        else
            same "bytes from upstream when warm" 0 "$(link_is cut bytes)"
        fi
    done
}

# Killed while the link holds back the end of the largest layer, so that it is the same moment each time.
pull_killed() {
    local client kept
    cut_start
    link cut at=$(($(content) - 10 * MIB)) then=hold
    (with_client skopeo pull_right) &
    client=$!
    wait_for 60 reached cut
    # What has been sent is to be received.
    sleep 1
    halt ocistern KILL
    if wait "$client"; then
        echo "the client took a broken transfer for a whole one" >&2
        return 1
    fi
    kept=$(link_is cut bytes)
    link cut at=0 mode=open
    cistern_run
    (with_client skopeo pull_right)
    wait_for 30 settled
    figure "killed after $kept bytes"
    frugal killed "$(content)"
    cistern_stop
}

# Where a request is cut short for another one, what is in the sockets is lost: without a rate, megabytes on loopback.
pull_mirrored() {
    local client from_mirror
    cut_start "mirrors = [\"http://127.0.0.1:$MIRROR_PORT\"]"
    link mirror rate=$((16 * MIB))
    link cut at=$((30 * MIB)) then=hold
    (with_client podman pull_right) &
    client=$!
    wait_for 60 reached cut
    halt hub KILL
    link cut mode=refuse
    wait "$client"
    wait_for 30 settled
    unnoticed
    from_mirror=$(link_is mirror bytes)
    figure "mirror: $from_mirror bytes of that from the mirror"
    frugal mirror "$(content)"
    ((from_mirror > 0))
    spawn hub docker-registry serve "$WORK/upstream/hub.yml"
    wait_http hub http://127.0.0.1:$HUB_PORT/v2/
    cistern_stop
}
