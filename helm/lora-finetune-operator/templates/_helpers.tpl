{{/* Name of the release's objects: the release's own name if that speaks of LoRA, else with a suffix. */}}
{{- define "lora-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "lora" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-lora-operator" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lora-operator.metricsService" -}}
{{- include "lora-operator.fullname" . }}-metrics
{{- end -}}

{{- define "lora-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default "lora-operator" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Of the Job of `helm test`. */}}
{{- define "lora-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default "lora-operator" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "lora-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "lora-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: lora-operator
{{- end -}}

{{/* The same with labels of the user's own, which win. Call with a dict: root, own. */}}
{{- define "lora-operator.labelsAnd" -}}
{{- merge (dict) (.own | default dict) (include "lora-operator.labels" .root | fromYaml) | toYaml -}}
{{- end -}}

{{- define "lora-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "lora-operator.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name must name an existing service account when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image reference. Call with a dict: image, field (its path in the values, for the message), root. */}}
{{- define "lora-operator.image" -}}
{{- $repository := required (printf "%s.repository must be set to the repository that you pushed the image to, as in --set %s.repository=registry.example.com/NAME" .field .field) .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The small image; without a repository the one beside the trainer's, as a release has them, else the trainer's own. */}}
{{- define "lora-operator.preflightImage" -}}
{{- $trainer := .Values.trainer.image -}}
{{- with .Values.preflight.image -}}
{{- $beside := regexReplaceAll "(^|/)lora-trainer$" $trainer.repository "${1}lora-preflight" -}}
{{- if or .repository (ne $beside $trainer.repository) -}}
{{- $tag := .tag | default (trimSuffix "-cuda12" (toString $trainer.tag)) -}}
{{- $image := dict "repository" (.repository | default $beside) "tag" $tag "digest" .digest -}}
{{- include "lora-operator.image" (dict "image" $image "field" "preflight.image" "root" $) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the restricted Pod Security Standard asks of a pod, and of its container. */}}
{{- define "lora-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.securityContext.runAsUser }}
runAsUser: {{ . | int64 }}
{{- end }}
{{- with .Values.securityContext.runAsGroup }}
runAsGroup: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "lora-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where pods of the operator's image may run. */}}
{{- define "lora-operator.placement" -}}
nodeSelector:
  {{- merge (dict) (.Values.nodeSelector | default dict) (dict "kubernetes.io/os" "linux") | toYaml | nindent 2 }}
{{- range $field := list "tolerations" "affinity" }}
{{- with index $.Values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A first run, which fits the values; the notes print it, and `helm test` tries it. */}}
{{- define "lora-operator.sample" -}}
apiVersion: lora-operator.io/v1alpha1
kind: LoRAFineTune
metadata:
  name: first-run
  {{- if and .Values.policies.enabled .Values.policies.requireQueue (not .Values.defaults.queue) }}
  labels: {kueue.x-k8s.io/queue-name: your-queue}
  {{- end }}
spec:
  model: {uri: "{{ if .Values.config.offline }}pvc://models{{ else }}hf://HuggingFaceTB{{ end }}/SmolLM2-135M-Instruct"}
  dataset: {uri: "configmap://first-data/train.jsonl", validationFraction: "0.25"}
  training: {maxSteps: 10, effectiveBatchSize: 4}
  {{- if .Values.config.allowCPU }}
  resources: {gpus: 0}
  {{- end }}
  output: {uri: "pvc://adapters/first-run"}
{{- end -}}

{{/* The operator's configuration file. */}}
{{- define "lora-operator.config" -}}
{{- $pullSecrets := list -}}
{{- range .Values.imagePullSecrets }}{{ $pullSecrets = append $pullSecrets .name }}{{ end -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "trainerImage" (include "lora-operator.image" (dict "image" .Values.trainer.image "field" "trainer.image" "root" .)) -}}
{{- $_ := set $config "preflightImage" (include "lora-operator.preflightImage" .) -}}
{{- with .Values.defaults -}}
{{- $_ := set $config "defaultGPUResourceName" .gpuResourceName -}}
{{- range $field, $key := dict "nodeSelector" "defaultNodeSelector" "tolerations" "defaultTolerations" "affinity" "defaultAffinity" "environment" "defaultEnvironment" "runtimeClassName" "defaultRuntimeClassName" "priorityClassName" "defaultPriorityClassName" "queue" "defaultQueue" "checkpointClaim" "defaultCheckpointClaim" "cpuPerGPU" "defaultCPUPerGPU" "memoryPerGPU" "defaultMemoryPerGPU" "ttlSecondsAfterFinished" "defaultTTLSeconds" -}}
{{- $_ := set $config $key (index $.Values.defaults $field) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "cacheClaim" .Values.defaults.cacheClaim -}}
{{- $_ := set $config "preflightNodeSelector" .Values.preflight.nodeSelector -}}
{{- $_ := set $config "preflightTolerations" .Values.preflight.tolerations -}}
{{- $_ := set $config "imagePullPolicy" .Values.trainer.image.pullPolicy -}}
{{- $_ := set $config "imagePullSecrets" $pullSecrets -}}
{{- $_ := set $config "trainerServiceAccountName" .Values.trainer.serviceAccountName -}}
{{- range $field := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- $_ := set $config $field (index ($.Values.trainer.securityContext | default dict) $field | default 0 | int) -}}
{{- end -}}
{{- $annotations := deepCopy (.Values.trainer.podAnnotations | default dict) -}}
{{- range $key, $value := .Values.trainer.podAnnotations }}
{{- if kindIs "invalid" $value }}{{ $_ := unset $annotations $key }}{{ end -}}
{{- end -}}
{{- if not (kindIs "invalid" .Values.trainer.podAnnotations) }}{{ $_ := set $config "podAnnotations" $annotations }}{{ end -}}
{{- $_ := set $config "namespaces" .Values.watch.namespaces -}}
{{- $_ := set $config "leaseName" (include "lora-operator.fullname" .) -}}
{{- $_ := set $config "leaseNamespace" .Release.Namespace -}}
{{- $_ := set $config "httpPort" 8080 -}}
{{- $_ := set $config "logLevel" .Values.logLevel -}}
{{- $_ := set $config "logFormat" .Values.logFormat -}}
{{- /* To Helm a null is "as if it were not there"; to the operator it is a value for the time to live alone: never. */ -}}
{{- range $key, $value := $config -}}
{{- if and (kindIs "invalid" $value) (ne $key "defaultTTLSeconds") }}{{ $_ := unset $config $key }}{{ end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* What the operator may do: in the whole cluster, or in each watched namespace. No right on Secrets. */}}
{{- define "lora-operator.rules" -}}
- apiGroups: [lora-operator.io]
  resources: [lorafinetunes]
  verbs: [get, list, watch]
- apiGroups: [lora-operator.io]
  resources: [lorafinetunes/status]
  verbs: [update]
# Owner references that block deletion need this where the OwnerReferencesPermissionEnforcement admission is on.
- apiGroups: [lora-operator.io]
  resources: [lorafinetunes/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Names for the pods of a run on several nodes.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
# Kueue's, where the cluster has it: why a run waits for quota, and that one that is suspended gives its quota back.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch, patch]
{{- end -}}
