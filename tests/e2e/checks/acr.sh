# Azure Container Registry: every client that pushes, by ocistern's own address and under the registry's own name with TLS;
# who may read what; uploads that the registry breaks; what changes behind ocistern's back.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

check_needs() { echo skopeo podman buildah dockerd /usr/bin/docker containerd ctr; }

check() {
    local form name
    try "acr start" acr_check_start
    for form in own name; do
        for name in "${PUSHERS[@]}"; do try "acr $form $name" acr_push "$form" "$name"; done
        try "acr $form ORAS copies, attaches and finds referrers" acr_at "$form" oras_referrers
        try "acr $form signatures by tag" acr_at "$form" signature_by_tag
        try "acr $form a registry's lists" acr_at "$form" lists
    done
    try "acr a stranger gets nothing, cached or not" stranger
    try "acr who may only pull cannot push" only_pull
    try "acr a right that is taken away" revoked
    try "acr what is public is public" public
    try "acr an upload that the registry breaks off" broken_upload
    try "acr an answer that is lost after the work" lost_answer
    try "acr what appears upstream is found at once" behind
    try "acr the registry is away" away
    try "acr nothing leaked" acr_nothing_leaked
    docker_stop
    ctr_stop
    try "acr stop" cistern_stop
    acr_stop
}

acr_check_start() {
    acr_start
    acr_cistern '{ from = "auto" }' 'access_ttl = "1s"'
    docker_start
    ctr_start
}

# acr_at FORM COMMAND…: with $REGISTRY, $PLAIN and $STORAGE of the form.
acr_at() {
    case $1 in
        own) REGISTRY=localhost:$OCISTERN_PORT PLAIN=1 ;;
        name) REGISTRY=$ACR PLAIN=0 ;;
    esac
    STORAGE=$WORK/storage/acr-$1-$2${3:+-$3}
    shift
    "$@"
}

# A repository for each form, so that the second finds nothing of the first.
acr_push() {
    acr_control log/clear '{}'
    # shellcheck disable=SC2317
    repository_for() { printf 'push-%s/%s\n' "$form" "$1"; }
    acr_at "$1" push_flow "$2" "$SP_APP_ID" "$SP_PASSWD" acr_digest
    same "blobs downloaded from the registry" 0 "$(acr_requests storage GET)"
    acr_nothing_leaked
}

sp_login() {
    mkdir -p "$STORAGE"
    push_login_oras "$SP_APP_ID" "$SP_PASSWD"
}

oras_referrers() {
    local subject signature
    sp_login
    signature=$(attached refer acr_digest)
    subject=$(acr_digest refer/copy 2.0)
    same "referrers upstream" "$(acr_direct "/v2/refer/app/referrers/$subject" | jq -r '.manifests[].digest')" "$signature"
    # The registry removes what refers to a manifest with the manifest.
    oras_at 'manifest delete' --force "$REGISTRY/refer/copy@$subject"
    fails oras_at 'manifest fetch' "$REGISTRY/refer/copy@$signature"
    oras_at 'repo ls' "$REGISTRY" | seen -x refer/app
}

signature_by_tag() {
    sp_login
    signed_by_tag signed/app acr_digest
}

# Pages of one entry: every Link leads back to ocistern.
lists() {
    local tag pages=0 next all='' base
    sp_login
    for tag in a b c; do (cd "$CONTENT/artifact" && oras_at push "$REGISTRY/lists/app:$tag" artifact.txt:text/plain >/dev/null); done
    same tags "a b c" "$(oras_at 'repo tags' "$REGISTRY/lists/app" | paste -sd' ')"
    base=http$([[ $PLAIN == 1 ]] || echo s)://$REGISTRY
    acr_control settings '{"page_size":1}' >/dev/null
    for next in "/acr/v1/lists%2Fapp/_tags?orderby=timeasc" "/v2/lists/app/tags/list?n=1" "/acr/v1/_catalog"; do
        pages=0
        while [[ -n $next ]]; do
            pages=$((pages + 1))
            ((pages < 50))
            curl -fsS -m 20 -u "$SP_APP_ID:$SP_PASSWD" -D "$STORAGE/head" -o "$STORAGE/body" "$base$next"
            all+=$(jq -r '(.tags // .repositories)[] | if type == "object" then .name else . end' "$STORAGE/body")$'\n'
            next=$(tr -d '\r' <"$STORAGE/head" | sed -n 's/^[Ll]ink: <\([^>]*\)>.*/\1/p')
            # A path, or this very address.
            next=${next#"$base"}
            [[ -z $next || $next == /* ]]
        done
        ((pages > 1))
    done
    acr_control settings '{"page_size":100}' >/dev/null
    for tag in a b c; do same "times that $tag was listed" 2 "$(grep -cx $tag <<<"$all")"; done
    grep -qx lists/app <<<"$all"
}

# through METHOD PATH [CURL ARGUMENT…]: status of a request to ocistern's own address; answer in $WORK/tmp/answer, head in
# $WORK/tmp/head.
through() {
    local method=$1 path=$2
    shift 2
    curl -sS -m 40 -X "$method" -D "$WORK/tmp/head" -o "$WORK/tmp/answer" -w '%{http_code}' "$@" "http://$OCISTERN$path"
}

# bearer USER:PASSWORD SCOPE: a token of ocistern's; with an empty user an anonymous one.
bearer() {
    local user=()
    [[ $1 == : ]] || user=(-u "$1")
    curl -fsS -m 20 "${user[@]}" "http://$OCISTERN/oauth2/token?service=localhost:$OCISTERN_PORT&scope=$2" | jq -r '.access_token // .token'
}

# The artifact is in the cache; neither status nor headers tell a stranger so.
stranger() {
    local digest token cached absent
    STORAGE=$WORK/storage/stranger REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    sp_login
    digest=$(push_oras stranger/app)
    push_pull_oras stranger/app >/dev/null
    digest=${digest#manifest }
    for token in "" "$(bearer : repository:stranger/app:pull || true)"; do
        for path in manifests/1.0 "manifests/$digest" tags/list "referrers/$digest"; do
            for method in GET HEAD; do
                if [[ $method == HEAD ]]; then set -- -I; else set -- -X GET; fi
                cached=$(curl -sS -m 20 "$@" -o /dev/null -D "$WORK/tmp/cached" -w '%{http_code}' ${token:+-H "Authorization: Bearer $token"} "http://$OCISTERN/v2/stranger/app/$path")
                absent=$(curl -sS -m 20 "$@" -o /dev/null -D "$WORK/tmp/absent" -w '%{http_code}' ${token:+-H "Authorization: Bearer $token"} "http://$OCISTERN/v2/stranger/nothing/$path")
                same "status of $method $path for a stranger" 401 "$cached"
                same "status of $method $path for a stranger where nothing is" 401 "$absent"
                if grep -iE '^(etag|docker-content-digest|cache-status: .*hit)' "$WORK/tmp/cached"; then return 1; fi
                same "names of headers" "$(head_names "$WORK/tmp/absent")" "$(head_names "$WORK/tmp/cached")"
            done
        done
    done
    same "status for another account without rights there" 401 "$(through GET /v2/stranger/app/manifests/1.0 -u scoped:scoped-secret)"
}

head_names() { sed -n 's/^\([A-Za-z-]*\):.*/\L\1/p' "$1" | sort -u | paste -sd,; }

only_pull() {
    STORAGE=$WORK/storage/only-pull REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    mkdir -p "$STORAGE"
    push_login_oras puller puller-secret
    fails push_oras refer/app-by-puller
    is_gone acr_digest refer/app-by-puller 1.0
    push_pull_oras refer/app >/dev/null
}

# With `access_ttl = "1s"` a second is all that is remembered.
revoked() {
    local token
    same "status before" 200 "$(through GET /v2/refer/app/manifests/1.0 -u puller:puller-secret)"
    acr_control rights '{"user":"puller","repositories":["refer/*"],"actions":[]}' >/dev/null
    wait_for 10 refused_to_puller
    acr_control rights '{"user":"puller","repositories":["refer/*"],"actions":["pull","metadata_read"]}' >/dev/null
    wait_for 10 granted_to_puller
}
refused_to_puller() { [[ $(through GET /v2/refer/app/manifests/1.0 -u puller:puller-secret) == 401 ]]; }
granted_to_puller() { [[ $(through GET /v2/refer/app/manifests/1.0 -u puller:puller-secret) == 200 ]]; }

public() {
    STORAGE=$WORK/storage/public REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    sp_login
    push_oras public/app >/dev/null
    acr_control repository '{"name":"public/app","public":true}' >/dev/null
    rm -f "$STORAGE/oras.json"
    push_pull_oras public/app >/dev/null
    # A word about this repository is none about others.
    fails push_pull_oras refer/app
}

# ACR cannot go on with an upload whose connection broke: ocistern begins again, and the client sees nothing of it.
broken_upload() {
    STORAGE=$WORK/storage/broken REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    mkdir -p "$STORAGE"
    acr_control log/clear '{}'
    acr_control faults '{"listener":"registry","method":"PATCH|PUT","path":"/blobs/uploads/","reset_request_at":1000000}' >/dev/null
    push_login_crane "$SP_APP_ID" "$SP_PASSWD"
    same "digest upstream" "$(push_crane broken/app | sed 's/^manifest //')" "$(acr_digest broken/app 1.0)"
    (($(acr_control faults | jq '[.[].hits] | add') >= 1))
    acr_control faults '{"listener":"registry","method":"PATCH|PUT","path":"/blobs/uploads/","reset_request_at":1000000}' >/dev/null
    sp_login
    same "digest upstream" "$(push_oras broken/artifact | sed 's/^manifest //')" "$(acr_digest broken/artifact 1.0)"
    acr_mend
}

# The registry took the manifest and the connection broke before it said so: the tag is what the registry has.
lost_answer() {
    local first=$CONTENT/artifact/artifact.txt
    STORAGE=$WORK/storage/lost REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    sp_login
    push_oras lost/app >/dev/null
    push_pull_oras lost/app >/dev/null
    acr_control faults '{"listener":"registry","method":"PUT","path":"/manifests/","lose_answer":true,"count":-1}' >/dev/null
    (cd "${first%/*}" && fails oras_at push "$REGISTRY/lost/app:1.0" artifact.txt:text/plain)
    acr_mend
    # The client tried it often enough for the breaker, which lets it through again within seconds; never is the old tag the answer.
    wait_for 40 oras_at resolve "$REGISTRY/lost/app:1.0"
    same "digest" "$(acr_digest lost/app 1.0)" "$(oras_at resolve "$REGISTRY/lost/app:1.0")"
}

# A tag that was not there a moment ago, and then is, without ocistern: what `az acr build` does.
behind() {
    STORAGE=$WORK/storage/behind REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    sp_login
    fails oras_at resolve "$REGISTRY/behind/app:1"
    bounded skopeo copy --quiet --preserve-digests --dest-tls-verify=false --dest-creds "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" \
        "oci:$(single_image):app" "docker://127.0.0.1:$ACR_PORT/behind/app:1"
    wait_for 3 oras_at resolve "$REGISTRY/behind/app:1"
    same "digest" "$(acr_digest behind/app 1)" "$(oras_at resolve "$REGISTRY/behind/app:1")"
}

# What is public is served, what is private is not without a yes that still holds, and no push is said to be done.
away() {
    local status
    STORAGE=$WORK/storage/away REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    sp_login
    push_pull_oras public/app >/dev/null
    acr_control faults '{"reset":true,"count":-1,"listener":"registry"}' >/dev/null
    rm -f "$STORAGE/oras.json"
    push_pull_oras public/app >/dev/null
    sp_login || true
    fails push_oras away/app
    status=$(through POST /v2/away/app/blobs/uploads/ -u "$SP_APP_ID:$SP_PASSWD")
    [[ $status == 50[234] ]] || same status "502, 503 or 504" "$status"
    status=$(through GET /v2/stranger/app/manifests/1.0)
    [[ $status == 401 || $status == 50[234] ]] || same "status for a stranger" "401, 502, 503 or 504" "$status"
    acr_mend
    # The breaker lets it through again within seconds.
    wait_for 40 push_oras away/app
}
