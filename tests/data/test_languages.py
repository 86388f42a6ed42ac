"""Models that translate between many languages read and write those that the rows have."""

import json

import pytest
import torch
import transformers as tf

from cli import layersift
from layersift.config.recipe import DataSettings
from layersift.data.encode import Encoder, set_languages
from layersift.data.table import table_of
from layersift.errors import DataError
from layersift.evaluation.load_run import load_run
from layersift.training.fit import greedy_config
from words import tokenizer

WORDS = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁w{i}", -1.0) for i in range(40))]
KINDS = {"mbart": tf.MBartTokenizer, "mbart50": tf.MBart50Tokenizer}
# NLLB's is one of pairs of bytes: letters are enough for it.
LETTERS = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "w", *"0123456789", "▁"])}
ROWS = [{"prompt": f"w{i % 7} w{i % 5}", "response": f"w{i % 3}"} for i in range(16)]


def model(tok):
    torch.manual_seed(0)
    size = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = tf.MBartConfig(
        d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=len(tok), max_position_embeddings=64, **size
    )
    return tf.MBartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_responses_carry_their_languages_tokens(kind):
    tok = KINDS[kind](vocab=WORDS)
    set_languages(tok, "de_DE", "fr_XX", translates=True)
    encoder = Encoder(tok, "instruction", seq2seq=True)
    example, _ = encoder.encode(table_of(ROWS, "rows"), 0)
    of = tok.convert_tokens_to_ids
    assert encoder.languages == ("de_DE", "fr_XX")
    assert of("de_DE") in example.input_ids
    assert of("fr_XX") not in example.input_ids
    assert of("fr_XX") in example.target
    settings = greedy_config(model(tok), encoder, tok.pad_token_id)
    begins = settings.decoder_start_token_id if kind == "mbart" else settings.forced_bos_token_id
    assert begins == of("fr_XX")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((None, None), "--target-language"),
        (("de_DE", None), "--target-language"),
        (("de_DE", "german"), "target-language 'german' is none that the tokenizer knows"),
        (("w1", "de_DE"), "source-language 'w1' is none that the tokenizer knows"),
    ],
)
def test_a_language_that_is_missing_or_unknown_is_refused(given, said):
    with pytest.raises(DataError, match=said):
        set_languages(KINDS["mbart50"](vocab=WORDS), *given, translates=True)


def test_a_language_is_of_no_use_to_other_models():
    with pytest.raises(DataError, match="source-language has no effect"):
        set_languages(tokenizer("decoder"), "de_DE", None, translates=True)
    with pytest.raises(DataError, match="target-language has no effect"):
        set_languages(KINDS["mbart"](vocab=WORDS), None, "de_DE", translates=False)


def test_nllb_reads_and_writes_in_its_languages(caplog):
    tok = tf.NllbTokenizer(vocab=LETTERS, merges=[])
    with pytest.raises(DataError, match="--target-language"):
        set_languages(tok, "deu_Latn", None, translates=True)
    set_languages(tok, None, "fra_Latn", translates=True)
    assert "prompts are read as eng_Latn" in caplog.text
    set_languages(tok, "deu_Latn", "fra_Latn", translates=True)
    encoder = Encoder(tok, "instruction", seq2seq=True)
    example, _ = encoder.encode(table_of(ROWS, "rows"), 0)
    source, target = tok.convert_tokens_to_ids(["deu_Latn", "fra_Latn"])
    assert example.input_ids[0] == source
    assert (example.target[0], example.target[-1]) == (target, tok.eos_token_id)
    assert {source, target} & {*example.input_ids[1:], *example.target[1:]} == set()
    assert greedy_config(model(tok), encoder, tok.pad_token_id).forced_bos_token_id == target


def test_languages_that_the_tokenizer_names_itself_are_taken():
    tok = KINDS["mbart50"](vocab=WORDS, src_lang="de_DE", tgt_lang="fr_XX")
    set_languages(tok, None, None, translates=True)
    assert (tok.src_lang, tok.tgt_lang) == ("de_DE", "fr_XX")
    assert DataSettings("rows").source_language is None


def test_a_run_keeps_its_languages(tmp_path):
    tok = KINDS["mbart50"](vocab=WORDS)
    trained = model(tok)
    trained.config.architectures = ["MBartForConditionalGeneration"]
    trained.save_pretrained(tmp_path / "m")
    tok.save_pretrained(tmp_path / "m")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["train", tmp_path / "m", "--data", tmp_path / "d.jsonl", "-o", tmp_path / "run", "--epochs", "1"]
    refused = layersift(*words)
    assert refused.returncode == 2
    assert "--target-language" in refused.stderr
    assert layersift(*words, "--source-language", "de_DE", "--target-language", "fr_XX").returncode == 0
    _, _, encoder = load_run(tmp_path / "run")
    assert encoder.languages == ("de_DE", "fr_XX")
