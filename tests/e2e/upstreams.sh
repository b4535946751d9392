# The upstream registries and what is pushed to them. Sourced by run.
# shellcheck shell=bash
#
#   hub     Debian's docker-registry, open; ocistern's docker.io
#   basic   the same with htpasswd; basic.test
#   bearer  the same with tokens of tokenserver; bearer.test
#   oci     go-containerregistry's registry with the referrers API; oci.test
#   dist    distribution v3; dist.test

# The network namespace is the suite's own, so ports are free by construction.
OCISTERN_PORT=5000 ADMIN_PORT=5080
HUB_PORT=5001 BASIC_PORT=5002 BEARER_PORT=5003 TOKEN_PORT=5004 OCI_PORT=5005 DIST_PORT=5006
UPSTREAMS=(hub basic bearer oci dist)
PULL_USER=puller PULL_PASSWORD='pa55 wörd:with/signs'

declare -A UPSTREAM_ADDRESS=(
    [docker.io]=127.0.0.1:$HUB_PORT [basic.test]=127.0.0.1:$BASIC_PORT [bearer.test]=127.0.0.1:$BEARER_PORT
    [oci.test]=127.0.0.1:$OCI_PORT [dist.test]=127.0.0.1:$DIST_PORT
)
declare -A UPSTREAM_PROCESS=([docker.io]=hub [basic.test]=basic [bearer.test]=bearer [oci.test]=oci [dist.test]=dist)

# What is pulled: ITEM → upstream, repository, reference, name of its description in the content.
declare -A ITEM=(
    [image]='docker.io library/debian bookworm debian'
    [index]='docker.io library/debian multi multi'
    [schema2]='docker.io library/debian schema2 schema2'
    [basic]='basic.test team/app v1 app'
    [bearer]='bearer.test team/app v1 app'
    [oci]='oci.test samples/app v1 app'
    [dist]='dist.test library/app v1 app'
    [digest]='docker.io library/debian @ multi'
    [big]='docker.io library/big 1 big'
    [artifact]='oci.test samples/artifact 1.0 artifact'
    [chart]='oci.test charts/cistern-demo 0.1.0 chart'
)

# distribution_config PORT DIRECTORY [AUTH]: a configuration file for docker-registry or distribution v3.
distribution_config() {
    cat <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $2}
  delete: {enabled: true}
  maintenance: {uploadpurging: {enabled: false}}
http: {addr: "127.0.0.1:$1", secret: end-to-end}
${3:-}
YAML
}

prepare_upstreams() {
    mkdir -p "$WORK/upstream"/{hub,basic,bearer,oci,dist} "$WORK/secret"
    printf '%s\n' "$PULL_PASSWORD" >"$WORK/secret/password"
    htpasswd -nbB "$PULL_USER" "$PULL_PASSWORD" >"$WORK/secret/htpasswd"
    distribution_config $HUB_PORT "$WORK/upstream/hub" >"$WORK/upstream/hub.yml"
    distribution_config $BASIC_PORT "$WORK/upstream/basic" \
        "auth: {htpasswd: {realm: basic-realm, path: $WORK/secret/htpasswd}}" >"$WORK/upstream/basic.yml"
    distribution_config $BEARER_PORT "$WORK/upstream/bearer" \
        "auth: {token: {realm: 'http://127.0.0.1:$TOKEN_PORT/token', service: e2e-registry, issuer: e2e-tokenserver, rootcertbundle: $WORK/secret/bundle.pem}}" \
        >"$WORK/upstream/bearer.yml"
    distribution_config $DIST_PORT "$WORK/upstream/dist" >"$WORK/upstream/dist.yml"
}

start_upstreams() {
    spawn token "$WORK/bin/tokenserver" -listen 127.0.0.1:$TOKEN_PORT -user "$PULL_USER" \
        -password-file "$WORK/secret/password" -bundle "$WORK/secret/bundle.pem"
    wait_http token http://127.0.0.1:$TOKEN_PORT/
    local name
    for name in hub basic bearer; do spawn "$name" docker-registry serve "$WORK/upstream/$name.yml"; done
    spawn oci "$WORK/bin/registry" -listen 127.0.0.1:$OCI_PORT -root "$WORK/upstream/oci"
    OTEL_TRACES_EXPORTER=none spawn dist "$(go_tool registry)" serve "$WORK/upstream/dist.yml"
    wait_http hub http://127.0.0.1:$HUB_PORT/v2/
    wait_http basic http://127.0.0.1:$BASIC_PORT/v2/
    wait_http bearer http://127.0.0.1:$BEARER_PORT/v2/
    wait_http oci http://127.0.0.1:$OCI_PORT/v2/
    wait_http dist http://127.0.0.1:$DIST_PORT/v2/
}

# Killed, not drained: what a client sees is a registry that is gone.
stop_upstreams() {
    local name
    for name in token "${UPSTREAMS[@]}"; do halt "$name" KILL; done
}

# push_content: everything to where ITEM says it is, straight to the upstreams, with real clients.
push_content() {
    local to copy=(bounded skopeo copy --quiet --all --preserve-digests --dest-tls-verify=false)
    "${copy[@]}" "oci:$CONTENT/layout:debian" "docker://${UPSTREAM_ADDRESS[docker.io]}/library/debian:bookworm"
    "${copy[@]}" "oci:$CONTENT/layout:multi" "docker://${UPSTREAM_ADDRESS[docker.io]}/library/debian:multi"
    "${copy[@]}" "oci:$CONTENT/layout:big" "docker://${UPSTREAM_ADDRESS[docker.io]}/library/big:1"
    bounded skopeo copy --quiet --format v2s2 --dest-tls-verify=false "oci:$CONTENT/layout:debian" \
        "docker://${UPSTREAM_ADDRESS[docker.io]}/library/debian:schema2"
    for to in basic.test bearer.test; do
        "${copy[@]}" --dest-creds "$PULL_USER:$PULL_PASSWORD" "oci:$CONTENT/layout:app" \
            "docker://${UPSTREAM_ADDRESS[$to]}/team/app:v1"
    done
    "${copy[@]}" "oci:$CONTENT/layout:app" "docker://${UPSTREAM_ADDRESS[oci.test]}/samples/app:v1"
    "${copy[@]}" "oci:$CONTENT/layout:app" "docker://${UPSTREAM_ADDRESS[dist.test]}/library/app:v1"
    "${copy[@]}" "oci:$CONTENT/layout:app" "docker://${UPSTREAM_ADDRESS[dist.test]}/library/app:v2"
    # Artifacts; a signature refers to samples/app on the upstream with the referrers API, and to library/debian on the
    # one without (there the client writes the fallback tag).
    (
        cd "$CONTENT/artifact" || exit 1
        bounded "$(go_tool oras)" push --plain-http --artifact-type application/vnd.example.e2e.v1 \
            "${UPSTREAM_ADDRESS[oci.test]}/samples/artifact:1.0" artifact.txt:text/plain data.bin:application/octet-stream
        for to in "${UPSTREAM_ADDRESS[oci.test]}/samples/app:v1" "${UPSTREAM_ADDRESS[docker.io]}/library/debian:bookworm"; do
            bounded "$(go_tool oras)" attach --plain-http --artifact-type application/vnd.example.signature.v1+json \
                "$to" signature.json:application/json
        done
    )
    bounded "$(go_tool helm)" push --plain-http "$CONTENT"/chart/cistern-demo-0.1.0.tgz "oci://${UPSTREAM_ADDRESS[oci.test]}/charts"
}

# direct ITEM: its name upstream, without ocistern.
direct() {
    local item=$1
    [[ $item != digest ]] || item=index
    printf '%s/%s%s\n' "${UPSTREAM_ADDRESS[$(upstream_of "$item")]}" "$(repository_of "$item")" "$(reference "$item")"
}

# manifest_upstream ITEM, digest_upstream ITEM: what upstream says. Of the private ones skopeo asks: crane refuses a
# token server on loopback.
manifest_upstream() {
    case $1 in
        basic | bearer) bounded skopeo inspect --raw --tls-verify=false --creds "$PULL_USER:$PULL_PASSWORD" "docker://$(direct "$1")" ;;
        *) bounded "$(go_tool crane)" manifest --insecure "$(direct "$1")" ;;
    esac
}

digest_upstream() {
    case $1 in
        basic | bearer)
            bounded skopeo inspect --format '{{.Digest}}' --tls-verify=false --creds "$PULL_USER:$PULL_PASSWORD" "docker://$(direct "$1")"
            ;;
        *) bounded "$(go_tool crane)" digest --insecure "$(direct "$1")" ;;
    esac
}

# oci_digest REPOSITORY TAG: what oci.test has there; nothing if it says that it has not.
oci_digest() {
    local code head=$WORK/tmp/oci-head
    code=$(curl -sS -m 20 -I -o "$head" -w '%{http_code}' "http://${UPSTREAM_ADDRESS[oci.test]}/v2/$1/manifests/$2")
    [[ $code == 200 || $code == 404 ]] || same "status of $1:$2 upstream" "200 or 404" "$code"
    [[ $code == 404 ]] || tr -d '\r' <"$head" | sed -n 's/^docker-content-digest: //Ip'
}

# expect_content: writes expect/ITEM, from the content's own description and from what upstream itself says.
expect_content() {
    local item name digest manifest
    mkdir -p "$WORK/expect"
    for item in "${!ITEM[@]}"; do
        name=${ITEM[$item]##* }
        manifest=$WORK/expect/$item.manifest
        manifest_upstream "$item" >"$manifest"
        digest=$(digest_upstream "$item")
        same "digest of $item upstream" "$(digest_of "$manifest")" "$digest"
        if [[ -f $CONTENT/items/$name ]]; then
            cp "$CONTENT/items/$name" "$WORK/expect/$item"
            same "digest of $item upstream" "$(awk '$1 == "manifest" { print $2 }' "$WORK/expect/$item")" "$digest"
        else
            {
                printf 'manifest %s\nplatform %s\n' "$digest" "$digest"
                jq -r '"blob " + (.config.digest, .layers[].digest)' "$manifest"
                # The same root file system as the image that it was made from.
                [[ $name != schema2 ]] || sed -n '/^diff\|^tree/p' "$CONTENT/items/debian"
            } >"$WORK/expect/$item"
        fi
        # What a pull moves at least: the layers.
        echo "bytes $(layer_bytes "$item")" >>"$WORK/expect/$item"
    done
}

layer_bytes() {
    local manifest=$WORK/expect/$1.manifest
    if jq -e .manifests "$manifest" >/dev/null; then
        manifest=$CONTENT/layout/blobs/sha256/$(expected "$1" platform | cut -d: -f2)
    fi
    jq '[.layers[].size] | add' "$manifest"
}

# reference ITEM: `:TAG`, or `@DIGEST` for an item that is pulled by digest.
reference() {
    local reference
    read -r _ _ reference _ <<<"${ITEM[$1]}"
    if [[ $reference == @ ]]; then
        printf '@%s\n' "$(expected "$1" manifest)"
    else
        printf ':%s\n' "$reference"
    fi
}

# upstream_of ITEM, repository_of ITEM
upstream_of() { printf '%s\n' "${ITEM[$1]%% *}"; }
repository_of() {
    local repository
    read -r _ repository _ <<<"${ITEM[$1]}"
    printf '%s\n' "$repository"
}

# expected ITEM KIND: the digests that the item's description holds under KIND.
expected() { awk -v kind="$2" '$1 == kind { print $2 }' "$WORK/expect/$1"; }

# --- access logs -----------------------------------------------------------------------------------------------------

# requests UPSTREAM: lines of its access log so far.
requests() { grep -c '" [0-9][0-9][0-9] ' "$WORK/log/${UPSTREAM_PROCESS[$1]}.out" || true; }

# all_requests: the same for all upstreams and the token server.
all_requests() { cat "$WORK"/log/{hub,basic,bearer,oci,dist,token}.out | grep -c '" [0-9][0-9][0-9] ' || true; }

# downloads: GETs of manifests and blobs in all upstreams' logs so far.
downloads() { cat "$WORK"/log/{hub,basic,bearer,oci,dist}.out | grep -cE '"GET /v2/[^ ]+/(manifests|blobs)/[^ ]+ HTTP/[0-9.]+" 2' || true; }
