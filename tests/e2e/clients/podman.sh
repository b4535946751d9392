# podman with storage of its own, by prefix and through a mirror in registries.conf.
# shellcheck shell=bash
# shellcheck source=tests/e2e/containers.sh
source "$E2E/containers.sh"

client_needs() { echo podman; }
client_version() { podman --version; }

podman_() {
    bounded podman --root "$STORAGE/root" --runroot /run/podman --tmpdir /run/podman/tmp --storage-driver overlay \
        --cgroup-manager cgroupfs --events-backend none "$@"
}

client_fresh() {
    [[ ! -d $STORAGE/root ]] || podman_ rmi --all --force >/dev/null
    mkdir -p "$STORAGE"
}

client_pull() {
    local source id mounted
    source=$(source_of "$1" "$2")
    id=$(podman_ pull --quiet --tls-verify=false "$source")
    # RepoDigests hold what was asked for: of an index its own digest and that of the platform's manifest.
    podman_ image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$id" | sed -n 's/.*@/digest /p' | sort -u >"$STORAGE/digests"
    same "digests that podman reports" \
        "$({ expected "$2" manifest; expected "$2" platform; } | sed 's/^/digest /' | sort -u)" "$(<"$STORAGE/digests")"
    echo "manifest $(expected "$2" manifest)"
    podman_ image inspect --format '{{range .RootFS.Layers}}diff {{println .}}{{end}}' "$id" | sed '/^$/d'
    mounted=$(podman_ image mount "$id")
    if [[ -n $(expected "$2" tree) ]]; then echo "tree $(tree_of "$mounted")"; fi
    podman_ image unmount "$id" >/dev/null
}
