# ocistern's own accounts in clouds: a service principal at (the simulator of) ACR, an AWS account with moto's ECR in front of a
# docker-registry, and credential helpers, whose secrets change while ocistern runs.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

MOTO_PORT=5060 ECR_PORT=5061
# What moto says, in every account, that the password is.
ECR_PASSWORD=123456789012-auth-token

check_needs() { echo "$(python_tool moto moto_server)" docker-registry; }

check() {
    try "clouds azure: start" azure_start
    try "clouds azure: pulls of several repositories by one exchange" azure_pulls
    try "clouds azure: a token that the registry withdraws" azure_withdrawn
    try "clouds azure: a wrong secret is told, without the secret" azure_wrong
    try "clouds azure: Entra ID is away" azure_away
    try "clouds azure: nothing leaked" acr_nothing_leaked
    try "clouds azure: stop" cistern_stop
    try "clouds azure, static: start" static_start
    try "clouds azure, static: pulls without Entra ID" static_pulls
    try "clouds azure, static: where passwords are not taken by POST" static_by_get
    try "clouds azure, static: a wrong secret is told, without the secret" static_wrong
    try "clouds azure, static: nothing leaked" acr_nothing_leaked
    try "clouds azure, static: stop" cistern_stop
    acr_stop
    try "clouds ecr: start" ecr_start
    try "clouds ecr: pulls by keys in files" ecr_pulls
    try "clouds ecr: pulls by keys in the environment" ecr_environment
    try "clouds ecr: wrong keys are told, without the keys" ecr_wrong
    try "clouds ecr: stop" ecr_stop
    try "clouds helper: a password that changes" helper_rotates
    try "clouds helper: an identity token" helper_identity
}

# fetch PATH: status; the answer is in $WORK/tmp/answer.
fetch() { curl -sS -m 30 -o "$WORK/tmp/answer" -w '%{http_code}' -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$OCISTERN$1"; }

azure_start() {
    local repository
    acr_start
    for repository in one two three; do
        bounded skopeo copy --quiet --preserve-digests --dest-tls-verify=false --dest-creds "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" \
            "oci:$(single_image):app" "docker://127.0.0.1:$ACR_PORT/clouds/$repository:1"
    done
    printf '%s\n' "$SP_PASSWD" >"$WORK/secret/principal"
    acr_cistern "{ from = \"azure\", tenant = \"$SP_TENANT\", client_id = \"$SP_APP_ID\", secret_file = \"$WORK/secret/principal\", authority = \"https://$ENTRA:$ACR_CLOUD_PORT\" }" 'tags = "always"'
}

azure_pulls() {
    local repository
    acr_control log/clear '{}'
    for repository in one two three; do
        same status 200 "$(fetch "/v2/clouds/$repository/manifests/1")"
        same digest "$(acr_digest "clouds/$repository" 1)" "$(digest_of "$WORK/tmp/answer")"
        same status 200 "$(fetch "/v2/clouds/$repository/blobs/$(jq -r '.layers[0].digest' "$WORK/tmp/answer")")"
    done
    same "logins at Entra ID" 1 "$(acr_requests cloud POST)"
    same "exchanges" 1 "$(acr_requests exchange)"
    same "tokens" 3 "$(acr_requests token POST)"
    # The secret was shown to Entra ID and to nobody else.
    same "requests to the registry with the secret" 0 "$(acr_control log | jq --arg secret "$(printf %s "$SP_APP_ID:$SP_PASSWD" | base64 -w0)" '[.[] | select(.listener == "registry" and (.headers | tostring | contains($secret)))] | length')"
}

azure_withdrawn() {
    acr_control tokens/expire '{}' >/dev/null
    # What was got only seconds ago is not got again for that.
    wait_for 20 pulled_again
}
pulled_again() { [[ $(fetch /v2/clouds/one/manifests/1) == 200 ]]; }

azure_wrong() {
    printf 'not-the-secret\n' >"$WORK/secret/principal"
    cistern_stop
    cistern_run
    same status 502 "$(fetch /v2/clouds/two/manifests/none)"
    grep -q AADSTS7000215 "$WORK/tmp/answer"
    if grep -rlF not-the-secret "$WORK/tmp/answer" "$WORK/log"/ocistern.*; then return 1; fi
    printf '%s\n' "$SP_PASSWD" >"$WORK/secret/principal"
    same "status with the right one, without a restart" 404 "$(fetch /v2/clouds/two/manifests/none)"
}

azure_away() {
    cistern_stop
    cistern_run
    acr_control faults '{"listener":"cloud","reset":true,"count":-1}' >/dev/null
    # What is known is served although it should be asked again.
    same status 200 "$(fetch /v2/clouds/two/manifests/1)"
    same "status of what is not known" 502 "$(fetch /v2/clouds/two/manifests/none)"
    acr_mend
}

# The same service principal as a name and a password that the registry itself takes.
static_start() {
    printf '%s\n' "$SP_PASSWD" >"$WORK/secret/principal"
    acr_cistern "{ from = \"static\", username = \"$SP_APP_ID\", password_file = \"$WORK/secret/principal\" }" 'tags = "always"'
}

static_pulls() {
    acr_control log/clear '{}' >/dev/null
    static_fetches
    same "requests to Entra ID" 0 "$(acr_requests cloud)"
    same "exchanges" 0 "$(acr_requests exchange)"
    same "users that the registry saw" "$SP_APP_ID" "$(acr_control log | jq -r '.[] | select(.listener == "registry" and .status == 200 and .class != "ping" and .class != "metadata") | .user' | sort -u)"
    acr_storage_clean
}
static_fetches() {
    local repository layer
    for repository in one two three; do
        same status 200 "$(fetch "/v2/clouds/$repository/manifests/1")"
        same digest "$(acr_digest "clouds/$repository" 1)" "$(digest_of "$WORK/tmp/answer")"
        layer=$(jq -r '.layers[0].digest' "$WORK/tmp/answer")
        same status 200 "$(fetch "/v2/clouds/$repository/blobs/$layer")"
        same digest "$layer" "$(digest_of "$WORK/tmp/answer")"
    done
}

static_by_get() {
    acr_control settings '{"post_password_400":true}' >/dev/null
    cistern_stop
    # Nothing is known, neither content nor tokens.
    static_start
    static_fetches
    acr_control settings '{"post_password_400":false}' >/dev/null
}

static_wrong() {
    printf 'not-the-secret\n' >"$WORK/secret/principal"
    cistern_stop
    cistern_run
    same status 403 "$(fetch /v2/clouds/two/manifests/none)"
    cat "$WORK/tmp/answer"
    same code DENIED "$(jq -r '.errors[0].code' "$WORK/tmp/answer")"
    [[ $(jq -r '.errors[0].message' "$WORK/tmp/answer") == *"$ACR"* ]]
    if grep -raF -e not-the-secret -e "$(printf %s "$SP_APP_ID:not-the-secret" | base64 -w0)" "$WORK/tmp/answer" "$WORK/log"/ocistern.*; then return 1; fi
    printf '%s\n' "$SP_PASSWD" >"$WORK/secret/principal"
    same "status with the right one, without a restart" 404 "$(fetch /v2/clouds/two/manifests/none)"
}

# The registry takes ECR's password; moto, which checks signatures and rights, hands it out.
ecr_start() {
    htpasswd -nbB AWS "$ECR_PASSWORD" >"$WORK/secret/ecr"
    mkdir -p "$WORK/upstream/ecr"
    distribution_config $ECR_PORT "$WORK/upstream/ecr" "auth: {htpasswd: {realm: ecr, path: $WORK/secret/ecr}}" >"$WORK/upstream/ecr.yml"
    spawn ecr docker-registry serve "$WORK/upstream/ecr.yml"
    wait_http ecr http://127.0.0.1:$ECR_PORT/v2/
    bounded skopeo copy --quiet --preserve-digests --dest-tls-verify=false --dest-creds "AWS:$ECR_PASSWORD" \
        "oci:$(single_image):app" "docker://127.0.0.1:$ECR_PORT/clouds/one:1"
    INITIAL_NO_AUTH_ACTION_COUNT=3 spawn moto "$(python_tool moto moto_server)" -H 127.0.0.1 -p $MOTO_PORT
    wait_http moto http://127.0.0.1:$MOTO_PORT/moto-api/
    "$(python_tool moto python)" "$E2E/awskeys.py" "http://127.0.0.1:$MOTO_PORT" >"$WORK/secret/aws"
    cut -d' ' -f2 "$WORK/secret/aws" >"$WORK/secret/aws-secret"
}

# ecr_cistern KEYS: with what stands for the keys in `credentials`.
ecr_cistern() {
    rm -rf "$WORK/cistern"
    cat >"$WORK/ocistern.toml" <<TOML
root = "$WORK/cistern"
builtin_upstreams = false
[[listener]]
address = "$OCISTERN"
default_upstream = "ecr.test"
[admin]
address = "$ADMIN"
[store]
capacity = "2GiB"
[upstream."ecr.test"]
url = "http://127.0.0.1:$ECR_PORT"
credentials = { from = "ecr", region = "eu-central-1", endpoint = "http://127.0.0.1:$MOTO_PORT"$1 }
TOML
    cistern_run
}

ecr_fetches() {
    local before
    before=$(moto_requests)
    same status 200 "$(fetch /v2/clouds/one/manifests/1)"
    same digest "$(jq -r '.manifests[0].digest' "$(single_image)/index.json")" "$(digest_of "$WORK/tmp/answer")"
    same status 404 "$(fetch /v2/clouds/two/manifests/1)"
    same "requests to ECR" 1 $(($(moto_requests) - before))
    if grep -rlF -e "$(<"$WORK/secret/aws-secret")" -e "$ECR_PASSWORD" "$WORK/log"/ocistern.* "$WORK/cistern"; then return 1; fi
    cistern_stop
}

moto_requests() { grep -c '"POST / HTTP' "$WORK/log/moto.err" || true; }

ecr_pulls() {
    ecr_cistern ", access_key_id = \"$(cut -d' ' -f1 "$WORK/secret/aws")\", secret_file = \"$WORK/secret/aws-secret\""
    ecr_fetches
}

ecr_environment() {
    AWS_ACCESS_KEY_ID=$(cut -d' ' -f1 "$WORK/secret/aws") AWS_SECRET_ACCESS_KEY=$(<"$WORK/secret/aws-secret") ecr_cistern ''
    ecr_fetches
}

ecr_wrong() {
    echo wrong-key >"$WORK/secret/aws-wrong"
    ecr_cistern ", access_key_id = \"$(cut -d' ' -f1 "$WORK/secret/aws")\", secret_file = \"$WORK/secret/aws-wrong\""
    same status 502 "$(fetch /v2/clouds/one/manifests/1)"
    grep -q 'refuses the account' "$WORK/tmp/answer"
    if grep -rlF wrong-key "$WORK/tmp/answer" "$WORK/log"/ocistern.*; then return 1; fi
    cistern_stop
}

ecr_stop() {
    halt moto KILL
    halt ecr
}

# helper NAME SCRIPT: the program docker-credential-NAME, first in PATH.
helper() {
    mkdir -p "$WORK/helpers"
    printf '#!/bin/sh\nread -r server\necho "$1 $server" >>"%s"\n%s\n' "$WORK/helpers/asked" "$2" >"$WORK/helpers/docker-credential-$1"
    chmod 755 "$WORK/helpers/docker-credential-$1"
    : >"$WORK/helpers/asked"
}

# The registry's password changes, and the helper knows it: no restart, and no minute of refusals.
helper_rotates() {
    local PATH=$WORK/helpers:$PATH
    cp "$WORK/secret/htpasswd" "$WORK/secret/htpasswd.before"
    echo first >"$WORK/helpers.password"
    htpasswd -nbB "$PULL_USER" first >"$WORK/secret/htpasswd"
    helper rotating "printf '{\"ServerURL\":\"x\",\"Username\":\"$PULL_USER\",\"Secret\":\"%s\"}' \"\$(cat '$WORK/helpers.password')\""
    cistern_start '{ from = "helper", name = "rotating" }' always
    wait_for 10 basic_pull v1
    same asked "get ${UPSTREAM_ADDRESS[basic.test]}" "$(tail -n 1 "$WORK/helpers/asked")"
    echo second >"$WORK/helpers.password"
    htpasswd -nbB "$PULL_USER" second >"$WORK/secret/htpasswd"
    wait_for 10 basic_pull v1
    cp "$WORK/secret/htpasswd.before" "$WORK/secret/htpasswd"
    cistern_stop
}
basic_pull() { [[ $(fetch "/v2/basic.test/team/app/manifests/$1") == 200 ]]; }

# As docker-credential-acr-env answers: a refresh token of the registry under the name <token>.
helper_identity() {
    local PATH=$WORK/helpers:$PATH token entra
    acr_start
    bounded skopeo copy --quiet --preserve-digests --dest-tls-verify=false --dest-creds "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" \
        "oci:$(single_image):app" "docker://127.0.0.1:$ACR_PORT/clouds/one:1"
    entra=$(curl -fsS "https://$ENTRA:$ACR_CLOUD_PORT/$SP_TENANT/oauth2/v2.0/token" -d grant_type=client_credentials \
        -d "client_id=$SP_APP_ID" -d "client_secret=$SP_PASSWD" -d scope=https://containerregistry.azure.net/.default | jq -r .access_token)
    token=$(acr_direct /oauth2/exchange -d grant_type=access_token -d "service=$ACR" -d "access_token=$entra" | jq -r .refresh_token)
    helper acr-env "echo '{\"ServerURL\":\"x\",\"Username\":\"<token>\",\"Secret\":\"$token\"}'"
    acr_cistern '{ from = "helper", name = "acr-env" }'
    same status 200 "$(fetch /v2/clouds/one/manifests/1)"
    same asked "get $ACR" "$(tail -n 1 "$WORK/helpers/asked")"
    if grep -rlF "$token" "$WORK"/log/ocistern.* "$WORK/cistern"; then return 1; fi
    cistern_stop
    acr_stop
}
