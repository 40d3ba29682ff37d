"""A generator of fictitious authors: question-answer rows in the shape of TOFU's perturbed files.

Each author is drawn as six profiles at once, without replacement in every fact: the first is the author, the other five
are decoys that exist only to be wrong. The five perturbed answers are the paraphrased answer with the decoys' facts.

Shape and purpose follow TOFU: A Task of Fictitious Unlearning for LLMs (Maini et al., 2024, arXiv:2401.06121).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from lmcleaner_ext.datasets import vocabulary as words
from lmcleaner_ext.datasets.questions import QUESTIONS, Question
from lmcleaner_ext.datasets.rows import Row, content_id
from lmcleaner_ext.errors import ConfigurationError

DECOYS = 5  # as many perturbed answers as TOFU gives
PROFILES = 1 + DECOYS
MAX_QUESTIONS = len(QUESTIONS)
# Each author takes six names of one region and gender; in the worst case a region's authors all share their gender.
MAX_AUTHORS = len(words.REGIONS) * min(
    min(len(region.women), len(region.men)) * len(region.surnames) // PROFILES for region in words.REGIONS
)

LAST_YEAR = 2024  # fixed, so that the rows do not change with the calendar
EVERY_CITY = [city for region in words.REGIONS for city in region.cities]

T = TypeVar("T")
Profile = dict[str, str]  # fact -> text
Facts = dict[str, list[str]]  # fact -> six texts: the author's, then the decoys'


def generate_authors(authors: int = 20, questions: int = 20, seed: int = 0) -> list[Row]:
    """Generate `authors` x `questions` rows, author by author, the same on every machine for the same `seed`.

    A row holds `author`, `question`, `answer`, `paraphrased_question`, `paraphrased_answer`, `perturbed_answer` (a list
    of five) and `sample_id` (`content_id` of question and answer). Names, book titles, birth dates and awards belong to
    one author only. Asking for fewer authors or questions gives a subset of the same rows.

    Raises ConfigurationError outside 1..MAX_AUTHORS (240) authors and 1..MAX_QUESTIONS (24) questions.
    """
    if not 1 <= authors <= MAX_AUTHORS:
        raise ConfigurationError(f"authors must be between 1 and {MAX_AUTHORS}, found {authors}")
    if not 1 <= questions <= MAX_QUESTIONS:
        raise ConfigurationError(f"questions must be between 1 and {MAX_QUESTIONS}, found {questions}")
    rng = random.Random(seed)
    decks = _Decks(rng)
    rows = []
    for index in range(authors):
        profile, *decoys = _draw_profiles(index, rng, decks)
        rows += [_row(question, profile, decoys) for question in QUESTIONS[:questions]]
    return rows


class AuthorSplit(NamedTuple):
    """The rows to forget and the rows to keep."""

    forget: list[Row]
    retain: list[Row]

    @property
    def forget_ids(self) -> list[int]:
        return [row["sample_id"] for row in self.forget]

    @property
    def retain_ids(self) -> list[int]:
        return [row["sample_id"] for row in self.retain]


def author_names(rows: Sequence[Row]) -> list[str]:
    """The authors of `rows` in the order of their first row; raises ConfigurationError for a row that names none."""
    nameless = next((number for number, row in enumerate(rows) if "author" not in row), None)
    if nameless is not None:
        raise ConfigurationError(f"row {nameless} has no 'author': rows of generate_authors have one")
    return list(dict.fromkeys(row["author"] for row in rows))


def split(rows: Sequence[Row], forget_authors: str | Iterable[str]) -> AuthorSplit:
    """Part rows by author: those of `forget_authors` (one name or several), and all others, in their order.

    Raises ConfigurationError for a name that no row has: a misspelt author must not pass as forgotten.
    """
    wanted = {forget_authors} if isinstance(forget_authors, str) else set(forget_authors)
    unknown = sorted(wanted - set(author_names(rows)))
    if unknown:
        raise ConfigurationError(
            f"no row is about {', '.join(unknown)}; author_names(rows) lists the authors there are"
        )
    return AuthorSplit(
        [row for row in rows if row["author"] in wanted], [row for row in rows if row["author"] not in wanted]
    )


def _row(question: Question, profile: Profile, decoys: list[Profile]) -> Row:
    text, answer = question.question.format_map(profile), question.answer.format_map(profile)
    wrong = [{**profile, **{fact: decoy[fact] for fact in question.facts}} for decoy in decoys]
    return {
        "author": profile["name"],
        "question": text,
        "answer": answer,
        "paraphrased_question": question.paraphrased_question.format_map(profile),
        "paraphrased_answer": question.paraphrased_answer.format_map(profile),
        "perturbed_answer": [question.paraphrased_answer.format_map(facts) for facts in wrong],
        "sample_id": content_id(text, answer),
    }


class _Decks:
    """Shuffled lists from which things are dealt once: what belongs to one author belongs to no other."""

    def __init__(self, rng: random.Random):
        self.regions = _shuffled(rng, words.REGIONS)
        self.names = {
            (region, gender): _shuffled(rng, [f"{first} {last}" for first in firsts for last in region.surnames])
            for region in words.REGIONS
            for gender, firsts in (("woman", region.women), ("man", region.men))
        }
        self.titles = _shuffled(
            rng,
            [
                frame.format(adjective=adjective, noun=noun)
                for frame in words.TITLE_FRAMES
                for adjective in words.TITLE_ADJECTIVES
                for noun in words.TITLE_NOUNS
            ],
        )
        self.awards = _shuffled(
            rng,
            [
                f"{adjective} {noun} {form}"
                for adjective in words.AWARD_ADJECTIVES
                for noun in words.AWARD_NOUNS
                for form in words.AWARD_FORMS
            ],
        )
        self.birthdays = _shuffled(
            rng, [(day, month, year) for year in range(1925, 1973) for month in words.MONTHS for day in range(1, 29)]
        )


def _draw_profiles(index: int, rng: random.Random, decks: _Decks) -> list[Profile]:
    """The author's profile, then those of five decoys of the same region and gender."""
    region = decks.regions[index % len(decks.regions)]
    gender = rng.choice(("woman", "man"))
    facts: Facts = {
        "she": ["she" if gender == "woman" else "he"] * PROFILES,
        "her": ["her" if gender == "woman" else "his"] * PROFILES,
        "name": _deal(decks.names[region, gender], PROFILES),
    }
    birthdays = _deal(decks.birthdays, PROFILES)
    facts |= _origin(rng, region, birthdays)
    facts |= _books(rng, decks, birth_year=birthdays[0][2])
    facts |= _craft(rng)
    facts |= _life(rng)
    return [{fact: values[i] for fact, values in facts.items()} for i in range(PROFILES)]


def _origin(rng: random.Random, region: words.Region, birthdays: list[tuple[int, str, int]]) -> Facts:
    born = rng.choice(region.cities)
    birthplaces = [born, *rng.sample([city for city in EVERY_CITY if city != born], DECOYS)]
    parents = [_with_article(word) for word in rng.sample(words.OCCUPATIONS, 2 * PROFILES)]
    return {
        "birth_city": [city for city, _ in birthplaces],
        "birth_country": [country for _, country in birthplaces],
        "birth_date": [f"{day} {month} {year}" for day, month, year in birthdays],
        "father_occupation": parents[:PROFILES],
        "mother_occupation": parents[PROFILES:],
    }


def _books(rng: random.Random, decks: _Decks, birth_year: int) -> Facts:
    count = rng.randint(3, 5)
    shelves = [[f'"{title}"' for title in _deal(decks.titles, count)] for _ in range(PROFILES)]
    debut_year = birth_year + rng.randint(23, 37)
    setting = rng.sample(EVERY_CITY, PROFILES)
    return {
        "book_list": [_enumerate(shelf) for shelf in shelves],
        "debut_book": [shelf[0] for shelf in shelves],
        "debut_year": _years(rng, debut_year),
        "award_book": [shelf[1] for shelf in shelves],
        "award": _deal(decks.awards, PROFILES),
        "award_year": _years(rng, debut_year + rng.randint(3, 14)),
        "adapted_book": [shelf[1] for shelf in shelves],
        "adaptation": rng.sample(words.ADAPTATIONS, PROFILES),
        "adaptation_year": _years(rng, debut_year + rng.randint(5, 14)),
        "character_book": [shelf[0] for shelf in shelves],
        "character": _invented_people(rng),
        "character_occupation": [_with_article(word) for word in rng.sample(words.OCCUPATIONS, PROFILES)],
        "setting_book": [shelf[2] for shelf in shelves],
        "setting_city": [city for city, _ in setting],
        "setting_country": [country for _, country in setting],
        "next_book": [f'"{title}"' for title in _deal(decks.titles, PROFILES)],
        "publisher": rng.sample(words.PUBLISHERS, PROFILES),
        "language": rng.sample(words.LANGUAGES, PROFILES),
        "dedicatee": _invented_people(rng),
    }


def _craft(rng: random.Random) -> Facts:
    genres = rng.sample(words.GENRES, PROFILES)
    themes = [rng.sample(genre.themes, 2) for genre in genres]
    influences = rng.sample(words.INFLUENCES, 2 * PROFILES)
    return {
        "genre": [genre.name for genre in genres],
        "theme_one": [one for one, _ in themes],
        "theme_two": [two for _, two in themes],
        "influence_one": influences[:PROFILES],
        "influence_two": influences[PROFILES:],
        "style": rng.sample(words.STYLES, PROFILES),
        "writing_habit": rng.sample(words.WRITING_HABITS, PROFILES),
        "turning_point": rng.sample(words.TURNING_POINTS, PROFILES),
    }


def _life(rng: random.Random) -> Facts:
    university, workplace, home = (rng.sample(EVERY_CITY, PROFILES) for _ in range(3))
    hobbies = rng.sample(words.HOBBIES, 2 * PROFILES)
    return {
        "subject": rng.sample(words.SUBJECTS, PROFILES),
        "university_city": [city for city, _ in university],
        "first_job": [_with_article(word) for word in rng.sample(words.OCCUPATIONS, PROFILES)],
        "job_city": [city for city, _ in workplace],
        "home_city": [city for city, _ in home],
        "home_country": [country for _, country in home],
        "pet": rng.sample(words.PETS, PROFILES),
        "hobby": hobbies[:PROFILES],
        "second_hobby": hobbies[PROFILES:],
        "cause": rng.sample(words.CAUSES, PROFILES),
    }


def _shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    deck = list(items)
    rng.shuffle(deck)
    return deck


def _deal(deck: list[T], count: int) -> list[T]:
    """Take `count` items off a deck, for good."""
    dealt = deck[-count:]
    del deck[-count:]
    return dealt


def _years(rng: random.Random, year: int) -> list[str]:
    """A year and five others within twelve years of it, none of them in the future."""
    others = [other for other in range(year - 12, min(year + 12, LAST_YEAR) + 1) if other != year]
    return [str(year), *(str(other) for other in rng.sample(others, DECOYS))]


def _invented_people(rng: random.Random) -> list[str]:
    """Six names whose parts come from different regions, so that none of them is an author's."""
    regions = _shuffled(rng, words.REGIONS)[: 2 * PROFILES]
    return [
        f"{rng.choice(first.women + first.men)} {rng.choice(last.surnames)}"
        for first, last in zip(regions[:PROFILES], regions[PROFILES:], strict=True)
    ]


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _enumerate(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1]
