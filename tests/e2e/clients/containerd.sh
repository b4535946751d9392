# Debian's containerd (1.6) and ctr.
# shellcheck shell=bash
CONTAINERD=/usr/bin/containerd
CTR=/usr/bin/ctr
# shellcheck source=tests/e2e/containerd.sh
source "$E2E/containerd.sh"
