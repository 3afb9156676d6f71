{{- define "shipkeeper.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else -}}
{{- $name := default "shipkeeper" .Values.nameOverride -}}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}
-operator
{{- end -}}

{{- define "shipkeeper.selectorLabels" -}}
app.kubernetes.io/name: shipkeeper-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "shipkeeper.labels" -}}
{{ include "shipkeeper.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: shipkeeper
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "shipkeeper.serviceAccountName" -}}
{{- default (include "shipkeeper.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "shipkeeper.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}
