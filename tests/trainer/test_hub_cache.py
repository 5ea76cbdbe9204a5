"""The cache of a Hub's files: every byte once, never half a file, never for a run that may not read it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3
from tests.certificates import make_certificate
from tests.trainer import runs, servers, tiny
from tests.trainer.runs import TRAINER, Workplace
from tests.trainer.servers import Proxy

from hub.access import Restriction
from hub.faults import Fault
from hub.server import HubServer
from lora_trainer.errors import AccessDeniedError, NotFoundError, StorageError, TransientError
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage.base import find_base
from lora_trainer.storage.downloads import fetch_whole
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.lock import Lock
from lora_trainer.storage.network import ATTEMPTS, is_own
from lora_trainer.storage.roles import Role
from lora_trainer.storage.tensor_files import header_bytes
from lora_trainer.storage.volumes import Volumes

WEIGHTS = "model.safetensors"
TOKEN = "hf_allowed"


@pytest.fixture
def server(tmp_path: Path, tiny_folder: Path) -> Iterator[HubServer]:
    """A Hub with an open and a gated model and a data set."""
    for name in ("tiny", "gated"):
        shutil.copytree(tiny_folder, tmp_path / "hub/models/org" / name)
    tiny.write_jsonl(tmp_path / "hub/datasets/org/chats/train.jsonl", tiny.chats(12))
    gated = Restriction(visibility="gated", tokens=frozenset({TOKEN}))
    with HubServer(tmp_path / "hub", restrictions={"models/org/gated": gated}).start() as hub:
        yield hub


def client(server: HubServer, home: Path, waits: list[float] | None = None, **environment: str) -> Hub:
    """The trainer's client, which notes its pauses instead of making them."""
    noted = waits if waits is not None else []
    return Hub(environment={"HF_ENDPOINT": server.url, **environment}, cache=home / "cache", sleep=noted.append)


def find(hub: Hub, name: str = "tiny") -> Path:
    """Look a model up; its weights."""
    return find_base(f"hf://org/{name}", Volumes(), hub).folder / WEIGHTS


def weight_bytes(server: HubServer, name: str = "tiny") -> int:
    """Bytes of weights that were sent."""
    return sum(
        count["bytes"] for path, count in server.served().items() if path.endswith(WEIGHTS) and f"org/{name}/" in path
    )


def settled_bytes(server: HubServer, expected: int) -> int:
    """Bytes of weights that were sent, once they are as many as expected: the server counts after it has written."""
    deadline = time.monotonic() + 180
    while weight_bytes(server) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return weight_bytes(server)


def asked(server: HubServer) -> dict[str, int]:
    """Requests by path, which the server counts before it answers."""
    return {path: count["requests"] for path, count in server.served().items()}


def size(folder: Path) -> int:
    """Of the weights of a model folder."""
    return (folder / WEIGHTS).stat().st_size


def test_a_cut_download_goes_on_where_it_was_cut(server: HubServer, tmp_path: Path, tiny_folder: Path) -> None:
    """Within an attempt and over several: each byte comes once."""
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=100_000, times=2))
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=0, times=None))
    with pytest.raises(TransientError, match=f"cut off after 200000 of {size(tiny_folder)} bytes; what has arrived is"):
        find(client(server, tmp_path))
    server.faults.replace([])
    assert find(client(server, tmp_path)).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()
    assert settled_bytes(server, size(tiny_folder)) == size(tiny_folder)


def test_a_second_run_transfers_no_weights(server: HubServer, tmp_path: Path, tiny_folder: Path) -> None:
    """It asks the Hub, whether the revision is the same and whether it may read it, and takes the cached file."""
    find(client(server, tmp_path))
    find(client(server, tmp_path))
    assert settled_bytes(server, size(tiny_folder)) == size(tiny_folder)


def test_runs_that_want_a_file_at_the_same_moment_fetch_it_once(
    server: HubServer, tmp_path: Path, tiny_folder: Path
) -> None:
    """The others wait for the first."""
    together = threading.Barrier(4)

    def fetch() -> None:
        hub = client(server, tmp_path)
        repository = hub.repository(HubUri(repo="org/tiny"), Role.MODEL)
        together.wait(300)
        hub.download(HubUri(repo="org/tiny"), repository, [WEIGHTS])

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert settled_bytes(server, size(tiny_folder)) == size(tiny_folder)


def test_a_wrong_byte_is_fetched_again(server: HubServer, tmp_path: Path, tiny_folder: Path) -> None:
    """The sha256 decides; half a file or a wrong one never gets the name of a whole one."""
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", flip_byte=70_000))
    assert find(client(server, tmp_path)).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()
    assert settled_bytes(server, 2 * size(tiny_folder)) == 2 * size(tiny_folder)
    server.inject(Fault(path="*/gated/*/model.safetensors", method="GET", flip_byte=70_000, times=None))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(TransientError, match="arrived with other bytes than the sha256"):
        find(client(server, tmp_path, MODEL_HF_TOKEN=TOKEN), "gated")
    assert not list((tmp_path / "cache").rglob(WEIGHTS))


def test_a_cached_file_that_was_damaged_is_fetched_again(server: HubServer, tmp_path: Path, tiny_folder: Path) -> None:
    """As long as before, but with another time of change."""
    weights = find(client(server, tmp_path)).resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert find(client(server, tmp_path)).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()
    assert settled_bytes(server, 2 * size(tiny_folder)) == 2 * size(tiny_folder)


def test_a_cached_model_is_refused_to_a_run_without_access(server: HubServer, tmp_path: Path) -> None:
    """Another run's token filled the cache."""
    find(client(server, tmp_path, MODEL_HF_TOKEN=TOKEN), "gated")
    for hub in (client(server, tmp_path), client(server, tmp_path, MODEL_HF_TOKEN="hf_other")):
        with pytest.raises(AccessDeniedError, match="gated or private") as caught:
            find(hub, "gated")
        assert caught.value.reason is Reason.MODEL_ACCESS_DENIED


def test_offline_only_the_cache_is_asked(server: HubServer, tmp_path: Path) -> None:
    """What it lacks is reported; what it has needs no Hub."""
    weights = find(client(server, tmp_path))
    before = asked(server)
    assert find(client(server, tmp_path, HF_HUB_OFFLINE="1")) == weights
    with pytest.raises(NotFoundError, match=r"may not be asked \(HF_HUB_OFFLINE\), and its cache holds nothing of it"):
        find(client(server, tmp_path, HF_HUB_OFFLINE="1"), "gated")
    assert asked(server) == before


def test_the_pause_that_a_busy_hub_asks_for_is_made(server: HubServer, tmp_path: Path) -> None:
    """`Retry-After`, if it is no longer than a minute."""
    waits: list[float] = []
    server.inject(Fault(path="/api/models/*", status=429, headers={"Retry-After": "17"}))
    server.inject(Fault(path="/api/models/*", status=503, headers={"Retry-After": "86400"}))
    find(client(server, tmp_path, waits))
    assert waits[0] == 17
    assert 0 < waits[1] <= 2


def test_a_used_up_limit_of_requests_is_waited_for(server: HubServer, tmp_path: Path) -> None:
    """To the end of its window, which lasts five minutes: four tries would else end within one."""
    waits: list[float] = []
    for header, after in (('"api";r=0;t=40', "17"), ('"api";r=0;t=300', "17"), ('"api";r=3;t=40', "17")):
        headers = {"ratelimit": header, "ratelimit-policy": '"fixed window";"api";q=500;w=300', "Retry-After": after}
        server.inject(Fault(path="/api/models/*", status=429, headers=headers))
    find(client(server, tmp_path, waits))
    assert waits == [41, 301, 17]
    server.inject(Fault(path="/api/models/*", status=503, headers={"ratelimit": '"api";r=0;t=40'}))
    server.inject(Fault(path="/api/models/*", status=429, headers={"ratelimit": '"api";r=0;t=9000'}))
    find(client(server, tmp_path, waits))
    assert max(waits[3:]) <= 2


def test_a_limit_of_requests_that_stays_used_up_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No proxy is to blame."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    server.inject(Fault(path="/api/models/*", status=429, times=None))
    with pytest.raises(TransientError) as caught:
        find(client(server, tmp_path))
    assert str(caught.value) == (
        "model.uri is hf://org/tiny: the Hub answered 429 (injected fault), its limit of requests is used up; wait, or "
        "name in model.secretRef a Secret with an HF_TOKEN, for which there is a larger one"
    )


def test_a_killed_filler_leaves_neither_its_lock_nor_a_false_file(
    server: HubServer, tmp_path: Path, tiny_folder: Path
) -> None:
    """SIGKILL in the middle of a download: the next run goes on from what had arrived."""
    program = (
        "import sys, os\nfrom lora_trainer.storage import downloads, hub_cache\n"
        "from lora_trainer.storage.base import find_base\nfrom lora_trainer.storage.hub import Hub\n"
        "from lora_trainer.storage.volumes import Volumes\nfrom pathlib import Path\n"
        "def stop(partial, size, open_at, what, may_write):\n"
        "    partial.write_bytes(open_at(0).read(150_000))\n    print('half', flush=True)\n    sys.stdin.read()\n"
        "hub_cache.fetch_whole = stop\n"
        "find_base('hf://org/tiny', Volumes(), Hub(cache=Path(sys.argv[1])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TRAINER), "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    filler = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "cache")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert filler.stdout is not None
    assert filler.stdout.readline() == "half\n"
    filler.send_signal(signal.SIGKILL)
    filler.communicate()
    assert not list((tmp_path / "cache").rglob(WEIGHTS))
    deadline = time.monotonic() + 180
    while weight_bytes(server) < 150_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    before = weight_bytes(server)
    assert find(client(server, tmp_path)).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()
    rest = size(tiny_folder) - 150_000
    assert settled_bytes(server, before + rest) - before == rest


def test_a_cache_without_room_is_noticed_before_a_byte_is_fetched(
    server: HubServer, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """74; what has arrived before counts, and so does what is there."""
    hub, needed = client(server, tmp_path), size(tiny_folder)
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    sentence = rf"model\.uri is hf://org/tiny: {needed:,} bytes are still to be fetched, .* room for {free:,};"
    with pytest.raises(StorageError, match=sentence) as caught:
        find(hub)
    assert (caught.value.code, caught.value.reason) == (74, Reason.STORAGE_FULL)
    assert weight_bytes(server) == 0
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=1000))
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", status=403, times=None))
    free = needed
    with pytest.raises(AccessDeniedError):
        find(hub)
    server.faults.replace([])
    free = needed - 1000
    find(hub)
    free = 0
    monkeypatch.setattr("lora_trainer.storage.hub_cache.held", None)  # its lock takes room, too
    assert find(hub).stat().st_size == needed


def test_a_full_cache_is_reported(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """74, and no half file under a whole one's name, where others have filled it meanwhile."""
    monkeypatch.setattr("lora_trainer.storage.hub.check_room", lambda *_: None)
    with servers.full_disk(tmp_path / "small", 200) as small:
        with pytest.raises(
            StorageError, match=r"the Hub's cache \(HF_HOME\) cannot be written: the volume is full"
        ) as caught:
            find(client(server, small))
        assert caught.value.reason is Reason.STORAGE_FULL
        assert not list(small.rglob(WEIGHTS))


def prepared(
    workplace: Workplace, server_url: str, home: Path, name: str = "tiny", **environment: str
) -> tuple[str, ...]:
    """Arguments and environment of `lora-trainer preflight` are those of a pod; status and reason of its summary."""
    manifest = workplace.manifest_file(model={"uri": "hf://org/tiny"}, dataset={"uri": "hf://org/chats"})
    done = workplace.run(
        "-f",
        manifest,
        "--fill-cache",
        subcommand="preflight",
        **{"HF_ENDPOINT": server_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
    )
    assert "Traceback" not in done.log
    return str(done.status), done.summary.reason.value


def test_inputs_are_prepared_once_for_two_runs_at_the_same_time(
    server: HubServer, tmp_path: Path, tiny_folder: Path
) -> None:
    """Two pods fill one cache claim: the weights come once, both report what is there; a third brings nothing."""
    workplaces = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        workplaces.append(Workplace.make(tmp_path / name, tiny_folder))
    manifests = [
        workplace.manifest_file(model={"uri": "hf://org/tiny"}, dataset={"uri": "hf://org/chats"})
        for workplace in workplaces
    ]
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    processes = [
        workplace.start("-f", manifest, "--fill-cache", subcommand="preflight", **variables)
        for workplace, manifest in zip(workplaces, manifests, strict=True)
    ]
    outputs = [process.communicate(timeout=runs.PATIENCE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for workplace in workplaces:
        assert workplace.summary().reason is Reason.PREFLIGHT_PASSED
        assert not workplace.summary().succeeded
        assert "12 rows of hf://org/chats (Messages, 0 skipped) are good, and in the" in workplace.summary().message
    with (tiny_folder / WEIGHTS).open("rb") as stream:
        header = len(header_bytes(stream))
    # Each looks at the header, unless the other has brought the file by then.
    once = [size(tiny_folder) + headers * header for headers in range(3)]
    deadline = time.monotonic() + 180
    while weight_bytes(server) not in once and time.monotonic() < deadline:
        time.sleep(0.01)
    before = weight_bytes(server)
    assert before in once
    assert prepared(workplaces[0], server.url, tmp_path / "home") == ("0", "PreflightPassed")
    assert settled_bytes(server, before) == before


def test_proxies_and_certificates_of_the_environment_are_used(
    server: HubServer, tmp_path: Path, workplace: Workplace
) -> None:
    """A Hub that only the proxy knows; one behind a certificate of one's own; without them neither is reached."""
    home = tmp_path / "home"
    with Proxy(server.url) as proxy:
        through = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "NO_PROXY": "", "no_proxy": ""}
        assert prepared(workplace, "http://hub.invalid", home, **through) == ("0", "PreflightPassed")
        assert proxy.count("GET", "hub.invalid/org/tiny/resolve") >= 1
        assert proxy.sent(WEIGHTS) > 0
    certificate = make_certificate(tmp_path)
    with Proxy(server.url, certificate) as proxy:
        trusted = {"SSL_CERT_FILE": str(certificate), "REQUESTS_CA_BUNDLE": str(certificate)}
        assert prepared(workplace, proxy.url, tmp_path / "second", **trusted) == ("0", "PreflightPassed")
        assert proxy.sent(WEIGHTS) > 0


def test_a_download_whose_lock_was_taken_writes_no_more(
    server: HubServer, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who took it goes on with the same file; and what is complete does not get its name."""
    monkeypatch.setattr("lora_trainer.storage.downloads._CHUNK_BYTES", 1000)
    for taken_at in (5000, size(tiny_folder)):

        def check(_lock: Lock, most: int = taken_at) -> None:
            if sum(path.stat().st_size for path in tmp_path.rglob("*.partial")) >= most:
                raise TransientError("taken over")

        monkeypatch.setattr(Lock, "check", check)
        with pytest.raises(TransientError, match="taken over"):
            find(client(server, tmp_path))
        (partial,) = tmp_path.rglob("*.partial")
        assert taken_at <= partial.stat().st_size < taken_at + 1000


def test_the_tries_of_a_download_do_not_multiply(server: HubServer, tmp_path: Path) -> None:
    """Four answers that bring nothing are enough, and what a connection has tried four times is not tried again."""
    server.inject(Fault(path=f"*/{WEIGHTS}", method="GET", cut_after_bytes=0, times=None))
    with pytest.raises(TransientError, match="cut off after 0 of"):
        find(client(server, tmp_path))
    requests = sum(count["requests"] for path, count in server.served().items() if path.endswith(WEIGHTS))
    assert requests == 2 * ATTEMPTS
    asked: list[int] = []

    def unreachable(have: int) -> urllib3.BaseHTTPResponse:
        asked.append(have)
        raise urllib3.exceptions.MaxRetryError(urllib3.HTTPConnectionPool("127.0.0.1"), "/", None)

    with pytest.raises(urllib3.exceptions.MaxRetryError):
        fetch_whole(tmp_path / "partial", 10, unreachable, what="a file")
    assert asked == [0]


@pytest.mark.parametrize(
    ("url", "root", "own"),
    [
        ("https://hub.example/a", "https://hub.example", True),
        ("http://hub.example/a", "http://hub.example", True),
        ("https://hub.example/a", "http://hub.example", True),
        ("http://hub.example/a", "https://hub.example", False),
        ("https://cdn.example/a", "https://hub.example", False),
        ("https://hub.example:444/a", "https://hub.example", False),
    ],
)
def test_credentials_go_to_the_server_itself_alone_and_never_with_less_tls(url: str, root: str, *, own: bool) -> None:
    """Also where the very server gives the address."""
    assert is_own(url, root) is own
