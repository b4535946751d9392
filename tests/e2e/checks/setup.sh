# `ocistern setup`: docker, containerd (ctr, and as Kubernetes pulls), podman, skopeo, BuildKit and ORAS pull through ocistern
# after nothing but this command, and after --undo their files are as they were. Then the same under a registry's own name,
# with a private CA made by `ocistern setup ca`. What a mirror falls back to is a closed port, so a pull past ocistern fails.
# shellcheck shell=bash

OWN_NAME=oci.test
SETUP_TLS=$WORK/setup-tls
# What there may be before, so that there is something to keep.
DAEMON_JSON='{
    "log-driver": "none",
    "registry-mirrors": ["http://127.0.0.1:1"],
    "max-concurrent-downloads": 2
}'

check_needs() { echo dockerd /usr/bin/docker containerd podman skopeo; }

check() {
    # Each finds an empty store.
    (with_docker)
    (CONTAINERD=/usr/bin/containerd CTR=/usr/bin/ctr with_containerd containerd)
    (CONTAINERD=$(go_tool containerd) CTR=$(go_tool ctr) with_containerd containerd2)
    (with_podman)
    (with_buildkit)
    try "setup oras cistern" cistern_start
    try "setup oras" oras_by_the_printed_line
    try "setup shows without writing" shows_without_writing
    try "setup refuses" refuses
    try "setup stop" cistern_stop
    try "setup ca" private_ca
    (under_its_own_name)
    try "setup ca renews" renewal
    try "setup ca stop" cistern_stop
    clean
}

setup() { "$OCISTERN_BIN" setup "$@" --config "$WORK/ocistern.toml"; }

# state_of DIRECTORY: everything in there, to be compared; but for what dockerd (a key) and podman (a directory) make themselves.
state_of() {
    [[ -d $1 ]] || return 0
    (
        cd "$1" || exit 1
        find . -not -name key.json -not -path './networks*' -printf '%y %m %p\n' | sort
        find . -not -name key.json -not -path './networks*' -type f -print0 | sort -z | xargs -0 -r sha256sum
    )
}

# written CLIENT DIRECTORY: it is written, a second time changes nothing.
written() {
    state_of "$2" >"$WORK/setup-$1.before"
    setup "$1" --write
    state_of "$2" >"$WORK/setup-$1.once"
    fails cmp --silent "$WORK/setup-$1.before" "$WORK/setup-$1.once"
    setup "$1" --write | seen -F "$1: nothing to change"
    same "files after the second time" "$(<"$WORK/setup-$1.once")" "$(state_of "$2")"
}

# undone CLIENT DIRECTORY: all is as it was before.
undone() {
    local before
    setup "$1" --undo
    before=$(<"$WORK/setup-$1.before")
    if [[ -n $before ]]; then
        same "files after --undo" "$before" "$(state_of "$2")"
    else
        none "files after --undo" "$(state_of "$2")"
    fi
    setup "$1" --undo | seen -F "$1: nothing to put back"
}

storage() {
    STORAGE=$WORK/storage/setup-$1
    rm -rf "$STORAGE"
    mkdir -p "$STORAGE"
}

# --- docker ----------------------------------------------------------------------------------------------------------

# dockerd with its usual file, and what keeps it apart from this machine.
docker_start() {
    spawn dockerd dockerd --host "unix://$STORAGE/docker.sock" --data-root "$STORAGE/data" --exec-root "$STORAGE/exec" \
        --pidfile "$STORAGE/docker.pid" --iptables=false --ip6tables=false --ip-forward=false --bridge=none --storage-driver overlay2
    wait_for 30 docker_ version >/dev/null
}

with_docker() {
    # shellcheck source=tests/e2e/clients/dockerd.sh
    source "$E2E/clients/dockerd.sh"
    storage docker
    note "setup docker: $(client_version)"
    rm -rf /etc/docker
    mkdir -p /etc/docker
    printf '%s\n' "$DAEMON_JSON" >/etc/docker/daemon.json
    try "setup docker cistern" cistern_start
    try "setup docker writes" written docker /etc/docker
    try "setup docker keeps what was there" docker_keeps
    try "setup docker dockerd starts" docker_start
    try "setup docker cold" pull_case mirror cold index
    try "setup docker warm" pull_case mirror warm index
    try "setup docker a reload suffices" docker_reloads
    try "setup docker stop" client_stop
    try "setup docker refuses to lose an edit" docker_edited
    try "setup docker undo" undone docker /etc/docker
}

docker_keeps() {
    same "mirrors" "http://$OCISTERN http://127.0.0.1:1" "$(jq -r '."registry-mirrors" | join(" ")' /etc/docker/daemon.json)"
    same "other keys" "none 2" "$(jq -r '"\(."log-driver") \(."max-concurrent-downloads")"' /etc/docker/daemon.json)"
    same "the backup" "$DAEMON_JSON" "$(</etc/docker/daemon.json.ocistern-backup)"
}

docker_mirrors() { docker_ info --format '{{join .RegistryConfig.Mirrors " "}}'; }
mirrors_are() { [[ $(docker_mirrors) == "$1" ]]; }

# What the command says to run is what makes dockerd take notice: without --write, and with it again.
docker_reloads() {
    local said
    setup docker --undo >/dev/null
    kill -HUP "$(<"$WORK/pid/dockerd")"
    wait_for 10 mirrors_are "http://127.0.0.1:1/"
    said=$(setup docker --write)
    grep -F 'now run: systemctl reload docker' <<<"$said" >/dev/null
    kill -HUP "$(<"$WORK/pid/dockerd")"
    wait_for 10 mirrors_are "http://$OCISTERN/ http://127.0.0.1:1/"
}

docker_edited() {
    local written
    written=$(</etc/docker/daemon.json)
    jq '.debug = true' <<<"$written" >/etc/docker/daemon.json
    fails setup docker --undo 2>"$STORAGE/said"
    grep -F 'was edited after' "$STORAGE/said" >/dev/null
    same "the edit" true "$(jq .debug /etc/docker/daemon.json)"
    printf '%s\n' "$written" >/etc/docker/daemon.json
}

# --- containerd ------------------------------------------------------------------------------------------------------

with_containerd() {
    local name=$1
    # shellcheck source=tests/e2e/containerd.sh
    source "$E2E/containerd.sh"
    storage "$name"
    note "setup $name: $(client_version)"
    rm -rf /etc/containerd
    mkdir -p /etc/containerd
    # Where this one lives, and nothing of registries. The snapshotter is the one that needs nothing of the file system.
    cat >/etc/containerd/config.toml <<TOML
version = 2
root = "$STORAGE/root"
state = "$STORAGE/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]

[grpc]
address = "$STORAGE/containerd.sock"

[ttrpc]
address = "$STORAGE/containerd.sock.ttrpc"

# Kubernetes
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
TOML
    # ctr is told where the files are that the command has written.
    ln -s /etc/containerd/certs.d "$STORAGE/hosts"
    try "setup $name cistern" cistern_start
    try "setup $name writes" written containerd /etc/containerd
    try "setup $name starts" containerd_start
    try "setup $name ctr cold" pull_case ns cold index
    try "setup $name ctr another registry" pull_case ns cold basic
    try "setup $name ctr warm" pull_case ns warm basic
    try "setup $name as Kubernetes pulls" cri_pull
    try "setup $name stop" client_stop
    try "setup $name undo" undone containerd /etc/containerd
}

containerd_start() {
    PATH=$(dirname "$CONTAINERD"):$PATH spawn containerd "$CONTAINERD" --config /etc/containerd/config.toml
    wait_for 20 ctr_ version >/dev/null
}

crictl_() { bounded "$(go_tool crictl)" --config /dev/null --timeout 60s --image-endpoint "unix://$STORAGE/containerd.sock" "$@"; }

# Through the CRI plugin, which is told of the files by config.toml alone.
cri_pull() {
    local name=oci.test/samples/app:v1
    wait_for 20 crictl_ images >/dev/null
    crictl_ pull "$name"
    same "digest by CRI" "$(upstream_digest_of samples/app v1)" \
        "$(crictl_ inspecti --output json "$name" | jq -r '.status.repoDigests[0]' | cut -d@ -f2)"
}

upstream_digest_of() { oci_digest "$1" "$2"; }

# --- podman ----------------------------------------------------------------------------------------------------------

with_podman() {
    # shellcheck source=tests/e2e/clients/podman.sh
    source "$E2E/clients/podman.sh"
    storage podman
    note "setup podman: $(client_version), $(skopeo --version)"
    client_start prefix
    # The suite's own way to say that there is no TLS is left out: the file says it.
    podman_() {
        local argument arguments=()
        for argument in "$@"; do [[ $argument == --tls-verify=false ]] || arguments+=("$argument"); done
        bounded podman --root "$STORAGE/root" --runroot /run/podman --tmpdir /run/podman/tmp --storage-driver overlay \
            --cgroup-manager cgroupfs --events-backend none "${arguments[@]}"
    }
    # Another's mirror, which does not answer, in a file that comes after ours by its name.
    cat >/etc/containers/registries.conf.d/zz-theirs.conf <<'TOML'
# the office's
[[registry]]
prefix = "oci.test"
location = "oci.test"

[[registry.mirror]]
location = "127.0.0.1:1"
insecure = true
TOML
    try "setup podman cistern" cistern_start
    try "setup podman writes" written podman /etc/containers
    try "setup podman cold" pull_case mirror cold index
    try "setup podman another registry" pull_case mirror cold basic
    try "setup podman warm" pull_case mirror warm basic
    try "setup skopeo, where another has a mirror" skopeo_theirs
    try "setup podman undo" undone podman /etc/containers
    rm /etc/containers/registries.conf.d/zz-theirs.conf
}

skopeo_theirs() {
    grep -F '# the office' /etc/containers/registries.conf.d/zz-theirs.conf >/dev/null
    same "digest by skopeo" "$(oci_digest samples/app v1)" \
        "$(bounded skopeo inspect --no-tags --format '{{.Digest}}' docker://oci.test/samples/app:v1)"
}

# --- BuildKit --------------------------------------------------------------------------------------------------------

with_buildkit() {
    storage buildkit
    note "setup buildkit: $("$WORK/bin/buildkitd" --version)"
    rm -rf /etc/buildkit
    try "setup buildkit cistern" cistern_start
    try "setup buildkit writes" written buildkit /etc/buildkit
    try "setup buildkit starts" buildkit_start
    try "setup buildkit builds" buildkit_builds
    try "setup buildkit stop" halt buildkitd
    try "setup buildkit undo" undone buildkit /etc/buildkit
}

buildkit_() { bounded "$WORK/bin/buildctl" --addr "unix://$STORAGE/buildkitd.sock" "$@"; }

buildkit_start() {
    spawn buildkitd "$WORK/bin/buildkitd" --addr "unix://$STORAGE/buildkitd.sock" --root "$STORAGE/root" \
        --oci-worker=true --containerd-worker=false --oci-worker-snapshotter=native
    wait_for 30 buildkit_ debug workers >/dev/null
}

# A build that takes a file out of each image: what arrived is what upstream has.
buildkit_builds() {
    local before
    before=$(metric ocistern_served_bytes_total)
    mkdir -p "$STORAGE/context"
    printf 'FROM docker.io/library/debian:bookworm AS hub\nFROM scratch\nCOPY --from=hub /etc/os-release /hub\nCOPY --from=oci.test/samples/app:v1 / /app\n' \
        >"$STORAGE/context/Dockerfile"
    buildkit_ build --frontend dockerfile.v0 --local "context=$STORAGE/context" --local "dockerfile=$STORAGE/context" \
        --output "type=local,dest=$STORAGE/out" --progress plain
    grep -q '^VERSION_CODENAME=bookworm' "$STORAGE/out/hub"
    (($(metric ocistern_served_bytes_total) - before > $(expected image bytes)))
}

# --- ORAS ------------------------------------------------------------------------------------------------------------

# oras_line: the line that is shown for oci.test, with an artifact of the suite's.
oras_line() { setup oras | sed -n '/oci\.test\//s/ *#.*//p' | sed 's|ORG/ARTIFACT:TAG|samples/artifact:1.0|'; }

oras_by_the_printed_line() {
    local line
    line=$(oras_line)
    mkdir -p "$WORK/tmp/oras-setup"
    read -ra words <<<"$line"
    same "the program" oras "${words[0]}"
    bounded "$(go_tool oras)" "${words[@]:1}" --output "$WORK/tmp/oras-setup"
    cmp "$WORK/tmp/oras-setup/artifact.txt" "$CONTENT/artifact/artifact.txt"
}

# --- what is said ----------------------------------------------------------------------------------------------------

shows_without_writing() {
    local said client
    rm -rf /etc/docker /etc/buildkit
    for client in docker buildkit k3s kaniko; do
        said=$(setup "$client")
        grep -F "127.0.0.1:$OCISTERN_PORT" <<<"$said" >/dev/null
    done
    [[ ! -e /etc/docker && ! -e /etc/buildkit && ! -e /etc/rancher ]]
    # What is installed here.
    said=$(setup --all)
    for client in docker containerd podman; do grep "^# $client: /etc/" <<<"$said" >/dev/null; done
    # Into an image's root directory, from outside.
    setup podman --write --directory "$WORK/tmp/image" >/dev/null
    grep -F "$OCISTERN/oci.test" "$WORK/tmp/image/etc/containers/registries.conf.d/ocistern.conf" >/dev/null
}

refuses() {
    mkdir -p /etc/docker
    printf '{\n  "debug": true,\n}\n' >/etc/docker/daemon.json
    fails setup docker --write 2>"$WORK/tmp/said"
    grep -F '/etc/docker/daemon.json:3:1: this is no JSON' "$WORK/tmp/said" >/dev/null
    rm -rf /etc/docker
    fails "$OCISTERN_BIN" setup docker --listen unix:/run/o.sock 2>"$WORK/tmp/said"
    grep -F 'are Unix sockets' "$WORK/tmp/said" >/dev/null
    fails "$OCISTERN_BIN" setup 2>"$WORK/tmp/said"
    grep -F 'say which client' "$WORK/tmp/said" >/dev/null
}

# --- a registry's own name -------------------------------------------------------------------------------------------

# The CA, the lines that the command shows for ocistern's configuration, and the hosts entry.
private_ca() {
    local said
    cistern_config >"$WORK/ocistern.toml"
    said=$(setup ca $OWN_NAME --directory "$SETUP_TLS")
    # From its heading to the next empty line.
    sed -n '/^# for ocistern/,/^$/p' <<<"$said" | sed 's/0\.0\.0\.0/127.0.0.1/' >"$WORK/tmp/lines"
    grep -F "hostnames = { \"$OWN_NAME\" = \"$OWN_NAME\" }" "$WORK/tmp/lines" >/dev/null
    sed -n "/^127\.0\.0\.1 $OWN_NAME\$/p" <<<"$said" >>/etc/hosts
    grep -xF "127.0.0.1 $OWN_NAME" /etc/hosts >/dev/null
    same "mode of the CA's key" 600 "$(stat -c %a "$SETUP_TLS/ca.key")"
    openssl verify -CAfile "$SETUP_TLS/ca.crt" -verify_hostname $OWN_NAME "$SETUP_TLS/server.crt"
    openssl verify -CAfile "$SETUP_TLS/ca.crt" -verify_ip 127.0.0.1 "$SETUP_TLS/server.crt"
    openssl x509 -in "$SETUP_TLS/ca.crt" -noout -text | seen -A 3 'Name Constraints: critical'
    # It can sign nothing else.
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=bank.example -keyout "$WORK/tmp/other.key" -out "$WORK/tmp/other.csr"
    openssl x509 -req -in "$WORK/tmp/other.csr" -CA "$SETUP_TLS/ca.crt" -CAkey "$SETUP_TLS/ca.key" -CAcreateserial -days 2 \
        -out "$WORK/tmp/other.crt" -extfile <(echo 'subjectAltName=DNS:bank.example')
    fails openssl verify -CAfile "$SETUP_TLS/ca.crt" "$WORK/tmp/other.crt"
    rm -rf "$WORK/cistern"
    # A table before those of upstreams is as good as any other place: they are whole tables.
    cat "$WORK/tmp/lines" >>"$WORK/ocistern.toml"
    "$OCISTERN_BIN" config check --config "$WORK/ocistern.toml"
    cistern_run
    curl -fsS --cacert "$SETUP_TLS/ca.crt" -o /dev/null "https://$OWN_NAME/v2/samples/app/manifests/v1"
}

# docker, podman and containerd trust the CA after nothing but the command; ORAS by the system, as it is told.
under_its_own_name() {
    (
        source "$E2E/clients/dockerd.sh"
        storage own-docker
        rm -rf /etc/docker
        mkdir /etc/docker
        try "setup own name docker writes" written docker /etc/docker
        try "setup own name docker starts" docker_start
        try "setup own name docker pulls" own_docker
        try "setup own name docker stop" client_stop
        try "setup own name docker undo" undone docker /etc/docker
    )
    (
        source "$E2E/clients/podman.sh"
        storage own-podman
        try "setup own name podman writes" written podman /etc/containers
        try "setup own name podman pulls" own_podman
        try "setup own name podman undo" undone podman /etc/containers
    )
    (
        CONTAINERD=$(go_tool containerd) CTR=$(go_tool ctr)
        source "$E2E/containerd.sh"
        storage own-containerd
        rm -rf /etc/containerd
        try "setup own name containerd writes" written containerd /etc/containerd
        try "setup own name containerd pulls" own_containerd
        try "setup own name containerd undo" undone containerd /etc/containerd
    )
    try "setup own name oras pulls" own_oras
}

own_docker() {
    docker_ pull "$OWN_NAME/samples/app:v1" | seen -F "Digest: $(oci_digest samples/app v1)"
}

# The mirror is taken away, so that only the name is left.
own_podman() {
    rm /etc/containers/registries.conf.d/ocistern.conf
    same "digest by skopeo" "$(oci_digest samples/app v1)" \
        "$(bounded skopeo inspect --no-tags --format '{{.Digest}}' "docker://$OWN_NAME/samples/app:v1")"
    setup podman --write >/dev/null
}

# The mirror of the same file is made to fail, so that the server is asked, with its CA.
own_containerd() {
    local hosts=$STORAGE/hosts/$OWN_NAME
    mkdir -p "$hosts"
    sed "s|$OCISTERN|127.0.0.1:1|" "/etc/containerd/certs.d/$OWN_NAME/hosts.toml" >"$hosts/hosts.toml"
    cat >"$STORAGE/config.toml" <<TOML
version = 2
root = "$STORAGE/root"
state = "$STORAGE/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "$STORAGE/containerd.sock"
[ttrpc]
address = "$STORAGE/containerd.sock.ttrpc"
TOML
    PATH=$(dirname "$CONTAINERD"):$PATH spawn containerd "$CONTAINERD" --config "$STORAGE/config.toml"
    wait_for 20 ctr_ version >/dev/null
    ctr_ images pull --platform linux/amd64 --hosts-dir "$STORAGE/hosts" "$OWN_NAME/samples/app:v1" >/dev/null
    same "digest by ctr" "$(oci_digest samples/app v1)" "$(ctr_ images ls "name==$OWN_NAME/samples/app:v1" | awk 'NR > 1 { print $3 }')"
    halt containerd
}

own_oras() {
    local bundle=$WORK/tmp/bundle.pem
    cat "$SETUP_TLS/ca.crt" /etc/ssl/certs/ca-certificates.crt >"$bundle"
    SSL_CERT_FILE=$bundle bounded "$(go_tool oras)" pull --output "$WORK/tmp/oras-own" "$OWN_NAME/samples/artifact:1.0"
    cmp "$WORK/tmp/oras-own/data.bin" "$CONTENT/artifact/data.bin"
}

serial() {
    local host=$OWN_NAME
    openssl s_client -connect 127.0.0.1:443 -servername "$host" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
serial_is_not() { [[ $(serial) != "$1" ]]; }

# A second run makes another certificate by the same CA, and ocistern shows it without a restart.
renewal() {
    local ca before
    ca=$(sha256sum "$SETUP_TLS/ca.crt" "$SETUP_TLS/ca.key")
    before=$(serial)
    setup ca --directory "$SETUP_TLS" | seen -F 'has this certificate already'
    same "the CA" "$ca" "$(sha256sum "$SETUP_TLS/ca.crt" "$SETUP_TLS/ca.key")"
    wait_for 30 serial_is_not "$before"
    curl -fsS --cacert "$SETUP_TLS/ca.crt" -o /dev/null "https://$OWN_NAME/v2/samples/app/manifests/v1"
}

# The checks that come after this one find the machine as it was.
clean() {
    sed -i "/^127\.0\.0\.1 $OWN_NAME\$/d" /etc/hosts 2>/dev/null || {
        grep -vx "127.0.0.1 $OWN_NAME" /etc/hosts >"$WORK/tmp/hosts"
        cat "$WORK/tmp/hosts" >/etc/hosts
    }
    rm -rf /etc/docker /etc/containerd /etc/buildkit
}
