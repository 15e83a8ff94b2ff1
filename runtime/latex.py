r"""Reads LaTeX: finds a response's last box, and normalizes what LaTeX can spell
in many ways.

    extract_answer(response)   the content of the last box, or None
    clean(text)                the normalized text

In cleaned text, single characters replace some commands:
    ⦃ ⦄  are \{ and \}, the braces of a set; { } only group
    ⟦ ⟧  enclose a matrix, and ¶ ends a row of it (& stays)
    ∨    is "or" between answers; "and" becomes a comma
    ⨯    is the cross product of vectors; any other product is *
    $ %  are dollars and percent
"""
import functools
import itertools
import re
import unicodedata
from typing import NamedTuple

MAX_ANSWER = 4000  # characters


# ---- the box ----------------------------------------------------------------
BOX = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])\s*")


def extract_answer(response, phrase=False):
    r"""Returns the content of the last \boxed{} or \fbox{}, or None if there is no
    box or it is empty or unclosed.

    Of nested boxes, the outermost counts. A bare \boxed 5/7 ends at the next $,
    space or closing brace. If phrase is true and there is no box, the text after
    the last "answer is" counts, because base models often write no box."""
    last = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if last < 0:
        return after_phrase(response) if phrase else None
    start = max(0, last - MAX_ANSWER)
    window = response[start:last + MAX_ANSWER]
    last -= start
    ends = boxes(window)
    around = [begin for begin in ends if begin <= last < ends[begin]]
    if around:
        return content(window, min(around), ends)
    opening = BOX.match(window, last)
    if opening and not window.startswith("{", opening.end()):
        return bare_box(window[opening.end():])
    return None


def boxes(text):
    """Returns {begin: end} of all closed boxes with braces."""
    opened, ends = [], {}
    for token in re.finditer(rf"{BOX.pattern}{{|\\.|[{{}}]", text, re.DOTALL):
        if token[0] == "}" and opened:
            ends[opened.pop()] = token.start()
        elif token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.start() if BOX.match(token[0]) else None)
    ends.pop(None, None)
    return ends


def content(text, begin, ends):
    """Returns the content of a box. If that is only another box, returns the
    content of the inner box."""
    while True:
        start = BOX.match(text, begin).end() + 1
        inside = text[start:ends[begin]]
        inner = start + len(inside) - len(inside.lstrip())
        if inner not in ends or text[ends[inner] + 1:ends[begin]].strip():
            return inside.strip() or None
        begin = inner


def bare_box(text):
    """Returns the text up to the next $, space, \\), \\] or unmatched closing brace."""
    depth, end = 0, len(text)
    for token in re.finditer(r"\\[])]|\\.|[{}\s$]", text, re.DOTALL):
        depth += (token[0] == "{") - (token[0] == "}")
        ends = token[0] in (r"\]", r"\)") or token[0] == "$" or token[0].isspace()
        if depth < 0 or depth == 0 and ends:
            end = token.start()
            break
    return text[:end] or None


def after_phrase(response):
    """Returns what follows the last "answer is" in its sentence, or None."""
    _, *said = re.split("(?i)answer is|答案是", response)
    if not said:
        return None
    line = said[-1][:MAX_ANSWER].lstrip(" :：").split("\n")[0]
    return re.split(r"[.。](?:\s|$)", line)[0].strip(" $*") or None


# ---- one spelling -----------------------------------------------------------
SIGNS = {  # sign: the commands that it replaces
    "*": "cdot times ast", "/": "div", "π": "pi", "∞": "infty", "°": "circ degree",
    "≤": "le leq leqslant leqq", "≥": "ge geq geqslant geqq", "<": "lt", ">": "gt",
    "≠": "ne neq", "≈": "approx", "≡": "equiv", "±": "pm", "∓": "mp",
    "∪": "cup bigcup", "∈": "in", "∖": "setminus backslash", "∅": "emptyset varnothing",
    "|": "vert lvert rvert mid", "‖": "| Vert lVert rVert", "'": "prime", "∨": "vee lor",
    "(": "langle lparen", ")": "rangle rparen", "[": "lbrack", "]": "rbrack",
    ":": "colon", "⦃": "{ lbrace", "⦄": "} rbrace", "¶": "\\ cr",
    " ": ", ; : > quad qquad space enspace thinspace",
    "": "left right middle big Big bigl bigr Bigl Bigr bigg Bigg displaystyle textstyle "
        "limits hline boxed fbox bf rm it large Large ! ( ) [ ]",
    "%": "%", r"\text{angstrom}": "AA",
    r"\ldots": "dots dotsc dotsb cdots",
    r"\frac": "dfrac tfrac cfrac sfrac nicefrac", r"\binom": "dbinom tbinom",
    r"\epsilon": "varepsilon", r"\phi": "varphi", r"\theta": "vartheta",
    r"\text": "textbf textit textrm textnormal textsf texttt textsc mathrm mathbf "
              "mathit mathsf mathtt mathnormal boldsymbol bm pmb mbox hbox operatorname emph",
    r"\mathbb": "Bbb", **{rf"\mathbb{{{name}}}": name for name in "RZNQC"},
    r"\bar": "overline", r"\vec": "overrightarrow", r"\hat": "widehat",
    r"\tilde": "widetilde", r"\arctan": "arctg", r"\tan": "tg", r"\cot": "ctg",
    r"\to": "rightarrow longrightarrow", r"\implies": "Rightarrow Longrightarrow",
    r"\iff": "Leftrightarrow Longleftrightarrow", r"\land": "wedge", r"\lnot": "neg",
    r"\cap": "bigcap",
}
COMMANDS = {name: sign for sign, names in SIGNS.items() for name in names.split()}
COMMANDS[" "] = " "
CHARACTERS = {
    "×": r"\times ", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∗": "*",
    **dict.fromkeys("−–‐‑", "-"), **dict.fromkeys("º˚", "°"), "⟨": "(", "⟩": ")",
    "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥", "∣": "|", "′": "'",
    "Å": r"\text{angstrom}", "或": "∨", "和": ",", "、": ",", "。": ".",
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    **dict.fromkeys("~$\r\n\t", " "),
    **{char: rf"\{name} " for char, name in zip(
        "αβγδεϵζηθϑικλμµνξρστυφϕχψωΓΔΘΛΞΠΣΦΨΩℏℓ∂∇",
        "alpha beta gamma delta epsilon epsilon zeta eta theta theta iota kappa "
        "lambda mu mu nu xi rho sigma tau upsilon phi phi chi psi omega Gamma Delta "
        "Theta Lambda Xi Pi Sigma Phi Psi Omega hbar ell partial nabla".split(),
        strict=True)},
    **{char: rf"\{name} " for char, name in zip(
        "⌊⌋⌈⌉∑∏∫∩⊂⊆⊃⊇∉∥⊥∠△→⇒⇔∧¬⊕⊗∝≅",
        "lfloor rfloor lceil rceil sum prod int cap subset subseteq supset supseteq "
        "notin parallel perp angle triangle to implies iff land lnot oplus otimes propto "
        "cong".split(),
        strict=True)},
    **{char: rf"\mathbb{{{letter}}}" for char, letter in zip("ℝℤℕℚℂ", "RZNQC")},
}
CHARACTERS = str.maketrans(CHARACTERS)
SUPERSCRIPT, SUBSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ]+"), re.compile("[₀-₉]+")
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ₀₁₂₃₄₅₆₇₈₉", "0123456789+-nx0123456789")

MONEY = "$£€¥₹¢"
ASCII_RELATIONS = {"<=": "≤", "=<": "≤", ">=": "≥", "!=": "≠", r"\not=": "≠",
                   r"\not∈": r"\notin "}
AND_OR = {"and": ",", "&": ",", "or": "∨"}
GAP = r"(?:\{,\}|,\s*\\!|\\[!,;:])"  # separates groups of three digits
MARKED = r"\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|[A-Za-z])(?:'|_\s*(?:\w|\{[^{}]*\}))*"  # v_{1}'
VECTOR = (r"\\(?:nabla(?![A-Za-z])|"
          rf"(?:vec|overrightarrow|mathbf|boldsymbol|bm)(?!\s*\{{?\s*[0-9]){MARKED})")
HAT = rf"\\(?:wide)?hat{MARKED}"
IN_REALS = r"\s*∈\s*\\mathbb\s*\{?\s*R\s*\}?"
POSITIVE = r"\s*(?:>\s*0|≥\s*[01])"
IN_INTEGERS = rf"\s*∈\s*\\mathbb\s*\{{?\s*[NZ]\s*\}}?(?:[\^_]\s*\{{?(?:[+*]|{POSITIVE})\}}?)?"
FOR_ALL = (r"(?<=[^\s{])\s*(?:\\forall|(?:\\text\s*\{[\s,]*)?for (?:all|every)%s(?:\s*\})?)"
           r"\s*%s\s*\}?\s*$")
FUNCTION = (  # sec is a unit
    "arc(?:sin|cos|tan)h?|sinh?|cosh?|tanh?|coth?|csch?|sech|ln|log|exp")
ONE_ARGUMENT = "frac|binom|vec|hat|bar|dot|ddot|tilde|underline|mathbb|mathcal"
MATRIX = r"\{(?:[pbB]?matrix|smallmatrix|array)\}"
ONE_WORD = r"\\text\s*\{\s*([A-Za-z]+)\s*\}"
ONE_LETTER_UNIT = r"[mgshLJNVWKCFT](?:[ /^*].*)?"
GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
TWO_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")
SYMBOL = r"(?:[0-9A-Za-zπ]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|omega)(?![A-Za-z])\s*)"


def unwrap(match):
    r"""Unwraps \text{...} that contains no words, as in \mathbf{25} or \text{(C)}.
    "and" and "or", inside or on their own, become signs."""
    group, connective = match.groups()
    if connective:
        return AND_OR[connective]
    text = group[1:-1].strip()
    joined = re.sub(r"\b(?:and|or)\b|&", lambda m: AND_OR[m[0]], text)
    if TWO_LETTERS.search(joined):
        return match[0]
    before = match.string[:match.start()].rstrip()
    after = match.string[match.end():]
    after_number = re.search(r"[0-9)}/*°]\s*((\\frac\s*)?\{)?$", before)
    after_pi = before.endswith("π") and not re.match(r"\s*[\w\\(]", after)  # not πhr^2
    if (after_number or after_pi) and re.fullmatch(ONE_LETTER_UNIT, joined):
        return match[0]  # a unit, as in 5\text{m}
    if number := re.fullmatch(rf"([0-9][0-9.,]*)\s+({ONE_LETTER_UNIT})", joined):
        return rf"{number[1]}\text{{{number[2]}}}"  # \text{5 m}
    if re.search(r"\\[A-Za-z]+$", joined):
        joined += " "  # \mathbf{\beta}x
    return f" {joined}" if before[-1:].isalpha() else joined  # \beta x


def repeating(match):
    """Returns 0.1\\bar{6} as a sum of fractions."""
    whole, start, digits = match.groups()
    nines = (10 ** len(digits) - 1) * 10 ** len(start)
    return rf"({whole}.{start}0+\frac{{{digits}}}{{{nines}}})"


def unit_vector(match):
    r"""Returns i for \hat{i}. But \hat{k} is a unit vector only beside \hat{i} or \hat{j}."""
    letter = match[1] or match[2] or match[3]
    if letter == "k" and not re.search(r"\\(?:hat|vec)\s*\{?\\?[ij](?![a-ln-z])", match.string):
        return match[0]
    return f" {letter}"


SYSTEM = r"(?:d?cases|align(?:ed)?\*?|gathered|split)"
PIECE = re.compile(r",|&|[\w)}]\s+(?:[A-Za-z]|\\[a-z]+)\s*=")  # 1 x=0: 1 where x is 0


def system(match):
    """Returns the equations of a system as a list. Leaves piecewise functions alone."""
    aligned = re.sub(r"&\s*=\s*&?", "=", match[2])
    rows = [row.strip(" ,.&") for row in aligned.strip(" ¶").split("¶")]
    defines = match.string[:match.start()].rstrip().endswith("=")
    if defines or any(row.count("=") != 1 or PIECE.search(row) for row in rows):
        return match[0]
    return ", ".join(rows).replace(", =", "=")  # a row may continue an equation


class Spelling(NamedTuple):
    """A pattern and its normalized replacement. Applying this row alone turns
    the example before into after; a test checks it."""
    name: str
    pattern: str
    replacement: object
    before: str
    after: str


# `clean` applies the rows in this order, and a row may rely on those above it. Put a new
# row below those whose result it reads.
# Here and below, repeated groups are wrapped in (?>...) and not made possessive:
# Python 3.11.0 to 3.11.4 misses matches of possessive groups.
SPELLINGS = [
    Spelling("thousands",
             rf"(?<![0-9.,])[1-9][0-9]{{0,2}}(?:{GAP}\s*[0-9]{{3}})+(?![0-9])",
             lambda m: re.sub("[^0-9]", "", m[0]),
             r"1{,}234, 1,\!000, 1\;000", "1234, 1000, 1000"),
    Spelling("decimal comma",
             r"(?<=[0-9])\{,\}(?=[0-9])", ".",
             "0{,}5", "0.5"),
    Spelling("skip after a row",
             r"\\\\\s*\[[-0-9. ]*[a-z]{2}\]", r"\\\\ ",
             r"a \\[1ex] b", r"a \\  b"),
    Spelling("phantom",
             r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)", "",
             r"1 & \phantom{-}1", "1 & 1"),
    Spelling("answer in bold",
             rf"^\s*\\(?:mathbf|boldsymbol|bm|pmb)\s*({GROUP})\s*$", r"\1",
             r"\mathbf{2xy}", "{2xy}"),
    Spelling("cross product",
             rf"({VECTOR}|(?:{HAT}|\))(?=\s*\\times\s*\(?\s*(?:{VECTOR}|{HAT})))"
             r"\s*\\times(?![A-Za-z])", r"\1⨯",
             r"\vec{a}_1 \times b, (a)\times\hat{b}", r"\vec{a}_1⨯ b, (a)⨯\hat{b}"),
    Spelling("letters in bold",  # upright letters may be units, but not these
             r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathnormal)"
             r"(?:\s*\{\s*([A-Za-z])\s*\}|\s+([A-Za-z]))",
             lambda m: " " * m.string[:m.start()][-1:].isalpha() + (m[1] or m[2]),
             r"5\mathbf{F}-\beta\bm v", r"5F-\beta v"),
    Spelling("composition",
             r"(?<=[A-Za-z)}])\s*\\circ\s*(?=[A-Za-z(\\])(?![CF](?![A-Za-z]))", "∘",
             r"f \circ g", "f∘g"),
    Spelling("angle brackets",
             r"\\left\s*<(.*?)\\right\s*>", r"(\1)",
             r"\left<1,2\right>", "(1,2)"),
    Spelling("delimiter left out",
             r"\\(?:left|right)\s*\.", "",
             r"\left. x \right|", r" x \right|"),
    Spelling("commands",
             r"\\([A-Za-z]+|.)", lambda m: COMMANDS.get(m[1], m[0]),
             r"\dfrac12 \le \pi", r"\frac12 ≤ π"),
    Spelling("millionths of a unit",
             r"(?<=[0-9\s}])\\mu\s*\\text\s*\{\s*([mgslLF])\s*\}|"
             r"\\text\s*\{\s*\\mu\s*([mgslLF])\s*\}", r"\\text{micro\1\2}",
             r"5\mu\text{m}", r"5\text{microm}"),
    Spelling("spaces inside brackets",
             r"(?<=\()\s+|\s+(?=\))", "",
             "f( 2 )", "f(2)"),
    Spelling("ASCII relations",
             r"<=|=<|>=|!=|\\not\s*[=∈]", lambda m: ASCII_RELATIONS["".join(m[0].split())],
             r"x >= 5, y \not= 3", "x ≥ 5, y ≠ 3"),
    Spelling("Python's names",
             r"\b(?:np|math)\.(?=[a-z])", "",
             "np.arcsin(1)", "arcsin(1)"),
    Spelling("Python's powers",
             r"(?<=[\w)}])\s*\*\*\s*(?=[\w({-])", "^",
             "x**2", "x^2"),
    Spelling("text without braces",
             r"\\text(?:\s+([A-Za-z])|\s*([0-9]))", r"\\text{\1\2}",
             r"\text i, \text5", r"\text{i}, \text{5}"),
    Spelling("choice in text",
             r"^\s*\\text\s*\{\s*(\(?[A-E]\)[.:]?)\s+([^{}]+)\}\s*$", r"\1 \\text{\2}",
             r"\text{(C) some rain}", r"(C) \text{some rain}"),
    Spelling("words in text",
             rf"\\text\s*({GROUP})|"
             r"(?<![A-Za-z\\])(and|or)(?![A-Za-z])", unwrap,
             r"\text{12 and 13} or \text{5 or so}", r"12 , 13 ∨ \text{5 or so}"),
    Spelling("list in text",
             r"\\text\s*\{([^{}\s,][^{}]*,[^{}]*)\}",
             lambda m: r"\text{" + re.sub(r",(?![0-9])\s*(?:and\s)?\s*", r"}, \\text{", m[1]) + "}",
             r"\text{ham, egg, and tea}", r"\text{ham}, \text{egg}, \text{tea}"),
    Spelling("modulus in text",
             r"\\text\s*\{\s*(\(?)mod(?![A-Za-z])\s*(\w*\)?)\s*\}|"
             r"(?<![A-Za-z\\])mod(?![A-Za-z])",
             lambda m: rf"{m[1] or ''}\bmod {m[2] or ''}",
             r"x≡2 (\text{mod }3), x≡2 \text{ (mod 3)}", r"x≡2 (\bmod 3), x≡2 (\bmod 3)"),
    Spelling("product in words",
             r"\\text\s*\{\s*times\s*\}(?=\s*[0-9A-Za-z(])", "*",
             r"5\text{ times }6", "5*6"),
    Spelling("number in text",
             rf"\\text\s*\{{\s*([{MONEY}]?[0-9][0-9.,]*%?)\s+([^{{}}]*)\}}", r"\1\\text{\2}",
             r"\text{25 cm}", r"25\text{cm}"),
    Spelling("repeated commas",
             r"[,∨](?:\s*[,∨])+", lambda m: "∨" if "∨" in m[0] else ",",
             "1, , 2", "1, 2"),
    Spelling("functions in text",
             rf"\\text\s*\{{\s*({FUNCTION}|gcd|lcm)\s*\}}", r"\\\1 ",
             r"\text{sin}x", r"\sin x"),
    Spelling("functions without a backslash",
             rf"(?<![A-Za-z\\])({FUNCTION}|sqrt|gcd|lcm)(?![A-Za-z])", r"\\\1 ",
             "sqrt(2)sin x", r"\sqrt (2)\sin  x"),
    Spelling("pi", r"(?<![A-Za-z\\])pi(?![A-Za-z])", "π", "2pi", "2π"),
    Spelling("root of a bracket",
             r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}",
             r"\sqrt (2)", r"\sqrt{2}"),
    Spelling("color",
             r"\\(?:text)?color\s*\{[a-z]+\}", " ",
             r"\color{red}5", " 5"),
    Spelling("real variable",
             rf",\s*[A-Za-z]{IN_REALS}|[A-Za-z]{IN_REALS}\s*,", "",
             r"x∈\mathbb{R}, x>1", " x>1"),
    Spelling("for all real numbers",
             FOR_ALL % (r"(?: real(?: numbers?)?)?", rf"[A-Za-z](?:{IN_REALS})?"), "",
             r"f(x)=x \text{ for all } x", "f(x)=x"),
    Spelling("for all integers",  # for which only the letters from k to n stand
             FOR_ALL % (r"(?: positive)?(?: integers?| natural numbers?)?",
                        rf"[k-n](?:{IN_INTEGERS}|{POSITIVE})?"), "",
             r"f(n)=n \text{ for all } n∈\mathbb{N}", "f(n)=n"),
    Spelling("index of a sequence",
             r"^(\s*[A-Za-z]_\{?n\}?\s*=[^,;]*?)[\s,(]+n"
             rf"(?!\s*∈\s*\\mathbb\{{Z\}}[\s)]*$){IN_INTEGERS}[\s)]*$", r"\1",
             r"a_n=2n (n∈\mathbb{N}^*)", "a_n=2n"),
    Spelling("real variable of a set",
             rf"(?<=[a-zA-Z]){IN_REALS}(?=\s*[|:])", "",
             r"x∈\mathbb{R} : x>1", "x : x>1"),
    Spelling("degree sign",
             r"\^\s*(?:\{\s*°\s*\}|°)|"
             r"(?<=[0-9])\s*\^\s*(?:\{\s*o\s*\}|o(?![A-Za-z]))", "°",
             r"90^{°}, 90^o", "90°, 90°"),
    Spelling("prime",
             r"\^\s*(?:\{\s*('+)\s*\}|('))", r"\1\2",
             "x^{'}", "x'"),
    Spelling("base of a logarithm",
             r"\\log\s*_\s*([2-9])(?=[0-9])", r"\\log_{\1}",
             r"\log_25", r"\log_{2}5"),
    Spelling("words in subscripts",
             rf"_\s*(?:{ONE_WORD}|\{{\s*(?:{ONE_WORD}|\\(max|min))\s*\}})", r"_{\1\2\3}",
             r"x_{\text{max}}+x_{\max}", "x_{max}+x_{max}"),
    Spelling("base in text or in brackets",
             r"\\text\s*\{\s*\(?\s*base\s*([0-9]+)\s*\)?\s*\}|"
             r"\(\s*(?:\\text\s*\{\s*base\s*\}|base)\s*([0-9]+)\s*\)", r" base \1\2",
             r"204\text{ (base 5)}", "204 base 5"),
    Spelling("numbers in a base",
             r"(?<=[0-9])\s*(_\s*\{\s*)?(?:\\text\s*\{\s*base\s*\}|base)\s*([0-9]+)(?(1)\s*\})",
             r"_{\2}",
             r"204\text{ base }5", "204_{5}"),
    Spelling("ordinal numbers",
             r"(?<=[0-9])\s*(\^\s*\{\s*)?\\text\s*\{\s*(?:st|nd|rd|th)\s*\}(?(1)\s*\})\s*$", "",
             r"12^{\text{th}}", "12"),
    Spelling("underlined answer",
             rf"^\\underline\s*({GROUP})$", r"\1",
             r"\underline{5}", "{5}"),
    Spelling("exponents and subscripts",
             r"([\^_])\s*(-?[0-9]+(?!\.?[0-9])|-?[A-Za-z]|"
             r"-?\\(?!frac|sqrt|binom)[A-Za-z]++(?!\s*\{)|[*+∞π-](?![\w{\\]))", r"\1{\2}",
             "x^2 y_i^-1", "x^{2} y_{i}^{-1}"),
    Spelling("exponents before subscripts",
             r"((?<!')'+|\^\{[^{}]*\})\s*(_\{[^{}]*\})", r"\2\1",
             "x^{2}_{1}+y'_{1}", "x_{1}^{2}+y_{1}'"),
    Spelling("modulus in brackets",
             rf"(\(\s*)?\\[bp]?mod(?![A-Za-z])\s*(?:\{{((?:[^{{}}]|{GROUP})*)\}}|"
             r"(\w+(?:\^\{\w+\})?))(?(1)\s*\))", r"\\pmod{\2\3}",
             r"x≡2 (\bmod 3), x≡2 \mod{p^{2}}", r"x≡2 \pmod{3}, x≡2 \pmod{p^{2}}"),
    Spelling("transposes", r"\^\{\s*\\(?:top|intercal|mathsf\{T\})\s*\}", "^{T}",
             r"v^{\top}", "v^{T}"),
    Spelling("time of day",
             r"(?<=[0-9\s{])(?:([ap])\.?\s?m|([AP])\.?\s?M)\b\.?",
             lambda m: (m[1] or m[2]).lower() + "m",
             "1:58 p.m.", "1:58 pm"),
    Spelling("colon in braces", r"\{\s*:\s*\}", ":", "9{:}24", "9:24"),
    Spelling("hours with a leading zero",
             r"(?<![0-9:.])0(?=[0-9]\s*:\s*[0-9]{2}(?![0-9]))", "",
             "08:34", "8:34"),
    Spelling("arguments without braces",
             rf"\\({ONE_ARGUMENT})\s*({SYMBOL})", r"\\\1{\2}",
             r"\frac ab", r"\frac{a}b"),
    Spelling("second arguments without braces",
             rf"(\\(?:frac|binom)\s*{GROUP})\s*({SYMBOL})", r"\1{\2}",
             r"\frac{a}b", r"\frac{a}{b}"),
    Spelling("roots without braces",
             rf"\\sqrt\s*([0-9]+|{SYMBOL})", r"\\sqrt{\1}",
             r"\sqrt 12", r"\sqrt{12}"),
    Spelling("fractions with over",
             rf"\{{((?:[^{{}}]|{GROUP})*?)\\over(?![a-z])((?:[^{{}}]|{GROUP})*)\}}",
             r"\\frac{\1}{\2}",
             r"{\sqrt{2} \over 2}", r"\frac{\sqrt{2} }{ 2}"),
    Spelling("binomials with choose",
             r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}",
             r"{5 \choose 2}", r"\binom{5 }{ 2}"),
    Spelling("repeating digits between dots",
             r"\\dot\{([0-9])\}([0-9]*)\\dot\{([0-9])\}", r"\\bar{\1\2\3}",
             r"0.\dot{1}4\dot{2}", r"0.\bar{142}"),
    Spelling("repeating decimals",
             r"(?<![0-9])([0-9]{0,9})\.([0-9]{0,9})"
             r"\\(?:bar|dot)\{([0-9]{1,9})\}", repeating,
             r"0.1\bar{6}", r"(0.10+\frac{6}{90})"),
    Spelling("unit vectors",
             r"\\(?:hat|vec)(?:\{\\?([ij])(?:math)?\}|\s*\\([ij])math(?![a-z])|\{(k)\})",
             unit_vector,
             r"3\hat{i}-4\hat{j}", "3 i-4 j"),
    Spelling("second derivatives by time",
             r"\\ddot\{\s*([A-Za-z]|\\[a-z]+)\s*\}", r" \1''",
             r"a\ddot{x}", "a x''"),
    Spelling("derivatives by time",
             r"\\dot\{\s*([A-Za-z]|\\[a-z]+)\s*\}", r" \1'",
             r"a\dot{x}", "a x'"),
    Spelling("inline derivatives",
             r"(?<![A-Za-z\\])d([A-Za-z])\s*/\s*d([A-Za-z])(?![A-Za-z])", r"\\frac{d\1}{d\2}",
             "dy/dx", r"\frac{dy}{dx}"),
    Spelling("numbers in brackets with a base",
             r"\(([0-9]+)\)(?=\s*_)|(?<=_\{)\(([0-9]+)\)(?=\})", r"\1\2",
             "(204)_{(5)}", "204_{5}"),
    Spelling("base ten",
             r"(?<![0-9A-Za-z.])([0-9]+)\s*_\{10\}", r"\1",
             "54_{10}", "54"),
    Spelling("powers of ten",
             r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", "*",
             "3 x 10^{5}", "3*10^{5}"),
    Spelling("spaces in numbers",
             r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])(?!\s*/)",
             lambda m: m[0].replace(" ", ""),
             "1 000 000", "1000000"),
    Spelling("mixed numbers",
             r"(?<![0-9.])([0-9]{1,9})\s+([0-9]{1,9})/([0-9]+)", r"\1\\frac{\2}{\3}",
             "2 3/4", r"2\frac{3}{4}"),
    Spelling("empty groups",
             r"(\\[a-z]+)\s*\{\s*\}", r"\1",
             r"\ln{} 2", r"\ln 2"),
    Spelling("dots", r"\.\.\.|(?<=,)\s*\.\.(?!\.)", r"\\ldots ", "1,...,n", r"1,\ldots ,n"),
    Spelling("union as a letter",
             r"(?<=[)\]])\s*U\s*(?=[(\[][^()\[\]]*,)", "∪",
             "(0,1) U (2,3)", "(0,1)∪(2,3)"),
    Spelling("set difference",
             r"(\\mathbb\{R\})\s*-\s*(?=⦃)", r"\1∖",
             r"\mathbb{R} - ⦃0⦄", r"\mathbb{R}∖⦃0⦄"),
    Spelling("empty set",
             r"⦃\s*⦄", "∅",
             "⦃ ⦄", "∅"),
    Spelling("real numbers",
             r"(?i)\\text\{\s*all real numbers\s*\}", r"\\mathbb{R}",
             r"\text{all real numbers}", r"\mathbb{R}"),
    Spelling("system of equations",
             rf"(⦃\s*)?\\begin\{{(?:{SYSTEM}|(?(1)array|(?!)))\}}(?:\{{[lcr|]*\}})?"
             rf"((?>(?:(?!\\(?:begin|end)\b).)*))\\end\{{(?:{SYSTEM}|array)\}}"
             r"(?(1)(?:\s*⦄)?)", system,
             r"\begin{cases}x=1¶ y=2\end{cases}", "x=1, y=2"),
    Spelling("begin of a matrix",
             rf"\\begin{MATRIX}(?:\{{[lcr|]*\}})?", "⟦",
             r"\begin{array}{cc}1", "⟦1"),
    Spelling("empty rows",
             r"¶(?:\s*¶)+", "¶",
             "1¶ ¶2", "1¶2"),
    Spelling("end of a matrix",
             rf"[\s¶]*\\end{MATRIX}", "⟧",
             r"2¶\end{pmatrix}", "2⟧"),
    Spelling("brackets around a matrix",
             r"(?<![A-Za-z])[(\[]\s*(⟦[^⟦⟧]*⟧)\s*[)\]]", r"\1",
             "2[⟦1¶2⟧]", "2⟦1¶2⟧"),
]
PATTERNS = [(re.compile(row.pattern, re.DOTALL), row.replacement) for row in SPELLINGS]


@functools.lru_cache(4096)
def clean(text):
    """Returns the text with one spelling for what LaTeX can spell in many ways."""
    text = text.replace(r"\$", "＄").strip("$ \n")  # ＄ becomes $ below
    while enclosed(text, "{}") and not re.search(r"\\over|\\choose", text):
        text = text[1:-1].strip("$ \n")
    text = SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(RAISED)}}}", text)
    text = SUBSCRIPT.sub(lambda m: f"_{{{m[0].translate(RAISED)}}}", text)
    text = re.sub("(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text.translate(CHARACTERS))
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    while enclosed(inner := text.strip(" .,"), "{}"):
        text = inner[1:-1]
    return strip_ends(text)


GROUPED = "(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])"
ROUNDED = re.compile(rf"(?<=[^\s(\[⦃,;∨])\s*≈(?:{GROUPED}|\([^()]*\)|[^](),;∨⦄])*")
PROBABILITY = r"(?:P|\\Pr|\\mathbb\{P\})\s*\([A-Z]\s*[=<>≤≥]\s*[0-9]+\)"  # P(X=2)
EXPECTATION = r"(?:E|\\mathbb\{E\})\s*\[[A-Z]\]"  # E[X]
FUNCTION_VALUE = r"[A-Za-z]'*\s*\([0-9.-]+\)"  # f'(2)
NAME = re.compile(  # x, f(x), (x, y), AB, |AB|, a_{n}, \frac{dy}{dx}; no number
    rf"(?!.*\bnot\b)(?>(?:{PROBABILITY}|{EXPECTATION}|\\[A-Za-z]+|{FUNCTION_VALUE}|"
    r"[A-Za-z'(),:|‖/*{}⟦⟧¶&\s]|_\{[^{}]*\}|\^\{-?[0-9]+\})+)")
VARIABLE = re.compile(  # x, x_{1}, \theta, f(x) or AB, but not x^{2}, \ln x or xy
    r"\s*+(?:[A-Za-z]|[A-Z]{2}|\\(?!not)[A-Za-z]+)(?>(?:_\{[^{}]*\}|'|\([a-z]\)|\s)*)")
VARIABLES = re.compile(  # x or (x,y)
    rf"(?:{VARIABLE.pattern}|\s*\({VARIABLE.pattern}(?:,{VARIABLE.pattern})*\)\s*)")
SUM_OF_NAMES = re.compile(  # m+n, |a-b|, [ABC], but not -x
    rf"\[?{NAME.pattern}(?:[-+[\]]+{NAME.pattern})*\]?")


def strip_ends(text):
    """Removes a name before the answer, a rounded value after it, and punctuation:
    "x ≈ 3.1." becomes 3.1, "1/3 ≈ 0.33, 2" becomes 1/3, 2, and "x ∈ (0,1)" becomes
    (0,1). The name is also removed after "or", as in "x ∈ (0,1) or x ∈ (2,3)"."""
    for sign, name in ("≈", NAME), ("∈", VARIABLES):  # x^2 ∈ (0,1) is not (0,1)
        head, _, tail = text.partition(sign)
        if tail and (not head.strip() or name.fullmatch(head)):
            text = re.sub(rf"∨\s*{re.escape(head.strip())}\s*{sign}", "∨", tail)
    return ROUNDED.sub("", text).replace("≈", "").strip(" =").rstrip("\\¶.,;: ")


SHORT_WORDS = set(  # neither products of letters nor names of points
    "all any are for if is may no not odd on one red six ten the two yes".split())
ANY_CASE = re.compile(r"(?<![\\A-Za-z_{])[A-Za-z]{4,}")


def as_text(text):
    """Returns cleaned text in the form that is compared as text: without spaces,
    except between digits, and with words in lower case."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text).rstrip(".")
    if text.lower() in SHORT_WORDS:
        return text.lower()
    return ANY_CASE.sub(lambda m: m[0].lower(), text)


def same_text(one, other):
    """Returns whether two cleaned texts differ in nothing that `as_text` removes."""
    return as_text(one) == as_text(other)


# ---- brackets ---------------------------------------------------------------
def depths(text):
    """Yields the number of open brackets after each character."""
    steps = ((char in "([{⦃⟦") - (char in ")]}⦄⟧") for char in text)
    return itertools.accumulate(steps)


def split(text, separators):
    """Returns the pieces between the separators that are outside all brackets."""
    if not set(separators) & set(text):
        return [text.strip()]
    cuts = [at for at, depth in enumerate(depths(text))
            if depth == 0 and text[at] in separators]
    starts = [0, *(cut + 1 for cut in cuts)]
    ends = [*cuts, len(text)]
    return [text[a:b].strip() for a, b in zip(starts, ends)]


def enclosed(text, brackets):
    """Returns whether these two brackets enclose the entire text."""
    return (text[:1] + text[-1:] == brackets
            and min(depths(text[:-1]), default=0) > 0)
