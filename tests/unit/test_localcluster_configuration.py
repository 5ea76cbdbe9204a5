"""What the local cluster is told: places, keys, configuration files, command lines."""

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import tomllib
from pathlib import Path
from threading import Barrier

import pytest
import yaml

from localcluster import components, images, imagespec, node_config, pause, pki, provisioner, settings, tools
from localcluster.components import Ports
from localcluster.console import Console
from localcluster.errors import ClusterError
from localcluster.settings import Places

PLACES = Places(name="n", cache=Path("/c"), state=Path("/s/clusters/n"))
BINARIES = Path("/bin-k8s")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "..", "a" * 41])
def test_a_name_that_cannot_be_a_folder_and_a_cgroup_is_refused(name: str) -> None:
    """The sentence says what a name looks like."""
    with pytest.raises(ClusterError, match="must be at most 40 lower-case letters"):
        settings.places(name)


def test_places_follow_the_xdg_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is ignored, as the convention says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/big/cache")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    found = settings.places("local")
    assert found.cache == Path("/big/cache/lora-operator")
    assert found.state == Path("/home/me/.local/state/lora-operator/clusters/local")


def test_what_down_deletes_holds_neither_volumes_nor_images() -> None:
    """Only the folder `state` is deleted."""
    assert not PLACES.volumes.is_relative_to(PLACES.state)
    assert not PLACES.stores.is_relative_to(PLACES.state)


def test_the_key_of_a_tool_changes_with_its_version_and_its_flags() -> None:
    """A binary in the cache is what the key says, always."""
    keys = {tools.kubernetes("1.34.4").key, tools.kubernetes("1.34.5").key, tools.helm("3.22.0").key}
    keys |= {tools.helm("3.22.1").key, tools.helm("4.0.5").key}
    assert len(keys) == 5
    assert tools.kubernetes("1.34.4").key == tools.kubernetes("1.34.4").key
    assert "gitMinor=34" in tools.kubernetes("1.34.4").linker_flags


def test_both_helms_take_themselves_for_what_they_are_and_for_built_with_this_kubernetes() -> None:
    """Without the flags `helm template` renders for Kubernetes 1.20; their folders and locks are apart."""
    for tool, release in ((tools.HELM, "3"), (tools.HELM4, "4")):
        assert tool.module == f"helm.sh/helm/v{release}"
        assert f"-X {tool.module}/internal/version.version=v{release}." in tool.linker_flags
        assert tool.linker_flags.count("k8sVersionMinor=34") == 2
        assert tool.commands == ("helm",)
    assert tools.HELM.name != tools.HELM4.name


def test_the_module_of_kubernetes_replaces_every_staging_module() -> None:
    """Upstream requires them at v0.0.0, which no module proxy has."""
    upstream = "require (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.1.0\n\tk8s.io/kubelet v0.0.0\n)\n"
    text = tools.kubernetes_module(tools.kubernetes("1.34.4"), upstream)
    assert "\tk8s.io/api => k8s.io/api v0.34.4\n\tk8s.io/kubelet => k8s.io/kubelet v0.34.4\n)" in text
    assert "klog" not in text
    assert "require k8s.io/kubernetes v1.34.4" in text


def test_what_is_built_after_kubernetes_has_its_libraries() -> None:
    """Another version would be compiled in minutes; a tool's own modules keep the tool's version."""
    upstream = (
        "require (\n\tgithub.com/coredns/caddy v1.1.1\n\tk8s.io/api v0.0.0\n\tgolang.org/x/net v0.38.0 // indirect\n)"
    )
    tool = dataclasses.replace(tools.COREDNS, version="1.2.3", kubernetes="1.34.4")
    assert tools.module_beside_kubernetes(tool, upstream).splitlines() == [
        *("module localcluster/coredns", "", "go 1.24.0", "", "require github.com/coredns/coredns v1.2.3", ""),
        *(
            "replace (",
            "\tk8s.io/api => k8s.io/api v0.34.4",
            "\tgolang.org/x/net => golang.org/x/net v0.38.0",
        ),
        ")",
    ]


def test_coredns_has_the_plugins_that_its_file_names_and_no_other() -> None:
    """Any other plugin costs time to build; one that is missing ends CoreDNS at its start."""
    named = set(re.findall(r"^  ([a-z]+) ", node_config.coredns(PLACES).replace("errors\n", "errors \n"), re.MULTILINE))
    assert named == set(tools.COREDNS_PLUGINS)
    assert f'_ "github.com/coredns/coredns/plugin/{tools.COREDNS_PLUGINS[0]}"\n' in tools.COREDNS.source


def test_kubernetes_is_built_before_what_is_built_with_its_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What has libraries of its own is built beside it, and what is there is left."""
    ended: list[str] = []
    begun: dict[str, list[str]] = {}
    beside = Barrier(2, timeout=300)

    def ensure(tool: tools.Tool, *_: object) -> Path:
        begun[tool.name] = [*ended]
        if tool.name in ("kubernetes", "versitygw"):
            beside.wait()
        ended.append(tool.name)
        return tmp_path

    monkeypatch.setattr(tools, "ensure", ensure)
    tools.folder(tools.ETCD, tmp_path).mkdir(parents=True)
    wanted = [tools.COREDNS, tools.ETCD, tools.HELM, tools.kubernetes(), tools.VERSITYGW]
    tools.ensure_all(wanted, tmp_path, Console(stream=io.StringIO()))
    assert sorted(ended) == ["coredns", "helm", "kubernetes", "versitygw"]
    assert begun["kubernetes"] == begun["versitygw"] == []
    assert {"kubernetes", "versitygw"} <= {*begun["coredns"]} & {*begun["helm"]}


def test_containerd_keeps_images_and_forgets_what_ran() -> None:
    """Its root survives `down`, its state does not."""
    text = tomllib.loads(node_config.containerd(PLACES, Path("/usr/lib/cni")))
    assert Path(text["root"]).is_relative_to(PLACES.stores)
    assert Path(text["state"]).is_relative_to(PLACES.state)
    cri = text["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == pause.IMAGE
    assert cri["cni"]["bin_dir"] == "/usr/lib/cni"
    assert list(cri["registry"]["mirrors"]) == [settings.IMAGE_PREFIX]


def test_the_kubelet_has_a_cgroup_of_its_own_and_accepts_cgroup_v1() -> None:
    """Two clusters, or another kubelet on the machine, must not meet in `kubepods`."""
    text = yaml.safe_load(node_config.kubelet(PLACES))
    assert text["cgroupRoot"] == "/lora-operator-n"
    assert text["failCgroupV1"] is False
    assert text["clusterDNS"] == [settings.DNS_IP]
    assert text["authentication"]["anonymous"] == {"enabled": False}


def test_the_pod_network_and_the_registry_are_valid_files() -> None:
    """Both are read by programs that say little about a mistake."""
    plugins = json.loads(node_config.cni(PLACES))["plugins"]
    assert [plugin["type"] for plugin in plugins] == ["bridge", "portmap"]
    assert plugins[0]["ipam"]["subnet"] == settings.POD_CIDR
    registry = yaml.safe_load(node_config.registry(PLACES))
    assert registry["http"]["addr"] == "127.0.0.1:5000"
    assert Path(registry["storage"]["filesystem"]["rootdirectory"]).is_relative_to(PLACES.stores)


def test_a_control_plane_without_namespaces_listens_on_loopback_alone() -> None:
    """It stands in the host's network, where others must not reach it."""
    ports = Ports(api=1, etcd_client=2, etcd_peer=3)
    server = components.apiserver(BINARIES, PLACES.pki, ports, node=False).argv
    assert "--bind-address=127.0.0.1" in server
    assert "--secure-port=1" in server
    assert "--etcd-servers=http://127.0.0.1:2" in server
    assert "--listen-client-urls=http://127.0.0.1:2" in components.etcd(Path("/e"), Path("/d"), ports).argv
    for part in (
        components.controller_manager(BINARIES, PLACES.pki, node=False),
        components.scheduler(BINARIES, PLACES.pki),
    ):
        assert "--secure-port=0" in part.argv
        assert part.needs_api


def test_only_a_cluster_with_a_node_gives_nodes_up_that_do_not_report() -> None:
    """On a control plane tests make nodes and write what a kubelet would."""
    alone = components.controller_manager(BINARIES, PLACES.pki, node=False).argv
    assert "--node-startup-grace-period=24h" in alone
    whole = components.controller_manager(BINARIES, PLACES.pki, node=True).argv
    assert not [flag for flag in whole if "grace-period" in flag]


def test_the_node_starts_everything_that_a_pod_needs() -> None:
    """containerd and the registry do not wait for the API server; the rest does."""
    parts = components.node(BINARIES, Path("/coredns"), "python3", PLACES)
    assert {part.name: part.needs_api for part in parts} == {
        "containerd": False,
        "registry": False,
        "kubelet": True,
        "kube-proxy": True,
        "coredns": True,
        "provisioner": True,
    }


def test_the_token_file_gives_each_user_its_group() -> None:
    """Order: token, user, uid, groups."""
    lines = pki.token_file({name: f"t-{name}" for name in pki.USERS}).splitlines()
    assert 't-admin,admin,admin,"system:masters"' in lines
    assert 't-kubelet,system:node:node-1,system:node:node-1,"system:nodes"' in lines
    assert 't-kube-scheduler,system:kube-scheduler,system:kube-scheduler,""' in lines


def test_certificates_are_made_once_and_never_half(tmp_path: Path) -> None:
    """A second call leaves them; the kubeconfig carries the authority and the token."""
    folder = tmp_path / "pki"
    pki.ensure(folder)
    before = (folder / "ca.crt").read_bytes()
    pki.ensure(folder)
    assert (folder / "ca.crt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["pki"]
    text = yaml.safe_load(pki.kubeconfig(directory=folder, name="admin", port=7, context="c"))
    assert text["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:7"
    assert text["users"][0]["user"]["token"] == pki.token(folder, "admin")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_pause_image_is_one_layer_whose_digest_is_right() -> None:
    """containerd refuses an archive whose digests do not fit."""
    with tarfile.open(fileobj=io.BytesIO(pause.image_archive(b"program"))) as archive:
        files = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr] # files
    (manifest,) = json.loads(files["manifest.json"])
    configuration = json.loads(files[manifest["Config"]])
    layer = files[manifest["Layers"][0]]
    assert configuration["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert manifest["RepoTags"] == [pause.IMAGE]
    with tarfile.open(fileobj=io.BytesIO(layer)) as content:
        assert [(entry.name, entry.mode) for entry in content] == [("pause", 0o755)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Files that stand for the operator's image."""
    for name in ("Dockerfile", ".dockerignore", "requirements/operator.txt", "operator/lora_operator/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "trainer_image/lora_trainer/spec").mkdir(parents=True)
    (tmp_path / "trainer_image/lora_trainer/__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["Dockerfile", "requirements/operator.txt", "operator/lora_operator/a.py"])
def test_an_edited_file_of_an_image_changes_its_tag(repository: Path, name: str) -> None:
    """The cluster then pulls what was edited, and not what it knows by the same name."""
    before = imagespec.tag(imagespec.OPERATOR, "base", repository)
    (repository / name).write_text("edited")
    assert imagespec.tag(imagespec.OPERATOR, "base", repository) != before


def test_a_new_file_and_another_base_change_the_tag(repository: Path) -> None:
    """Both change what the image holds."""
    before = imagespec.tag(imagespec.OPERATOR, "base", repository)
    assert imagespec.tag(imagespec.OPERATOR, "other", repository) != before
    (repository / "operator/lora_operator/b.py").write_text("")
    assert imagespec.tag(imagespec.OPERATOR, "base", repository) != before


def test_what_is_not_in_the_image_does_not_change_its_tag(repository: Path) -> None:
    """Bytecode and files of other parts are left out."""
    before = imagespec.tag(imagespec.OPERATOR, "base", repository)
    (repository / "operator/lora_operator/__pycache__").mkdir()
    (repository / "operator/lora_operator/__pycache__/a.cpython-311.pyc").write_text("")
    (repository / "README.md").write_text("")
    (repository / "trainer_image/lora_trainer/train.py").write_text("")
    assert imagespec.tag(imagespec.OPERATOR, "base", repository) == before


def test_a_fresh_clone_gives_a_build_the_very_same_files(repository: Path, tmp_path: Path) -> None:
    """Buildah takes modes for content: another umask would install six gigabytes anew."""
    seen = []
    for name, mode, time in (("a", 0o644, 1), ("b", 0o664, 2)):
        source = repository / "requirements/operator.txt"
        source.chmod(mode)
        os.utime(source, (time, time))
        folder = tmp_path / "staged" / name
        imagespec.stage(imagespec.OPERATOR, repository, folder)
        paths = sorted(folder.rglob("*"))
        seen.append([(str(p.relative_to(folder)), p.stat().st_mode, p.stat().st_mtime) for p in paths])
    assert seen[0] == seen[1]
    assert "requirements/operator.txt" in [name for name, _, _ in seen[0]]


@pytest.mark.parametrize("image", imagespec.IMAGES.values(), ids=lambda image: image.name)
def test_every_input_of_an_image_exists_and_passes_the_ignore_file(image: imagespec.Image) -> None:
    """A Dockerfile that copies what .dockerignore hides fails only when it is built."""
    allowed = [line[1:] for line in (settings.REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for name in image.inputs:
        assert (settings.REPOSITORY / name).exists(), name
        # What holds files of the machine is never built from the repository, and is laid out by name.
        assert image.machine or any(Path(name).is_relative_to(folder) for folder in allowed), name
        dockerfile = (settings.REPOSITORY / image.dockerfile).read_text()
        copied = f"COPY {name}" in dockerfile or f"ARG REQUIREMENTS={name}\n" in dockerfile
        assert copied or image.machine or image.name == "test-trainer"


def test_files_of_the_machine_are_part_of_an_image_and_of_its_tag(tmp_path: Path) -> None:
    """Those of a newer package make another image; what packages share is there under both names."""
    for name in ("hack/Dockerfile", "shared/jquery.js", "bin/prometheus"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "web").mkdir()
    (tmp_path / "web/jquery").symlink_to(tmp_path / "shared")
    machine = (f"{tmp_path}/bin/prometheus", f"{tmp_path}/web")
    image = imagespec.Image(
        name="p", repository="p", dockerfile="hack/Dockerfile", inputs=(), first_build_gib=1, machine=machine
    )
    before = imagespec.tag(image, "base", tmp_path)
    staged = tmp_path / "staged"
    imagespec.stage(image, tmp_path, staged)
    below = staged / "machine" / tmp_path.relative_to("/")
    assert (below / "web/jquery/jquery.js").read_text() == "shared/jquery.js"
    (tmp_path / "bin/prometheus").write_text("newer")
    assert imagespec.tag(image, "base", tmp_path) != before


def test_the_small_image_is_a_stage_of_the_trainers_file() -> None:
    """Built last, the trainer is what people get who name no stage."""
    for image, target in ((imagespec.PREFLIGHT, ["--target=preflight"]), (imagespec.TRAINER, [])):
        arguments = images.build_arguments(image, "name", "base", Path("/context"))
        assert [argument for argument in arguments if argument.startswith("--target")] == target
    stages = re.findall(
        r"^FROM \S+ AS (\w+)$", (settings.REPOSITORY / "trainer_image/Dockerfile").read_text(), re.MULTILINE
    )
    assert stages == ["base", "preflight", "trainer"]
    assert {imagespec.PREFLIGHT.shared, imagespec.TRAINER.shared} == {"base"}


def test_pip_sees_the_machines_settings_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without them builds all the same."""
    monkeypatch.setattr(images, "_PIP_CONFIGURATION", tmp_path / "pip.conf")
    monkeypatch.setattr(images, "_CERTIFICATES", tmp_path / "certs" / "ca.crt")
    plain = images.build_arguments(imagespec.OPERATOR, "name", "base", Path("/context"))
    assert not any(argument.startswith(("--secret", "--volume")) for argument in plain)
    (tmp_path / "certs").mkdir()
    for name in ("pip.conf", "certs/ca.crt"):
        (tmp_path / name).write_text("")
    arguments = images.build_arguments(imagespec.OPERATOR, "name", "base", Path("/context"))
    assert f"--secret=id=pip.conf,src={tmp_path}/pip.conf" in arguments
    assert f"--volume={tmp_path}/certs:{tmp_path}/certs:ro" in arguments


def _claim(**spec: object) -> dict[str, object]:
    return {
        "metadata": {"namespace": "ns", "name": "data", "uid": "u"},
        "spec": {
            "storageClassName": "local",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "3Gi"}},
            **spec,
        },
    }


def test_a_claim_gets_a_local_volume_in_a_folder_of_its_own() -> None:
    """`local`, since a pod's fsGroup is not applied to hostPath; the claim's uid keeps folders apart."""
    volume = provisioner.volume_for(_claim(), Path("/v"))
    assert volume is not None
    assert volume["spec"]["local"] == {"path": "/v/ns_data_u"}
    assert volume["spec"]["capacity"] == {"storage": "3Gi"}
    assert volume["spec"]["claimRef"]["uid"] == "u"


@pytest.mark.parametrize("spec", [{"storageClassName": "other"}, {"storageClassName": None}, {"volumeName": "pv"}])
def test_a_claim_of_another_class_or_with_a_volume_is_left_alone(spec: dict[str, object]) -> None:
    """Someone else serves it, or it is served."""
    assert provisioner.volume_for(_claim(**spec), Path("/v")) is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({}, Path("/v/ns_data_u")),
        ({"phase": "Bound"}, None),
        ({"policy": "Retain"}, None),
        ({"provisioner": "other"}, None),
        ({"path": "/etc"}, None),
        ({"path": "/v/../etc"}, None),
        ({"path": "/v"}, None),
    ],
)
def test_only_the_folder_of_a_claim_that_its_user_deleted_is_deleted(change: dict[str, str], path: Path | None) -> None:
    """A path outside of the volumes' folder is never touched, whatever the object says."""
    values = {
        "phase": "Released",
        "policy": "Delete",
        "provisioner": provisioner.NAME,
        "path": "/v/ns_data_u",
        **change,
    }
    volume = {
        "metadata": {
            "annotations": {
                "pv.kubernetes.io/provisioned-by": values["provisioner"],
                "lora-operator.io/path": values["path"],
            }
        },
        "spec": {"persistentVolumeReclaimPolicy": values["policy"]},
        "status": {"phase": values["phase"]},
    }
    assert provisioner.folder_to_delete(volume, Path("/v")) == path
