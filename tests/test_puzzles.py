"""Tests of runtime/puzzles.py: the tasks that are not mathematics."""
import json

import pytest

from verify import is_correct


def box(text):
    return f"So the answer is $\\boxed{{{text}}}$."


@pytest.mark.parametrize("response, answer, expected", [
    ("3 * 12 = 36 36 + 7 = 43", "43 = 3 7 12", True),
    ("7 - 3 = 4 4 * 12 = 48", "48 = 3 7 12", True),
    ("12 / 3 = 4 7 - 4 = 3", "3 = 3 7 12", True),
    ("3 - 7 = -4 12 - -4 = 16", "16 = 3 7 12", True),
    ("3 - 3 = 0 7 + 0 = 7", "7 = 3 3 7", True),
    ("7 * 1 = 7", "7 = 7 1", True),
    ("3 + 7 = 10", "10 = 3 7", True),
    ("3 * 12 = 36 36 + 7 = 43", "44 = 3 7 12", False),
    ("3 * 12 = 37 37 + 7 = 44", "44 = 3 7 12", False),
    ("3 * 12 = 36", "36 = 3 7 12", False),
    ("3 * 3 = 9 9 + 7 = 16", "16 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 43 43 + 0 = 43", "43 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 43 1", "43 = 3 7 12", False),
    ("3 * 12 = 36 7 + 36 = 43 .", "43 = 3 7 12", True),
    ("3 * 12 = 36 7 + 36 = 43 x", "43 = 3 7 12", True),
    ("first 7 * 4 = 28 , then 28 + 20 = 48 .", "48 = 4 7 20", True),
    ("So: 3 + 7 = 10. ", "10 = 3 7", False),
    ("first 7 * 4 = 28 , then 28 + 20 = 49 .", "48 = 4 7 20", False),
    ("So: 3 + 7 = 10", "10 = 3 7", True),
    ("3 plus + 7 = 10", "10 = 3 7", True),
    ("3 + 7 = 10 !", "10 = 3 7", False),
    ("x2 3 + 7 = 10", "10 = 3 7", False),
    ("try 3 * 7 = 21 , no 3 + 7 = 10", "10 = 3 7", False),
    ("3 +- 7 = -4", "-4 = 3 7", False),
    ("3 + + 7 = 10", "10 = 3 7", False),
    ("= 3 + 7 = 10", "10 = 3 7", False),
    ("é 3 + 7 = 10", "10 = 3 7", False),
    ("3 +\n7 = 10", "10 = 3 7", True),
    ("the numbers are . : ,", "10 = 3 7", False),
    ("7 / 3 = 2 2 + 12 = 14", "14 = 3 7 12", False),
    ("7 / 0 = 0 3 + 0 = 3", "3 = 7 0 3", False),
    ("0 / 7 = 0 3 + 0 = 3", "3 = 7 0 3", True),
    ("", "3 = 1 2", False),
    ("3 ** 12 = 36 36 + 7 = 43", "43 = 3 7 12", False),
    ("3 *12 = 36 36 + 7 = 43", "43 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 4٣", "43 = 3 7 12", False),
    ("12 + 12 = 24 24 + 7 = 31", "31 = 7 12 12", True),
    ("12 + 12 = 24 24 + 7 = 31", "31 = 7 12 3", False),
    ("1 + 2 = 3 3 + 3 = 6", "6 = 1 2 3", True),
    ("3 × 12 = 36 36 ÷ 4 = 9", "9 = 3 4 12", True),
    (r"3 \times 12 = 36 36 \div 4 = 9", "9 = 3 4 12", True),
    ("3 × 12 = 37 37 + 7 = 44", "44 = 3 7 12", False),
    (r"3 \timesx 12 = 36", "36 = 3 12", False),
])
def test_countdown(response, answer, expected):
    assert is_correct(response, answer, "countdown") == expected


WALL = json.dumps([[3, "X", 1, "X"], ["X"] * 4, ["X", "X", 3, "X"], ["X"] * 4])
SOLVED = '[[3,"A",1,"A"],["X","A","A","A"],["X","A",3,"X"],["A","A","X","A"]]'


@pytest.mark.parametrize("task, response, answer, expected", [
    ("choice", box("(C)"), "(C)", True),
    ("choice", box("C"), "(C)", True),
    ("choice", box(r"\text{(C)}"), "(C)", True),
    ("choice", box("(C) 12/25/1937"), "(C)", True),
    ("choice", box("c"), "(C)", True),
    ("choice", box("(B)"), "(C)", False),
    ("choice", box("(C) or (D)"), "(C)", False),
    ("choice", box("A) x or B) y"), "(A)", False),
    ("choice", box("A cat"), "(A)", False),
    ("choice", box("ABC"), "(A)", False),
    ("choice", "(C)", "(C)", False),
    ("choice", "<answer>(C)</answer>", "(C)", True),
    ("choice", "So the answer is (C).", "(C)", False),
    ("choice", box("A. B. C. D."), "(A)", False),
    ("choice", box("A: B: C: D"), "(A)", False),
    ("choice", box("(A), possibly B"), "(A)", False),
    ("choice", "<answer>(A) or B</answer>", "(A)", False),
    ("choice", box("(A) is wrong, so B"), "(A)", False),
    ("choice", box("(A) is wrong"), "(A)", False),
    ("choice", box("(a) or (b)"), "(A)", False),
    ("choice", box("(C) A cat"), "(C)", True),
    ("choice", box("(I) think B"), "(I)", False),
    ("choice", box("A) apple"), "(A)", True),
    ("choice", box("(C) I think so"), "(C)", True),
    ("choice", box("(C) or I"), "(C)", False),
    ("choice", box("(C) is unlikely"), "(C)", False),
    ("choice", box("(C)D"), "(C)", False),
    ("choice", box("(C)") + "```", "(C)", True),
    ("text", box("True"), "True", True),
    ("text", box(r"\text{yes}"), "Yes", True),
    ("text", box("False"), "True", False),
    ("text", box("valid"), "invalid", False),
    ("text", box("8"), "8", True),
    ("text", box("8.0"), "8", True),
    ("text", box("-35"), "-35", True),
    ("text", box("35"), "-35", False),
    ("text", box("5 + 3"), "8", False),
    ("text", box("apple bee cat"), "apple bee cat", True),
    ("text", box("apple, bee, cat"), "apple bee cat", True),
    ("text", box("bee apple cat"), "apple bee cat", False),
    ("text", box("> ) }"), "> ) }", True),
    ("text", box(r"\} ] >"), "} ] >", True),
    ("text", box("> )"), "> ) }", False),
    ("text", box("> )") + box("> ) }"), "> ) }", True),
    ("synlogic", "<think>(E)</think><answer>C, D,E</answer>", "C,D,E", True),
    ("synlogic", box("C,D,E"), "C,D,E", True),
    ("synlogic", "<answer>E,D,C</answer>", "C,D,E", False),
    ("synlogic", "<think>C,D,E</think>", "C,D,E", False),
    ("synlogic", "<answer>X</answer> <answer>```python\n[[1, 2],\n [3, 4]]\n```</answer>",
     "[[1,2],[3,4]]", True),
    ("synlogic", "```\nX\n``` <answer>C,D,E</answer>", "C,D,E", True),
    ("synlogic", "答案是 **是,否,是**。", "是, 否, 是", True),
    ("synlogic", "答案是 **否,是,是**。", "是, 否, 是", False),
    ("synlogic", "The answer is 9484 - 6622 = 2862.", "9484 - 6622 = 2862", True),
    ("synlogic", "答案是 **是，否、是**。", "是, 否, 是", True),
    ("synlogic", "So it is:\n[35, 1]", "[35, 1]", True),
    ("synlogic", "So it is:\n[35, 1]\n", "[35, 1]", True),
    ("synlogic", "[35, 1]\nor so", "[35, 1]", False),
    ("synlogic", "[35, 2]", "[35, 1]", False),
    ("game24", "```python\n(7 - 3) * 8 - 8\n```", "24 = 3 7 8 8", True),
    ("game24", "```\n8/(3-8/3)\n```", "24 = 3 3 8 8", True),
    ("game24", "```\n8*3\n```", "24 = 3 8 1 1", False),
    ("game24", "```\n8*3*1**1\n```", "24 = 3 8 1 1", False),
    ("game24", "```\n24\n```", "24 = 2 4 1 1", False),
    ("game24", "```\n8/(3-3)+8\n```", "24 = 3 3 8 8", False),
    ("game24", "```\n(8)(3)+(1-1)\n```", "24 = 3 8 1 1", False),
    ("game24", "```\n(8*3\n```", "24 = 3 8", False),
    ("game24", "```\n__import__('os').getpid()\n```", "24 = 3 8", False),
    ("game24", "", "24 = 3 8", False),
    ("game24", box(r"8\times(7-1-3)"), "24 = 1 3 7 8", True),
    ("game24", box("8×(7-1-3) = 24"), "24 = 1 3 7 8", True),
    ("game24", box("8 ÷ (3 - 8 ÷ 3)"), "24 = 3 3 8 8", True),
    ("game24", box(r"8\times3\times1"), "24 = 1 3 8", True),
    ("game24", box("8×(7-1-3) = 25"), "24 = 1 3 7 8", False),
    ("game24", box("8×(7-1-2) = 24"), "24 = 1 2 7 8", False),
    ("game24", box("24 = 24"), "24 = 1 3 7 8", False),
    ("number_wall", f"```python\n{SOLVED}\n```", WALL, True),
    ("number_wall", f"```\n{SOLVED.replace('A', 'X')}\n```", WALL, False),
    ("number_wall", f"```python\n{SOLVED.replace(chr(34), chr(39))}\n```", WALL, True),
    ("number_wall", "```\n" + SOLVED.replace('["A","A","X","A"]', '["A","X","A","A"]') + "\n```",
     WALL, False),
    ("number_wall", "```\n" + SOLVED.replace("3", "4") + "\n```", WALL, False),
    ("number_wall", "```\n[1]\n```", WALL, False),
    ("number_wall", '```\n[[1,"A","A"],["A","A","A"]]\n```', '[[1,"X","X"],["X","X","X"]]', False),
    ("number_wall", "```\n" + "[" * 3000 + "\n```", WALL, False),
    ("number_wall", "```\n[[1,2],[3]]\n```", WALL, False),
])
def test_other_tasks(task, response, answer, expected):
    assert is_correct(response, answer, task) == expected


@pytest.mark.parametrize("solved, expected", [
    ('[[1,"A"],["A","A"]]', True),
    ('[["A",1],["A","A"]]', True),
    ('[["A","A"],[1,"A"]]', True),
    ('[["A","A"],["A",1]]', True),
    ('[["A","A",2],["A","A","X"]]', False),
])
def test_three_walls_around_an_island_are_no_square(solved, expected):
    clues = solved.replace("A", "X")
    assert is_correct(f"```\n{solved}\n```", clues, "number_wall") == expected
