# Helm: a chart as an OCI artifact.
# shellcheck shell=bash

client_needs() { go_tool helm; }
client_version() { echo "helm $("$(go_tool helm)" version --short)"; }
client_forms() { echo prefix; }
client_items() { echo chart; }
client_start() { :; }
client_stop() { :; }

client_fresh() {
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
}

client_pull() {
    local name version config
    name=oci://$OCISTERN/$(upstream_of "$2")/$(repository_of "$2")
    version=$(reference "$2")
    bounded "$(go_tool helm)" pull --plain-http "$name" --version "${version#:}" --destination "$STORAGE" 2>&1 | sed -n 's/^Digest: /manifest /p'
    echo "blob $(digest_of "$STORAGE/cistern-demo-${version#:}.tgz")"
    # The configuration, which holds Chart.yaml: shown from the registry.
    bounded "$(go_tool helm)" show chart --plain-http "$name" --version "${version#:}" >"$STORAGE/chart.yaml" 2>/dev/null
    grep -q '^name: cistern-demo$' "$STORAGE/chart.yaml"
    # Helm keeps only the chart; its configuration is fetched by digest to be compared.
    config=$(jq -r .config.digest "$WORK/expect/$2.manifest")
    curl -fsS -o "$STORAGE/config" "http://$OCISTERN/v2/$(upstream_of "$2")/$(repository_of "$2")/blobs/$config"
    echo "blob $(digest_of "$STORAGE/config")"
}
