"""The operator's configuration file."""

from pathlib import Path

import pytest

from lora_operator.model.config import OperatorConfig, load_config, yaml_name
from lora_trainer.spec.codec import CodecError
from lora_trainer.spec.device_section import GpuSetting


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_one_line_is_enough(tmp_path: Path) -> None:
    """Everything but the image has a default."""
    config = load_config(write(tmp_path, "trainerImage: registry.example/trainer:1\n"))
    assert config == OperatorConfig(trainer_image="registry.example/trainer:1")


def test_no_user_and_no_series_of_runs_are_settings_too(tmp_path: Path) -> None:
    """0 and false are values like others."""
    config = load_config(write(tmp_path, "trainerImage: a\nrunAsUser: 0\nrunMetrics: false\n"))
    assert (config.run_as_user, config.run_metrics) == (0, False)


def test_every_setting_has_its_yaml_name(tmp_path: Path) -> None:
    """Units and acronyms as the chart writes them."""
    text = "trainerImage: a\nallowCPU: true\nretryBaseSeconds: 2\nterminationGraceSeconds: 5\nnamespaces: [a, b]\n"
    config = load_config(write(tmp_path, text))
    assert (config.allow_cpu, config.retry_base_s, config.termination_grace_s) == (True, 2.0, 5)
    assert config.namespaces == ("a", "b")
    assert yaml_name("watch_inactivity_s") == "watchInactivitySeconds"


def test_the_clusters_gpus_are_a_list(tmp_path: Path) -> None:
    """By product or resource, with memory and, where it has one, a price."""
    gpus = "[{name: NVIDIA-A10G, memoryGiB: 24, pricePerHour: 1}, {name: amd.com/gpu, memoryGiB: 192}]"
    text = f"trainerImage: a\ngpus: {gpus}\n"
    assert load_config(write(tmp_path, text)).gpus == (
        GpuSetting(name="NVIDIA-A10G", memory_gib=24, price=1.0),
        GpuSetting(name="amd.com/gpu", memory_gib=192),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", r"config\.yaml\.trainerImage is missing"),
        ("trainerImage: ''\n", "trainerImage"),
        ("trainerImage: a\nworkerz: 3\n", "workerz is unknown: the known keys are allowCPU, "),
        ("trainerImage: a\nworkers: many\n", "workers"),
        ("trainerImage: a\nworkers: true\n", "workers"),
        ("trainerImage: a\nworkers: 0\n", r"config\.yaml\.workers is 0: must be above 0"),
        ("trainerImage: a\nwatchInactivitySeconds: -1\n", "watchInactivitySeconds is -1.0: must be above 0"),
        (
            "trainerImage: a\nretryPeriodSeconds: 60\n",
            "retryPeriodSeconds is 60.0: must be below renewDeadlineSeconds, which is 10.0",
        ),
        ("trainerImage: a\nretryBaseSeconds: .nan\n", "retryBaseSeconds is nan: must be above 0"),
        ("trainerImage: a\nleaseDurationSeconds: 0\n", "leaseDurationSeconds is 0: must be above 0"),
        ("trainerImage: a\nleaseName: ''\n", "leaseName is '': must be set"),
        (
            "trainerImage: a\nrenewDeadlineSeconds: 15\n",
            "renewDeadlineSeconds is 15.0: must be below leaseDurationSeconds, which is 15",
        ),
        (
            "trainerImage: a\nretryPeriodSeconds: 12\n",
            "retryPeriodSeconds is 12.0: must be below renewDeadlineSeconds, which is 10.0",
        ),
        ("trainerImage: a\nhttpPort: 70000\n", "httpPort is 70000: must be from 1 to 65535"),
        ("trainerImage: a\nlogLevel: VERBOSE\n", "logLevel is 'VERBOSE': must be one of DEBUG, INFO"),
        ("trainerImage: a\nlogFormat: xml\n", "logFormat is 'xml': must be one of text, json"),
        ("trainerImage: a\nimagePullPolicy: Sometimes\n", "imagePullPolicy is 'Sometimes': must be one of Always"),
        ("trainerImage: a\ngpus: L4\n", r"config\.yaml\.gpus is 'L4': must be a list"),
        ("trainerImage: a\ngpus: [L4]\n", r"gpus\[0\] is 'L4': must be an object"),
        ("trainerImage: a\ngpus: [{name: L4}]\n", r"gpus\[0\]\.memoryGiB is missing"),
        (
            "trainerImage: a\ngpus: [{name: L4, memoryGiB: 24Gi}]\n",
            r"gpus\[0\]\.memoryGiB is '24Gi': must be a whole number",
        ),
        ("trainerImage: a\ngpus: [{name: L4, memoryGiB: 0}]\n", "memoryGiB from 1 to 1024"),
        ("trainerImage: a\ngpus: [{name: '', memoryGiB: 24}]\n", "different names"),
        ("trainerImage: a\ngpus: [{name: L4, memoryGiB: 24}, {name: l4, memoryGiB: 24}]\n", "different names"),
        ("trainerImage: a\ngpus: [{name: L4, memoryGiB: 24, pricePerHour: -1}]\n", "pricePerHour of 0 or more"),
        ("trainerImage: a\ngpus: [{name: L4, memoryGiB: 24, pricePerHour: .nan}]\n", "pricePerHour of 0 or more"),
        ("trainerImage: a\ngpus: [{name: L4, memoryGiB: 24, colour: green}]\n", r"gpus\[0\]\.colour is unknown"),
        (
            "trainerImage: a\ngpus: [" + ", ".join(f"{{name: G{n}, memoryGiB: 24}}" for n in range(65)) + "]\n",
            "at most 64 GPUs",
        ),
        ("trainerImage: a\npreflightNodeSelector: {gpu: true}\n", r"preflightNodeSelector\.gpu is True: must be a str"),
        (
            "trainerImage: a\npreflightTolerations: [{key: gpu, for: ever}]\n",
            "preflightTolerations is .* must be tolerations that have effect, key, operator, value alone",
        ),
        ("trainerImage: a\npodAnnotations: {lora-operator.io/config: x}\n", "none of lora-operator.io or batch"),
        ("trainerImage: a\npodAnnotations: {x.lora-operator.io/config: x}\n", "none of lora-operator.io or batch"),
        ("trainerImage: a\npodAnnotations: {'a b': x}\n", "annotations as Kubernetes takes them"),
        ("trainerImage: a\npodAnnotations: {'a..b/x': x}\n", "annotations as Kubernetes takes them"),
        ("trainerImage: a\npodAnnotations: {'a.-b/x': x}\n", "annotations as Kubernetes takes them"),
        (f"trainerImage: a\npodAnnotations: {{a: {'x' * 17000}}}\n", "16,384 bytes together at most"),
        (
            "trainerImage: a\ndefaultEnvironment: {HF_TOKEN: x}\n",
            "defaultEnvironment is .* must be at most 64 variables",
        ),
        (
            "trainerImage: a\ndefaultEnvironment: {HTTPS_PROXY: 'http://me:secret@proxy:3128'}\n",
            "defaultEnvironment is of HTTPS_PROXY: .* or with a user, token or password, .* without one",
        ),
        ("trainerImage: a\ndefaultEnvironment: {HTTPS_PROXY: 'user:secret@proxy:3128'}\n", "without one"),
        ("trainerImage: a\ndefaultEnvironment: {HTTP_PROXY: 'http://TOKEN@proxy:3128'}\n", "without one"),
        ("trainerImage: a\ndefaultEnvironment: {UCX_TLS: 'http://me:secret@host'}\n", "without one"),
        (
            "trainerImage: a\ndefaultEnvironment: {NCCL_DEBUG: 1}\n",
            r"defaultEnvironment\.NCCL_DEBUG is 1: must be a str",
        ),
        ("trainerImage: a\ndefaultAffinity: {nodes: {}}\n", "defaultAffinity is .* nodeAffinity, podAffinity"),
        ("trainerImage: a\ndefaultTTLSeconds: 0\n", "defaultTTLSeconds is 0: must be above 0"),
        ("trainerImage: a\ndefaultTTLSeconds: 31536001\n", "defaultTTLSeconds is 31536001: must be at most 31536000"),
        (
            f"trainerImage: a\ndefaultMemoryPerGPU: {'x' * 33}\n",
            "defaultMemoryPerGPU is 'x+': must be at most 32 characters long",
        ),
        (f"trainerImage: a\ndefaultQueue: {'q' * 254}\n", "defaultQueue is .* at most 253 characters long"),
        (
            "trainerImage: a\ndefaultTolerations: [" + ", ".join(f"{{key: t{n}}}" for n in range(33)) + "]\n",
            "must be at most 32 tolerations as Kubernetes takes them",
        ),
        (
            f"trainerImage: a\ndefaultTolerations: [{{key: gpu, value: {'v' * 64}}}]\n",
            "must be at most 32 tolerations as Kubernetes takes them",
        ),
        ("trainerImage: a\ndefaultTolerations: [{for: ever}]\n", "that have effect, key, operator, value alone"),
        (
            "trainerImage: a\ndefaultNodeSelector: {" + ", ".join(f"l{n}: x" for n in range(33)) + "}\n",
            "defaultNodeSelector is .* must be at most 32 labels",
        ),
        ("trainerImage: a\ndefaultGPUResourceName: ''\n", "defaultGPUResourceName is '': must be set"),
        ("- a\n", "map of settings"),
        ("trainerImage: [\n", "not YAML"),
    ],
)
def test_a_bad_file_is_named_in_one_sentence(tmp_path: Path, text: str, named: str) -> None:
    """The key, the value and the rule, and no guessing; no password."""
    with pytest.raises(CodecError, match=named) as refused:
        load_config(write(tmp_path, text))
    assert "secret" not in str(refused.value)
