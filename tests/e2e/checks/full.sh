# A disk that is really full, of bytes and of inodes: ocistern's root is a small file system of its own, and what is left of it is
# filled by somebody else. Nothing may fail: pushes and pulls go through with the right bytes and the right tag, say that nothing was
# kept and why, and when there is room again things are kept again.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

DISK=$WORK/disk
ROOM=$((64 << 20))
# sizes KIND [all]: names and bytes of what is pushed and pulled; the first is larger than the whole disk.
sizes() {
    if [[ $1 == bytes && -n ${2:-} ]]; then echo "huge:$((80 << 20))"; fi
    printf '%s\n' "large:$((8 << 20))" small:20000
}
BASE=http://$OCISTERN/v2/oci.test
UP=http://${UPSTREAM_ADDRESS[oci.test]}/v2
MANIFEST=application/vnd.oci.image.manifest.v1+json

check() {
    local kind
    for kind in bytes inodes; do
        try "full of $kind: start" full_start "$kind"
        try "full of $kind: fill" fill_up "$kind"
        try "full of $kind: pulls with nothing that could go" full_pulls "$kind" 'ocistern; fwd=bypass'
        try "full of $kind: pushes with nothing that could go" full_pushes "$kind" 'ocistern; fwd=bypass'
        try "full of $kind: some room" has_room "$kind"
        try "full of $kind: fill again" fill_up "$kind"
        try "full of $kind: what is cached is served" still_cached "$kind"
        try "full of $kind: pushes over known tags" full_pushes "$kind"
        try "full of $kind: a tag that moves upstream" full_moves "$kind"
        try "full of $kind: a client that pushes, pulls and deletes" full_client "$kind"
        try "full of $kind: killed, and started on the full disk" full_restart
        try "full of $kind: pushes and pulls after it" after_restart "$kind"
        try "full of $kind: with room again things are kept" room_again "$kind"
        [[ $kind != bytes ]] || try "full of $kind: a blob larger than what is left" nearly_full
        try "full of $kind: stop" full_stop
    done
}

# full_start KIND: an empty root on a small file system, in the suite's own mount namespace.
full_start() {
    local options=size=$ROOM
    [[ $1 != inodes ]] || options+=,nr_inodes=400
    # Of a case that failed before it came to its end.
    halt ocistern KILL
    if mountpoint -q "$DISK"; then umount "$DISK"; fi
    mkdir -p "$DISK"
    mount -t tmpfs -o "$options" tmpfs "$DISK"
    cistern_config '' always | sed "s|^root = .*|root = \"$DISK/root\"|; s|^capacity = .*|capacity = \"1GiB\"|" >"$WORK/ocistern.toml"
    cistern_run
}

full_stop() {
    cistern_stop
    umount "$DISK"
}

# random NAME BYTES: a file that is made once.
random() {
    mkdir -p "$WORK/full"
    [[ -f $WORK/full/$1 ]] || openssl rand -out "$WORK/full/$1" "$2"
    printf '%s\n' "$WORK/full/$1"
}

# manifest_of FILE: a manifest with that as its only layer.
manifest_of() {
    printf '{"schemaVersion":2,"mediaType":"%s","artifactType":"application/vnd.example.full","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"%s","size":2},"layers":[{"mediaType":"application/octet-stream","digest":"%s","size":%d}]}' \
        "$MANIFEST" "$(digest_of <(printf '{}'))" "$(digest_of "$1")" "$(stat -c %s "$1")" >"$1.manifest"
    printf '%s\n' "$1.manifest"
}

# put_blob BASE REPOSITORY FILE: POST and PUT.
put_blob() {
    local location
    location=$(headers "$1/$2/blobs/uploads/" -X POST | header location)
    [[ -n $location ]]
    [[ $location == http* ]] || location=${1%%/v2*}$location
    if [[ $location == *\?* ]]; then location+='&'; else location+='?'; fi
    same "status of the blob" 201 "$(curl -sS -m 60 -o "$WORK/tmp/answer" -w '%{http_code}' -X PUT -H 'Content-Type: application/octet-stream' -T "$3" "${location}digest=$(digest_of "$3")")"
}

# put_manifest BASE REPOSITORY TAG FILE
put_manifest() {
    same "status of the manifest" 201 "$(curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' -X PUT -H "Content-Type: $MANIFEST" --data-binary "@$4" "$1/$2/manifests/$3")"
}

# put BASE REPOSITORY TAG FILE: the whole artifact.
put() {
    printf '{}' >"$WORK/tmp/empty"
    put_blob "$1" "$2" "$WORK/tmp/empty"
    put_blob "$1" "$2" "$4"
    put_manifest "$1" "$2" "$3" "$(manifest_of "$4")"
}

# got PATH FILE: what ocistern answers is what is in the file; prints its Cache-Status.
got() {
    curl -fsS -m 60 -H "Accept: $MANIFEST" -D "$WORK/tmp/head" -o "$WORK/tmp/body" "$BASE/$1"
    cmp "$WORK/tmp/body" "$2" >&2
    tr -d '\r' <"$WORK/tmp/head" | sed -n 's/^[Cc]ache-[Ss]tatus: //p'
}

# upstream_has REPOSITORY TAG FILE: the tag, past ocistern.
upstream_has() { same "digest of $1:$2 upstream" "$(digest_of "$3")" "$(oci_digest "$1" "$2")"; }

# reasons TEXT: lines of ocistern's log that have it.
reasons() { grep -c -- "$1" "$WORK/log/ocistern.err" || true; }

# The same since the last start.
reasons_since_start() {
    tac "$WORK/log/ocistern.err" | sed '/serving clients/q' | grep -c -- "$1" || true
}

# has_room KIND: what was full is not any more, without a restart.
has_room() {
    local first
    rm -r "$DISK/filler"
    first=$(random "$1-first" 50000)
    put "$BASE" "full/$1" moving "$first"
    upstream_has "full/$1" moving "$first.manifest"
    same "manifest that was pushed" 'ocistern; hit' "$(got "full/$1/manifests/$(digest_of "$first.manifest")" "$first.manifest")"
    same "blob that was pushed" 'ocistern; hit' "$(got "full/$1/blobs/$(digest_of "$first")" "$first")"
    same "tag" 'ocistern; hit' "$(got "full/$1/manifests/moving" "$first.manifest")"
}

# fill_up KIND: nothing at all is left.
fill_up() {
    local n=0
    case $1 in
        bytes)
            dd if=/dev/zero of="$DISK/filler" bs=1M 2>/dev/null || true
            dd if=/dev/zero of="$DISK/filler" bs=4k oflag=append conv=notrunc 2>/dev/null || true
            same "bytes that are left" 0 "$(df --output=avail -B1 "$DISK" | tail -n 1 | tr -d ' ')"
            ;;
        inodes)
            mkdir -p "$DISK/filler"
            while : 2>/dev/null >"$DISK/filler/$n"; do n=$((n + 1)); done
            same "inodes that are left" 0 "$(df --output=iavail "$DISK" | tail -n 1 | tr -d ' ')"
            ;;
    esac
}

still_cached() {
    local first=$WORK/full/$1-first
    same "manifest" 'ocistern; hit' "$(got "full/$1/manifests/$(digest_of "$first.manifest")" "$first.manifest")"
    same "blob" 'ocistern; hit' "$(got "full/$1/blobs/$(digest_of "$first")" "$first")"
    same "tag" 'ocistern; hit' "$(got "full/$1/manifests/moving" "$first.manifest")"
}

# full_pushes KIND [STATUS]: the tag is moved by pushes. Without STATUS some of it may find room where older content went.
full_pushes() {
    local size name file status path
    for size in $(sizes "$1" "${2:-}"); do
        name=${size%:*}
        file=$(random "$1-$name" "${size#*:}")
        fill_up "$1"
        put "$BASE" "full/$1" moving "$file"
        upstream_has "full/$1" moving "$file.manifest"
        for path in manifests/moving manifests/moving "blobs/$(digest_of "$file")"; do
            status=$(got "full/$1/$path" "${file}$([[ $path == blobs/* ]] || echo .manifest)")
            echo "$name $path: $status"
            [[ -z ${2:-} ]] || same "status of $path, $name" "$2" "$status"
        done
    done
}

# full_pulls KIND STATUS: what upstream alone has.
full_pulls() {
    local size name file
    for size in $(sizes "$1" all); do
        name=${size%:*}
        file=$(random "$1-upstream-$name" "${size#*:}")
        put "$UP" "pulled/$1" "$name" "$file"
        # Whatever ocistern has given back meanwhile, of its index perhaps.
        fill_up "$1"
        same "status of the blob" "$2" "$(got "pulled/$1/blobs/$(digest_of "$file")" "$file")"
        same "status of the tag" "$2" "$(got "pulled/$1/manifests/$name" "$file.manifest")"
    done
    # Once, not at each request: while the disk is full, nothing is kept of that size, and so it is not said to have room.
    same "lines that say why it is not kept" 1 "$(reasons_since_start 'the store has no room and nothing that may go')"
    (($(metric ocistern_requests_total 'result="bypass"') > 0))
}

# It is pulled in its new meaning, and never in an old one again.
full_moves() {
    local n file
    for n in 1 2 3; do
        file=$(random "$1-moved-$n" 3000)
        put "$UP" "full/$1" moving "$file"
        got "full/$1/manifests/moving" "$file.manifest"
        got "full/$1/manifests/moving" "$file.manifest"
    done
}

# The deletion is of what the digest names: what becomes of the tag is this upstream's affair.
full_client() {
    STORAGE=$WORK/storage/full-$1 REGISTRY=$OCISTERN/oci.test PLAIN=1
    mkdir -p "$STORAGE"
    local pushed
    pushed=$(push_oras "full-client/$1")
    same "digest upstream" "${pushed#manifest }" "$(oci_digest "full-client/$1" 1.0)"
    same "digest pulled" "$pushed" "$(push_pull_oras "full-client/$1")"
    push_delete_oras "full-client/$1" "${pushed#manifest }"
    fails oras_at 'manifest fetch' "$REGISTRY/full-client/$1@${pushed#manifest }"
}

# A start on a full disk is a start.
full_restart() {
    halt ocistern KILL
    cistern_run
}

after_restart() {
    local file
    got "full/$1/manifests/moving" "$WORK/full/$1-moved-3.manifest"
    file=$(random "$1-restarted" 5000)
    put "$BASE" "full/$1" moving "$file"
    upstream_has "full/$1" moving "$file.manifest"
    got "full/$1/manifests/moving" "$file.manifest"
    got "full/$1/blobs/$(digest_of "$file")" "$file"
}

room_again() {
    local file
    rm -r "$DISK/filler"
    file=$WORK/full/$1-upstream-large
    same "first" 'ocistern; fwd=miss; stored' "$(got "pulled/$1/blobs/$(digest_of "$file")" "$file")"
    wait_for 10 settled
    same "again" 'ocistern; hit' "$(got "pulled/$1/blobs/$(digest_of "$file")" "$file")"
    same "first" 'ocistern; fwd=miss; stored' "$(got "pulled/$1/manifests/large" "$file.manifest")"
    same "again" 'ocistern; hit' "$(got "pulled/$1/manifests/large" "$file.manifest")"
    file=$(random "$1-again" 5000)
    put "$BASE" "full/$1" moving "$file"
    same "what was pushed" 'ocistern; hit' "$(got "full/$1/blobs/$(digest_of "$file")" "$file")"
    same "its tag" 'ocistern; hit' "$(got "full/$1/manifests/moving" "$file.manifest")"
    # Nothing is left behind of what did not fit.
    file=$(find "$DISK/root/fills" -type f)
    none "files in fills" "$file"
}

# Of what is left a tenth of the disk is not for blobs. What fits into the rest is kept. What would not fit even if all else went
# goes through, and nothing goes for it.
nearly_full() {
    local large small left
    large=$(random bytes-nearly-large $((30 << 20))) small=$(random bytes-nearly-small 20000)
    put "$UP" pulled/nearly large "$large"
    put "$UP" pulled/nearly small "$small"
    left=$(df --output=avail -B1 "$DISK" | tail -n 1 | tr -d ' ')
    fallocate -l $((left - (12 << 20))) "$DISK/filler"
    same "status of the large one" 'ocistern; fwd=bypass' "$(got "pulled/nearly/blobs/$(digest_of "$large")" "$large")"
    same "status of the small one" 'ocistern; fwd=miss; stored' "$(got "pulled/nearly/blobs/$(digest_of "$small")" "$small")"
    wait_for 10 settled
    same "status of the small one, again" 'ocistern; hit' "$(got "pulled/nearly/blobs/$(digest_of "$small")" "$small")"
    same "status of what was there before" 'ocistern; hit' "$(got "pulled/bytes/blobs/$(digest_of "$WORK/full/bytes-upstream-large")" "$WORK/full/bytes-upstream-large")"
    rm "$DISK/filler"
}
