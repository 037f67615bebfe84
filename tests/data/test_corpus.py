import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.core.errors import UserError
from minillm.data.corpus import (
    Example,
    ProblemRecord,
    builtin_text_path,
    last_boxed,
    problem_prompt,
    read_examples,
    read_problem_records,
    read_records,
    read_text,
)
from minillm.data.files import resolve_paths

GOOD = {"problem": "1 + 1?", "solution": r"It is \boxed{2}", "answer": "2"}


def _write(path, content):
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def test_builtin_text_is_read_whole_and_in_several_documents():
    documents = list(read_text(builtin_text_path()))
    assert "".join(documents).encode() == builtin_text_path().read_bytes()
    assert len(documents) >= 3
    assert all(d.endswith("\n\n") for d in documents[:-1])


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n\r\t▁é"), min_size=1).filter(lambda t: t.strip()),
    size=st.integers(1, 8),
)
def test_documents_joined_are_the_text_and_no_break_is_inside_a_paragraph(
    tmp_path_factory, text, size
):
    path = _write(tmp_path_factory.mktemp("t") / "a.txt", text)
    documents = list(read_text(path, group_characters=size))
    assert "".join(documents) == text
    for document in documents[:-1]:
        assert len(document) >= size
        assert not document.rsplit("\n", 2)[-2].strip()


def test_records_of_each_kind_become_examples(tmp_path):
    records = [
        {"text": " as it is \n"},
        {**GOOD, "domain": "algebra", "level": 1},
        {"question": "Six times 200?", "answer": "6*200=<<6*200=1200>>1200\n#### 1,200"},
    ]
    listed = _write(tmp_path / "a.json", json.dumps(records))
    lines = _write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(r) for r in records) + "\n")
    wanted = [
        Example("", " as it is \n"),
        Example("Problem: 1 + 1?\nSolution:\n", r"It is \boxed{2}"),
        Example("Problem: Six times 200?\nSolution:\n", "6*200=1200\n\\boxed{1200}"),
    ]
    assert list(read_records(listed)) == list(read_records(lines)) == wanted
    assert list(read_examples(f"{listed},{lines}")) == wanted * 2


def test_a_solution_without_its_answer_boxed_gets_a_line_that_boxes_it(tmp_path):
    path = _write(
        tmp_path / "p.json",
        json.dumps(
            [
                {"problem": "p", "solution": "so 4\n", "answer": 4},
                {"problem": "p", "solution": r"\boxed{\frac{1}{2}}"},
                {**GOOD, "domain": "algebra"},
            ]
        ),
    )
    assert read_problem_records(path) == [
        ProblemRecord("p", "so 4\n\\boxed{4}", "4"),
        ProblemRecord("p", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ProblemRecord("1 + 1?", r"It is \boxed{2}", "2", "algebra"),
    ]
    assert read_problem_records(path)[2].example() == Example(
        problem_prompt("1 + 1?"), r"It is \boxed{2}"
    )


@pytest.mark.parametrize(
    ("boxed", "answer"),
    [
        ("2", "2.0"),
        ("1,200", 1200),
        ("$5$", "5"),
        ("0.5", "1/2"),
        (r"\frac{1}{2}", 0.5),
        ("x=3", "3"),
        (r"50\%", "0.5"),
    ],
)
def test_answer_may_be_written_otherwise_than_in_the_box(tmp_path, boxed, answer):
    record = {"problem": "p", "solution": f"\\boxed{{{boxed}}}", "answer": answer}
    [read] = read_problem_records(_write(tmp_path / "p.json", json.dumps([record])))
    assert read == ProblemRecord("p", record["solution"], str(answer))


def test_empty_box_is_no_box(tmp_path):
    record = {"problem": "p", "solution": r"so \boxed{ }", "answer": "4"}
    [read] = read_problem_records(_write(tmp_path / "p.json", json.dumps([record])))
    assert read.solution == "so \\boxed{ }\n\\boxed{4}"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} then \boxed{x^{2}}", "x^{2}"),
        (r"\boxed{1} then \boxed{x^{2}", "1"),
        ("none", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed_takes_the_last_one_whose_braces_close(text, inside):
    assert last_boxed(text) == inside


BAD = {
    "missing solution": (
        "a.json",
        [GOOD, {"problem": "p", "answer": "1"}],
        ["record 2", "solution"],
    ),
    "missing answer": ("a.json", [{"problem": "p", "solution": "s"}], ["record 1", '"answer"']),
    "problem is a number": ("a.json", [{**GOOD, "problem": 3}], ["record 1", '"problem"', "got 3"]),
    "empty problem": ("a.json", [{**GOOD, "problem": " "}], ["record 1", "not empty"]),
    "answer is null": ("a.json", [{**GOOD, "answer": None}], ['"answer"', "null"]),
    "answer is true": ("a.json", [{**GOOD, "answer": True}], ['"answer"', "true", "number"]),
    "answer is NaN": ("a.json", [{**GOOD, "answer": float("nan")}], ['"answer"', "NaN", "finite"]),
    "answer is not the box": (
        "a.json",
        [GOOD, {**GOOD, "answer": "7"}],
        ["record 2", '"answer"', '"7", where the solution boxes "2"'],
    ),
    "worked answer is not the box": (
        "a.json",
        [{"question": "q", "answer": "\\boxed{1,200.5}\n#### 1,200"}],
        ["record 1", '"1200", where the solution boxes "1,200.5"'],
    ),
    "endless integer": ("a.json", '[{"answer": ' + "9" * 5000 + "}]", ["a.json", "digits"]),
    "endless integer in a line": ("a.jsonl", '{"a": ' + "9" * 5000 + "}", ["line 1", "digits"]),
    "domain of all": ("a.json", [{**GOOD, "domain": "overall"}], ['"domain"', "another name"]),
    "domain is a list": ("a.json", [{**GOOD, "domain": []}], ['"domain"', "list"]),
    "other fields": ("a.json", [{"q": 1}], ["record 1", "['q']", "question"]),
    "no object": ("a.json", [GOOD, GOOD, "x"], ["record 3", '"x"', "object"]),
    "no list": ("a.json", GOOD, ["a.json", "object", "list of records"]),
    "no final answer": ("a.json", [{"question": "q", "answer": "5"}], ["record 1", "####"]),
    "surrogate": ("a.json", [{**GOOD, "problem": "\ud800"}], ["record 1", "surrogate"]),
    "empty list": ("a.json", [], ["a.json", "no records"]),
    "empty json": ("a.json", "", ["a.json", "no records"]),
    "bad json": ("a.json", '[{"a": 1,\n}]', ["a.json", "line 2", "JSON"]),
    "deep json": ("a.json", "[" * 100_000, ["a.json", "JSON"]),
    "bad line": ("a.jsonl", f"{json.dumps(GOOD)}\n\n{{bad\n", ["a.jsonl line 3", "JSON"]),
    "bad record in a line": ("a.jsonl", '\n{"problem": 1}\n', ["a.jsonl line 2", "problem"]),
    "empty lines": ("a.jsonl", "\n\n", ["a.jsonl", "no records"]),
    "latin-1 lines": ("a.jsonl", b'{"text": "\xe9"}', ["a.jsonl line 1", "0xE9", "UTF-8"]),
    "latin-1 list": ("a.json", b'[\n{"text": "\xe9"}]', ["a.json line 2", "UTF-8"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [read_problem_records, lambda p: list(read_examples(p))])
def test_a_bad_record_is_named_with_file_number_field_and_what_was_expected(tmp_path, name, read):
    file, content, words = BAD[name]
    raw = content if isinstance(content, str | bytes) else json.dumps(content)
    path = _write(tmp_path / file, raw)
    with pytest.raises(UserError) as raised:
        read(path)
    message = str(raised.value)
    assert str(path) in message and "wanted" in message and "fix" in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no text"),
        (b" \n\n", "no text"),
        (b"a\nb\xff\n", "line 2"),
        ("ab".encode("utf-16"), "line 1"),
    ],
)
def test_an_empty_or_wrongly_encoded_text_is_refused(tmp_path, content, word):
    with pytest.raises(UserError, match=word):
        list(read_text(_write(tmp_path / "a.txt", content)))


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert list(read_text(_write(tmp_path / "a.txt", b"\xef\xbb\xbfa"))) == ["a"]
    records = read_records(_write(tmp_path / "a.json", b'\xef\xbb\xbf[{"text": "a"}]'))
    assert [e.completion for e in records] == ["a"]


def test_plain_text_records_are_no_problems(tmp_path):
    with pytest.raises(UserError, match=r"record 1.*\['text'\].*question"):
        read_problem_records(_write(tmp_path / "a.json", '[{"text": "a"}]'))
    with pytest.raises(UserError, match="plain text"):
        read_problem_records(_write(tmp_path / "a.txt", "a"))


def test_paths_may_be_lists_commas_patterns_and_folders(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl", "manifest.json", "notes.md", "with,comma.txt"):
        _write(tmp_path / name, "x")

    def names(paths):
        return [p.name for p in resolve_paths(paths)]

    assert names(tmp_path) == ["a.txt", "b.txt", "c.jsonl", "with,comma.txt"]
    assert names(str(tmp_path / "*.txt")) == ["a.txt", "b.txt", "with,comma.txt"]
    assert names(str(tmp_path.parent / f"{tmp_path.name[:-1]}?" / "c.*")) == ["c.jsonl"]
    assert names(f"{tmp_path}/b.txt, {tmp_path}/a.txt") == ["b.txt", "a.txt"]
    assert names([tmp_path / "b.txt", f"{tmp_path}/c.jsonl"]) == ["b.txt", "c.jsonl"]
    assert names(tmp_path / "with,comma.txt") == ["with,comma.txt"]


@pytest.mark.parametrize(
    "path", ["", ",", [], "{}/none.txt", "{}/*.txt", "{}", "{}/a.md", "{}/no/*"]
)
def test_paths_that_lead_nowhere_are_refused(tmp_path, path):
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(UserError, match="data path"):
        resolve_paths(path.format(tmp_path) if isinstance(path, str) else path)
