"""The operator of a release of the chart, as a process of this machine: its image is run by the end-to-end tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from tests.chart.target import RELEASE, Target
from tests.component.operator_process import OperatorProcess
from tests.component.stage import REPOSITORY
from tests.ports import free_port


@contextmanager
def operating(target: Target, folder: Path) -> Iterator[OperatorProcess]:
    """It has the release's own settings and account."""
    settings = yaml.safe_load(
        target.client.get("configmap", RELEASE, f"--namespace={target.system}")["data"]["config.yaml"]
    )
    port = free_port()
    file, log = folder / "config.yaml", folder / "operator.log"
    file.write_text(yaml.safe_dump({**settings, "httpPort": port}))
    environment = {
        **os.environ,
        "KUBECONFIG": str(target.kubeconfig(RELEASE, folder)),
        # Each is the same pod's container, so that none waits for the Lease of the one before.
        "POD_NAME": RELEASE,
        "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_operator", "--config", str(file)],
            stdout=output,
            stderr=output,
            env=environment,
        )
    operator = OperatorProcess(process=process, pod=RELEASE, port=port, log=log, account=RELEASE, user=RELEASE)
    try:
        operator.wait_ready()
        yield operator
    finally:
        operator.kill()
