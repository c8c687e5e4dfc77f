"""Tokenizers and chat templates for the tests of prompts: small, built on the spot, written for these tests."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' or 'image' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' or 'video' in c %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
)
_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# As Qwen2-VL's behaves: a system message of its own where none is given.
QWEN2_VL = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}" + _OPEN
)
# As Qwen3-VL's behaves: no system message unless given.
QWEN3_VL = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + _CONTENT + "<|im_end|>\n{% endfor %}" + _OPEN
# Strings only, stripped, with special tokens by name, and a reply that opens with an empty thought.
FLAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content | trim }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer(chat_template: str = "") -> PreTrainedTokenizerFast:
    core = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )
    if chat_template:
        made.chat_template = chat_template
    return made


class Processor:
    """What a layout reads of a transformers processor."""

    def __init__(
        self, chat_template: str, image_token: str = "<|image_pad|>", video_token: str = "<|video_pad|>"
    ) -> None:
        self.tokenizer = tokenizer(chat_template)
        self.chat_template = chat_template
        self.image_token = image_token
        self.video_token = video_token
