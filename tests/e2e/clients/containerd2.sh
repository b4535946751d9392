# containerd 2 and its ctr, which pulls through the daemon's transfer service.
# shellcheck shell=bash
CONTAINERD=$(go_tool containerd)
CTR=$(go_tool ctr)
# shellcheck source=tests/e2e/containerd.sh
source "$E2E/containerd.sh"
