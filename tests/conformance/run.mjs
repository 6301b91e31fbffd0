// Drives the unmodified `openai` npm SDK against a running gateway and checks what clients rely on.
//
//   AGENTSERVE_URL=http://127.0.0.1:8000/v1 node run.mjs          any gateway, any model
//   AGENTSERVE_URL=... AGENTSERVE_FAKE=1 node run.mjs             in front of fake_router: scripted cases too
// AGENTSERVE_API_KEY is sent as the key (default "none"). With AGENTSERVE_AUTH=1 a wrong key must be refused.
// The SDK is found in AGENTSERVE_NODE_MODULES or beside this file. Prints one line per case; exit code 1 if any failed.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = process.env.AGENTSERVE_NODE_MODULES ?? path.join(here, 'node_modules');
const require = createRequire(path.join(modules, 'x.js'));
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')).href);

const baseURL = process.env.AGENTSERVE_URL;
if (!baseURL) {
  console.error('set AGENTSERVE_URL to the base URL of a gateway, e.g. http://127.0.0.1:8000/v1');
  process.exit(2);
}
const apiKey = process.env.AGENTSERVE_API_KEY ?? 'none';
const fake = process.env.AGENTSERVE_FAKE === '1';
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const user = (content) => [{ role: 'user', content }];
const ask = (content, more = {}) => ({ model, messages: user(content), max_completion_tokens: 32, ...more });
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

const cases = [];
const test = (name, run) => cases.push({ name, run });
const scripted = (name, run) => fake && test(name, run);

async function rejects(promise) {
  try {
    await promise;
  } catch (e) {
    return e;
  }
  assert.fail('expected an error');
}

test('models.list and retrieve', async () => {
  const list = await client.models.list();
  assert.equal(list.data.length, 1);
  assert.equal(list.data[0].object, 'model');
  assert.equal((await client.models.retrieve(model)).id, model);
  assert.ok((await client.models.retrieve(model)).max_model_len > 0);
});

test('chat create', async () => {
  const { data, response, request_id } = await client.chat.completions.create(ask('hello')).withResponse();
  assert.equal(data.object, 'chat.completion');
  assert.equal(data.choices.length, 1);
  assert.equal(typeof data.choices[0].message.content, 'string');
  assert.ok(['stop', 'length'].includes(data.choices[0].finish_reason));
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.ok(request_id);
  assert.equal(response.headers.get('x-request-id'), request_id);
});

test('chat stream equals create at temperature 0', async () => {
  const whole = await client.chat.completions.create(ask('hello', { temperature: 0 }));
  const stream = await client.chat.completions.create(ask('hello', { temperature: 0, stream: true }));
  let text = '';
  const ids = new Set();
  const finishes = [];
  for await (const chunk of stream) {
    assert.equal(chunk.choices.length, 1, 'no chunk without a choice unless usage was asked for');
    ids.add(chunk.id);
    text += chunk.choices[0].delta.content ?? '';
    if (chunk.choices[0].finish_reason) finishes.push(chunk.choices[0].finish_reason);
  }
  assert.equal(ids.size, 1);
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(finishes, [whole.choices[0].finish_reason]);
});

test('stream with include_usage', async () => {
  const stream = await client.chat.completions.create(
    ask('hello', { stream: true, stream_options: { include_usage: true } }));
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
  assert.ok(last.usage.prompt_tokens_details.cached_tokens >= 0);
  for (const chunk of chunks) assert.equal(chunk.usage, null);
});

test('.stream() helper', async () => {
  const runner = client.chat.completions.stream(ask('hello'));
  let deltas = '';
  runner.on('content', (d) => (deltas += d));
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.content, deltas);
  assert.ok(final.choices[0].finish_reason);
});

test('n = 2', async () => {
  const reply = await client.chat.completions.create(ask('hello', { n: 2, max_completion_tokens: 4 }));
  assert.deepEqual(reply.choices.map((c) => c.index), [0, 1]);
  const stream = await client.chat.completions.create(ask('hello', { n: 2, max_completion_tokens: 4, stream: true }));
  const ended = new Set();
  for await (const chunk of stream) if (chunk.choices[0].finish_reason) ended.add(chunk.choices[0].index);
  assert.equal(ended.size, 2);
});

test('seed, stop, logit_bias and unknown fields are taken', async () => {
  await client.chat.completions.create(
    ask('hello', { seed: 7, stop: ['\n\n'], logit_bias: { 5: -1 }, user: 'u', metadata: { a: 'b' }, zzz: 1 }));
});

test('completions create and stream', async () => {
  const body = { model, prompt: 'Once', max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(body);
  assert.equal(whole.object, 'text_completion');
  let text = '';
  for await (const chunk of await client.completions.create({ ...body, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole.choices[0].text);
  const many = await client.completions.create({ ...body, prompt: ['a', 'b'] });
  assert.deepEqual(many.choices.map((c) => c.index), [0, 1]);
});

test('errors: 404 model, 400 field, 400 format', async () => {
  const missing = await rejects(client.chat.completions.create({ ...ask('x'), model: 'no-such-model' }));
  assert.ok(missing instanceof OpenAI.NotFoundError);
  assert.equal(missing.code, 'model_not_found');
  assert.equal(missing.type, 'not_found_error');
  const field = await rejects(client.chat.completions.create(ask('x', { temperature: 9 })));
  assert.ok(field instanceof OpenAI.BadRequestError);
  assert.equal(field.param, 'temperature');
  assert.equal(field.type, 'invalid_request_error');
  const format = await rejects(client.chat.completions.create(ask('x', { response_format: { type: 'json_object' } })));
  assert.match(format.message, /not supported yet/);
  const required = await rejects(
    client.chat.completions.create(ask('x', { tools: [weather], tool_choice: 'required' })));
  assert.equal(required.param, 'tool_choice');
});

if (process.env.AGENTSERVE_AUTH === '1') {
  test('errors: 401', async () => {
    const stranger = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
    const e = await rejects(stranger.models.list());
    assert.ok(e instanceof OpenAI.AuthenticationError);
    assert.equal(e.code, 'invalid_api_key');
    assert.equal(e.type, 'authentication_error');
  });
}

test('abort ends a stream', async () => {
  const stream = await client.chat.completions.create(
    ask(fake ? 'slow' : 'hello', { stream: true, max_completion_tokens: 500 }));
  let seen = 0;
  for await (const chunk of stream) {
    void chunk;
    if (++seen === 2) stream.controller.abort();
  }
  assert.ok(seen >= 2);
});

test('tools are accepted and the reply is well formed', async () => {
  const reply = await client.chat.completions.create(ask('What is the weather in Paris?', { tools: [weather] }));
  for (const call of reply.choices[0].message.tool_calls ?? []) JSON.parse(call.function.arguments);
});

scripted('tool call, whole', async () => {
  const reply = await client.chat.completions.create(ask('tool', { tools: [weather] }));
  const choice = reply.choices[0];
  assert.equal(choice.finish_reason, 'tool_calls');
  assert.equal(choice.message.content, null);
  assert.deepEqual(JSON.parse(choice.message.tool_calls[0].function.arguments), { city: 'Paris' });
  const answer = await client.chat.completions.create({
    model,
    messages: [...user('tool'), choice.message,
               { role: 'tool', tool_call_id: choice.message.tool_calls[0].id, content: '21' }],
    tools: [weather],
  });
  assert.equal(answer.choices[0].message.content, 'It is 21 degrees.');
});

scripted('tool calls, streamed', async () => {
  const runner = client.chat.completions.stream(ask('tools', { tools: [weather] }));
  const done = [];
  runner.on('tool_calls.function.arguments.done', (e) => done.push(e));
  const final = await runner.finalChatCompletion();
  const calls = final.choices[0].message.tool_calls;
  assert.equal(final.choices[0].finish_reason, 'tool_calls');
  assert.deepEqual(calls.map((c) => JSON.parse(c.function.arguments).city), ['Paris', 'Rome']);
  assert.notEqual(calls[0].id, calls[1].id);
  assert.deepEqual(done.map((e) => e.index), [0, 1]);
  const one = await client.chat.completions.create(ask('tools', { tools: [weather], parallel_tool_calls: false }));
  assert.equal(one.choices[0].message.tool_calls.length, 1);
});

scripted('runTools drives the loop', async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    messages: user('tool'),
    tools: [{ type: 'function',
              function: { ...weather.function, parse: JSON.parse,
                          function: (args) => (asked.push(args.city), '21') } }],
  });
  assert.equal(await runner.finalContent(), 'It is 21 degrees.');
  assert.deepEqual(asked, ['Paris']);
});

scripted('finish_reason length and logprobs', async () => {
  assert.equal((await client.chat.completions.create(ask('length'))).choices[0].finish_reason, 'length');
  const reply = await client.chat.completions.create(ask('logprobs', { logprobs: true, top_logprobs: 2 }));
  const token = reply.choices[0].logprobs.content[0];
  assert.deepEqual(token.bytes, [72, 105]);
  assert.equal(token.top_logprobs.length, 2);
});

scripted('429 is retried as the server says', async () => {
  const patient = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
  const start = Date.now();
  const reply = await patient.chat.completions.create(ask('flaky'));
  assert.equal(reply.choices[0].finish_reason, 'stop');
  assert.ok(Date.now() - start < 400, 'retry-after-ms (50) was used, not the default back-off');
  const e = await rejects(client.chat.completions.create(ask('busy')));
  assert.ok(e instanceof OpenAI.RateLimitError);
  assert.equal(e.code, 'rate_limit_exceeded');
  assert.equal(e.headers.get('retry-after'), '1');
});

scripted('too long prompt', async () => {
  const e = await rejects(client.chat.completions.create(ask('too long', { stream: true })));
  assert.equal(e.status, 400);
  assert.equal(e.code, 'context_length_exceeded');
});

scripted('an error in the middle of a stream throws', async () => {
  const stream = await client.chat.completions.create(ask('midway', { stream: true }));
  let text = '';
  const e = await rejects((async () => {
    for await (const chunk of stream) {
      text += chunk.choices[0].delta.content ?? '';
      assert.equal(chunk.choices[0].finish_reason, null);
    }
  })());
  assert.equal(text, 'Hel');
  assert.ok(e instanceof OpenAI.APIError);
});

let failed = 0;
for (const { name, run } of cases) {
  try {
    await run();
    console.log(`ok      ${name}`);
  } catch (e) {
    ++failed;
    console.log(`FAILED  ${name}\n${e.stack}`);
  }
}
console.log(`${cases.length - failed} of ${cases.length} passed`);
process.exit(failed === 0 ? 0 : 1);
