"""What is remembered of texts: the same results as without, each asked for once while there is room."""

from gems_jax.serving.remembered import Remembered


def test_only_new_texts_are_asked_for_until_there_are_too_many_letters():
    asked = []

    def lengths(texts):
        asked.append(list(texts))
        return [len(text) for text in texts]

    remembered = Remembered(lengths, most=8)
    assert remembered([]) == []
    assert remembered(["tea", "pot", "tea"]) == [3, 3, 3]
    assert remembered(iter(["pot", "", "tea"])) == [3, 0, 3]
    assert remembered(["kettle", "tea"]) == [6, 3]  # too many: all else is forgotten
    assert remembered(["kettle", "pot", "a longer one than there is room for"]) == [6, 3, 35]
    assert asked == [["tea", "pot"], [""], ["kettle"], ["pot", "a longer one than there is room for"]]
    assert remembered(["pot"]) == [3]
    assert len(asked) == 5
