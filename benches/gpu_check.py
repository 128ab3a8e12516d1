"""Checks and measures ft on a machine with an NVIDIA GPU, in one run of at most twelve minutes.

The machine needs an NVIDIA driver, Python 3 and a libtorch or PyTorch 2.11 with CUDA. If its Python has PyTorch,
transformers and PEFT, LoRA is also measured with them. `make gpu-check` packs ft and its tests on a machine with the
build tools and runs this; on another machine, `python3 benches/gpu_check.py` in a copy of the repository runs the pack.

Every stage is a process of its own with a limit of time; one that fails or hangs does not stop the others. The most
valuable stages come first, and what no longer fits into the budget is skipped. After each stage, results.json and
summary.md in --out are complete for what was run so far. docs/gpu.md explains the stages.
"""

import argparse
import functools
import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import memory
import processors
import random_model
import speed
from gpu_report import SIDES, middle, size, summary

ROOT = speed.ROOT
PEERS = ("torch", "transformers", "peft", "accelerate")
LEAST = 5  # seconds under which no stage is begun

# What is measured on a GPU: (shape, rows a step, tokens a row) of LoRA, steps of a run, turns of each side, how many of
# the shapes are profiled, cases of the memory table, and the modules whose tests run (None: all that use a device).
GPU = dict(
    model="SmolLM2-135M",
    lora=[("SmolLM2-135M", 8, 1024), ("TinyLlama-1.1B", 4, 2048), ("Llama-2-7B", 2, 2048)],
    steps=12,
    decoded=128,
    turns=2,
    profiled=2,
    memory=12,
    tests=None,
)
# The same stages on the stand-in for a GPU (tests/fake_cuda), which computes on the CPU: shows that they run.
FAKE = dict(
    model="tiny", lora=[("tiny", 2, 64)], steps=4, decoded=8, turns=1, profiled=1, memory=1, tests=["ropes::", "trajectories::"]
)


class Failed(Exception):
    """A stage found something wrong; the text is for the summary."""


class Skipped(Exception):
    """A stage cannot run here; the text says why."""


class Check:
    """One run of a stage: the settings, and the result so far."""

    def __init__(self, args, name):
        self.args, self.name = args, name
        self.sizes = FAKE if args.fake else GPU
        self.work = Path(args.work)
        self.result = {}

    def save(self, **more):
        """Adds to the stage's result, which is kept if the stage is stopped."""
        self.result |= more
        partial = self.work / f"{self.name}.partial"
        partial.write_text(json.dumps(self.result, indent=1, default=str))
        os.replace(partial, self.work / f"{self.name}.json")

    def ft(self, *arguments, env=None):
        """Runs ft, whose messages go to the log. Returns its exit code and stdout."""
        print("+ ft", *arguments, flush=True)
        done = subprocess.run([self.args.ft, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=env)
        return done.returncode, done.stdout

    def model(self, shape):
        return random_model.make(shape, self.work / "models" / shape)

    def rows(self, name, lengths):
        """Writes rows of these lengths for ft (text) and for the peers (token ids). Returns both paths."""
        texts, ids = self.work / f"{name}.jsonl", self.work / f"{name}-ids.jsonl"
        made = random_model.rows(lengths)
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in made))
        ids.write_text("".join(json.dumps(row) + "\n" for _, row in made))
        return texts, ids

    @functools.cached_property
    def doctor(self):
        """The report of ft doctor: that of the first stage, if it ran."""
        earlier = self.work / "doctor.json"
        if self.name != "doctor" and earlier.exists() and "report" in (found := json.loads(earlier.read_text())):
            return found["report"]
        code, out = self.ft("doctor", "--json")
        if not out.strip():
            raise Failed(f"ft doctor ended with exit code {code} and no report")
        return json.loads(out)

    def rate(self):
        """Returns the current operations per second of bf16 products on the device."""
        report = json.loads(self.ft("doctor", "--json")[1])
        rates = report["gpu_gflops"] if self.args.device.startswith("cuda") else [report["cpu_gflops"]]
        return rates[int(self.args.device.partition(":")[2] or 0)]["bf16"] * 1e9

    def run_tests(self, filters, *more):
        """Runs tests of the carried binary on the device; their output goes to the log as well. Returns the output."""
        libtorch = Path(self.doctor["libtorch"]["folder"])
        env = os.environ | {
            "LD_LIBRARY_PATH": f"{libtorch / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "FT_TEST_DEVICE": self.args.device,
            "FT_TEST_ROOT": str(ROOT),
            "FT_TEST_FT": str(self.args.ft),
            "FT_TEST_SKIPPED": str(self.work / "skipped"),
            "OMP_NUM_THREADS": "1",
        }
        threads = min(8, os.cpu_count())
        command = [self.args.tests, *filters, f"--test-threads={threads}", *more]
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        text = ""
        for line in child.stdout:
            print(line, end="", flush=True)
            text += line
            if line.startswith("test "):
                self.save(**counts(text))
        child.wait()
        self.save(**counts(text))
        return text


def counts(text):
    """Counts the results of tests in the output of their binary, which may be cut off."""
    ends = re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (?:.*?)(ok|FAILED|ignored)", text, re.M)
    # A test that prints has its verdict on a line of its own; the binary's total counts it.
    total = re.search(r"^test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored", text, re.M)
    failed = re.findall(
        r"^    (\S+::\S+)$", text.partition("\nfailures:\n\nfailures:")[2] or text.rpartition("\nfailures:\n")[2], re.M
    )
    failed = failed or [name for name, verdict in ends if verdict == "FAILED"]
    passed = int(total[1]) if total else sum(verdict == "ok" for _, verdict in ends)
    return {"passed": passed, "failed": sorted(set(failed)), "complete": bool(total)}


# ---- the stages; each returns one line for the summary


def doctor(check):
    report = check.doctor
    check.save(report=report)
    try:
        said = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        check.save(nvidia_smi=said)
    except FileNotFoundError:
        check.save(nvidia_smi=None)
    own = ("cuda", check.args.device, f"training on {check.args.device}")
    found = [f"{c['name']}: {c['found']}" for c in report["checks"] if c["name"] in own]
    if not report["cuda_usable"] and check.args.device.startswith("cuda"):
        raise Failed("; ".join(found))
    return f"libtorch {report['libtorch']['version']}; {'; '.join(found)}"


def flash(check):
    text = check.run_tests(["nn::attention::"], "--nocapture")
    compared = re.findall(
        r"attention (\w+) (\S+) heads of (\d+), \[(.*?)\]: output (\S+), gradients of q, k, v (\S+), (\S+), (\S+)", text
    )
    keys = ("dtype", "heads", "head size", "segments", "output", "q", "k", "v")
    check.save(compared=[dict(zip(keys, row)) for row in sorted(compared, key=lambda row: row[0])])
    found = counts(text)
    if found["failed"] or not compared or not found["complete"]:
        raise Failed(f"{len(found['failed'])} of the comparisons failed: {', '.join(found['failed']) or 'see the log'}")
    bf16 = [row for row in compared if row[0] == "bf16"]
    worst = lambda columns: max(float(row[i]) for row in bf16 for i in columns)
    found = f"output {worst([4]):.1e} (limit 3.9e-03), gradients {worst([5, 6, 7]):.1e} (limit 7.8e-03)"
    return f"largest gap of {len(bf16)} shapes in bf16: {found}"


def selftest(check):
    model = check.model(check.sizes["model"])
    code, out = check.ft("selftest", "--model", model, "--device", check.args.device, "--json")
    if not out.strip():
        raise Failed(f"ft selftest ended with exit code {code} and no report; see the log")
    report = json.loads(out.splitlines()[-1])
    check.save(report=report)
    failed = [f"{c['name']} ({c['dtype']})" for c in report["checks"] if c["verdict"] == "failed"]
    if failed or code != 0:
        raise Failed(f"{report['failed']} of {len(report['checks'])} checks failed: {', '.join(failed)}")
    return f"{report['passed']} passed, {report['skipped']} skipped, {report['dtype']}"


def operations(model, length):
    """Returns the operations that a LoRA step needs per token, with every token trained on and rows of `length` tokens:
    products with the base forward and for the input's gradient, all three of the adapters, causal attention forward and
    (twice that) backward. What a program computes again does not count."""
    config = json.loads((model / "config.json").read_text())
    attention = 6 * length * config["hidden_size"] * config["num_hidden_layers"]
    return processors.Shape.read(model).training(1, (length - 1) / length) + attention


def lora(check, shape, batch, length):
    args, steps = check.args, check.sizes["steps"]
    free = shutil.disk_usage(check.work).free
    if free < 1.2 * random_model.bytes_of(shape):
        needed = random_model.bytes_of(shape)
        raise Skipped(f"the model needs {needed / 1e9:.0f} GB, but {check.work} has {free / 1e9:.0f} GB free")
    model = check.model(shape)
    texts, ids = check.rows(f"{check.name}-rows", [length] * batch * steps)
    case = dict(name=shape, method="lora", batch=batch, packed=length, steps=steps, lr=5e-4, dtype="bf16")
    settings = argparse.Namespace(
        ft=args.ft, python=sys.executable, model=model, device=args.device, threads=os.cpu_count()
    )
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if args.fake and args.device != "cpu":
        without = "the stand-in for a GPU is no device for Python"
    else:
        without = f"this Python lacks {', '.join(missing)}" if missing else None
    sides = {"ft": lambda out: speed.run_ft(settings, case, texts, out)}
    # On larger shapes the host is far ahead of the GPU anyway.
    small = [name for name, *_ in check.sizes["lora"][: check.sizes["profiled"]]]
    if args.device.startswith("cuda") and shape in small:
        graphs = case | {"run": ", cuda_graphs: true"}
        sides["graphs"] = lambda out: speed.run_ft(settings, graphs, texts, out)
    if not without:
        sides["peer"] = lambda out: run_peer(settings, case, ids, out)
    per_token, turns, failures = operations(model, length), [], {}
    check.save(
        shape=shape,
        rows=batch,
        length=length,
        operations_per_token=per_token,
        without_peers=without,
        turns=turns,
        failures=failures,
    )
    for turn in range(check.sizes["turns"]):
        for side, run in sides.items():
            if side in failures:
                continue
            rate = check.rate()
            try:
                found = run(check.work / f"{check.name}-{side}-{turn}")
            except SystemExit as e:
                failures[side] = str(e)[-1500:]
                print(failures[side], flush=True)
                check.save()
                continue
            tokens, _ = speed.rates(found["steps"])
            seen = {step["tokens"] for step in found["steps"]}
            if seen != {batch * length}:
                failures[side] = f"steps of {sorted(seen)} tokens instead of {batch * length}"
            turns.append(
                dict(
                    side=side,
                    tokens_per_s=tokens,
                    memory=found["memory"],
                    mfu=per_token * tokens / rate,
                    rate=rate,
                    first=found["first"],
                    losses=[step["loss"] for step in found["steps"]],
                    seconds=[step["seconds"] for step in found["steps"]],
                )
            )
            check.save()
            print(
                f"{shape} {side}: {tokens:.0f} tokens/s, {size(found['memory'])}, {per_token * tokens / rate:.1%} of "
                f"{rate / 1e12:.2f} TFLOP/s, loss {turns[-1]['losses'][0]:.4f} -> {turns[-1]['losses'][-1]:.4f}",
                flush=True,
            )
    if "ft" in failures:
        raise Failed(f"ft: {cause(failures['ft'])}")
    own = middle(turns, "ft", "tokens_per_s")
    said = f"ft {own:,.0f} tokens/s, {size(middle(turns, 'ft', 'memory'))}, MFU {middle(turns, 'ft', 'mfu'):.1%}"
    if "graphs" in failures:
        said += f"; with CUDA graphs it failed: {cause(failures['graphs'])}"
    elif "graphs" in sides:
        check_equal_losses(turns, "graphs")
        said += f"; with CUDA graphs {middle(turns, 'graphs', 'tokens_per_s'):,.0f} tokens/s"
    if without:
        return f"{said}; without peers: {without}"
    if "peer" in failures:
        return f"{said}; transformers + PEFT failed: {cause(failures['peer'])}"
    check_equal_losses(turns, "peer")
    theirs = middle(turns, "peer", "tokens_per_s")
    return f"{said}; transformers + PEFT {theirs:,.0f} tokens/s, {size(middle(turns, 'peer', 'memory'))}"


def cause(text):
    """Returns the line of a program's messages that says why it failed."""
    lines = text.strip().splitlines() or ["it ended"]
    return next((line for line in reversed(lines) if re.match(r"error: |\w*(\.\w+)*Error: ", line)), lines[-1])


def check_equal_losses(turns, other):
    """Fails if the first losses of ft and another side differ by more than bfloat16 explains: then the two did not train the
    same model on the same rows. A mean over thousands of tokens is far more exact than one bfloat16 number (2^-9)."""
    first = {turn["side"]: turn["losses"][0] for turn in turns}
    if abs(first["ft"] - first[other]) > 2**-9 * abs(first[other]):
        raise Failed(f"the first losses differ: ft {first['ft']:.4f}, {SIDES[other]} {first[other]:.4f}")


def decode(check):
    """Decodes greedily, with every step launched by its operations and with recorded steps, which must give the same answers."""
    if not check.args.device.startswith("cuda"):
        raise Skipped("only a GPU records its steps")
    model, new = check.model(check.sizes["model"]), check.sizes["decoded"]
    lines = []
    for rows in (1, 16):
        prompts = check.work / f"decode-{rows}.jsonl"
        made = random_model.rows([24 + i for i in range(rows)])
        prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text, _ in made))
        found, answers = {"rows": rows}, {}
        for side, more in (("plain", []), ("graphs", ["--cuda-graphs"])):
            timings, out = (check.work / f"decode-{rows}-{side}{end}" for end in (".timings", ".jsonl"))
            out.unlink(missing_ok=True)
            command = ["generate", "--model", model, "--input", prompts, "--out", out, "--timings", timings, "--greedy"]
            command += ["--max-new-tokens", str(new), "--min-new-tokens", str(new), "--dtype", "bf16"]
            code, _ = check.ft(*command, "--device", check.args.device, *more)
            if code != 0:
                raise Failed(f"ft generate {' '.join(more)} ended with exit code {code}; see the log")
            passes = [json.loads(line) for line in timings.read_text().splitlines()]
            found[side] = statistics.median(p["seconds"] for p in passes if p["kind"] != "prompt")
            answers[side] = out.read_text()
        found["equal"] = answers["plain"] == answers["graphs"]
        lines.append(found)
        check.save(decoded=lines)
    if not all(found["equal"] for found in lines):
        raise Failed("recorded steps give other answers than plain ones")
    said = (f"{f['rows']} rows {1e3 * f['plain']:.2f} ms, with CUDA graphs {1e3 * f['graphs']:.2f} ms" for f in lines)
    return f"a step of {'; '.join(said)}"


def run_peer(args, case, ids, out):
    """Runs benches/gpu_peer.py; the result is like that of speed.run_ft."""
    settings = dict(
        model=str(args.model),
        ids=str(ids),
        out=str(out),
        device=args.device,
        threads=args.threads,
        **{key: case[key] for key in ("batch", "steps", "lr")},
    )
    steps, end = [], {}

    def on_line(line):
        if line.startswith("STEP "):
            steps.append(json.loads(line[5:]))
        elif line.startswith("END "):
            end.update(json.loads(line[4:]))

    env = speed.peer_environment(args.threads, os.environ)
    if args.device != "cpu":
        # Otherwise Trainer would share the rows out to all GPUs.
        env = {"CUDA_VISIBLE_DEVICES": args.device.partition(":")[2] or "0"} | env
    command = [args.python, speed.HERE / "gpu_peer.py", json.dumps(settings)]
    seconds, resident = speed.measured(command, env, on_line)
    return dict(steps=steps, wall=seconds, memory=end.get("gpu_peak", resident), first=steps[0]["since_start"])


def profile(check):
    said = []
    for shape, batch, length in check.sizes["lora"][: check.sizes["profiled"]]:
        model = check.model(shape)
        texts, _ = check.rows("profile-rows", [length] * batch * 5)
        recipe, out, trace = (check.work / f"profile-{shape}{end}" for end in (".yaml", "", ".json"))
        recipe.write_text(
            f"model: {{ path: {model}, dtype: bf16, device: {check.args.device} }}\n"
            f"method: {{ sft: {{}} }}\n{memory.LORA}"
            f"data: {{ train: {{ path: {texts} }}, shuffle: false }}\n"
            f"batch: {{ tokens: {batch * length}, max_len: {length} }}\n"
            f"optim: {{ lr: 5e-4 }}\nrun: {{ steps: 5, samples: 0, out: {out} }}\n"
        )
        counters = check.work / f"counters-{shape}.json"
        counters.unlink(missing_ok=True)
        env = (
            os.environ | {"FAKE_CUDA_TRACE": str(counters), "FAKE_CUDA_MARK": "aten::_fused_adamw_"}
            if check.args.fake
            else None
        )
        code, _ = check.ft("train", recipe, "--overwrite", "--profile", trace, env=env)
        if code != 0:
            raise Failed(f"ft train --profile ended with exit code {code}; see the log")
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [step["seconds"] for step in steps if "loss" in step and "tokens" in step]
        found = summarise(json.loads(trace.read_text())["traceEvents"], statistics.median(steps[3:]))
        with open(trace, "rb") as f, gzip.open(Path(check.args.out) / f"profile-{shape}.json.gz", "wb") as to:
            shutil.copyfileobj(f, to)
        if check.args.fake:
            # The profiler sees no kernels of the stand-in, which counts itself what happens from one update of the
            # weights to the next. The last step is not recorded, so the profiler's own waits do not count.
            last = json.loads(counters.read_text().splitlines()[-1])["marks"][-1]
            copies = last["uploads"] + last["downloads"]
            found |= {"launches": last["launches"], "waits": last["waits"], "copies": copies}
        check.save(shapes=check.result.get("shapes", {}) | {shape: found})
        said.append(
            f"{shape}: {found['launches']} launches and {found['waits']} waits a step"
            + (f", {found['idle']:.0%} idle" if found["idle"] is not None else "")
            + (f" (top: {found['kernels'][0]['name'][:60]})" if found["kernels"] else "")
        )
        if not found["launches"]:
            raise Failed("the trace has no kernel: libtorch's profiler could not reach the GPU (CUPTI); see the log")
    return "; ".join(said)


def summarise(events, step_seconds):
    """Returns launches, waits, the time that the GPU is busy and the kernels that take most of it, of a trace of one
    step. Recording slows the host down but hardly the GPU, so the idle share is that of a step of `step_seconds` which
    was not recorded."""
    spans = [event for event in events if event.get("ph") == "X"]
    of = lambda *kinds: [span for span in spans if span.get("cat") in kinds]
    kernels, on_gpu = of("kernel"), of("kernel", "gpu_memcpy", "gpu_memset")
    blocking = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    waits = [span for span in of("cuda_runtime", "cuda_driver") if span["name"] in blocking]
    busy, end = 0.0, float("-inf")
    for start, stop in sorted((span["ts"], span["ts"] + span["dur"]) for span in on_gpu):
        busy, end = busy + max(0.0, stop - max(start, end)), max(end, stop)
    by_name = {}
    for span in kernels:
        count, time_taken = by_name.get(span["name"], (0, 0.0))
        by_name[span["name"]] = (count + 1, time_taken + span["dur"])
    top = sorted(by_name.items(), key=lambda item: -item[1][1])[:15]
    copies = [span for span in of("gpu_memcpy")]
    return {
        "launches": len(kernels),
        "waits": len(waits),
        "copies": len(copies),
        "operations": len(of("cpu_op")),
        "busy_seconds": busy / 1e6,
        "step_seconds": step_seconds,
        "idle": max(0.0, 1 - busy / 1e6 / step_seconds) if on_gpu else None,
        "kernels": [{"name": name, "count": count, "seconds": taken / 1e6} for name, (count, taken) in top],
    }


def modules():
    """Returns the modules of tests/it that compute on the device under test, as setup/test.sh names them."""
    return re.search(r"^ON_DEVICE=\((.*?)\)", (ROOT / "setup/test.sh").read_text(), re.M | re.S)[1].split()


def tests(check):
    found = counts(check.run_tests(check.sizes["tests"] or modules()))
    if found["failed"] or not found["complete"]:
        raise Failed(
            f"{found['passed']} passed, {len(found['failed'])} failed: {', '.join(found['failed']) or 'see the log'}"
        )
    return f"{found['passed']} passed"


def memory_table(check):
    model = check.model(check.sizes["model"])
    rows, _ = check.rows("memory-rows", [40 + (i * 37) % 61 for i in range(96)])
    lines = []
    for case in memory.cases(model)[: check.sizes["memory"]]:
        lines.append(memory.measure(check.args.ft, model, rows, check.args.device, case))
        print(memory.line(lines[-1]), flush=True)
        check.save(lines=lines)
    ratios = [line["predicted"] / line["measured"] for line in lines]
    return f"predicted / measured: {min(ratios):.2f} to {max(ratios):.2f} in {len(lines)} cases"


def stages(sizes):
    """Returns (name, function, limit in seconds) of every stage, the most valuable first: is anything computed at all,
    is it right, how fast is it, and then everything that takes longer."""
    limits = {"SmolLM2-135M": 110, "TinyLlama-1.1B": 130, "Llama-2-7B": 220}
    measured = [
        (
            f"lora-{case[0]}",
            functools.partial(lora, shape=case[0], batch=case[1], length=case[2]),
            limits.get(case[0], 120),
        )
        for case in sizes["lora"]
    ]
    return [
        ("doctor", doctor, 60),
        ("flash", flash, 60),
        ("selftest", selftest, 90),
        *measured,
        ("decode", decode, 60),
        ("profile", profile, 60),
        ("tests", tests, 180),
        ("memory", memory_table, 150),
    ]


# ---- running them


def run_stage(args):
    """Runs one stage in this process and leaves its result in the work folder."""
    check = Check(args, args.run)
    act = next(act for name, act, _ in stages(check.sizes) if name == args.run)
    try:
        check.save(status="ok", found=act(check))
    except (Failed, Skipped) as e:
        check.save(status=type(e).__name__.lower(), found=str(e))
    except SystemExit as e:
        check.save(status="failed", found=cause(str(e)))


def supervise(args, name, limit, log):
    """Runs a stage in a process group of its own, which is killed at the limit. Returns its result."""
    command = [sys.executable, "-u", __file__, "--run", name, *forwarded(args)]
    result, began = Path(args.work) / f"{name}.json", time.time()
    result.unlink(missing_ok=True)
    child = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        child.wait(limit)
        over = None if child.returncode == 0 else f"ended with exit code {child.returncode}; see the log"
    except subprocess.TimeoutExpired:
        over = f"stopped after {limit:.0f} s"
    finally:
        # Also what the stage itself left running.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    found = json.loads(result.read_text()) if result.exists() else {}
    if over:
        found |= {"status": "failed", "found": over}
    return found | {"seconds": round(time.time() - began, 1)}


def forwarded(args):
    given = ["--ft", args.ft, "--tests", args.tests, "--out", args.out, "--work", args.work, "--device", args.device]
    return [*map(str, given), *(["--fake"] if args.fake else [])]


def unpack(args):
    """Takes ft and its tests from the pack, unless both were given."""
    if bool(args.ft) != bool(args.tests):
        sys.exit("error: --ft and --tests belong together: the tests start that ft")
    if args.ft and args.tests:
        args.ft, args.tests = Path(args.ft).resolve(), Path(args.tests).resolve()
        return
    if not args.pack.is_file():
        sys.exit(f"error: {args.pack} is missing\nhint: `make gpu-pack` makes it, on a machine with the build tools")
    with tarfile.open(args.pack) as packed:
        packed.extractall(args.work, filter="data")
    args.ft, args.tests = Path(args.work) / "ft", Path(args.work) / "tests"


def write(results, out):
    """Writes results.json and summary.md so that they are complete at any time."""
    for name, content in (("results.json", json.dumps(results, indent=1)), ("summary.md", summary(results))):
        partial = out / f".{name}"
        partial.write_text(content)
        os.replace(partial, out / name)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--out",
        default=Path("runs/gpu-check"),
        type=Path,
        help="folder for log.txt, results.json, summary.md and profiles",
    )
    p.add_argument("--pack", default=ROOT / "target/dist/gpu-check.tar.xz", type=Path, help="what `make gpu-pack` made")
    p.add_argument("--ft", help="with --tests: use this ft instead of the packed one")
    p.add_argument("--tests", help="the test binary of the same build")
    p.add_argument("--device", default="cuda:0", help="cuda:N; cpu only tests this program")
    p.add_argument(
        "--budget", default=690, type=float, help="seconds for everything; stages that no longer fit are skipped"
    )
    p.add_argument("--stages", help="only these stages, separated by commas")
    p.add_argument("--fake", action="store_true", help="the device is the stand-in of tests/fake_cuda: tiny models")
    p.add_argument("--work", help="an existing folder for models and runs [default: a temporary one]")
    p.add_argument("--run", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.run:
        return run_stage(args)

    began = time.time()
    chosen = stages(FAKE if args.fake else GPU)
    names = [name for name, _, _ in chosen]
    wanted = args.stages.split(",") if args.stages else names
    if unknown := set(wanted) - set(names):
        sys.exit(f"error: --stages {', '.join(sorted(unknown))}: the stages are {', '.join(names)}")
    # A signal ends the run like an error does, so that the stage in progress is killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by a signal"))
    with tempfile.TemporaryDirectory(prefix="ft-gpu-check-") as temporary:
        args.work = str(Path(args.work or temporary).resolve())
        args.out = args.out.resolve()
        args.out.mkdir(parents=True, exist_ok=True)
        unpack(args)
        results = {
            "date": time.strftime("%Y-%m-%d"),
            "device": args.device,
            "fake": args.fake,
            "budget": args.budget,
            "stages": {},
        }
        with open(args.out / "log.txt", "w") as log:
            for name, _, limit in chosen:
                if name not in wanted:
                    continue
                print(f"\n==== {name}", file=log, flush=True)
                left = args.budget - (time.time() - began)
                if left < LEAST:
                    found = {"status": "skipped", "found": f"{max(0, left):.0f} s of the budget are left"}
                else:
                    found = supervise(args, name, min(limit, left), log)
                results["stages"][name] = found
                write(results, args.out)
                print(f"{name:20} {found['status']:8} {found.get('seconds', 0):6.1f} s  {found['found']}", flush=True)
    failed = [name for name, s in results["stages"].items() if s["status"] == "failed"]
    said = f"{len(failed)} of {len(results['stages'])} stages failed, {time.time() - began:.0f} s in all"
    print(f"{args.out / 'summary.md'}: {said}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
