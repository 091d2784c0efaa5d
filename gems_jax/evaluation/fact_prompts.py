"""Beginnings of sentences that a language model can end by what it knows: facts and words, by templates.

Each begins with an example of its kind, so that the model knows what is asked.
"""

from typing import NamedTuple


class FactPrompt(NamedTuple):
    """A prompt, to be gone on with, and the kind of fact it asks for."""

    kind: str
    text: str


# By kind: the template, and what is put into it.
_TEMPLATES = {
    "capital": (
        "The capital of Portugal is Lisbon. The capital of {} is",
        "France,Italy,Spain,Germany,England,Scotland,Ireland,Austria,Greece,Poland,Hungary,Norway,Sweden,Finland,Denmark,"
        "Belgium,Russia,Ukraine,Turkey,Egypt,Morocco,Kenya,Iran,Iraq,Israel,India,China,Japan,Thailand,Vietnam,Cuba,Chile,"
        "Peru,Argentina,Canada,Australia,South Korea,the United States,the Czech Republic,the Netherlands",
    ),
    "language": (
        "In Portugal people speak Portuguese. In {} people speak",
        "France,Italy,Spain,Germany,England,Greece,Poland,Hungary,Norway,Sweden,Finland,Denmark,Russia,Turkey,Egypt,Iran,"
        "China,Japan,Thailand,Vietnam,Mexico,Brazil,Austria,Australia",
    ),
    "continent": (
        "Portugal is a country in Europe. {} is a country in",
        "France,Italy,Germany,Greece,Poland,Norway,Egypt,Kenya,Nigeria,Ghana,Ethiopia,Morocco,India,China,Japan,Thailand,"
        "Vietnam,Brazil,Peru,Chile,Argentina,Canada",
    ),
    "opposite": (
        "The opposite of open is closed. The opposite of {} is",
        "hot,big,tall,fast,old,good,light,hard,rich,strong,happy,early,full,clean,wet,thick,loud,young,wide,deep,high,long,"
        "left,up,in,on,true,first,always,more,before,above,inside,day,black,love,war,life,success,buy",
    ),
    "plural": (
        "One book, two books. One {}, two",
        "cat,dog,house,child,man,woman,foot,tooth,mouse,goose,box,city,baby,knife,wolf,leaf,tree,car,bus,church,country,"
        "story,potato,person,sheep",
    ),
    "past": (
        "Today I walk, yesterday I walked. Today I {}, yesterday I",
        "go,eat,see,come,run,write,read,speak,take,give,make,have,find,think,buy,bring,sing,swim,drink,sleep,fall,know,play,"
        "work,call,ask",
    ),
    "comparison": (
        "This one is big, that one is even bigger. This one is {}, that one is even",
        "small,tall,old,young,fast,slow,hot,cold,good,bad,strong,weak,long,short,rich,poor,hard,soft,high,low",
    ),
    "colour": (
        "The colour of the sky is blue. The colour of {} is",
        "grass,snow,blood,coal,milk,the sun,a banana,a tomato,an orange,chocolate,a lemon,the night,a strawberry,gold,"
        "a cucumber",
    ),
    "young": (
        "A young dog is called a puppy. A young {} is called a",
        "cat,horse,cow,sheep,goat,pig,bear,lion,duck,deer",
    ),
    "woman": (
        "A king and a queen, a man and a woman, a {} and a",
        "boy,husband,brother,father,son,prince,grandfather,actor,nephew,waiter",
    ),
    "work": (
        "A teacher works in a school. A {} works in a",
        "doctor,nurse,cook,waiter,farmer,judge,librarian,pilot,scientist,baker",
    ),
    "body": (
        "We see with our eyes. We {} with our",
        "hear,smell,taste,walk,think,chew,breathe,write",
    ),
}  # fmt: skip
_NUMBERS = "zero,one,two,three,four,five,six,seven,eight,nine,ten,eleven,twelve,thirteen,fourteen,fifteen"
_ORDERS = {
    "day": "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday",
    "month": "January,February,March,April,May,June,July,August,September,October,November,December",
    "number": _NUMBERS,
    "letter": ",".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
}


def _orders() -> list[FactPrompt]:
    prompts = []
    for kind, joined in _ORDERS.items():
        words = joined.split(",")
        for place in range(len(words) - 3):
            prompts.append(FactPrompt(kind, f"In order: {', '.join(words[place : place + 3])},"))
    return prompts


def _sums() -> list[FactPrompt]:
    words = _NUMBERS.split(",")
    pairs = [(a, b) for a in range(1, 9) for b in range(1, 9) if a + b <= 10 and (a, b) != (2, 3)]
    lead = "Two plus three is five."
    return [FactPrompt("sum", f"{lead} {words[a].capitalize()} plus {words[b]} is") for a, b in pairs]


def fact_prompts() -> tuple[FactPrompt, ...]:
    """All prompts, always the same in the same order.

    Example:
      >>> prompts = fact_prompts()
      >>> len(prompts), len({prompt.kind for prompt in prompts}), prompts[0].text
      (341, 17, 'The capital of Portugal is Lisbon. The capital of France is')
    """
    filled = [
        FactPrompt(kind, template.format(word))
        for kind, (template, words) in _TEMPLATES.items()
        for word in words.split(",")
    ]
    return (*filled, *_orders(), *_sums())
