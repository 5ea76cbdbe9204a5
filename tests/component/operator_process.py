"""An operator as a process of its own."""

import re
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.component.patience import DEADLINE_S, eventually

# For an answer: one that does not come would read as a metric of 0.
_ANSWER_S = 30


@dataclass(kw_only=True)
class OperatorProcess:
    """One operator process and what it says."""

    process: subprocess.Popen[bytes]
    pod: str
    port: int
    log: Path
    account: str
    user: str

    def get(self, path: str) -> tuple[int, str]:
        """Ask the operator's own HTTP server; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=_ANSWER_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self) -> None:
        """Wait until it looks after runs."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the operator ended with {self.process.returncode}:\n{self.text()}"
            return self.get("/readyz")[0] == 200

        eventually(ready, "the operator is ready")

    def metric(self, series: str) -> float:
        """Value of one series, given as it is exposed; 0 where it is not."""
        return self.metrics().get(series, 0.0)

    def metrics(self) -> dict[str, float]:
        """All series by name and labels."""
        lines = self.get("/metrics")[1].splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def writes(self) -> float:
        """Requests to the API server that change something, so far."""
        return self.requests(verbs="create|update|patch|delete")

    def requests(self, *, verbs: str = "[a-z]+") -> float:
        """Requests to the API server so far."""
        return sum(
            value
            for series, value in self.metrics().items()
            if series.startswith("lora_operator_api_requests_total") and re.search(f'verb="({verbs})"', series)
        )

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text()

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.process.kill()
        self.process.wait(timeout=DEADLINE_S)

    def end_by_itself(self) -> int:
        """Wait until it has ended; the exit status."""
        return self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, as the kubelet sends it; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S)
