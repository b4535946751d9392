# ocistern's own account from a docker config.json: private upstreams with Basic and with tokens; and wrong passwords.
# shellcheck shell=bash

check() {
    local good bad
    mkdir -p "$WORK/docker/good" "$WORK/docker/bad"
    docker_config "$PULL_PASSWORD" >"$WORK/docker/good/config.json"
    docker_config wrong >"$WORK/docker/bad/config.json"
    good="{ from = \"docker-config\", path = \"$WORK/docker/good/config.json\" }"
    bad="{ from = \"docker-config\", path = \"$WORK/docker/bad/config.json\" }"
    try "credentials start" cistern_start "$good"
    for item in basic bearer; do try "credentials docker-config, $item" pulls $item; done
    try "credentials one token for many requests" one_token
    try "credentials stop" cistern_stop
    try "credentials start with a wrong password" cistern_start "$bad"
    for item in basic bearer; do try "credentials wrong password, $item" refused $item; done
    try "credentials stop after a wrong password" cistern_stop
    try "credentials start with none" cistern_start '{ from = "anonymous" }'
    for item in basic bearer; do try "credentials none, $item" refused $item; done
    try "credentials stop after none" cistern_stop
}

docker_config() {
    jq -n --arg auth "$(printf %s "$PULL_USER:$1" | base64 -w0)" \
        --arg basic "${UPSTREAM_ADDRESS[basic.test]}" --arg bearer "${UPSTREAM_ADDRESS[bearer.test]}" \
        '{auths: {($basic): {auth: $auth}, ($bearer): {auth: $auth}}}'
}

pulls() {
    local to=$WORK/storage/credentials
    rm -rf "$to"
    bounded skopeo copy --quiet --src-tls-verify=false --digestfile "$WORK/tmp/digest" \
        "docker://$OCISTERN/$(upstream_of "$1")/$(repository_of "$1")$(reference "$1")" "dir:$to"
    same digest "$(expected "$1" manifest)" "$(<"$WORK/tmp/digest")"
}

# However many requests a pull is, tokens are asked for once per scope.
one_token() {
    local tokens tag
    tokens=$(grep -c '"GET /token\|"POST /token' "$WORK/log/token.out")
    for tag in no-such-tag no-such-tag-either; do
        same "status of $tag" 404 "$(curl -sS -m 30 -o /dev/null -w '%{http_code}' "http://$OCISTERN/v2/bearer.test/team/app/manifests/$tag")"
    done
    same "token requests" "$tokens" "$(grep -c '"GET /token\|"POST /token' "$WORK/log/token.out")"
}

# An error that says who was refused, at once, and nothing of the upstream's challenge or the password in it.
refused() {
    local answer=$WORK/tmp/answer head=$WORK/tmp/head code
    code=$(curl -sS -m 30 -D "$head" -o "$answer" -w '%{http_code}' "http://$OCISTERN/v2/$(upstream_of "$1")/team/app/manifests/v1")
    [[ $code == 401 || $code == 403 || $code == 502 ]] || same status "401, 403 or 502" "$code"
    [[ $(jq -r '.errors[0].message' "$answer") == *"$(upstream_of "$1")"* ]]
    cat "$answer"
    if grep -F "$PULL_PASSWORD" "$answer" "$head"; then return 1; fi
}
