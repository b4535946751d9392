# ORAS: artifacts, and what refers to them by the referrers API and by the fallback tag.
# shellcheck shell=bash

client_needs() { go_tool oras; }
client_version() { "$(go_tool oras)" version | head -n 1; }
client_forms() { echo prefix; }
client_items() { echo artifact chart oci basic image; }

oras_() { bounded "$(go_tool oras)" "$@"; }
client_start() { :; }
client_stop() { :; }

client_fresh() {
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
}

client_pull() {
    local name
    name=$OCISTERN/$(upstream_of "$2")/$(repository_of "$2")$(reference "$2")
    echo "manifest $(oras_ resolve --plain-http "$name")"
    oras_ copy --from-plain-http --to-oci-layout "$name" "$STORAGE/layout:copied" >/dev/null
    layout_blobs "$STORAGE/layout" | grep -vF "$(expected "$2" manifest)"
    if [[ $2 == artifact ]]; then
        oras_ pull --plain-http --output "$STORAGE/files" "$name" | sed -n 's/^Digest: /manifest /p'
        cmp "$STORAGE/files/artifact.txt" "$CONTENT/artifact/artifact.txt"
        cmp "$STORAGE/files/data.bin" "$CONTENT/artifact/data.bin"
    fi
}

# discovered NAME: digests of what refers to it.
discovered() { oras_ discover --plain-http --format json "$1" | jq -r '.. | .referrers? // empty | .[].digest' | sort; }

# referrers UPSTREAM NAME: through ocistern as straight from the upstream, and the signature that is found is the one
# that was attached.
referrers() {
    local want through=$OCISTERN/$1/$2 signature
    # Known from before the upstreams went away.
    want=$WORK/expect/referrers-$1
    [[ -f $want ]] || discovered "${UPSTREAM_ADDRESS[$1]}/$2" >"$want"
    [[ -s $want ]]
    same "referrers of $2" "$(<"$want")" "$(discovered "$through")"
    signature=$(head -n 1 "$want")
    client_fresh
    oras_ pull --plain-http --output "$STORAGE/signature" "${through%:*}@$signature" >/dev/null
    cmp "$STORAGE/signature/signature.json" "$CONTENT/artifact/signature.json"
}

client_cases() {
    try "oras $1 $2 referrers by the API" referrers oci.test samples/app:v1
    try "oras $1 $2 referrers by the fallback tag" referrers docker.io library/debian:bookworm
}
