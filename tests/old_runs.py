"""Folders of a run, an export and a study as commit 918002b wrote them: its own texts, and seeded numbers.

``python tests/old_runs.py FOLDER`` writes them into FOLDER. This uses nothing of the project, whose format may change.
``old_run_texts/answers.json`` has what 918002b itself made of them.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

TEXTS = Path(__file__).parent / "old_run_texts"


def text(name):
    return (TEXTS / name).read_text()


def tensors(name, seed):
    """Numbers by name, of the shapes that a text lists: small ones, or squares of them for Adam's second moments."""
    generator = torch.Generator().manual_seed(seed)
    numbers = {}
    for key, (_, *shape) in json.loads(text(name)).items():
        value = 0.1 * torch.randn(shape, generator=generator)
        if key.endswith(".step"):
            value = torch.tensor(8.0 if ".pretrain." in key else 4.0)
        numbers[key] = value.square() if key.endswith("exp_avg_sq") else value
    return numbers


def write_checkpoint(folder, seed):
    """Step 4, with random states as after seeding."""
    folder.mkdir(parents=True)
    save_file(tensors("weights.json", seed), folder / "weights.safetensors")
    words = np.random.RandomState(seed).get_state()[1].astype(np.int64)
    states = {"state.random.cpu": torch.Generator().manual_seed(seed).get_state()}
    states["state.random.numpy.1"] = torch.from_numpy(words)
    save_file(tensors("state_tensors.json", seed) | states, folder / "state.safetensors")
    version, internal, gauss = random.Random(seed).getstate()
    numpy_state = ["MT19937", {"array": "state.random.numpy.1", "dtype": "<u4"}, 624, 0, 0.0]
    streams = [
        ["cpu", {"tensor": "state.random.cpu"}],
        ["cuda", {"tuple": []}],
        ["numpy", {"tuple": numpy_state}],
        ["python", {"tuple": [version, {"tuple": list(internal)}, gauss]}],
    ]
    state = json.loads(text("state.json"))
    state["dict"] = [[key, {"dict": streams} if key == "random" else value] for key, value in state["dict"]]
    (folder / "state.json").write_text(json.dumps(state))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    (folder / "digests.json").write_text(json.dumps(digests))


def write_run(folder, policy="sampled", seed=0):
    """A guided autoencoder after 4 of 6 steps."""
    write_checkpoint(folder / "checkpoint" / "step-4", seed)
    config = text("config.yaml").replace("policy: sampled", f"policy: {policy}").replace("\nseed: 0", f"\nseed: {seed}")
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text(text("metrics.jsonl"))


def write_export(folder):
    folder.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text(text(f"export_{name}"))
    save_file(tensors("export_model.json", 1), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors("export_reference.json", 2), folder / "reference.safetensors")


def write_study(folder):
    """Two seeds of random and of guided masks, all of them trained; the report is not written yet."""
    for policy in ("random", "sampled"):
        for seed in (0, 1):
            run = folder / "runs" / f"{policy}-seed{seed}"
            write_run(run, policy, seed)
            (run / "summary.json").write_text(text(f"{run.name}.json"))
    (folder / "study.yaml").write_text(text("study.yaml"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_run(target / "run")
    write_export(target / "export")
    write_study(target / "study")
