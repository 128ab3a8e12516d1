"""Writes the results of benches/gpu_check.py as Markdown. Standard library only."""

import statistics

import memory

FAKE = """\
The device is a stand-in on the CPU (tests/fake_cuda) and the models are tiny: these numbers say that the stages run,
nothing about a GPU."""

LORA = """\
LoRA of rank 16 on all linear layers, bf16, every token trained on, no layer recomputed. MFU: operations needed per
second, to the rate of bf16 products measured just before.

| shape | tokens a step | side | tokens/s | peak | MFU | products, TFLOP/s | first step after | loss, first and last |
|---|---|---|---|---|---|---|---|---|"""

ATTENTION = """\
Attention against the formula in float64, norm of the difference over the norm:

| format | heads | head size | segments | output | gradient of q | k | v |
|---|---|---|---|---|---|---|---|"""

PROFILE = """\
One step of LoRA. Idle is the share of a step, not recorded, in which neither a kernel nor a copy ran.

| shape | launches | waits | copies | GPU busy | step | idle |
|---|---|---|---|---|---|---|"""

KERNELS = """\
The kernels that take most of a step:

| shape | kernel | launches | ms |
|---|---|---|---|"""

MOST_KERNELS = 8  # of each shape in the table; results.json has more

DECODE = """\
Greedy decoding, milliseconds a step (every row gets one token), the median of an answer:

| rows | operation by operation | with CUDA graphs | same answers |
|---|---|---|---|"""

SIDES = {"ft": "ft", "graphs": "ft with CUDA graphs", "peer": "transformers + PEFT"}


def size(count):
    """Formats a number of bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def middle(turns, side, key):
    """Returns the median over the turns of a side."""
    return statistics.median(turn[key] for turn in turns if turn["side"] == side)


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def device(report, date):
    """Describes the machine, from the report of ft doctor."""
    gpus = "; ".join(c["found"] for c in report["checks"] if c["name"].startswith("cuda:"))
    return f"{gpus or 'no GPU'}; libtorch {report['libtorch']['version']}; ft {report['ft']}; {date}."


def lora_rows(stage):
    """Returns the lines of one shape: one for each side that ran."""
    lines = []
    for side, title in SIDES.items():
        own = [turn for turn in stage["turns"] if turn["side"] == side]
        if own:
            rates, losses = [turn["rate"] / 1e12 for turn in own], own[0]["losses"]
            lines.append(row(
                stage["shape"], f"{stage['rows']} x {stage['length']:,}", title,
                f"{middle(own, side, 'tokens_per_s'):,.0f}", size(middle(own, side, "memory")),
                f"{middle(own, side, 'mfu'):.1%}", f"{min(rates):.3g} to {max(rates):.3g}",
                f"{middle(own, side, 'first'):.1f} s", f"{losses[0]:.3f}, {losses[-1]:.3f}",
            ))
    return lines


def milliseconds(seconds):
    return f"{1e3 * seconds:.2f} ms"


def profile_row(shape, found):
    busy, idle = ("", "") if found["idle"] is None else (milliseconds(found["busy_seconds"]), f"{found['idle']:.0%}")
    counted = (found["launches"], found["waits"], found["copies"])
    return row(shape, *counted, busy, milliseconds(found["step_seconds"]), idle)


def kernel_rows(shape, found):
    kernels = found["kernels"][:MOST_KERNELS]
    return [row(shape, k["name"].replace("|", "/"), k["count"], f"{1e3 * k['seconds']:.2f}") for k in kernels]


def summary(results):
    """Returns all results: a line for each stage, then the tables of those that have one."""
    stages = results["stages"]
    parts = ["# GPU check"]
    if report := stages.get("doctor", {}).get("report"):
        parts.append(device(report, results["date"]))
    if results["fake"]:
        parts.append(FAKE)
    lines = [row(n, s["status"], round(s.get("seconds", 0)), s["found"].replace("|", "/")) for n, s in stages.items()]
    parts.append("\n".join(["| stage | | seconds | found |", "|---|---|---|---|", *lines]))
    if lines := [line for stage in stages.values() if stage.get("turns") for line in lora_rows(stage)]:
        parts.append("\n".join([LORA, *lines]))
    if decoded := stages.get("decode", {}).get("decoded"):
        lines = [row(f["rows"], milliseconds(f["plain"]), milliseconds(f["graphs"]), "yes" if f["equal"] else "no") for f in decoded]
        parts.append("\n".join([DECODE, *lines]))
    if compared := stages.get("flash", {}).get("compared"):
        parts.append("\n".join([ATTENTION, *(row(*found.values()) for found in compared)]))
    if shapes := stages.get("profile", {}).get("shapes"):
        parts.append("\n".join([PROFILE, *(profile_row(*item) for item in shapes.items())]))
        if lines := [line for item in shapes.items() for line in kernel_rows(*item)]:
            parts.append("\n".join([KERNELS, *lines]))
    if lines := stages.get("memory", {}).get("lines"):
        parts.append("\n".join([memory.HEAD, *map(memory.line, lines)]))
    return "\n\n".join(parts) + "\n"
