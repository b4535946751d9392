# The container image: the Dockerfile as it is, built by buildah on stand-ins for its two base images (a Debian with the machine's
# toolchain; the files of the few packages that distroless images are made of), without a network; then run by podman as it is
# meant to be, with nothing that it does not need, and pulled through.
# shellcheck shell=bash
# shellcheck source=tests/e2e/roots.sh
source "$E2E/roots.sh"

# Whole, it takes many minutes of compiling. What a release build before has compiled is used where it is there.
BUILD_LIMIT=2400
# A kernel that looks at its memory (DAMON) may hold a page of the copy that buildah makes of itself, just when it is sealed.
# What was built until then is kept.
BUILD_BUSY='sealing memfd copy: Device or resource busy'
BUILD_ATTEMPTS=5
# What gcr.io/distroless/cc-debian12 is made of, as far as a program could notice.
BASE_PACKAGES=(base-files ca-certificates libc6 libgcc-s1 tzdata)

check_needs() { echo buildah podman runc cargo rustc; }

# Where cargo keeps crates and the toolchain is, which HOME leads to before the namespaces.
check_prepare() {
    build_root
    rustc --print sysroot >"$WORK/bin/sysroot"
    printf '%s\n' "${CARGO_HOME:-$HOME/.cargo}" >"$WORK/bin/cargo-home"
    printf '%s\n' "${CARGO_TARGET_DIR:-$PROJECT/target}" >"$WORK/bin/target"
}

check() {
    STORAGE=$WORK/storage/image
    mkdir -p "$STORAGE"
    try "image stand-in for the builder's base" builder_base
    try "image stand-in for the base" runtime_base
    try "image takes nothing else along" image_context
    LIMIT=$BUILD_LIMIT try "image build" image_build
    try "image is what it says" image_config
    try "image pull" image_pull
    try "image keeps its store" image_again
    leave_root
    buildah_ rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$STORAGE"
    find /sys/fs/cgroup -depth -type d -path "*$CONTROL_GROUP*" -exec rmdir {} + 2>/dev/null || true
}

CONTROL_GROUP=/ocistern-e2e-image
STORE=(--root "$WORK/storage/image/root" --runroot /run/image --storage-driver overlay)
buildah_() { bounded buildah "${STORE[@]}" "$@"; }
podman_() {
    bounded podman "${STORE[@]}" --tmpdir /run/image/tmp --cgroup-manager cgroupfs --events-backend none --runtime runc "$@"
}

# archived NAME FILE [CONFIGURATION…]: an image NAME of one archive.
archived() {
    local name=$1 file=$2 container
    shift 2
    container=$(buildah_ from scratch)
    buildah_ add --quiet "$container" "$file" /
    buildah_ config "$@" "$container"
    buildah_ commit --quiet --rm "$container" "localhost/$name"
}

# The toolchain and the crates are mounted by the build: as large as they are, a copy would only take time.
builder_base() {
    archived builder "$(root_archive)" --env PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env CARGO_HOME="$(<"$WORK/bin/cargo-home")" --env CARGO_NET_OFFLINE=true
}

runtime_base() {
    unpack_root "$ROOT"
    # /lib and its like are links to what is in /usr. The bundle is made when ca-certificates is installed, and is no file of the package.
    {
        in_root dpkg-query --listfiles "${BASE_PACKAGES[@]}" | grep -vE '^/(\.|usr/share/(doc|man|locale|lintian)(/|$)|usr/s?bin/|$)' | grep -v '^package diverts'
        printf '%s\n' /bin /lib /lib64 /sbin /etc/ssl/certs/ca-certificates.crt
    } | sed 's|^/||; s#^\(lib\|lib64\|sbin\)/#usr/&#' | LC_ALL=C sort -u >"$WORK/tmp/files"
    tar --numeric-owner --no-recursion --ignore-failed-read -C "$ROOT" --files-from="$WORK/tmp/files" -cf "$STORAGE/base.tar" 2>"$WORK/tmp/tar"
    leave_root
    archived base "$STORAGE/base.tar" --env PATH=/usr/sbin:/usr/bin:/sbin:/bin --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
    rm "$STORAGE/base.tar"
}

# Neither history nor results of builds nor anything that lies about.
image_context() {
    local container
    printf 'FROM scratch\nCOPY . /\n' >"$STORAGE/Dockerfile"
    buildah_ bud --quiet --isolation chroot --ignorefile "$PROJECT/.dockerignore" --tag localhost/context --file "$STORAGE/Dockerfile" "$PROJECT"
    container=$(buildah_ from localhost/context)
    find "$(buildah_ mount "$container")" -maxdepth 1 -mindepth 1 -printf '%f\n' | LC_ALL=C sort >"$STORAGE/context"
    buildah_ rm "$container" >/dev/null
    same "what is copied" "$(sed -n 's/^!//p' "$PROJECT/.dockerignore" | cut -d/ -f1 | LC_ALL=C sort -u | paste -sd' ')" "$(paste -sd' ' "$STORAGE/context")"
}

image_build() {
    local target home status n arguments=()
    target=$(<"$WORK/bin/target")/release home=$(<"$WORK/bin/cargo-home")
    # What is written there is gone after the build.
    [[ ! -d $target/deps ]] || arguments=(--volume "$target:/src/target/release:O")
    # The crates at the same place as outside, or cargo takes the dependencies for others.
    for ((n = 1; ; n++)); do
        buildah_ bud --layers --isolation chroot --format docker "${arguments[@]}" \
            --build-arg RUST_IMAGE=localhost/builder --build-arg BASE_IMAGE=localhost/base \
            --volume "$(<"$WORK/bin/sysroot"):/opt/rust:ro" --volume "$home/registry:$home/registry:O" \
            --tag localhost/ocistern "$PROJECT" >"$WORK/tmp/bud" 2>&1 && status=0 || status=$?
        cat "$WORK/tmp/bud"
        if ((status == 0)); then return 0; fi
        grep -qF "$BUILD_BUSY" "$WORK/tmp/bud" && ((n < BUILD_ATTEMPTS)) || return "$status"
    done
}

image_config() {
    local container mounted set
    buildah_ inspect --type image localhost/ocistern | jq .Docker.config >"$STORAGE/config.json"
    cat "$STORAGE/config.json"
    jq -e '.User == "65532:65532" and .Entrypoint == ["/usr/bin/ocistern"] and .Cmd == ["serve"] and .StopSignal == "SIGTERM"
        and (.ExposedPorts | keys) == ["5000/tcp", "5080/tcp"] and (.Volumes | keys) == ["/var/cache/ocistern"]' "$STORAGE/config.json" >/dev/null
    # Where the Dockerfile has one, it is a program and not a shell, which is not there.
    if grep -q '^HEALTHCHECK ' "$PROJECT/Dockerfile"; then
        jq -e '.Healthcheck.Test[0] == "CMD" and .Healthcheck.Test[1] == "/usr/bin/ocistern"' "$STORAGE/config.json" >/dev/null
    fi
    container=$(buildah_ from localhost/ocistern)
    mounted=$(buildah_ mount "$container")
    [[ ! -e $mounted/src && ! -e $mounted/bin/sh && ! -e $mounted/usr/bin/sh ]]
    same "owner and mode of the volume" "65532:65532 700" "$(stat -c '%u:%g %a' "$mounted/var/cache/ocistern")"
    [[ -f $mounted/usr/share/doc/ocistern/LICENSE ]]
    set=$(find "$mounted" -xdev -type f -perm /6000)
    none "programs with another's rights" "$set"
    buildah_ rm "$container" >/dev/null
}

# image_run: as the documentation has it, with the suite's upstreams and nothing that it does not need.
image_run() {
    cistern_config '{ from = "anonymous" }' | sed '/^root = /d' >"$WORK/ocistern.toml"
    chmod 0644 "$WORK/ocistern.toml"
    LIMIT=1000 spawn container podman_ run --name ocistern --replace --network host --cgroup-parent $CONTROL_GROUP --read-only --cap-drop all \
        --security-opt no-new-privileges --log-driver none --volume ocistern:/var/cache/ocistern \
        --volume "$WORK/ocistern.toml:/etc/ocistern/config.toml:ro" --env OCISTERN_LISTEN= --env OCISTERN_ADMIN_LISTEN= localhost/ocistern
    wait_http container "http://$ADMIN/readyz"
}

image_stop() {
    podman_ stop --time 30 ocistern
    wait_for 20 is_stopped
    same "exit status" 0 "$(<"$WORK/exit/container")"
}
is_stopped() { ! running container; }

# image_pulls: with the digest compared.
image_pulls() {
    rm -rf "$STORAGE/pulled"
    bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" "docker://$OCISTERN/oci.test/samples/app:v1" "dir:$STORAGE/pulled"
    same "digest" "$(expected oci manifest)" "$(<"$WORK/tmp/digest")"
}

image_pull() {
    image_run
    image_pulls
    same "user" 65532 "$(podman_ inspect --format '{{.State.Pid}}' ocistern | xargs -I{} stat -c %u /proc/{})"
    podman_ exec ocistern /usr/bin/ocistern status
    podman_ exec ocistern /usr/bin/ocistern ls | tee "$WORK/tmp/ls"
    grep -F samples/app "$WORK/tmp/ls"
    if grep -q '^HEALTHCHECK ' "$PROJECT/Dockerfile"; then podman_ healthcheck run ocistern; fi
    image_stop
}

# Another container on the same volume, and no upstream.
image_again() {
    podman_ rm ocistern
    stop_upstreams
    image_run
    image_pulls
    image_stop
    start_upstreams
}
