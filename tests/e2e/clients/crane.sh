# crane (go-containerregistry), by prefix and under a transparent host name.
# shellcheck shell=bash

client_needs() { go_tool crane; }
client_version() { echo "crane $("$(go_tool crane)" version)"; }
client_forms() { echo prefix hostname; }

client_items() {
    case $1 in
        prefix) echo image index digest schema2 basic bearer oci dist artifact chart ;;
        *) echo oci artifact ;;
    esac
}

crane_() { bounded "$(go_tool crane)" "$@"; }
client_start() { :; }
client_stop() { :; }

client_fresh() {
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
}

client_pull() {
    local repository name digest
    case $1 in
        prefix) repository=$OCISTERN/$(upstream_of "$2")/$(repository_of "$2") ;;
        hostname) repository=registry.e2e:$OCISTERN_PORT/$(repository_of "$2") ;;
    esac
    name=$repository$(reference "$2")
    # HEAD, then GET.
    echo "manifest $(crane_ digest --insecure "$name")"
    crane_ manifest --insecure "$name" >"$STORAGE/manifest"
    echo "manifest $(digest_of "$STORAGE/manifest")"
    cmp "$STORAGE/manifest" "$WORK/expect/$2.manifest"
    for digest in $(expected "$2" blob); do
        crane_ blob --insecure "$repository@$digest" >"$STORAGE/blob"
        same "blob" "$digest" "$(digest_of "$STORAGE/blob")"
        echo "blob $digest"
    done
    # A chart's or an artifact's layers are not file systems: `pull` is for images.
    case $2 in artifact | chart) return ;; esac
    crane_ pull --insecure --format=oci "$name" "$STORAGE/layout"
    layout_blobs "$STORAGE/layout" >/dev/null
    same "digest in the layout" "$(expected "$2" manifest)" "$(jq -r '.manifests[0].digest' "$STORAGE/layout/index.json")"
}
