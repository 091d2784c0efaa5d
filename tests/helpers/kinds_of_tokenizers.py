"""Small tokenizers of the kinds that published models have."""

from shared import SHARED
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gems_jax.data.text.small_tokenizer import train_tokenizer
from gems_jax.models.hf.tokenizer import load_tokenizer

LINES = ["history: the user searches for: green tea kettle, next item? user assistant\nBought: Search:"] * 3
# How the roles of a chat are marked.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MADE, PUBLISHED = ["own", "bytes", "word pieces", "space in front"], ["t5_small", "qwen3", "llama2"]


def tokenizer_of(kind):
    """A new tokenizer of a kind in ``MADE``, or one of ``PUBLISHED``, which lie in the shared folder."""
    if kind == "own":
        return train_tokenizer(LINES, 400)
    if kind in PUBLISHED:
        return load_tokenizer(SHARED / "data" / "tokenizers" / kind)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "<|im_end|>", "bos_token": "[CLS]"}
    special = [*names.values(), "<|im_start|>"]
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(LINES, trainer)
    elif kind == "space in front":  # Llama 2's from transformers 5.24 on: of every piece of text, behind items, too
        backend = Tokenizer(models.BPE(unk_token="[UNK]"))
        marks = [normalizers.Replace(" ", "\u2581"), normalizers.Replace(Regex(r"\A\u2581"), "\u2581\u2581")]
        backend.normalizer = normalizers.Sequence(marks)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
        backend.train_from_iterator(
            LINES, trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
        )
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.train_from_iterator(
            LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
        )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if kind == "word pieces":
        start = ("[CLS]", backend.token_to_id("[CLS]"))
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[start])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = CHAT
    return tokenizer
