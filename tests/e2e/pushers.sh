# Clients that push: the same few steps for each, so that one check can send them all at one registry. Sourced by checks.
# shellcheck shell=bash
#
# Each NAME has push_login_NAME, push_NAME, push_pull_NAME, push_delete_NAME. They know $REGISTRY (what stands before the
# repository, such as localhost:5000/bearer.test), $STORAGE (a directory that is empty at the start) and $PLAIN (1: no TLS).
# push_NAME and push_pull_NAME print `manifest DIGEST`; a pull begins with nothing on the client's side and compares what came.

PUSHERS=(oras crane skopeo podman buildah helm docker ctr)

# server_of: the host and port of $REGISTRY, with which one logs in.
server_of() { printf '%s\n' "${REGISTRY%%/*}"; }

# repository_for NAME
repository_for() { printf 'push/%s\n' "$1"; }

# single_image: a layout with nothing but the small image, for clients that push whole layouts.
single_image() {
    [[ -d $WORK/single ]] || bounded skopeo copy --quiet --preserve-digests "oci:$CONTENT/layout:app" "oci:$WORK/single:app"
    printf '%s\n' "$WORK/single"
}

# push_flow NAME USER PASSWORD DIGEST_OF: login, push, pull, delete. DIGEST_OF is a function that says what upstream has
# under a repository and tag.
push_flow() {
    local name=$1 user=$2 password=$3 upstream=$4 pushed pulled served repository tag=1.0
    repository=$(repository_for "$name")
    # Of a chart it is the version.
    [[ $name != helm ]] || tag=1.0.0
    mkdir -p "$STORAGE"
    [[ ${LOGIN_IS_CHECKED:-1} == 0 ]] || fails "push_login_$name" "$user" wrong-password
    "push_login_$name" "$user" "$password"
    pushed=$("push_$name" "$repository")
    same "digest upstream" "${pushed#manifest }" "$("$upstream" "$repository" "$tag")"
    served=$(metric ocistern_upstream_received_bytes_total)
    pulled=$("push_pull_$name" "$repository")
    same "digest pulled" "$pushed" "$pulled"
    # What was pushed is there: a pull moves no content from upstream.
    at_most "bytes received for a pull of what was pushed" 20000 $(($(metric ocistern_upstream_received_bytes_total) - served))
    [[ $(type -t "push_delete_$name") == function ]] || return 0
    "push_delete_$name" "$repository" "${pushed#manifest }"
    is_gone "$upstream" "$repository" "$tag"
    fails "push_pull_$name" "$repository"
}

plain() { if [[ $PLAIN == 1 ]]; then printf '%s\n' "$@"; fi; }

# --- ORAS ------------------------------------------------------------------------------------------------------------

# oras_at COMMAND [ARGUMENT…]
oras_at() {
    local command=$1 flags
    shift
    mapfile -t flags < <(plain --plain-http)
    # shellcheck disable=SC2086 # two words for subcommands
    bounded "$(go_tool oras)" $command "${flags[@]}" --registry-config "$STORAGE/oras.json" "$@"
}
# oras_cp FROM TO, with all that refers to it.
oras_cp() {
    local flags
    mapfile -t flags < <(plain --from-plain-http --to-plain-http)
    bounded "$(go_tool oras)" cp --recursive "${flags[@]}" --from-registry-config "$STORAGE/oras.json" --to-registry-config "$STORAGE/oras.json" "$1" "$2"
}
push_login_oras() { printf %s "$2" | oras_at login --username "$1" --password-stdin "$(server_of)"; }
push_oras() {
    (cd "$CONTENT/artifact" && oras_at push --artifact-type application/vnd.example.e2e.v1 "$REGISTRY/$1:1.0" \
        artifact.txt:text/plain data.bin:application/octet-stream) | sed -n 's/^Digest: /manifest /p'
}
push_pull_oras() {
    rm -rf "$STORAGE/files"
    oras_at pull --output "$STORAGE/files" "$REGISTRY/$1:1.0" | sed -n 's/^Digest: /manifest /p'
    cmp "$STORAGE/files/artifact.txt" "$CONTENT/artifact/artifact.txt"
    cmp "$STORAGE/files/data.bin" "$CONTENT/artifact/data.bin"
}
# attached PREFIX DIGEST_OF: PREFIX/app gets a signature that refers to it, PREFIX/copy is a copy with all of that; prints the
# digest of the signature.
attached() {
    local subject found
    subject=$(push_oras "$1/app")
    (cd "$CONTENT/artifact" && oras_at attach --artifact-type application/vnd.example.signature.v1+json "$REGISTRY/$1/app:1.0" signature.json:application/json) >/dev/null
    found=$(referring "$1/app:1.0")
    oras_at pull --output "$STORAGE/signature" "$REGISTRY/$1/app@$found" >/dev/null
    cmp "$STORAGE/signature/signature.json" "$CONTENT/artifact/signature.json"
    oras_cp "$REGISTRY/$1/app:1.0" "$REGISTRY/$1/copy:2.0" >/dev/null
    same "digest of the copy upstream" "${subject#manifest }" "$("$2" "$1/copy" 2.0)"
    same "referrers of the copy" "$found" "$(referring "$1/copy:2.0")"
    printf '%s\n' "$found"
}
referring() { oras_at discover --format json "$REGISTRY/$1" | jq -r '.. | .referrers? // empty | .[].digest'; }
# signed_by_tag REPOSITORY DIGEST_OF: as cosign 2 does it, by a tag made of the digest; asked for before it is there.
signed_by_tag() {
    local subject tag
    subject=$(push_oras "$1")
    tag=sha256-${subject#manifest sha256:}.sig
    fails oras_at 'manifest fetch' "$REGISTRY/$1:$tag"
    (cd "$CONTENT/artifact" && oras_at push "$REGISTRY/$1:$tag" signature.json:application/json)
    oras_at 'manifest fetch' --descriptor "$REGISTRY/$1:$tag" | jq -r .digest | seen -x "$("$2" "$1" "$tag")"
    # Moved, and seen to be moved.
    (cd "$CONTENT/artifact" && oras_at push "$REGISTRY/$1:$tag" signature.json:application/json artifact.txt:text/plain)
    oras_at 'manifest fetch' --descriptor "$REGISTRY/$1:$tag" | jq -r .digest | seen -x "$("$2" "$1" "$tag")"
    oras_at 'repo tags' "$REGISTRY/$1" | seen -x "$tag"
}
push_delete_oras() { oras_at 'manifest delete' --force "$REGISTRY/$1@$2"; }

# --- crane -----------------------------------------------------------------------------------------------------------

crane_at() {
    local command=$1 flags
    shift
    mapfile -t flags < <(plain --insecure)
    # shellcheck disable=SC2086 # two words for subcommands
    DOCKER_CONFIG=$STORAGE/crane bounded "$(go_tool crane)" $command "${flags[@]}" "$@"
}
# crane only writes the password down; the first request says whether it is right.
push_login_crane() {
    mkdir -p "$STORAGE/crane"
    printf %s "$2" | crane_at 'auth login' --username "$1" --password-stdin "$(server_of)"
    crane_at catalog "$(server_of)" >/dev/null || crane_at digest "$REGISTRY/push/none:1" 2>&1 | seen 'MANIFEST_UNKNOWN\|NAME_UNKNOWN'
}
push_crane() {
    crane_at push "$(single_image)" "$REGISTRY/$1:1.0" | sed 's/.*@/manifest /'
    crane_at ls "$REGISTRY/$1" | seen -x 1.0
}
push_pull_crane() {
    rm -rf "$STORAGE/layout"
    crane_at pull --format=oci "$REGISTRY/$1:1.0" "$STORAGE/layout"
    layout_blobs "$STORAGE/layout" >/dev/null
    jq -r '"manifest " + .manifests[0].digest' "$STORAGE/layout/index.json"
}
push_delete_crane() { crane_at delete "$REGISTRY/$1@$2"; }

# --- skopeo, podman, buildah -------------------------------------------------------------------------------------------

push_login_skopeo() { printf %s "$2" | bounded skopeo login --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" --username "$1" --password-stdin "$(server_of)"; }
push_skopeo() {
    bounded skopeo copy --quiet --preserve-digests --authfile "$STORAGE/auth.json" --dest-tls-verify="$(verify)" \
        --digestfile "$STORAGE/digest" "oci:$(single_image):app" "docker://$REGISTRY/$1:1.0"
    printf 'manifest %s\n' "$(<"$STORAGE/digest")"
}
push_pull_skopeo() {
    rm -rf "$STORAGE/image"
    bounded skopeo copy --quiet --preserve-digests --authfile "$STORAGE/auth.json" --src-tls-verify="$(verify)" \
        --digestfile "$STORAGE/pulled" "docker://$REGISTRY/$1:1.0" "oci:$STORAGE/image:app"
    layout_blobs "$STORAGE/image" >/dev/null
    printf 'manifest %s\n' "$(<"$STORAGE/pulled")"
}
push_delete_skopeo() { bounded skopeo delete --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" "docker://$REGISTRY/$1@$2"; }

verify() { if [[ $PLAIN == 1 ]]; then echo false; else echo true; fi; }

podman_at() {
    bounded podman --root "$STORAGE/root" --runroot /run/podman --tmpdir /run/podman/tmp --storage-driver overlay \
        --cgroup-manager cgroupfs --events-backend none "$@"
}
push_login_podman() { printf %s "$2" | podman_at login --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" --username "$1" --password-stdin "$(server_of)"; }
push_podman() {
    tar -C "$CONTENT/artifact" -c . | podman_at import --quiet - imported:1 >/dev/null
    podman_at push --quiet --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" --digestfile "$STORAGE/digest" imported:1 "docker://$REGISTRY/$1:1.0"
    podman_at rmi --all --force >/dev/null
    printf 'manifest %s\n' "$(<"$STORAGE/digest")"
}
push_pull_podman() {
    podman_at rmi --all --force >/dev/null
    podman_at pull --quiet --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" "$REGISTRY/$1:1.0" >/dev/null
    podman_at image inspect --format '{{.Digest}}' "$REGISTRY/$1:1.0" | sed 's/^/manifest /'
}

buildah_at() { bounded buildah --root "$STORAGE/root" --runroot /run/buildah --storage-driver overlay "$@"; }
push_login_buildah() { printf %s "$2" | buildah_at login --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" --username "$1" --password-stdin "$(server_of)" >&2; }
push_buildah() {
    local container
    container=$(buildah_at from scratch)
    buildah_at copy --quiet "$container" "$CONTENT/artifact" / >/dev/null
    buildah_at commit --quiet "$container" built >/dev/null
    buildah_at push --quiet --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" --digestfile "$STORAGE/digest" built "docker://$REGISTRY/$1:1.0"
    printf 'manifest %s\n' "$(<"$STORAGE/digest")"
}
push_pull_buildah() {
    buildah_at rm --all >/dev/null
    buildah_at rmi --all --force >/dev/null
    buildah_at pull --quiet --authfile "$STORAGE/auth.json" --tls-verify="$(verify)" "$REGISTRY/$1:1.0" >/dev/null
    buildah_at images --json | jq -r '"manifest " + .[0].digest'
}

# --- Helm ------------------------------------------------------------------------------------------------------------

helm_at() {
    local command=$1 flags
    shift
    mapfile -t flags < <(plain --plain-http)
    HELM_REGISTRY_CONFIG=$STORAGE/helm.json HELM_CACHE_HOME=$STORAGE/helm bounded "$(go_tool helm)" "$command" "${flags[@]}" "$@"
}
push_login_helm() {
    local flags
    mapfile -t flags < <(plain --plain-http)
    printf %s "$2" | HELM_REGISTRY_CONFIG=$STORAGE/helm.json bounded "$(go_tool helm)" registry login "${flags[@]}" --username "$1" --password-stdin "$(server_of)"
}

push_helm() {
    rm -rf "$STORAGE/chart"
    mkdir -p "$STORAGE/chart"
    tar -xzf "$CONTENT/chart/cistern-demo-0.1.0.tgz" -C "$STORAGE/chart"
    sed -i "s/^name: .*/name: ${1##*/}/; s/^version: .*/version: 1.0.0/" "$STORAGE/chart/cistern-demo/Chart.yaml"
    HOME=$STORAGE bounded "$(go_tool helm)" package "$STORAGE/chart/cistern-demo" --destination "$STORAGE/chart" >/dev/null
    helm_at push "$STORAGE/chart/${1##*/}-1.0.0.tgz" "oci://$REGISTRY/${1%/*}" 2>&1 | sed -n 's/^Digest: /manifest /p'
}
push_pull_helm() {
    rm -rf "$STORAGE/pulled"
    mkdir -p "$STORAGE/pulled"
    helm_at pull "oci://$REGISTRY/$1" --version 1.0.0 --destination "$STORAGE/pulled" 2>&1 | sed -n 's/^Digest: /manifest /p'
    cmp "$STORAGE/pulled/${1##*/}-1.0.0.tgz" "$STORAGE/chart/${1##*/}-1.0.0.tgz"
}

# --- docker, and containerd's ctr: their daemons are started by docker_start and ctr_start ---------------------------------

docker_at() { bounded /usr/bin/docker --config "$STORAGE/client" --host "unix://$WORK/storage/dockerd/docker.sock" "$@"; }
docker_start() {
    local at=$WORK/storage/dockerd
    rm -rf "$at"
    mkdir -p "$at"
    echo '{}' >"$at/daemon.json"
    spawn dockerd dockerd --config-file "$at/daemon.json" --host "unix://$at/docker.sock" --data-root "$at/data" \
        --exec-root "$at/exec" --pidfile "$at/docker.pid" --iptables=false --ip6tables=false --ip-forward=false --bridge=none \
        --storage-driver overlay2
    STORAGE=$at wait_for 30 docker_at version >/dev/null
    tar -C "$CONTENT/artifact" -c . | STORAGE=$at docker_at import - imported:1 >/dev/null
}
docker_stop() { halt dockerd; }
push_login_docker() { printf %s "$2" | docker_at login --username "$1" --password-stdin "$(server_of)"; }
push_docker() {
    docker_at tag imported:1 "$REGISTRY/$1:1.0"
    docker_at push "$REGISTRY/$1:1.0" | sed -n 's/.* digest: \(sha256:[0-9a-f]*\) .*/manifest \1/p'
}
push_pull_docker() {
    docker_at image rm --force "$REGISTRY/$1:1.0" >/dev/null
    docker_at pull "$REGISTRY/$1:1.0" | sed -n 's/^Digest: /manifest /p'
}

ctr_at() { bounded ctr --address "$WORK/storage/containerd/containerd.sock" --namespace e2e "$@"; }
ctr_start() {
    local at=$WORK/storage/containerd
    rm -rf "$at"
    mkdir -p "$at"
    cat >"$at/config.toml" <<TOML
version = 2
root = "$at/root"
state = "$at/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$at/containerd.sock"
TOML
    spawn containerd containerd --config "$at/config.toml"
    wait_for 30 ctr_at version >/dev/null
}
ctr_stop() { halt containerd; }
# It has no login: the password goes with every command; the first one shows whether it is right.
push_login_ctr() {
    printf %s "$1:$2" >"$STORAGE/user"
    bounded curl -fsS -u "$1:$2" -o /dev/null "http$([[ $PLAIN == 1 ]] || echo s)://$(server_of)/v2/"
}
push_ctr() {
    local flags
    mapfile -t flags < <(plain --plain-http)
    tar -C "$(single_image)" -c . | ctr_at images import --index-name "$REGISTRY/$1:1.0" - >/dev/null
    ctr_at images push "${flags[@]}" --user "$(<"$STORAGE/user")" "$REGISTRY/$1:1.0" >/dev/null
    ctr_at images ls | awk -v name="$REGISTRY/$1:1.0" '$1 == name { print "manifest " $3 }'
}
push_pull_ctr() {
    local flags
    mapfile -t flags < <(plain --plain-http)
    ctr_at images ls --quiet | xargs -r -n 1 bash -c 'ctr --address "$0" --namespace e2e images rm --sync "$1" >/dev/null' "$WORK/storage/containerd/containerd.sock"
    ctr_at images pull "${flags[@]}" --user "$(<"$STORAGE/user")" "$REGISTRY/$1:1.0" >/dev/null
    ctr_at images ls | awk -v name="$REGISTRY/$1:1.0" '$1 == name { print "manifest " $3 }'
}
