"""Helm's command lines on the pages: flags that it has, and values that the chart takes."""

import re
from pathlib import Path

import pytest
from tests.chart.helms import Helm
from tests.chart.target import CHART
from tests.pages.blocks import BLOCKS, Block
from tests.pages.typed import typed

_OF_A_RELEASE = {"--reset-then-reuse-values"}
SHOWN = [block for block in BLOCKS if not block.reason and re.search(r"^(helm |--set)", block.commands, re.MULTILINE)]


@pytest.mark.parametrize("shown", SHOWN, ids=map(str, SHOWN))
def test_a_line_of_helm_is_one_that_helm_and_the_chart_take(helm: Helm, shown: Block, tmp_path: Path) -> None:
    """What installs or upgrades is rendered with its values, the rest read without being executed."""
    calls = [call.arguments for call in typed(shown.commands, tmp_path).calls if call.program == "helm"]
    assert calls
    for verb, *arguments in calls:
        asked = helm.attempt(verb, *arguments, "--help")
        assert asked.returncode == 0, asked.stderr
        assert f"  helm {verb} " in asked.stdout
        if verb in ("install", "upgrade"):
            name, chart, *flags = arguments
            assert chart == CHART.relative_to(CHART.parents[1]).as_posix()
            images = [f"--set={each}.repository=x/y" for each in ("image", "trainer.image")]
            kept = [flag for flag in flags if flag not in _OF_A_RELEASE]
            helm.run("template", name, str(CHART), *images, *kept, "--kube-version=1.31.0")
