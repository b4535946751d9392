# The real Azure CLI: everything about repositories, under the registry's own name, with a password (no Azure is needed for
# that); and, as far as it goes against stubs of Entra ID and Resource Manager, with a service principal's login.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

check_needs() { python_tool az az; }

check() {
    try "azure-cli start" az_start
    note "$(az_ version --output tsv 2>/dev/null | head -n 1 | sed 's/^/azure-cli /')"
    az_cases "azure-cli with a password" -u "$SP_APP_ID" -p "$SP_PASSWD"
    try "azure-cli login by service principal" az_login
    az_cases "azure-cli logged in"
    try "azure-cli acr login --expose-token" az_expose_token
    try "azure-cli wrong password" az_wrong
    try "azure-cli nothing leaked" acr_nothing_leaked
    try "azure-cli stop" cistern_stop
    acr_stop
}

# az_cases NAME [CREDENTIALS…]
az_cases() {
    local name=$1
    shift
    AS=("$@")
    try "$name: fill" az_fill
    try "$name: repository list, show, show-tags" az_look
    try "$name: repository update" az_update
    try "$name: repository untag and delete" az_delete
    try "$name: manifest restore" az_restore
}

# az_ ARGUMENT…: az with its state in the work directory. It reads certificates from REQUESTS_CA_BUNDLE alone.
az_() {
    AZURE_CONFIG_DIR=$WORK/az AZURE_CORE_COLLECT_TELEMETRY=0 AZURE_CORE_ONLY_SHOW_ERRORS=1 AZURE_CORE_NO_COLOR=1 \
        AZURE_EXTENSION_USE_DYNAMIC_INSTALL=no REQUESTS_CA_BUNDLE=$WORK/tls/ca.crt \
        bounded "$(python_tool az az)" "$@"
}

az_start() {
    # Nobody is signed in, whatever ran before.
    rm -rf "$WORK/az"
    acr_start
    # The CLI deletes and asks again at once; nothing of what it reads may be old.
    acr_cistern
}

az_fill() {
    STORAGE=$WORK/storage/az REGISTRY=$ACR PLAIN=0
    mkdir -p "$STORAGE"
    push_login_oras "$SP_APP_ID" "$SP_PASSWD"
    push_oras samples/artifact >/dev/null
    (cd "$CONTENT/artifact" && oras_at push "$REGISTRY/samples/artifact:2.0" artifact.txt:text/plain >/dev/null)
}

az_look() {
    local digest
    digest=$(acr_digest samples/artifact 1.0)
    az_ acr repository list --name myregistry "${AS[@]}" --output tsv | seen -x samples/artifact
    same tags "1.0 2.0" "$(az_ acr repository show-tags --name myregistry "${AS[@]}" --repository samples/artifact --output tsv | sort | paste -sd' ')"
    az_ acr repository show --name myregistry "${AS[@]}" --image samples/artifact:1.0 >"$WORK/tmp/shown"
    same digest "$digest" "$(jq -r .digest "$WORK/tmp/shown")"
    same "its keys" "changeableAttributes createdTime digest lastUpdateTime name signed" \
        "$(jq -r 'keys[]' "$WORK/tmp/shown" | grep -x 'changeableAttributes\|createdTime\|digest\|lastUpdateTime\|name\|signed' | paste -sd' ')"
    same attributes '{"deleteEnabled":true,"listEnabled":true,"readEnabled":true,"writeEnabled":true}' "$(jq -Sc .changeableAttributes "$WORK/tmp/shown")"
    same "number of manifests" 2 "$(az_ acr repository show --name myregistry "${AS[@]}" --repository samples/artifact | jq .manifestCount)"
    same digest "$digest" "$(az_ acr repository show --name myregistry "${AS[@]}" --image "samples/artifact@$digest" | jq -r .digest)"
    az_ acr manifest list-metadata --registry myregistry "${AS[@]}" --name samples/artifact | jq -r '.[].digest' | seen -x "$digest"
}

# Locked, it can be neither overwritten nor deleted; then it can again.
az_update() {
    same locked false "$(az_ acr repository update --name myregistry "${AS[@]}" --image samples/artifact:2.0 --write-enabled false | jq .changeableAttributes.writeEnabled)"
    same "locked upstream" false "$(acr_direct /acr/v1/samples/artifact/_tags/2.0 | jq .tag.changeableAttributes.writeEnabled)"
    STORAGE=$WORK/storage/az REGISTRY=$ACR PLAIN=0
    (cd "$CONTENT/artifact" && fails oras_at push "$REGISTRY/samples/artifact:2.0" data.bin:application/octet-stream)
    same unlocked true "$(az_ acr repository update --name myregistry "${AS[@]}" --image samples/artifact:2.0 --write-enabled true | jq .changeableAttributes.writeEnabled)"
}

az_delete() {
    STORAGE=$WORK/storage/az REGISTRY=$ACR PLAIN=0
    # In the cache, and in what is answered from it.
    oras_at resolve "$REGISTRY/samples/artifact:2.0"
    push_pull_oras samples/artifact >/dev/null
    az_ acr repository untag --name myregistry "${AS[@]}" --image samples/artifact:2.0
    fails oras_at resolve "$REGISTRY/samples/artifact:2.0"
    same tags 1.0 "$(oras_at 'repo tags' "$REGISTRY/samples/artifact")"
    az_ acr repository delete --name myregistry "${AS[@]}" --image samples/artifact:1.0 --yes
    is_gone acr_digest samples/artifact 1.0
    fails push_pull_oras samples/artifact
    az_ acr repository delete --name myregistry "${AS[@]}" --repository samples/artifact --yes
    fails oras_at 'repo tags' "$REGISTRY/samples/artifact"
}

# Deleted softly, and brought back: by the tag alone, which the CLI looks up, or by its digest.
az_restore() {
    local digest by=
    STORAGE=$WORK/storage/az REGISTRY=$ACR PLAIN=0
    acr_control settings '{"soft_delete":true}' >/dev/null
    push_oras samples/soft >/dev/null
    digest=$(acr_digest samples/soft 1.0)
    if ((${#AS[@]})); then by=$digest; fi
    push_pull_oras samples/soft >/dev/null
    az_ acr repository delete --name myregistry "${AS[@]}" --image samples/soft:1.0 --yes
    is_gone acr_digest samples/soft 1.0
    fails push_pull_oras samples/soft
    az_ acr manifest restore --registry myregistry "${AS[@]}" --name samples/soft:1.0 ${by:+--digest "$by"} --yes
    same "digest upstream" "$digest" "$(acr_digest samples/soft 1.0)"
    same "digest pulled" "manifest $digest" "$(push_pull_oras samples/soft)"
    acr_control settings '{"soft_delete":false}' >/dev/null
}

# A cloud of its own, whose Entra ID and Resource Manager are the simulator's stubs.
az_login() {
    local entra=https://$ENTRA:$ACR_CLOUD_PORT arm=https://$ARM:$ACR_CLOUD_PORT
    az_ cloud register --name simulated --skip-endpoint-discovery --endpoint-active-directory "$entra" --endpoint-resource-manager "$arm" \
        --endpoint-active-directory-resource-id "$arm" --endpoint-management "$arm" --suffix-acr-login-server-endpoint .azurecr.io
    az_ cloud set --name simulated
    # Entra ID's list of its own hosts is not asked about a host that is none of them.
    az_ config set core.instance_discovery=false
    az_ login --service-principal --username "$SP_APP_ID" --password "$SP_PASSWD" --tenant "$SP_TENANT" | jq -e '.[0].state == "Enabled"'
}

az_expose_token() {
    local token
    token=$(az_ acr login --name myregistry --expose-token | jq -r .accessToken)
    [[ -n $token ]]
    # As the documentation says to use it.
    STORAGE=$WORK/storage/az-token REGISTRY=$ACR PLAIN=0
    mkdir -p "$STORAGE"
    push_login_oras 00000000-0000-0000-0000-000000000000 "$token"
    push_oras exposed/app
    push_pull_oras exposed/app
    if grep -rlF "$token" "$WORK"/log/ocistern.* "$WORK/cistern"; then return 1; fi
}

az_wrong() {
    fails az_ acr repository list --name myregistry -u "$SP_APP_ID" -p wrong
    fails az_ acr repository delete --name myregistry -u puller -p puller-secret --repository samples/artifact --yes
}
