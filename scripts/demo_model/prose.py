"""Free text by grammar: short stories in English, small passages in German and Spanish, and talk."""
import random

import lexicon as lx
from tasks import _sentence

ANIMALS = "cat dog fox bear rabbit mouse owl duck frog horse squirrel hedgehog".split()
TRAITS = "small brave curious shy happy clever kind tired hungry proud".split()
HOMES = ["in a small village", "near a big forest", "by a quiet river", "on a green hill",
         "in an old house", "at the edge of the sea", "in a busy city"]
FRIENDS = ["an old owl", "a kind woman", "a little mouse", "a friendly dog", "a tall boy", "a wise frog"]
FOODS = ["an apple", "warm bread", "a bowl of soup", "some honey", "a big cake", "a ripe pear"]
WEATHER = ["The sun was shining.", "It was raining.", "The wind was cold.", "Snow lay on the roofs.",
           "It was a warm day.", "Clouds hung over the hills."]
ENDS = ["From that day on, they were good friends.", "And they all lived happily.",
        "That night, {n} slept very well.", "{n} never forgot that day.",
        "And {n} smiled all the way home."]
LESSONS = ["It is good to share.", "A friend is the best help.", "Asking for help is brave.",
           "Little steps lead far.", "Patience finds the way."]


def story(rng: random.Random, animal: str | None = None) -> str:
    """A story with a hero, a problem, a helper and an end that agree with each other."""
    n, kind, trait = rng.choice(lx.NAMES), animal or rng.choice(ANIMALS), rng.choice(TRAITS)
    she = rng.random() < 0.5
    he, his, him = ("she", "her", "her") if she else ("he", "his", "him")
    He = he.capitalize()
    colour, thing, place = rng.choice(lx.COLOURS), rng.choice(lx.THINGS), rng.choice(lx.PLACES)
    friend, food, home = rng.choice(FRIENDS), rng.choice(FOODS), rng.choice(HOMES)
    who = friend.split()[-1]
    an = "an" if trait[0] in "aeiou" else "a"
    can = "an" if colour[0] in "aeiou" else "a"
    out = [rng.choice([f"Once upon a time, there was {an} {trait} {kind} called {n}.",
                       f"{n} was {an} {trait} {kind}.", f"There once was {an} {trait} {kind} named {n}."]),
           rng.choice([f"{He} lived {home}.", f"{n} lived {home}."])]
    plot = rng.randrange(5)
    if plot == 0:
        out += [f"{n} had {can} {colour} {thing} and loved it very much.",
                rng.choice(["One morning", "One day", "One evening"]) + f", the {thing} was gone.",
                f"{He} looked in the {place}, but the {thing} was not there.",
                rng.choice([f"{n} began to cry.", f"{n} was very sad."]),
                f"Then {friend} came by and asked, \"Why are you sad?\"",
                f"\"I lost my {colour} {thing},\" said {n}.",
                f"The {who} helped {him} to look, and soon they found the {thing} under a tree."]
    elif plot == 1:
        out += [rng.choice(WEATHER), f"{n} was hungry, but there was no food in the {place}.",
                f"So {he} went out and met {friend}.",
                f"The {who} had {food} and said, \"Let us share it.\"",
                f"They sat down together and ate {food}.",
                f"The next day, {n} gave the {who} {can} {colour} {thing} to say thank you."]
    elif plot == 2:
        out += [f"One day, {n} wanted to see the world.", rng.choice(WEATHER),
                f"{He} took {his} {colour} {thing} and walked for a long time.",
                f"At night, {he} did not know the way back.",
                f"\"I am lost,\" said {n}.",
                f"But {friend} heard {him} and showed {him} the way with a lamp.",
                f"{n} gave the {who} the {colour} {thing} and went home."]
    elif plot == 3:
        out += [f"Every day, {n} worked in the {place}.",
                f"{He} wanted to build {can} {colour} {thing}.",
                f"The first try was too big, and the second try was too small.",
                f"\"I cannot do it,\" said {n}.",
                f"\"Try once more,\" said {friend}.",
                f"{n} tried again, and this time the {colour} {thing} was just right.",
                f"The {who} was very proud of {him}."]
    else:
        other = rng.choice([x for x in lx.NAMES if x != n])
        out += [rng.choice(WEATHER), f"{n} and {other} both wanted the {colour} {thing}.",
                f"\"It is mine,\" said {n}.", f"\"No, it is mine,\" said {other}.",
                f"They pulled and pulled until the {thing} fell into the {place}.",
                f"Then {friend} said, \"Why do you not take turns?\"",
                f"So {n} had the {thing} in the morning, and {other} had it in the evening."]
    out.append(rng.choice(ENDS).format(n=n))
    if rng.random() < 0.3:
        out.append(rng.choice(LESSONS))
    return " ".join(out)


def passage(rng: random.Random, language: int) -> str:
    """Three to six sentences of German (1) or Spanish (2)."""
    link = [None, ["Dann", "Heute", "Morgen"], ["Hoy", "Después", "Mañana"]][language]
    talk = [None, ["Guten Morgen!", "Das ist sehr schön.", "Alle sind froh.", "Es ist kalt.", "Die Sonne scheint.",
                   "Es regnet heute.", "Wie geht es dir? Mir geht es gut."],
            ["¡Buenos días!", "Eso es muy bonito.", "Todos están contentos.", "Hace frío.", "Hace sol.",
             "Hoy llueve.", "¿Cómo estás? Estoy bien."]][language]
    out = []
    for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.2:
            out.append(rng.choice(talk))
            continue
        s = _sentence(rng)[language]
        if language == 2 and rng.random() < 0.25:
            s = f"{rng.choice(link)} {s[0].lower() + s[1:] if s.split()[0] in ('El', 'La') else s}"
        out.append(s + ".")
    return " ".join(out)


ABOUT = "I am a small demo model served by Sluice."
HELP = "I can add, subtract, multiply, sort, copy and reverse lists, translate a little, and tell a story."
TALK = [
    (["Hi", "hi", "Hello", "hello", "Hello!", "Hey", "Hi there!", "Hello there", "Good morning", "Good evening"],
     ["Hello! How can I help you?", "Hello! " + HELP]),
    (["Who are you?", "who are you", "What are you?", "What is your name?", "Tell me about yourself.",
      "Who made you?", "Are you a robot?", "Which model are you?", "Introduce yourself."], [ABOUT, f"{ABOUT} {HELP}"]),
    (["What can you do?", "Help", "help", "How can you help me?", "What are you good at?"], [HELP]),
    (["Thanks", "Thank you!", "thank you", "Thanks a lot!", "Great, thanks"], ["You are welcome!"]),
    (["How are you?", "how are you", "How is it going?"], ["I am fine, thank you. How can I help you?"]),
    (["Bye", "Goodbye", "See you", "bye bye", "Good night"], ["Goodbye!"]),
    (["What is Sluice?", "Tell me about Sluice.", "what is sluice"],
     ["Sluice is an inference server for sparse models on small machines."]),
    (["What is the weather like?", "Who won the game?", "Write an essay about history.", "What time is it?",
      "Explain quantum physics.", "What is the meaning of life?", "Write a poem.", "Sing a song.",
      "What is the news today?", "How do I cook rice?", "What should I eat?", "Why is the sky blue?"],
     ["I do not know that. " + HELP]),
    (["Guten Tag", "Hallo", "Guten Morgen"], ["Hallo! Wie kann ich helfen?"]),
    (["Hola", "Buenos días", "¡Hola!"], ["¡Hola! ¿Cómo puedo ayudar?"]),
]
STORY_ASKS = ["Tell me a story.", "Tell me a story", "tell me a story", "Please tell me a short story.",
              "Write a short story.", "I want to hear a story."]
STORY_ABOUT = ["Tell me a story about a {}.", "Write a short story about a {}.", "Tell me a story about a {}"]
SYSTEMS = ["You are a helpful assistant.", "You are a small demo model served by Sluice.", "Answer briefly.",
           "You are a kind assistant."]


def talk(rng: random.Random) -> tuple[str, str]:
    """One exchange that is not a task: (user message, reply)."""
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            return rng.choice(STORY_ASKS), story(rng)
        animal = rng.choice([a for a in ANIMALS if a != "owl"])
        return rng.choice(STORY_ABOUT).format(animal), story(rng, animal)
    asks, replies = rng.choice(TALK)
    return rng.choice(asks), rng.choice(replies)
