"""Compares `ft eval` with lm-evaluation-harness: examples a second, peak memory, and whether both find the same.

Two tasks of the ICD-10 rows in float32: the right chapter among four by log-likelihood, after examples; and the chapter written
out, after examples. Both sides run in turns as processes of their own, and the best of the rounds counts. The time of ft is that
of its whole process; of the harness, that from its loaded model on. Run by `make bench-eval`; `--help` lists the options.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOTS = 5
NEW_TOKENS = 24
TASKS = ["choice", "written"]


def questions(path):
    """Returns (diagnosis, chapter) of each row."""
    for line in path.read_text().splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"][-2:])
        yield question.split("\n\n", 1)[1], answer


def write_rows(folder, data, count):
    """Writes rows of both tasks, with the same four chapters for both sides."""
    draw = random.Random(1)
    for name, file, most in (("train", "train.jsonl", SHOTS), ("test", "test.jsonl", count)):
        rows = list(questions(data / file))
        chapters = sorted({chapter for _, chapter in rows})
        with open(folder / f"{name}.jsonl", "w") as out:
            for diagnosis, chapter in rows[:most]:
                choices = [chapter, *draw.sample([c for c in chapters if c != chapter], 3)]
                draw.shuffle(choices)
                row = {"diagnosis": diagnosis, "choices": choices, "label": choices.index(chapter), "chapter": chapter}
                out.write(json.dumps(row) + "\n")


QUESTION = "Diagnosis: {{diagnosis}}\nChapter:"


def suite(folder, task):
    """Writes a task as ft's suite and returns its path."""
    kind = {
        "choice": "  choice: { choices: '{{ choices }}', answer: '{{ label }}' }\n",
        "written": f"  answer: '{{{{ chapter }}}}'\n  generate: {{ metrics: [exact_match], max_new_tokens: {NEW_TOKENS}, stop: [\"\\n\"] }}\n",
    }[task]
    path = folder / f"{task}.yaml"
    path.write_text(
        f"tasks:\n- name: {task}\n  data: {folder}/test.jsonl\n  chat: false\n  prompt: {json.dumps(QUESTION)}\n"
        f"  few_shot: {{ rows: {SHOTS}, data: {folder}/train.jsonl }}\n{kind}"
    )
    return path


def harness_task(folder, task):
    """Returns a task as a configuration of lm-evaluation-harness."""
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{folder}/test.jsonl", "train": f"{folder}/train.jsonl"}},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": SHOTS,
        "doc_to_text": QUESTION,
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    if task == "choice":
        more = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"}
        return config | more | {"metric_list": [{"metric": "acc", **mean}]}
    more = {"output_type": "generate_until", "doc_to_target": "{{chapter}}"}
    generation = {"until": ["\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    # ft ignores whitespace around an answer.
    strip = [{"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
    return config | more | {"generation_kwargs": generation, "filter_list": strip, "metric_list": [{"metric": "exact_match", **mean}]}


def harness(settings):
    """Runs one task in lm-evaluation-harness and prints its seconds and its results as JSON: the child's part."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(settings["threads"])
    model = HFLM(pretrained=settings["model"], dtype="float32", batch_size=settings["batch"], device=settings["device"])
    began = time.time()
    task = settings["task"]
    found = lm_eval.simple_evaluate(
        model=model, tasks=[harness_task(settings["folder"], task)], log_samples=True, bootstrap_iters=0
    )
    seconds = time.time() - began
    metric = {"choice": "acc", "written": "exact_match"}[task]
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    print("RESULT " + json.dumps({"seconds": seconds, "scores": [float(sample[metric]) for sample in samples]}))


def run(command, environment):
    """Runs a command; returns its output, its seconds and its peak of resident memory in bytes."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.time()
        child = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.time() - began
        out.seek(0), err.seek(0)
        if status:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{err.read()[-3000:]}")
        return out.read(), seconds, usage.ru_maxrss * 1024


def of_ft(args, folder, task):
    """Returns the seconds, the peak memory and the score of each row."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [args.ft, "eval", suite(folder, task), "--model", args.model, "--device", args.device, "--dtype", "f32", "--out", out]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        _, seconds, memory = run(command, environment)
        results = json.loads((Path(out) / "results.json").read_text())["tasks"][0]
    return seconds, memory, [answer["scores"][results["main_metric"]] for answer in results["results"][0]["answers"]]


def of_harness(args, folder, task, batch):
    """Returns the same of lm-evaluation-harness with one size of batches."""
    settings = {"folder": str(folder), "task": task, "model": str(args.model), "threads": args.threads, "batch": batch, "device": args.device}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    out, _, memory = run([sys.executable, __file__, "--harness", json.dumps(settings)], environment)
    found = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT "))[7:])
    return found["seconds"], memory, found["scores"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--harness", help=argparse.SUPPRESS)
    p.add_argument("--ft", default=ROOT / "target/release/ft", type=Path)
    p.add_argument("--model", default=ROOT / "models/smollm2-135m-instruct", type=Path)
    p.add_argument("--data", default=ROOT / "datasets/icd10", type=Path)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rows", type=int, default=48)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="sizes of the harness's batches; its best counts")
    args = p.parse_args()
    if args.harness:
        return harness(json.loads(args.harness))

    print("| task | ft, rows/s | lm-evaluation-harness, rows/s | times as fast | ft, GB | the harness, GB | rows with the same score |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_rows(folder, args.data, args.rows)
        for task in TASKS:
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(of_ft(args, folder, task))
                theirs += [of_harness(args, folder, task, batch) for batch in args.batches]
            best, peer = min(ours), min(theirs)
            same = sum(a == b for a, b in zip(best[2], peer[2], strict=True))
            rows = len(best[2])
            speed = f"{rows / best[0]:.2f} | {rows / peer[0]:.2f} | {peer[0] / best[0]:.1f}"
            print(f"| {task} | {speed} | {best[1] / 1e9:.2f} | {peer[1] / 1e9:.2f} | {same} of {rows} |", flush=True)


if __name__ == "__main__":
    main()
