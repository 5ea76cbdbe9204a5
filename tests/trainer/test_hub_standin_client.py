"""The Hub stand-in is tried with the real client: huggingface_hub in a process of its own, pointed at it."""

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hub.access import Restriction
from hub.faults import Fault
from hub.server import HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "acme/tiny"
CONFIG = '{"model_type": "llama"}\n'
WEIGHTS = bytes(range(256)) * 48 * 1024
"""12 MiB: more than one chunk of the client, so that a broken download leaves something to resume."""

TOKENS = frozenset({"hf_right"})
RESTRICTIONS = {
    "models/acme/gated": Restriction(visibility="gated", tokens=TOKENS),
    "models/acme/private": Restriction(visibility="private", tokens=TOKENS),
}


@pytest.fixture
def hub(tmp_path: Path) -> "Iterator[HubServer]":
    """Serve a public model with two revisions, a gated one, a private one and a data set."""
    root = tmp_path / "hub"
    for name in ("models/acme/tiny", "models/acme/gated", "models/acme/private", "datasets/acme/chats"):
        (root / name / "nested" / "deep").mkdir(parents=True)
        (root / name / "config.json").write_text(CONFIG)
        (root / name / "nested" / "deep" / "note.txt").write_text("hello")
    (root / "models" / REPO / "model.safetensors").write_bytes(WEIGHTS)
    (root / "models" / f"{REPO}@v2").mkdir()
    (root / "models" / f"{REPO}@v2" / "config.json").write_text("{}")
    with HubServer(root, restrictions=RESTRICTIONS).start() as server:
        yield server


def client(hub: HubServer, home: Path, code: str) -> Any:
    """Run `code` with huggingface_hub pointed at the stand-in; return what it assigns to `result`."""
    program = f"import json\nfrom huggingface_hub import *\n{textwrap.dedent(code)}\nprint(json.dumps(result))\n"
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_real_client_downloads_a_whole_snapshot(hub: HubServer, tmp_path: Path) -> None:
    """snapshot_download brings every visible file, byte for byte, under the commit that model_info names."""
    folder, sha, names = client(
        hub,
        tmp_path / "home",
        f"result = [snapshot_download('{REPO}'), model_info('{REPO}').sha, sorted(list_repo_files('{REPO}'))]",
    )
    assert Path(folder).name == sha
    assert names == ["config.json", "model.safetensors", "nested/deep/note.txt"]
    assert (Path(folder) / "config.json").read_text() == CONFIG
    assert (
        hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).digest() == hashlib.sha256(WEIGHTS).digest()
    )


def test_the_real_client_reads_revisions_metadata_and_a_data_set(hub: HubServer, tmp_path: Path) -> None:
    """A branch has its own commit; file metadata, the tree, references and data sets answer as the Hub does."""
    code = f"""
    main, branch = model_info('{REPO}', files_metadata=True), model_info('{REPO}', revision='v2')
    by_commit = hf_hub_download('{REPO}', 'config.json', revision=branch.sha)
    data = hf_hub_download('acme/chats', 'nested/deep/note.txt', repo_type='dataset')
    result = {{
        'differs': main.sha != branch.sha,
        'branch_config': open(by_commit).read(),
        'data': open(data).read(),
        'dataset': dataset_info('acme/chats').id,
        'sizes': {{s.rfilename: [s.size, bool(s.lfs)] for s in main.siblings}},
        'top': [item.path for item in list_repo_tree('{REPO}')],
        'below': [item.path for item in list_repo_tree('{REPO}', 'nested', recursive=True)],
        'info': [[i.path, i.size] for i in get_paths_info('{REPO}', ['config.json'])],
        'branches': [branch.name for branch in list_repo_refs('{REPO}').branches],
        'exists': [file_exists('{REPO}', 'config.json'), file_exists('{REPO}', 'absent'), repo_exists('acme/none')],
        'metadata_etag': get_hf_file_metadata(hf_hub_url('{REPO}', 'model.safetensors')).etag,
    }}
    """
    result = client(hub, tmp_path / "home", code)
    assert result == {
        "differs": True,
        "branch_config": "{}",
        "data": "hello",
        "dataset": "acme/chats",
        "sizes": {
            "config.json": [len(CONFIG), False],
            "model.safetensors": [len(WEIGHTS), True],
            "nested/deep/note.txt": [5, False],
        },
        "top": ["nested", "config.json", "model.safetensors"],
        "below": ["nested/deep", "nested/deep/note.txt"],
        "info": [["config.json", len(CONFIG)]],
        "branches": ["main", "v2"],
        "exists": [True, False, False],
        "metadata_etag": hashlib.sha256(WEIGHTS).hexdigest(),
    }


def test_refusals_raise_the_clients_own_errors(hub: HubServer, tmp_path: Path) -> None:
    """Each refusal is one that huggingface_hub recognises, and the right token opens what is restricted."""
    code = """
    import itertools, os
    from huggingface_hub.errors import HfHubHTTPError

    fresh = (os.path.join(os.environ["HF_HOME"], str(number)) for number in itertools.count())

    def attempt(repo, token, revision="main"):
        try:
            path = hf_hub_download(repo, "config.json", token=token, revision=revision, cache_dir=next(fresh))
            return open(path).read()
        except HfHubHTTPError as error:
            return f"{type(error).__name__} {error.response.status_code}"

    result = [
        attempt("acme/none", False), attempt("acme/none", "hf_any"),
        attempt("acme/gated", False), attempt("acme/gated", "hf_wrong"), attempt("acme/gated", "hf_right"),
        attempt("acme/private", False), attempt("acme/private", "hf_wrong"), attempt("acme/private", "hf_right"),
        attempt("acme/tiny", "invalid"), attempt("acme/tiny", False, "v9"), model_info("acme/gated", token=False).gated,
    ]
    """
    assert client(hub, tmp_path / "home", code) == [
        "RepositoryNotFoundError 401",
        "RepositoryNotFoundError 404",
        "GatedRepoError 401",
        "GatedRepoError 403",
        CONFIG,
        "RepositoryNotFoundError 401",
        "RepositoryNotFoundError 404",
        CONFIG,
        "HfHubHTTPError 401",
        "RevisionNotFoundError 404",
        "auto",
    ]


def test_a_cut_connection_is_resumed_by_the_client_with_a_range(hub: HubServer, tmp_path: Path) -> None:
    """After the cut the client asks for the rest only, and the file is whole."""
    hub.inject(Fault(path=f"/{REPO}/resolve/*/model.safetensors", method="GET", cut_after_bytes=11 * 2**20))
    code = f"result = hf_hub_download('{REPO}', 'model.safetensors')"
    assert Path(client(hub, tmp_path / "home", code)).read_bytes() == WEIGHTS
    sent = sum(count["bytes"] for path, count in hub.served().items() if path.endswith("model.safetensors"))
    assert sent == len(WEIGHTS) + 2**20
    assert hub.faults.pending() == []
