# ocistern itself: its configuration, its start and stop, its metrics. Sourced by run.
# shellcheck shell=bash

OCISTERN=127.0.0.1:$OCISTERN_PORT
ADMIN=127.0.0.1:$ADMIN_PORT

# cistern_config [CREDENTIALS] [TAGS]: a configuration with the suite's upstreams. CREDENTIALS is what stands for the
# private ones' `credentials`.
cistern_config() {
    local credentials=${1:-"{ from = \"static\", username = \"$PULL_USER\", password_file = \"$WORK/secret/password\" }"} tags=${2:-5m}
    cat <<TOML
root = "$WORK/cistern"
builtin_upstreams = false

[[listener]]
address = "127.0.0.1:$OCISTERN_PORT"
default_upstream = "docker.io"
hostnames = { "registry.e2e:$OCISTERN_PORT" = "oci.test" }

[[listener]]
address = "[::1]:$OCISTERN_PORT"
default_upstream = "docker.io"

[admin]
address = "$ADMIN"

[store]
capacity = "6GiB"

[upstream."docker.io"]
url = "http://${UPSTREAM_ADDRESS[docker.io]}"
library = true
tags = "$tags"

[upstream."basic.test"]
url = "http://${UPSTREAM_ADDRESS[basic.test]}"
credentials = $credentials
tags = "$tags"

[upstream."bearer.test"]
url = "http://${UPSTREAM_ADDRESS[bearer.test]}"
token_hosts = ["127.0.0.1:$TOKEN_PORT"]
credentials = $credentials
tags = "$tags"

[upstream."oci.test"]
url = "http://${UPSTREAM_ADDRESS[oci.test]}"
tags = "$tags"

[upstream."dist.test"]
url = "http://${UPSTREAM_ADDRESS[dist.test]}"
tags = "$tags"
TOML
}

# cistern_start [CREDENTIALS] [TAGS]: on an empty root.
cistern_start() {
    rm -rf "$WORK/cistern"
    cistern_config "$@" >"$WORK/ocistern.toml"
    cistern_run
}

cistern_run() {
    # Of a case that failed before it came to its end.
    halt ocistern KILL
    spawn ocistern "$OCISTERN_BIN" serve --config "$WORK/ocistern.toml"
    wait_http ocistern "http://$ADMIN/readyz"
    wait_http ocistern "http://$OCISTERN/v2/"
}

# cistern_stop: a drain that ends by itself, well, and nothing in the log that should not be there.
cistern_stop() {
    running ocistern || {
        echo "ocistern is not running any more; its status was $(cat "$WORK/exit/ocistern")" >&2
        return 1
    }
    halt ocistern TERM
    same "exit status of ocistern" 0 "$(<"$WORK/exit/ocistern")"
    if grep -iE 'panicked at|\bpanic\b|SIGBUS' "$WORK/log/ocistern.err" >&2; then
        echo "ocistern's log speaks of a panic" >&2
        return 1
    fi
    if grep -F "$PULL_PASSWORD" "$WORK/log/ocistern.err" "$WORK/log/ocistern.out" >/dev/null; then
        echo "ocistern's log holds the upstream password" >&2
        return 1
    fi
}

# metric NAME [LABELS]: the sum over the samples of that name whose labels contain LABELS.
metric() {
    curl -fsS -m 10 "http://$ADMIN/metrics" | awk -v name="$1" -v labels="${2:-}" '
        { sample = $1; sub(/[{].*/, "", sample) }
        sample == name && index($1, labels) { sum += $2 }
        END { printf "%d\n", sum }'
}

# settled: no fill is running any more.
settled() { [[ $(metric ocistern_fills_in_progress) == 0 ]]; }

# headers URL [CURL ARGUMENT…]: the answer's head, lower-case names, no carriage returns; the status line first.
headers() {
    local url=$1
    shift
    curl -sS -m 60 -o /dev/null -D - "$@" "$url" | tr -d '\r' | sed -E 's/^([A-Za-z-]+):/\L\1:/'
}

# header NAME: from what `headers` printed, read on standard input.
header() { sed -n "s/^$1: //p" | paste -sd, -; }
