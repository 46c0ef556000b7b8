{{/* What values.schema.json cannot say: that values fit each other. */}}
{{- define "tandem.check" -}}
{{- $stages := dict "decoder" .Values.decoder -}}
{{- if eq .Values.placement "disaggregated" }}{{ $_ := set $stages "encoder" .Values.encoder }}{{ end -}}
{{- range $stage, $values := $stages -}}
{{- if lt (int .maxReplicas) (int .minReplicas) -}}
{{- fail (printf "%s.maxReplicas: must be at least minReplicas, %d" $stage (int .minReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range $stage, $values := set $stages "ingress" .Values.ingress -}}
{{- $need := addf (mulf .cpus (.shards | default 1)) (ternary 0 0.05 (eq $stage "ingress")) -}}
{{- if gt $need (float64 .resources.cpu) -}}
{{- fail (printf "%s.resources.cpu: a replica needs %v, with its shards and 0.05 for what watches over them" $stage $need) -}}
{{- end -}}
{{- end -}}
{{- $drain := .Values.arguments.drain_timeout_s | default 600 -}}
{{- if lt (int .Values.terminationGraceSeconds) (int (add 10 $drain)) -}}
{{- fail (printf "terminationGraceSeconds: must be at least 10 more than arguments.drain_timeout_s, %v" $drain) -}}
{{- end -}}
{{- end }}
