# What registries on Azure do otherwise than usual, one at a time: how they give tokens, where blobs are and for how long, what they
# refuse, and what breaks on the way. Each time a client pushes, and content that only the registry has is pulled cold and warm.
# shellcheck shell=bash
# shellcheck source=tests/e2e/pushers.sh
source "$E2E/pushers.sh"

# NAME SETTINGS: of the simulator; what is looked at besides is the function setting_NAME.
SETTINGS=(
    'post_password_400 {"post_password_400":true}'
    'basic_challenge {"basic_challenge":true}'
    'redirect_head {"redirect_head":true}'
    'redirect_min {"redirect_min":1000000}'
    'single_slash {"double_slash":false}'
    'strict_accept {"strict_accept":true}'
    'soft_delete {"soft_delete":true}'
    'short_tokens {"access_ttl":"3s"}'
)
# The same for a registry whose blobs are at data endpoints.
DATA_SETTINGS=(
    'data-endpoint {"storage_style":"data-endpoint"}'
    'data-query {"storage_style":"data-query"}'
)
MANIFEST=application/vnd.oci.image.manifest.v1+json

check() {
    local entry
    try "acr-settings start" settings_start
    for entry in "${SETTINGS[@]}"; do try "acr-settings ${entry%% *}" setting "${entry%% *}" "${entry#* }"; done
    try "acr-settings storage resets the connection" broken_storage reset '{"reset_response_at":2000000}'
    try "acr-settings storage ends the connection early" broken_storage truncate '{"truncate_at":2000000}'
    try "acr-settings storage breaks off three times" broken_storage thrice '{"reset_response_at":1500000,"count":3}' 3
    try "acr-settings storage sends a wrong byte" wrong_byte
    try "acr-settings a redirect that expires in the middle of a fill" expired_redirect
    try "acr-settings nothing leaked" acr_nothing_leaked
    try "acr-settings too many requests, for a moment" limited_shortly
    try "acr-settings too many requests, for longer" limited_long
    try "acr-settings stop" cistern_stop
    try "acr-settings data endpoints: start" data_start
    for entry in "${DATA_SETTINGS[@]}"; do try "acr-settings ${entry%% *}" setting "${entry%% *}" "${entry#* }"; done
    try "acr-settings data endpoints: nothing leaked" acr_nothing_leaked
    try "acr-settings data endpoints: stop" cistern_stop
    acr_stop
}

settings_start() {
    acr_start
    acr_cistern '{ from = "auto" }' 'tags = "always"'
}

data_start() {
    acr_start -storage-authority ''
    acr_cistern '{ from = "auto" }' 'tags = "always"'
}

# setting NAME JSON
setting() {
    local name=$1
    STORAGE=$WORK/storage/settings-$name REGISTRY=localhost:$OCISTERN_PORT PLAIN=1
    acr_control reset '{}' >/dev/null
    acr_control settings "$2" >/dev/null
    # shellcheck disable=SC2317
    repository_for() { printf 'settings/%s/%s\n' "$name" "$1"; }
    push_flow oras "$SP_APP_ID" "$SP_PASSWD" acr_digest
    only_upstream "$name" 300000 2000000
    cold_and_warm "$name"
    if [[ $(type -t "setting_$name") == function ]]; then "setting_$name"; fi
    acr_storage_clean
}

# only_upstream NAME BYTES…: an artifact of random files, pushed past ocistern as cold/NAME:1.
only_upstream() {
    local at=$WORK/settings/$1 name=$1 bytes
    rm -rf "$at"
    mkdir -p "$at"
    shift
    for bytes in "$@"; do openssl rand -out "$at/$bytes" "$bytes"; done
    (cd "$at" && bounded "$(go_tool oras)" push --insecure --username "$ACR_ADMIN" --password "$ACR_ADMIN_PASSWORD" \
        "127.0.0.1:$ACR_PORT/cold/$name:1" "${@/%/:application/octet-stream}") >/dev/null
}

# pulled NAME: by a client through ocistern, and compared.
pulled() {
    local file
    rm -rf "$STORAGE/pulled"
    same "digest of cold/$1" "$(acr_digest "cold/$1" 1)" \
        "$(oras_at pull --output "$STORAGE/pulled" "$REGISTRY/cold/$1:1" | sed -n 's/^Digest: //p')"
    for file in "$WORK/settings/$1"/*; do cmp "$file" "$STORAGE/pulled/${file##*/}"; done
}

# cold_and_warm NAME: leaves the registry's log of the cold pull in $WORK/tmp/cold.
cold_and_warm() {
    acr_control log/clear '{}' >/dev/null
    pulled "$1"
    wait_for 10 settled
    acr_control log >"$WORK/tmp/cold"
    acr_storage_clean
    (($(jq '[.[] | select(.class == "blob" and .method == "GET")] | length' "$WORK/tmp/cold") >= 2))
    acr_control log/clear '{}' >/dev/null
    pulled "$1"
    same "blobs asked for in a warm pull" 0 "$(acr_requests blob GET)"
    same "blobs downloaded in a warm pull" 0 "$(acr_requests storage GET)"
    same "manifests downloaded in a warm pull" 0 "$(acr_requests manifest GET)"
}

# asked CLASS METHOD STATUS: how many there were in the cold pull.
asked() { jq --arg class "$1" --arg method "$2" --argjson status "$3" '[.[] | select(.class == $class and .method == $method and .status == $status)] | length' "$WORK/tmp/cold"; }

# through METHOD PATH [CURL ARGUMENT…]: status of a request to ocistern by who may everything; the answer is in $WORK/tmp/answer, its
# head in $WORK/tmp/head.
through() {
    local method=(-X "$1") path=$2
    [[ $1 != HEAD ]] || method=(-I)
    shift 2
    curl -sS -m 40 "${method[@]}" -D "$WORK/tmp/head" -o "$WORK/tmp/answer" -w '%{http_code}' -u "$SP_APP_ID:$SP_PASSWD" -H "Accept: $MANIFEST" "$@" "http://$OCISTERN$path"
}
answered() { tr -d '\r' <"$WORK/tmp/head" | sed -n "s/^$1: //Ip" | tail -n 1; }

# A client that gets its token by POST, as containerd does, gets it here all the same.
setting_post_password_400() {
    local token
    same "status upstream" 400 "$(acr_direct /oauth2/token -o /dev/null -w '%{http_code}' -d grant_type=password -d "service=$ACR" -d "username=$SP_APP_ID" --data-urlencode "password=$SP_PASSWD" -d scope=repository:cold/post_password_400:pull)"
    token=$(curl -fsS -m 20 "http://$OCISTERN/oauth2/token" -d grant_type=password -d client_id=e2e -d "service=localhost:$OCISTERN_PORT" \
        -d "username=$SP_APP_ID" --data-urlencode "password=$SP_PASSWD" -d scope=repository:cold/post_password_400:pull | jq -r .access_token)
    same "status with that token" 200 "$(curl -sS -m 20 -o "$WORK/tmp/answer" -w '%{http_code}' -H "Authorization: Bearer $token" -H "Accept: $MANIFEST" "http://$OCISTERN/v2/cold/post_password_400/manifests/1")"
    same digest "$(acr_digest cold/post_password_400 1)" "$(digest_of "$WORK/tmp/answer")"
}

# Wrong passwords are refused, and are ocistern's to challenge; right ones work after that.
setting_basic_challenge() {
    local path
    same "challenge upstream" 'Basic realm="myregistry.azurecr.io"' \
        "$(acr_direct /v2/ -o /dev/null -D - -u "$SP_APP_ID:wrong" | tr -d '\r' | sed -n 's/^Www-Authenticate: //Ip')"
    for path in /v2/ /v2/cold/basic_challenge/manifests/1; do
        same "status of $path with a wrong password" 401 "$(through GET $path -u "$SP_APP_ID:wrong")"
        [[ $(answered www-authenticate) == Bearer\ realm=\"http://127.0.0.1:$OCISTERN_PORT/oauth2/token\"* ]]
    done
    same "status of a token with a wrong password" 401 "$(through GET "/oauth2/token?service=localhost:$OCISTERN_PORT&scope=repository:cold/basic_challenge:pull" -u "$SP_APP_ID:wrong")"
    same "status with the right one" 200 "$(through GET /v2/cold/basic_challenge/manifests/1)"
}

# HEAD of a blob is answered by storage: its size counts, and so does its yes for what is in the cache under another name.
setting_redirect_head() {
    local file digest
    only_upstream head 70000
    file=$WORK/settings/head/70000 digest=$(digest_of "$WORK/settings/head/70000")
    same "status upstream" 307 "$(acr_direct "/v2/cold/head/blobs/$digest" -I -o /dev/null -w '%{http_code}')"
    same "status of HEAD" 200 "$(through HEAD "/v2/cold/head/blobs/$digest")"
    same "length by HEAD" 70000 "$(answered content-length)"
    same "status of GET" 200 "$(through GET "/v2/cold/head/blobs/$digest")"
    cmp "$file" "$WORK/tmp/answer"
    wait_for 10 settled
    # The same bytes in another repository.
    mkdir -p "$WORK/settings/other"
    cp "$file" "$WORK/settings/other/70000"
    (cd "$WORK/settings/other" && bounded "$(go_tool oras)" push --insecure --username "$ACR_ADMIN" --password "$ACR_ADMIN_PASSWORD" \
        "127.0.0.1:$ACR_PORT/cold/other:1" 70000:application/octet-stream) >/dev/null
    acr_control log/clear '{}' >/dev/null
    same "status under another name" 200 "$(through GET "/v2/cold/other/blobs/$digest")"
    cmp "$file" "$WORK/tmp/answer"
    same "blobs downloaded for that" 0 "$(acr_requests storage GET)"
    same "status where it is not" 404 "$(through GET "/v2/cold/redirect_head/blobs/$digest")"
}

# Small blobs come from the registry itself, the others from storage.
setting_redirect_min() {
    (($(asked blob GET 200) >= 1))
    same "redirects" 1 "$(asked blob GET 307)"
    same "downloads from storage" 1 "$(asked storage GET 200)"
}

setting_single_slash() { same "double slashes" 0 "$(jq '[.[] | select(.class == "storage" and (.uri | contains("//")))] | length' "$WORK/tmp/cold")"; }

# What a client does not say that it takes, ocistern asks for: an image in Docker's format.
setting_strict_accept() {
    local digest
    bounded skopeo copy --quiet --format v2s2 --dest-tls-verify=false --dest-creds "$ACR_ADMIN:$ACR_ADMIN_PASSWORD" \
        "oci:$(single_image):app" "docker://127.0.0.1:$ACR_PORT/cold/schema2:1"
    digest=$(acr_digest cold/schema2 1)
    same "status upstream" 404 "$(acr_direct /v2/cold/schema2/manifests/1 -o /dev/null -w '%{http_code}' -H "Accept: $MANIFEST")"
    rm -rf "$STORAGE/layout"
    mkdir -p "$STORAGE"
    push_login_skopeo "$SP_APP_ID" "$SP_PASSWD"
    bounded skopeo copy --quiet --preserve-digests --authfile "$STORAGE/auth.json" --src-tls-verify=false --digestfile "$STORAGE/digest" \
        "docker://$REGISTRY/cold/schema2:1" "dir:$STORAGE/layout"
    same "digest that the client got" "$digest" "$(<"$STORAGE/digest")"
    same "digest of the manifest" "$digest" "$(digest_of "$STORAGE/layout/manifest.json")"
    same "digest by HEAD" "$digest" "$(through HEAD /v2/cold/schema2/manifests/1 -H 'Accept: */*' >/dev/null && answered docker-content-digest)"
    same "status for a client that says nothing" 200 "$(through GET /v2/cold/strict_accept/manifests/1 -H 'Accept:')"
    same "digest for it" "$(acr_digest cold/strict_accept 1)" "$(digest_of "$WORK/tmp/answer")"
}

# Deleted, and brought back: what was known of it in between is forgotten.
setting_soft_delete() {
    local digest
    digest=$(acr_digest cold/soft_delete 1)
    same "status of the deletion" 202 "$(through DELETE "/v2/cold/soft_delete/manifests/$digest")"
    same "status of the tag after it" 404 "$(through GET /v2/cold/soft_delete/manifests/1)"
    same "status of the digest after it" 404 "$(through GET "/v2/cold/soft_delete/manifests/$digest")"
    same "status of what can be brought back" 200 "$(through GET /acr/v1/_deleted/cold%2Fsoft_delete/_tags)"
    same "tags that can be" 1 "$(jq -r '.tags[].tag' "$WORK/tmp/answer")"
    same "status of the restoration" 200 "$(through POST "/acr/v1/_deleted/cold%2Fsoft_delete/_manifests/$digest" -H 'Content-Type: application/json' -d '{"tag":"1"}')"
    pulled soft_delete
    same "status of the digest" 200 "$(through GET "/v2/cold/soft_delete/manifests/$digest")"
}

# Tokens that run out between two pulls are got again.
setting_short_tokens() {
    sleep 3
    only_upstream later 100000
    pulled later
}

setting_data-endpoint() { data_host; }
setting_data-query() { data_host && same "paths at storage" 0 "$(jq '[.[] | select(.class == "storage" and (.uri | startswith("/?") | not))] | length' "$WORK/tmp/cold")"; }
data_host() { same "hosts of storage" "$ACR_DATA:$ACR_STORAGE_PORT" "$(jq -r '.[] | select(.class == "storage") | .host' "$WORK/tmp/cold" | sort -u)"; }

# broken_storage NAME FAULT [TIMES]: the fill goes on from where it was, and the client sees nothing of it.
broken_storage() {
    local digest resumes times=${3:-1}
    acr_control reset '{}' >/dev/null
    only_upstream "$1" 6000000
    digest=$(digest_of "$WORK/settings/$1/6000000")
    resumes=$(metric ocistern_fill_resumes_total)
    acr_control faults "$(jq -c '. + {listener: "storage", method: "GET"}' <<<"$2")" >/dev/null
    same status 200 "$(through GET "/v2/cold/$1/blobs/$digest")"
    cmp "$WORK/settings/$1/6000000" "$WORK/tmp/answer"
    same "cache status" 'ocistern; fwd=miss; stored' "$(answered cache-status)"
    same resumes "$times" $(($(metric ocistern_fill_resumes_total) - resumes))
    acr_control log >"$WORK/tmp/cold"
    same "requests to storage" $((times + 1)) "$(jq '[.[] | select(.class == "storage")] | length' "$WORK/tmp/cold")"
    same "of these, with a range" "$times" "$(jq '[.[] | select(.class == "storage" and .status == 206)] | length' "$WORK/tmp/cold")"
    same "bytes from storage" 6000000 "$(jq '[.[] | select(.class == "storage") | .bytes_out] | add' "$WORK/tmp/cold")"
    wait_for 10 settled
    same "status again" 200 "$(through GET "/v2/cold/$1/blobs/$digest")"
    cmp "$WORK/settings/$1/6000000" "$WORK/tmp/answer"
    same "cache status again" 'ocistern; hit' "$(answered cache-status)"
}

wrong_byte() {
    local digest
    acr_control reset '{}' >/dev/null
    only_upstream flipped 6000000
    digest=$(digest_of "$WORK/settings/flipped/6000000")
    acr_control faults '{"listener":"storage","method":"GET","flip_at":3000000}' >/dev/null
    # Broken off, never ended as if it were whole.
    fails through GET "/v2/cold/flipped/blobs/$digest"
    (($(stat -c %s "$WORK/tmp/answer") < 6000000))
    wait_for 10 settled
    same "status again" 200 "$(through GET "/v2/cold/flipped/blobs/$digest")"
    cmp "$WORK/settings/flipped/6000000" "$WORK/tmp/answer"
    same "cache status" 'ocistern; fwd=miss; stored' "$(answered cache-status)"
}

# The signature lasts for a second or two, and the connection breaks later than that: with the old URL the fill would get nothing.
expired_redirect() {
    local digest file
    acr_control reset '{}' >/dev/null
    acr_control settings '{"sas_lifetime":"2s"}' >/dev/null
    only_upstream expired 24000000
    file=$WORK/settings/expired/24000000 digest=$(digest_of "$WORK/settings/expired/24000000")
    acr_control faults '{"listener":"storage","method":"GET","bytes_per_second":6000000,"reset_response_at":15000000}' >/dev/null
    same status 200 "$(through GET "/v2/cold/expired/blobs/$digest")"
    cmp "$file" "$WORK/tmp/answer"
    acr_control log >"$WORK/tmp/cold"
    jq -r '.[] | select(.class == "storage" or .class == "blob") | "\(.time) \(.class) \(.method) \(.status) \(.uri)"' "$WORK/tmp/cold"
    same "redirects" 2 "$(asked blob GET 307)"
    same "different URLs at storage" 2 "$(jq -r '.[] | select(.class == "storage") | .uri' "$WORK/tmp/cold" | sort -u | wc -l)"
    same "refused by storage" 0 "$(asked storage GET 403)"
    same "range of the second" bytes=15000000- "$(jq -r '.[] | select(.class == "storage" and .status == 206) | .headers.Range[0]' "$WORK/tmp/cold")"
    same "bytes from storage" 24000000 "$(jq '[.[] | select(.class == "storage") | .bytes_out] | add' "$WORK/tmp/cold")"
}

# Upstream asks for a second's patience: the client waits, and gets what it asked for.
limited_shortly() {
    local began
    acr_control reset '{}' >/dev/null
    only_upstream limited 50000
    acr_control faults '[{"listener":"registry","path":"/v2/cold/limited/manifests/","status":429,"headers":{"Retry-After":"1"},"code":"TOOMANYREQUESTS","message":"too many requests"}]' >/dev/null
    began=${EPOCHREALTIME//[!0-9]/}
    same status 200 "$(through GET /v2/cold/limited/manifests/1)"
    same digest "$(acr_digest cold/limited 1)" "$(digest_of "$WORK/tmp/answer")"
    ((${EPOCHREALTIME//[!0-9]/} - began >= 1000000))
    same "requests that were refused" 1 "$(acr_control faults | jq '.[0].hits')"
}

# For half a minute: what is known is served, for the rest the client is told how long, and nothing is asked again at once.
limited_long() {
    local faults='{"listener":"registry","path":"/v2/cold/limited[^/]*/manifests/","status":429,"headers":{"Retry-After":"30"},"code":"TOOMANYREQUESTS","message":"too many requests","count":-1}'
    only_upstream limited-unknown 50000
    acr_control faults "$faults" >/dev/null
    same "status of what is known" 200 "$(through GET /v2/cold/limited/manifests/1)"
    same digest "$(acr_digest cold/limited 1)" "$(digest_of "$WORK/tmp/answer")"
    same "cache status" 'ocistern; hit; detail=stale' "$(answered cache-status)"
    same "status of what is not" 429 "$(through GET /v2/cold/limited-unknown/manifests/1)"
    same "code" TOOMANYREQUESTS "$(jq -r '.errors[0].code' "$WORK/tmp/answer")"
    (($(answered retry-after) > 20 && $(answered retry-after) <= 30))
    at_most "requests that were refused" 3 "$(acr_control faults | jq '.[0].hits')"
    acr_mend
    same "status afterwards" 200 "$(through GET /v2/cold/limited-unknown/manifests/1)"
    same digest "$(acr_digest cold/limited-unknown 1)" "$(digest_of "$WORK/tmp/answer")"
}
