# A registry on Azure, as far as one machine goes: the simulator of ACR under the registry's own name and with TLS, and
# ocistern in front of it under the same name. Sourced by run; used by checks that start it themselves.
# shellcheck shell=bash
#
#   https://myregistry.azurecr.io     ocistern (port 443); the hosts file leads there
#   127.0.0.1:$ACR_PORT               the simulator, to which `connect` leads ocistern
#   localhost:$OCISTERN_PORT          ocistern by its own address, where the registry is the default upstream

ACR=myregistry.azurecr.io
ACR_STORAGE=wus3managed23.blob.core.windows.net
ACR_PORT=5007 ACR_STORAGE_PORT=5008 ACR_CONTROL_PORT=5009 ACR_CLOUD_PORT=5010
ACR_ADMIN=myregistry ACR_ADMIN_PASSWORD=admin-secret
# The simulator's service principal, under the names that the how-to gives it.
SP_APP_ID=11111111-1111-4111-8111-111111111111 SP_PASSWD=sp-secret
SP_TENANT=72f988bf-0000-4000-8000-2d7cd011db47
ENTRA=login.simulated ARM=management.simulated

# acr_names: names and certificates; once is enough. Every client trusts the CA, each in its own way.
acr_names() {
    local tls=$WORK/tls directory
    [[ ! -d $tls ]] || return 0
    mkdir -p "$tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=end-to-end CA' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$tls/ca.key" -out "$tls/ca.crt"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$ACR" -keyout "$tls/server.key" -out "$tls/server.csr"
    openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial -days 2 -out "$tls/server.crt" -extfile <(
        printf 'subjectAltName=DNS:%s,DNS:%s,DNS:%s,DNS:%s,DNS:localhost,IP:127.0.0.1\n' "$ACR" "$ACR_STORAGE" "$ENTRA" "$ARM"
        printf 'basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n'
    )
    # Go's clients and curl read the system's bundle; /etc is the suite's own.
    cat "$tls/ca.crt" >>/etc/ssl/certs/ca-certificates.crt
    for directory in "/etc/docker/certs.d/$ACR" "/etc/containers/certs.d/$ACR"; do
        mkdir -p "$directory"
        cp "$tls/ca.crt" "$directory/ca.crt"
    done
    printf '127.0.0.1 %s %s %s %s\n' "$ACR" "$ACR_STORAGE" "$ENTRA" "$ARM" >>/etc/hosts
}

# acr_start [FLAG…]: an empty registry.
acr_start() {
    acr_names
    # Of a case that failed before it came to its end.
    halt acr KILL
    spawn acr "$WORK/bin/acr" -registry 127.0.0.1:$ACR_PORT -storage 127.0.0.1:$ACR_STORAGE_PORT \
        -control 127.0.0.1:$ACR_CONTROL_PORT -cloud 127.0.0.1:$ACR_CLOUD_PORT -login-server "$ACR" \
        -storage-authority "$ACR_STORAGE:$ACR_STORAGE_PORT" -tenant "$SP_TENANT" \
        -tls-cert "$WORK/tls/server.crt" -tls-key "$WORK/tls/server.key" -log "$WORK/log/acr.requests" "$@"
    wait_http acr http://127.0.0.1:$ACR_CONTROL_PORT/control/settings
}

acr_stop() { halt acr; }

# acr_cistern [CREDENTIALS [LINE]]: ocistern with the registry as the only upstream, on an empty root. CREDENTIALS stands for
# its `credentials`; LINE is one more of its table.
acr_cistern() {
    rm -rf "$WORK/cistern"
    cat >"$WORK/ocistern.toml" <<TOML
root = "$WORK/cistern"
builtin_upstreams = false

[[listener]]
address = "127.0.0.1:$OCISTERN_PORT"
default_upstream = "$ACR"

[[listener]]
address = "[::1]:$OCISTERN_PORT"
default_upstream = "$ACR"

[[listener]]
address = "127.0.0.1:443"
default_upstream = ""
tls = { certificate = "$WORK/tls/server.crt", key = "$WORK/tls/server.key" }
hostnames = { "$ACR" = "$ACR" }

[admin]
address = "$ADMIN"

[store]
capacity = "2GiB"

[upstream."$ACR"]
connect = ["127.0.0.1:$ACR_PORT"]
ca = "$WORK/tls/ca.crt"
credentials = ${1:-"{ from = \"auto\" }"}
${2:-}
TOML
    cistern_run
}

# --- the simulator's own word ------------------------------------------------------------------------------------------

# acr_control PATH [JSON]
acr_control() {
    if (($# > 1)); then
        curl -fsS -m 10 -X POST -d "$2" "http://127.0.0.1:$ACR_CONTROL_PORT/control/$1"
    else
        curl -fsS -m 10 "http://127.0.0.1:$ACR_CONTROL_PORT/control/$1"
    fi
}

# acr_direct PATH [CURL ARGUMENT…]: past ocistern, as the administrator.
acr_direct() {
    local path=$1
    shift
    curl -sS -m 20 --connect-to "$ACR:443:127.0.0.1:$ACR_PORT" -u "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" "$@" "https://$ACR$path"
}

# acr_digest REPOSITORY TAG: what the registry has there; nothing if it has not.
acr_digest() { acr_direct "/acr/v1/$1/_tags/$2" | jq -r '.tag.digest // empty'; }

# acr_requests CLASS [METHOD]: how many so far.
acr_requests() {
    acr_control log | jq --arg class "$1" --arg method "${2:-}" '[.[] | select(.class == $class and ($method == "" or .method == $method))] | length'
}

# acr_nothing_leaked: nobody showed a credential to storage, and none is in what ocistern wrote.
acr_nothing_leaked() {
    same "requests with credentials at storage" 0 "$(acr_control counters | jq .authorization_at_storage)"
    local secret
    for secret in "$SP_PASSWD" "$ACR_ADMIN_PASSWORD" pusher-secret puller-secret scoped-secret; do
        if grep -rlF -e "$secret" -e "$(printf %s "$secret" | base64)" "$WORK/log"/ocistern.* "$WORK/cistern"; then
            echo "a password is in what ocistern wrote" >&2
            return 1
        fi
    done
    if curl -fsS "http://$ADMIN/metrics" | grep -F -- -secret; then return 1; fi
}
