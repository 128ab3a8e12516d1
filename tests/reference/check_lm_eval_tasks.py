"""Imports task files that come with lm-evaluation-harness and compares what ft finds with what lm-evaluation-harness finds.

    python tests/reference/check_lm_eval_tasks.py target/release/ft          # from the root of the repository, some minutes on one core

The task files are those of the installed package lm-eval (0.4.13). The rows are made up, in the columns of each data set. The model is
tests/fixtures/tiny-llama with the tokenizer of tests/fixtures/tiny-tokenizer, float32 on the CPU. What a Python function of a task file computes is
given to `ft eval-import` with --column and --set. For each task the script prints the number of rows and the largest difference
of a likelihood; it fails if a prompt, an answer, a score or a value differs.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks._yaml_loader import load_yaml

sys.path.insert(0, "tests/fixtures/lm-eval-tasks")
from asked import evaluate, model_folder, open_model  # noqa: E402

TASKS = Path(lm_eval.__file__).parent / "tasks"
WORDS = "office visit card doctor Monday letter phone nurse room clinic pain sleep water sugar heart".split()


def sentence(draw, count=7):
    return " ".join(draw.choices(WORDS, k=count)).capitalize() + "."


def labelled(draw, i):
    labels = ["A", "B", "C", "D"] if i % 2 else ["1", "2", "3", "4"]
    return {"text": [sentence(draw, 3) for _ in labels], "label": labels}, draw.choice(labels)


def arc(draw, i):
    choices, key = labelled(draw, i)
    return {"id": str(i), "question": sentence(draw), "choices": choices, "answerKey": key}


def hellaswag(draw, i):
    endings = [f"{sentence(draw, 3)} [step] {sentence(draw, 2)}" for _ in range(4)]
    return {"activity_label": "Office  work", "ctx_a": f"[header] {sentence(draw)} [title] {sentence(draw, 3)}", "ctx_b": "the nurse",
            "endings": endings, "label": str(draw.randrange(4))}


def winogrande(draw, i):
    return {"sentence": f"The {draw.choice(WORDS)} is closed because the _ does not open it.", "option1": draw.choice(WORDS),
            "option2": draw.choice(WORDS) + " of glass", "answer": str(draw.randrange(2) + 1)}


def mmlu(draw, i):
    return {"question": f" {sentence(draw)} ", "subject": "anatomy", "choices": [sentence(draw, 2) for _ in range(4)], "answer": draw.randrange(4)}


def sciq(draw, i):
    made = {name: sentence(draw, 2) for name in ("distractor1", "distractor2", "distractor3", "correct_answer")}
    return {"question": sentence(draw), "support": " " + sentence(draw), **made}


def openbookqa(draw, i):
    choices, key = labelled(draw, i)
    return {"id": str(i), "question_stem": sentence(draw), "choices": choices, "answerKey": f" {key}" if i % 3 else key}


def truthfulqa(draw, i):
    choices = [sentence(draw, 3) for _ in range(3 + i % 3)]
    of = {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}
    return {"question": sentence(draw), "mc1_targets": of, "mc2_targets": of}


def triviaqa(draw, i):
    return {"question": sentence(draw), "answer": {"aliases": draw.sample(WORDS, 3), "value": "x"}}


WIKITEXT = "{{ page.replace(\" @-@ \", \"-\").replace(\" , \", \", \").replace(\" . \", \". \") }}"
HELLASWAG_CLEAN = (
    "{% macro clean(t) %}{% for part in t.strip().replace(' [title]', '. ').split('[') %}{{ part if loop.first else"
    " (part.split(']', 1)[1] if ']' in part else '[' ~ part) }}{% endfor %}{% endmacro %}"
)
# task file -> rows, further arguments of ft, further keys for lm-evaluation-harness, number of examples
CHECKED = {
    "arc/arc_easy.yaml": (arc, [], {}, 0),
    "arc/arc_challenge.yaml": (arc, [], {}, 3),
    "hellaswag/hellaswag.yaml": (
        hellaswag,
        [
            "--column", "query=" + HELLASWAG_CLEAN
            + "{{ clean(activity_label ~ ': ' ~ ctx_a ~ ' ' ~ ctx_b.capitalize()).replace('  ', ' ') }}",
            "--column", "choices=" + HELLASWAG_CLEAN
            + "{{ [" + ", ".join(f"clean(endings[{i}]).replace('  ', ' ')" for i in range(4)) + "] }}",
        ],
        {},
        2,
    ),
    "super_glue/boolq/default.yaml": (
        lambda draw, i: {"passage": sentence(draw, 12), "question": sentence(draw, 4), "label": draw.randrange(2)}, [], {}, 0),
    "piqa/piqa.yaml": (
        lambda draw, i: {"goal": sentence(draw), "sol1": sentence(draw, 3), "sol2": sentence(draw, 4), "label": draw.randrange(2)},
        [], {}, 1),
    "winogrande/default.yaml": (
        winogrande,
        ["--set", "doc_to_text={{ answer | int - 1 }}",
         "--set", "doc_to_target={{ sentence[sentence.index('_') + 1:].strip() }}",
         "--set", "doc_to_choice={% set at = sentence.index('_') %}{{ [sentence[:at] + option1, sentence[:at] + option2] }}"],
        {}, 0),
    "gsm8k/gsm8k.yaml": (
        lambda draw, i: {"question": sentence(draw), "answer": f"It is {draw.randrange(9)}.\n#### {draw.randrange(1, 99)}"},
        ["--set", "generation_kwargs.max_gen_toks=24"], {"max_gen_toks": 24}, 2),
    "triviaqa/default.yaml": (triviaqa, ["--set", "generation_kwargs.max_gen_toks=16"], {"max_gen_toks": 16}, 0),
    "nq_open/nq_open.yaml": (
        lambda draw, i: {"question": sentence(draw, 4), "answer": draw.sample(WORDS, 2)},
        ["--set", "generation_kwargs.max_gen_toks=16"], {"max_gen_toks": 16}, 1),
    "lambada/lambada_openai.yaml": (lambda draw, i: {"text": sentence(draw, 15)}, [], {}, 0),
    "wikitext/wikitext.yaml": (
        lambda draw, i: {"page": f" = {draw.choice(WORDS)} =\n\n" + " , ".join(sentence(draw, 9) for _ in range(3)) + " a @-@ b . c"},
        ["--set", "doc_to_target=" + WIKITEXT, "--set", "process_results="],
        {"doc_to_target": WIKITEXT, "process_results": None}, 0),
    "truthfulqa/truthfulqa_mc1.yaml": (truthfulqa, [], {}, 0),
    "mmlu/default/mmlu_anatomy.yaml": (mmlu, [], {}, 2),
    "sciq/sciq.yaml": (sciq, [], {}, 0),
    "openbookqa/openbookqa.yaml": (openbookqa, [], {}, 1),
    "glue/cola/default.yaml": (lambda draw, i: {"sentence": sentence(draw), "label": i % 2}, [], {}, 0),
    "glue/mrpc/default.yaml": (
        lambda draw, i: {"sentence1": sentence(draw, 4), "sentence2": sentence(draw, 4), "label": i % 2}, [], {}, 0),
    "bbh/fewshot/boolean_expressions.yaml": (
        lambda draw, i: {"input": "not True is", "target": draw.choice(["True", "False"])},
        ["--set", "generation_kwargs.max_gen_toks=12"], {"max_gen_toks": 12}, None),
}


def close(a, b, tolerance):
    return abs(a - b) <= tolerance * max(1.0, abs(b))


def compare(name, found, rows, values):
    """Compares the results of one task. Returns the largest difference of a likelihood."""
    result, largest = found["results"][0], 0.0
    assert len(found["items"]) == len(rows), f"{name}: {len(found['items'])} rows, expected {len(rows)}"
    for i, (item, answer, row) in enumerate(zip(found["items"], result["answers"], rows)):
        place = f"{name}, row {i}"
        if found["kind"] != "perplexity":
            prompt = item["prompt"].split("\n---\n")[0] if "prompts" in row else item["prompt"]
            assert prompt == row["prompt"], f"{place}: {prompt!r}, expected {row['prompt']!r}"
        if "written" in row:
            assert answer["written"] == [row["written"]], f"{place}: {answer['written']}, expected {row['written']!r}"
            assert answer["text"] == row["text"], f"{place}: {answer['text']!r}, expected {row['text']!r}"
        likelihoods = list(zip(answer["log_likelihoods"], row.get("log_likelihoods", [])))
        if found["kind"] in ("perplexity", "cloze"):
            likelihoods = [(answer["scores"]["log_likelihood"], row.get("log_likelihood", row.get("log_likelihoods", [0])[0]))]
        for ours, theirs in likelihoods:
            largest = max(largest, abs(ours - theirs))
            assert abs(ours - theirs) < max(1e-4, 2e-6 * abs(theirs)), f"{place}: {ours}, expected {theirs}"
        for metric, score in row["scores"].items():
            assert metric == "perplexity" or answer["scores"][metric] == score, f"{place}: {metric}"
    for metric, value in values.items():
        ours = result["estimates"][metric]["value"]
        assert close(ours, value, 1e-5), f"{name}: {metric} {ours}, expected {value}"
    return largest


def check(ft, model, folder, path, settings):
    make, arguments, keys, shots = settings
    draw = random.Random(path)
    files = {}
    config = load_yaml(TASKS / path)
    evaluated = config.get("test_split") or config["validation_split"]
    splits = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")} - {None}
    for split in splits:
        files[split] = folder / f"{path.replace('/', '-')}-{split}.jsonl"
        rows = [make(draw, i) for i in range(10 if split == evaluated else 6)]
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    name = config["task"]
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}}}
    if "max_gen_toks" in keys:
        config.setdefault("generation_kwargs", {})["max_gen_toks"] = keys["max_gen_toks"]
        keys = {}
    config |= keys
    if shots is not None:
        config["num_fewshot"] = shots
    expected = evaluate(model, name, config)
    suite, out = folder / "suite.yaml", folder / f"out-{name}"
    data = [part for split, file in files.items() for part in ("--data", f"{split}={file}")]
    shots = [] if shots is None else ["--few-shot", str(shots)]
    subprocess.run([ft, "eval-import", TASKS / path, "--out", suite, "--force", *data, *arguments, *shots], check=True, capture_output=True)
    subprocess.run([ft, "eval", suite, "--model", folder / "model", "--dtype", "f32", "--out", out, "--json"], check=True, capture_output=True)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    largest = 0.0
    for task in results["tasks"]:
        pipeline = task["name"].removeprefix(name + "-") if len(results["tasks"]) > 1 else next(iter(expected["rows"]))
        largest = max(largest, compare(task["name"], task, expected["rows"][pipeline], expected["values"][pipeline]))
    values = {metric: round(float(v), 4) for of in expected["values"].values() for metric, v in of.items()}
    print(f"{name}: {len(results['tasks'][0]['items'])} rows equal, likelihoods within {largest:.1e}, {values}", flush=True)


def main():
    ft, chosen = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "model").mkdir()
        model_folder(folder / "model")
        model = open_model(folder / "model")
        failed = 0
        for path, settings in CHECKED.items():
            if chosen and not any(word in path for word in chosen):
                continue
            try:
                check(ft, model, folder, path, settings)
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed += 1
                told = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else error
                print(f"{path}: DIFFERS: {told}", flush=True)
        sys.exit(failed > 0)


main()
