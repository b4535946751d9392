# Every client that pushes, to a registry with tokens of a server of their own (Debian's docker-registry), as the listener's
# default and by prefix.
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
    for form in prefix transparent; do
        try "push $form signatures, by tag and by the referrers API" push_signatures "$form" oci.test
    done
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
    esac
    mkdir -p "$STORAGE"
    [[ $2 != bearer.test ]] || push_login_oras "$PULL_USER" "$PULL_PASSWORD"
    attached "signatures-$1" "$digest_of"
    signed_by_tag "signatures-$1/signed" "$digest_of"
}

oci_digest() { bounded "$(go_tool crane)" digest --insecure "${UPSTREAM_ADDRESS[oci.test]}/$1:$2" 2>/dev/null || true; }

bearer_digest() {
    # Raw, because artifacts and charts are no images; the digest is that of the bytes.
    local manifest=$STORAGE/upstream-manifest
    bounded skopeo inspect --raw --tls-verify=false --creds "$PULL_USER:$PULL_PASSWORD" \
        "docker://${UPSTREAM_ADDRESS[bearer.test]}/$1:$2" >"$manifest" 2>/dev/null || return 0
    printf 'sha256:%s\n' "$(sha256sum <"$manifest" | cut -d' ' -f1)"
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
