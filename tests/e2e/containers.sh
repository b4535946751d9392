# What skopeo, podman and buildah have in common: a registries.conf, and how a source is written. Sourced by their files.
# shellcheck shell=bash

# The suite's /etc is an overlay of its own.
REGISTRIES_CONF=/etc/containers/registries.conf.d/e2e.conf

client_forms() { echo prefix mirror; }
client_items() {
    case $1 in
        prefix) echo image index digest schema2 basic bearer oci dist ;;
        mirror) echo index digest basic bearer ;;
    esac
}

# write_registries_conf: ocistern as mirror of every upstream. The original is a closed port, so that a failing mirror
# is a failing pull.
write_registries_conf() {
    local upstream
    for upstream in "${!UPSTREAM_ADDRESS[@]}"; do
        cat <<TOML
[[registry]]
prefix = "$upstream"
location = "127.0.0.1:1"
insecure = true

[[registry.mirror]]
location = "$OCISTERN/$upstream"
insecure = true

TOML
    done >"$REGISTRIES_CONF"
}

client_start() {
    rm -f "$REGISTRIES_CONF"
    [[ $1 != mirror ]] || write_registries_conf
}

client_stop() { :; }

# source_of FORM ITEM: the name of the item in that form of address.
source_of() {
    local name
    name=$(upstream_of "$2")/$(repository_of "$2")$(reference "$2")
    if [[ $1 == prefix ]]; then name=$OCISTERN/$name; fi
    printf '%s\n' "$name"
}
