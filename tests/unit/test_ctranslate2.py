"""What the page on runtimes says of CTranslate2, where that is installed: pip install ctranslate2."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, T5ForConditionalGeneration
from variants import tiny

from mrt5cli.convert import layouts
from mrt5cli.convert.conversion import ConversionOptions, convert

PAGE = Path(layouts.__file__).parent / "README.md"
TEXTS = ["hello world", "Größe 北京", "x", "a long one " * 20]
NEW = 24


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_plain_t5_is_the_same_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    tiny("mrt5").save_pretrained(tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "plain", ConversionOptions("byt5"))
    monkeypatch.chdir(tmp_path)
    _, code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    there = ctranslate2.Translator(os.fspath(tmp_path / "for-ctranslate2"), intra_threads=1)
    here = T5ForConditionalGeneration.from_pretrained(tmp_path / "plain").eval()
    tokenizer = ByT5Tokenizer.from_pretrained(tmp_path / "plain")
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
        for beams in (1, 4):
            (written,) = here.generate(
                ids, max_new_tokens=NEW, num_beams=beams, do_sample=False, length_penalty=1.0
            ).tolist()
            (found,) = there.translate_batch([tokens], beam_size=beams, max_decoding_length=NEW)
            hypothesis = tokenizer.convert_tokens_to_ids(found.hypotheses[0])
            assert hypothesis == [token for token in written[1:] if token != tokenizer.eos_token_id]
        target = torch.tensor([[100, 110, 120, tokenizer.eos_token_id]])
        with torch.no_grad():
            expected = here(input_ids=ids, labels=target).logits.log_softmax(-1).gather(-1, target[..., None])
        (scored,) = there.score_batch([tokens], [tokenizer.convert_ids_to_tokens(target[0, :-1].tolist())])
        np.testing.assert_allclose(scored.log_probs, expected.flatten(), atol=1e-5)
