{{- define "distro-cluster.name" -}}
{{ .Values.nameOverride | default .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "distro-cluster.labels" -}}
app.kubernetes.io/name: distro
app.kubernetes.io/instance: {{ include "distro-cluster.name" . }}
app.kubernetes.io/part-of: distro
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
