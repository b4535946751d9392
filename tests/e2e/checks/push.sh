# Every client that pushes, to a registry with tokens of a server of their own (Debian's docker-registry), as the listener's
# default and by prefix; and ORAS to the registry with the referrers API, also under its own name with TLS.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

check_needs() { echo skopeo podman buildah dockerd /usr/bin/docker containerd ctr; }

check() {
    local form name
    try "push start" push_start
    for form in default prefix; do
        for name in "${PUSHERS[@]}"; do try "push $form $name" push_at "$form" "$name"; done
        try "push $form signatures, by tag and by the referrers fallback" push_signatures "$form" bearer.test
    done
    for form in prefix transparent name; do
        try "push $form signatures, by tag and by the referrers API" push_signatures "$form" oci.test
    done
    try "push name ORAS from login to delete" push_by_name
    docker_stop
    ctr_stop
    try "push stop" cistern_stop
}

PUSH_PORT=5050

push_start() {
    rm -rf "$WORK/cistern"
    # By prefix, what the caller shows is meant for this upstream although it is not the listener's default.
    cistern_config '{ from = "auto" }' | sed 's/^\[upstream."bearer.test"\]$/&\nrelay_credentials = true/' >"$WORK/ocistern.toml"
    printf '\n[[listener]]\naddress = "127.0.0.1:%d"\ndefault_upstream = "bearer.test"\n' $PUSH_PORT >>"$WORK/ocistern.toml"
    own_names
    printf '\n[[listener]]\naddress = "127.0.0.1:443"\ndefault_upstream = ""\ntls = { certificate = "%s", key = "%s" }\nhostnames = { "oci.test" = "oci.test" }\n' \
        "$WORK/tls/server.crt" "$WORK/tls/server.key" >>"$WORK/ocistern.toml"
    cistern_run
    docker_start
    ctr_start
}

# push_signatures FORM UPSTREAM
push_signatures() {
    local digest_of=${2%%.*}_digest
    PLAIN=1 STORAGE=$WORK/storage/signatures-$1-${2%%.*}
    case $1 in
        default) REGISTRY=127.0.0.1:$PUSH_PORT ;;
        prefix) REGISTRY=$OCISTERN/$2 ;;
        transparent) REGISTRY=registry.e2e:$OCISTERN_PORT ;;
        name) REGISTRY=oci.test PLAIN=0 ;;
    esac
    mkdir -p "$STORAGE"
    [[ $2 != bearer.test ]] || push_login_oras "$PULL_USER" "$PULL_PASSWORD"
    attached "signatures-$1" "$digest_of"
    signed_by_tag "signatures-$1/signed" "$digest_of"
}

# The upstream asks nobody who they are, so any login will do. What oras cp copies, to another repository and to a directory and
# back, is what was pushed, with what refers to it.
push_by_name() {
    local subject signature found
    PLAIN=0 STORAGE=$WORK/storage/push-by-name REGISTRY=oci.test
    mkdir -p "$STORAGE"
    push_login_oras anybody anything
    subject=$(push_oras named/app)
    same "digest upstream" "${subject#manifest }" "$(oci_digest named/app 1.0)"
    same "digest pulled" "$subject" "$(push_pull_oras named/app)"
    (cd "$CONTENT/artifact" && oras_at attach --artifact-type application/vnd.example.signature.v1+json "$REGISTRY/named/app:1.0" signature.json:application/json) >/dev/null
    signature=$(referring named/app:1.0)
    found=$(curl -fsS -m 20 "http://${UPSTREAM_ADDRESS[oci.test]}/v2/named/app/referrers/${subject#manifest }" | jq -r '.manifests[].digest')
    same "referrers upstream" "$found" "$signature"
    oras_at pull --output "$STORAGE/signature" "$REGISTRY/named/app@$signature" >/dev/null
    cmp "$STORAGE/signature/signature.json" "$CONTENT/artifact/signature.json"
    oras_cp "$REGISTRY/named/app:1.0" "$REGISTRY/named/copy:2.0" >/dev/null
    same "digest of the copy upstream" "${subject#manifest }" "$(oci_digest named/copy 2.0)"
    same "referrers of the copy" "$signature" "$(referring named/copy:2.0)"
    bounded "$(go_tool oras)" cp --recursive --from-registry-config "$STORAGE/oras.json" --to-oci-layout "$REGISTRY/named/app:1.0" "$STORAGE/layout:app" >/dev/null
    layout_blobs "$STORAGE/layout" >"$STORAGE/blobs"
    grep -qxF "blob $signature" "$STORAGE/blobs"
    bounded "$(go_tool oras)" cp --recursive --from-oci-layout --to-registry-config "$STORAGE/oras.json" "$STORAGE/layout:app" "$REGISTRY/named/back:3.0" >/dev/null
    same "digest of what came back" "${subject#manifest }" "$(oci_digest named/back 3.0)"
    same "referrers of what came back" "$signature" "$(referring named/back:3.0)"
    oras_at 'repo tags' "$REGISTRY/named/back" | seen -x 3.0
    # The signature first: then nothing refers to the artifact any more.
    push_delete_oras named/copy "$signature"
    fails oras_at 'manifest fetch' "$REGISTRY/named/copy@$signature"
    found=$(referring named/copy:2.0)
    none "referrers without it" "$found"
    push_delete_oras named/copy "${subject#manifest }"
    fails oras_at 'manifest fetch' "$REGISTRY/named/copy@${subject#manifest }"
    # In the other repositories it is as it was.
    same "digest pulled" "$subject" "$(push_pull_oras named/app)"
}

bearer_digest() {
    # Raw, because artifacts and charts are no images; the digest is that of the bytes.
    local manifest=$STORAGE/upstream-manifest
    if bounded skopeo inspect --raw --tls-verify=false --creds "$PULL_USER:$PULL_PASSWORD" \
        "docker://${UPSTREAM_ADDRESS[bearer.test]}/$1:$2" >"$manifest" 2>"$manifest.error"; then
        digest_of "$manifest"
    else
        # Nothing else than that it is not there is nothing.
        grep -q 'manifest unknown\|name unknown' "$manifest.error" || {
            cat "$manifest.error" >&2
            return 1
        }
    fi
}

push_at() {
    PLAIN=1 STORAGE=$WORK/storage/push-$1-$2
    case $1 in
        default) REGISTRY=127.0.0.1:$PUSH_PORT ;;
        prefix) REGISTRY=$OCISTERN/bearer.test ;;
    esac
    # shellcheck disable=SC2317
    repository_for() { printf 'push-%s/%s\n' "$form" "$1"; }
    # At the address of an open registry any password is as good as none.
    local LOGIN_IS_CHECKED=1
    [[ $1 == default ]] || LOGIN_IS_CHECKED=0
    push_flow "$2" "$PULL_USER" "$PULL_PASSWORD" bearer_digest
}
