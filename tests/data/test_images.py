import itertools
import json

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from layersift import select_layers
from layersift.config.recipe import Columns, ModelSource
from layersift.config.select import SelectSettings
from layersift.config.train import TrainSettings
from layersift.data.encode import Encoder, encode_rows, encode_sample
from layersift.data.examples import collate
from layersift.data.images import image_bytes, open_image
from layersift.data.table import read_table, table_of
from layersift.errors import DataError
from layersift.evaluation.load_run import load_run, run_table
from layersift.evaluation.metrics import evaluate, exact_match
from layersift.models.load import load_model
from layersift.models.stacks import find_stack
from layersift.records.reading import describe
from layersift.represent.positions import POSITIONS
from layersift.select.choose import select
from layersift.select.sample import sample_table
from layersift.training.fit import TrainingData, train
from layersift.training.output import RunOutput
from pictures import digit, digit_folder, save_llava, save_vit
from tiny import read_at


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digit_folder(tmp_path_factory.mktemp("digits"), range(40))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions in the columns of ScienceQA; every fifth has no picture."""
    place = tmp_path_factory.mktemp("questions")
    rows = []
    for i in range(30):
        picture, number = digit(i)
        picture.save(place / f"{i}.png")
        choices = [f"w{number}", f"w{number + 10}", f"w{number + 20}"]
        choices = choices[i % 3 :] + choices[: i % 3]
        rows.append(
            {
                "image": f"{i}.png" if i % 5 else None,
                "question": "which w1 ?",
                "choices": choices,
                "answer": choices.index(f"w{number}"),
                "hint": "a b c" if i % 2 else "",
            }
        )
    path = place / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(directory, table, kind, num_labels=1):
    loaded = load_model(ModelSource(directory), kind, num_labels, images=True)
    classes = tuple(sorted({str(r["label"]) for r in table.rows})) if kind == "classification" else ()
    encoder = Encoder(loaded.tokenizer, kind, classes, processor=loaded.processor)
    return loaded, encoder, encode_rows(table, encoder, range(len(table.rows)))


def test_a_folder_of_classes_is_a_table_of_images(digits):
    table = read_table(str(digits))
    assert (table.kind, table.columns.image, table.columns.label) == ("classification", "image", "label")
    assert len(table.rows) == 40
    picture, label = digit(7)
    row = next(r for r in table.rows if r["image"].endswith("/7.png"))
    assert row["label"] == f"digit{label}"
    assert list(open_image(row["image"], table.source).convert("L").tobytes()) == list(picture.tobytes())


def test_splits_of_an_image_folder(tmp_path):
    digit_folder(tmp_path / "train", range(10))
    digit_folder(tmp_path / "test", range(10, 13))
    assert len(read_table(str(tmp_path)).rows) == 10
    assert len(read_table(str(tmp_path), split="test").rows) == 3


def test_equal_images_are_equal_data_wherever_they_are_kept(digits):
    table = read_table(str(digits))
    encoded = [{**row, "image": {"bytes": image_bytes(row["image"], table.source), "path": None}} for row in table.rows]
    assert table_of(encoded, "elsewhere").fingerprint == table.fingerprint
    other = [encoded[1], encoded[0], *encoded[2:]]
    assert table_of(other, "elsewhere").fingerprint != table.fingerprint


def test_images_of_a_dataset_stay_encoded(tmp_path, digits):
    import datasets

    paths = sorted(str(p) for p in digits.rglob("*.png"))
    data = datasets.Dataset.from_dict({"image": paths, "label": [0, 1] * 20}).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    table = read_table(str(tmp_path / "saved"))
    assert isinstance(table.rows[0]["image"], dict)
    assert open_image(table.rows[3]["image"], table.source).size == (16, 16)


@pytest.mark.parametrize(
    ("value", "message"), [("none.png", "cannot read the image none.png"), (3, "expected an image"), (b"", "expected")]
)
def test_what_is_no_image_is_refused(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        open_image(value, str(tmp_path))


def test_a_broken_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not an image"):
        open_image("a.png", str(tmp_path))


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
@pytest.mark.parametrize("position", ["first", "mean", "last"])
def test_representations_of_images(tmp_path, digits, kind, position):
    loaded, _, encoded = read(save_vit(tmp_path, kind), read_table(str(digits)), "classification", 10)
    stack = find_stack(loaded.model)
    assert stack.tower == "vision"
    ours = read_at(loaded.model, stack, encoded.examples, POSITIONS[position], token_budget=40)
    with torch.no_grad():
        states = loaded.model(**collate(encoded.examples, 0), output_hidden_states=True).hidden_states
    choose = {"first": lambda h: h[:, 0], "mean": lambda h: h.mean(dim=1), "last": lambda h: h[:, -1]}[position]
    for layer in range(4):  # behind the last block DINOv2 shows the state before its norm, too
        torch.testing.assert_close(ours.states[layer], choose(states[layer]), rtol=1e-5, atol=1e-5)


def test_image_classification_from_selection_to_evaluation(tmp_path, vit, digits):
    table = read_table(str(digits))
    loaded, encoder, encoded = read(vit, table, "classification", 10)
    sample = sample_table(table, encoder, SelectSettings(max_samples=20))
    selection = select(loaded, sample, SelectSettings(top_n=2))
    assert selection.position == "mean"
    settings = TrainSettings(epochs=40, learning_rate=1e-2, target_modules="all-linear")
    train(
        loaded,
        TrainingData(encoder, encoded.examples, describe(table)),
        selection,
        settings,
        RunOutput(tmp_path / "run"),
    )
    record, again, encoder = load_run(tmp_path / "run")
    assert record.columns == Columns(image="image", label="label")
    assert (tmp_path / "run" / "preprocessor_config.json").is_file()
    judged = encode_sample(run_table(record, str(digits), "train"), encoder, None, 0)
    found = evaluate(again.model, encoder, judged.examples, again.pad_id)
    assert found.metrics["accuracy"] > 0.6  # ten classes, and it has seen these


def test_images_of_another_size_than_the_models_are_told_with_what_would_help(call, tmp_path, digits):
    directory = save_vit(tmp_path / "vit")
    path = tmp_path / "vit" / "preprocessor_config.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | {"size": {side: 2 * length for side, length in given["size"].items()}}))
    said = call("select", directory, "--data", digits, cwd=tmp_path)
    assert said.returncode == 2
    assert "does not run on these images (" in said.stderr
    assert "see whether another size in its preprocessor_config.json" in said.stderr


def test_select_layers_on_images_in_memory(vit):
    rows = [{"image": digit(i)[0], "label": digit(i)[1]} for i in range(12)]
    model = tf.ViTModel.from_pretrained(vit)
    processor = tf.AutoImageProcessor.from_pretrained(vit)
    selection = select_layers(model, rows, processor=processor, ratio=0.5)
    assert (selection.tower, len(selection.selected_layers)) == ("vision", 2)


def test_tokens_of_the_image_count_as_tokens_of_the_sequence(llava, questions):
    table = read_table(str(questions))
    assert table.without_image == 6
    loaded, _, encoded = read(llava, table, "instruction")
    example = encoded.examples[0]
    image_token = loaded.processor.image_token_id
    assert example.input_ids.count(image_token) == 4  # 16 pixels in patches of 8
    written = [i for i, r in zip(example.input_ids, example.response, strict=True) if r]
    letter = "ABC"[table.rows[0]["answer"]]
    assert loaded.tokenizer.decode(written[:1]) in (letter, "[UNK]")
    assert written[-1] == loaded.tokenizer.eos_token_id
    text = loaded.tokenizer.decode([i for i in example.input_ids if i != image_token])
    assert text.index("<|user|>") < text.index("w1") < text.index("<|assistant|>")


def test_compat_paper_on_image_questions_is_the_published_rule(llava, questions):
    table = read_table(str(questions))
    loaded, encoder, _ = read(llava, table, "instruction")
    settings = SelectSettings(compat="paper", max_samples=16)
    selection = select(loaded, sample_table(table, encoder, settings), settings)
    kept = []  # once more, from the processor and `output_hidden_states`
    for row in [json.loads(line) for line in questions.read_text().splitlines()]:
        if row["image"] is None or len(kept) == 16:
            continue
        listed = [f"{letter}. {choice}" for letter, choice in zip("ABC", row["choices"], strict=True)]
        context = [f"Context: {row['hint']}"] if row["hint"] else []
        last = "Answer with the option's letter from the given choices directly."
        asked = "\n".join([*context, row["question"], *listed, last])
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
        text = loaded.processor.apply_chat_template(said, add_generation_prompt=True)
        picture = Image.open(questions.parent / row["image"]).convert("RGB")
        inputs = loaded.processor(text=text + "ABC"[row["answer"]], images=picture, return_tensors="pt")
        with torch.no_grad():
            states = loaded.model(**inputs, output_hidden_states=True).hidden_states
        kept.append([state[0, -1].double() for state in states])
    columns = [torch.stack(layer) for layer in zip(*kept, strict=True)]
    columns = [c - c.mean(0) for c in columns]
    values = [
        float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-12))
        for x, y in itertools.pairwise(columns)
    ]
    np.testing.assert_allclose([1 - v for v in values], selection.importance, atol=1e-5)
    assert list(selection.selected_layers) == sorted(sorted(range(4), key=lambda i: values[i])[:2])


@pytest.mark.parametrize("budget", [30, 10_000])
def test_representations_of_image_and_text(llava, questions, budget):
    loaded, _, encoded = read(llava, read_table(str(questions)), "instruction")
    stack = find_stack(loaded.model)
    assert stack.tower == "language"
    ours = read_at(loaded.model, stack, encoded.examples, POSITIONS["response-mean"], token_budget=budget)
    for row in (0, 5, 11):
        example = encoded.examples[row]
        with torch.no_grad():
            states = loaded.model(**collate([example], 0), output_hidden_states=True).hidden_states
        for layer in range(stack.num_layers):
            wanted = states[layer][0][torch.tensor(example.response)].mean(dim=0)
            torch.testing.assert_close(ours.states[layer][row], wanted, rtol=1e-4, atol=1e-5)


def test_the_vision_tower_sees_tokens_of_its_own(llava, questions):
    loaded, _, encoded = read(llava, read_table(str(questions)), "instruction")
    stack = find_stack(loaded.model, "vision")
    ours = read_at(loaded.model, stack, encoded.examples, POSITIONS["mean"])
    with torch.no_grad():
        pixels = collate(encoded.examples, 0)["pixel_values"]
        states = loaded.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for layer in range(stack.num_layers):
        torch.testing.assert_close(ours.states[layer], states[layer].mean(dim=1), rtol=1e-5, atol=1e-5)


def test_image_questions_from_selection_to_answers(tmp_path, llava, questions):
    table = read_table(str(questions))
    loaded, encoder, encoded = read(llava, table, "instruction")
    sample = sample_table(table, encoder, SelectSettings())
    selection = select(loaded, sample, SelectSettings())
    assert selection.position == "response-mean"
    settings = TrainSettings(epochs=1, target_modules="all-linear")
    before = {n: p.clone() for n, p in loaded.model.named_parameters()}
    train(
        loaded,
        TrainingData(encoder, encoded.examples, describe(table)),
        selection,
        settings,
        RunOutput(tmp_path / "run"),
    )
    _, again, encoder = load_run(tmp_path / "run")
    trained = {n for n, p in torch.nn.Module.named_parameters(again.model) if "lora" in n}
    assert trained
    assert all("language_model" in n for n in trained)
    for name, value in loaded.model.named_parameters():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        if plain in before:
            assert torch.equal(value, before[plain]), name
    judged = evaluate(again.model, encoder, encoded.examples, again.pad_id)
    assert judged.metrics["loss"] > 0
    answers = exact_match(again.model, encoder, table, range(6), again.pad_id, 3)
    assert answers.samples == 6


def test_answers_to_image_questions_do_not_depend_on_the_batch(llava, questions):
    table = read_table(str(questions))
    loaded, encoder, _ = read(llava, table, "instruction")
    from layersift.evaluation.generation import _generate

    prompts = [encoder.prompt(table, i) for i in range(6)]
    together = _generate(loaded.model, encoder, prompts, loaded.pad_id, 5, ())
    alone = [_generate(loaded.model, encoder, [p], loaded.pad_id, 5, ())[0] for p in prompts]
    assert together == alone


@pytest.mark.parametrize("answer", [3, "w", "D", -1])
def test_an_answer_must_be_among_the_choices(answer):
    from layersift.config.recipe import Columns
    from layersift.data.chat.conversation import conversation_of

    row = {"question": "q", "choices": ["x", "y"], "answer": answer}
    with pytest.raises(DataError, match="neither an index below 2, a letter, nor one of the choices"):
        conversation_of(row, Columns(prompt="question", response="answer", choices="choices"), "here")


@pytest.mark.slow
def test_images_are_advised_on_selected_for_a_price_and_compared(call, digits, vit, tmp_path):
    """All three plan what trainings on images cost."""
    advised = call("advise", vit, "--data", digits, "--time", "0.7", "-o", tmp_path / "advice", cwd=tmp_path)
    assert advised.returncode == 0, advised.stderr
    assert (tmp_path / "advice" / "recipe.yaml").is_file()
    chosen = call("select", vit, "--data", digits, "--objective", "time=0.8", "-o", tmp_path / "s.json", cwd=tmp_path)
    assert chosen.returncode == 0, chosen.stderr
    assert 0 < len(json.loads((tmp_path / "s.json").read_text())["selected_layers"]) < 4
    recipe = {
        "model": vit,
        "data": str(digits),
        "output": str(tmp_path / "out"),
        "train": {"epochs": 1, "batch_size": 4},
        "compare": {"criteria": ["last"], "seeds": 1, "random": 1, "strategies": ["freezing"]},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    compared = call("compare", tmp_path / "r.yaml", "--json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    shares = {row["choice"]["name"]: row["choice"]["flops"] for row in json.loads(compared.stdout)["rows"]}
    assert 0.4 < shares["last"] < shares["freezing"] < shares["all"] == 1
