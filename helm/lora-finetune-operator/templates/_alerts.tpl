{{/*
The alerts, as a list. How long each must last and its runbook are added by prometheusrule.yaml. What stands
in $run and the like is for Prometheus, which fills it in when an alert fires.
*/}}
{{- define "lora-operator.alerts" -}}
{{- $own := printf "{%s}" (include "lora-operator.ownSeries" .) -}}
{{- $of := include "lora-operator.ofRuns" . -}}
{{- $and := include "lora-operator.andOfRuns" . -}}
{{- $alerts := .Values.metrics.prometheusRule.alerts -}}
{{- $namespace := "{{ $labels.namespace }}" -}}
{{- $operator := "{{ $labels.namespace }}/{{ $labels.job }}" -}}
{{- $resource := "{{ $labels.resource }}" -}}
{{- $run := "{{ $labels.namespace }}/{{ $labels.name }}" -}}
{{- $pod := "{{ $labels.pod }}" -}}
{{- $gpu := "GPU {{ $labels.gpu }} of node {{ $labels.Hostname }}" -}}
{{- $seconds := "{{ $value | humanizeDuration }}" -}}
{{- $percent := "{{ $value | humanizePercentage }}" -}}
{{- $number := "{{ $value | printf \"%.0f\" }}" -}}
- alert: LoRAOperatorDown
  expr: |-
    absent(lora_operator_leader{{ $own }} == 1)
  labels: {severity: critical, namespace: {{ .Release.Namespace | quote }}}
  annotations:
    summary: >-
      No LoRA operator leads in {{ .Release.Namespace }}
    description: >-
      No process of {{ .Release.Namespace }}/{{ include "lora-operator.fullname" . }} has worked on LoRAFineTunes lately. Training
      pods continue; new runs do not begin, failed ones are not judged, and no status is written.
# Of 60 looks, those that found a leader; one that finds no series counts like one that finds 0. No single pause makes
# the share small for as long as this must last: it is 0 after 15 minutes of one.
- alert: LoRAOperatorRestarting
  expr: |-
    0 < sum_over_time(max(lora_operator_leader{{ $own }})[15m:15s]) / 60 < 0.5
  labels: {severity: critical, namespace: {{ .Release.Namespace | quote }}}
  annotations:
    summary: >-
      The LoRA operator in {{ .Release.Namespace }} ends again and again
    description: >-
      Processes of {{ .Release.Namespace }}/{{ include "lora-operator.fullname" . }} have worked on LoRAFineTunes for less than
      half of the last 15 minutes. Training pods continue; new runs begin late, if at all, and statuses are old.
- alert: LoRAOperatorWatchStale
  expr: |-
    time() - min by (namespace, job, resource) (lora_operator_watch_last_event_timestamp_seconds{{ $own }} > 0)
    > {{ $alerts.LoRAOperatorWatchStale.seconds }}
  labels: {severity: critical}
  annotations:
    summary: >-
      The LoRA operator's watch on {{ $resource }} is stale
    description: >-
      The watch on {{ $resource }} of {{ $operator }} has brought neither an event
      nor a bookmark for {{ $seconds }}, though it was begun again, and no list has come either. What happens is not seen.
- alert: LoRAOperatorReconcileErrors
  expr: |-
    namespace_job:lora_operator_reconcile_errors:increase15m{{ $own }} > {{ $alerts.LoRAOperatorReconcileErrors.errors }}
  labels: {severity: warning}
  annotations:
    summary: >-
      The LoRA operator in {{ $namespace }} is refused what it must do
    description: >-
      {{ $number }} turns of {{ $operator }} failed in 15 minutes: the API server refused what
      the operator must be able to do, or something unexpected happened. The runs concerned stay where they are.
- alert: LoRAOperatorNamespaceLeftOut
  expr: |-
    max by (namespace) (max_over_time(lora_operator_left_out_namespace{{ $of }}[5m])) == 1
  labels: {severity: warning}
  annotations:
    summary: >-
      The LoRA operator does not watch the namespace {{ $namespace }}
    description: >-
      A right to list or watch is missing in the listed namespace {{ $namespace }}, so its LoRAFineTunes are not
      worked on. Those of the other namespaces are.
# What waits for quota waits for other runs, and has a time of its own.
- alert: LoRAFineTuneStuckPending
  expr: |-
    max by (namespace, name) (
      max_over_time(lorafinetune_state{group=~"Waiting|Retrying|Failing", state!="QuotaExceeded"{{ $and }}}[5m])
    )
    unless on (namespace, name) lorafinetune_state{group!~"Waiting|Retrying|Failing"{{ $and }}}
    unless on (namespace, name) lorafinetune_state{state="QuotaExceeded"{{ $and }}}
    or
    max by (namespace, name) (last_over_time(lorafinetune_state{group=~"Waiting|Retrying|Failing"{{ $and }}}[30m]))
    {{ include "lora-operator.firesUnlooked" (list . "LoRAFineTuneStuckPending") }}
  labels: {severity: warning, group: Waiting}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} does not start or continue
    description: >-
      {{ $run }} has had no pod that runs for more than {{ $alerts.LoRAFineTuneStuckPending.for }}. Its state: {{ "{{ range $i, $found := query (printf \"max by (state) (lorafinetune_state{namespace=%q, name=%q})\" $labels.namespace $labels.name) | sortByLabel \"state\" }}{{ if $i }}, {{ end }}{{ $found.Labels.state }}{{ end }}" }}
- alert: LoRAFineTuneStuckPending
  expr: |-
    time() - max by (namespace, name) (
      last_over_time(lorafinetune_state_since_timestamp_seconds{{ $of }}[5m])
      and on (namespace, name) last_over_time(lorafinetune_state{state=~"Queued|Preempted|QuotaExceeded"{{ $and }}}[5m])
      unless on (namespace, name) lorafinetune_state{state!~"Queued|Preempted|QuotaExceeded"{{ $and }}}
      or
      last_over_time(lorafinetune_state_since_timestamp_seconds{{ $of }}[30m])
      and on (namespace, name) last_over_time(lorafinetune_state{state=~"Queued|Preempted|QuotaExceeded"{{ $and }}}[30m])
      {{ include "lora-operator.firesUnlooked" (list . "LoRAFineTuneStuckPending") }}
    ) > {{ $alerts.LoRAFineTuneStuckPending.queuedSeconds }}
  labels: {severity: warning, group: Held}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} gets no quota
    description: >-
      {{ $run }} has been waiting for quota for {{ $seconds }}. Its state: {{ "{{ range $i, $found := query (printf \"max by (state) (lorafinetune_state{namespace=%q, name=%q})\" $labels.namespace $labels.name) | sortByLabel \"state\" }}{{ if $i }}, {{ end }}{{ $found.Labels.state }}{{ end }}" }}
- alert: LoRAFineTuneStalled
  expr: |-
    time() - max by (namespace, name) (lora_training_heartbeat_timestamp_seconds{{ $of }})
    > {{ $alerts.LoRAFineTuneStalled.seconds | default (add .Values.config.stallTimeoutSeconds 600) }}
    or
    time() - max by (namespace, name) (
      last_over_time(lorafinetune_state_since_timestamp_seconds{{ $of }}[5m])
      and on (namespace, name) last_over_time(lorafinetune_state{group="Running", state="Stalled"{{ $and }}}[5m])
      unless on (namespace, name) lorafinetune_state{state!="Stalled"{{ $and }}}
    )
  labels: {severity: warning}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} makes no progress
    description: >-
      The trainer of {{ $run }} has done nothing for {{ $seconds }} and has not ended itself. It holds its GPUs all the
      while.
- alert: LoRAFineTuneNonFiniteLoss
  expr: |-
    sum by (namespace, name) (increase(lora_training_nonfinite_values_total{{ $of }}[15m]))
    >= {{ $alerts.LoRAFineTuneNonFiniteLoss.steps }}
    or
    max by (namespace, name) (
      last_over_time(lorafinetune_state{group="Failed", state=~"NonFiniteLoss|LossDiverged"{{ $and }}}[15m])
      and on (namespace, name) last_over_time(lorafinetune_completed_timestamp_seconds{{ $of }}[15m]) > time() - 3600
    )
  labels: {severity: warning}
  annotations:
    summary: >-
      The loss of LoRAFineTune {{ $run }} is not finite or diverges
    description: >-
      {{ $run }} leaves out steps whose loss or gradients are not finite, or has failed in the last hour because of them
      or of a loss that went up and stayed up. The last checkpoint is from before.
# Seconds of steps: evaluations are not trained again. Where a save after each second is asked for, most scrapes fall into one.
- alert: LoRAFineTuneCheckpointStale
  expr: |-
    max by (namespace, name) (lora_training_unsaved_seconds{{ $of }})
    > {{ $alerts.LoRAFineTuneCheckpointStale.intervals }}
    * clamp_min(max by (namespace, name) (lora_training_checkpoint_interval_seconds{{ $of }}), 60)
  labels: {severity: warning}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} saves no checkpoints
    description: >-
      No checkpoint holds the last {{ $seconds }} of training of {{ $run }}. Should its pod end now, that much is
      trained again.
- alert: LoRAFineTuneRestartLoop
  expr: |-
    sum by (namespace, name) (increase(lorafinetune_retries_total{{ $of }}[1h]))
    >= {{ $alerts.LoRAFineTuneRestartLoop.restarts }}
  labels: {severity: warning}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} restarts over and over
    description: >-
      {{ $run }} was begun again {{ $number }} times in the last hour. Since it began:
      {{ "{{ range $i, $found := query (printf \"max by (kind) (lorafinetune_retries_total{namespace=%q, name=%q}) > 0\" $labels.namespace $labels.name) | sortByLabel \"kind\" }}{{ if $i }}, {{ end }}{{ $found.Labels.kind }} ({{ $found.Value }}){{ end }}" }}
- alert: LoRAFineTuneFailureRatio
  expr: |-
    namespace:lorafinetune_failed:count6h{{ $of }} / namespace:lorafinetune_completed:count6h{{ $of }}
    > {{ $alerts.LoRAFineTuneFailureRatio.ratio }}
    and namespace:lorafinetune_completed:count6h{{ $of }} >= {{ $alerts.LoRAFineTuneFailureRatio.runs }}
  labels: {severity: warning}
  annotations:
    summary: >-
      {{ $percent }} of the LoRAFineTunes in {{ $namespace }} fail
    description: >-
      Of the runs in {{ $namespace }} that ended in the last six hours and are still there, {{ $percent }} failed:
      {{ "{{ range $i, $found := query (printf \"sort_desc(count by (state) (max by (namespace, name, state) (lorafinetune_state{group='Failed', namespace=%q}) and on (namespace, name) namespace_name:lorafinetune_completed:timestamp6h))\" $labels.namespace) }}{{ if $i }}, {{ end }}{{ $found.Labels.state }} ({{ $found.Value }}){{ end }}" }}
- alert: LoRAFineTuneMemoryNearLimit
  expr: |-
    max by (namespace, name, pod) (lora_training_gpu_memory_peak_bytes{{ $of }})
    / on (namespace, pod) group_left ()
    min by (namespace, pod) (
      {{- include "lora-operator.byPod" "DCGM_FI_DEV_FB_USED{} + DCGM_FI_DEV_FB_FREE{}" | nindent 6 }}
    ) / 2 ^ 20
    > {{ $alerts.LoRAFineTuneMemoryNearLimit.ratio }}
  labels: {severity: warning, memory: gpu}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} is near the end of its GPU's memory
    description: >-
      Tensors of {{ $run }} have taken {{ $percent }} of a GPU of pod {{ $pod }}. A longer row may not fit; then
      micro-batches are halved, and the run is slower.
# Not the working set, which holds files that were read lately and can be given up. The limit is kube-state-metrics's:
# kube-prometheus-stack drops cAdvisor's, which takes its place where that is scraped and the other is not.
- alert: LoRAFineTuneMemoryNearLimit
  expr: |-
    max by (namespace, pod) (container_memory_rss{container="trainer"{{ $and }}})
    / (
      max by (namespace, pod) (kube_pod_container_resource_limits{container="trainer", resource="memory"{{ $and }}})
      or max by (namespace, pod) (container_spec_memory_limit_bytes{container="trainer"{{ $and }}} > 0)
    )
    * on (namespace, pod) group_left (name) namespace_pod_name:lora_training_pod:last1h{{ $of }}
    > {{ $alerts.LoRAFineTuneMemoryNearLimit.ratio }}
  labels: {severity: warning, memory: pod}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} is near its pod's memory limit
    description: >-
      Pod {{ $pod }} of {{ $run }} uses {{ $percent }} of its memory limit. Beyond it the kernel kills the trainer,
      and the run continues from its last checkpoint.
- alert: LoRAFineTuneGPUIdle
  expr: |-
    min by (namespace, name, pod) (namespace_pod_name_gpu:dcgm_gpu_utilization:avg15m{{ $of }})
    < {{ $alerts.LoRAFineTuneGPUIdle.ratio }}
  labels: {severity: warning}
  annotations:
    summary: >-
      LoRAFineTune {{ $run }} does not use its GPU
    description: >-
      A GPU of pod {{ $pod }} of {{ $run }} worked for {{ $percent }} of the last 15 minutes, and no other pod can
      have it.
# DCGM keeps the code of the last Xid, and drops the pod when it has ended. So it is the GPU whose code has changed, and
# the pods that had the GPU about then.
- alert: LoRAFineTuneGPUXid
  expr: |-
    group by (namespace, pod, Hostname, gpu) (
      {{- include "lora-operator.byPod" "last_over_time(DCGM_FI_DEV_XID_ERRORS{}[1h])" | nindent 6 }}
    )
    * on (Hostname, gpu) group_left ()
    (
      max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS) > 0
      unless max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS) == max by (Hostname, gpu) (DCGM_FI_DEV_XID_ERRORS offset 1h)
    )
    * on (namespace, pod) group_left (name) namespace_pod_name:lora_training_pod:last1h{{ $of }}
    {{- range $alerts.LoRAFineTuneGPUXid.ignored }}
    != {{ . }}
    {{- end }}
  labels: {severity: warning}
  annotations:
    summary: >-
      {{ $gpu }} reported Xid {{ $number }} under LoRAFineTune {{ $run }}
    description: >-
      The driver reported Xid {{ $number }} for {{ $gpu }}, which pod
      {{ $pod }} of {{ $run }} had in the last hour.
{{- end -}}
