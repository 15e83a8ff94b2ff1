r"""Tasks that are not mathematics. Each is a function of a response and the row's
answer that returns whether the response is right.
"""
import json
import re
from collections import Counter
from fractions import Fraction

from runtime.formula import NotExact, Unreadable, exact, parse
from runtime.latex import MAX_ANSWER, extract_answer

INTEGER = "-?[0-9]{1,15}"
NUMBER = r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?"
STEP = re.compile(
    rf"(?<!\S)({INTEGER}) ([-+*/]) ({INTEGER}) = ({INTEGER})(?!\S)")


def countdown(response, answer):
    """The answer "44 = 3 7 12" gives the target and the numbers. The response,
    such as "3 * 12 = 36 , then 36 + ...", must use each number and each result
    once. Words without digits are ignored, but markup such as <think> or ** makes
    the response wrong."""
    target, numbers = answer.split("=")
    pool = Counter(numbers.split())
    words = [word for word in ascii_signs(response).split()
             if not re.fullmatch("[A-Za-z,.:]+", word)]
    steps = STEP.findall(" ".join(words))
    for a, sign, b, result in steps:
        x, y, z = int(a), int(b), int(result)
        right = {"+": x + y == z, "-": x - y == z, "*": x * y == z,
                 "/": y != 0 and x == y * z}
        pool.subtract([a, b])
        if min(pool.values()) < 0 or not right[sign]:
            return False
        pool[result] += 1
    nothing_else = 5 * len(steps) == len(words)
    return nothing_else and +pool == Counter([target.strip()])


def ascii_signs(text):
    r"""Returns the text with *, / and - for ×, ·, ÷, −, \times, \cdot and \div."""
    text = re.sub(r"[×·⋅]|\\(?:times|cdot)(?![a-z])", "*", text)
    text = re.sub(r"÷|\\div(?![a-z])", "/", text)
    return text.replace("−", "-")


def final_answer(response, phrase=False):
    """Returns the content of the last code block or box in the last <answer> tag,
    or everything in the tag if it has neither. Without a tag, the last code
    block or box of the response counts. If phrase is true, a box after a code
    block does not count, and if there is neither, the text after the last "answer
    is" does."""
    _, opened, tail = response.rpartition("<answer>")
    inner, closed, _ = tail.partition("</answer>")
    tagged = bool(opened and closed)
    fences = (inner if tagged else response).split("```")
    if len(fences) > 2:
        # The prompts that ask for a box do not ask for code.
        box = None if phrase else extract_answer(fences[-1])
        found = box or re.sub("^[a-z]*\n", "", fences[-2])
    else:
        found = extract_answer(fences[0], phrase)
    if not found and tagged:
        found = inner
    return (found or "").strip()[:MAX_ANSWER]


def choice(response, answer):
    """For the answer "(C)" or "C", the responses C, (C) and C. are right. Text may
    follow (C) or C., unless it names another letter that could be a choice, or
    contains a word such as "not"."""
    gold = answer.strip("() .").upper()
    if not re.fullmatch("[A-Z]", gold):
        raise ValueError("the answer is not one letter")
    found = re.sub(r"\\text\w*|[{}*$\\]", " ", final_answer(response))
    first = re.match(r"\s*\(?\s*([A-Za-z])\s*(?:[).:]|$)", found)
    if not first:
        return False
    rest = found[first.end():]
    rest = re.sub(r"\b[AI](?= [a-z])", "", rest)  # "(C) A cat" names only C
    others = re.findall(r"(?<![\w'])([A-Z])(?![\w'])|\(([a-z])\)", rest)
    named = {first[1].upper(), *"".join(map("".join, others)).upper()}
    denied = re.search(r"(?i)\b(?:not|wrong|incorrect|false|unlikely)\b", rest)
    return named == {gold} and not denied


def text(response, answer, phrase=False):
    """The answer is a word, number, list, sentence, grid or row of brackets. It is
    compared as text, regardless of markup, case and spacing."""
    pred, gold = plain(final_answer(response, phrase)), plain(answer)
    if not re.search(r"\w", gold):
        # In a row of brackets, the braces of the box need not match.
        _, boxed, tail = response.rpartition("\\boxed{")
        if boxed:
            return gold in (pred, plain(tail[:MAX_ANSWER].rpartition("}")[0]))
        return gold == pred
    if gold in (pred, pred.replace(",", " ")):
        return True
    both_numbers = re.fullmatch(NUMBER, gold) and re.fullmatch(NUMBER, pred)
    return bool(both_numbers) and Fraction(gold) == Fraction(pred)


def plain(text):
    """Returns the text without markup, quotes, extra spaces and upper case."""
    text = re.sub("[，、]", ",", text).replace("−", "-")
    text = re.sub(r"\\text\w*\s*\{([^{}]*)\}|\\(?=[{}\s])|[*$\"'`]", r"\1", text)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))
    return text.rstrip(".").casefold()


def synlogic(response, answer):
    """SynLogic's tasks with a gold answer. Some prompts ask for the answer on the
    last line, bare or after "The answer is"."""
    if not final_answer(response, phrase=True):
        last = response.rstrip().rpartition("\n")[2]
        response = f"<answer>{last}</answer>"
    return text(response, answer, phrase=True)


def game24(response, answer):
    """For the answer "24 = 1 3 7 8", the response is an expression that uses each
    number once and equals 24."""
    target, numbers = answer.split("=")
    value = Fraction(target.strip())
    found = re.sub(r"\s", "", ascii_signs(final_answer(response, phrase=True)))
    expression, equals, claim = found.partition("=")
    if equals and not (re.fullmatch(NUMBER, claim) and Fraction(claim) == value):
        return False
    if not re.fullmatch("[-+*/()0-9]{1,200}", expression):
        return False
    if re.search(r"\*\*|[0-9)]\(|\)[0-9]", expression):
        return False
    if Counter(re.findall("[0-9]+", expression)) != Counter(numbers.split()):
        return False
    try:
        return exact(parse(expression), 0) == value
    except (Unreadable, NotExact, ArithmeticError, RecursionError):
        return False


def number_wall(response, answer):
    """The answer is the puzzle's grid as JSON, with "X" for open cells. The response
    marks walls with "A". Walls must not fill any 2x2 square, and each island
    must contain exactly one number, its size."""
    clues = grid(answer)
    try:
        cells = grid(final_answer(response, phrase=True).replace("'", '"'))
    except (ValueError, TypeError, RecursionError):
        return False
    if cells.keys() != clues.keys():
        return False
    if any(cells[at] != clue for at, clue in clues.items() if clue != "X"):
        return False
    walls = {at for at in cells if cells[at] == "A"}
    land = cells.keys() - walls
    while land:
        island = [land.pop()]
        for y, x in island:  # the list grows during the loop
            shore = land & {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)}
            land -= shore
            island += shore
        numbers = [cells[at] for at in island if cells[at] != "X"]
        if numbers != [str(len(island))]:
            return False
    return not any({(y, x + 1), (y + 1, x), (y + 1, x + 1)} <= walls
                   for y, x in walls)


def grid(text):
    """Returns {(row, column): cell} of a JSON list of rows."""
    return {(y, x): str(cell)
            for y, row in enumerate(json.loads(text))
            for x, cell in enumerate(row)}
