{{/* Labels of the operator's own series: those of this release. A ServiceMonitor names its job after the Service. */}}
{{- define "lora-operator.ownSeries" -}}
namespace="{{ .Release.Namespace }}"{{ if .Values.metrics.serviceMonitor.enabled }}, job="{{ include "lora-operator.metricsService" . }}"{{ end }}
{{- end -}}

{{/* Labels of the series of runs: those of the watched namespaces, since another release looks after the others. */}}
{{- define "lora-operator.ofRuns" -}}
{{- with .Values.watch.namespaces }}{namespace=~"{{ join "|" . }}"}{{ end }}
{{- end -}}

{{- define "lora-operator.andOfRuns" -}}
{{- with .Values.watch.namespaces }}, namespace=~"{{ join "|" . }}"{{ end }}
{{- end -}}

{{/*
An expression over series of DCGM's exporter, {} in it being their selector, by the pod that has the GPU. Scraped without
honorLabels, that pod stands in exported_pod, and pod is the exporter's own.
*/}}
{{- define "lora-operator.byPod" -}}
label_replace(label_replace(
  max by (exported_namespace, exported_pod, Hostname, gpu) ({{ replace "{}" "{exported_pod!=\"\"}" . }}),
  "namespace", "$1", "exported_namespace", "(.+)"), "pod", "$1", "exported_pod", "(.+)")
or max by (namespace, pod, Hostname, gpu) ({{ replace "{}" "{pod!=\"\", exported_pod=\"\"}" . }})
{{- end -}}

{{/*
Of what an operator said of runs in the last half hour: where this alert fires, and no operator leads that would say that
it should not. Without it the alert would resolve in a longer pause, as of an upgrade, and come back after the next one.
*/}}
{{- define "lora-operator.firesUnlooked" -}}
{{- $root := index . 0 -}}
and on (namespace, name) ALERTS{alertname="{{ index . 1 }}", alertstate="firing"{{ include "lora-operator.andOfRuns" $root }}} unless on () (lora_operator_leader{{ printf "{%s}" (include "lora-operator.ownSeries" $root) }} == 1)
{{- end -}}

{{/*
What several alerts read, or what would take long to say in each. A new operator, or a new leader, has other target
labels than the one before, and is scraped some moments later: so series about a run are looked for in the last five
minutes and merged by namespace and name.
*/}}
{{- define "lora-operator.recordings" -}}
{{- $own := include "lora-operator.ownSeries" . -}}
{{- $of := include "lora-operator.ofRuns" . -}}
{{- $and := include "lora-operator.andOfRuns" . -}}
- record: namespace_job:lora_operator_reconcile_errors:increase15m
  expr: |-
    sum by (namespace, job) (increase(lora_operator_reconcile_total{result="error", {{ $own }}}[15m]))
- record: namespace_name:lorafinetune_completed:timestamp6h
  expr: |-
    max by (namespace, name) (last_over_time(lorafinetune_completed_timestamp_seconds{{ $of }}[5m])) > time() - 6 * 3600
- record: namespace:lorafinetune_completed:count6h
  expr: |-
    count by (namespace) (namespace_name:lorafinetune_completed:timestamp6h{{ $of }})
- record: namespace:lorafinetune_failed:count6h
  expr: |-
    count by (namespace) (
      namespace_name:lorafinetune_completed:timestamp6h{{ $of }}
      and on (namespace, name) last_over_time(lorafinetune_state{group="Failed"{{ $and }}}[5m])
    )
# Pods that train or did so in the last hour, with the run's name: of several nodes each, since each reports its GPUs.
- record: namespace_pod_name:lora_training_pod:last1h
  expr: |-
    group by (namespace, pod, name) (
      last_over_time(lora_training_heartbeat_timestamp_seconds{{ $of }}[1h])
      or last_over_time(lora_training_gpu_memory_reserved_bytes{{ $of }}[1h])
    )
- record: namespace_pod_name_gpu:dcgm_gpu_utilization:avg15m
  expr: |-
    max by (namespace, pod, Hostname, gpu) (
      {{- include "lora-operator.byPod" "avg_over_time(DCGM_FI_DEV_GPU_UTIL{}[15m])" | nindent 6 }}
    ) / 100
    * on (namespace, pod) group_left (name) namespace_pod_name:lora_training_pod:last1h{{ $of }}
{{- end -}}
