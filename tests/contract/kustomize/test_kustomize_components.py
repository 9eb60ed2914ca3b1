"""The components: what is switched as a whole goes with the base alone and together, and says what it should."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from services.fanout.settings import FanoutSettings
from tests.contract.kustomize.flows import Named

COMPONENTS = ("network-policies", "disruption-budgets", "autoscaling")
NEWEST_KUBERNETES = "1.37"
RENDER_SECONDS_MAX = 60


@pytest.fixture(params=["staging", "production"])
def overlay(request: pytest.FixtureRequest) -> str:
    """The overlays that use them."""
    return str(request.param)


def test_every_component_is_here(repository: Path) -> None:
    assert {path.name for path in (repository / "kustomize" / "components").iterdir()} == set(COMPONENTS)


@pytest.mark.parametrize(
    "chosen",
    [chosen for count in range(4) for chosen in itertools.combinations(COMPONENTS, count)],
    ids=lambda chosen: "+".join(chosen) or "none",
)
def test_the_base_goes_with_any_of_them(
    kubectl: Path, repository: Path, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    root = os.path.relpath(repository / "kustomize", tmp_path)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "execution-control",
        "resources": [f"{root}/base"],
        "components": [f"{root}/components/{name}" for name in chosen],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    command = [str(kubectl), "kustomize", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RENDER_SECONDS_MAX)
    assert (done.returncode, done.stderr) == (0, "")
    kinds = set()
    for manifest in yaml.safe_load_all(done.stdout):
        kinds.add(manifest["kind"])
        if manifest["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"):
            kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)
    assert ("NetworkPolicy" in kinds) == ("network-policies" in chosen)
    assert ("PodDisruptionBudget" in kinds) == ("disruption-budgets" in chosen)
    assert ("HorizontalPodAutoscaler" in kinds) == ("autoscaling" in chosen)


def test_each_service_has_a_budget_of_one_for_its_own_pods(named: Named) -> None:
    workloads = named["Deployment"] | named["Job"]
    pods = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in workloads.items()}
    assert set(named["PodDisruptionBudget"]) == set(named["Deployment"])
    for name, budget in named["PodDisruptionBudget"].items():
        selected = budget["spec"]["selector"]["matchLabels"].items()
        assert [pod for pod, labels in pods.items() if selected <= labels.items()] == [name]
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]


def test_the_autoscaler_alone_decides_of_fanout(named: Named) -> None:
    (autoscaler,) = named["HorizontalPodAutoscaler"].values()
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "fanout")
    assert "replicas" not in named["Deployment"]["fanout"]["spec"], "each deployment would set them back"
    assert autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]


def _millicores(amount: str) -> int:
    assert amount.endswith("m")
    return int(amount[:-1])


def test_fanout_is_scaled_before_it_puts_signals_together(named: Named) -> None:
    (metric,) = named["HorizontalPodAutoscaler"]["fanout"]["spec"]["metrics"]
    (container,) = named["Deployment"]["fanout"]["spec"]["template"]["spec"]["containers"]
    target = _millicores(metric["resource"]["target"]["averageValue"])
    assert target < FanoutSettings.model_fields["load_max"].default * 1_000
    assert target < _millicores(container["resources"]["limits"]["cpu"])


def test_the_next_pod_waits_until_the_last_has_its_streams(named: Named) -> None:
    behavior = named["HorizontalPodAutoscaler"]["fanout"]["spec"]["behavior"]
    (settings,) = [data for name, data in named["ConfigMap"].items() if name.startswith("fanout-settings-")]
    age_seconds = int(settings["data"]["GRPC_CONNECTION_AGE_SECONDS_MAX"])
    (up,), (down,) = behavior["scaleUp"]["policies"], behavior["scaleDown"]["policies"]
    assert up["value"] == down["value"] == 1
    assert up["periodSeconds"] >= age_seconds
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= age_seconds
