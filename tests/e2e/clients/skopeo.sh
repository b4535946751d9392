# skopeo, by prefix and through a mirror in registries.conf.
# shellcheck shell=bash
# shellcheck source=tests/e2e/containers.sh
source "$E2E/containers.sh"

client_needs() { echo skopeo; }
client_version() { skopeo --version; }

client_fresh() {
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
}

client_pull() {
    local source file
    source=docker://$(source_of "$1" "$2")
    # Without the list of tags, for which it does not ask a mirror, and which ocistern always asks its upstream for.
    # What `inspect` says, and what a copy of everything wrote down, is the same.
    echo "manifest $(bounded skopeo inspect --tls-verify=false --no-tags --format '{{.Digest}}' "$source")"
    bounded skopeo copy --quiet --all --preserve-digests --src-tls-verify=false --digestfile "$STORAGE/digest" \
        "$source" "dir:$STORAGE/image"
    echo "manifest $(<"$STORAGE/digest")"
    for file in "$STORAGE"/image/*; do
        case ${file##*/} in
            version) ;;
            manifest.json) echo "manifest $(digest_of "$file")" ;;
            *.manifest.json) ;;
            *)
                same "blob ${file##*/}" "sha256:${file##*/}" "$(digest_of "$file")"
                # The other platform's own blobs are not of the item; their names were checked here.
                if expected "$2" blob | seen -xF "sha256:${file##*/}"; then echo "blob sha256:${file##*/}"; fi
                ;;
        esac
    done
}
