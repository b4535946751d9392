# A registry on Azure, as far as one machine goes: the simulator of ACR under the registry's own name and with TLS, and
# ocistern in front of it under the same name. Sourced by run; used by checks that start it themselves.
# shellcheck shell=bash
#
#   https://myregistry.azurecr.io     ocistern (port 443); the hosts file leads there
#   127.0.0.1:$ACR_PORT               the simulator, to which `connect` leads ocistern
#   localhost:$OCISTERN_PORT          ocistern by its own address, where the registry is the default upstream

ACR=myregistry.azurecr.io
ACR_STORAGE=wus3managed23.blob.core.windows.net
# Where a registry with dedicated data endpoints has its blobs.
ACR_DATA=myregistry.westeurope.data.azurecr.io
ACR_PORT=5007 ACR_STORAGE_PORT=5008 ACR_CONTROL_PORT=5009 ACR_CLOUD_PORT=5010
ACR_ADMIN=myregistry ACR_ADMIN_PASSWORD=admin-secret
# The simulator's service principal, under the names that the how-to gives it.
SP_APP_ID=11111111-1111-4111-8111-111111111111 SP_PASSWD=sp-secret
SP_TENANT=72f988bf-0000-4000-8000-2d7cd011db47
ENTRA=login.simulated ARM=management.simulated

# own_names: names and certificates; once is enough. Every client trusts the CA, each in its own way. oci.test is there for
# whoever serves that upstream under its own name.
own_names() {
    local tls=$WORK/tls directory
    [[ ! -d $tls ]] || return 0
    mkdir -p "$tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=end-to-end CA' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$tls/ca.key" -out "$tls/ca.crt"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$ACR" -keyout "$tls/server.key" -out "$tls/server.csr"
    openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial -days 2 -out "$tls/server.crt" -extfile <(
        printf 'subjectAltName=DNS:%s,DNS:%s,DNS:%s,DNS:%s,DNS:%s,DNS:oci.test,DNS:localhost,IP:127.0.0.1\n' \
            "$ACR" "$ACR_STORAGE" "$ACR_DATA" "$ENTRA" "$ARM"
        printf 'basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n'
    )
    # Go's clients and curl read the system's bundle; /etc is the suite's own.
    cat "$tls/ca.crt" >>/etc/ssl/certs/ca-certificates.crt
    for directory in "/etc/docker/certs.d/$ACR" "/etc/containers/certs.d/$ACR"; do
        mkdir -p "$directory"
        cp "$tls/ca.crt" "$directory/ca.crt"
    done
    printf '127.0.0.1 %s %s %s %s %s oci.test\n' "$ACR" "$ACR_STORAGE" "$ACR_DATA" "$ENTRA" "$ARM" >>/etc/hosts
}

# acr_start [FLAG…]: an empty registry.
acr_start() {
    own_names
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

acr_mend() { curl -fsS -m 10 -X DELETE "http://127.0.0.1:$ACR_CONTROL_PORT/control/faults" >/dev/null; }

# acr_digest REPOSITORY TAG: what the registry has there; nothing if it says that it has not.
acr_digest() {
    local said
    said=$(acr_direct "/acr/v1/$1/_tags/$2")
    jq -er '.tag.digest // if (.errors | map(.code) | inside(["TAG_UNKNOWN", "NAME_UNKNOWN", "MANIFEST_UNKNOWN"])) then "" else error("\(.)") end' <<<"$said"
}

# acr_requests CLASS [METHOD]: how many so far.
acr_requests() {
    acr_control log | jq --arg class "$1" --arg method "${2:-}" '[.[] | select(.class == $class and ($method == "" or .method == $method))] | length'
}

# acr_storage_clean: nobody showed a credential to storage since the log was cleared.
acr_storage_clean() { same "requests with credentials at storage" 0 "$(acr_control counters | jq .authorization_at_storage)"; }

# acr_nothing_leaked: nobody showed a credential to storage; and no password, in none of the forms in which one is sent, and no
# token is in what ocistern writes and says, but for the token in the answer that gives it.
acr_nothing_leaked() {
    local at=$WORK/leaks token
    acr_storage_clean
    rm -rf "$at"
    mkdir -p "$at/answers"
    acr_secrets >"$at/secrets"
    # Of every token that upstream was ever shown, the end of its signature.
    jq -rR 'fromjson? | .headers.Authorization[]? | select(startswith("Bearer ")) | .[-40:]' "$WORK/log/acr.requests" | sort -u >"$at/tokens"
    token=$(acr_answers "$at/answers")
    {
        cat "$at/secrets" "$at/tokens"
        if [[ -n $token ]]; then echo "${token: -40}"; fi
    } >"$at/all"
    # Patterns that are there, and none that is found everywhere.
    (($(grep -cE '.{8}' "$at/secrets") >= 18))
    none "patterns that are too short" "$(grep -vE '.{8}' "$at/all" || true)"
    none_of "$at/all" "$WORK/log"/ocistern.* "$WORK/cistern"
    # What the parts of a token say counts too.
    tr -c 'A-Za-z0-9_-' '\n' <"$at/answers/token" | awk 'length > 20' | while read -r token; do
        printf %s "$token" | tr '_-' '/+' | base64 -di 2>/dev/null || true
    done >"$at/answers/token.decoded"
    cat "$at/secrets" "$at/tokens" >"$at/all"
    none_of "$at/all" "$at/answers"
}

# acr_secrets: of each account the password, and it in base64, alone and behind the name, in both alphabets and without padding.
acr_secrets() {
    local user secret
    while read -r user secret; do
        printf '%s\n' "$secret"
        for secret in "$secret" "$user:$secret"; do
            secret=$(printf %s "$secret" | base64 -w0)
            # Whole groups of four, which stay the same whatever follows.
            secret=${secret%%=*}
            printf '%s\n' "${secret:0:${#secret}/4*4}" | sed 'p; y|+/|-_|' | sort -u
        done
    done <<ACCOUNTS
$SP_APP_ID $SP_PASSWD
$ACR_ADMIN $ACR_ADMIN_PASSWORD
pusher pusher-secret
puller puller-secret
scoped scoped-secret
00000000-0000-0000-0000-000000000000 $SP_PASSWD
ACCOUNTS
}

# acr_answers DIRECTORY: answers of ocistern's to right and wrong credentials; prints a token that is in one of them, if any.
acr_answers() {
    local ask=(curl -sS -m 30 -i) path
    "${ask[@]}" "http://$ADMIN/metrics" >"$1/metrics"
    for path in /v2/ /v2/leaks/none/manifests/1 /v2/leaks/none/tags/list /acr/v1/leaks/none; do
        "${ask[@]}" -u "$SP_APP_ID:$SP_PASSWD" "http://$OCISTERN$path" >"$1/right${path//\//_}"
        "${ask[@]}" -u "$SP_APP_ID:$SP_PASSWD-and-more" "http://$OCISTERN$path" >"$1/wrong${path//\//_}"
    done
    "${ask[@]}" -u "$SP_APP_ID:$SP_PASSWD" "http://$OCISTERN/oauth2/token?service=localhost:$OCISTERN_PORT&offline_token=true&scope=repository:leaks/none:pull" >"$1/token"
    sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p' "$1/token"
}

# none_of PATTERNS PATH…: in no file below, but for the keys' own.
none_of() {
    local patterns=$1 found
    shift
    found=$(grep -raoF --exclude-dir=private -f "$patterns" "$@" || true)
    [[ -z $found ]] || {
        # The case's log may be shown to others: which file, and the beginning of what is in it.
        printf 'a secret is in what ocistern wrote or said:\n%s\n' "$(cut -c1-200 <<<"$found")" >&2
        return 1
    }
}
