"""The published rules by which an answer gets points, each from 0 to 1.

    vqa      TextVQA (Singh et al., arXiv 1904.08920) after VQA (Antol et al., arXiv 1505.00468): ten people answered,
             an answer that k others gave has min(k / 3, 1), the mean over the ten subsets that leave one person out
    anls     DocVQA (Mathew et al., arXiv 2007.00398): the largest 1 - d / max(|answer|, |prediction|) over the answers,
             d the Levenshtein distance, case and white space made alike; 0 where it is below 0.5. The paper's "below
             0.5" is of the distance, so that exactly half right is 0 there; the challenge's own script and the
             harnesses give it 0.5, and so does this
    choice   MMMU (Yue et al., arXiv 2311.16502): the letter that a prediction names, found in published order: "(B)",
             else " B ", else, in more than five words, a choice's text; of several the one that stands last. Where
             none is found the published script draws one by chance: here that is no answer, so that a score repeats

VQA's text is made alike as its script does: punctuation, articles, written numbers, contractions without an apostrophe.
"""

import re
from collections.abc import Sequence

NO_MORE_THAN = 0.5  # of an answer may be wrong for any points
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
NUMBERS = "zero one two three four five six seven eight nine ten".split()
WORDS = {**{word: str(number) for number, word in enumerate(NUMBERS)}, "none": "0"}
APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {  # with any one apostrophe left out
    word[:place] + word[place + 1 :]: word for word in APOSTROPHES for place, mark in enumerate(word) if mark == "'"
}


def vqa_alike(text: str) -> str:
    """The form in which VQA compares answers."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or thousands else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    words = [WORDS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy against the answers of several people, ten as published."""
    said, given = vqa_alike(prediction), [vqa_alike(answer) for answer in answers]
    agree = given.count(said)
    return sum(min(1.0, (agree - (answer == said)) / 3) for answer in given) / len(given)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the answer that is nearest."""
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in (" ".join(answer.lower().split()) for answer in answers):
        longest = max(len(answer), len(said))
        best = max(best, 1 - (levenshtein(answer, said) / longest if longest else 0.0))
    return best if best >= NO_MORE_THAN else 0.0


def levenshtein(first: str, second: str) -> int:
    """Fewest characters to put in, take out or exchange that make one of the other."""
    row = list(range(len(second) + 1))  # distances of what came of `first` so far to each beginning of `second`
    for number, char in enumerate(first, 1):
        before, row = row, [number]
        for place, other in enumerate(second):
            row.append(min(before[place] + (char != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def choice(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter (A is the first choice) that a prediction names, None for none."""
    text = prediction
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    for form in ("({})", " {} "):
        places = {letter: text.rfind(form.format(letter)) for letter in letters}
        if max(places.values()) >= 0:
            return max(letters, key=places.__getitem__)
    if len(text.split()) > 5:
        places = {letter: text.lower().rfind(words.lower()) for letter, words in zip(letters, choices)}
        if max(places.values()) >= 0:
            return max(letters, key=places.__getitem__)
    return None
