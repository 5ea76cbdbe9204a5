"""Whether vLLM can serve an adapter: judged by the files that PEFT wrote, with the smallest sufficient flag."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from lora_trainer.errors import VerificationError
from lora_trainer.result.serving import TEMPLATE, adapter_serving, command, merged_command, scale
from lora_trainer.spec.serving import VLLM_RANKS, vllm_rank
from lora_trainer.storage.manifest import Serving


def write_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as PEFT writes it."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})
    get_peft_model(model, config).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    ("options", "rank", "flag"),
    [
        ({}, 4, 8),
        ({"use_rslora": True}, 4, 8),
        ({"rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 18}}, 9, 16),
        (
            {"rank_pattern": {"layers.0.self_attn.v_proj": 33}, "alpha_pattern": {"layers.0.self_attn.v_proj": 66}},
            33,
            64,
        ),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, 4, 8),
        ({"r": 64, "lora_alpha": 128, "rank_pattern": dict.fromkeys(("q_proj", "v_proj"), 8)}, 8, 64),
        pytest.param(
            {"rank_pattern": {"k_proj": 100}},
            4,
            128,
            marks=pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
        ),
    ],
)
def test_the_smallest_sufficient_rank_is_named(
    tiny_folder: Path, tmp_path: Path, options: dict[str, Any], rank: int, flag: int
) -> None:
    """vLLM compares the flag with every rank in the configuration; the adapter's own is that of its modules."""
    serving = adapter_serving(write_adapter(tiny_folder, tmp_path, **options))
    assert (serving.servable, serving.rank) == (True, rank)
    assert serving.text == f"--enable-lora --max-lora-rank {flag}"


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, ""),
        ({"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 16}}, ""),
        ({"rank_pattern": {"v_proj": 8}}, "vLLM 0.32"),
        ({"alpha_pattern": {r"layers\.1\..*v_proj": 2}}, "vLLM 0.32"),
    ],
)
def test_factors_that_differ_need_a_release_of_vllm(
    tiny_folder: Path, tmp_path: Path, options: dict[str, Any], needs: str
) -> None:
    """Older ones know one factor for all modules; where patterns keep it, any release will do."""
    serving = adapter_serving(write_adapter(tiny_folder, tmp_path, **options))
    assert (serving.servable, serving.needs) == (True, needs)


SERVABLE = Serving(servable=True, text="--enable-lora --max-lora-rank 8", rank=4)
WITH_TEMPLATE = dataclasses.replace(SERVABLE, text=f"{SERVABLE.text} --chat-template chat_template.jinja")


ON_HUB = ("org/m", "--revision", "c0ffee")


@pytest.mark.parametrize(
    ("serving", "values", "arguments"),
    [
        (SERVABLE, {}, [*ON_HUB, "--lora-modules", "n=/p"]),
        (SERVABLE, {"base_revision": "sha256:1"}, ["path/of/the/base/model", "--lora-modules", "n=/p"]),
        (SERVABLE, {"name": "it's", "path": "/a b"}, [*ON_HUB, "--lora-modules", "it's=/a b"]),
        (
            WITH_TEMPLATE,
            {"path": "/a b"},
            [*ON_HUB, "--chat-template", "/a b/chat_template.jinja", "--lora-modules", "n=/a b"],
        ),
        (
            WITH_TEMPLATE,
            {"path": "me/n", "folder": "copy"},
            [*ON_HUB, "--chat-template", "copy/chat_template.jinja", "--lora-modules", "n=me/n"],
        ),
    ],
)
def test_the_command_names_base_template_and_adapter(
    serving: Serving, values: dict[str, str], arguments: list[str]
) -> None:
    """As a shell splits it: the trained revision of a base on the Hub, and the template where the adapter lies."""
    named = {"base_model": "org/m", "base_revision": "c0ffee", "name": "n", "path": "/p", **values}
    typed = shlex.split(command(serving, **named) or "")
    assert typed[:2] == ["vllm", "serve"]
    assert [part for part in typed[2:] if part not in ("--enable-lora", "--max-lora-rank", "8")] == arguments


@pytest.mark.parametrize("path", ["/data/a,b", "/data/a=b", '/data/"ü",'])
def test_a_path_that_would_split_the_pair_is_given_as_json(path: str) -> None:
    """vLLM takes `name=path` with one equals sign and no comma only."""
    typed = shlex.split(command(SERVABLE, base_model="org/m", base_revision="c", name="n", path=path) or "")
    assert json.loads(typed[-1]) == {"name": "n", "path": path}


def test_the_template_beside_the_adapter_is_among_the_flags(tiny_folder: Path, tmp_path: Path) -> None:
    """Without it vLLM refuses chats with a base that has none."""
    folder = write_adapter(tiny_folder, tmp_path)
    (folder / TEMPLATE).write_text("{{ messages }}", encoding="utf-8")
    assert adapter_serving(folder) == WITH_TEMPLATE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"use_dora": True}, "vLLM serves no DoRA adapters"),
        ({"modules_to_save": ["lm_head"]}, "lora.modulesToSave"),
        ({"bias": "lora_only"}, "no adapters with biases"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "lora.targetParameters"),
        (
            {"r": 513, "lora_alpha": 513},
            "the largest counts, used or not) is above 512, the largest that vLLM serves",
        ),
        ({"rank_pattern": {"k_proj": 600}}, "rank 600 (of lora.rank and lora.rankPattern the largest counts"),
    ],
)
def test_what_vllm_cannot_serve_is_said_with_the_way_out(
    tiny_folder: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    """One sentence, and no command to type."""
    adapter = write_adapter(tiny_folder, tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **options}), encoding="utf-8")
    serving = adapter_serving(adapter)
    assert not serving.servable
    assert sentence in serving.text
    assert serving.text.endswith("; publish it with output.merge: Merged, which every server loads")
    assert len(serving.text) < 300
    assert command(serving, base_model="org/m", base_revision="c", name="n", path="/p") is None


def test_an_adapter_without_low_rank_matrices_is_none_for_vllm(tiny_folder: Path, tmp_path: Path) -> None:
    """There is no rank to name."""
    folder = write_adapter(tiny_folder, tmp_path)
    save_file({"base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    serving = adapter_serving(folder)
    assert (serving.servable, serving.rank) == (False, 0)
    assert serving.text.startswith("the adapter has no low-rank matrices")


def test_the_rank_of_an_adapter_of_embeddings_is_theirs(tiny_folder: Path, tmp_path: Path) -> None:
    """Their matrices have names of their own."""
    folder = write_adapter(tiny_folder, tmp_path)
    names = [f"base_model.model.model.embed_tokens.lora_embedding_{half}" for half in "AB"]
    save_file({name: torch.zeros(4, 4) for name in names}, folder / "adapter_model.safetensors")
    serving = adapter_serving(folder)
    assert (serving.servable, serving.rank) == (True, 4)


def test_factors_are_those_that_peft_computes_with(tiny_folder: Path) -> None:
    """Patterns and the rank-stabilised root alike, for every module."""
    options: dict[str, Any] = {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"v_proj": 5},
        "use_rslora": True,
    }
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    peft = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options)
    adapted: Any = get_peft_model(model, peft)
    factors = {
        name: m.scaling["default"] for name, m in adapted.base_model.model.named_modules() if hasattr(m, "lora_A")
    }
    config = {"r": 4, "lora_alpha": 8, **options}
    assert factors == {name: pytest.approx(scale(config, name)) for name in factors}
    assert len(set(factors.values())) == 3


def test_ranks_are_rounded_up_to_what_vllm_takes() -> None:
    """At the limits and above."""
    assert [vllm_rank(rank) for rank in (1, 2, 8, 9, 256, 257, 321, 512)] == [1, 8, 8, 16, 256, 320, 512, 512]
    assert {vllm_rank(rank) for rank in range(1, 513)} == set(VLLM_RANKS)
    with pytest.raises(ValueError, match="rank 513 is above 512"):
        vllm_rank(513)


def test_a_merged_model_is_served_by_its_folder_alone() -> None:
    """It needs no flags."""
    assert merged_command("/data/my model") == "vllm serve '/data/my model'"


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{]"])
def test_weights_that_are_none_are_reported(tiny_folder: Path, tmp_path: Path, content: bytes) -> None:
    """A cut or foreign file gives a sentence."""
    adapter = write_adapter(tiny_folder, tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match="the adapter cannot be read"):
        adapter_serving(adapter)
