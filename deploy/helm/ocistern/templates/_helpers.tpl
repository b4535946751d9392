{{- define "ocistern.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "ocistern.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "ocistern.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ocistern.selector" -}}
app.kubernetes.io/name: {{ include "ocistern.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ocistern.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "ocistern.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "ocistern.image" -}}
{{- $repository := required "image.repository: name the image of ocistern that you have built and pushed (docs/install.md)" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "ocistern.isNode" -}}
{{- if eq .Values.mode "daemonset" }}yes{{ end -}}
{{- end -}}

{{- define "ocistern.listen" -}}
{{- .Values.listen | default (ternary "127.0.0.1:5000" "0.0.0.0:5000" (eq .Values.mode "daemonset")) -}}
{{- end -}}

{{- define "ocistern.admin" -}}
{{- .Values.admin.address | default (ternary "127.0.0.1:5080" "0.0.0.0:5080" (eq .Values.mode "daemonset")) -}}
{{- end -}}

{{- define "ocistern.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{- /* The pod of both modes. */ -}}
{{- define "ocistern.pod" -}}
{{- $node := include "ocistern.isNode" . -}}
metadata:
  labels:
    {{- include "ocistern.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A changed configuration starts new pods.
    checksum/config: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "ocistern.fullname" . }}
  automountServiceAccountToken: false
  # Variables of other services would have names of ours: OCISTERN_PORT.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if $node }}
  # Clients come over the node's loopback address, and nobody from elsewhere does.
  hostNetwork: true
  # The node's: the cluster's own may be what is being pulled.
  dnsPolicy: Default
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    {{- if not $node }}
    fsGroup: 65532
    # Not each time: changed owners would mean that every blob is hashed again.
    fsGroupChangePolicy: OnRootMismatch
    {{- end }}
    seccompProfile:
      type: RuntimeDefault
  {{- if $node }}
  initContainers:
    - name: node
      image: {{ .Values.node.init.image }}
      command: [/bin/sh, -euc]
      args:
        - |
          chown 65532:65532 /store
          chmod 0700 /store
          {{- if .Values.node.containerd.writeHosts }}
          for registry in {{ join " " .Values.node.containerd.registries }}; do
              mkdir -p "/hosts/$registry"
              cp /config/hosts.toml "/hosts/$registry/.hosts.toml.new"
              mv "/hosts/$registry/.hosts.toml.new" "/hosts/$registry/hosts.toml"
          done
          {{- end }}
      securityContext:
        # The node's directories are root's. It ends before anything is served.
        runAsNonRoot: false
        runAsUser: 0
        runAsGroup: 0
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          add: [CHOWN, FOWNER]
      resources:
        {{- toYaml .Values.node.init.resources | nindent 8 }}
      volumeMounts:
        - name: store
          mountPath: /store
        {{- if .Values.node.containerd.writeHosts }}
        - name: config
          mountPath: /config
          readOnly: true
        - name: hosts
          mountPath: /hosts
        {{- end }}
  {{- end }}
  containers:
    - name: ocistern
      image: {{ include "ocistern.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve]
      env:
        - name: OCISTERN_CONFIG
          value: /etc/ocistern/config.toml
        - name: OCISTERN_ROOT
          value: /var/cache/ocistern
        - name: OCISTERN_LISTEN
          value: {{ include "ocistern.listen" . | quote }}
        - name: OCISTERN_ADMIN_LISTEN
          value: {{ include "ocistern.admin" . | quote }}
        {{- if .Values.admin.tokenSecret.name }}
        - name: OCISTERN_ADMIN__TOKEN_FILE
          value: /etc/ocistern/admin/token
        {{- end }}
        {{- with .Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: registry
          containerPort: {{ include "ocistern.port" (include "ocistern.listen" .) }}
          protocol: TCP
        - name: admin
          containerPort: {{ include "ocistern.port" (include "ocistern.admin" .) }}
          protocol: TCP
      # By the admin socket in the store, which needs no token.
      startupProbe:
        exec: { command: [/usr/bin/ocistern, health] }
        periodSeconds: 2
        timeoutSeconds: 6
        failureThreshold: 60
      readinessProbe:
        exec: { command: [/usr/bin/ocistern, health] }
        periodSeconds: 10
        timeoutSeconds: 6
      livenessProbe:
        exec: { command: [/usr/bin/ocistern, health] }
        periodSeconds: 20
        timeoutSeconds: 6
        failureThreshold: 6
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/ocistern/config.toml
          subPath: config.toml
          readOnly: true
        - name: store
          mountPath: /var/cache/ocistern
        {{- if .Values.admin.tokenSecret.name }}
        - name: admin
          mountPath: /etc/ocistern/admin
          readOnly: true
        {{- end }}
        {{- range .Values.secrets }}
        - name: secret-{{ . | replace "." "-" }}
          mountPath: /etc/ocistern/secrets/{{ . }}
          readOnly: true
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "ocistern.fullname" . }}
    - name: store
      {{- if $node }}
      hostPath:
        path: {{ .Values.node.directory }}
        type: DirectoryOrCreate
      {{- else if .Values.persistence.enabled }}
      persistentVolumeClaim:
        claimName: {{ default (include "ocistern.fullname" .) .Values.persistence.existingClaim }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- if and $node .Values.node.containerd.writeHosts }}
    - name: hosts
      hostPath:
        path: {{ .Values.node.containerd.directory }}
        type: DirectoryOrCreate
    {{- end }}
    {{- with .Values.admin.tokenSecret }}
    {{- if .name }}
    - name: admin
      secret:
        secretName: {{ .name }}
        items:
          - key: {{ .key }}
            path: token
    {{- end }}
    {{- end }}
    {{- range .Values.secrets }}
    - name: secret-{{ . | replace "." "-" }}
      secret:
        secretName: {{ . }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
