"What evaluating 106 façades costs beside sampling and the networks that judge."
import os
import tempfile
from pathlib import Path

from torch import Tensor

from semsynth.configs import build_dataset, load_source, shipped_weights, with_dataset
from semsynth.datasets import Resize, SemanticDataset, evaluation_batches
from semsynth.evaluation import Evaluation, Judges, Plan, drawing, find_judges, singly
from semsynth.plots import write_gallery

from .rows import ROOT, Row, best_of

COUNT, RESOLUTION, ROUNDS = 106, (128, 128), 2


def facades() -> tuple[str, SemanticDataset]:
    "The real test split where it is, otherwise as many synthetic ones; and weights that draw it."
    data = Path(os.environ.get("SEMSYNTH_TEST_DATA", ROOT.parent / "shared" / "data")) / "facades"
    name = "spade-facades" if data.is_dir() else "spade"
    config = load_source(name).config
    root = str(data) if data.is_dir() else None
    config = with_dataset(config, root=root)
    if root is None:
        config.data["num_images"] = COUNT
    return name, build_dataset(config, "test")


def judge(judges: Judges, real: Tensor, fake: Tensor) -> None:
    "Every network looks at what it has to look at, and nothing is made of it."
    for image in (real, fake):
        judges.segmenter(image)
        for features in judges.features:
            features(image)
    for distance in judges.distances.values():
        distance(fake, real)


def measure() -> list[Row]:
    "The whole, with its gallery and report, against its two parts."
    name, dataset = facades()
    weights, judges = load_source(shipped_weights()[name]), find_judges(dataset)
    batches = list(evaluation_batches(dataset, Resize(RESOLUTION), batch_size=8))
    draw = drawing(weights.model)

    def whole() -> None:
        evaluation = Evaluation(weights, name, dataset, judges, Plan(RESOLUTION, COUNT))
        with tempfile.TemporaryDirectory() as folder:
            write_gallery(Path(folder), evaluation, name, dataset.label_space)
            evaluation.report()

    def sampling() -> None:
        for batch in batches:
            for number, one in enumerate(singly(batch)):
                draw(one, number)

    def judging() -> None:
        for batch in batches:
            judge(judges, batch.image, batch.image.flip(0))

    everything, drawn, judged = best_of(ROUNDS, whole, sampling, judging)
    share = everything / (drawn + judged)
    return [
        Row(f"sampling {COUNT} images with {name}, 128 px, one at a time", f"{drawn:.1f} s"),
        Row("its judges looking at them and at the photographs", f"{judged:.1f} s"),
        Row("`semsynth evaluate`: reading, scores, gallery, report", f"{everything:.1f} s"),
        Row("evaluation / (sampling + judges)", f"{share:.2f}", "<= 1.3", share <= 1.3),
    ]
