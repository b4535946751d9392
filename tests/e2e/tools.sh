# The tools that the suite uses: where they come from, whether they are there. Sourced by lib.sh and .ci/run.
# shellcheck shell=bash

# Debian's packages. docker.io brings dockerd and its own client (/usr/bin/docker, which the suite uses even where
# another one stands earlier in PATH).
E2E_PACKAGES=(
    apache2-utils buildah ca-certificates chromium chromium-driver containerd curl debootstrap docker-registry docker.io iproute2 jq
    nginx openssl podman procps prometheus python3 python3-venv runc skopeo slowhttptest systemd
    systemd-container umoci util-linux
)

# Programs from crates.io: name, version.
E2E_CARGO_TOOLS=(
    'cargo-deb 3.8.0'
)

E2E_GO_TOOLS=(
    'oras v1.3.6 oras.land/oras/cmd/oras'
    'crane v0.22.1 github.com/google/go-containerregistry/cmd/crane'
    'helm v3.22.0 helm.sh/helm/v3/cmd/helm'
    'containerd v2.4.2 github.com/containerd/containerd/v2/cmd/containerd'
    'ctr v2.4.2 github.com/containerd/containerd/v2/cmd/ctr'
    'crictl v1.37.0 sigs.k8s.io/cri-tools/cmd/crictl'
    'registry v3.1.2 github.com/distribution/distribution/v3/cmd/registry'
    'compose v2.16.2 github.com/compose-spec/compose-go/v2/cmd'
)

# Python programs, each in a virtual environment of its own: name, version, what pip installs.
E2E_PYTHON_TOOLS=(
    'az 2.91.0 azure-cli==2.91.0'
    'acrsdk 1.2.0 azure-containerregistry==1.2.0'
    'moto 5.2.5 moto[server]==5.2.5'
    'kubernetes 1.37.0 kubernetes-validate==1.37.0'
)

# Modules in here that are built from pinned sources for each run: name, directory, package.
E2E_GO_PROGRAMS=(
    'registry registry .'
    'tokenserver tokenserver .'
    'acr acr .'
    'conformance conformance github.com/opencontainers/distribution-spec/conformance'
    'buildctl buildkit github.com/moby/buildkit/cmd/buildctl'
    'buildkitd buildkit github.com/moby/buildkit/cmd/buildkitd'
    'oras0 oras0 github.com/oras-project/oras/cmd/oras'
)

# python_tool NAME PROGRAM: path of a program in the virtual environment NAME, whether it is there or not.
python_tool() {
    local name version requirement
    for entry in "${E2E_PYTHON_TOOLS[@]}"; do
        read -r name version requirement <<<"$entry"
        [[ $name == "$1" ]] || continue
        printf '%s/python/%s-%s/bin/%s\n' "$E2E_HOME" "$name" "$version" "$2"
        return
    done
    return 1
}

# go_tool NAME: its path, whether it is there or not.
go_tool() {
    local name version package
    for entry in "${E2E_GO_TOOLS[@]}"; do
        read -r name version package <<<"$entry"
        [[ $name == "$1" ]] || continue
        printf '%s/tools/%s-%s/%s\n' "$E2E_HOME" "$name" "$version" "${package##*/}"
        return
    done
    return 1
}

# cargo_tool NAME: its path, whether it is there or not.
cargo_tool() {
    local name version
    for entry in "${E2E_CARGO_TOOLS[@]}"; do
        read -r name version <<<"$entry"
        [[ $name == "$1" ]] || continue
        printf '%s/tools/%s-%s/bin/%s\n' "$E2E_HOME" "$name" "$version" "$name"
        return
    done
    return 1
}

# install_packages PACKAGE…: those that are missing, without starting any service.
install_packages() {
    local missing=() package
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    apt-get update -qq
    (
        # Packages start their services unless this file says no; one that was there before is left alone.
        if [[ ! -e /usr/sbin/policy-rc.d ]]; then
            printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
            trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        fi
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    )
}

install_go_tools() {
    local name version package path
    for entry in "${E2E_GO_TOOLS[@]}"; do
        read -r name version package <<<"$entry"
        path=$(go_tool "$name")
        [[ -x $path ]] || GOBIN=$(dirname "$path") go install -buildvcs=false "$package@$version"
    done
}

# Used for seconds: what is optimised is the time until they are there.
install_cargo_tools() {
    local name version path
    for entry in "${E2E_CARGO_TOOLS[@]}"; do
        read -r name version <<<"$entry"
        path=$(cargo_tool "$name")
        [[ ! -x $path ]] || continue
        CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            CARGO_TARGET_DIR=$E2E_HOME/$name-target cargo install --quiet --locked --root "${path%/bin/*}" "$name@$version"
        rm -rf "$E2E_HOME/$name-target"
    done
}

# A virtual environment cannot be moved, so a mark says that it is whole.
install_python_tools() {
    local name version requirement directory
    for entry in "${E2E_PYTHON_TOOLS[@]}"; do
        read -r name version requirement <<<"$entry"
        directory=$E2E_HOME/python/$name-$version
        [[ -f $directory/complete ]] && continue
        rm -rf "$directory"
        python3 -m venv "$directory"
        "$directory/bin/pip" install --quiet --disable-pip-version-check "$requirement"
        touch "$directory/complete"
    done
}

# build_go_programs DIRECTORY
build_go_programs() {
    local name directory package
    for entry in "${E2E_GO_PROGRAMS[@]}"; do
        read -r name directory package <<<"$entry"
        (cd "$E2E/$directory" && go build -buildvcs=false -o "$1/$name" "$package")
    done
}

install_e2e_tools() {
    install_packages "${E2E_PACKAGES[@]}"
    install_go_tools
    install_python_tools
    install_cargo_tools
}
