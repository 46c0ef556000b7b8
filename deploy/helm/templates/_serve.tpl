{{/* Serve's configuration: what the operator deploys. */}}

{{/* One kind of replica that has bundles. cpus: of each bundle; bundles: how many; gpu: whether each has one.
Serve replaces a deployment's options as a whole, so they repeat what the arguments ask for: a bundle for each
shard, the first with a little more for the replica that watches over them. */}}
{{- define "tandem.bundles" -}}
placement_group_bundles:
  {{- range $rank := until (int .bundles) }}
  - CPU: {{ if $rank }}{{ $.cpus }}{{ else }}{{ addf $.cpus 0.05 }}{{ end }}
    {{- if $.gpu }}
    GPU: 1
    {{- end }}
  {{- end }}
placement_group_bundle_label_selector:
  {{- range until (int .bundles) }}
  - {tandem-stage: {{ $.stage }}}
  {{- end }}
{{- end }}

{{- define "tandem.serveConfig" -}}
{{- $cuda := eq .Values.device "cuda" -}}
# Clients reach Serve's proxies, one in every worker pod, because KubeRay asks each pod's proxy on port 8000
# whether the pod is ready. In Tandem's direct mode, faster by a hop, only the ingress replicas listen: the
# other pods would never become ready.
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
grpc_options:
  port: 9000
  grpc_servicer_functions:
    - tandem.protocol.rpc.add_inference_service
    - tandem.protocol.rpc.add_health_service
  enable_reflection: false
applications:
  - name: tandem
    route_prefix: /
    import_path: tandem.cluster.app:build
    # The fields of ServeConfig, cluster/config.py. Serve scales replicas between these minima and maxima;
    # Ray's autoscaler then adds and removes pods for them.
    args:
      model: {{ .Values.model.name | quote }}
      {{- with .Values.model.servedName }}
      served_model_name: {{ . | quote }}
      {{- end }}
      device: {{ .Values.device }}
      placement: {{ .Values.placement }}
      ingress_mode: proxy
      host: 0.0.0.0
      metrics_port: {{ .Values.monitoring.port }}
      ingress_replicas: {{ .Values.ingress.replicas }}
      {{- if eq .Values.placement "disaggregated" }}
      min_encoder_replicas: {{ .Values.encoder.minReplicas }}
      max_encoder_replicas: {{ .Values.encoder.maxReplicas }}
      encoder_cpus: {{ .Values.encoder.cpus }}
      {{- end }}
      min_decoder_replicas: {{ .Values.decoder.minReplicas }}
      max_decoder_replicas: {{ .Values.decoder.maxReplicas }}
      tensor_parallel_size: {{ .Values.decoder.shards }}
      ingress_cpus: {{ .Values.ingress.cpus }}
      decoder_cpus: {{ .Values.decoder.cpus }}
      {{- if .Values.keys.file }}
      api_keys: /etc/tandem/keys/keys.txt
      {{- end }}
      {{- with .Values.arguments }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    deployments:
      - name: Ingress
        max_replicas_per_node: 1
        ray_actor_options:
          num_cpus: {{ .Values.ingress.cpus }}
          label_selector: {tandem-stage: ingress}
          {{- if dig "spare_ingress" true .Values.arguments }}
          # The next replica's process waits with its modules loaded; as cluster/app.py has it.
          runtime_env:
            env_vars: {__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR: tandem.cluster.ingress.preparation.prepare}
          {{- end }}
      {{- if eq .Values.placement "disaggregated" }}
      - name: Encoder
        {{- include "tandem.bundles" (dict "stage" "encoder" "cpus" .Values.encoder.cpus "bundles" 1 "gpu" $cuda) | nindent 8 }}
      {{- end }}
      - name: Decoder
        {{- include "tandem.bundles" (dict "stage" "decoder" "cpus" .Values.decoder.cpus "bundles" .Values.decoder.shards "gpu" $cuda) | nindent 8 }}
{{- end }}
