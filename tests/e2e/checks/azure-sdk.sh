# The Azure SDK for Python under the registry's own name: uploads in chunks with a token for every request, downloads by ranges,
# properties, deletions, and nobody in particular.
# shellcheck shell=bash

check_needs() { python_tool acrsdk python; }

check() {
    try "azure-sdk start" sdk_start
    try "azure-sdk everything" sdk_run
    try "azure-sdk nothing leaked" acr_nothing_leaked
    try "azure-sdk stop" cistern_stop
    acr_stop
}

sdk_start() {
    acr_start -anonymous 'sdk/public*'
    acr_cistern
}

sdk_run() {
    REQUESTS_CA_BUNDLE=$WORK/tls/ca.crt SSL_CERT_FILE=$WORK/tls/ca.crt bounded "$(python_tool acrsdk python)" "$E2E/acrsdk.py" \
        "https://$ACR" "https://$ENTRA:$ACR_CLOUD_PORT" "$SP_TENANT" "$SP_APP_ID" "$SP_PASSWD"
}
