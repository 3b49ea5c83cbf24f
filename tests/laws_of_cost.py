"""Workers of the slow laws, each a process of its own: memory of a training, and weights of one shared by processes.

python laws_of_cost.py memory fit|plain      prints by how many kilobytes the peak rose during the training
python laws_of_cost.py weights FILE          trains one program per modality and writes what was learned
"""

import resource
import sys
from pathlib import Path

import conftest
import numpy as np
import torch

import reprogram as rp
from reprogram.programs import Additive, Prefix, SeriesPad

BATCH, EPOCHS, ROWS = 32, 2, 96


def peak():
    """Kilobytes. Linux' ru_maxrss starts at the size of the process that started this one; VmHWM starts anew."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if own is None else own


def plain(model, images, labels):
    """What one writes by hand: rows encoded once, one batch of program, source and map at a time."""
    records, y = model.encode(images), torch.tensor(labels)
    with torch.no_grad():
        starts = range(0, len(records), BATCH)
        features = torch.cat([model.features(model.collate(records[i : i + BATCH])) for i in starts])
        model.mapping.prepare(features, y)
    descent = torch.optim.Adam([p for _, p in model.trainable()], lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(records), generator=generator).split(BATCH):
            x = model.collate([records[i] for i in rows])
            loss = torch.nn.functional.cross_entropy(model(x), y[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()


def memory(kind):
    import accelerate  # noqa: F401 - what is imported anyway is no cost of a training
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = list((digits.images[:ROWS] / 16).astype(np.float32)), digits.target[:ROWS].tolist()
    source = rp.load("efficientnet-lite0", size=64)
    model = rp.Reprogrammed(Additive(), source, rp.LinearMap(source.width, 10, kind="classification"))
    model(model.collate(model.encode(images[:2]))).sum().backward()  # kernels are loaded by a first pass
    model.zero_grad()
    before = peak()
    if kind == "fit":
        rp.fit(model, {"train": (images, labels)}, epochs=EPOCHS, batch_size=BATCH, progress=False)
    else:
        plain(model, images, labels)
    print(peak() - before)  # noqa: T201


def weights(file):
    def bare(fixture):
        return getattr(fixture, "__wrapped__", None) or fixture.__pytest_wrapped__.obj

    (images, classes), (texts, values) = bare(conftest.pictures)(), bare(conftest.toy)()
    waves = [np.sin(np.arange(20 + i % 5) * (0.3 + 0.2 * (i % 3))) for i in range(48)]
    sound, bert = bare(conftest.sound_source)(), conftest.make_bert_source()
    labels = {"kind": "classification"}
    cases = {
        "image": (Additive(), conftest.make_pixel_source(), rp.LinearMap(8, 3, **labels), images, classes),
        "series": (SeriesPad(), sound, rp.LinearMap(6, 3, **labels), waves, [i % 3 for i in range(48)]),
        "token": (rp.FreeEmbeddings(list("CNOcnF"), split="characters"), bert, rp.LinearMap(16), texts, values),
        "token, every layer": (rp.programs.LowRank(Prefix(), rank=2), bert, rp.LinearMap(16), texts, values),
    }
    learned = {}
    for name, (program, source, mapping, x, y) in cases.items():
        model = rp.Reprogrammed(program, source, mapping)
        cut = len(x) - 11
        data = {"train": (x[:cut], y[:cut]), "validation": (x[cut:], y[cut:])}
        # 11 rows a step: two processes never have the same number of them
        history = rp.fit(model, data, epochs=3, batch_size=11, progress=False)
        learned[name] = dict(model.learned_state()) | {"loss": torch.tensor(history.column("validation_loss"))}
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    torch.save(learned, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"memory": memory, "weights": weights}[sys.argv[1]](sys.argv[2])
