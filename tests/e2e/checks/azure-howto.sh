# Microsoft's how-to "Push and pull an OCI artifact using an Azure container registry" of 2021, from top to
# bottom: its commands word for word, by ORAS 0.12 and the real Azure CLI, under the registry's own name; the lines of ORAS once
# more by ocistern's own address, and in the spelling of ORAS 1.x.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"
# shellcheck source=tests/e2e/checks/azure-cli.sh
source "$E2E/checks/azure-cli.sh"

check_needs() { echo "$(python_tool az az)" dockerd /usr/bin/docker; }

check() {
    try "azure-howto start" page_start
    note "ORAS $("$WORK/bin/oras0" version | sed -n 's/^Version: *//p'), $(az_ version --output tsv 2>/dev/null | head -n 1 | sed 's/^/azure-cli /; s/\t.*//')"
    try "azure-howto sign in with a service principal" page_sign_in
    try "azure-howto the page" page_body
    try "azure-howto sign in with az login and az acr login" page_sign_in_az
    try "azure-howto the page again, as az is signed in" page_body
    try "azure-howto ORAS 0.12 by ocistern's own address" page_own
    try "azure-howto ORAS 1.x" page_new
    try "azure-howto a repeated pull comes from the cache" page_repeated
    try "azure-howto nothing leaked" acr_nothing_leaked
    docker_stop
    try "azure-howto stop" cistern_stop
    acr_stop
}

page_start() {
    # Nobody is signed in, whatever ran before.
    rm -rf "$WORK/az"
    acr_start
    acr_cistern
    docker_start
    mkdir -p "$WORK/page/bin"
    ln -s "$WORK/bin/oras0" "$WORK/page/bin/oras"
    # The CLI as a user has it: signed in or not by what is in its directory; and who deletes is asked on a terminal, and says yes.
    cat >"$WORK/page/bin/az" <<SH
#!/bin/bash
export AZURE_CONFIG_DIR='$WORK/az' AZURE_CORE_COLLECT_TELEMETRY=0 AZURE_CORE_ONLY_SHOW_ERRORS=1 AZURE_CORE_NO_COLOR=1
export REQUESTS_CA_BUNDLE='$WORK/tls/ca.crt' DOCKER_COMMAND=/usr/bin/docker DOCKER_HOST='unix://$WORK/storage/dockerd/docker.sock'
command=('$(python_tool az az)' "\$@" \$AZ_CREDENTIALS)
[[ "\$*" == *\ delete\ * ]] || exec "\${command[@]}"
exec script --quiet --return --command "\${command[*]@Q}" /dev/null <<<y
SH
    chmod 755 "$WORK/page/bin/az"
}

# page NAME: runs the lines on standard input as a user would type them, in a directory of their own.
page() {
    rm -rf "$WORK/page/$1"
    mkdir -p "$WORK/page/$1" "$WORK/page/docker"
    (
        cd "$WORK/page/$1" || exit 1
        PATH=$WORK/page/bin:$PATH DOCKER_CONFIG=$WORK/page/docker SP_APP_ID=$SP_APP_ID SP_PASSWD=$SP_PASSWD \
            AZ_CREDENTIALS=${AZ_CREDENTIALS:-} LIMIT=600 bounded bash -euxo pipefail
    )
}

page_sign_in() {
    page login <<'PAGE'
oras login myregistry.azurecr.io --username $SP_APP_ID --password $SP_PASSWD
echo $SP_PASSWD | oras login myregistry.azurecr.io --username $SP_APP_ID --password-stdin
PAGE
    # Whoever comes next has the page's other way to sign in.
    [[ $(jq -r '.auths | keys[]' "$WORK/page/docker/config.json") == "$ACR" ]]
}

# A person's own identity; here a service principal's, against stubs of Entra ID and Resource Manager, because a person's needs a
# browser.
page_sign_in_az() {
    rm -rf "$WORK/page/docker"
    az_login
    page login-az <<'PAGE'
az acr login --name myregistry
PAGE
    [[ $(jq -r '.auths | keys[]' "$WORK/page/docker/config.json") == "$ACR" ]]
}

# The CLI is given a password where it is not signed in.
page_body() {
    local AZ_CREDENTIALS=
    [[ -f $WORK/az/msal_token_cache.json || -f $WORK/az/service_principal_entries.json ]] || AZ_CREDENTIALS="-u $SP_APP_ID -p $SP_PASSWD"
    page body <<'PAGE'
echo "Here is an artifact" > artifact.txt
oras push myregistry.azurecr.io/samples/artifact:1.0 --manifest-config /dev/null:application/vnd.unknown.config.v1+json ./artifact.txt:application/vnd.unknown.layer.v1+txt | tee pushed
grep -q '^Uploading ' pushed
grep -q '^Pushed myregistry.azurecr.io/samples/artifact:1.0' pushed
grep -q '^Digest: sha256:' pushed

az acr repository show --name myregistry --image samples/artifact:1.0 > shown
jq -e '.changeableAttributes | .deleteEnabled and .listEnabled and .readEnabled and .writeEnabled' shown
jq -e '.name == "1.0" and .signed == false and (.createdTime | length > 0) and (.lastUpdateTime | length > 0)' shown
test "Digest: $(jq -r .digest shown)" = "$(grep ^Digest: pushed)"

mkdir empty
cd empty
oras pull myregistry.azurecr.io/samples/artifact:1.0 --media-type application/vnd.unknown.layer.v1+txt
cat artifact.txt
test "$(cat artifact.txt)" = "Here is an artifact"
cd ..

az acr repository delete --name myregistry --image samples/artifact:1.0
mkdir gone
cd gone
if oras pull myregistry.azurecr.io/samples/artifact:1.0 --media-type application/vnd.unknown.layer.v1+txt; then exit 1; fi
cd ..

echo "FROM mcr.microsoft.com/hello-world" > hello-world.dockerfile
oras push myregistry.azurecr.io/dockerfile:1.0 hello-world.dockerfile
PAGE
    build
    page after <<'PAGE'
az acr repository show --name myregistry --image builds/hello-world:v1
az acr repository delete --name myregistry --image builds/hello-world:v1
PAGE
}

# `az acr build --registry myregistry --image builds/hello-world:v1 --file hello-world.dockerfile
# oci://myregistry.azurecr.io/dockerfile:1.0`: the CLI hands the address to Azure, where a build pulls the artifact from the
# registry itself and pushes the image to it. So does this, past ocistern.
build() {
    local at=$WORK/page/build credentials=(--dest-creds "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" --dest-tls-verify=false)
    crane_page() { DOCKER_CONFIG=$WORK/page/docker bounded "$(go_tool crane)" "$@"; }
    fails crane_page digest "$ACR/builds/hello-world:v1"
    rm -rf "$at"
    mkdir -p "$at"
    bounded "$(go_tool oras)" pull --insecure --username "$ACR_ADMIN" --password "$ACR_ADMIN_PASSWORD" --output "$at" "127.0.0.1:$ACR_PORT/dockerfile:1.0"
    same "the file that the build gets" "FROM mcr.microsoft.com/hello-world" "$(<"$at/hello-world.dockerfile")"
    bounded skopeo copy --quiet --preserve-digests "${credentials[@]}" "oci:$(single_image):app" "docker://127.0.0.1:$ACR_PORT/builds/hello-world:v1"
    wait_for 3 crane_page digest "$ACR/builds/hello-world:v1"
    same digest "$(acr_digest builds/hello-world v1)" "$(crane_page digest "$ACR/builds/hello-world:v1")"
}

page_own() {
    page own <<'PAGE'
oras login localhost:5000 --insecure --username $SP_APP_ID --password $SP_PASSWD
echo "Here is an artifact" > artifact.txt
oras push localhost:5000/samples/artifact:1.0 --manifest-config /dev/null:application/vnd.unknown.config.v1+json ./artifact.txt:application/vnd.unknown.layer.v1+txt
mkdir empty
cd empty
oras pull localhost:5000/samples/artifact:1.0 --media-type application/vnd.unknown.layer.v1+txt
test "$(cat artifact.txt)" = "Here is an artifact"
cd ..
echo "FROM mcr.microsoft.com/hello-world" > hello-world.dockerfile
oras push localhost:5000/dockerfile:1.0 hello-world.dockerfile
PAGE
    # A config of no bytes is what the page pushes.
    same "size of the config" 0 "$(acr_direct /v2/samples/artifact/manifests/1.0 -H 'Accept: application/vnd.oci.image.manifest.v1+json' | jq .config.size)"
}

page_new() {
    ln -sf "$(go_tool oras)" "$WORK/page/bin/oras1"
    page new <<'PAGE'
for registry in localhost:5000 myregistry.azurecr.io; do
    oras1 login $registry --username $SP_APP_ID --password $SP_PASSWD
    echo "Here is an artifact" > artifact.txt
    oras1 push $registry/samples/new:1.0 --config /dev/null:application/vnd.unknown.config.v1+json --image-spec v1.0 --disable-path-validation ./artifact.txt:application/vnd.unknown.layer.v1+txt
    mkdir empty
    cd empty
    oras1 pull $registry/samples/new:1.0
    test "$(cat artifact.txt)" = "Here is an artifact"
    cd ..
    rm -r empty
    oras1 manifest delete --force $registry/samples/new:1.0
    if oras1 pull $registry/samples/new:1.0; then exit 1; fi
done
PAGE
}

page_repeated() {
    acr_control log/clear '{}'
    page repeated <<'PAGE'
oras pull localhost:5000/samples/artifact:1.0 --media-type application/vnd.unknown.layer.v1+txt
oras pull myregistry.azurecr.io/samples/artifact:1.0 --media-type application/vnd.unknown.layer.v1+txt
test "$(cat artifact.txt)" = "Here is an artifact"
PAGE
    same "blobs downloaded from the registry" 0 "$(acr_requests storage GET)"
    # Two pulls under one name in a row: the second finds all that the first had.
    (($(metric ocistern_requests_total 'result="hit"') > 0))
}
