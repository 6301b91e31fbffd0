"""Seeded random values for the generated dialogues.

Every pool of real-world values is split by a hash of the value: one part appears only in training text, the other only in the
held-back set. Values that are drawn from patterns (ids, paths, numbers, invented words) differ by the seed.
"""

import zlib

HELD_SHARE = 6  # one pool entry in six is held back

FIRST_NAMES = """Anna Ben Carla David Elena Felix Grace Hugo Iris Jonas Kira Leo Maria Noah Olga Peter Quinn Rosa Sam Tina Uma
Victor Wendy Xavier Yara Zoe Amir Bianca Chen Dmitri Emma Fatima Gabriel Hana Ivan Julia Karim Lena Mateo Nina Omar Priya
Ravi Sofia Tomas Ursula Vera Walter Ying Zack Alice Bob Carol Dan Eve Frank Gina Henry Isabel Jack Kate Liam Mia Nora Oscar
Paul Rita Steve Tara Vincent Will Yusuf Aisha Bruno Clara Diego Erik Freya George Helen Ines Jan Kofi Laura Mohammed Nadia
Otto Pablo Ruth Sven Thea Ada Linus Grete Alan Edsger Barbara Ken Dennis Margaret""".split()
LAST_NAMES = """Smith Garcia Kim Novak Tanaka Okafor Rossi Silva Jensen Kowalski Haddad Nguyen Patel Schmidt Dubois Ivanova Costa
Murphy Larsen Moreau Weber Khan Singh Lopez Santos Fischer Bakker Eriksson Papadopoulos Yilmaz Cohen Mensah""".split()
CITIES = """Paris London Berlin Madrid Rome Lisbon Vienna Prague Warsaw Athens Dublin Oslo Stockholm Helsinki Copenhagen
Amsterdam Brussels Budapest Bucharest Sofia Zagreb Belgrade Zurich Geneva Milan Naples Turin Venice Florence Barcelona Valencia
Seville Porto Hamburg Munich Cologne Dresden Leipzig Lyon Marseille Nice Bordeaux Glasgow Edinburgh Manchester Liverpool Leeds
Bristol Cardiff Belfast Tokyo Osaka Kyoto Seoul Busan Beijing Shanghai Shenzhen Taipei Bangkok Hanoi Jakarta Manila Singapore
Delhi Mumbai Chennai Kolkata Karachi Lahore Dhaka Kathmandu Colombo Dubai Doha Riyadh Amman Beirut Cairo Tunis Algiers
Casablanca Dakar Accra Lagos Nairobi Kampala Harare Lusaka Pretoria Durban Sydney Melbourne Perth Brisbane Auckland Wellington
Toronto Montreal Vancouver Calgary Ottawa Boston Chicago Denver Seattle Portland Austin Dallas Houston Miami Atlanta Detroit
Phoenix Philadelphia Baltimore Cleveland Minneapolis Havana Bogota Lima Quito Santiago Montevideo Brasilia Recife Salvador
Reykjavik Tallinn Riga Vilnius Kyiv Minsk Tbilisi Yerevan Baku Tashkent Almaty Ankara Istanbul Izmir Malta Monaco""".split()
CITIES += ["New York", "San Francisco", "Los Angeles", "New Orleans", "Las Vegas", "Hong Kong", "Buenos Aires", "Cape Town",
           "Mexico City", "Rio de Janeiro", "Kuala Lumpur", "Tel Aviv", "Abu Dhabi", "Saint Petersburg", "San Diego",
           "Zürich", "São Paulo", "Malmö", "Kraków", "Bogotá", "Düsseldorf", "Łódź", "Århus", "Genève"]
WORDS = """apple river stone garden window bridge silver forest engine letter market paper planet rocket summer winter yellow
orange bottle camera coffee dinner driver energy family finger flower friend guitar hammer island jacket kitchen ladder lemon
meadow mirror monkey mountain museum needle office pencil pepper picture pillow pocket potato prison rabbit report ribbon
school shadow signal sister soccer spider spring square station storm street sugar switch table temple ticket timber tomato
tunnel turtle valley velvet village violin wagon walnut water weather whisper wheel wolf wonder yard zebra battery budget
contract deadline meeting project schedule invoice server database network backup password release version test review plan
update draft budget travel hotel flight train lunch cake bread cheese soup rice tea milk music movie book story poem song
dance game chess puzzle robot drone laser sensor cable printer screen keyboard solar wind ocean glacier volcano desert
history science physics chemistry biology language grammar algebra geometry memory cache decoder router prompt token kernel
queue block page thread batch vector matrix tensor gradient cluster replica worker gateway monitor metric alert""".split()
VERBS = """call email visit buy sell clean fix paint pack bring check review finish start cancel renew book order water feed
charge print sign collect return update send join leave wash move open close""".split()
SYL_ON = ["b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu", "r", "s",
          "sh", "sk", "st", "t", "th", "tr", "v", "w", "x", "y", "z", ""]
SYL_V = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ie", "au"]
SYL_END = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "x", "sh", "lt", "ck", "v"]
FOLDERS = """home data src docs notes projects tmp var log config photos music reports archive backup work include tests
scripts models images exports invoices letters""".split()
EXTS = "txt md csv json log cc h py html pdf png yaml toml sql xml sh".split()
CURRENCIES = {"USD": "US dollars", "EUR": "euros", "GBP": "British pounds", "JPY": "Japanese yen", "CHF": "Swiss francs",
              "INR": "Indian rupees", "CAD": "Canadian dollars", "AUD": "Australian dollars", "CNY": "Chinese yuan",
              "SEK": "Swedish kronor", "BRL": "Brazilian reais", "MXN": "Mexican pesos"}
CODES = list(CURRENCIES) + ["NOK", "DKK", "PLN", "CZK", "HUF", "TRY", "ZAR", "KRW", "SGD", "NZD", "THB", "ILS"]
LANGUAGES = """French German Spanish Italian Portuguese Dutch Swedish Polish Czech Turkish Arabic Hindi Japanese Korean Chinese
Greek Finnish Danish Hungarian Romanian Vietnamese Swahili""".split()


_lexicon = []  # further training words; the held-back set never uses them
_fragments = []  # word pieces that are only used inside longer words


def set_lexicon(words, fragments):
    """Words that training may copy besides WORDS (anything but held-back entries), and pieces to build new words from."""
    held = {w.lower() for pool in (WORDS, CITIES, FIRST_NAMES, LAST_NAMES) for w in pool if is_held(w)}
    _lexicon[:] = sorted(w for w in words if len(w) > 1 and w.lower() not in held)
    _fragments[:] = sorted(fragments)


def is_held(value):
    return zlib.crc32(str(value).encode()) % HELD_SHARE == 0


class Values:
    """Draws values; `held` selects the held-back part of each pool. Single-threaded."""

    def __init__(self, rng, held=False, unseen=False):
        self.rng = rng
        self.held = held
        self.unseen = unseen  # held-back wordings too
        self._pools = {}

    def pick(self, pool):
        key = id(pool)
        if key not in self._pools:
            part = [v for v in pool if is_held(v) == self.held]
            self._pools[key] = (pool, part or list(pool))
        return self.rng.choice(self._pools[key][1])

    def nonsense(self, syllables=None):
        r = self.rng
        n = syllables or r.choice([1, 2, 2, 2, 3, 3])
        while True:
            w = "".join(r.choice(SYL_ON) + r.choice(SYL_V) + (r.choice(SYL_END) if r.random() < 0.5 else "") for _ in range(n))
            if len(w) > 2:
                return w

    def letters(self, low=3, high=9):
        return "".join(self.rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.randint(low, high)))

    def word(self):
        r = self.rng
        x = r.random()
        if _lexicon and not self.held and x < 0.5:
            return r.choice(_lexicon) if x < 0.3 else r.choice(_fragments) + r.choice(_fragments) + r.choice(["", "", self.nonsense(1)])
        x = r.random()
        return self.pick(WORDS) if x < 0.6 else self.nonsense() if x < 0.92 else self.letters()

    def proper(self, syllables=None):
        """An invented proper name."""
        if _lexicon and not self.held and self.rng.random() < 0.4:
            return self.word().capitalize()
        return self.nonsense(syllables).capitalize()

    def noun(self):
        return self.word()

    def name(self):
        r = self.rng
        x = r.random()
        first = self.pick(FIRST_NAMES) if x < 0.55 else self.proper(2)
        if r.random() < 0.15:
            first += " " + (self.pick(LAST_NAMES) if r.random() < 0.6 else self.proper(2))
        if r.random() < 0.05:
            first = first.lower()
        return first

    def city(self):
        r = self.rng
        x = r.random()
        if x < 0.5:
            c = self.pick(CITIES)
        elif x < 0.92:
            c = self.proper()
        else:
            c = r.choice(["New", "Port", "San", "Saint", "Fort", "Lake", "Upper", "East"]) + " " + self.proper()
        return c.lower() if r.random() < 0.04 else c

    def integer(self):
        r = self.rng
        digits = r.choice([1, 2, 2, 3, 3, 4, 4, 5, 6])
        return r.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)

    def number(self):
        if self.rng.random() < 0.8:
            return self.integer()
        value = round(self.rng.uniform(0.1, 999), self.rng.choice([1, 2]))
        return value if value != int(value) else value + 0.5

    def small(self):
        return self.rng.randint(1, 30)

    def order_id(self):
        r = self.rng
        d = lambda n: "".join(r.choice("0123456789") for _ in range(n))
        up = lambda n: "".join(r.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(n))
        hexa = lambda n: "".join(r.choice("0123456789abcdef") for _ in range(n))
        return r.choice([
            lambda: f"{up(1)}-{d(4)}", lambda: f"ORD-{d(5)}", lambda: d(r.randint(4, 9)), lambda: f"{up(2)}{d(6)}",
            lambda: hexa(8), lambda: f"{up(3)}-{d(3)}-{up(2)}", lambda: f"INV{r.randint(2019, 2026)}-{d(3)}",
            lambda: f"{d(2)}{up(2)}{d(3)}", lambda: f"order_{d(4)}", lambda: f"{hexa(4)}-{hexa(4)}",
        ])()

    def filename(self):
        r = self.rng
        stem = self.word() if r.random() < 0.7 else f"{self.word()}_{self.word()}"
        if r.random() < 0.15:
            stem += str(r.randint(1, 99))
        return f"{stem}.{r.choice(EXTS)}"

    def folder(self):
        r = self.rng
        part = lambda: self.pick(FOLDERS) if r.random() < 0.6 else self.word()
        body = "/".join(part() for _ in range(r.choice([1, 1, 2, 2, 3])))
        return r.choice(["/", "/", "", "./", "~/"]) + body + r.choice(["", "", "/"])

    def path(self):
        x = self.rng.random()
        return self.filename() if x < 0.3 else self.folder().rstrip("/") + "/" + self.filename()

    def phrase(self, low=1, high=5):
        return " ".join(self.word() for _ in range(self.rng.randint(low, high)))

    def task(self):
        r = self.rng
        x = r.random()
        if x < 0.5:
            return f"{self.pick(VERBS)} {r.choice(['the', 'my', 'a'])} {self.word()}"
        if x < 0.75:
            return f"{self.pick(VERBS)} {self.name()}"
        return f"{self.pick(VERBS)} {self.phrase(1, 3)}"

    def sentence(self):
        r = self.rng
        x = r.random()
        if x < 0.25:
            return f"the {self.word()} is {r.choice(['ready', 'late', 'done', 'broken', 'here', 'on the table'])}"
        if x < 0.45:
            return f"I will {self.task()} {r.choice(['today', 'tomorrow', 'soon', 'tonight', 'on Monday'])}"
        if x < 0.6:
            return f"see you at {self.time()}"
        return self.phrase(2, 6)

    def time(self):
        r = self.rng
        h, m = r.randint(1, 12), r.choice([0, 5, 10, 15, 20, 30, 40, 45, 50])
        return r.choice([f"{h} {r.choice(['am', 'pm'])}", f"{h}:{m:02d} {r.choice(['am', 'pm'])}", f"{r.randint(0, 23):02d}:{m:02d}",
                         f"{h}{r.choice(['am', 'pm'])}"])

    def email(self):
        return f"{self.word()}@{self.word()}.{self.rng.choice(['com', 'org', 'net', 'io', 'example'])}"

    def url(self):
        return f"https://{self.word()}.{self.rng.choice(['com', 'org', 'net', 'dev'])}/{self.word()}"

    def date(self):
        r = self.rng
        month = r.choice("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
        return f"{r.randint(1, 28):02d} {month} {r.randint(2024, 2027)}"

    def code(self):
        return self.pick(CODES)

    def language(self):
        return self.pick(LANGUAGES)
