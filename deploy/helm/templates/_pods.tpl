{{/* What the pods of all groups share. */}}

{{- define "tandem.labels" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tandem.image" -}}
{{- $target := ternary "gpu" "cpu" (eq .Values.device "cuda") -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $target) -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}
{{- end }}

{{- define "tandem.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "tandem.environment" -}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
# `limits.transport_bytes`: four times message_bytes and once media_bytes, which the application checks itself
# with a better answer; this bounds what a proxy reads for it. Answers may be longer than requests.
- {name: RAY_SERVE_GRPC_MAX_MESSAGE_SIZE, value: "42991616"}
# The control plane would keep an account of the last 100,000 calls between actors, and grow for hours.
- {name: RAY_task_events_report_interval_ms, value: "0"}
# Each file that Ray keeps for a process: 16 MiB, and three older ones.
- {name: RAY_ROTATION_MAX_BYTES, value: "16777216"}
- {name: RAY_ROTATION_BACKUP_COUNT, value: "3"}
# A replica whose group lost a rank cannot drain; what it held goes on elsewhere.
- {name: RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS, value: "1"}
- {name: RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S, value: "30"}
# A proxy that died is started again after three checks that fail.
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "1"}
# The proxies bound what HTTP clients send before a body, bind gRPC to the address, note when calls come, tell
# clients when to try again, and shed no calls unsaid.
- name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
  value: tandem.cluster.ingress.edge.listeners.prepare
- {name: TANDEM_GRPC_HOST, value: 0.0.0.0}
# A line for each call and each event, on the container's standard output.
- {name: TANDEM_LOG, value: /proc/1/fd/1}
# No thread to cross to for every part of an answer.
- {name: RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD, value: "0"}
{{- with .Values.keys.secret }}{{ if .name }}
- name: TANDEM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}{{ end }}
{{- with .Values.model.hubTokenSecret }}{{ if .name }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}{{ end }}
{{- end }}

{{/* A pod's template. root: the chart's context; component: its part; group: its values; gpus: how many. */}}
{{- define "tandem.template" -}}
{{- $head := eq .component "head" -}}
metadata:
  labels:
    {{- include "tandem.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
# Probes are the operator's: a node is alive while its raylet is, a worker is ready while its Serve proxy is.
spec:
  enableServiceLinks: false
  {{- if not $head }}
  automountServiceAccountToken: false # the autoscaler, in the head, needs its account
  terminationGracePeriodSeconds: {{ .root.Values.terminationGraceSeconds }}
  {{- end }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - {name: {{ . }}}
    {{- end }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    seccompProfile:
      type: RuntimeDefault
  {{- with .group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if not $head }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "tandem.labels" .root | nindent 10 }}
          app.kubernetes.io/component: {{ .component }}
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" $head }}
      image: {{ include "tandem.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      ports:
        {{- if $head }}
        - {name: gcs, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        {{- end }}
        - {name: metrics, containerPort: 8080}
        - {name: serve, containerPort: 8000}
        - {name: serve-grpc, containerPort: 9000}
        {{- if eq .component "ingress" }}
        - {name: figures, containerPort: {{ .root.Values.monitoring.port }}}
        {{- end }}
      env:
        {{- include "tandem.environment" .root | nindent 8 }}
        # A pod that is asked to go takes nothing new and goes when its replicas have finished; Serve starts
        # others elsewhere meanwhile. The head has none.
        - name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
          value: "{{ if $head }}0{{ else }}{{ sub .root.Values.terminationGraceSeconds 10 }}{{ end }}"
      securityContext:
        {{- include "tandem.containerSecurity" . | nindent 8 }}
      resources:
        {{- range $kind := list "requests" "limits" }}
        {{ $kind }}:
          {{- toYaml $.group.resources | nindent 10 }}
          {{- if $.gpus }}
          nvidia.com/gpu: "{{ $.gpus }}"
          {{- end }}
        {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if .root.Values.model.claim }}
        - {name: models, mountPath: {{ .root.Values.model.mountPath }}, readOnly: true}
        {{- end }}
        {{- if .root.Values.keys.file }}
        - {name: keys, mountPath: /etc/tandem/keys, readOnly: true}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: {{ .group.temporary }}}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .group.sharedMemory }}}}
    {{- with .root.Values.model.claim }}
    - {name: models, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
    {{- end }}
    {{- if .root.Values.keys.file }}
    - {name: keys, configMap: {name: {{ .root.Release.Name }}-keys}}
    {{- end }}
{{- end }}

{{/* A worker group, the pods of one stage. The same arguments, and replicas: [fewest, most]. */}}
{{- define "tandem.group" -}}
- groupName: {{ .component }}
  replicas: {{ index .replicas 0 }}
  minReplicas: {{ index .replicas 0 }}
  maxReplicas: {{ index .replicas 1 }}
  labels: {tandem-stage: {{ .component }}}
  rayStartParams: {}
  template:
    {{- include "tandem.template" . | nindent 4 }}
{{- end }}
