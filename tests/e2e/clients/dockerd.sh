# Debian's dockerd (20.10) with containerd of its own, driven by Debian's client: `registry-mirrors` (ocistern's docker.io is
# a stand-in for Docker Hub), and by prefix.
# shellcheck shell=bash

client_needs() { echo dockerd /usr/bin/docker containerd; }
client_version() { printf '%s, client %s\n' "$(dockerd --version)" "$(/usr/bin/docker --version)"; }
client_forms() { echo mirror prefix; }

client_items() {
    case $1 in
        mirror) echo index digest schema2 ;;
        *) echo image basic bearer oci dist ;;
    esac
}

docker_() { bounded /usr/bin/docker --config "$STORAGE/client" --host "unix://$STORAGE/docker.sock" "$@"; }

client_start() {
    local arguments=()
    [[ $1 != mirror ]] || arguments=(--registry-mirror "http://$OCISTERN")
    echo '{}' >"$STORAGE/daemon.json"
    spawn dockerd dockerd --config-file "$STORAGE/daemon.json" --host "unix://$STORAGE/docker.sock" \
        --data-root "$STORAGE/data" --exec-root "$STORAGE/exec" --pidfile "$STORAGE/docker.pid" \
        --iptables=false --ip6tables=false --ip-forward=false --bridge=none --storage-driver overlay2 "${arguments[@]}"
    wait_for 30 docker_ version >/dev/null
}

client_stop() { halt dockerd; }

client_fresh() {
    local left
    docker_ system prune --all --force >/dev/null
    left=$(docker_ images --all --quiet)
    none "images left behind" "$left"
}

client_pull() {
    local name layer
    name=$(repository_of "$2")$(reference "$2")
    [[ $1 == mirror ]] || name=localhost:$OCISTERN_PORT/$(upstream_of "$2")/$name
    docker_ pull "$name" | sed -n 's/^Digest: /manifest /p'
    docker_ image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$name" | sed -n 's/.*@/manifest /p'
    # Saved layers are the diffs, byte for byte.
    rm -rf "$STORAGE/saved"
    mkdir -p "$STORAGE/saved"
    docker_ save "$name" | tar -x -C "$STORAGE/saved"
    for layer in "$STORAGE"/saved/*/layer.tar; do
        echo "diff $(digest_of "$layer")"
    done
}
