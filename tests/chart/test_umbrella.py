"""The chart as a dependency of a platform team's own, with a condition."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.matrix import IMAGES
from tests.chart.objects import parsed
from tests.chart.target import CHART

NAME, CONDITION = "lora-finetune-operator", "lora-finetune-operator.enabled"


@pytest.mark.helms(3, 4)
@pytest.mark.parametrize("enabled", [True, False])
def test_a_parent_chart_installs_it_or_leaves_it_out(helm: Any, tmp_path: Path, enabled: bool) -> None:
    """By the condition, a value of which stands among the chart's own."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    needed = {"name": NAME, "version": version, "repository": f"file://{CHART}", "condition": CONDITION}
    parent = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [needed]}
    (tmp_path / "Chart.yaml").write_text(json.dumps(parent))
    (tmp_path / "values.yaml").write_text(json.dumps({NAME: {**IMAGES, "enabled": enabled}}))
    shutil.copytree(CHART, tmp_path / "charts" / NAME)
    kinds = [o["kind"] for o in parsed(helm.run("template", "lora", str(tmp_path), "--kube-version=1.31.0"))]
    assert ("Deployment" in kinds) is enabled
    assert bool(kinds) is enabled
