"""The GitOps folders as kubectl's own kustomize builds them."""

import os
from pathlib import Path

import yaml

from demo.kubectl import Kubectl
from shipkeeper.resources import KINDS
from shipkeeper.resources.base import GROUP
from support.apiserver import REPOSITORY

GITOPS = REPOSITORY / "manifests" / "gitops"
ARGO_CD = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
data:
  url: https://argocd.example.com
"""


def test_the_health_scripts_join_an_argo_cd_installation(kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "argocd-cm.yaml").write_text(ARGO_CD)
    component = os.path.relpath(GITOPS / "argocd", tmp_path)
    kustomization = {"resources": ["argocd-cm.yaml"], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (config_map,) = yaml.safe_load_all(kubectl.run("kustomize", str(tmp_path)))
    assert config_map["metadata"]["name"] == "argocd-cm"
    assert config_map["data"].pop("url") == "https://argocd.example.com"
    for kind in KINDS:
        script = config_map["data"].pop(f"resource.customizations.health.{GROUP}_{kind.kind}")
        assert script == (GITOPS / "argocd" / "resource_customizations" / GROUP / kind.kind / "health.lua").read_text()
    assert config_map["data"] == {}


def test_the_flux_example_builds(kubectl: Kubectl) -> None:
    documents = yaml.safe_load_all(kubectl.run("kustomize", str(GITOPS / "flux")))
    assert [(each["kind"], each["metadata"]["name"]) for each in documents] == [
        ("Kustomization", "birthday"),
        ("Kustomization", "shipkeeper"),
        ("GitRepository", "shipkeeper"),
    ]
