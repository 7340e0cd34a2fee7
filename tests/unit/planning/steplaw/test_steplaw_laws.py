"""Published laws, counts of parameters and the advice: golden numbers, and real models as the oracle of counts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recipes.protocol import load_config, resolve
from stepstack import config
from stepstack.cli import main as cli
from stepstack.config import ConfigError, Scale
from stepstack.core.config import AdamW, StepLaw
from stepstack.core.optim import resolve_optimizer
from stepstack.planning.steplaw import advice, count, laws


@pytest.mark.parametrize(
    ("params", "tokens", "lr", "batch"),
    [(7e9, 1.4e12, 9.347e-4, 4.997e6), (1073741824, 1e11, 1.580e-3, 1.107e6)],
)
def test_step_law_at_the_points_of_the_authors_tool(params, tokens, lr, batch):
    """The tool predicts with the means of its fits, the law is printed with them rounded."""
    result = laws.STEP(params, tokens)
    assert float(result[0]) == pytest.approx(lr, rel=0.02)
    assert float(result[1]) == pytest.approx(batch, rel=0.005)


def test_the_other_laws_by_hand():
    assert float(laws.openai(1e9)) == pytest.approx(3.239e-3 - 1.395e-4 * 20.7232658, rel=1e-6)
    assert float(laws.openai_batch(2.5)) == pytest.approx(2e8 / 2.5**4.7619, rel=1e-4)
    assert [float(x) for x in laws.deepseek(1e20)] == pytest.approx([0.3118 * 10**-2.5, 0.2920 * 10**6.542], rel=1e-9)
    assert [float(x) for x in laws.porian(1e8)] == pytest.approx([3.7 * 10**-2.88, 0.7576 * 10**5.624], rel=1e-9)
    assert float(laws.minicpm_batch(2.0)) == pytest.approx(1.21e9 / 75.58, rel=1e-3)
    assert float(laws.microsoft(1e9, 1e11, params_unit=1e9, tokens_unit=1e9)) == pytest.approx(1.3192e-5 * 100**-0.32)
    assert float(laws.meituan(2.0, scale=1e-3, exponent=3)) == pytest.approx(1e-3 / 8)
    assert laws.flops_per_token(1280, 9472, 10, 2048) == 6 * (4 * 1280 + 3 * 9472 + 4096) * 12800


def test_openai_says_no_learning_rate_where_its_own_is_negative():
    [message] = [one for one in laws.answers(laws.LawInputs(2e10, 1e12, 1.2e11)) if one.law == "OpenAI"]
    assert message.lr is None
    assert "negative" in message.why


def test_warnings_name_what_is_outside():
    assert laws.warnings(1e9, 1e11) == []
    assert laws.warnings(60e6, 2e9) == []
    assert [line[0] for line in laws.warnings(1e7, 1e12)] == ["N", "D"]
    assert "10x above" in laws.warnings(1e9, 1e12)[0]


def test_advice_rounds_the_batch_to_what_can_be_run():
    result = advice.advise(laws.LawInputs(1e9, 1e11, 6e9), sequence=2048, multiple=64)
    assert result.sequences % 64 == 0
    assert abs(result.sequences * 2048 / result.batch - 1) < 32 * 2048 / result.batch
    assert result.lr_range[0] < result.lr < result.lr_range[1]
    assert result.warnings == []


def test_advice_warns_of_a_batch_off_the_plateau_and_of_a_run_shorter_than_its_warm_up():
    result = advice.advise(laws.LawInputs(1e9, 1e11, 6e9), sequence=2048, multiple=1024)
    assert any("plateau" in line for line in result.warnings)
    assert any("warm-up" in line for line in advice.advise(laws.LawInputs(1e9, 1e6, 6e9), 2048).warnings)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_advice_refuses_what_is_no_size(bad):
    with pytest.raises(ValueError, match="tokens"):
        advice.advise(laws.LawInputs(1e9, bad, 6e9), 2048)


SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
MODELS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
    ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
    ("mistral", {"num_key_value_heads": 2}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("qwen3", {"head_dim": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}),
    (
        "qwen2_moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
            "mlp_only_layers": [1],
        },
    ),
    ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 12, "decoder_sparse_step": 2, "qkv_bias": False}),
    (
        "qwen3_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "head_dim": 16,
            "num_key_value_heads": 2,
            "mlp_only_layers": [0, 2],
        },
    ),
]


@pytest.mark.parametrize(("kind", "more"), MODELS)
def test_counts_are_those_of_the_real_model(kind, more, tmp_path):
    config = AutoConfig.for_model(kind, **SMALL, **more)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    counted = count.read(tmp_path)
    assert counted.total == sum(sizes.values())
    assert counted.embedding == sizes["model.embed_tokens.weight"]
    assert counted.non_embedding == sum(n for k, n in sizes.items() if "embed_tokens" not in k and "lm_head" not in k)
    assert counted.norms == sum(n for k, n in sizes.items() if "norm" in k)
    assert counted.biases == sum(n for k, n in sizes.items() if k.endswith("bias"))
    assert counted.router == sum(n for k, n in sizes.items() if ".gate." in k or "shared_expert_gate" in k)


def test_a_dense_count_is_the_authors_formula():
    fields = {"model_type": "llama", **SMALL}
    assert count.count(fields).matrices == 4 * (4 * 32**2 + 3 * 32 * 48)
    assert count.count(fields).flops_per_token(128) == laws.flops_per_token(32, 48, 4, 128)


def test_only_chosen_experts_cost_flops():
    fields = {"model_type": "mixtral", **SMALL, "num_local_experts": 8, "num_experts_per_tok": 2}
    result = count.count(fields)
    assert result.matrices - result.active == 4 * 6 * 3 * 32 * 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "bert"}', "model_type = 'bert'"),
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"model_type": "llama", "hidden_size": 8.5}', "hidden_size = 8.5"),
    ],
)
def test_a_config_that_cannot_be_counted_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as error:
        count.read(tmp_path)
    assert "config.json" in str(error.value)


def test_the_optimizer_gets_the_laws_values_and_ends_at_the_fixed_learning_rate():
    result = resolve_optimizer(StepLaw(), Scale(1e9, 1e11))
    assert isinstance(result, AdamW)
    assert result.lr == pytest.approx(1.6325e-3, rel=1e-4)
    assert result.lr * result.schedule.factor(10_000, 10_000) == pytest.approx(1e-5)
    assert result.lr * result.schedule.factor(1999, 10_000) == pytest.approx(result.lr)
    assert resolve_optimizer(StepLaw(params=2e9), Scale(1e9, 1e11)).lr < result.lr


def test_the_optimizer_without_a_scale_says_what_to_give():
    with pytest.raises(ConfigError, match=r"optim.params=..., optim.tokens=..."):
        resolve_optimizer(StepLaw(), Scale())


def test_explain_shows_what_the_law_says():
    words = ["actor.optim.type=steplaw", "actor.optim.params=1e9", "actor.optim.tokens=1e11"]
    resolved, loaded = resolve("orz-tiny", words), load_config("orz-tiny", words)
    derived = {key: value for key, value, source in config.explain(loaded, resolved) if source == "derived"}
    assert derived["actor.optim.lr"] == pytest.approx(1.6325e-3, rel=1e-4)
    assert derived["actor.optim.batch_tokens"] == pytest.approx(1.1077e6, rel=1e-3)


def test_a_recipe_says_its_scale_and_explain_warns():
    resolved, loaded = (make("orz-tiny", ["actor.optim.type=steplaw"]) for make in (resolve, load_config))
    derived = {key: value for key, value, source in config.explain(loaded, resolved) if source == "derived"}
    assert derived["actor.optim.at.tokens"] == 50 * 16 * 8 * 64
    assert derived["actor.optim.at.params"] == loaded.scale.params > 2e5
    assert len(derived["actor.optim.warnings"]) == 2


def advise(capsys, *words: str) -> dict:
    assert cli.main(["plan", "steplaw", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_counts_a_transformers_config(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL}))
    result = advise(capsys, "--config", str(tmp_path), "--tokens", "5e9", "--sequence", "128")
    assert result["at"]["params"] == count.read(tmp_path).non_embedding
    assert result["at"]["flops_per_token"] == laws.flops_per_token(32, 48, 4, 128)
    assert result["warnings"]


def test_the_command_writes_a_page_with_plots(capsys, tmp_path):
    page = tmp_path / "page.html"
    words = ["--params", "1e9", "--tokens", "100e9", "--loss", "2.2", "--html", str(page)]
    assert cli.main(["plan", "steplaw", *words]) == 0
    output = capsys.readouterr().out
    for word in ("0.001632", "1,107,715", "541 of 2048", "0.0011 to", "DeepSeek", "MiniCPM", "2000 updates of warm-up"):
        assert word in output
    assert page.read_text().count("data:image/svg") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "1e9"], "either --params or --config"),
        (["--params", "1e9"], "--tokens"),
        (["--params", "-1", "--tokens", "1e9"], "params = -1"),
        (["--params", "1e9", "--config", "orz-tiny", "--tokens", "1"], "either"),
        (["--config", "nowhere.json", "--tokens", "1e9"], "nowhere.json"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, capsys):
    assert cli.main(["plan", "steplaw", *words]) == 2
    assert message in capsys.readouterr().err
