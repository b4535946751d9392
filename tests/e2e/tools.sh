# The tools that the suite uses: where they come from, whether they are there. Sourced by lib.sh and .ci/run.
# shellcheck shell=bash

# Debian's packages. docker.io brings dockerd and its own client (/usr/bin/docker, which the suite uses even where
# another one stands earlier in PATH).
E2E_PACKAGES=(
    apache2-utils buildah ca-certificates containerd curl debootstrap docker-registry docker.io iproute2 jq
    openssl podman procps runc skopeo umoci util-linux
)

E2E_GO_TOOLS=(
    'oras v1.3.6 oras.land/oras/cmd/oras'
    'crane v0.22.1 github.com/google/go-containerregistry/cmd/crane'
    'helm v3.22.0 helm.sh/helm/v3/cmd/helm'
    'containerd v2.4.2 github.com/containerd/containerd/v2/cmd/containerd'
    'ctr v2.4.2 github.com/containerd/containerd/v2/cmd/ctr'
    'registry v3.1.2 github.com/distribution/distribution/v3/cmd/registry'
)

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
        [[ -x $path ]] || GOBIN=$(dirname "$path") go install "$package@$version"
    done
}

install_e2e_tools() {
    install_packages "${E2E_PACKAGES[@]}"
    install_go_tools
}
