# Over an air gap, both ways: one store outside, with its upstreams; one inside, sealed, with none. What crosses is a file. What
# is asked for inside and not there is told, and is what the next bundle brings.
# shellcheck shell=bash

check() {
    INSIDE=$WORK/inside OUTSIDE=$WORK/outside BUNDLE=$WORK/tmp/images.tar HAVE=$WORK/tmp/have MISSED=$WORK/tmp/missed
    rm -rf "$INSIDE" "$OUTSIDE" "$WORK"/tmp/{images,update}*
    try "bundle outside start" cistern_start
    try "bundle outside pull" pulled basic oci
    try "bundle export" exported --all --to "$BUNDLE"
    try "bundle other programs read it" read_by_others
    leave "$OUTSIDE"
    stop_upstreams
    try "bundle inside start" sealed
    try "bundle inside nothing is there" nothing_there
    try "bundle import, a dry run" dry_run
    try "bundle import" imported "$BUNDLE"
    try "bundle inside pull" pulled basic oci
    try "bundle a damaged one is refused" damaged
    try "bundle inside what is missing is told" missed image
    try "bundle inside have" lists_what_is_there
    leave "$INSIDE"
    start_upstreams
    try "bundle outside again" comes_back "$OUTSIDE"
    try "bundle outside pull what is missed" pull_missed
    try "bundle export a delta" delta
    leave "$OUTSIDE"
    stop_upstreams
    try "bundle inside again" comes_back "$INSIDE" sealed
    try "bundle import the delta" imported "$WORK/tmp/update.tar"
    try "bundle inside pull all" pulled basic oci image
    try "bundle nothing is missed any more" nothing_missed
    try "bundle inside stop" cistern_stop
    start_upstreams
}

ocistern_on_store() { bounded "$OCISTERN_BIN" "$@" --config "$WORK/ocistern.toml"; }

name_of() { printf '%s/%s%s\n' "$(upstream_of "$1")" "$(repository_of "$1")" "$(reference "$1")"; }

# pulled ITEM…: each by skopeo, right.
pulled() {
    local item
    for item in "$@"; do
        rm -rf "$WORK/storage/bundle"
        bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" "docker://$OCISTERN/$(name_of "$item")" \
            "dir:$WORK/storage/bundle"
        same "$item" "$(expected "$item" manifest)" "$(<"$WORK/tmp/digest")"
    done
    wait_for 10 settled
}

exported() { ocistern_on_store export "$@"; }

imported() { ocistern_on_store import "$@"; }

# The store of one side makes room for that of the other.
leave() {
    try "bundle ${1##*/} stop" cistern_stop
    mv "$WORK/cistern" "$1"
}

comes_back() {
    mv "$1" "$WORK/cistern"
    cistern_config "" "${2:-5m}" >"$WORK/ocistern.toml"
    cistern_run
}

sealed() { cistern_start "" sealed; }

# A digest that a program computes of what it read in a bundle is that of upstream.
read_by_others() {
    local name
    name=$(name_of basic)
    mkdir "$WORK/tmp/images"
    tar -C "$WORK/tmp/images" -xf "$BUNDLE"
    same skopeo "$(expected basic manifest)" \
        "sha256:$(bounded skopeo inspect --raw "oci-archive:$BUNDLE:$name" | sha256sum | cut -d' ' -f1)"
    same oras "$(expected basic manifest)" \
        "sha256:$(bounded "$(go_tool oras)" manifest fetch --oci-layout "$WORK/tmp/images@$(expected basic manifest)" | sha256sum | cut -d' ' -f1)"
    (cd "$WORK/tmp/images/blobs/sha256" && for blob in *; do printf '%s  %s\n' "$blob" "$blob"; done | sha256sum --quiet -c)
}

nothing_there() {
    local code
    code=$(curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' \
        "http://$OCISTERN/v2/$(upstream_of basic)/$(repository_of basic)/manifests/$(reference basic | tr -d ':@')")
    cat "$WORK/tmp/answer"
    same status 404 "$code"
    grep -q sealed "$WORK/tmp/answer"
    ocistern_on_store missed | grep -q "$(repository_of basic)"
}

dry_run() {
    imported --dry-run "$BUNDLE"
    [[ $(metric ocistern_store_blobs) == 0 ]]
}

# One byte in the middle of it is another one.
damaged() {
    local size
    cp "$BUNDLE" "$WORK/tmp/images.damaged.tar"
    size=$(stat -c %s "$BUNDLE")
    printf '\x5a\xa5\x5a\xa5' | dd of="$WORK/tmp/images.damaged.tar" bs=1 seek=$((size / 2)) conv=notrunc status=none
    if imported "$WORK/tmp/images.damaged.tar" 2>"$WORK/tmp/refused"; then
        echo "it was taken" >&2
        return 1
    fi
    cat "$WORK/tmp/refused"
    grep -q images.damaged.tar "$WORK/tmp/refused"
}

# missed ITEM: it cannot be pulled, and is what `missed` lists.
missed() {
    if bounded skopeo inspect --tls-verify=false "docker://$OCISTERN/$(name_of "$1")" >/dev/null 2>&1; then
        echo "$1 is there" >&2
        return 1
    fi
    ocistern_on_store missed >"$MISSED"
    cat "$MISSED"
    same "what is missed" "$(name_of "$1")" "$(sed 's/[[:space:]]*#.*//' "$MISSED" | grep -v '^$')"
}

lists_what_is_there() {
    ocistern_on_store have >"$HAVE"
    grep -q "$(expected basic manifest)" "$HAVE"
}

pull_missed() {
    local name
    while read -r name _; do
        [[ -z $name || $name == \#* ]] || bounded skopeo copy --quiet --all --src-tls-verify=false "docker://$OCISTERN/$name" "dir:$WORK/storage/bundle"
    done <"$MISSED"
    wait_for 10 settled
}

# It has what is missing, and little else.
delta() {
    local blobs size
    exported --all --missing-from "$HAVE" --to "$WORK/tmp/update.tar"
    mkdir "$WORK/tmp/update"
    tar -C "$WORK/tmp/update" -xf "$WORK/tmp/update.tar"
    blobs=$(find "$WORK/tmp/update/blobs" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d\n", sum }')
    size=$(stat -c %s "$WORK/tmp/update.tar")
    at_most "bytes of the delta, beside its blobs" 65536 "$((size - blobs))"
    if find "$WORK/tmp/update/blobs" -type f -printf '%f\n' | grep -Ff - <(sed -n 's/^sha256://p' "$HAVE"); then
        echo "it has what is there" >&2
        return 1
    fi
}

nothing_missed() { none "what is missed" "$(ocistern_on_store missed | sed 's/[[:space:]]*#.*//' | grep -v '^$' || true)"; }
