# What is shipped for Kubernetes and Compose: the chart in all its modes, rendered, linted, compared with Kubernetes' own schemas
# and with the rules of Pod Security; that the plain manifests are the chart's; and that the program takes every configuration in it.
# shellcheck shell=bash

CHART=$PROJECT/deploy/helm/ocistern
# The oldest one that Chart.yaml allows, and a recent one.
KUBERNETES=(1.25 1.37)

check_needs() {
    go_tool helm
    go_tool compose
    python_tool kubernetes kubernetes-validate
    echo jq
}

check() {
    local values
    DEPLOY=$WORK/storage/deploy
    mkdir -p "$DEPLOY"
    for values in "$CHART"/ci/*-values.yaml; do
        try "deploy chart with ${values##*/}" chart_with "$values"
    done
    try "deploy chart: values that are mistakes" chart_mistakes
    try "deploy chart: what the pods are told" chart_configuration
    try "deploy chart: what init containers do to a node" chart_node
    try "deploy chart: rules" chart_rules
    try "deploy manifests" manifests
    try "deploy pod security" pod_security
    try "deploy compose" compose
    rm -rf "$DEPLOY"
}

helm_() { bounded "$(go_tool helm)" "$@"; }

# render VALUES [ARGUMENT…]
render() {
    local values=$1
    shift
    helm_ template ocistern "$CHART" --namespace images --kube-version 1.31.0 --values "$values" "$@"
}

# as_json FILE: the documents of a YAML file, one JSON object a line.
as_json() {
    bounded "$(python_tool kubernetes python)" -c '
import json, sys, yaml
for document in yaml.safe_load_all(open(sys.argv[1])):
    if document: print(json.dumps(document))' "$1"
}

# schemas FILE: nothing that Kubernetes does not know, no key that it would ignore.
schemas() {
    local version
    for version in "${KUBERNETES[@]}"; do
        bounded "$(python_tool kubernetes kubernetes-validate)" --strict --kubernetes-version "$version" "$1" >"$DEPLOY/said" 2>&1 || {
            cat "$DEPLOY/said"
            return 1
        }
        cat "$DEPLOY/said"
        # Of the Prometheus operator there are none.
        if grep -v '^INFO' "$DEPLOY/said" | grep -vE "kind (ServiceMonitor|PrometheusRule) "; then return 1; fi
        (($(grep -c 'passed for resource' "$DEPLOY/said") >= 3))
    done
}

chart_with() {
    helm_ lint --strict --kube-version 1.31.0 --values "$1" "$CHART"
    render "$1" >"$DEPLOY/rendered.yaml"
    schemas "$DEPLOY/rendered.yaml"
    # Everything is where it was asked for.
    none "what is in another namespace" "$(as_json "$DEPLOY/rendered.yaml" | jq -r 'select(.metadata.namespace != "images") | .kind')"
    # What selects the pod and what the pod is called are one.
    as_json "$DEPLOY/rendered.yaml" | jq -se '
        (map(select(.kind == "Deployment" or .kind == "DaemonSet")) | .[0]) as $workload
        | ($workload.spec.template.metadata.labels) as $labels
        | all(.[] | (.spec.selector.matchLabels?, .spec.podSelector.matchLabels?, (select(.kind == "Service") | .spec.selector)) | select(.)
              | del(."app.kubernetes.io/component"); . as $selector | $labels | contains($selector))' >/dev/null
}

# refused WORD ARGUMENT…: with a message that has the word.
refused() {
    local word=$1
    shift
    fails render "$CHART/ci/deployment-values.yaml" "$@" >"$DEPLOY/said" 2>&1
    cat "$DEPLOY/said"
    grep -F -- "$word" "$DEPLOY/said"
}

chart_mistakes() {
    refused 'image.repository' --set image.repository=
    refused '/mode' --set mode=statefulset
    refused 'persistance' --set persistance.enabled=false
    refused 'size' --set persistence.size=100
    refused 'accessModes' --set 'persistence.accessModes={ReadWriteMany}'
    refused '/listen' --set listen=5000
    refused 'digest' --set image.digest=sha256:abc
    refused 'admin.tokenSecret.name' --set serviceMonitor.enabled=true
    refused 'loopback' --set serviceMonitor.enabled=true,mode=daemonset,admin.tokenSecret.name=t
    # A name that would be a path on the node.
    refused 'registries' --set mode=daemonset --set 'node.containerd.registries={../../etc}'
}

# container FILE FILTER: of ocistern itself.
container() { as_json "$1" | jq -r "select(.kind == \"Deployment\" or .kind == \"DaemonSet\") | .spec.template.spec.containers[0] | $2"; }

# secrets FILE: what a cluster would mount of the chart's secrets, at their places; /etc is the lane's own.
secrets() {
    local place
    while read -r place; do
        mkdir -p "$place"
        case ${place##*/} in
            tls)
                openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=images' \
                    -keyout "$place/tls.key" -out "$place/tls.crt" 2>/dev/null
                ;;
            users) htpasswd -nbB user password >"$place/htpasswd" ;;
            registry) echo '{"auths":{}}' >"$place/.dockerconfigjson" ;;
            admin) echo secret >"$place/token" ;;
            *) die "deploy: what is mounted at $place?" ;;
        esac
    done < <(container "$1" '.volumeMounts[] | select(.mountPath | test("^/etc/ocistern/(secrets/|admin$)")) | .mountPath')
}

# The program reads the configuration as it would in the pod.
chart_configuration() {
    local values shown
    for values in "$CHART"/ci/*-values.yaml; do
        render "$values" >"$DEPLOY/rendered.yaml"
        secrets "$DEPLOY/rendered.yaml"
        as_json "$DEPLOY/rendered.yaml" | jq -r 'select(.kind == "ConfigMap") | .data["config.toml"]' >"$DEPLOY/config.toml"
        container "$DEPLOY/rendered.yaml" '.env[] | select(.name != "OCISTERN_CONFIG") | "\(.name)=\(.value)"' >"$DEPLOY/env"
        mapfile -t variables <"$DEPLOY/env"
        env -i "${variables[@]}" "$OCISTERN_BIN" config check --config "$DEPLOY/config.toml"
        shown=$(env -i "${variables[@]}" "$OCISTERN_BIN" config show --config "$DEPLOY/config.toml")
        grep -x 'root = "/var/cache/ocistern"' <<<"$shown"
        # What the pod says about its ports is where the program listens.
        case ${values##*/} in
            deployment-* | everything-*) grep -x 'address = "0.0.0.0:5000"' <<<"$shown" ;;
            daemonset-*) grep -x 'address = "127.0.0.1:5000"' <<<"$shown" ;;
            node-metrics-*) grep -x 'address = "127.0.0.1:5001"' <<<"$shown" ;;
        esac
        same "ports of ${values##*/}" "$(sed -n 's/^address = ".*:\([0-9]*\)"$/\1/p' <<<"$shown" | sort -u | paste -sd' ')" \
            "$(container "$DEPLOY/rendered.yaml" '.ports[].containerPort' | sort -u | paste -sd' ')"
        [[ ${values##*/} != everything-* ]] || grep -E '^token_file = "/etc/ocistern/admin/token"$' <<<"$shown"
    done
}

# The script, run on directories of ours that stand for the node's.
chart_node() {
    local script
    render "$CHART/ci/daemonset-values.yaml" --set 'node.containerd.registries={_default,registry.example:5000}' >"$DEPLOY/rendered.yaml"
    as_json "$DEPLOY/rendered.yaml" | jq -r 'select(.kind == "ConfigMap") | .data["hosts.toml"]' >"$DEPLOY/hosts.toml"
    mkdir -p "$DEPLOY"/node/{store,hosts,config}
    cp "$DEPLOY/hosts.toml" "$DEPLOY/node/config/"
    script=$(as_json "$DEPLOY/rendered.yaml" | jq -r 'select(.kind == "DaemonSet") | .spec.template.spec.initContainers[0].args[0]' |
        sed "s|/store|$DEPLOY/node/store|g; s|/hosts/|$DEPLOY/node/hosts/|g; s|/config/|$DEPLOY/node/config/|g")
    # Twice: at every start of the pod.
    sh -euc "$script"
    sh -euc "$script"
    same "store" "65532:65532 700" "$(stat -c '%u:%g %a' "$DEPLOY/node/store")"
    same "files for containerd" "./_default/hosts.toml ./registry.example:5000/hosts.toml" \
        "$(cd "$DEPLOY/node/hosts" && find . -type f | LC_ALL=C sort | paste -sd' ')"
    grep -Fx '[host."http://127.0.0.1:5000"]' "$DEPLOY/node/hosts/_default/hosts.toml"
}

# The chart has a copy, because a chart is a directory of its own.
chart_rules() {
    render "$CHART/ci/everything-values.yaml" >"$DEPLOY/rendered.yaml"
    as_json "$DEPLOY/rendered.yaml" | jq -c 'select(.kind == "PrometheusRule") | .spec' >"$DEPLOY/rules.json"
    as_json "$CHART/files/ocistern.rules.yml" | jq -c . >"$DEPLOY/file.json"
    cmp "$DEPLOY/rules.json" "$DEPLOY/file.json"
    jq -e '[.groups[].rules[].alert | select(.)] | length > 3' "$DEPLOY/rules.json"
    [[ ! -d $PROJECT/deploy/prometheus ]] || cmp "$PROJECT/deploy/prometheus/ocistern.rules.yml" "$CHART/files/ocistern.rules.yml"
}

manifests() {
    local file
    mkdir -p "$DEPLOY/kubernetes"
    HELM=$(go_tool helm) "$PROJECT/deploy/kubernetes/render" "$DEPLOY/kubernetes"
    for file in cluster.yaml node.yaml; do
        cmp "$DEPLOY/kubernetes/$file" "$PROJECT/deploy/kubernetes/$file" || {
            echo "run deploy/kubernetes/render" >&2
            return 1
        }
        schemas "$PROJECT/deploy/kubernetes/$file"
    done
}

# pod FILE FILTER: there is one, and it is so.
pod() {
    as_json "$1" | jq -se "map(select(.kind == \"Deployment\" or .kind == \"DaemonSet\") | .spec.template.spec)
        | length == 1 and all(.[]; $2)" >/dev/null || {
        echo "the pod in $1 is not so: $2" >&2
        return 1
    }
}

# https://kubernetes.io/docs/concepts/security/pod-security-standards/: what "restricted" asks for. Of the node's pod it is
# asked of the container that stays.
pod_security() {
    local values
    for values in "$CHART"/ci/*-values.yaml; do
        render "$values" >"$DEPLOY/rendered.yaml"
        pod "$DEPLOY/rendered.yaml" '.automountServiceAccountToken == false and (.securityContext
            | .runAsNonRoot and .runAsUser == 65532 and .seccompProfile.type == "RuntimeDefault")'
        pod "$DEPLOY/rendered.yaml" 'all(.containers[].securityContext; .allowPrivilegeEscalation == false
            and .capabilities == {drop: ["ALL"]} and .readOnlyRootFilesystem and (has("runAsNonRoot") | not))'
    done
    pod "$PROJECT/deploy/kubernetes/cluster.yaml" '[.hostNetwork, .hostPID, .hostIPC, .initContainers] == [null, null, null, null]
        and all(.volumes[]; .hostPath == null) and all(.containers[].ports[]; .hostPort == null)'
    pod "$PROJECT/deploy/kubernetes/node.yaml" '[.hostNetwork, .hostPID, .hostIPC] == [true, null, null]
        and ([.initContainers[].securityContext.capabilities.add[]] | sort) == ["CHOWN", "FOWNER"]'
}

compose() {
    local name
    cp -r "$PROJECT/deploy/compose" "$DEPLOY/compose"
    rm -rf "$DEPLOY/compose/secrets"
    mkdir "$DEPLOY/compose/secrets"
    for name in registry-password admin-token users; do echo "$name" >"$DEPLOY/compose/secrets/$name"; done
    (cd "$DEPLOY/compose" && bounded "$(go_tool compose)" -format json compose.yaml) >"$DEPLOY/compose.json"
    jq -e '.services.ocistern | .read_only and .cap_drop == ["ALL"] and all(.ports[]; .host_ip == "127.0.0.1")' "$DEPLOY/compose.json" >/dev/null
    # The secrets that the configuration names are the ones that are mounted.
    same "secrets" "$(sed -n 's|.*"/run/secrets/\([^"]*\)".*|\1|p' "$DEPLOY/compose/ocistern.toml" | sort | paste -sd' ')" \
        "$(jq -r '.services.ocistern.secrets[].source' "$DEPLOY/compose.json" | sort | paste -sd' ')"
    "$OCISTERN_BIN" config check --config "$DEPLOY/compose/ocistern.toml"
    fails bounded "$(go_tool compose)" <(sed 's/^    cap_drop:/    cap_drops:/' "$DEPLOY/compose/compose.yaml")
}
