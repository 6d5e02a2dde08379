"""An exported folder predicts, for transformers and for this project, what the checkpoint did."""

import re
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptive_span import Transformer, load_model
from adaptive_span.checkpoint import files, original
from adaptive_span.cli import export
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.errors import UserError
from adaptive_span.export import card
from adaptive_span.export.hub.modeling_adaptive_span import CACHE, AdaptiveSpanForCausalLM
from adaptive_span.model.sampling import Sampling
from tests import strangers
from tests.unit.checkpoint.test_published import VECTORS, as_the_original_saves
from tests.unit.model.test_model import small, with_spans
from tests.unit.model.test_parts import PARTS


def checkpoint(vectors: Path, folder: Path) -> Path:
    """A checkpoint of this project with known weights, whose symbols are words."""
    known = torch.load(vectors, weights_only=True)
    state = original.convert(as_the_original_saves(known), vectors, known["config"]["ramp"])
    vocabulary = Vocabulary("word", [f"w{number}" for number in range(state["vocab_size"])])
    files.save(state | {"vocabulary": vocabulary.pack()}, folder / "x.pt")
    return folder / "x.pt"


def checkpoint_of(changes: dict[str, object], folder: Path) -> Path:
    """A checkpoint with other parts than the published ones."""
    torch.manual_seed(0)
    model = with_spans(Transformer(small(**changes), 11), 0)
    vocabulary = Vocabulary("word", [f"w{number}" for number in range(11)])
    config = {"model": asdict(model.config), "data": {"name": "files", "level": "word", "source": "path", "path": "x"}}
    state = {"config": config, "step": 0, "vocab_size": 11, "vocabulary": vocabulary.pack(), "corpus": None}
    files.save(state | {"model": model.state_dict()}, folder / "x.pt")
    return folder / "x.pt"


@pytest.fixture(scope="module", params=[*VECTORS, *PARTS], ids=lambda case: getattr(case, "stem", case))
def pair(request, tmp_path_factory) -> tuple[Transformer, AdaptiveSpanForCausalLM, Path]:
    """A model as it is here, and as transformers reads it."""
    folder, case = tmp_path_factory.mktemp("export"), request.param
    source = checkpoint_of(PARTS[case], folder) if case in PARTS else checkpoint(case, folder)
    export.main([str(source), str(folder / "out")])
    here, _ = load_model(folder / "x.pt")
    return here, AdaptiveSpanForCausalLM.from_pretrained(folder / "out").eval(), folder


def tokens_for(model: Transformer, rows: int, length: int) -> torch.Tensor:
    return torch.randint(model.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def test_the_round_trip_is_exact(pair):
    here, _, folder = pair
    weights = here.state_dict()
    again, vocabulary = load_model(folder / "out")
    assert vocabulary.symbols == [f"w{number}" for number in range(here.vocab_size)]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, weights[name])
    for name, tensor in load_file(folder / "out" / "model.safetensors").items():
        assert torch.equal(tensor, weights[name])
    assert {p.data_ptr() for p in again.parameters()} == {t.data_ptr() for t in again.state_dict().values()}
    export.main([str(folder / "out"), str(folder / "again")])
    for name in ("model.safetensors", "config.json", "vocabulary.json", "tokenizer.json"):
        assert (folder / "again" / name).read_bytes() == (folder / "out" / name).read_bytes()


@torch.no_grad()
def test_its_logits_are_those_of_this_project_in_blocks_of_any_length(pair):
    here, model, _ = pair
    tokens = tokens_for(here, 2, 600)
    expected, _ = here.log_probabilities(tokens, here.empty_cache(2))
    torch.testing.assert_close(model(tokens).logits.log_softmax(-1), expected, atol=1e-5, rtol=0)
    cache, parts = None, []
    for block in tokens.split([1, 1, 30, 7, 1, 300, 260], dim=1):
        output = model(block, past_key_values=cache)
        cache, parts = output[CACHE], [*parts, output.logits.log_softmax(-1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=0)
    assert cache.get_seq_length() == 600
    seen = here.spans()
    for layer, spans in zip(cache.layers, seen, strict=True):
        held = sum(group.size(2) * group.size(3) for group in layer)
        assert held <= sum(2 * min(here.config.max_span, span + 1) for span in spans.tolist())


@torch.no_grad()
def test_padding_on_the_left_changes_nothing_and_later_tokens_do_not_reach_back(pair):
    here, model, _ = pair
    tokens, missing = tokens_for(here, 2, 40), 17
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[1, :missing] = here.vocab_size  # no token
    mask[1, :missing] = 0
    alone = model(tokens[1:, missing:]).logits[0]
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[1, missing:], alone, atol=1e-5, rtol=0)
    first = model(padded[:, :25], attention_mask=mask[:, :25])
    second = model(padded[:, 25:], attention_mask=mask, past_key_values=first[CACHE]).logits[1]
    torch.testing.assert_close(second, alone[25 - missing :], atol=1e-5, rtol=0)
    torch.testing.assert_close(model(tokens[:, :25]).logits, model(tokens).logits[:, :25], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="attention_mask"):
        model(tokens, attention_mask=mask[:, None])
    with pytest.raises(ValueError, match="inputs_embeds is not known"):
        model(tokens, inputs_embeds=mask)


def test_its_loss_is_the_mean_in_nats_and_has_the_gradients_of_this_project(pair):
    here, model, _ = pair
    tokens = tokens_for(here, 2, 50)
    loss = model(tokens, labels=tokens).loss
    nll, _ = here(tokens[:, :-1], tokens[:, 1:], here.empty_cache(2))
    torch.testing.assert_close(loss, nll.mean())
    loss.backward()
    nll.mean().backward()
    ours = dict(here.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, ours[name].grad, atol=1e-5, rtol=1e-4)


def test_it_generates_what_this_project_does(pair):
    here, model, _ = pair
    tokens = tokens_for(here, 2, 30)
    greedy = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=80, do_sample=False)
    assert torch.equal(greedy[:, 30:], here.generate(tokens, 80, Sampling(temperature=0)))
    beams = {
        use_cache: model.generate(tokens, max_new_tokens=12, num_beams=3, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    }
    assert torch.equal(beams[True], beams[False])


def test_a_folder_is_whole_readable_by_others_or_not_there(tmp_path, monkeypatch):
    source = str(checkpoint(VECTORS[0], tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(card, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="No space left"):
            export.main([source, str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"x.pt"}
    (tmp_path / "out").mkdir()  # an empty one serves
    export.main([source, str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"x.pt", "out"}
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "x.pt").stat().st_mode)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license" in text
    assert "None are known" in text


REFUSED = {
    ("x.pt", "full"): "the folder full is not empty; give one that does not exist yet, or empty it",
    ("x.pt", "x.pt"): "x.pt is a file; give a folder",
    ("none.pt", "out"): "there is no checkpoint none.pt",
    ("full", "out"): "there is no checkpoint full, which is a folder",
    ("old.pt", "out"): "old.pt does not hold its vocabulary; name the text that it was trained on with data=NAME",
    ("x.pt", "out", "--private"): "--private goes with --push NAME",
    ("x.pt", "out", "--push", "a/b/c"): "--push a/b/c is no name of a repository",
    ("x.pt", "out", "--push", "me/model"): "--push me/model needs an account of the Hugging Face Hub; log in",
    ("own.pt", "out"): "own.pt was trained with model.attention=own",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adaptive_span.export.push.get_token", lambda: None)
    checkpoint(VECTORS[0], tmp_path)
    files.save(strangers.state(), tmp_path / "old.pt")
    own = files.load(tmp_path / "x.pt")
    own["config"]["model"]["attention"] = "own"
    files.save(own, tmp_path / "own.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=re.escape(REFUSED[words])):
        export.main(words)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def shortened(weights: Path) -> None:
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "positions"}, weights)


def replaced(old: str, new: str):
    return lambda weights: (config := weights.with_name("config.json")).write_text(config.read_text().replace(old, new))


CHANGES = {
    "lacks positions": (shortened, "positions has shape missing there"),
    "cut": (lambda weights: weights.write_bytes(weights.read_bytes()[:-9]), "model.safetensors cannot be read"),
    "no safetensors": (lambda weights: weights.write_bytes(b"{" * 99), "model.safetensors cannot be read"),
    "another model": (replaced('"model_type": "adaptive_span"', '"model_type": "gpt2"'), "holds another kind of model"),
    "huge": (replaced('"hidden_size": ', '"hidden_size": 9999999'), "describes a model with hidden_size="),
    "no step": (replaced('"step"', '"stop"'), "lacks the key 'step'"),
    "other symbols": (
        lambda weights: weights.with_name("vocabulary.json").write_text('{"level": "word", "symbols": "a"}'),
        "is damaged: its vocabulary is not one of",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_that_is_damaged_is_refused(what, tmp_path):
    export.main([str(checkpoint(VECTORS[0], tmp_path)), str(tmp_path / "out")])
    change, told = CHANGES[what]
    change(tmp_path / "out" / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(told)):
        load_model(tmp_path / "out")


def test_a_hub_that_cannot_be_reached_leaves_the_folder_and_the_command_that_uploads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    source, out = str(checkpoint(VECTORS[0], tmp_path)), str(tmp_path / "out")
    with pytest.raises(UserError, match=f"is written, but was not uploaded to me/model .*hf upload me/model {out}"):
        export.main([source, out, "--push", "me/model"])
    assert load_model(out)[1] is not None
