"""The unmodified openai client: sync, async, streaming, and its exceptions."""
import asyncio

import openai
import pytest

PROMPT = "Sort: 7 3 9 1 ->"


def test_models_are_listed_and_found_by_id(client, model_id):
    assert client.models.retrieve(model_id).id == model_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_a_completion_has_text_usage_and_a_finish_reason(client, model_id):
    answer = client.completions.create(model=model_id, prompt=PROMPT, max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 8


def test_greedy_is_repeatable_and_a_seed_repeats_a_sample(client, model_id):
    def text(**options):
        return client.completions.create(model=model_id, prompt="Once upon a time", max_tokens=24,
                                         **options).choices[0].text

    assert text(temperature=0) == text(temperature=0)
    assert text(temperature=1.0, seed=7) == text(temperature=1.0, seed=7)
    assert len({text(temperature=1.5, seed=seed) for seed in range(6)}) > 1


def test_a_stream_carries_the_same_text_as_the_whole_answer(client, model_id):
    whole = client.completions.create(model=model_id, prompt="Once upon a time", max_tokens=32,
                                      temperature=0)
    stream = client.completions.create(model=model_id, prompt="Once upon a time", max_tokens=32,
                                       temperature=0, stream=True,
                                       stream_options={"include_usage": True})
    text, reasons, usage = "", [], None
    for chunk in stream:
        if chunk.choices:
            assert usage is None
            text += chunk.choices[0].text
            reasons.append(chunk.choices[0].finish_reason)
        else:
            usage = chunk.usage
    assert text == whole.choices[0].text
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_streams_a_role_then_text_then_an_empty_last_delta(client, model_id):
    messages = [{"role": "user", "content": "Who are you?"}]
    whole = client.chat.completions.create(model=model_id, messages=messages, max_tokens=24,
                                           temperature=0)
    assert whole.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(model=model_id, messages=messages, max_tokens=24,
                                                 temperature=0, stream=True))
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert not chunks[-1].choices[0].delta.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_content_parts_equal_a_content_string(client, model_id):
    def ask(content):
        return client.chat.completions.create(
            model=model_id, messages=[{"role": "user", "content": content}], max_tokens=12,
            temperature=0).choices[0].message.content

    assert ask("Who are you?") == ask([{"type": "text", "text": "Who are you?"}])


def test_several_choices_and_prompts_are_indexed(client, model_id):
    answer = client.completions.create(model=model_id, prompt=[PROMPT, "Once upon"], n=2, max_tokens=4,
                                       temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text  # greedy


def test_a_stop_string_ends_the_text_before_itself(client, model_id):
    free = client.completions.create(model=model_id, prompt="Once upon a time", max_tokens=40, temperature=0)
    text = free.choices[0].text
    stop = text[10:13]
    cut = client.completions.create(model=model_id, prompt="Once upon a time", max_tokens=40, temperature=0,
                                    stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == text[: text.index(stop)]


def test_logprobs_of_a_completion_and_of_a_chat(client, model_id):
    answer = client.completions.create(model=model_id, prompt="Once upon", max_tokens=5, temperature=0,
                                       logprobs=3).choices[0]
    assert len(answer.logprobs.tokens) == len(answer.logprobs.token_logprobs) == 5
    assert all(len(top) >= 3 for top in answer.logprobs.top_logprobs)
    assert all(value <= 0 for value in answer.logprobs.token_logprobs)
    assert "".join(answer.logprobs.tokens) == answer.text
    chat = client.chat.completions.create(model=model_id, messages=[{"role": "user", "content": "Hi"}],
                                          max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    for entry in chat.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert abs(entry.top_logprobs[0].logprob - entry.logprob) < 1e-6  # greedy


@pytest.mark.parametrize("arguments,parameter", [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"presence_penalty": 9}, "presence_penalty"),
])
def test_a_field_out_of_range_is_a_bad_request_that_names_it(client, model_id, arguments, parameter):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": model_id, "prompt": "x", "max_tokens": 4, **arguments})
    assert caught.value.body["param"] == parameter


def test_a_prompt_beyond_the_context_is_refused_with_the_counts(client, model_id):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model_id, prompt=[5] * 100_000, max_tokens=4)
    assert caught.value.body["code"] == "context_length_exceeded"
    assert "100000" in caught.value.body["message"]


def test_tools_and_schemas_are_refused_as_not_offered(client, model_id):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model_id, messages=[{"role": "user", "content": "x"}],
                                       tools=[tool])
    assert caught.value.status_code == 501


def test_sixteen_async_chats_answer_as_one_alone(server, client, model_id):
    messages = [[{"role": "user", "content": f"Sort: {n} 3 9 1"}] for n in range(16)]
    alone = [client.chat.completions.create(model=model_id, messages=m, max_tokens=24, temperature=0.7,
                                            seed=11).choices[0].message.content for m in messages]

    async def together():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="unused",
                                      max_retries=0) as async_client:
            return await asyncio.gather(*(async_client.chat.completions.create(
                model=model_id, messages=m, max_tokens=24, temperature=0.7, seed=11) for m in messages))

    answers = [answer.choices[0].message.content for answer in asyncio.run(together())]
    assert answers == alone
