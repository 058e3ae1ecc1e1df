"""A model with code of its own, shaped as the paper's OpenELM are: joint query, key and value, other names."""

import json
import shutil

import pytest

import ntps
from ntps.errors import NtpsError
from ntps.finetune import TrainSettings, before_and_after
from ntps.study.measure import StudySettings
from ntps.study.study import run_study

pytestmark = pytest.mark.slow

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class Config(PretrainedConfig):
    model_type = "small_elm"

    def __init__(self, model_dim=24, num_transformer_layers=2, vocab_size=64, **kwargs):
        self.model_dim, self.num_transformer_layers, self.vocab_size = model_dim, num_transformer_layers, vocab_size
        self.hidden_size, self.num_hidden_layers = model_dim, num_transformer_layers
        super().__init__(**kwargs)


class Attention(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.qkv_proj, self.out_proj = torch.nn.Linear(d, 3 * d, bias=False), torch.nn.Linear(d, d, bias=False)

    def forward(self, x):
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        return self.out_proj(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Block(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attn = Attention(d)
        self.ffn = torch.nn.ModuleDict({"proj_1": torch.nn.Linear(d, 2 * d), "proj_2": torch.nn.Linear(2 * d, d)})

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.ffn["proj_2"](torch.nn.functional.silu(self.ffn["proj_1"](x)))


class Base(PreTrainedModel):
    config_class = Config
    base_model_prefix = "transformer"

    def _init_weights(self, module):
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.weight.data.normal_(std=0.2)


class Model(Base):
    def __init__(self, config):
        super().__init__(config)
        self.token_embeddings = torch.nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = torch.nn.ModuleList(Block(config.model_dim) for _ in range(config.num_transformer_layers))
        self.norm = torch.nn.LayerNorm(config.model_dim)
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embeddings

    def set_input_embeddings(self, module):
        self.token_embeddings = module

    def forward(self, input_ids=None, attention_mask=None, output_hidden_states=None, **kwargs):
        x = self.token_embeddings(input_ids)
        states = [x]
        for number, layer in enumerate(self.layers):
            x = layer(x)
            states.append(self.norm(x) if number + 1 == len(self.layers) else x)
        kept = tuple(states) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=states[-1], hidden_states=kept)


class CausalLM(Base):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = Model(config)
        self.lm_head = torch.nn.Linear(config.model_dim, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, output_hidden_states=None, **kwargs):
        out = self.transformer(input_ids, output_hidden_states=output_hidden_states)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), hidden_states=out.hidden_states)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory, tiny_llama):
    """Directory of a network with code of its own, weights and a tokenizer."""
    import importlib.util

    folder = tmp_path_factory.mktemp("models") / "small-elm"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (folder / "small_elm.py").write_text(CODE)
    spec = importlib.util.spec_from_file_location("small_elm", folder / "small_elm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vocabulary = json.loads((tiny_llama / "config.json").read_text())["vocab_size"]
    network = module.CausalLM(module.Config(vocab_size=vocabulary))
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "small_elm.Config", "AutoModel": "small_elm.Model", "AutoModelForCausalLM": "small_elm.CausalLM",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tasks():
    words = ["good", "bad"]
    return [
        ntps.load_task(
            texts=[f"a {words[(n + m) % 2]} film {'the ' * (n % 5)}" for n in range(60)],
            labels=[n % 2 for n in range(60)],
            name=f"films{m}",
        )
        for m in range(2)
    ]


def test_its_code_runs_if_the_user_asks(stand_in, tasks):
    with pytest.raises(NtpsError, match="trust_remote_code"):
        ntps.load_model(str(stand_in))
    model = ntps.load_model(str(stand_in), trust_remote_code=True)
    result = ntps.score(ntps.collect(model, tasks[0], progress=False), convention="official", fraction=0.5)
    assert [layer.layer for layer in result.layers] == [0, 1, 2]


def test_the_recipe_adapts_its_joint_projection(stand_in, tasks):
    model = ntps.load_model(str(stand_in), trust_remote_code=True, head=True)
    settings = TrainSettings.recipe("paper", steps=2, rank=4, evaluate_every=2, dtype="float32")
    result = before_and_after(model, tasks[0], settings=settings, layers=[-1], analyses=(), progress=False)
    assert result.provenance["adapted"]["modules"] == {"qkv_proj": 2}
    assert result.best_step == 2 and result.after.next_token_loss is not None


def test_a_study_of_it(stand_in, tasks, tmp_path):
    settings = StudySettings(
        limit=None, folds=3, permutations=2, control=False, convention="official", trust_remote_code=True
    )
    study = run_study([str(stand_in)], tasks, output=tmp_path, settings=settings, progress=False)
    assert [cell.status for cell in study.cells] == ["done", "done"]
    assert len(study.cells[0].score.layers[0].official) == 19
