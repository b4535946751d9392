# The specification's conformance suite: straight to each upstream, and through ocistern in front of the same, by prefix,
# as the listener's default, under a transparent host name, and by `?ns=`, which nginx adds, since the suite cannot. What passes
# straight passes through, test by test; and what an upstream has switched off is switched off through ocistern too.
# shellcheck shell=bash

# Listener of the upstream as default: $CONFORMANCE_PORT and the following, in this order.
CONFORMANCE_PORT=5101
# nginx, the same.
NS_PORT=5121
# off.test is a docker-registry that does not delete.
CONFORMANCE_UPSTREAMS=(docker.io oci.test dist.test "$ACR" off.test)
OFF_PORT=5011
# How many tests pass at least, straight: some fewer than do. A run that ends early is none.
declare -A CONFORMANCE_PASSES=([docker.io]=550 [oci.test]=410 [dist.test]=575 [$ACR]=650 [off.test]=390)

check_needs() { echo nginx; }

# A suite of one registry may take a minute of a busy machine.
LIMIT=300

check() {
    local upstream form
    UPSTREAM_ADDRESS["off.test"]=127.0.0.1:$OFF_PORT
    mkdir -p "$WORK/conformance"
    try "conformance start" conformance_start
    for upstream in "${CONFORMANCE_UPSTREAMS[@]}"; do
        try "conformance $upstream straight" straight "$upstream"
        counts "${upstream%%.*}-straight"
        for form in $(forms_of "$upstream"); do
            try "conformance $upstream $form" through "$upstream" "$form"
            counts "${upstream%%.*}-$form"
        done
    done
    try "conformance nothing leaked" acr_nothing_leaked
    try "conformance stop" cistern_stop
    halt nginx
    halt off
    acr_stop
}

forms_of() { if [[ $1 == off.test ]]; then echo prefix; else echo prefix default transparent ns; fi; }

conformance_start() {
    local upstream port=$CONFORMANCE_PORT hostnames=
    acr_start -anonymous off
    # On the tmpfs: it is no other registry than docker.io's, and what is looked for does not hang on a disk.
    mkdir -p "$WORK/storage/off"
    distribution_config $OFF_PORT "$WORK/storage/off" | sed 's/delete: {enabled: true}/delete: {enabled: false}/' >"$WORK/upstream/off.yml"
    grep -q 'delete: {enabled: false}' "$WORK/upstream/off.yml"
    spawn off docker-registry serve "$WORK/upstream/off.yml"
    wait_http off "http://127.0.0.1:$OFF_PORT/v2/"
    rm -rf "$WORK/cistern"
    for upstream in "${CONFORMANCE_UPSTREAMS[@]}"; do
        hostnames+="\"$(host_of "$upstream"):$OCISTERN_PORT\" = \"$upstream\", "
        echo "127.0.0.1 $(host_of "$upstream")" >>/etc/hosts
    done
    {
        cat <<TOML
root = "$WORK/cistern"
builtin_upstreams = false

[admin]
address = "$ADMIN"

[store]
capacity = "2GiB"

# The default is none of those that are asked by prefix or by host name: an upstream that is called something else.
[[listener]]
address = "127.0.0.1:$OCISTERN_PORT"
default_upstream = "elsewhere"
hostnames = { ${hostnames%, } }

[upstream.elsewhere]
url = "http://127.0.0.1:1"
TOML
        for upstream in "${CONFORMANCE_UPSTREAMS[@]}"; do
            printf '\n[[listener]]\naddress = "127.0.0.1:%d"\ndefault_upstream = "%s"\n' $port "$upstream"
            printf '\n[upstream."%s"]\n' "$upstream"
            if [[ $upstream == "$ACR" ]]; then
                printf 'connect = ["127.0.0.1:%d"]\nca = "%s"\n' $ACR_PORT "$WORK/tls/ca.crt"
            else
                printf 'url = "http://%s"\n' "${UPSTREAM_ADDRESS[$upstream]}"
            fi
            # By prefix, what the caller shows is meant for this upstream although it is not the listener's default.
            printf 'relay_credentials = true\n'
            port=$((port + 1))
        done
    } >"$WORK/ocistern.toml"
    cistern_run
    ns_start
}

# As containerd asks: the name of the upstream in a parameter of every request, whatever else is in it.
ns_start() {
    local upstream number=0
    {
        printf 'daemon off;\nerror_log %s/log/nginx.err;\npid %s/pid/nginx.own;\nevents {}\nhttp {\n' "$WORK" "$WORK"
        printf 'access_log off;\nclient_max_body_size 0;\nclient_body_temp_path %s/tmp;\nproxy_temp_path %s/tmp;\n' "$WORK" "$WORK"
        printf 'proxy_request_buffering off;\nproxy_http_version 1.1;\nproxy_set_header Host $http_host;\n'
        printf 'map $request_uri $joint { default "?"; "~[?]" "&"; }\n'
        for upstream in "${CONFORMANCE_UPSTREAMS[@]}"; do
            printf 'server { listen 127.0.0.1:%d; location / { proxy_pass http://%s$request_uri${joint}ns=%s; } }\n' \
                $((NS_PORT + number)) "$OCISTERN" "$upstream"
            number=$((number + 1))
        done
        echo '}'
    } >"$WORK/nginx.conf"
    spawn nginx nginx -c "$WORK/nginx.conf" -e "$WORK/log/nginx.err"
    wait_http nginx "http://127.0.0.1:$NS_PORT/v2/"
}

host_of() { printf '%s.e2e\n' "${1%%.*}"; }

# port_of UPSTREAM FIRST
port_of() {
    local upstream port=$2
    for upstream in "${CONFORMANCE_UPSTREAMS[@]}"; do
        if [[ $upstream == "$1" ]]; then echo "$port"; fi
        port=$((port + 1))
    done
}

# conform TO REGISTRY PREFIX TLS UPSTREAM: one run; `STATUS NAME` of every test in conformance/TO.
conform() {
    local to=$WORK/conformance/$1 name=${5%%.*}
    rm -rf "$to.results"
    local settings=(OCI_REGISTRY="$2" OCI_TLS="$4" OCI_RESULTS_DIR="$to.results" OCI_VERSION=1.1
        OCI_REPO1="${3}conformance/$1-one" OCI_REPO2="${3}conformance/$1-two"
        OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_DATA_SPARSE=true)
    if [[ $5 == "$ACR" ]]; then
        settings+=(OCI_USERNAME="$ACR_ADMIN" OCI_PASSWORD="$ACR_ADMIN_PASSWORD")
    fi
    # Its exit status says whether everything passed, which is not the question here.
    (cd "$WORK/tmp" && bounded env "${settings[@]}" "$WORK/bin/conformance") >"$to.log" 2>&1 || true
    python3 - "$to.results/junit.xml" >"$to" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
for case in tree.parse(sys.argv[1]).iter("testcase"):
    print(case.get("status"), case.get("name"))
PYTHON
    (($(grep -c '^passed ' "$to") > 0)) || {
        tail -n 20 "$to.log" >&2
        return 1
    }
}

counts() {
    [[ ! -f $WORK/conformance/$1 ]] || note "$1: $(cut -d' ' -f1 "$WORK/conformance/$1" | sort | uniq -c | awk '{ printf "%s%d %s", (NR > 1 ? ", " : ""), $1, $2 }')"
}

straight() {
    local passed
    if [[ $1 == "$ACR" ]]; then
        conform "${1%%.*}-straight" "$ACR:$ACR_PORT" '' insecure "$1"
    else
        conform "${1%%.*}-straight" "${UPSTREAM_ADDRESS[$1]}" '' disabled "$1"
    fi
    passed=$(grep -c '^passed ' "$WORK/conformance/${1%%.*}-straight")
    ((passed >= CONFORMANCE_PASSES[$1])) || {
        tail -n 20 "$WORK/conformance/${1%%.*}-straight.log" >&2
        same "tests that passed" "${CONFORMANCE_PASSES[$1]} at least" "$passed"
    }
}

# through UPSTREAM FORM: nothing that passed or was skipped straight may be worse; what failed may have become better. Tests
# share names (one for each blob of an image, say), and their order is not fixed, so the best are compared with the best. What is
# switched off has not become better either.
through() {
    local name=${1%%.*}
    case $2 in
        prefix) conform "$name-$2" "$OCISTERN" "$1/" disabled "$1" ;;
        default) conform "$name-$2" "127.0.0.1:$(port_of "$1" $CONFORMANCE_PORT)" '' disabled "$1" ;;
        ns) conform "$name-$2" "127.0.0.1:$(port_of "$1" $NS_PORT)" '' disabled "$1" ;;
        transparent) conform "$name-$2" "$(host_of "$1"):$OCISTERN_PORT" '' disabled "$1" ;;
    esac
    python3 - "$WORK/conformance/$name-straight" "$WORK/conformance/$name-$2" "$([[ $1 != off.test ]] || echo -delete)" <<'PYTHON'
import sys

def read(path):
    tests = {}
    for line in open(path):
        status, name = line.rstrip("\n").split(" ", 1)
        tests.setdefault(name, []).append(status)
    return tests

rank = {"error": 0, "failure": 0, "skipped": 1, "passed": 2}
straight, through = map(read, sys.argv[1:3])
off = sys.argv[3]
worse, looked_at = [], 0
for name, there in straight.items():
    there, here = (sorted(statuses, key=rank.get, reverse=True) for statuses in (there, through.get(name, [])))
    # What is not run says as little as what is skipped.
    if any(rank[b] < rank[a] for a, b in zip(there, here + ["skipped"] * len(there))):
        worse.append(f"  {name}: {' '.join(there)} straight, {' '.join(here) or 'not run'} through ocistern")
    elif off and name.endswith(off) and here:
        looked_at += 1
        if set(here) != set(there):
            worse.append(f"  {name}: {' '.join(there)} straight where it is switched off, {' '.join(here)} through ocistern")
if off and looked_at < 20:
    worse.append(f"  only {looked_at} tests of what is switched off")
print(f"{len(worse)} of {len(straight)} names are worse, or not the same:" if worse else f"{len(straight)} names, none worse", *worse, sep="\n")
sys.exit(bool(worse))
PYTHON
}
