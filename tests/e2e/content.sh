# The content that the suite pulls: real root file systems, artifacts, a chart. Sourced by run.
# shellcheck shell=bash
#
# It is built once into $E2E_HOME/content-HASH (HASH: of this file, so that a change here builds anew) and used again as
# long as its checksums hold. Inside:
#   layout/         an OCI image layout with the refs debian, multi, app, big
#   artifact/       files for the ORAS artifact and the signature
#   chart/          a packaged Helm chart
#   items/NAME      what a client must find: `manifest DIGEST`, `blob DIGEST`…, `diff DIGEST`…, `tree DIGEST`

BIG_SIZE=$((1 << 30))

content_path() { printf '%s/content-%s\n' "$E2E_HOME" "$(sha256sum "$E2E/content.sh" | cut -c1-16)"; }

# build_content: makes sure it is there and sound; sets CONTENT.
build_content() {
    CONTENT=$(content_path)
    if [[ -f $CONTENT/SHA256SUMS ]]; then
        (cd "$CONTENT" && sha256sum --quiet -c SHA256SUMS) && return 0
        note "the content in $CONTENT is damaged and is built anew"
        rm -rf "$CONTENT"
    fi
    mkdir -p "$E2E_HOME"
    # Of an earlier content.sh: more than a gigabyte each.
    find "$E2E_HOME" -maxdepth 1 -name 'content-*' ! -path "$CONTENT" -exec rm -rf {} +
    # Built elsewhere and moved as a whole, so that an interrupted build is never taken for content.
    local building
    building=$(mktemp -d "$E2E_HOME/building.XXXXXX")
    note "building the content (debootstrap, images, chart)"
    (
        set -euo pipefail
        cd "$building"
        mkdir -p artifact chart items layers
        make_layers
        make_images
        make_big
        make_artifacts
        rm -rf root layers
        find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >SHA256SUMS
    ) >"$building.log" 2>&1 &
    wait $! || {
        tail -n 30 "$building.log" >&2
        rm -rf "$building" "$building.log"
        die "the content could not be built"
    }
    rm -f "$building.log"
    mv "$building" "$CONTENT"
}

# Layers from a Debian root: the base, /usr/lib, /usr/share, /var, and one that changes and removes files.
make_layers() {
    local pack=(tar --sort=name --numeric-owner --mtime=@1700000000 --format=pax
        '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime')
    debootstrap --variant=minbase bookworm root
    rm -rf root/var/cache/apt root/var/lib/apt/lists root/debootstrap
    "${pack[@]}" -C root -cf layers/1.tar --exclude=./usr/lib --exclude=./usr/share --exclude=./var .
    "${pack[@]}" -C root -cf layers/2.tar ./usr/lib
    "${pack[@]}" -C root -cf layers/3.tar ./usr/share
    "${pack[@]}" -C root -cf layers/4.tar ./var
    mkdir -p change/etc
    echo 'changed by the last layer' >change/etc/issue
    : >change/etc/.wh.motd
    "${pack[@]}" -C change -cf layers/5.tar ./etc/issue ./etc/.wh.motd
    cp change/etc/issue root/etc/issue
    rm -f root/etc/motd
    echo arm64 >change/etc/architecture
    "${pack[@]}" -C change -cf layers/arm64.tar ./etc/architecture
    # The small image of the private upstreams.
    "${pack[@]}" -C root -cf layers/app1.tar ./usr/share/doc ./usr/share/common-licenses
    mkdir -p change/app
    openssl rand -out change/app/data 2000000
    "${pack[@]}" -C change -cf layers/app2.tar ./app
    tree_of root >items/debian.tree
    rm -rf change
}

make_images() {
    local n
    umoci init --layout layout
    umoci new --image layout:debian
    for n in 1 2 3 4 5; do umoci raw add-layer --image layout:debian "layers/$n.tar"; done
    umoci config --image layout:debian --os linux --architecture amd64 --config.cmd /bin/sh
    umoci tag --image layout:debian arm64
    umoci raw add-layer --image layout:arm64 layers/arm64.tar
    umoci config --image layout:arm64 --architecture arm64
    umoci new --image layout:app
    for n in app1 app2; do umoci raw add-layer --image layout:app "layers/$n.tar"; done
    umoci config --image layout:app --os linux --architecture amd64 --config.cmd /bin/sh
    umoci gc --layout layout
    # The two-platform index.
    jq -c '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [
        (.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == ("debian", "arm64"))
         | {mediaType, digest, size, platform: {os: "linux", architecture: (.annotations["org.opencontainers.image.ref.name"] | if . == "arm64" then . else "amd64" end)}})]}' \
        layout/index.json | tr -d '\n' >index.json
    add_blob index.json
    add_ref multi application/vnd.oci.image.index.v1+json
    describe debian amd64
    describe app amd64
    describe multi amd64
    echo "tree $(<items/debian.tree)" | tee -a items/debian >>items/multi
    rm items/debian.tree
}

# One layer of random bytes, uncompressed: as incompressible and as large as a layer with a model in it.
make_big() {
    mkdir big
    openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null |
        head -c "$BIG_SIZE" >big/model || [[ ${PIPESTATUS[1]} == 0 ]]
    tar --numeric-owner --mtime=@1700000000 -C big -cf big.tar model
    rm -r big
    add_blob big.tar
    local layer=$ADDED layer_size=$ADDED_SIZE
    jq -nc --arg diff "$layer" '{architecture: "amd64", os: "linux", config: {}, rootfs: {type: "layers", diff_ids: [$diff]}}' | tr -d '\n' >config.json
    add_blob config.json
    jq -nc --arg config "$ADDED" --argjson config_size "$ADDED_SIZE" --arg layer "$layer" --argjson layer_size "$layer_size" '{
        schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $config, size: $config_size},
        layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $layer, size: $layer_size}]}' | tr -d '\n' >manifest.json
    add_blob manifest.json
    add_ref big application/vnd.oci.image.manifest.v1+json
    describe big amd64
}

make_artifacts() {
    printf 'hello from an artifact\n' >artifact/artifact.txt
    openssl rand -out artifact/data.bin 3000000
    printf '{"critical":{"type":"signature of the end-to-end suite"}}' >artifact/signature.json
    HOME=$PWD/helm-home "$(go_tool helm)" create chart/cistern-demo
    HOME=$PWD/helm-home "$(go_tool helm)" package chart/cistern-demo --version 0.1.0 --destination chart
    rm -rf helm-home chart/cistern-demo
}

# add_blob FILE: moves it into the layout; sets ADDED and ADDED_SIZE.
add_blob() {
    ADDED=$(digest_of "$1")
    ADDED_SIZE=$(stat -c %s "$1")
    mv "$1" "layout/blobs/sha256/${ADDED#sha256:}"
}

# add_ref NAME MEDIATYPE: the blob added last gets a name.
add_ref() {
    jq -c --arg name "$1" --arg type "$2" --arg digest "$ADDED" --argjson size "$ADDED_SIZE" \
        '.manifests += [{mediaType: $type, digest: $digest, size: $size, annotations: {"org.opencontainers.image.ref.name": $name}}]' \
        layout/index.json >index.new
    mv index.new layout/index.json
}

# describe NAME ARCHITECTURE: writes items/NAME for an image or index of the layout.
describe() {
    local digest manifest config
    digest=$(jq -r --arg name "$1" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $name) | .digest' layout/index.json)
    {
        echo "manifest $digest"
        manifest=layout/blobs/sha256/${digest#sha256:}
        if jq -e .manifests "$manifest" >/dev/null; then
            digest=$(jq -r --arg arch "$2" '.manifests[] | select(.platform.architecture == $arch) | .digest' "$manifest")
            manifest=layout/blobs/sha256/${digest#sha256:}
        fi
        echo "platform $digest"
        config=$(jq -r .config.digest "$manifest")
        echo "blob $config"
        jq -r '.layers[].digest | "blob " + .' "$manifest"
        jq -r '.rootfs.diff_ids[] | "diff " + .' "layout/blobs/sha256/${config#sha256:}"
    } >"items/$1"
}
