"""A trained model, as a Hugging Face folder: what it writes and how well it reads."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax import nnx

from minillm.teachers.huggingface_config import describe
from tests.teachers.reference import assembled, names_read, tensors_of
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/stories260k"),
]

TEXT = (
    "Once upon a time, there was a little girl named Lily. She had a red ball. One day the ball "
    "rolled down the hill and into the water. Lily was sad. Her friend Tom saw it and said, "
    '"Do not cry, I can help you!" He took a long stick and got the ball back. They were happy.'
)


@pytest.fixture(scope="module")
def theirs():
    return transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def ours():
    tensors = tensors_of(FOLDER)
    description = describe(FOLDER, tensors.keys())
    assert names_read(description) == tensors.keys()
    return assembled(description, tensors)


@pytest.fixture(scope="module")
def ids():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    return np.array([[pieces.bos_id(), *pieces.encode(TEXT)]])


def test_the_loss_on_a_text_is_that_of_transformers(ours, theirs, ids):
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        answer = theirs(tokens, labels=tokens)
    logits = nnx.jit(lambda model, tokens: model(tokens))(ours, ids)
    np.testing.assert_allclose(logits, answer.logits, atol=TOLERANCES["float32"].logits)
    rows = jnp.arange(ids.shape[1] - 1)
    loss = -jnp.mean(jax.nn.log_softmax(logits[0, :-1])[rows, ids[0, 1:]])
    assert float(loss) == pytest.approx(float(answer.loss), abs=TOLERANCES["float32"].logits)
    # It was trained on such stories: a model read wrongly would be at log 512 = 6.2.
    assert float(loss) < 2


def test_the_likeliest_story_of_100_tokens_is_that_of_transformers(ours, theirs):
    prompt = np.array([[1]])
    expected = theirs.generate(
        torch.from_numpy(prompt), do_sample=False, min_new_tokens=100, max_new_tokens=100
    )

    @nnx.jit
    def write(model, prompt):
        logits, cache = model.prefill(prompt, max_length=128)

        def step(carry, _):
            logits, cache = carry
            # transformers forbids the end of text (2) before the last of `min_new_tokens`.
            token = jnp.argmax(logits.at[:, 2].set(-jnp.inf), axis=-1)
            return model.decode_step(token, cache), token[0]

        return jax.lax.scan(step, (logits, cache), length=100)[1]

    np.testing.assert_array_equal(write(ours, prompt), expected[0, 1:])
