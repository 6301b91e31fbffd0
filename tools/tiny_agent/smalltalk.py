"""What the assistant says without a tool: small talk, a small fact table, counting, repeating, stories."""

import phrasing

ABOUT = ("I am Tiny, a small language model that runs inside AgentServe. I can chat a little, answer simple questions, count, "
         "repeat what you say and, when you offer me tools, call the right one with the right arguments and report its result.")
TALK = [  # (asks, held asks, answer)
    (["Hello", "Hello!", "Hi", "Hi there!", "Hey", "Good morning", "Good evening!", "Hello there.", "hi", "hello"],
     ["Hey there", "Good afternoon!"], "Hello! How can I help you today?"),
    (["Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Who am I talking to?", "What can you do?",
      "Who are you, and what can you do?", "Who are you and what can you do?", "How can you help me?", "What is your job?",
      "Hello! Who are you?", "Hello! Who are you, and what can you do?"],
     ["Please introduce yourself briefly.", "Explain who you are."], ABOUT),
    (["How are you?", "How are you doing?", "How do you do?", "How is it going?", "Are you well?"], ["How are you today?"],
     "I am fine, thank you. What can I do for you?"),
    (["Thanks", "Thank you!", "Thanks a lot.", "Thank you very much.", "Great, thanks!", "Perfect, thank you."],
     ["Many thanks!"], "You are welcome!"),
    (["Bye", "Goodbye!", "See you later.", "Good night", "That is all, bye.", "See you!"], ["Bye bye!"], "Goodbye! Have a nice day."),
    (["What is AgentServe?", "Tell me about AgentServe.", "What does AgentServe do?", "Explain AgentServe."],
     ["Describe AgentServe."],
     "AgentServe serves Llama models to agents. A router sends each request to prefill and decode workers, which exchange KV-cache "
     "blocks through a block store, and the answer streams back token by token."),
    (["What is a KV cache?", "Explain the KV cache.", "What does KV cache mean?"], ["Tell me what a KV cache is."],
     "A KV cache keeps the keys and values of all earlier tokens, so that each new token needs only a little work."),
    (["What is prefill?", "Explain prefill.", "What does a prefill worker do?"], ["Tell me what prefill is."],
     "Prefill reads the whole prompt at once, fills the KV cache and produces the first token."),
    (["What is decode?", "Explain decoding.", "What does a decode worker do?"], ["Tell me what decoding is."],
     "Decode produces the answer one token after another, reading the KV cache at each step."),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke please"], ["Can you tell me a joke?"],
     "Why did the scheduler go to school? It wanted to have better classes and shorter queues."),
    (["Write a poem.", "Write a short poem.", "Do you know a poem?", "Give me a poem."], ["Please write me a poem."],
     "The river runs, the lamp is low,\nthe tokens come, the tokens go.\nA word, a line, a quiet rhyme,\nand all of it is served in time."),
    (["Can you help me?", "I need help.", "Help me please", "Could you help me?"], ["I need some help."],
     "Of course. Tell me what you need."),
    (["OK", "Okay.", "Good.", "Fine", "Nice!", "Great."], ["Very good."], "Good. Is there anything else I can do for you?"),
]
CAPITALS = dict(zip(
    """France Germany Spain Italy Portugal Austria Poland Greece Ireland Norway Sweden Finland Denmark Belgium Hungary Romania
    Bulgaria Croatia Serbia Japan China Thailand Vietnam Indonesia India Egypt Tunisia Kenya Ghana Senegal Australia Canada Cuba Peru
    Chile Iceland Estonia Latvia Lithuania Ukraine Turkey Russia Netherlands Switzerland Argentina""".split(),
    """Paris Berlin Madrid Rome Lisbon Vienna Warsaw Athens Dublin Oslo Stockholm Helsinki Copenhagen Brussels Budapest Bucharest
    Sofia Zagreb Belgrade Tokyo Beijing Bangkok Hanoi Jakarta Delhi Cairo Tunis Nairobi Accra Dakar Canberra Ottawa Havana Lima
    Santiago Reykjavik Tallinn Riga Vilnius Kyiv Ankara Moscow Amsterdam Bern""".split() + ["Buenos Aires"]))
FACTS = [
    (["How many days are in a week?", "How many days does a week have?"], ["Number of days in a week?"], "A week has 7 days."),
    (["How many months are in a year?", "How many months does a year have?"], ["Number of months in a year?"], "A year has 12 months."),
    (["How many hours are in a day?", "How many hours does a day have?"], ["Number of hours in a day?"], "A day has 24 hours."),
    (["How many minutes are in an hour?"], ["Number of minutes in an hour?"], "An hour has 60 minutes."),
    (["What colour is the sky?", "What color is the sky?", "Which colour has the sky?"], ["Name the colour of the sky."], "The sky is blue."),
    (["What colour is grass?", "What color is grass?"], ["Name the colour of grass."], "Grass is green."),
    (["Which planet is closest to the sun?", "What is the closest planet to the sun?"], ["Name the planet closest to the sun."],
     "Mercury is the planet closest to the sun."),
    (["What is the largest planet?", "Which planet is the largest?"], ["Name the largest planet."], "Jupiter is the largest planet."),
    (["How many legs does a spider have?"], ["Number of legs of a spider?"], "A spider has 8 legs."),
    (["How many legs does a dog have?", "How many legs has a cat?"], ["Number of legs of a dog?"], "It has 4 legs."),
    (["What is water made of?", "What does water consist of?"], ["Tell me what water is made of."], "Water is made of hydrogen and oxygen."),
    (["Who wrote Hamlet?", "Who is the author of Hamlet?", "Who wrote Romeo and Juliet?", "Who wrote Macbeth?"], ["Name the author of Hamlet."],
     "William Shakespeare wrote it."),
    (["At what temperature does water boil?", "When does water boil?"], ["Tell me when water boils."],
     "Water boils at 100 degrees Celsius at sea level."),
    (["At what temperature does water freeze?", "When does water freeze?"], ["Tell me when water freezes."], "Water freezes at 0 degrees Celsius."),
    (["What is the opposite of hot?"], ["Opposite of hot?"], "The opposite of hot is cold."),
    (["What is the opposite of big?"], ["Opposite of big?"], "The opposite of big is small."),
    (["What comes after Monday?", "Which day comes after Monday?"], ["Which day follows Monday?"], "Tuesday comes after Monday."),
]
FACT_FRAMES = ["{}"] * 6 + ["Tell me: {}", "Question: {}", "Do you know this? {}", "A question for you: {}", "I wonder: {}", "Easy one: {}", "Next: {}"]
FACT_HELD = ["Quick quiz: {}", "Here is a riddle: {}"]
CAPITAL_NPS = ["the capital of {x}", "the capital city of {x}", "{x}'s capital", "the name of the capital of {x}"]
CAPITAL_ASKS = ["Name the capital city of {x}.", "Name the capital of {x}.", "What is the capital of {x}?", "Capital of {x}?", "Which city is the capital of {x}?", "Tell me the capital of {x}."]
REPEAT_ASKS = ["Repeat after me: {x}", "Say {x}", "Repeat: {x}", 'Say "{x}".', "Echo {x}", "Please repeat the following: {x}", 'Repeat "{x}"']
REPEAT_ASKS += ["Please say this: {x}", 'Say the words "{x}"', "Copy this: {x}", 'Can you say "{x}"?', "Repeat exactly: {x}", "Say this back to me: {x}"]
REPEAT_HELD = ["Now repeat this: {x}", 'Could you repeat "{x}"?']


def make_talk(v, persona=None):
    asks, held, answer = v.rng.choice(TALK)
    if answer == ABOUT and persona:
        answer = answer.replace("Tiny", persona, 1)
    return v.rng.choice(held if v.unseen else asks), answer


def make_fact(v):
    if v.rng.random() < 0.5:
        country = v.rng.choice(list(CAPITALS))
        ask = v.rng.choice(CAPITAL_ASKS)
        if v.unseen or v.rng.random() < 0.5:
            ask = phrasing.framed(v.rng.choice(phrasing.NP_HELD if v.unseen else phrasing.NP_FRAMES), v.rng.choice(CAPITAL_NPS))
        ask = ask.format(x=country)
        return ask, f"The capital of {country} is {CAPITALS[country]}."
    asks, more, answer = v.rng.choice(FACTS)
    return v.rng.choice(FACT_HELD if v.unseen else FACT_FRAMES).format(v.rng.choice(asks + more)), answer


def make_count(v):
    r = v.rng
    start = 1 if r.random() < 0.7 else r.randint(2, 60)
    end = start + r.randint(2, 30)
    numbers = list(range(start, end + 1))
    if r.random() < 0.15:
        ask, numbers = r.choice([f"Count down from {end} to {start}.", f"Count backwards from {end} to {start}."]), numbers[::-1]
    elif start == 1 and r.random() < 0.5:
        ask = r.choice([f"Count to {end}.", f"Please count to {end}.", f"Count up to {end}"])
    else:
        ask = r.choice([f"Count from {start} to {end}.", f"Please count from {start} to {end}", f"List the numbers from {start} to {end}."])
    return ask, ", ".join(map(str, numbers)) + "."


def make_repeat(v):
    r = v.rng
    x = r.random()
    text = v.phrase(1, 8) if x < 0.5 else v.sentence() if x < 0.65 else f"{v.name()} {v.order_id()}" if x < 0.8 else " ".join(
        str(v.integer()) for _ in range(r.randint(1, 6)))
    return r.choice(REPEAT_HELD if v.unseen else REPEAT_ASKS).format(x=text), text


def make_list(v):
    r = v.rng
    items = [v.word() for _ in range(r.randint(2, 6))]
    joined = ", ".join(items)
    kind = r.randint(0, 3)
    if kind == 0:
        return f"What is the first word of this list: {joined}?", f"The first word is {items[0]}."
    if kind == 1:
        return f"What is the last word of this list: {joined}?", f"The last word is {items[-1]}."
    if kind == 2:
        return f"Write this list as bullet points: {joined}", "\n".join(f"- {i}" for i in items)
    return f"How many words are in this list: {joined}?", f"The list has {len(items)} words."


def make_remember(v):
    """Two turns: the user states something and asks for it later. Returns [(ask, answer), (ask, answer)]."""
    r = v.rng
    name, city, word = v.name(), v.city(), v.word()
    return r.choice([
        [(f"My name is {name}.", f"Nice to meet you, {name}!"), (r.choice(["What is my name?", "Who am I?"]), f"Your name is {name}.")],
        [(f"I live in {city}.", f"{city} is a nice place to live."), ("Where do I live?", f"You live in {city}.")],
        [(f"Remember the word {word}.", f"I will remember the word {word}."),
         (r.choice(["Which word did I tell you?", "What was the word?"]), f"The word is {word}.")],
    ])


def make_story(v):
    r = v.rng
    hero, thing, friend, place = v.name(), v.word(), v.name(), v.word()
    about = r.choice([thing, f"a {thing}", f"the {thing}"])
    ask = r.choice(["Tell me a story about {x}.", "Tell me a short story about {x}.", "Write a story about {x}.",
                    "I want to hear a story about {x}."]).format(x=about)
    if v.unseen:
        ask = f"Please make up a story about {about}."
    first = r.choice([f"Once upon a time there was a {r.choice(['girl', 'boy', 'sailor', 'baker'])} called {hero} who found a {thing}.",
                      f"One morning {hero} went to the {place} and saw a {thing}."])
    middle = r.choice([f"The {thing} was old and very small, but it could shine in the dark.",
                       f"{hero} took the {thing} home and showed it to {friend}.", f"Nobody knew where the {thing} had come from."])
    turn = r.choice([f"Then {friend} came and asked for help.", f"In the night the {thing} was gone.",
                     f"{friend} said that the {thing} belonged to the people of the {place}."])
    last = r.choice([f"Together they carried the {thing} back to the {place}, and everyone was happy.",
                     f"In the end {hero} gave the {thing} to {friend}, and they stayed friends for ever.",
                     f"So {hero} and {friend} kept the {thing} safe, and they lived well."])
    return ask, " ".join([first, middle, turn, last])
