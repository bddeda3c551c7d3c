"""Questions written for the tests, in each format that its benchmark is published in and as Hugging Face exports it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Json = dict[str, Any]

HELLASWAG = [
    {
        "ind": 4,
        "activity_label": "Baking bread",
        "ctx_a": "A woman stands in a kitchen and mixes flour with water.",
        "ctx_b": "then she",
        "ctx": "A woman stands in a kitchen and mixes flour with water. then she",
        "split": "val",
        "split_type": "indomain",
        "label": 2,
        "endings": ["sails to the moon.", "paints  the flour.", "kneads the dough on a table.", "is a dog."],
        "source_id": "activitynet~v_0",
    },
    {
        "ind": 9,
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to water a garden [title] Wait for the evening. [step] The sun burns wet leaves.",
        "ctx_b": "",
        "ctx": "",
        "split": "val",
        "split_type": "zeroshot",
        "label": 0,
        "endings": ["Water the roots [substeps] slowly.", "Café.", "[title] Burn it. [step] Now.", "Leave  the town."],
        "source_id": "wikihow~1",
    },
    {
        "ind": 12,
        "activity_label": "Rowing",
        "ctx_a": "Two men sit in a boat.",
        "ctx_b": "the old MAN",
        "ctx": "Two men sit in a boat. the old MAN",
        "split": "val",
        "split_type": "indomain",
        "label": 3,
        "endings": ["eats the river.", "pulls.", "reads a letter to the fish and sings.", "pulls the oars with both hands."],
        "source_id": "activitynet~v_1",
    },
]
HELLASWAG_EXPORTED = [row | {"label": str(row["label"])} for row in HELLASWAG]

WINOGRANDE = [
    {
        "qID": "A-1",
        "sentence": "The box did not fit the bag because the _ was too small.",
        "option1": "box",
        "option2": "bag",
        "answer": "2",
    },
    {"qID": "A-2", "sentence": "_ lent Jane a coat, for Jane was cold.", "option1": "Mary", "option2": "Jane", "answer": "1"},
    {
        "qID": "A-3",
        "sentence": "Tom gave Bill his old horse and _ rode home on it.",
        "option1": "Bill",
        "option2": "Tom",
        "answer": "1",
    },
]

_SCIENCE = [
    ("Mercury_1", "Which of these gives light of its own?", ("the moon", "the sun", "a mirror", "a stone"), "ABCD", "B"),
    ("NYSED_2_1", "What does a plant take from the soil?", ("water", "light", "wind"), "123", "1"),
    ("Mercury_3", "Ice that is warmed becomes", ("iron.", "water.", "sand.", "a seed."), "ABCD", "B"),
]
ARC = [
    {
        "id": name,
        "question": {"stem": stem, "choices": [{"text": t, "label": at} for t, at in zip(texts, labels, strict=True)]},
        "answerKey": key,
    }
    for name, stem, texts, labels, key in _SCIENCE
]
ARC_EXPORTED = [
    {"id": name, "question": stem, "choices": {"text": list(texts), "label": list(labels)}, "answerKey": key}
    for name, stem, texts, labels, key in _SCIENCE
]
OPENBOOKQA = [row | {"id": f"7-{number}"} for number, row in enumerate(ARC)]
OPENBOOKQA_EXPORTED = [
    {"id": f"7-{number}", "question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}
    for number, row in enumerate(ARC_EXPORTED)
]

PIQA = [
    {"goal": "How do I dry a wet shirt?", "sol1": "Hang it in the sun.", "sol2": "Hang it in the sea."},
    {"goal": "To cut bread", "sol1": "use a spoon", "sol2": "use a knife with teeth"},
    {"goal": "Keep milk fresh", "sol1": "put it on the stove", "sol2": "put it in a cold place"},
]
PIQA_LABELS = [0, 1, 1]
PIQA_EXPORTED = [row | {"label": label} for row, label in zip(PIQA, PIQA_LABELS, strict=True)]

BOOLQ = [
    {
        "question": "is a whale a fish",
        "title": "Whale",
        "answer": False,
        "passage": "Whales live in the sea, breathe air and feed their young with milk. They are no fish.",
    },
    {
        "question": "does the sun rise in the east",
        "title": "Sunrise",
        "answer": True,
        "passage": "Each day the sun comes up in the east and goes down in the west.",
    },
    {"question": "can iron float on water", "title": "Iron", "answer": False, "passage": "Iron sinks in water."},
]
BOOLQ_EXPORTED = [
    {
        "question": row["question"],
        "passage": f"{row['title']} -- {row['passage']}",
        "idx": number,
        "label": int(bool(row["answer"])),
    }
    for number, row in enumerate(BOOLQ)
]

MMLU = {
    "anatomy": [
        ("How many hands has a man? ", "one", "two", "three", "four", "B"),
        ("The heart moves\nwhat?", "blood", 'air, "mostly"', "bone", "hair", "A"),
        ("Which is a bone?", "the eye", "the tongue", "the skull", "the skin", "C"),
    ],
    "world_religions": [
        ("A monk lives in a", "ship", "mill", "mine", "monastery", "D"),
        ("Which is a book?", "the Bible", "the church", "the bell", "the candle", "A"),
    ],
}
MMLU_EXAMPLES = {
    "anatomy": [
        ("What sees?", "the eye", "the ear", "the nose", "the knee", "A"),
        ("What hears?", "a foot", "an ear", "a hand", "a back", "B"),
    ],
    "world_religions": [
        ("Who prays?", "a stone", "a priest", "a tree", "a road", "B"),
        ("Holy is", "Monday", "Tuesday", "Sunday", "Friday", "C"),
    ],
}

PUBLISHED: dict[str, list[Json]] = {
    "hellaswag": HELLASWAG,
    "winogrande": WINOGRANDE,
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "openbookqa": OPENBOOKQA,
    "piqa": PIQA,
    "boolq": BOOLQ,
}
EXPORTED: dict[str, list[Json]] = {
    "hellaswag": HELLASWAG_EXPORTED,
    "winogrande": WINOGRANDE,
    "arc_easy": ARC_EXPORTED,
    "arc_challenge": ARC_EXPORTED,
    "openbookqa": OPENBOOKQA_EXPORTED,
    "piqa": PIQA_EXPORTED,
    "boolq": BOOLQ_EXPORTED,
}


def write_lines(path: Path, rows: Iterable[Json]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_published(folder: Path, name: str) -> Path:
    """The file of a task as its authors publish it, with its labels beside it where they do so."""
    path = write_lines(folder / f"{name}.jsonl", PUBLISHED[name])
    if name == "piqa":
        path.with_name("piqa-labels.lst").write_text("".join(f"{label}\n" for label in PIQA_LABELS))
    return path


def write_mmlu(folder: Path) -> Path:
    """The folder of MMLU: test/SUBJECT_test.csv and dev/SUBJECT_dev.csv."""
    for split, subjects in (("test", MMLU), ("dev", MMLU_EXAMPLES)):
        (folder / split).mkdir(parents=True)
        for subject, rows in subjects.items():
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
    return folder


def exported_mmlu(subject: str, *, examples: bool = False) -> list[Json]:
    rows = (MMLU_EXAMPLES if examples else MMLU)[subject]
    return [
        {"question": asked, "subject": subject, "choices": choices, "answer": "ABCD".index(letter)}
        for asked, *choices, letter in rows
    ]
