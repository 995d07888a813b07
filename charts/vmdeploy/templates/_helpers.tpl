{{- define "vmdeploy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "vmdeploy.labels" -}}
app.kubernetes.io/name: vmdeploy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* (dict "root" $ "component" "operator") */ -}}
{{- define "vmdeploy.selector" -}}
app.kubernetes.io/name: vmdeploy
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "vmdeploy.repositoryEndpoint" -}}
{{- .Values.repository.endpoint | default (printf "vmdeploy-repository.%s.svc:%v" .Release.Namespace .Values.repository.service.port) -}}
{{- end }}

{{- define "vmdeploy.config" -}}
sites:
  {{- toYaml .Values.sites | nindent 2 }}
namespace: {{ .Release.Namespace }}
repository: {{ include "vmdeploy.repositoryEndpoint" . | quote }}
{{- with .Values.defaultImage }}
defaultImage: {{ . }}
{{- end }}
imageGrace: {{ .Values.imageGrace }}
{{- if or .Values.quota.default .Values.quota.namespaces }}
quota:
  {{- with .Values.quota.default }}
  default: {{ . }}
  {{- end }}
  {{- with .Values.quota.namespaces }}
  namespaces:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if .Values.jobNetwork.enabled }}
jobNetwork:
  pool: {{ .Values.jobNetwork.pool }}
  port: {{ .Values.jobNetwork.port }}
  mtu: {{ .Values.jobNetwork.mtu }}
{{- end }}
agents:
  image: {{ include "vmdeploy.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  portFirst: {{ .Values.agents.portFirst }}
  portCount: {{ .Values.agents.portCount }}
  {{- with .Values.agents.priorityClass.name }}
  priorityClass: {{ . }}
  {{- end }}
  accelerator: {{ .Values.agents.accelerator }}
  guestNetwork: {{ .Values.agents.guestNetwork }}
  imageCache: {{ .Values.agents.imageCache }}
  {{- with .Values.agents.sharedImages.claim }}
  sharedImages: {{ toJson $.Values.agents.sharedImages }}
  {{- end }}
  captureCache: {{ include "vmdeploy.bytes" .Values.agents.captureCache | quote }}
  milliCpuPerCpu: {{ .Values.agents.milliCpuPerCpu }}
  milliCpuOverhead: {{ .Values.agents.milliCpuOverhead }}
  memoryOverhead: {{ include "vmdeploy.bytes" .Values.agents.memoryOverhead | quote }}
  log: {{ .Values.agents.log | quote }}
importers:
  scratch: {{ include "vmdeploy.bytes" .Values.importers.scratch | quote }}
  {{- with .Values.importers.ca }}
  ca: {{ toJson . }}
  {{- end }}
{{- end }}

{{- /* What every pod of the chart has but its containers: (dict "root" $ "component" "operator") */ -}}
{{- define "vmdeploy.podMetadata" -}}
labels:
  {{- include "vmdeploy.selector" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Bytes as they were written: helm reads large numbers as fractions. */ -}}
{{- define "vmdeploy.bytes" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ int64 . }}{{ end }}
{{- end }}

{{- define "vmdeploy.podPlacement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "vmdeploy.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "vmdeploy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "vmdeploy.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 2
{{- end }}

{{- define "vmdeploy.environment" -}}
- name: VMDEPLOY_LOG_FORMAT
  value: {{ .Values.operator.logFormat }}
- name: RUST_LOG
  value: {{ .Values.operator.log | quote }}
# each arena of the allocator keeps what its threads once needed
- name: MALLOC_ARENA_MAX
  value: "2"
{{- end }}

{{/* Whether deployed nodes of any site join with tokens: "short" if their certificates are to end with the slot, "long" if not. */}}
{{- define "vmdeploy.joins" -}}
{{- $joins := "" -}}
{{- range .Values.sites -}}
{{- if kindIs "map" (.kadeploy | default dict).join -}}
{{- $short := dig "shortCertificates" true (.kadeploy.join | default dict) -}}
{{- if $short }}{{ $joins = "short" }}{{ else if not $joins }}{{ $joins = "long" }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $joins -}}
{{- end -}}
