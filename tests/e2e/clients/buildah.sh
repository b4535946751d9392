# buildah with storage of its own, by prefix and through a mirror in registries.conf.
# shellcheck shell=bash
# shellcheck source=tests/e2e/containers.sh
source "$E2E/containers.sh"

client_needs() { echo buildah; }
client_version() { buildah --version; }
client_items() { echo index bearer; }

buildah_() { bounded buildah --root "$STORAGE/root" --runroot /run/buildah --storage-driver overlay "$@"; }

client_fresh() {
    if [[ -d $STORAGE/root ]]; then
        buildah_ rm --all >/dev/null
        buildah_ rmi --all --force >/dev/null
    fi
    mkdir -p "$STORAGE"
}

# A working container from the image: what a `FROM` line does.
client_pull() {
    local container mounted
    container=$(buildah_ from --quiet --pull --tls-verify=false "$(source_of "$1" "$2")")
    printf 'platform %s\n' "$(buildah_ inspect --format '{{.FromImageDigest}}' "$container")"
    buildah_ images --json >&2
    printf 'manifest %s\n' "$(buildah_ images --json | jq -r '.[0].digest')"
    buildah_ inspect --format '{{range .OCIv1.RootFS.DiffIDs}}diff {{println .}}{{end}}' "$container" | sed '/^$/d'
    mounted=$(buildah_ mount "$container")
    if [[ -n $(expected "$2" tree) ]]; then echo "tree $(tree_of "$mounted")"; fi
    buildah_ umount "$container" >/dev/null
}
