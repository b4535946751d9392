# What curl sees: status, headers and Cache-Status of every kind of answer, each form of address, ranges, conditions.
# shellcheck shell=bash

MANIFEST_TYPE=application/vnd.oci.image.manifest.v1+json

check() {
    try "headers start" cistern_start
    try "headers ping" ping
    try "headers manifest" manifest
    try "headers blob" blob
    try "headers ranges" ranges
    try "headers conditions" conditions
    try "headers every form of address" forms
    try "headers names are told apart" told_apart
    try "headers errors" errors
    try "headers lists" lists
    try "headers stop" cistern_stop
}

# status HEAD: the number of the status line in what `headers` printed.
status() { head -n 1 <<<"$1" | cut -d' ' -f2; }

ping() {
    local head
    head=$(headers "http://$OCISTERN/v2/")
    # Clients take from here where tokens are to be had; without credentials they hold for what is public.
    same status 401 "$(status "$head")"
    same challenge "Bearer realm=\"http://$OCISTERN/oauth2/token\",service=\"$OCISTERN\"" "$(header www-authenticate <<<"$head")"
    same "api version" registry/2.0 "$(header docker-distribution-api-version <<<"$head")"
    local token
    token=$(curl -fsS "http://[::1]:$OCISTERN_PORT/oauth2/token" | jq -r .access_token)
    curl -fsS -o /dev/null -H "Authorization: Bearer $token" "http://[::1]:$OCISTERN_PORT/v2/"
    curl -fsS -o /dev/null "http://$ADMIN/healthz"
}

# manifest_head HEAD CACHE_STATUS [BYTES]
manifest_head() {
    same status 200 "$(status "$1")"
    same docker-content-digest "$(expected oci manifest)" "$(header docker-content-digest <<<"$1")"
    same content-type $MANIFEST_TYPE "$(header content-type <<<"$1")"
    same content-length "$(stat -c %s "$WORK/expect/oci.manifest")" "$(header content-length <<<"$1")"
    same etag "\"$(expected oci manifest)\"" "$(header etag <<<"$1")"
    same "api version" registry/2.0 "$(header docker-distribution-api-version <<<"$1")"
    same cache-status "$2" "$(header cache-status <<<"$1")"
}

manifest() {
    local url=http://$OCISTERN/v2/oci.test/samples/app/manifests body
    manifest_head "$(headers "$url/v1")" 'ocistern; fwd=miss; stored'
    manifest_head "$(headers "$url/v1")" 'ocistern; hit'
    # Who shows no token to pull with may be about to push: upstream answers.
    manifest_head "$(headers "$url/v1" --head)" 'ocistern; fwd=miss'
    local token
    token=$(curl -fsS "http://$OCISTERN/oauth2/token?scope=repository:oci.test/samples/app:pull" | jq -r .access_token)
    manifest_head "$(headers "$url/v1" --head -H "Authorization: Bearer $token")" 'ocistern; hit'
    manifest_head "$(headers "$url/$(expected oci manifest)")" 'ocistern; hit'
    manifest_head "$(headers "$url/$(expected oci manifest)" --head -H "Authorization: Bearer $token")" 'ocistern; hit'
    body=$WORK/tmp/manifest
    # Whatever the client says that it accepts, it gets the stored bytes.
    curl -fsS -H 'Accept: */*' -o "$body" "$url/v1"
    cmp "$body" "$WORK/expect/oci.manifest"
    curl -fsS -H "Accept: $MANIFEST_TYPE" -H 'Accept-Encoding: zstd;q=1.0, gzip;q=0.8' -o "$body" "$url/v1"
    cmp "$body" "$WORK/expect/oci.manifest"
}

# largest ITEM: digest and size of its largest layer.
largest() { jq -r '[.layers[]] | max_by(.size) | "\(.digest) \(.size)"' "$WORK/expect/$1.manifest"; }

blob() {
    local digest size url head
    read -r digest size <<<"$(largest oci)"
    url=http://$OCISTERN/v2/oci.test/samples/app/blobs/$digest
    # A HEAD of what is not there asks upstream, and downloads nothing.
    local downloads
    downloads=$(downloads)
    head=$(headers "$url" --head)
    same status 200 "$(status "$head")"
    same content-length "$size" "$(header content-length <<<"$head")"
    same docker-content-digest "$digest" "$(header docker-content-digest <<<"$head")"
    same downloads "$downloads" "$(downloads)"
    head=$(headers "$url")
    same cache-status 'ocistern; fwd=miss; stored' "$(header cache-status <<<"$head")"
    wait_for 10 settled
    local token
    token=$(curl -fsS "http://$OCISTERN/oauth2/token?scope=repository:oci.test/samples/app:pull" | jq -r .access_token)
    for method in --head --get; do
        head=$(headers "$url" $method -H "Authorization: Bearer $token")
        same status 200 "$(status "$head")"
        same content-length "$size" "$(header content-length <<<"$head")"
        same docker-content-digest "$digest" "$(header docker-content-digest <<<"$head")"
        same etag "\"$digest\"" "$(header etag <<<"$head")"
        same accept-ranges bytes "$(header accept-ranges <<<"$head")"
        same cache-status 'ocistern; hit' "$(header cache-status <<<"$head")"
    done
    same "blob" "$digest" "sha256:$(curl -fsS "$url" | sha256sum | cut -d' ' -f1)"
}

ranges() {
    local digest size url whole=$WORK/tmp/whole part=$WORK/tmp/part head
    read -r digest size <<<"$(largest oci)"
    url=http://$OCISTERN/v2/oci.test/samples/app/blobs/$digest
    curl -fsS -o "$whole" "$url"
    # one RANGE FIRST LAST
    one() {
        head=$(curl -sS -D - -o "$part" -H "Range: bytes=$1" "$url" | tr -d '\r' | sed -E 's/^([A-Za-z-]+):/\L\1:/')
        same "status of $1" 206 "$(status "$head")"
        same "content-range of $1" "bytes $2-$3/$size" "$(header content-range <<<"$head")"
        same "content-length of $1" $(($3 - $2 + 1)) "$(header content-length <<<"$head")"
        cmp "$part" <(tail -c +$(($2 + 1)) "$whole" | head -c $(($3 - $2 + 1)))
    }
    one 0-0 0 0
    one 500-1499 500 1499
    one 1000- 1000 $((size - 1))
    one -500 $((size - 500)) $((size - 1))
    one "2000-$((size * 2))" 2000 $((size - 1))
    one "-$((size * 2))" 0 $((size - 1))
    head=$(headers "$url" -H "Range: bytes=$size-")
    same "status past the end" 416 "$(status "$head")"
    same "content-range past the end" "bytes */$size" "$(header content-range <<<"$head")"
    # Several ranges: as multipart, as partial pulls of containers/image ask.
    head=$(curl -sS -D - -o "$part" -H 'Range: bytes=0-9,100-199' "$url" | tr -d '\r' | sed -E 's/^([A-Za-z-]+):/\L\1:/')
    same "status of two ranges" 206 "$(status "$head")"
    [[ $(header content-type <<<"$head") == multipart/byteranges\;* ]]
    grep -aq "^Content-Range: bytes 100-199/$size" "$part" || grep -aqi "^content-range: bytes 100-199/$size" "$part"
    # Of another representation the range says nothing.
    head=$(headers "$url" -H 'Range: bytes=0-9' -H 'If-Range: "sha256:other"')
    same "status with another If-Range" 200 "$(status "$head")"
    head=$(headers "$url" -H 'Range: bytes=0-9' -H "If-Range: \"$digest\"")
    same "status with its If-Range" 206 "$(status "$head")"
}

conditions() {
    local digest size head
    read -r digest size <<<"$(largest oci)"
    head=$(headers "http://$OCISTERN/v2/oci.test/samples/app/blobs/$digest" -H "If-None-Match: \"$digest\"")
    same "blob, If-None-Match" 304 "$(status "$head")"
    head=$(headers "http://$OCISTERN/v2/oci.test/samples/app/manifests/v1" -H "If-None-Match: \"$(expected oci manifest)\"")
    same "manifest, If-None-Match" 304 "$(status "$head")"
}

forms() {
    local url digest
    digest=$(expected oci manifest)
    for url in "oci.test/samples/app/manifests/v1" "samples/app/manifests/v1?ns=oci.test" \
        "oci.test%2Fsamples%2Fapp/manifests/v1" "oci.test/samples%2Fapp/manifests/${digest/:/%3A}"; do
        same "$url" "$digest" "$(headers "http://$OCISTERN/v2/$url" | header docker-content-digest)"
    done
    same "path before v2" "$digest" "$(headers "http://$OCISTERN/oci.test/v2/samples/app/manifests/v1" | header docker-content-digest)"
    same "path before v2, and ns" "$digest" "$(headers "http://$OCISTERN/oci.test/v2/samples/app/manifests/v1?ns=oci.test" | header docker-content-digest)"
    same "mapped Host" "$digest" "$(headers "http://registry.e2e:$OCISTERN_PORT/v2/samples/app/manifests/v1" | header docker-content-digest)"
    same "OCI-Namespace" oci.test "$(headers "http://$OCISTERN/v2/samples/app/manifests/v1?ns=oci.test" | header oci-namespace)"
    # The default upstream, and a name of one part, which is of its library.
    for url in library/debian/manifests/bookworm debian/manifests/bookworm docker.io/debian/manifests/bookworm "debian/manifests/bookworm?ns=docker.io"; do
        same "$url" "$(expected image manifest)" "$(headers "http://$OCISTERN/v2/$url" | header docker-content-digest)"
    done
}

# A blob that is in the store is given under no name that upstream does not know it by.
told_apart() {
    local digest size head
    read -r digest size <<<"$(largest image)"
    curl -fsS -o /dev/null "http://$OCISTERN/v2/library/debian/blobs/$digest"
    wait_for 10 settled
    head=$(headers "http://$OCISTERN/v2/dist.test/library/app/blobs/$digest")
    same "a blob of another upstream" 404 "$(status "$head")"
    head=$(headers "http://$OCISTERN/v2/oci.test/samples/app/manifests/$(expected image manifest)")
    same "a manifest of another upstream" 404 "$(status "$head")"
    # The same content under another name that upstream does know: found, and not downloaded again.
    local downloads
    read -r digest size <<<"$(largest oci)"
    downloads=$(downloads)
    head=$(headers "http://$OCISTERN/v2/dist.test/library/app/blobs/$digest")
    same "a blob known upstream" 200 "$(status "$head")"
    same downloads "$downloads" "$(downloads)"
}

# refused STATUS CODE URL [CURL ARGUMENT…]: the specification's JSON.
refused() {
    local want=$1 code=$2 url=$3 answer=$WORK/tmp/refused
    shift 3
    same "status of $url" "$want" "$(curl -sS -m 30 -o "$answer" -w '%{http_code}' "$@" "$url")"
    same "code of $url" "$code" "$(jq -r '.errors[0].code' "$answer")"
    [[ -n $(jq -r '.errors[0].message' "$answer") ]]
}

errors() {
    local zeros
    zeros=$(printf '0%.0s' {1..64})
    refused 404 MANIFEST_UNKNOWN "http://$OCISTERN/v2/library/debian/manifests/no-such-tag"
    refused 404 MANIFEST_UNKNOWN "http://$OCISTERN/v2/library/debian/manifests/sha256:$zeros"
    refused 404 BLOB_UNKNOWN "http://$OCISTERN/v2/library/debian/blobs/sha256:$zeros"
    refused 404 NAME_UNKNOWN "http://$OCISTERN/v2/samples/app/manifests/v1?ns=unknown.example"
    refused 404 NAME_UNKNOWN "http://$OCISTERN/v2/unknown.example/samples/app/manifests/v1"
    refused 400 DIGEST_INVALID "http://$OCISTERN/v2/library/debian/blobs/sha256:short"
    refused 400 NAME_INVALID "http://$OCISTERN/v2/Upper/Case/manifests/v1"
    refused 405 UNSUPPORTED "http://$OCISTERN/v2/library/debian/manifests/bookworm" -X PATCH
}

lists() {
    local tags
    tags=$(curl -fsS "http://$OCISTERN/v2/library/debian/tags/list" | jq -c '.tags | sort')
    same tags "$(curl -fsS "http://${UPSTREAM_ADDRESS[docker.io]}/v2/library/debian/tags/list" | jq -c '.tags | sort')" "$tags"
    # Pages (docker-registry 2.8 has none, distribution v3 has): the Link leads back here, in the form that was used.
    local head link
    head=$(headers "http://$OCISTERN/v2/dist.test/library/app/tags/list?n=1")
    link=$(header link <<<"$head" | sed 's/^<\([^>]*\)>.*/\1/')
    [[ -n $link ]]
    [[ $link == http* ]] || link=http://$OCISTERN$link
    same "second page" '["v2"]' "$(curl -fsS "$link" | jq -c .tags)"
    head=$(headers "http://$OCISTERN/v2/library/app/tags/list?n=1&ns=dist.test")
    link=$(header link <<<"$head" | sed 's/^<\([^>]*\)>.*/\1/')
    [[ $link == http* ]] || link=http://$OCISTERN$link
    [[ $link == *ns=dist.test* ]] || link="$link&ns=dist.test"
    same "second page by ns" '["v2"]' "$(curl -fsS "$link" | jq -c .tags)"
    same "stale lists" "$tags" "$(
        stop_upstreams
        curl -fsS "http://$OCISTERN/v2/library/debian/tags/list" | jq -c '.tags | sort'
        start_upstreams
    )"
}
