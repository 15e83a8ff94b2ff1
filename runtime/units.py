r"""Separates a value from its units.

    split_unit("5 cm")         ("5", frozenset({"cm"}))
    same_units(one, other)     whether two sets of units are equal, or one is part of the other
    own_words("5 wug")         the gold answer's words, which count as units, too
"""
import re

from runtime.latex import MONEY

# ---- which words are units --------------------------------------------------
MEGA = re.compile(  # in lower case, it would be milli
    "M(?=(?:eV|W|Wh|Hz|J|N|Pa|V|pc|yr)$)")
# A comma ends each unit. The first of its names stands for all of them.
MEASURES = """cm centimeter centimetre 厘米, mm millimeter millimetre 毫米, km kilometer
kilometre 千米 公里, m meter metre 米, in inch, ft foot feet, yd yard, mi mile, nm nanometer,
g gram 克, mg milligram, kg kilogram kilo 千克 公斤, lb pound £, oz ounce, ton tonne 吨,
l liter litre 升, ml milliliter millilitre 毫升, gal gallon, qt quart, pt pint,
s second sec 秒, ms millisecond, ns nanosecond, min minute 分钟, h hour hr 小时, day 天,
week, month 月, yr year 年 岁, decade, century, ct cent ¢, dollar usd buck $, euro eur €,
rupee rs inr ₹, yuan 元 rmb, yen ¥, peso, % percent pct percentage, ° degree deg 度,
arcsec arcsecond, angstrom, c celsius, f fahrenheit, k kelvin, rad radian, hz hertz,
khz, mhz, megahz megahertz, ghz, n newton, j joule, kj, cal calorie, kcal, ev, kev, mev,
megaev, gev, w watt, kw, mw milliwatt, megaw megawatt, kwh, v volt, amp ampere, ohm,
pa pascal, kpa, megapa megapascal, gpa gigapascal, psi, atm, bar, t tesla, coulomb,
kn, kv, megaj, megawh, pm picometer, fm, microm micrometer micron, micros microsecond,
microg microgram, microl microliter, microf microfarad, pc parsec, kpc kiloparsec,
megapc megaparsec, ly, au, megayr, gyr, arcmin arcminute, mag magnitude, dyn dyne,
db decibel, ppm, amu, mol mole, erg, rpm, bit, byte, kb, mb, gb, knot, acre, hectare,
light-year"""
# In the singular that unit_of makes: "vertice" is what it leaves of "vertices".
COUNTED = """unit way time piece point item object thing set group team pair part person
people man men woman women child children kid boy girl student teacher player member
friend guest customer employee worker passenger visitor adult baby animal dog cat puppy
kitten bird chicken hen duck cow horse pig sheep goat rabbit fish frog bug ant bee
spider snake monkey apple orange banana pear peach grape cherry berry strawberry tomato
potato carrot onion egg cookie cake cupcake candy chocolate pizza sandwich slice loaf
loaves muffin donut pie cup glass bottle can jar box bag basket bucket pack package
packet carton crate case bowl plate spoon tablespoon teaspoon serving meal coin penny
nickel dime bill ticket card stamp sticker marble bead toy doll ball balloon game book
page pen pencil crayon eraser notebook letter word sentence problem question answer test
lesson class course shirt shoe hat dress sock pant car truck bus bike bicycle train boat
plane ship wheel tire seat chair table desk bed room house home building floor window
door wall brick tile block board step stair trip lap round hit goal shot vote tree
flower rose plant seed leaf leave branch row column number integer digit value solution
root factor divisor multiple prime term edge vertex vertice face side corner angle
triangle square rectangle circle cube polygon diagonal path route arrangement
permutation combination subset outcome possibility choice handshake match song movie
video photo picture painting message call click bean nut fruit vegetable gift present
job task hole store shop school town city country state star planet layer level dot line
segment stick rod log rope string ribbon bolt nail screw battery widget pupil sweet
chip pill leg wing shell stone rock ring key acorn batch biscuit bone bounce bracelet
brownie bulb bush butterfly button candle color container cracker cricket dish doughnut
email envelope episode flavor follower goldfish gumball hotdog insect jellybean lemon
load lollipop machine mango marshmallow mushroom necklace night outfit pancake pebble
pet petal phone plank popsicle poster roll scoop seashell sequence shark sheet soda spot
stripe toad token towel turtle vehicle watermelon atom molecule particle photon electron
proton neutron ion vacancy bushel function polynomial chord coloring committee tuple move
turn rotation revolution cycle
个 人 只 本 次 种 件 条 张 块 把 名 位 支 页 棵 辆 台 道 题 组 对"""
PER = "/", "per"
CONNECTIVES = set(
    "a an of the each sq square cubic cu total long wide tall high deep old distinct "
    "different real positive possible ordered whole perfect two-digit three-digit four-digit "
    "new red blue green yellow white black".split())
NOT_UNITS = set(  # after a number, these words change its value
    "two three four five six seven eight nine eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
    "eighty ninety twins short below above "
    "except without doubled nothing or and not no more less than at least most to if "
    "million billion trillion thousand ten hundred dozen half halves third quarter "
    "tenth hundredth thousandth squared cubed factorial base mod modulo but is over times "
    "plus minus remainder even odd octal binary lakh crore gross".split())
QUOTIENTS = {"mph": "miles per hour", "kph": "km per hour", "kmh": "km per hour"}
ONE_LETTER = set("mgshtlLJNVWKCFT")  # others, n and M among them, are no units
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
POWERS_AFTER = {"squared": "^2", "cubed": "^3"}  # meters per second squared
UNITS = {noun: noun for noun in COUNTED.split()}
UNITS |= {alias: names.split()[0]
          for names in MEASURES.split(",") for alias in names.split()}
MEASURED = {names.split()[0] for names in MEASURES.split(",")} - {"%", "°"} | {"unit"}
CURRENCIES = {UNITS[name] for name in [*MONEY, "yuan", "yen", "peso"]}

# ---- where the units of an answer are ---------------------------------------
CJK = "[\u4e00-\u9fff]"
EXPONENT = r"(?<![%°])\^\s*\{-?[1-9]\}"
TAIL = re.compile(  # a value, then how its words begin, then how they continue
    rf"""(?P<value>.*?[\w)}}⦄\]⟧!|])\s*
    (?P<words>(?:\\text|\\frac\s*\{{\s*\\text|[°%]|{CJK}|m\s*/\s*s
                 |/\s*(?:\\text|[A-Za-z]{{3,}})
                 |(?<![A-Za-z\\_{{])[A-Za-z]{{2,}})
    (?:\\text\s*\{{|\\frac\s*\{{|[A-Za-z°%.'-]|{CJK}|{EXPONENT}|[\s/*{{}}])*)""", re.X)
PRODUCT = re.compile(  # xy and mg, but not cm: these may be products of letters
    r"(?!(?:[ckm]m|kg|ft|in|lbs?|oz|yd|gal|sq|min|sec|hrs?|yrs?|day|mph|[ap]m|men|box"
    r"|[kMG]?(?:eV|Hz))\b)"
    r"[A-Za-z]{2,3}(?![A-Za-z])")
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![A-Za-z])")
SUBSTANCE = re.compile(  # "of flour" after "5 cups", but not "of ten" or "of AB",
    # and nothing after "5 times the number"
    r"^([\s{]*(?:(?:sq|square|cubic)\s+)?(?!times\b)[A-Za-z]+)\s+of"
    r"(?:\s+(?:the|his|her|their))?"
    rf"(?:\s+(?!(?:{'|'.join(sorted(NOT_UNITS))}|per)s?\b)[a-z'-]{{3,}}){{1,2}}"
    r"(?=[\s}.]*$|\s+per\b)")


def split_unit(text, own=frozenset(), gold=False):
    """Returns (value, units), where units is the set of known units around the
    value. `own` has further words that count as units, and "of flour" may follow a
    unit. If any other word follows the value, nothing is split off. Nor is anything
    that may be a product of letters split off from a gold answer: 2 is not 2mg."""
    if money := set(MONEY) & set(text):  # 3*$4 is 12 dollars
        value, units = split_unit(re.sub(f"[{MONEY}]", " ", text).strip(), own, gold)
        units |= {UNITS[sign] for sign in money}
        return (text, frozenset()) if has_multiplier(units) else (value, units)
    match = TAIL.fullmatch(text)
    if not match or r"\text" in match["value"]:
        return text, frozenset()
    if gold and PRODUCT.match(match["words"]):
        return text, frozenset()
    if "°" in match["words"] and TRIGONOMETRIC.search(match["value"]):
        return text, frozenset()  # \sin 1° is not \sin 1
    units = read_units(match["words"], own)
    return (match["value"], units) if units else (text, units)


def read_units(text, own):
    r"""Returns the set of the units in a text such as \text{ m/s}^{2}. A unit after
    "per" is marked with a slash, so that m/s is not s/m, and a power is a member of its
    own: {m, /s, ^2}. The set is empty if the text has no unit, or a word that is
    neither a unit nor a connective."""
    text = re.sub(r"\bper\s+cent\b", "percent", text)
    text = re.sub(r"([A-Za-z]+[\s}]*)\^\s*\{-", r"/\1^{", text)  # s^{-1}
    if r"\frac" in text:
        text = re.sub(r"\}\s*\{", "}/{", text)
    powers = re.findall(r"\^\s*\{([2-9])\}", text)
    text = re.sub(rf"\\(?:text|frac)|{EXPONENT}", " ", text)
    text = re.sub("[A-Za-z]+", lambda m: QUOTIENTS.get(m[0].lower(), m[0]), text)
    text = SUBSTANCE.sub(r"\1", text)
    words = re.findall(rf"[°%/]|[A-Za-z'-]+|{CJK}+", text)
    units, per = [], ""
    for word in words:
        if word in PER or word in ("a", "an") and units:  # 5 miles an hour
            per = "/"
        elif word.lower() in POWERS_AFTER and units and units[-1].strip("/") in MEASURED:
            units.append(POWERS_AFTER[word.lower()])
        else:
            unit = unit_of(word, own)
            if unit is None:
                return frozenset()
            if unit:
                units.append(per + unit)
    if not units or words[-1] in ("a", "an", *PER) or has_multiplier(units):
        return frozenset()
    powers += [POWERS[word.lower()] for word in words if word.lower() in POWERS]
    return frozenset(units + [f"^{power}" for power in powers])


def has_multiplier(units):
    """Returns whether one of the units must be an abbreviation of thousand, million or
    trillion, because another unit is beside it: 5 K people, $5 m."""
    units = {unit for unit in units if unit[0] != "/"}
    thousands = units & {"k", "t"} and units - {"k", "t"}
    millions = units & {"m", "mm"} and units & CURRENCIES
    return bool(thousands or millions)


def same_units(one, other):
    """Returns whether the units are equal, or one set is part of the other. A part
    needs a unit that does not stand after "per", unless it lacks only a currency, and
    then neither set may have powers: m/s matches m, but not s, s/m, km/s, m^2/s or /s."""
    shared, marks = one & other, {unit[0] for unit in one | other}
    enough = one ^ other <= CURRENCIES or any(unit[0] != "/" for unit in shared)
    part = shared in (one, other) and enough
    return one == other or part and "^" not in marks


def unit_of(word, own):
    """Returns the unit's canonical name, "" for a connective, None for other words."""
    if re.fullmatch("[A-Za-z]", word) and word not in ONE_LETTER | CONNECTIVES:
        return None
    word = MEGA.sub("mega", word).lower()
    if word in CONNECTIVES:
        return ""
    names = [word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)]
    names = [name for name in names if name == word or len(name) > 1]  # ms is not m
    for name in names:
        if name in UNITS:
            return UNITS[name]
    return next((name for name in names if name in own), None)


def own_words(gold):
    """Returns the words after a gold answer's number. They count as its unit, even
    if no list names them."""
    match = TAIL.fullmatch(gold)
    if not match or not re.search("[0-9]", match["value"]) or match["words"][0] == "/":
        return frozenset()  # the letters in 5/xyz are a denominator
    words = {MEGA.sub("mega", word).lower()
             for word in re.findall(r"(?<!\\)\b[A-Za-z]{2,}", match["words"])}
    singular = {word.removesuffix("s") for word in words}
    return frozenset() if NOT_UNITS & (words | singular) else frozenset(singular)
