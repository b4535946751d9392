# containerd and ctr of any version: a daemon of its own, hosts.toml in each form. Sourced by clients/containerd*.sh,
# which set CONTAINERD and CTR; what is in CONTAINERD_CONFIG goes to the end of the daemon's configuration.
# shellcheck shell=bash
#
#   ns        [host."http://OCISTERN"]: /v2/NAME?ns=UPSTREAM
#   path      [host."http://OCISTERN/UPSTREAM"]: /UPSTREAM/v2/NAME?ns=UPSTREAM
#   override  [host."http://OCISTERN/v2/UPSTREAM"] with override_path: /v2/UPSTREAM/NAME?ns=UPSTREAM
#   prefix    no hosts.toml: OCISTERN/UPSTREAM/NAME

client_needs() { echo "$CONTAINERD $CTR"; }
client_version() { "$CONTAINERD" --version; }
client_forms() { echo ns path override prefix; }

client_items() {
    case $1 in
        ns) echo index digest schema2 basic bearer oci dist ;;
        prefix) echo image bearer ;;
        *) echo index basic ;;
    esac
}

# ctr 2 says on every call that this host's cgroups are old.
ctr_() { bounded "$CTR" --address "$STORAGE/containerd.sock" --namespace e2e "$@" 2> >(grep -v DEPRECATION >&2); }

client_start() {
    local upstream host extra=
    mkdir -p "$STORAGE/hosts"
    for upstream in "${!UPSTREAM_ADDRESS[@]}"; do
        case $1 in
            ns) host=http://$OCISTERN ;;
            path) host=http://$OCISTERN/$upstream ;;
            override)
                host=http://$OCISTERN/v2/$upstream
                extra='override_path = true'
                ;;
            prefix) continue ;;
        esac
        mkdir -p "$STORAGE/hosts/$upstream"
        # The server of last resort is a closed port, so that a failing mirror is a failing pull.
        cat >"$STORAGE/hosts/$upstream/hosts.toml" <<TOML
server = "http://127.0.0.1:1"

[host."$host"]
capabilities = ["pull", "resolve"]
$extra
TOML
    done
    cat >"$STORAGE/config.toml" <<TOML
version = 2
root = "$STORAGE/root"
state = "$STORAGE/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]

[grpc]
address = "$STORAGE/containerd.sock"

[ttrpc]
address = "$STORAGE/containerd.sock.ttrpc"

${CONTAINERD_CONFIG:-}
TOML
    PATH=$(dirname "$CONTAINERD"):$PATH spawn containerd "$CONTAINERD" --config "$STORAGE/config.toml"
    wait_for 20 ctr_ version >/dev/null
}

client_stop() { halt containerd; }

# Images away, and with them, by a synchronous collection, all content and snapshots.
client_fresh() {
    local images left
    mapfile -t images < <(ctr_ images ls --quiet)
    ((${#images[@]} == 0)) || ctr_ images rm --sync "${images[@]}" >/dev/null
    left=$(ctr_ content ls --quiet)
    none "content left behind" "$left"
}

client_pull() {
    local name arguments=(--platform linux/amd64) digest mounted
    name=$(upstream_of "$2")/$(repository_of "$2")$(reference "$2")
    if [[ $1 == prefix ]]; then
        name=$OCISTERN/$name
        arguments+=(--plain-http)
    else
        arguments+=(--hosts-dir "$STORAGE/hosts")
    fi
    ctr_ images pull "${arguments[@]}" "$name" >/dev/null
    ctr_ images ls "name==$name" | awk 'NR > 1 { print "manifest", $3 }'
    for digest in $(ctr_ content ls --quiet); do
        same "content of $digest" "$digest" "sha256:$(ctr_ content get "$digest" | sha256sum | cut -d' ' -f1)"
        if expected "$2" blob | seen -xF "$digest"; then echo "blob $digest"; fi
    done
    if [[ -n $(expected "$2" tree) ]]; then
        mounted=$STORAGE/mounted
        mkdir -p "$mounted"
        ctr_ images mount --platform linux/amd64 "$name" "$mounted" >/dev/null
        echo "tree $(tree_of "$mounted")"
        ctr_ images unmount --rm "$mounted" >/dev/null
    fi
}
