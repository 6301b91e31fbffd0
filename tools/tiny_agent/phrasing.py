"""Ways to word a request: frames shared by all tools around the imperatives and noun phrases of each family.

Held-back wordings combine a frame or a phrase that training never shows (`*_HELD`, second and fourth list of PHRASES) with
anything. Requests in training are also disturbed: unknown filler words, a changed or dropped word away from the arguments.
"""

IMP_FRAMES = """{I}.|{I}|{I}!|Please {i}.|Please {i}|Can you {i}?|Could you {i}?|Could you please {i}?|Can you {i} for me?|Could you {i} for me?
|Would you {i}?|I want you to {i}.|I would like you to {i}.|I need you to {i}.|Let's {i}.|We must {i}.|We must {i} now.|We should {i}.
|You should {i}.|It is time to {i}.|Go ahead and {i}.|Try to {i}.|I'd like to {i}.|I want to {i}.|I need to {i}.|I have to {i}.|Help me {i}.
|Help me to {i}.|Be so kind and {i}.|Now {i}.|Just {i}.|First {i}.|Will you {i}?|Are you able to {i}?|Your task: {i}|Task: {i}.|{I}, please.
|{I} now.|{I} for me.|{I} right away.|{I} when you can.|Someone asked me to {i}.|Would you be able to {i}?|I'd love it if you could {i}."""
IMP_FRAMES = [f.strip() for f in IMP_FRAMES.replace("\n", "").split("|")]
IMP_HELD = ["Could you kindly {i}?", "Do me a favour and {i}.", "My boss wants us to {i}.", "Is it possible to {i}?"]
NP_FRAMES = """What is {n}?|What's {n}?|Tell me {n}.|Show me {n}.|Give me {n}.|I need {n}.|I want {n}.|I want to know {n}.|I'd like to know {n}.
|I would like to see {n}.|Do you know {n}?|Can you tell me {n}?|Could you tell me {n}?|Can you find {n}?|Could you look up {n}?|Find {n}.
|Get me {n}.|Get {n}.|Look up {n}.|Check {n}.|I am looking for {n}.|{N}?|{N}|{N}, please.|What about {n}?|May I have {n}?|Can I have {n}?
|I am interested in {n}.|Find out {n}.|Please tell me {n}.|Please give me {n}.|Please find {n}|Could you get {n} for me?|Can you show me {n}?
|I must know {n}.|How about {n}?|Somebody wants to know {n}.|Could you give me {n}?"""
NP_FRAMES = [f.strip() for f in NP_FRAMES.replace("\n", "").split("|")]
NP_HELD = ["Can you figure out {n}?", "I was wondering about {n}.", "Let me have {n}.", "Would you mind telling me {n}?"]

# family: (imperatives, held imperatives, noun phrases, held noun phrases); several are split at "|"
PHRASES = {
    "weather": ("check the weather in {city}|look up the weather for {city}|get the weather in {city}|tell me how the weather is in {city}|"
                "check the temperature in {city} in {unit}|see if it rains in {city}|find out how warm it is in {city}|tell me if I need a coat in {city}",
                "look at the sky over {city}|report the weather from {city}",
                "the weather in {city}|the current weather in {city}|the weather of {city} in {unit}|the temperature in {city}|the weather for {city}|"
                "the temperature in {city} in {unit}|the weather report for {city}|today's weather in {city}",
                "the present weather at {city}|the weather conditions in {city}"),
    "time": ("check the time in {city}|tell me the time in {city}|look up the local time of {city}|get the current time for {city}|"
             "tell me how late it is in {city}|see what time it is in {city}", "look at the clock in {city}",
             "the time in {city}|the local time in {city}|the current time of {city}|the time over in {city}|the hour in {city}|"
             "the time right now in {city}", "the clock time in {city}|the exact time at {city}"),
    "calc": ("calculate {expression}|compute {expression}|evaluate {expression}|work out {expression}|solve {expression}|"
             "use the calculator on {expression}|tell me how much {expression} is", "do the maths for {expression}",
             "the result of {expression}|the value of {expression}|{expression}|the answer to {expression}", "the outcome of {expression}"),
    "add": ("add {a} and {b}|add {b} to {a}|sum {a} and {b}|compute {a} plus {b}|calculate {a} plus {b}|work out {a} + {b}|sum up {a} and {b}|"
            "add the numbers {a} and {b}|add together {a} and {b}", "total {a} and {b}",
            "the sum of {a} and {b}|{a} plus {b}|{a} + {b}|the total of {a} and {b}", "the addition of {a} and {b}"),
    "multiply": ("multiply {a} by {b}|multiply {a} and {b}|multiply {a} with {b}|compute {a} times {b}|calculate {a} times {b}|work out {a} * {b}|"
                 "multiply the numbers {a} and {b}", "take {a} times {b}",
                 "the product of {a} and {b}|{a} times {b}|{a} multiplied by {b}|{a} x {b}|{a} * {b}", "the multiplication of {a} and {b}"),
    "subtract": ("subtract {b} from {a}|take {b} away from {a}|compute {a} minus {b}|calculate {a} minus {b}|work out {a} - {b}|deduct {b} from {a}",
                 "take {b} off {a}", "{a} minus {b}|the difference of {a} and {b}|{a} - {b}|the difference between {a} and {b}", "{a} less {b}"),
    "divide": ("divide {a} by {b}|compute {a} divided by {b}|calculate {a} over {b}|work out {a} / {b}|split {a} by {b}", "divide the number {a} by {b}",
               "{a} divided by {b}|the quotient of {a} and {b}|{a} / {b}|{a} over {b}", "the ratio of {a} to {b}"),
    "search": ('search the docs for {query}|search for {query}|search our documents for {query}|look for {query} in the docs|find documents about {query}|'
               'run a search for "{query}"|look up "{query}" in the documentation|search for "{query}" with {limit} results|find {limit} docs on {query}|'
               'look into the docs on {query}', 'query the documents for "{query}"|hunt for {query} in the docs',
               'docs on {query}|documents about {query}|the documentation of {query}|everything about "{query}"|the best {limit} documents on {query}|'
               'information on {query} in the docs', 'the pages about {query}|docs that mention "{query}"'),
    "convert": ("convert {amount} {src} to {dst}|convert {amount} {src} into {dst}|change {amount} {src} to {dst}|exchange {amount} {src} for {dst}|"
                "turn {amount} {src} into {dst}|calculate {amount} {src} in {dst}|tell me how much {amount} {src} is in {dst}",
                "swap {amount} {src} for {dst}", "{amount} {src} in {dst}|the value of {amount} {src} in {dst}|the amount of {dst} for {amount} {src}|"
                "the worth of {amount} {src} in {dst}", "the price of {amount} {src} in {dst}"),
    "reminder": ("remind me to {text} at {time}|set a reminder to {text} at {time}|create a reminder for {time} to {text}|"
                 "set a reminder for {time} to {text}|set up a reminder at {time} to {text}|remind me at {time} to {text}|"
                 'make a reminder "{text}" at {time}|remind me at {time} that I have to {text}|add a reminder for {time}: {text}',
                 "notify me at {time} to {text}|schedule a reminder for {time} to {text}",
                 'a reminder to {text} at {time}|a reminder for {time} to {text}|a reminder at {time}: {text}|a reminder "{text}" at {time}',
                 "one reminder for {time} to {text}"),
    "list": ("list the files in {path}|list the folder {path}|show me the files in {path}|list everything in {path}|show what is inside {path}|"
             "list the directory {path}|tell me which files are in {path}|look into the folder {path}", "enumerate the files of {path}|print a listing of {path}",
             "the files in {path}|the contents of the folder {path}|a listing of {path}|the file names in {path}|the files of the directory {path}|"
             "a list of the files in {path}", "the entries of the folder {path}"),
    "read": ("read the file {path}|read {path}|open the file {path}|open {path}|show me what {path} contains|tell me what {path} says|"
             "tell me what is in {path}|print the file {path}|read {path} to me|load the file {path}", "display the file {path}|view {path}",
             "the content of {path}|the contents of the file {path}|the text of {path}|the text in the file {path}|what {path} contains|what {path} says",
             "the words in {path}"),
    "message": ('send a message to {to}: {text}|tell {to} that {text}|send "{text}" to {to}|message {to} and say "{text}"|let {to} know that {text}|'
                'send {to} the message "{text}"|inform {to} that {text}|send {to} a note: "{text}"|text {to} "{text}"|write {to} a message saying {text}|'
                'say "{text}" to {to}', 'pass "{text}" on to {to}|drop {to} a note: "{text}"',
                'a message to {to}: {text}|a message for {to} saying "{text}"|a text to {to}: "{text}"', 'a short note for {to}: "{text}"'),
    "order": ("look up order {id}|track order {id}|find order {id}|check order {id}|check the status of order {id}|tell me where order {id} is|"
              "tell me when order {id} arrives|tell me what happened to order {id}|find out if order {id} was shipped|see how order {id} is doing",
              "trace order {id}|see whether order {id} has left",
              "the status of order {id}|order {id}|my order {id}|an update on order {id}|the state of order number {id}|news about order {id}",
              "the whereabouts of order {id}|the progress of order {id}"),
    "stock": ("check the price of {ticker}|look up the {ticker} stock|get a quote for {ticker}|look up the share price of {ticker}|"
              "tell me how {ticker} is trading|find the price of {ticker} shares", "see what {ticker} shares cost",
              "the stock price of {ticker}|the share price of {ticker}|the price of {ticker}|a quote for {ticker}|the price of a {ticker} share",
              "the value of {ticker} stock"),
    "translate": ('translate "{text}" to {language}|translate "{text}" into {language}|translate {text} to {language}|put "{text}" into {language}|'
                  'say "{text}" in {language}|tell me how to say "{text}" in {language}', 'render "{text}" in {language}',
                  'the {language} translation of "{text}"|"{text}" in {language}|the translation of "{text}" to {language}|the {language} for "{text}"',
                  'the {language} version of "{text}"'),
    "email": ('send an email to {to} about {subject}|email {to} about {subject}|write an email to {to} with the subject "{subject}"|'
              'send {to} an email about {subject}|email {to} with subject "{subject}"|mail {to} about "{subject}"|send an email with subject "{subject}" to {to}',
              'compose an email to {to} about {subject}', 'an email to {to} about {subject}|an email to {to} with the subject "{subject}"',
              'a mail for {to} about {subject}'),
    "contact": ("look up {name} in my contacts|find the contact {name}|find {name}'s number|look up the phone number of {name}|get {name}'s phone number|"
                "tell me how to reach {name}", "dig out the number of {name}",
                "the phone number of {name}|{name}'s phone number|the contact details of {name}|the number of {name}|the telephone number of {name}",
                "the contact data of {name}"),
    "user": ("look up user {id}|get user {id}|fetch user {id}|find the user with id {id}|show me user {id}|fetch user number {id}|tell me about user {id}|"
             "load the record of user {id}", "retrieve user {id}", "user {id}|the user {id}|the record of user {id}|the name of user {id}|the user with the id {id}|"
             "the data of customer {id}", "the profile of user {id}"),
    "light": ("turn {state} the light in the {room}|turn the {room} light {state}|switch {state} the {room} light|switch the {room} lamp {state}|"
              "turn the lamp in the {room} {state}|set the {room} light to {state}|put the {room} light {state}", "make the {room} light go {state}",
              "the {room} light {state}|the light in the {room} {state}|the lamp in the {room} {state}", "the lights of the {room} {state}"),
    "play": ('play {song}|play "{song}"|play the song "{song}"|put on {song}|start playing "{song}"|play the track {song}|let me listen to {song}|'
             'play some {song}', 'spin the record "{song}"', 'the song "{song}"|some music: {song}', 'the tune "{song}"'),
    "timer": ("set a timer for {minutes} minutes|start a {minutes} minute timer|start a timer of {minutes} minutes|count down {minutes} minutes|"
              "wake me in {minutes} minutes|set the timer to {minutes} minutes|tell me when {minutes} minutes are over", "run a timer for {minutes} minutes",
              "a timer for {minutes} minutes|a {minutes} minute timer|a timer of {minutes} minutes|a countdown of {minutes} minutes",
              "a {minutes} minutes countdown"),
    "flight": ("find flights from {src} to {dst}|search a flight from {src} to {dst} on {date}|look for a flight from {src} to {dst}|"
               "fly from {src} to {dst}|fly to {dst} from {src} on {date}|get from {src} to {dst} on {date}|find a flight to {dst} from {src}|"
               "search flights from {src} to {dst} on {date}", "see which planes go from {src} to {dst}",
               "a flight from {src} to {dst}|flights from {src} to {dst} on {date}|a flight to {dst} from {src}|a flight from {src} to {dst} on {date}",
               "a plane from {src} to {dst} on {date}"),
    "url": ("fetch {url}|open {url}|load the page {url}|visit {url}|get {url}|tell me what is on {url}|download {url}|show me what {url} contains|"
            "open the link {url}", "go to {url}", "the page {url}|the content of {url}|the text on {url}|the title of {url}", "the website {url}"),
}


def split(text):
    return [p for p in text.split("|") if p]


def cap(text):
    return text[0].upper() + text[1:] if text[0] != "{" else text


def framed(frame, phrase):
    return frame.replace("{i}", phrase).replace("{n}", phrase).replace("{I}", cap(phrase)).replace("{N}", cap(phrase))


def wordings(phrases, unseen, r):
    """One worded template from (imperatives, held imperatives, noun phrases, held noun phrases) lists."""
    imps, imps_held, nps, nps_held = phrases
    use_np = bool(nps) and r.random() < 0.5
    seen_phrases, held_phrases = (nps, nps_held) if use_np else (imps, imps_held)
    seen_frames, held_frames = (NP_FRAMES, NP_HELD) if use_np else (IMP_FRAMES, IMP_HELD)
    if not unseen:
        return framed(r.choice(seen_frames), r.choice(seen_phrases))
    if held_phrases and r.random() < 0.5:
        return framed(r.choice(seen_frames + held_frames), r.choice(held_phrases))
    return framed(r.choice(held_frames), r.choice(seen_phrases))


def disturb(template, v):
    """Training noise: changes, drops or inserts one word that does not touch an argument."""
    words = template.split(" ")
    free = [i for i in range(len(words)) if all("{" not in w and '"' not in w for w in words[max(0, i - 1):i + 2])]
    if not free or len(words) < 4:
        return template
    i = v.rng.choice(free)
    x = v.rng.random()
    if x < 0.5:
        words[i] = v.word()
    elif x < 0.75:
        del words[i]
    else:
        words.insert(i, v.word())
    return " ".join(words)


def filler(v):
    """An unrelated opening in words the tools do not use."""
    r = v.rng
    x = r.random()
    if x < 0.4:
        return " ".join(v.word() for _ in range(r.randint(1, 3))).capitalize() + r.choice([". ", ": ", ", ", "! ", " - "])
    if x < 0.7:
        return f"{v.name()} {r.choice(['is', 'was', 'likes', 'has', 'wants', 'saw'])} {v.phrase(1, 3)}. "
    return r.choice(["I was thinking about {}. ", "Do you like {}? ", "I have seen {}. ", "We talked about {}. ", "My {} is fine. "]).format(v.phrase(1, 2))
