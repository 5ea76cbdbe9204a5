{{/* Whether a label selector takes these labels, as Kubernetes defines it: `true` or nothing. A null selector takes none. */}}
{{- define "lora-operator.selects" -}}
{{- $labels := .labels }}
{{- $good := not (kindIs "invalid" .selector) }}
{{- with .selector }}
{{- range $key, $value := .matchLabels }}
{{- if ne (get $labels $key) $value }}{{ $good = false }}{{ end }}
{{- end }}
{{- range .matchExpressions }}
{{- $held := and (hasKey $labels .key) (or (not (has .operator (list "In" "NotIn"))) (has (get $labels .key) .values)) }}
{{- if ne $held (has .operator (list "In" "Exists")) }}{{ $good = false }}{{ end }}
{{- end }}
{{- end }}
{{- if $good }}true{{ end }}
{{- end -}}

{{/*
Whether a Prometheus gives the series of all runs the namespace of the release, or does not look for pods beyond it: `true` or nothing. Call with a dict: root, spec (of the Prometheus), prefix.
*/}}
{{- define "lora-operator.bends" -}}
{{- $namespace := .root.Release.Namespace }}
{{- $enforced := eq (.spec.enforcedNamespaceLabel | default "") "namespace" }}
{{- $resource := dict "serviceMonitor" "servicemonitors" "podMonitor" "podmonitors" "rule" "prometheusrules" | dig .prefix "" }}
{{- range .spec.excludedFromEnforcement }}
{{- if and (eq .namespace $namespace) (eq .resource $resource) }}{{ $enforced = false }}{{ end }}
{{- end }}
{{- $blind := and (eq .prefix "podMonitor") .spec.ignoreNamespaceSelectors }}
{{- $overrides := and (eq .prefix "serviceMonitor") .spec.overrideHonorLabels }}
{{- $beyond := ne (join "," .root.Values.watch.namespaces) $namespace }}
{{- if and $beyond (or $enforced $blind $overrides) }}true{{ end }}
{{- end -}}

{{/*
Whether a Prometheus of the cluster takes a monitor, or rules: `true`, `bent` if only one that bends them does, or nothing. Call with a
dict: root, prometheuses, prefix, labels.
*/}}
{{- define "lora-operator.isScraped" -}}
{{- $root := .root }}
{{- $namespace := (lookup "v1" "Namespace" "" $root.Release.Namespace).metadata | default dict }}
{{- $found := "" }}
{{- range $prometheus := .prometheuses }}
{{- $monitors := include "lora-operator.selects" (dict "selector" (index $prometheus.spec (printf "%sSelector" $.prefix)) "labels" $.labels) }}
{{- $place := index $prometheus.spec (printf "%sNamespaceSelector" $.prefix) }}
{{- $near := eq $prometheus.metadata.namespace $root.Release.Namespace }}
{{- if not (kindIs "invalid" $place) }}
{{- $names := merge (dict "kubernetes.io/metadata.name" $root.Release.Namespace) ($namespace.labels | default dict) }}
{{- $near = include "lora-operator.selects" (dict "selector" $place "labels" $names) | eq "true" }}
{{- end }}
{{- if and $monitors $near (ne $found "true") }}
{{- $found = include "lora-operator.bends" (dict "root" $root "spec" $prometheus.spec "prefix" $.prefix) | eq "true" | ternary "bent" "true" }}
{{- end }}
{{- end }}
{{- $found }}
{{- end -}}

{{/*
A sentence on each monitor, and on the rules. Who installs in listed namespaces alone may not be allowed to list the cluster's Prometheuses,
which would end the installation: they are looked at only by who creates objects of the whole cluster.
*/}}
{{- define "lora-operator.monitorNotes" -}}
{{- $prometheuses := list }}
{{- if and (or .Values.crds.install (not .Values.watch.namespaces)) (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/Prometheus") }}
{{- $prometheuses = (lookup "monitoring.coreos.com/v1" "Prometheus" "" "").items | default list }}
{{- end }}
{{- include "lora-operator.monitorNotesOf" (dict "root" . "prometheuses" $prometheuses) }}
{{- end -}}

{{/* The same by these Prometheuses. Call with a dict: root, prometheuses. */}}
{{- define "lora-operator.monitorNotesOf" -}}
{{- $prometheuses := .prometheuses }}
{{- range $kind, $prefix := dict "ServiceMonitor" "serviceMonitor" "PodMonitor" "podMonitor" "PrometheusRule" "rule" }}
{{- $field := eq $prefix "rule" | ternary "prometheusRule" $prefix }}
{{- $nothing := eq $prefix "rule" | ternary "no alert fires" "nothing is scraped" }}
{{- $value := index $.root.Values.metrics $field }}
{{- if $value.enabled }}
{{- $labels := include "lora-operator.labelsAnd" (dict "root" $.root "own" $value.additionalLabels) | fromYaml }}
{{- $scraped := include "lora-operator.isScraped" (dict "root" $.root "prometheuses" $prometheuses "prefix" $prefix "labels" $labels) }}
{{- if not $prometheuses }}

* metrics.{{ $field }}: {{ $nothing }} until a Prometheus selects the {{ $kind }} by its labels. This shows by which yours selects, for metrics.{{ $field }}.additionalLabels:
    kubectl get prometheus -A -o jsonpath='{.items[*].spec.{{ $prefix }}Selector}'
{{- else if not $scraped }}

* metrics.{{ $field }}: NO Prometheus of this cluster selects the {{ $kind }}, so {{ $nothing }}. Set metrics.{{ $field }}.additionalLabels to what yours selects by{{ with (first $prometheuses).spec }}, as in {{ index . (printf "%sSelector" $prefix) | toJson }} in the namespaces {{ index . (printf "%sNamespaceSelector" $prefix) | toJson }}{{ end }}.
{{- else if eq $scraped "bent" }}
{{- $bent := dict "serviceMonitor" "gives the series of all runs" "podMonitor" "scrapes no training pods outside of this namespace, or gives those of all runs" "rule" "lets alerts see only series of" | dig $prefix "" }}

* metrics.{{ $field }}: a Prometheus of this cluster selects the {{ $kind }}, but by its ignoreNamespaceSelectors, overrideHonorLabels or enforcedNamespaceLabel (OpenShift's for user workloads has all three) it {{ $bent }} the namespace {{ $.root.Release.Namespace }}: {{ if eq $prefix "podMonitor" }}apply a copy of it in each namespace with runs, or {{ end }}let another Prometheus take it.
{{- else }}

* metrics.{{ $field }}: a Prometheus of this cluster selects the {{ $kind }}; docs/{{ eq $prefix "rule" | ternary "monitoring.md lists its alerts" "metrics.md lists what it finds" }}.
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What is to be done next about what was switched on. */}}
{{- define "lora-operator.nextSteps" -}}
{{- $name := include "lora-operator.fullname" . }}
{{- include "lora-operator.monitorNotes" . }}
{{- $needs := list }}
{{- range uniq (list .Values.defaults.cacheClaim .Values.defaults.checkpointClaim) }}
{{- with . }}{{ $needs = append $needs (printf "the PersistentVolumeClaim %s" .) }}{{ end }}
{{- end }}
{{- with .Values.defaults.queue }}{{ $needs = append $needs (printf "the LocalQueue %s" .) }}{{ end }}
{{- with .Values.config.caBundleConfigMap }}{{ $needs = append $needs (printf "the ConfigMap %s with %s" . ($.Values.config.caBundleKey | default "ca.crt")) }}{{ end }}
{{- with .Values.trainer.serviceAccountName }}{{ $needs = append $needs (printf "the ServiceAccount %s" .) }}{{ end }}
{{- range .Values.imagePullSecrets }}{{ $needs = append $needs (printf "the Secret %s" .name) }}{{ end }}
{{- with $needs }}

* Each namespace with runs needs {{ join ", " . }}.
{{- end }}
{{- if and .Values.watch.namespaces .Values.rbac.create (not .Values.rbac.aggregate) }}

* watch.namespaces: bind your people in each of them, for instance:
    kubectl -n {{ first .Values.watch.namespaces }} create rolebinding {{ $name }}-edit --role={{ $name }}-edit --group=YOUR-GROUP
{{- end }}
{{- if not .Values.rbac.create }}

* rbac.create is false: grant the service account {{ include "lora-operator.serviceAccountName" . }} the rights that docs/install.md lists, or the operator does not start.{{ if not .Values.rbac.aggregate }} The cluster's view, edit and admin roles know no LoRAFineTunes either: set rbac.aggregate to true, or grant people theirs.{{ end }}
{{- end }}
{{- if eq (int .Values.replicas) 0 }}

* replicas is 0: no operator runs. Runs that have begun continue; raise it to have their results recorded.
{{- end }}
{{- if .Values.policies.enabled }}

* policies: the rules are in force within some seconds, and hold for new runs. To see them:
    kubectl describe validatingadmissionpolicy {{ $name }}-runs
{{- range $field, $prefixes := dict "model.uri" .Values.policies.modelPrefixes "dataset.uri" .Values.policies.datasetPrefixes "output.uri" .Values.policies.outputPrefixes }}
{{- with $prefixes }}
  In the run above {{ $field }} must begin with {{ join " or " . }}.
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.metrics.grafanaDashboard.enabled }}

* metrics.grafanaDashboard: a Grafana whose sidecar looks in this namespace shows LoRA fleet and LoRA run, at /d/lora-fleet and /d/lora-run.
{{- if not .Values.config.runMetrics }} With config.runMetrics: false both list no runs: set it to true.
{{- end }}
{{- end }}
{{- with .Values.metrics }}
{{- if .prometheusRule.enabled }}
{{- if not .serviceMonitor.enabled }}

* metrics.prometheusRule: LoRAOperatorDown fires as long as nothing scrapes the operator: set metrics.serviceMonitor.enabled, or scrape it as docs/monitoring.md says.
{{- end }}
{{- if not .podMonitor.enabled }}

* metrics.prometheusRule: alerts about steps, checkpoints and GPUs of runs cannot fire as long as nothing scrapes the training pods: set metrics.podMonitor.enabled, or scrape them as docs/monitoring.md says.
{{- end }}
{{- if not $.Values.config.runMetrics }}

* metrics.prometheusRule: with config.runMetrics: false no alert about a run's state can fire, such as LoRAFineTuneStuckPending: set it to true.
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.networkPolicy.enabled }}

* networkPolicy: it has an effect only where the network plugin enforces policies.
{{- if and .Values.metrics.prometheusRule.enabled (not .Values.networkPolicy.prometheusNamespaces) }} It keeps each Prometheus from operator and training pods, on whose series the alerts depend: name its namespace in networkPolicy.prometheusNamespaces.
{{- end }}
{{- if not .Values.watch.namespaces }} The training pods' is to be applied in each namespace with runs:

kubectl -n NAMESPACE apply -f - <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}-trainers
spec:
  {{- include "lora-operator.trainerPolicy" . | nindent 2 }}
YAML
{{- end }}
{{- end }}
{{- end -}}
