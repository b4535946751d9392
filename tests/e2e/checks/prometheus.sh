# A real Prometheus scrapes ocistern by the configuration and the rules of deploy/, while skopeo pulls: what it then says of the
# pulls is what was pulled. promtool looks at the rules, tests them, and looks at what is exposed; each expression of the
# dashboard is one to Prometheus.
# shellcheck shell=bash
# shellcheck disable=SC2317  # functions are called by `try`

PROMETHEUS=127.0.0.1:9190
DEPLOY=$PROJECT/deploy

check_needs() { printf '%s\n' prometheus promtool skopeo jq; }

check() {
    try "prometheus rules and configuration" rules_are_right
    try "prometheus each alert, tested" rules_are_tested
    try "prometheus start" prometheus_start
    try "prometheus scrapes" scraped
    try "prometheus a cold and a warm pull" pulls
    try "prometheus what is exposed" exposition_is_right
    try "prometheus every expression of the dashboard" dashboard_is_right
    try "prometheus an upstream that goes away" upstream_away
    try "prometheus ocistern that goes away" cistern_away
    halt prometheus TERM
}

rules_are_right() {
    promtool check rules "$DEPLOY/prometheus/ocistern.rules.yml"
    promtool check config "$DEPLOY/prometheus/prometheus.yml"
}

rules_are_tested() { (cd "$DEPLOY/prometheus" && promtool test rules ocistern_test.yml); }

# As it is in deploy/, but every second.
prometheus_start() {
    local at=$WORK/prometheus
    rm -rf "$at"
    mkdir -p "$at"
    cp "$DEPLOY/prometheus/ocistern.rules.yml" "$at/"
    sed 's/_interval: 15s/_interval: 1s/' "$DEPLOY/prometheus/prometheus.yml" >"$at/prometheus.yml"
    same "intervals" 2 "$(grep -c '_interval: 1s' "$at/prometheus.yml")"
    same "address" "127.0.0.1:$ADMIN_PORT" "$(sed -n 's/.*targets: \["\(.*\)"\]/\1/p' "$at/prometheus.yml")"
    cistern_start
    spawn prometheus prometheus --config.file="$at/prometheus.yml" --storage.tsdb.path="$at/data" \
        --web.listen-address="$PROMETHEUS" --log.level=warn
    wait_http prometheus "http://$PROMETHEUS/-/ready"
}

# query EXPRESSION: the value of its one sample; nothing where there is none.
query() {
    curl -fsS -m 10 --get "http://$PROMETHEUS/api/v1/query" --data-urlencode "query=$1" |
        jq -r 'if .status == "success" and (.data.result | length) < 2 then .data.result[0].value[1] // empty else error("\(.)") end'
}

# says EXPRESSION VALUE: Prometheus has it so.
says() { [[ $(query "$1") == "$2" ]]; }

# comes EXPRESSION VALUE: at the latest with a scrape from now on.
comes() {
    wait_for 20 says "$1" "$2" || {
        printf '%s is %s, not %s\n' "$1" "$(query "$1")" "$2" >&2
        return 1
    }
}

scraped() {
    comes 'up{job="ocistern"}' 1
    comes 'ocistern_ready' 1
    comes "count(ocistern_build_info{version=\"$("$OCISTERN_BIN" --version | awk '{ print $2 }')\"})" 1
    # There from the start, so that no first one is lost to rate().
    comes 'sum(ocistern_requests_total{kind="blob", result="hit", upstream="docker.io"})' 0
    comes 'min(ocistern_upstream_up)' 1
    comes 'count(ocistern_upstream_up)' 5
    comes "sum(ocistern_connections{listener=\"127.0.0.1:$ADMIN_PORT\"}) >= bool 1" 1
}

pull() {
    rm -rf "$WORK/storage/prometheus"
    bounded skopeo copy --quiet --src-tls-verify=false "docker://$OCISTERN/library/debian:bookworm" "dir:$WORK/storage/prometheus"
    same manifest "$(expected image manifest)" "$(digest_of "$WORK/storage/prometheus/manifest.json")"
    wait_for 30 settled
}

pulls() {
    local blobs manifest bytes file
    pull
    blobs=$(expected image blob | wc -l)
    ((blobs > 1))
    comes 'sum(ocistern_requests_total{kind="blob", result="miss"})' "$blobs"
    pull
    manifest=$(stat -c %s "$WORK/storage/prometheus/manifest.json") bytes=0
    while read -r file; do
        bytes=$((bytes + $(stat -c %s "$WORK/storage/prometheus/${file#sha256:}")))
    done < <(expected image blob)
    # Of docker.io, by what came of it: what one pull fetched the other was given.
    comes 'sum(ocistern_requests_total{kind="blob", result="hit", upstream="docker.io"})' "$blobs"
    comes 'sum(ocistern_requests_total{kind="blob", result="miss", upstream="docker.io"})' "$blobs"
    comes 'sum(ocistern_requests_total{result="error"}) or vector(0)' 0
    comes 'sum(ocistern_request_errors_total)' 0
    comes 'sum(ocistern_served_bytes_total{upstream="docker.io"})' $((2 * (bytes + manifest)))
    comes 'sum(ocistern_upstream_received_bytes_total{upstream="docker.io"})' $((bytes + manifest))
    # Each request is in each histogram.
    comes 'sum(ocistern_request_duration_seconds_count) - sum(ocistern_requests_total)' 0
    comes 'sum(ocistern_first_byte_seconds_count) - sum(ocistern_requests_total)' 0
    comes 'sum(ocistern_first_byte_seconds_count{kind="blob", result="hit"})' "$blobs"
    comes 'sum(ocistern_upstream_request_duration_seconds_count) - sum(ocistern_upstream_requests_total{status!="error"})' 0
    # The rules see it, too.
    comes 'instance:ocistern_hit:ratio_rate5m > bool 0' 1
    comes 'instance:ocistern_failures:ratio_rate5m' 0
}

exposition_is_right() {
    curl -fsS -m 10 "http://$ADMIN/metrics" >"$WORK/tmp/metrics"
    local said
    said=$(promtool check metrics <"$WORK/tmp/metrics" 2>&1)
    none "what promtool says of the metrics" "$said"
}

dashboard_is_right() {
    local expression asked=0
    while read -r expression; do
        expression=$(jq -r <<<"$expression")
        # shellcheck disable=SC2016  # variables of Grafana
        for variable in '$job=ocistern' '$instance=.*' '$upstream=.*' '$__rate_interval=1m' '$__range=1h'; do
            expression=${expression//"${variable%%=*}"/${variable#*=}}
        done
        curl -sS -m 10 --get "http://$PROMETHEUS/api/v1/query" --data-urlencode "query=$expression" >"$WORK/tmp/answer"
        same "what Prometheus says to $expression ($(jq -r .error "$WORK/tmp/answer"))" success "$(jq -r .status "$WORK/tmp/answer")"
        asked=$((asked + 1))
    done < <(jq -c '.. | objects | .expr? // empty' "$DEPLOY/grafana/ocistern.json")
    ((asked > 40))
    # One that has something to show, by its own words.
    same "bytes saved" 1 "$(query 'sum(increase(ocistern_served_bytes_total{job="ocistern", instance=~".*"}[1h])) - sum(increase(ocistern_upstream_received_bytes_total{job="ocistern", instance=~".*"}[1h])) > bool 0')"
}

# alert NAME: its state, where Prometheus has it.
alert() {
    curl -fsS -m 10 "http://$PROMETHEUS/api/v1/alerts" |
        jq -r --arg name "$1" '.data.alerts[] | select(.labels.alertname == $name) | "\(.state) \(.labels.upstream // "")"'
}

# alerted NAME [UPSTREAM]: it waits for its time, or fires.
alerted() { alert "$1" | seen -xE "(pending|firing) ${2:-}"; }

upstream_away() {
    local n
    none "alerts while all is well" "$(alert OcisternUpstreamAway)"
    stop_upstreams
    for n in 1 2 3 4 5 6; do
        curl -s -o /dev/null -m 30 "http://$OCISTERN/v2/library/none/manifests/$n"
    done
    comes 'ocistern_upstream_up{upstream="docker.io"}' 0
    comes 'min(ocistern_upstream_up{upstream!="docker.io"})' 1
    wait_for 20 alerted OcisternUpstreamAway docker.io
    # What is stored is served meanwhile.
    pull
    start_upstreams
    curl -s -o /dev/null -m 30 "http://$OCISTERN/v2/library/none/manifests/7"
    wait_for 30 upstream_back
    wait_for 20 says 'count(ALERTS{alertname="OcisternUpstreamAway"}) or vector(0)' 0
}

# It is asked again when its time has come.
upstream_back() {
    curl -s -o /dev/null -m 30 "http://$OCISTERN/v2/library/none/manifests/8"
    says 'ocistern_upstream_up{upstream="docker.io"}' 1
}

cistern_away() {
    cistern_stop
    comes 'up{job="ocistern"}' 0
    wait_for 20 alerted OcisternDown
}
